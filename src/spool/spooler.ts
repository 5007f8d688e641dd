// Where buffered messages go once it is known what became of them at their next hops (claims 5-8): delivered to all and
// forgotten, refused by all and refused upstream, or made durable and queued for those that miss it.
// Owns the count of what is buffered; each buffer is its transaction's until settle() or keep() has ended.
import type { Logger } from 'pino';
import type { Config } from '../config.ts';
import type { Outcome } from '../downstream/outcome.ts';
import type { TransactionResult } from '../metrics.ts';
import type { Recipient, Submission } from '../smtp/envelope.ts';
import { delivered, noDiskSpace, passOn, queued, type Reply, storageFailed } from '../smtp/reply.ts';
import { type MemoryBudget, MessageBuffer } from './buffer.ts';
import type { RecipientState } from './envelope.ts';
import type { Queue, Results } from './queue.ts';
import { retryDelay } from './schedule.ts';
import type { SpoolStore } from './store.ts';

export type SpoolerDeps = Readonly<{
  store: SpoolStore;
  queue: Queue;
  /** Of the moment. */
  config: () => Pick<Config, 'retryScheduleMs' | 'mode' | 'fallback' | 'memoryThresholdBytes'>;
  budget: MemoryBudget;
  /** Epoch milliseconds. */
  now: () => number;
  log: Logger;
  /** How long it took to make a message durable, milliseconds. */
  onCommitted: (ms: number) => void;
  /** A message that could not be taken. */
  onFailed: (reason: 'full' | 'error') => void;
}>;

/** What became of a recipient; `outcome` is null where nothing was tried, or the delivery is still under way. */
export type Result = Readonly<{ recipient: Recipient; nextHop: string; outcome: Outcome | null }>;

export type Settled = Readonly<{ reply: Reply; result: TransactionResult }>;

export class Spooler {
  readonly #deps: SpoolerDeps;
  readonly #buffers = new Set<MessageBuffer>();

  constructor(deps: SpoolerDeps) {
    this.#deps = deps;
  }

  get queue(): Queue {
    return this.#deps.queue;
  }

  /** For one more message: free disk is above --spool-min-free. */
  async hasRoom(): Promise<boolean> {
    const room = await this.#deps.store.hasRoom();
    if (!room) this.#deps.onFailed('full');
    return room;
  }

  newBuffer(id: string): MessageBuffer {
    const { budget, store } = this.#deps;
    const { mode, fallback, memoryThresholdBytes } = this.#deps.config();
    const policy = mode === 'fast-path' || fallback === 'fast-path' ? 'overflow' : 'memory-or-disk';
    const buffer = new MessageBuffer({
      policy,
      thresholdOctets: memoryThresholdBytes,
      budget,
      path: store.temporaryPath(id),
    });
    this.#buffers.add(buffer);
    return buffer;
  }

  /** The message will not be needed again. */
  async discard(buffer: MessageBuffer): Promise<void> {
    this.#buffers.delete(buffer);
    await buffer.discard();
  }

  /** For the gauges: messages and octets in memory and in files of messages not queued yet. */
  get held(): Readonly<{
    memory: { messages: number; octets: number };
    disk: { messages: number; octets: number };
  }> {
    const memory = { messages: 0, octets: 0 };
    const disk = { messages: 0, octets: 0 };
    for (const { memoryOctets, diskOctets } of this.#buffers) {
      (diskOctets > 0 ? disk : memory).messages++;
      memory.octets += memoryOctets;
      disk.octets += diskOctets;
    }
    return { memory, disk };
  }

  /**
   * Claims 6 and 7, when every delivery has ended.
   * @param results one for each recipient, at least one
   */
  async settle(submission: Submission, results: readonly Result[], buffer: MessageBuffer): Promise<Settled> {
    const outcomes = results.map(({ outcome }) => outcome);
    if (outcomes.every((outcome) => outcome?.kind === 'accepted')) {
      await this.#reportRelayed(submission, results, buffer);
      await this.discard(buffer);
      const [first] = outcomes;
      const one = new Set(results.map(({ nextHop }) => nextHop)).size === 1;
      return {
        reply: delivered(one && first?.kind === 'accepted' ? first.reply : null),
        result: 'delivered',
      };
    }
    const refused = outcomes.find((outcome) => outcome?.kind === 'rejected');
    if (refused?.kind === 'rejected' && outcomes.every((outcome) => outcome?.kind === 'rejected')) {
      await this.discard(buffer);
      // The upstream tells the sender; no notification of ours is needed.
      return { reply: passOn(refused.reply) ?? storageFailed(), result: 'rejected' };
    }
    return await this.keep(submission, results, buffer);
  }

  /**
   * Makes the message durable, then queues it for those that miss it.
   * @param rest deliveries still under way: their outcomes, by recipient, go to the queue
   */
  async keep(
    submission: Submission,
    results: readonly Result[],
    buffer: MessageBuffer,
    rest: Promise<readonly Result[]> | null = null,
  ): Promise<Settled> {
    const { store, queue, now, log, onCommitted, onFailed } = this.#deps;
    const { id, sender, client } = submission;
    await this.#reportRelayed(submission, results, buffer);
    const began = performance.now();
    const tried = results.some(({ outcome }) => outcome !== null);
    const delay =
      tried || rest !== null ? retryDelay(this.#deps.config().retryScheduleMs, 1, Math.random) : 0;
    try {
      const message = await store.commit(
        {
          id,
          queuedAt: now(),
          sender,
          client,
          recipients: results.map((each) => stateOf(each, now())),
          attempts: tried || rest !== null ? 1 : 0,
          nextAttemptAt: now() + delay,
          delayNotified: false,
        },
        buffer,
      );
      onCommitted(performance.now() - began);
      const rejected = resultsBy(results.map((each) => (each.outcome?.kind === 'rejected' ? each : null)));
      if (rest !== null) {
        queue.add(message, { running: rest.then(resultsBy) });
        // The deliveries under way still read it.
        void rest.then(() => this.#release(buffer));
      } else {
        queue.add(message, rejected.size > 0 ? { rejected } : {});
        await this.#release(buffer);
      }
      return { reply: queued(id), result: 'spooled' };
    } catch (error) {
      log.error({ event: 'spool-failed', id, err: error });
      await this.discard(buffer);
      const { code } = error as NodeJS.ErrnoException;
      const full = code === 'ENOSPC' || code === 'EDQUOT';
      onFailed(full ? 'full' : 'error');
      return { reply: full ? noDiskSpace() : storageFailed(), result: 'deferred' };
    }
  }

  /** NOTIFY=SUCCESS, where the next hop that has it can't report: our report ends here (RFC 3461 §5.2.2). */
  async #reportRelayed(
    { id, sender, client }: Submission,
    results: readonly Result[],
    buffer: MessageBuffer,
  ): Promise<void> {
    const relayed = results.filter(({ outcome }) => outcome?.kind === 'accepted' && outcome.relayed);
    if (relayed.length === 0) return;
    const now = this.#deps.now();
    const recipients = relayed.map((each) => stateOf(each, now));
    const { octets } = buffer;
    const message = {
      id,
      queuedAt: now,
      sender,
      client,
      recipients,
      octets,
      crc32: 0,
      attempts: 1,
      nextAttemptAt: now,
      delayNotified: false,
    };
    await this.#deps.queue.report(message, recipients, 'relayed', buffer.read());
  }

  async #release(buffer: MessageBuffer): Promise<void> {
    this.#buffers.delete(buffer);
    await buffer.release();
  }
}

/** A refusal for good is written down as pending: it is final once the sender has been told. */
function stateOf({ recipient, nextHop, outcome }: Result, at: number): RecipientState {
  const { mailbox, params } = recipient;
  const state = outcome?.kind === 'accepted' ? 'delivered' : 'pending';
  const reply = outcome === null || outcome.kind === 'lost' ? null : outcome.reply;
  return { mailbox, params, state, reply, nextHop, triedAt: outcome === null ? null : at };
}

function resultsBy(results: readonly (Result | null)[]): Results {
  return new Map(
    results.flatMap((each, at) =>
      each?.outcome ? [[at, { outcome: each.outcome, nextHop: each.nextHop }] as const] : [],
    ),
  );
}
