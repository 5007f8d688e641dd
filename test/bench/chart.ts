// Pure: the findings as one picture.
import { cpuPer1000, type Findings, megabytesPerSecond, messagesPerSecond } from './findings.ts';
import { CONCURRENCIES, GROUPS, RECIPIENTS } from './loads.ts';
import { PEER_NAMES, PEERS } from './peers.ts';
import { median } from './statistics.ts';
import { bars, lines, svgOf } from './svg.ts';

/** Null: nothing was measured of what it shows. */
export function chart(findings: Findings): string | null {
  const ratios = (['a100', 'b10', 'f1'] as const).flatMap((load) => {
    const rate = load === 'f1' ? megabytesPerSecond : messagesPerSecond;
    const found = PEER_NAMES.flatMap((peer) => {
      const value = median(findings.ratios([load, peer], [load, 'haproxy'], rate));
      return value === null ? [] : [{ label: PEERS[peer].title, value, isOurs: PEERS[peer].ours }];
    });
    const title = `${load}: ${GROUPS[load]}`;
    return found.length === 0 ? [] : [bars({ title, unit: '1 × HAProxy', bars: found, mark: 1 })];
  });
  const points = (counts: readonly number[], value: (count: number) => number | null) =>
    counts.flatMap((count) => {
      const found = value(count);
      return found === null ? [] : [[count, found] as const];
    });
  const growth = PEER_NAMES.map((peer) => ({
    label: PEERS[peer].title,
    points: points(CONCURRENCIES, (count) => findings.value(`growth-${count}`, peer, messagesPerSecond)),
  }));
  const recipients = [1, 5].map((hops) => ({
    label: hops === 1 ? 'at one next hop' : `at ${hops} next hops`,
    points: points(RECIPIENTS, (count) =>
      findings.value(`recipients-${count}-at-${hops}`, 'cut-through', cpuPer1000),
    ),
  }));
  const grown = [
    { title: 'Sessions kept, 4 KiB', x: 'sessions at once', y: 'messages/s', series: growth },
    { title: 'Recipients of a 4 KiB message', x: 'recipients', y: 'CPU ms', series: recipients },
  ].flatMap((each) => {
    const series = each.series.filter((one) => one.points.length > 0);
    return series.length === 0 ? [] : [lines({ ...each, series })];
  });
  const panels = [...ratios, ...grown];
  return panels.length === 0 ? null : svgOf(panels);
}
