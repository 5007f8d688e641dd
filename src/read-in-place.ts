// Sockets that are read without Node's afterthoughts, for connections whose messages are small and many: no stream buffer,
// no event, and no 64 KiB of memory for each few octets that come, which together take a quarter of what Node and this
// program do for a small message outside the kernel (measured).
//
// It is what net's documented option `onread` does, for sockets that were not made with it: those that a server accepts,
// and those that a library has read so far. Where a version of Node has it in other places, these functions say so and
// change nothing; test/integration/contracts.test.ts tells us.
import net, { type Socket } from 'node:net';

/** @returns false to pause; resume() goes on */
type Reader<Args extends readonly unknown[]> = (...args: Args) => boolean;

const READ_OCTETS = 64 * 1024;
/** What all such sockets are read into: nothing of one is left in it when the next one's turn comes. */
const SHARED = Buffer.alloc(READ_OCTETS);
/** Where more comes at once. More still would take less time, and more memory than the connections of a busy hour have. */
export const LARGE_READ_OCTETS = 128 * 1024;
/** From such a part of a buffer on, one of its own costs less than the copy. What is kept of it keeps all of it. */
const MANY = 1 / 4;

const [BUFFER, CALLBACK, NEXT] = ['kBuffer', 'kBufferCb', 'kBufferGen'].map((name) =>
  Object.getOwnPropertySymbols(new net.Socket()).find(({ description }) => description === name),
);

type Internals = Record<symbol, unknown> & {
  _handle?: { useUserBuffer?: (buffer: Buffer) => void } | null;
};

/**
 * From here on what comes isn't given as 'data' events.
 * @param read gets a buffer that is written over when it returns, and how much of it has come
 * @param next which buffer is read into after that
 * @returns false when it can't be done: the socket is read as ever
 */
export function readInPlace(
  socket: Socket,
  read: Reader<[buffer: Buffer, length: number]>,
  next: (() => Buffer) | null = null,
): boolean {
  const internals = socket as unknown as Internals;
  const handle = internals._handle;
  if (BUFFER === undefined || CALLBACK === undefined || NEXT === undefined) return false;
  // With TLS the handle is one that decrypts; and what has come before would be overtaken.
  if (socket.constructor !== net.Socket || socket.readableLength > 0) return false;
  if (typeof handle?.useUserBuffer !== 'function') return false;
  internals[BUFFER] = SHARED;
  internals[CALLBACK] = (length: number, buffer: Buffer) => read(buffer, length);
  internals[NEXT] = next;
  handle.useUserBuffer(SHARED);
  return true;
}

/**
 * As readInPlace(), with chunks to keep: of a few octets a copy, of many the very buffer that they were read into.
 * @param isKept asked after each of many: what is not needed any more is read into again, while it is in the caches
 */
export function readChunks(
  socket: Socket,
  read: Reader<[chunk: Buffer]>,
  isKept: () => boolean = () => true,
): boolean {
  let next = SHARED;
  return readInPlace(
    socket,
    (buffer, length) => {
      const isMany = length >= buffer.length * MANY;
      const octets = length === buffer.length ? LARGE_READ_OCTETS : READ_OCTETS;
      if (isMany && buffer !== SHARED) {
        const goesOn = read(length === buffer.length ? buffer : buffer.subarray(0, length));
        if (isKept() || octets > buffer.length) next = Buffer.allocUnsafeSlow(octets);
        return goesOn;
      }
      next = isMany ? Buffer.allocUnsafeSlow(octets) : SHARED;
      const chunk = Buffer.allocUnsafe(length);
      buffer.copy(chunk, 0, 0, length);
      return read(chunk);
    },
    () => next,
  );
}
