// The bytes of one message while they arrive and until it is delivered or queued: in memory up to a threshold, beyond
// it in a file. Two policies: 'overflow' keeps the first octets in memory and stores the remainder at its true offset
// in the file (claims 1-4), so that making it durable never writes an octet twice; 'memory-or-disk' moves everything to
// the file once the threshold is exceeded and erases what was in memory (claims 25-27).
// Owns its file until release(), and what it took from the budget. The first error of opening, writing or syncing is
// final: the file is removed, the memory given back, and every later call rejects with that error.
import { type FileHandle, open, unlink } from 'node:fs/promises';
import { crc32 } from 'node:zlib';

export type BufferPolicy = 'overflow' | 'memory-or-disk';

export type BufferDeps = Readonly<{
  policy: BufferPolicy;
  /** --memory-threshold: this many octets are kept in memory; exactly as many do not exceed it. */
  thresholdOctets: number;
  budget: MemoryBudget;
  /** Of the file, which is created only when it is needed. */
  path: string;
}>;

type Durable = Readonly<{ octets: number; crc32: number }>;

const READ_OCTETS = 64 * 1024;
/** Pieces from this size on are kept as they are. */
const LARGE_OCTETS = 16 * 1024;
/** Below this size what Node needs for a Buffer of its own outweighs the octets in it. */
const SMALL_OCTETS = 512;

/** Memory for message bodies over the whole process (--max-buffered). */
export class MemoryBudget {
  readonly limit: number;
  #used = 0;

  constructor(limitOctets: number) {
    this.limit = limitOctets;
  }

  get used(): number {
    return this.#used;
  }

  /** False when there is no room: nothing is taken. */
  take(octets: number): boolean {
    if (this.#used + octets > this.limit) return false;
    this.#used += octets;
    return true;
  }

  give(octets: number): void {
    this.#used -= octets;
  }
}

export class MessageBuffer {
  readonly #deps: BufferDeps;
  #octets = 0;
  #diskOctets = 0;
  #memory = new KeptPieces();
  /** Memory is closed: whatever comes goes to the file. */
  #spilled = false;
  #file: FileHandle | null = null;
  /** Of the octets that have passed to the file, and of those in memory before them. */
  #crc32 = 0;
  /** Settles when the last thing asked of the file is done: one after the other. */
  #turn: Promise<unknown> = Promise.resolve();
  #durable: Promise<Durable> | null = null;
  #failure: Error | null = null;
  #closed = false;

  constructor(deps: BufferDeps) {
    this.#deps = deps;
  }

  /** Octets so far. */
  get octets(): number {
    return this.#octets;
  }

  /** Octets now in memory. */
  get memoryOctets(): number {
    return this.#memory.octets;
  }

  /** Octets now in the file. */
  get diskOctets(): number {
    return this.#diskOctets;
  }

  /**
   * Null when memory took the pieces, which must not change afterwards; else settles when the file has taken what goes
   * there: wait for it before the next write. Rejects with the system's error. No write may follow makeDurable().
   */
  write(pieces: readonly Buffer[]): Promise<void> | null {
    if (this.#failure !== null || this.#closed) return Promise.reject(this.#reason());
    if (this.#durable !== null) throw new Error('a message buffer was written to after makeDurable()');
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    const inMemory = this.#takeMemory(length);
    this.#octets += length;
    if (inMemory === length) {
      for (const piece of pieces) this.#memory.add(piece);
      return null;
    }
    this.#spilled = true;
    const [first, remainder] = splitAt(pieces, inMemory);
    for (const piece of first) this.#memory.add(piece);
    return this.#inTurn(() => this.#append(remainder));
  }

  /**
   * From the first octet, as often as needed and by several readers at once, also while makeDurable() runs; not before
   * the last write has settled. Throws when the file has fewer octets than were written, and after discard().
   */
  async *read(): AsyncGenerator<Buffer, void, undefined> {
    this.#check();
    let position = this.#memory.octets;
    for (const piece of this.#memory.pieces) {
      yield piece;
      this.#check();
    }
    while (position < this.#octets) {
      const chunk = Buffer.allocUnsafeSlow(Math.min(READ_OCTETS, this.#octets - position));
      const { bytesRead } = await this.#file!.read(chunk, 0, chunk.length, position);
      this.#check();
      if (bytesRead === 0) {
        throw new Error(`${this.#deps.path}: ends after ${position} of ${this.#octets} octets`);
      }
      position += bytesRead;
      yield chunk.subarray(0, bytesRead);
      this.#check();
    }
  }

  /**
   * Writes what the file lacks and fsyncs it, once however often it is called. What is in memory stays there. Rejects
   * with the system's error; also when the buffer is discarded meanwhile.
   */
  makeDurable(): Promise<Durable> {
    this.#durable ??= this.#inTurn(async () => {
      const file = await this.#opened();
      await this.#put(file, this.#memory.pieces, 0);
      await file.sync();
      return { octets: this.#octets, crc32: this.#crc32 };
    });
    return this.#durable;
  }

  /** Gives the memory back and removes the file unless it was released. Idempotent; never rejects. */
  discard(): Promise<void> {
    return this.#close('remove');
  }

  /** For when the store has taken the file over: gives the memory back and leaves the file. Idempotent; never rejects. */
  release(): Promise<void> {
    return this.#close('leave');
  }

  /** How many of the next octets go to memory; they have been taken from the budget. */
  #takeMemory(length: number): number {
    if (this.#spilled) return 0;
    const { policy, thresholdOctets, budget } = this.#deps;
    const room = thresholdOctets - this.#memory.octets;
    // Claim 2: up to the threshold in memory; claim 25: in memory only while the whole message fits.
    const wanted = policy === 'overflow' ? Math.min(length, room) : length <= room ? length : 0;
    return budget.take(wanted) ? wanted : 0;
  }

  async #append(pieces: readonly Buffer[]): Promise<void> {
    const file = await this.#opened();
    for (const piece of pieces) this.#crc32 = crc32(piece, this.#crc32);
    if (this.#deps.policy === 'overflow') {
      await this.#put(file, pieces, this.#memory.octets + this.#diskOctets);
      return;
    }
    await this.#put(file, [...this.#memory.pieces, ...pieces], this.#diskOctets);
    // Claim 27.
    this.#freeMemory();
  }

  async #opened(): Promise<FileHandle> {
    if (this.#file === null) {
      this.#file = await open(this.#deps.path, 'wx+', 0o600);
      for (const piece of this.#memory.pieces) this.#crc32 = crc32(piece, this.#crc32);
    }
    return this.#file;
  }

  async #put(file: FileHandle, pieces: readonly Buffer[], position: number): Promise<void> {
    let at = position;
    let rest = pieces;
    while (rest.length > 0) {
      const { bytesWritten } = await file.writev(rest, at);
      if (bytesWritten === 0) throw new Error(`${this.#deps.path}: takes no more octets after ${at}`);
      at += bytesWritten;
      this.#diskOctets += bytesWritten;
      rest = splitAt(rest, bytesWritten)[1];
    }
  }

  #inTurn<T>(task: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(() => this.#attempt(task));
    this.#turn = done.catch(() => {});
    return done;
  }

  async #attempt<T>(task: () => Promise<T>): Promise<T> {
    this.#check();
    try {
      const result = await task();
      // Nobody may take for durable what discard() is about to remove.
      this.#check();
      return result;
    } catch (error) {
      this.#failure ??= error as Error;
      await this.#clear('remove');
      throw this.#failure;
    }
  }

  #close(file: 'remove' | 'leave'): Promise<void> {
    this.#closed = true;
    const done = this.#turn.then(() => this.#clear(file));
    this.#turn = done;
    return done;
  }

  /** A file that can't be removed is left to the store's next start. Closing waits for the reads under way. */
  async #clear(what: 'remove' | 'leave'): Promise<void> {
    this.#freeMemory();
    const file = this.#file;
    if (file === null) return;
    this.#file = null;
    const ends = [file.close()];
    if (what === 'remove') {
      this.#diskOctets = 0;
      ends.push(unlink(this.#deps.path));
    }
    await Promise.allSettled(ends);
  }

  #freeMemory(): void {
    this.#deps.budget.give(this.#memory.octets);
    this.#memory = new KeptPieces();
  }

  #check(): void {
    if (this.#failure !== null || this.#closed) throw this.#reason();
  }

  #reason(): Error {
    return this.#failure ?? new Error('the message buffer has been discarded or released');
  }
}

/**
 * Pieces kept in memory, by reference where that costs about what it counts: small ones, and those that would keep a
 * far larger slab alive, are copied together. So a message sent octet by octet takes no multiple of its size.
 */
class KeptPieces {
  readonly pieces: Buffer[] = [];
  octets = 0;
  /** Where copies go; filled up to #filled. */
  #block = Buffer.alloc(0);
  #filled = 0;

  add(piece: Buffer): void {
    if (piece.length === 0) return;
    this.octets += piece.length;
    const ownSize = piece.length >= SMALL_OCTETS && piece.buffer.byteLength <= 4 * piece.length;
    if (ownSize || piece.length >= LARGE_OCTETS) this.pieces.push(piece);
    else this.#copy(piece);
  }

  #copy(piece: Buffer): void {
    if (piece.length > this.#block.length - this.#filled) {
      // As large as all before together: what is allocated stays in proportion to what is counted.
      const size = Math.min(Math.max(this.octets, SMALL_OCTETS), LARGE_OCTETS);
      this.#block = Buffer.allocUnsafeSlow(size);
      this.#filled = 0;
    }
    const start = this.#filled;
    this.#filled += piece.copy(this.#block, start);
    const last = this.pieces.at(-1);
    if (last?.buffer !== this.#block.buffer) this.pieces.push(this.#block.subarray(start, this.#filled));
    else this.pieces[this.pieces.length - 1] = this.#block.subarray(last.byteOffset, this.#filled);
  }
}

/** The first `octets` octets and the others, without empty pieces. */
function splitAt(pieces: readonly Buffer[], octets: number): [Buffer[], Buffer[]] {
  const before: Buffer[] = [];
  const after: Buffer[] = [];
  let left = octets;
  for (const piece of pieces) {
    const cut = Math.min(left, piece.length);
    left -= cut;
    if (cut > 0) before.push(piece.subarray(0, cut));
    if (cut < piece.length) after.push(piece.subarray(cut));
  }
  return [before, after];
}
