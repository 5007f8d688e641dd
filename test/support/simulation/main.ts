// Thousands of transactions over one to five next hops, with failures in every phase and on both sides, against the model.
// SIMULATION_SEED repeats what was drawn; what happens at the same time as what is the machine's affair.
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../proxy.ts';
import type { Owner } from '../tools.ts';
import { Chance } from './chance.ts';
import { type Message, MOST_DELAY_MS, Model, type Policy, SENDERS, spoolsForAll } from './model.ts';
import { NextHop } from './next-hop.ts';
import { inThisProcess, OwnProcess, type Subject } from './subject.ts';
import { patience, Upstream } from './upstream.ts';

const KINDS = {
  'a.example': 'smtp',
  'b.example': 'smtp',
  'c.example': 'smtp',
  'd.example': 'prdr',
  'e.example': 'lmtp',
} as const;
const DOMAINS = Object.keys(KINDS) as (keyof typeof KINDS)[];
const SESSIONS = 24;
const LMTP_SESSIONS = 6;
/** Of the messages: followed by another one with the same envelope, each of them tried in turn. */
const TWINS = 0.15;
/** Of the messages. */
const NULL_REVERSE_PATHS = 0.05;
const SILENT = 0.1;
/** Before so many of the messages somebody switches the fast path, mostly on: while it is off, the spool comes first. */
const SWITCHES = 0.05;
/** Between two kills, on average. */
const LIFE_MS = 2_000;
/** Long enough for a machine that is busy; only a stall waits for it. */
const ACK_TIMEOUT = '2s';

export type Report = Readonly<{
  seed: number;
  ledger: 'in memory' | 'on disk';
  kills: number;
  transactions: number;
  messages: number;
  duplicates: number;
  suppressed: number;
  results: string;
  violations: readonly string[];
}>;

const PLAIN = { mode: 'cut-through', fallback: 'none', mixed: 'fail', dots: 'together' } as const;
export const POLICIES: readonly Policy[] = [
  PLAIN,
  { ...PLAIN, dots: 'ordered' },
  { ...PLAIN, mixed: 'split' },
  { ...PLAIN, mixed: 'spool' },
  { ...PLAIN, fallback: 'spool' },
  { ...PLAIN, fallback: 'fast-path' },
  { ...PLAIN, mode: 'spool' },
  { ...PLAIN, mode: 'fast-path' },
];

/** As an operator would say it. */
export function nameOf(policy: Policy): string {
  const flags = Object.entries(policy).filter(([key]) => key !== 'ledger' && key !== 'killed');
  const name = flags.map(([key, value]) => `--${key} ${value}`).join(' ');
  return policy.killed === undefined ? name : `${name}, the ${policy.killed} killed`;
}

/** In a process of its own. */
export const KILLED: readonly Policy[] = [
  { ...PLAIN, killed: 'proxy', ledger: 'on disk' },
  { ...PLAIN, killed: 'proxy', mixed: 'spool' },
  { ...PLAIN, killed: 'proxy', fallback: 'spool' },
  { ...PLAIN, killed: 'proxy', mode: 'spool' },
  { ...PLAIN, killed: 'worker', workers: 2, ledger: 'in memory' },
  { ...PLAIN, workers: 2, ledger: 'in memory' },
];

export const SEED = Number(process.env.SIMULATION_SEED || Math.floor(Math.random() * 2 ** 31));

export async function simulate(policy: Policy, transactions: number, seed = SEED): Promise<Report> {
  const releases: (() => Promise<void>)[] = [];
  try {
    return await run(policy, transactions, seed, (release) => void releases.push(release));
  } finally {
    for (const release of releases) await release();
  }
}

async function run(policy: Policy, transactions: number, seed: number, owner: Owner): Promise<Report> {
  const { killed, ledger = new Chance(seed, -1).is(0.5) ? 'on disk' : 'in memory', ...chosen } = policy;
  const model = new Model(policy, ledger === 'on disk' || killed === 'worker');
  const hops: NextHop[] = [];
  for (const [nth, domain] of DOMAINS.entries())
    hops.push(await NextHop.start(domain, model, new Chance(seed, -2 - nth), KINDS[domain]));
  const senders = await NextHop.start(SENDERS, model, new Chance(seed, -2 - DOMAINS.length), 'smtp');
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-simulation-'));
  const spoolDir = join(directory, 'spool');
  const ledgerDir = ledger === 'on disk' ? join(directory, 'ledger') : undefined;
  const route = [...hops.map(({ url }, nth) => `${DOMAINS[nth]}=${url}`), `${SENDERS}=${senders.url}`];
  const options = { ...chosen, route, spoolDir, ledgerDir, ackTimeout: ACK_TIMEOUT, ...PATIENT };
  const own =
    killed === undefined && chosen.workers === undefined
      ? null
      : await OwnProcess.start(options, join(directory, 'config.yaml'), owner);
  const proxy = own ?? (await inThisProcess(options));
  const [smtp, lmtp] = proxy.listen as [string, string];
  const upstreams = Array.from(
    { length: SESSIONS },
    (_, at) => new Upstream(at < LMTP_SESSIONS ? lmtp : smtp, model),
  );
  const done: { message: Message; final: ReadonlyMap<string, string> }[] = [];
  const attempts = () => upstreams.reduce((sum, each) => sum + each.attempts, 0);
  let nth = 0;
  let kills = 0;
  const work = async (upstream: Upstream) => {
    while (attempts() < transactions) {
      const chance = new Chance(seed, nth);
      const messages = messagesOf(nth++, chance);
      for (const message of messages) model.add(message);
      if (spoolsForAll(policy) && chance.is(SWITCHES)) await switchFastPath(proxy, chance.is(0.7));
      model.plan(messages[0]!, chance);
      for (const each of await deliver(upstream, messages, chance)) done.push(each);
    }
    upstream.close();
  };
  const kill = async (subject: OwnProcess, chance: Chance) => {
    while (attempts() < transactions) {
      await sleep(LIFE_MS / 2 + chance.below(LIFE_MS));
      model.dies();
      kills++;
      if (killed === 'worker') await subject.killWorker(chance.below(2));
      else await subject.kill();
      await sleep(MOST_DELAY_MS * 3);
      model.isDead();
      if (killed === 'proxy') await subject.startAgain();
    }
  };
  const killing = own !== null && killed !== undefined ? kill(own, new Chance(seed, -10)) : null;
  await Promise.all([...upstreams.map(work), killing]);
  for (const name of ['transactions_active', 'queue_messages', 'buffered_bytes']) {
    // To ask is dear.
    await until(() => sleep(50).then(async () => (await metric(proxy, name)) === 0), 60_000);
  }
  for (const { message, final } of done)
    for (const [recipient, reply] of final) model.final(message, recipient, reply);
  const { violations, duplicates } = model;
  const report: Omit<Report, 'violations'> = {
    seed,
    ledger,
    kills,
    transactions: attempts(),
    messages: done.length,
    duplicates,
    suppressed: await metric(proxy, 'duplicates_suppressed_total'),
    results: await results(proxy),
  };
  await proxy.close();
  const left = (await readdir(directory, { recursive: true })).filter((name) =>
    /\.(eml|json|tmp)$/.test(name),
  );
  if (left.length > 0) violations.push(`left in the spool: ${left.join(' ')}`);
  for (const hop of [...hops, senders]) hop.close();
  await rm(directory, { recursive: true });
  return { ...report, violations };
}

const PATIENT = {
  listen: ['smtp://127.0.0.1:0', 'lmtp://127.0.0.1:0'],
  commandTimeout: '2s',
  dataTimeout: '2s',
  greetingTimeout: '2s',
  connectTimeout: '2s',
  rcptDeadline: '10s',
  idleTimeout: '60s',
  connectBackoff: '2ms',
  retrySchedule: '50ms',
  disableFastPathWhen: 'manual',
  // Some deliveries outlast it, and some messages don't fit.
  ackDeadline: '25ms',
  memoryThreshold: '2KiB',
  traceBuffer: 0,
};

/** One message, or two with the same envelope. */
function messagesOf(nth: number, chance: Chance): Message[] {
  const recipients = DOMAINS.slice(0, 1 + chance.below(DOMAINS.length)).flatMap((_, at) => {
    const domain = DOMAINS[(nth + at) % DOMAINS.length]!;
    const one = `r${nth}@${domain}`;
    return chance.is(0.3) ? [one, `s${nth}@${domain}`] : [one];
  });
  const silent = chance.is(SILENT);
  const sender = chance.is(NULL_REVERSE_PATHS) ? '' : `m${nth}@${SENDERS}`;
  return (chance.is(TWINS) ? ['', 't'] : ['']).map((twin) => {
    const id = `${nth}${twin}`;
    const lines = chance.is(0.03) ? 2_000 : chance.below(20);
    const text = Array.from(
      { length: lines },
      (_, at) => `${at % 7 === 0 ? '..' : ''}line ${at} of ${id}\r\n`,
    );
    return { id, sender, recipients, silent, wire: Buffer.from(`Message-ID: ${id}\r\n\r\n${text.join('')}`) };
  });
}

/** Two take turns until one is through, so that each is tried while the other is on record. */
async function deliver(upstream: Upstream, messages: readonly Message[], chance: Chance) {
  const [first, second] = messages as [Message, Message?];
  if (second === undefined) return [{ message: first, final: await upstream.deliver(first, chance) }];
  const done = messages.map((message) => ({ message, final: new Map<string, string>() }));
  for (let tries = 0; done.some(({ message, final }) => final.size < message.recipients.length); tries++) {
    if (tries > 100) throw new Error(`${first.id} and its twin come to no end`);
    for (const { message, final } of done)
      if (final.size < message.recipients.length) await upstream.attempt(message, final, chance);
    await patience(tries);
  }
  return done;
}

async function switchFastPath(proxy: Subject, enabled: boolean): Promise<void> {
  const body = JSON.stringify({ enabled });
  // It may be down.
  await fetch(`http://${proxy.http()}/fast-path`, { method: 'POST', body }).catch(() => {});
}

async function metric(proxy: Subject, name: string): Promise<number> {
  const found = new RegExp(`^cutthrough_${name} (.*)$`, 'm').exec(await proxy.metrics());
  return Number(found?.[1] ?? 0);
}

async function results(proxy: Subject): Promise<string> {
  const all = (await proxy.metrics()).matchAll(/^cutthrough_transactions_total\{.*result="(\w+)"\} (\d+)$/gm);
  return [...all].map(([, result, count]) => `${count} ${result}`).join(', ');
}
