// A whole postfix with directories of its own, without the system's configuration: smtpd, its queue, smtp, and a maildir
// for the domains that it is told are its own. Both as upstream and as next hop.
import { chmod, chown, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Owner, type Ran, run, temporaryDirectory } from '../tools.ts';
import { Daemon, quietPort } from './daemon.ts';
import { programOf } from './installed.ts';
import { Maildir } from './maildir.ts';

export type PostfixOptions = Readonly<{
  hostname?: string;
  /** Lines of main.cf after ours; the last one of a name counts. */
  main?: string;
  /** Lines of master.cf. */
  services?: string;
  /** Ports that `services` listen on. */
  ports?: readonly number[];
  /** Domains delivered into the maildir. */
  domains?: readonly string[];
  owner?: Owner;
}>;

/** Recipients that every server here refuses, for good or for now. */
const REFUSALS =
  'regexp:{ {/^refused@/ 550 5.1.1 no such mailbox here} {/^later@/ 451 4.2.0 come back later} }';

export class Postfix {
  readonly port: number;
  readonly daemon: Daemon;
  readonly mailbox: Maildir;
  readonly #configuration: string;
  readonly #owner: Owner | undefined;

  private constructor(port: number, daemon: Daemon, directory: string, owner: Owner | undefined) {
    this.port = port;
    this.daemon = daemon;
    this.mailbox = new Maildir(join(directory, 'mail', 'box'));
    this.#configuration = join(directory, 'etc');
    this.#owner = owner;
  }

  static async start(options: PostfixOptions = {}): Promise<Postfix> {
    const directory = await temporaryDirectory(options.owner);
    const port = await quietPort();
    await makeDirectories(directory);
    await writeFile(join(directory, 'etc/main.cf'), lastOfEach(mainCf(directory, options)));
    await writeFile(join(directory, 'etc/master.cf'), masterCf(port, options.services ?? ''));
    // Without -d it becomes a session of its own, whose processes it ends when it is ended.
    const args = ['-c', join(directory, 'etc')];
    const ports = [port, ...(options.ports ?? [])];
    const logDirectory = join(directory, 'log');
    const command = programOf('postfix');
    const daemon = await Daemon.start({ command, args, ports, logDirectory, owner: options.owner });
    return new Postfix(port, daemon, directory, options.owner);
  }

  /** What `postqueue -j` says of each message that is in the queue. */
  async queue(): Promise<readonly { queue_name: string; recipients: { delay_reason?: string }[] }[]> {
    const { output } = await this.#postqueue('-j');
    return output
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line));
  }

  /** How many messages are in the queue. */
  async queued(): Promise<number> {
    return (await this.queue()).length;
  }

  /** Has all that is in the queue tried now. */
  async flush(): Promise<void> {
    await this.#postqueue('-f');
  }

  #postqueue(flag: string): Promise<Ran> {
    return run('postqueue', ['-c', this.#configuration, flag], '', this.#owner);
  }
}

// What `postfix check` would make, without its two seconds.
async function makeDirectories(directory: string): Promise<void> {
  const [, , uid, gid] = (await userEntry('passwd', 'postfix')).split(':').map(Number) as number[];
  const postdrop = Number((await userEntry('group', 'postdrop')).split(':')[2]);
  const queue = join(directory, 'queue');
  const own = async (path: string, mode: number, group = gid!) => {
    await mkdir(path, { recursive: true });
    await chown(path, uid!, group);
    await chmod(path, mode);
  };
  for (const each of ['etc', 'log', 'queue/pid']) await mkdir(join(directory, each), { recursive: true });
  for (const each of QUEUES) await own(join(queue, each), 0o700);
  await own(join(queue, 'maildrop'), 0o730, postdrop);
  await own(join(queue, 'public'), 0o710, postdrop);
  await own(join(directory, 'data'), 0o700);
  await mkdir(join(directory, 'mail'));
  await chown(join(directory, 'mail'), NOBODY, NOBODY);
}

const QUEUES = 'active bounce corrupt defer deferred flush hold incoming private saved trace'.split(' ');
const NOBODY = 65_534;

async function userEntry(database: 'passwd' | 'group', name: string): Promise<string> {
  return (await run('getent', [database, name])).output.trim();
}

// Postfix warns of a setting that is there twice, in every process. Before its log writer is up, the warnings fill the
// log's socket, and then all of them, the log writer included, wait for somebody to read it.
function lastOfEach(settings: string): string {
  const lines = settings.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  const values = new Map(lines.map((line) => [line.split('=')[0]!.trim(), line]));
  return `${[...values.values()].join('\n')}\n`;
}

function mainCf(directory: string, { hostname, domains, main }: PostfixOptions): string {
  return `compatibility_level = 3.6
queue_directory = ${directory}/queue
data_directory = ${directory}/data
maillog_file = ${directory}/log/maillog
maillog_file_prefixes = ${directory}
mail_owner = postfix
setgid_group = postdrop
myhostname = ${hostname ?? 'postfix.example'}
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
disable_dns_lookups = yes
smtp_host_lookup = native
message_size_limit = 0
mailbox_size_limit = 0
virtual_mailbox_limit = 0
virtual_mailbox_domains = ${(domains ?? []).join(' ')}
virtual_mailbox_base = ${directory}/mail
virtual_mailbox_maps = static:box/
virtual_uid_maps = static:${NOBODY}
virtual_gid_maps = static:${NOBODY}
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = ${domains === undefined ? '' : `check_recipient_access ${REFUSALS}`}
# Long lines are to arrive as they were sent; by default postfix breaks them when it sends.
smtp_line_length_limit = 0
${main ?? ''}`;
}

function masterCf(port: number, services: string): string {
  return `127.0.0.1:${port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
flush unix n - n 1000? 0 flush
showq unix n - n - - showq
postlog unix-dgram n - n - 1 postlogd
${services}`;
}
