// The DATA phase on the wire (RFC 5321 §4.1.1.4, §4.5.2): finds the end of data and refuses bare CR, bare LF
// and NUL, while every byte passes through as it came. Nothing is unstuffed or copied.
//
// Hold-back rule: a byte is handed on only once it is known to be innocent. `CR`, and the `.` or `.CR` of a line
// that may turn out to be the last one, wait for the next byte; a lenient server could otherwise take an aborted
// message for a complete one. From a violation on nothing more is handed on, only the end is looked for.
// Constant memory: at most two bytes are held, and those are constants.

import { Digest, lookAt, nextSpecial, octetAt, PART_OCTETS } from './octets.ts';

const NUL = 0x00;
const LF = 0x0a;
const CR = 0x0d;
const SPACE = 0x20;
const DOT = 0x2e;

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
  /** Of all octets so far, the final line included; of no use after a violation. */
  readonly digest = new Digest();

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
    for (let from = 0; from < chunk.length; from += PART_OCTETS) {
      const length = Math.min(PART_OCTETS, chunk.length - from);
      lookAt(chunk, from, length, BEFORE[this.#state]);
      const scanned = this.#scanPart(length);
      if (this.violation === null) this.digest.add(scanned);
      if (this.ended) return from + scanned;
    }
    return -1;
  }

  /** Up to the end of the part or the message. */
  #scanPart(length: number): number {
    let state = this.#state;
    // The loop in octets.ts knows ordinary lines alone.
    let isOrdinary = state !== 'dot' && state !== 'dot-cr';
    let stuffed = 0;
    let at = 0;
    while (at < length && state !== 'end') {
      if (isOrdinary) {
        at = nextSpecial(at, length);
        state = stateBehind(octetAt(at - 1));
        if (at === length) break;
      }
      const octet = octetAt(at++);
      if (state === 'dot' && octet !== CR) stuffed++;
      if (octet === NUL) this.#violate('nul');
      state = this.#step(state, octet);
      isOrdinary = state === 'text' && octet !== LF;
    }
    this.#state = state;
    this.messageOctets += at - stuffed - (state === 'end' ? END_OF_DATA.length : 0);
    return at;
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

/** What the octet before a part was, as far as it matters to those behind it. */
const BEFORE: Readonly<Record<State, number>> = {
  'line-start': LF,
  text: SPACE,
  cr: CR,
  dot: DOT,
  'dot-cr': CR,
  end: LF,
};

/** Behind ordinary text. */
function stateBehind(octet: number): State {
  if (octet === CR) return 'cr';
  return octet === LF ? 'line-start' : 'text';
}
