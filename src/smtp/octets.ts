// The two loops that look at every octet of a message: where something stands that is not ordinary text, and what the
// message is known again by. In WebAssembly (octets.wat), since with SIMD and 64-bit numbers both together take a third of
// the time that they take in JavaScript and zlib (measured: 0.23 instead of 0.67 s/GB, the copy into its memory included).
import { CODE } from './octets-code.ts';

// Node has it, its type definitions don't.
declare const WebAssembly: Readonly<{
  Module: new (code: Uint8Array) => object;
  Instance: new (module: object) => Readonly<{ exports: unknown }>;
}>;

type Loops = Readonly<{
  memory: Readonly<{ buffer: ArrayBuffer }>;
  nextSpecial: (at: number, end: number) => number;
  stripes: (at: number, end: number) => number;
}>;

const loops = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from(CODE, 'base64'))).exports as Loops;
const MEMORY = Buffer.from(loops.memory.buffer);
/** Where the octets looked at begin. */
const BEGIN = 64;

/** At most so many octets can be looked at together. */
export const PART_OCTETS = 64 * 1024;

/** What all below is about, until the next call. @param before the octet that came before these */
export function lookAt(chunk: Buffer, from: number, length: number, before: number): void {
  MEMORY[BEGIN - 1] = before;
  chunk.copy(MEMORY, BEGIN, from, from + length);
}

/** @param at -1 for the one before */
export function octetAt(at: number): number {
  return MEMORY[BEGIN + at]!;
}

/**
 * The first octet from `at` on that isn't ordinary text behind the one before it: what follows CR and isn't LF, LF that
 * follows none, a dot that follows LF, NUL. `end` if there is none.
 */
export function nextSpecial(at: number, end: number): number {
  return Math.min(loops.nextSpecial(BEGIN + at, BEGIN + end) - BEGIN, end);
}

const P1 = 0x9e3779b185ebca87n;
const P2 = 0xc2b2ae3d27d4eb4fn;
const P3 = 0x165667b19e3779f9n;
const P4 = 0x85ebca77c2b2ae63n;
const P5 = 0x27d4eb2f165667c5n;
const FIRST_LANES = new Int32Array(new BigUint64Array([P1 + P2, P2, 0n, -P1]).buffer);

function wrap(value: bigint): bigint {
  return BigInt.asUintN(64, value);
}

function rotate(value: bigint, by: bigint): bigint {
  return wrap(value << by) | (value >> (64n - by));
}

function round(lane: bigint, input: bigint): bigint {
  return wrap(rotate(wrap(lane + input * P2), 31n) * P1);
}

const STRIPE_OCTETS = 32;
const LANES = new Int32Array(loops.memory.buffer, 0, STRIPE_OCTETS / 4);

/**
 * XXH64 with seed 0 (xxHash specification 0.1.1) of a message that comes in parts, however they are cut. It tells messages
 * apart that nobody has made alike on purpose; it is no signature.
 */
export class Digest {
  #octets = 0;
  readonly #lanes = Int32Array.from(FIRST_LANES);
  /** What is less than a stripe waits for more. */
  readonly #rest = new Uint8Array(STRIPE_OCTETS);

  /** The first `length` octets of those that are looked at are the message's next ones. */
  add(length: number): void {
    const waiting = this.#octets % STRIPE_OCTETS;
    // Few, and loops that make no views: most messages come in one part.
    for (let at = 0; at < LANES.length; at++) LANES[at] = this.#lanes[at]!;
    for (let at = 0; at < waiting; at++) MEMORY[BEGIN - waiting + at] = this.#rest[at]!;
    const end = BEGIN + length;
    const left = loops.stripes(BEGIN - waiting, end);
    for (let at = 0; at < LANES.length; at++) this.#lanes[at] = LANES[at]!;
    for (let at = left; at < end; at++) this.#rest[at - left] = MEMORY[at]!;
    this.#octets += length;
  }

  /** 16 hexadecimal digits. Worked out on demand, for that is seldom. */
  get value(): string {
    const rest = Buffer.from(this.#rest.subarray(0, this.#octets % STRIPE_OCTETS));
    let hash = this.#octets < STRIPE_OCTETS ? P5 : this.#merged;
    hash = wrap(hash + BigInt(this.#octets));
    let at = 0;
    for (; at + 8 <= rest.length; at += 8)
      hash = wrap(rotate(hash ^ round(0n, rest.readBigUInt64LE(at)), 27n) * P1 + P4);
    for (; at + 4 <= rest.length; at += 4)
      hash = wrap(rotate(hash ^ wrap(BigInt(rest.readUInt32LE(at)) * P1), 23n) * P2 + P3);
    for (; at < rest.length; at++) hash = wrap(rotate(hash ^ wrap(BigInt(rest[at]!) * P5), 11n) * P1);
    hash = wrap((hash ^ (hash >> 33n)) * P2);
    hash = wrap((hash ^ (hash >> 29n)) * P3);
    return (hash ^ (hash >> 32n)).toString(16).padStart(16, '0');
  }

  get #merged(): bigint {
    const lanes = new BigUint64Array(this.#lanes.slice().buffer);
    const shifts = [1n, 7n, 12n, 18n];
    const sum = shifts.reduce((total, shift, nth) => total + rotate(lanes[nth]!, shift), 0n);
    return lanes.reduce((hash, lane) => wrap((hash ^ round(0n, lane)) * P1 + P4), wrap(sum));
  }
}
