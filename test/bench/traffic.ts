// One run: a client sends to a peer, sinks count what comes out. Of a peer that answers early, since it has a queue, the
// run lasts until the sinks have it all. A run counts only if exactly what was sent has arrived.

import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Task, Told } from './client.ts';
import { PEERS, type Peer } from './peers.ts';
import { end, eventually, run, start } from './processes.ts';
import type { Domain, Sink, Sinks } from './sink.ts';
import { cpuSeconds, memoryOctets } from './usage.ts';

export type Traffic = Readonly<{
  sessions: number;
  messages: number;
  /** Of a message's body. */
  octets: number;
  /** Many messages in a session, or one. */
  kept: boolean;
  /** One, or of several domains: each domain is a next hop. */
  recipients: readonly string[];
  by: 'smtp-source' | 'client';
}>;

export type Run = Readonly<{
  messages: number;
  /** Of all bodies, as they were sent. */
  octets: number;
  seconds: number;
  /** Of the peer's processes; null where there is no /proc, and without a peer. */
  cpuSeconds: number | null;
  /** Of a transaction, in µs, one message at a time. */
  latency?: Pick<Told, 'p50' | 'p90' | 'p99'>;
  bodiesAtOnce?: number;
  /** Octets: before the run and at its peak. */
  memory?: Readonly<{ idle: number; peak: number }>;
  /** Octets of memory for a session: after EHLO, and after a message. */
  session?: Readonly<{ greeted: number; used: number }>;
}>;

const POLL_MS = 5;
const SAMPLE_MS = 25;
/** What a peer does when the message has gone (it removes it from its queue) is of the run's cost as well. */
const SETTLE_MS = 200;
/** Memory that is only waiting to be given back is no session's. */
const CALM_MS = 1_000;
const UNTIMED = 50;

/** @throws Error where not every message arrived exactly once within the time */
export async function carry(peer: Peer, traffic: Traffic, sinks: Sinks, timeoutMs: number): Promise<Run> {
  const messages = messagesOf(peer, traffic);
  const arrivals = new Arrivals(traffic, sinks);
  const cpuBefore = await cpuOf(peer);
  const began = performance.now();
  const [command, args] = generator(peer, { ...traffic, messages });
  let failed = false;
  const sending = run(command, args, timeoutMs).then((client) => {
    failed = client.exitCode !== 0;
    return client;
  });
  await eventually(() => failed || arrivals.complete(messages), timeoutMs, POLL_MS);
  const arrivedSeconds = (performance.now() - began) / 1000;
  const client = await sending;
  if (failed) throw new Error(client.complaint.trim() || 'the client had not ended in time');
  await sleep(SETTLE_MS);
  arrivals.verify(messages);
  const told = traffic.by === 'client' ? (JSON.parse(client.output) as Told) : null;
  return {
    messages,
    octets: messages * traffic.octets,
    // Our client takes a while to start, and only what answers when the next hop has is measured with it.
    seconds: told?.seconds ?? arrivedSeconds,
    cpuSeconds: await cpuSince(cpuBefore, peer),
    ...(told !== null && { latency: { p50: told.p50, p90: told.p90, p99: told.p99 } }),
    ...(told !== null && { bodiesAtOnce: told.bodiesAtOnce }),
  };
}

/** `carry`, with the peer's memory watched. */
export async function carryWatched(
  peer: Peer,
  traffic: Traffic,
  sinks: Sinks,
  timeoutMs: number,
): Promise<Run> {
  await sleep(CALM_MS);
  const idle = await memoryOf(peer);
  let peak = idle;
  let watching = true;
  const watched = (async () => {
    while (watching) {
      peak = Math.max(peak, await memoryOf(peer));
      await sleep(SAMPLE_MS);
    }
  })();
  try {
    return { ...(await carry(peer, traffic, sinks, timeoutMs)), ...(idle > 0 && { memory: { idle, peak } }) };
  } finally {
    watching = false;
    await watched;
  }
}

/** Opens the sessions, lets them idle, sends a message over each. @throws Error as `carry` does */
export async function holdSessions(
  peer: Peer,
  traffic: Traffic,
  sinks: Sinks,
  timeoutMs: number,
): Promise<Run> {
  await sleep(CALM_MS);
  const arrivals = new Arrivals(traffic, sinks);
  const idle = await memoryOf(peer);
  const cpuBefore = await cpuOf(peer);
  const began = performance.now();
  const [command, args] = generator(peer, traffic, true);
  const client = start(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const timer = setTimeout(() => client.kill('SIGKILL'), timeoutMs);
  const gone = once(client, 'close').then(() => {
    throw new Error('the client could not hold its sessions');
  });
  gone.catch(() => {});
  const perSession = async () => {
    await Promise.race([once(client.stdout!, 'data'), gone]);
    await sleep(CALM_MS);
    return ((await memoryOf(peer)) - idle) / traffic.sessions;
  };
  try {
    const greeted = await perSession();
    client.stdin!.write('send\n');
    const used = await perSession();
    arrivals.verify(traffic.messages);
    const seconds = (performance.now() - began) / 1000;
    const { messages, octets } = traffic;
    const cpu = await cpuSince(cpuBefore, peer);
    return { messages, octets: messages * octets, seconds, cpuSeconds: cpu, session: { greeted, used } };
  } finally {
    clearTimeout(timer);
    await end(client);
  }
}

/** What has come to the sinks of a run since it began. */
class Arrivals {
  readonly #before: ReadonlyMap<Sink, Readonly<{ messages: number; octets: number }>>;
  readonly #octets: number;

  constructor({ recipients, octets }: Traffic, sinks: Sinks) {
    const concerned = recipients.map((each) => sinks[domainOf(each)]);
    this.#before = new Map(
      concerned.map((sink) => [sink, { messages: sink.count(), octets: sink.octets() }]),
    );
    this.#octets = octets;
  }

  complete(messages: number): boolean {
    return [...this.#before].every(([sink, before]) => sink.count() - before.messages >= messages);
  }

  verify(messages: number): void {
    for (const [sink, before] of this.#before) {
      const count = sink.count() - before.messages;
      if (count !== messages) throw new Error(`${count} of ${messages} messages at a sink`);
      const octets = sink.octets() - before.octets;
      if (octets > 0 && octets < messages * this.#octets) throw new Error(`only ${octets} octets at a sink`);
    }
  }
}

function messagesOf(peer: Peer, { sessions, messages }: Traffic): number {
  return Math.max(sessions, Math.round(messages * PEERS[peer.name].share));
}

function domainOf(recipient: string): Domain {
  return recipient.slice(recipient.indexOf('@') + 1) as Domain;
}

function generator(peer: Peer, traffic: Traffic, hold = false): readonly [string, readonly string[]] {
  const { sessions, messages, octets, kept, recipients } = traffic;
  const port = peer.port(domainOf(recipients[0]!));
  if (traffic.by === 'client') {
    const untimed = Math.min(UNTIMED, messages - 1);
    const task: Task = { port, sessions, messages, untimed, octets, kept, recipients, hold };
    return [process.execPath, [fileURLToPath(new URL('./client.js', import.meta.url)), JSON.stringify(task)]];
  }
  const what = ['-s', `${sessions}`, '-m', `${messages}`, '-l', `${octets}`, ...(kept ? ['-d'] : [])];
  const who = ['-M', 'source.example', '-f', 's@src.example', '-t', recipients[0]!];
  return ['smtp-source', [...what, ...who, `127.0.0.1:${port}`]];
}

async function cpuOf(peer: Peer): Promise<number | null> {
  return peer.pid === null ? null : await cpuSeconds(peer.pid);
}

async function cpuSince(before: number | null, peer: Peer): Promise<number | null> {
  const after = await cpuOf(peer);
  return before === null || after === null ? null : after - before;
}

async function memoryOf(peer: Peer): Promise<number> {
  return peer.pid === null ? 0 : ((await memoryOctets(peer.pid, PEERS[peer.name].forks)) ?? 0);
}
