// One mail transaction (RFC 5321 §3.3), cut through (claims 21-24):
//   1. each RCPT is routed, its next hop connected to (bounded retries) and asked; the answer is the next hop's own;
//   2. DATA is answered 354 only when every leg has answered 354;
//   3. body bytes run to all legs in step; whatever goes wrong here drops all of them without a dot;
//   4. the upstream's real end of data lets the dots out; the verdict on the replies is the one reply it gets, or (LMTP,
//      PRDR) each recipient's own.
// Owns its legs. Every end goes through #end(), which releases them, counts, and writes the one log line.
import { leastTrustedFirst } from '../downstream/dot-order.ts';
import { FanOut } from '../downstream/fan-out.ts';
import { Leg, type LegDeps } from '../downstream/leg.ts';
import { isWithheld, type Outcome } from '../downstream/outcome.ts';
import { MessageHistory } from '../ledger/message-history.ts';
import type { TransactionResult } from '../metrics.ts';
import { type NextHop, type RouteResult, refusalOfRoute } from '../routing/routes.ts';
import type { Client, Recipient, Sender } from '../smtp/envelope.ts';
import { MessageBody } from '../smtp/message-body.ts';
import {
  dnsTemporary,
  legLost,
  mixed,
  noDiskSpace,
  notTheSame,
  noValidRecipients,
  otherNextHop,
  overloadedData,
  type Reply,
  recipientOk,
  replyClass,
  stillDelivering,
  transactionAborted,
} from '../smtp/reply.ts';
import type { MessageBuffer } from '../spool/buffer.ts';
import { type Answer, inOrder, settleEach } from '../spool/recipient-replies.ts';
import type { Result, Spooler } from '../spool/spooler.ts';
import type { Described, IntakeDeps } from '../spool/stored-transaction.ts';
import type { TimeLine } from '../time-line.ts';
import { type RecipientRecord, TransactionRecord } from '../transaction-record.ts';
import { Wait } from '../wait.ts';
import { refusalOfData, type Verdict, verdict, verdictBeforeDots } from './verdict.ts';

export type TransactionDeps = IntakeDeps &
  Readonly<{
    leg: LegDeps;
    /** Whether the process holds too many message bytes to take on another message. */
    overloaded: () => boolean;
    /** Takes what can't be cut through; null without --fallback and --mixed spool. */
    spooler: Spooler | null;
    onEnd: (transaction: Transaction) => void;
  }>;

type State =
  | Readonly<{ name: 'envelope' }>
  | Readonly<{ name: 'starting' }>
  | Readonly<{ name: 'body'; fanOut: FanOut; body: MessageBody; began: number; room: boolean }>
  | Readonly<{ name: 'ended' }>;

/** The part of --rcpt-deadline that a transaction of several legs waits for a place. */
const BRIEF_WAIT = 0.25;

export class Transaction {
  readonly id: string;
  readonly sender: Sender;
  readonly client: Client;
  readonly #deps: TransactionDeps;
  readonly #record: TransactionRecord;
  readonly #legs = new Map<string, Leg>();
  readonly #records = new Map<Recipient, RecipientRecord>();
  /** One for each RCPT not answered yet. */
  readonly #waits = new Set<Asking>();
  /** Recipients that their next hops have accepted, or that the spool will take. */
  #accepted = 0;
  /** Under --fallback: recipients whose next hop is out of reach, and what was said of it. */
  readonly #missed: Result[] = [];
  /** The message from its first byte, for those who miss it in the end. */
  #tee: MessageBuffer | null = null;
  /** Key of the next hop of the first recipient that has one. */
  #firstHop: string | null = null;
  #routed: Promise<unknown> = Promise.resolve();
  /** Outlives the transaction: what the upstream does next shows whether it knows what became of the message. */
  readonly history: MessageHistory;
  /** Legs whose next hop may have this message from before, and what came of it until the header tells. */
  #held: { legs: readonly Leg[]; pieces: Buffer[] } | null = null;
  #upstreamGone = false;
  /** It sends no more. */
  #upstreamEnded = false;
  /** Who gets the dot, once it is due. */
  #due: readonly Recipient[] = [];
  #state: State = { name: 'envelope' };
  /** Set when the message can no longer be delivered; the rest of it is read and dropped. */
  #refusal: Verdict | null = null;
  /** Body bytes of the last chunk, kept for the write that carries the dot. */
  #last: readonly Buffer[] = [];
  /** Seconds, told to the metrics once, at the end. */
  readonly #standstill = { upstream: 0, downstream: 0 };

  constructor(sender: Sender, client: Client, deps: TransactionDeps) {
    this.id = deps.newId();
    this.sender = sender;
    this.client = client;
    this.#deps = deps;
    this.#record = new TransactionRecord(this.id, sender, client, deps);
    this.history = new MessageHistory(deps.ledger, sender, client);
  }

  get state(): State['name'] {
    return this.#state.name;
  }

  /** The dots are out, and the verdict is due. */
  get isFinishing(): boolean {
    return this.#state.name === 'body' && this.#state.fanOut.dotsSent;
  }

  /** For /status, which decides what may be shown of it. */
  describe(): Described {
    const legs = [...this.#legs.values()].map(({ nextHop, phase, recipients }) => ({
      nextHop,
      phase,
      recipients: recipients.length,
    }));
    const state = this.#state;
    const [octetsIn, octetsOut] = state.name === 'body' ? [state.body.octets, state.fanOut.bytesOut] : [0, 0];
    return { id: this.id, state: state.name, record: this.#record, octetsIn, octetsOut, legs };
  }

  get timeLine(): TimeLine | null {
    return this.#record.line;
  }

  /** Accepted ones, and those still being asked about. */
  get recipientCount(): number {
    return this.#accepted + this.#waits.size;
  }

  get unsentBytes(): number {
    let bytes = 0;
    for (const leg of this.#legs.values()) bytes += leg.unsentBytes;
    return bytes;
  }

  /** Claim 21: the recipient's next hop is found, connected to and asked, all within --rcpt-deadline. Never rejects. */
  async addRecipient(recipient: Recipient): Promise<Reply> {
    const record = this.#record.add(recipient.mailbox.address);
    this.#records.set(recipient, record);
    const asking = new Asking();
    this.#waits.add(asking);
    this.#deps.rcptDeadline.limit(asking);
    try {
      const said = await this.#askNextHop(recipient, record, asking);
      const spooled = this.#hasFallback && this.state !== 'ended' && asking.isOutOfReach(said);
      const answer = spooled ? this.#miss(recipient, record, said) : said;
      // An acceptance follows at once from what the next hop has just said.
      this.#record.told(record, answer, answer.code < 300);
      if (record.outcome === 'accepted') {
        this.#accepted++;
        this.history.asks(recipient);
      }
      return answer;
    } finally {
      this.#deps.rcptDeadline.lift(asking);
      this.#waits.delete(asking);
    }
  }

  /** An RCPT was answered without being asked about. */
  noteRefusal(answer: Reply): void {
    this.#record.refused(answer);
  }

  /**
   * DATA at every leg that has recipients. Null: all answered 354 and the body may come. Else the refusal, with
   * every leg dropped and the transaction ended.
   */
  async startData(): Promise<Reply | null> {
    if (this.#accepted === 0) return noValidRecipients();
    this.#record.line?.upstream('data', this.#deps.now());
    if (this.#deps.overloaded()) return this.#refuseData(overloadedData());
    this.#state = { name: 'starting' };
    const legs: Leg[] = [];
    for (const leg of this.#legs.values()) {
      if (leg.recipients.length > 0) legs.push(leg);
      else leg.release();
    }
    const held = this.history.hasSuspects ? this.#holdBack(legs) : [];
    const room = this.#deps.spooler === null || (await this.#deps.spooler.hasRoom());
    if (!room && this.#missed.length > 0) return this.#refuseData(noDiskSpace());
    const answers =
      legs.length === 1
        ? [await legs[0]!.startData()]
        : await Promise.all(legs.map((leg) => leg.startData()));
    if (this.state === 'ended') return transactionAborted();
    const failures = answers.filter((answer) => answer !== null);
    if (failures.length > 0 && !(this.#hasFallback && room)) return this.#refuseData(refusalOfData(failures));
    const onward = legs.filter((leg, at) => answers[at] === null || this.#missAll(leg, answers[at]!));
    const nobody = onward.length === 0 && held.length === 0;
    if (nobody && this.#missed.every(({ outcome }) => outcome?.kind === 'rejected'))
      return this.#refuseData(refusalOfData(failures));
    this.#startBody(onward, held, room);
    return null;
  }

  /** Takes the legs out of `legs` that must not get DATA before the header has shown whether it is a repetition. */
  #holdBack(legs: Leg[]): readonly Leg[] {
    const isHeld = (leg: Leg) => leg.recipients.some((recipient) => this.history.isSuspect(recipient));
    const held = legs.filter(isHeld);
    legs.splice(0, legs.length, ...legs.filter((leg) => !isHeld(leg)));
    return held;
  }

  /** Under --fallback: the leg is out, and its recipients get the message, or their sender a notification, later. */
  #missAll(leg: Leg, outcome: Outcome): false {
    leg.drop();
    for (const recipient of leg.recipients)
      this.#missed.push({ recipient, nextHop: leg.nextHop.label, outcome });
    return false;
  }

  #startBody(legs: readonly Leg[], held: readonly Leg[], room: boolean): void {
    const { config, now, ledger } = this.#deps;
    const fanOut = new FanOut(legs, {
      dataTimeoutMs: config.dataTimeoutMs,
      ackTimeoutMs: config.ackTimeoutMs,
      independent: this.#hasFallback && room,
      // Where each recipient is told its own outcome, none has to be withheld from the others.
      order: config.dots === 'ordered' && !this.#hasFallback && !this.#tellsEach ? leastTrustedFirst : null,
      // Kept on disk, an outcome is as good as known.
      onAnswer: ledger.isKept ? (leg, outcomes) => this.history.settled(zip(leg, outcomes)) : null,
      now,
      standstill: this.#standstill,
    });
    const first = legs[0]?.recipients[0] ?? held[0]?.recipients[0] ?? this.#missed[0]?.recipient;
    const only = this.#accepted === 1 ? (first ?? null) : null;
    const received = this.#deps.received(this, only);
    const maxMessageBytes = this.#sizeLimit(held.length === 0 ? legs : [...legs, ...held], received.length);
    const body = new MessageBody(received, { maxMessageBytes, maxReceived: config.maxReceived });
    // --mixed spool needs it only where recipients can differ.
    const keep = this.#hasFallback || (config.mixed === 'spool' && this.#accepted > 1);
    if (keep && room) this.#tee = this.#deps.spooler?.newBuffer(this.id) ?? null;
    if (held.length > 0) this.#held = { legs: held, pieces: [] };
    const began = now();
    this.#record.line?.upstream('data-reply', began, 354);
    this.#state = { name: 'body', fanOut, body, began, room };
  }

  /**
   * Takes the next bytes of the DATA phase.
   * `end`: index behind the final line, -1 while it was not seen. `ready`: wait for it before the next push.
   */
  push(chunk: Buffer): { end: number; ready: Promise<void> | null } {
    if (this.#state.name !== 'body') throw new Error(`body bytes while ${this.#state.name}`);
    const { fanOut, body } = this.#state;
    const { pieces, end, refusal } = body.push(chunk);
    if (refusal !== null && this.#refusal === null) this.#giveUp({ reply: refusal, result: 'rejected' });
    this.#record.body(end === -1 ? null : body.octets);
    this.#deps.metrics.messageBytes.add(end === -1 ? chunk.length : end, 'in');
    if (this.#held !== null) return { end, ready: this.#hold(this.#held.pieces, pieces, end, body) };
    if (end === -1) return { end, ready: this.#refusal === null ? this.#write(fanOut, pieces) : null };
    this.#last = pieces;
    return { end, ready: null };
  }

  /** Nobody gets anything before the header is whole: the legs keep step. It is bounded, see MessageBody. */
  #hold(held: Buffer[], pieces: readonly Buffer[], end: number, body: MessageBody): Promise<void> | null {
    held.push(...pieces);
    if (end !== -1) this.#last = held;
    return end === -1 && body.headerDone ? this.#letGo() : null;
  }

  /** What was held back goes on: to those who have the message already, no more of it. */
  async #letGo(): Promise<void> {
    if (this.#held === null || this.#state.name !== 'body') return;
    const { legs, pieces } = this.#held;
    const { fanOut, body, room } = this.#state;
    if (!this.history.judge(body)) this.#giveUp({ reply: stillDelivering(), result: 'deferred' });
    const done = new Set(this.history.known.keys());
    if (this.#refusal === null) {
      const answers = await Promise.all(legs.map((leg) => leg.startDataWithout(done)));
      // The upstream may have gone meanwhile.
      if (this.state !== 'body') return;
      this.#joinAll(fanOut, legs, answers, room);
    }
    this.#held = null;
    if (this.#last !== pieces && this.#refusal === null) await this.#write(fanOut, pieces);
  }

  #joinAll(fanOut: FanOut, legs: readonly Leg[], answers: readonly (Outcome | null)[], room: boolean): void {
    const failures = answers.filter((answer) => answer !== null);
    if (failures.length > 0 && !(this.#hasFallback && room)) {
      const reply = refusalOfData(failures);
      return this.#giveUp(this.#besideKnown({ reply, result: resultOf(reply) }));
    }
    fanOut.join(
      legs.filter((leg, at) =>
        answers[at] === null ? leg.recipients.length > 0 : this.#missAll(leg, answers[at]!),
      ),
    );
  }

  #write(fanOut: FanOut, pieces: readonly Buffer[]): Promise<void> | null {
    const ready = fanOut.write(pieces);
    const teed = this.#teeTakes(pieces);
    if (ready === null || teed === null) return ready ?? teed;
    return Promise.all([ready, teed]).then(() => {});
  }

  /** A buffer that has failed says so again when it is needed. */
  #teeTakes(pieces: readonly Buffer[]): Promise<void> | null {
    return this.#tee?.write(pieces)?.catch(() => {}) ?? null;
  }

  /** After push() has seen the end: the dots, the acknowledgements, the verdict (claims 22 and 23). */
  async finish(): Promise<Answer> {
    if (this.#state.name !== 'body') throw new Error(`end of data while ${this.#state.name}`);
    const { fanOut, body, began } = this.#state;
    const taken = this.#tellsEach ? this.#taken() : null;
    // While legs are still held back, the upstream may go and come again.
    if (this.#held !== null) this.#due = taken ?? this.#taken();
    const { metrics } = this.#deps;
    metrics.messageSize.observe(body.octets);
    if (this.#held !== null) await this.#letGo();
    if (this.#refusal === null && !this.history.isSame())
      this.#giveUp({ reply: notTheSame(), result: 'deferred' });
    if (this.#refusal === null) {
      this.#due = fanOut.legs.flatMap((leg) => leg.recipients);
      if (fanOut.legs.length > 1) await this.history.intend(this.#due, body);
      if (this.#upstreamEnded) this.mayBeGone();
    }
    const teed = this.#refusal === null ? this.#teeTakes(this.#last) : null;
    const outcomes = this.#refusal === null ? await fanOut.finish(this.#last) : null;
    if (teed !== null) await teed;
    this.#last = [];
    const decision =
      outcomes === null ? this.#verdictBeforeDots(fanOut) : await this.#verdictOf(fanOut, outcomes, body);
    const at = this.#deps.now();
    const extra = { bytes: body.octets, bodyMs: Math.round(at - began) };
    metrics.messageBytes.add(fanOut.bytesOut, 'out');
    this.#end(decision.result, decision.reply, extra, at);
    return taken === null ? { reply: decision.reply, each: null } : inOrder(decision, taken);
  }

  /** The recipients that the upstream has been told are accepted, in the order of its RCPTs. */
  #taken(): readonly Recipient[] {
    return [...this.#records].flatMap(([recipient, { outcome }]) =>
      outcome === 'accepted' ? [recipient] : [],
    );
  }

  /**
   * The upstream has gone, or has reset the transaction. Every leg is released without a dot; where the dots are
   * out, the outcomes are awaited by finish(), which is still running.
   */
  abort(): void {
    if (this.#state.name === 'ended') return;
    for (const wait of this.#waits) wait.cut();
    if (this.#state.name === 'body') {
      this.#upstreamGone = true;
      const { fanOut, body } = this.#state;
      if (fanOut.dotsSent) return this.history.pend(this.#due, body);
      this.#giveUp({ reply: transactionAborted(), result: 'aborted' });
    }
    this.#end(this.#refusal?.result ?? this.#record.resultWithoutMessage, null, {});
  }

  /** The upstream has ended its side after the message: it may wait for the reply, or send the message again now. */
  mayBeGone(): void {
    this.#upstreamEnded = true;
    if (this.#state.name === 'body') this.history.pend(this.#due, this.#state.body);
  }

  /** Waits for nobody any more: every leg is dropped, and what is not known by now stays unknown. */
  cutOff(): void {
    for (const leg of this.#legs.values()) leg.drop();
  }

  #askNextHop(recipient: Recipient, record: RecipientRecord, asking: Asking): Reply | Promise<Reply> {
    // Admission gives every recipient a domain; see upstream/admission.ts.
    const domain = recipient.mailbox.domain ?? this.#deps.config.hostname;
    const routed = this.#inTurn(this.#deps.router.route(domain));
    if (!(routed instanceof Promise)) return this.#askAt(routed, recipient, record, asking);
    return asking.for(routed).then((found) => this.#askAt(found, recipient, record, asking));
  }

  /** --mixed split: whose next hop is the first is decided by the order of the commands, and not of the DNS's answers. */
  #inTurn(routed: RouteResult | Promise<RouteResult>): RouteResult | Promise<RouteResult> {
    if (!this.#splits) return routed;
    const after = this.#routed.then(() => routed);
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
    if (this.state === 'ended') return transactionAborted();
    if (found === null) return dnsTemporary();
    if (found.kind !== 'next-hop') return refusalOfRoute(found);
    record.nextHop = found.nextHop.label;
    this.#firstHop ??= found.nextHop.key;
    if (this.#splits && found.nextHop.key !== this.#firstHop) return otherNextHop();
    return asking.askLeg(this.#legFor(found.nextHop), recipient);
  }

  get #tellsEach(): boolean {
    return this.sender.params.prdr === true;
  }

  /** One reply couldn't tell the truth for another next hop. */
  get #splits(): boolean {
    return this.#deps.config.mixed === 'split' && !this.#tellsEach;
  }

  get #hasFallback(): boolean {
    return this.#deps.config.fallback !== 'none' && this.#deps.spooler !== null;
  }

  /** The spool takes the recipient whose next hop can't be reached now. */
  #miss(recipient: Recipient, { nextHop }: RecipientRecord, said: Reply): Reply {
    this.#missed.push({ recipient, nextHop, outcome: { kind: 'deferred', reply: said } });
    return recipientOk();
  }

  #legFor(nextHop: NextHop): Leg {
    let leg = this.#legs.get(nextHop.key);
    if (leg === undefined) {
      leg = new Leg(nextHop, this, this.#deps.leg, this.#record.line);
      this.#legs.set(nextHop.key, leg);
      if (this.#legs.size > 1) this.#waitBriefly();
    }
    return leg;
  }

  /** While one leg waits for a place at its next hop, the others keep theirs from whoever could use them. */
  #waitBriefly(): void {
    const ms = this.#deps.config.rcptDeadlineMs * BRIEF_WAIT;
    for (const leg of this.#legs.values()) leg.waitAtMost(ms);
  }

  /** Ours, or what the next hop with the least room takes of a message that gets a Received line (RFC 1870 §4). */
  #sizeLimit(legs: readonly Leg[], receivedOctets: number): number {
    const theirs = legs.map((leg) => (leg.session?.capabilities.size ?? Infinity) - receivedOctets);
    return Math.min(this.#deps.config.maxMessageBytes, ...theirs);
  }

  #refuseData(refusal: Reply): Reply {
    this.#answerAll(refusal);
    this.#end(resultOf(refusal), refusal, {});
    return refusal;
  }

  /** Those who were accepted share the fate of the message. */
  #answerAll(reply: Reply): void {
    for (const record of this.#records.values()) if (record.outcome === 'accepted') record.answered(reply);
  }

  #giveUp(refusal: Verdict): void {
    this.#refusal = refusal;
    if (this.#state.name === 'body') this.#state.fanOut.drop();
  }

  /** A next hop has refused for good, but others have the message from an earlier try: it isn't refused for them. */
  #besideKnown(refusal: Verdict): Verdict {
    const accepted = [...this.history.known.values()].filter(({ kind }) => kind === 'accepted').length;
    if (accepted === 0 || replyClass(refusal.reply) !== 5) return refusal;
    // Whoever has not been asked this time may yet get it.
    return { reply: mixed({ accepted, total: this.#accepted, temporary: true }), result: 'mixed' };
  }

  #verdictBeforeDots(fanOut: FanOut): Verdict {
    const { failure } = fanOut;
    this.history.abandon();
    let decision = this.#refusal;
    if (decision === null && failure !== null) {
      const legs = [...this.#legs.values()].filter((leg) => leg.recipients.length > 0).length;
      decision = this.#besideKnown(verdictBeforeDots(failure.outcome, failure.leg.nextHop.label, legs));
    }
    decision ??= { reply: legLost('a next hop', 'body'), result: 'deferred' };
    this.#answerAll(decision.reply);
    return decision;
  }

  async #verdictOf(
    { legs }: FanOut,
    outcomes: readonly (readonly Outcome[])[],
    body: MessageBody,
  ): Promise<Verdict> {
    const all: Outcome[] = [];
    const results: Result[] = [...this.#missed];
    for (const { recipient, outcome } of this.#missed) this.#records.get(recipient)!.ended(outcome);
    for (const [at, { recipients, nextHop }] of legs.entries()) {
      for (const [index, recipient] of recipients.entries()) {
        const outcome = outcomes[at]![index]!;
        this.#records.get(recipient)!.ended(outcome);
        all.push(outcome);
        results.push({ recipient, nextHop: nextHop.label, outcome });
      }
    }
    for (const [recipient, outcome] of this.history.known) {
      this.#records.get(recipient)!.suppressed(outcome);
      this.#deps.metrics.duplicatesSuppressed.inc();
      all.push(outcome);
      results.push({ recipient, nextHop: this.#records.get(recipient)!.nextHop, outcome });
    }
    const decision = await this.#decide(all, results, legs.length);
    for (const { recipient, outcome } of results) {
      if (outcome === null || !isWithheld(outcome)) continue;
      this.#records.get(recipient)!.withheldFor(decision.reply);
      this.#deps.metrics.recipientsWithheld.inc();
    }
    const kept = this.history.told(decision, results, body, this.#upstreamGone);
    if (kept !== null) await kept;
    return decision;
  }

  async #decide(all: readonly Outcome[], results: readonly Result[], legs: number): Promise<Verdict> {
    const tee = this.#isForSpool(all) ? this.#tee : null;
    if (this.#tellsEach) return await settleEach(results, tee && ((others) => this.#settle(others, tee)));
    return tee === null ? verdict(all, legs) : await this.#settle(results, tee);
  }

  #settle(results: readonly Result[], tee: MessageBuffer): Promise<Verdict> {
    this.#tee = null;
    return this.#deps.spooler!.settle(this, results, tee);
  }

  /** Whether some must get the message from the spool. An upstream that has gone still has it, and will send it again. */
  #isForSpool(outcomes: readonly Outcome[]): boolean {
    const accepted = outcomes.filter(({ kind }) => kind === 'accepted').length;
    if (this.#upstreamGone || (accepted === outcomes.length && this.#missed.length === 0)) return false;
    return this.#hasFallback || accepted > 0;
  }

  /** The one gate to the end: legs released, counted, logged. */
  #end(result: TransactionResult, answer: Reply | null, extra: Record<string, number>, at?: number): void {
    if (this.#state.name === 'ended') return;
    this.#state = { name: 'ended' };
    for (const leg of this.#legs.values()) leg.release();
    if (this.#tee !== null) void this.#deps.spooler?.discard(this.#tee);
    for (const side of ['upstream', 'downstream'] as const) {
      if (this.#standstill[side] > 0) this.#deps.metrics.backpressure.add(this.#standstill[side], side);
    }
    this.#record.end(result, answer, extra, at);
    this.#deps.onEnd(this);
  }
}

/** The wait for the answer to one RCPT. */
class Asking extends Wait {
  #leg: Leg | null = null;

  askLeg(leg: Leg, recipient: Recipient): Reply | Promise<Reply> {
    this.#leg = leg;
    this.onCut = () => leg.drop();
    return leg.addRecipient(recipient);
  }

  /** The answer is not the next hop's own, and may be another one later: it was not found, not reached, or lost. */
  isOutOfReach(answer: Reply): boolean {
    if (replyClass(answer) !== 4) return false;
    if (this.#leg === null) return true;
    // A leg whose sender was refused has let go of its session.
    return !this.#leg.isAlive && !this.#leg.isReleased;
  }
}

function zip({ recipients }: Leg, outcomes: readonly Outcome[]) {
  return recipients.map((recipient, at) => ({ recipient, outcome: outcomes[at] ?? null }));
}

function resultOf(refusal: Reply): TransactionResult {
  return replyClass(refusal) === 5 ? 'rejected' : 'deferred';
}
