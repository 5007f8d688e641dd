// Claim 10: the fast path is disabled while a predetermined condition holds, or while somebody has switched it off.
// A condition disables it at once; it comes back after the last of them has been well below its limit for a while, so
// that a value about the limit doesn't turn it on and off. What being disabled means is for others to say.
// Owns one timer, which keeps no process alive.
import type { Logger } from 'pino';
import type { Condition } from '../config.ts';

export type DisabledReason = 'buffered' | 'event-loop-lag' | 'spool-latency' | 'manual';

export type FastPathDeps = Readonly<{
  /** At most one of each kind. */
  conditions: readonly Condition[];
  /** How much of --max-buffered is taken, 0 to 1. */
  bufferedFraction: () => number;
  /** Milliseconds of a monotonic clock. */
  now: () => number;
  log: Logger;
  /** Once for each reason that arises, also beside others. */
  onDisabled: (reason: DisabledReason) => void;
  onChange?: (enabled: boolean) => void;
}>;

type Measured = Exclude<Condition, { kind: 'manual' }>;

const EVALUATE_EVERY_MS = 1000;

/** A stall is seen as up to this much shorter than it was; twenty timers a second cost nothing that can be measured. */
const PROBE_EVERY_MS = 50;

/** Disabling changes the load, and so the value: it must fall clearly below its limit before the load may come back. */
const LIFT_BELOW = 0.8;

/** Long enough for a burst to show whether it is over, short enough for mail not to take the long way for no reason. */
const LIFT_AFTER_MS = 10_000;

/** No evaluation may miss a stall: at least half of this is remembered, and a timer can be late. */
const LAG_MEMORY_MS = 4 * EVALUATE_EVERY_MS;

/** Commits can be rare, and a disk that was slow at the last one is not known to be quick now. */
const LATENCY_MEMORY_MS = 10_000;

export class FastPathMonitor {
  readonly #deps: FastPathDeps;
  readonly #conditions: readonly Measured[];
  readonly #held = new Set<DisabledReason>();
  /** Since when a condition that holds has been well below its limit. */
  readonly #calmSince = new Map<DisabledReason, number>();
  readonly #lag: RecentWorst;
  readonly #latency: RecentWorst;
  #timer: NodeJS.Timeout | null = null;
  #changedAt: number | null = null;
  #probedAt = 0;
  #evaluatedAt = 0;

  constructor(deps: FastPathDeps) {
    this.#deps = deps;
    this.#conditions = deps.conditions.filter((condition) => condition.kind !== 'manual');
    this.#lag = new RecentWorst(LAG_MEMORY_MS, deps.now);
    this.#latency = new RecentWorst(LATENCY_MEMORY_MS, deps.now);
  }

  start(): void {
    if (this.#timer !== null || this.#conditions.length === 0) return;
    this.#probedAt = this.#evaluatedAt = this.#deps.now();
    this.#timer = setInterval(() => this.#probe(), PROBE_EVERY_MS).unref();
  }

  /** What holds now stays so. */
  stop(): void {
    if (this.#timer !== null) clearInterval(this.#timer);
    this.#timer = null;
  }

  get enabled(): boolean {
    return this.#held.size === 0;
  }

  /** In the order in which they arose. */
  get reasons(): readonly DisabledReason[] {
    return [...this.#held];
  }

  /** How long it has been as it is; null: since the start. */
  get sinceMs(): number | null {
    return this.#changedAt === null ? null : this.#deps.now() - this.#changedAt;
  }

  /** @param ms how long a commit to the spool took */
  observeSpoolLatency(ms: number): void {
    this.#latency.add(ms);
  }

  /** The manual switch. Switched on, it takes only its own reason away, and that at once. */
  setManually(enabled: boolean): void {
    if (enabled) this.#lift('manual');
    else this.#hold('manual');
  }

  /** Looks at every condition now. The timer does so each second. */
  evaluate(): void {
    const now = this.#deps.now();
    this.#evaluatedAt = now;
    const readings = this.#conditions.map((condition) => this.#read(condition));
    // Before lifting any: where one reason takes over from another, the fast path was never enabled in between.
    for (const { kind, value, limit } of readings) {
      if (value >= limit * LIFT_BELOW) this.#calmSince.delete(kind);
      else if (!this.#calmSince.has(kind)) this.#calmSince.set(kind, now);
      if (value > limit) this.#hold(kind, { value: Number(value.toFixed(1)), limit });
    }
    for (const { kind } of readings) {
      const since = this.#calmSince.get(kind);
      if (since !== undefined && now - since >= LIFT_AFTER_MS) this.#lift(kind);
    }
  }

  #probe(): void {
    const now = this.#deps.now();
    this.#lag.add(now - this.#probedAt - PROBE_EVERY_MS);
    this.#probedAt = now;
    if (now - this.#evaluatedAt >= EVALUATE_EVERY_MS) this.evaluate();
  }

  /** Value and limit in percent or milliseconds. */
  #read(condition: Measured): { kind: Measured['kind']; value: number; limit: number } {
    const { kind } = condition;
    switch (kind) {
      case 'buffered':
        return { kind, value: this.#deps.bufferedFraction() * 100, limit: condition.percent };
      case 'event-loop-lag':
        return { kind, value: this.#lag.worst, limit: condition.ms };
      case 'spool-latency':
        return { kind, value: this.#latency.worst, limit: condition.ms };
      default:
        return kind satisfies never;
    }
  }

  #hold(reason: DisabledReason, why: { value?: number; limit?: number } = {}): void {
    if (this.#held.has(reason)) return;
    const wasEnabled = this.enabled;
    this.#held.add(reason);
    this.#deps.log.warn({ event: 'fast-path-disabled', reason, ...why });
    this.#deps.onDisabled(reason);
    if (!wasEnabled) return;
    this.#changedAt = this.#deps.now();
    this.#deps.onChange?.(false);
  }

  #lift(reason: DisabledReason): void {
    if (!this.#held.delete(reason) || !this.enabled) return;
    this.#changedAt = this.#deps.now();
    this.#deps.log.info({ event: 'fast-path-enabled' });
    this.#deps.onChange?.(true);
  }
}

/** The largest value of the last `memoryMs`, give or take: of at least half of it, in two numbers however many come. */
class RecentWorst {
  readonly #halfMs: number;
  readonly #now: () => number;
  #began: number;
  #current = 0;
  #previous = 0;

  constructor(memoryMs: number, now: () => number) {
    this.#halfMs = memoryMs / 2;
    this.#now = now;
    this.#began = now();
  }

  add(value: number): void {
    this.#advance();
    this.#current = Math.max(this.#current, value);
  }

  /** 0 if there was none. */
  get worst(): number {
    this.#advance();
    return Math.max(this.#current, this.#previous);
  }

  #advance(): void {
    const halves = Math.floor((this.#now() - this.#began) / this.#halfMs);
    if (halves === 0) return;
    this.#began += halves * this.#halfMs;
    this.#previous = halves === 1 ? this.#current : 0;
    this.#current = 0;
  }
}
