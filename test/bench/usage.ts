// What processes use, from /proc: CPU and memory of a process and all below it.
import { execFileSync } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';

type Stat = Readonly<{ pid: number; parent: number; ticks: number }>;

/** The process and all below it that live. Empty where there is no /proc. */
export async function treeOf(root: number): Promise<readonly Stat[]> {
  const names = await readdir('/proc').catch(() => []);
  const stats = await Promise.all(names.filter((name) => /^\d+$/.test(name)).map(statOf));
  const tree = stats.filter((stat) => stat?.pid === root) as Stat[];
  for (const { pid } of tree) tree.push(...(stats.filter((stat) => stat?.parent === pid) as Stat[]));
  return tree;
}

/** CPU seconds, of the kernel's too, that the process and all below it have taken; null where there is no /proc. */
export async function cpuSeconds(root: number): Promise<number | null> {
  const tree = await treeOf(root);
  return tree.length === 0 ? null : tree.reduce((sum, { ticks }) => sum + ticks, 0) / ticksPerSecond();
}

/**
 * Octets of memory: of one process its RSS; of a relay that forks the sum of all processes' PSS, where a page that they
 * share counts once. Null where there is no /proc.
 */
export async function memoryOctets(root: number, forks: boolean): Promise<number | null> {
  const pids = forks ? (await treeOf(root)).map(({ pid }) => pid) : [root];
  const texts = await Promise.all(
    pids.map((pid) => readFile(`/proc/${pid}/smaps_rollup`, 'latin1').catch(() => '')),
  );
  const kibs = texts.map((text) => Number((forks ? /^Pss: +(\d+)/m : /^Rss: +(\d+)/m).exec(text)?.[1] ?? 0));
  const sum = kibs.reduce((total, kib) => total + kib, 0);
  return sum === 0 ? null : sum * 1024;
}

/** What this process, and those that it starts, may have open; Node has raised it as far as it may. */
export async function openFilesLimit(): Promise<number> {
  const text = await readFile('/proc/self/limits', 'latin1').catch(() => '');
  const [, limit = ''] = /^Max open files +(\S+)/m.exec(text) ?? [];
  return Number(limit) || Number.POSITIVE_INFINITY;
}

/** proc_pid_stat(5). Children that have been waited for are in their parent's count. */
async function statOf(name: string): Promise<Stat | null> {
  const text = await readFile(`/proc/${name}/stat`, 'latin1').catch(() => null);
  if (text === null) return null;
  // The second field, a name in parentheses, may hold anything.
  const fields = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number);
  const [, parent = 0] = fields;
  return { pid: Number(name), parent, ticks: fields.slice(11, 15).reduce((sum, each) => sum + each, 0) };
}

let ticks = 0;
function ticksPerSecond(): number {
  if (ticks === 0) ticks = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }));
  return ticks;
}
