// The spool directory: `<id>.eml` holds a message's bytes in wire form, `<id>.json` its envelope; a message exists if and
// only if its .json does. Files are written under a temporary name, fsynced, and renamed; then the directory is fsynced;
// only then has a promise to keep the message been made good (claim 7). Removal takes the .json first, for the same reason.
// A failed write or fsync is final for that file: what the kernel then holds of it, nobody knows.
// Owns the files, not the lock. Damaged files go to `quarantine/`, so that the rest of the mail flows.
import { type Dirent, readFileSync, statSync } from 'node:fs';
import {
  chmod,
  type FileHandle,
  open,
  readdir,
  readFile,
  rename,
  stat,
  statfs,
  unlink,
} from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import type { Logger } from 'pino';
import { makeDirectory, whyNoDirectory } from '../make-directory.ts';
import type { MessageBuffer } from './buffer.ts';
import {
  DamagedError,
  decodeEnvelope,
  encodeEnvelope,
  QUEUE_ID,
  type QueuedMessage,
  type QueuedSummary,
} from './envelope.ts';

export type StoreDeps = Readonly<{
  log: Logger;
  /** --spool-min-free. */
  minFreeOctets: number;
  /** Milliseconds, monotonic. */
  now: () => number;
}>;

export type StoredBody = Readonly<{
  /** From the first octet, as often as needed. */
  read: () => AsyncIterable<Buffer>;
  close: () => Promise<void>;
}>;

const READ_OCTETS = 64 * 1024;
/** How long a look at the free space is good for. */
const ROOM_MS = 1000;
/** Envelopes read at a stretch at the start. */
const SLICE = 100;
/** Unknown files that the log names. */
const MAX_NAMED = 10;
export const QUARANTINE = 'quarantine';
/** What the spool makes itself; other files in the directory are nothing of ours. */
export const OUR_FILE = /^([A-Za-z0-9_.-]{1,64})\.(eml|json)(\.tmp)?$/;
const OTHER_NAMES: readonly string[] = [QUARANTINE, 'control.sock'];
/** A worker's part (parts.ts). */
export const PART = /^worker-[1-9]\d*$/;

export class SpoolStore {
  readonly directory: string;
  /** What was there at the start. */
  readonly recovered: readonly QueuedSummary[];
  readonly #deps: StoreDeps;
  readonly #folder: FileHandle;
  #room: { at: number; enough: boolean } | null = null;
  /** The fsync of the directory under way, and the one that those who came meanwhile wait for. */
  #syncing: Promise<void> | null = null;
  #syncNext: Promise<void> | null = null;
  /** By id: settles when the last change to the message is made. */
  readonly #turns = new Map<string, Promise<unknown>>();

  private constructor(
    directory: string,
    folder: FileHandle,
    recovered: readonly QueuedSummary[],
    deps: StoreDeps,
  ) {
    this.directory = directory;
    this.#folder = folder;
    this.recovered = recovered;
    this.#deps = deps;
  }

  /**
   * The directory, safe and writable; made if it is missing.
   * @throws Error in one line that says what to do
   */
  static async prepare(directory: string, log: Logger): Promise<void> {
    try {
      const made = await makeDirectory(directory);
      await protect(directory, log);
      await makeDirectory(join(directory, QUARANTINE));
      await protect(join(directory, QUARANTINE), log);
      const probe = join(directory, 'writable.json.tmp');
      await (await open(probe, 'w', 0o600)).close();
      await unlink(probe);
      await syncDirectory(directory);
      // A directory is as durable as its name in the one above.
      const topmost = made === undefined ? Infinity : made.length;
      for (let each = resolve(directory); each.length >= topmost; each = dirname(each))
        await syncDirectory(dirname(each));
    } catch (error) {
      throw new Error(`--spool-dir ${directory}: ${whyNoDirectory(error as NodeJS.ErrnoException)}`, {
        cause: error,
      });
    }
  }

  /**
   * The caller holds the directory's lock. Leftovers of unfinished writes are removed, what is damaged set aside.
   * @throws Error in one line when a file can't be read, or a newer version wrote it: then nothing of it is touched
   */
  static async open(directory: string, deps: StoreDeps): Promise<SpoolStore> {
    try {
      const folder = await open(directory, 'r');
      try {
        const recovered: QueuedSummary[] = [];
        const store = new SpoolStore(directory, folder, recovered, deps);
        await store.#recover(recovered);
        return store;
      } catch (error) {
        await folder.close();
        throw error;
      }
    } catch (error) {
      throw new Error(`--spool-dir ${directory}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** Free disk is at least --spool-min-free. Never rejects: what can't be asked has no room. */
  async hasRoom(): Promise<boolean> {
    const now = this.#deps.now();
    if (this.#room === null || now - this.#room.at > ROOM_MS)
      this.#room = { at: now, enough: await this.#isRoomLeft() };
    return this.#room.enough;
  }

  /** Where the body of a message that isn't queued yet may go. */
  temporaryPath(id: string): string {
    return `${this.#path(id, 'eml')}.tmp`;
  }

  /**
   * Settles when the message would survive a power cut. Rejects with the system's error, and nothing of it left; the
   * buffer stays the caller's either way.
   */
  commit(message: Omit<QueuedMessage, 'octets' | 'crc32'>, buffer: MessageBuffer): Promise<QueuedMessage> {
    const { id } = message;
    return this.#inTurn(id, async () => {
      const queued = { ...message, ...(await buffer.makeDurable()) };
      try {
        await rename(this.temporaryPath(id), this.#path(id, 'eml'));
        await this.#replaceEnvelope(queued);
        return queued;
      } catch (error) {
        await this.#unlinkAll(id);
        throw error;
      }
    });
  }

  /** @throws DamagedError when it is damaged, and in quarantine by now; the system's ENOENT when there is none */
  async load(id: string): Promise<QueuedMessage> {
    const path = this.#path(id, 'json');
    return await this.#checked(id, async () => envelopeOf(id, await readFile(path, 'utf8')));
  }

  /**
   * Replaces the envelope; settles when that would survive a power cut. Rejects with the system's error: then the old
   * one stays, unless it is the fsync of the directory that failed, which leaves either.
   */
  update(message: QueuedMessage): Promise<void> {
    return this.#inTurn(message.id, () => this.#replaceEnvelope(message));
  }

  /** The body, compared with length and checksum before the first octet is given. @throws DamagedError, as load() */
  async openBody(message: QueuedMessage): Promise<StoredBody> {
    return await this.#checked(message.id, async () => {
      const file = await openExisting(this.#path(message.id, 'eml'));
      const read = () => chunksOf(file, message.octets);
      try {
        checkLength((await file.stat()).size, message);
        let sum = 0;
        for await (const chunk of read()) sum = crc32(chunk, sum);
        if (sum !== message.crc32) throw new DamagedError('the message does not match its checksum');
        return { read, close: () => file.close() };
      } catch (error) {
        await file.close();
        throw error;
      }
    });
  }

  /** Settles when the message would not come back after a power cut; also when there is none. */
  remove(id: string): Promise<void> {
    return this.#inTurn(id, async () => {
      await unlinkIfThere(this.#path(id, 'json'));
      await unlinkIfThere(this.#path(id, 'eml'));
      await this.#syncFolder();
    });
  }

  /** Sets a damaged message aside. Never rejects. */
  async quarantine(id: string, reason: string): Promise<void> {
    const { log } = this.#deps;
    log.error({ event: 'quarantined', id, reason });
    try {
      const paths = [this.#path(id, 'json'), this.#path(id, 'eml')];
      const aside = join(this.directory, QUARANTINE);
      await makeDirectory(aside);
      const names = await freeNames(aside, id);
      // One that can't be moved must not keep the other here.
      const moves = await Promise.allSettled(paths.map((path, at) => rename(path, join(aside, names[at]!))));
      await syncDirectory(aside);
      await this.#syncFolder();
      for (const move of moves) if (move.status === 'rejected' && !isMissing(move.reason)) throw move.reason;
    } catch (error) {
      log.error({ event: 'quarantine-failed', id, err: error });
    }
  }

  /** Waits for the changes under way; none may follow. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#turns.values()]);
    await Promise.allSettled([this.#syncing, this.#syncNext]);
    await this.#folder.close();
  }

  async #recover(recovered: QueuedSummary[]): Promise<void> {
    const { ids, leftovers } = await this.#takeStock();
    for (const name of leftovers) await unlinkIfThere(join(this.directory, name));
    const domains = new DomainLists();
    let seen = 0;
    for (const id of ids) {
      const summary = await this.#recoverOne(id, domains);
      if (summary !== null) recovered.push(summary);
      if (++seen % SLICE === 0) await nextTurn();
    }
  }

  /** What is in the directory: the messages, and what no message needs. */
  async #takeStock(): Promise<Readonly<{ ids: ReadonlySet<string>; leftovers: readonly string[] }>> {
    const ids = new Set<string>();
    const bodies: string[] = [];
    const leftovers: string[] = [];
    const unknown: string[] = [];
    for (const file of await readdir(this.directory, { withFileTypes: true })) {
      const { name } = file;
      const [, id, kind, temporary] = (isOther(file) ? null : OUR_FILE.exec(name)) ?? [];
      if (id === undefined) unknown.push(name);
      else if (temporary !== undefined) leftovers.push(name);
      else if (kind === 'json') ids.add(id);
      else bodies.push(id);
    }
    for (const id of bodies) if (!ids.has(id)) leftovers.push(`${id}.eml`);
    const strangers = unknown.filter((name) => !OTHER_NAMES.includes(name) && !PART.test(name));
    if (strangers.length > 0) {
      const files = strangers.slice(0, MAX_NAMED);
      this.#deps.log.warn({ event: 'spool-unknown-files', count: strangers.length, files });
    }
    return { ids, leftovers };
  }

  /** Read synchronously: at the start nothing else is to be done, and a hundred thousand of them take seconds so. */
  async #recoverOne(id: string, lists: DomainLists): Promise<QueuedSummary | null> {
    try {
      const message = envelopeOf(id, readFileSync(this.#path(id, 'json'), 'utf8'));
      const body = statSync(this.#path(id, 'eml'), { throwIfNoEntry: false });
      if (body === undefined) throw missingBody();
      checkLength(body.size, message);
      const { queuedAt, nextAttemptAt, attempts, octets, recipients } = message;
      const pending = recipients.filter(({ state }) => state === 'pending');
      const domains = lists.shared(pending.map(({ mailbox }) => mailbox.domain ?? ''));
      return { id: message.id, queuedAt, nextAttemptAt, attempts, octets, domains };
    } catch (error) {
      if (!isDamage(error)) throw new Error(`${id}.json: ${(error as Error).message}`, { cause: error });
      await this.quarantine(id, error.message);
      return null;
    }
  }

  async #isRoomLeft(): Promise<boolean> {
    try {
      const { bavail, bsize } = await statfs(this.directory);
      return bavail * bsize >= this.#deps.minFreeOctets;
    } catch (error) {
      this.#deps.log.error({ event: 'spool-room-unknown', err: error });
      return false;
    }
  }

  async #checked<T>(id: string, check: () => Promise<T>): Promise<T> {
    try {
      return await check();
    } catch (error) {
      if (!isDamage(error)) throw error;
      await this.quarantine(id, error.message);
      throw error instanceof DamagedError ? error : new DamagedError(error.message, { cause: error });
    }
  }

  /** Changes of one message are made one after the other, in the order in which they were asked for. */
  #inTurn<T>(id: string, change: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(id) ?? Promise.resolve();
    const done = before.then(change, change);
    this.#turns.set(id, done);
    const forget = () => {
      if (this.#turns.get(id) === done) this.#turns.delete(id);
    };
    done.then(forget, forget);
    return done;
  }

  async #replaceEnvelope(message: QueuedMessage): Promise<void> {
    const path = this.#path(message.id, 'json');
    const temporary = `${path}.tmp`;
    try {
      const file = await open(temporary, 'w', 0o600);
      try {
        await file.writeFile(encodeEnvelope(message));
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, path);
    } catch (error) {
      await unlink(temporary).catch(() => {});
      throw error;
    }
    await this.#syncFolder();
  }

  async #unlinkAll(id: string): Promise<void> {
    const paths = [this.#path(id, 'json'), this.#path(id, 'eml'), this.temporaryPath(id)];
    for (const path of paths) await unlink(path).catch(() => {});
    // Else a power cut could bring back what was answered with 4xx.
    await this.#syncFolder().catch(() => {});
  }

  /** One fsync serves all who wait for it; whoever comes while one runs needs the next. */
  #syncFolder(): Promise<void> {
    if (this.#syncing === null) return this.#beginSync();
    this.#syncNext ??= this.#syncing
      .catch(() => {})
      .then(() => {
        this.#syncNext = null;
        return this.#beginSync();
      });
    return this.#syncNext;
  }

  #beginSync(): Promise<void> {
    const sync = this.#folder.sync().finally(() => {
      this.#syncing = null;
    });
    this.#syncing = sync;
    return sync;
  }

  #path(id: string, kind: 'eml' | 'json'): string {
    if (!QUEUE_ID.test(id)) throw new Error(`${JSON.stringify(id)} is no queue id`);
    return join(this.directory, `${id}.${kind}`);
  }
}

/** @throws DamagedError when the file ends early */
async function* chunksOf(file: FileHandle, octets: number): AsyncGenerator<Buffer> {
  let at = 0;
  while (at < octets) {
    const buffer = Buffer.allocUnsafe(Math.min(READ_OCTETS, octets - at));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, at);
    if (bytesRead === 0) throw new DamagedError(`the message ends after ${at} of ${octets} octets`);
    at += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

/** Lists of domains, each kept once: most of a long queue waits for few of them. */
class DomainLists {
  readonly #known = new Map<string, readonly string[]>();

  shared(domains: readonly string[]): readonly string[] {
    const unique = [...new Set(domains)];
    const key = unique.join(' ');
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    this.#known.set(key, unique);
    return unique;
  }
}

/** @throws DamagedError when it is not the envelope of this message */
function envelopeOf(id: string, text: string): QueuedMessage {
  const message = decodeEnvelope(text);
  if (message.id !== id) throw new DamagedError(`the envelope is of another message, ${message.id}`);
  return message;
}

function checkLength(size: number, { octets }: QueuedMessage): void {
  if (size !== octets) throw new DamagedError(`the message has ${size} octets instead of ${octets}`);
}

function missingBody(): DamagedError {
  return new DamagedError('the message is missing');
}

async function openExisting(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r');
  } catch (error) {
    throw isMissing(error) ? missingBody() : error;
  }
}

/** Not what was written, or the disk can't read it any more. */
function isDamage(error: unknown): error is Error {
  return error instanceof DamagedError || (error as NodeJS.ErrnoException).code === 'EIO';
}

function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'ENOENT';
}

function isOther(file: Dirent): boolean {
  return file.isDirectory() || file.isSocket();
}

async function unlinkIfThere(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

/** For the .json and the .eml of a message; an earlier one of the same id stays. */
async function freeNames(directory: string, id: string): Promise<readonly [string, string]> {
  for (let number = 1; ; number++) {
    const stem = number === 1 ? id : `${id}.${number}`;
    const names = [`${stem}.json`, `${stem}.eml`] as const;
    const taken = await Promise.all(names.map((name) => isThere(join(directory, name))));
    if (!taken.includes(true)) return names;
  }
}

async function isThere(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

export async function syncDirectory(directory: string): Promise<void> {
  const folder = await open(directory, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Nobody else may read, let alone plant, mail. */
async function protect(directory: string, log: Logger): Promise<void> {
  const { mode, uid } = await stat(directory);
  const was = (mode & 0o777).toString(8);
  if (process.getuid !== undefined && uid !== process.getuid())
    throw new Error(`${directory} belongs to another user; change its owner, or name another directory`);
  if ((mode & 0o022) !== 0)
    throw new Error(`${directory} can be written by others (mode ${was}); see what is in it, then chmod 700`);
  if ((mode & 0o077) === 0) return;
  log.warn({ event: 'spool-mode', directory, was });
  await chmod(directory, 0o700);
}
