// Pure: the findings as Markdown, aligned so that it can be read as it is.
import {
  cpuPer1000,
  cpuPerGb,
  type Figure,
  type Findings,
  kibPerSession,
  latencyOf,
  megabytesPerSecond,
  memoryAdded,
  memoryIdle,
  messagesPerSecond,
} from './findings.ts';
import { CONCURRENCIES, FAN_OUTS, GROUP_NAMES, GROUPS, type Group, RECIPIENTS } from './loads.ts';
import { PEER_NAMES, PEERS, type PeerName } from './peers.ts';
import { median } from './statistics.ts';
import { judge } from './targets.ts';

export type Fsyncs = ReadonlyMap<PeerName, number | string>;
type Rows = readonly (readonly string[])[];

const NONE = '-';

export function table(header: readonly string[], rows: Rows): string {
  const widths = header.map((_, column) =>
    Math.max(3, ...[header, ...rows].map((row) => row[column]!.length)),
  );
  const line = (row: readonly string[]) =>
    `| ${row.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!))).join(' | ')} |`;
  const rule = widths.map((width, at) => (at === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`));
  return [line(header), `| ${rule.join(' | ')} |`, ...rows.map(line)].join('\n');
}

/** Medians of what was measured. `failures` are lines. */
export function report(findings: Findings, fsyncs: Fsyncs, failures: readonly string[]): string {
  const sections: Readonly<Record<Group, () => string>> = {
    a100: () => relays(findings, 'a100', null),
    b10: () => relays(findings, 'b10', fsyncs),
    f1: () => relays(findings, 'f1', null),
    'fan-out': () => fanOut(findings),
    latency: () => latency(findings),
    memory: () => memory(findings),
    idle: () => idle(findings),
    growth: () => growth(findings),
    recipients: () => recipients(findings),
  };
  const measured = GROUP_NAMES.filter((group) => findings.lines.some(({ load }) => load.startsWith(group)));
  return [
    `### Targets\n\n${targets(findings)}`,
    ...measured.map((group) => {
      const rounds = roundsOf(findings, group);
      return `### ${group}: ${GROUPS[group]}\n\nRounds: ${rounds}.\n\n${sections[group]()}`;
    }),
    ...(failures.length === 0 ? [] : [`### Failed\n\n${failures.map((each) => `- ${each}`).join('\n')}`]),
  ].join('\n\n');
}

function roundsOf(findings: Findings, group: Group): string {
  const counts = new Map<string, number>();
  for (const { load, peer } of findings.lines) {
    const key = `${load} ${peer}`;
    if (load.startsWith(group)) counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const [least, most] = [Math.min(...counts.values()), Math.max(...counts.values())];
  return least === most ? `${most}` : `${least} to ${most}`;
}

function targets(findings: Findings): string {
  const verdict = new Map([
    [true, 'met'],
    [false, 'not met'],
    [null, 'not measured'],
  ]);
  const rows = judge(findings).map(({ what, bound, value, unit, found, met }) => {
    return [what, `${bound} ${value} ${unit}`, significant(found), verdict.get(met)!];
  });
  return table(['', 'target', 'found', ''], rows);
}

type Column = readonly [title: string, cell: (peer: PeerName) => string];

function byPeer(findings: Findings, load: string, columns: readonly Column[]): string {
  const rows = peersOf(findings, load).map((peer) => [
    PEERS[peer].title,
    ...columns.map(([, cell]) => cell(peer)),
  ]);
  return table(['', ...columns.map(([title]) => title)], rows);
}

function relays(findings: Findings, load: string, fsyncs: Fsyncs | null): string {
  const rate = load === 'f1' ? megabytesPerSecond : messagesPerSecond;
  const ratios = (peer: PeerName, to: PeerName) => findings.ratios([load, peer], [load, to], rate);
  const range = (values: readonly number[]) =>
    values.length === 0 ? NONE : `${Math.min(...values).toFixed(2)}-${Math.max(...values).toFixed(2)}`;
  const withQueues = fsyncs !== null;
  return byPeer(findings, load, [
    [load === 'f1' ? 'MB/s' : 'messages/s', (peer) => fixed(findings.value(load, peer, rate), 0)],
    ['× HAProxy', (peer) => fixed(median(ratios(peer, 'haproxy')), 2)],
    ['min-max', (peer) => range(ratios(peer, 'haproxy'))],
    ...columnsIf(withQueues, ['× Postfix queue', (peer) => fixed(median(ratios(peer, 'postfix')), 2)]),
    ['CPU s/1000', (peer) => fixed(findings.value(load, peer, cpuPer1000), 3)],
    ['CPU s/GB', (peer) => fixed(findings.value(load, peer, cpuPerGb), 2)],
    ...columnsIf(withQueues, ['fsyncs/message', (peer) => fsyncCell(fsyncs?.get(peer))]),
  ]);
}

function columnsIf(wanted: boolean, column: Column): readonly Column[] {
  return wanted ? [column] : [];
}

function fsyncCell(found: number | string | undefined): string {
  return typeof found === 'number' ? found.toFixed(2) : (found ?? NONE);
}

function fanOut(findings: Findings): string {
  const rows = FAN_OUTS.map((hops) => {
    const load = `fan-out-${hops}`;
    const ratios = findings.ratios([load, 'cut-through'], ['fan-out-1', 'cut-through'], cpuPer1000);
    return [
      `1 → ${hops}`,
      fixed(findings.value(load, 'cut-through', messagesPerSecond), 0),
      fixed(findings.value(load, 'cut-through', cpuPer1000), 3),
      fixed(median(ratios), 2),
    ];
  });
  return table(['', 'messages/s', 'CPU s/1000', '× CPU of 1 → 1'], rows);
}

function latency(findings: Findings): string {
  const percentiles = ['p50', 'p90', 'p99'] as const;
  const columns = (load: string, session: string): readonly Column[] => [
    ...percentiles.map((which, at): Column => {
      const cell = (peer: PeerName) => fixed(findings.value(load, peer, latencyOf(which)), 0);
      return [at === 0 ? `${session}, µs: ${which}` : which, cell];
    }),
    [
      'over direct',
      (peer) => {
        const added = findings.added([load, peer], [load, 'direct'], latencyOf('p50'));
        return peer === 'direct' ? NONE : fixed(added, 0);
      },
    ],
  ];
  return byPeer(findings, 'latency-kept', [
    ...columns('latency-new', 'new connection'),
    ...columns('latency-kept', 'kept session'),
  ]);
}

function memory(findings: Findings): string {
  const load = 'memory-100';
  const column = (title: string, figure: Figure): Column => [
    title,
    (peer) => fixed(findings.value(load, peer, figure), 0),
  ];
  return byPeer(findings, load, [
    column('idle, MiB', memoryIdle),
    column('over idle, MiB', memoryAdded),
    column('bodies at once', (run) => run.bodiesAtOnce ?? null),
    column('MB/s', megabytesPerSecond),
  ]);
}

function idle(findings: Findings): string {
  const cell = (when: 'greeted' | 'used') => (peer: PeerName) =>
    fixed(findings.value('idle-1000', peer, kibPerSession(when)), 1);
  return byPeer(findings, 'idle-1000', [
    ['KiB a session, after EHLO', cell('greeted')],
    ['after a message', cell('used')],
  ]);
}

function growth(findings: Findings): string {
  const measured = CONCURRENCIES.filter((count) => peersOf(findings, `growth-${count}`).length > 0);
  const peers = PEER_NAMES.filter((peer) =>
    measured.some((count) => peersOf(findings, `growth-${count}`).includes(peer)),
  );
  const rows = measured.map((count) => [
    `${count} at once`,
    ...peers.map((peer) => fixed(findings.value(`growth-${count}`, peer, messagesPerSecond), 0)),
  ]);
  return table(['messages/s', ...peers.map((peer) => PEERS[peer].title)], rows);
}

function recipients(findings: Findings): string {
  const cells = (count: number) =>
    [1, 5].map((hops) => findings.value(`recipients-${count}-at-${hops}`, 'cut-through', cpuPer1000));
  const rows = RECIPIENTS.map((count) => [count, cells(count)] as const)
    .filter(([, found]) => found.some((each) => each !== null))
    .map(([count, found]) => [`${count}`, ...found.map((each) => fixed(each, 3))]);
  return table(['recipients', 'CPU ms a message, one next hop', 'five next hops'], rows);
}

function peersOf(findings: Findings, load: string): readonly PeerName[] {
  return PEER_NAMES.filter((name) => findings.lines.some((line) => line.load === load && line.peer === name));
}

function fixed(value: number | null, digits: number): string {
  return value === null ? NONE : value.toFixed(digits);
}

function significant(value: number | null): string {
  return value === null ? NONE : value.toFixed(value < 10 ? 2 : 0);
}
