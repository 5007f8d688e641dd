// Rates from the counters of /status: differences between polls over the proxy's own clock. Forgets what it knows when
// that clock has gone back, since then it is another process that counts. Pure but for its memory, which is bounded.

/** @import {Status} from './status.d.ts' */
/** @typedef {Readonly<{ at: number, totals: ReadonlyMap<string, number> }>} Sample */

const KEPT = 91;
/** Long enough to be calm, short enough to be now. */
const WINDOW_MS = 5000;

export class Rates {
  /** @type {Sample[]} */
  #samples = [];

  /** @param {Status} status */
  push(status) {
    const last = this.#samples.at(-1);
    if (last !== undefined && status.monotonicMs <= last.at) this.#samples = [];
    this.#samples.push({ at: status.monotonicMs, totals: totalsOf(status) });
    if (this.#samples.length > KEPT) this.#samples.shift();
  }

  /**
   * Per second over the last few; 0 while there is nothing to compare with.
   * @param {string} name
   */
  of(name) {
    const last = this.#samples.at(-1);
    if (last === undefined) return 0;
    const inWindow = this.#samples.find(({ at }) => last.at - at <= WINDOW_MS);
    // After a pause there is just the one: then over all of the pause.
    const first = inWindow === last ? this.#samples.at(-2) : inWindow;
    return first === undefined ? 0 : between(first, last, name);
  }

  /**
   * One rate for each poll, the oldest first.
   * @param {string} name
   */
  series(name) {
    const rates = [];
    for (const [at, sample] of this.#samples.entries())
      if (at > 0) rates.push(between(/** @type {Sample} */ (this.#samples[at - 1]), sample, name));
    return rates;
  }
}

/**
 * @param {Sample} first
 * @param {Sample} last
 * @param {string} name
 */
function between(first, last, name) {
  const change = (last.totals.get(name) ?? 0) - (first.totals.get(name) ?? 0);
  // What a message has sent counts from its first byte; if it is given up, it counts no more.
  return Math.max(0, change) / ((last.at - first.at) / 1000);
}

/** @param {Status} status */
function totalsOf({ totals, nextHops }) {
  /** @type {Map<string, number>} */
  const all = new Map();
  let messages = 0;
  for (const [result, n] of Object.entries(totals.transactions)) {
    all.set(`result ${result}`, n);
    messages += n;
  }
  all.set('messages', messages);
  all.set('in', totals.bytes.in);
  all.set('out', totals.bytes.out);
  for (const { name, totals: by } of nextHops)
    for (const kind of /** @type {const} */ (['delivered', 'refused', 'failed'])) {
      const key = `${kind} at ${name}`;
      all.set(key, (all.get(key) ?? 0) + by[kind]);
    }
  return all;
}
