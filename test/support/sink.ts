// A scripted SMTP (or LMTP) server on loopback: by default it accepts everything and remembers it; at any phase it can
// be told to misbehave. Raw sockets, no library, so that it can do what a library would not.
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { createSecureContext, type SecureContextOptions, TLSSocket } from 'node:tls';

export type Phase = 'greeting' | 'ehlo' | 'mail' | 'rcpt' | 'data' | 'body' | 'dot';
type Scripted = Phase | 'xclient' | 'xforward' | 'rset' | 'overall';

/** A reply (without CRLF; several lines joined by \n), or what to do instead of replying. */
export type Act =
  | string
  | { act: 'fin' | 'rst' | 'stall' | 'endless' | 'garbage' }
  | { act: 'dribble'; text: string; everyMs: number }
  | { act: 'delay'; ms: number; next: Act };

/** `taken`: the recipients (as in `rcpts`) that were told 2xx for it. */
export type Received = { mail: string; rcpts: string[]; taken: string[]; body: Buffer; helo: string };

export type SinkOptions = {
  /** By phase; a function sees the command line and how often the phase was reached on this server. */
  script?: Partial<Record<Scripted, Act | ((line: string, nth: number, session: SinkSession) => Act | null)>>;
  extensions?: string[] | ((session: SinkSession) => string[]);
  lmtp?: boolean;
  /** Where MAIL has PRDR: 353, `dot` for each recipient, then `overall`. */
  prdr?: boolean;
  /** A PROXY header (version 2) is read before anything else. */
  proxyProtocol?: boolean;
  /** STARTTLS is taken, or with `implicit` TLS begins at once. */
  tls?: SecureContextOptions & { implicit?: boolean };
  /** Stop reading the socket in the body after this many octets, until release() is called. */
  stopReadingAfter?: number;
  host?: string;
  port?: number;
  /** Sees what goes over a session's wire as it goes; `closed` is its end, whoever ended it. */
  onWire?: (session: SinkSession, what: 'read' | 'written' | 'closed', text: string) => void;
};

export type SinkEvent = { at: number; what: string };

/** Put together as they come, without all being copied each time. */
class Octets {
  #room = Buffer.allocUnsafe(1024);
  #length = 0;

  get all(): Buffer {
    return this.#room.subarray(0, this.#length);
  }

  append(chunk: Buffer): void {
    const length = this.#length + chunk.length;
    if (length > this.#room.length) {
      const room = Buffer.allocUnsafe(2 * length);
      this.#room.copy(room, 0, 0, this.#length);
      this.#room = room;
    }
    chunk.copy(this.#room, this.#length);
    this.#length = length;
  }
}

export class SinkSession {
  socket: Socket;
  proxyHeader: Buffer | null = null;
  readonly commands: string[] = [];
  readonly read = new Octets();
  /** Body octets seen so far in the DATA under way. */
  bodyOctets = 0;
  sawDot = false;
  closed = false;
  /** Answers nothing any more: a server replies in order, so one that is stuck is stuck for good. */
  stuck = false;
  helo = '';

  constructor(socket: Socket) {
    this.socket = socket;
  }

  /** Everything read. */
  get raw(): Buffer {
    return this.read.all;
  }

  release(): void {
    this.socket.resume();
  }
}

const END = Buffer.from('\r\n.\r\n');

export class Sink {
  readonly messages: Received[] = [];
  readonly sessions: SinkSession[] = [];
  readonly events: SinkEvent[] = [];
  readonly #options: SinkOptions;
  readonly #server: net.Server;
  readonly #counts = new Map<Scripted, number>();
  readonly #timers = new Set<NodeJS.Timeout>();

  constructor(options: SinkOptions) {
    this.#options = options;
    this.#server = net.createServer({ noDelay: true }, (socket) => void this.#accept(socket));
  }

  async #accept(socket: Socket): Promise<void> {
    const session = new SinkSession(socket);
    this.sessions.push(session);
    socket.on('error', () => {});
    const { proxyProtocol, tls } = this.#options;
    if (proxyProtocol) session.proxyHeader = await readProxyHeader(socket);
    if (tls?.implicit) secure(session, tls);
    this.#serve(session);
  }

  static async start(options: SinkOptions = {}): Promise<Sink> {
    const sink = new Sink(options);
    sink.#server.listen(options.port ?? 0, options.host ?? '127.0.0.1');
    await once(sink.#server, 'listening');
    return sink;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  get url(): string {
    return `${this.#options.lmtp ? 'lmtp' : 'smtp'}://127.0.0.1:${this.port}`;
  }

  get host(): string {
    return this.url.slice(this.url.indexOf('//') + 2);
  }

  get connections(): number {
    return this.sessions.length;
  }

  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const session of this.sessions) session.socket.destroy();
    await closed;
  }

  #serve(session: SinkSession): void {
    const { socket } = session;
    socket.on('close', () => {
      session.closed = true;
      this.#options.onWire?.(session, 'closed', '');
    });
    let buffer: Buffer = Buffer.alloc(0);
    let inBody = false;
    let mail = '';
    let rcpts: string[] = [];
    let body = new Octets();
    const perform = (phase: Scripted, line: string, fallback: string) =>
      this.#perform(session, phase, line, fallback);

    const answer = (): string[] => {
      const asked = this.#options.prdr === true && / PRDR\b/.test(mail);
      const accepts = (said: string | null) => said?.startsWith('2') ?? false;
      if (!asked && !this.#options.lmtp) return accepts(perform('dot', '', '250 2.0.0 queued')) ? rcpts : [];
      if (asked) this.#do(session, '353 go on');
      const taken = rcpts.filter((rcpt) => accepts(perform('dot', rcpt, '250 2.0.0 queued')));
      if (!asked) return taken;
      const overall = taken.length > 0 ? '250 2.0.0 accepted' : '550 5.7.1 refused by all';
      return accepts(perform('overall', '', overall)) ? taken : [];
    };

    const onBody = () => {
      const before = body.all.length;
      body.append(buffer);
      const joined = body.all;
      session.bodyOctets = joined.length;
      buffer = Buffer.alloc(0);
      // The terminator may be the very first line.
      const first = joined.subarray(0, 3).equals(Buffer.from('.\r\n')) ? 0 : -1;
      const at = first === 0 ? 0 : joined.indexOf(END, Math.max(0, before - 4));
      if (at === -1) {
        const limit = this.#options.stopReadingAfter ?? Number.POSITIVE_INFINITY;
        if (joined.length >= limit && before < limit) socket.pause();
        const nth = this.#counts.get('body') ?? 0;
        if (nth === 0 && this.#options.script?.body !== undefined) perform('body', '', '');
        return;
      }
      const end = first === 0 ? 0 : at + 2;
      session.sawDot = true;
      this.#log('dot');
      buffer = joined.subarray(end + 3);
      inBody = false;
      body = new Octets();
      const taken = answer();
      if (taken.length > 0)
        this.messages.push({ mail, rcpts, taken, body: joined.subarray(0, end), helo: session.helo });
      mail = '';
      rcpts = [];
    };

    const onLine = (line: string) => {
      session.commands.push(line);
      this.#log(line);
      const verb = line.slice(0, 4).toUpperCase();
      switch (verb) {
        case 'EHLO':
        case 'LHLO':
        case 'HELO': {
          session.helo = line.slice(5);
          const { extensions = DEFAULT_EXTENSIONS } = this.#options;
          const offers = typeof extensions === 'function' ? extensions(session) : extensions;
          const lines = ['sink.example', ...offers, ...(this.#options.prdr ? ['PRDR'] : [])];
          const last = lines.length - 1;
          perform('ehlo', line, lines.map((text, i) => `250${i === last ? ' ' : '-'}${text}`).join('\n'));
          return;
        }
        case 'XCLI':
          return void perform('xclient', line, '220 sink.example ESMTP');
        case 'XFOR':
          return void perform('xforward', line, '250 2.0.0 ok');
        case 'STAR': {
          this.#write(session, '220 go ahead');
          socket.removeAllListeners('data');
          return void secure(session, this.#options.tls!).on('data', onData);
        }
        case 'MAIL': {
          const said = perform('mail', line, '250 2.1.0 ok');
          if (said?.startsWith('2')) mail = line;
          return;
        }
        case 'RCPT': {
          if (mail === '') return void this.#do(session, '503 5.5.1 need MAIL');
          const said = perform('rcpt', line, '250 2.1.5 ok');
          if (said?.startsWith('2')) rcpts.push(line);
          return;
        }
        case 'DATA': {
          const said = perform('data', line, '354 go ahead');
          if (said?.startsWith('354')) inBody = true;
          session.bodyOctets = 0;
          return;
        }
        case 'RSET':
          mail = '';
          rcpts = [];
          return void perform('rset', line, '250 2.0.0 ok');
        case 'QUIT':
          this.#write(session, '221 2.0.0 bye');
          return void session.socket.end();
        default:
          return this.#write(session, '250 2.0.0 ok');
      }
    };

    const onData = (chunk: Buffer) => {
      this.#options.onWire?.(session, 'read', chunk.toString('latin1'));
      session.read.append(chunk);
      buffer = Buffer.concat([buffer, chunk]);
      for (;;) {
        if (inBody) {
          onBody();
          if (inBody) return;
        }
        const lf = buffer.indexOf('\r\n');
        if (lf === -1) return;
        const line = buffer.subarray(0, lf).toString('utf8');
        buffer = buffer.subarray(lf + 2);
        onLine(line);
      }
    };
    socket.on('data', onData);
    perform('greeting', '', '220 sink.example ESMTP');
  }

  /** The reply that was or will be given, null where there is none. */
  #perform(session: SinkSession, phase: Scripted, line: string, fallback: string): string | null {
    const nth = this.#counts.get(phase) ?? 0;
    this.#counts.set(phase, nth + 1);
    const scripted = this.#options.script?.[phase];
    const act = (typeof scripted === 'function' ? scripted(line, nth, session) : scripted) ?? fallback;
    return this.#do(session, act);
  }

  #do(session: SinkSession, act: Act): string | null {
    const { socket } = session;
    if (session.stuck) return null;
    if (typeof act === 'string') {
      if (act !== '') this.#write(session, act);
      return act;
    }
    switch (act.act) {
      case 'fin':
        socket.end();
        return null;
      case 'rst':
        socket.resetAndDestroy();
        return null;
      case 'stall':
        session.stuck = true;
        return null;
      case 'garbage':
        socket.write('\x00\xffwhat is this\r\n');
        return null;
      case 'endless': {
        session.stuck = true;
        this.#every(1, () => socket.write(`250-${'x'.repeat(500)}\r\n`));
        return null;
      }
      case 'dribble': {
        session.stuck = true;
        const bytes = [...act.text];
        this.#every(act.everyMs, () => {
          const next = bytes.shift();
          if (next !== undefined) socket.write(next);
        });
        return null;
      }
      case 'delay': {
        const timer = setTimeout(() => this.#do(session, act.next), act.ms);
        this.#timers.add(timer);
        return typeof act.next === 'string' ? act.next : null;
      }
    }
  }

  #write(session: SinkSession, reply: string): void {
    const text = `${reply.split('\n').join('\r\n')}\r\n`;
    this.#options.onWire?.(session, 'written', text);
    session.socket.write(text);
  }

  #every(ms: number, action: () => void): void {
    this.#timers.add(setInterval(action, ms));
  }

  #log(what: string): void {
    this.events.push({ at: performance.now(), what });
  }
}

/** 16 octets, and as many as the last two of them say. */
async function readProxyHeader(socket: Socket): Promise<Buffer> {
  const read = async (octets: number): Promise<Buffer> => {
    for (;;) {
      const got = socket.read(octets) as Buffer | null;
      if (got !== null) return got;
      await once(socket, 'readable');
    }
  };
  const head = await read(16);
  const length = head.readUInt16BE(14);
  return length === 0 ? head : Buffer.concat([head, await read(length)]);
}

function secure(session: SinkSession, tls: SecureContextOptions): TLSSocket {
  const secured = new TLSSocket(session.socket, { isServer: true, secureContext: createSecureContext(tls) });
  secured.on('error', () => {});
  session.socket = secured;
  return secured;
}

const DEFAULT_EXTENSIONS = [
  'PIPELINING',
  'SIZE 104857600',
  '8BITMIME',
  'SMTPUTF8',
  'DSN',
  'ENHANCEDSTATUSCODES',
];
