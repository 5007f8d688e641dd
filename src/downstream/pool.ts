// Downstream sessions kept between the transactions of one upstream session, or the deliveries of one lane of the queue,
// so that message after message costs a next hop one session. A session comes back only after its last transaction ended
// with the peer's own final reply, and is never shared between upstream sessions. There are as many as were in use at a time.
// Owns the sessions it holds: close() ends them politely. One that the peer has closed meanwhile is forgotten.
import type { HopHost, NextHop } from '../routing/routes.ts';
import type { HopHealth } from './health.ts';
import type { DownstreamSession } from './session.ts';

export type KeptSession = {
  session: DownstreamSession;
  host: HopHost;
  messages: number;
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
  #closed = false;

  constructor(deps: PoolDeps) {
    this.#deps = deps;
  }

  /** A session with `nextHop` that is ready for MAIL, or null. */
  take(nextHop: NextHop): KeptSession | null {
    const kept = this.#idle.get(nextHop.key)?.pop();
    if (kept === undefined) return null;
    this.#count(kept, 1, -1);
    this.#deps.onReuse();
    return kept;
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
  }

  #count({ health }: KeptSession, active: number, idle: number): void {
    health.active += active;
    health.idle += idle;
    this.#deps.onCount({ active, idle });
  }
}
