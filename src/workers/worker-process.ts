// A worker as the primary has it: one process, from its fork to its end. What it counted stays known when it is gone.
// Owns the process: after drain(), or a failed start(), it ends, if need be by force.
import cluster, { type Worker } from 'node:cluster';
import { fileURLToPath } from 'node:url';
import type { EntryKey } from '../ledger/ledger.ts';
import type { MetricsAsJson } from '../metrics.ts';
import { Channel, type Handlers } from './channel.ts';
import { watchHandedOver } from './handed-over.ts';
import type { Orders, PrimaryCalls, WorkerCalls, WorkerStatus } from './protocol.ts';

export type Exit = Readonly<{ code: number | null; signal: string | null }>;
/** How often a worker is asked for a sign of life, and after how many turns without one it counts as hung. */
export type Heartbeat = Readonly<{ everyMs: number; misses: number }>;

const MAIN = fileURLToPath(new URL('./main.js', import.meta.url));
/** Long enough for a spool with a hundred thousand messages, on a slow disk. */
const START_TIMEOUT_MS = 300_000;
/** For figures. A worker that is busy for longer is told of by what it said last. */
const ANSWER_TIMEOUT_MS = 2_000;
/** Beyond its drain: for verdicts, the queue and the ledger. */
const END_GRACE_MS = 15_000;

export class WorkerProcess {
  readonly number: number;
  channel!: Channel<WorkerCalls, PrimaryCalls>;
  /** Settles when the process is no more. */
  readonly exited: Promise<Exit>;
  state: 'starting' | 'listening' | 'draining' | 'ended' = 'starting';
  /** It hears what is called, and knows all that was known before. */
  hasOrders = false;
  /** Its end is no crash. */
  askedToEnd = false;
  listen: readonly string[] = [];
  /** On the monotonic clock, milliseconds. */
  listeningSince = 0;
  /** Entries of the ledger that are open while it lives, by their key as text. */
  readonly pending = new Map<string, EntryKey>();
  readonly #worker: Worker;
  readonly #up: Promise<void>;
  #metrics: MetricsAsJson = [];
  #status: WorkerStatus | null = null;

  /** @throws the system's error where there can be no more processes */
  constructor(number: number, handlersFor: (worker: WorkerProcess) => Handlers<Omit<PrimaryCalls, 'hello'>>) {
    this.number = number;
    // Even numbers of sessions, which the kernel doesn't see to where processes accept from one socket.
    cluster.schedulingPolicy = cluster.SCHED_RR;
    cluster.setupPrimary({ exec: MAIN, args: [], serialization: 'advanced' });
    const worker = cluster.fork();
    this.#worker = worker;
    const closeHandedOver = watchHandedOver(worker.process);
    this.#up = new Promise((resolve) => {
      this.channel = new Channel<WorkerCalls, PrimaryCalls>(worker.process, {
        ...handlersFor(this),
        hello: () => resolve(),
      });
    });
    worker.on('message', (message: unknown) => this.channel.receive(message));
    worker.once('disconnect', () => this.channel.end());
    this.exited = new Promise((resolve) => {
      const ended = (exit: Exit) => {
        this.state = 'ended';
        this.channel.end();
        closeHandedOver();
        resolve(exit);
      };
      worker.once('exit', (code, signal) => ended({ code, signal }));
      // It could not be begun, and so doesn't exit; later errors are those of its channel.
      worker.on('error', () => worker.process.pid === undefined && ended({ code: null, signal: null }));
    });
  }

  get pid(): number {
    return this.#worker.process.pid ?? 0;
  }

  /** @throws Error in one line when it doesn't listen; its process is gone then */
  async start(orders: () => Orders, now: () => number): Promise<void> {
    // One that doesn't get so far as to hear what is called.
    const timer = setTimeout(() => this.kill(), START_TIMEOUT_MS);
    try {
      await Promise.race([this.#up, this.exited]);
      clearTimeout(timer);
      const listening = this.channel.call('start', orders(), START_TIMEOUT_MS);
      this.hasOrders = true;
      this.listen = await listening;
      if (this.state !== 'starting') throw new Error('it is to end already');
      this.state = 'listening';
      this.listeningSince = now();
    } catch (error) {
      const crashed = !this.#worker.isConnected();
      const { code, signal } = await this.#end();
      if (!crashed) throw error;
      throw new Error(`a worker has ended before it listened (${signal ?? `exit code ${code}`})`, {
        cause: error,
      });
    }
  }

  /**
   * Kills it, after `onHung`, when it listens and does not answer any more: its event loop is blocked, or its process
   * stopped. What counts is the turns at which it could have been heard, and not the time: this process or the machine
   * may have been asleep.
   */
  watch({ everyMs, misses }: Heartbeat, onHung: () => void): void {
    let owed = false;
    let missed = 0;
    const timer = setInterval(() => {
      if (this.state !== 'listening') return clearInterval(timer);
      if (owed && ++missed < misses) return;
      if (owed) {
        clearInterval(timer);
        onHung();
        return this.kill();
      }
      owed = true;
      missed = 0;
      const answered = () => {
        owed = false;
      };
      // One whose channel has ended is about to end.
      this.channel.call('heartbeat', null).then(answered, answered);
    }, everyMs).unref();
  }

  /** No more sessions; settles when the process is gone. Never rejects. */
  async drain(timeoutMs: number): Promise<void> {
    if (this.state === 'ended') return;
    this.state = 'draining';
    this.askedToEnd = true;
    if (this.hasOrders)
      await this.channel
        .call('drain', { timeoutMs }, timeoutMs + END_GRACE_MS)
        .then(({ metrics, status }) => {
          this.#metrics = metrics;
          this.#status = status;
        })
        .catch(() => {});
    await this.#end();
  }

  kill(): void {
    this.#worker.process.kill('SIGKILL');
  }

  /** The newest that there are. */
  async metrics(): Promise<MetricsAsJson> {
    if (this.isHeard)
      this.#metrics = await this.channel.call('metrics', null, ANSWER_TIMEOUT_MS).catch(() => this.#metrics);
    return this.#metrics;
  }

  async status(): Promise<WorkerStatus | null> {
    if (this.isHeard)
      this.#status = await this.channel.call('status', null, ANSWER_TIMEOUT_MS).catch(() => this.#status);
    return this.#status;
  }

  /** It can answer. */
  get isHeard(): boolean {
    return this.hasOrders && this.state !== 'ended';
  }

  async trace(id: string): Promise<Readonly<{ found: unknown; kept: number }>> {
    return await this.channel.call('trace', id, ANSWER_TIMEOUT_MS).catch(() => ({ found: null, kept: 0 }));
  }

  /** The last figures, for when there will be no others. */
  get last(): Readonly<{ metrics: MetricsAsJson; status: WorkerStatus | null }> {
    return { metrics: this.#metrics, status: this.#status };
  }

  async #end(): Promise<Exit> {
    this.askedToEnd = true;
    if (this.#worker.isConnected()) this.#worker.process.disconnect();
    const timer = setTimeout(() => this.kill(), END_GRACE_MS);
    const exit = await this.exited;
    clearTimeout(timer);
    return exit;
  }
}
