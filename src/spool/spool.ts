// The spool as a whole: the lock of its directory, the files, the queue, and the way into it. Opened only where a mode
// or a fallback needs it, so that pure cut-through never touches a disk.
import type { Logger } from 'pino';
import type { Config } from '../config.ts';
import { DirectoryLock } from '../directory-lock.ts';
import type { MemoryBudget } from './buffer.ts';
import { controlOfQueue, type QueueControl, serveControl } from './control.ts';
import { gather } from './parts.ts';
import { Queue, type QueueDeps } from './queue.ts';
import { Spooler } from './spooler.ts';
import { SpoolStore } from './store.ts';

export type SpoolDeps = Readonly<{
  /** Of the moment: a reload changes schedules and limits, though not the directory and the room to be left in it. */
  config: () => Config;
  budget: MemoryBudget;
  queue: Omit<QueueDeps, 'config' | 'store' | 'log'>;
  log: Logger;
  onCommitted: (ms: number) => void;
  onFailed: (reason: 'full' | 'error') => void;
}>;

export class Spool {
  readonly queue: Queue;
  readonly spooler: Spooler;
  readonly #lock: DirectoryLock;
  readonly #store: SpoolStore;

  get directory(): string {
    return this.#store.directory;
  }

  private constructor(lock: DirectoryLock, store: SpoolStore, queue: Queue, spooler: Spooler) {
    this.#lock = lock;
    this.#store = store;
    this.queue = queue;
    this.spooler = spooler;
  }

  static isNeeded({ mode, fallback, mixed }: Config): boolean {
    return mode !== 'cut-through' || fallback !== 'none' || mixed === 'spool';
  }

  /** @throws Error in one line when the directory can't be used, or another process uses it */
  static async open({ spoolDir: directory, spoolMinFreeBytes }: Config, deps: SpoolDeps): Promise<Spool> {
    const { config, log, budget, onCommitted, onFailed } = deps;
    await SpoolStore.prepare(directory, log);
    let control: QueueControl | null = null;
    const lock = await DirectoryLock.acquire(directory, (socket) => serveControl(socket, () => control));
    try {
      await gather(directory, [directory]);
      const { monotonic, now } = deps.queue;
      const store = await SpoolStore.open(directory, {
        log,
        minFreeOctets: spoolMinFreeBytes,
        now: monotonic,
      });
      const queue = new Queue({ ...deps.queue, config, store, log });
      const spooler = new Spooler({ config, store, queue, budget, now, log, onCommitted, onFailed });
      control = controlOfQueue(queue, store);
      return new Spool(lock, store, queue, spooler);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /** Takes up what was on disk; once routing works. */
  recover(): void {
    this.queue.recover(this.#store.recovered);
  }

  /** @param graceMs for deliveries at their final dot */
  async close(graceMs: number): Promise<void> {
    await this.queue.stop(graceMs);
    await this.#store.close();
    await this.#lock.release();
  }
}
