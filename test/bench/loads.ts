// What is measured. Names and definitions are kept from one version to the next: the last table is compared with.
import type { PeerName } from './peers.ts';
import { DOMAINS } from './sink.ts';
import type { Traffic } from './traffic.ts';

export const GROUPS = {
  a100: 'a connection a message, 100 at once, 4 KiB',
  b10: 'sessions kept, 10 at once, 4 KiB',
  f1: '10 MiB messages, one after another over one session, into a fast sink',
  'fan-out': 'a message to 1, 2 and 5 next hops',
  latency: '1 KiB messages, one at a time',
  memory: '100 messages of 10 MiB at once',
  idle: '1,000 sessions that idle',
  growth: 'sessions kept, 1 to 1,000 at once, 4 KiB',
  recipients: '1 to 100 recipients, at one and at five next hops, 4 KiB',
} as const;
export type Group = keyof typeof GROUPS;
export const GROUP_NAMES = Object.keys(GROUPS) as readonly Group[];

export type Load = Readonly<{
  group: Group;
  name: string;
  peers: readonly PeerName[];
  /** At most; null: as many as there are. */
  rounds: number | null;
  /** Memory is that of a process that has done nothing else; sessions are held where nothing is sent at first. */
  measures: 'traffic' | 'memory' | 'sessions';
  traffic: Traffic;
}>;

const KIB = 1024;
const MIB = 1024 * KIB;
const BYTE_RELAYS = ['direct', 'haproxy', 'cut-through', 'postfix-proxy'] as const;
const INLINE = [...BYTE_RELAYS, 'exim'] as const;
const QUEUES = ['fast-path', 'spool', 'disk-first', 'postfix'] as const;
const HOPS = DOMAINS.filter((domain) => domain !== 'fast.example');

export const FAN_OUTS = [1, 2, 5] as const;
export const CONCURRENCIES = [1, 3, 10, 30, 100, 300, 1_000] as const;
export const RECIPIENTS = [1, 2, 5, 10, 20, 50, 100] as const;

const base = { sessions: 10, octets: 4 * KIB, kept: true, recipients: ['u@a.example'] } as const;
const bySource = { ...base, by: 'smtp-source' } as const;
const byClient = { ...base, by: 'client' } as const;
const bigMessage = { ...byClient, octets: 10 * MIB };

/** The quick benchmark leaves out rounds of what varies little, and some points of what grows. */
export function loadsOf(full: boolean): readonly Load[] {
  const rare = full ? 3 : 1;
  const some = (points: readonly number[]) =>
    full ? points : points.filter((point) => [1, 10, 100, 1_000].includes(point));
  const traffic = { rounds: null, measures: 'traffic' } as const;
  return [
    {
      ...traffic,
      ...{ group: 'a100', name: 'a100', peers: INLINE },
      traffic: { ...bySource, kept: false, sessions: 100, messages: 3_000 },
    },
    {
      ...traffic,
      ...{ group: 'b10', name: 'b10', peers: [...INLINE, ...QUEUES] },
      traffic: { ...bySource, messages: 5_000 },
    },
    {
      ...traffic,
      ...{ group: 'f1', name: 'f1', peers: INLINE },
      traffic: { ...bigMessage, sessions: 1, messages: 60, recipients: ['u@fast.example'] },
    },
    ...FAN_OUTS.map(
      (hops): Load => ({
        ...traffic,
        ...{ group: 'fan-out', name: `fan-out-${hops}`, peers: ['cut-through'] },
        traffic: { ...byClient, messages: 2_000, recipients: recipientsAt(hops, hops) },
      }),
    ),
    ...(['new', 'kept'] as const).map(
      (session): Load => ({
        ...traffic,
        ...{ group: 'latency', name: `latency-${session}`, peers: INLINE },
        traffic: { ...byClient, sessions: 1, octets: KIB, kept: session === 'kept', messages: 1_000 },
      }),
    ),
    {
      ...{ group: 'memory', name: 'memory-100', rounds: rare, measures: 'memory' },
      peers: full ? ['haproxy', 'cut-through', 'postfix-proxy', 'exim'] : ['haproxy', 'cut-through'],
      traffic: { ...bigMessage, sessions: 100, messages: 100, kept: false },
    },
    {
      ...{ group: 'idle', name: 'idle-1000', rounds: rare, measures: 'sessions' },
      peers: ['haproxy', 'cut-through'],
      traffic: { ...byClient, octets: KIB, sessions: 1_000, messages: 1_000 },
    },
    ...some(CONCURRENCIES).map(
      (sessions): Load => ({
        ...{
          group: 'growth',
          name: `growth-${sessions}`,
          peers: BYTE_RELAYS,
          rounds: rare,
          measures: 'traffic',
        },
        traffic: { ...bySource, sessions, messages: sessions < 10 ? 1_500 : 4_000 },
      }),
    ),
    ...[1, HOPS.length].flatMap((hops) =>
      some(RECIPIENTS)
        .filter((count) => count >= hops)
        .map(
          (count): Load => ({
            ...{ group: 'recipients', name: `recipients-${count}-at-${hops}` },
            ...{ peers: ['cut-through'], rounds: rare, measures: 'traffic' },
            traffic: {
              ...byClient,
              messages: count < 20 ? 1_500 : 400,
              recipients: recipientsAt(count, hops),
            },
          }),
        ),
    ),
  ];
}

function recipientsAt(count: number, hops: number): readonly string[] {
  return Array.from({ length: count }, (_, at) => `u${at}@${HOPS[at % hops]}`);
}
