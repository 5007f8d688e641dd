// Sockets without Node's afterthoughts, for connections whose messages are small and many.
import net, { type NetConnectOpts, type Socket } from 'node:net';

/**
 * After every chunk Node schedules a look whether the stream should read ahead, which costs a small message some 5 % of
 * its processor time (measured) and does nothing for a socket, whose reading goes on until it is paused. Told that such
 * a look is under way, Node schedules none. A version of Node that knows no such field does what it always did.
 */
export function flowing(socket: Socket): void {
  const { _readableState } = socket as unknown as { _readableState?: { readingMore?: boolean } };
  if (_readableState?.readingMore !== undefined) _readableState.readingMore = true;
}

/** Looks at the first `length` octets of `buffer`, which is written over when it returns. */
type Reader = (buffer: Buffer, length: number) => void;
const readers = new WeakMap<Socket, { read: Reader | null }>();

/** All reads of all such sockets go in here: nothing of one is left when the next begins. */
const READ = Buffer.alloc(64 * 1024);

/** A connection that can be read by readInPlace(); until then it is read as any other. */
export function connect(options: NetConnectOpts): Socket {
  const reader: { read: Reader | null } = { read: null };
  const socket = net.connect({
    ...options,
    onread: {
      buffer: READ,
      callback: (length) => {
        if (reader.read === null) socket.push(Buffer.from(READ.subarray(0, length)));
        else reader.read(READ, length);
        return true;
      },
    },
  } as NetConnectOpts);
  readers.set(socket, reader);
  return socket;
}

/** From here on what comes isn't given as 'data', and no buffer is made for it. False: the socket isn't one of connect(). */
export function readInPlace(socket: Socket, read: Reader): boolean {
  const reader = readers.get(socket);
  if (reader === undefined || socket.readableLength > 0) return false;
  reader.read = read;
  return true;
}
