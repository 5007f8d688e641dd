// The recipients of one transaction, in the order of their RCPTs: what each was told, and what became of it in the end.
import type { Leg } from '../downstream/leg.ts';
import { isWithheld, type Outcome } from '../downstream/outcome.ts';
import type { Metrics } from '../metrics.ts';
import type { Recipient } from '../smtp/envelope.ts';
import type { Reply } from '../smtp/reply.ts';
import type { Result } from '../spool/spooler.ts';
import type { RecipientRecord, TransactionRecord } from '../transaction-record.ts';

/** Of a recipient whose next hop, or what is known of it, has told. */
export type Known = Result & Readonly<{ outcome: Outcome }>;

type Counters = Pick<Metrics, 'duplicatesSuppressed' | 'recipientsWithheld'>;

export class Recipients {
  readonly #record: TransactionRecord;
  readonly #counters: Counters;
  readonly #records = new Map<Recipient, RecipientRecord>();
  #accepted = 0;

  constructor(record: TransactionRecord, counters: Counters) {
    this.#record = record;
    this.#counters = counters;
  }

  add(recipient: Recipient): RecipientRecord {
    const record = this.#record.add(recipient.mailbox.address);
    this.#records.set(recipient, record);
    return record;
  }

  /** The reply to its RCPT. True: it is accepted. */
  told(record: RecipientRecord, answer: Reply): boolean {
    // An acceptance follows at once from what the next hop has just said.
    this.#record.told(record, answer, answer.code < 300);
    if (record.outcome !== 'accepted') return false;
    this.#accepted++;
    return true;
  }

  /** Those that their next hops have accepted, or that the spool will take. */
  get accepted(): number {
    return this.#accepted;
  }

  /** Those whom the upstream has been told so of, and of whom nothing else has become yet. */
  get taken(): readonly Recipient[] {
    return [...this.#records].flatMap(([recipient, { outcome }]) =>
      outcome === 'accepted' ? [recipient] : [],
    );
  }

  /** Those who were accepted share the fate of the message. */
  answerAll(reply: Reply): void {
    for (const record of this.#records.values()) if (record.outcome === 'accepted') record.answered(reply);
  }

  /** Whom the fallback has taken over. */
  missed(results: readonly Result[]): void {
    for (const { recipient, outcome } of results) this.#records.get(recipient)!.ended(outcome);
  }

  /**
   * The dots are answered.
   * @param outcomes for each leg those of its recipients
   * @param known those who had the message, or had refused it, before
   * @returns the legs' recipients, then the known ones
   */
  ended(
    legs: readonly Leg[],
    outcomes: readonly (readonly Outcome[])[],
    known: ReadonlyMap<Recipient, Outcome>,
  ): readonly Known[] {
    const asked: Known[] = [];
    for (const [at, { recipients, nextHop }] of legs.entries()) {
      for (const [index, recipient] of recipients.entries()) {
        const outcome = outcomes[at]![index]!;
        this.#records.get(recipient)!.ended(outcome);
        asked.push({ recipient, nextHop: nextHop.label, outcome });
      }
    }
    for (const [recipient, outcome] of known) {
      const record = this.#records.get(recipient)!;
      record.suppressed(outcome);
      this.#counters.duplicatesSuppressed.inc();
      asked.push({ recipient, nextHop: record.nextHop, outcome });
    }
    return asked;
  }

  /** Those whose next hop was not asked to take the message share what the upstream is told. */
  shareVerdict(asked: readonly Known[], reply: Reply): void {
    for (const { recipient, outcome } of asked) {
      if (!isWithheld(outcome)) continue;
      this.#records.get(recipient)!.withheldFor(reply);
      this.#counters.recipientsWithheld.inc();
    }
  }
}
