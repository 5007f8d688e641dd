// One downstream session of one transaction, from the first recipient that needs it to the reply to its final dot.
// A peer's refusal is a value; a leg whose session is lost says so once and answers every later call accordingly.
// Owns its session: drop() destroys it without a dot, release() ends it politely when no message is under way.
import type { ForwardClient } from '../config.ts';
import type { DurationPhase } from '../metrics.ts';
import type { NextHop } from '../routing/routes.ts';
import {
  type Capabilities,
  mailCommand,
  rcptCommand,
  refusalBeforeMail,
  refusalBeforeRcpt,
} from '../smtp/capabilities.ts';
import type { Recipient, Submission } from '../smtp/envelope.ts';
import {
  legLost,
  nextHopBusy,
  nextHopUnreachable,
  passOn,
  type Reply,
  recipientOk,
  replyClass,
  transactionAborted,
} from '../smtp/reply.ts';
import { brief, inFull, type LegEvent, type TimeLine } from '../time-line.ts';
import { type ConnectDeps, type ConnectWatch, type Opened, openSession } from './connect.ts';
import { type Introduction, introductionTo, xforwardCommands } from './forward-client.ts';
import type { FailureCause, FailurePhase, HopHealth, NextHopHealth } from './health.ts';
import { type Outcome, outcomeOf, withheldFrom } from './outcome.ts';
import type { Admitted, KeptSession, SessionPool } from './pool.ts';
import { isPrdr, judged } from './prdr.ts';
import type { DownstreamSession, Exchange } from './session.ts';

export type LegDeps = Readonly<{
  /** Speaks for nobody. */
  connect: ConnectDeps;
  forwardClient: ForwardClient;
  /** Milliseconds, monotonic. */
  now: () => number;
  onPhase: (phase: DurationPhase, seconds: number) => void;
  pool: SessionPool;
  health: NextHopHealth;
  /** What the next hop turned out to offer. */
  onOpened: (nextHop: NextHop, offered: Capabilities) => void;
  /** Of ours: it has kept a session from being opened. */
  onBug: (error: unknown) => void;
}>;

/** `busy`: there was no place for another session with the next hop; `bug`: one of ours was in the way. */
type Ready = Opened | Readonly<{ kind: 'busy' }> | Readonly<{ kind: 'bug' }>;
const BUSY = { kind: 'busy' } as const;
const BUG = { kind: 'bug' } as const;

export class Leg {
  readonly nextHop: NextHop;
  /** The recipients that the next hop has accepted, in the order of its replies. */
  readonly recipients: Recipient[] = [];
  /** Those for whom there is room in another transaction, by the next hop's own limits (RFC 9422). */
  readonly beyondLimits: Recipient[] = [];
  /** Where the leg is, for /status and the log. */
  phase: 'queue' | 'connect' | 'envelope' | 'data' | 'body' | 'dot' | 'withheld' | 'done' = 'connect';

  readonly #submission: Submission;
  readonly #deps: LegDeps;
  /** What the next hop is told of the client; null: nothing. */
  readonly #introduction: Introduction | null;
  readonly #health: HopHealth;
  /** Ends the waiting and the connecting; null while there is neither. */
  #connecting: AbortController | null = null;
  /** Ends the waiting, where it may not take long. */
  #patience: NodeJS.Timeout | null = null;
  #dropped = false;
  /** A host has replied, if only with a refusal. */
  #answered = false;
  /** Null where a kept session was at hand. */
  #opened: Promise<Ready> | null = null;
  /** What #opened has settled to. */
  #ready: Ready | null = null;
  /** Null again once it is let go of. */
  #kept: KeptSession | null = null;
  /** The session has carried messages before: that the peer has closed it meanwhile, or wants no more, is no failure. */
  #reused = false;
  #mail: Promise<Exchange> | null = null;
  /** The domains of the recipients asked about. */
  #asked: string[] = [];
  /** The answer to every recipient, once the next hop has refused the sender. */
  #senderRefused: Reply | null = null;
  /** Where the peer doesn't pipeline: settles when the last command was answered. */
  #turn: Promise<unknown> = Promise.resolve();
  /** When the next hop answered an RCPT last. */
  #answeredAt = -Infinity;
  #finalReplies: Promise<Exchange>[] = [];
  /** Every recipient hears of a lost session, but it is one failure. */
  #lossNoted = false;
  #phaseBegan: number;
  readonly #line: TimeLine | null;
  /** Which of the time line's legs. */
  readonly #nth: number;

  constructor(nextHop: NextHop, submission: Submission, deps: LegDeps, line: TimeLine | null = null) {
    this.nextHop = nextHop;
    this.#submission = submission;
    this.#deps = deps;
    this.#introduction = introductionTo(nextHop, deps.forwardClient, submission.client);
    this.#line = line;
    this.#nth = line?.addLeg(nextHop.label) ?? 0;
    this.#phaseBegan = deps.now();
    const admitted = this.#enterPool(false);
    if (typeof admitted === 'object' && 'session' in admitted) {
      this.#health = admitted.health;
      this.#takeKept(admitted);
    } else {
      this.#health = deps.health.of(nextHop);
      this.#opened = this.#open(admitted);
    }
  }

  get #identity(): string {
    return this.#introduction?.identity ?? '';
  }

  /** The next hop is there: a session was opened, or the client that it was told of is what it has refused. */
  get reached(): boolean {
    return this.#ready?.kind === 'open' || (this.#introduction !== null && this.#answered);
  }

  /** Null while connecting, when the next hop is unreachable, and once the leg is released. */
  get session(): DownstreamSession | null {
    return this.#kept?.session ?? null;
  }

  /** There was a session, and it was let go of in good order. */
  get isReleased(): boolean {
    return this.#ready?.kind === 'open' && this.#kept === null;
  }

  /** There is a session, and it can be used. */
  get isAlive(): boolean {
    return this.session !== null && this.session.lost === null;
  }

  /** Since the next hop has answered an RCPT; Infinity: it hasn't. */
  get sinceAnswerMs(): number {
    return this.#deps.now() - this.#answeredAt;
  }

  get unsentBytes(): number {
    return this.session?.unsentBytes ?? 0;
  }

  get health(): HopHealth {
    return this.#health;
  }

  /** MAIL (once) and RCPT at the next hop; the reply is what the upstream gets for its RCPT. Never rejects. */
  addRecipient(recipient: Recipient): Reply | Promise<Reply> {
    const opened = this.#ready;
    if (opened !== null) return this.#ask(opened, recipient);
    return this.#opened!.then((settled) => this.#ask(settled, recipient));
  }

  #ask(opened: Ready, recipient: Recipient): Reply | Promise<Reply> {
    if (opened.kind === 'busy') return nextHopBusy(this.nextHop.label);
    if (opened.kind === 'bug') return transactionAborted();
    // Claim 24.
    if (opened.kind === 'unreachable') {
      return nextHopUnreachable(this.nextHop.label, opened.attempts, opened.reason);
    }
    const { session } = opened;
    if (this.#senderRefused !== null) return this.#senderRefused;
    const refusal = refusalBeforeMail(this.#submission.sender.params, session.capabilities);
    if (refusal !== null) return refusal;
    const { domain } = recipient.mailbox;
    const putOff = refusalBeforeRcpt(domain ?? '', this.#asked, session.capabilities);
    if (putOff !== null) {
      this.beyondLimits.push(recipient);
      return putOff;
    }
    this.#asked.push(domain ?? '');
    if (session.capabilities.pipelining) return this.#envelope(session, recipient);
    // By then the session may be another one.
    const turn = this.#turn.then(() =>
      this.#ready === opened ? this.#envelope(session, recipient) : this.addRecipient(recipient),
    );
    this.#turn = turn;
    return turn;
  }

  /**
   * Takes back the recipients that are `done`: the next hop has the message for them. With nobody left the session is
   * only reset; else the others are named anew, and DATA follows.
   * @returns null when all is well; else what it is for everybody who is left
   */
  async startDataWithout(done: ReadonlySet<Recipient>): Promise<Outcome | null> {
    const left = this.recipients.filter((recipient) => !done.has(recipient));
    if (left.length === this.recipients.length) return await this.startData();
    const { session } = this;
    this.recipients.length = 0;
    if (session === null || session.lost !== null) return this.#failedFor(left, null);
    const reset = await session.exchange([{ phase: null, line: 'RSET' }])[0]!;
    const at = this.#deps.now();
    this.#markReply('reset', at, reset);
    if (!positive(reset)) this.drop();
    else if (left.length === 0) this.#enter('done', at);
    if (left.length === 0) return null;
    this.#mail = null;
    this.#kept!.messages++;
    // The message is on its way: no time to open another one.
    this.#reused = false;
    for (const recipient of left) {
      const answer = await this.#envelope(session, recipient);
      if (replyClass(answer) !== 2) return this.#failedFor(left, answer);
    }
    return await this.startData();
  }

  /** They stay the leg's: somebody has to answer for them. @param said to one of them; null: the session is lost */
  #failedFor(left: readonly Recipient[], said: Reply | null): Outcome | null {
    if (left.length === 0) return null;
    this.recipients.splice(0, this.recipients.length, ...left);
    // The refusal of one recipient is not that of the others.
    const isOfOne = left.length > 1 && this.#senderRefused === null;
    if (said === null || (isOfOne && replyClass(said) === 5)) return this.#lostOutcome('data', false);
    return outcomeOf(said);
  }

  /** DATA at the next hop. Null when it answered 354 and waits for the body. */
  async startData(): Promise<Outcome | null> {
    const { session } = this;
    if (session === null || session.lost !== null) {
      if (session !== null) this.#noteLoss('data');
      this.#mark('lost', this.#deps.now(), session?.lost?.detail);
      return this.#lostOutcome('data', false);
    }
    this.#mark('data', this.#enter('data', this.#deps.now()));
    const exchange = await session.exchange([{ phase: 'data', line: 'DATA' }])[0]!;
    const at = this.#timed('data');
    this.#markReply('data-reply', at, exchange);
    if (exchange.kind === 'lost') {
      this.#noteLoss('data');
      return this.#lostOutcome('data', false);
    }
    if (exchange.reply.code === 354) {
      this.#finalReplies = session.expectFinalReplies(this.#isLmtp ? this.recipients.length : 1);
      this.#enter('body', at);
      return null;
    }
    const outcome = outcomeOf(exchange.reply);
    if (outcome !== null && outcome.kind !== 'accepted') {
      this.#health.refused(this.#deps.now());
      this.#enter('envelope', at);
      return outcome;
    }
    // Neither 354 nor a refusal: what the peer would make of the body is anybody's guess.
    this.#noteLoss('data');
    this.drop();
    return this.#lostOutcome('data', false);
  }

  /**
   * Settles when the next hop speaks, or is lost, while the dot has not been sent: the leg has failed, since a reply
   * before our dot is never an acknowledgement.
   */
  async spokeEarly(): Promise<Outcome> {
    const exchange = await this.#finalReplies[0]!;
    if (this.phase === 'body') this.#markReply('reply', this.#deps.now(), exchange);
    const outcome = exchange.kind === 'reply' ? outcomeOf(exchange.reply) : null;
    if (outcome === null || outcome.kind === 'accepted') return this.#lostOutcome('body', false);
    return outcome;
  }

  /**
   * Sends the final dot, with `last` before it in the same write, and waits for what the next hop says to it.
   * @param octets of the message as it was sent, for the time line
   */
  async finish(last: Buffer | null, ackTimeoutMs: number, octets: number): Promise<readonly Outcome[]> {
    this.#mark('end-of-data', this.#enter('dot', this.#timed('body')), octets);
    this.session?.endOfData(last, ackTimeoutMs);
    const outcomes: Outcome[] = [];
    let at = this.#phaseBegan;
    for (const reply of this.#finalReplies) {
      const exchange = await reply;
      at = this.#deps.now();
      this.#markReply('reply', at, exchange);
      if (this.#asksEach && isPrdr(exchange)) {
        outcomes.push(...(await this.#outcomeOfEach(ackTimeoutMs)));
        at = this.#deps.now();
      } else outcomes.push(this.#finalOutcome(exchange));
    }
    this.#timed('dot', at);
    this.#enter('done', at);
    if (outcomes.some(({ kind }) => kind === 'accepted')) this.#health.delivered(at);
    else if (outcomes.some(({ kind }) => kind !== 'lost')) this.#health.refused(at);
    // SMTP has one reply for all recipients of the leg, LMTP (RFC 2033 §4.2) and PRDR one for each.
    return this.recipients.map((recipient, at) =>
      this.#withReport(recipient, outcomes[outcomes.length > 1 ? at : 0]!),
    );
  }

  /** After a 353. */
  async #outcomeOfEach(ackTimeoutMs: number): Promise<readonly Outcome[]> {
    const replies = this.session?.expectFinalReplies(this.recipients.length + 1, ackTimeoutMs) ?? [];
    const outcomes: Outcome[] = [];
    for (const reply of replies) {
      const exchange = await reply;
      this.#markReply('reply', this.#deps.now(), exchange);
      outcomes.push(this.#finalOutcome(exchange));
    }
    return judged(outcomes.slice(0, -1), outcomes.at(-1)!);
  }

  /** MAIL had PRDR. */
  get #asksEach(): boolean {
    return this.#submission.sender.params.prdr === true && this.session?.capabilities.prdr === true;
  }

  /** In place of finish(): the message is not completed here. */
  withhold(): readonly Outcome[] {
    this.#mark('withheld', this.#enter('withheld', this.#timed('body')));
    this.drop();
    return this.recipients.map(() => withheldFrom(this.nextHop.label));
  }

  /** The leg is out before its dot: a refusal in mid-body, a session lost, or a peer that takes nothing any more. */
  failedInBody(outcome: Outcome, cause?: FailureCause): void {
    if (outcome.kind === 'lost') this.#noteLoss('body', cause);
    else this.#health.refused(this.#deps.now());
  }

  /** Destroys the session at once, without a dot, QUIT or RSET; stops connecting. */
  drop(): void {
    this.#dropped = true;
    this.#connecting?.abort(new Error('leg dropped'));
    this.session?.abort();
  }

  /** Lets go of the session: kept where its message is done, or none was begun and a RSET ends it; else dropped. */
  release(): void {
    const { session } = this;
    const kept = this.#kept;
    if (session === null || kept === null || session.lost !== null) return this.drop();
    if (this.phase !== 'done' && this.phase !== 'envelope') return this.drop();
    const { pool } = this.#deps;
    if (this.phase === 'done') pool.give(kept);
    // What is due after the refusal of a sender comes at once, for it was asked together with that.
    else if (session.isQuiet || (this.#senderRefused !== null && session.capabilities.pipelining))
      pool.giveAfterReset(kept);
    else return this.drop();
    this.#kept = null;
  }

  /** Where the leg waits for a place at its next hop: no longer than so, since others wait for what it holds up. */
  waitAtMost(ms: number): void {
    if (this.phase !== 'queue') return;
    this.#patience ??= setTimeout(() => this.#connecting?.abort(), ms);
  }

  get #isLmtp(): boolean {
    return this.#kept?.host.protocol === 'lmtp';
  }

  #enterPool(fresh: boolean): Exclude<Admitted, 'nothing'> | Promise<Admitted> {
    return this.#deps.pool.enter(this.nextHop, this.#identity, () => this.#startConnecting(), fresh);
  }

  #startConnecting(): AbortSignal {
    this.#connecting ??= new AbortController();
    if (this.#dropped) this.#connecting.abort();
    return this.#connecting.signal;
  }

  #takeKept(kept: KeptSession): Ready {
    this.#reused = true;
    this.#mark('reused', this.#phaseBegan, kept.host.host);
    const opened = { kind: 'open', session: kept.session, host: kept.host, attempts: 0 } as const;
    return this.#begin(kept, opened, this.#phaseBegan);
  }

  async #open(at: 'place' | Promise<Admitted>): Promise<Ready> {
    const admitted = at === 'place' ? at : await this.#queue(at);
    if (admitted === 'nothing') return this.#end(BUSY);
    if (admitted !== 'place') return this.#takeKept(admitted);
    this.#mark('connect', this.#enter('connect', this.#deps.now()));
    const introduction = this.#introduction;
    const connect = introduction === null ? this.#deps.connect : { ...this.#deps.connect, introduction };
    const opened = await this.#openSession(connect);
    if (opened.kind === 'bug') return this.#end(opened);
    const ended = this.#timed('connect');
    if (opened.kind === 'unreachable') {
      this.#deps.pool.abandoned(this.nextHop);
      this.#answered = opened.answered;
      if (opened.failure !== null) this.#health.failed('connect', opened.failure, ended);
      this.#mark('unreachable', ended, `${opened.reason} (attempts: ${opened.attempts})`);
      return this.#end(opened);
    }
    this.#connecting = null;
    const { session, host } = opened;
    const { nextHop } = this;
    const times = { openedAt: ended, idleSince: ended };
    const fresh = {
      ...{ session, host, nextHop, messages: 0 },
      ...{ identity: this.#identity, health: this.#health, ...times },
    };
    this.#deps.pool.opened(fresh);
    this.#deps.onOpened(nextHop, session.capabilities);
    return this.#begin(fresh, opened, ended);
  }

  /** Never rejects: recipients wait for the answer, and the next ones for the place. */
  async #openSession(connect: ConnectDeps): Promise<Opened | typeof BUG> {
    try {
      return await openSession(this.nextHop, connect, this.#startConnecting(), this.#watch());
    } catch (error) {
      this.#deps.pool.abandoned(this.nextHop);
      this.#deps.onBug(error);
      return BUG;
    }
  }

  async #queue(admitted: Promise<Admitted>): Promise<Admitted> {
    this.#mark('queued', this.#enter('queue', this.#phaseBegan));
    const found = await admitted;
    if (this.#patience !== null) clearTimeout(this.#patience);
    this.#phaseBegan = this.#deps.now();
    return found;
  }

  /** There is no session to be had. */
  #end(without: Ready): Ready {
    this.#connecting = null;
    this.#ready = without;
    return without;
  }

  #watch(): ConnectWatch | undefined {
    if (this.#line === null) return undefined;
    return {
      onTried: ({ host, port }, address, result) => {
        const where = `${host}${address === null || address === host ? '' : ` [${address}]`} port ${port}`;
        const at = this.#deps.now();
        if (typeof result === 'string')
          this.#mark('attempt-failed', at, result.startsWith(host) ? result : `${where}: ${result}`);
        else this.#mark('connected', at, `${where}, ${result.tlsDescription}`);
      },
    };
  }

  #begin(kept: KeptSession, opened: Opened, at: number): Opened {
    this.#kept = kept;
    this.#ready = opened;
    this.#enter('envelope', at);
    if (this.#dropped) kept.session.abort();
    return opened;
  }

  /** In place of a kept session that turned out to be gone, or to take no more messages. */
  #openAfresh(): void {
    if (this.isAlive) this.#deps.pool.retire(this.#kept!);
    this.#kept = null;
    this.#ready = null;
    this.#mail = null;
    this.#asked = [];
    this.#turn = Promise.resolve();
    this.#reused = false;
    this.#enter('connect', this.#deps.now());
    this.#opened = this.#open(this.#enterPool(true) as 'place' | Promise<Admitted>);
  }

  async #envelope(session: DownstreamSession, recipient: Recipient): Promise<Reply> {
    const { capabilities } = session;
    const { sender } = this.#submission;
    const began = this.#deps.now();
    const rcpt = {
      phase: 'rcpt',
      line: rcptCommand(recipient.mailbox, recipient.params, capabilities),
    } as const;
    const mail = {
      phase: 'mail',
      line: mailCommand(sender.mailbox, sender.params, capabilities),
    } as const;
    let answer: Promise<Exchange>;
    const isFirst = this.#mail === null;
    if (isFirst) this.#mark('mail', began);
    if (capabilities.pipelining) this.#mark('rcpt', began, recipient.mailbox.address);
    if (this.#mail === null && capabilities.pipelining) {
      // RFC 2920 §3.1: MAIL and the first RCPT in one write, with XFORWARD before them.
      const before = this.#introduction?.kind === 'xforward' ? this.#xforward(session) : NOTHING;
      const replies = session.exchange(before.length === 0 ? [mail, rcpt] : [...before, mail, rcpt]);
      this.#mail = replies[before.length]!;
      answer = replies[before.length + 1]!;
    } else {
      this.#mail ??=
        this.#introduction?.kind === 'xforward'
          ? inTurn(session, [...this.#xforward(session), mail])
          : session.exchange([mail])[0]!;
      answer =
        capabilities.pipelining || positive(await this.#mail) ? session.exchange([rcpt])[0]! : this.#mail;
    }
    const mailExchange = await this.#mail;
    const answeredAt = this.#deps.now();
    const mailAt = isFirst ? this.#timed('mail', answeredAt, began) : answeredAt;
    if (isFirst) this.#markReply('mail-reply', mailAt, mailExchange);
    if (isNoLonger(mailExchange) && !this.#dropped && (this.#reused || session !== this.session)) {
      if (session === this.session) this.#openAfresh();
      return await this.addRecipient(recipient);
    }
    if (!positive(mailExchange)) {
      this.#senderRefused ??= this.#refusal(mailExchange, 'mail');
      this.release();
      return this.#senderRefused;
    }
    if (!capabilities.pipelining) this.#mark('rcpt', mailAt, recipient.mailbox.address);
    const exchange = await answer;
    this.#answeredAt = this.#timed('rcpt', this.#deps.now(), began);
    this.#markReply('rcpt-reply', this.#answeredAt, exchange);
    if (!positive(exchange)) return this.#refusal(exchange, 'rcpt');
    this.recipients.push(recipient);
    return recipientOk();
  }

  /** Before each MAIL (Postfix's XFORWARD_README). Whatever the next hop says to it: it is for the log. */
  #xforward(session: DownstreamSession): readonly Command[] {
    const { client, id } = this.#submission;
    return xforwardCommands(client, id, session.offers).map((line) => ({ phase: null, line }));
  }

  /** What the upstream's RCPT gets when the next hop did not say 2xx to MAIL or RCPT. */
  #refusal(exchange: Exchange, phase: 'mail' | 'rcpt'): Reply {
    const passed = exchange.kind === 'reply' ? passOn(exchange.reply) : null;
    if (passed !== null) {
      this.#health.refused(this.#deps.now());
      return passed;
    }
    this.#noteLoss(phase);
    this.drop();
    return legLost(this.nextHop.label, phase);
  }

  #finalOutcome(exchange: Exchange): Outcome {
    const outcome = exchange.kind === 'reply' ? outcomeOf(exchange.reply) : null;
    if (outcome !== null) return outcome;
    this.#noteLoss('dot');
    // Where a peer that talks nonsense stands, nobody knows: it gets no further message.
    this.drop();
    return this.#lostOutcome('dot', true);
  }

  #withReport({ params }: Recipient, outcome: Outcome): Outcome {
    const wanted = params.notify?.split(',').includes('SUCCESS') ?? false;
    if (!wanted || outcome.kind !== 'accepted' || this.session?.capabilities.dsn) return outcome;
    return { ...outcome, relayed: true };
  }

  /** Before the leg is dropped: what we have ended ourselves is no failure of the next hop's. */
  #noteLoss(phase: FailurePhase, known?: FailureCause): void {
    const cause = known ?? this.session?.lost?.cause ?? 'protocol';
    if (cause === 'aborted' || this.#lossNoted) return;
    this.#lossNoted = true;
    this.#health.failed(phase, cause, this.#deps.now());
  }

  #lostOutcome(phase: string, dotSent: boolean): Outcome {
    return { kind: 'lost', nextHop: this.nextHop.label, phase, dotSent };
  }

  /** Gives the time. */
  #enter(phase: Leg['phase'], at: number): number {
    this.phase = phase;
    this.#phaseBegan = at;
    return at;
  }

  /** Gives the time at which the phase ended. */
  #timed(phase: DurationPhase, at = this.#deps.now(), began = this.#phaseBegan): number {
    this.#deps.onPhase(phase, (at - began) / 1000);
    return at;
  }

  #mark(event: LegEvent, at: number, detail: number | string | null = null): void {
    if (this.#line !== null) this.#line.leg(this.#nth, event, at, detail);
  }

  #markReply(event: LegEvent, at: number, exchange: Exchange): void {
    if (this.#line === null) return;
    if (exchange.kind === 'lost') this.#line.leg(this.#nth, 'lost', at, exchange.detail);
    // The next hop's own id for the message stands in its final reply.
    else
      this.#line.leg(
        this.#nth,
        event,
        at,
        event === 'reply' ? inFull(exchange.reply) : brief(exchange.reply),
      );
  }
}

type Command = Readonly<{ phase: 'mail' | null; line: string }>;
const NOTHING: readonly Command[] = [];

/** Each when the one before was answered. @returns what is said to the last */
async function inTurn(session: DownstreamSession, commands: readonly Command[]): Promise<Exchange> {
  for (const command of commands.slice(0, -1)) await session.exchange([command])[0];
  return await session.exchange(commands.slice(-1))[0]!;
}

/** Said to MAIL: no more in this session, which the peer may have closed without a word (RFC 5321 §3.8). */
function isNoLonger(exchange: Exchange): boolean {
  return exchange.kind === 'lost' || replyClass(exchange.reply) === 4;
}

function positive(exchange: Exchange): boolean {
  return exchange.kind === 'reply' && replyClass(exchange.reply) === 2;
}
