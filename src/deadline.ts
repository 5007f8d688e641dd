// A deadline that is set and lifted for every command, or put off by every chunk, without a timer each time: the one timer
// that runs is left alone and, when it fires too early, sets itself anew for the rest. dispose() leaves nothing behind.

export class Deadline {
  readonly #onExpired: () => void;
  #timer: NodeJS.Timeout | null = null;
  /** When the running timer fires. */
  #firesAt = 0;
  /** Milliseconds on performance.now()'s clock; Infinity: none is set. */
  #due = Infinity;
  /** What was left when its clock was stopped; Infinity: it isn't. */
  #left = Infinity;

  constructor(onExpired: () => void) {
    this.#onExpired = onExpired;
  }

  /** Expires in `ms`, whatever was set before. */
  set(ms: number): void {
    this.#left = Infinity;
    this.#due = performance.now() + ms;
    if (this.#timer === null || this.#due < this.#firesAt) this.#run(ms);
  }

  /** Puts one that is set off by `ms`, up to `limitMs` from now. `limitMs`: no less than it was set to. */
  extend(ms: number, limitMs: number): void {
    if (this.#due !== Infinity) this.#due = Math.min(this.#due + ms, performance.now() + limitMs);
  }

  /** Stops the clock of one that is set, until resume(). */
  pause(): void {
    if (this.#due === Infinity) return;
    this.#left = this.#due - performance.now();
    this.#due = Infinity;
  }

  /** Nothing, where it was set or lifted meanwhile. */
  resume(): void {
    if (this.#left !== Infinity) this.set(this.#left);
  }

  lift(): void {
    this.#due = Infinity;
    this.#left = Infinity;
  }

  dispose(): void {
    this.lift();
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
