// The legs of one transaction: one for each next hop, found, opened and asked as the RCPTs come (claims 21 and 24).
// Owns them: drop() destroys all, release() is their end.
import type { Config } from '../config.ts';
import { Leg, type LegDeps } from '../downstream/leg.ts';
import { type NextHop, type RouteResult, type Router, refusalOfRoute } from '../routing/routes.ts';
import type { Recipient, Submission } from '../smtp/envelope.ts';
import { dnsTemporary, otherNextHop, type Reply, replyClass, transactionAborted } from '../smtp/reply.ts';
import type { TimeLine } from '../time-line.ts';
import type { RecipientRecord } from '../transaction-record.ts';
import { Wait } from '../wait.ts';

export type LegsDeps = Readonly<{ config: Config; router: Router; leg: LegDeps }>;

/** The part of --rcpt-deadline that a transaction of several legs waits for a place. */
const BRIEF_WAIT = 0.25;

export class Legs {
  readonly #submission: Submission;
  readonly #line: TimeLine | null;
  readonly #deps: LegsDeps;
  readonly #byHop = new Map<string, Leg>();
  /** --mixed split, where one reply couldn't tell the truth for another next hop. */
  readonly #splits: boolean;
  /** --mixed split: those who came last and share a next hop; since when they may be asked about, and all were answered. */
  #run: Readonly<{ key: string; begun: Promise<unknown>; answered: Promise<unknown> }> | null = null;
  /** Settles when the last recipient was routed. */
  #routed: Promise<unknown> | null = null;
  #released = false;

  constructor(submission: Submission, line: TimeLine | null, deps: LegsDeps) {
    this.#submission = submission;
    this.#line = line;
    this.#deps = deps;
    this.#splits = deps.config.mixed === 'split' && submission.sender.params.prdr !== true;
  }

  /** The recipient is routed, and the leg of its next hop asked; the reply is what its RCPT gets. Never rejects. */
  ask(recipient: Recipient, record: RecipientRecord, asking: Asking): Reply | Promise<Reply> {
    // Admission gives every recipient a domain; see upstream/admission.ts.
    const domain = recipient.mailbox.domain ?? this.#deps.config.hostname;
    const routed = this.#inTurn(this.#deps.router.route(domain));
    if (!(routed instanceof Promise)) return this.#askAt(routed, recipient, record, asking);
    return asking.for(routed).then((found) => this.#askAt(found, recipient, record, asking));
  }

  /** --mixed split: whose next hop is the first is decided by the order of the commands, and not of the DNS's answers. */
  #inTurn(routed: RouteResult | Promise<RouteResult>): RouteResult | Promise<RouteResult> {
    if (!this.#splits) return routed;
    const after = (this.#routed ?? Promise.resolve()).then(() => routed);
    this.#routed = after;
    return after;
  }

  /** @param found null when it was not found in time */
  #askAt(
    found: RouteResult | null,
    recipient: Recipient,
    record: RecipientRecord,
    asking: Asking,
  ): Reply | Promise<Reply> {
    if (this.#released) return transactionAborted();
    if (found === null) return dnsTemporary();
    if (found.kind !== 'next-hop') return refusalOfRoute(found);
    record.nextHop = found.nextHop.label;
    if (this.#splits) return this.#askAfterOthers(found.nextHop, recipient, asking);
    return asking.askLeg(this.#legFor(found.nextHop), recipient);
  }

  /**
   * --mixed split: the next hop that is the first to take somebody is the transaction's. One that takes nobody would
   * else put the others off for as long as it fails. So those at another next hop wait for what is said before them.
   */
  #askAfterOthers(nextHop: NextHop, recipient: Recipient, asking: Asking): Promise<Reply> {
    const { key } = nextHop;
    const last = this.#run;
    const begun = (last?.key === key ? last.begun : last?.answered) ?? Promise.resolve();
    const answer = asking.for(begun.then(() => true)).then((inTime) => {
      if (this.#released) return transactionAborted();
      const isTheirs = (this.#byHop.get(key)?.recipients.length ?? 0) > 0;
      if (inTime === null || (this.inUse > 0 && !isTheirs)) return otherNextHop();
      return asking.askLeg(this.#legFor(nextHop), recipient);
    });
    const answered = last?.key === key ? Promise.all([last.answered, answer]) : answer;
    this.#run = { key, begun, answered };
    return answer;
  }

  #legFor(nextHop: NextHop): Leg {
    let leg = this.#byHop.get(nextHop.key);
    if (leg === undefined) {
      leg = new Leg(nextHop, this.#submission, this.#deps.leg, this.#line);
      this.#byHop.set(nextHop.key, leg);
      if (this.#byHop.size > 1) this.#waitBriefly();
    }
    return leg;
  }

  /** While one leg waits for a place at its next hop, the others keep theirs from whoever could use them. */
  #waitBriefly(): void {
    const ms = this.#deps.config.rcptDeadlineMs * BRIEF_WAIT;
    for (const leg of this.#byHop.values()) leg.waitAtMost(ms);
  }

  /** At DATA: those that have recipients. The others are let go. */
  forData(): Leg[] {
    const legs: Leg[] = [];
    for (const leg of this.#byHop.values()) {
      if (leg.recipients.length > 0) legs.push(leg);
      else leg.release();
    }
    return legs;
  }

  /** How many have recipients. */
  get inUse(): number {
    let legs = 0;
    for (const leg of this.#byHop.values()) if (leg.recipients.length > 0) legs++;
    return legs;
  }

  get unsentBytes(): number {
    let bytes = 0;
    for (const leg of this.#byHop.values()) bytes += leg.unsentBytes;
    return bytes;
  }

  /** For /status. */
  describe(): readonly Readonly<{ nextHop: NextHop; phase: Leg['phase']; recipients: number }>[] {
    return [...this.#byHop.values()].map(({ nextHop, phase, recipients }) => ({
      nextHop,
      phase,
      recipients: recipients.length,
    }));
  }

  /** Each at once, without a dot; what it has not said by now stays unknown. */
  drop(): void {
    for (const leg of this.#byHop.values()) leg.drop();
  }

  /** The transaction has ended. */
  release(): void {
    this.#released = true;
    for (const leg of this.#byHop.values()) leg.release();
  }
}

/** The wait for the answer to one RCPT. */
export class Asking extends Wait {
  #leg: Leg | null = null;

  askLeg(leg: Leg, recipient: Recipient): Reply | Promise<Reply> {
    this.#leg = leg;
    this.onCut = () => leg.drop();
    return leg.addRecipient(recipient);
  }

  /** Whoever comes after others waits for their answers, too, and they would all be lost with the leg. */
  override extension(limitMs: number): number {
    return this.#leg === null ? 0 : limitMs - this.#leg.sinceAnswerMs;
  }

  /** The answer is not the next hop's own, and may be another one later: it was not found, not reached, or lost. */
  isOutOfReach(answer: Reply): boolean {
    if (replyClass(answer) !== 4) return false;
    if (this.#leg === null) return true;
    // A leg whose sender was refused has let go of its session.
    return !this.#leg.isAlive && !this.#leg.isReleased;
  }
}
