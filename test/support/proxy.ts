// The proxy under test, in this process, with short deadlines, quiet, and ports chosen by the system.
import { setTimeout as sleep } from 'node:timers/promises';
import pino from 'pino';
import { createProxyFromConfig, type Options, type Proxy as RunningProxy } from '../../src/app.ts';
import { type Config, parseConfig } from '../../src/config.ts';
import type { Outside } from '../../src/routing/routing.ts';
import { Client } from './client.ts';
import { Sink, type SinkOptions } from './sink.ts';

export type Line = { event: string } & Record<string, unknown>;

export class TestProxy {
  readonly proxy: RunningProxy;
  readonly log: Line[];
  readonly sinks: readonly Sink[];
  readonly clients: Client[] = [];

  constructor(proxy: RunningProxy, log: Line[], sinks: readonly Sink[]) {
    this.proxy = proxy;
    this.log = log;
    this.sinks = sinks;
  }

  get port(): number {
    return portOf(this.proxy.addresses.listen[0]!);
  }

  get httpUrl(): string {
    return `http://${this.proxy.addresses.http}`;
  }

  /** A client past EHLO. */
  async client(): Promise<Client> {
    const client = await Client.hello(this.port);
    this.clients.push(client);
    return client;
  }

  /** The value of a metric, 0 where it has none yet; `name` with its labels as Prometheus writes them. */
  async metric(name: string): Promise<number> {
    const text = await this.proxy.metrics();
    const line = text.split('\n').find((each) => each.startsWith(`${name} `));
    return line === undefined ? 0 : Number(line.slice(name.length + 1));
  }

  transactions(): Line[] {
    return this.log.filter((line) => line.event === 'transaction');
  }

  async close(): Promise<void> {
    for (const client of this.clients) client.destroy();
    await this.proxy.close({ drainTimeoutMs: 200 });
    for (const sink of this.sinks) await sink.close();
  }
}

export const QUICK: Options = {
  listen: ['smtp://127.0.0.1:0'],
  http: '127.0.0.1:0',
  hostname: 'proxy.example',
  connectRetries: 1,
  connectBackoff: '10ms',
  connectTimeout: '400ms',
  greetingTimeout: '400ms',
  commandTimeout: '400ms',
  dataTimeout: '400ms',
  ackTimeout: '400ms',
  rcptDeadline: '3s',
  idleTimeout: '5s',
};

/** A proxy in front of one sink for each entry; recipients @a.example go to the first, @b.example to the second … */
export async function startProxy(sinks: readonly SinkOptions[], options: Options = {}): Promise<TestProxy> {
  const started = await Promise.all(sinks.map((each) => Sink.start(each)));
  const route = started.map((sink, index) => `${'abcdefghij'[index]}.example=${sink.url}`);
  return await startProxyOnly({ route, ...options }, started);
}

export async function startProxyOnly(
  options: Options,
  sinks: readonly Sink[] = [],
  outside: Outside = {},
): Promise<TestProxy> {
  const log: Line[] = [];
  const logger = pino(
    { level: 'debug' },
    { write: (text: string) => void log.push(JSON.parse(text) as Line) },
  );
  return new TestProxy(await createProxyFromConfig(configOf(options), logger, outside), log, sinks);
}

export function configOf(options: Options): Config {
  const parsed = parseConfig({ file: { ...QUICK, ...options } });
  if (!parsed.ok) throw new Error(parsed.errors.join('\n'));
  return parsed.config;
}

export function portOf(url: string): number {
  return Number(new URL(url).port);
}

/** Waits until `condition` holds; for what another process or socket does in its own time. */
export async function until(condition: () => boolean | Promise<boolean>, timeoutMs = 5_000): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not so within ${timeoutMs} ms: ${condition}`);
    await sleep(5);
  }
}
