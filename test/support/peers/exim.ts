// A whole exim from an unpacked package: everything as one user, who is neither root nor Debian's, since exim gives up
// root for a configuration that isn't the built-in one anyway.
import { chmod, chown, copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Owner, run, temporaryDirectory } from '../tools.ts';
import { Daemon, quietPort } from './daemon.ts';
import { programOf } from './installed.ts';
import { Maildir } from './maildir.ts';

export type EximOptions = Readonly<{
  hostname?: string;
  /** Main options; DELIVERS_AT_ONCE without any. */
  main?: string;
  /** For STARTTLS, which it offers where they are given. */
  tls?: Readonly<{ certFile: string; keyFile: string }> | undefined;
  /** Where all else goes; without, nowhere. */
  router?: string;
  transport?: string;
  domains?: readonly string[];
  owner?: Owner;
}>;

const NOBODY = 65_534;
/** Else what comes in one session after ten messages waits for a queue run. */
const DELIVERS_AT_ONCE = 'smtp_accept_queue_per_connection = 0';

export class Exim {
  readonly port: number;
  readonly daemon: Daemon;
  readonly mailbox: Maildir;
  readonly #directory: string;

  private constructor(port: number, daemon: Daemon, directory: string) {
    this.port = port;
    this.daemon = daemon;
    this.#directory = directory;
    this.mailbox = new Maildir(join(directory, 'mail'));
  }

  static async start(options: EximOptions = {}): Promise<Exim> {
    const directory = await temporaryDirectory(options.owner);
    const port = await quietPort();
    const logDirectory = join(directory, 'log');
    for (const each of ['log', 'spool', 'mail']) {
      await mkdir(join(directory, each));
      await chown(join(directory, each), NOBODY, NOBODY);
    }
    if (options.tls !== undefined) {
      // The key is open to its owner alone, who isn't exim's user.
      await copyFile(options.tls.keyFile, join(directory, 'key.pem'));
      await chown(join(directory, 'key.pem'), NOBODY, NOBODY);
    }
    const configuration = join(directory, 'exim.conf');
    await writeFile(configuration, eximConf(directory, port, options));
    // It runs itself again, as a user who may not be let into the project's directory; and without set-user-id.
    const command = join(directory, 'exim');
    await copyFile(programOf('exim'), command);
    await chmod(command, 0o755);
    const args = ['-C', configuration, '-bdf', '-q1m'];
    const daemon = await Daemon.start({ command, args, ports: [port], logDirectory, owner: options.owner });
    return new Exim(port, daemon, directory);
  }

  /** How many messages are in the queue. */
  async queued(): Promise<number> {
    return Number(await this.#run('-bpc'));
  }

  /** Has all that is in the queue tried now, whatever its retry times say. */
  async flush(): Promise<void> {
    await this.#run('-qff');
  }

  async #run(flag: string): Promise<string> {
    const command = join(this.#directory, 'exim');
    return (await run(command, ['-C', join(this.#directory, 'exim.conf'), flag])).output;
  }
}

function eximConf(directory: string, port: number, options: EximOptions): string {
  return `exim_path = ${directory}/exim
keep_environment =
primary_hostname = ${options.hostname ?? 'exim.example'}
log_file_path = ${directory}/log/%slog
spool_directory = ${directory}/spool
pid_file_path = ${directory}/pid
exim_user = ${NOBODY}
exim_group = ${NOBODY}
never_users =
local_interfaces = 127.0.0.1
daemon_smtp_ports = ${port}
domainlist local_domains = ${(options.domains ?? []).join(' : ')}
acl_smtp_rcpt = check_rcpt
acl_smtp_data = accept
host_lookup =
rfc1413_query_timeout = 0s
message_size_limit = 100M
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
prdr_enable = true
${tlsOptions(directory, options.tls)}
${options.main ?? DELIVERS_AT_ONCE}
begin acl
check_rcpt:
  deny domains = +local_domains
       local_parts = refused
       message = 5.1.1 no such mailbox here
  defer domains = +local_domains
       local_parts = later
       message = 4.2.0 come back later
  accept hosts = 127.0.0.1
begin retry
* * F,5d,1m
begin routers
box:
  driver = accept
  domains = +local_domains
  transport = box
${options.router ?? ''}
begin transports
box:
  driver = appendfile
  directory = ${directory}/mail
  maildir_format
  create_directory
  user = ${NOBODY}
  group = ${NOBODY}
${options.transport ?? ''}`;
}

function tlsOptions(directory: string, tls: EximOptions['tls']): string {
  if (tls === undefined) return 'tls_advertise_hosts =';
  return `tls_advertise_hosts = *\ntls_certificate = ${tls.certFile}\ntls_privatekey = ${directory}/key.pem`;
}
