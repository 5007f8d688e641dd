// The primary of several workers: it carries no mail, and sees to it that there are workers that do (`--workers`).
//
//   listening  is the workers', through Node's cluster: the primary accepts, and hands each connection to the next one;
//   limits     of the whole proxy are divided among the workers;
//   HTTP       is served here, over what all workers tell; what is changed there, workers begun later get as well;
//   spool      each worker has a part of the directory, which it works on alone: a new one begins when the old has ended;
//   ledger     each worker has all of it: what one puts goes through here to the others, and to the one journal;
//   reload     a new worker for each, and then the old one drains: somebody always listens;
//   crashes    a worker that ends unasked is replaced, after a wait that doubles up to a limit; one that hangs is ended.
//
// Owns the workers, the directories of ledger and spool, and the HTTP server. When it dies, the workers drain by themselves.
import { availableParallelism } from 'node:os';
import { performance } from 'node:perf_hooks';
import type { Logger } from 'pino';
import type { Proxy as RunningProxy } from '../app.ts';
import { type Config, parseConfig } from '../config.ts';
import { DirectoryLock } from '../directory-lock.ts';
import { type HttpServer, startHttp } from '../http/server.ts';
import { type Entry, type EntryKey, Ledger } from '../ledger/ledger.ts';
import { keepLedger } from '../ledger/ledger-dir.ts';
import { createMetrics } from '../metrics.ts';
import { serveControl } from '../spool/control.ts';
import { controlOfParts, gather, partOf } from '../spool/parts.ts';
import { Spool } from '../spool/spool.ts';
import { SpoolStore } from '../spool/store.ts';
import { VERSION } from '../version.ts';
import { MetricsOfAll } from './metrics.ts';
import type { Orders } from './protocol.ts';
import { share } from './share.ts';
import { StatusOfAll } from './status.ts';
import { type Exit, type Heartbeat, WorkerProcess } from './worker-process.ts';

/** Between the end of a worker and its replacement: first and longest. */
const BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 30_000;
/** A worker that has lived so long did not end because of how it began. */
const STEADY_MS = 60_000;
/** For a worker to take in an entry of the ledger, before the upstream is told what it is about. */
const LEARN_TIMEOUT_MS = 1_000;

/** Half a minute: neither a garbage collection nor a machine with far too much to do is taken for a worker that hangs. */
const HEARTBEAT: Heartbeat = { everyMs: 5_000, misses: 6 };

/** How many processes the config asks for. */
export function workerCount({ workers }: Config): number {
  return workers === 'auto' ? availableParallelism() : workers;
}

/** @throws Error in one line when a worker can't start: then there is none */
export async function startPrimary(
  config: Config,
  logger: Logger,
  heartbeat: Heartbeat = HEARTBEAT,
): Promise<RunningProxy> {
  const primary = new Primary(config, logger, heartbeat);
  try {
    await primary.start();
  } catch (error) {
    await primary.close({ drainTimeoutMs: 0 });
    throw error;
  }
  return primary;
}

/** The place of one worker after the other. */
type Slot = {
  readonly number: number;
  current: WorkerProcess | null;
  /** Ends in a row, each soon after the start. */
  failures: number;
  /** Until the replacement is begun. */
  timer: NodeJS.Timeout | null;
};

class Primary implements RunningProxy {
  readonly #log: Logger;
  readonly #heartbeat: Heartbeat;
  readonly #metrics;
  readonly #ledger: Ledger;
  readonly #metricsOfAll = new MetricsOfAll();
  readonly #statusOfAll = new StatusOfAll();
  readonly #startedMs = performance.now();
  #ledgerLock: DirectoryLock | null = null;
  /** Held from when the spool is first needed: there may be mail in it from then on. */
  #spoolLock: DirectoryLock | null = null;
  #http: HttpServer | null = null;
  /** In force; of the whole proxy. */
  #config: Config;
  #slots: readonly Slot[] = [];
  /** All that have not ended. */
  readonly #workers = new Set<WorkerProcess>();
  #listen: readonly string[] = [];
  #ports: readonly number[] | null = null;
  #fastPath = true;
  #changes: Promise<void> = Promise.resolve();
  #draining = false;
  #closed: Promise<void> | null = null;

  constructor(config: Config, log: Logger, heartbeat: Heartbeat) {
    this.#config = config;
    this.#log = log;
    this.#heartbeat = heartbeat;
    this.#metrics = createMetrics({ version: VERSION, mode: config.mode, fallback: config.fallback });
    this.#ledger = new Ledger({ ttlMs: config.ledgerTtlMs, maxEntries: config.ledgerMax, now: Date.now });
    process.on('exit', () => {
      // The second signal: at once means all of them. Otherwise none is left, or those that are drain by themselves.
      if (this.#draining) for (const worker of this.#workers) worker.kill();
    });
  }

  get addresses(): { listen: readonly string[]; http: string | null } {
    return { listen: this.#listen, http: this.#http?.address ?? null };
  }

  async start(): Promise<void> {
    const config = this.#config;
    if (config.ledgerDir !== null)
      this.#ledgerLock = await keepLedger(this.#ledger, config.ledgerDir, this.#log);
    if (Spool.isNeeded(config)) await this.#openSpool(config);
    if (config.http !== null) this.#http = await startHttp(config.http, this.#httpSources());
    const count = workerCount(config);
    this.#slots = Array.from({ length: count }, (_, at) => newSlot(at + 1));
    const [first, ...others] = this.#slots;
    // Alone: what is wrong is told once, and Node's cluster doesn't survive that two hear of a failed bind.
    await this.#fill(first!);
    await Promise.all(others.map((slot) => this.#fill(slot)));
  }

  metrics(): Promise<string> {
    const { registry } = this.#metrics;
    const workers = [...this.#workers].map((worker) => worker.metrics());
    return this.#metricsOfAll.text([registry.getMetricsAsJSON(), ...workers]);
  }

  reload(config: Config): Promise<void> {
    return this.#inTurn(() => this.#reload(config));
  }

  close(options: { drainTimeoutMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(options.drainTimeoutMs ?? this.#config.drainTimeoutMs);
    return this.#closed;
  }

  async #close(timeoutMs: number): Promise<void> {
    this.#draining = true;
    for (const { timer } of this.#slots) clearTimeout(timer ?? undefined);
    await Promise.all([...this.#workers].map((worker) => worker.drain(timeoutMs)));
    await this.#ledger.close();
    await this.#ledgerLock?.release();
    await this.#spoolLock?.release();
    await this.#http?.close();
  }

  /** @throws Error in one line when the directory can't be used, or another process uses it */
  async #openSpool(config: Config): Promise<void> {
    if (this.#spoolLock !== null) return;
    const { spoolDir } = config;
    const parts = (count: number) => Array.from({ length: count }, (_, at) => partOf(spoolDir, at + 1));
    await SpoolStore.prepare(spoolDir, this.#log);
    const control = controlOfParts(() => parts(this.#slots.length));
    const lock = await DirectoryLock.acquire(spoolDir, (socket) => serveControl(socket, () => control));
    try {
      await gather(spoolDir, parts(workerCount(config)));
    } catch (error) {
      await lock.release();
      throw error;
    }
    this.#spoolLock = lock;
  }

  /** One worker after the other: new ones listen before the old ones drain. */
  async #reload(wanted: Config): Promise<void> {
    const config = this.#takingEffect(wanted);
    const hadSpool = this.#spoolLock !== null;
    if (Spool.isNeeded(config)) await this.#openSpool(config);
    const before = { config: this.#config, slots: this.#slots };
    const count = workerCount(config);
    this.#config = config;
    this.#slots = Array.from({ length: count }, (_, at) => before.slots[at] ?? newSlot(at + 1));
    for (const slot of this.#slots) {
      if (this.#draining) return;
      const old = slot.current;
      try {
        // Two can't work on one part of the spool; meanwhile the others listen.
        if (hadSpool) {
          slot.current = null;
          await old?.drain(config.drainTimeoutMs);
        }
        await this.#fill(slot);
      } catch (error) {
        // Where no worker runs by it, nothing has changed.
        if (slot === this.#slots[0]) ({ config: this.#config, slots: this.#slots } = before);
        this.#fillLater();
        throw error;
      }
      if (old === null) continue;
      this.#metrics.workerRestarts.inc('reload');
      void old.drain(config.drainTimeoutMs);
    }
    for (const { current, timer } of before.slots.slice(count)) {
      clearTimeout(timer ?? undefined);
      void current?.drain(config.drainTimeoutMs);
    }
    this.#metrics.setMode(config.mode, config.fallback);
  }

  /** What a reload has left without a worker. */
  #fillLater(): void {
    for (const slot of this.#slots)
      if (slot.current === null && slot.timer === null) this.#replaceLater(slot);
  }

  /** What needs a start of the whole stays as it is, and the log says so. */
  #takingEffect(wanted: Config): Config {
    const { listen, http, logFormat, ledgerTtlMs, ledgerMax, ledgerDir } = this.#config;
    const spoolDir = this.#spoolLock === null ? wanted.spoolDir : this.#config.spoolDir;
    const fixed = { listen, http, logFormat, ledgerTtlMs, ledgerMax, ledgerDir, spoolDir };
    for (const [name, value] of Object.entries(fixed))
      if (JSON.stringify(value) !== JSON.stringify(wanted[name as keyof Config])) this.#warnOfStart(name);
    const config = { ...wanted, ...fixed };
    // With one process there is no primary, and a part of the spool without a worker would keep its mail.
    const fewest = this.#spoolLock === null ? 2 : this.#slots.length;
    if (workerCount(config) >= fewest) return config;
    this.#warnOfStart('workers');
    return { ...config, workers: this.#slots.length };
  }

  #warnOfStart(option: string): void {
    this.#log.warn({ event: 'config_warning' }, `${option}: takes effect with the next start`);
  }

  /** A new worker in the slot, whoever is there. @throws Error in one line when it doesn't listen; then all is as it was */
  async #fill(slot: Slot): Promise<void> {
    // Whoever drains has looked already who there is.
    if (this.#draining) throw new Error('it is to end already');
    const worker = this.#fork(slot);
    await worker.start(
      () => this.#ordersFor(slot),
      () => performance.now(),
    );
    if (this.#listen.length > 0 && `${worker.listen}` !== `${this.#listen}`) {
      await worker.drain(0);
      throw new Error('the port that it was to share was given up by the last worker meanwhile');
    }
    slot.current = worker;
    this.#listen = worker.listen;
    worker.watch(this.#heartbeat, () => this.#onHung(worker));
  }

  #onHung({ number, pid }: WorkerProcess): void {
    const { everyMs, misses } = this.#heartbeat;
    this.#log.error({ event: 'worker_hung', worker: number, pid, silentMs: everyMs * misses });
  }

  #fork(slot: Slot): WorkerProcess {
    const worker = new WorkerProcess(slot.number, (from) => ({
      record: (entry) => this.#record(from, entry),
      drop: (key) => this.#drop(from, key),
    }));
    this.#workers.add(worker);
    void worker.exited.then((exit) => this.#onExit(slot, worker, exit));
    return worker;
  }

  #onExit(slot: Slot, worker: WorkerProcess, exit: Exit): void {
    this.#workers.delete(worker);
    const { metrics, status } = worker.last;
    this.#metricsOfAll.keep(metrics);
    if (status !== null) this.#statusOfAll.keep(status);
    this.#settleOpen(worker);
    if (slot.current !== worker || worker.askedToEnd) return;
    slot.current = null;
    const { number, pid } = worker;
    const livedMs = Math.round(performance.now() - worker.listeningSince);
    if (livedMs >= STEADY_MS) slot.failures = 0;
    this.#log.error({ event: 'worker_crashed', worker: number, pid, ...exit, livedMs });
    this.#replaceLater(slot);
  }

  #replaceLater(slot: Slot): void {
    if (this.#draining || !this.#slots.includes(slot)) return;
    const waitMs = Math.min(BACKOFF_MS * 2 ** slot.failures, MAX_BACKOFF_MS);
    slot.failures++;
    clearTimeout(slot.timer ?? undefined);
    slot.timer = setTimeout(() => {
      slot.timer = null;
      void this.#inTurn(() => this.#replace(slot));
    }, waitMs);
  }

  async #replace(slot: Slot): Promise<void> {
    // A reload may have been quicker.
    if (this.#draining || slot.current !== null || !this.#slots.includes(slot)) return;
    try {
      await this.#fill(slot);
      this.#metrics.workerRestarts.inc('crash');
      this.#log.info({ event: 'worker_replaced', worker: slot.number });
    } catch (error) {
      this.#log.error({ event: 'worker_failed', worker: slot.number, reason: (error as Error).message });
      this.#replaceLater(slot);
    }
  }

  #ordersFor({ number }: Slot): Orders {
    return {
      number,
      config: { ...share(this.#config, number, workerCount(this.#config)), listen: this.#toListenOn() },
      entries: [...this.#ledger.entries],
      ledgerIsKept: this.#ledger.isKept,
      spooling: this.#spoolLock !== null,
      fastPath: this.#fastPath,
    };
  }

  /** Port 0 means the same port to all that listen at a time; where nobody does any more, it is the one it was. */
  #toListenOn(): Config['listen'] {
    const isFirst = this.#workers.size === 1;
    if (isFirst && this.#listen.length > 0)
      this.#ports = this.#listen.map((url) => Number(new URL(url).port));
    return this.#config.listen.map((address, at) => ({
      ...address,
      port: this.#ports?.[at] ?? address.port,
    }));
  }

  async #record(from: WorkerProcess, entry: Entry): Promise<void> {
    const isOpen = entry.fate.kind === 'pending';
    // Said before its end, and read after: nobody would ever close it.
    if (isOpen && from.state === 'ended') return;
    const onDisk = this.#ledger.record(entry);
    if (isOpen) from.pending.set(keyOf(entry), entry);
    else from.pending.delete(keyOf(entry));
    // The upstream may come back to another worker the moment it is told.
    await Promise.all(
      this.#othersThan(from).map(({ channel }) =>
        channel.call('learn', entry, LEARN_TIMEOUT_MS).catch(() => {}),
      ),
    );
    await onDisk;
  }

  #drop(from: WorkerProcess, key: EntryKey): void {
    from.pending.delete(keyOf(key));
    this.#ledger.drop(key);
    for (const { channel } of this.#othersThan(from)) channel.call('unlearn', key).catch(() => {});
  }

  /** Those that get to know what changes; others will get it with their orders. */
  get #heard(): readonly WorkerProcess[] {
    return [...this.#workers].filter(({ isHeard }) => isHeard);
  }

  #othersThan(one: WorkerProcess): readonly WorkerProcess[] {
    return this.#heard.filter((worker) => worker !== one);
  }

  /** Outcomes that a worker waited for when it ended are not known to anybody: their recipients get the message again. */
  #settleOpen(worker: WorkerProcess): void {
    if (worker.pending.size === 0) return;
    this.#log.warn({ event: 'ledger_unknown', recipients: worker.pending.size });
    for (const key of [...worker.pending.values()]) this.#drop(worker, key);
  }

  #httpSources() {
    return {
      metrics: async () => ({
        contentType: this.#metrics.registry.contentType,
        text: await this.metrics(),
      }),
      ready: () => !this.#draining && this.#slots.some(({ current }) => current?.state === 'listening'),
      status: () => this.#status(),
      trace: (id: string) => this.#trace(id),
      details: () => this.#config.httpDetails,
      setFastPath: (enabled: boolean) => this.#setFastPath(enabled),
      setMode: (mode: string, fallback: string | null) => this.#inTurn(() => this.#setMode(mode, fallback)),
    };
  }

  async #status() {
    const { mode, fallback, httpDetails, maxConnections, maxBufferedBytes } = this.#config;
    const now = performance.now();
    const workers = [...this.#workers];
    return await this.#statusOfAll.of(
      {
        version: VERSION,
        details: httpDetails,
        monotonicMs: Math.round(now - this.#startedMs),
        mode,
        fallback,
        draining: this.#draining,
        listen: this.#listen,
        workers: workers.map(({ number, pid, state, listeningSince }) => ({
          number,
          pid,
          state,
          ageMs: state === 'starting' ? 0 : Math.round(now - listeningSince),
          connections: 0,
          transactionsActive: 0,
        })),
        maxConnections,
        maxBufferedBytes,
      },
      workers.map((worker) => worker.status()),
    );
  }

  async #trace(id: string) {
    const answers = await Promise.all(this.#heard.map((worker) => worker.trace(id)));
    const kept = answers.reduce((sum, answer) => sum + answer.kept, 0);
    return { found: answers.find(({ found }) => found)?.found, kept };
  }

  async #setFastPath(enabled: boolean): Promise<void> {
    this.#fastPath = enabled;
    await Promise.all(this.#heard.map(({ channel }) => channel.call('setFastPath', enabled).catch(() => {})));
  }

  async #setMode(mode: string, fallback: string | null): Promise<void> {
    const wanted = parseConfig({ file: { mode, fallback: fallback ?? 'none' } });
    if (!wanted.ok) throw new Error(wanted.errors.join('; '));
    const changes = { mode: wanted.config.mode, fallback: wanted.config.fallback };
    const config = { ...this.#config, ...changes };
    if (Spool.isNeeded(config)) await this.#openSpool(config);
    for (const { current } of this.#slots) await current?.channel.call('setMode', changes);
    this.#config = config;
    this.#metrics.setMode(changes.mode, changes.fallback);
  }

  /** One change after the other. */
  #inTurn(change: () => Promise<void>): Promise<void> {
    const done = this.#changes.then(change);
    this.#changes = done.catch(() => {});
    return done;
  }
}

function newSlot(number: number): Slot {
  return { number, current: null, failures: 0, timer: null };
}

function keyOf({ reversePath, forwardPath, fingerprint }: EntryKey): string {
  return `${reversePath}\n${forwardPath}\n${fingerprint}`;
}
