// The metrics of several processes as one: each by the aggregator of its kind (metrics.ts). Counters of a process that has
// ended are kept, since a counter that falls is taken for one that began anew, and all of it for an increase.
import { AggregatorRegistry } from 'prom-client';
import type { MetricsAsJson } from '../metrics.ts';

export class MetricsOfAll {
  #ended: Promise<MetricsAsJson> = Promise.resolve([]);

  /** The last figures of a process that is no more. */
  keep(metrics: MetricsAsJson): void {
    const counting = metrics.filter(({ type }) => String(type) === 'counter' || String(type) === 'histogram');
    this.#ended = this.#ended.then((before) =>
      AggregatorRegistry.aggregate([before, counting]).getMetricsAsJSON(),
    );
  }

  /**
   * Prometheus text.
   * @param processes all that live now; where only one value can count, it is the first one's
   */
  async text(processes: readonly Promise<MetricsAsJson>[]): Promise<string> {
    // Those that live now and end before they have answered are not among these: none counts twice.
    const ended = this.#ended;
    return await AggregatorRegistry.aggregate([...(await Promise.all(processes)), await ended]).metrics();
  }
}
