// Counters and histograms for the hot path: plain numbers, which prom-client sees only when it is scraped. Its own are
// looked up and validated at every call, which for a small message costs as much as parsing its addresses.
import { Counter, type Registry } from 'prom-client';

type Definition = Readonly<{
  name: string;
  help: string;
  /** At most two. */
  labelNames: readonly string[];
  registry: Registry;
}>;

/**
 * One value, or one set of buckets, for each combination of label values that has occurred; found without building a
 * key, since hashing a fresh string costs more than the counting.
 */
class Cells<C> {
  readonly #names: readonly string[];
  readonly #fresh: () => C;
  readonly #cells = new Map<string, Map<string, C>>();

  constructor(names: readonly string[], fresh: () => C) {
    this.#names = names;
    this.#fresh = fresh;
  }

  at(first: string, second: string): C {
    let row = this.#cells.get(first);
    if (row === undefined) {
      row = new Map();
      this.#cells.set(first, row);
    }
    let cell = row.get(second);
    if (cell === undefined) {
      cell = this.#fresh();
      row.set(second, cell);
    }
    return cell;
  }

  *all(): Iterable<{ values: readonly [string, string]; labels: Record<string, string>; cell: C }> {
    for (const [first, row] of this.#cells) {
      for (const [second, cell] of row) {
        const values = [first, second] as const;
        yield {
          values,
          labels: Object.fromEntries(this.#names.map((name, at) => [name, values[at]!])),
          cell,
        };
      }
    }
  }
}

export class TallyCounter {
  readonly #cells: Cells<{ value: number }>;

  constructor({ name, help, labelNames, registry }: Definition) {
    const cells = new Cells(labelNames, () => ({ value: 0 }));
    this.#cells = cells;
    new Counter({
      name,
      help,
      labelNames,
      registers: [registry],
      collect() {
        this.reset();
        for (const { labels, cell } of cells.all()) this.inc(labels, cell.value);
      },
    });
  }

  /** Reported from now on, at 0: a series that begins with its first event hides it, since nothing increases from nothing. */
  show(first = '', second = ''): void {
    this.#cells.at(first, second);
  }

  /** Label values in the order of their names. */
  inc(first = '', second = ''): void {
    this.#cells.at(first, second).value++;
  }

  /** The counts so far by the label at this place, over all values of the other. */
  sums(place: 0 | 1): Readonly<Record<string, number>> {
    const sums: Record<string, number> = {};
    for (const { values, cell } of this.#cells.all()) {
      const value = values[place];
      sums[value] = (sums[value] ?? 0) + cell.value;
    }
    return sums;
  }

  /** @param value zero or more */
  add(value: number, first = '', second = ''): void {
    this.#cells.at(first, second).value += value;
  }
}

type Buckets = { counts: Float64Array; sum: number };

export class TallyHistogram {
  readonly #bounds: readonly number[];
  readonly #cells: Cells<Buckets>;

  /** @param bounds upper ones, ascending; everything above the last is counted under +Inf */
  constructor(definition: Definition, bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#cells = new Cells(definition.labelNames, () => ({
      counts: new Float64Array(bounds.length + 1),
      sum: 0,
    }));
    const { name, help, labelNames, registry } = definition;
    if (labelNames.length === 0) this.show();
    const metric = {
      name,
      get: async () => ({ name, help, type: 'histogram', aggregator: 'sum', values: this.#values(name) }),
    };
    registry.registerMetric(metric as unknown as Counter);
  }

  /** Reported from now on, empty; see TallyCounter.show(). */
  show(first = '', second = ''): void {
    this.#cells.at(first, second);
  }

  observe(value: number, first = '', second = ''): void {
    const buckets = this.#cells.at(first, second);
    let at = 0;
    while (at < this.#bounds.length && value > this.#bounds[at]!) at++;
    buckets.counts[at]!++;
    buckets.sum += value;
  }

  /** Prometheus counts cumulatively. */
  #values(name: string) {
    const values: { labels: Record<string, string | number>; value: number; metricName: string }[] = [];
    for (const { labels, cell } of this.#cells.all()) {
      let count = 0;
      for (const [at, each] of cell.counts.entries()) {
        count += each;
        values.push({
          labels: { le: this.#bounds[at] ?? '+Inf', ...labels },
          value: count,
          metricName: `${name}_bucket`,
        });
      }
      values.push({ labels, value: cell.sum, metricName: `${name}_sum` });
      values.push({ labels, value: count, metricName: `${name}_count` });
    }
    return values;
  }
}
