// What a next hop made of one recipient's copy of a message.
import { legLost, outcomeUnknown, passOn, type Reply, replyClass } from '../smtp/reply.ts';

export type Outcome =
  /** `relayed`: NOTIFY=SUCCESS was asked for, and the next hop has no DSN to report by (RFC 3461 §5.2.2). */
  | Readonly<{ kind: 'accepted'; reply: Reply; relayed?: true }>
  | Readonly<{ kind: 'rejected'; reply: Reply }>
  | Readonly<{ kind: 'deferred'; reply: Reply }>
  /** After the dot the outcome is unknown; before it nobody has the message. */
  | Readonly<{ kind: 'lost'; nextHop: string; phase: string; dotSent: boolean }>;

/** --dots ordered: another next hop had not accepted the message, so this one was not asked to. */
export function withheldFrom(nextHop: string): Outcome {
  return { kind: 'lost', nextHop, phase: 'withheld', dotSent: false };
}

export function isWithheld(outcome: Outcome): boolean {
  return outcome.kind === 'lost' && outcome.phase === 'withheld';
}

/** A final reply read as an outcome; null where its class makes no sense there (RFC 5321 §4.3.2). */
export function outcomeOf(reply: Reply): Outcome | null {
  switch (replyClass(reply)) {
    case 2:
      return { kind: 'accepted', reply };
    case 4:
      return { kind: 'deferred', reply };
    case 5:
      return { kind: 'rejected', reply };
    default:
      return null;
  }
}

/** What the upstream is told of a recipient who has not got the message, or may not have. */
export function replyTo(failure: Outcome): Reply {
  switch (failure.kind) {
    case 'accepted':
      throw new Error('an accepted recipient is no failure');
    case 'rejected':
    case 'deferred':
      return passOn(failure.reply) ?? legLost('the next hop', 'dot');
    case 'lost':
      return failure.dotSent ? outcomeUnknown(failure.nextHop) : legLost(failure.nextHop, failure.phase);
    default:
      return failure satisfies never;
  }
}
