// Processes of the benchmark: found, started, timed by /proc, and ended by their own pid however the benchmark ends.
import { type ChildProcess, execFileSync, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants, existsSync, readFileSync } from 'node:fs';
import { access, readdir, readFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

// postfix's programs are in sbin, which a user's PATH may lack.
const PATH = `${process.env.PATH ?? ''}${delimiter}/usr/local/sbin${delimiter}/usr/sbin${delimiter}/sbin`;
const KILL_AFTER_MS = 5_000;

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) signal(child, 'SIGKILL');
});

/** Pid files of daemons that lead a process group of their own and have a child of ours only wait for them. */
const pidFiles = new WeakMap<ChildProcess, string>();

export function start(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
  // A setting of the reader's own would make it another benchmark.
  const own = Object.entries(process.env).filter(([key]) => !/^CUTTHROUGH_/.test(key));
  const child = spawn(command, args, { ...options, env: { ...Object.fromEntries(own), PATH } });
  running.add(child);
  // Without a handler a program that can't be started would end the benchmark before the others are ended.
  child.on('error', () => running.delete(child));
  child.once('close', () => running.delete(child));
  return child;
}

/** The child ends with the daemon, so that is what has to be ended, and its group if it must be killed. */
export function waitsFor(child: ChildProcess, pidFile: string): void {
  pidFiles.set(child, pidFile);
}

/** SIGTERM, and SIGKILL if that is not enough. */
export async function end(child: ChildProcess): Promise<void> {
  if (!running.has(child)) return;
  const closed = once(child, 'close');
  signal(child, 'SIGTERM');
  const timer = setTimeout(() => signal(child, 'SIGKILL'), KILL_AFTER_MS);
  await closed;
  clearTimeout(timer);
}

function signal(child: ChildProcess, name: NodeJS.Signals): void {
  const leader = daemonOf(child);
  try {
    if (leader === null) child.kill(name);
    else process.kill(name === 'SIGKILL' ? -leader : leader, name);
  } catch {
    // Gone already.
  }
}

/** The pid; null where there is no daemon, or not yet. */
export function daemonOf(child: ChildProcess): number | null {
  const pidFile = pidFiles.get(child);
  if (pidFile === undefined || !existsSync(pidFile)) return null;
  return Number(readFileSync(pidFile, 'latin1')) || null;
}

/** Waits for the end. `seconds` is since the start; null where it had to be killed. */
export async function run(
  command: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<Readonly<{ exitCode: number | null; seconds: number; complaint: string }>> {
  const began = performance.now();
  const child = start(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const timer = setTimeout(() => signal(child, 'SIGKILL'), timeoutMs);
  let complaint = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(0, 500);
  });
  await once(child, 'close');
  clearTimeout(timer);
  return { exitCode: child.exitCode, seconds: (performance.now() - began) / 1000, complaint };
}

export async function isInstalled(program: string): Promise<boolean> {
  const places = PATH.split(delimiter).filter((directory) => directory !== '');
  const tries = places.map((directory) => access(join(directory, program), constants.X_OK));
  return (await Promise.allSettled(tries)).some((each) => each.status === 'fulfilled');
}

/** A port that was free a moment ago, for programs that can't choose one themselves. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Whether the child comes to take connections at the port. */
export async function listens(child: ChildProcess, port: number, timeoutMs: number): Promise<boolean> {
  return await eventually(async () => {
    const socket = net.connect({ port, host: '127.0.0.1' });
    const connected = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.on('error', () => {}).end('QUIT\r\n');
    socket.resume();
    return connected && running.has(child);
  }, timeoutMs);
}

/** Whether `condition` comes to hold within the time. */
export async function eventually(
  condition: () => boolean | Promise<boolean>,
  timeoutMs: number,
  everyMs = 20,
): Promise<boolean> {
  const end = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > end) return false;
    await sleep(everyMs);
  }
  return true;
}

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
