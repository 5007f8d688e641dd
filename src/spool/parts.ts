// A spool directory that several processes share: each works on a part of its own, `worker-1`, `worker-2`, …, with a lock
// of its own, below the directory, whose lock their primary holds. Mail in parts that nobody will work on, since there
// are fewer workers now or only one process, is gathered at the start.
//
// A message exists where its .json is: the body gets its second name first, and loses its first one last. So a crash in
// between leaves each message in one place, whole, and bodies that no message needs, which every start removes.
import { link, readdir, rename, rmdir, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { connectToHolder, DirectoryLock } from '../directory-lock.ts';
import { makeDirectory } from '../make-directory.ts';
import { askHolder, type QueueAnswer, type QueueControl, type QueueRequest, UNKNOWN } from './control.ts';
import { OUR_FILE, PART, QUARANTINE, syncDirectory } from './store.ts';

export function partOf(directory: string, number: number): string {
  return join(directory, `worker-${number}`);
}

/**
 * Moves all mail that is elsewhere below the directory into `parts`. The caller holds the directory's lock.
 * @param parts those that will be worked on; the directory itself, where there are no others
 * @throws Error in one line when another process works on a part, or it can't be read
 */
export async function gather(directory: string, parts: readonly string[]): Promise<void> {
  for (const name of await readdir(directory)) {
    const part = join(directory, name);
    if (!PART.test(name) || parts.includes(part)) continue;
    const lock = await DirectoryLock.acquire(part, (socket) => socket.destroy());
    await move(part, parts).finally(() => lock.release());
    // They stay where there is something else in them.
    await rmdir(join(part, QUARANTINE)).catch(() => {});
    await rmdir(part).catch(() => {});
  }
  if (!parts.includes(directory)) await move(directory, parts);
}

async function move(from: string, parts: readonly string[]): Promise<void> {
  const ids: string[] = [];
  const others: string[] = [];
  for (const name of await readdir(from)) {
    const [, id, kind, temporary] = OUR_FILE.exec(name) ?? [];
    if (id !== undefined && kind === 'json' && temporary === undefined) ids.push(id);
    else if (id !== undefined) others.push(name);
  }
  const to = ids.map((_, at) => parts[at % parts.length]!);
  const used = [...new Set(to)];
  for (const part of used) await makeDirectory(part);
  // Not there: the message is damaged, as whoever works on the part will find. There already: from the last try.
  for (const [at, id] of ids.entries())
    await link(join(from, `${id}.eml`), join(to[at]!, `${id}.eml`)).catch(unless('ENOENT', 'EEXIST'));
  for (const part of used) await syncDirectory(part);
  for (const [at, id] of ids.entries()) await rename(join(from, `${id}.json`), join(to[at]!, `${id}.json`));
  for (const part of used) await syncDirectory(part);
  // What is left are bodies that have their message elsewhere by now, or none, and what was never finished.
  for (const name of others) await unlink(join(from, name)).catch(unless('ENOENT'));
  await syncDirectory(from);
}

function unless(...codes: readonly string[]): (error: NodeJS.ErrnoException) => void {
  return (error) => {
    if (!codes.includes(error.code ?? '')) throw error;
  };
}

/** The queues of all parts as one, as the processes that work on them tell and do it. */
export function controlOfParts(parts: () => readonly string[]): QueueControl {
  const askAll = (request: QueueRequest) => Promise.all(parts().map((part) => ask(part, request)));
  const act = async (request: QueueRequest): Promise<string | null> => {
    const answers = await askAll(request);
    if (answers.some((answer) => 'done' in answer && answer.done.length > 0)) return null;
    const reasons = answers.flatMap((answer) =>
      'failed' in answer ? answer.failed.map(({ reason }) => reason) : [reasonOf(answer)],
    );
    return reasons.find((reason) => reason !== UNKNOWN) ?? UNKNOWN;
  };
  return {
    list: async () =>
      (await askAll({ command: 'list' })).flatMap((answer) => {
        if (!('messages' in answer)) throw new Error(reasonOf(answer));
        return answer.messages;
      }),
    show: async (id) => {
      const answers = await askAll({ command: 'show', id });
      for (const answer of answers) if ('message' in answer) return answer.message;
      throw new Error(answers.map(reasonOf).find((reason) => reason !== UNKNOWN) ?? UNKNOWN);
    },
    retry: (id) => act({ command: 'retry', ids: [id] }),
    remove: (id, dryRun) => act({ command: 'remove', ids: [id], dryRun }),
  };
}

async function ask(part: string, request: QueueRequest): Promise<QueueAnswer> {
  const holder = await connectToHolder(part);
  if (holder === null) return { error: 'a worker is starting; try again' };
  return await askHolder(holder, request);
}

function reasonOf(answer: QueueAnswer): string {
  return 'error' in answer ? answer.error : UNKNOWN;
}
