// Processes of the benchmark: found, started, and ended by their own pid however the benchmark ends.
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants, existsSync, readFileSync } from 'node:fs';
import { access, readFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { basename, delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

// postfix's programs are in sbin, which a user's PATH may lack.
const PATH = `${process.env.PATH ?? ''}${delimiter}/usr/local/sbin${delimiter}/usr/sbin${delimiter}/sbin`;
const KILL_AFTER_MS = 5_000;
const START_TIMEOUT_MS = 15_000;
const PORT_TRIES = 5;
const COMPLAINT_LENGTH = 500;

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) signal(child, 'SIGKILL');
});

/** Pid files of daemons that lead a process group of their own and have a child of ours only wait for them. */
const pidFiles = new WeakMap<ChildProcess, string>();

export function start(command: string, args: readonly string[], options: SpawnOptions = {}): ChildProcess {
  // A setting of the reader's own would make it another benchmark.
  const own = Object.entries(process.env).filter(([key]) => !/^CUTTHROUGH_/.test(key));
  // Detached: a signal to our process group, as of Ctrl-C, must find us with everything still to be ended.
  const child = spawn(command, args, {
    ...options,
    detached: true,
    env: { ...Object.fromEntries(own), PATH },
  });
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

/** Waits for the end, which it brings about after `timeoutMs`: the exit code is null then. */
export async function run(
  command: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<Readonly<{ exitCode: number | null; output: string; complaint: string }>> {
  const child = start(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  const timer = setTimeout(() => signal(child, 'SIGKILL'), timeoutMs);
  const said = { output: '', complaint: '' };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    said.output = (said.output + text).slice(0, 5_000);
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said.complaint = (said.complaint + text).slice(0, COMPLAINT_LENGTH);
  });
  await once(child, 'close');
  clearTimeout(timer);
  return { exitCode: child.exitCode, ...said };
}

export async function isInstalled(program: string): Promise<boolean> {
  const places = PATH.split(delimiter).filter((directory) => directory !== '');
  const tries = places.map((directory) => access(join(directory, program), constants.X_OK));
  return (await Promise.allSettled(tries)).some((each) => each.status === 'fulfilled');
}

type Started = Readonly<{ child: ChildProcess; ports: readonly number[] }>;

/**
 * For programs that can't choose a port themselves: another one may take it between our asking for it and their using it,
 * so it is tried again. `begin` writes what it says to the file `complaints`.
 * @throws Error that tells what it said
 */
export async function startOnPorts(
  count: number,
  complaints: string,
  begin: (ports: readonly number[]) => Promise<ChildProcess>,
): Promise<Started> {
  for (let tries = 0; tries < PORT_TRIES; tries++) {
    const ports: number[] = [];
    while (ports.length < count) ports.push(await freePort());
    const child = await begin(ports);
    const up = await Promise.all(ports.map((port) => listens(child, port, START_TIMEOUT_MS)));
    if (!up.includes(false)) return { child, ports };
    await end(child);
  }
  const said = (await readFile(complaints, 'utf8')).trim().replaceAll('\n', '; ');
  throw new Error(`${basename(complaints)}: did not start: ${said.slice(0, COMPLAINT_LENGTH)}`);
}

/** A port that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Whether the child comes to take connections at the port. */
async function listens(child: ChildProcess, port: number, timeoutMs: number): Promise<boolean> {
  const answered = await eventually(async () => {
    const socket = net.connect({ port, host: '127.0.0.1' });
    const connected = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.on('error', () => {}).end('QUIT\r\n');
    socket.resume();
    return connected || !running.has(child);
  }, timeoutMs);
  return answered && running.has(child);
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
