// `cutthrough queue …`: asks the proxy that runs on the spool directory, or, when none does, works on the directory itself,
// with what workers have left in their parts of it.
import { stat } from 'node:fs/promises';
import type { Config } from '../config.ts';
import { connectToHolder, DirectoryLock } from '../directory-lock.ts';
import { createLogger } from '../log.ts';
import {
  answerRequest,
  askHolder,
  controlOfStore,
  type QueueAnswer,
  type QueueRequest,
} from '../spool/control.ts';
import type { QueuedMessage } from '../spool/envelope.ts';
import { gather } from '../spool/parts.ts';
import type { Listed } from '../spool/queue.ts';
import { SpoolStore } from '../spool/store.ts';

/** `failures` are what could not be done, one a line. */
export type QueueReport = Readonly<{ lines: readonly string[]; json: unknown; failures: readonly string[] }>;

/** @throws Error in one line when there is no spool, or it can't be read */
export async function runQueueCommand(config: Config, request: QueueRequest): Promise<QueueReport> {
  const answer = await ask(config, request);
  if ('error' in answer) {
    const which = request.command === 'show' ? `${request.id}: ` : '';
    const where = `in --spool-dir ${config.spoolDir}; "cutthrough queue list" has them all`;
    throw new Error(`queue: ${which}${answer.error}${which && ` ${where}`}`);
  }
  if ('messages' in answer) return { lines: table(answer.messages), json: answer.messages, failures: [] };
  if ('message' in answer) return { lines: describe(answer.message), json: answer.message, failures: [] };
  const dry = request.command === 'remove' && request.dryRun;
  const what = request.command === 'remove' ? (dry ? 'would be removed' : 'removed') : 'to be tried now';
  const lines = answer.done.map((id) => `${id}: ${what}`);
  return { lines, json: answer, failures: answer.failed.map(({ id, reason }) => `queue: ${id}: ${reason}`) };
}

async function ask({ spoolDir, spoolMinFreeBytes }: Config, request: QueueRequest): Promise<QueueAnswer> {
  const found = await stat(spoolDir).catch(() => null);
  if (found?.isDirectory() !== true)
    throw new Error(`queue: there is no spool at ${spoolDir}; give --spool-dir, or --config as for serve`);
  const holder = await connectToHolder(spoolDir);
  if (holder !== null) return await askHolder(holder, request);
  const log = createLogger({ level: 'silent', format: 'json' });
  const lock = await DirectoryLock.acquire(spoolDir, (socket) => socket.destroy());
  try {
    await gather(spoolDir, [spoolDir]);
    const deps = { log, minFreeOctets: spoolMinFreeBytes, now: () => performance.now() };
    const store = await SpoolStore.open(spoolDir, deps);
    try {
      return await answerRequest(controlOfStore(store), request);
    } finally {
      await store.close();
    }
  } finally {
    await lock.release();
  }
}

function table(messages: readonly Listed[]): readonly string[] {
  if (messages.length === 0) return ['the queue is empty'];
  const rows = messages.map(({ id, queuedAt, octets, attempts, nextAttemptAt, domains, state }) => [
    id,
    time(queuedAt),
    String(octets),
    String(attempts),
    state === 'active' ? 'now' : time(nextAttemptAt),
    domains.join(' '),
  ]);
  const all = [['ID', 'QUEUED', 'OCTETS', 'ATTEMPTS', 'NEXT', 'PENDING DOMAINS'], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
}

function describe(message: QueuedMessage): readonly string[] {
  const { id, sender, queuedAt, octets, attempts, nextAttemptAt, recipients } = message;
  return [
    `id            ${id}`,
    `from          <${sender.mailbox?.address ?? ''}>`,
    `queued        ${time(queuedAt)}`,
    `octets        ${octets}`,
    `attempts      ${attempts}`,
    `next attempt  ${time(nextAttemptAt)}`,
    ...recipients.map(({ mailbox, state, nextHop, reply }) => {
      const said = reply === null ? '' : `: ${reply.code} ${reply.enhanced ?? ''} ${reply.lines.join(' ')}`;
      return `${state.padEnd(12)}  <${mailbox.address}>${nextHop === '' ? '' : ` at ${nextHop}`}${said}`;
    }),
  ];
}

function time(epochMs: number): string {
  return new Date(epochMs).toISOString().slice(0, 19).replace('T', ' ');
}
