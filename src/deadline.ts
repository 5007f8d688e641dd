// A deadline that is set and lifted for every command, without a timer each time: the one timer that runs is left alone
// and, when it fires too early, sets itself anew for the rest. dispose() leaves nothing behind.

export class Deadline {
  readonly #onExpired: () => void;
  #timer: NodeJS.Timeout | null = null;
  /** When the running timer fires. */
  #firesAt = 0;
  /** Milliseconds on performance.now()'s clock; Infinity: none is set. */
  #due = Infinity;

  constructor(onExpired: () => void) {
    this.#onExpired = onExpired;
  }

  /** Expires in `ms`, whatever was set before. */
  set(ms: number): void {
    this.#due = performance.now() + ms;
    if (this.#timer === null || this.#due < this.#firesAt) this.#run(ms);
  }

  lift(): void {
    this.#due = Infinity;
  }

  dispose(): void {
    this.#due = Infinity;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #run(ms: number): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#firesAt = performance.now() + ms;
    this.#timer = setTimeout(() => this.#onFired(), ms);
  }

  #onFired(): void {
    this.#timer = null;
    if (this.#due === Infinity) return;
    const rest = this.#due - performance.now();
    // Timers count whole milliseconds: half of one may be left.
    if (rest > 1) return this.#run(rest);
    this.#due = Infinity;
    this.#onExpired();
  }
}
