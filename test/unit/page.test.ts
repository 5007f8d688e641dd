// The page's own arithmetic, without a browser: numbers, rates, and where things go in the picture.
import { describe, expect, it } from 'vitest';
import { arrange, healthOf, phaseOf } from '../../src/http/page/arrange.js';
import { age, bytes, count, rate, shortened } from '../../src/http/page/format.js';
import { Rates } from '../../src/http/page/rates.js';
import type { HopStatus, Status, TransactionStatus } from '../../src/http/page/status.d.ts';

const hop = (name: string, over: Partial<HopStatus> = {}): HopStatus => ({
  name,
  sessions: { active: 0, idle: 0 },
  lastOkMs: null,
  lastFailure: null,
  consecutiveFailures: 0,
  totals: { delivered: 0, refused: 0, failed: 0 },
  fiveMinutes: { delivered: 0, refused: 0, failed: 0 },
  ...over,
});
const transaction = (n: number, over: Partial<TransactionStatus> = {}): TransactionStatus => ({
  id: `abcdefgh.${n}`,
  state: 'body',
  ms: 1000 + n,
  bytes: 5000,
  legs: [{ nextHop: 'mx #1', phase: 'body', recipients: 1 }],
  legCount: 1,
  ...over,
});
const status = (over: Partial<Status> = {}): Status => ({
  version: '1.2.3',
  details: false,
  monotonicMs: 0,
  mode: 'cut-through',
  fallback: 'none',
  fastPath: { enabled: true, reasons: [], sinceMs: null },
  queue: { messages: 0, bytes: 0, oldestAgeSeconds: 0, active: 0, nextDueSeconds: null, attempts: {} },
  draining: false,
  listen: ['smtp'],
  connections: 0,
  maxConnections: 1000,
  sessions: { active: 0, idle: 0 },
  bufferedBytes: 0,
  maxBufferedBytes: 1000,
  totals: { transactions: {}, recipients: {}, bytes: { in: 0, out: 0 } },
  nextHops: [],
  transactionsActive: over.transactions?.length ?? 0,
  transactions: [],
  ...over,
});

describe('format', () => {
  it('writes numbers short', () => {
    expect([0, 0.04, 0.26, 9.94, 9.96, 1234.5].map(rate)).toEqual([
      '0',
      '< 0.1',
      '0.3',
      '9.9',
      '10',
      '1,235',
    ]);
    expect([0, 1023, 1024, 153_211, 2 ** 20 - 1, 5 * 2 ** 30].map(bytes)).toEqual([
      '0 B',
      '1023 B',
      '1.0 KiB',
      '150 KiB',
      '1.0 MiB',
      '5.0 GiB',
    ]);
    expect([0, 999.6, 9960, 59_700, 200_000, 86_400_000, 187_200_000].map(age)).toEqual([
      '0 ms',
      '1.0 s',
      '10 s',
      '1 min',
      '3 min 20 s',
      '1 d',
      '2 d 4 h',
    ]);
    expect(count(1_234_567)).toBe('1,234,567');
  });

  it('shortens in the middle, whole characters only', () => {
    expect(shortened('mx.example', 10)).toBe('mx.example');
    expect(shortened('mx.long.example', 8)).toBe('mx.lo…le');
    expect(shortened('🐙🐙🐙🐙', 3)).toBe('🐙🐙…');
  });
});

describe('rates', () => {
  const at = (ms: number, delivered: number, more: Partial<Status> = {}) =>
    status({
      monotonicMs: ms,
      totals: { transactions: { delivered, rejected: 1 }, recipients: {}, bytes: { in: delivered, out: 0 } },
      ...more,
    });

  it('are differences over the proxy’s clock, of the last five seconds', () => {
    const rates = new Rates();
    rates.push(at(1000, 500));
    expect(rates.of('messages')).toBe(0);
    rates.push(at(2000, 510));
    expect(rates.of('messages')).toBe(10);
    rates.push(at(10_000, 510));
    rates.push(at(12_000, 530));
    expect(rates.of('result delivered')).toBe(10);
    expect(rates.series('in')).toEqual([10, 0, 10]);
  });

  it('begin anew when another process counts', () => {
    const rates = new Rates();
    rates.push(at(100_000, 1_000_000));
    rates.push(at(500, 3));
    expect(rates.of('messages')).toBe(0);
    rates.push(at(1500, 5));
    expect(rates.of('messages')).toBe(2);
  });

  it('are never below zero, and remember a minute and a half', () => {
    const rates = new Rates();
    for (let n = 0; n < 1000; n++) rates.push(at((n + 1) * 1000, 1000 - n));
    expect(rates.of('messages')).toBe(0);
    expect(rates.series('messages')).toHaveLength(90);
  });

  it('of a next hop', () => {
    const rates = new Rates();
    rates.push(at(1000, 0, { nextHops: [hop('a'), hop('a')] }));
    const busy = hop('a', { totals: { delivered: 4, refused: 2, failed: 0 } });
    rates.push(at(3000, 0, { nextHops: [busy, busy] }));
    expect(rates.of('delivered at a')).toBe(4);
    expect(rates.of('refused at a')).toBe(2);
  });
});

describe('health', () => {
  const five = (delivered: number, refused: number, failed: number) => ({
    fiveMinutes: { delivered, refused, failed },
  });
  it.each<[string, Partial<HopStatus>, string]>([
    ['never used', {}, 'unused'],
    ['delivering', { lastOkMs: 5, ...five(3, 1, 0) }, 'good'],
    ['a failure among deliveries', { lastOkMs: 5, ...five(3, 0, 1) }, 'troubled'],
    ['more refused than delivered', { lastOkMs: 5, ...five(1, 2, 0) }, 'troubled'],
    ['failing and nothing else', { consecutiveFailures: 1, ...five(0, 0, 1) }, 'failing'],
    ['three failures in a row', { consecutiveFailures: 3, ...five(900, 0, 3) }, 'failing'],
    ['silent for long, after a failure', { consecutiveFailures: 1, lastOkMs: 9e6 }, 'failing'],
  ])('%s', (_, over, health) => expect(healthOf(hop('a', over))).toBe(health));
});

describe('the phase of a transaction', () => {
  const legs = (...phases: string[]) => phases.map((phase) => ({ nextHop: 'a', phase, recipients: 1 }));
  it.each<[string, string[], string]>([
    ['envelope', [], 'envelope'],
    ['envelope', ['connect', 'envelope'], 'connect'],
    ['starting', ['data'], 'data'],
    ['body', ['body', 'body'], 'body'],
    ['body', ['dot', 'body'], 'body'],
    ['body', ['done', 'dot'], 'dot'],
    ['delivering', ['delivering'], 'body'],
  ])('%s with legs at %s', (state, phases, phase) =>
    expect(phaseOf(transaction(1, { state, legs: legs(...phases) }))).toBe(phase),
  );
});

describe('the picture', () => {
  const busy = (transactions: number, hops: number) =>
    status({
      transactions: Array.from({ length: transactions }, (_, n) =>
        transaction(n, { legs: [{ nextHop: `mx #${(n % hops) + 1}`, phase: 'body', recipients: 1 }] }),
      ),
      connections: transactions,
      nextHops: Array.from({ length: hops }, (_, n) =>
        hop(`mx #${n + 1}`, { sessions: { active: n % 7, idle: 0 } }),
      ),
    });
  const widths = [300, 340, 700, 1200];

  it.each([
    [0, 1],
    [1, 1],
    [5, 3],
    [12, 12],
    [13, 13],
    [200, 100],
    [1000, 100],
  ])('%i transactions, %i next hops: every box inside, none over another', (transactions, hops) => {
    for (const width of widths) {
      const { boxes, links, height } = arrange(busy(transactions, hops), new Rates(), width);
      expect(boxes.length).toBeLessThanOrEqual(1 + 13 + 13);
      expect(links.length).toBeLessThanOrEqual(200);
      for (const box of boxes) {
        expect(box.x).toBeGreaterThanOrEqual(0);
        expect(box.x + box.width).toBeLessThanOrEqual(width);
        expect(box.y + box.height).toBeLessThanOrEqual(height);
        for (const other of boxes) {
          const apart =
            other === box ||
            other.x >= box.x + box.width ||
            box.x >= other.x + other.width ||
            other.y >= box.y + box.height ||
            box.y >= other.y + other.height;
          expect(apart).toBe(true);
        }
      }
      for (const { from, to } of links) expect(to[0]).toBeGreaterThan(from[0]);
    }
  });

  it('tells transactions one by one up to twelve, and by phase beyond', () => {
    const titles = (n: number) => arrange(busy(n, 2), new Rates(), 1200).boxes.map(({ title }) => title);
    expect(titles(12)).toContain('abcdefgh.11');
    expect(titles(13)).not.toContain('abcdefgh.11');
    expect(titles(13)).toContain('13 body');
  });

  it('gives next hops beyond twelve one box, which their legs lead to; one that fails has its own', () => {
    const many = busy(5, 40);
    const failing = hop('mx #40', { fiveMinutes: { delivered: 0, refused: 0, failed: 80 } });
    const { boxes, links } = arrange(
      { ...many, nextHops: [...many.nextHops.slice(0, 39), failing] },
      new Rates(),
      1200,
    );
    expect(boxes.map(({ title }) => title)).toContain('28 more');
    expect(boxes.map(({ title }) => title)).toContain('mx #40');
    expect(links.filter(({ key }) => key.includes('> more'))).not.toEqual([]);
  });

  it('moves where a body runs, and only there', () => {
    const one = status({
      transactions: [
        transaction(1, {
          legs: [
            { nextHop: 'a', phase: 'body', recipients: 1 },
            { nextHop: 'b', phase: 'dot', recipients: 1 },
          ],
        }),
      ],
      nextHops: [hop('a'), hop('b')],
    });
    const { links } = arrange(one, new Rates(), 1200);
    const kinds = Object.fromEntries(links.map(({ key, kind, tone }) => [key, `${kind} ${tone}`]));
    expect(kinds).toMatchObject({
      'row abcdefgh.1 > hop a body': 'moving body',
      'row abcdefgh.1 > hop b dot': 'still dot',
      'passed > hop a ': 'ghost body',
    });
  });

  it('says in words what it shows', () => {
    expect(arrange(busy(1, 1), new Rates(), 700).summary).toBe(
      '1 upstream session, 1 live transaction, 1 next hop',
    );
    const down = status({ nextHops: [hop('a', { consecutiveFailures: 5 }), hop('b')] });
    expect(arrange(down, new Rates(), 700).summary).toBe(
      '0 upstream sessions, 0 live transactions, 2 next hops, 1 failing',
    );
  });
});
