// Downstream sessions kept between the transactions of one upstream session, or the deliveries of one lane of the queue,
// so that message after message costs a next hop one session. A session comes back only after its last transaction ended
// with the peer's own final reply, and is never shared between upstream sessions, nor between clients that a next hop is
// told of (--forward-client). There are as many as were in use at a time.
// Owns the sessions it holds: close() ends them politely. One that the peer has closed meanwhile is forgotten.
import type { HopHost, NextHop } from '../routing/routes.ts';
import type { HopHealth } from './health.ts';
import type { DownstreamSession } from './session.ts';

export type KeptSession = {
  readonly session: DownstreamSession;
  readonly host: HopHost;
  messages: number;
  /** Whom the next hop was told that it speaks for; empty without --forward-client. */
  readonly identity: string;
  readonly health: HopHealth;
};

export type PoolDeps = Readonly<{
  /** How many sessions are in use and kept has changed. */
  onCount: (change: { active: number; idle: number }) => void;
  onReuse: () => void;
}>;

/** Servers limit what they take over one session; this is what Postfix and Exim stop at. */
const MAX_MESSAGES_PER_SESSION = 100;

export class SessionPool {
  readonly #deps: PoolDeps;
  readonly #idle = new Map<string, KeptSession[]>();
  /** Sessions being ended because they spoke for somebody else. */
  readonly #ending = new Set<Promise<void>>();
  #closed = false;

  constructor(deps: PoolDeps) {
    this.#deps = deps;
  }

  /** A session with `nextHop` that is ready for MAIL and speaks for `identity`, or null. */
  take(nextHop: NextHop, identity: string): KeptSession | null {
    const idle = this.#idle.get(nextHop.key);
    if (idle === undefined) return null;
    for (let at = idle.length - 1; at >= 0; at--) {
      const kept = idle[at]!;
      if (kept.identity !== identity) continue;
      idle.splice(at, 1);
      this.#count(kept, 1, -1);
      this.#deps.onReuse();
      return kept;
    }
    this.#endAll(idle);
    return null;
  }

  /** Another one is about to be opened: kept for every client that ever was, they would have no end. */
  #endAll(idle: KeptSession[]): void {
    for (const kept of idle.splice(0)) {
      this.#count(kept, 1, -1);
      const ending = kept.session.quit();
      this.#ending.add(ending);
      void ending.then(() => this.#ending.delete(ending));
    }
  }

  /** Counts a session just opened as in use until it is gone. */
  opened(nextHop: NextHop, kept: KeptSession): void {
    this.#count(kept, 1, 0);
    const onGone = () => {
      const all = this.#idle.get(nextHop.key) ?? [];
      const at = all.indexOf(kept);
      if (at !== -1) all.splice(at, 1);
      if (at !== -1) this.#count(kept, 0, -1);
      else this.#count(kept, -1, 0);
    };
    if (kept.session.lost !== null) onGone();
    else kept.session.once('end', onGone);
  }

  /** Takes back a session in which no transaction is under way. Settles when it is kept, or gone. */
  async give(nextHop: NextHop, kept: KeptSession): Promise<void> {
    kept.messages++;
    const { session } = kept;
    if (session.lost !== null) return;
    if (this.#closed || kept.messages >= MAX_MESSAGES_PER_SESSION) return await session.quit();
    const idle = this.#idle.get(nextHop.key);
    if (idle === undefined) this.#idle.set(nextHop.key, [kept]);
    else idle.push(kept);
    this.#count(kept, -1, 1);
  }

  /** Settles when every kept session is gone; those still in use go when they are given back. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([...this.#idle.values()].flat().map(({ session }) => session.quit()));
    await Promise.all(this.#ending);
  }

  #count({ health }: KeptSession, active: number, idle: number): void {
    health.active += active;
    health.idle += idle;
    this.#deps.onCount({ active, idle });
  }
}
