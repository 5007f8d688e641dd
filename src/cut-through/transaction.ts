// One mail transaction (RFC 5321 §3.3), cut through (claims 21-24):
//   1. each RCPT is routed, its next hop connected to (bounded retries) and asked; the answer is the next hop's own;
//   2. DATA is answered 354 only when every leg has answered 354;
//   3. body bytes run to all legs in step; whatever goes wrong here drops all of them without a dot;
//   4. the upstream's real end of data lets the dots out; the verdict on the replies is the one reply it gets.
// Owns its legs. Every end goes through #end(), which releases them, counts, and writes the one log line.
import type { Logger } from 'pino';
import type { Config } from '../config.ts';
import { Leg, type LegDeps } from '../downstream/leg.ts';
import type { Outcome } from '../downstream/outcome.ts';
import type { Metrics, TransactionResult } from '../metrics.ts';
import type { NextHop, RouteResult, Router } from '../routing/routes.ts';
import type { Recipient, Sender } from '../smtp/envelope.ts';
import {
  dnsTemporary,
  legLost,
  noSuchDomain,
  noValidRecipients,
  nullMx,
  overloadedData,
  type Reply,
  relayingDenied,
  replyClass,
  routingLoop,
  transactionAborted,
  unroutable,
} from '../smtp/reply.ts';
import { FanOut } from './fan-out.ts';
import { MessageBody } from './message-body.ts';
import { refusalOfData, type Verdict, verdict, verdictBeforeDots } from './verdict.ts';

export type TransactionDeps = Readonly<{
  config: Config;
  router: Router;
  leg: LegDeps;
  metrics: Metrics;
  log: Logger;
  /** Milliseconds, monotonic. */
  now: () => number;
  newId: () => string;
  /** The client's address, for the log. */
  client: string;
  /** Our Received line for this message; `only` is the one recipient, if there is just one. */
  received: (id: string, only: Recipient | null) => Buffer;
  /** Whether the process holds too many message bytes to take on another message. */
  overloaded: () => boolean;
  onEnd: (transaction: Transaction) => void;
}>;

type State =
  | Readonly<{ name: 'envelope' }>
  | Readonly<{ name: 'starting' }>
  | Readonly<{ name: 'body'; fanOut: FanOut; body: MessageBody; began: number }>
  | Readonly<{ name: 'ended' }>;

type RecipientRecord = { address: string; nextHop: string; outcome: string; reply: number | null };

export class Transaction {
  readonly id: string;
  readonly sender: Sender;
  readonly #deps: TransactionDeps;
  readonly #began: number;
  readonly #legs = new Map<string, Leg>();
  readonly #records = new Map<Recipient, RecipientRecord>();
  /** One for each RCPT not answered yet. */
  readonly #waits = new Set<Wait>();
  /** Recipients that their next hops have accepted. */
  #accepted = 0;
  #state: State = { name: 'envelope' };
  /** Set when the message can no longer be delivered; the rest of it is read and dropped. */
  #refusal: Verdict | null = null;
  /** Body bytes of the last chunk, kept for the write that carries the dot. */
  #last: readonly Buffer[] = [];
  /** Seconds, told to the metrics once, at the end. */
  readonly #standstill = { upstream: 0, downstream: 0 };

  constructor(sender: Sender, deps: TransactionDeps) {
    this.id = deps.newId();
    this.sender = sender;
    this.#deps = deps;
    this.#began = deps.now();
  }

  get state(): State['name'] {
    return this.#state.name;
  }

  /** For /status: no addresses. */
  describe() {
    const legs = [...this.#legs.values()].map(({ nextHop, phase, recipients }) => ({
      nextHop: nextHop.label,
      phase,
      recipients: recipients.length,
    }));
    return { id: this.id, state: this.state, ms: Math.round(this.#deps.now() - this.#began), legs };
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
    const record: RecipientRecord = {
      address: recipient.mailbox.address,
      nextHop: '',
      outcome: '',
      reply: null,
    };
    this.#records.set(recipient, record);
    const wait = new Wait();
    this.#waits.add(wait);
    const timer = setTimeout(() => wait.cut(), this.#deps.config.rcptDeadlineMs);
    try {
      const answer = await this.#askNextHop(recipient, record, wait);
      record.outcome = recipientResult(answer);
      record.reply = answer.code;
      if (record.outcome === 'accepted') this.#accepted++;
      return answer;
    } finally {
      clearTimeout(timer);
      this.#waits.delete(wait);
    }
  }

  /**
   * DATA at every leg that has recipients. Null: all answered 354 and the body may come. Else the refusal, with
   * every leg dropped and the transaction ended.
   */
  async startData(): Promise<Reply | null> {
    if (this.#accepted === 0) return noValidRecipients();
    if (this.#deps.overloaded()) return this.#refuseData(overloadedData());
    this.#state = { name: 'starting' };
    const legs: Leg[] = [];
    for (const leg of this.#legs.values()) {
      if (leg.recipients.length > 0) legs.push(leg);
      else void leg.release();
    }
    const answers =
      legs.length === 1
        ? [await legs[0]!.startData()]
        : await Promise.all(legs.map((leg) => leg.startData()));
    if (this.state === 'ended') return transactionAborted();
    const failures = answers.filter((answer) => answer !== null);
    if (failures.length > 0) return this.#refuseData(refusalOfData(failures));
    const { config, now } = this.#deps;
    const fanOut = new FanOut(legs, {
      dataTimeoutMs: config.dataTimeoutMs,
      ackTimeoutMs: config.ackTimeoutMs,
      now,
      onStandstill: (side, seconds) => {
        this.#standstill[side] += seconds;
      },
    });
    const only = this.#accepted === 1 ? (legs[0]?.recipients[0] ?? null) : null;
    const received = this.#deps.received(this.id, only);
    const maxMessageBytes = this.#sizeLimit(legs, received.length);
    const body = new MessageBody(received, { maxMessageBytes, maxReceived: config.maxReceived });
    this.#state = { name: 'body', fanOut, body, began: now() };
    return null;
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
    this.#deps.metrics.messageBytes.add(end === -1 ? chunk.length : end, 'in');
    if (end === -1) return { end, ready: this.#refusal === null ? fanOut.write(pieces) : null };
    this.#last = pieces;
    return { end, ready: null };
  }

  /** After push() has seen the end: the dots, the acknowledgements, the verdict (claims 22 and 23). */
  async finish(): Promise<Reply> {
    if (this.#state.name !== 'body') throw new Error(`end of data while ${this.#state.name}`);
    const { fanOut, body, began } = this.#state;
    const { metrics } = this.#deps;
    metrics.messageSize.observe(body.octets);
    const outcomes = this.#refusal === null ? await fanOut.finish(this.#last) : null;
    this.#last = [];
    const decision = outcomes === null ? this.#verdictBeforeDots(fanOut) : this.#verdictOf(fanOut, outcomes);
    const extra = { bytes: body.octets, bodyMs: Math.round(this.#deps.now() - began) };
    metrics.messageBytes.add(fanOut.bytesOut, 'out');
    this.#end(decision.result, decision.reply, extra);
    return decision.reply;
  }

  /**
   * The upstream has gone, or has reset the transaction. Every leg is released without a dot; where the dots are
   * out, the outcomes are awaited by finish(), which is still running.
   */
  abort(): void {
    if (this.#state.name === 'ended') return;
    for (const wait of this.#waits) wait.cut();
    if (this.#state.name === 'body') {
      if (this.#state.fanOut.dotsSent) return;
      this.#giveUp({ reply: transactionAborted(), result: 'aborted' });
    }
    this.#end(this.#resultWithoutData(), null, {});
  }

  /** Waits for nobody any more: every leg is dropped, and what is not known by now stays unknown. */
  cutOff(): void {
    for (const leg of this.#legs.values()) leg.drop();
  }

  #askNextHop(recipient: Recipient, record: RecipientRecord, wait: Wait): Reply | Promise<Reply> {
    // Admission gives every recipient a domain; see upstream/admission.ts.
    const domain = recipient.mailbox.domain ?? this.#deps.config.hostname;
    const routed = this.#deps.router.route(domain);
    const ask = (found: RouteResult | null): Reply | Promise<Reply> => {
      if (this.#state.name === 'ended') return transactionAborted();
      if (found === null) return dnsTemporary();
      if (found.kind !== 'next-hop') return replyToRoute(found);
      record.nextHop = found.nextHop.label;
      const leg = this.#legFor(found.nextHop);
      wait.onCut = () => leg.drop();
      return leg.addRecipient(recipient);
    };
    return routed instanceof Promise ? wait.for(routed).then(ask) : ask(routed);
  }

  #legFor(nextHop: NextHop): Leg {
    let leg = this.#legs.get(nextHop.key);
    if (leg === undefined) {
      leg = new Leg(nextHop, this.sender, this.#deps.leg);
      this.#legs.set(nextHop.key, leg);
    }
    return leg;
  }

  /** Ours, or what the next hop with the least room takes of a message that gets a Received line (RFC 1870 §4). */
  #sizeLimit(legs: readonly Leg[], receivedOctets: number): number {
    const theirs = legs.map((leg) => (leg.session?.capabilities.size ?? Infinity) - receivedOctets);
    return Math.min(this.#deps.config.maxMessageBytes, ...theirs);
  }

  #refuseData(refusal: Reply): Reply {
    for (const leg of this.#legs.values()) for (const each of leg.recipients) this.#record(each, refusal);
    this.#end(resultOf(refusal), refusal, {});
    return refusal;
  }

  #giveUp(refusal: Verdict): void {
    this.#refusal = refusal;
    if (this.#state.name === 'body') this.#state.fanOut.drop();
  }

  #verdictBeforeDots(fanOut: FanOut): Verdict {
    const { failure } = fanOut;
    let decision = this.#refusal;
    if (decision === null && failure !== null) {
      const legs = [...this.#legs.values()].filter((leg) => leg.recipients.length > 0).length;
      decision = verdictBeforeDots(failure.outcome, failure.leg.nextHop.label, legs);
    }
    decision ??= { reply: legLost('a next hop', 'body'), result: 'deferred' };
    for (const leg of this.#legs.values())
      for (const each of leg.recipients) this.#record(each, decision.reply);
    return decision;
  }

  #verdictOf({ legs }: FanOut, outcomes: readonly (readonly Outcome[])[]): Verdict {
    const all: Outcome[] = [];
    for (const [at, { recipients }] of legs.entries()) {
      for (const [index, recipient] of recipients.entries()) {
        const outcome = outcomes[at]![index]!;
        const record = this.#records.get(recipient)!;
        record.outcome = outcome.kind === 'lost' ? 'deferred' : outcome.kind;
        record.reply = outcome.kind === 'lost' ? null : outcome.reply.code;
        all.push(outcome);
      }
    }
    return verdict(all, legs.length);
  }

  #record(recipient: Recipient, answer: Reply): void {
    const record = this.#records.get(recipient)!;
    record.outcome = recipientResult(answer);
    record.reply = answer.code;
  }

  /** Without a message: rejected or deferred when that is what every RCPT was told, else aborted. */
  #resultWithoutData(): TransactionResult {
    if (this.#refusal !== null) return this.#refusal.result;
    const outcomes = [...this.#records.values()].map((record) => record.outcome);
    if (outcomes.length > 0 && outcomes.every((outcome) => outcome === 'rejected')) return 'rejected';
    const refused = outcomes.every((outcome) => outcome === 'rejected' || outcome === 'deferred');
    return outcomes.length > 0 && refused ? 'deferred' : 'aborted';
  }

  /** The one gate to the end: legs released, counted, logged. */
  #end(result: TransactionResult, answer: Reply | null, extra: Record<string, number>): void {
    if (this.#state.name === 'ended') return;
    this.#state = { name: 'ended' };
    for (const leg of this.#legs.values()) void leg.release();
    const { config, metrics, log, now } = this.#deps;
    for (const side of ['upstream', 'downstream'] as const) {
      if (this.#standstill[side] > 0) metrics.backpressure.add(this.#standstill[side], side);
    }
    const milliseconds = now() - this.#began;
    metrics.transactions.inc(config.mode, result);
    metrics.transactionDuration.observe(milliseconds / 1000, config.mode);
    for (const { outcome } of this.#records.values()) {
      if (outcome !== '' && (outcome !== 'accepted' || result !== 'aborted')) metrics.recipients.inc(outcome);
    }
    this.#deps.onEnd(this);
    if (!log.isLevelEnabled('info')) return;
    log.info({
      event: 'transaction',
      id: this.id,
      client: this.#deps.client,
      reversePath: this.sender.mailbox?.address ?? '',
      recipients: [...this.#records.values()],
      result,
      reply: answer?.code ?? null,
      ...extra,
      ms: Math.round(milliseconds),
    });
  }
}

/** An RCPT's wait, which its deadline or the transaction's end may cut short. */
class Wait {
  onCut: () => void = () => {};
  #isCut = false;

  /** Null when the wait was cut first. */
  async for<T>(work: Promise<T>): Promise<T | null> {
    const cut = new Promise<null>((resolve) => {
      this.onCut = () => resolve(null);
    });
    const done = await Promise.race([work, cut]);
    return this.#isCut ? null : done;
  }

  cut(): void {
    this.#isCut = true;
    this.onCut();
  }
}

function replyToRoute(found: Exclude<RouteResult, { kind: 'next-hop' }>): Reply {
  switch (found.kind) {
    case 'null-mx':
      return nullMx();
    case 'no-domain':
      return noSuchDomain();
    case 'temporary':
      return dnsTemporary();
    case 'forbidden':
    case 'unroutable':
      return unroutable();
    case 'loop':
      return routingLoop();
    case 'no-route':
      return relayingDenied();
    default:
      return found satisfies never;
  }
}

function recipientResult(answer: Reply): 'accepted' | 'rejected' | 'deferred' {
  const digit = replyClass(answer);
  if (digit === 2) return 'accepted';
  return digit === 5 ? 'rejected' : 'deferred';
}

function resultOf(refusal: Reply): TransactionResult {
  return replyClass(refusal) === 5 ? 'rejected' : 'deferred';
}
