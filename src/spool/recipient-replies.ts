// What each recipient is told after the final dot, where the upstream hears of each by itself: over LMTP (RFC 2033 §4.2)
// and with PRDR. Nothing is mixed up then: who has the message gets 250, who has refused it for good that refusal, so
// that the upstream tells the sender and we don't; and what is in doubt is 4xx, or the spool's.
import { type Outcome, replyTo } from '../downstream/outcome.ts';
import type { TransactionResult } from '../metrics.ts';
import type { Recipient } from '../smtp/envelope.ts';
import { acceptedFor, delivered, type Reply, replyClass } from '../smtp/reply.ts';
import type { Result, Settled } from './spooler.ts';

export type SettledEach = Settled & Readonly<{ each: ReadonlyMap<Recipient, Reply> }>;

/** `each`: in the order of the RCPTs that were accepted; null where one reply is all that the upstream gets. */
export type Answer = Readonly<{ reply: Reply; each: readonly Reply[] | null }>;

/**
 * @param results one for each recipient, at least one
 * @param settle takes the message for those who have not refused it; null where nothing is kept of it
 */
export async function settleEach(
  results: readonly Result[],
  settle: ((others: readonly Result[]) => Promise<Settled>) | null,
): Promise<SettledEach> {
  const others = results.filter(({ outcome }) => outcome?.kind !== 'rejected');
  const settled = settle === null || others.length === 0 ? null : await settle(others);
  const each = new Map(results.map(({ recipient, outcome }) => [recipient, toldOf(outcome, settled)]));
  const whole = overall([...each.values()]);
  return { ...whole, result: settled?.result === 'spooled' ? 'spooled' : whole.result, each };
}

/** What the message as a whole amounts to: PRDR's last reply, and what the log has. */
export function overall(each: readonly Reply[]): Settled {
  const accepted = each.filter((reply) => replyClass(reply) === 2).length;
  const first = each[0]!;
  if (accepted > 0) {
    const result: TransactionResult = accepted === each.length ? 'delivered' : 'mixed';
    const same = each.every(({ code, lines }) => code === first.code && lines.join() === first.lines.join());
    return { reply: same ? first : acceptedFor(accepted, each.length), result };
  }
  // A 5xx here would be one for all of them, whatever each was told.
  const temporary = each.find((reply) => replyClass(reply) === 4);
  return { reply: temporary ?? first, result: temporary === undefined ? 'rejected' : 'deferred' };
}

/** @param reply of the message as a whole, and of each recipient where it has none of its own */
export function inOrder(
  { reply, each }: Readonly<{ reply: Reply; each?: ReadonlyMap<Recipient, Reply> }>,
  recipients: readonly Recipient[],
): Answer {
  return { reply, each: recipients.map((recipient) => each?.get(recipient) ?? reply) };
}

function toldOf(outcome: Outcome | null, settled: Settled | null): Reply {
  if (outcome?.kind === 'accepted') return delivered(outcome.reply);
  if (outcome?.kind === 'rejected' || settled === null) return replyTo(outcome!);
  return settled.reply;
}
