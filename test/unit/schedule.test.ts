import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { retryDelay } from '../../src/spool/schedule.ts';

const MIDDLE = () => 0.5;
const ALMOST_ONE = () => 1 - 2 ** -53;

describe('the wait before the next attempt', () => {
  it.each([
    [1, 60_000],
    [2, 300_000],
    [3, 900_000],
    [4, 900_000],
    [1000, 900_000],
  ])('takes the entry of the attempts made, %i, and repeats the last', (attempts, wait) => {
    expect(retryDelay([60_000, 300_000, 900_000], attempts, MIDDLE)).toBe(wait);
  });

  it('spreads by a tenth to both sides', () => {
    expect(retryDelay([60_000], 1, () => 0)).toBe(54_000);
    expect(retryDelay([60_000], 1, () => 0.25)).toBe(57_000);
    expect(retryDelay([60_000], 1, ALMOST_ONE)).toBe(66_000);
  });

  it('is at least a millisecond', () => {
    expect(retryDelay([0], 1, MIDDLE)).toBe(1);
    expect(retryDelay([1], 1, () => 0)).toBe(1);
  });

  it('is whole milliseconds, within a tenth of the entry, for every draw', () => {
    const draw = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(
        fc.integer({ min: 10, max: 1e9 }),
        fc.integer({ min: 1, max: 9 }),
        draw,
        (wait, attempts, drawn) => {
          const delay = retryDelay([wait], attempts, () => drawn);
          expect(Number.isInteger(delay)).toBe(true);
          expect(Math.abs(delay - wait)).toBeLessThanOrEqual(wait / 10 + 0.5);
        },
      ),
    );
  });

  it.each([
    ['no attempt', [1000], 0],
    ['no schedule', [], 1],
  ])('refuses %s', (_, schedule, attempts) => {
    expect(() => retryDelay(schedule, attempts, MIDDLE)).toThrow(RangeError);
  });
});
