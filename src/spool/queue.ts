// The queue (claims 8 and 9): every message on disk that some recipient still misses, tried again by schedule until all
// recipients are final: delivered, refused for good, or too old. What is kept in memory of a message is an entry of a
// few hundred octets; its envelope and body are read when a delivery begins.
//
// Deliveries run in lanes, one for each next hop. A lane begins with one delivery at a time, and goes to its full
// number once the next hop has answered. Where it does not, the lane is down: its messages wait until the lane is due
// again, and then one of them is the probe. Lanes take turns, and probes have places of their own, so that next hops
// which swallow connections don't starve those that answer.
//
// Owns its entries, timers and lanes; the store owns the files. Nothing here rejects but show(), retry() and remove().
import { setMaxListeners } from 'node:events';
import type { Logger } from 'pino';
import type { Config } from '../config.ts';
import type { Outcome } from '../downstream/outcome.ts';
import { type NextHop, type RouteResult, refusalOfRoute } from '../routing/routes.ts';
import { queueTimeExpired, type Reply } from '../smtp/reply.ts';
import { MemoryBudget, MessageBuffer } from './buffer.ts';
import { type DeliveryDeps, deliver } from './delivery.ts';
import { composeDsn, type DsnKind, readOriginal, toBeNotified } from './dsn.ts';
import { DamagedError, type QueuedMessage, type QueuedSummary, type RecipientState } from './envelope.ts';
import { retryDelay } from './schedule.ts';
import type { SpoolStore } from './store.ts';

type QueueConfig = Pick<Config, 'hostname' | 'retryScheduleMs' | 'maxQueueAgeMs'>;

export type QueueDeps = Readonly<{
  store: SpoolStore;
  /** Of the moment. */
  config: () => QueueConfig;
  route: (domain: string) => RouteResult | Promise<RouteResult>;
  delivery: () => DeliveryDeps;
  newId: () => string;
  /** Epoch milliseconds, for what is written down. */
  now: () => number;
  /** Milliseconds, monotonic, for what is waited for: a clock that jumps neither expires nor delays anything. */
  monotonic: () => number;
  random: () => number;
  log: Logger;
  onAttempt: (result: 'delivered' | 'deferred' | 'rejected' | 'expired') => void;
  onDsn: (kind: DsnKind) => void;
}>;

/** What `queue list` shows of a message. */
export type Listed = Readonly<{
  id: string;
  queuedAt: number;
  octets: number;
  attempts: number;
  nextAttemptAt: number;
  domains: readonly string[];
  state: 'waiting' | 'active';
}>;

/** What became of recipients, by their place in the message. */
export type Results = ReadonlyMap<number, Readonly<{ outcome: Outcome; nextHop: string }>>;

type Entry = {
  readonly id: string;
  readonly octets: number;
  readonly queuedAt: number;
  /** When the 250 was given, on the monotonic clock. */
  readonly bornAt: number;
  /** Of the recipients that are not final. */
  domains: readonly string[];
  attempts: number;
  nextAttemptAt: number;
  /** Until the next attempt, once this one is over; Infinity while nothing has come of it. */
  delayMs: number;
  /** This attempt counts: it was not put off because a lane is down. */
  tried: boolean;
  timer: NodeJS.Timeout | null;
  /** Those in which it waits or is being delivered. */
  readonly lanes: Set<Lane>;
  /** Settles when the last change of the envelope is written: one after the other. */
  turn: Promise<void>;
};

type Lane = {
  readonly nextHop: NextHop;
  readonly waiting: Map<Entry, readonly string[]>;
  running: number;
  proven: boolean;
  failures: number;
  /** On the monotonic clock; not tried before. */
  downUntil: number;
};

/** Deliveries at a time, to all next hops and to one: each may hold a socket, a file and a few chunks of its body. */
const MAX_RUNNING = 100;
/** First deliveries to next hops that have not answered yet: most hold no more than a socket. */
const MAX_PROBING = 1000;
const MAX_RUNNING_PER_NEXT_HOP = 10;
/** When a sender who asked for it is told that the message still waits (RFC 5321 §4.5.4.1 speaks of hours). */
const DELAY_WARNING_MS = 4 * 3_600_000;
/** Lookups at a time; all that is due after a restart comes at once. */
const MAX_ROUTING = 50;

export class Queue {
  readonly #deps: QueueDeps;
  readonly #entries = new Map<string, Entry>();
  readonly #lanes = new Map<string, Lane>();
  readonly #stop = new AbortController();
  readonly #cutOff = new AbortController();
  /** What stop() waits for. */
  readonly #work = new Set<Promise<void>>();
  #running = 0;
  #probing = 0;
  /** Lanes that have something to start, in turn. */
  readonly #ready = new Set<Lane>();
  #routing = 0;
  readonly #toRoute = new Set<Entry>();
  #octets = 0;

  constructor(deps: QueueDeps) {
    this.#deps = deps;
    // One for each delivery under way, and those are bounded elsewhere.
    setMaxListeners(0, this.#stop.signal, this.#cutOff.signal);
  }

  get size(): number {
    return this.#entries.size;
  }

  /** Of all bodies on disk. */
  get octets(): number {
    return this.#octets;
  }

  /** Seconds since the 250 of the message that has waited longest. */
  get oldestAgeSeconds(): number {
    let oldest = this.#deps.now();
    for (const { queuedAt } of this.#entries.values()) oldest = Math.min(oldest, queuedAt);
    return Math.max(0, this.#deps.now() - oldest) / 1000;
  }

  /** What there is to do: messages in delivery or waiting for their next hop, and seconds until the next one is due. */
  get work(): Readonly<{ active: number; nextDueSeconds: number | null }> {
    let active = 0;
    let next = Infinity;
    for (const { timer, nextAttemptAt } of this.#entries.values()) {
      if (timer === null) active++;
      else next = Math.min(next, nextAttemptAt);
    }
    const nextDueSeconds = next === Infinity ? null : Math.max(0, next - this.#deps.now()) / 1000;
    return { active, nextDueSeconds };
  }

  /** Takes up what the store has found at the start. */
  recover(messages: readonly QueuedSummary[]): void {
    for (const message of messages) this.#schedule(this.#enter(message));
  }

  /**
   * Takes on a message that is on disk.
   * @param rejected recipients, by their place, that their next hop has refused for good: the sender is told now
   * @param running deliveries that began before, and what comes of them; no other attempt is made meanwhile
   */
  add(message: QueuedMessage, now: { rejected?: Results; running?: Promise<Results> } = {}): void {
    const pending = message.recipients.filter(({ state }) => state === 'pending');
    const domains = domainsOf(pending);
    const entry = this.#enter({ ...message, domains });
    entry.delayMs = Math.max(0, message.nextAttemptAt - this.#deps.now());
    const first = now.running ?? Promise.resolve(now.rejected ?? new Map());
    if (now.running === undefined && now.rejected === undefined) return this.#schedule(entry);
    this.#track(first.then((results) => this.#record(entry, results)).then(() => this.#settle(entry)));
  }

  list(): readonly Listed[] {
    return [...this.#entries.values()].map(
      ({ id, queuedAt, octets, attempts, nextAttemptAt, domains, timer }) => ({
        id,
        queuedAt,
        octets,
        attempts,
        nextAttemptAt,
        domains,
        state: timer === null ? 'active' : 'waiting',
      }),
    );
  }

  /** Tries again now, also where the next hop counts as down. @returns false: no such message */
  retry(id: string): boolean {
    const entry = this.#entries.get(id);
    if (entry === undefined) return false;
    for (const lane of this.#lanes.values()) lane.downUntil = 0;
    if (entry.timer === null) return true;
    clearTimeout(entry.timer);
    this.#due(entry);
    return true;
  }

  /** Without a word to anybody. @returns why not, or null */
  async remove(id: string, dryRun: boolean): Promise<string | null> {
    const entry = this.#entries.get(id);
    if (entry === undefined) return 'no such message';
    if (entry.timer === null) return 'it is being delivered; try again later';
    if (dryRun) return null;
    this.#forget(entry);
    await this.#deps.store.remove(id);
    return null;
  }

  /**
   * No further attempts. Those at their dot are waited for, all others dropped; everything stays on disk.
   * @param graceMs until those at their dot are dropped, too
   */
  async stop(graceMs: number): Promise<void> {
    this.#stop.abort();
    const timer = setTimeout(() => this.#cutOff.abort(), graceMs);
    for (const entry of this.#entries.values()) if (entry.timer !== null) clearTimeout(entry.timer);
    while (this.#work.size > 0) await Promise.all(this.#work);
    clearTimeout(timer);
  }

  /** For deliveries that began before the queue had the message. @returns to be called when they have ended */
  onInterrupt(soft: () => void, hard: () => void): () => void {
    this.#stop.signal.addEventListener('abort', soft);
    this.#cutOff.signal.addEventListener('abort', hard);
    return () => {
      this.#stop.signal.removeEventListener('abort', soft);
      this.#cutOff.signal.removeEventListener('abort', hard);
    };
  }

  // ---- a message's way: due, routed, in its lanes, settled ----

  #enter(message: QueuedSummary): Entry {
    const age = Math.max(0, this.#deps.now() - message.queuedAt);
    const longest = Math.max(...this.#deps.config().retryScheduleMs) * 1.2;
    const entry: Entry = {
      id: message.id,
      octets: message.octets,
      queuedAt: message.queuedAt,
      bornAt: this.#deps.monotonic() - age,
      domains: message.domains,
      attempts: message.attempts,
      nextAttemptAt: message.nextAttemptAt,
      // A clock that was set back must not put an attempt off for days.
      delayMs: Math.min(Math.max(0, message.nextAttemptAt - this.#deps.now()), longest),
      tried: false,
      timer: null,
      lanes: new Set(),
      turn: Promise.resolve(),
    };
    this.#entries.set(entry.id, entry);
    this.#octets += entry.octets;
    return entry;
  }

  #schedule(entry: Entry): void {
    if (this.#stop.signal.aborted) return;
    const untilExpiry = this.#deps.config().maxQueueAgeMs - this.#ageOf(entry);
    // One that is too old already has been tried to be given up, and that has failed: by schedule, too.
    const delayMs = untilExpiry > 0 ? Math.min(entry.delayMs, untilExpiry) : entry.delayMs;
    entry.nextAttemptAt = this.#deps.now() + delayMs;
    entry.timer = setTimeout(() => this.#due(entry), delayMs);
  }

  #due(entry: Entry): void {
    entry.timer = null;
    this.#toRoute.add(entry);
    this.#routeNext();
  }

  #routeNext(): void {
    for (const entry of this.#toRoute) {
      if (this.#routing >= MAX_ROUTING || this.#stop.signal.aborted) return;
      this.#toRoute.delete(entry);
      this.#routing++;
      const begin = this.#begin(entry).finally(() => {
        this.#routing--;
        this.#routeNext();
      });
      this.#track(begin);
    }
  }

  async #begin(entry: Entry): Promise<void> {
    if (this.#ageOf(entry) >= this.#deps.config().maxQueueAgeMs) return await this.#expire(entry);
    entry.tried = false;
    entry.delayMs = Infinity;
    const unroutable = new Map<string, Reply>();
    const routed = new Map<string, { nextHop: NextHop; domains: string[] }>();
    for (const domain of entry.domains) {
      const found = await this.#deps.route(domain);
      if (found.kind !== 'next-hop') {
        unroutable.set(domain, refusalOfRoute(found));
        continue;
      }
      const { nextHop } = found;
      const group = routed.get(nextHop.key) ?? { nextHop, domains: [] };
      group.domains.push(domain);
      routed.set(nextHop.key, group);
    }
    if (unroutable.size > 0) await this.#recordUnroutable(entry, unroutable);
    // From here on nothing is waited for: a lane may be done with the message as soon as it has it.
    for (const { nextHop, domains } of routed.values()) this.#join(this.#laneFor(nextHop), entry, domains);
    if (entry.lanes.size === 0) await this.#settle(entry);
    else this.#pump();
  }

  #join(lane: Lane, entry: Entry, domains: readonly string[]): void {
    entry.lanes.add(lane);
    lane.waiting.set(entry, domains);
    if (this.#isDown(lane)) this.#sendAway(lane, entry);
    this.#enlist(lane);
  }

  /** Once for each attempt, in whichever lane it begins. */
  #countAttempt(entry: Entry): void {
    if (!entry.tried) entry.attempts++;
    entry.tried = true;
    entry.delayMs = Math.min(entry.delayMs, this.#retryDelay(entry.attempts));
  }

  #ageOf(entry: Entry): number {
    return this.#deps.monotonic() - entry.bornAt;
  }

  /** The lane is down: the message comes back when it is due again. */
  #sendAway(lane: Lane, entry: Entry): void {
    if (!lane.waiting.delete(entry)) return;
    entry.lanes.delete(lane);
    const wait = lane.downUntil - this.#deps.monotonic();
    // Some later than others, so that the first one back is the probe.
    entry.delayMs = Math.min(entry.delayMs, Math.max(1, wait * (1 + this.#deps.random() / 10)));
  }

  /** The attempt is over in every lane. */
  async #settle(entry: Entry): Promise<void> {
    await entry.turn;
    if (this.#entries.get(entry.id) !== entry) return;
    // Also while stopping: what is done must not be found again at the next start.
    if (entry.domains.length > 0) return this.#schedule(entry);
    this.#forget(entry);
    await this.#deps.store.remove(entry.id).catch((error: unknown) => this.#complain(entry, error));
  }

  async #expire(entry: Entry): Promise<void> {
    try {
      const message = await this.#deps.store.load(entry.id);
      const results = new Map<number, { outcome: Outcome; nextHop: string }>();
      for (const [at, { state, reply, nextHop }] of message.recipients.entries()) {
        if (state === 'pending')
          results.set(at, { outcome: { kind: 'rejected', reply: reply ?? queueTimeExpired() }, nextHop });
      }
      await this.#record(entry, results, 'expired');
    } catch (error) {
      this.#complain(entry, error);
    }
    entry.delayMs = this.#retryDelay(1);
    await this.#settle(entry);
  }

  #forget(entry: Entry): void {
    if (entry.timer !== null) clearTimeout(entry.timer);
    if (this.#entries.delete(entry.id)) this.#octets -= entry.octets;
  }

  // ---- lanes ----

  #laneFor(nextHop: NextHop): Lane {
    let lane = this.#lanes.get(nextHop.key);
    if (lane === undefined) {
      lane = { nextHop, waiting: new Map(), running: 0, proven: false, failures: 0, downUntil: 0 };
      this.#lanes.set(nextHop.key, lane);
    }
    return lane;
  }

  #isDown(lane: Lane): boolean {
    return lane.downUntil > this.#deps.monotonic();
  }

  /** Starts what may start, a delivery of each lane in turn. */
  #pump(): void {
    for (const lane of this.#ready) {
      if (this.#stop.signal.aborted) return;
      if (lane.proven ? this.#running >= MAX_RUNNING : this.#probing >= MAX_PROBING) continue;
      this.#ready.delete(lane);
      const [entry, domains] = lane.waiting.entries().next().value!;
      lane.waiting.delete(entry);
      this.#track(this.#run(lane, entry, domains));
      this.#enlist(lane);
    }
  }

  /** Behind all others, if it has anything that may start. */
  #enlist(lane: Lane): void {
    const limit = lane.proven ? MAX_RUNNING_PER_NEXT_HOP : 1;
    if (lane.waiting.size > 0 && lane.running < limit) this.#ready.add(lane);
    else this.#ready.delete(lane);
  }

  async #run(lane: Lane, entry: Entry, domains: readonly string[]): Promise<void> {
    const { proven } = lane;
    lane.running++;
    if (proven) this.#running++;
    else this.#probing++;
    this.#countAttempt(entry);
    try {
      const { reached, results } = await this.#deliver(lane, entry, domains);
      this.#judge(lane, reached);
      await this.#record(entry, results);
    } catch (error) {
      this.#complain(entry, error);
    } finally {
      lane.running--;
      if (proven) this.#running--;
      else this.#probing--;
      this.#enlist(lane);
      entry.lanes.delete(lane);
      if (entry.lanes.size === 0) await this.#settle(entry);
      this.#retire(lane);
      this.#pump();
    }
  }

  async #deliver(
    lane: Lane,
    entry: Entry,
    domains: readonly string[],
  ): Promise<{ reached: boolean; results: Results }> {
    const { store } = this.#deps;
    const message = await store.load(entry.id);
    const { id, sender, client } = message;
    const places = message.recipients.flatMap((recipient, at) =>
      recipient.state === 'pending' && domains.includes(domainOf(recipient)) ? [at] : [],
    );
    const recipients = places.map((at) => message.recipients[at]!);
    const { outcomes, reached } = await deliver(
      lane.nextHop,
      { id, sender, client, recipients, body: () => bodyOf(message, store) },
      this.#deps.delivery(),
      { soft: this.#stop.signal, hard: this.#cutOff.signal },
    );
    const { label } = lane.nextHop;
    const results = new Map(
      places.map((at, index) => [at, { outcome: outcomes.get(recipients[index]!)!, nextHop: label }]),
    );
    return { reached, results };
  }

  /** After a delivery: is the next hop there? */
  #judge(lane: Lane, reached: boolean): void {
    if (this.#stop.signal.aborted) return;
    lane.proven = reached;
    if (reached) {
      lane.failures = 0;
      lane.downUntil = 0;
      return;
    }
    lane.failures++;
    lane.downUntil = this.#deps.monotonic() + this.#retryDelay(lane.failures);
    for (const entry of [...lane.waiting.keys()]) {
      this.#sendAway(lane, entry);
      if (entry.lanes.size === 0) this.#track(this.#settle(entry));
    }
    this.#enlist(lane);
  }

  /** Nothing waits for it: only a lane that is down must be remembered. */
  #retire(lane: Lane): void {
    if (lane.running > 0 || lane.waiting.size > 0 || this.#lanes.get(lane.nextHop.key) !== lane) return;
    if (this.#isDown(lane)) {
      const wait = lane.downUntil - this.#deps.monotonic();
      // By then the messages that it sent away are back, or there are none.
      setTimeout(() => this.#retire(lane), wait * 1.2 + 1).unref();
      return;
    }
    this.#lanes.delete(lane.nextHop.key);
  }

  // ---- what becomes of recipients ----

  async #recordUnroutable(entry: Entry, replies: ReadonlyMap<string, Reply>): Promise<void> {
    this.#countAttempt(entry);
    try {
      const message = await this.#deps.store.load(entry.id);
      const results = new Map<number, { outcome: Outcome; nextHop: string }>();
      for (const [at, recipient] of message.recipients.entries()) {
        const reply = replies.get(domainOf(recipient));
        if (recipient.state !== 'pending' || reply === undefined) continue;
        const kind = reply.code >= 500 ? 'rejected' : 'deferred';
        results.set(at, { outcome: { kind, reply }, nextHop: '' });
      }
      await this.#record(entry, results);
    } catch (error) {
      this.#complain(entry, error);
    }
  }

  #record(entry: Entry, results: Results, failure: 'failed' | 'expired' = 'failed'): Promise<void> {
    entry.turn = entry.turn
      .then(() => this.#apply(entry, results, failure))
      .catch((error: unknown) => this.#complain(entry, error));
    return entry.turn;
  }

  async #apply(entry: Entry, results: Results, failure: 'failed' | 'expired'): Promise<void> {
    const { store, now, onAttempt } = this.#deps;
    const message = await store.load(entry.id);
    const after = (recipient: RecipientState, at: number): RecipientState => {
      const result = results.get(at);
      if (result === undefined || recipient.state !== 'pending') return recipient;
      const { outcome, nextHop } = result;
      const state =
        outcome.kind === 'accepted' ? 'delivered' : outcome.kind === 'rejected' ? 'failed' : 'pending';
      const reply = outcome.kind === 'lost' ? null : outcome.reply;
      return { ...recipient, state, reply, nextHop, triedAt: now() };
    };
    let recipients = message.recipients.map(after);
    const failed = recipients.filter(
      (each, at) => each.state === 'failed' && message.recipients[at]!.state === 'pending',
    );
    // Final only once the sender has been told, or the notification would be lost with this process.
    if (failed.length > 0 && !(await this.#notify(message, failed, failure))) {
      recipients = recipients.map((each) => (failed.includes(each) ? { ...each, state: 'pending' } : each));
    }
    const relayed = recipients.filter((each, at) => {
      const outcome = results.get(at)?.outcome;
      return each.state === 'delivered' && outcome?.kind === 'accepted' && outcome.relayed;
    });
    await this.#notify(message, relayed, 'relayed');
    for (const [at, each] of recipients.entries()) {
      if (!results.has(at)) continue;
      const result = each.state === 'failed' ? (failure === 'expired' ? 'expired' : 'rejected') : each.state;
      onAttempt(result === 'pending' ? 'deferred' : result);
    }
    const left = recipients.filter(({ state }) => state === 'pending');
    const delayNotified = message.delayNotified || (await this.#notifyDelay(entry, message, left));
    entry.domains = domainsOf(left);
    this.#deps.log.info({
      event: 'attempt',
      id: entry.id,
      attempt: entry.attempts,
      recipients: [...results.keys()].map((at) => {
        const { mailbox, state, nextHop, reply } = recipients[at]!;
        return { address: mailbox.address, nextHop, outcome: state, reply: reply?.code ?? null };
      }),
    });
    // What is all done is removed next; until then the files say that something is left to do, which is safe.
    if (entry.domains.length === 0) return;
    const nextAttemptAt = now() + entry.delayMs;
    await store.update({ ...message, recipients, attempts: entry.attempts, nextAttemptAt, delayNotified });
  }

  /** Claims 8 and 9 end here for a recipient that never gets it (RFC 5321 §6.1). @returns whether the duty is done */
  async #notify(message: QueuedMessage, about: readonly RecipientState[], kind: DsnKind): Promise<boolean> {
    if (toBeNotified(message, about, kind).length === 0) return true;
    return await this.report(message, about, kind, bodyOf(message, this.#deps.store));
  }

  /** Once a message, for those of whom the sender asked it (RFC 3461 §4.1). @returns whether it was sent */
  async #notifyDelay(
    entry: Entry,
    message: QueuedMessage,
    left: readonly RecipientState[],
  ): Promise<boolean> {
    if (this.#ageOf(entry) < DELAY_WARNING_MS || toBeNotified(message, left, 'delayed').length === 0)
      return false;
    return await this.#notify(message, left, 'delayed');
  }

  /**
   * Queues the notification about those of the recipients whom the sender wants to hear about.
   * @param body from its first octet; read as far as need be
   * @returns false when that could not be done
   */
  async report(
    message: QueuedMessage,
    about: readonly RecipientState[],
    kind: DsnKind,
    body: AsyncIterable<Buffer>,
  ): Promise<boolean> {
    const recipients = toBeNotified(message, about, kind);
    if (recipients.length === 0) return true;
    const { store, now, newId } = this.#deps;
    const { hostname, maxQueueAgeMs } = this.#deps.config();
    const id = newId();
    let buffer: MessageBuffer | null = null;
    try {
      const original = await readOriginal(message, kind, body);
      const dsn = await composeDsn(message, recipients, kind, original, {
        hostname,
        now,
        newId,
        maxQueueAgeMs,
      });
      buffer = new MessageBuffer({
        policy: 'overflow',
        thresholdOctets: dsn.bytes.length,
        budget: new MemoryBudget(dsn.bytes.length),
        path: store.temporaryPath(id),
      });
      await buffer.write([dsn.bytes]);
      const state = { ...dsn.recipient, state: 'pending', reply: null, nextHop: '', triedAt: null } as const;
      const queued = await store.commit(
        {
          id,
          queuedAt: now(),
          sender: dsn.sender,
          client: null,
          recipients: [state],
          attempts: 0,
          nextAttemptAt: now(),
          delayNotified: false,
        },
        buffer,
      );
      await buffer.release();
      this.#deps.onDsn(kind);
      this.#deps.log.info({ event: 'dsn', id, kind, about: message.id });
      this.add(queued);
      return true;
    } catch (error) {
      await buffer?.discard();
      this.#deps.log.error({ event: 'dsn-failed', about: message.id, err: error });
      return false;
    }
  }

  #retryDelay(attempts: number): number {
    return retryDelay(this.#deps.config().retryScheduleMs, attempts, this.#deps.random);
  }

  /** Damaged files are in quarantine by now; what else failed is tried again with the message. */
  #complain(entry: Entry, error: unknown): void {
    if (error instanceof DamagedError || (error as NodeJS.ErrnoException).code === 'ENOENT')
      this.#forget(entry);
    this.#deps.log.error({ event: 'queue-error', id: entry.id, err: error });
  }

  #track(work: Promise<void>): void {
    const done = work.catch((error: unknown) => {
      this.#deps.log.error({ event: 'bug', err: error });
    });
    this.#work.add(done);
    void done.then(() => this.#work.delete(done));
  }
}

/** Opened, and compared with its checksum, when the next hop is ready for it. */
async function* bodyOf(message: QueuedMessage, store: SpoolStore): AsyncGenerator<Buffer> {
  const body = await store.openBody(message);
  try {
    yield* body.read();
  } finally {
    await body.close();
  }
}

function domainOf(recipient: RecipientState): string {
  return recipient.mailbox.domain ?? '';
}

function domainsOf(recipients: readonly RecipientState[]): readonly string[] {
  return [...new Set(recipients.map(domainOf))];
}
