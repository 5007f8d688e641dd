// Chance that can be had again: everything about a message is drawn from the seed and its number, whatever runs beside it.

export class Chance {
  #state: number;

  constructor(seed: number, nth = 0) {
    this.#state = (seed ^ Math.imul(nth + 1, 0x9e3779b1)) >>> 0;
  }

  /** mulberry32: 0 to 1. */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  is(probability: number): boolean {
    return this.next() < probability;
  }

  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  of<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}
