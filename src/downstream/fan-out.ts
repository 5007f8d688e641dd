// Sends the body to every leg in step, then the dots (DESIGN.md, invariants 2, 3 and 5; claim 21).
// The slowest leg sets the pace: write() tells the caller to wait. No leg gets its dot before every leg has taken all
// body bytes. When a leg is lost, stalls or speaks before that, all are dropped without a dot, so nobody has the
// message; `failure` then says why, and later calls do nothing. Where a buffer keeps the message for those who miss it
// (`independent`), only that leg is dropped, and the others go on. With an `order` the dots go out one after another, as
// long as every answer is an acceptance.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { END_OF_DATA } from '../smtp/wire.ts';
import type { FailureCause } from './health.ts';
import type { Leg } from './leg.ts';
import type { Outcome } from './outcome.ts';

export type FanOutDeps = Readonly<{
  dataTimeoutMs: number;
  ackTimeoutMs: number;
  /** A lost leg costs the others nothing, since its recipients' copies come from a buffer later. */
  independent: boolean;
  /** --dots ordered: which leg is asked first; null: all get their dots at once. */
  order: ((legs: readonly Leg[], nowMs: number) => readonly Leg[]) | null;
  /** What each leg's next hop says to its dot, as soon as it does; null: nobody wants to know. */
  onAnswer: ((leg: Leg, outcomes: readonly Outcome[]) => void) | null;
  now: () => number;
  /** Added to: seconds that the body stood still, by the side waited for. */
  standstill: Standstill;
}>;

type Standstill = { upstream: number; downstream: number };

export type Failure = Readonly<{ leg: Leg; outcome: Outcome }>;

/** Pieces up to this many octets are copied into one write; larger ones go out as a vector. */
const JOIN_OCTETS = 16 * 1024;

export class FanOut {
  /** Why all legs were dropped; never set where they are independent. */
  failure: Failure | null = null;
  /** Octets written to the legs, all together. */
  bytesOut = 0;

  readonly legs: Leg[] = [];
  readonly #deps: FanOutDeps;
  /** The independent legs that are no more, and those lost while they waited for their dots. */
  readonly #lost = new Map<Leg, Outcome>();
  #dotsSent = false;
  #idleSince: number;

  /** @param legs each in its body phase (354 received) */
  constructor(legs: readonly Leg[], deps: FanOutDeps) {
    this.#deps = deps;
    this.#idleSince = deps.now();
    this.join(legs);
  }

  /** Legs that are ready later. Only before the first write(): all get the same bytes. */
  join(legs: readonly Leg[]): void {
    for (const leg of legs) {
      this.legs.push(leg);
      void leg.spokeEarly().then((outcome) => {
        // Once its own dot is out, what it says is the answer to that.
        if (leg.phase === 'body') this.#fail(leg, outcome);
      });
    }
  }

  /** Null when every leg took the pieces at once; else settles when the next may be written. Never rejects. */
  write(pieces: readonly Buffer[]): Promise<void> | null {
    if (this.failure !== null || pieces.length === 0) return null;
    this.#deps.standstill.upstream += this.#sinceIdle();
    const took = this.#writeToAll(pieces);
    this.#idleSince = this.#deps.now();
    return took ? null : this.#untilAll((leg) => leg.session?.drained());
  }

  /**
   * The last body bytes, then the dots. Gives for each leg, in their order, the outcomes of its recipients, or null
   * when a leg failed before the dots (see `failure`).
   */
  async finish(pieces: readonly Buffer[]): Promise<readonly (readonly Outcome[])[] | null> {
    if (this.failure === null) this.#deps.standstill.upstream += this.#sinceIdle();
    const [only, ...others] = this.legs;
    let last: Buffer | null = null;
    if (only !== undefined && others.length === 0) {
      // With one leg nobody else has to keep step: the last bytes and the dot leave in one write.
      if (only.unsentBytes > 0) await this.#untilAll((leg) => leg.session?.drained());
      this.#countOut(pieces);
      last = Buffer.concat([...pieces, END_OF_DATA]);
    } else {
      this.#writeToAll(pieces);
      await this.#untilAll((leg) => leg.session?.flushed());
    }
    // What has come with a 354 was said before the dot, although nobody has looked at it yet.
    if (this.legs.some((leg) => leg.session?.hasUnread)) await nextTurn();
    if (this.failure !== null) return null;
    this.#dotsSent = true;
    if (only !== undefined && others.length === 0) return [await this.#dot(only, last)];
    const { order } = this.#deps;
    if (order !== null) return await this.#dotsInTurn(order(this.legs, this.#deps.now()));
    return await Promise.all(this.legs.map((leg) => this.#dot(leg, null)));
  }

  /** Whether the kernel has taken all that was written to any leg. */
  get isFlushed(): boolean {
    return this.legs.every((leg) => leg.unsentBytes === 0);
  }

  /** Whether a next hop may have the whole message. */
  get dotsSent(): boolean {
    return this.#dotsSent;
  }

  /** Drops every leg without a dot. Not for use after the dots. */
  drop(): void {
    for (const leg of this.legs) leg.drop();
  }

  /**
   * Gives the outcomes in the order of `legs`. All answers share one --ack-timeout, for the upstream waits no longer for
   * them than for one; too little of it left would make an unknown outcome of what can still be withheld.
   */
  async #dotsInTurn(order: readonly Leg[]): Promise<readonly (readonly Outcome[])[]> {
    const { ackTimeoutMs, now } = this.#deps;
    const end = now() + ackTimeoutMs;
    const outcomes = new Map<Leg, readonly Outcome[]>();
    let goesOn = true;
    for (const leg of order) {
      const leftMs = end - now();
      goesOn &&= leftMs >= ackTimeoutMs / 2;
      const answer: readonly Outcome[] = goesOn ? await this.#dot(leg, null, leftMs) : leg.withhold();
      goesOn &&= answer.every(({ kind }) => kind === 'accepted');
      outcomes.set(leg, answer);
    }
    return this.legs.map((leg) => outcomes.get(leg)!);
  }

  #dot(
    leg: Leg,
    last: Buffer | null,
    ackTimeoutMs = this.#deps.ackTimeoutMs,
  ): readonly Outcome[] | Promise<readonly Outcome[]> {
    const lost = this.#lost.get(leg);
    if (lost !== undefined) return leg.recipients.map(() => lost);
    const { onAnswer } = this.#deps;
    const finished = leg.finish(last, ackTimeoutMs, this.bytesOut / this.legs.length);
    if (onAnswer === null) return finished;
    return finished.then((outcomes) => {
      onAnswer(leg, outcomes);
      return outcomes;
    });
  }

  #writeToAll(pieces: readonly Buffer[]): boolean {
    const joined = join(pieces);
    let took = true;
    this.#countOut(pieces);
    for (const leg of this.legs) {
      const { session } = leg;
      if (session === null || this.#lost.has(leg)) continue;
      if (joined.length > 1) session.cork();
      for (const piece of joined) took = session.write(piece) && took;
      if (joined.length > 1) session.uncork();
    }
    return took;
  }

  /** Waits for every leg; one that isn't ready within --data-timeout is lost. */
  async #untilAll(ready: (leg: Leg) => Promise<void> | undefined): Promise<void> {
    const live = this.legs.filter((leg) => !this.#lost.has(leg));
    if (this.failure !== null || live.every((leg) => leg.unsentBytes === 0)) return;
    const waiting = new Set(live);
    const timer = setTimeout(() => {
      for (const leg of waiting) this.#fail(leg, stalled(leg), 'timeout');
    }, this.#deps.dataTimeoutMs);
    const each = live.map(async (leg) => {
      await ready(leg);
      waiting.delete(leg);
    });
    await Promise.all(each);
    clearTimeout(timer);
    this.#deps.standstill.downstream += this.#sinceIdle();
    this.#idleSince = this.#deps.now();
  }

  #countOut(pieces: readonly Buffer[]): void {
    for (const piece of pieces) this.bytesOut += piece.length * this.legs.length;
  }

  #fail(leg: Leg, outcome: Outcome, cause?: FailureCause): void {
    if (this.failure !== null || this.#lost.has(leg)) return;
    leg.failedInBody(outcome, cause);
    if (this.#deps.independent || this.#dotsSent) {
      this.#lost.set(leg, outcome);
      return leg.drop();
    }
    this.failure = { leg, outcome };
    this.drop();
  }

  #sinceIdle(): number {
    return (this.#deps.now() - this.#idleSince) / 1000;
  }
}

function stalled(leg: Leg): Outcome {
  return { kind: 'lost', nextHop: leg.nextHop.label, phase: 'body', dotSent: false };
}

function join(pieces: readonly Buffer[]): readonly Buffer[] {
  if (pieces.length < 2) return pieces;
  const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
  return length <= JOIN_OCTETS ? [Buffer.concat(pieces, length)] : pieces;
}
