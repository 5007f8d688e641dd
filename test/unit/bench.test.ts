// What the benchmark makes of its figures; the measuring is checked by every run of it, by the counts at the sinks.
import { describe, expect, test } from 'vitest';
import { chart } from '../bench/chart.ts';
import { cpuPer1000, Findings, type Line, messagesPerSecond } from '../bench/findings.ts';
import { median, percentile } from '../bench/statistics.ts';
import { bars, lines, svgOf } from '../bench/svg.ts';
import { report, table } from '../bench/tables.ts';
import { judge } from '../bench/targets.ts';

type Given = Readonly<{ load: string; peer: Line['peer']; seconds: number; round?: number; cpu?: number }>;

function findingsOf(...given: readonly Given[]): Findings {
  const findings = new Findings();
  for (const { load, peer, seconds, round = 1, cpu = 1 } of given) {
    findings.lines.push({ round, load, peer, messages: 1000, octets: 4_096_000, seconds, cpuSeconds: cpu });
  }
  return findings;
}

test('medians and percentiles', () => {
  expect([median([]), median([3, 1, 2]), median([4, 1, 2, 10])]).toEqual([null, 2, 3]);
  const hundred = Array.from({ length: 100 }, (_, at) => 100 - at);
  expect([50, 90, 99, 100].map((percent) => percentile(hundred, percent))).toEqual([50, 90, 99, 100]);
  expect(percentile([7], 99)).toBe(7);
});

describe('findings', () => {
  test('a ratio is of one round: a machine that is slow for a while changes none', () => {
    const findings = findingsOf(
      { load: 'b10', peer: 'haproxy', seconds: 1 },
      { load: 'b10', peer: 'cut-through', seconds: 2 },
      { load: 'b10', peer: 'cut-through', seconds: 20, round: 2 },
      { load: 'b10', peer: 'haproxy', seconds: 10, round: 2 },
      { load: 'b10', peer: 'cut-through', seconds: 1, round: 3 },
    );
    const ratios = findings.ratios(['b10', 'cut-through'], ['b10', 'haproxy'], messagesPerSecond);
    expect(ratios).toEqual([0.5, 0.5]);
    expect(findings.value('b10', 'cut-through', messagesPerSecond)).toBe(500);
    expect(findings.value('a100', 'cut-through', cpuPer1000)).toBeNull();
  });

  test('a target is met, is not met, or was not measured', () => {
    const findings = findingsOf(
      { load: 'a100', peer: 'haproxy', seconds: 1 },
      { load: 'a100', peer: 'cut-through', seconds: 1.1, cpu: 0.41 },
    );
    const judged = judge(findings).map(({ what, unit, met }) => `${what}, ${unit}: ${met}`);
    expect(judged).toContain('a100, rate, × HAProxy: true');
    expect(judged).toContain('a100, CPU, s/1000: false');
    expect(judged).toContain('b10, rate, × HAProxy: null');
    const text = report(findings, new Map(), ['Exim, f1: 9 of 10 messages at a sink']);
    expect(text).toMatch(/\| a100, CPU +\| +at most 0.4 s\/1000 \| +0.41 \| +not met \|/);
    expect(text).toContain('- Exim, f1: 9 of 10');
  });
});

test('a table is aligned as it stands', () => {
  expect(table(['', 'messages/s'], [['ours', '1234']])).toBe(
    ['|      | messages/s |', '| ---- | ---------: |', '| ours |       1234 |'].join('\n'),
  );
});

describe('charts', () => {
  test('are well-formed, whatever the labels are and however few the values', () => {
    const svg = svgOf([
      bars({ title: 'a < b & c', unit: '×', bars: [{ label: '<none>', value: 0, isOurs: true }], mark: 1 }),
      lines({ title: '', x: 'x', y: 'y', series: [{ label: 'one', points: [[1, 0]] }] }),
    ]);
    expect(openTags(svg)).toEqual([]);
    expect(svg).toContain('a &lt; b &amp; c');
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  });

  test('show what was measured, and are not made of nothing', () => {
    expect(chart(new Findings())).toBeNull();
    const svg = chart(
      findingsOf(
        { load: 'f1', peer: 'haproxy', seconds: 1 },
        { load: 'f1', peer: 'cut-through', seconds: 2 },
        { load: 'growth-1', peer: 'cut-through', seconds: 4 },
        { load: 'growth-10', peer: 'cut-through', seconds: 2 },
      ),
    )!;
    const texts = [...svg.matchAll(/<text[^>]*>([^<]*)/g)].map(([, content]) => content);
    expect(texts).toEqual(
      expect.arrayContaining(['cutthrough, stock', '0.50', 'sessions at once', 'messages/s']),
    );
    expect(svg.match(/<circle/g)).toHaveLength(2);
    expect(openTags(svg)).toEqual([]);
  });
});

/** Tags that were not closed, or closed in the wrong order. */
function openTags(svg: string): readonly string[] {
  const open: string[] = [];
  for (const [, slash, name, self] of svg.matchAll(/<(\/?)(\w+)[^>]*?(\/?)>/g)) {
    if (slash === '/' && open.at(-1) === name) open.pop();
    else if (self !== '/') open.push(name!);
  }
  return open;
}
