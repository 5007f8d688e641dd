// --ledger-dir: where a ledger's durable entries outlive the process. One process has the directory.
import { access, constants } from 'node:fs/promises';
import type { Logger } from 'pino';
import { DirectoryLock } from '../directory-lock.ts';
import { makeDirectory, whyNoDirectory } from '../make-directory.ts';
import { openJournal } from './journal.ts';
import type { Ledger } from './ledger.ts';

/**
 * From here on durable entries are kept in the directory, and those that were there are known.
 * @returns the directory's lock, to be released once the ledger is closed
 * @throws Error in one line that says what to do
 */
export async function keepLedger(ledger: Ledger, directory: string, log: Logger): Promise<DirectoryLock> {
  await prepare(directory);
  const lock = await DirectoryLock.acquire(directory, (socket) => socket.destroy(), '--ledger-dir');
  try {
    const entries = () => [...ledger.entries].filter(({ durable }) => durable);
    const { journal, recovered } = await openJournal(directory, { log, now: Date.now, entries });
    ledger.keepIn(journal, recovered);
    return lock;
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/** @throws Error in one line that says what to do */
async function prepare(directory: string): Promise<void> {
  try {
    await makeDirectory(directory);
    await access(directory, constants.W_OK);
  } catch (error) {
    throw new Error(`--ledger-dir ${directory}: ${whyNoDirectory(error as NodeJS.ErrnoException)}`, {
      cause: error,
    });
  }
}
