// Legs that must not get DATA yet, and what has come of the message meanwhile. The ledger has a message of the same
// sender and recipient on record; whether this is that message again shows once its header block is whole.
// Nobody gets anything before that: the legs keep step. It is bounded, see MessageBody.
import type { Leg } from '../downstream/leg.ts';
import type { Outcome } from '../downstream/outcome.ts';
import type { MessageHistory } from '../ledger/message-history.ts';
import type { Recipient } from '../smtp/envelope.ts';

export class HeldLegs {
  readonly legs: readonly Leg[];
  /** Of the body, from its first byte. */
  readonly pieces: Buffer[] = [];

  private constructor(legs: readonly Leg[]) {
    this.legs = legs;
  }

  /**
   * Takes those out of `legs` that are to be held back; null: nobody of this message is on record. There may be none,
   * where the next hops of those who are can't be reached, and the fallback is what must wait.
   */
  static outOf(legs: Leg[], history: MessageHistory): HeldLegs | null {
    if (!history.hasSuspects) return null;
    const isHeld = (leg: Leg) => leg.recipients.some((recipient) => history.isSuspect(recipient));
    const held = legs.filter(isHeld);
    legs.splice(0, legs.length, ...legs.filter((leg) => !isHeld(leg)));
    return new HeldLegs(held);
  }

  hold(pieces: readonly Buffer[]): void {
    this.pieces.push(...pieces);
  }

  /**
   * The header has told. DATA follows at every leg, except for those who have the message already.
   * @param known whose fate is on record
   * @returns what each next hop says, null when all is well
   */
  async startData(known: ReadonlyMap<Recipient, Outcome>): Promise<readonly (Outcome | null)[]> {
    const done = new Set(known.keys());
    return await Promise.all(this.legs.map((leg) => leg.startDataWithout(done)));
  }
}
