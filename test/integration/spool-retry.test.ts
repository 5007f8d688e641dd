// When the queue tries again: once in each round, whatever the others of a message's recipients meet with.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';
import { putInto, queuedMessage, spoolDirectory } from '../support/spool.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function directory(): Promise<string> {
  const { directory, remove } = await spoolDirectory();
  closers.push(remove);
  return directory;
}

/** On a directory with messages in it; a.example is at the sink, b.example the sender's. */
async function start(spoolDir: string, next: SinkOptions, retrySchedule: string, maxQueueAge = '5d') {
  const sinks = [await Sink.start(next), await Sink.start()];
  const route = [`a.example=${sinks[0]!.url}`, `b.example=${sinks[1]!.url}`];
  const proxy = await startProxyOnly({ mode: 'spool', spoolDir, retrySchedule, maxQueueAge, route }, sinks);
  closers.push(() => proxy.close());
  return { proxy, next: sinks[0]!, home: sinks[1]! };
}

function attemptsAt(proxy: TestProxy, address: string): number {
  return proxy.log.filter(
    ({ event, recipients }) => event === 'attempt' && JSON.stringify(recipients).includes(`"${address}"`),
  ).length;
}

it('one attempt a round for a message of which another recipient has no route', async () => {
  const spoolDir = await directory();
  const count = 30;
  for (let at = 0; at < count; at++)
    putInto(
      spoolDir,
      queuedMessage(`m.${at}`, 'MAIL FROM:<s@b.example>', [
        `RCPT TO:<u${at}@a.example>`,
        `RCPT TO:<v${at}@nowhere.example>`,
      ]),
    );
  const { proxy } = await start(spoolDir, { script: { rcpt: '451 4.7.1 greylisted' } }, '5m');
  await until(() =>
    Array.from({ length: count }).every((_, at) => attemptsAt(proxy, `u${at}@a.example`) > 0),
  );
  const timers = process.getActiveResourcesInfo().filter((resource) => resource === 'Timeout').length;
  await sleep(300);
  for (let at = 0; at < count; at++) expect(attemptsAt(proxy, `u${at}@a.example`), `${at}`).toBe(1);
  // One for each that waits, and a few of sessions and of the test itself.
  expect(timers).toBeLessThan(count + 25);
});

it('tells the sender once that a message still waits, if that was asked for', async () => {
  const spoolDir = await directory();
  const queuedAt = Date.now() - 5 * 3_600_000;
  const rcpts = ['RCPT TO:<u@a.example> NOTIFY=DELAY,FAILURE', 'RCPT TO:<v@a.example>'];
  putInto(spoolDir, queuedMessage('old', 'MAIL FROM:<s@b.example>', rcpts, { queuedAt }));
  putInto(spoolDir, queuedMessage('new', 'MAIL FROM:<s@b.example>', rcpts));
  const { proxy, home } = await start(spoolDir, { script: { rcpt: '451 4.7.1 greylisted' } }, '50ms');
  await until(() => attemptsAt(proxy, 'u@a.example') >= 8);
  await until(() => home.messages.length > 0);
  expect(home.messages).toHaveLength(1);
  const report = home.messages[0]!.body.toString();
  expect(report).toMatch(/^Action: delayed\r$/m);
  expect(report).toMatch(/^Will-Retry-Until: /m);
  expect(report).toContain('Final-Recipient: rfc822; u@a.example');
  expect(report).not.toContain('v@a.example');
  expect(await proxy.metric('cutthrough_dsn_total{kind="delayed"}')).toBe(1);
  expect(await proxy.metric('cutthrough_queue_messages')).toBe(2);
});

it('waits for a next hop that is down without counting attempts that were none', async () => {
  const spoolDir = await directory();
  for (let at = 0; at < 5; at++)
    putInto(
      spoolDir,
      queuedMessage(`m.${at}`, 'MAIL FROM:<s@b.example>', ['RCPT TO:<u@a.example>'], { attempts: 0 }),
    );
  const { proxy, next } = await start(spoolDir, { script: { greeting: '421 4.3.2 not now' } }, '200ms');
  await until(() => next.sessions.length >= 6);
  const attempts = proxy.log.filter(({ event }) => event === 'attempt').length;
  // Each connection is a probe by one message; the retries of claim 21 belong to the time before the 250.
  expect(Math.abs(next.sessions.length - attempts)).toBeLessThan(2);
});

it('counts what it sends from the buffer and from the queue', async () => {
  const spoolDir = await directory();
  putInto(spoolDir, queuedMessage('m', 'MAIL FROM:<s@b.example>', ['RCPT TO:<u@a.example>']));
  const { proxy, next } = await start(spoolDir, {}, '200ms');
  await until(() => next.messages.length === 1);
  const client = await proxy.client();
  await client.send('s@b.example', ['w@a.example'], 'Subject: x\r\n\r\nhello\r\n');
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  const octets = next.messages.reduce((sum, { body }) => sum + body.length, 0);
  expect(await proxy.metric('cutthrough_message_bytes_total{direction="out"}')).toBe(octets);
});
