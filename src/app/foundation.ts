// What is made once and outlives every reload: what is counted and remembered, and the limits that all share.
import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import type { Logger } from 'pino';
import type { Config } from '../config.ts';
import { SOCKET_HIGH_WATER_OCTETS } from '../downstream/connect.ts';
import { NextHopHealth } from '../downstream/health.ts';
import { Ledger } from '../ledger/ledger.ts';
import { createMetrics, type Metrics } from '../metrics.ts';
import { LARGE_READ_OCTETS } from '../read-in-place.ts';
import { MemoryBudget } from '../spool/buffer.ts';
import { FastPathMonitor } from '../spool/fast-path.ts';
import { Spool } from '../spool/spool.ts';
import { RecentTimeLines } from '../time-line.ts';
import { VERSION } from '../version.ts';
import { LiveTransactions } from './live-transactions.ts';

export class Foundation {
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly ledger: Ledger;
  readonly timeLines: RecentTimeLines;
  readonly fastPath: FastPathMonitor;
  /** Of the spool's buffers. */
  readonly budget: MemoryBudget;
  readonly transactions = new LiveTransactions();
  readonly health = new NextHopHealth(() => performance.now());
  /** Downstream ones, of all pools; `waiting` are legs. */
  readonly sessions = { active: 0, idle: 0, waiting: 0 };
  /** By the key of a next hop: whether its last session offered DSN. */
  readonly offersDsn = new Map<string, boolean>();
  /** From when it is first needed; see open-spool.ts. */
  spool: Spool | null = null;
  readonly startedMs = performance.now();
  /** On a command line a hyphen would begin a flag. */
  readonly #idPrefix = randomBytes(6).toString('base64url').replace(/^-/, 'x');
  #serial = 0;

  constructor(config: Config, log: Logger) {
    this.log = log;
    this.metrics = createMetrics({ version: VERSION, mode: config.mode, fallback: config.fallback });
    this.timeLines = new RecentTimeLines(config.traceBuffer, {
      now: () => performance.now(),
      wall: Date.now,
    });
    this.budget = new MemoryBudget(config.maxBufferedBytes);
    this.ledger = new Ledger({ ttlMs: config.ledgerTtlMs, maxEntries: config.ledgerMax, now: Date.now });
    const { fastPathDisabled, fastPathEnabled } = this.metrics;
    this.fastPath = new FastPathMonitor({
      // Pure cut-through has limits of its own that answer for load; there only the switch counts.
      conditions: Spool.isNeeded(config) ? config.disableFastPathWhen : [],
      bufferedFraction: () => this.bufferedBytes / this.budget.limit,
      now: () => performance.now(),
      log,
      onDisabled: (reason) => fastPathDisabled.inc(reason),
      onChange: (enabled) => fastPathEnabled.set(enabled ? 1 : 0),
    });
  }

  /** Unique over processes by its first part, within this one by its second. */
  newId(): string {
    this.#serial++;
    return `${this.#idPrefix}.${this.#serial.toString(36)}`;
  }

  /** Message octets in memory. */
  get bufferedBytes(): number {
    return this.transactions.unsentBytes + this.budget.used;
  }

  /** Whether messages that are cut through hold as much as there may be. */
  isOverloaded({ maxBufferedBytes }: Config): boolean {
    // Adding up is only worth it when the open sessions could hold that much at all: each its room, and a chunk beyond.
    const most = this.sessions.active * (SOCKET_HIGH_WATER_OCTETS + LARGE_READ_OCTETS);
    return most >= maxBufferedBytes && this.transactions.unsentBytes >= maxBufferedBytes;
  }
}
