// What `cutthrough queue` asks of the queue: in the process that runs, over the socket of the directory's lock; or, when
// none runs, of the directory itself. One request and one answer, each a line of JSON; then the connection ends.
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { z } from 'zod';
import type { QueuedMessage } from './envelope.ts';
import type { Listed, Queue } from './queue.ts';
import type { SpoolStore } from './store.ts';

const REQUEST = z.discriminatedUnion('command', [
  z.strictObject({ command: z.literal('list') }),
  z.strictObject({ command: z.literal('show'), id: z.string() }),
  z.strictObject({ command: z.literal('retry'), ids: z.union([z.literal('all'), z.array(z.string())]) }),
  z.strictObject({ command: z.literal('remove'), ids: z.array(z.string()), dryRun: z.boolean() }),
]);

export type QueueRequest = z.infer<typeof REQUEST>;

export type QueueAnswer =
  | Readonly<{ messages: readonly Listed[] }>
  | Readonly<{ message: QueuedMessage }>
  /** What was done, and of the other ids why not. */
  | Readonly<{ done: readonly string[]; failed: readonly Readonly<{ id: string; reason: string }>[] }>
  | Readonly<{ error: string }>;

/** The queue of a running or of a stopped proxy. */
export type QueueControl = Readonly<{
  list: () => readonly Listed[] | Promise<readonly Listed[]>;
  show: (id: string) => Promise<QueuedMessage>;
  /** @returns why not, or null */
  retry: (id: string) => Promise<string | null>;
  remove: (id: string, dryRun: boolean) => Promise<string | null>;
}>;

export const UNKNOWN = 'no such message';
const REQUEST_TIMEOUT_MS = 10_000;
/** To remove thousands takes thousands of fsyncs. */
const ANSWER_TIMEOUT_MS = 120_000;

export function controlOfQueue(queue: Queue, store: SpoolStore): QueueControl {
  return {
    list: () => queue.list(),
    show: (id) => store.load(id),
    retry: async (id) => (queue.retry(id) ? null : UNKNOWN),
    remove: (id, dryRun) => queue.remove(id, dryRun),
  };
}

/** For a directory that no proxy works on; the caller holds its lock. */
export function controlOfStore(store: SpoolStore): QueueControl {
  const listed = new Map(store.recovered.map((each) => [each.id, { ...each, state: 'waiting' as const }]));
  return {
    list: () => [...listed.values()],
    show: (id) => store.load(id),
    retry: async (id) => {
      if (!listed.has(id)) return UNKNOWN;
      const message = await store.load(id);
      await store.update({ ...message, nextAttemptAt: message.queuedAt });
      return null;
    },
    remove: async (id, dryRun) => {
      if (!listed.has(id)) return UNKNOWN;
      if (dryRun) return null;
      await store.remove(id);
      listed.delete(id);
      return null;
    },
  };
}

/** Never rejects: what can't be done is an answer, too. */
export async function answerRequest(control: QueueControl, request: QueueRequest): Promise<QueueAnswer> {
  try {
    switch (request.command) {
      case 'list':
        return { messages: await control.list() };
      case 'show':
        return { message: await control.show(request.id) };
      case 'retry': {
        const ids = request.ids === 'all' ? (await control.list()).map(({ id }) => id) : request.ids;
        return await each(ids, (id) => control.retry(id));
      }
      case 'remove':
        return await each(request.ids, (id) => control.remove(id, request.dryRun));
      default:
        return request satisfies never;
    }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    return { error: code === 'ENOENT' ? UNKNOWN : message };
  }
}

async function each(
  ids: readonly string[],
  act: (id: string) => Promise<string | null>,
): Promise<QueueAnswer> {
  const done: string[] = [];
  const failed: { id: string; reason: string }[] = [];
  for (const id of ids) {
    const reason = await act(id);
    if (reason === null) done.push(id);
    else failed.push({ id, reason });
  }
  return { done, failed };
}

/** Answers the one request of a connection to the lock's socket. */
export function serveControl(socket: Socket, control: () => QueueControl | null): void {
  const lines = createInterface({ input: socket });
  socket.setTimeout(REQUEST_TIMEOUT_MS, () => socket.destroy());
  lines.once('line', (line) => {
    lines.close();
    socket.setTimeout(0);
    const parsed = parse(line);
    const current = control();
    const answer =
      parsed === null || current === null
        ? Promise.resolve({ error: parsed === null ? 'not a request' : 'the proxy is starting or stopping' })
        : answerRequest(current, parsed);
    void answer.then((reply) => socket.end(`${JSON.stringify(reply)}\n`));
  });
}

/** The answer of the process behind `socket`. @throws Error when it goes away without one */
export async function askHolder(socket: Socket, request: QueueRequest): Promise<QueueAnswer> {
  socket.write(`${JSON.stringify(request)}\n`);
  let text = '';
  socket.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  socket.setTimeout(ANSWER_TIMEOUT_MS, () => socket.destroy());
  await once(socket, 'close');
  if (!text.endsWith('\n')) throw new Error('the proxy ended without an answer');
  return JSON.parse(text) as QueueAnswer;
}

function parse(line: string): QueueRequest | null {
  try {
    return REQUEST.parse(JSON.parse(line));
  } catch {
    return null;
  }
}
