// The load generator's own next hop, which does what the inboxes never do: it is down now and then, refuses some
// recipients, defers some messages, and takes its time.
import { setTimeout as sleep } from 'node:timers/promises';
import { Sink, type SinkOptions } from '../sink.ts';

/** Before its reply to the dot. */
const THINKS_MS = 150;
/** Each one of so many is put off after its dot. */
const DEFERS_EVERY = 5;

export const SHAKY_SCRIPT: NonNullable<SinkOptions['script']> = {
  rcpt: (line) => {
    if (/<nobody@/i.test(line)) return '550 5.1.1 nobody of that name';
    return /<full@/i.test(line) ? '452 4.2.2 mailbox full' : null;
  },
  dot: (_line, nth) => ({
    act: 'delay',
    ms: THINKS_MS,
    next: nth % DEFERS_EVERY === DEFERS_EVERY - 1 ? '451 4.3.0 not now' : '250 2.0.0 ok',
  }),
};

export type Shifts = Readonly<{ host: string; port: number; upMs: number; downMs: number }>;

/** Up, down, up … for as long as the process lives. Each shift is a new server, which remembers nothing of the last. */
export async function workInShifts({ host, port, upMs, downMs }: Shifts): Promise<never> {
  for (;;) {
    const sink = await Sink.start({ host, port, script: SHAKY_SCRIPT });
    await sleep(upMs);
    await sink.close();
    await sleep(downMs);
  }
}
