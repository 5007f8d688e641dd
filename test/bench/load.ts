// One run: postfix's smtp-source sends to a relay, its smtp-sink counts what comes out. The run lasts until the sink has
// it all, so that a queue gains nothing by accepting early.
import { once } from 'node:events';
import { fstatSync, openSync, readSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { cpuSeconds, end, eventually, freePort, listens, run, start, treeOf } from './processes.ts';
import type { Relay } from './relays.ts';

export const MESSAGE_OCTETS = 4096;
export const SESSIONS = 10;

const START_TIMEOUT_MS = 5_000;
const PORT_TRIES = 5;
const POLL_MS = 5;
/** More than one of the sink's counts, which it writes over one another. */
const TAIL_OCTETS = 200;
/** What a relay does when the message has gone (it removes it from its queue) is of the run's cost as well. */
const SETTLE_MS = 200;

export class Sink {
  readonly port: number;
  readonly stop: () => Promise<void>;
  readonly #counts: number;

  private constructor(port: number, counts: number, stop: () => Promise<void>) {
    this.port = port;
    this.#counts = counts;
    this.stop = stop;
  }

  /** @throws Error that tells what smtp-sink said */
  static async start(directory: string): Promise<Sink> {
    const complaints = join(directory, 'sink.complaints');
    const counts = openSync(join(directory, 'sink.counts'), 'a+');
    const stdio = ['ignore', counts, openSync(complaints, 'a')] as const;
    // It insists on giving up root.
    const user = process.getuid?.() === 0 ? ['-u', 'postfix'] : [];
    for (let tries = 0; tries < PORT_TRIES; tries++) {
      const port = await freePort();
      const child = start('smtp-sink', ['-c', ...user, `127.0.0.1:${port}`, '1024'], { stdio: [...stdio] });
      if (await listens(child, port, START_TIMEOUT_MS)) return new Sink(port, counts, () => end(child));
      await end(child);
    }
    throw new Error(`smtp-sink did not start: ${await readFile(complaints, 'utf8')}`);
  }

  /** Messages that have come to their dot. Read synchronously: asked often, it must cost next to nothing. */
  count(): number {
    const { size } = fstatSync(this.#counts);
    const tail = Buffer.alloc(TAIL_OCTETS);
    const octets = readSync(this.#counts, tail, 0, TAIL_OCTETS, Math.max(0, size - TAIL_OCTETS));
    const last = [...tail.toString('latin1', 0, octets).matchAll(/mesg=(\d+)\D/g)].at(-1);
    return Number(last?.[1] ?? 0);
  }
}

export type Run = Readonly<{
  /** Of all messages at the sink, by the time since the start. */
  perSecond: number;
  /** Until the last 250. */
  acceptedSeconds: number;
  seconds: number;
  /** Of the relay's processes; null where there is no /proc. */
  cpuSecondsPer1000: number | null;
}>;

/** @throws Error where not every message arrived exactly once within the time */
export async function carry(relay: Relay, sink: Sink, messages: number, timeoutMs: number): Promise<Run> {
  const before = sink.count();
  const cpuBefore = await cpuSeconds(relay.pid);
  const began = performance.now();
  let arrivedAt = 0;
  const arrived = eventually(
    () => {
      if (sink.count() - before < messages) return false;
      arrivedAt = performance.now();
      return true;
    },
    timeoutMs,
    POLL_MS,
  );
  const source = await run('smtp-source', sourceArgs(relay.port, messages), timeoutMs);
  if (source.exitCode !== 0)
    throw new Error(`smtp-source to ${relay.name}: ${source.complaint || 'timeout'}`);
  await arrived;
  await sleep(SETTLE_MS);
  const count = sink.count() - before;
  if (count !== messages) throw new Error(`${relay.name}: ${count} of ${messages} messages at the sink`);
  const cpuAfter = await cpuSeconds(relay.pid);
  const seconds = (arrivedAt - began) / 1000;
  const cpu = cpuBefore === null || cpuAfter === null ? null : cpuAfter - cpuBefore;
  return {
    perSecond: messages / seconds,
    acceptedSeconds: source.seconds,
    seconds,
    cpuSecondsPer1000: cpu === null ? null : (cpu / messages) * 1000,
  };
}

/** -d: sessions are used for many messages. */
function sourceArgs(port: number, messages: number): readonly string[] {
  const what = ['-d', '-s', `${SESSIONS}`, '-m', `${messages}`, '-l', `${MESSAGE_OCTETS}`];
  const who = ['-M', 'source.example', '-f', 's@src.example', '-t', 'u@a.example'];
  return [...what, ...who, `127.0.0.1:${port}`];
}

/** fsync() and fdatasync() a message, of all the relay's processes. @throws Error in one line */
export async function countFsyncs(
  relay: Relay,
  sink: Sink,
  messages: number,
  timeoutMs: number,
  directory: string,
): Promise<number> {
  const table = join(directory, `${relay.name}.strace`);
  const pids = (await treeOf(relay.pid)).flatMap(({ pid }) => ['-p', `${pid}`]);
  const args = ['-c', '-f', '-e', 'trace=fsync,fdatasync', '-o', table, ...pids];
  const strace = start('strace', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  strace.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(0, 5_000);
  });
  const attached = await eventually(() => /attached/.test(said) || strace.exitCode !== null, timeoutMs);
  if (!attached || strace.exitCode !== null) {
    await end(strace);
    throw new Error(said.split('\n')[0] || 'strace does not attach');
  }
  await sleep(SETTLE_MS);
  try {
    await carry(relay, sink, messages, timeoutMs);
    const closed = once(strace, 'close');
    strace.kill('SIGINT');
    await closed;
  } finally {
    await end(strace);
  }
  // % time, seconds, usecs/call, calls, [errors,] syscall; no line where there was no call.
  const lines = [...(await readFile(table, 'utf8')).matchAll(/^(.*) (?:fsync|fdatasync)$/gm)];
  const calls = lines.map(([, figures = '']) => Number(figures.trim().split(/\s+/)[3]));
  return calls.reduce((sum, each) => sum + each, 0) / messages;
}
