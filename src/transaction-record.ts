// What is told of a transaction when it is over: the counters, and the one line in the log.
import type { Logger } from 'pino';
import type { Metrics, TransactionResult } from './metrics.ts';

export type RecipientRecord = { address: string; nextHop: string; outcome: string; reply: number | null };

export type RecordDeps = Readonly<{
  config: Readonly<{ mode: string }>;
  metrics: Metrics;
  log: Logger;
  /** Milliseconds, monotonic. */
  now: () => number;
}>;

export class TransactionRecord {
  readonly #id: string;
  readonly #sender: Readonly<{ mailbox: Readonly<{ address: string }> | null }>;
  readonly #client: Readonly<{ address: string }>;
  readonly #deps: RecordDeps;
  readonly #began: number;
  readonly #recipients: RecipientRecord[] = [];

  constructor(
    id: string,
    sender: Readonly<{ mailbox: Readonly<{ address: string }> | null }>,
    client: Readonly<{ address: string }>,
    deps: RecordDeps,
  ) {
    this.#id = id;
    this.#sender = sender;
    this.#client = client;
    this.#deps = deps;
    this.#began = deps.now();
  }

  get milliseconds(): number {
    return this.#deps.now() - this.#began;
  }

  add(address: string): RecipientRecord {
    const record = { address, nextHop: '', outcome: '', reply: null };
    this.#recipients.push(record);
    return record;
  }

  /** What it amounts to when there was no message: rejected or deferred if every RCPT was told so, else aborted. */
  get resultWithoutMessage(): TransactionResult {
    const outcomes = this.#recipients.map(({ outcome }) => outcome);
    if (outcomes.length > 0 && outcomes.every((outcome) => outcome === 'rejected')) return 'rejected';
    const refused = outcomes.every((outcome) => outcome === 'rejected' || outcome === 'deferred');
    return outcomes.length > 0 && refused ? 'deferred' : 'aborted';
  }

  /** @param reply the code that the upstream got, null where it got none */
  end(result: TransactionResult, reply: number | null, extra: Readonly<Record<string, number>>): void {
    const { config, metrics, log } = this.#deps;
    const { milliseconds } = this;
    metrics.transactions.inc(config.mode, result);
    metrics.transactionDuration.observe(milliseconds / 1000, config.mode);
    for (const { outcome } of this.#recipients) {
      if (outcome !== '' && (outcome !== 'accepted' || result !== 'aborted')) metrics.recipients.inc(outcome);
    }
    if (!log.isLevelEnabled('info')) return;
    log.info({
      event: 'transaction',
      id: this.#id,
      client: this.#client.address,
      reversePath: this.#sender.mailbox?.address ?? '',
      recipients: this.#recipients,
      result,
      reply,
      ...extra,
      ms: Math.round(milliseconds),
    });
  }
}
