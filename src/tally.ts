// Counters and histograms for the hot path: plain numbers, which prom-client sees only when it is scraped. Its own are
// looked up and validated at every call, which for a small message costs as much as parsing its addresses.
import { Counter, type Registry } from 'prom-client';

type Labels<L extends string> = Readonly<Record<L, string>>;
type Definition<L extends string> = Readonly<{
  name: string;
  help: string;
  labelNames: readonly L[];
  registry: Registry;
}>;

/** One value, or one set of buckets, for each combination of labels that has occurred. */
class Cells<L extends string, C> {
  readonly #names: readonly L[];
  readonly #fresh: () => C;
  readonly #cells = new Map<string, { labels: Labels<L>; cell: C }>();

  constructor(names: readonly L[], fresh: () => C) {
    this.#names = names;
    this.#fresh = fresh;
  }

  at(labels: Labels<L>): C {
    let key: string = this.#names.length === 0 ? '' : labels[this.#names[0]!];
    for (let at = 1; at < this.#names.length; at++) key += `|${labels[this.#names[at]!]}`;
    let found = this.#cells.get(key);
    if (found === undefined) {
      found = { labels: { ...labels }, cell: this.#fresh() };
      this.#cells.set(key, found);
    }
    return found.cell;
  }

  all(): Iterable<{ labels: Labels<L>; cell: C }> {
    return this.#cells.values();
  }
}

export class TallyCounter<L extends string> {
  readonly #cells: Cells<L, { value: number }>;

  constructor({ name, help, labelNames, registry }: Definition<L>) {
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

  /** @param value zero or more */
  inc(labels: Labels<L>, value = 1): void {
    this.#cells.at(labels).value += value;
  }
}

type Buckets = { counts: Float64Array; sum: number };

export class TallyHistogram<L extends string> {
  readonly #bounds: readonly number[];
  readonly #cells: Cells<L, Buckets>;

  /** @param bounds upper ones, ascending; everything above the last is counted under +Inf */
  constructor(definition: Definition<L>, bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#cells = new Cells(definition.labelNames, () => ({
      counts: new Float64Array(bounds.length + 1),
      sum: 0,
    }));
    const { name, help, labelNames, registry } = definition;
    // Without labels there is just one, and Prometheus should see it before its first value.
    if (labelNames.length === 0) this.#cells.at({} as Labels<L>);
    const metric = {
      name,
      get: async () => ({ name, help, type: 'histogram', aggregator: 'sum', values: this.#values(name) }),
    };
    registry.registerMetric(metric as unknown as Counter);
  }

  observe(labels: Labels<L>, value: number): void {
    const buckets = this.#cells.at(labels);
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
