// `npm run bench`: smtp-source → relay → smtp-sink on loopback, for our modes and for Postfix. What counts are ratios
// within one round: machines differ, and so does one machine from minute to minute. Every round measures each relay once;
// the next one begins with another. JSON lines, one for each run, go to test/bench/out/.
// Exit codes: 0, also where something can't be measured here (it is said); 1 a failure in one line; 2 wrong usage.
import { appendFileSync, mkdirSync, rmSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, statfs } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { carry, countFsyncs, MESSAGE_OCTETS, type Run, SESSIONS, Sink } from './load.ts';
import { isInstalled } from './processes.ts';
import { hindrance, RELAYS, type Relay, type RelayName, startRelay } from './relays.ts';

const OUT = 'test/bench/out';
const PROGRAM = 'dist/cli.js';
/** The benchmark ends in any case; no round is begun that might not end in time. */
const LIMIT_MS = 170_000;
const RUN_TIMEOUT_MS = 60_000;
/** For counting fsyncs, at the end. */
const RESERVE_MS = 25_000;
const WARM_UP_MS = 4_000;
const TRACED_MESSAGES = 200;
const TMPFS_MAGIC = 0x01021994;

const USAGE = `usage: npm run bench -- [--rounds N] [--messages N] [--only NAME,NAME]
  --rounds     rounds, each measuring every relay once (default 5)
  --messages   messages in a run (default 1000)
  --only       some of ${Object.keys(RELAYS).join(', ')} (default all)`;

type Options = Readonly<{ rounds: number; messages: number; names: readonly RelayName[] }>;

/** What has been found out about a relay. */
type Findings = { readonly runs: Run[]; fsyncs: number | string };

const began = performance.now();
const leftMs = () => LIMIT_MS - (performance.now() - began);

/** Null: wrong usage. */
function parseOptions(args: readonly string[]): Options | null {
  try {
    const text = { type: 'string' } as const;
    const { values } = parseArgs({ args: [...args], options: { rounds: text, messages: text, only: text } });
    const all = Object.keys(RELAYS) as RelayName[];
    const only = values.only?.split(',') ?? all;
    const [rounds, messages] = [Number(values.rounds ?? 5), Number(values.messages ?? 1000)];
    const known = only.every((name) => Object.hasOwn(RELAYS, name));
    const counts = [rounds, messages].every((count) => Number.isInteger(count) && count > 0);
    return known && counts ? { rounds, messages, names: all.filter((name) => only.includes(name)) } : null;
  } catch {
    return null;
  }
}

async function main({ rounds, messages, names }: Options): Promise<void> {
  const missing: string[] = [];
  for (const tool of ['smtp-source', 'smtp-sink']) if (!(await isInstalled(tool))) missing.push(tool);
  if (missing.length > 0) {
    console.log(`not measured: no ${missing.join(', no ')} (Debian: apt-get install postfix)`);
    return;
  }
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-bench-'));
  // Behind the handler that ends the processes; for when the benchmark itself is being ended.
  process.once('exit', () => rmSync(directory, { recursive: true, force: true, maxRetries: 5 }));
  // Postfix's processes have to get through.
  await chmod(directory, 0o755);
  const relays: Relay[] = [];
  let sink: Sink | null = null;
  try {
    await warnOfMemoryDisk(directory);
    sink = await Sink.start(directory);
    for (const name of names) {
      const why = await hindrance(name);
      if (why !== null) console.log(`${RELAYS[name].title}: ${why}`);
      else relays.push(await begin(name, directory, sink.port));
    }
    const findings = await measure(relays, sink, { rounds, messages });
    await trace(relays, sink, findings, directory);
    report(findings, messages);
  } finally {
    await Promise.all(relays.map((relay) => relay.stop()));
    await sink?.stop();
  }
}

async function begin(name: RelayName, parent: string, sinkPort: number): Promise<Relay> {
  const directory = join(parent, name);
  await mkdir(directory);
  return await startRelay(name, { directory, program: PROGRAM, sinkPort });
}

async function warnOfMemoryDisk(directory: string): Promise<void> {
  if ((await statfs(directory)).type !== TMPFS_MAGIC) return;
  console.log(`${directory} is in memory, where fsync costs nothing; TMPDIR=/var/tmp may be on a disk`);
}

type AllFindings = ReadonlyMap<RelayName, Findings>;

async function measure(
  relays: readonly Relay[],
  sink: Sink,
  { rounds, messages }: Pick<Options, 'rounds' | 'messages'>,
): Promise<AllFindings> {
  const findings = new Map(relays.map(({ name }) => [name, { runs: [], fsyncs: '' } as Findings]));
  const record = recorder({ messages, messageOctets: MESSAGE_OCTETS, sessions: SESSIONS });
  for (const relay of relays) await warmUp(relay, sink, messages);
  let longestMs = 0;
  for (let round = 0; round < rounds; round++) {
    if (leftMs() < RESERVE_MS + 1.5 * longestMs) {
      console.log(`stopped after ${round} rounds, to end within ${LIMIT_MS / 1000} s`);
      break;
    }
    const roundBegan = performance.now();
    for (const at of relays.keys()) {
      const relay = relays[(at + round) % relays.length]!;
      const run = await carry(relay, sink, messages, timeoutMs());
      findings.get(relay.name)!.runs.push(run);
      record({ round: round + 1, relay: relay.name, ...run });
    }
    longestMs = Math.max(longestMs, performance.now() - roundBegan);
  }
  return findings;
}

/** Compiled code and started processes are what an operator has after a minute: these runs are not counted. */
async function warmUp(relay: Relay, sink: Sink, messages: number): Promise<void> {
  const end = performance.now() + WARM_UP_MS;
  do await carry(relay, sink, messages, timeoutMs());
  while (performance.now() < end);
}

function timeoutMs(): number {
  return Math.max(1, Math.min(RUN_TIMEOUT_MS, leftMs()));
}

/** Appends lines to a file named by the time. */
function recorder(setting: object): (line: object) => void {
  mkdirSync(OUT, { recursive: true });
  const file = join(OUT, `${new Date().toISOString().replaceAll(':', '')}.jsonl`);
  const machine = { node: process.version, platform: process.platform, cores: availableParallelism() };
  const record = (line: object) => appendFileSync(file, `${JSON.stringify(line)}\n`);
  record({ ...setting, ...machine });
  return record;
}

async function trace(
  relays: readonly Relay[],
  sink: Sink,
  findings: AllFindings,
  directory: string,
): Promise<void> {
  const installed = await isInstalled('strace');
  for (const relay of relays) {
    const found = findings.get(relay.name)!;
    if (!installed) found.fsyncs = 'not measured: no strace (Debian: apt-get install strace)';
    else if (leftMs() < RESERVE_MS / 5) found.fsyncs = 'not measured: no time left';
    else {
      found.fsyncs = await countFsyncs(relay, sink, TRACED_MESSAGES, timeoutMs(), directory).catch(
        (error: Error) => `not measured: ${error.message}`,
      );
    }
  }
}

function report(findings: AllFindings, messages: number): void {
  const rivals = findings.get('postfix')?.runs;
  const rounds = Math.max(0, ...[...findings.values()].map(({ runs }) => runs.length));
  console.log(
    `${messages} messages of ${MESSAGE_OCTETS} octets, ${SESSIONS} at once over kept sessions, until the sink has ` +
      `them all; medians of ${rounds} rounds\n`,
  );
  const header = ['', 'messages/s', '× Postfix', '(min-max)', 'CPU s/1000', 'fsyncs/message'];
  const rows = [...findings].map(([name, { runs, fsyncs }]) => {
    const ratios = rivals === undefined ? [] : runs.map((run, at) => run.perSecond / rivals[at]!.perSecond);
    const cpu = runs.map((run) => run.cpuSecondsPer1000).filter((each) => each !== null);
    return [
      RELAYS[name].title,
      median(runs.map((run) => run.perSecond))?.toFixed(0) ?? '-',
      median(ratios)?.toFixed(2) ?? '-',
      ratios.length === 0 ? '-' : `${Math.min(...ratios).toFixed(2)}-${Math.max(...ratios).toFixed(2)}`,
      median(cpu)?.toFixed(2) ?? 'not measured: no /proc',
      typeof fsyncs === 'number' ? fsyncs.toFixed(2) : fsyncs,
    ];
  });
  const widths = header.map((_, column) => Math.max(...[header, ...rows].map((row) => row[column]!.length)));
  for (const row of [header, ...rows]) {
    const cells = row.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!)));
    console.log(` ${cells.join('  ')}`);
  }
}

function median(values: readonly number[]): number | null {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle]!;
  return sorted.length === 0 ? null : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

const options = parseOptions(process.argv.slice(2));
if (options === null) {
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
