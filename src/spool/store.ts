// The spool directory: `<id>.eml` holds a message's bytes in wire form, `<id>.json` its envelope; a message exists if and
// only if its .json does. Files are written under a temporary name, fsynced, and renamed; then the directory is fsynced;
// only then has a promise to keep the message been made good (claim 7). Removal takes the .json first, for the same reason.
// A failed write or fsync is final for that file: what the kernel then holds of it, nobody knows.
// Owns the files, not the lock. Damaged files go to `quarantine/`, so that the rest of the mail flows.
import { readdirSync, readFileSync, statSync } from 'node:fs';
import {
  chmod,
  type FileHandle,
  mkdir,
  open,
  readFile,
  rename,
  stat,
  statfs,
  unlink,
} from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { crc32 } from 'node:zlib';
import type { Logger } from 'pino';
import type { MessageBuffer } from './buffer.ts';
import {
  DamagedError,
  decodeEnvelope,
  encodeEnvelope,
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

const ID = /^[A-Za-z0-9_.-]{1,64}$/;
const READ_OCTETS = 64 * 1024;
/** How long a look at the free space is good for. */
const ROOM_MS = 1000;
/** Envelopes read at a stretch at the start. */
const SLICE = 500;

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
  /** By id: settles when its envelope's last change is written. */
  readonly #updates = new Map<string, Promise<void>>();

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
      await mkdir(join(directory, 'quarantine'), { recursive: true, mode: 0o700 });
      for (const each of [directory, join(directory, 'quarantine')]) {
        const { mode, uid } = await stat(each);
        if (process.getuid !== undefined && uid !== process.getuid())
          throw new Error('belongs to another user; change its owner, or name another directory');
        if ((mode & 0o077) === 0) continue;
        log.warn({ event: 'spool-mode', directory: each, was: (mode & 0o777).toString(8) });
        await chmod(each, 0o700);
      }
      const probe = join(directory, '.writable');
      await (await open(probe, 'w', 0o600)).close();
      await unlink(probe);
    } catch (error) {
      throw new Error(`--spool-dir ${directory}: ${(error as Error).message}`, { cause: error });
    }
  }

  /** The caller holds the directory's lock. Leftovers of unfinished writes are removed, what is damaged set aside. */
  static async open(directory: string, deps: StoreDeps): Promise<SpoolStore> {
    const names = readdirSync(directory);
    const folder = await open(directory, 'r');
    const recovered: QueuedSummary[] = [];
    const store = new SpoolStore(directory, folder, recovered, deps);
    const envelopes = new Set(
      names.filter((name) => name.endsWith('.json')).map((name) => name.slice(0, -5)),
    );
    for (const name of names) {
      const orphan = name.endsWith('.eml') && !envelopes.has(name.slice(0, -4));
      if (name.endsWith('.tmp') || orphan) await unlink(join(directory, name));
    }
    let seen = 0;
    for (const id of envelopes) {
      const summary = await store.#recover(id);
      if (summary !== null) recovered.push(summary);
      seen++;
      if (seen % SLICE === 0) await nextTurn();
    }
    return store;
  }

  /** Free disk is at least --spool-min-free. */
  async hasRoom(): Promise<boolean> {
    const now = this.#deps.now();
    if (this.#room === null || now - this.#room.at > ROOM_MS) {
      const { bavail, bsize } = await statfs(this.directory);
      this.#room = { at: now, enough: bavail * bsize >= this.#deps.minFreeOctets };
    }
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
  async commit(
    message: Omit<QueuedMessage, 'octets' | 'crc32'>,
    buffer: MessageBuffer,
  ): Promise<QueuedMessage> {
    const { id } = message;
    const queued = { ...message, ...(await buffer.makeDurable()) };
    try {
      await rename(this.temporaryPath(id), this.#path(id, 'eml'));
      await this.#replaceEnvelope(queued);
      return queued;
    } catch (error) {
      await this.#unlinkAll(id);
      throw error;
    }
  }

  /** @throws DamagedError when it is damaged, and in quarantine by now; the system's ENOENT when there is none */
  async load(id: string): Promise<QueuedMessage> {
    const text = await readFile(this.#path(id, 'json'), 'latin1');
    return await this.#checked(id, () => decodeEnvelope(Buffer.from(text, 'latin1').toString('utf8')));
  }

  /** Replaces the envelope; settles when that would survive a power cut. Changes of one message are made in order. */
  update(message: QueuedMessage): Promise<void> {
    const { id } = message;
    const before = this.#updates.get(id) ?? Promise.resolve();
    const update = before.catch(() => {}).then(() => this.#replaceEnvelope(message));
    this.#updates.set(id, update);
    const forget = () => {
      if (this.#updates.get(id) === update) this.#updates.delete(id);
    };
    update.then(forget, forget);
    return update;
  }

  /** The body, compared with length and checksum before the first octet is given. @throws as load() */
  async openBody(message: QueuedMessage): Promise<StoredBody> {
    const file = await open(this.#path(message.id, 'eml'), 'r');
    const read = () => chunksOf(file, message.octets);
    try {
      await this.#checked(message.id, async () => {
        let sum = 0;
        for await (const chunk of read()) sum = crc32(chunk, sum);
        if (sum !== message.crc32) throw new DamagedError('the message does not match its checksum');
        if ((await file.stat()).size !== message.octets)
          throw new DamagedError('the message has another length');
      });
      return { read, close: () => file.close() };
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  async remove(id: string): Promise<void> {
    await unlink(this.#path(id, 'json'));
    await unlink(this.#path(id, 'eml'));
    await this.#syncFolder();
  }

  /** Sets a damaged message aside. Never rejects. */
  async quarantine(id: string, reason: string): Promise<void> {
    this.#deps.log.error({ event: 'quarantined', id, reason });
    for (const kind of ['json', 'eml'] as const) {
      const aside = join(this.directory, 'quarantine', `${id}.${kind}`);
      await rename(this.#path(id, kind), aside).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') this.#deps.log.error({ event: 'quarantine-failed', id, err: error });
      });
    }
    await this.#syncFolder().catch((error: unknown) =>
      this.#deps.log.error({ event: 'quarantine-failed', id, err: error }),
    );
  }

  async close(): Promise<void> {
    await Promise.allSettled([...this.#updates.values(), this.#syncing, this.#syncNext]);
    await this.#folder.close();
  }

  /** Read synchronously: at the start nothing else is to be done, and a hundred thousand of them take seconds so. */
  async #recover(id: string): Promise<QueuedSummary | null> {
    try {
      if (!ID.test(id)) throw new DamagedError('not a name of ours');
      const message = decodeEnvelope(readFileSync(this.#path(id, 'json'), 'utf8'));
      const { queuedAt, nextAttemptAt, attempts, octets, recipients } = message;
      if (message.id !== id) throw new DamagedError('the envelope is of another message');
      const body = statSync(this.#path(id, 'eml'), { throwIfNoEntry: false });
      if (body === undefined) throw new DamagedError('the message is missing');
      if (body.size !== octets)
        throw new DamagedError(`the message has ${body.size} octets instead of ${octets}`);
      const pending = recipients.filter(({ state }) => state === 'pending');
      const domains = [...new Set(pending.map(({ mailbox }) => mailbox.domain ?? ''))];
      return { id, queuedAt, nextAttemptAt, attempts, octets, domains };
    } catch (error) {
      if (!(error instanceof DamagedError))
        throw new Error(`--spool-dir ${this.directory}: ${id}.json: ${(error as Error).message}`, {
          cause: error,
        });
      await this.quarantine(id, error.message);
      return null;
    }
  }

  async #checked<T>(id: string, check: () => T | Promise<T>): Promise<T> {
    try {
      return await check();
    } catch (error) {
      if (error instanceof DamagedError) await this.quarantine(id, error.message);
      throw error;
    }
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
    if (!ID.test(id)) throw new Error(`${id} is no queue id`);
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
