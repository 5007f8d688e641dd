// The ledger's file: one line for each entry put or dropped, JSON behind a CRC-32, appended and fsynced; what is asked for
// meanwhile shares the next fsync. When most of the file is history, it is written anew beside it, fsynced, and renamed.
// A line that doesn't check out is skipped: forgetting costs a duplicate, guessing would cost a message.
// After a failed write or fsync nothing more is written, since what is in the file then nobody knows; the ledger goes on
// in memory, and the log says so. Owns the file, which belongs to one process (the caller holds the directory's lock).
import { type FileHandle, open, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import type { Logger } from 'pino';
import { z } from 'zod';
import type { Entry, EntryKey, Journal } from './ledger.ts';

export type JournalDeps = Readonly<{
  log: Logger;
  /** Epoch milliseconds. */
  now: () => number;
  /** The durable entries as they are now, for writing the file anew. */
  entries: () => Iterable<Entry>;
}>;

export const FILE_NAME = 'ledger.journal';
/** History that is not worth rewriting the file for, octets. */
const SMALL_OCTETS = 1024 * 1024;
/** The file is written anew when it is this many times as long as what counts in it. */
const BLOAT = 4;

const REPLY = z.strictObject({
  code: z.int().min(500).max(599),
  enhanced: z.string().nullable(),
  lines: z.array(z.string()).readonly(),
});
const KEY = { reversePath: z.string(), forwardPath: z.string(), fingerprint: z.string() };
const ENTRY = z.strictObject({
  ...KEY,
  octets: z.int().nonnegative(),
  digest: z.string(),
  fate: z.discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('pending') }),
    z.strictObject({ kind: z.literal('delivered') }),
    z.strictObject({ kind: z.literal('rejected'), reply: REPLY }),
  ]),
  durable: z.boolean(),
  expiresAt: z.number().nonnegative(),
});
const LINE = z.union([z.strictObject({ put: ENTRY }), z.strictObject({ drop: z.strictObject(KEY) })]);
type Line = z.infer<typeof LINE>;

export type OpenedJournal = Readonly<{ journal: Journal; recovered: readonly Entry[] }>;

/**
 * The caller holds the directory's lock. Entries whose fate was still pending when the process ended are not recovered:
 * nobody knows it, so that their recipients get the message again. The log counts them.
 * @throws the system's error when the file can't be read or written
 */
export async function openJournal(directory: string, deps: JournalDeps): Promise<OpenedJournal> {
  const path = join(directory, FILE_NAME);
  const found = read(await readIfAny(path), deps.now());
  if (found.damaged > 0) deps.log.warn({ event: 'ledger_damaged', lines: found.damaged });
  const recovered = found.entries.filter(({ fate }) => fate.kind !== 'pending');
  const unknown = found.entries.length - recovered.length;
  if (unknown > 0) deps.log.warn({ event: 'ledger_unknown', recipients: unknown });
  const file = await writeAnew(directory, recovered);
  return { journal: new FileJournal(directory, file, deps), recovered };
}

class FileJournal implements Journal {
  readonly #directory: string;
  readonly #deps: JournalDeps;
  #file: OpenedFile;
  #lines: string[] = [];
  /** Settles when the lines that wait now are on disk. */
  #next: Promise<void> | null = null;
  #writing: Promise<void> = Promise.resolve();
  #failed = false;

  constructor(directory: string, file: OpenedFile, deps: JournalDeps) {
    this.#directory = directory;
    this.#file = file;
    this.#deps = deps;
  }

  put(entry: Entry): Promise<void> {
    return this.#append({ put: entry });
  }

  drop({ reversePath, forwardPath, fingerprint }: EntryKey): void {
    void this.#append({ drop: { reversePath, forwardPath, fingerprint } });
  }

  async close(): Promise<void> {
    await this.#writing;
    this.#failed = true;
    await this.#file.handle.close().catch(() => {});
  }

  /** Never rejects. */
  #append(line: Line): Promise<void> {
    if (this.#failed) return Promise.resolve();
    this.#lines.push(encode(line));
    if (this.#next === null) {
      this.#next = this.#writing.then(() => this.#write());
      this.#writing = this.#next;
    }
    return this.#next;
  }

  async #write(): Promise<void> {
    this.#next = null;
    const text = this.#lines.join('');
    this.#lines = [];
    if (this.#failed) return;
    try {
      const file = this.#file;
      if (file.octets > SMALL_OCTETS && file.octets > file.octetsAnew * BLOAT) return await this.#rewrite();
      file.octets += Buffer.byteLength(text);
      await file.handle.appendFile(text);
      await file.handle.datasync();
    } catch (error) {
      this.#failed = true;
      this.#deps.log.error({ event: 'ledger_failed', directory: this.#directory, err: error });
    }
  }

  /** The entries as they are now are newer than any line that waits. */
  async #rewrite(): Promise<void> {
    const old = this.#file;
    this.#file = await writeAnew(this.#directory, this.#deps.entries());
    await old.handle.close();
  }
}

type OpenedFile = { handle: FileHandle; octets: number; octetsAnew: number };

async function writeAnew(directory: string, entries: Iterable<Entry>): Promise<OpenedFile> {
  const text = Array.from(entries, (entry) => encode({ put: entry })).join('');
  const path = join(directory, FILE_NAME);
  const handle = await open(`${path}.tmp`, 'w', 0o600);
  try {
    await handle.appendFile(text);
    await handle.sync();
    await rename(`${path}.tmp`, path);
    const folder = await open(directory, 'r');
    await folder.sync().finally(() => folder.close());
  } catch (error) {
    await handle.close();
    throw error;
  }
  const octets = Buffer.byteLength(text);
  return { handle, octets, octetsAnew: octets };
}

function encode(line: Line): string {
  const json = JSON.stringify(line);
  return `${crc32(json).toString(16).padStart(8, '0')} ${json}\n`;
}

function decode(text: string): Line | null {
  const json = text.slice(9);
  if (text.slice(0, 9) !== `${crc32(json).toString(16).padStart(8, '0')} `) return null;
  try {
    return LINE.parse(JSON.parse(json));
  } catch {
    return null;
  }
}

async function readIfAny(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}

function read(text: string, now: number): { entries: readonly Entry[]; damaged: number } {
  const entries = new Map<string, Entry>();
  let damaged = 0;
  for (const each of text.split('\n')) {
    if (each === '') continue;
    const line = decode(each);
    if (line === null) damaged++;
    else if ('drop' in line) entries.delete(keyOf(line.drop));
    else {
      // Put again, it is the newest.
      entries.delete(keyOf(line.put));
      entries.set(keyOf(line.put), line.put);
    }
  }
  return { entries: [...entries.values()].filter(({ expiresAt }) => expiresAt > now), damaged };
}

function keyOf({ reversePath, forwardPath, fingerprint }: EntryKey): string {
  return `${reversePath}\n${forwardPath}\n${fingerprint}`;
}
