// What must be known of a message while its bytes run through: where it ends, that it is innocent (wire.ts), not too
// big, and not in a loop. Puts our Received line before the first byte (RFC 5321 §4.4). Pure but for its own state.
import { HeaderScanner } from './received.ts';
import { bareNewline, mailLoop, messageTooBig, type Reply } from './reply.ts';
import { WireScanner } from './wire.ts';

export type MessageLimits = Readonly<{ maxMessageBytes: number; maxReceived: number }>;

/** What one chunk of the connection amounts to. `end`: index behind the final line, -1 while it was not seen. */
export type BodyChunk = Readonly<{ pieces: readonly Buffer[]; end: number; refusal: Reply | null }>;

export class MessageBody {
  readonly #scanner = new WireScanner();
  readonly #header = new HeaderScanner();
  readonly #limits: MessageLimits;
  #received: Buffer | null;
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
    if (!this.#header.done) this.#header.push(piece);
    this.#putReceived();
    this.#pieces.push(piece);
  };

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
