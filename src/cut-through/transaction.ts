// One mail transaction (RFC 5321 §3.3), cut through (claims 21-24):
//   1. each RCPT is routed, its next hop connected to (bounded retries) and asked; the answer is the next hop's own;
//   2. DATA is answered 354 only when every leg has answered 354;
//   3. body bytes run to all legs in step; whatever goes wrong here drops all of them without a dot;
//   4. the upstream's real end of data lets the dots out; the verdict on the replies is the one reply it gets, or (LMTP,
//      PRDR) each recipient's own.
// Owns its legs (Legs), what became of its recipients (Recipients), and what stands in for a next hop (Fallback). Every end
// goes through #end(), which releases them, counts, and writes the one log line.
import { leastTrustedFirst } from '../downstream/dot-order.ts';
import { FanOut } from '../downstream/fan-out.ts';
import type { Leg, LegDeps } from '../downstream/leg.ts';
import type { Outcome } from '../downstream/outcome.ts';
import { MessageHistory } from '../ledger/message-history.ts';
import type { TransactionResult } from '../metrics.ts';
import type { Client, Recipient, Sender } from '../smtp/envelope.ts';
import { MessageBody } from '../smtp/message-body.ts';
import {
  noDiskSpace,
  notTheSame,
  noValidRecipients,
  overloadedData,
  type Reply,
  replyClass,
  stillDelivering,
  transactionAborted,
} from '../smtp/reply.ts';
import { type Answer, inOrder } from '../spool/recipient-replies.ts';
import type { Spooler } from '../spool/spooler.ts';
import type { Described, IntakeDeps } from '../spool/stored-transaction.ts';
import type { TimeLine } from '../time-line.ts';
import { TransactionRecord } from '../transaction-record.ts';
import { Fallback } from './fallback.ts';
import { HeldLegs } from './held-legs.ts';
import { Asking, Legs } from './legs.ts';
import { Recipients } from './recipients.ts';
import { Settlement } from './settlement.ts';
import { besideKnown, refusalOfData, type Verdict } from './verdict.ts';

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
  | Readonly<{ name: 'body'; fanOut: FanOut; body: MessageBody; began: number }>
  | Readonly<{ name: 'ended' }>;

const NOBODY: readonly Recipient[] = [];
const NOTHING: readonly Buffer[] = [];

export class Transaction {
  readonly id: string;
  readonly sender: Sender;
  readonly client: Client;
  readonly #deps: TransactionDeps;
  readonly #record: TransactionRecord;
  readonly #legs: Legs;
  readonly #recipients: Recipients;
  /** One for each RCPT not answered yet. */
  readonly #waits = new Set<Asking>();
  /** Null without --fallback and --mixed spool. */
  readonly #fallback: Fallback | null;
  /** Outlives the transaction: what the upstream does next shows whether it knows what became of the message. */
  readonly history: MessageHistory;
  /** From DATA until the header tells, where the ledger has something on record. */
  #held: HeldLegs | null = null;
  #upstreamGone = false;
  /** It sends no more. */
  #upstreamEnded = false;
  /** Who gets the dot, once it is due, or is left to the queue. */
  #due = NOBODY;
  #state: State = { name: 'envelope' };
  /** Set when the message can no longer be delivered; the rest of it is read and dropped. */
  #refusal: Verdict | null = null;
  /** Body bytes of the last chunk, kept for the write that carries the dot. */
  #last = NOTHING;
  /** Seconds, told to the metrics once, at the end. */
  readonly #standstill = { upstream: 0, downstream: 0 };

  constructor(sender: Sender, client: Client, deps: TransactionDeps) {
    this.id = deps.newId();
    this.sender = sender;
    this.client = client;
    this.#deps = deps;
    this.#record = new TransactionRecord(this.id, sender, client, deps);
    this.#recipients = new Recipients(this.#record, deps.metrics);
    this.#legs = new Legs(this, this.#record.line, deps);
    this.#fallback = deps.spooler && new Fallback(deps.spooler, deps.config);
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
    const state = this.#state;
    const [octetsIn, octetsOut] = state.name === 'body' ? [state.body.octets, state.fanOut.bytesOut] : [0, 0];
    const legs = this.#legs.describe();
    return { id: this.id, state: state.name, record: this.#record, octetsIn, octetsOut, legs };
  }

  get timeLine(): TimeLine | null {
    return this.#record.line;
  }

  /** The upstream hears of each recipient by itself. */
  get tellsEach(): boolean {
    return this.sender.params.prdr === true;
  }

  /** Nobody hears the reply. */
  get isUpstreamGone(): boolean {
    return this.#upstreamGone;
  }

  /** Accepted ones, and those still being asked about. */
  get recipientCount(): number {
    return this.#recipients.accepted + this.#waits.size;
  }

  get unsentBytes(): number {
    return this.#legs.unsentBytes;
  }

  /** Claim 21: the recipient's next hop is found, connected to and asked, all within --rcpt-deadline. Never rejects. */
  async addRecipient(recipient: Recipient): Promise<Reply> {
    const record = this.#recipients.add(recipient);
    const asking = new Asking();
    this.#waits.add(asking);
    this.#deps.rcptDeadline.limit(asking);
    try {
      let answer = await this.#legs.ask(recipient, record, asking);
      if (this.#fallback?.isForAll && this.state !== 'ended' && asking.isOutOfReach(answer))
        answer = this.#fallback.miss(recipient, record.nextHop, answer);
      if (this.#recipients.told(record, answer)) this.history.asks(recipient);
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
    if (this.#recipients.accepted === 0) return noValidRecipients();
    this.#record.line?.upstream('data', this.#deps.now());
    if (this.#deps.overloaded()) return this.#refuseData(overloadedData());
    this.#state = { name: 'starting' };
    const legs = this.#legs.forData();
    this.#held = HeldLegs.outOf(legs, this.history);
    const fallback = this.#fallback;
    if (fallback !== null && !(await fallback.findRoom())) return this.#refuseData(noDiskSpace());
    const answers =
      legs.length === 1
        ? [await legs[0]!.startData()]
        : await Promise.all(legs.map((leg) => leg.startData()));
    if (this.state === 'ended') return transactionAborted();
    const failures = answers.filter((answer) => answer !== null);
    if (failures.length > 0 && !fallback?.replacesLegs) return this.#refuseData(refusalOfData(failures));
    const onward = this.#withoutReplaced(legs, answers);
    const nobody = onward.length === 0 && this.#held === null;
    if (nobody && fallback?.hasOnlyRefused) return this.#refuseData(refusalOfData(failures));
    this.#startBody(onward);
    return null;
  }

  /** After DATA: legs that take the body, or whose recipients all have it. @param answers null: all is well */
  #withoutReplaced(legs: readonly Leg[], answers: readonly (Outcome | null)[]): readonly Leg[] {
    return legs.filter((leg, at) => {
      const answer = answers[at] ?? null;
      if (answer !== null) this.#fallback?.replace(leg, answer);
      return answer === null && leg.recipients.length > 0;
    });
  }

  #startBody(legs: readonly Leg[]): void {
    const { config, now, ledger, received } = this.#deps;
    const fallback = this.#fallback;
    const { accepted } = this.#recipients;
    const fanOut = new FanOut(legs, {
      dataTimeoutMs: config.dataTimeoutMs,
      ackTimeoutMs: config.ackTimeoutMs,
      independent: fallback?.replacesLegs ?? false,
      // Where each recipient is told its own outcome, none has to be withheld from the others.
      order: config.dots === 'ordered' && !fallback?.isForAll && !this.tellsEach ? leastTrustedFirst : null,
      // Kept on disk, an outcome is as good as known.
      onAnswer: ledger.isKept ? (leg, outcomes) => this.history.settled(zip(leg, outcomes)) : null,
      now,
      standstill: this.#standstill,
    });
    const all = this.#held === null ? legs : [...legs, ...this.#held.legs];
    const first = all[0]?.recipients[0] ?? fallback?.missed[0]?.recipient ?? null;
    const trace = received(this, accepted === 1 ? first : null);
    const maxMessageBytes = this.#sizeLimit(all, trace.length);
    const body = new MessageBody(trace, { maxMessageBytes, maxReceived: config.maxReceived });
    fallback?.open(this.id, accepted);
    const began = now();
    this.#record.line?.upstream('data-reply', began, 354);
    this.#state = { name: 'body', fanOut, body, began };
  }

  /** Ours, or what the next hop with the least room takes of a message that gets a Received line (RFC 1870 §4). */
  #sizeLimit(legs: readonly Leg[], receivedOctets: number): number {
    const theirs = legs.map((leg) => (leg.session?.capabilities.size ?? Infinity) - receivedOctets);
    return Math.min(this.#deps.config.maxMessageBytes, ...theirs);
  }

  /**
   * Takes the next bytes of the DATA phase.
   * `end`: index behind the final line, -1 while it was not seen. `ready`: wait for it before the next push. `kept`: the
   * chunk is still needed after that.
   */
  push(chunk: Buffer): { end: number; ready: Promise<void> | null; kept: boolean } {
    if (this.#state.name !== 'body') throw new Error(`body bytes while ${this.#state.name}`);
    const { fanOut, body } = this.#state;
    const { pieces, end, refusal } = body.push(chunk);
    if (refusal !== null && this.#refusal === null) this.#giveUp({ reply: refusal, result: 'rejected' });
    this.#record.body(end === -1 ? null : body.octets);
    this.#deps.metrics.messageBytes.add(end === -1 ? chunk.length : end, 'in');
    if (this.#held !== null) {
      this.#held.hold(pieces);
      if (end === -1)
        return { end, ready: body.headerDone ? this.#passHeldOn(this.#held) : null, kept: true };
      this.#last = this.#held.pieces;
      return { end, ready: null, kept: true };
    }
    if (end === -1) {
      const ready = this.#refusal === null ? this.#write(fanOut, pieces) : null;
      return { end, ready, kept: this.#fallback !== null || !fanOut.isFlushed };
    }
    this.#last = pieces;
    return { end, ready: null, kept: true };
  }

  async #passHeldOn(held: HeldLegs): Promise<void> {
    await this.#letGo(held);
    if (this.#refusal === null && this.#state.name === 'body')
      await this.#write(this.#state.fanOut, held.pieces);
  }

  /** The held back legs join the others, as far as anybody there has to get the message. */
  async #letGo(held: HeldLegs): Promise<void> {
    if (this.#state.name !== 'body') return;
    const { fanOut, body } = this.#state;
    if (!this.history.judge(body)) this.#giveUp({ reply: stillDelivering(), result: 'deferred' });
    if (this.#refusal === null) {
      const { known } = this.history;
      this.#fallback?.leaveOut(known);
      const answers = await held.startData(known);
      // The upstream may have gone meanwhile.
      if (this.state !== 'body') return;
      const failures = answers.filter((answer) => answer !== null);
      if (failures.length > 0 && !this.#fallback?.replacesLegs) {
        const reply = refusalOfData(failures);
        const refusal = { reply, result: resultOf(reply) };
        this.#giveUp(besideKnown(refusal, this.history.known, this.#recipients.accepted));
      } else fanOut.join(this.#withoutReplaced(held.legs, answers));
    }
    this.#held = null;
  }

  #write(fanOut: FanOut, pieces: readonly Buffer[]): Promise<void> | null {
    const ready = fanOut.write(pieces);
    const teed = this.#fallback?.write(pieces) ?? null;
    if (ready === null || teed === null) return ready ?? teed;
    return Promise.all([ready, teed]).then(() => {});
  }

  /** After push() has seen the end: the dots, the acknowledgements, the verdict (claims 22 and 23). */
  async finish(): Promise<Answer> {
    if (this.#state.name !== 'body') throw new Error(`end of data while ${this.#state.name}`);
    const { fanOut, body, began } = this.#state;
    const { metrics, now } = this.#deps;
    const taken = this.tellsEach ? this.#recipients.taken : null;
    metrics.messageSize.observe(body.octets);
    if (this.#held !== null) {
      // Meanwhile the upstream may go and come again.
      this.#due = taken ?? this.#recipients.taken;
      await this.#letGo(this.#held);
    }
    if (this.#refusal === null && !this.history.isSame())
      this.#giveUp({ reply: notTheSame(), result: 'deferred' });
    if (this.#refusal === null) {
      const asked = fanOut.legs.flatMap((leg) => leg.recipients);
      const missed = this.#fallback?.missed ?? [];
      this.#due = missed.length === 0 ? asked : [...asked, ...missed.map(({ recipient }) => recipient)];
      if (this.history.isOvertaken(this.#due, body))
        this.#giveUp({ reply: stillDelivering(), result: 'deferred' });
      else {
        if (fanOut.legs.length > 1) await this.history.intend(asked, body);
        if (this.#upstreamEnded) this.mayBeGone();
      }
    }
    const teed = this.#refusal === null ? (this.#fallback?.write(this.#last) ?? null) : null;
    const outcomes = this.#refusal === null ? await fanOut.finish(this.#last) : null;
    if (teed !== null) await teed;
    this.#last = NOTHING;
    const settlement = new Settlement(this, this.#recipients, this.#fallback);
    const decision =
      outcomes === null
        ? settlement.beforeDots(this.#refusal, fanOut.failure, this.#legs.inUse)
        : await settlement.afterDots(fanOut.legs, outcomes, body);
    const at = now();
    const extra = { bytes: body.octets, bodyMs: Math.round(at - began) };
    metrics.messageBytes.add(fanOut.bytesOut, 'out');
    this.#end(decision.result, decision.reply, extra, at);
    return taken === null ? { reply: decision.reply, each: null } : inOrder(decision, taken);
  }

  #refuseData(refusal: Reply): Reply {
    this.#recipients.answerAll(refusal);
    this.#end(resultOf(refusal), refusal, {});
    return refusal;
  }

  #giveUp(refusal: Verdict): void {
    this.#refusal = refusal;
    if (this.#state.name === 'body') this.#state.fanOut.drop();
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
    this.#legs.drop();
  }

  /** The one gate to the end: legs released, counted, logged. */
  #end(result: TransactionResult, answer: Reply | null, extra: Record<string, number>, at?: number): void {
    if (this.#state.name === 'ended') return;
    this.#state = { name: 'ended' };
    this.#legs.release();
    this.#fallback?.discard();
    for (const side of ['upstream', 'downstream'] as const) {
      if (this.#standstill[side] > 0) this.#deps.metrics.backpressure.add(this.#standstill[side], side);
    }
    this.#record.end(result, answer, extra, at);
    this.#deps.onEnd(this);
  }
}

function zip({ recipients }: Leg, outcomes: readonly Outcome[]) {
  return recipients.map((recipient, at) => ({ recipient, outcome: outcomes[at] ?? null }));
}

function resultOf(refusal: Reply): TransactionResult {
  return replyClass(refusal) === 5 ? 'rejected' : 'deferred';
}
