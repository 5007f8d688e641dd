// One SMTP or LMTP client session with a next hop, driven phase by phase: open, MAIL, RCPT, DATA, body, final dot.
//
// smtp-connection does the connection's setup (greeting, EHLO, STARTTLS, AUTH), with XCLIENT in between where asked for.
// Its send() bundles the envelope, DATA and restuffing, so from then on this subclass reads the replies itself, and
// writes commands and wire bytes verbatim.
// Owns its socket and one deadline. A peer that stalls, closes, or talks nonsense makes the session `lost`: every
// exchange still open settles as lost, the socket is destroyed, and nothing here rejects or throws after open().
import type { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';
import { type ConnectionOptions, TLSSocket } from 'node:tls';
import SMTPConnection from 'smtp-connection';
import { Deadline } from '../deadline.ts';
import { readInPlace } from '../read-in-place.ts';
import { type Capabilities, NO_CAPABILITIES, parseCapabilities } from '../smtp/capabilities.ts';
import { parseReply, type Reply, replyClass } from '../smtp/reply.ts';
import { END_OF_DATA } from '../smtp/wire.ts';
import { heloOf, type Introduction, xclientCommands } from './forward-client.ts';

/** The members of smtp-connection's class (nodemailer 10.6.1) that this subclass stands on; see its contract test. */
interface SmtpConnectionInternals {
  _socket: Socket | false;
  /** EHLO lines after the first, without codes; unset after a HELO. */
  _ehloLines?: string[];
  /** What is to be done with the replies due, while the library reads. */
  _responseActions: ((text: string) => void)[];
  _supportedAuth: string[];
  allowsAuth: boolean;
  secure: boolean;
  connect(callback: (error?: Error) => void): void;
  login(auth: { user: string; pass: string }, callback: (error: Error | null) => void): void;
  close(): void;
  _onError(error: Error, code: string, reply: string | false, command: string): void;
  _onData(chunk: Buffer): void;
  _sendCommand(line: string): void;
  _parseEhloExtensions(reply: string): void;
  _actionGreeting(reply: string): void;
  _actionEHLO(reply: string): void;
  _actionHELO(reply: string): void;
  _actionSTARTTLS(reply: string): void;
}

const Base = SMTPConnection as unknown as new (
  options: Record<string, unknown>,
) => EventEmitter & SmtpConnectionInternals;

/** Phases in which a downstream replies; the `phase` label of cutthrough_downstream_replies_total. */
export type ReplyPhase = 'greeting' | 'ehlo' | 'starttls' | 'auth' | 'mail' | 'rcpt' | 'data' | 'dot';

export type Lost = Readonly<{
  kind: 'lost';
  cause: 'closed' | 'timeout' | 'protocol' | 'aborted';
  /** For the log and the reply's text; never a peer's own words. */
  detail: string;
}>;
export type Exchange = Readonly<{ kind: 'reply'; reply: Reply }> | Lost;

export type SessionOptions = Readonly<{
  /** Connected (and, with `secured`, past its TLS handshake); owned by the session from here on. */
  socket: Socket;
  secured: boolean;
  lmtp: boolean;
  /** Name of the server, for SNI and certificate checks. */
  host: string;
  /** Our own name in EHLO. */
  name: string;
  startTls: 'ignore' | 'if-offered' | 'required';
  tls: ConnectionOptions;
  /** What is wrong with the peer beyond what the TLS library checks; null where nothing is asked for. */
  peerProblem: ((socket: TLSSocket) => string | null) | null;
  auth: Readonly<{ user: string; pass: string }> | null;
  /** Credentials may go over a connection without TLS. */
  authInClear: boolean;
  greetingTimeoutMs: number;
  commandTimeoutMs: number;
  onReply: (phase: ReplyPhase, reply: Reply | null) => void;
  introduction: Introduction | null;
}>;

/** Why a session could not be opened; `reply` is the peer's, where it gave one. */
export class OpenError extends Error {
  readonly phase: ReplyPhase;
  readonly reply: Reply | null;
  readonly timedOut: boolean;

  constructor(phase: ReplyPhase, message: string, reply: Reply | null, timedOut: boolean, cause?: unknown) {
    super(message, { cause });
    this.phase = phase;
    this.reply = reply;
    this.timedOut = timedOut;
  }
}

/** The server doesn't let us speak for the client; it may well take other mail. */
export class IntroductionError extends OpenError {}

/** What smtp-connection adds to the errors that it emits. */
type PeerError = Error & { code?: string; response?: string };

/** `phase` is null for a reply that is not counted (to RSET, XFORWARD and QUIT). */
type Pending = { phase: ReplyPhase | null; timeoutMs: number; settle: (exchange: Exchange) => void };

const CLOSED: Lost = { kind: 'lost', cause: 'closed', detail: 'connection closed' };
/** Room for an EHLO reply or a wordy refusal, not for a peer that never ends one. */
const MAX_REPLY_OCTETS = 16 * 1024;
/** Replies that need not be parsed again. */
const MAX_KNOWN = 4;
const MAX_KNOWN_OCTETS = 128;
/** An EHLO line; some old servers have AUTH=. */
const USABLE_AUTH = /^AUTH[ =](?:.*[ =])?(?:PLAIN|LOGIN|CRAM-MD5)(?: |$)/i;
/** RFC 4954 §6: the one success that there is; the library keeps its text to itself. */
const AUTHENTICATED = '235 2.7.0 authenticated';
/** How long a QUIT may take before the socket is destroyed. */
const QUIT_TIMEOUT_MS = 5_000;
/** smtp-connection's own timers must never fire before ours. */
const NEVER_MS = 2 ** 31 - 1;

export class DownstreamSession extends Base {
  capabilities: Capabilities = NO_CAPABILITIES;
  /** Set once, when the session can no longer be used. */
  lost: Lost | null = null;

  readonly #options: SessionOptions;
  readonly #pending: Pending[] = [];
  #phase: ReplyPhase = 'greeting';
  #error: PeerError | null = null;
  readonly #deadline = new Deadline(() =>
    this._onError(new Error('no reply in time'), 'ETIMEDOUT', false, 'CONN'),
  );
  #corked = false;
  #open = false;
  /** What has come of replies that are not answered for yet, a character for each octet. */
  #unread = '';
  /** The next turn goes on with it. */
  #readsOn = false;
  /** The connection has ended; what was said before is still to be heard. */
  #ended = false;
  #onDrain: (() => void) | null = null;
  readonly #known: { text: string; reply: Reply | null }[] = [];
  #knownNext = 0;

  constructor(options: SessionOptions) {
    super({
      connection: options.socket,
      secure: options.secured,
      secured: options.secured,
      lmtp: options.lmtp,
      host: options.host,
      name: options.name,
      servername: options.tls.servername,
      tls: options.tls,
      ignoreTLS: options.startTls === 'ignore',
      requireTLS: options.startTls === 'required',
      opportunisticTLS: options.startTls === 'if-offered',
      connectionTimeout: NEVER_MS,
      greetingTimeout: NEVER_MS,
      socketTimeout: NEVER_MS,
      // close() destroys the socket: a FIN after a flushed half of a message would be an invitation to complete it.
      socketCloseTimeout: 0,
      maxResponseSize: MAX_REPLY_OCTETS,
      logger: false,
    });
    this.#options = options;
    this.on('error', (error: PeerError) => {
      this.#error = error;
      const lost = lossOf(error);
      if (lost.cause === 'closed') this.#closedByPeer();
      else this.#lose(lost);
    });
    this.on('end', () => this.#closedByPeer());
    options.socket.once('close', () => this.#closedByPeer());
  }

  /**
   * Greeting, EHLO (or LHLO, HELO), STARTTLS, XCLIENT and AUTH as the options ask.
   * @throws OpenError, with the socket destroyed
   */
  static async open(options: SessionOptions, signal: AbortSignal): Promise<DownstreamSession> {
    const session = new DownstreamSession(options);
    const onAbort = () => session.#lose({ kind: 'lost', cause: 'aborted', detail: 'took too long' });
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      await session.#connect();
      session.#judgePeer();
      // Before AUTH, which the server forgets at XCLIENT.
      if (options.introduction?.kind === 'xclient') await session.#introduce(options.introduction);
      if (options.auth !== null) await session.#authenticate(options.auth);
      session.#deadline.lift();
      session.#open = true;
      // The library's timer, which every read and write would set anew. Ours is the deadline.
      if (session._socket !== false) {
        session._socket.setTimeout(0);
        readInPlace(session._socket, session.#onBytes);
      }
      return session;
    } catch (error) {
      session.abort();
      throw error;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** The EHLO keywords with their arguments, as offered. */
  get offers(): readonly string[] {
    return this._ehloLines ?? [];
  }

  /** For people: protocol version and cipher, or that there is none. */
  get tlsDescription(): string {
    const socket = this._socket;
    if (!(socket instanceof TLSSocket)) return 'no TLS';
    const trust = socket.authorized ? 'certificate valid' : 'certificate not verified';
    return `${socket.getProtocol() ?? 'TLS'} ${socket.getCipher()?.name ?? ''}, ${trust}`;
  }

  /** Why nobody has vouched for the peer: no TLS, or what is wrong with its certificate; null when it is verified. */
  get unverified(): string | null {
    const socket = this._socket;
    if (!(socket instanceof TLSSocket)) return 'no TLS';
    // The type says Error; Node gives the code.
    return socket.authorized ? null : String(socket.authorizationError);
  }

  /** The peer has said more than has been dealt with: it will be, before setImmediate()'s next turn is over. */
  get hasUnread(): boolean {
    return this.#unread !== '';
  }

  /** The peer owes no reply. */
  get isQuiet(): boolean {
    return this.#pending.length === 0;
  }

  /** Bytes written and not yet handed to the kernel. */
  get unsentBytes(): number {
    return this._socket === false ? 0 : this._socket.writableLength;
  }

  /**
   * Sends command lines and gives one promise for each reply. The lines of one call leave in one write, and so do
   * those of further calls within the same tick: several only where the peer offers PIPELINING (RFC 2920).
   */
  exchange(commands: ReadonlyArray<{ phase: ReplyPhase | null; line: string }>): Promise<Exchange>[] {
    const replies = commands.map(({ phase }) => this.#expect(phase, this.#options.commandTimeoutMs));
    if (this.lost === null) {
      // Others are waiting for replies, so more may come before this tick ends.
      if (this.#pending.length > commands.length) this.#corkThisTick();
      this.#send(commands);
    }
    return replies;
  }

  /**
   * After the 354: expects the final replies (one, or with LMTP one for each recipient; RFC 2033 §4.2), at first
   * without a deadline. One that settles before endOfData() was sent early, and is no acknowledgement.
   * @param timeoutMs for more of them, which the first has announced (PRDR)
   */
  expectFinalReplies(count: number, timeoutMs = NEVER_MS): Promise<Exchange>[] {
    const replies: Promise<Exchange>[] = [];
    while (replies.length < count) replies.push(this.#expect('dot', timeoutMs));
    return replies;
  }

  /** @returns false when the caller should wait for drained() before it writes more */
  write(bytes: Buffer): boolean {
    return this._socket === false || this.lost !== null || this._socket.write(bytes);
  }

  /** Writes that follow leave together at uncork(). */
  cork(): void {
    if (this._socket !== false) this._socket.cork();
  }

  uncork(): void {
    if (this._socket !== false) this._socket.uncork();
  }

  /** Settles when the peer takes bytes again, or the session is lost. */
  drained(): Promise<void> {
    if (this.lost !== null || this._socket === false || !this._socket.writableNeedDrain)
      return Promise.resolve();
    return new Promise((resolve) => {
      if (this.#onDrain === null && this._socket !== false)
        this._socket.on('drain', () => this.#settleDrain());
      this.#onDrain = resolve;
    });
  }

  /** Settles when the kernel has every byte written so far, or the session is lost. */
  flushed(): Promise<void> {
    const socket = this._socket;
    if (this.lost !== null || socket === false || socket.writableLength === 0) return Promise.resolve();
    return new Promise((resolve) => socket.write('', () => resolve()));
  }

  /** The final dot; `last` are body bytes that leave in the same write. From here the outcome is the peer's. */
  endOfData(last: Buffer | null, ackTimeoutMs: number): void {
    if (last === null) this.write(END_OF_DATA);
    else this.write(last);
    for (const pending of this.#pending) pending.timeoutMs = ackTimeoutMs;
    this.#watch();
  }

  /** Destroys the socket at once: no QUIT, no RSET, no dot. */
  abort(): void {
    this.#lose({ kind: 'lost', cause: 'aborted', detail: 'dropped' });
  }

  /** Ends an idle session politely; destroys it where an exchange is still open. Settles when it is gone. */
  async quit(): Promise<void> {
    if (this.lost !== null) return;
    if (this.#pending.length === 0) {
      const bye = this.#expect(null, QUIT_TIMEOUT_MS);
      this.#send([{ line: 'QUIT' }]);
      await bye;
    }
    this.abort();
  }

  /** While the session is being opened the library reads; from then on replies are split here. */
  override _onData(chunk: Buffer): void {
    if (!this.#open) return super._onData(chunk);
    this.#onBytes(chunk, chunk.length);
  }

  readonly #onBytes = (buffer: Buffer, length: number): true => {
    const text = buffer.toString('latin1', 0, length);
    this.#unread = this.#unread === '' ? text : this.#unread + text;
    this.#readReply();
    return true;
  };

  /** RFC 5321 §4.2.1: a reply ends with the first line whose fourth character is no hyphen. */
  #readReply(): void {
    this.#readsOn = false;
    let line = 0;
    for (let lf = this.#unread.indexOf('\n'); lf !== -1; lf = this.#unread.indexOf('\n', line)) {
      const last = this.#unread[line + 3] !== '-';
      line = lf + 1;
      if (!last) continue;
      const text = this.#unread.slice(0, this.#unread[lf - 1] === '\r' ? lf - 1 : lf);
      this.#unread = this.#unread.length === line ? '' : this.#unread.slice(line);
      this.#answer(text);
      line = 0;
      // To a pipelined RCPT: nothing that was said before changes what it answers.
      if (this.#pending[0]?.phase === 'rcpt') continue;
      // Whoever waited for this reply comes first: what it says decides what the next one means.
      this.#readsOn = this.#unread !== '';
      if (this.#readsOn) setImmediate(() => this.#readReply());
      else if (this.#ended) this.#lose(CLOSED);
      return;
    }
    if (this.#ended) return this.#lose(CLOSED);
    if (this.#unread.length > MAX_REPLY_OCTETS)
      this._onError(new Error('endless reply'), 'EPROTOCOL', false, 'CONN');
  }

  override _actionGreeting(text: string): void {
    this.#observe('greeting', text);
    // Who isn't welcome is told so in this phase.
    if (text.startsWith('220')) this.#enter('ehlo');
    super._actionGreeting(text);
  }

  override _actionEHLO(text: string): void {
    this.#observe('ehlo', text);
    // The library goes on with HELO, or ends it.
    if (!text.startsWith('2')) return super._actionEHLO(text);
    const { startTls } = this.#options;
    const offered = /[ -]STARTTLS\b/im.test(text);
    if (!this.secure && startTls !== 'ignore' && (offered || startTls === 'required'))
      this.#enter('starttls');
    // RFC 3207 §4: not to be asked for where it is not offered; the library would.
    if (this.#phase === 'starttls' && !this.secure && !offered) {
      return this._onError(new Error('STARTTLS is not offered'), 'ETLS', false, 'EHLO');
    }
    super._actionEHLO(text);
  }

  override _actionHELO(text: string): void {
    this.#observe('ehlo', text);
    super._actionHELO(text);
  }

  override _actionSTARTTLS(text: string): void {
    this.#observe('starttls', text);
    super._actionSTARTTLS(text);
  }

  /** Nothing but EHLO has been said by now. */
  #judgePeer(): void {
    const { peerProblem, host } = this.#options;
    if (peerProblem === null) return;
    const problem = this._socket instanceof TLSSocket ? peerProblem(this._socket) : 'there is no TLS';
    if (problem !== null) throw new OpenError('starttls', `${host}: ${problem}`, null, false);
  }

  #connect(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#deadline.set(this.#options.greetingTimeoutMs);
      this.once('end', () => reject(this.#openError()));
      this.connect((error) => {
        if (error !== undefined) return reject(this.#openError(error));
        if (this._ehloLines !== undefined)
          this.capabilities = parseCapabilities(this._ehloLines, this.#options);
        resolve();
      });
    });
  }

  #openError(error: PeerError | null = this.#error): OpenError {
    const reply = error?.response === undefined ? null : parseReply(error.response);
    const lost = error === null ? this.lost : lossOf(error);
    const what = reply === null ? (lost?.detail ?? 'connection closed') : `refused with ${reply.code}`;
    return new OpenError(this.#phase, `${what} (${this.#phase})`, reply, lost?.cause === 'timeout', error);
  }

  /** XCLIENT, after which the server greets as it would greet the client, who says EHLO (Postfix's XCLIENT_README). */
  async #introduce({ client }: Introduction): Promise<void> {
    const lines = xclientCommands(client, this.offers);
    if (lines.length === 0)
      throw new IntroductionError('greeting', 'XCLIENT ADDR is not offered', null, false);
    for (const line of lines) await this.#setUp('greeting', line, 'XCLIENT', (reply) => reply.code === 220);
    const { lmtp, name } = this.#options;
    const hello = `${lmtp ? 'LHLO' : 'EHLO'} ${heloOf(client) ?? name}`;
    const text = await this.#setUp('ehlo', hello, 'EHLO after XCLIENT', (reply) => replyClass(reply) === 2);
    // What was offered to us need not be offered to the client.
    this._supportedAuth = [];
    this.allowsAuth = false;
    this._parseEhloExtensions(text);
    this.capabilities = parseCapabilities(this.offers, this.#options);
  }

  /** A command while the library reads. @throws IntroductionError when the reply isn't `good` */
  #setUp(phase: ReplyPhase, line: string, what: string, good: (reply: Reply) => boolean): Promise<string> {
    this.#enter(phase);
    return new Promise((resolve, reject) => {
      const refuse = (detail: string, reply: Reply | null) =>
        reject(new IntroductionError(phase, detail, reply, this.lost?.cause === 'timeout', this.#error));
      const onEnd = () => refuse(`${this.lost?.detail ?? 'connection lost'} (${what})`, null);
      this.once('end', onEnd);
      this._responseActions.push((text) => {
        this.off('end', onEnd);
        this.#observe(phase, text);
        const reply = parseReply(text);
        if (reply !== null && good(reply)) resolve(text);
        else refuse(`refused ${what} with ${reply?.code ?? 'nonsense'}`, reply);
      });
      this._sendCommand(line);
    });
  }

  #authenticate(auth: { user: string; pass: string }): Promise<void> {
    this.#enter('auth');
    const refuse = (detail: string, cause: PeerError | null = null) => {
      const reply = cause?.response === undefined ? null : parseReply(cause.response);
      return new OpenError('auth', detail, reply, this.lost?.cause === 'timeout', cause);
    };
    if (!this.secure && !this.#options.authInClear) throw refuse('credentials are not sent without TLS');
    // The library would say AUTH PLAIN, and a server that doesn't know that may well log it.
    if (!this.offers.some((line) => USABLE_AUTH.test(line)))
      throw refuse('AUTH is not offered by PLAIN, LOGIN or CRAM-MD5');
    return new Promise((resolve, reject) => {
      this.once('end', () => reject(refuse('connection lost during AUTH')));
      this.login({ ...auth }, (error: PeerError | null) => {
        if (error === null) {
          this.#observe('auth', AUTHENTICATED);
          return resolve();
        }
        if (error.response !== undefined) this.#observe('auth', error.response);
        reject(refuse('the next hop refused our credentials', error));
      });
    });
  }

  #expect(phase: ReplyPhase | null, timeoutMs: number): Promise<Exchange> {
    if (this.lost !== null) return Promise.resolve(this.lost);
    return new Promise((settle) => {
      this.#pending.push({ phase, timeoutMs, settle });
      if (this.#pending.length === 1) this.#watch();
    });
  }

  #answer(text: string): void {
    const pending = this.#pending.shift();
    const reply = this.#parsed(text);
    if (pending === undefined) {
      // A server that says goodbye to an idle session is in its right; anything else unasked is nonsense.
      this.#lose({
        kind: 'lost',
        cause: reply?.code === 421 ? 'closed' : 'protocol',
        detail: 'spoke unasked',
      });
      return;
    }
    if (pending.phase !== null) this.#options.onReply(pending.phase, reply);
    this.#watch();
    if (reply !== null) {
      pending.settle({ kind: 'reply', reply });
      // RFC 5321 §3.8.
      if (reply.code === 421) this.#lose({ kind: 'lost', cause: 'closed', detail: 'closed its channel' });
      return;
    }
    const lost: Lost = { kind: 'lost', cause: 'protocol', detail: 'malformed reply' };
    pending.settle(lost);
    this.#lose(lost);
  }

  /** A server says the same few things over and over. */
  #parsed(text: string): Reply | null {
    for (const known of this.#known) if (known.text === text) return known.reply;
    const reply = parseReply(text);
    if (text.length > MAX_KNOWN_OCTETS) return reply;
    this.#known[this.#knownNext] = { text, reply };
    this.#knownNext = (this.#knownNext + 1) % MAX_KNOWN;
    return reply;
  }

  #send(commands: ReadonlyArray<{ line: string }>): void {
    let lines = '';
    for (const { line } of commands) lines += `${line}\r\n`;
    if (this._socket !== false) this._socket.write(lines);
  }

  #observe(phase: ReplyPhase, text: string): void {
    this.#options.onReply(phase, parseReply(text));
  }

  #enter(phase: ReplyPhase): void {
    this.#phase = phase;
    this.#deadline.set(this.#options.commandTimeoutMs);
  }

  /** Sets the deadline for the reply that is due next, if one is. */
  #watch(): void {
    const next = this.#pending[0];
    if (next === undefined || next.timeoutMs === NEVER_MS || this.lost !== null) return this.#deadline.lift();
    this.#deadline.set(next.timeoutMs);
  }

  #corkThisTick(): void {
    const socket = this._socket;
    if (this.#corked || socket === false) return;
    this.#corked = true;
    socket.cork();
    process.nextTick(() => {
      this.#corked = false;
      socket.uncork();
    });
  }

  #settleDrain(): void {
    const settle = this.#onDrain;
    this.#onDrain = NOBODY;
    settle?.();
  }

  /** Replies that came together with the end of the connection are as good as any. */
  #closedByPeer(): void {
    this.#ended = true;
    if (!this.#readsOn) this.#lose(CLOSED);
  }

  /** The one gate to the end of a session. */
  #lose(lost: Lost): void {
    if (this.lost !== null) return;
    this.lost = lost;
    this.#deadline.dispose();
    this.close();
    for (const { settle } of this.#pending.splice(0)) settle(lost);
    this.#settleDrain();
  }
}

const NOBODY = (): void => {};

function lossOf(error: PeerError): Lost {
  if (error.code === 'ETIMEDOUT') return { kind: 'lost', cause: 'timeout', detail: error.message };
  if (error.code === 'EPROTOCOL') return { kind: 'lost', cause: 'protocol', detail: 'unexpected reply' };
  if (error.code === 'ETLS') return { kind: 'lost', cause: 'protocol', detail: 'TLS handshake failed' };
  return CLOSED;
}
