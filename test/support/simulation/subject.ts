// The proxy that is simulated around: in this process, or in one of its own that is killed in the midst.
import { writeFile } from 'node:fs/promises';
import pino from 'pino';
import { createProxyFromConfig, type Options } from '../../../src/app.ts';
import { Program } from '../program.ts';
import { configOf, QUICK, until } from '../proxy.ts';
import type { Owner } from '../tools.ts';

export type Subject = Readonly<{
  listen: readonly string[];
  /** HOST:PORT. */
  http: () => string;
  metrics: () => Promise<string>;
  close: () => Promise<void>;
}>;

export async function inThisProcess(options: Options): Promise<Subject> {
  const proxy = await createProxyFromConfig(configOf(options), pino({ level: 'silent' }));
  return {
    listen: proxy.addresses.listen,
    http: () => proxy.addresses.http!,
    metrics: () => proxy.metrics(),
    close: () => proxy.close({ drainTimeoutMs: 200 }),
  };
}

type Serve = (listen: readonly string[]) => Promise<Program>;

/** `node dist/cli.js serve`. */
export class OwnProcess implements Subject {
  readonly listen: readonly string[];
  readonly #serve: Serve;
  #program: Program;

  private constructor(program: Program, listen: readonly string[], serve: Serve) {
    this.#program = program;
    this.listen = listen;
    this.#serve = serve;
  }

  /** @param file where its configuration is put */
  static async start(options: Options, file: string, owner: Owner): Promise<OwnProcess> {
    await writeFile(file, JSON.stringify({ ...QUICK, ...options }));
    const listen = options.listen as readonly string[];
    const serve = (listeners: readonly string[]) => {
      const flags = ['--config', file, ...listeners.flatMap((url) => ['--listen', url])];
      return Program.start(flags, { owner });
    };
    const program = await serve(listen);
    const bound = listen.map((url, nth) => url.replace(/:0$/, `:${program.port(nth)}`));
    return new OwnProcess(program, bound, serve);
  }

  http(): string {
    return this.#program.http;
  }

  async metrics(): Promise<string> {
    return await (await fetch(`http://${this.http()}/metrics`)).text();
  }

  /** SIGKILL. */
  async kill(): Promise<void> {
    this.#program.signal('SIGKILL');
    await until(() => this.#program.exited);
  }

  /** At the same ports. */
  async startAgain(): Promise<void> {
    this.#program = await this.#serve(this.listen);
  }

  /** SIGKILL to the nth worker, which its primary replaces. */
  async killWorker(nth: number): Promise<void> {
    const status = await (await fetch(`http://${this.http()}/status`)).json();
    const { workers } = status as { workers: { pid: number; state: string }[] };
    const listening = workers.filter(({ state }) => state === 'listening');
    if (listening.length > 1) process.kill(listening[nth % listening.length]!.pid, 'SIGKILL');
  }

  async close(): Promise<void> {
    await this.#program.stop();
  }
}
