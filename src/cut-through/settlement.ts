// The end of a message: what became of each recipient is written down, and the verdict made of it for the upstream
// (claims 22 and 23). What the fallback and the ledger have to make durable is so before the reply.
import type { Failure } from '../downstream/fan-out.ts';
import type { Leg } from '../downstream/leg.ts';
import type { Outcome } from '../downstream/outcome.ts';
import type { MessageHistory } from '../ledger/message-history.ts';
import type { Submission } from '../smtp/envelope.ts';
import type { MessageBody } from '../smtp/message-body.ts';
import { legLost } from '../smtp/reply.ts';
import { settleEach } from '../spool/recipient-replies.ts';
import type { Fallback } from './fallback.ts';
import type { Known, Recipients } from './recipients.ts';
import { besideKnown, type Verdict, verdict, verdictBeforeDots } from './verdict.ts';

/** Whose message it is. The upstream may go at any time. */
type Sending = Submission &
  Readonly<{ isUpstreamGone: boolean; tellsEach: boolean; history: MessageHistory }>;

const NONE: readonly Known[] = [];

export class Settlement {
  readonly #sending: Sending;
  readonly #recipients: Recipients;
  readonly #fallback: Fallback | null;

  constructor(sending: Sending, recipients: Recipients, fallback: Fallback | null) {
    this.#sending = sending;
    this.#recipients = recipients;
    this.#fallback = fallback;
  }

  /**
   * No dot is out: nobody has got the message now.
   * @param refusal why, where that isn't the `failure` of a leg; `legs` is how many there were
   */
  beforeDots(refusal: Verdict | null, failure: Failure | null, legs: number): Verdict {
    const { history } = this.#sending;
    history.abandon();
    let decision = refusal;
    if (decision === null && failure !== null) {
      const judged = verdictBeforeDots(failure.outcome, failure.leg.nextHop.label, legs);
      decision = besideKnown(judged, history.known, this.#recipients.accepted);
    }
    decision ??= { reply: legLost('a next hop', 'body'), result: 'deferred' };
    this.#recipients.answerAll(decision.reply);
    return decision;
  }

  /** The dots are answered. @param outcomes for each leg those of its recipients */
  async afterDots(
    legs: readonly Leg[],
    outcomes: readonly (readonly Outcome[])[],
    body: MessageBody,
  ): Promise<Verdict> {
    const { history } = this.#sending;
    const asked = this.#recipients.ended(legs, outcomes, history.known);
    const missed = this.#fallback?.missed ?? NONE;
    this.#recipients.missed(missed);
    const results = missed.length === 0 ? asked : [...missed, ...asked];
    const decision = await this.#decide(asked, results, legs.length);
    this.#recipients.shareVerdict(asked, decision.reply);
    const kept = history.told(decision, results, body, this.#sending.isUpstreamGone);
    if (kept !== null) await kept;
    return decision;
  }

  async #decide(asked: readonly Known[], results: readonly Known[], legs: number): Promise<Verdict> {
    const fallback = this.#wanted(outcomesOf(asked));
    if (this.#sending.tellsEach)
      return await settleEach(results, fallback && ((others) => fallback.settle(this.#sending, others)));
    if (fallback !== null) return await fallback.settle(this.#sending, results);
    // Whoever was missed has not got the message, since nothing takes over.
    return verdict(outcomesOf(results), legs);
  }

  /** Where some must get the message from the spool. An upstream that has gone still has it, and will send it again. */
  #wanted(outcomes: readonly Outcome[]): Fallback | null {
    return !this.#sending.isUpstreamGone && this.#fallback?.isNeeded(outcomes) ? this.#fallback : null;
  }
}

function outcomesOf(results: readonly Known[]): readonly Outcome[] {
  return results.map(({ outcome }) => outcome);
}
