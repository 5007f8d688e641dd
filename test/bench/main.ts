// `npm run bench`: a client → a peer → sinks on loopback, for direct, HAProxy, Postfix, Exim and our modes, in interleaved
// rounds. Tables go to standard output; test/bench/out/ gets a line of JSON for each run and a chart; --write renews
// test/bench/RESULTS.md.
// Exit codes: 0, also where something can't be measured here (it is said); 1 a failure in one line, a count that is
// wrong among them; 2 wrong usage.
import { appendFileSync, mkdirSync, rmSync } from 'node:fs';
import { chmod, mkdtemp, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { chart } from './chart.ts';
import { countFsyncs } from './fsyncs.ts';
import { GROUP_NAMES, GROUPS, type Group, type Load, loadsOf } from './loads.ts';
import { describeMachine, type Facts } from './machine.ts';
import { PEER_NAMES, PEERS, type Peer, type PeerName, startPeer } from './peers.ts';
import { isInstalled } from './processes.ts';
import { results } from './results.ts';
import { measure } from './rounds.ts';
import { DOMAINS, Sink, type Sinks } from './sink.ts';
import { report, table } from './tables.ts';
import { openFilesLimit } from './usage.ts';

const OUT = 'test/bench/out';
const RESULTS = 'test/bench/RESULTS.md';
/** The benchmark ends in any case. */
const QUICK = { rounds: 3, minutes: 4 };
const FULL = { rounds: 5, minutes: 15 };
/** Of these, what is kept for counting fsyncs and for ending everything. */
const FSYNCS_MS = 25_000;
const RESERVE_MS = FSYNCS_MS + 20_000;
const TRACED_MESSAGES = 200;
/** A session has one at each end of a relay. */
const FILES_A_SESSION = 2;
const FILES_BESIDE = 100;
const TMPFS_MAGIC = 0x01021994;

const USAGE = `usage: npm run bench -- [--full] [--rounds N] [--load NAME,NAME] [--peer NAME,NAME] [--write]
  --full     more rounds and points: up to ${FULL.minutes} min (else ${QUICK.minutes})
  --rounds   of the loads that vary most (default ${QUICK.rounds}, full ${FULL.rounds})
  --load     some of ${GROUP_NAMES.join(', ')} (default all)
  --peer     some of ${PEER_NAMES.join(', ')} (default all)
  --write    renews ${RESULTS}; with all loads and peers alone`;

type Options = Readonly<{
  full: boolean;
  rounds: number;
  groups: readonly Group[];
  names: readonly PeerName[];
  write: boolean;
}>;

/** Null: wrong usage. */
function parseOptions(args: readonly string[]): Options | null {
  try {
    const [text, flag] = [{ type: 'string' }, { type: 'boolean' }] as const;
    const options = { full: flag, rounds: text, load: text, peer: text, write: flag };
    const { full = false, write = false, ...some } = parseArgs({ args: [...args], options }).values;
    const rounds = Number(some.rounds ?? (full ? FULL : QUICK).rounds);
    const loads = some.load?.split(',') ?? GROUP_NAMES;
    const peers = some.peer?.split(',') ?? PEER_NAMES;
    const known = loads.every((name) => name in GROUPS) && peers.every((name) => name in PEERS);
    const partly = some.load !== undefined || some.peer !== undefined;
    if (!known || !Number.isInteger(rounds) || rounds < 1 || (write && partly)) return null;
    const names = PEER_NAMES.filter((name) => peers.includes(name));
    return { full, rounds, write, names, groups: GROUP_NAMES.filter((name) => loads.includes(name)) };
  } catch {
    return null;
  }
}

async function main(options: Options): Promise<void> {
  if (!(await toolsAreThere())) return;
  const endsAt = (options.full ? FULL : QUICK).minutes * 60_000 - RESERVE_MS;
  const facts = await describeMachine();
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-bench-'));
  // Behind the handler that ends the processes; for when the benchmark itself is being ended.
  process.once('exit', () => rmSync(directory, { recursive: true, force: true, maxRetries: 5 }));
  // Postfix's and Exim's processes have to get through.
  await chmod(directory, 0o755);
  await warnOfMemoryDisk(directory);
  const sinks = {} as Record<(typeof DOMAINS)[number], Sink>;
  const peers = new Map<PeerName, Peer>();
  try {
    for (const domain of DOMAINS) sinks[domain] = await Sink.start(domain, directory);
    for (const name of options.names) {
      const peer = await startPeer(name, { directory: join(directory, name), sinks }).catch(
        (error: Error) => {
          if (PEERS[name].ours) throw error;
          console.log(`${PEERS[name].title}: not measured: ${error.message.trim()}`);
        },
      );
      if (peer) peers.set(name, peer);
    }
    const loads = await possible(loadsOf(options.full).filter(({ group }) => options.groups.includes(group)));
    const { rounds } = options;
    const output = beginOutput(facts);
    const say = (text: string) => process.stderr.write(text);
    const plan = { loads, rounds, peers, sinks, directory, endsAt, record: output.record, say };
    const { findings, failures } = await measure(plan);
    const fsyncs = await traceQueues(peers, loads, sinks, directory);
    output.record({ fsyncs: Object.fromEntries(fsyncs), failures });
    const text = report(findings, fsyncs, failures);
    console.log(`\n${table(['', ''], facts)}\n\n${text}`);
    const svg = chart(findings);
    if (svg !== null) await writeFile(output.chart, svg);
    console.log(`\n${output.lines}${svg === null ? '' : `, ${output.chart}`}`);
    if (options.write) await writeFile(RESULTS, results(facts, text, command(options)));
    if (failures.length > 0) throw new Error(failures.join('; '));
  } finally {
    await Promise.all([...peers.values()].map((peer) => peer.stop()));
    await Promise.all(Object.values(sinks).map((sink) => sink.stop()));
  }
}

/** Says what is missing. Without postfix there are neither clients nor sinks. */
async function toolsAreThere(): Promise<boolean> {
  const packages = { 'smtp-source': 'postfix', 'smtp-sink': 'postfix', haproxy: 'haproxy', strace: 'strace' };
  const missing: string[] = [];
  for (const tool of Object.keys(packages)) if (!(await isInstalled(tool))) missing.push(tool);
  if (missing.length === 0) return true;
  const wanted = new Set(missing.map((tool) => packages[tool as keyof typeof packages]));
  console.log(`no ${missing.join(', no ')} here; on Debian: apt-get install ${[...wanted].join(' ')}`);
  if (!wanted.has('postfix')) return true;
  console.log('not measured: without postfix there is nothing to measure with');
  return false;
}

async function warnOfMemoryDisk(directory: string): Promise<void> {
  if ((await statfs(directory)).type !== TMPFS_MAGIC) return;
  console.log(`${directory} is in memory, where fsync costs nothing; TMPDIR=/var/tmp may be on a disk`);
}

async function possible(loads: readonly Load[]): Promise<readonly Load[]> {
  const limit = await openFilesLimit();
  return loads.filter(({ name, traffic }) => {
    const needed = traffic.sessions * FILES_A_SESSION + FILES_BESIDE;
    if (needed > limit)
      console.log(`${name}: not measured: needs ${needed} open files (ulimit -n says ${limit})`);
    return needed <= limit;
  });
}

/** Files named by the time. */
function beginOutput(facts: Facts) {
  mkdirSync(OUT, { recursive: true });
  const name = join(OUT, new Date().toISOString().replaceAll(':', ''));
  const lines = `${name}.jsonl`;
  const record = (line: object) => appendFileSync(lines, `${JSON.stringify(line)}\n`);
  record(Object.fromEntries(facts));
  return { lines, chart: `${name}.svg`, record };
}

function command({ full, rounds }: Options): string {
  const standard = (full ? FULL : QUICK).rounds;
  return `npm run bench --${full ? ' --full' : ''}${rounds === standard ? '' : ` --rounds ${rounds}`} --write`;
}

/** Of what may have a queue. */
async function traceQueues(
  peers: ReadonlyMap<PeerName, Peer>,
  loads: readonly Load[],
  sinks: Sinks,
  directory: string,
): Promise<ReadonlyMap<PeerName, number | string>> {
  const found = new Map<PeerName, number | string>();
  const b10 = loads.find(({ name }) => name === 'b10');
  if (b10 === undefined) return found;
  const endsAt = performance.now() + FSYNCS_MS;
  for (const name of ['cut-through', 'fast-path', 'spool', 'disk-first', 'postfix'] as const) {
    const peer = peers.get(name);
    if (peer === undefined) continue;
    const traffic = { ...b10.traffic, messages: TRACED_MESSAGES / PEERS[name].share };
    const leftMs = Math.max(1, endsAt - performance.now());
    found.set(name, await countFsyncs(peer, traffic, sinks, leftMs, directory));
  }
  return found;
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => process.exit(1));

const options = parseOptions(process.argv.slice(2));
if (process.argv.some((arg) => arg === '-h' || arg === '--help')) console.log(USAGE);
else if (options === null) {
  console.error(USAGE);
  process.exitCode = 2;
} else {
  try {
    await main(options);
  } catch (error) {
    console.error(`bench: ${error instanceof Error ? error.message.trim() : String(error)}`);
    process.exitCode = 1;
  }
}
