// The DATA phase on the wire (RFC 5321 §4.1.1.4, §4.5.2): finds the end of data and refuses bare CR, bare LF
// and NUL, while every byte passes through as it came. Nothing is unstuffed or copied.
//
// Hold-back rule: a byte is handed on only once it is known to be innocent. `CR`, and the `.` or `.CR` of a line
// that may turn out to be the last one, wait for the next byte; a lenient server could otherwise take an aborted
// message for a complete one. From a violation on nothing more is handed on, only the end is looked for.
// Constant memory: at most two bytes are held, and those are constants.

const NUL = 0x00;
const LF = 0x0a;
const CR = 0x0d;
const DOT = 0x2e;
/** Every byte of interest is below this one. */
const FIRST_PLAIN = 0x0e;

const HELD_CR = Buffer.from('\r');
const HELD_DOT = Buffer.from('.');
const HELD_DOT_CR = Buffer.from('.\r');

/** The final line, written downstream only after the upstream's real one was seen (RFC 5321 §4.1.1.4). */
export const END_OF_DATA = Buffer.from('.\r\n');

export type WireViolation = 'bare-cr' | 'bare-lf' | 'nul';

// Where the scanner stands between two bytes.
type State =
  | 'line-start' // after CRLF, or before the first byte
  | 'text' // in the middle of a line
  | 'cr' // CR of a line end seen, held
  | 'dot' // CRLF . seen, the dot held
  | 'dot-cr' // CRLF . CR seen, both held
  | 'end'; // CRLF . CRLF seen

export class WireScanner {
  /** Set at the first bare CR, bare LF or NUL; the message must be refused (554 5.6.0). */
  violation: WireViolation | null = null;
  /** Octets of the message so far as RFC 1870 counts them: without stuffed dots and the final line. */
  messageOctets = 0;

  #state: State = 'line-start';

  get ended(): boolean {
    return this.#state === 'end';
  }

  /**
   * Feeds the next bytes of the connection. `onward` gets the innocent bytes in order, as one piece or, when held
   * bytes turn out innocent, two; never the final line.
   * @returns the index in `chunk` just behind the final line, or -1 while the end was not seen
   */
  push(chunk: Buffer, onward: (piece: Buffer) => void): number {
    const held = this.#heldBytes();
    const end = this.#scan(chunk);
    if (this.violation !== null) return end;
    const stillHeld = this.#heldBytes().length;
    const bodyEnd = end === -1 ? chunk.length : end - END_OF_DATA.length;
    // How far the innocent bytes reach, counted from the first held one.
    const innocent = held.length + bodyEnd - stillHeld;
    if (innocent <= 0) return end;
    if (held.length > 0) onward(innocent < held.length ? held.subarray(0, innocent) : held);
    if (innocent > held.length) {
      const length = innocent - held.length;
      onward(length === chunk.length ? chunk : chunk.subarray(0, length));
    }
    return end;
  }

  #heldBytes(): Buffer {
    switch (this.#state) {
      case 'cr':
        return HELD_CR;
      case 'dot':
        return HELD_DOT;
      case 'dot-cr':
        return HELD_DOT_CR;
      default:
        return NOTHING;
    }
  }

  /** The index behind the final line, or -1. */
  #scan(chunk: Buffer): number {
    for (let from = 0; from < chunk.length; from += SCRATCH_OCTETS) {
      const end = this.#scanPart(chunk, from, Math.min(SCRATCH_OCTETS, chunk.length - from));
      if (end !== -1) return from + end;
    }
    return -1;
  }

  #scanPart(chunk: Buffer, from: number, length: number): number {
    chunk.copy(SCRATCH, 0, from, from + length);
    // A sentinel: the search below always finds something.
    SCRATCH.fill(NUL, length, length + SENTINEL_OCTETS);
    let state = this.#state;
    let stuffed = 0;
    let at = 0;
    while (at < length && state !== 'end') {
      if (state === 'text') {
        at = nextSpecial(at);
        // The common line end, and an ordinary line behind it; the slow step below knows all the rest.
        if (SCRATCH[at] === CR && SCRATCH[at + 1] === LF) {
          at += 2;
          if (SCRATCH[at]! < FIRST_PLAIN || SCRATCH[at] === DOT) state = 'line-start';
          continue;
        }
        if (at >= length) break;
      }
      const byte = SCRATCH[at++]!;
      if (state === 'dot' && byte !== CR) stuffed++;
      if (byte === NUL) this.#violate('nul');
      state = this.#step(state, byte);
    }
    this.#state = state;
    this.messageOctets += at - stuffed - (state === 'end' ? END_OF_DATA.length : 0);
    return state === 'end' ? at : -1;
  }

  #step(state: State, byte: number): State {
    const afterCr = state === 'cr' || state === 'dot-cr';
    if (byte === LF) {
      if (state === 'dot-cr') return 'end';
      if (state === 'cr') return 'line-start';
      // Not a line end: a dot behind it must not end the message (SMTP smuggling).
      this.#violate('bare-lf');
      return 'text';
    }
    if (afterCr) this.#violate('bare-cr');
    if (byte === CR) return state === 'dot' ? 'dot-cr' : 'cr';
    if (byte === DOT && state === 'line-start') return 'dot';
    return 'text';
  }

  #violate(violation: WireViolation): void {
    this.violation ??= violation;
  }
}

const NOTHING = Buffer.alloc(0);

// Bytes are looked at in here and not where they came in: a view of four bytes at a time for every chunk that passes
// keeps the garbage collector busier than this copy does the processor.
const SCRATCH_OCTETS = 64 * 1024;
const SENTINEL_OCTETS = 16;
const SCRATCH = Buffer.alloc(SCRATCH_OCTETS + SENTINEL_OCTETS);
const WORDS = new Int32Array(SCRATCH.buffer, SCRATCH.byteOffset, SCRATCH.length >> 2);
const SMALL = 0x0e0e0e0e;
const HIGH_BITS = 0x80808080;

/** The index in the scratch of the first byte at or after `from` that is below 0x0e. */
function nextSpecial(from: number): number {
  let at = from;
  for (; (at & 3) !== 0; at++) if (SCRATCH[at]! < FIRST_PLAIN) return at;
  for (let word = at >> 2; ; word += 2) {
    const a = WORDS[word]!;
    const b = WORDS[word + 1]!;
    // A byte below 0x0e leaves its high bit set after the subtraction; ~a masks the bytes above 0x7f. A borrow can
    // raise a false alarm only above a true one, and the bytes are looked at one by one below.
    if ((((a - SMALL) & ~a) | ((b - SMALL) & ~b)) & HIGH_BITS) {
      at = word << 2;
      while (SCRATCH[at]! >= FIRST_PLAIN) at++;
      return at;
    }
  }
}
