// /status of several processes as one, in the shape that one has (../status.ts). Workers tell it with addresses; where
// those aren't to be shown, next hops get names here, since each worker numbers them as it meets them.
// Totals of workers that have ended are kept: whoever takes rates from them must not see them fall.
import { MAX_TRANSACTIONS, protocolOf, type Status } from '../status.ts';
import type { WorkerStatus } from './protocol.ts';

type Hop = Status['nextHops'][number];
type Kind = 'static' | 'mx';
type NamedHop = Readonly<{ hop: Hop; kind: Kind }>;

/** Next hops whose totals are kept of workers that have ended. */
const MAX_ENDED_HOPS = 100;

/** What the primary knows better. */
export type Whole = Pick<
  Status,
  'version' | 'details' | 'monotonicMs' | 'mode' | 'fallback' | 'draining' | 'listen' | 'workers'
> &
  Readonly<{ maxConnections: number; maxBufferedBytes: number }>;

type Kept = Readonly<{
  totals: Status['totals'];
  attempts: Readonly<Record<string, number>>;
  hops: ReadonlyMap<string, NamedHop>;
}>;

export class StatusOfAll {
  #kept: Kept = {
    totals: { transactions: {}, recipients: {}, bytes: { in: 0, out: 0 } },
    attempts: {},
    hops: new Map(),
  };
  /** By label. */
  #names = new Map<string, string>();
  readonly #numbers = { static: 0, mx: 0 };

  /** The last figures of a worker that is no more. */
  keep({ status, names }: WorkerStatus): void {
    const hops = new Map(this.#kept.hops);
    // Ages stop with the worker.
    const ended = { lastOkMs: null, lastFailure: null, consecutiveFailures: 0 };
    const none = { sessions: { active: 0, idle: 0 }, fiveMinutes: { delivered: 0, refused: 0, failed: 0 } };
    for (const [at, hop] of status.nextHops.entries())
      addHop(hops, { ...hop, ...ended, ...none }, kindOf(names[at]));
    for (const label of hops.keys()) if (hops.size > MAX_ENDED_HOPS) hops.delete(label);
    this.#kept = {
      totals: sumOfTotals([this.#kept.totals, status.totals]),
      attempts: sums([this.#kept.attempts, status.queue.attempts]),
      hops,
    };
  }

  /** @param processes the workers that live now, as in `whole`; null: one that has said nothing yet */
  async of(whole: Whole, processes: readonly Promise<WorkerStatus | null>[]): Promise<Status> {
    // Those that live now and end before they have answered are not among these: none counts twice.
    const kept = this.#kept;
    const answers = await Promise.all(processes);
    const workers = answers.filter((each) => each !== null);
    const hops = new Map(kept.hops);
    for (const { status, names } of workers)
      for (const [at, hop] of status.nextHops.entries()) addHop(hops, hop, kindOf(names[at]));
    this.#name(hops);
    const all = workers.map(({ status }) => status);
    const transactions = all
      .flatMap((status) => status.transactions)
      .sort((a, b) => b.ms - a.ms)
      .slice(0, MAX_TRANSACTIONS);
    const status: Status = {
      ...whole,
      workers: whole.workers.map((worker, at) => ({ ...worker, ...countsOf(answers[at]) })),
      fastPath: fastPathOf(all.map(({ fastPath }) => fastPath)),
      queue: queueOf(
        all.map(({ queue }) => queue),
        kept.attempts,
      ),
      connections: total(all.map(({ connections }) => connections)),
      sessions: sessionsOf(all.map(({ sessions }) => sessions)),
      bufferedBytes: total(all.map(({ bufferedBytes }) => bufferedBytes)),
      totals: sumOfTotals([kept.totals, ...all.map(({ totals }) => totals)]),
      nextHops: [...hops.values()].map(({ hop }) => hop),
      transactionsActive: total(all.map(({ transactionsActive }) => transactionsActive)),
      transactions,
    };
    return whole.details ? status : this.#withoutAddresses(status);
  }

  #name(hops: ReadonlyMap<string, NamedHop>): void {
    const known = this.#names;
    this.#names = new Map();
    for (const [label, { kind }] of hops)
      this.#names.set(label, known.get(label) ?? `${kind} #${++this.#numbers[kind]}`);
  }

  #withoutAddresses(status: Status): Status {
    return {
      ...status,
      listen: status.listen.map(protocolOf),
      nextHops: status.nextHops.map((hop) => ({ ...hop, name: this.#names.get(hop.name)! })),
      transactions: status.transactions.map(({ id, state, ms, bytes, legs, legCount }) => ({
        id,
        state,
        ms,
        bytes,
        // One that no list has any more.
        legs: legs.map((leg) => ({ ...leg, nextHop: leg.nextHop && (this.#names.get(leg.nextHop) ?? 'mx') })),
        legCount,
      })),
    };
  }
}

function countsOf(answer: WorkerStatus | null | undefined) {
  return {
    connections: answer?.status.connections ?? 0,
    transactionsActive: answer?.status.transactionsActive ?? 0,
  };
}

function kindOf(name = ''): Kind {
  return name.startsWith('static') ? 'static' : 'mx';
}

function addHop(hops: Map<string, NamedHop>, hop: Hop, kind: Kind): void {
  const known = hops.get(hop.name)?.hop;
  hops.set(hop.name, { hop: known === undefined ? hop : sumOfHops(known, hop), kind });
}

function sumOfHops(a: Hop, b: Hop): Hop {
  const lastOkMs = least(a.lastOkMs, b.lastOkMs);
  const failures = [a.lastFailure, b.lastFailure].filter((failure) => failure !== null);
  const lastFailure = failures.sort((one, other) => one.ageMs - other.ageMs)[0] ?? null;
  // What worked for one worker after it failed for another works.
  const works = lastFailure === null || (lastOkMs !== null && lastOkMs <= lastFailure.ageMs);
  return {
    name: a.name,
    sessions: sessionsOf([a.sessions, b.sessions]),
    lastOkMs,
    lastFailure,
    consecutiveFailures: works ? 0 : a.consecutiveFailures + b.consecutiveFailures,
    totals: outcomesOf(a.totals, b.totals),
    fiveMinutes: outcomesOf(a.fiveMinutes, b.fiveMinutes),
  };
}

function outcomesOf(a: Hop['totals'], b: Hop['totals']): Hop['totals'] {
  return {
    delivered: a.delivered + b.delivered,
    refused: a.refused + b.refused,
    failed: a.failed + b.failed,
  };
}

function sessionsOf(all: readonly Status['sessions'][]): Status['sessions'] {
  return { active: total(all.map(({ active }) => active)), idle: total(all.map(({ idle }) => idle)) };
}

/** Disabled where it is for any; since the last change that made it so. */
function fastPathOf(all: readonly Status['fastPath'][]): Status['fastPath'] {
  const enabled = all.every((each) => each.enabled);
  const reasons = [...new Set(all.flatMap((each) => each.reasons))];
  const changed = all.filter((each) => each.enabled === enabled).map(({ sinceMs }) => sinceMs);
  const known = changed.filter((sinceMs) => sinceMs !== null);
  const sinceMs = known.length === 0 ? null : enabled ? Math.min(...known) : Math.max(...known);
  return { enabled, reasons, sinceMs };
}

function queueOf(all: readonly Status['queue'][], kept: Readonly<Record<string, number>>): Status['queue'] {
  return {
    messages: total(all.map(({ messages }) => messages)),
    bytes: total(all.map(({ bytes }) => bytes)),
    oldestAgeSeconds: Math.max(0, ...all.map(({ oldestAgeSeconds }) => oldestAgeSeconds)),
    active: total(all.map(({ active }) => active)),
    nextDueSeconds: all.reduce<number | null>((due, queue) => least(due, queue.nextDueSeconds), null),
    attempts: sums([kept, ...all.map(({ attempts }) => attempts)]),
  };
}

function sumOfTotals(all: readonly Status['totals'][]): Status['totals'] {
  return {
    transactions: sums(all.map(({ transactions }) => transactions)),
    recipients: sums(all.map(({ recipients }) => recipients)),
    bytes: { in: total(all.map(({ bytes }) => bytes.in)), out: total(all.map(({ bytes }) => bytes.out)) },
  };
}

function sums(all: readonly Readonly<Record<string, number>>[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const each of all)
    for (const [name, value] of Object.entries(each)) sum[name] = (sum[name] ?? 0) + value;
  return sum;
}

function total(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}

function least(a: number | null, b: number | null): number | null {
  return a === null || b === null ? (a ?? b) : Math.min(a, b);
}
