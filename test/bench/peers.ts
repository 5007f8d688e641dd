// What the benchmark compares, in the order of the tables. Each gets a directory of its own on the same disk.
import { openSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { eximProgram, startExim } from './exim.ts';
import { startPostfixProxy, startPostfixQueue } from './postfix.ts';
import { end, eventually, isInstalled, start, startOnPorts } from './processes.ts';
import { DOMAINS, type Domain, type Sinks } from './sink.ts';
import { openFilesLimit } from './usage.ts';

/** A peer that runs. */
export type Running = Readonly<{
  /** Where to send what is for the domain. */
  port: (domain: Domain) => number;
  /** Of the process that all others of the peer are below; null: there is none. */
  pid: number | null;
  stop: () => Promise<void>;
}>;
export type Peer = Running & Readonly<{ name: PeerName }>;

/** The peer's own directory, existing and empty, which others than us may look into. */
export type Surroundings = Readonly<{ directory: string; sinks: Sinks }>;

type Kind = Readonly<{
  title: string;
  /** Of a load's messages, so that a slow one doesn't take all the time. */
  share: number;
  /** Has many processes that share memory. */
  forks: boolean;
  ours: boolean;
  start: (surroundings: Surroundings) => Promise<Running>;
}>;

const START_TIMEOUT_MS = 15_000;
const PROGRAM = 'dist/cli.js';
/** It takes no more than it may open files for, two a session and some beside. */
const HAPROXY_SESSIONS = 4_000;
const HAPROXY_FILES = 50;
const plain = { share: 1, forks: false, ours: false };
const ours = { ...plain, ours: true };
const forking = { share: 0.4, forks: true, ours: false };

export const PEERS = {
  direct: { ...plain, title: 'direct, no proxy', start: startNothing },
  haproxy: { ...plain, title: 'HAProxy, tcp mode', start: startHaproxy },
  'cut-through': { ...ours, title: 'cutthrough, stock', start: startOurs() },
  'postfix-proxy': { ...forking, title: 'Postfix smtpd_proxy_filter', start: startPostfixProxy },
  exim: { ...forking, share: 0.1, title: 'Exim cutthrough_delivery', start: startExim },
  'fast-path': { ...ours, title: '--mode fast-path', start: startOurs('fast-path') },
  spool: { ...ours, title: '--mode spool', start: startOurs('spool') },
  'disk-first': { ...ours, share: 0.3, title: 'spool, fast path disabled', start: startDiskFirst },
  postfix: { ...forking, share: 0.3, title: 'Postfix, store and forward', start: startPostfixQueue },
} as const satisfies Readonly<Record<string, Kind>>;
export type PeerName = keyof typeof PEERS;
export const PEER_NAMES = Object.keys(PEERS) as readonly PeerName[];

/** Why the peer can't be measured here, with what to do about it; null if it can. */
async function hindrance(name: PeerName): Promise<string | null> {
  if (name === 'haproxy' && !(await isInstalled('haproxy'))) {
    return 'no haproxy, so there are no ratios to it (Debian: apt-get install haproxy)';
  }
  if (name === 'exim' && (await eximProgram()) === null) {
    return "no exim (it conflicts with postfix: unpack Debian's exim4-daemon-heavy beside it, EXIM=…/usr/sbin/exim4)";
  }
  const { forks } = PEERS[name];
  return forks && process.getuid?.() !== 0 ? 'starts as root only (sudo npm run bench)' : null;
}

/** @throws Error that tells what is missing, or what the peer said */
export async function startPeer(name: PeerName, surroundings: Surroundings): Promise<Peer> {
  const why = await hindrance(name);
  if (why !== null) throw new Error(why);
  await mkdir(surroundings.directory);
  return { name, ...(await PEERS[name].start(surroundings)) };
}

async function startNothing({ sinks }: Surroundings): Promise<Running> {
  return { port: (domain) => sinks[domain].port, pid: null, stop: async () => {} };
}

async function startHaproxy({ directory, sinks }: Surroundings): Promise<Running> {
  const configuration = join(directory, 'haproxy.cfg');
  const complaints = join(directory, 'haproxy says');
  const said = openSync(complaints, 'a');
  const sessions = Math.min(HAPROXY_SESSIONS, Math.floor((await openFilesLimit()) / 2) - HAPROXY_FILES);
  const { child, ports } = await startOnPorts(2, complaints, async ([small, fast]) => {
    const { 'a.example': smallSink, 'fast.example': fastSink } = sinks;
    const text = haproxyCfg(sessions, [small!, smallSink.port], [fast!, fastSink.port]);
    await writeFile(configuration, text);
    return start('haproxy', ['-db', '-f', configuration], { stdio: ['ignore', said, said] });
  });
  return {
    port: (domain) => ports[domain === 'fast.example' ? 1 : 0]!,
    pid: child.pid!,
    stop: () => end(child),
  };
}

/** One thread, as our process has. */
function haproxyCfg(
  sessions: number,
  small: readonly [from: number, to: number],
  fast: readonly [from: number, to: number],
): string {
  return `global
  nbthread 1
  maxconn ${sessions}
defaults
  mode tcp
  timeout connect 5s
  timeout client 300s
  timeout server 300s
listen small
  bind 127.0.0.1:${small[0]} backlog 4096
  server sink 127.0.0.1:${small[1]}
listen fast
  bind 127.0.0.1:${fast[0]} backlog 4096
  server sink 127.0.0.1:${fast[1]}
`;
}

type Ready = Readonly<{ listen: readonly [string]; http: string }>;

/** As it comes: HTTP with its metrics, log, ledger and all checks are on. */
function startOurs(mode?: string): Kind['start'] {
  return async (surroundings) => (await startOurProgram(surroundings, mode)).running;
}

async function startDiskFirst(surroundings: Surroundings): Promise<Running> {
  const { running, http } = await startOurProgram(surroundings, 'spool');
  const response = await fetch(`http://${http}/fast-path`, { method: 'POST', body: '{"enabled":false}' });
  if (!response.ok) throw new Error(`POST /fast-path: ${response.status} ${await response.text()}`);
  return running;
}

async function startOurProgram(
  { directory, sinks }: Surroundings,
  mode?: string,
): Promise<Readonly<{ running: Running; http: string }>> {
  const logFile = join(directory, 'log');
  const log = openSync(logFile, 'a');
  const args = [
    ...['serve', '--listen', 'smtp://127.0.0.1:0', '--http', '127.0.0.1:0', '--hostname', 'proxy.example'],
    ...DOMAINS.flatMap((domain) => ['--route', `${domain}=smtp://127.0.0.1:${sinks[domain].port}`]),
    ...(mode === undefined ? [] : ['--mode', mode, '--spool-dir', join(directory, 'spool')]),
  ];
  const child = start(process.execPath, [PROGRAM, ...args], { stdio: ['ignore', log, log] });
  let ready: RegExpExecArray | null = null;
  await eventually(async () => {
    ready = /^.*"event":"ready".*$/m.exec(await readFile(logFile, 'utf8'));
    return ready !== null || child.exitCode !== null;
  }, START_TIMEOUT_MS);
  if (ready === null) throw new Error(`cutthrough did not start: ${await readFile(logFile, 'utf8')}`);
  const { listen, http } = JSON.parse(ready[0]) as Ready;
  const port = Number(new URL(listen[0]).port);
  return { running: { port: () => port, pid: child.pid!, stop: () => end(child) }, http };
}
