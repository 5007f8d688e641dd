// How next hops fare, for /status: sessions, the last success and failure, and what became of the messages of the last
// five minutes. Fed by legs and pools, which hold on to their entry: per message it costs a few integers and, where no
// session was kept, one look into a map.
// Bounded: the least recently used entry makes room, if it can be one without a session. What still holds an entry that
// has gone counts on unseen. Names stand in for labels, which tell addresses and recipients' domains.
import type { NextHop } from '../routing/routes.ts';

export type FailureCause = 'refused' | 'timeout' | 'dns' | 'tls' | 'greeting' | 'closed' | 'protocol';
export type FailurePhase = 'connect' | 'mail' | 'rcpt' | 'data' | 'body' | 'dot';

const MAX_NEXT_HOPS = 100;
const SLOT_MS = 30_000;
/** Five minutes, of which the slot under way is the last. */
const SLOTS = 10;
const KINDS = { delivered: 0, refused: 1, failed: 2 } as const;
type Kind = keyof typeof KINDS;
const KIND_COUNT = 3;

export class HopHealth {
  /** `static #1`, `mx #2`: numbered in the order in which they were met. */
  readonly name: string;
  readonly label: string;
  /** Sessions in use, and kept for reuse. */
  active = 0;
  idle = 0;
  usedAtMs: number;
  /** Without a success, or a refusal in the next hop's own words, in between. */
  consecutiveFailures = 0;
  #okAtMs: number | null = null;
  #failedAtMs = 0;
  #phase: FailurePhase | null = null;
  #cause: FailureCause = 'closed';
  readonly #counts = new Uint32Array(SLOTS * KIND_COUNT);
  readonly #totals = { delivered: 0, refused: 0, failed: 0 };
  #slot: number;

  constructor(name: string, label: string, nowMs: number) {
    this.name = name;
    this.label = label;
    this.usedAtMs = nowMs;
    this.#slot = Math.floor(nowMs / SLOT_MS);
  }

  /** It took a message. */
  delivered(nowMs: number): void {
    this.#okAtMs = nowMs;
    this.consecutiveFailures = 0;
    this.#count('delivered', nowMs);
  }

  /** It said 4xx or 5xx to a sender, a recipient or a message: it is there, and does its work. */
  refused(nowMs: number): void {
    this.#okAtMs = nowMs;
    this.consecutiveFailures = 0;
    this.#count('refused', nowMs);
  }

  /** It could not be reached, or was lost on the way, by no doing of ours. */
  failed(phase: FailurePhase, cause: FailureCause, nowMs: number): void {
    this.consecutiveFailures++;
    this.#failedAtMs = nowMs;
    this.#phase = phase;
    this.#cause = cause;
    this.#count('failed', nowMs);
  }

  /** How little is to be expected of it; `share`: of the last five minutes' messages those that it did not take. */
  doubt(nowMs: number): Readonly<{ inARow: number; share: number }> {
    this.#advance(nowMs);
    const bad = this.#sum('refused') + this.#sum('failed');
    const all = bad + this.#sum('delivered');
    return { inARow: this.consecutiveFailures, share: all === 0 ? 0 : bad / all };
  }

  describe(nowMs: number, details: boolean) {
    this.#advance(nowMs);
    const age = (sinceMs: number) => Math.max(0, Math.round(nowMs - sinceMs));
    return {
      name: details ? this.label : this.name,
      sessions: { active: this.active, idle: this.idle },
      lastOkMs: this.#okAtMs === null ? null : age(this.#okAtMs),
      lastFailure:
        this.#phase === null
          ? null
          : { ageMs: age(this.#failedAtMs), phase: this.#phase, cause: this.#cause },
      consecutiveFailures: this.consecutiveFailures,
      totals: { ...this.#totals },
      fiveMinutes: {
        delivered: this.#sum('delivered'),
        refused: this.#sum('refused'),
        failed: this.#sum('failed'),
      },
    };
  }

  #count(kind: Kind, nowMs: number): void {
    this.#advance(nowMs);
    this.usedAtMs = nowMs;
    this.#totals[kind]++;
    this.#counts[(this.#slot % SLOTS) * KIND_COUNT + KINDS[kind]]!++;
  }

  #advance(nowMs: number): void {
    const slot = Math.floor(nowMs / SLOT_MS);
    if (slot <= this.#slot) return;
    const first = Math.max(this.#slot + 1, slot - SLOTS + 1);
    for (let each = first; each <= slot; each++) {
      const at = (each % SLOTS) * KIND_COUNT;
      this.#counts.fill(0, at, at + KIND_COUNT);
    }
    this.#slot = slot;
  }

  #sum(kind: Kind): number {
    let sum = 0;
    for (let at = KINDS[kind]; at < this.#counts.length; at += KIND_COUNT) sum += this.#counts[at]!;
    return sum;
  }
}

export class NextHopHealth {
  readonly #hops = new Map<string, HopHealth>();
  readonly #now: () => number;
  readonly #limit: number;
  readonly #numbers = { static: 0, mx: 0 };

  /** @param now milliseconds, monotonic */
  constructor(now: () => number, limit = MAX_NEXT_HOPS) {
    this.#now = now;
    this.#limit = limit;
  }

  /** The entry to count at, from now on the most recently used. */
  of(nextHop: NextHop): HopHealth {
    const found = this.#hops.get(nextHop.key);
    if (found === undefined) return this.#enter(nextHop);
    found.usedAtMs = this.#now();
    return found;
  }

  /** The static next hops of the configuration in force: shown before their first use, and no longer than they are there. */
  configure(nextHops: readonly NextHop[]): void {
    const keys = new Set(nextHops.map(({ key }) => key));
    for (const [key, hop] of this.#hops) {
      const gone = key.startsWith('static:') && !keys.has(key);
      if (gone && hop.active + hop.idle === 0) this.#hops.delete(key);
    }
    for (const nextHop of nextHops.slice(0, this.#limit)) this.of(nextHop);
  }

  /** What stands for the next hop where labels are not to be shown. */
  nameOf(nextHop: NextHop): string {
    return this.#hops.get(nextHop.key)?.name ?? kindOf(nextHop);
  }

  /** In the order in which they were met. */
  list(details: boolean) {
    const now = this.#now();
    return [...this.#hops.values()].map((hop) => hop.describe(now, details));
  }

  #enter(nextHop: NextHop): HopHealth {
    if (this.#hops.size >= this.#limit) this.#makeRoom();
    const kind = kindOf(nextHop);
    const hop = new HopHealth(`${kind} #${++this.#numbers[kind]}`, nextHop.label, this.#now());
    this.#hops.set(nextHop.key, hop);
    return hop;
  }

  #makeRoom(): void {
    let victim: string | null = null;
    let best = Infinity;
    for (const [key, { active, idle, usedAtMs }] of this.#hops) {
      // One in use goes only where all are.
      const rank = usedAtMs + (active + idle > 0 ? Number.MAX_SAFE_INTEGER / 2 : 0);
      if (rank >= best) continue;
      best = rank;
      victim = key;
    }
    if (victim !== null) this.#hops.delete(victim);
  }
}

function kindOf({ key }: NextHop): 'static' | 'mx' {
  return key.startsWith('static:') ? 'static' : 'mx';
}
