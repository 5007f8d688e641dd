// Claim 10's conditions, on a clock that the test moves: a stall is the clock going on while no timer fires.
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Condition } from '../../src/config.ts';
import { createLogger } from '../../src/log.ts';
import { type DisabledReason, FastPathMonitor } from '../../src/spool/fast-path.ts';

const BUFFERED: Condition = { kind: 'buffered', percent: 90 };
const LAG: Condition = { kind: 'event-loop-lag', ms: 500 };
const LATENCY: Condition = { kind: 'spool-latency', ms: 2000 };

class Bench {
  buffered = 0;
  stalledMs = 0;
  readonly disabled: DisabledReason[] = [];
  readonly changes: boolean[] = [];
  readonly lines: Record<string, unknown>[] = [];
  readonly monitor: FastPathMonitor;

  constructor(...conditions: readonly Condition[]) {
    const stream = { write: (line: string) => this.lines.push(JSON.parse(line)) };
    this.monitor = new FastPathMonitor({
      conditions,
      bufferedFraction: () => this.buffered,
      now: () => Date.now() + this.stalledMs,
      log: createLogger({ level: 'trace', format: 'json', stream }),
      onDisabled: (reason) => this.disabled.push(reason),
      onChange: (enabled) => this.changes.push(enabled),
    });
    this.monitor.start();
  }

  /** Lets the timers run for so long. */
  pass(ms: number): void {
    vi.advanceTimersByTime(ms);
  }

  /** The event loop stands still for so long; then what was due runs. */
  stall(ms: number): void {
    this.stalledMs += ms;
  }

  get events(): unknown[] {
    return this.lines.map(({ level, time: _time, ...fields }) => ({ level, ...fields }));
  }
}

beforeEach(() => vi.useFakeTimers());
afterEach(() => vi.useRealTimers());

const ENABLED = { level: 'info', event: 'fast-path-enabled' };

describe('each condition disables the fast path within a second, and says why', () => {
  it('is enabled at first, and while nothing holds', () => {
    const bench = new Bench(BUFFERED, LAG, LATENCY);
    bench.pass(60_000);
    expect(bench.monitor.enabled).toBe(true);
    expect(bench.monitor.reasons).toEqual([]);
    expect([bench.events, bench.disabled, bench.changes]).toEqual([[], [], []]);
  });

  it('tells how long it has been as it is, whatever reasons come and go meanwhile', () => {
    const bench = new Bench(BUFFERED);
    expect(bench.monitor.sinceMs).toBeNull();
    bench.monitor.setManually(false);
    bench.buffered = 1;
    bench.pass(5_000);
    expect(bench.monitor.reasons).toEqual(['manual', 'buffered']);
    expect(bench.monitor.sinceMs).toBe(5_000);
    bench.monitor.setManually(true);
    expect(bench.monitor.sinceMs).toBe(5_000);
    bench.buffered = 0;
    bench.pass(15_000);
    expect(bench.monitor.enabled).toBe(true);
    expect(bench.monitor.sinceMs).toBeLessThan(5_000);
  });

  it('memory for messages is nearly used up', () => {
    const bench = new Bench(BUFFERED);
    bench.buffered = 0.9;
    bench.pass(5000);
    expect(bench.monitor.enabled).toBe(true);
    bench.buffered = 0.914;
    bench.pass(1050);
    expect(bench.monitor.enabled).toBe(false);
    expect(bench.monitor.reasons).toEqual(['buffered']);
    expect(bench.disabled).toEqual(['buffered']);
    expect(bench.changes).toEqual([false]);
    const fields = { reason: 'buffered', value: 91.4, limit: 90 };
    expect(bench.events).toEqual([{ level: 'warn', event: 'fast-path-disabled', ...fields }]);
  });

  it('the event loop stood still', () => {
    const bench = new Bench(LAG);
    bench.pass(3000);
    bench.stall(500);
    bench.pass(2000);
    expect(bench.monitor.enabled).toBe(true);
    bench.stall(501);
    bench.pass(1050);
    expect(bench.monitor.reasons).toEqual(['event-loop-lag']);
    expect(bench.events).toEqual([
      { level: 'warn', event: 'fast-path-disabled', reason: 'event-loop-lag', value: 501, limit: 500 },
    ]);
  });

  it('a stall is noticed whenever it comes between two evaluations', () => {
    for (let offset = 0; offset < 2000; offset += 50) {
      const bench = new Bench(LAG);
      bench.pass(offset);
      bench.stall(501);
      bench.pass(1050);
      expect(bench.monitor.enabled, `${offset} ms after the start`).toBe(false);
      bench.monitor.stop();
    }
  });

  it('stalls shorter than the limit do not add up', () => {
    const bench = new Bench(LAG);
    for (let i = 0; i < 20; i++) {
      bench.stall(300);
      bench.pass(50);
    }
    expect(bench.monitor.enabled).toBe(true);
  });

  it('the spool took long for one of its commits', () => {
    const bench = new Bench(LATENCY);
    bench.monitor.observeSpoolLatency(2000);
    bench.pass(1050);
    expect(bench.monitor.enabled).toBe(true);
    bench.monitor.observeSpoolLatency(2500);
    for (let i = 0; i < 1000; i++) bench.monitor.observeSpoolLatency(3);
    bench.pass(1050);
    expect(bench.events).toEqual([
      { level: 'warn', event: 'fast-path-disabled', reason: 'spool-latency', value: 2500, limit: 2000 },
    ]);
  });

  it('evaluate() does not wait for the timer', () => {
    const bench = new Bench(BUFFERED);
    bench.buffered = 1;
    bench.monitor.evaluate();
    expect(bench.monitor.enabled).toBe(false);
  });

  it('measures nothing that it was not told to', () => {
    const bench = new Bench({ kind: 'manual' });
    bench.buffered = 1;
    bench.stall(60_000);
    bench.monitor.observeSpoolLatency(60_000);
    bench.pass(5000);
    bench.monitor.evaluate();
    expect(bench.monitor.enabled).toBe(true);
  });
});

describe('a condition is lifted only after ten seconds well below its limit', () => {
  function disabled(): Bench {
    const bench = new Bench(BUFFERED);
    bench.buffered = 0.95;
    bench.monitor.evaluate();
    return bench;
  }

  it('not sooner, and not much later', () => {
    const bench = disabled();
    bench.buffered = 0.1;
    bench.monitor.evaluate();
    bench.pass(9990);
    bench.monitor.evaluate();
    expect(bench.monitor.enabled).toBe(false);
    bench.pass(1050);
    expect(bench.monitor.enabled).toBe(true);
    expect(bench.changes).toEqual([false, true]);
    expect(bench.events.slice(1)).toEqual([ENABLED]);
  });

  it('never while the value stays between 80 % of the limit and the limit', () => {
    const bench = disabled();
    bench.buffered = 0.73;
    bench.pass(60_000);
    expect(bench.monitor.enabled).toBe(false);
    bench.buffered = 0.71;
    bench.pass(12_000);
    expect(bench.monitor.enabled).toBe(true);
  });

  it('the ten seconds begin anew when the value rises again, even if not above the limit', () => {
    const bench = disabled();
    for (let i = 0; i < 4; i++) {
      bench.buffered = 0.5;
      bench.pass(9000);
      bench.buffered = 0.8;
      bench.pass(1050);
    }
    bench.buffered = 0.5;
    bench.pass(9000);
    expect(bench.monitor.enabled).toBe(false);
    bench.pass(3000);
    expect(bench.monitor.enabled).toBe(true);
  });

  it('a value that flaps about its limit is counted and logged once', () => {
    const bench = disabled();
    for (let i = 0; i < 30; i++) {
      bench.buffered = i % 2 === 0 ? 0.2 : 0.95;
      bench.pass(1050);
    }
    expect(bench.disabled).toEqual(['buffered']);
    expect(bench.events).toHaveLength(1);
    expect(bench.changes).toEqual([false]);
  });

  it('is counted again when it comes back after having been lifted', () => {
    const bench = disabled();
    bench.buffered = 0;
    bench.pass(12_000);
    bench.buffered = 1;
    bench.pass(1050);
    expect(bench.disabled).toEqual(['buffered', 'buffered']);
    expect(bench.changes).toEqual([false, true, false]);
  });

  it('a stall is forgotten', () => {
    const bench = new Bench(LAG);
    bench.stall(5000);
    bench.pass(10_000);
    expect(bench.monitor.enabled).toBe(false);
    bench.pass(6000);
    expect(bench.monitor.enabled).toBe(true);
  });

  it('a slow commit is remembered for seconds, and then forgotten', () => {
    const bench = new Bench(LATENCY);
    bench.monitor.observeSpoolLatency(3000);
    bench.pass(14_000);
    expect(bench.monitor.enabled).toBe(false);
    bench.pass(8000);
    expect(bench.monitor.enabled).toBe(true);
  });

  it('a slow commit of long ago says nothing, even if nobody has looked since', () => {
    const bench = new Bench(LATENCY);
    bench.monitor.observeSpoolLatency(3000);
    bench.monitor.stop();
    bench.pass(60_000);
    bench.monitor.evaluate();
    expect(bench.monitor.enabled).toBe(true);
  });

  it('slow commits that come now and then keep it disabled', () => {
    const bench = new Bench(LATENCY);
    for (let i = 0; i < 10; i++) {
      bench.monitor.observeSpoolLatency(3000);
      bench.pass(14_000);
    }
    expect(bench.disabled).toEqual(['spool-latency']);
  });
});

describe('several reasons at once', () => {
  it('each is counted and logged; the fast path comes back after the last', () => {
    const bench = new Bench(BUFFERED, LATENCY);
    bench.buffered = 1;
    bench.pass(1050);
    bench.monitor.observeSpoolLatency(9000);
    bench.pass(1050);
    expect(bench.monitor.reasons).toEqual(['buffered', 'spool-latency']);
    expect(bench.disabled).toEqual(['buffered', 'spool-latency']);
    expect(bench.events).toHaveLength(2);
    expect(bench.changes).toEqual([false]);
    bench.pass(30_000);
    expect(bench.monitor.reasons).toEqual(['buffered']);
    expect(bench.events).toHaveLength(2);
    bench.buffered = 0;
    bench.pass(12_000);
    expect(bench.events.slice(2)).toEqual([ENABLED]);
    expect(bench.changes).toEqual([false, true]);
  });

  it('says nothing of enabling where one takes over from another', () => {
    const bench = new Bench(BUFFERED, LATENCY);
    bench.buffered = 1;
    bench.monitor.evaluate();
    bench.monitor.stop();
    bench.buffered = 0;
    bench.monitor.evaluate();
    bench.pass(10_000);
    bench.monitor.observeSpoolLatency(9000);
    bench.monitor.evaluate();
    expect(bench.monitor.reasons).toEqual(['spool-latency']);
    expect(bench.disabled).toEqual(['buffered', 'spool-latency']);
    expect(bench.changes).toEqual([false]);
  });
});

describe('the manual switch', () => {
  it('works at once in both directions, whatever the conditions, and is counted once', () => {
    const bench = new Bench();
    bench.monitor.setManually(true);
    expect(bench.events).toEqual([]);
    for (let i = 0; i < 2; i++) bench.monitor.setManually(false);
    expect(bench.monitor.reasons).toEqual(['manual']);
    bench.pass(60_000);
    expect(bench.monitor.enabled).toBe(false);
    for (let i = 0; i < 2; i++) bench.monitor.setManually(true);
    expect(bench.monitor.enabled).toBe(true);
    expect(bench.disabled).toEqual(['manual']);
    expect(bench.changes).toEqual([false, true]);
    expect(bench.events).toEqual([{ level: 'warn', event: 'fast-path-disabled', reason: 'manual' }, ENABLED]);
  });

  it('does not override a condition that holds', () => {
    const bench = new Bench(BUFFERED);
    bench.buffered = 1;
    bench.monitor.evaluate();
    bench.monitor.setManually(true);
    expect(bench.monitor.reasons).toEqual(['buffered']);
    bench.monitor.setManually(false);
    bench.monitor.setManually(true);
    expect(bench.monitor.reasons).toEqual(['buffered']);
    expect(bench.changes).toEqual([false]);
  });

  it('stays when the conditions beside it are lifted', () => {
    const bench = new Bench(BUFFERED);
    bench.monitor.setManually(false);
    bench.buffered = 1;
    bench.pass(1050);
    expect(bench.disabled).toEqual(['manual', 'buffered']);
    bench.buffered = 0;
    bench.pass(20_000);
    expect(bench.monitor.reasons).toEqual(['manual']);
    bench.monitor.setManually(true);
    expect(bench.changes).toEqual([false, true]);
  });
});

describe('the timer', () => {
  it('is one, and none once stopped', () => {
    const bench = new Bench(BUFFERED);
    bench.monitor.start();
    expect(vi.getTimerCount()).toBe(1);
    bench.monitor.stop();
    expect(vi.getTimerCount()).toBe(0);
    bench.buffered = 1;
    bench.pass(5000);
    expect(bench.monitor.enabled).toBe(true);
  });

  it('takes the time that it was stopped for no stall', () => {
    const bench = new Bench(LAG);
    bench.monitor.stop();
    bench.stall(60_000);
    bench.monitor.start();
    bench.pass(5000);
    expect(bench.monitor.enabled).toBe(true);
  });

  it('keeps no process alive', () => {
    vi.useRealTimers();
    const started = vi.spyOn(globalThis, 'setInterval');
    const bench = new Bench(BUFFERED);
    try {
      expect(started.mock.results[0]?.value.hasRef()).toBe(false);
    } finally {
      bench.monitor.stop();
      started.mockRestore();
    }
  });
});
