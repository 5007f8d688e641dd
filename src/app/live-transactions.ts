// The transactions under way, of all sessions: counted, found by their ids, and waited for when the proxy drains.
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Transaction } from '../cut-through/transaction.ts';
import type { StoredTransaction } from '../spool/stored-transaction.ts';

/** Cut through, or stored first. */
export type LiveTransaction = Transaction | StoredTransaction;

/** Between two looks at whether all have their verdict. */
const POLL_MS = 5;

export class LiveTransactions {
  readonly #all = new Set<LiveTransaction>();
  #onNone: (() => void) | null = null;

  /** Oldest first. */
  get all(): ReadonlySet<LiveTransaction> {
    return this.#all;
  }

  add(transaction: LiveTransaction): void {
    this.#all.add(transaction);
  }

  /** It has ended. */
  remove(transaction: LiveTransaction): void {
    this.#all.delete(transaction);
    if (this.#all.size === 0) this.#onNone?.();
  }

  find(id: string): LiveTransaction | null {
    for (const transaction of this.#all) if (transaction.id === id) return transaction;
    return null;
  }

  /** Octets of messages that wait to be sent to next hops. */
  get unsentBytes(): number {
    let bytes = 0;
    for (const transaction of this.#all) bytes += transaction.unsentBytes;
    return bytes;
  }

  /** Settles when there are none, for a proxy that takes no new ones. */
  whenNone(): Promise<void> {
    if (this.#all.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onNone = resolve;
    });
  }

  /**
   * Ends those that there are. Settles when the ones that waited for the dots' answers have their verdict, which is now,
   * or once their message is on disk; at the latest after `graceMs`.
   */
  async cutOff(graceMs: number): Promise<void> {
    const transactions = [...this.#all];
    for (const transaction of transactions) transaction.cutOff();
    const until = performance.now() + graceMs;
    do await sleep(POLL_MS);
    while (transactions.some(({ isFinishing }) => isFinishing) && performance.now() < until);
  }
}
