// Downstream sessions kept from transaction to transaction, so that message after message costs a next hop one session.
// A session is for one next hop (servers, TLS policy and credentials, see routing/routes.ts) and for one client that
// the next hop was told of (--forward-client), and comes back only after its last transaction ended with the peer's own
// final reply. It is kept for so long, for so many messages, and up to an age; the one used last is handed out first, so
// that those too many grow old.
// A next hop has a number of places, one for each session from before it is opened until it is gone. Whoever finds none
// free waits in a queue of that next hop's own, so that a slow one takes nothing from the others.
// Owns the sessions it keeps: close() ends them politely. One that the peer has closed meanwhile is forgotten.
import type { Config } from '../config.ts';
import type { HopHost, NextHop } from '../routing/routes.ts';
import { replyClass } from '../smtp/reply.ts';
import type { HopHealth } from './health.ts';
import type { DownstreamSession } from './session.ts';

export type KeptSession = {
  readonly session: DownstreamSession;
  readonly host: HopHost;
  readonly nextHop: NextHop;
  /** MAILs, that is: the last may have gone no further. */
  messages: number;
  /** Whom the next hop was told that it speaks for; empty without --forward-client. */
  readonly identity: string;
  readonly health: HopHealth;
  /** Milliseconds, monotonic. */
  readonly openedAt: number;
  idleSince: number;
};

/** What there was at the door: a session, a place to open one in, or neither before the wait was over. */
export type Admitted = KeptSession | 'place' | 'nothing';

export type PoolDeps = Readonly<{
  config: Pick<
    Config,
    'maxSessionsPerNextHop' | 'sessionIdleTimeoutMs' | 'sessionMaxAgeMs' | 'sessionMaxMessages'
  >;
  /** Milliseconds, monotonic. */
  now: () => number;
  /** How many sessions are in use and kept has changed. */
  onCount: (change: { active: number; idle: number }) => void;
  onReuse: () => void;
  /** How many wait has changed. */
  onWaiting: (change: 1 | -1) => void;
}>;

type Waiter = {
  readonly identity: string;
  readonly fresh: boolean;
  readonly admit: (admitted: Admitted) => void;
};

type Places = {
  /** Sessions opened, being opened and being ended. */
  taken: number;
  readonly idle: KeptSession[];
  /** In the order of their coming. */
  readonly waiting: Set<Waiter>;
};

export class SessionPool {
  readonly #deps: PoolDeps;
  /** By the key of the next hop. */
  readonly #places = new Map<string, Places>();
  /** All that are kept, the longest idle first. */
  readonly #idle = new Set<KeptSession>();
  #idleTimer: NodeJS.Timeout | null = null;
  /** Sessions being reset or ended. */
  readonly #ending = new Set<Promise<void>>();
  #closed = false;

  constructor(deps: PoolDeps) {
    this.#deps = deps;
  }

  /**
   * A session with `nextHop` that speaks for `identity` and is ready for MAIL, or a place for one; at once if there is
   * either. 'nothing' only after `signal`. With a place, opened() or abandoned() follows.
   * @param fresh kept sessions are no good
   */
  enter(
    nextHop: NextHop,
    identity: string,
    signal: () => AbortSignal,
    fresh = false,
  ): Exclude<Admitted, 'nothing'> | Promise<Admitted> {
    const places = this.#placesOf(nextHop);
    const kept = fresh ? null : this.#takeKept(places, identity);
    if (kept !== null) return kept;
    if (places.waiting.size === 0 && places.taken < this.#deps.config.maxSessionsPerNextHop) {
      places.taken++;
      return 'place';
    }
    const admitted = this.#queue(places, identity, fresh, signal());
    // One that is kept for somebody else leaves its place.
    const [other] = places.idle;
    if (other !== undefined) this.#end(other);
    return admitted;
  }

  /** Counts a session just opened as in use until it is gone. */
  opened(kept: KeptSession): void {
    this.#count(kept, 1, 0);
    const onGone = () => {
      if (this.#forget(kept)) this.#count(kept, 0, -1);
      else this.#count(kept, -1, 0);
      this.abandoned(kept.nextHop);
    };
    if (kept.session.lost !== null) onGone();
    else kept.session.once('end', onGone);
  }

  /** No session has come of a place, or it is no more. */
  abandoned(nextHop: NextHop): void {
    const places = this.#placesOf(nextHop);
    const [first] = places.waiting;
    if (first !== undefined) return first.admit('place');
    places.taken--;
    if (places.taken === 0) this.#places.delete(nextHop.key);
  }

  /** Takes back a session whose transaction is over: the final reply was its last word. */
  give(kept: KeptSession): void {
    kept.messages++;
    if (kept.session.lost !== null) return;
    if (this.#closed || this.#isWornOut(kept)) return this.#track(kept.session.quit());
    const places = this.#placesOf(kept.nextHop);
    for (const waiter of places.waiting) {
      if (waiter.fresh || waiter.identity !== kept.identity) return this.#track(kept.session.quit());
      this.#deps.onReuse();
      return waiter.admit(kept);
    }
    kept.idleSince = this.#deps.now();
    places.idle.push(kept);
    this.#idle.add(kept);
    this.#count(kept, -1, 1);
    this.#idleTimer ??= this.#watch(this.#deps.config.sessionIdleTimeoutMs);
  }

  /** Takes back a session whose transaction goes no further than its envelope. */
  giveAfterReset(kept: KeptSession): void {
    this.#track(
      kept.session.exchange([{ phase: null, line: 'RSET' }])[0]!.then((answer) => {
        if (answer.kind === 'reply' && replyClass(answer.reply) === 2) this.give(kept);
        else kept.session.abort();
      }),
    );
  }

  /** Takes back a session that is good for no further message. */
  retire(kept: KeptSession): void {
    kept.messages = this.#deps.config.sessionMaxMessages;
    this.giveAfterReset(kept);
  }

  /** Settles when every kept session is gone; those still in use go when they are given back. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#idleTimer !== null) clearTimeout(this.#idleTimer);
    for (const kept of [...this.#idle]) this.#end(kept);
    while (this.#ending.size > 0) await Promise.all(this.#ending);
  }

  #placesOf({ key }: NextHop): Places {
    let places = this.#places.get(key);
    if (places === undefined) {
      places = { taken: 0, idle: [], waiting: new Set() };
      this.#places.set(key, places);
    }
    return places;
  }

  #takeKept({ idle }: Places, identity: string): KeptSession | null {
    for (let at = idle.length - 1; at >= 0; at--) {
      const kept = idle[at]!;
      if (kept.identity !== identity) continue;
      if (this.#isWornOut(kept)) {
        this.#end(kept);
        continue;
      }
      idle.splice(at, 1);
      this.#idle.delete(kept);
      this.#count(kept, 1, -1);
      this.#deps.onReuse();
      return kept;
    }
    return null;
  }

  #isWornOut({ messages, openedAt, session }: KeptSession): boolean {
    const { sessionIdleTimeoutMs, sessionMaxAgeMs, sessionMaxMessages } = this.#deps.config;
    const { mailMax, rcptDomainMax } = session.capabilities;
    if (sessionIdleTimeoutMs === 0 || messages >= Math.min(sessionMaxMessages, mailMax ?? Infinity))
      return true;
    // It would be taken for the answer to the next MAIL.
    if (session.hasUnread) return true;
    // Counted over the whole session (RFC 9422 §4.3), and the next message is for somebody else.
    if (rcptDomainMax !== null) return true;
    return this.#deps.now() - openedAt >= sessionMaxAgeMs;
  }

  #queue(places: Places, identity: string, fresh: boolean, signal: AbortSignal): Promise<Admitted> {
    return new Promise((resolve) => {
      const admit = (admitted: Admitted) => {
        places.waiting.delete(waiter);
        signal.removeEventListener('abort', onAbort);
        this.#deps.onWaiting(-1);
        resolve(admitted);
      };
      const waiter = { identity, fresh, admit };
      const onAbort = () => admit('nothing');
      places.waiting.add(waiter);
      this.#deps.onWaiting(1);
      signal.addEventListener('abort', onAbort);
      if (signal.aborted) onAbort();
    });
  }

  /** Ends one that is kept; its place is free when it is gone. */
  #end(kept: KeptSession): void {
    this.#forget(kept);
    this.#count(kept, 1, -1);
    this.#track(kept.session.quit());
  }

  #track(ending: Promise<void>): void {
    this.#ending.add(ending);
    void ending.then(() => this.#ending.delete(ending));
  }

  /** @returns whether it was kept */
  #forget(kept: KeptSession): boolean {
    if (!this.#idle.delete(kept)) return false;
    const { idle } = this.#placesOf(kept.nextHop);
    idle.splice(idle.indexOf(kept), 1);
    return true;
  }

  #watch(ms: number): NodeJS.Timeout {
    return setTimeout(() => this.#endTheStale(), ms).unref();
  }

  #endTheStale(): void {
    this.#idleTimer = null;
    const { now, config } = this.#deps;
    for (const kept of this.#idle) {
      const rest = kept.idleSince + config.sessionIdleTimeoutMs - now();
      // Timers count whole milliseconds: half of one may be left.
      if (rest > 1) {
        this.#idleTimer = this.#watch(rest);
        return;
      }
      this.#end(kept);
    }
  }

  #count({ health }: KeptSession, active: number, idle: number): void {
    health.active += active;
    health.idle += idle;
    this.#deps.onCount({ active, idle });
  }
}
