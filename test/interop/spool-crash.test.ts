// Claim 7 where it counts: the process is killed, at random moments under load and before every single system call by
// which a message gets to the disk or leaves it. What was answered with 250 is delivered or still queued, and whole.
// CRASH_ROUNDS and CRASH_SEED make more of it; the seed is printed.
import { mkdir, readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { FlappingSink, Ledger, messageFiles, queuedIn, seeded } from '../support/crash.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { type Received, Sink } from '../support/sink.ts';
import { collect, needTools, report, start, temporaryDirectory } from '../support/tools.ts';

const ROUNDS = Number(process.env.CRASH_ROUNDS ?? 12);
const SEED = Number(process.env.CRASH_SEED ?? Date.now() % 1_000_000);
const CLIENTS = 8;
const ROUND_MS = 5_000;

const QUICK = [
  ...['--retry-schedule', '20ms', '--connect-retries', '1', '--connect-backoff', '5ms'],
  ...['--memory-threshold', '8KiB', '--spool-min-free', '1MiB', '--max-connections', '50'],
];

for (const [nth, mode] of ['spool', 'fast-path'].entries()) {
  const rounds = Math.ceil((ROUNDS + nth) / 2) || 1;
  it(`loses and damages nothing when killed at any moment: ${mode}`, {
    timeout: 20_000 + rounds * ROUND_MS,
  }, async () => {
    report(`seed ${SEED}`);
    const random = seeded(SEED + nth);
    const between = (from: number, to: number) => Math.floor(from + random() * (to - from));
    const ledger = new Ledger(seeded(SEED + 10 + nth));
    const directory = join(await temporaryDirectory(), 'spool');
    const next = await FlappingSink.start(() => between(0, 20));
    const flags = [...QUICK, '--mode', mode, '--spool-dir', directory, ...next.route];
    let kept = 0;
    for (let round = 0; round < rounds; round++) {
      next.up = random() < 0.3;
      const program = await Program.start(flags);
      const flap = setInterval(() => {
        next.up = random() < 0.4;
      }, 25);
      const load = Array.from({ length: CLIENTS }, () => sendUntilClosed(program, ledger, between));
      await sleep(between(0, 500));
      program.signal('SIGKILL');
      await Promise.all([...load, until(() => program.exited)]);
      clearInterval(flap);
      const queued = await queuedIn(directory, ledger);
      kept += queued.size;
      const arrived = ledger.arrivals(next.sink.messages);
      expect(ledger.lost(arrived, queued), `seed ${SEED}, round ${round}`).toEqual([]);
    }
    next.up = true;
    const program = await Program.start(flags);
    await until(async () => (await messageFiles(directory)).length === 0, 30_000);
    expect(await program.stop()).toBe(0);
    expect(program.log.filter((line) => line.event === 'quarantined')).toEqual([]);
    await next.sink.close();
    const arrived = ledger.arrivals(next.sink.messages);
    expect(ledger.lost(arrived)).toEqual([]);
    expect(ledger.acknowledged.size).toBeGreaterThan(0);
    expect(kept).toBeGreaterThan(0);
    const times = [...arrived.values()].reduce((sum, count) => sum + count, 0);
    report(
      `${mode}: ${rounds} kills, ${ledger.sent} sent, ${ledger.acknowledged.size} acknowledged, ` +
        `${kept} found queued after kills, ${arrived.size} delivered, ${times - arrived.size} duplicates, ` +
        `${[...arrived.keys()].filter((tag) => !ledger.acknowledged.has(tag)).length} delivered without our 250`,
    );
  });
}

async function sendUntilClosed(
  program: Program,
  ledger: Ledger,
  between: (from: number, to: number) => number,
): Promise<void> {
  let client: Client;
  try {
    client = await Client.hello(program.port());
  } catch {
    return;
  }
  while (!client.closed) {
    const octets = between(0, 4) === 0 ? between(8_000, 100_000) : between(100, 8_000);
    await ledger.send(client, ['u@a.example'], octets);
  }
  client.destroy();
}

/** System calls that change the spool's files, and how many of them a message's way through the spool makes at least. */
const CALLS = {
  'fsync,fdatasync': 6,
  'rename,renameat,renameat2': 3,
  'unlink,unlinkat': 2,
  'pwrite64,pwritev,pwritev2,writev': 1,
  write: 2,
} as const;
const MOST_CALLS = 300;
/** Also wakes threads, a hundred times until the program is ready: counted from then on, and not each of them. */
const NOISY = 'write';
/** By hand: both modes at every call, two messages. */
const THOROUGH = ROUNDS >= 100;

for (const [calls, least] of Object.entries(CALLS)) {
  const name = `loses and damages nothing when killed before any ${calls.split(',')[0]}`;
  it(name, { timeout: 60_000 + ROUNDS * ROUND_MS }, async (context) => {
    await needTools(context, 'strace');
    report(`seed ${SEED}`);
    const random = seeded(SEED);
    const ledger = new Ledger(seeded(SEED + 1));
    const all = join(await temporaryDirectory(), 'spool');
    await mkdir(all, { mode: 0o700 });
    const received: Received[] = [];
    const kept = new Set<string>();
    let kills = 0;
    for (const mode of THOROUGH ? ['spool', 'fast-path'] : ['either']) {
      const step = () => (calls === NOISY && !THOROUGH ? 1 + Math.floor(random() * 4) : 1);
      for (let nth = step(); nth <= MOST_CALLS; nth += step()) {
        const chosen = mode === 'either' ? (random() < 0.5 ? 'spool' : 'fast-path') : mode;
        const directory = join(await temporaryDirectory(), 'spool');
        const next = await thirdTimeLucky();
        const flags = [...QUICK, '--mode', chosen, '--spool-dir', directory, '--route', `*=${next.url}`];
        const killed = await runUntilKilled(flags, { calls, nth }, next, ledger);
        await next.close();
        for (const tag of await queuedIn(directory, ledger)) kept.add(tag);
        received.push(...next.messages);
        expect(ledger.lost(ledger.arrivals(received), kept), `${chosen}, ${calls} ${nth}`).toEqual([]);
        for (const file of await messageFiles(directory))
          await rename(join(directory, file), join(all, file));
        if (!killed) break;
        kills++;
      }
    }
    expect(kills).toBeGreaterThanOrEqual(least);
    const sink = await Sink.start();
    const program = await Program.start([
      ...QUICK,
      '--mode',
      'spool',
      '--spool-dir',
      all,
      '--route',
      `*=${sink.url}`,
    ]);
    await until(async () => (await messageFiles(all)).length === 0, 20_000);
    expect(await program.stop()).toBe(0);
    await sink.close();
    const before = ledger.arrivals(received);
    const after = ledger.arrivals(sink.messages);
    expect([...kept].filter((tag) => !after.has(tag))).toEqual([]);
    report(
      `${calls}: ${kills} kills, ${ledger.acknowledged.size} of ${ledger.sent} acknowledged, ` +
        `${kept.size} left to the next start, ${[...after.keys()].filter((tag) => before.has(tag)).length} duplicates`,
    );
  });
}

/** Defers a recipient twice, so that a message is queued, put off, and delivered. */
async function thirdTimeLucky(): Promise<Sink> {
  const tries = new Map<string, number>();
  const rcpt = (line: string) => {
    const before = tries.get(line) ?? 0;
    tries.set(line, before + 1);
    return before < 2 ? '451 4.3.0 not now' : null;
  };
  return await Sink.start({ script: { rcpt } });
}

/** One message after the other, until all are delivered (false) or the program is dead. */
async function runUntilKilled(
  flags: readonly string[],
  kill: Readonly<{ calls: string; nth: number }>,
  next: Sink,
  ledger: Ledger,
): Promise<boolean> {
  // strace counts for each thread, so files are the work of one.
  const env = { UV_THREADPOOL_SIZE: '1' };
  const strace = ['strace', '-f', '-qq', '-o', '/dev/null', '-e', `trace=${kill.calls}`];
  strace.push('-e', `inject=${kill.calls}:signal=KILL:when=${kill.nth}`);
  let program: Program;
  try {
    // -D: the pid is the program's.
    const under = kill.calls === NOISY ? [] : [...strace, '-D'];
    program = await Program.start(flags, { under, env });
  } catch (error) {
    // Killed on the way.
    expect((error as Error).message).toBe('did not start: ');
    return true;
  }
  if (kill.calls === NOISY) await attach(strace, program);
  const directory = flags[flags.indexOf('--spool-dir') + 1]!;
  const client = await Client.hello(program.port()).catch(() => null);
  // The larger than memory may hold.
  for (const [nth, octets] of (THOROUGH ? [2_000, 30_000] : [30_000]).entries()) {
    if (client === null || client.closed) break;
    const reply = await ledger.send(client, [`${nth}@a.example`], octets);
    if (reply !== 'closed') expect(reply).toMatch(/^250 /);
  }
  await until(
    async () => program.exited || (next.messages.length > 0 && (await messageFiles(directory)).length === 0),
  );
  client?.destroy();
  return (await program.stop()) !== 0;
}

/** Settles when strace has every thread of the program. */
async function attach(strace: readonly string[], { pid }: Program): Promise<void> {
  const tracer = start(strace[0]!, [...strace.slice(1), '-p', `${pid}`]);
  const complaint = collect(tracer);
  const isTraced = async (task: string) =>
    !/^TracerPid:\t0$/m.test(await readFile(`/proc/${pid}/task/${task}/status`, 'utf8'));
  await until(async () => {
    if (tracer.exitCode !== null) throw new Error(`strace: ${complaint()}`);
    const traced = await Promise.all((await readdir(`/proc/${pid}/task`)).map(isTraced));
    return !traced.includes(false);
  });
}
