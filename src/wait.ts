// A wait that a deadline, or the end of what it is for, may cut short.

export class Wait {
  onCut: () => void = () => {};
  #isCut = false;

  get isCut(): boolean {
    return this.#isCut;
  }

  /** Null when the wait was cut first. */
  async for<T>(work: Promise<T>): Promise<T | null> {
    const cut = new Promise<null>((resolve) => {
      this.onCut = () => resolve(null);
    });
    const done = await Promise.race([work, cut]);
    return this.#isCut ? null : done;
  }

  /** Milliseconds more that it may take, asked when a limit of so many is over. */
  extension(_limitMs: number): number {
    return 0;
  }

  cut(): void {
    this.#isCut = true;
    this.onCut();
  }
}

/** One limit for many waits, with one timer instead of one for each: they come due in the order in which they began. */
export class WaitLimit {
  readonly #ms: number;
  readonly #dueAt = new Map<Wait, number>();
  /** The few that were given more, which come due in no order. */
  readonly #extended = new Map<Wait, NodeJS.Timeout>();
  #timer: NodeJS.Timeout | null = null;

  constructor(ms: number) {
    this.#ms = ms;
  }

  /** Cuts the wait after so long, unless it is lifted before. */
  limit(wait: Wait): void {
    this.#dueAt.set(wait, performance.now() + this.#ms);
    this.#timer ??= setTimeout(() => this.#onDue(), this.#ms).unref();
  }

  lift(wait: Wait): void {
    if (this.#dueAt.delete(wait)) return;
    clearTimeout(this.#extended.get(wait));
    this.#extended.delete(wait);
  }

  #onDue(): void {
    this.#timer = null;
    for (const [wait, dueAt] of this.#dueAt) {
      const rest = dueAt - performance.now();
      // Timers count whole milliseconds: half of one may be left.
      if (rest > 1) {
        this.#timer = setTimeout(() => this.#onDue(), rest).unref();
        return;
      }
      this.#dueAt.delete(wait);
      this.#end(wait);
    }
  }

  #end(wait: Wait): void {
    this.#extended.delete(wait);
    const moreMs = wait.extension(this.#ms);
    if (moreMs > 1) this.#extended.set(wait, setTimeout(() => this.#end(wait), moreMs).unref());
    else wait.cut();
  }
}
