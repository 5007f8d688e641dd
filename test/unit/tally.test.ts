import fc from 'fast-check';
import { Histogram, Registry } from 'prom-client';
import { expect, it } from 'vitest';
import { TallyCounter, TallyHistogram } from '../../src/tally.ts';

it('counts by labels, as often as it is scraped', async () => {
  const registry = new Registry();
  const counter = new TallyCounter({ name: 'n_total', help: 'h', labelNames: ['a', 'b'], registry });
  counter.inc('x', 'y');
  counter.add(2, 'x', 'y');
  counter.add(0.5, 'x', 'z');
  for (let i = 0; i < 2; i++) {
    const text = await registry.metrics();
    expect(text).toContain('n_total{a="x",b="y"} 3\n');
    expect(text).toContain('n_total{a="x",b="z"} 0.5\n');
  }
});

it('reports at 0 what is to be shown before its first event, and nothing else', async () => {
  const registry = new Registry();
  const definition = { help: 'h', labelNames: ['a'], registry };
  new TallyCounter({ name: 'n_total', ...definition }).show('x');
  new TallyHistogram({ name: 'h', ...definition }, [1]).show('x');
  const text = await registry.metrics();
  expect(text).toContain('n_total{a="x"} 0\n');
  expect(text).toContain('h_bucket{le="+Inf",a="x"} 0\n');
  expect(text.match(/^[nh]_\w+\{[^}]*a="/gm)).toHaveLength(5);
});

it('puts values into the same buckets as prom-client does', async () => {
  const bounds = [1, 2.5, 10];
  const values = fc.array(
    fc.record({ p: fc.constantFrom('a', 'b'), v: fc.constantFrom(0, 1, 2, 2.5, 3, 10, 11) }),
  );
  await fc.assert(
    fc.asyncProperty(values, async (observed) => {
      const [ours, theirs] = [new Registry(), new Registry()];
      const tally = new TallyHistogram({ name: 'h', help: 'h', labelNames: ['p'], registry: ours }, bounds);
      const model = new Histogram({
        name: 'h',
        help: 'h',
        labelNames: ['p'],
        buckets: bounds,
        registers: [theirs],
      });
      for (const { p, v } of observed) {
        tally.observe(v, p);
        model.observe({ p }, v);
      }
      expect((await ours.metrics()).split('\n')).toEqual((await theirs.metrics()).split('\n'));
    }),
    { numRuns: 100 },
  );
});

it('shows a histogram without labels before its first value', async () => {
  const registry = new Registry();
  new TallyHistogram({ name: 'h', help: 'h', labelNames: [], registry }, [1]);
  expect(await registry.metrics()).toContain('h_count 0');
});
