// When the next attempt is due (claims 8 and 9; --retry-schedule). Pure.

/** What messages deferred together are spread by, so that they don't all come back in the same moment. */
const JITTER = 0.1;

/**
 * The wait after an attempt that left recipients undelivered.
 * @param schedule milliseconds, at least one entry; the last one repeats
 * @param attempts made so far, at least 1
 * @param random as Math.random: 0 up to, not including, 1
 * @returns milliseconds, at least 1
 */
export function retryDelay(schedule: readonly number[], attempts: number, random: () => number): number {
  const wait = schedule[Math.min(attempts, schedule.length) - 1];
  if (wait === undefined) throw new RangeError(`no wait after ${attempts} attempts`);
  return Math.max(1, Math.round(wait * (1 + JITTER * (2 * random() - 1))));
}
