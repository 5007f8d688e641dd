import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { Deadline } from '../../src/deadline.ts';

let expired = 0;
let deadline: Deadline;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] });
  expired = 0;
  deadline = new Deadline(() => expired++);
});
afterEach(() => {
  deadline.dispose();
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

it('expires once, when it is due', () => {
  deadline.set(100);
  vi.advanceTimersByTime(99);
  expect(expired).toBe(0);
  vi.advanceTimersByTime(1000);
  expect(expired).toBe(1);
});

it('counts from the last time it was set', () => {
  deadline.set(100);
  vi.advanceTimersByTime(80);
  deadline.set(100);
  vi.advanceTimersByTime(80);
  expect(expired).toBe(0);
  vi.advanceTimersByTime(25);
  expect(expired).toBe(1);
});

it('can be brought forward', () => {
  deadline.set(1000);
  deadline.set(10);
  vi.advanceTimersByTime(11);
  expect(expired).toBe(1);
});

it('does not expire when lifted, and can be set again', () => {
  deadline.set(10);
  deadline.lift();
  vi.advanceTimersByTime(1000);
  expect(expired).toBe(0);
  deadline.set(10);
  vi.advanceTimersByTime(11);
  expect(expired).toBe(1);
});

it('keeps one timer however often it is set', () => {
  for (let i = 0; i < 50; i++) deadline.set(100);
  expect(vi.getTimerCount()).toBe(1);
});

it('is put off by what is earned, up to a limit', () => {
  deadline.set(100);
  vi.advanceTimersByTime(90);
  deadline.extend(20, 100);
  vi.advanceTimersByTime(25);
  expect(expired).toBe(0);
  deadline.extend(5_000, 100);
  vi.advanceTimersByTime(98);
  expect(expired).toBe(0);
  expect(vi.getTimerCount()).toBe(1);
  vi.advanceTimersByTime(4);
  expect(expired).toBe(1);
});

it('stands still while it is paused', () => {
  deadline.set(100);
  vi.advanceTimersByTime(60);
  deadline.pause();
  vi.advanceTimersByTime(1_000);
  deadline.resume();
  vi.advanceTimersByTime(35);
  expect(expired).toBe(0);
  vi.advanceTimersByTime(10);
  expect(expired).toBe(1);
});

it.each<[string, () => void]>([
  ['lifted', () => deadline.lift()],
  ['disposed', () => deadline.dispose()],
])('is not set by what comes after it was %s', (_, end) => {
  deadline.set(100);
  deadline.pause();
  end();
  deadline.resume();
  deadline.extend(10, 100);
  vi.advanceTimersByTime(1_000);
  expect(expired).toBe(0);
});
