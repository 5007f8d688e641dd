// fsync() and fdatasync() calls a message, which strace counts: what a queue on disk costs where a disk is slow.
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Peer } from './peers.ts';
import { end, eventually, isInstalled, start } from './processes.ts';
import type { Sinks } from './sink.ts';
import { carry, type Traffic } from './traffic.ts';
import { treeOf } from './usage.ts';

const SETTLE_MS = 200;

/** The count, or why there is none. */
export async function countFsyncs(
  peer: Peer,
  traffic: Traffic,
  sinks: Sinks,
  timeoutMs: number,
  directory: string,
): Promise<number | string> {
  if (!(await isInstalled('strace'))) return 'no strace';
  return await count(peer, traffic, sinks, timeoutMs, directory).catch((error: Error) => error.message);
}

/** Of all the peer's processes. @throws Error in one line */
async function count(
  peer: Peer,
  traffic: Traffic,
  sinks: Sinks,
  timeoutMs: number,
  directory: string,
): Promise<number> {
  const summary = join(directory, `${peer.name}.strace`);
  const pids = (await treeOf(peer.pid!)).flatMap(({ pid }) => ['-p', `${pid}`]);
  const args = ['-c', '-f', '-e', 'trace=fsync,fdatasync', '-o', summary, ...pids];
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
  let messages = 0;
  try {
    ({ messages } = await carry(peer, traffic, sinks, timeoutMs));
    const closed = once(strace, 'close');
    strace.kill('SIGINT');
    await closed;
  } finally {
    await end(strace);
  }
  // % time, seconds, usecs/call, calls, [errors,] syscall; no line where there was no call.
  const lines = [...(await readFile(summary, 'utf8')).matchAll(/^(.*) (?:fsync|fdatasync)$/gm)];
  const calls = lines.map(([, figures = '']) => Number(figures.trim().split(/\s+/)[3]));
  return calls.reduce((sum, each) => sum + each, 0) / messages;
}
