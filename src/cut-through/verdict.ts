// From what became of each recipient to the one reply that the upstream gets (INTERFACE.md's table; claims 22 and 23).
// Pure. A 250 means that every recipient's next hop said 2xx to its own final dot; whatever is in doubt is a 4xx,
// since then the upstream still has the message (RFC 5321 §6.1).
import { isWithheld, type Outcome, replyTo } from '../downstream/outcome.ts';
import type { TransactionResult } from '../metrics.ts';
import type { Recipient } from '../smtp/envelope.ts';
import { delivered, legLost, mixed, type Reply, replyClass } from '../smtp/reply.ts';

/** `each`: what each recipient is told where the upstream hears of them by themselves. */
export type Verdict = Readonly<{
  reply: Reply;
  result: TransactionResult;
  each?: ReadonlyMap<Recipient, Reply>;
}>;

/**
 * @param outcomes one for each accepted recipient, at least one
 * @param legs number of downstream sessions; with one its own text is passed on
 */
export function verdict(outcomes: readonly Outcome[], legs: number): Verdict {
  const accepted = outcomes.filter((outcome) => outcome.kind === 'accepted');
  // One that was withheld says nothing: while nobody has the message, a refusal is the answer for all, as at DATA. Once
  // somebody has, the retry can still reach it.
  const judged = outcomes.filter((outcome) => accepted.length > 0 || !isWithheld(outcome));
  const temporary = judged.find((outcome) => outcome.kind === 'deferred' || outcome.kind === 'lost');
  const rejected = outcomes.find((outcome) => outcome.kind === 'rejected');
  const failure = temporary ?? rejected;
  if (failure === undefined) {
    // Claim 22.
    return { reply: delivered(legs === 1 ? (accepted[0]?.reply ?? null) : null), result: 'delivered' };
  }
  const result = temporary === undefined ? 'rejected' : 'deferred';
  // Claim 23: 5xx only where every failure is permanent.
  if (accepted.length === 0) return { reply: replyTo(failure), result };
  return {
    reply: mixed({ accepted: accepted.length, total: outcomes.length, temporary: temporary !== undefined }),
    result: 'mixed',
  };
}

/** The reply to DATA when not every next hop answered 354 (the others have been dropped). */
export function refusalOfData(failures: readonly Outcome[]): Reply {
  const temporary = failures.find((failure) => failure.kind !== 'rejected');
  return replyTo(temporary ?? failures[0]!);
}

/**
 * The verdict when a leg failed before the dots: nobody has the message. A next hop's own refusal in mid-body is the
 * answer only where it is the only one; next to other legs it is one lost leg, and the upstream keeps the message.
 */
export function verdictBeforeDots(failure: Outcome, nextHop: string, legs: number): Verdict {
  if (legs === 1 && failure.kind !== 'lost') return verdict([failure], legs);
  return { reply: failure.kind === 'lost' ? replyTo(failure) : legLost(nextHop, 'body'), result: 'deferred' };
}

/**
 * A next hop has refused for good, but others have the message from an earlier try: it isn't refused for them.
 * @param known whose fate is on record; `total` counts all accepted recipients
 */
export function besideKnown(
  refusal: Verdict,
  known: ReadonlyMap<Recipient, Outcome>,
  total: number,
): Verdict {
  const accepted = [...known.values()].filter(({ kind }) => kind === 'accepted').length;
  if (accepted === 0 || replyClass(refusal.reply) !== 5) return refusal;
  // Whoever has not been asked this time may yet get it.
  return { reply: mixed({ accepted, total, temporary: true }), result: 'mixed' };
}
