// What /status tells, and the page at / shows: counters to take rates from, live transactions with their legs, next hops
// and how they fare, the queue, the fast path. From memory alone, and bounded, whatever the load.
// Without --http-details no address of anybody is in it: no client, mailbox, domain or host, ours included.
import type { Config } from './config.ts';
import type { NextHopHealth } from './downstream/health.ts';
import type { Metrics } from './metrics.ts';
import type { FastPathMonitor } from './spool/fast-path.ts';
import type { Queue } from './spool/queue.ts';
import type { Described } from './spool/stored-transaction.ts';
import { VERSION } from './version.ts';

/** The oldest ones; how many there are is told beside them. */
export const MAX_TRANSACTIONS = 1000;
const MAX_LEGS = 20;
const MAX_RECIPIENTS = 5;

export type StatusSources = Readonly<{
  config: Config;
  /** With addresses. */
  details: boolean;
  metrics: Metrics;
  fastPath: FastPathMonitor;
  queue: Queue | null;
  health: NextHopHealth;
  listen: readonly string[];
  draining: boolean;
  connections: number;
  sessions: Readonly<{ active: number; idle: number }>;
  bufferedBytes: number;
  transactions: ReadonlySet<Readonly<{ describe: () => Described }>>;
  pid: number;
  /** Milliseconds, monotonic. */
  nowMs: number;
  startedMs: number;
}>;

export type Status = ReturnType<typeof statusOf>;

export function statusOf(sources: StatusSources) {
  const { config, fastPath, health, transactions, details } = sources;
  const described = [...transactions].map((transaction) => transaction.describe());
  return {
    version: VERSION,
    details,
    /** Counts up while the process lives; differences of two are what rates are taken over. */
    monotonicMs: Math.round(sources.nowMs - sources.startedMs),
    mode: config.mode,
    fallback: config.fallback,
    fastPath: { enabled: fastPath.enabled, reasons: fastPath.reasons, sinceMs: rounded(fastPath.sinceMs) },
    queue: queueOf(sources),
    draining: sources.draining,
    listen: details ? sources.listen : sources.listen.map(protocolOf),
    /** The processes that carry mail. */
    workers: [workerOf(sources)],
    connections: sources.connections,
    maxConnections: config.maxConnections,
    sessions: { ...sources.sessions },
    bufferedBytes: sources.bufferedBytes,
    maxBufferedBytes: config.maxBufferedBytes,
    totals: totalsOf(sources, described),
    nextHops: health.list(details),
    transactionsActive: transactions.size,
    transactions: described.slice(0, MAX_TRANSACTIONS).map((each) => transactionOf(each, health, details)),
  };
}

/** All that a listener's address tells without one. */
export function protocolOf(url: string): string {
  return url.slice(0, url.indexOf(':'));
}

function workerOf({ pid, draining, connections, transactions, nowMs, startedMs }: StatusSources) {
  return {
    number: 1,
    pid,
    state: draining ? 'draining' : 'listening',
    ageMs: Math.round(nowMs - startedMs),
    connections,
    transactionsActive: transactions.size,
  };
}

function queueOf({ queue, metrics }: StatusSources) {
  const work = queue?.work;
  return {
    messages: queue?.size ?? 0,
    bytes: queue?.octets ?? 0,
    oldestAgeSeconds: Math.round(queue?.oldestAgeSeconds ?? 0),
    /** Being delivered, or waiting for their turn at a next hop. */
    active: work?.active ?? 0,
    /** Of those that wait for their time; null: there are none. */
    nextDueSeconds: rounded(work?.nextDueSeconds ?? null),
    attempts: metrics.queueAttempts.sums(0),
  };
}

function totalsOf({ metrics }: StatusSources, described: readonly Described[]) {
  const bytes = metrics.messageBytes.sums(0);
  // The counter has what went out once a transaction is over; a long message should be seen to flow.
  const underway = described.reduce((sum, { octetsOut }) => sum + octetsOut, 0);
  return {
    transactions: metrics.transactions.sums(1),
    recipients: metrics.recipients.sums(0),
    bytes: { in: bytes.in ?? 0, out: (bytes.out ?? 0) + underway },
  };
}

function transactionOf(
  { id, state, record, octetsIn, legs }: Described,
  health: NextHopHealth,
  details: boolean,
) {
  return {
    id,
    state,
    ms: Math.round(record.milliseconds),
    bytes: octetsIn,
    legs: legs.slice(0, MAX_LEGS).map(({ nextHop, phase, recipients }) => {
      const name = nextHop === null ? '' : details ? nextHop.label : health.nameOf(nextHop);
      return { nextHop: name, phase, recipients };
    }),
    legCount: legs.length,
    ...(details ? record.people(MAX_RECIPIENTS) : {}),
  };
}

function rounded(value: number | null): number | null {
  return value === null ? null : Math.round(value);
}
