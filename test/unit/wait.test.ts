import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { Wait, WaitLimit } from '../../src/wait.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const never = () => new Promise<string>(() => {});

it('gives what came in time, and null when the wait was cut first', async () => {
  expect(await new Wait().for(Promise.resolve('x'))).toBe('x');
  const wait = new Wait();
  const cut = wait.for(never());
  wait.cut();
  expect(await cut).toBeNull();
});

it('cuts each wait when its own time is over, with one timer, and leaves none behind', async () => {
  const limit = new WaitLimit(1000);
  const [first, lifted, last] = [new Wait(), new Wait(), new Wait()];
  const cut: string[] = [];
  first.onCut = () => void cut.push('first');
  lifted.onCut = () => void cut.push('lifted');
  last.onCut = () => void cut.push('last');
  limit.limit(first);
  limit.limit(lifted);
  await vi.advanceTimersByTimeAsync(400);
  limit.limit(last);
  limit.lift(lifted);
  expect(vi.getTimerCount()).toBe(1);
  await vi.advanceTimersByTimeAsync(599);
  expect(cut).toEqual([]);
  await vi.advanceTimersByTimeAsync(2);
  expect(cut).toEqual(['first']);
  await vi.advanceTimersByTimeAsync(398);
  expect(cut).toEqual(['first']);
  await vi.advanceTimersByTimeAsync(2);
  expect(cut).toEqual(['first', 'last']);
  expect(vi.getTimerCount()).toBe(0);
});

it('gives a wait more time by its own account, until that is over or it is lifted', async () => {
  const limit = new WaitLimit(1000);
  const cut: string[] = [];
  const more = (name: string, ...extensions: number[]) => {
    const wait = new Wait();
    wait.extension = () => extensions.shift() ?? 0;
    wait.onCut = () => void cut.push(name);
    limit.limit(wait);
    return wait;
  };
  more('twice', 300, 200);
  const lifted = more('lifted', 300);
  await vi.advanceTimersByTimeAsync(900);
  more('later');
  await vi.advanceTimersByTimeAsync(200);
  limit.lift(lifted);
  await vi.advanceTimersByTimeAsync(399);
  expect(cut).toEqual([]);
  await vi.advanceTimersByTimeAsync(2);
  expect(cut).toEqual(['twice']);
  await vi.advanceTimersByTimeAsync(400);
  expect(cut).toEqual(['twice', 'later']);
  expect(vi.getTimerCount()).toBe(0);
});
