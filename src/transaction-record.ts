// What is told of a transaction when it is over: the counters, and the one line in the log.
import type { Logger } from 'pino';
import type { Metrics, TransactionResult } from './metrics.ts';

/** What became of a recipient, as in downstream/outcome.ts; null where it is not known yet. */
type Fate =
  | Readonly<{ kind: 'accepted' | 'rejected' | 'deferred'; reply: Readonly<{ code: number }> }>
  | Readonly<{ kind: 'lost' }>
  | null;

export class RecipientRecord {
  readonly address: string;
  nextHop = '';
  outcome: '' | 'accepted' | 'rejected' | 'deferred' = '';
  reply: number | null = null;

  constructor(address: string) {
    this.address = address;
  }

  /** The reply that stands for it, of the next hop or of ours. */
  answered({ code }: Readonly<{ code: number }>): void {
    this.outcome = code < 300 ? 'accepted' : code >= 500 ? 'rejected' : 'deferred';
    this.reply = code;
  }

  /** What is not known is for the upstream, or for the queue, to try again. */
  ended(fate: Fate): void {
    const known = fate !== null && fate.kind !== 'lost';
    this.outcome = known ? fate.kind : 'deferred';
    this.reply = known ? fate.reply.code : null;
  }
}

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

  /** Addresses, for those who may see them; of the recipients only the first few. */
  people(most: number) {
    return {
      client: this.#client.address,
      reversePath: this.#sender.mailbox?.address ?? '',
      recipients: this.#recipients.slice(0, most).map(({ address }) => address),
    };
  }

  add(address: string): RecipientRecord {
    const record = new RecipientRecord(address);
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
