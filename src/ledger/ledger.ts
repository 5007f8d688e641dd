// What became of messages whose outcome their upstream may not know (RFC 1047): it was told of a failure that not every
// recipient had, or it went away before it had read the reply. It will send such a message again, and whoever has it
// must not get it twice.
// A message is told by a SHA-256 over reverse-path, client and header block (fingerprint.ts); that the body is the same
// too is compared at its end, before anything is promised for it: a different message is never suppressed.
// Bounded in entries and in time, the oldest go first. What must outlive the process is in the journal.
import type { Reply } from '../smtp/reply.ts';

export type Fate =
  /** The dots are out, and the answer has not come. */
  | Readonly<{ kind: 'pending' }>
  | Readonly<{ kind: 'delivered' }>
  | Readonly<{ kind: 'rejected'; reply: Reply }>;

/** One recipient's copy of one message. Paths are without angle brackets, the null reverse-path is empty. */
export type Entry = Readonly<{
  reversePath: string;
  forwardPath: string;
  /** See fingerprint.ts. */
  fingerprint: string;
  /** Of the whole message as the upstream sent it (RFC 1870 §5), and what its wire form is known by (XXH64). */
  octets: number;
  digest: string;
  fate: Fate;
  /** Outlives the process, where there is a journal. */
  durable: boolean;
  /** Epoch milliseconds. */
  expiresAt: number;
}>;

export type EntryKey = Pick<Entry, 'reversePath' | 'forwardPath' | 'fingerprint'>;

/** Keeps entries beyond the process. A settled promise means: on disk, or given up with a line in the log. */
export type Journal = Readonly<{
  put: (entry: Entry) => Promise<void>;
  drop: (key: EntryKey) => void;
  close: () => Promise<void>;
}>;

/** The other processes that have the same ledger (workers/). */
export type Peers = Readonly<{
  /** Durable entries outlive all of the processes. */
  isKept: boolean;
  /** Settles when the others know it, and a durable one is on disk; or that is given up, with a line in the log. */
  put: (entry: Entry) => Promise<void>;
  drop: (key: EntryKey) => void;
}>;

export type LedgerDeps = Readonly<{
  /** --ledger-ttl, milliseconds. */
  ttlMs: number;
  /** --ledger-max. */
  maxEntries: number;
  /** Epoch milliseconds. */
  now: () => number;
}>;

/**
 * In the order of their expiry, since all live equally long. A list: to find the oldest in a Set takes a walk over all that
 * was removed before it.
 */
type Kept = { readonly entry: Entry; older: Kept | null; newer: Kept | null };

export class Ledger {
  readonly #deps: LedgerDeps;
  #journal: Journal | null = null;
  #peers: Peers | null = null;
  /** By sender and recipient: most senders repeat few messages to the same recipient, so the lists are short. */
  readonly #byPaths = new Map<string, Kept[]>();
  #oldest: Kept | null = null;
  #newest: Kept | null = null;
  #size = 0;

  constructor(deps: LedgerDeps) {
    this.#deps = deps;
  }

  /** What almost every message finds. */
  get isEmpty(): boolean {
    return this.#size === 0;
  }

  get size(): number {
    this.#expire();
    return this.#size;
  }

  /** Durable entries outlive the process. */
  get isKept(): boolean {
    return this.#journal !== null || this.#peers?.isKept === true;
  }

  /** Oldest first. */
  get entries(): Iterable<Entry> {
    return this.#inOrder();
  }

  /** From here on durable entries are also written there; `recovered` is what it had. */
  keepIn(journal: Journal, recovered: readonly Entry[]): void {
    for (const entry of recovered) this.#add(entry);
    this.#journal = journal;
  }

  /** From here on every entry is also told to others; `known` is what they have. */
  shareWith(peers: Peers, known: readonly Entry[]): void {
    for (const entry of known) this.#add(entry);
    this.#peers = peers;
  }

  /** Whether some message of this sender to this recipient is on record: if so, it takes the header to tell more. */
  knows(reversePath: string, forwardPath: string): boolean {
    if (this.isEmpty) return false;
    this.#expire();
    return this.#byPaths.has(pathsOf({ reversePath, forwardPath }));
  }

  find(key: EntryKey): Entry | null {
    this.#expire();
    const same = this.#byPaths.get(pathsOf(key));
    return same?.find(({ entry }) => entry.fingerprint === key.fingerprint)?.entry ?? null;
  }

  /** In place of what is on record for the same copy. Settles when a durable one is on disk; null where none is to be. */
  put(entry: Omit<Entry, 'expiresAt'>): Promise<void> | null {
    return this.record({ ...entry, expiresAt: this.#deps.now() + this.#deps.ttlMs });
  }

  /** As put(), of an entry that has its date. */
  record(entry: Entry): Promise<void> | null {
    this.learn(entry);
    if (this.#peers !== null) return this.#peers.put(entry);
    return entry.durable && this.#journal !== null ? this.#journal.put(entry) : null;
  }

  /** What a peer has put, or dropped. */
  learn(entry: Entry): void {
    this.#remove(entry);
    this.#add(entry);
  }

  unlearn(key: EntryKey): void {
    this.#remove(key);
  }

  /** The upstream knows the outcome now, or what is on record is not of its message after all. */
  drop(key: EntryKey): void {
    const entry = this.#remove(key);
    if (entry === null) return;
    if (entry.durable) this.#journal?.drop(key);
    this.#peers?.drop(key);
  }

  async close(): Promise<void> {
    await this.#journal?.close();
  }

  #add(entry: Entry): void {
    const paths = pathsOf(entry);
    const same = this.#byPaths.get(paths);
    const kept: Kept = { entry, older: this.#newest, newer: null };
    if (same === undefined) this.#byPaths.set(paths, [kept]);
    else same.push(kept);
    if (this.#newest === null) this.#oldest = kept;
    else this.#newest.newer = kept;
    this.#newest = kept;
    this.#size++;
    while (this.#size > this.#deps.maxEntries) this.#remove(this.#oldest!.entry);
  }

  #remove(key: EntryKey): Entry | null {
    const paths = pathsOf(key);
    const same = this.#byPaths.get(paths) ?? [];
    const at = same.findIndex(({ entry }) => entry.fingerprint === key.fingerprint);
    if (at === -1) return null;
    const { entry, older, newer } = same[at]!;
    if (same.length === 1) this.#byPaths.delete(paths);
    else same.splice(at, 1);
    if (older === null) this.#oldest = newer;
    else older.newer = newer;
    if (newer === null) this.#newest = older;
    else newer.older = older;
    this.#size--;
    return entry;
  }

  *#inOrder(): Generator<Entry> {
    for (let kept = this.#oldest; kept !== null; kept = kept.newer) yield kept.entry;
  }

  #expire(): void {
    const now = this.#deps.now();
    while (this.#oldest !== null && this.#oldest.entry.expiresAt <= now) this.#remove(this.#oldest.entry);
  }
}

/** No path contains a line feed. */
function pathsOf({ reversePath, forwardPath }: Pick<Entry, 'reversePath' | 'forwardPath'>): string {
  return `${reversePath}\n${forwardPath}`;
}
