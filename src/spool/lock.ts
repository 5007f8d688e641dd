// One process for each spool directory. Node has no flock; a unix socket in the directory does as well: binding is
// exclusive, a process that is killed leaves a socket that refuses connections, and containers that share the directory
// see each other. The same socket is where `cutthrough queue` reaches the proxy that runs.
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, statSync } from 'node:fs';
import { rename, unlink } from 'node:fs/promises';
import net, { type Server, type Socket } from 'node:net';
import { join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** A live holder's kernel accepts at once. */
const CONNECT_TIMEOUT_MS = 500;
/** Within this time another process that found the same stale socket has done what it would. */
const SETTLE_MS = 50;
/** sockaddr_un on Linux has room for 108 octets, the final NUL included. */
const MAX_SOCKET_PATH = 107;

export class DirectoryLock {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(server: Server) {
    this.#server = server;
  }

  /**
   * @param onConnection gets what others say to the holder
   * @throws Error in one line when another process holds it
   */
  static async acquire(directory: string, onConnection: (socket: Socket) => void): Promise<DirectoryLock> {
    const path = socketPath(directory);
    const server = net.createServer();
    const lock = new DirectoryLock(server);
    server.on('connection', (socket) => {
      lock.#sockets.add(socket);
      socket.on('error', () => socket.destroy());
      socket.on('close', () => lock.#sockets.delete(socket));
      onConnection(socket);
    });
    if (!(await bind(server, path))) {
      await breakStale(directory, path);
      if (!(await bind(server, path))) throw inUse(directory);
    }
    const { ino } = statSync(path);
    chmodSync(path, 0o600);
    // Two that found the same stale socket could both have come this far; the name leads to one of them.
    await sleep(SETTLE_MS);
    if (statSync(path, { throwIfNoEntry: false })?.ino === ino) return lock;
    server.close();
    throw inUse(directory);
  }

  async release(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }
}

/** A connection to the process that holds the directory; null when none does. */
export async function connectToHolder(directory: string): Promise<Socket | null> {
  return await connect(socketPath(directory));
}

function inUse(directory: string): Error {
  return new Error(`--spool-dir ${directory}: in use by another process; give each its own directory`);
}

function socketPath(directory: string): string {
  const path = join(directory, 'control.sock');
  const short = [path, relative(process.cwd(), path)].find(
    (each) => Buffer.byteLength(each) <= MAX_SOCKET_PATH,
  );
  if (short === undefined)
    throw new Error(`--spool-dir ${directory}: the path is too long for a socket in it; use a shorter one`);
  return short;
}

/** False when the name is taken. */
function bind(server: Server, path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const onError = (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(false);
      else reject(error);
    };
    server.once('error', onError);
    server.listen(path, () => {
      server.off('error', onError);
      resolve(true);
    });
  });
}

async function breakStale(directory: string, path: string): Promise<void> {
  if (await isAlive(path)) throw inUse(directory);
  const aside = `${path}.${randomBytes(4).toString('hex')}`;
  try {
    // Atomic: of several, one gets it.
    await rename(path, aside);
  } catch {
    return;
  }
  if (await isAlive(aside)) {
    // Another process was quicker, and this is its new one.
    await rename(aside, path);
    throw inUse(directory);
  }
  await unlink(aside);
}

async function isAlive(path: string): Promise<boolean> {
  const socket = await connect(path);
  socket?.destroy();
  return socket !== null;
}

function connect(path: string): Promise<Socket | null> {
  return new Promise((resolve) => {
    const socket = net.connect(path);
    const timer = setTimeout(() => socket.destroy(new Error('no answer')), CONNECT_TIMEOUT_MS);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', onError);
      socket.on('error', () => socket.destroy());
      resolve(socket);
    });
    const onError = () => {
      clearTimeout(timer);
      resolve(null);
    };
    socket.once('error', onError);
  });
}
