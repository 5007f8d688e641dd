// What must be known of a message while its bytes run through: where it ends, that it is innocent (wire.ts), not too
// big, and not in a loop. Puts our Received line before the first byte (RFC 5321 §4.4). Keeps what the ledger knows a
// message by: its header block and a digest. Pure but for its own state.
import type { Digest } from './octets.ts';
import { HeaderScanner } from './received.ts';
import { bareNewline, mailLoop, messageTooBig, type Reply } from './reply.ts';
import { WireScanner } from './wire.ts';

export type MessageLimits = Readonly<{ maxMessageBytes: number; maxReceived: number }>;

/** What one chunk of the connection amounts to. `end`: index behind the final line, -1 while it was not seen. */
export type BodyChunk = Readonly<{ pieces: readonly Buffer[]; end: number; refusal: Reply | null }>;

/** Longer header blocks are not kept. */
const MAX_HEADER_OCTETS = 64 * 1024;
/** Not worth a copy. */
const SMALL_OCTETS = 8 * 1024;

export class MessageBody {
  readonly #scanner = new WireScanner();
  readonly #header = new HeaderScanner();
  readonly #limits: MessageLimits;
  #received: Buffer | null;
  #headerPieces: Buffer[] = [];
  #headerOctets = 0;
  #pieces: Buffer[] = [];
  #refusal: Reply | null = null;

  constructor(received: Buffer, limits: MessageLimits) {
    this.#received = received;
    this.#limits = limits;
  }

  /** Octets so far, RFC 1870 §5. */
  get octets(): number {
    return this.#scanner.messageOctets;
  }

  /** Of the wire form as the upstream sent it. */
  get digest(): Digest {
    return this.#scanner.digest;
  }

  /** Nothing more will come of the header block. */
  get headerDone(): boolean {
    return this.#header.done || this.#headerOctets > MAX_HEADER_OCTETS;
  }

  /** As the upstream sent it, with the empty line behind it, as far as it has come; null when it is too long to be kept. */
  get header(): Buffer | null {
    return this.#headerOctets > MAX_HEADER_OCTETS ? null : Buffer.concat(this.#headerPieces);
  }

  /** Nothing of a chunk in or after which the message turned out unacceptable is in `pieces`. */
  push(chunk: Buffer): BodyChunk {
    this.#pieces = [];
    const end = this.#scanner.push(chunk, this.#onward);
    this.#refusal ??= this.#judge();
    if (this.#refusal !== null) return { pieces: [], end, refusal: this.#refusal };
    // A message without a byte has been received, too.
    if (end !== -1) this.#putReceived();
    return { pieces: this.#pieces, end, refusal: null };
  }

  readonly #onward = (piece: Buffer): void => {
    if (this.#refusal !== null) return;
    if (!this.#header.done) this.#keepHeader(piece, this.#header.push(piece));
    this.#putReceived();
    this.#pieces.push(piece);
  };

  #keepHeader(piece: Buffer, octets: number): void {
    this.#headerOctets += octets;
    const part = piece.subarray(0, octets);
    // A view keeps the whole chunk.
    if (this.#headerOctets > MAX_HEADER_OCTETS) this.#headerPieces = [];
    else this.#headerPieces.push(piece.length > SMALL_OCTETS ? Buffer.from(part) : part);
  }

  #putReceived(): void {
    if (this.#received !== null) this.#pieces.push(this.#received);
    this.#received = null;
  }

  #judge(): Reply | null {
    if (this.#scanner.violation !== null) return bareNewline();
    if (this.#scanner.messageOctets > this.#limits.maxMessageBytes)
      return messageTooBig(this.#limits.maxMessageBytes);
    // RFC 5321 §6.3.
    if (this.#header.receivedCount > this.#limits.maxReceived) return mailLoop();
    return null;
  }
}
