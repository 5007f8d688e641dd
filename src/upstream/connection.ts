// One upstream session (RFC 5321 §3; RFC 2033 where it is LMTP): commands in, replies out, at most one transaction at a
// time.
//
// smtp-server's connection does the socket's life, the greeting and STARTTLS; every command that matters is answered
// here, since the library's replies, address rules and immediate 354 are not ours. RCPTs that the upstream pipelines
// are worked on concurrently and answered in order (RFC 2920 §3.2).
// Owns one deadline: how long the upstream may take for its next command, and be silent in a message altogether. Bytes of
// a command that never ends don't put it off, those of a message only as far as they go. Every end of the connection
// aborts the transaction.
import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import type { SMTPServer } from 'smtp-server';
import { SMTPConnection, type SMTPConnectionOptions } from 'smtp-server/lib/smtp-connection.js';
import type { Config } from '../config.ts';
import type { Transaction } from '../cut-through/transaction.ts';
import { Deadline } from '../deadline.ts';
import type { MessageHistory } from '../ledger/message-history.ts';
import { classLabel, type Metrics } from '../metrics.ts';
import { readChunks } from '../read-in-place.ts';
import { decodeCommandLine, type MailParams, parseMail, parseRcpt } from '../smtp/address.ts';
import type { Client, Recipient, Sender } from '../smtp/envelope.ts';
import * as replies from '../smtp/reply.ts';
import { formatReply, type Reply, replyClass } from '../smtp/reply.ts';
import type { Answer } from '../spool/recipient-replies.ts';
import type { StoredTransaction } from '../spool/stored-transaction.ts';
import type { Admission } from './admission.ts';
import { finalReplies } from './final-replies.ts';
import { WireStream } from './wire-stream.ts';
import {
  forwardedClient,
  parseXclient,
  parseXforward,
  type Told,
  XCLIENT_KEYWORD,
  XFORWARD_KEYWORD,
} from './xclient.ts';

/** What a session is given once, when it begins; a reload makes a new one for the sessions after it. */
export type SessionContext = Readonly<{
  config: Config;
  admission: Admission;
  metrics: Metrics;
  log: Logger;
  /** LMTP is spoken here, and no SMTP. */
  lmtp: boolean;
  /** STARTTLS is offered: there is a certificate, and the listener is not TLS already. */
  startTls: boolean;
  /** DSN is offered: it can be honoured at every next hop. */
  offersDsn: () => boolean;
  newTransaction: (sender: Sender, client: Client) => MailTransaction;
  /** Why no mail is taken at present, or null. */
  refusesMail: () => Reply | null;
  /** False above --max-connections. */
  hasRoom: () => boolean;
  onClosed: () => void;
}>;

/** Cut through, or stored first. */
type MailTransaction = Transaction | StoredTransaction;

type Resume = () => void;
type Slot = { reply: Reply | null };

/** Unknown commands before the session is ended. */
const MAX_UNKNOWN_COMMANDS = 10;
/**
 * What each octet of a message adds to the time left for it, up to --idle-timeout: 500 a second keep it, as Postfix's
 * smtpd_min_data_rate. A peer that trickles would hold a session with every next hop for as long as it likes.
 */
const MS_PER_BODY_OCTET = 1_000 / 500;
/** Pipelined RCPTs that may wait for their answer, over those that --max-recipients allows. */
const SPARE_SLOTS = 16;
/** Verbs that have a label of their own in the metrics. */
const VERBS = new Set([
  'DATA',
  'EHLO',
  'HELO',
  'HELP',
  'LHLO',
  'MAIL',
  'NOOP',
  'QUIT',
  'RCPT',
  'RSET',
  'STARTTLS',
  'VRFY',
  'XCLIENT',
  'XFORWARD',
]);
/** Verbs that get a transaction further where they are not refused. */
const ADVANCING = new Set(['MAIL', 'RCPT', 'DATA']);
/** Known to the RFCs, and answered 502. */
const NOT_IMPLEMENTED = new Set(['AUTH', 'BDAT', 'BURL', 'ETRN', 'EXPN', 'SAML', 'SEND', 'SOML', 'TURN']);
/** A browser was tricked into talking to us (cross-protocol request). */
const HTTP_METHODS = new Set([
  'CONNECT',
  'DELETE',
  'GET',
  'HEAD',
  'OPTIONS',
  'PATCH',
  'POST',
  'PUT',
  'TRACE',
]);

export class UpstreamConnection extends SMTPConnection {
  readonly #context: SessionContext;
  /** By the address in force, which XCLIENT may change. */
  #trusted: boolean;
  /** The client's host name, where XCLIENT has told it. */
  #clientName: string | null = null;
  /** What XFORWARD has told of the next transaction's client; null: nothing. */
  #forwarded: Told | null = null;
  /** Replies due to pipelined RCPTs, in the order of the commands. */
  readonly #slots: Slot[] = [];
  #onSlotsEmpty: Resume | null = null;
  /** The chunk that the last RCPT came in. */
  #rcptChunks = 0;
  readonly #patience = new Deadline(() => this.#onImpatient());
  /** A command has got the transaction further. */
  #broughtOn = false;
  #transaction: MailTransaction | null = null;
  /** Its message is whole, and is being answered. */
  #finishing: MailTransaction | null = null;
  /** The last one to be answered, while no command has shown that the client has read the answer. */
  #unconfirmed: MessageHistory | null = null;
  /** So many octets the client had sent before it was answered: Postfix and Exim send QUIT with the dot. */
  #sentAhead = 0;
  #draining = false;
  /** After a refused DATA the next lines may be a body that was sent regardless. */
  #refusedData = false;
  #beforeGreeting: Resume | null = null;
  #released = false;
  /** The topmost socket: destroying the one below a TLS handshake would take the process down with it. */
  #top: Socket;

  constructor(server: SMTPServer, socket: Socket, options: SMTPConnectionOptions, context: SessionContext) {
    super(server, socket, options);
    this.#context = context;
    this.#top = socket;
    // Announced as unknown, which the library would take for not announced.
    if (options.remotePort === 0) this.remotePort = 0;
    this.#trusted = context.admission.isTrusted(this.remoteAddress);
  }

  /** Whom the mail comes from, as far as is known: for the log and next hops, not for admission. */
  get client(): Client {
    return this.#forwarded === null ? this.#peer : forwardedClient(this.#forwarded, this.#peer);
  }

  get #peer(): Client {
    const socket = this._socket;
    const tls =
      socket instanceof TLSSocket
        ? { version: socket.getProtocol() ?? 'TLS', cipher: socket.getCipher()?.name ?? '' }
        : null;
    return {
      address: this.remoteAddress,
      port: this.remotePort,
      name: this.#clientName,
      helo: this.hostNameAppearsAs || '',
      extended: this.openingCommand === 'EHLO' || this.openingCommand === 'LHLO',
      tls,
      lmtp: this.#context.lmtp,
      localAddress: this.localAddress,
      localPort: this.localPort,
    };
  }

  /** Ends the session now if it is idle, else when its transaction is over. */
  drain(): void {
    this.#draining = true;
    if (this.#transaction === null && !this._upgrading) this.#say('', replies.shuttingDown());
  }

  /** Ends the session at once; a transaction under way is aborted. */
  destroy(): void {
    if (!this._upgrading) this.#say('', replies.shuttingDown());
    this.#top.destroy();
  }

  // ---- what smtp-server does otherwise ----

  override init(): void {
    this.#readInPlace(this._socket, this._parser as WireStream);
    this._setListeners(() => {
      this.#awaitUpstream();
      if (!this.#context.hasRoom()) {
        this.#context.metrics.upstreamConnectionsRefused.inc();
        return this.#say('', replies.overloadedConnections());
      }
      const delayMs = this.#trusted ? 0 : this.#context.config.greetingDelayMs;
      if (delayMs === 0) return this.connectionReady();
      setTimeout(() => {
        if (!this._closing && !this._closed) this.connectionReady();
      }, delayMs);
    });
  }

  /** The pipe that the library lays carries then no more than the end. */
  #readInPlace(socket: Socket, parser: WireStream): void {
    const isDone = readChunks(
      socket,
      (chunk) => parser.write(chunk),
      () => parser.keepsChunk,
    );
    if (isDone) parser.on('drain', () => socket.resume());
  }

  override _sendGreeting(): void {
    this.#say('', this.#greeting());
    const resume = this.#beforeGreeting;
    this.#beforeGreeting = null;
    resume?.();
  }

  override _createParser(): WireStream {
    const stream = new WireStream();
    stream.oncommand = (line: Buffer, resume?: Resume) => this._onCommand(line, resume);
    stream.onrefuse = (reason) => {
      this.#say('', reason === 'bare-lf' ? replies.bareLineFeedCommand() : replies.lineTooLong());
      this.close();
    };
    stream.on('error', () => this.#top.destroy());
    return stream;
  }

  /**
   * Our own deadlines: the library's would count our waits against the upstream. But this is where it shows the TLS
   * socket before its handshake is done.
   */
  override _armTimeout(socket: Socket = this._socket): void {
    this.#top = socket;
    socket.on('end', () => this.#finishing?.mayBeGone());
  }

  override _onClose(): void {
    super._onClose();
    this.#release();
  }

  override close(): void {
    super.close();
    this.#release();
  }

  override _onCommand(line: Buffer, resume: Resume = () => {}): void {
    if (this._upgrading || this._closing) return resume();
    if (!this._ready) return this.#onEarlyCommand(line, resume);
    this.#patience.pause();
    this.#confirm();
    const text = decodeCommandLine(line);
    const verb = text === null ? '' : (/^[A-Za-z]+/.exec(text)?.[0] ?? '').toUpperCase();
    const next = () => this.#nextCommand(resume);
    if (verb === 'RCPT' && text !== null) return this.#onRcpt(text, next);
    // Sent while we are still asking, it means that the client waits no longer; pipelined with the RCPTs, it waits.
    if ((verb === 'RSET' || verb === 'QUIT') && this.#chunks !== this.#rcptChunks) this.#transaction?.abort();
    this.#afterSlots(() => this.#onOther(verb, text, next));
  }

  get #chunks(): number {
    return this._parser === false ? 0 : (this._parser as WireStream).chunks;
  }

  // ---- commands ----

  #onOther(verb: string, text: string | null, next: Resume): void {
    if (this._closing || this._closed) return;
    if (text === null) return this.#answer('', replies.syntax('invalid UTF-8'), next);
    const args = text.slice(verb.length).trim();
    switch (verb) {
      case 'EHLO':
      case 'HELO':
      case 'LHLO':
        return this.#onHello(verb, args, next);
      case 'MAIL':
        return this.#answer(verb, this.#onMail(text), next);
      case 'DATA':
        return void this.#onData(args, next);
      case 'STARTTLS':
        return this.#onStartTls(args, next);
      case 'RSET':
        this.#endTransaction();
        return this.#answer(verb, replies.ok(), next);
      case 'NOOP':
        return this.#answer(verb, replies.ok(), next);
      case 'VRFY':
        return this.#answer(verb, replies.cannotVerify(), next);
      case 'HELP':
        return this.#answer(verb, replies.help(), next);
      case 'XCLIENT':
        return this.#answer(verb, this.#onXclient(args), next);
      case 'XFORWARD':
        return this.#answer(verb, this.#onXforward(args), next);
      case 'QUIT':
        this.#say(verb, replies.closing());
        return this.#leave();
      default:
        return this.#onUnknown(verb, next);
    }
  }

  #onHello(verb: 'EHLO' | 'HELO' | 'LHLO', args: string, next: Resume): void {
    const { lmtp } = this.#context;
    if (lmtp !== (verb === 'LHLO'))
      return this.#answer(verb, replies.otherHello(lmtp ? 'LHLO' : 'EHLO'), next);
    if (args === '' || /\s/.test(args)) return this.#answer(verb, replies.syntax(`${verb} hostname`), next);
    // RFC 5321 §4.1.4: a later EHLO resets as RSET does.
    this.#endTransaction();
    this.openingCommand = verb;
    this.hostNameAppearsAs = args;
    if (verb === 'HELO') return this.#answer(verb, replies.helo(this.name), next);
    const keywords = ['PIPELINING', `SIZE ${this.#context.config.maxMessageBytes}`, '8BITMIME', 'SMTPUTF8'];
    if (this.#context.offersDsn()) keywords.push('DSN');
    if (this.#context.startTls && !this.secure) keywords.push('STARTTLS');
    // RFC 9422 §4: how a client knows to split before it is told to.
    const { mode, mixed, maxRecipients } = this.#context.config;
    if (mode === 'cut-through' && mixed === 'split' && !lmtp)
      keywords.push(`LIMITS RCPTMAX=${maxRecipients} RCPTDOMAINMAX=1`);
    if (this.#offersPrdr) keywords.push('PRDR');
    keywords.push('ENHANCEDSTATUSCODES');
    if (this.#context.admission.mayAnnounce(this.remoteAddress))
      keywords.push(XCLIENT_KEYWORD, XFORWARD_KEYWORD);
    this.#answer(verb, replies.ehlo(this.name, keywords), next);
  }

  /** Per-recipient data responses: LMTP has them by itself, and the spool modes give one 250. */
  get #offersPrdr(): boolean {
    const { config, lmtp } = this.#context;
    return !lmtp && config.mode === 'cut-through' && this.openingCommand === 'EHLO';
  }

  #onMail(text: string): Reply {
    const { config, lmtp } = this.#context;
    if (!this.hostNameAppearsAs) return replies.badSequence(`send ${lmtp ? 'LHLO' : 'EHLO'} first`);
    if (config.requireTls && !this.secure) return replies.mustStartTls();
    if (this.#transaction !== null) return replies.badSequence('nested MAIL command');
    const refused = this.#context.refusesMail();
    if (refused !== null) return refused;
    const parsed = parseMail(text);
    if (!parsed.ok) return parsed.reply;
    // RFC 1870 §6.1.
    if ((parsed.params.size ?? 0) > config.maxMessageBytes)
      return replies.messageTooBig(config.maxMessageBytes);
    if (parsed.params.prdr && !this.#offersPrdr) return replies.unknownParameter('PRDR');
    const params: MailParams = lmtp ? { ...parsed.params, prdr: true } : parsed.params;
    this.#transaction = this.#context.newTransaction({ mailbox: parsed.mailbox, params }, this.client);
    return replies.senderOk();
  }

  #onRcpt(text: string, next: Resume): void {
    const transaction = this.#transaction;
    if (transaction === null) {
      return this.#afterSlots(() => this.#answer('RCPT', replies.badSequence('need MAIL first'), next));
    }
    this.#rcptChunks = this.#chunks;
    // Of those that wait for their answer some may be refused, and leave room for this one.
    if (this.#slots.length > 0 && transaction.recipientCount >= this.#context.config.maxRecipients)
      return this.#afterSlots(() => this.#onRcpt(text, next));
    const slot: Slot = { reply: null };
    const recipient = this.#admit(text, transaction);
    this.#slots.push(slot);
    const settle = (reply: Reply) => {
      slot.reply = reply;
      this.#flushSlots();
    };
    if (!('mailbox' in recipient)) {
      transaction.noteRefusal(recipient);
      settle(recipient);
    } else transaction.addRecipient(recipient).then(settle, (error: unknown) => settle(this.#bug(error)));
    if (this.#slots.length >= this.#context.config.maxRecipients + SPARE_SLOTS) this.#afterSlots(next);
    else this.#whenRead(next);
  }

  #admit(text: string, transaction: MailTransaction): Recipient | Reply {
    const { config, admission } = this.#context;
    const parsed = parseRcpt(text, { smtputf8: transaction.sender.params.smtputf8 });
    if (!parsed.ok) return parsed.reply;
    const refusal = admission.refusal(parsed.mailbox, this.#trusted);
    if (refusal !== null) return refusal;
    if (transaction.recipientCount >= config.maxRecipients) return replies.tooManyRecipients();
    return { mailbox: admission.withDomain(parsed.mailbox), params: parsed.params };
  }

  async #onData(args: string, next: Resume): Promise<void> {
    const transaction = this.#transaction;
    if (args !== '') return this.#answer('DATA', replies.syntax('DATA takes no argument'), next);
    if (transaction === null) return this.#refuseData(replies.badSequence('need MAIL first'), next);
    if (this.#context.lmtp && transaction.recipientCount === 0)
      return this.#refuseData(replies.noRecipientsForLmtp(), next);
    const refusal = await transaction.startData().catch((error: unknown) => this.#bug(error));
    if (this._closing || this._closed) return;
    if (refusal !== null) {
      if (transaction.state === 'ended') this.#forgetTransaction();
      return this.#refuseData(refusal, next);
    }
    const parser = this._parser as WireStream;
    parser.startBody({
      push: (chunk) => {
        this.#patience.extend(chunk.length * MS_PER_BODY_OCTET, this.#context.config.idleTimeoutMs);
        const { end, ready, kept } = transaction.push(chunk);
        if (ready === null) return { end, ready, kept };
        // The upstream is not idle while we don't read.
        this.#patience.pause();
        return { end, ready: ready.then(() => this.#patience.resume()), kept };
      },
      end: (resume) => void this.#onEndOfData(transaction, resume),
    });
    this.#answer('DATA', replies.startData(), next);
  }

  /** A client that sent the body with DATA would have it run as commands: it is let go (RFC 2920 §3.1). */
  #refuseData(refusal: Reply, next: Resume): void {
    const parser = this._parser;
    const pipelined = parser !== false && ((parser as WireStream).hasMore || this._socket.readableLength > 0);
    this.#say('DATA', refusal);
    if (pipelined) return this.#say('', replies.bodyAfterRefusal());
    this.#refusedData = true;
    next();
  }

  async #onEndOfData(transaction: MailTransaction, resume: Resume): Promise<void> {
    this.#patience.lift();
    // Its FIN means that it sends no more, and not that it has gone: Exim waits for the answers behind QUIT and FIN.
    // And one that waits no longer, and is going to send the message again, looks the same.
    const socket = this._socket;
    socket.allowHalfOpen = true;
    this.#finishing = transaction;
    const finished = transaction.finish().catch((error: unknown) => this.#unfinished(transaction, error));
    if (socket.readableEnded) transaction.mayBeGone();
    const answer = await finished;
    this.#finishing = null;
    this.#forgetTransaction();
    if (this._closing || this._closed) return transaction.history.vanished(this.#isReset);
    this.#confirm();
    this.#unconfirmed?.vanished(this.#isReset);
    this.#unconfirmed = transaction.history;
    this.#sentAhead = (this._parser as WireStream).octets + socket.readableLength;
    this.#answerAll(finalReplies(answer, this.#context.lmtp), () => {
      this.#nextCommand(resume);
      if (socket.readableEnded) socket.end();
      else socket.allowHalfOpen = false;
    });
  }

  #unfinished({ sender, recipientCount }: MailTransaction, error: unknown): Answer {
    const reply = this.#bug(error);
    return { reply, each: sender.params.prdr ? Array(recipientCount).fill(reply) : null };
  }

  /** In one write: who reads the first has them all. */
  #answerAll(answers: readonly Reply[], next: Resume): void {
    const socket = this._socket;
    if (answers.length > 1) socket.cork();
    for (const each of answers) this.#say('DATA', each);
    if (answers.length > 1) socket.uncork();
    if (!this._closing) this.#whenRead(next);
  }

  #onStartTls(args: string, next: Resume): void {
    if (!this.#context.startTls && !this.secure)
      return this.#answer('STARTTLS', replies.tlsNotAvailable(), next);
    if (this.secure) return this.#answer('STARTTLS', replies.badSequence('TLS is already active'), next);
    if (args !== '') return this.#answer('STARTTLS', replies.syntax('STARTTLS takes no argument'), next);
    // RFC 3207 §4.2: what was learnt in clear is forgotten.
    this.#endTransaction();
    this.#say('STARTTLS', replies.startTls());
    this.#awaitUpstream();
    if (!this._socket.destroyed) this.upgrade(next);
  }

  /** Postfix's XCLIENT_README: the session begins anew, as the announced client's. */
  #onXclient(args: string): Reply {
    const refusal = this.#cannotAnnounce();
    if (refusal !== null) return refusal;
    const parsed = parseXclient(args);
    if (!parsed.ok) return parsed.reply;
    const { address, port, name, helo, extended } = parsed.told;
    this.#endTransaction();
    // The peer's own port is not the announced client's.
    if (address !== undefined || port !== undefined) this.remotePort = port ?? 0;
    if (address !== undefined) this.remoteAddress = address;
    if (name !== undefined) this.#clientName = name;
    this.hostNameAppearsAs = helo || false;
    this.openingCommand = extended ? 'EHLO' : false;
    this.#trusted = this.#context.admission.isTrusted(this.remoteAddress);
    return this.#greeting();
  }

  #greeting(): Reply {
    return replies.greeting(this.name, this.#context.lmtp ? 'LMTP' : 'ESMTP');
  }

  /** Postfix's XFORWARD_README: in any number of commands, until the transaction is over. */
  #onXforward(args: string): Reply {
    const refusal = this.#cannotAnnounce();
    if (refusal !== null) return refusal;
    const parsed = parseXforward(args);
    if (!parsed.ok) return parsed.reply;
    this.#forwarded = { ...this.#forwarded, ...parsed.told };
    return replies.ok();
  }

  /**
   * By the address in force, as in Postfix: once a client is announced, the peer in between may have become a mere
   * pipe (nginx does), and what looks like its commands are the client's.
   */
  #cannotAnnounce(): Reply | null {
    if (!this.#context.admission.mayAnnounce(this.remoteAddress)) return replies.announcingDenied();
    return this.#transaction === null ? null : replies.badSequence('a transaction is in progress');
  }

  /** After 221, which the kernel has by now: a client that has nothing more to say isn't waited for. */
  #leave(): void {
    const socket = this._socket;
    const parser = this._parser;
    const isOver = parser !== false && !(parser as WireStream).hasMore && socket.readableLength === 0;
    if (!isOver || this.secure || socket.writableLength > 0) return this.close();
    this._closing = true;
    parser.isClosed = true;
    socket.destroy();
  }

  #onUnknown(verb: string, next: Resume): void {
    this._unrecognizedCommands++;
    const hostile =
      this.#refusedData || HTTP_METHODS.has(verb) || this._unrecognizedCommands >= MAX_UNKNOWN_COMMANDS;
    if (hostile) return this.#say('', replies.tooManyErrors());
    this.#answer(
      verb,
      NOT_IMPLEMENTED.has(verb) ? replies.commandNotImplemented() : replies.commandUnknown(),
      next,
    );
  }

  /** Before the greeting (RFC 5321 §4.3.1): a trusted client's command waits, another's ends the session. */
  #onEarlyCommand(line: Buffer, resume: Resume): void {
    if (!this.#trusted && this.#context.config.greetingDelayMs > 0)
      return this.#say('', replies.tooManyErrors());
    this.#beforeGreeting = () => this._onCommand(line, resume);
  }

  // ---- replies and order ----

  #answer(verb: string, reply: Reply, next: Resume): void {
    this.#say(verb, reply);
    if (!this._closing) this.#whenRead(next);
  }

  /** A client that pipelines without reading our replies must not make us hold them; nor may it wait for ever. */
  #whenRead(next: Resume): void {
    if (!this._socket.writableNeedDrain) return next();
    this.#awaitUpstream();
    this._whenWritable(next);
  }

  /** The one place that writes to the upstream. A 421 closes (RFC 5321 §3.8). */
  #say(verb: string, reply: Reply): void {
    const socket = this._socket;
    if (verb !== '') {
      const label = VERBS.has(verb) ? verb : 'other';
      this.#context.metrics.upstreamCommands.inc(label, classLabel(reply.code));
    }
    // During the handshake the socket below is raw: a byte written there would break the TLS records.
    if (!this._upgrading && !socket.destroyed && socket.writable) socket.write(formatReply(reply));
    if (reply.code === 421) this.close();
    if (reply.code < 400 && ADVANCING.has(verb)) this.#broughtOn = true;
    if (replyClass(reply) === 2) this.#refusedData = false;
  }

  #nextCommand(resume: Resume): void {
    if (this._closing || this._closed) return resume();
    if (this.#draining && (this.#transaction === null || this.#transaction.state === 'ended')) {
      return this.#say('', replies.shuttingDown());
    }
    if (this.#slots.length === 0) this.#awaitUpstream();
    resume();
  }

  #flushSlots(): void {
    while (this.#slots.length > 0 && this.#slots[0]!.reply !== null)
      this.#say('RCPT', this.#slots.shift()!.reply!);
    if (this.#slots.length > 0) return;
    const resume = this.#onSlotsEmpty;
    this.#onSlotsEmpty = null;
    if (resume !== null) resume();
    else this.#awaitUpstream();
  }

  #afterSlots(action: Resume): void {
    if (this.#slots.length === 0) action();
    else this.#onSlotsEmpty = action;
  }

  // ---- ends ----

  /** Within a transaction only what brings it on renews the deadline: next hops' sessions are held meanwhile. */
  #awaitUpstream(): void {
    if (this._closing || this._closed) return;
    if (this.#transaction === null || this.#broughtOn) this.#patience.set(this.#context.config.idleTimeoutMs);
    else this.#patience.resume();
    this.#broughtOn = false;
  }

  #onImpatient(): void {
    if (this._upgrading) this.#top.destroy();
    else this.#say('', replies.timeout());
  }

  /** What was sent after the answer shows that it was read. */
  #confirm(): void {
    if (this.#unconfirmed === null || (this._parser as WireStream).dealtWith <= this.#sentAhead) return;
    this.#unconfirmed.confirmed();
    this.#unconfirmed = null;
  }

  get #isReset(): boolean {
    return this.#top.errored !== null;
  }

  #endTransaction(): void {
    this.#transaction?.abort();
    this.#forgetTransaction();
  }

  #forgetTransaction(): void {
    this.#transaction = null;
    this.#forwarded = null;
  }

  #release(): void {
    if (this.#released) return;
    this.#released = true;
    this.#patience.dispose();
    this.#slots.length = 0;
    this.#onSlotsEmpty = null;
    this.#beforeGreeting = null;
    this.#transaction?.abort();
    this.#unconfirmed?.vanished(this.#isReset);
    this.#unconfirmed = null;
    this.#context.onClosed();
  }

  #bug(error: unknown): Reply {
    this.#context.log.error({ event: 'bug', err: error });
    return replies.transactionAborted();
  }
}
