// Pure: figures of many runs. Machines differ, and so does one machine from minute to minute: ratios are made within a
// round, and the median is taken of them.
import type { PeerName } from './peers.ts';
import { median } from './statistics.ts';
import type { Run } from './traffic.ts';

export type Line = Readonly<{ round: number; load: string; peer: PeerName }> & Run;
export type Figure = (run: Run) => number | null;

const of =
  (value: (cpu: number, run: Run) => number): Figure =>
  (run) =>
    run.cpuSeconds === null ? null : value(run.cpuSeconds, run);

export const messagesPerSecond: Figure = (run) => run.messages / run.seconds;
export const megabytesPerSecond: Figure = (run) => run.octets / 1e6 / run.seconds;
export const cpuPer1000 = of((cpu, run) => (cpu / run.messages) * 1000);
export const cpuPerGb = of((cpu, run) => (cpu / run.octets) * 1e9);
export const latencyOf =
  (which: 'p50' | 'p90' | 'p99'): Figure =>
  (run) =>
    run.latency?.[which] ?? null;
export const memoryIdle: Figure = (run) => mib(run.memory?.idle);
export const memoryAdded: Figure = ({ memory }) =>
  memory === undefined ? null : mib(memory.peak - memory.idle);
export const kibPerSession =
  (when: 'greeted' | 'used'): Figure =>
  ({ session }) =>
    session === undefined ? null : session[when] / 1024;

const mib = (octets: number | undefined) => (octets === undefined ? null : octets / 1024 ** 2);

export class Findings {
  readonly lines: Line[] = [];

  value(load: string, peer: PeerName, figure: Figure): number | null {
    const values = this.lines
      .filter((line) => line.load === load && line.peer === peer)
      .map(figure)
      .filter((value) => value !== null);
    return median(values);
  }

  /** One value to another of the same round, for each round that has both. */
  pairs(
    [load, peer]: readonly [string, PeerName],
    [toLoad, toPeer]: readonly [string, PeerName],
    figure: Figure,
  ): readonly (readonly [number, number])[] {
    return this.lines.flatMap((line) => {
      if (line.load !== load || line.peer !== peer) return [];
      const to = this.lines.find(
        (other) => other.load === toLoad && other.peer === toPeer && other.round === line.round,
      );
      const [value, toValue] = [figure(line), to === undefined ? null : figure(to)];
      return value === null || toValue === null ? [] : [[value, toValue] as const];
    });
  }

  ratios(...args: Parameters<Findings['pairs']>): readonly number[] {
    return this.pairs(...args).map(([value, to]) => value / to);
  }

  /** The median of the differences. */
  added(...args: Parameters<Findings['pairs']>): number | null {
    return median(this.pairs(...args).map(([value, to]) => value - to));
  }
}
