// What makes one of several workers: shares that add up, figures that never fall, and names that all of them have alike.
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it, test } from 'vitest';
import { createMetrics } from '../../src/metrics.ts';
import { Channel } from '../../src/workers/channel.ts';
import { MetricsOfAll } from '../../src/workers/metrics.ts';
import type { WorkerStatus } from '../../src/workers/protocol.ts';
import { share } from '../../src/workers/share.ts';
import { StatusOfAll } from '../../src/workers/status.ts';
import { configOf } from '../support/proxy.ts';

test('the limits of all workers are those of the whole', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 2, max: 64 }), (limit, count) => {
      const config = configOf({ maxConnections: limit, maxBuffered: limit });
      const shares = Array.from({ length: count }, (_, at) => share(config, at + 1, count));
      const sum = shares.reduce((total, { maxConnections }) => total + maxConnections, 0);
      expect(sum).toBe(Math.max(limit, count));
      for (const { maxBufferedBytes, http, ledgerDir } of shares)
        expect([maxBufferedBytes > 0, http, ledgerDir]).toEqual([true, null, null]);
      expect(new Set(shares.map(({ spoolDir }) => spoolDir)).size).toBe(count);
    }),
  );
});

describe('metrics', () => {
  const processes = () => {
    const made = [0, 1].map(() => createMetrics({ version: '1', mode: 'spool', fallback: 'none' }));
    for (const [at, metrics] of made.entries()) {
      metrics.transactions.inc('spool', 'delivered');
      metrics.messageSize.observe(1000);
      metrics.queueMessages.set(5);
      metrics.queueOldestAge.set(at * 100);
      metrics.fastPathEnabled.set(at);
    }
    return made;
  };

  it('are sums, where nothing else says more, and counters of who has ended count on', async () => {
    const [one, other] = processes();
    const all = new MetricsOfAll();
    const figures = (...living: (typeof one)[]) =>
      all.text(living.map((metrics) => metrics!.registry.getMetricsAsJSON()));
    const both = await figures(one, other);
    expect(both).toContain('\ncutthrough_transactions_total{mode="spool",result="delivered"} 2\n');
    expect(both).toContain('\ncutthrough_queue_messages 10\n');
    expect(both).toContain('\ncutthrough_queue_oldest_age_seconds 100\n');
    expect(both).toContain('\ncutthrough_fast_path_enabled 0\n');
    expect(both).toMatch(/\ncutthrough_build_info\{[^}]*\} 1\n/);
    all.keep(await one!.registry.getMetricsAsJSON());
    const left = await figures(other);
    expect(left).toContain('\ncutthrough_transactions_total{mode="spool",result="delivered"} 2\n');
    expect(left).toContain('\ncutthrough_message_size_bytes_count 2\n');
    expect(left).toContain('\ncutthrough_queue_messages 5\n');
  });
});

describe('/status', () => {
  const hop = (name: string, more: object = {}) => ({
    name,
    sessions: { active: 1, idle: 0 },
    lastOkMs: null,
    lastFailure: null,
    consecutiveFailures: 0,
    totals: { delivered: 3, refused: 0, failed: 1 },
    fiveMinutes: { delivered: 1, refused: 0, failed: 1 },
    ...more,
  });
  const worker = (names: string[], hops: ReturnType<typeof hop>[], id: string): WorkerStatus => ({
    names,
    status: {
      fastPath: { enabled: true, reasons: [], sinceMs: null },
      queue: {
        messages: 1,
        bytes: 10,
        oldestAgeSeconds: 7,
        active: 0,
        nextDueSeconds: null,
        attempts: { delivered: 2 },
      },
      connections: 1,
      sessions: { active: 1, idle: 0 },
      bufferedBytes: 0,
      totals: { transactions: { delivered: 3 }, recipients: { accepted: 3 }, bytes: { in: 1, out: 1 } },
      nextHops: hops,
      transactionsActive: 1,
      transactions: [
        {
          id,
          state: 'body',
          ms: 5,
          bytes: 1,
          legs: [{ nextHop: hops[0]!.name, phase: 'body', recipients: 1 }],
          legCount: 1,
          client: '192.0.2.1',
          reversePath: 's@src.example',
          recipients: ['u@a.example'],
        },
      ],
    } as unknown as WorkerStatus['status'],
  });
  const whole = (details: boolean) => ({
    version: '1',
    details,
    monotonicMs: 1,
    mode: 'cut-through' as const,
    fallback: 'none' as const,
    draining: false,
    listen: ['smtp://192.0.2.9:25'],
    workers: [],
    maxConnections: 10,
    maxBufferedBytes: 10,
  });
  /** Each has met them in another order. */
  const two = () => [
    worker(['mx #1', 'mx #2'], [hop('a.example'), hop('b.example')], 'x.1'),
    worker(['mx #1', 'mx #2'], [hop('b.example'), hop('c.example')], 'y.1'),
  ];
  const asked = (workers: readonly WorkerStatus[]) => workers.map((each) => Promise.resolve(each));

  it('has each next hop once, by one name, and no address', async () => {
    const all = new StatusOfAll();
    const told = await all.of(whole(false), asked(two()));
    expect(told.nextHops.map(({ name, totals }) => [name, totals.delivered])).toEqual([
      ['mx #1', 3],
      ['mx #2', 6],
      ['mx #3', 3],
    ]);
    expect(told.transactions.map(({ legs }) => legs[0]!.nextHop)).toEqual(['mx #1', 'mx #2']);
    expect(told).toMatchObject({ connections: 2, transactionsActive: 2, listen: ['smtp'] });
    expect(JSON.stringify(told)).not.toMatch(/example|192\.0\.2/);
    const open = await all.of(whole(true), asked(two()));
    expect(open.nextHops.map(({ name }) => name)).toEqual(['a.example', 'b.example', 'c.example']);
    expect(open.transactions[0]).toMatchObject({ reversePath: 's@src.example' });
  });

  it('keeps the totals of a worker that has ended, and nothing else of it', async () => {
    const all = new StatusOfAll();
    const [one, other] = two();
    all.keep(one!);
    const told = await all.of(whole(true), asked([other!]));
    expect(told.totals.transactions).toEqual({ delivered: 6 });
    expect(told.queue).toMatchObject({ messages: 1, attempts: { delivered: 4 } });
    expect(told.nextHops.find(({ name }) => name === 'b.example')).toMatchObject({
      totals: { delivered: 6 },
      sessions: { active: 1 },
      fiveMinutes: { delivered: 1 },
    });
    expect(told.transactions.map(({ id }) => id)).toEqual(['y.1']);
  });

  it('a next hop that took a message of one worker after it failed for another is not failing', async () => {
    const failed = { lastFailure: { ageMs: 50, phase: 'connect', cause: 'refused' }, consecutiveFailures: 4 };
    const of = async (lastOkMs: number) => {
      const workers = [
        worker(['mx #1'], [hop('a.example', failed)], 'x'),
        worker(['mx #1'], [hop('a.example', { lastOkMs })], 'y'),
      ];
      return (await new StatusOfAll().of(whole(true), asked(workers))).nextHops[0]!.consecutiveFailures;
    };
    expect([await of(10), await of(100)]).toEqual([0, 4]);
  });
});

describe('a call of the other process', () => {
  type Adds = { add: (pair: readonly [number, number]) => number; never: (none: null) => void };
  const between = () => {
    const connection = { isUp: true };
    const port = (other: () => Channel<Adds, Adds>) => ({
      get connected() {
        return connection.isUp;
      },
      send: (message: unknown) => setImmediate(() => other().receive(message)) !== null,
    });
    const functions = {
      add: ([a, b]: readonly [number, number]) => {
        if (a < 0) throw new Error('no negative numbers');
        return a + b;
      },
      never: () => new Promise<void>(() => {}),
    };
    const one: Channel<Adds, Adds> = new Channel<Adds, Adds>(
      port(() => other),
      functions,
    );
    const other: Channel<Adds, Adds> = new Channel<Adds, Adds>(
      port(() => one),
      functions,
    );
    return { one, connection };
  };

  it('gives what the function there returns, or says', async () => {
    const { one } = between();
    expect(await Promise.all([one.call('add', [1, 2]), one.call('add', [3, 4])])).toEqual([3, 7]);
    await expect(one.call('add', [-1, 2])).rejects.toThrow('no negative numbers');
  });

  it('ends with its time, and with the other process', async () => {
    const { one, connection } = between();
    await expect(one.call('never', null, 10)).rejects.toThrow('no answer within 10 ms');
    const waiting = one.call('never', null);
    await sleep(5);
    one.end();
    await expect(waiting).rejects.toThrow('the other process is gone');
    connection.isUp = false;
    await expect(one.call('add', [1, 2])).rejects.toThrow('the other process is gone');
  });
});
