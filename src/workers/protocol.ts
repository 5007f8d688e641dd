// What the primary and its workers ask of each other.
import type { Config } from '../config.ts';
import type { Entry, EntryKey } from '../ledger/ledger.ts';
import type { MetricsAsJson } from '../metrics.ts';
import type { Status } from '../status.ts';

export type Orders = Readonly<{
  /** From 1; in its log lines. */
  number: number;
  /** The worker's share: no HTTP, no ledger of its own. */
  config: Config;
  /** What the ledger has. */
  entries: readonly Entry[];
  /** Durable entries are on disk once they are recorded. */
  ledgerIsKept: boolean;
  /** There may be mail in the spool, whatever the config says now. */
  spooling: boolean;
  /** Claim 10's manual switch. */
  fastPath: boolean;
}>;

/** With addresses, and by what names next hops go where those aren't shown. */
export type WorkerStatus = Readonly<{ status: Status; names: readonly string[] }>;

export type WorkerCalls = {
  /** Settles when it listens, with the addresses bound. Rejects in the operator's words. */
  start: (orders: Orders) => readonly string[];
  /** Settles when it has nothing left to do, with its last figures. */
  drain: (
    options: Readonly<{ timeoutMs: number }>,
  ) => Readonly<{ metrics: MetricsAsJson; status: WorkerStatus }>;
  /** Answers, and nothing else. */
  heartbeat: (none: null) => void;
  metrics: (none: null) => MetricsAsJson;
  status: (none: null) => WorkerStatus;
  trace: (id: string) => Readonly<{ found: unknown; kept: number }>;
  setFastPath: (enabled: boolean) => void;
  setMode: (wanted: Readonly<{ mode: string; fallback: string | null }>) => void;
  /** Another worker has put an entry, or dropped it. */
  learn: (entry: Entry) => void;
  unlearn: (key: EntryKey) => void;
};

export type PrimaryCalls = {
  /** The worker hears from now on: what is sent to it before is lost. */
  hello: (none: null) => void;
  /** Settles when the other workers know the entry, and a durable one is on disk. */
  record: (entry: Entry) => void;
  drop: (key: EntryKey) => void;
};
