// The buffer against real files in a temporary directory. Where the system has to fail, or to be slow, one method of
// the real FileHandle is replaced for the length of a test.
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { type FileHandle, open, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { type BufferPolicy, MemoryBudget, MessageBuffer } from '../../src/spool/buffer.ts';

const POLICIES: readonly BufferPolicy[] = ['overflow', 'memory-or-disk'];
const directory = mkdtempSync(join(tmpdir(), 'buffer-'));
const handles = Object.getPrototypeOf(await anyHandle()) as FileHandle;
const realWritev = handles.writev;
let files = 0;

afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(directory, { recursive: true }));

async function anyHandle(): Promise<FileHandle> {
  const handle = await open(directory);
  await handle.close();
  return handle;
}

type Made = Readonly<{ buffer: MessageBuffer; budget: MemoryBudget; path: string }>;

function make(
  policy: BufferPolicy,
  thresholdOctets: number,
  limitOctets = 2 ** 40,
  path = join(directory, `${files++}.eml.tmp`),
): Made {
  const budget = new MemoryBudget(limitOctets);
  return { buffer: new MessageBuffer({ policy, thresholdOctets, budget, path }), budget, path };
}

async function chunksOf(buffer: MessageBuffer): Promise<Buffer[]> {
  const chunks: Buffer[] = [];
  for await (const chunk of buffer.read()) chunks.push(chunk);
  return chunks;
}

async function readAll(buffer: MessageBuffer): Promise<Buffer> {
  return Buffer.concat(await chunksOf(buffer));
}

async function writeEach(buffer: MessageBuffer, writes: readonly (readonly Buffer[])[]): Promise<void> {
  for (const pieces of writes) await buffer.write(pieces);
}

/** `message` cut after octet i + 1 wherever bit i of `cuts` is set. */
function chunked(message: Buffer, cuts: number): Buffer[] {
  const chunks: Buffer[] = [];
  let start = 0;
  for (let end = 1; end <= message.length; end++) {
    if (end < message.length && (cuts & (1 << (end - 1))) === 0) continue;
    chunks.push(message.subarray(start, end));
    start = end;
  }
  return chunks;
}

/** Where claims 2 and 27 want the octets: [memory, disk]. */
function placement(policy: BufferPolicy, threshold: number, octets: number): [number, number] {
  if (octets <= threshold) return [octets, 0];
  return policy === 'overflow' ? [threshold, octets - threshold] : [0, octets];
}

function where({ buffer }: Made): [number, number] {
  return [buffer.memoryOctets, buffer.diskOctets];
}

/** From the end of the last write to the end of the buffer: every reader and the file have exactly `message`. */
async function checkLife(made: Made, message: Buffer): Promise<void> {
  const { buffer, budget, path } = made;
  const [memory, disk] = where(made);
  expect(memory + disk).toBe(message.length);
  expect(budget.used).toBe(memory);
  expect(existsSync(path)).toBe(disk > 0);
  if (disk > 0) expect(statSync(path).size).toBe(message.length);
  const durable = buffer.makeDurable();
  const readers = await Promise.all([readAll(buffer), durable.then(() => readAll(buffer)), readAll(buffer)]);
  for (const read of readers) expect(read.equals(message)).toBe(true);
  expect(await durable).toEqual({ octets: message.length, crc32: crc32(message) });
  expect(readFileSync(path).equals(message)).toBe(true);
  expect(where(made)).toEqual([memory, message.length]);
  await buffer.discard();
  expect([existsSync(path), budget.used, ...where(made)]).toEqual([false, 0, 0, 0]);
}

describe.each(POLICIES)('%s', (policy) => {
  describe.each([
    [0, 1],
    [1, 0],
    [1, 1],
    [1, 2],
    [3, 6],
    [8, 7],
    [8, 8],
    [8, 9],
  ])('threshold %i, %i octets', (threshold, octets) => {
    it('keeps every octet in its place, however the message is chunked', async () => {
      const message = randomBytes(octets);
      const ways = Array.from({ length: 2 ** Math.max(octets - 1, 0) }, (_, cuts) => chunked(message, cuts));
      const lives = ways.map(async (chunks, way) => {
        const made = make(policy, threshold);
        // Each chunk by itself, or all in one vector.
        await writeEach(made.buffer, way % 3 === 0 ? [chunks] : chunks.map((chunk) => [chunk]));
        expect(made.buffer.octets).toBe(octets);
        expect(where(made)).toEqual(placement(policy, threshold, octets));
        await checkLife(made, message);
      });
      await Promise.all(lives);
    });
  });

  it('keeps larger messages whole, in any vectors, also when the budget runs out on the way', async () => {
    const sizes = fc.oneof(fc.nat(40), fc.nat(700), fc.nat(70_000));
    const vectors = fc.array(fc.array(sizes, { maxLength: 4 }), { maxLength: 8 });
    const octets = fc.oneof(fc.nat(100), fc.nat(300_000));
    const property = fc.asyncProperty(vectors, octets, octets, async (lengths, threshold, limit) => {
      const writes = lengths.map((each) => each.map((length) => randomBytes(length)));
      const message = Buffer.concat(writes.flat());
      const made = make(policy, threshold, limit);
      await writeEach(made.buffer, writes);
      if (limit >= Math.min(threshold, message.length)) {
        expect(where(made)).toEqual(placement(policy, threshold, message.length));
      }
      expect(made.buffer.memoryOctets).toBeLessThanOrEqual(Math.min(threshold, limit));
      await checkLife(made, message);
    });
    await fc.assert(property, { numRuns: 60 });
  });

  it('takes what fits at once and by reference, without a file', async () => {
    const { buffer, budget, path } = make(policy, 2000);
    const pieces = [Buffer.alloc(1500, 'a'), Buffer.alloc(500, 'b')].map((piece) => own(piece));
    expect(buffer.write(pieces.slice(0, 1))).toBeNull();
    expect(buffer.write([])).toBeNull();
    expect(buffer.write([Buffer.alloc(0)])).toBeNull();
    expect(buffer.write(pieces.slice(1))).toBeNull();
    const [first] = await chunksOf(buffer);
    expect(first).toBe(pieces[0]);
    expect(budget.used).toBe(2000);
    await buffer.discard();
    expect([budget.used, existsSync(path)]).toEqual([0, false]);
  });

  it('takes nothing for an empty write after the file has begun', async () => {
    const made = make(policy, 1);
    await made.buffer.write([Buffer.from('abc')]);
    expect(made.buffer.write([])).toBeNull();
    expect(made.buffer.write([Buffer.alloc(0), Buffer.alloc(0)])).toBeNull();
    await checkLife(made, Buffer.from('abc'));
  });

  it('makes an empty message durable', async () => {
    await checkLife(make(policy, 8), Buffer.alloc(0));
  });

  it('writes to the file alone once the budget is used up, and never back to memory', async () => {
    const made = make(policy, 100, 10);
    expect(made.buffer.write([Buffer.from('12345678')])).toBeNull();
    await made.buffer.write([Buffer.from('abc')]);
    expect(where(made)).toEqual(policy === 'overflow' ? [8, 3] : [0, 11]);
    await made.buffer.write([Buffer.from('d')]);
    expect(where(made)).toEqual(policy === 'overflow' ? [8, 4] : [0, 12]);
    await checkLife(made, Buffer.from('12345678abcd'));
  });

  it('creates the file for its owner alone, and removes no file of another', async () => {
    const { buffer, path } = make(policy, 0);
    await buffer.write([Buffer.from('a')]);
    expect(statSync(path).mode & 0o777).toBe(0o600);
    const other = make(policy, 0, 100, path);
    await expect(other.buffer.write([Buffer.from('b')])).rejects.toMatchObject({ code: 'EEXIST' });
    await other.buffer.discard();
    expect(readFileSync(path, 'latin1')).toBe('a');
    await buffer.discard();
  });

  it('reads from disk in chunks of at most 64 KiB', async () => {
    const { buffer } = make(policy, 0);
    await buffer.write([randomBytes(200_000)]);
    const lengths = (await chunksOf(buffer)).map((chunk) => chunk.length);
    expect(lengths).toEqual([65536, 65536, 65536, 3392]);
    await buffer.discard();
  });

  it('sends the pieces of one write in one system call', async () => {
    const writev = vi.spyOn(handles, 'writev');
    const made = make(policy, 4);
    const pieces = Array.from({ length: 3000 }, () => randomBytes(1));
    await made.buffer.write(pieces);
    expect(writev).toHaveBeenCalledTimes(1);
    await checkLife(made, Buffer.concat(pieces));
  });

  it('completes partial writes', async () => {
    vi.spyOn(handles, 'writev').mockImplementation(function (this: FileHandle, buffers, position) {
      const first = (buffers as readonly Buffer[])[0]!;
      return realWritev.call(this, [first.subarray(0, 2)], position) as ReturnType<FileHandle['writev']>;
    });
    const made = make(policy, 5);
    const message = Buffer.from('0123456789abcdef');
    await writeEach(made.buffer, [
      [message.subarray(0, 3)],
      [message.subarray(3, 4), message.subarray(4, 11)],
      [message.subarray(11)],
    ]);
    await checkLife(made, message);
  });

  it('leaves the file and gives the memory back on release', async () => {
    const writev = vi.spyOn(handles, 'writev');
    const { buffer, budget, path } = make(policy, 2);
    await buffer.write([Buffer.from('abc')]);
    await buffer.makeDurable();
    await Promise.all([buffer.release(), buffer.release()]);
    await buffer.discard();
    expect(readFileSync(path, 'latin1')).toBe('abc');
    expect([budget.used, buffer.memoryOctets]).toEqual([0, 0]);
    expect(fileDescriptor(writev)).toBe(-1);
  });

  it('rejects writes, reads and makeDurable() after discard()', async () => {
    const writev = vi.spyOn(handles, 'writev');
    const { buffer, budget, path } = make(policy, 2);
    await buffer.write([Buffer.from('abc')]);
    await Promise.all([buffer.discard(), buffer.discard()]);
    await buffer.discard();
    await expect(buffer.write([Buffer.from('d')])).rejects.toThrow('discarded');
    await expect(buffer.makeDurable()).rejects.toThrow('discarded');
    await expect(readAll(buffer)).rejects.toThrow('discarded');
    expect([budget.used, existsSync(path), fileDescriptor(writev)]).toEqual([0, false, -1]);
  });

  it('refuses a write after makeDurable()', async () => {
    const { buffer, path } = make(policy, 8);
    await buffer.write([Buffer.from('abc')]);
    const durable = buffer.makeDurable();
    expect(() => buffer.write([Buffer.from('d')])).toThrow('after makeDurable');
    expect(await durable).toEqual({ octets: 3, crc32: crc32('abc') });
    expect(readFileSync(path, 'latin1')).toBe('abc');
    await buffer.discard();
  });
});

it('writes no octet twice under overflow', async () => {
  const { buffer } = make('overflow', 5);
  let written = 0;
  vi.spyOn(handles, 'writev').mockImplementation(async function (this: FileHandle, buffers, position) {
    const result = await realWritev.call(this, buffers, position);
    written += result.bytesWritten;
    return result as Awaited<ReturnType<FileHandle['writev']>>;
  });
  await writeEach(buffer, [[Buffer.from('0123')], [Buffer.from('4567')], [Buffer.from('89')]]);
  await buffer.makeDurable();
  expect(written).toBe(10);
  await buffer.discard();
});

it('takes no multiple of its size for a message that comes octet by octet in slices of large slabs', async () => {
  const slabs = Array.from({ length: 20_000 }, () => Buffer.from(new ArrayBuffer(64), 7, 1));
  const large = Array.from({ length: 20 }, () => Buffer.allocUnsafeSlow(65_536).subarray(0, 1000));
  const middling = Array.from({ length: 20 }, () => own(randomBytes(4000)));
  const pieces = [...slabs.slice(0, 10_000), ...large, ...slabs.slice(10_000)];
  for (const [index, piece] of middling.entries()) pieces.splice(index * 900, 0, piece);
  const { buffer } = make('overflow', 2 ** 20);
  expect(buffer.write(pieces)).toBeNull();
  const chunks = await chunksOf(buffer);
  const held = new Set(chunks.map((chunk) => chunk.buffer));
  const heldOctets = [...held].reduce((sum, { byteLength }) => sum + byteLength, 0);
  expect(Buffer.concat(chunks).equals(Buffer.concat(pieces))).toBe(true);
  expect(heldOctets).toBeLessThan(2 * buffer.octets);
  expect(chunks.length).toBeLessThan(200);
});

it('keeps no more than a small block for a small slice of a large slab', async () => {
  const { buffer } = make('overflow', 2 ** 20);
  expect(buffer.write([Buffer.alloc(65_536, 'a').subarray(0, 100)])).toBeNull();
  const [chunk] = await chunksOf(buffer);
  expect(chunk?.toString()).toBe('a'.repeat(100));
  expect(chunk?.buffer.byteLength).toBeLessThanOrEqual(512);
});

describe('a failure is final', () => {
  const full = Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
  const broken = Object.assign(new Error('EIO: i/o error, fsync'), { code: 'EIO' });

  async function expectFailed({ buffer, budget, path }: Made, error: unknown): Promise<void> {
    expect([budget.used, existsSync(path), buffer.memoryOctets, buffer.diskOctets]).toEqual([0, false, 0, 0]);
    await expect(buffer.write([Buffer.from('z')])).rejects.toBe(error);
    await expect(buffer.write([])).rejects.toBe(error);
    await expect(buffer.makeDurable()).rejects.toBe(error);
    await expect(readAll(buffer)).rejects.toBe(error);
    await buffer.discard();
    await buffer.release();
    expect([budget.used, existsSync(path)]).toEqual([0, false]);
  }

  it.each(POLICIES)('of opening, in the directory that is not there (%s)', async (policy) => {
    const made = make(policy, 4, 100, join(directory, 'absent', 'a.eml.tmp'));
    expect(made.buffer.write([Buffer.from('abc')])).toBeNull();
    const error = await made.buffer.write([Buffer.from('de')])!.catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'ENOENT' });
    await expectFailed(made, error);
  });

  it.each(POLICIES)('of opening, in makeDurable() (%s)', async (policy) => {
    const made = make(policy, 4, 100, join(directory, 'absent', 'a.eml.tmp'));
    expect(made.buffer.write([Buffer.from('abc')])).toBeNull();
    const error = await made.buffer.makeDurable().catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'ENOENT' });
    await expectFailed(made, error);
  });

  it.each(POLICIES)('of a write, after part of it was taken (%s)', async (policy) => {
    const writev = vi.spyOn(handles, 'writev').mockImplementation(function (
      this: FileHandle,
      buffers,
      position,
    ) {
      if (writev.mock.calls.length > 2) return Promise.reject(full);
      const first = (buffers as readonly Buffer[])[0]!;
      return realWritev.call(this, [first.subarray(0, 1)], position) as ReturnType<FileHandle['writev']>;
    });
    const made = make(policy, 2);
    await expect(made.buffer.write([Buffer.from('abcdefgh')])).rejects.toBe(full);
    await expectFailed(made, full);
    expect([writev.mock.calls.length, fileDescriptor(writev)]).toEqual([3, -1]);
  });

  it.each(POLICIES)('of a write that takes nothing (%s)', async (policy) => {
    vi.spyOn(handles, 'writev').mockResolvedValue({ bytesWritten: 0, buffers: [] });
    const made = make(policy, 2);
    const error = await made.buffer.write([Buffer.from('abc')])!.catch((reason: unknown) => reason);
    expect(error).toMatchObject({ message: expect.stringContaining('takes no more octets') });
    await expectFailed(made, error);
  });

  it.each(POLICIES)('of fsync, which is not tried again (%s)', async (policy) => {
    const sync = vi.spyOn(handles, 'sync').mockRejectedValue(broken);
    const made = make(policy, 2);
    await made.buffer.write([Buffer.from('abc')]);
    await expect(made.buffer.makeDurable()).rejects.toBe(broken);
    await expectFailed(made, broken);
    expect([sync.mock.calls.length, fileDescriptor(sync)]).toEqual([1, -1]);
  });

  it('and never hides behind one of the cleaning up', async () => {
    const own = mkdtempSync(join(directory, 'gone-'));
    const made = make('overflow', 2, 100, join(own, 'a.eml.tmp'));
    await made.buffer.write([Buffer.from('abc')]);
    await rm(own, { recursive: true });
    vi.spyOn(handles, 'sync').mockRejectedValue(broken);
    await expect(made.buffer.makeDurable()).rejects.toBe(broken);
    await expectFailed(made, broken);
  });
});

it('syncs nothing before makeDurable(), and then once', async () => {
  const sync = vi.spyOn(handles, 'sync');
  const { buffer } = make('overflow', 2);
  await buffer.write([Buffer.from('abc')]);
  expect(sync).not.toHaveBeenCalled();
  const durable = buffer.makeDurable();
  expect(buffer.makeDurable()).toBe(durable);
  await durable;
  expect(buffer.makeDurable()).toBe(durable);
  expect(sync).toHaveBeenCalledTimes(1);
  await buffer.discard();
});

it.each([
  ['cut short', 5],
  ['empty', 0],
])('rejects the reader of a file that is %s', async (_, length) => {
  const { buffer, path } = make('memory-or-disk', 2);
  await buffer.write([Buffer.from('0123456789')]);
  await truncate(path, length);
  await expect(readAll(buffer)).rejects.toThrow(`ends after ${length} of 10 octets`);
  await buffer.discard();
});

it('goes on where a read gave less than was asked for', async () => {
  const readAt = handles.read as (...args: unknown[]) => Promise<unknown>;
  vi.spyOn(handles, 'read').mockImplementation(function (this: FileHandle, ...args: unknown[]) {
    const [chunk, offset, length, position] = args as [Buffer, number, number, number];
    return readAt.call(this, chunk, offset, Math.min(length, 3), position) as never;
  });
  const { buffer } = make('overflow', 2);
  await buffer.write([Buffer.from('0123456789')]);
  expect((await readAll(buffer)).toString()).toBe('0123456789');
  await buffer.discard();
});

describe('discard() in mid-work', () => {
  it('waits for the write under way, then removes the file', async () => {
    const { resume, reached } = holdOnce('writev');
    const made = make('overflow', 2);
    const writing = made.buffer.write([Buffer.from('abc')])!.catch((error: unknown) => error);
    await reached;
    const discarded = made.buffer.discard();
    // What the system still reads from is still counted.
    await new Promise((resolve) => setImmediate(resolve));
    expect([made.budget.used, existsSync(made.path)]).toEqual([2, true]);
    resume();
    await discarded;
    expect([made.budget.used, existsSync(made.path)]).toEqual([0, false]);
    expect(await writing).toMatchObject({ message: expect.stringContaining('discarded') });
  });

  it('lets a write fail that has not begun', async () => {
    const { buffer, budget, path } = make('memory-or-disk', 2);
    const writing = buffer.write([Buffer.from('abc')])!.catch((error: unknown) => error);
    await buffer.discard();
    expect(await writing).toMatchObject({ message: expect.stringContaining('discarded') });
    expect([budget.used, existsSync(path)]).toEqual([0, false]);
  });

  it('calls nothing durable that it removes', async () => {
    const { resume, reached } = holdOnce('sync');
    const made = make('overflow', 2);
    await made.buffer.write([Buffer.from('abc')]);
    const durable = made.buffer.makeDurable().catch((error: unknown) => error);
    await reached;
    const discarded = made.buffer.discard();
    resume();
    await discarded;
    expect(await durable).toMatchObject({ message: expect.stringContaining('discarded') });
    expect([made.budget.used, existsSync(made.path)]).toEqual([0, false]);
  });

  it('rejects the readers under way, in memory and on disk', async () => {
    const { buffer, path } = make('overflow', 2000);
    await buffer.write([own(randomBytes(1000)), own(randomBytes(1000)), Buffer.from('c')]);
    const inMemory = buffer.read();
    await inMemory.next();
    const onDisk = buffer.read();
    await onDisk.next();
    await onDisk.next();
    const { resume, reached } = holdOnce('read');
    const reading = onDisk.next().catch((error: unknown) => error);
    await reached;
    const discarded = buffer.discard();
    await expect(inMemory.next()).rejects.toThrow('discarded');
    resume();
    await discarded;
    expect(await reading).toMatchObject({ message: expect.stringContaining('discarded') });
    expect(existsSync(path)).toBe(false);
  });

  it('never rejects, not even without the file', async () => {
    const { buffer, path } = make('overflow', 0);
    await buffer.write([Buffer.from('abc')]);
    await rm(path);
    await buffer.discard();
    await writeFile(path, 'of another');
    await buffer.discard();
    expect(readFileSync(path, 'latin1')).toBe('of another');
  });
});

it('lets the budget give no more than it has', () => {
  const budget = new MemoryBudget(10);
  expect([budget.take(10), budget.take(1), budget.take(0), budget.used]).toEqual([true, false, true, 10]);
  budget.give(4);
  expect([budget.take(5), budget.take(4), budget.used, budget.limit]).toEqual([false, true, 10, 10]);
});

/** Of the handle that the spied method was last called on; -1 once that is closed. */
function fileDescriptor(spy: { mock: { contexts: unknown[] } }): number {
  return (spy.mock.contexts.at(-1) as FileHandle).fd;
}

/** The octets in memory of their own, as they come from a socket. */
function own(piece: Buffer) {
  const copy = Buffer.allocUnsafeSlow(piece.length);
  piece.copy(copy);
  return copy;
}

/** The next call of `method` gives its result once `resume` was called; `reached` settles when it has one. */
function holdOnce(method: 'writev' | 'sync' | 'read'): { reached: Promise<void>; resume: () => void } {
  const real = handles[method] as (...args: unknown[]) => Promise<unknown>;
  let reach = (): void => {};
  let resume = (): void => {};
  const reached = new Promise<void>((resolve) => {
    reach = resolve;
  });
  const held = new Promise<void>((resolve) => {
    resume = resolve;
  });
  vi.spyOn(handles, method).mockImplementationOnce(async function (this: FileHandle, ...args: unknown[]) {
    const result = await real.apply(this, args);
    reach();
    await held;
    return result as never;
  });
  return { reached, resume };
}
