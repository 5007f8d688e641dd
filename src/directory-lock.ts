// One process for each directory, the spool's or the ledger's. Node has no flock; a unix socket in the directory does as
// well: a process that is killed leaves a socket that refuses connections, and containers that share the directory see
// each other. The spool's socket is also where `cutthrough queue` reaches the proxy that runs.
// Each process binds a name of its own, so that it knows its socket from the start, and then links that to the name
// that counts, which is exclusive: closing a loser's server can't take the winner's name away.
// Owns the socket and every connection to it until release().
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  accessSync,
  type BigIntStats,
  chmodSync,
  closeSync,
  constants,
  linkSync,
  lstatSync,
  openSync,
  renameSync,
  unlinkSync,
} from 'node:fs';
import net, { type Server, type Socket } from 'node:net';
import { join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** A live holder's kernel accepts at once. */
const CONNECT_TIMEOUT_MS = 500;
/** Within this time another process that found the same stale socket has done what it would. */
const SETTLE_MS = 50;
/** Every further attempt means that another process did something in between. */
const MAX_ATTEMPTS = 5;
/** sockaddr_un on Linux has room for 108 octets, the final NUL included. */
const MAX_SOCKET_PATH = 107;
/** Other names in the directory are no longer than this one, so that one path serves all. */
const NAME = 'control.sock';

export class DirectoryLock {
  readonly #folder: Folder;
  readonly #server: Server = net.createServer();
  #identity: string | null = null;
  readonly #sockets = new Set<Socket>();
  #released: Promise<void> | null = null;

  private constructor(folder: Folder) {
    this.#folder = folder;
  }

  /**
   * @param onConnection gets what others say to the holder; the sockets' errors are dealt with
   * @param option that names the directory, for what is said of it
   * @throws Error in one line when another process holds the directory, or it can't have a socket
   */
  static async acquire(
    directory: string,
    onConnection: (socket: Socket) => void,
    option = '--spool-dir',
  ): Promise<DirectoryLock> {
    const name = `${option} ${directory}`;
    const lock = new DirectoryLock(openFolder(directory, name));
    try {
      const own = await lock.#listen(onConnection);
      await publish(name, lock.#folder.path, own);
      unlinkSync(own);
      // Two that found the same stale socket could both have come this far; the name leads to one of them.
      await sleep(SETTLE_MS);
      if (!lock.#isHeld) throw inUse(name);
      return lock;
    } catch (error) {
      await lock.release();
      const { code, message } = error as NodeJS.ErrnoException;
      if (code === undefined) throw error;
      throw new Error(`${name}: no lock to be had: ${message}`, { cause: error });
    }
  }

  /** Closes every connection; the directory is free then. Idempotent. */
  release(): Promise<void> {
    this.#released ??= this.#close();
    return this.#released;
  }

  /** @returns the name of the socket that only this process knows; it goes with the server at the latest */
  async #listen(onConnection: (socket: Socket) => void): Promise<string> {
    const server = this.#server;
    const own = spareName(this.#folder.path);
    // A socket would take ENOENT for EACCES.
    accessSync(this.#folder.path, constants.W_OK);
    const listening = once(server, 'listening');
    server.listen(own);
    await listening;
    // Such as a want of descriptors for a connection: that peer's loss.
    server.on('error', () => {});
    server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => socket.destroy());
      socket.on('close', () => this.#sockets.delete(socket));
      onConnection(socket);
    });
    chmodSync(own, 0o600);
    this.#identity = identityOf(own);
    return own;
  }

  async #close(): Promise<void> {
    if (this.#isHeld) unlinkSync(join(this.#folder.path, NAME));
    for (const socket of this.#sockets) socket.destroy();
    if (this.#server.listening) {
      const closed = once(this.#server, 'close');
      this.#server.close();
      await closed;
    }
    closeFolder(this.#folder);
  }

  get #isHeld(): boolean {
    return this.#identity !== null && identityOf(join(this.#folder.path, NAME)) === this.#identity;
  }
}

/**
 * A connection to the process that holds the directory; null when none does.
 * @throws Error in one line when there is no telling: the holder doesn't answer, or won't let us
 */
export async function connectToHolder(directory: string): Promise<Socket | null> {
  const name = `--spool-dir ${directory}`;
  const folder = openFolder(directory, name);
  try {
    return await connect(join(folder.path, NAME));
  } catch (error) {
    const { message } = error as Error;
    throw new Error(`${name}: the process that holds it can't be asked: ${message}`, { cause: error });
  } finally {
    closeFolder(folder);
  }
}

function inUse(name: string): Error {
  return new Error(`${name}: in use by another process; give each its own directory`);
}

/** The name that counts now leads to the socket `own`. @throws Error when another process has it */
async function publish(name: string, folder: string, own: string): Promise<void> {
  const path = join(folder, NAME);
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    try {
      linkSync(own, path);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const seen = lstatSync(path, { bigint: true, throwIfNoEntry: false });
    if (seen === undefined) continue;
    if (!seen.isSocket()) throw new Error(`${name}: ${NAME} in it is no socket; remove it`);
    if ((await isAlive(path)) || !(await breakStale(folder, identity(seen)))) throw inUse(name);
  }
  throw inUse(name);
}

/** Removes the socket `stale`. False when another process has put its own there meanwhile: that stays. */
async function breakStale(folder: string, stale: string): Promise<boolean> {
  const path = join(folder, NAME);
  const aside = spareName(folder);
  try {
    // Atomic: of several, one gets it.
    renameSync(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true;
    throw error;
  }
  // Without a pause where it can be known without: its holder must not miss it.
  const wrong = identityOf(aside) !== stale || (await isAlive(aside));
  try {
    if (wrong) linkSync(aside, path);
  } catch (error) {
    // A third process has the name; the second will see that it hasn't.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    unlinkSync(aside);
  }
  return !wrong;
}

function spareName(folder: string): string {
  return join(folder, `.sock-${randomBytes(3).toString('hex')}`);
}

/** In doubt a holder is alive. */
async function isAlive(path: string): Promise<boolean> {
  try {
    const socket = await connect(path);
    socket?.destroy();
    return socket !== null;
  } catch {
    return true;
  }
}

/** Null when nobody listens. Rejects when there is no telling, as with a full backlog. */
function connect(path: string): Promise<Socket | null> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(path);
    const timer = setTimeout(() => socket.destroy(new Error('no answer')), CONNECT_TIMEOUT_MS);
    const onError = (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(null);
      else reject(error);
    };
    socket.once('error', onError);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.off('error', onError);
      socket.on('error', () => socket.destroy());
      resolve(socket);
    });
  });
}

/** Inode numbers are used again at once; a time of creation with them is not. Null when there is no such file. */
function identityOf(path: string): string | null {
  const stats = lstatSync(path, { bigint: true, throwIfNoEntry: false });
  return stats === undefined ? null : identity(stats);
}

/** Of a socket: neither binding, linking, renaming nor connecting changes it. */
function identity({ dev, ino, mtimeNs }: BigIntStats): string {
  return `${dev}:${ino}:${mtimeNs}`;
}

/** `path` is short enough for sockets in the directory; `fd` keeps it valid where that takes one. */
type Folder = Readonly<{ path: string; fd: number | null }>;

function openFolder(directory: string, name: string): Folder {
  const fits = (path: string) => Buffer.byteLength(join(path, NAME)) <= MAX_SOCKET_PATH;
  const short = [directory, relative(process.cwd(), directory)].find(fits);
  if (short !== undefined) return { path: short, fd: null };
  try {
    const fd = openSync(directory, 'r');
    const path = `/proc/self/fd/${fd}`;
    if (lstatSync(path, { throwIfNoEntry: false }) !== undefined) return { path, fd };
    closeSync(fd);
  } catch (error) {
    throw new Error(`${name}: ${(error as Error).message}`, { cause: error });
  }
  throw new Error(`${name}: the path is too long for a socket in it; use a shorter one`);
}

function closeFolder({ fd }: Folder): void {
  if (fd !== null) closeSync(fd);
}
