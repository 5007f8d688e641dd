// A wait that a deadline, or the end of what it is for, may cut short.

export class Wait {
  onCut: () => void = () => {};
  #isCut = false;

  /** Null when the wait was cut first. */
  async for<T>(work: Promise<T>): Promise<T | null> {
    const cut = new Promise<null>((resolve) => {
      this.onCut = () => resolve(null);
    });
    const done = await Promise.race([work, cut]);
    return this.#isCut ? null : done;
  }

  cut(): void {
    this.#isCut = true;
    this.onCut();
  }
}
