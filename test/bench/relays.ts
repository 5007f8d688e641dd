// What the benchmark compares: our built program in its modes, and Postfix, which takes a message to its own queue (one
// fsync) before its 250 and delivers it from there. Each gets a directory of its own on the same disk, and a log file.

import { execFileSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { daemonOf, end, eventually, freePort, isInstalled, listens, start, waitsFor } from './processes.ts';

export type Relay = Readonly<{
  name: RelayName;
  port: number;
  /** Of the process that all others of the relay are below. */
  pid: number;
  stop: () => Promise<void>;
}>;

type Surroundings = Readonly<{
  /** The relay's own, existing and empty; others than us may look into it. */
  directory: string;
  /** The built command line program. */
  program: string;
  sinkPort: number;
}>;

/** In the order of the table. */
export const RELAYS = {
  'cut-through': { title: 'cut-through', start: startOurs },
  'fast-path': { title: 'fast-path', start: startOurs },
  spool: { title: 'spool', start: startOurs },
  'disk-first': { title: 'spool, fast path disabled (disk first)', start: startOurs },
  postfix: { title: 'Postfix (its queue)', start: startPostfix },
} as const;
export type RelayName = keyof typeof RELAYS;

const START_TIMEOUT_MS = 15_000;
const PORT_TRIES = 5;

/** Why the relay can't be measured here, with what to do about it; null if it can. */
export async function hindrance(name: RelayName): Promise<string | null> {
  if (name !== 'postfix') return null;
  if (!(await isInstalled('postfix'))) return 'not measured: no postfix (Debian: apt-get install postfix)';
  if (process.getuid?.() !== 0) return 'not measured: postfix starts as root only (sudo npm run bench)';
  return null;
}

/** @throws Error that tells what the relay said */
export async function startRelay(name: RelayName, surroundings: Surroundings): Promise<Relay> {
  return await RELAYS[name].start(name, surroundings);
}

async function startOurs(name: RelayName, { directory, program, sinkPort }: Surroundings): Promise<Relay> {
  const logFile = join(directory, 'log');
  const log = openSync(logFile, 'a');
  const mode = name === 'disk-first' ? 'spool' : name;
  const args = [
    ...['serve', '--mode', mode, '--route', `*=smtp://127.0.0.1:${sinkPort}`],
    ...['--listen', 'smtp://127.0.0.1:0', '--http', '127.0.0.1:0', '--hostname', 'proxy.example'],
    ...['--spool-dir', join(directory, 'spool'), '--log-format', 'json'],
  ];
  const child = start(process.execPath, [program, ...args], { stdio: ['ignore', log, log] });
  let ready: RegExpExecArray | null = null;
  await eventually(async () => {
    ready = /^.*"event":"ready".*$/m.exec(await readFile(logFile, 'utf8'));
    return ready !== null || child.exitCode !== null;
  }, START_TIMEOUT_MS);
  if (ready === null) throw new Error(`${name} did not start: ${await readFile(logFile, 'utf8')}`);
  const { listen, http } = JSON.parse(ready[0]) as { listen: [string]; http: string };
  if (name === 'disk-first') await disableFastPath(http);
  return { name, port: Number(new URL(listen[0]).port), pid: child.pid!, stop: () => end(child) };
}

async function disableFastPath(http: string): Promise<void> {
  const response = await fetch(`http://${http}/fast-path`, { method: 'POST', body: '{"enabled":false}' });
  if (!response.ok) throw new Error(`POST /fast-path: ${response.status} ${await response.text()}`);
}

async function startPostfix(name: RelayName, { directory, sinkPort }: Surroundings): Promise<Relay> {
  const [etc, data, queue] = ['etc', 'data', 'queue'].map((each) => join(directory, each)) as [
    string,
    string,
    string,
  ];
  for (const each of [etc, data, queue]) await mkdir(each);
  execFileSync('chown', ['postfix', data]);
  const pidFile = join(queue, 'pid', 'master.pid');
  const complaints = join(directory, 'complaints');
  const log = openSync(complaints, 'a');
  // Another program may take the port between our asking for it and Postfix's using it.
  for (let tries = 0; tries < PORT_TRIES; tries++) {
    const port = await freePort();
    await writeFile(join(etc, 'main.cf'), mainCf({ directory, data, queue, sinkPort }));
    await writeFile(join(etc, 'master.cf'), masterCf(port));
    const child = start('postfix', ['-c', etc, 'start-fg'], { stdio: ['ignore', log, log] });
    waitsFor(child, pidFile);
    const isUp = await listens(child, port, START_TIMEOUT_MS);
    const pid = daemonOf(child);
    if (isUp && pid !== null) return { name, port, pid, stop: () => end(child) };
    await end(child);
    await rm(pidFile, { force: true });
  }
  throw new Error(`postfix did not start: ${await readFile(complaints, 'utf8')}`);
}

/** Postfix as it comes, but for: nothing is asked of DNS, all may relay, and everything goes to the sink. */
function mainCf(at: Readonly<{ directory: string; data: string; queue: string; sinkPort: number }>): string {
  return `compatibility_level = 3.6
queue_directory = ${at.queue}
data_directory = ${at.data}
maillog_file = ${join(at.directory, 'maillog')}
maillog_file_prefixes = ${at.directory}
mail_owner = postfix
setgid_group = postdrop
myhostname = proxy.example
mydestination =
mynetworks = 127.0.0.0/8
inet_protocols = ipv4
local_recipient_maps =
alias_maps =
disable_dns_lookups = yes
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
default_transport = smtp:[127.0.0.1]:${at.sinkPort}
`;
}

/** The usual services, none in a chroot. */
function masterCf(port: number): string {
  return `127.0.0.1:${port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`;
}
