// What the queue does when its own disk fails it; everything else of it is tested on real sockets.
import { setTimeout as sleep } from 'node:timers/promises';
import pino from 'pino';
import { expect, it } from 'vitest';
import { Queue, type QueueDeps } from '../../src/spool/queue.ts';
import type { SpoolStore } from '../../src/spool/store.ts';
import { until } from '../support/proxy.ts';
import { QUEUED_BODY, queuedMessage } from '../support/spool.ts';

const DAY_MS = 86_400_000;

/** A queue over a store that has one message, too old already; `fails` may make any of its steps fail. */
function expiredMessage(fails: Partial<Record<'load' | 'commit', Error>>) {
  const message = queuedMessage('m.1', 'MAIL FROM:<s@b.example>', ['RCPT TO:<u@a.example>'], {
    queuedAt: Date.now() - 6 * DAY_MS,
  });
  const calls = { load: 0, commit: 0, remove: 0 };
  const step = (name: 'load' | 'commit') => {
    calls[name]++;
    return fails[name] === undefined ? null : Promise.reject(fails[name]);
  };
  const store = {
    temporaryPath: () => '/nowhere/x',
    load: () => step('load') ?? Promise.resolve(message),
    openBody: () =>
      Promise.resolve({
        read: async function* () {
          yield QUEUED_BODY;
        },
        close: async () => {},
      }),
    commit: () => step('commit') ?? Promise.resolve(message),
    update: () => Promise.resolve(),
    remove: async () => void calls.remove++,
  };
  const deps = {
    store: store as unknown as SpoolStore,
    config: () => ({ hostname: 'proxy.example', retryScheduleMs: [60_000], maxQueueAgeMs: 5 * DAY_MS }),
    newId: () => 'd.1',
    now: Date.now,
    monotonic: () => performance.now(),
    random: Math.random,
    log: pino({ level: 'silent' }),
    onAttempt: () => {},
    onDsn: () => {},
  };
  const queue = new Queue(deps as unknown as QueueDeps);
  queue.recover([{ ...message, domains: ['a.example'] }]);
  return { queue, calls, fails };
}

it('tries a notification that can not be written again by schedule, not at once', async () => {
  const noSpace = Object.assign(new Error('no space left'), { code: 'ENOSPC' });
  const { queue, calls } = expiredMessage({ commit: noSpace });
  await until(() => calls.commit === 1 && queue.list()[0]?.state === 'waiting');
  // Time enough for one that does not wait for its schedule.
  await sleep(150);
  expect(calls.commit).toBe(1);
  expect(queue.list()).toMatchObject([{ id: 'm.1', state: 'waiting' }]);
  await queue.stop(0);
});

it('comes back to a message whose envelope could not be read for now', async () => {
  const tooMany = Object.assign(new Error('too many open files'), { code: 'EMFILE' });
  const { queue, calls } = expiredMessage({ load: tooMany });
  await until(() => calls.load === 1 && queue.list()[0]?.state === 'waiting');
  await sleep(150);
  expect(calls.load).toBe(1);
  expect(queue.list()).toMatchObject([{ id: 'm.1', state: 'waiting' }]);
  await queue.stop(0);
});
