// Pure: what is aimed at, in one process with all features on, and whether it is met.
import {
  cpuPer1000,
  cpuPerGb,
  type Figure,
  type Findings,
  kibPerSession,
  latencyOf,
  megabytesPerSecond,
  memoryAdded,
  messagesPerSecond,
} from './findings.ts';
import type { PeerName } from './peers.ts';
import { median } from './statistics.ts';

type Target = Readonly<{
  what: string;
  bound: 'at least' | 'at most';
  value: number;
  unit: string;
  figure: (findings: Findings) => number | null;
}>;

export type Judged = Target & Readonly<{ found: number | null; met: boolean | null }>;

const US = 'cut-through';

const rate = (load: string): Figure => (load === 'f1' ? megabytesPerSecond : messagesPerSecond);

const times = (load: string, peer: PeerName) => (findings: Findings) =>
  median(findings.ratios([load, US], [load, peer], rate(load)));

const own = (load: string, figure: Figure) => (findings: Findings) => findings.value(load, US, figure);

const atLeast = { bound: 'at least' } as const;
const atMost = { bound: 'at most' } as const;

const TARGETS: readonly Target[] = [
  { ...atLeast, what: 'a100, rate', value: 0.9, unit: '× HAProxy', figure: times('a100', 'haproxy') },
  { ...atLeast, what: 'b10, rate', value: 0.8, unit: '× HAProxy', figure: times('b10', 'haproxy') },
  { ...atLeast, what: 'f1, rate', value: 0.75, unit: '× HAProxy', figure: times('f1', 'haproxy') },
  { ...atMost, what: 'f1, CPU', value: 1.2, unit: 's/GB', figure: own('f1', cpuPerGb) },
  { ...atMost, what: 'a100, CPU', value: 0.4, unit: 's/1000', figure: own('a100', cpuPer1000) },
  ...['a100', 'b10', 'f1'].map((load) => ({
    ...atLeast,
    ...{
      what: `${load}, rate`,
      value: 2,
      unit: '× Postfix proxy filter',
      figure: times(load, 'postfix-proxy'),
    },
  })),
  {
    ...atMost,
    ...{ what: 'added latency, kept session, median over direct', value: 250, unit: 'µs' },
    figure: (findings) => findings.added(['latency-kept', US], ['latency-kept', 'direct'], latencyOf('p50')),
  },
  {
    ...atMost,
    ...{ what: 'memory over idle, 100 × 10 MiB at once', value: 64, unit: 'MiB' },
    figure: own('memory-100', memoryAdded),
  },
  ...(['greeted', 'used'] as const).map((when) => ({
    ...atMost,
    ...{ what: `a session of 1,000 that idles, ${when === 'used' ? 'after a message' : 'after EHLO'}` },
    ...{ value: 24, unit: 'KiB', figure: own('idle-1000', kibPerSession(when)) },
  })),
  {
    ...atMost,
    ...{ what: 'fan-out to 5, CPU', value: 3.5, unit: '× that of 1' },
    figure: (findings) => median(findings.ratios(['fan-out-5', US], ['fan-out-1', US], cpuPer1000)),
  },
];

export function judge(findings: Findings): readonly Judged[] {
  return TARGETS.map((target) => {
    const found = target.figure(findings);
    if (found === null) return { ...target, found, met: null };
    return {
      ...target,
      found,
      met: target.bound === 'at least' ? found >= target.value : found <= target.value,
    };
  });
}
