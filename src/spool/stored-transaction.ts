// One mail transaction whose message is taken in whole before it goes on (claims 1-7 and 25-27):
//   1. each RCPT is routed, and accepted where mail could be delivered at some time;
//   2. the body goes into the buffer, in memory or on disk as the policy has it;
//   3. every next hop gets it from there, while the upstream waits, for --ack-deadline at most;
//   4. all have it: forgotten, 250. All refuse it: that refusal. Else it is made durable, 250, and the queue's.
// While the fast path is disabled (claim 10), step 3 is the queue's, after the 250.
// Owns its buffer and its deliveries until finish() has given its reply.
import type { Logger } from 'pino';
import type { Config } from '../config.ts';
import type { Ledger } from '../ledger/ledger.ts';
import { MessageHistory } from '../ledger/message-history.ts';
import type { Metrics, TransactionResult } from '../metrics.ts';
import { type NextHop, type Router, refusalOfRoute } from '../routing/routes.ts';
import type { Client, Recipient, Sender } from '../smtp/envelope.ts';
import { MessageBody } from '../smtp/message-body.ts';
import type { Incoming } from '../smtp/received.ts';
import {
  dnsTemporary,
  noDiskSpace,
  noValidRecipients,
  type Reply,
  recipientOk,
  replyClass,
  stillDelivering,
  transactionAborted,
} from '../smtp/reply.ts';
import type { RecentTimeLines, TimeLine } from '../time-line.ts';
import { type RecipientRecord, TransactionRecord } from '../transaction-record.ts';
import { Wait, type WaitLimit } from '../wait.ts';
import type { MessageBuffer } from './buffer.ts';
import { type DeliveryDeps, deliver } from './delivery.ts';
import { type Answer, inOrder, type SettledEach, settleEach } from './recipient-replies.ts';
import type { Result, Settled, Spooler } from './spooler.ts';

/** What every transaction is given; the same for all of a session. */
export type IntakeDeps = Readonly<{
  config: Config;
  router: Router;
  metrics: Metrics;
  log: Logger;
  /** Milliseconds, monotonic. */
  now: () => number;
  timeLines: RecentTimeLines;
  /** --rcpt-deadline. */
  rcptDeadline: WaitLimit;
  ledger: Ledger;
  newId: () => string;
  /** Our Received line for this message; `only` is the one recipient, if there is just one. */
  received: (message: Incoming, only: Recipient | null) => Buffer;
}>;

/** A live transaction. */
export type Described = Readonly<{
  id: string;
  state: string;
  record: TransactionRecord;
  /** Of the message; `octetsOut` those that the counters don't have yet. */
  octetsIn: number;
  octetsOut: number;
  /** `nextHop`: null where it could not be found out now. */
  legs: readonly Readonly<{ nextHop: NextHop | null; phase: string; recipients: number }>[];
}>;

export type StoredTransactionDeps = IntakeDeps &
  Readonly<{
    delivery: DeliveryDeps;
    spooler: Spooler;
    /** Claim 10: to disk first. */
    fastPathEnabled: () => boolean;
    onEnd: (transaction: StoredTransaction) => void;
  }>;

type State =
  | Readonly<{ name: 'envelope' | 'starting' | 'ended' }>
  | Readonly<{ name: 'body' | 'delivering'; buffer: MessageBuffer; body: MessageBody }>;

type Target = { readonly recipient: Recipient; readonly nextHop: NextHop | null; record: RecipientRecord };

export class StoredTransaction {
  readonly id: string;
  readonly sender: Sender;
  readonly client: Client;
  readonly #deps: StoredTransactionDeps;
  readonly #record: TransactionRecord;
  /** The recipients accepted; no next hop where it could not be found out now. */
  readonly #targets: Target[] = [];
  readonly #waits = new Set<Wait>();
  readonly history: MessageHistory;
  #state: State = { name: 'envelope' };
  #refusal: Reply | null = null;
  #last: readonly Buffer[] = [];
  /** Nobody waits for the reply any more. */
  #upstreamGone = false;
  /** For all deliveries to end, while the upstream waits. */
  readonly #acknowledgement = new Wait();
  readonly #soft = new AbortController();
  readonly #hard = new AbortController();

  constructor(sender: Sender, client: Client, deps: StoredTransactionDeps) {
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

  /** The message is complete, and the verdict is due. */
  get isFinishing(): boolean {
    return this.#state.name === 'delivering';
  }

  /** As Transaction.describe(). */
  describe(): Described {
    const byHop = new Map<string, { nextHop: NextHop | null; phase: string; recipients: number }>();
    for (const { nextHop } of this.#targets) {
      const leg = byHop.get(nextHop?.key ?? '') ?? { nextHop, phase: this.state, recipients: 0 };
      leg.recipients++;
      byHop.set(nextHop?.key ?? '', leg);
    }
    const octetsIn = 'body' in this.#state ? this.#state.body.octets : 0;
    return {
      id: this.id,
      state: this.state,
      record: this.#record,
      octetsIn,
      octetsOut: 0,
      legs: [...byHop.values()],
    };
  }

  get timeLine(): TimeLine | null {
    return this.#record.line;
  }

  get recipientCount(): number {
    return this.#targets.length + this.#waits.size;
  }

  /** What the buffer holds is counted by its budget. */
  get unsentBytes(): number {
    return 0;
  }

  /** Refused where mail can never be delivered; a next hop that can't be found now is the queue's to find. Never rejects. */
  async addRecipient(recipient: Recipient): Promise<Reply> {
    const { router, config } = this.#deps;
    const record = this.#record.add(recipient.mailbox.address);
    const routed = router.route(recipient.mailbox.domain ?? config.hostname);
    const found = routed instanceof Promise ? await this.#within(routed) : routed;
    if (this.state === 'ended') return transactionAborted();
    if (found !== null && found.kind !== 'next-hop' && found.kind !== 'temporary') {
      const refusal = refusalOfRoute(found);
      this.#record.told(record, refusal);
      return refusal;
    }
    const nextHop = found?.kind === 'next-hop' ? found.nextHop : null;
    record.nextHop = nextHop?.label ?? '';
    this.#record.told(record, recipientOk());
    this.#targets.push({ recipient, nextHop, record });
    return recipientOk();
  }

  /** An RCPT was answered without being looked at. */
  noteRefusal(answer: Reply): void {
    this.#record.refused(answer);
  }

  async startData(): Promise<Reply | null> {
    const { config, spooler, received } = this.#deps;
    if (this.#targets.length === 0) return noValidRecipients();
    this.#record.line?.upstream('data', this.#deps.now());
    this.#state = { name: 'starting' };
    const room = await spooler.hasRoom();
    if (this.state === 'ended') return transactionAborted();
    if (!room) {
      this.#end('deferred', noDiskSpace(), {});
      return noDiskSpace();
    }
    const only = this.#targets.length === 1 ? this.#targets[0]!.recipient : null;
    const body = new MessageBody(received(this, only), config);
    this.#state = { name: 'body', buffer: spooler.newBuffer(this.id), body };
    this.#record.line?.upstream('data-reply', this.#deps.now(), 354);
    return null;
  }

  /** As Transaction.push(). */
  push(chunk: Buffer): { end: number; ready: Promise<void> | null; kept: boolean } {
    if (this.#state.name !== 'body') throw new Error(`body bytes while ${this.#state.name}`);
    const { buffer, body } = this.#state;
    const { pieces, end, refusal } = body.push(chunk);
    this.#refusal ??= refusal;
    this.#record.body(end === -1 ? null : body.octets);
    this.#deps.metrics.messageBytes.add(end === -1 ? chunk.length : end, 'in');
    if (end !== -1) this.#last = pieces;
    if (end !== -1 || this.#refusal !== null) return { end, ready: null, kept: true };
    // A buffer that has failed says so again at the end.
    return { end, ready: buffer.write(pieces)?.catch(() => {}) ?? null, kept: true };
  }

  /** As Transaction's. */
  async finish(): Promise<Answer> {
    if (this.#state.name !== 'body') throw new Error(`end of data while ${this.#state.name}`);
    const { buffer, body } = this.#state;
    const { metrics, spooler } = this.#deps;
    this.#state = { name: 'delivering', buffer, body };
    metrics.messageSize.observe(body.octets);
    this.#refusal ??= this.#repetition(body);
    let settled: Settled | SettledEach;
    if (this.#refusal !== null) {
      await spooler.discard(buffer);
      settled = {
        reply: this.#refusal,
        result: replyClass(this.#refusal) === 5 ? 'rejected' : 'deferred',
      };
      for (const { record } of this.#targets) record.answered(this.#refusal);
    } else {
      await buffer.write(this.#last)?.catch(() => {});
      this.#last = [];
      settled = await this.#deliverOrKeep(buffer, body);
    }
    this.#end(settled.result, settled.reply, { bytes: body.octets });
    if (!this.#tellsEach) return { reply: settled.reply, each: null };
    const taken = this.#targets.map(({ recipient }) => recipient);
    return inOrder(settled, taken);
  }

  get #tellsEach(): boolean {
    return this.sender.params.prdr === true;
  }

  /** Whoever is told of a refusal needs no notification: the message is settled for the others. */
  async #settle(
    results: readonly Result[],
    buffer: MessageBuffer,
    settle: (results: readonly Result[]) => Promise<Settled>,
  ): Promise<Settled | SettledEach> {
    if (!this.#tellsEach) return await settle(results);
    if (results.every(({ outcome }) => outcome?.kind === 'rejected'))
      await this.#deps.spooler.discard(buffer);
    return await settleEach(results, settle);
  }

  async #deliverOrKeep(buffer: MessageBuffer, body: MessageBody): Promise<Settled> {
    const { spooler, fastPathEnabled } = this.#deps;
    const results = this.#untried();
    const nobody = results.every(({ outcome }) => outcome !== null);
    if (!nobody && fastPathEnabled()) return await this.#deliverFirst(buffer, body);
    const settled = await this.#settle(results, buffer, (those) =>
      nobody ? spooler.settle(this, those, buffer) : spooler.keep(this, those, buffer),
    );
    this.#noteKnown();
    await this.history.told(settled, results, body, this.#upstreamGone);
    return settled;
  }

  /** What is on record of the whole message: those who have it are left out from here on. */
  #repetition(body: MessageBody): Reply | null {
    // Only now: the end of an earlier try may have been read since the RCPTs.
    for (const { recipient } of this.#targets) this.history.asks(recipient);
    if (!this.history.hasSuspects) return null;
    if (!this.history.judge(body)) return stillDelivering();
    // Nobody has been kept from anything yet: a different message just goes its way.
    return this.history.isSame() || this.history.judge(body) ? null : stillDelivering();
  }

  /** The upstream has gone, or has reset the transaction. What it got no reply for it will send again. */
  abort(): void {
    for (const wait of this.#waits) wait.cut();
    this.#upstreamGone = true;
    this.#soft.abort();
    this.#acknowledgement.cut();
    this.mayBeGone();
    if (this.#state.name === 'delivering' || this.#state.name === 'ended') return;
    if (this.#state.name === 'body') void this.#deps.spooler.discard(this.#state.buffer);
    this.#end(this.#record.resultWithoutMessage, null, {});
  }

  /** Once finish() is under way: the upstream has ended its side, may wait for the reply, or send the message again now. */
  mayBeGone(): void {
    if (this.#state.name !== 'delivering' || this.#refusal !== null) return;
    const recipients = this.#targets.map(({ recipient }) => recipient);
    this.history.pend(recipients, this.#state.body);
  }

  /** Waits for no next hop any more: what isn't delivered by now is made durable. */
  cutOff(): void {
    this.#hard.abort();
    this.#acknowledgement.cut();
  }

  /** What is known before anything is tried: of most nothing. */
  #untried(): readonly Result[] {
    const { known } = this.history;
    return this.#targets.map(({ recipient, nextHop }) => ({
      recipient,
      nextHop: nextHop?.label ?? '',
      outcome: known.get(recipient) ?? null,
    }));
  }

  async #deliverFirst(buffer: MessageBuffer, body: MessageBody): Promise<Settled> {
    const { spooler, config } = this.#deps;
    const results = new Map(this.#untried().map((each) => [each.recipient, each]));
    const all = this.#deliverAll(buffer, results).then(() => [...results.values()]);
    const timer = setTimeout(() => this.#acknowledgement.cut(), config.ackDeadlineMs);
    const ended = (await this.#acknowledgement.for(all)) !== null;
    clearTimeout(timer);
    if (this.#upstreamGone) {
      const ends = await all;
      await this.#tell({ reply: transactionAborted() }, ends, body);
      await spooler.discard(buffer);
      const delivered = ends.every(({ outcome }) => outcome?.kind === 'accepted');
      return { reply: transactionAborted(), result: delivered ? 'delivered' : 'aborted' };
    }
    const now = [...results.values()];
    const settled = await this.#settle(now, buffer, (those) =>
      ended ? spooler.settle(this, those, buffer) : spooler.keep(this, those, buffer, restOf(all, those)),
    );
    await this.#tell(settled, now, body);
    return settled;
  }

  /** Claim 5. Never rejects. */
  async #deliverAll(buffer: MessageBuffer, results: Map<Recipient, Result>): Promise<void> {
    const { delivery, spooler } = this.#deps;
    const groups = new Map<string, { nextHop: NextHop; recipients: Recipient[] }>();
    for (const { recipient, nextHop } of this.#targets) {
      if (results.get(recipient)!.outcome !== null) continue;
      if (nextHop === null) {
        const outcome = { kind: 'deferred', reply: dnsTemporary() } as const;
        results.set(recipient, { recipient, nextHop: '', outcome });
        continue;
      }
      const group = groups.get(nextHop.key) ?? { nextHop, recipients: [] };
      group.recipients.push(recipient);
      groups.set(nextHop.key, group);
    }
    const interrupt = { soft: this.#soft.signal, hard: this.#hard.signal };
    const letGo = spooler.queue.onInterrupt(
      () => this.#soft.abort(),
      () => this.#hard.abort(),
    );
    const { id, sender, client } = this;
    const deliveries = [...groups.values()].map(async ({ nextHop, recipients }) => {
      const { line } = this.#record;
      const message = { id, sender, client, recipients, body: () => buffer.read(), line };
      const { outcomes } = await deliver(nextHop, message, delivery, interrupt);
      for (const [recipient, outcome] of outcomes)
        results.set(recipient, { recipient, nextHop: nextHop.label, outcome });
    });
    await Promise.all(deliveries);
    letGo();
  }

  async #within<T>(routing: Promise<T>): Promise<T | null> {
    const wait = new Wait();
    this.#waits.add(wait);
    this.#deps.rcptDeadline.limit(wait);
    try {
      return await wait.for(routing);
    } finally {
      this.#deps.rcptDeadline.lift(wait);
      this.#waits.delete(wait);
    }
  }

  /** What is known when the upstream gets its reply, for the log and for the ledger. */
  async #tell(
    said: Readonly<{ reply: Reply; each?: ReadonlyMap<Recipient, Reply> }>,
    results: readonly Result[],
    body: MessageBody,
  ): Promise<void> {
    for (const [at, { outcome }] of results.entries()) this.#targets[at]!.record.ended(outcome);
    this.#noteKnown();
    await this.history.told(said, results, body, this.#upstreamGone);
  }

  #noteKnown(): void {
    const { known } = this.history;
    for (const { recipient, record } of this.#targets) {
      const outcome = known.get(recipient);
      if (outcome === undefined) continue;
      record.suppressed(outcome);
      this.#deps.metrics.duplicatesSuppressed.inc();
    }
  }

  #end(result: TransactionResult, answer: Reply | null, extra: Record<string, number>): void {
    if (this.#state.name === 'ended') return;
    this.#state = { name: 'ended' };
    this.#record.end(result, answer, extra);
    this.#deps.onEnd(this);
  }
}

/** What becomes of `those` in the end, in their order. */
async function restOf(all: Promise<readonly Result[]>, those: readonly Result[]): Promise<readonly Result[]> {
  const asked = new Set(those.map(({ recipient }) => recipient));
  return (await all).filter(({ recipient }) => asked.has(recipient));
}
