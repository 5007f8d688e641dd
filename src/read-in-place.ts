// Sockets that are read without Node's afterthoughts, for connections whose messages are small and many: no stream buffer,
// no event, and no 64 KiB of memory for each few bytes that come. Measured in bench b10 it is a quarter of what Node and
// this program do for a message outside the kernel.
//
// It is what net's documented option `onread` does, for sockets that were not made with it: those that a server accepts,
// and those that a library has read so far. Where a version of Node has it in other places, readInPlace() says so and
// changes nothing; test/integration/contracts.test.ts tells us.
import net, { type Socket } from 'node:net';

/** Looks at the first `length` octets of `buffer`, which is written over when it returns. @returns false to pause */
export type Reader = (buffer: Buffer, length: number) => boolean;

/** All reads of all such sockets go in here: nothing of one is left when the next begins. */
const READ = Buffer.alloc(64 * 1024);

const [BUFFER, CALLBACK] = ['kBuffer', 'kBufferCb'].map((name) =>
  Object.getOwnPropertySymbols(new net.Socket()).find(({ description }) => description === name),
);

type Internals = Record<symbol, unknown> & {
  _handle?: { useUserBuffer?: (buffer: Buffer) => void } | null;
};

/**
 * From here on what comes isn't given as 'data' events; resume() goes on after a pause.
 * @returns false when it can't be done: the socket is read as ever
 */
export function readInPlace(socket: Socket, read: Reader): boolean {
  const internals = socket as unknown as Internals;
  const handle = internals._handle;
  if (BUFFER === undefined || CALLBACK === undefined || typeof handle?.useUserBuffer !== 'function')
    return false;
  // With TLS the handle is one that decrypts; what it has in hand would be lost.
  if (socket.constructor !== net.Socket || socket.readableLength > 0) return false;
  internals[BUFFER] = READ;
  internals[CALLBACK] = (length: number) => read(READ, length);
  handle.useUserBuffer(READ);
  return true;
}
