// A whole OpenSMTPD from an unpacked package. It wants users and directories of its own at fixed places, so it runs in a
// mount namespace in which they exist; nothing of that is seen outside. The maildir lies where both sides see it.
import { chown, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Owner, temporaryDirectory } from '../tools.ts';
import { Daemon, quietPort } from './daemon.ts';
import { programOf, unpackedRoot } from './installed.ts';
import { Maildir } from './maildir.ts';

export type OpenSmtpdOptions = Readonly<{
  hostname?: string;
  /** Lines before the listener, such as `pki`. */
  before?: string;
  /** Parameters of the listener, such as `tls pki …`. */
  listen?: string;
  /** Where all else goes. */
  relay?: string;
  domains?: readonly string[];
  /** Trusted, in place of the system's authorities. */
  caFile?: string;
  owner?: Owner;
}>;

const MAIL_USER = 64_992;
const USERS = { opensmtpd: 64_990, opensmtpq: 64_991, vmail: MAIL_USER };

export class OpenSmtpd {
  readonly port: number;
  readonly daemon: Daemon;
  readonly mailbox: Maildir;

  private constructor(port: number, daemon: Daemon, directory: string) {
    this.port = port;
    this.daemon = daemon;
    this.mailbox = new Maildir(join(directory, 'mail', 'box'));
  }

  static async start(options: OpenSmtpdOptions = {}): Promise<OpenSmtpd> {
    const directory = await temporaryDirectory(options.owner);
    const port = await quietPort();
    await mkdir(join(directory, 'mail'));
    await chown(join(directory, 'mail'), MAIL_USER, MAIL_USER);
    await writeFile(join(directory, 'smtpd.conf'), smtpdConf(directory, port, options), { mode: 0o644 });
    const entries = Object.entries(USERS);
    const users = entries.map(([name, id]) => `${name}:x:${id}:${id}::/var/empty:/bin/sh\n`);
    const groups = entries.map(([name, id]) => `${name}:x:${id}:\n`);
    await appendTo('/etc/passwd', users, join(directory, 'passwd'));
    await appendTo('/etc/group', groups, join(directory, 'group'));
    await writeFile(join(directory, 'start.sh'), startScript(directory, options.caFile));
    const args = ['--mount', '--propagation', 'private', 'sh', join(directory, 'start.sh')];
    const daemon = await Daemon.start({ command: 'unshare', args, ports: [port], owner: options.owner });
    return new OpenSmtpd(port, daemon, directory);
  }
}

async function appendTo(file: string, lines: readonly string[], copy: string): Promise<void> {
  await writeFile(copy, (await readFile(file, 'utf8')) + lines.join(''), { mode: 0o644 });
}

function startScript(directory: string, caFile: string | undefined): string {
  const authorities = '/etc/ssl/certs/ca-certificates.crt';
  return `set -e
mount --bind ${directory}/passwd /etc/passwd
mount --bind ${directory}/group /etc/group
${caFile === undefined ? '' : `mount --bind ${caFile} ${authorities}`}
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/spool
mkdir -m 711 /var/spool/smtpd
mount -t tmpfs tmpfs /var/lib
mkdir -m 755 -p /var/lib/opensmtpd/empty
mount -t tmpfs tmpfs /usr/libexec
mkdir /usr/libexec/opensmtpd
mount --bind ${join(unpackedRoot, 'usr/libexec/opensmtpd')} /usr/libexec/opensmtpd
exec ${programOf('opensmtpd')} -d -v -f ${directory}/smtpd.conf
`;
}

function smtpdConf(directory: string, port: number, options: OpenSmtpdOptions): string {
  const hostname = options.hostname ?? 'opensmtpd.example';
  const own = (options.domains ?? []).flatMap((domain) => [
    `match from any for domain "${domain}" rcpt-to "refused@${domain}" reject`,
    `match from any for domain "${domain}" action "box"`,
  ]);
  return `${options.before ?? ''}
smtp max-message-size 100M
queue ttl 1h
listen on 127.0.0.1 port ${port} hostname ${hostname} ${options.listen ?? ''}
action "box" maildir "${directory}/mail/box" user vmail virtual { "@" = "vmail" }
${own.join('\n')}
${options.relay ?? ''}
`;
}
