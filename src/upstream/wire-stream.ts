// The upstream's byte stream: command lines up to DATA, wire bytes until the body's end is seen, commands again.
//
// smtp-server's own parser takes a bare LF for a line end, runs an unterminated command at FIN, and unstuffs bodies
// byte by byte; this subclass replaces all three, and Writable's queue as well: pipe() sees write() return false while
// something waits here behind what is being dealt with, so that two chunks are held at most, and back pressure reaches the
// upstream.
import { SMTPStream } from 'smtp-server/lib/smtp-stream.js';

export type BodySink = Readonly<{
  /**
   * `end`: index behind the final line, -1 while it was not seen; `ready`: wait for it before the next push; `kept`: the
   * chunk is still needed after that.
   */
  push: (chunk: Buffer) => { end: number; ready: Promise<void> | null; kept: boolean };
  /** The body is complete; `resume` goes on with the commands behind it. */
  end: (resume: () => void) => void;
}>;

/** RFC 5321 §4.5.3.1.4: 512 octets, more for the parameters of extensions (SIZE, ENVID, ORCPT). */
const MAX_COMMAND_OCTETS = 4096;
/** Of a message, beside the chunk being dealt with. */
const MAX_REST_OCTETS = 16 * 1024;
const LF = 0x0a;
const CR = 0x0d;
const NOTHING = Buffer.alloc(0);

export class WireStream extends SMTPStream {
  /** Called once for input that is no command; the connection has to be closed. */
  onrefuse: (reason: 'bare-lf' | 'line-too-long') => void = () => {};

  /** How many chunks have come: two commands with the same count came in one. */
  chunks = 0;
  /** How many octets have come. */
  octets = 0;

  /** What came last is still needed, in part at least. */
  keepsChunk = true;

  #chunk: Buffer = NOTHING;
  #input: Buffer = NOTHING;
  /** The socket waits for 'drain'. */
  #full = false;
  #body: BodySink | null = null;
  #waiting = false;
  /** The message is being answered: with commands sent ahead held here, the socket is still seen to end. */
  #ending = false;
  #running = false;

  /** The next bytes are a message. Call it from within a command, before its callback. */
  startBody(sink: BodySink): void {
    this.#body = sink;
  }

  /** Of `octets`, up to the end of the command or message being worked on. */
  get dealtWith(): number {
    return this.octets - this.#input.length;
  }

  /** Whether more has come than the command being worked on. */
  get hasMore(): boolean {
    return this.#input.length > 0;
  }

  override write(chunk: Buffer): boolean {
    this.#input = this.#input.length === 0 ? chunk : Buffer.concat([this.#input, chunk]);
    this.#chunk = chunk;
    this.keepsChunk = true;
    this.chunks++;
    this.octets += chunk.length;
    this.#run();
    // A client that waits for our reply sends nothing more: stopping its socket for that would be work for nothing.
    this.#full = this.#holdsEnough;
    return !this.#full;
  }

  /** The rest of a message is let in, and commands behind it, so that a client that goes meanwhile is seen to go. */
  get #holdsEnough(): boolean {
    const room = this.#ending ? MAX_COMMAND_OCTETS : this.#body !== null ? MAX_REST_OCTETS : 0;
    return this.#waiting && this.#input.length > room;
  }

  /** At FIN an unterminated command is no command. */
  override _flushData(): void {}

  // A loop, not a recursion: callbacks that come at once only let it go on.
  #run(): void {
    if (this.#running) return;
    this.#running = true;
    try {
      while (!this.#waiting && this.#input.length > 0 && this.#step());
    } finally {
      this.#running = false;
    }
    if (!this.#full || (this.#waiting && !this.#ending) || this.#holdsEnough) return;
    this.#full = false;
    this.emit('drain');
  }

  /** @returns false when more must come first */
  #step(): boolean {
    if (this.isClosed) this.#input = NOTHING;
    else if (this.#body === null) return this.#command();
    else this.#bodyBytes(this.#body);
    return true;
  }

  #command(): boolean {
    const lf = this.#input.indexOf(LF);
    if (lf > MAX_COMMAND_OCTETS || (lf === -1 && this.#input.length > MAX_COMMAND_OCTETS)) {
      return this.#refuse('line-too-long');
    }
    if (lf === -1) return false;
    // RFC 5321 §2.3.8: only CRLF ends a line.
    if (lf === 0 || this.#input[lf - 1] !== CR) return this.#refuse('bare-lf');
    const line = this.#input.subarray(0, lf - 1);
    this.#input = this.#input.subarray(lf + 1);
    this.#wait((resume) => this.oncommand(line, resume));
    return true;
  }

  #bodyBytes(body: BodySink): void {
    const chunk = this.#input;
    this.#input = NOTHING;
    const { end, ready, kept } = body.push(chunk);
    if (end === -1) {
      this.keepsChunk = kept || chunk !== this.#chunk;
      if (ready !== null) this.#wait((resume) => void ready.then(resume));
      return;
    }
    this.#input = chunk.subarray(end);
    this.#body = null;
    this.#ending = true;
    this.#wait((resume) =>
      body.end(() => {
        this.#ending = false;
        resume();
      }),
    );
  }

  #refuse(reason: 'bare-lf' | 'line-too-long'): true {
    this.isClosed = true;
    this.onrefuse(reason);
    return true;
  }

  #wait(start: (resume: () => void) => void): void {
    this.#waiting = true;
    start(() => {
      this.#waiting = false;
      this.#run();
    });
  }
}
