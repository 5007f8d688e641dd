// One downstream session of one transaction, from the first recipient that needs it to the reply to its final dot.
// A peer's refusal is a value; a leg whose session is lost says so once and answers every later call accordingly.
// Owns its session: drop() destroys it without a dot, release() ends it politely when no message is under way.
import type { DurationPhase } from '../metrics.ts';
import type { NextHop } from '../routing/routes.ts';
import { type Capabilities, mailCommand, rcptCommand, refusalBeforeMail } from '../smtp/capabilities.ts';
import type { Recipient, Sender } from '../smtp/envelope.ts';
import { legLost, nextHopUnreachable, passOn, type Reply, recipientOk, replyClass } from '../smtp/reply.ts';
import { type ConnectDeps, type Opened, openSession } from './connect.ts';
import type { FailureCause, FailurePhase, HopHealth, NextHopHealth } from './health.ts';
import { type Outcome, outcomeOf } from './outcome.ts';
import type { KeptSession, SessionPool } from './pool.ts';
import type { DownstreamSession, Exchange } from './session.ts';

export type LegDeps = Readonly<{
  connect: ConnectDeps;
  /** Milliseconds, monotonic. */
  now: () => number;
  onPhase: (phase: DurationPhase, seconds: number) => void;
  pool: SessionPool;
  health: NextHopHealth;
  /** What the next hop turned out to offer. */
  onOpened: (nextHop: NextHop, offered: Capabilities) => void;
}>;

export class Leg {
  readonly nextHop: NextHop;
  /** The recipients that the next hop has accepted, in the order of its replies. */
  readonly recipients: Recipient[] = [];
  /** Where the leg is, for /status and the log. */
  phase: 'connect' | 'envelope' | 'data' | 'body' | 'dot' | 'done' = 'connect';

  readonly #sender: Sender;
  readonly #deps: LegDeps;
  readonly #health: HopHealth;
  /** Ends the connecting; null while there is none. */
  #connecting: AbortController | null = null;
  #dropped = false;
  #opened: Promise<Opened>;
  /** What #opened has settled to. */
  #ready: Opened | null = null;
  #kept: KeptSession | null = null;
  /** The session has carried messages before: that the peer has closed it meanwhile is no failure. */
  #reused = false;
  #mail: Promise<Exchange> | null = null;
  /** The answer to every recipient, once the next hop has refused the sender. */
  #senderRefused: Reply | null = null;
  /** Where the peer doesn't pipeline: settles when the last command was answered. */
  #turn: Promise<unknown> = Promise.resolve();
  #finalReplies: Promise<Exchange>[] = [];
  /** Every recipient hears of a lost session, but it is one failure. */
  #lossNoted = false;
  #phaseBegan: number;

  constructor(nextHop: NextHop, sender: Sender, deps: LegDeps) {
    this.nextHop = nextHop;
    this.#sender = sender;
    this.#deps = deps;
    this.#phaseBegan = deps.now();
    const kept = deps.pool.take(nextHop);
    this.#health = kept?.health ?? deps.health.of(nextHop);
    this.#opened = this.#open(kept);
  }

  /** Null while connecting, or when the next hop is unreachable. */
  get session(): DownstreamSession | null {
    return this.#kept?.session ?? null;
  }

  /** There is a session, and it can be used. */
  get isAlive(): boolean {
    return this.session !== null && this.session.lost === null;
  }

  get unsentBytes(): number {
    return this.session?.unsentBytes ?? 0;
  }

  /** MAIL (once) and RCPT at the next hop; the reply is what the upstream gets for its RCPT. Never rejects. */
  addRecipient(recipient: Recipient): Reply | Promise<Reply> {
    const opened = this.#ready;
    if (opened !== null) return this.#ask(opened, recipient);
    return this.#opened.then((settled) => this.#ask(settled, recipient));
  }

  #ask(opened: Opened, recipient: Recipient): Reply | Promise<Reply> {
    // Claim 24.
    if (opened.kind === 'unreachable') {
      return nextHopUnreachable(this.nextHop.label, opened.attempts, opened.reason);
    }
    const { session } = opened;
    if (this.#senderRefused !== null) return this.#senderRefused;
    const refusal = refusalBeforeMail(this.#sender.params, session.capabilities);
    if (refusal !== null) return refusal;
    if (session.capabilities.pipelining) return this.#envelope(session, recipient);
    const turn = this.#turn.then(() => this.#envelope(session, recipient));
    this.#turn = turn;
    return turn;
  }

  /** DATA at the next hop. Null when it answered 354 and waits for the body. */
  async startData(): Promise<Outcome | null> {
    const { session } = this;
    if (session === null) return this.#lostOutcome('data', false);
    if (session.lost !== null) {
      this.#noteLoss('data');
      return this.#lostOutcome('data', false);
    }
    this.#enter('data');
    const exchange = await session.exchange([{ phase: 'data', line: 'DATA' }])[0]!;
    this.#timed('data');
    if (exchange.kind === 'lost') {
      this.#noteLoss('data');
      return this.#lostOutcome('data', false);
    }
    if (exchange.reply.code === 354) {
      this.#finalReplies = session.expectFinalReplies(this.#isLmtp ? this.recipients.length : 1);
      this.#enter('body');
      return null;
    }
    const outcome = outcomeOf(exchange.reply);
    if (outcome !== null && outcome.kind !== 'accepted') {
      this.#health.refused(this.#deps.now());
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
    const outcome = exchange.kind === 'reply' ? outcomeOf(exchange.reply) : null;
    if (outcome === null || outcome.kind === 'accepted') return this.#lostOutcome('body', false);
    return outcome;
  }

  /** Sends the final dot, with `last` before it in the same write, and waits for what the next hop says to it. */
  async finish(last: Buffer | null, ackTimeoutMs: number): Promise<readonly Outcome[]> {
    this.#timed('body');
    this.#enter('dot');
    this.session?.endOfData(last, ackTimeoutMs);
    const outcomes: Outcome[] = [];
    for (const exchange of this.#finalReplies) outcomes.push(this.#finalOutcome(await exchange));
    this.#timed('dot');
    this.#enter('done');
    if (outcomes.some(({ kind }) => kind === 'accepted')) this.#health.delivered(this.#phaseBegan);
    else if (outcomes.some(({ kind }) => kind !== 'lost')) this.#health.refused(this.#phaseBegan);
    // SMTP has one reply for all recipients of the leg, LMTP (RFC 2033 §4.2) one for each.
    return this.recipients.map((recipient, at) =>
      this.#withReport(recipient, outcomes[this.#isLmtp ? at : 0]!),
    );
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

  /** Lets go of the session: kept if its message is done, ended if none was begun, else dropped. Never rejects. */
  async release(): Promise<void> {
    if (this.#kept !== null && this.phase === 'done') await this.#deps.pool.give(this.nextHop, this.#kept);
    else if (this.#kept !== null && this.phase === 'envelope') await this.#kept.session.quit();
    else this.drop();
  }

  get #isLmtp(): boolean {
    return this.#kept?.host.protocol === 'lmtp';
  }

  async #open(kept: KeptSession | null): Promise<Opened> {
    this.#reused = kept !== null;
    if (kept !== null)
      return this.#begin(kept, { kind: 'open', session: kept.session, host: kept.host, attempts: 0 });
    this.#connecting = new AbortController();
    if (this.#dropped) this.#connecting.abort();
    const opened = await openSession(this.nextHop, this.#deps.connect, this.#connecting.signal);
    this.#connecting = null;
    this.#timed('connect');
    if (opened.kind === 'unreachable') {
      if (opened.failure !== null) this.#health.failed('connect', opened.failure, this.#deps.now());
      return opened;
    }
    const fresh = { session: opened.session, host: opened.host, messages: 0, health: this.#health };
    this.#deps.pool.opened(this.nextHop, fresh);
    this.#deps.onOpened(this.nextHop, opened.session.capabilities);
    return this.#begin(fresh, opened);
  }

  #begin(kept: KeptSession, opened: Opened): Opened {
    this.#kept = kept;
    this.#ready = opened;
    this.#enter('envelope');
    if (this.#dropped) kept.session.abort();
    return opened;
  }

  /** In place of a kept session that turned out to be gone. */
  #openAfresh(): void {
    this.#kept = null;
    this.#ready = null;
    this.#mail = null;
    this.#turn = Promise.resolve();
    this.#enter('connect');
    this.#opened = this.#open(null);
  }

  async #envelope(session: DownstreamSession, recipient: Recipient): Promise<Reply> {
    const { capabilities } = session;
    const began = this.#deps.now();
    const rcpt = {
      phase: 'rcpt',
      line: rcptCommand(recipient.mailbox, recipient.params, capabilities),
    } as const;
    const mail = {
      phase: 'mail',
      line: mailCommand(this.#sender.mailbox, this.#sender.params, capabilities),
    } as const;
    let answer: Promise<Exchange>;
    if (this.#mail === null && capabilities.pipelining) {
      // RFC 2920 §3.1: MAIL and the first RCPT in one write.
      const [toMail, toRcpt] = session.exchange([mail, rcpt]);
      this.#mail = toMail!;
      answer = toRcpt!;
    } else {
      this.#mail ??= session.exchange([mail])[0]!;
      answer =
        capabilities.pipelining || positive(await this.#mail) ? session.exchange([rcpt])[0]! : this.#mail;
    }
    const mailExchange = await this.#mail;
    this.#deps.onPhase('mail', this.#since(began));
    if (isGone(mailExchange) && (this.#reused || session !== this.session)) {
      if (session === this.session) this.#openAfresh();
      return await this.addRecipient(recipient);
    }
    if (!positive(mailExchange)) {
      this.#senderRefused ??= this.#refusal(mailExchange, 'mail');
      void this.release();
      return this.#senderRefused;
    }
    const exchange = await answer;
    this.#deps.onPhase('rcpt', this.#since(began));
    if (!positive(exchange)) return this.#refusal(exchange, 'rcpt');
    this.recipients.push(recipient);
    return recipientOk();
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

  #enter(phase: Leg['phase']): void {
    this.phase = phase;
    this.#phaseBegan = this.#deps.now();
  }

  #timed(phase: DurationPhase): void {
    this.#deps.onPhase(phase, this.#since(this.#phaseBegan));
  }

  #since(began: number): number {
    return (this.#deps.now() - began) / 1000;
  }
}

/** The peer closes the session, with or without a word (RFC 5321 §3.8). */
function isGone(exchange: Exchange): boolean {
  return exchange.kind === 'lost' || exchange.reply.code === 421;
}

function positive(exchange: Exchange): boolean {
  return exchange.kind === 'reply' && replyClass(exchange.reply) === 2;
}
