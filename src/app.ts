// Builds the real parts and wires them (app/*): what outlives every reload, what a reload replaces, and the listeners.
// createProxy() is what `cutthrough serve` runs, and what an embedding program or a test imports.
import { performance } from 'node:perf_hooks';
import type { Logger } from 'pino';
import { Foundation } from './app/foundation.ts';
import { readGauges } from './app/gauges.ts';
import { Generation } from './app/generation.ts';
import { Listeners } from './app/listeners.ts';
import { openSpool } from './app/open-spool.ts';
import { type Config, type Options, parseConfig } from './config.ts';
import type { DirectoryLock } from './directory-lock.ts';
import { type HttpServer, startHttp } from './http/server.ts';
import type { Entry, Ledger, Peers } from './ledger/ledger.ts';
import { keepLedger } from './ledger/ledger-dir.ts';
import { createLogger } from './log.ts';
import type { MetricsAsJson } from './metrics.ts';
import { PolicyCache } from './routing/mta-sts.ts';
import { createRouting, type Outside } from './routing/routing.ts';
import { Spool } from './spool/spool.ts';
import { type Status, statusOf } from './status.ts';

export interface Proxy {
  /** The addresses actually bound, in the order of `listen`. */
  readonly addresses: { readonly listen: readonly string[]; readonly http: string | null };
  /** Prometheus text. */
  metrics(): Promise<string>;
  /** New sessions use `config` and its certificates; running ones finish with the old. Rejects and changes nothing when a file can't be read. */
  reload(config: Config): Promise<void>;
  /** Drains: no new sessions, running transactions finish within `drainTimeoutMs`. */
  close(options?: { drainTimeoutMs?: number }): Promise<void>;
}

export type { Options } from './config.ts';

/**
 * Starts a proxy in this process. Options have the names of INTERFACE.md's flags in camelCase.
 * @throws Error naming every bad option; the system's error when an address can't be bound
 */
export async function createProxy(options: Options = {}, logger?: Logger): Promise<Proxy> {
  const parsed = parseConfig({ file: options });
  if (!parsed.ok) throw new Error(parsed.errors.join('\n'));
  const { config } = parsed;
  if (config.workers !== 1)
    throw new Error('workers: only "cutthrough serve" runs several processes; leave it out here');
  return await createProxyFromConfig(
    config,
    logger ?? createLogger({ level: config.logLevel, format: config.logFormat }),
  );
}

/** As createProxy(), with options that are parsed already. */
export async function createProxyFromConfig(
  config: Config,
  logger: Logger,
  outside: Outside = {},
): Promise<Proxy> {
  const proxy = new RunningProxy(config, logger, outside);
  await proxy.start();
  return proxy;
}

/** One of several processes that share the listeners and what is known of messages (workers/). */
export interface ProxyPart extends Proxy {
  start(): Promise<void>;
  readonly ledger: Ledger;
  metricsAsJson(): Promise<MetricsAsJson>;
  /** With addresses, and by what names next hops would go without, in the same order. */
  status(): Readonly<{ status: Status; names: readonly string[] }>;
  trace(id: string): Readonly<{ found: unknown; kept: number }>;
  setFastPath(enabled: boolean): void;
  setMode(mode: string, fallback: string | null): Promise<void>;
}

export type PartDeps = Readonly<{
  peers: Peers;
  /** What they know already. */
  entries: readonly Entry[];
  /** The spool is worked on, although the config has no use for it: there may be mail in it. */
  spooling: boolean;
}>;

/** The caller starts it. `config` has neither an HTTP server nor a ledger's directory. */
export function createProxyPart(config: Config, logger: Logger, deps: PartDeps): ProxyPart {
  const part = new RunningProxy(config, logger, {}, deps.spooling);
  part.ledger.shareWith(deps.peers, deps.entries);
  return part;
}

/** When the drain is cut off: for messages that are being made durable. */
const VERDICT_GRACE_MS = 5_000;
/** After the drain: for the queue's deliveries that have sent their final dot. What isn't known by then is tried again. */
const QUEUE_GRACE_MS = 5_000;

class RunningProxy implements ProxyPart {
  readonly #first: Config;
  readonly #log: Logger;
  readonly #outside: Outside;
  readonly #spooling: boolean;
  readonly #foundation: Foundation;
  readonly #listeners: Listeners;
  #generation: Generation | null = null;
  #http: HttpServer | null = null;
  /** Of --ledger-dir. */
  #ledgerLock: DirectoryLock | null = null;
  readonly #policies = new PolicyCache();
  /** Aborted when nothing is to be fetched any more. */
  readonly #ended = new AbortController();
  /** Reloads and switches of the mode. */
  #changes: Promise<void> = Promise.resolve();
  /** Pools that were replaced. */
  readonly #ending = new Set<Promise<void>>();
  #draining = false;
  #closed: Promise<void> | null = null;

  constructor(config: Config, log: Logger, outside: Outside, spooling = false) {
    this.#first = config;
    this.#log = log;
    this.#outside = outside;
    this.#spooling = spooling;
    this.#foundation = new Foundation(config, log);
    this.#listeners = new Listeners({
      contextFor: (protocol) => this.#generation!.contextFor(protocol),
      announcesByProxy: (peerAddress) => this.#generation!.admission.announcesByProxy(peerAddress),
      maxConnections: () => this.#config.maxConnections,
      metrics: this.#foundation.metrics,
      log,
    });
    readGauges({
      foundation: this.#foundation,
      config: () => this.#config,
      connections: () => this.#listeners.sessions,
      certificateExpiry: () => this.#generation?.certificateExpiry ?? 0,
      isReady: () => this.#isReady,
    });
  }

  /** In force. */
  get #config(): Config {
    return this.#generation?.config ?? this.#first;
  }

  get addresses(): { listen: readonly string[]; http: string | null } {
    return { listen: this.#listeners.urls, http: this.#http?.address ?? null };
  }

  get ledger(): Ledger {
    return this.#foundation.ledger;
  }

  async start(): Promise<void> {
    const config = this.#first;
    const { health, fastPath } = this.#foundation;
    this.#generation = await this.#load(config);
    health.configure(this.#generation.router.staticNextHops);
    if (this.#spooling || Spool.isNeeded(config)) await this.#openSpool(config);
    if (config.ledgerDir !== null)
      this.#ledgerLock = await keepLedger(this.ledger, config.ledgerDir, this.#log);
    try {
      await this.#listeners.start(config, this.#generation.certificate);
      if (config.http !== null) this.#http = await startHttp(config.http, this.#httpSources());
      this.#foundation.spool?.recover();
      fastPath.start();
    } catch (error) {
      await this.close({ drainTimeoutMs: 0 });
      throw error;
    }
  }

  /** @throws Error when a file that the config names can't be read, or holds what it should not */
  async #load(config: Config): Promise<Generation> {
    const routing = createRouting({
      config,
      isOwn: (host, address) => this.#isOwn(config, host, address),
      log: this.#log,
      policies: this.#policies,
      signal: this.#ended.signal,
      outside: this.#outside,
    });
    return await Generation.load(config, routing, this.#foundation, this.#listeners);
  }

  /** RFC 5321 §5.1: our own name, or an address at which connecting would reach ourselves. */
  #isOwn({ hostname, mxPort }: Config, host: string, address: string | null): boolean {
    if (host === hostname.toLowerCase()) return true;
    return address !== null && this.#listeners.areAt(address, mxPort);
  }

  async #openSpool(config: Config): Promise<void> {
    this.#foundation.spool = await openSpool(config, this.#foundation, () => this.#generation!);
  }

  async reload(config: Config): Promise<void> {
    const generation = await this.#load(config);
    await this.#inTurn(() => this.#switchTo(generation));
    if (generation.certificate !== null) this.#listeners.useCertificate(generation.certificate);
  }

  async setMode(mode: string, fallback: string | null): Promise<void> {
    const wanted = parseConfig({ file: { mode, fallback: fallback ?? 'none' } });
    if (!wanted.ok) throw new Error(wanted.errors.join('; '));
    const changes = { mode: wanted.config.mode, fallback: wanted.config.fallback };
    await this.#inTurn(() => this.#switchTo(this.#generation!.with(changes)));
    this.#log.info({ event: 'mode', ...changes });
  }

  setFastPath(enabled: boolean): void {
    this.#foundation.fastPath.setManually(enabled);
  }

  /** One change after the other: two must not both open the spool. */
  #inTurn(change: () => Promise<void>): Promise<void> {
    const done = this.#changes.then(change);
    this.#changes = done.catch(() => {});
    return done;
  }

  /** New transactions of sessions that begin from now on run by `generation`. */
  async #switchTo(generation: Generation): Promise<void> {
    const { config } = generation;
    const { spool, timeLines, health, metrics } = this.#foundation;
    if (spool !== null && config.spoolDir !== spool.directory)
      this.#log.warn({ event: 'config_warning' }, 'spoolDir: takes effect with the next start');
    if (config.workers !== this.#first.workers)
      this.#log.warn({ event: 'config_warning' }, 'workers: takes effect with the next start');
    if (spool === null && Spool.isNeeded(config)) {
      await this.#openSpool(config);
      this.#foundation.spool?.recover();
    }
    if (generation.pool !== this.#generation?.pool) this.#closePool();
    this.#generation = generation;
    timeLines.resize(config.traceBuffer);
    health.configure(generation.router.staticNextHops);
    metrics.setMode(config.mode, config.fallback);
  }

  /** Of the generation that was: what is still in use ends when it is given back. */
  #closePool(): void {
    const ending = this.#generation?.pool.close();
    if (ending === undefined) return;
    this.#ending.add(ending);
    void ending.then(() => this.#ending.delete(ending));
  }

  close(options: { drainTimeoutMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(options);
    return this.#closed;
  }

  async #close(options: { drainTimeoutMs?: number }): Promise<void> {
    this.#draining = true;
    const { transactions, fastPath, ledger } = this.#foundation;
    const timeoutMs = options.drainTimeoutMs ?? this.#config.drainTimeoutMs;
    const timer = setTimeout(() => void this.#cutOff(), timeoutMs);
    // A transaction can outlive its upstream session: once the dots are out its verdict is waited for, and logged.
    await Promise.all([this.#listeners.drain(), transactions.whenNone()]);
    clearTimeout(timer);
    fastPath.stop();
    await this.#foundation.spool?.close(Math.min(timeoutMs, QUEUE_GRACE_MS));
    this.#closePool();
    await Promise.all(this.#ending);
    await ledger.close();
    await this.#ledgerLock?.release();
    // Not before: a policy that can't be fetched is one that isn't obeyed.
    this.#ended.abort();
    await this.#http?.close();
  }

  /** Sessions get the verdicts that there are before the end. */
  async #cutOff(): Promise<void> {
    await this.#foundation.transactions.cutOff(VERDICT_GRACE_MS);
    this.#listeners.cutOff();
  }

  get #isReady(): boolean {
    return !this.#draining && this.#listeners.areListening;
  }

  #httpSources() {
    const { contentType } = this.#foundation.metrics.registry;
    return {
      metrics: async () => ({ contentType, text: await this.metrics() }),
      ready: () => this.#isReady,
      status: () => this.#statusOf(this.#config.httpDetails),
      trace: (id: string) => this.trace(id),
      details: () => this.#config.httpDetails,
      setFastPath: (enabled: boolean) => this.setFastPath(enabled),
      setMode: (mode: string, fallback: string | null) => this.setMode(mode, fallback),
    };
  }

  async metrics(): Promise<string> {
    return await this.#foundation.metrics.registry.metrics();
  }

  async metricsAsJson(): Promise<MetricsAsJson> {
    return await this.#foundation.metrics.registry.getMetricsAsJSON();
  }

  trace(id: string) {
    const { transactions, timeLines } = this.#foundation;
    const line = transactions.find(id)?.timeLine ?? timeLines.find(id);
    return { found: line && timeLines.describe(line), kept: timeLines.size };
  }

  status() {
    const names = this.#foundation.health.list(false).map(({ name }) => name);
    return { status: this.#statusOf(true), names };
  }

  #statusOf(details: boolean): Status {
    const foundation = this.#foundation;
    const { metrics, fastPath, health, sessions, transactions, startedMs } = foundation;
    return statusOf({
      config: this.#config,
      details,
      metrics,
      fastPath,
      queue: foundation.spool?.queue ?? null,
      health,
      listen: this.#listeners.urls,
      draining: this.#draining,
      connections: this.#listeners.sessions,
      sessions,
      bufferedBytes: foundation.bufferedBytes,
      transactions: transactions.all,
      pid: process.pid,
      nowMs: performance.now(),
      startedMs,
    });
  }
}
