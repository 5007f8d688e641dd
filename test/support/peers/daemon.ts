// One of other people's servers, run in the foreground from a directory of its own, and stopped by its own pid with its
// owner at the latest. Its log is what it printed and what its log files hold.
import type { ChildProcess } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import net from 'node:net';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { until } from '../proxy.ts';
import { collect, end, listens, type Owner, report, start } from '../tools.ts';

export type DaemonOptions = Readonly<{
  command: string;
  args: readonly string[];
  /** Ports it is to listen on before it counts as started. */
  ports: readonly number[];
  /** A directory whose files are its log; without one, only what it prints is. */
  logDirectory?: string;
  owner?: Owner | undefined;
}>;

// A server is not to outlive a runner that is killed: our end of its standard input closes then, whatever the server has
// made of its session and its user.
const GUARD = `
exec 3<&0
"$@" 3<&- </dev/null & server=$!
trap 'kill $server' TERM
(cat <&3 >/dev/null; kill $server) 2>/dev/null & reader=$!
while kill -0 $server 2>/dev/null; do wait $server; done
kill $reader 2>/dev/null`;

const LOG_SHOWN_CHARACTERS = 6_000;

export class Daemon {
  readonly #child: ChildProcess;
  readonly #printed: () => string;
  readonly #logDirectory: string | undefined;

  private constructor(child: ChildProcess, logDirectory: string | undefined) {
    this.#child = child;
    this.#printed = collect(child);
    this.#logDirectory = logDirectory;
  }

  static async start(options: DaemonOptions): Promise<Daemon> {
    const args = ['-c', GUARD, 'guard', options.command, ...options.args];
    const child = start('sh', args, { stdio: 'pipe' }, options.owner);
    const daemon = new Daemon(child, options.logDirectory);
    if (options.owner === undefined) daemon.#explainFailure(options.command);
    for (const port of options.ports) {
      if (await listens(child, port)) continue;
      throw new Error(`${options.command} does not listen on ${port}: ${await daemon.log()}`);
    }
    return daemon;
  }

  async log(): Promise<string> {
    const directory = this.#logDirectory;
    if (directory === undefined) return this.#printed();
    const files = (await readdir(directory)).toSorted();
    const texts = await Promise.all(files.map((file) => readFile(join(directory, file), 'utf8')));
    return [this.#printed(), ...texts].join('\n');
  }

  /** The first match, once there is one. */
  async logged(pattern: RegExp, timeoutMs = 20_000): Promise<RegExpExecArray> {
    let match: RegExpExecArray | null = null;
    const seen = async () => {
      match = pattern.exec(await this.log());
      return match !== null;
    };
    await until(seen, timeoutMs).catch(async () => {
      throw new Error(`not logged within ${timeoutMs} ms: ${pattern}\n${(await this.log()).slice(-4_000)}`);
    });
    return match!;
  }

  /** What happened at the other side is half of what went wrong. */
  #explainFailure(command: string): void {
    onTestFinished(async ({ task }) => {
      if (task.result?.state !== 'fail') return;
      report(`${command}, in "${task.name}":\n${(await this.log()).slice(-LOG_SHOWN_CHARACTERS)}`);
    });
  }

  async stop(): Promise<void> {
    await end(this.#child);
  }
}

// Below the ports that the kernel gives to outgoing connections (ip_local_port_range), so that none of these takes a
// port between our asking and the server's binding.
const LOWEST_PORT = 20_000;
const HIGHEST_PORT = 32_000;

/** A port on loopback that nobody listens on. */
export async function quietPort(): Promise<number> {
  for (let tries = 0; tries < 100; tries++) {
    const port = randomInt(LOWEST_PORT, HIGHEST_PORT);
    const server = net.createServer().listen(port, '127.0.0.1');
    const bound = await once(server, 'listening').then(
      () => true,
      () => false,
    );
    if (!bound) continue;
    server.close();
    await once(server, 'close');
    return port;
  }
  throw new Error('found no free port');
}
