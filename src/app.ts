// Builds the real parts and wires them: the only place that knows the clock, the resolver, files and random numbers.
// createProxy() is what `cutthrough serve` runs, and what an embedding program or a test imports.
import { randomBytes, X509Certificate } from 'node:crypto';
import { lookup as systemLookup } from 'node:dns/promises';
import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { createSecureContext } from 'node:tls';
import type { Logger } from 'pino';
import type { Gauge } from 'prom-client';
import { readAuthorities } from './certificate.ts';
import { type Config, type ListenAddress, type Options, parseConfig } from './config.ts';
import { Transaction } from './cut-through/transaction.ts';
import { SOCKET_HIGH_WATER_OCTETS } from './downstream/connect.ts';
import { NextHopHealth } from './downstream/health.ts';
import type { LegDeps } from './downstream/leg.ts';
import { SessionPool } from './downstream/pool.ts';
import { type HttpServer, startHttp } from './http/server.ts';
import { openJournal, prepareLedgerDirectory } from './ledger/journal.ts';
import { type Entry, Ledger, type Peers } from './ledger/ledger.ts';
import { createLogger } from './log.ts';
import { classLabel, createMetrics, type Metrics } from './metrics.ts';
import { createDane } from './routing/dane.ts';
import { createMtaSts, type MtaSts, PolicyCache } from './routing/mta-sts.ts';
import { createMxResolver, type DnsClient, systemDns } from './routing/mx.ts';
import { forbiddenUnless } from './routing/networks.ts';
import { httpsPolicyFetch, type PolicyFetch } from './routing/policy-fetch.ts';
import { createRouter, type Router } from './routing/routes.ts';
import { validatingDns } from './routing/validating-dns.ts';
import type { Client, Recipient, Sender } from './smtp/envelope.ts';
import { protocolKeyword, receivedLine } from './smtp/received.ts';
import { fastPathDisabled, type Reply } from './smtp/reply.ts';
import { MemoryBudget } from './spool/buffer.ts';
import type { DeliveryDeps } from './spool/delivery.ts';
import { FastPathMonitor } from './spool/fast-path.ts';
import { DirectoryLock } from './spool/lock.ts';
import { Spool } from './spool/spool.ts';
import { StoredTransaction } from './spool/stored-transaction.ts';
import { type Status, statusOf } from './status.ts';
import { RecentTimeLines } from './time-line.ts';
import { type Admission, createAdmission } from './upstream/admission.ts';
import type { SessionContext } from './upstream/connection.ts';
import { type Certificate, Listener, type ListenerDeps } from './upstream/listener.ts';
import { VERSION } from './version.ts';
import { WaitLimit } from './wait.ts';

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

export type MetricsAsJson = Awaited<ReturnType<Metrics['registry']['getMetricsAsJSON']>>;

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

/** What a reload replaces as a whole. */
type Generation = Readonly<{
  config: Config;
  admission: Admission;
  router: Router;
  /** Of all its downstream sessions. */
  pool: SessionPool;
  /** By the protocol of the listener. */
  contexts: Map<string, SessionContext>;
  mtaSts: MtaSts | null;
  certificate: Certificate | null;
  /** Unix time of its end; 0 without one. */
  certificateExpiry: number;
  rcptDeadline: WaitLimit;
}>;

/** When the drain is cut off: for messages that are being made durable. */
const VERDICT_GRACE_MS = 5_000;
/** After the drain: for the queue's deliveries that have sent their final dot. What isn't known by then is tried again. */
const QUEUE_GRACE_MS = 5_000;

class RunningProxy implements ProxyPart {
  readonly #log: Logger;
  readonly #metrics: Metrics;
  readonly #transactions = new Set<Transaction | StoredTransaction>();
  readonly #budget: MemoryBudget;
  readonly #fastPath: FastPathMonitor;
  readonly ledger: Ledger;
  /** Of --ledger-dir. */
  #ledgerLock: DirectoryLock | null = null;
  readonly #timeLines: RecentTimeLines;
  readonly #spooling: boolean;
  #spool: Spool | null = null;
  #changes: Promise<void> = Promise.resolve();
  /** Next hops (by key) whose last session offered DSN. */
  readonly #dsn = new Map<string, boolean>();
  readonly #outside: Outside;
  readonly #policies = new PolicyCache();
  /** Aborted when nothing is to be fetched any more. */
  readonly #ended = new AbortController();
  #first: Config;
  #generation: Generation | null = null;
  #listeners: readonly Listener[] = [];
  #http: HttpServer | null = null;
  /** Pools that were replaced. */
  readonly #ending = new Set<Promise<void>>();
  /** On a command line a hyphen would begin a flag. */
  readonly #idPrefix = randomBytes(6).toString('base64url').replace(/^-/, 'x');
  #serial = 0;
  #connections = 0;
  readonly #sessions = { active: 0, idle: 0, waiting: 0 };
  readonly #health = new NextHopHealth(() => performance.now());
  readonly #startedMs = performance.now();
  #draining = false;
  #closed: Promise<void> | null = null;
  #onIdle: (() => void) | null = null;

  constructor(config: Config, log: Logger, outside: Outside, spooling = false) {
    this.#outside = outside;
    this.#spooling = spooling;
    this.#first = config;
    this.#log = log;
    this.#metrics = createMetrics({ version: VERSION, mode: config.mode, fallback: config.fallback });
    const { bufferedBytes, sessionsActive, sessionsIdle, transactionsActive } = this.#metrics;
    // Read when scraped: counting them up and down for each chunk and message would cost more than it tells.
    const read = (gauge: Gauge, now: () => number) =>
      Object.assign(gauge, { collect: () => gauge.set(now()) });
    read(bufferedBytes, () => this.#unsentBytes() + this.#budget.used);
    read(sessionsActive, () => this.#sessions.active);
    read(sessionsIdle, () => this.#sessions.idle);
    read(this.#metrics.sessionsWaiting, () => this.#sessions.waiting);
    read(transactionsActive, () => this.#transactions.size);
    read(this.#metrics.upstreamConnectionsActive, () => this.#connections);
    read(this.#metrics.queueMessages, () => this.#spool?.queue.size ?? 0);
    read(this.#metrics.queueOldestAge, () => this.#spool?.queue.oldestAgeSeconds ?? 0);
    read(this.#metrics.ledgerEntries, () => this.ledger.size);
    read(this.#metrics.workers, () => (this.#isReady ? 1 : 0));
    this.#readSpool();
    this.#readLimits(read);
    this.#timeLines = new RecentTimeLines(config.traceBuffer, {
      now: () => performance.now(),
      wall: Date.now,
    });
    this.#budget = new MemoryBudget(config.maxBufferedBytes);
    this.ledger = new Ledger({ ttlMs: config.ledgerTtlMs, maxEntries: config.ledgerMax, now: Date.now });
    this.#fastPath = new FastPathMonitor({
      // Pure cut-through has limits of its own that answer for load; there only the switch counts.
      conditions: Spool.isNeeded(config) ? config.disableFastPathWhen : [],
      bufferedFraction: () => (this.#budget.used + this.#unsentBytes()) / this.#budget.limit,
      now: () => performance.now(),
      log,
      onDisabled: (reason) => this.#metrics.fastPathDisabled.inc(reason),
      onChange: (enabled) => this.#metrics.fastPathEnabled.set(enabled ? 1 : 0),
    });
  }

  #readSpool(): void {
    const { spoolMessages, spoolBytes } = this.#metrics;
    const collect = (gauge: Gauge<'where'>, ofBuffers: 'messages' | 'octets', ofQueue: 'size' | 'octets') =>
      Object.assign(gauge, {
        collect: () => {
          const held = this.#spool?.spooler.held;
          gauge.set({ where: 'memory' }, held?.memory[ofBuffers] ?? 0);
          gauge.set({ where: 'disk' }, (held?.disk[ofBuffers] ?? 0) + (this.#spool?.queue[ofQueue] ?? 0));
        },
      });
    collect(spoolMessages, 'messages', 'size');
    collect(spoolBytes, 'octets', 'octets');
  }

  /** What a reload can change; beside each stands what it limits. */
  #readLimits(read: (gauge: Gauge, now: () => number) => void): void {
    const { upstreamConnectionsLimit, bufferedBytesLimit, queueAgeLimit, certificateExpiry } = this.#metrics;
    read(upstreamConnectionsLimit, () => this.#config.maxConnections);
    // The spool's budget is made once.
    read(bufferedBytesLimit, () => (this.#spool ? this.#budget.limit : this.#config.maxBufferedBytes));
    read(queueAgeLimit, () => this.#config.maxQueueAgeMs / 1000);
    read(certificateExpiry, () => this.#generation?.certificateExpiry ?? 0);
  }

  get addresses(): { listen: readonly string[]; http: string | null } {
    return { listen: this.#listeners.map((listener) => listener.url), http: this.#http?.address ?? null };
  }

  async start(): Promise<void> {
    const config = this.#first;
    this.#generation = await this.#generationOf(config);
    this.#health.configure(this.#generation.router.staticNextHops);
    if (this.#spooling || Spool.isNeeded(config)) this.#spool = await this.#openSpool(config);
    if (config.ledgerDir !== null)
      this.#ledgerLock = await keepLedger(this.ledger, config.ledgerDir, this.#log);
    const { certificate } = this.#generation;
    for (const { protocol } of config.listen) this.#metrics.upstreamConnections.show(protocol);
    this.#listeners = config.listen.map(
      (address) => new Listener(address, config, certificate, this.#listenerDeps()),
    );
    try {
      for (const listener of this.#listeners) await listener.start();
      if (config.http !== null) this.#http = await startHttp(config.http, this.#httpSources());
      this.#spool?.recover();
      this.#fastPath.start();
    } catch (error) {
      await this.close({ drainTimeoutMs: 0 });
      throw error;
    }
  }

  #listenerDeps(): ListenerDeps {
    return {
      contextOf: (listener) => this.#contextOf(listener),
      announcesByProxy: (peerAddress) => this.#generation!.admission.announcesByProxy(peerAddress),
      // Beside as many sessions: a balancer's client above the limit shall hear its 421.
      mayWait: () => this.#waiting < this.#config.maxConnections,
      log: this.#log,
    };
  }

  async metrics(): Promise<string> {
    return await this.#metrics.registry.metrics();
  }

  async reload(config: Config): Promise<void> {
    const generation = await this.#generationOf(config);
    await this.#inTurn(() => this.#switchTo(generation));
    const { certificate } = generation;
    if (certificate !== null) for (const listener of this.#listeners) listener.useCertificate(certificate);
  }

  /** New transactions of sessions that begin from now on run by `generation`. */
  async #switchTo(generation: Generation): Promise<void> {
    const { config } = generation;
    if (this.#spool !== null && config.spoolDir !== this.#spool.directory)
      this.#log.warn({ event: 'config_warning' }, 'spoolDir: takes effect with the next start');
    if (config.workers !== this.#first.workers)
      this.#log.warn({ event: 'config_warning' }, 'workers: takes effect with the next start');
    if (this.#spool === null && Spool.isNeeded(config)) {
      this.#spool = await this.#openSpool(config);
      this.#spool.recover();
    }
    if (generation.pool !== this.#generation?.pool) this.#closePool();
    this.#generation = generation;
    this.#timeLines.resize(config.traceBuffer);
    this.#health.configure(generation.router.staticNextHops);
    this.#metrics.setMode(config.mode, config.fallback);
  }

  async #openSpool(config: Config): Promise<Spool> {
    const metrics = this.#metrics;
    return await Spool.open(config, {
      config: () => this.#config,
      budget: this.#budget,
      log: this.#log,
      onCommitted: (ms) => this.#fastPath.observeSpoolLatency(ms),
      onFailed: (reason) => metrics.spoolFailures.inc(reason),
      queue: {
        route: (domain) => this.#generation!.router.route(domain || this.#config.hostname),
        // The queue's schedule is what retries.
        delivery: () => this.#deliveryDeps({ ...this.#config, connectRetries: 0 }, this.#generation!.pool),
        newId: () => this.#newId(),
        now: Date.now,
        monotonic: () => performance.now(),
        random: Math.random,
        onAttempt: (result) => metrics.queueAttempts.inc(result),
        onDsn: (kind) => metrics.dsn.inc(kind),
      },
    });
  }

  close(options: { drainTimeoutMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(options);
    return this.#closed;
  }

  async #close(options: { drainTimeoutMs?: number }): Promise<void> {
    this.#draining = true;
    const timeoutMs = options.drainTimeoutMs ?? this.#config.drainTimeoutMs;
    const listening = this.#listeners.filter((listener) => listener.server.listening);
    const timer = setTimeout(() => void this.#cutOff(), timeoutMs);
    // A transaction can outlive its upstream session: once the dots are out its verdict is waited for, and logged.
    await Promise.all([...listening.map((listener) => listener.drain()), this.#withoutTransactions()]);
    clearTimeout(timer);
    this.#fastPath.stop();
    await this.#spool?.close(Math.min(timeoutMs, QUEUE_GRACE_MS));
    this.#closePool();
    await Promise.all(this.#ending);
    await this.ledger.close();
    await this.#ledgerLock?.release();
    // Not before: a policy that can't be fetched is one that isn't obeyed.
    this.#ended.abort();
    await this.#http?.close();
  }

  async #cutOff(): Promise<void> {
    const transactions = [...this.#transactions];
    for (const transaction of transactions) transaction.cutOff();
    // Those that waited for the dots' answers have their verdict now, or once their message is on disk, and their
    // session gets it before the end.
    const until = performance.now() + VERDICT_GRACE_MS;
    do await sleep(5);
    while (transactions.some(({ isFinishing }) => isFinishing) && performance.now() < until);
    for (const listener of this.#listeners) listener.cutOff();
  }

  #withoutTransactions(): Promise<void> {
    if (this.#transactions.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onIdle = resolve;
    });
  }

  get #waiting(): number {
    return this.#listeners.reduce((sum, { waiting }) => sum + waiting, 0);
  }

  get #config(): Config {
    return this.#generation?.config ?? this.#first;
  }

  async #generationOf(config: Config): Promise<Generation> {
    const { router, mtaSts } = createRouting({
      config,
      isOwn: (host, address) => this.#isOwn(config, host, address),
      log: this.#log,
      policies: this.#policies,
      signal: this.#ended.signal,
      outside: this.#outside,
    });
    const certificate =
      config.tlsCert === null || config.tlsKey === null
        ? null
        : { cert: await readFile(config.tlsCert), key: await readFile(config.tlsKey) };
    // A pair that doesn't fit must be found out before any listener has taken it.
    if (certificate !== null) createSecureContext(certificate);
    const expiry =
      certificate === null ? 0 : Date.parse(new X509Certificate(certificate.cert).validTo) / 1000;
    const rcptDeadline = new WaitLimit(config.rcptDeadlineMs);
    const admission = createAdmission(config);
    const pool = this.#newPool(config);
    const contexts = new Map<string, SessionContext>();
    const expires = { certificate, certificateExpiry: expiry };
    return { config, admission, router, pool, contexts, mtaSts, ...expires, rcptDeadline };
  }

  /** Of the generation that was: what is still in use ends when it is given back. */
  #closePool(): void {
    const ending = this.#generation?.pool.close();
    if (ending === undefined) return;
    this.#ending.add(ending);
    void ending.then(() => this.#ending.delete(ending));
  }

  /** RFC 5321 §5.1: our own name, or an address at which connecting would reach ourselves. */
  #isOwn(config: Config, host: string, address: string | null): boolean {
    if (host === config.hostname.toLowerCase()) return true;
    if (address === null) return false;
    return this.#listeners.some((listener) => {
      const bound = new URL(listener.url);
      if (Number(bound.port) !== config.mxPort) return false;
      const at = bound.hostname.replace(/^\[|\]$/g, '');
      return at === address || ((at === '0.0.0.0' || at === '::') && ownAddresses().has(address));
    });
  }

  #contextOf({ address: { protocol } }: Listener): SessionContext {
    const generation = this.#generation!;
    this.#metrics.upstreamConnections.inc(protocol);
    this.#connections++;
    let context = generation.contexts.get(protocol);
    if (context === undefined) {
      context = this.#newContext(generation, protocol);
      generation.contexts.set(protocol, context);
    }
    return context;
  }

  #newContext(generation: Generation, protocol: ListenAddress['protocol']): SessionContext {
    const { config, admission, certificate } = generation;
    const metrics = this.#metrics;
    return {
      config,
      admission,
      metrics,
      log: this.#log,
      lmtp: protocol === 'lmtp',
      startTls: certificate !== null && protocol !== 'smtps',
      offersDsn: () => config.mode !== 'cut-through' || this.#offersDsn(generation.router),
      newTransaction: this.#transactionsOf(generation),
      refusesMail: () => this.#refusesMail(config),
      hasRoom: () => this.#connections + this.#waiting <= config.maxConnections,
      onClosed: () => {
        this.#connections--;
      },
    };
  }

  #newPool(config: Config): SessionPool {
    return new SessionPool({
      config,
      now: () => performance.now(),
      onCount: ({ active, idle }) => {
        this.#sessions.active += active;
        this.#sessions.idle += idle;
      },
      onReuse: () => this.#metrics.sessionReuses.inc(),
      onWaiting: (change) => {
        this.#sessions.waiting += change;
      },
    });
  }

  #deliveryDeps(config: Config, pool: SessionPool): DeliveryDeps {
    const { dataTimeoutMs, ackTimeoutMs } = config;
    const { messageBytes, backpressure } = this.#metrics;
    return {
      leg: this.#legDeps(config, pool),
      dataTimeoutMs,
      ackTimeoutMs,
      onStandstill: (seconds) => backpressure.add(seconds, 'downstream'),
      onSent: (octets) => messageBytes.add(octets, 'out'),
    };
  }

  #legDeps(config: Config, pool: SessionPool): LegDeps {
    const metrics = this.#metrics;
    return {
      forwardClient: config.forwardClient,
      now: () => performance.now(),
      onPhase: (phase, seconds) => metrics.phaseDuration.observe(seconds, phase),
      pool,
      health: this.#health,
      onOpened: (nextHop, offered) => this.#dsn.set(nextHop.key, offered.dsn),
      onBug: (err) => this.#log.error({ event: 'bug', err }),
      connect: {
        config,
        lookup: (host) => addressesOf(host, config.dns),
        onResult: (result) => metrics.connectAttempts.inc(result),
        onRetry: () => metrics.connectRetries.inc(),
        onPolicyFailure: (domain, host, reason) =>
          this.#generation?.mtaSts?.reportFailure(domain, host, reason),
        onReply: (phase, reply) =>
          metrics.downstreamReplies.inc(phase, classLabel(reply === null ? null : reply.code)),
        introduction: null,
      },
    };
  }

  /** How transactions of a session begin; what they are given is built once, since a small message is soon over. */
  #transactionsOf({
    config,
    router,
    pool,
    rcptDeadline,
  }: Generation): (sender: Sender, client: Client) => Transaction | StoredTransaction {
    const leg = this.#legDeps(config, pool);
    const shared = {
      config,
      router,
      metrics: this.#metrics,
      log: this.#log,
      now: () => performance.now(),
      timeLines: this.#timeLines,
      rcptDeadline,
      ledger: this.ledger,
      newId: () => this.#newId(),
      received: (sender: Sender, client: Client, id: string, only: Recipient | null) =>
        received(config, sender, client, id, only),
      onEnd: (ended: Transaction | StoredTransaction) => {
        this.#transactions.delete(ended);
        if (this.#transactions.size === 0) this.#onIdle?.();
      },
    };
    const spooler = Spool.isNeeded(config) ? (this.#spool?.spooler ?? null) : null;
    const overloaded = () => this.#overloaded(config);
    const cutThrough = { ...shared, spooler, overloaded, leg };
    const stored = spooler && {
      ...shared,
      spooler,
      delivery: this.#deliveryDeps(config, leg.pool),
      fastPathEnabled: () => this.#fastPath.enabled,
    };
    return (sender, client) => {
      // Claim 10: what is disabled is the fast path, and cut-through where something can take over.
      const disabled = config.fallback !== 'none' && !this.#fastPath.enabled;
      const transaction =
        stored !== null && (config.mode !== 'cut-through' || disabled)
          ? new StoredTransaction(sender, client, stored)
          : new Transaction(sender, client, cutThrough);
      this.#transactions.add(transaction);
      return transaction;
    };
  }

  /** Switched off by hand, with nothing to take over. */
  #refusesMail({ mode, fallback }: Config): Reply | null {
    const switchedOff = this.#fastPath.reasons.includes('manual');
    const refuses = mode === 'cut-through' && fallback === 'none' && switchedOff;
    return refuses ? fastPathDisabled() : null;
  }

  async setMode(mode: string, fallback: string | null): Promise<void> {
    const wanted = parseConfig({ file: { mode, fallback: fallback ?? 'none' } });
    if (!wanted.ok) throw new Error(wanted.errors.join('; '));
    const changes = { mode: wanted.config.mode, fallback: wanted.config.fallback };
    await this.#inTurn(async () => {
      const current = this.#generation!;
      await this.#switchTo({
        ...current,
        config: { ...current.config, ...changes },
        contexts: new Map(),
      });
    });
    this.#log.info({ event: 'mode', ...changes });
  }

  /** One change after the other: two must not both open the spool. */
  #inTurn(change: () => Promise<void>): Promise<void> {
    const done = this.#changes.then(change);
    this.#changes = done.catch(() => {});
    return done;
  }

  /** Unique over processes by its first part, within this one by its second. */
  #newId(): string {
    this.#serial++;
    return `${this.#idPrefix}.${this.#serial.toString(36)}`;
  }

  /** Cut through, DSN is promised only where every next hop is known to take it: all static, each seen to offer it. */
  #offersDsn({ nextHops }: Router): boolean {
    return nextHops?.every(({ key }) => this.#dsn.get(key) === true) ?? false;
  }

  #unsentBytes(): number {
    let bytes = 0;
    for (const transaction of this.#transactions) bytes += transaction.unsentBytes;
    return bytes;
  }

  #overloaded(config: Config): boolean {
    // Adding up is only worth it when the open sessions could hold that much at all.
    const most = this.#sessions.active * 2 * SOCKET_HIGH_WATER_OCTETS;
    return most >= config.maxBufferedBytes && this.#unsentBytes() >= config.maxBufferedBytes;
  }

  #httpSources() {
    return {
      metrics: async () => ({ contentType: this.#metrics.registry.contentType, text: await this.metrics() }),
      ready: () => this.#isReady,
      status: () => this.#statusOf(this.#config.httpDetails),
      trace: (id: string) => this.trace(id),
      details: () => this.#config.httpDetails,
      setFastPath: (enabled: boolean) => this.setFastPath(enabled),
      setMode: (mode: string, fallback: string | null) => this.setMode(mode, fallback),
    };
  }

  get #isReady(): boolean {
    const listening = this.#listeners.every((listener) => listener.server.listening);
    return !this.#draining && this.#listeners.length > 0 && listening;
  }

  trace(id: string) {
    const live = [...this.#transactions].find((transaction) => transaction.id === id);
    const line = live?.timeLine ?? this.#timeLines.find(id);
    return { found: line && this.#timeLines.describe(line), kept: this.#timeLines.size };
  }

  async metricsAsJson(): Promise<MetricsAsJson> {
    return await this.#metrics.registry.getMetricsAsJSON();
  }

  setFastPath(enabled: boolean): void {
    this.#fastPath.setManually(enabled);
  }

  status() {
    return { status: this.#statusOf(true), names: this.#health.list(false).map(({ name }) => name) };
  }

  #statusOf(details: boolean): Status {
    return statusOf({
      config: this.#config,
      details,
      metrics: this.#metrics,
      fastPath: this.#fastPath,
      queue: this.#spool?.queue ?? null,
      health: this.#health,
      listen: this.addresses.listen,
      draining: this.#draining,
      connections: this.#connections,
      sessions: this.#sessions,
      bufferedBytes: this.#unsentBytes() + this.#budget.used,
      transactions: this.#transactions,
      pid: process.pid,
      nowMs: performance.now(),
      startedMs: this.#startedMs,
    });
  }
}

/**
 * From here on durable entries are kept in the directory, and those that were there are known.
 * @returns the directory's lock, to be released once the ledger is closed
 * @throws Error in one line that says what to do
 */
export async function keepLedger(ledger: Ledger, directory: string, log: Logger): Promise<DirectoryLock> {
  await prepareLedgerDirectory(directory);
  const lock = await DirectoryLock.acquire(directory, (socket) => socket.destroy(), '--ledger-dir');
  try {
    const entries = () => [...ledger.entries].filter(({ durable }) => durable);
    const { journal, recovered } = await openJournal(directory, { log, now: Date.now, entries });
    ledger.keepIn(journal, recovered);
    return lock;
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/** What a program or a test may put in the place of the outside world. */
export type Outside = Readonly<{
  fetchPolicy?: PolicyFetch;
  /** PEM of the authorities that mail exchangers are verified by, instead of Node's. */
  mxAuthorities?: string;
}>;

type RoutingDeps = Readonly<{
  config: Config;
  /** Whether an MX host (or address) is this proxy. */
  isOwn: (host: string, address: string | null) => boolean;
  log: Pick<Logger, 'info' | 'warn'>;
  /** Outlives a reload. */
  policies: PolicyCache;
  /** Ends what is under way. */
  signal: AbortSignal;
  outside: Outside;
}>;

/** RFC 8461 §3.3 suggests one minute; half of --rcpt-deadline leaves time to deliver without a policy. */
const POLICY_TIMEOUT_MS = 60_000;

/** Routing with the real clock, dice and resolvers. */
export function createRouting({ config, isOwn, log, policies, signal, outside }: RoutingDeps) {
  const proving = config.dane === 'on' ? validatingDns(config.dns) : null;
  const dns = proving ?? systemDns(config.dns);
  const now = () => performance.now();
  const mx = createMxResolver({ dns, allow: config.mxAllow, isOwn, now, random: Math.random });
  const timeoutMs = Math.min(POLICY_TIMEOUT_MS, config.rcptDeadlineMs / 2);
  const isForbidden = forbiddenUnless(config.mxAllow);
  const fetch = outside.fetchPolicy ?? httpsPolicyFetch({ dns, isForbidden, timeoutMs, signal });
  const mtaSts = config.mtaSts === 'on' ? createMtaSts({ dns, fetch, cache: policies, log, now }) : null;
  const router = createRouter({
    routes: config.routes,
    authorities: readAuthorities(config.routes),
    mx,
    mxPort: config.mxPort,
    mxTls: config.downstreamTls,
    mxAuthorities: outside.mxAuthorities ?? null,
    mtaSts,
    dane: proving && createDane({ dns: proving, port: config.mxPort, now }),
  });
  return { mx, mtaSts, router };
}

function received(
  config: Config,
  sender: Sender,
  client: Client,
  id: string,
  only: Recipient | null,
): Buffer {
  const from = client.relay ?? client;
  return receivedLine({
    helo: from.helo,
    clientAddress: from.address,
    clientName: from.name,
    byHostname: config.hostname,
    protocol: protocolKeyword({
      ehlo: from.extended,
      tls: from.tls !== null,
      smtputf8: sender.params.smtputf8,
      lmtp: from.lmtp === true,
    }),
    tls: from.tls,
    id,
    forRecipient: only?.mailbox.address ?? null,
    date: new Date(),
  });
}

/** A static next hop's addresses: the given resolvers first, then the system (which also knows /etc/hosts). */
export async function addressesOf(host: string, servers: readonly string[]): Promise<readonly string[]> {
  if (isIP(host) !== 0) return [host];
  if (servers.length > 0) {
    const found = await addressesByDns(host, systemDns(servers));
    if (found.length > 0) return found;
  }
  return (await systemLookup(host, { all: true })).map(({ address }) => address);
}

async function addressesByDns(host: string, dns: DnsClient): Promise<string[]> {
  const answers = await Promise.allSettled([dns.resolve6(host), dns.resolve4(host)]);
  return answers.flatMap((answer) =>
    answer.status === 'fulfilled' ? answer.value.map(({ address }) => address) : [],
  );
}

function ownAddresses(): Set<string> {
  return new Set(
    Object.values(networkInterfaces()).flatMap((addresses) =>
      (addresses ?? []).map(({ address }) => address),
    ),
  );
}
