// The built program as an operator runs it: `node dist/cli.js serve`, in a process of its own, on ports of the system's
// choosing.
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { type Line, portOf, until } from './proxy.ts';
import { type Owner, start } from './tools.ts';

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));
const START_TIMEOUT_MS = 20_000;

export type StartOptions = Readonly<{
  /** A command line that runs the program, such as strace's; it must keep its pid. */
  under?: readonly string[];
  env?: Readonly<Record<string, string>>;
  /** The test under way, unless said otherwise. */
  owner?: Owner;
}>;

export class Program {
  readonly log: Line[] = [];
  /** What it printed that is no line of the log. */
  readonly complaints: string[] = [];
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;

  constructor(child: ChildProcess) {
    this.#child = child;
    this.#closed = once(child, 'close');
    createInterface({ input: child.stdout! }).on('line', (line) => {
      if (line.startsWith('{')) this.log.push(JSON.parse(line) as Line);
      else this.complaints.push(line);
    });
    createInterface({ input: child.stderr! }).on('line', (line) => this.complaints.push(line));
  }

  /** Listens on smtp://127.0.0.1:0 unless `flags` say otherwise. Ended with its owner at the latest. */
  static async start(flags: readonly string[], options: StartOptions = {}): Promise<Program> {
    const [command, ...before] = [...(options.under ?? []), process.execPath];
    const listen = flags.includes('--listen') ? [] : ['--listen', 'smtp://127.0.0.1:0'];
    const args = ['serve', ...listen, '--http', '127.0.0.1:0', '--hostname', 'proxy.example', ...flags];
    const env = { ...process.env, ...options.env };
    const program = new Program(start(command!, [...before, CLI, ...args], { env }, options.owner));
    await until(() => program.#ready !== undefined || program.exited, START_TIMEOUT_MS);
    if (program.#ready === undefined) throw new Error(`did not start: ${program.complaints.join('\n')}`);
    return program;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get exited(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** The port of the nth listener. */
  port(nth = 0): number {
    return portOf((this.#ready!.listen as string[])[nth]!);
  }

  /** HOST:PORT of the metrics and health checks. */
  get http(): string {
    return this.#ready!.http as string;
  }

  /** The address that clients on the command line take. */
  address(nth = 0): string {
    return `127.0.0.1:${this.port(nth)}`;
  }

  transactions(): Line[] {
    return this.log.filter((line) => line.event === 'transaction');
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** SIGTERM; gives the exit code, null where a signal ended it. */
  async stop(): Promise<number | null> {
    this.signal('SIGTERM');
    await this.#closed;
    return this.#child.exitCode;
  }

  /** Resident memory in bytes: now, and the most since resetPeak() (or the start). Linux. */
  async memory(): Promise<{ now: number; peak: number }> {
    const status = await readFile(`/proc/${this.pid}/status`, 'utf8');
    const bytes = (field: string) =>
      Number(new RegExp(`^${field}:\\s*(\\d+) kB`, 'm').exec(status)?.[1]) * 1024;
    return { now: bytes('VmRSS'), peak: bytes('VmHWM') };
  }

  /** proc(5), clear_refs: 5 sets the peak to what is in use now. */
  async resetPeak(): Promise<void> {
    await writeFile(`/proc/${this.pid}/clear_refs`, '5');
  }

  get #ready(): Line | undefined {
    return this.log.find((line) => line.event === 'ready');
  }
}
