// Rounds: in each, a load is measured with every peer, the next one beginning with another peer. Where time runs out,
// rounds are missing, which the tables say.
import { join } from 'node:path';
import { Findings, type Line } from './findings.ts';
import type { Load } from './loads.ts';
import { PEERS, type Peer, type PeerName, startPeer } from './peers.ts';
import { DOMAINS, type Sinks } from './sink.ts';
import { carry, carryWatched, holdSessions, type Run, type Traffic } from './traffic.ts';

export type Plan = Readonly<{
  loads: readonly Load[];
  rounds: number;
  peers: ReadonlyMap<PeerName, Peer>;
  sinks: Sinks;
  directory: string;
  /** When no run may be under way any more, in `performance.now()`'s time. */
  endsAt: number;
  record: (line: Line) => void;
  say: (text: string) => void;
}>;

const RUN_TIMEOUT_MS = 90_000;
/** A program in JavaScript takes some 8,000 messages to be compiled as it stays. */
const WARM_UP_MS = 8_000;
/** Before memory is looked at: more would leave room free in which sessions seem to cost nothing. */
const SHORT_WARM_UP_MS = 3_000;
/** What a load is thought to take that has not been measured yet. */
const GUESS_MS = 10_000;

const base = { octets: 4096, messages: 500, recipients: ['u@a.example'], by: 'smtp-source' } as const;
/** Both kinds of sessions; ours, which alone is sent such, several next hops too. */
const WARM_UP: readonly Traffic[] = [
  { ...base, kept: true, sessions: 10 },
  { ...base, kept: false, sessions: 100 },
];
const WARM_UP_FAN_OUT: Traffic = {
  ...{ ...base, kept: true, sessions: 10, by: 'client' },
  recipients: DOMAINS.filter((domain) => domain !== 'fast.example').map((domain) => `u@${domain}`),
};

/** `failures` in lines. A peer whose run failed is ended: what it may still have would be in another's count. */
export async function measure(
  plan: Plan,
): Promise<Readonly<{ findings: Findings; failures: readonly string[] }>> {
  const findings = new Findings();
  const failures: string[] = [];
  const out = new Set<PeerName>();
  const longestMs = new Map<Load, number>();
  for (const peer of plan.peers.values()) {
    await warmUp(peer, plan).catch((error: Error) => fail(peer.name, 'warming up', error));
  }
  for (const [round, load] of inOrder(plan)) {
    if (leftMs(plan) < 1.5 * (longestMs.get(load) ?? GUESS_MS)) continue;
    plan.say(`${round}: ${load.name}\n`);
    const began = performance.now();
    const names = load.peers.filter((name) => plan.peers.has(name));
    for (const at of names.keys()) {
      const name = names[(at + round - 1) % names.length]!;
      if (out.has(name)) continue;
      try {
        const line = { round, load: load.name, peer: name, ...(await one(load, name, round, plan)) };
        findings.lines.push(line);
        plan.record(line);
      } catch (error) {
        if (leftMs(plan) > 0) await fail(name, load.name, error as Error);
      }
    }
    longestMs.set(load, Math.max(longestMs.get(load) ?? 0, performance.now() - began));
  }
  return { findings, failures };

  async function fail(name: PeerName, what: string, error: Error): Promise<void> {
    failures.push(`${PEERS[name].title}, ${what}: ${error.message}`);
    out.add(name);
    await plan.peers.get(name)!.stop();
  }
}

/** Every load once, then again what varies most, and what varies little last: time may be short. */
function inOrder({ loads, rounds }: Plan): readonly (readonly [round: number, Load])[] {
  const later = Array.from({ length: rounds - 1 }, (_, at) => at + 2);
  const again = (chosen: readonly Load[]) =>
    later.flatMap((round) =>
      chosen.flatMap((load) => (round > (load.rounds ?? rounds) ? [] : [[round, load] as const])),
    );
  const often = loads.filter((load) => load.rounds === null);
  const rarely = loads.filter((load) => load.rounds !== null);
  return [...loads.map((load) => [1, load] as const), ...again(often), ...again(rarely)];
}

async function one(load: Load, name: PeerName, round: number, plan: Plan): Promise<Run> {
  const timeoutMs = runTimeoutMs(plan);
  if (load.measures === 'traffic')
    return await carry(plan.peers.get(name)!, load.traffic, plan.sinks, timeoutMs);
  const directory = join(plan.directory, `${name}-${load.name}-${round}`);
  const fresh = await startPeer(name, { directory, sinks: plan.sinks });
  try {
    await warmUp(fresh, plan, SHORT_WARM_UP_MS);
    const watch = load.measures === 'memory' ? carryWatched : holdSessions;
    return await watch(fresh, load.traffic, plan.sinks, timeoutMs);
  } finally {
    await fresh.stop();
  }
}

/** An operator's proxy has been running for more than a minute: these runs are not counted. */
async function warmUp(peer: Peer, plan: Plan, ms = WARM_UP_MS): Promise<void> {
  const { ours } = PEERS[peer.name];
  const end = performance.now() + (ours ? ms : 0);
  do {
    for (const traffic of ours ? [...WARM_UP, WARM_UP_FAN_OUT] : WARM_UP) {
      await carry(peer, traffic, plan.sinks, runTimeoutMs(plan));
    }
  } while (performance.now() < end);
}

function runTimeoutMs(plan: Plan): number {
  return Math.max(1, Math.min(RUN_TIMEOUT_MS, leftMs(plan)));
}

function leftMs({ endsAt }: Plan): number {
  return endsAt - performance.now();
}
