// The queue as a whole: a next hop that is down costs one probe and holds nobody else up, one that is there gets no more
// than its share of deliveries at a time, and `cutthrough queue` reaches it all, whether a proxy runs or not.
import { readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import { runQueueCommand } from '../../src/commands/queue.ts';
import { type Config, parseConfig } from '../../src/config.ts';
import { connectToHolder } from '../../src/directory-lock.ts';
import { askHolder, type QueueAnswer, type QueueRequest } from '../../src/spool/control.ts';
import { startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const BODY = 'Subject: x\r\n\r\nhello\r\n';

function filesIn(directory: string): string[] {
  return readdirSync(directory).filter((name) => /\.(eml|json|tmp)$/.test(name));
}

/** Refuses connections by its greeting until it is `up`. */
class Switch {
  up = false;
  readonly options: SinkOptions = {
    script: { greeting: () => (this.up ? null : '421 4.3.2 not now') },
  };
}

/** A directory and sinks for @a.example, @b.example …, which outlive each proxy that is served on them. */
async function ground(sinkOptions: readonly SinkOptions[], options: Options = {}) {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-spool-'));
  closers.push(() => rm(directory, { recursive: true, force: true }));
  const sinks = await Promise.all(sinkOptions.map((each) => Sink.start(each)));
  closers.push(() => Promise.all(sinks.map((sink) => sink.close())));
  const serve = async () => {
    const proxy = await startProxyOnly({
      mode: 'spool',
      spoolDir: directory,
      retrySchedule: '200ms',
      disableFastPathWhen: 'manual',
      connectRetries: 0,
      route: sinks.map((sink, at) => `${'abc'[at]}.example=${sink.url}`),
      ...options,
    });
    closers.push(() => proxy.close());
    return proxy;
  };
  return { directory, sinks, serve };
}

/** Everything to disk first, so that all deliveries are the queue's. */
async function toDiskFirst(proxy: TestProxy): Promise<void> {
  await fetch(`${proxy.httpUrl}/fast-path`, { method: 'POST', body: '{"enabled":false}' });
}

/** Over a few sessions, as many messages come. @returns the ids, in the order of the recipients */
async function sendAll(proxy: TestProxy, recipients: readonly string[]): Promise<string[]> {
  const ids = recipients.map(() => '');
  const rest = recipients.entries();
  const session = async () => {
    const client = await proxy.client();
    for (const [at, to] of rest) {
      const reply = await client.send('s@src.example', [to], BODY);
      expect(reply).toMatch(/^250 2\.0\.0 queued as/);
      ids[at] = reply.split(' ').at(-1)!;
    }
  };
  await Promise.all(Array.from({ length: Math.ceil(recipients.length / 10) }, session));
  return ids;
}

async function untilQueueEmpty(proxy: TestProxy, directory: string): Promise<void> {
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  await until(() => filesIn(directory).length === 0);
}

function numbered(count: number, domain: string): string[] {
  return Array.from({ length: count }, (_, at) => `${at}@${domain}`);
}

async function ask(directory: string, request: QueueRequest): Promise<QueueAnswer> {
  const socket = await connectToHolder(directory);
  return await askHolder(socket!, request);
}

function configOf(directory: string): Config {
  const parsed = parseConfig({ file: { spoolDir: directory } });
  if (!parsed.ok) throw new Error(parsed.errors.join('; '));
  return parsed.config;
}

describe('next hops', () => {
  it('50 messages for one that is down: a probe at a time; others flow; then each is delivered once', async () => {
    const down = new Switch();
    const { directory, sinks, serve } = await ground([down.options, {}]);
    const [a, b] = sinks;
    const proxy = await serve();
    await toDiskFirst(proxy);
    const began = performance.now();
    await sendAll(proxy, numbered(50, 'a.example'));
    await sendAll(proxy, numbered(10, 'b.example'));
    await until(() => b!.messages.length === 10);
    await sleep(400);
    // By the schedule less its jitter, and the one at the start.
    expect(a!.connections).toBeLessThanOrEqual(1 + Math.ceil((performance.now() - began) / 180));
    expect(a!.connections).toBeGreaterThan(1);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(50);
    down.up = true;
    await untilQueueEmpty(proxy, directory);
    const got = a!.messages.flatMap(({ rcpts }) => rcpts);
    expect(got).toHaveLength(50);
    expect(new Set(got).size).toBe(50);
    expect(b!.messages).toHaveLength(10);
  });

  it('at most ten deliveries to one at a time, and more than one', async () => {
    let open = 0;
    let most = 0;
    const script: SinkOptions['script'] = {
      data: () => {
        open++;
        most = Math.max(most, open);
        return null;
      },
      dot: () => {
        setTimeout(() => open--, 20);
        return { act: 'delay', ms: 20, next: '250 2.0.0 ok' };
      },
    };
    const down = new Switch();
    const { directory, sinks, serve } = await ground([{ script: { ...down.options.script, ...script } }]);
    const proxy = await serve();
    await toDiskFirst(proxy);
    await sendAll(proxy, numbered(40, 'a.example'));
    down.up = true;
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(40);
    expect(most).toBeLessThanOrEqual(10);
    expect(most).toBeGreaterThan(3);
  });

  it('one that takes connections and says nothing holds nobody else up', async () => {
    const { directory, sinks, serve } = await ground([{ script: { greeting: { act: 'stall' } } }, {}], {
      greetingTimeout: '10s',
    });
    const proxy = await serve();
    await toDiskFirst(proxy);
    await sendAll(proxy, [...numbered(20, 'a.example'), ...numbered(20, 'b.example')]);
    await until(() => sinks[1]!.messages.length === 20);
    expect(sinks[0]!.connections).toBe(1);
    await until(() => filesIn(directory).length === 40);
  });

  it('of two recipients at two next hops the one that was deferred is tried again', async () => {
    const dot = (_: string, nth: number) => (nth < 2 ? '451 4.3.0 later' : null);
    const { directory, sinks, serve } = await ground([{}, { script: { dot } }], { retrySchedule: '40ms' });
    const proxy = await serve();
    await toDiskFirst(proxy);
    const client = await proxy.client();
    const reply = await client.send('s@src.example', ['u@a.example', 'v@b.example'], BODY);
    expect(reply).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
    expect(sinks[0]!.events.filter(({ what }) => what === 'DATA')).toHaveLength(1);
    expect(sinks[1]!.events.filter(({ what }) => what === 'DATA')).toHaveLength(3);
  });

  it('what was delivered before a stop is not delivered again after it', async () => {
    const down = new Switch();
    const { directory, sinks, serve } = await ground([{}, down.options]);
    const first = await serve();
    await toDiskFirst(first);
    const client = await first.client();
    await client.send('s@src.example', ['u@a.example', 'v@b.example'], BODY);
    await until(() => sinks[0]!.messages.length === 1 && sinks[1]!.connections > 0);
    await first.close();
    expect(filesIn(directory)).toHaveLength(2);
    down.up = true;
    const second = await serve();
    await untilQueueEmpty(second, directory);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
  });

  it('what is at its dot when the proxy stops is waited for, and then is done', async () => {
    const dot = { act: 'delay', ms: 100, next: '250 2.0.0 ok' } as const;
    const { directory, sinks, serve } = await ground([{ script: { dot } }]);
    const first = await serve();
    await toDiskFirst(first);
    await sendAll(first, ['1@a.example']);
    await until(() => sinks[0]!.events.some(({ what }) => what === 'dot'));
    await first.close();
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(filesIn(directory)).toEqual([]);
  });
});

describe('the queue command', () => {
  const HOUR: Options = { retrySchedule: '1h' };

  it('lists, shows, retries and removes in a running proxy', async () => {
    const down = new Switch();
    const { directory, sinks, serve } = await ground([down.options], HOUR);
    const proxy = await serve();
    const ids = await sendAll(proxy, ['1@a.example', '2@a.example', '3@a.example']);
    const [one, two, three] = ids as [string, string, string];
    const listed = await ask(directory, { command: 'list' });
    expect(listed).toMatchObject({
      messages: ids.map((id) => ({ id, attempts: 1, domains: ['a.example'], state: 'waiting' })),
    });
    const shown = await ask(directory, { command: 'show', id: two });
    expect(shown).toMatchObject({
      message: { id: two, recipients: [{ mailbox: { address: '2@a.example' }, state: 'pending' }] },
    });
    expect(await ask(directory, { command: 'show', id: 'nosuch' })).toEqual({ error: 'no such message' });

    const dry = await ask(directory, { command: 'remove', ids: [one, 'nosuch'], dryRun: true });
    expect(dry).toEqual({ done: [one], failed: [{ id: 'nosuch', reason: 'no such message' }] });
    expect(filesIn(directory)).toHaveLength(6);
    expect(await ask(directory, { command: 'remove', ids: [one], dryRun: false })).toEqual({
      done: [one],
      failed: [],
    });
    expect(filesIn(directory).some((name) => name.startsWith(`${one}.`))).toBe(false);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(2);

    down.up = true;
    expect(await ask(directory, { command: 'retry', ids: [two, one] })).toMatchObject({
      done: [two],
      failed: [{ id: one }],
    });
    await until(() => sinks[0]!.messages.length === 1);
    expect(sinks[0]!.messages[0]!.rcpts).toEqual(['RCPT TO:<2@a.example>']);
    expect(await ask(directory, { command: 'retry', ids: 'all' })).toMatchObject({ failed: [] });
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages.flatMap(({ rcpts }) => rcpts)).toEqual([
      'RCPT TO:<2@a.example>',
      'RCPT TO:<3@a.example>',
    ]);
    expect(await ask(directory, { command: 'show', id: three })).toEqual({ error: 'no such message' });
  });

  it('a retry by hand does not wait for a next hop that counts as down', async () => {
    const down = new Switch();
    const { directory, sinks, serve } = await ground([down.options], HOUR);
    const proxy = await serve();
    await toDiskFirst(proxy);
    await sendAll(proxy, ['1@a.example', '2@a.example']);
    await until(async () => {
      const answer = await ask(directory, { command: 'list' });
      return 'messages' in answer && answer.messages.every(({ state }) => state === 'waiting');
    });
    expect(sinks[0]!.connections).toBe(1);
    down.up = true;
    await ask(directory, { command: 'retry', ids: 'all' });
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(2);
  });

  it('what is being delivered is not removed', async () => {
    const { directory, sinks, serve } = await ground(
      [{ script: { dot: { act: 'delay', ms: 300, next: '250 2.0.0 ok' } } }],
      HOUR,
    );
    const proxy = await serve();
    await toDiskFirst(proxy);
    const [id] = (await sendAll(proxy, ['1@a.example'])) as [string];
    await until(() => sinks[0]!.events.some(({ what }) => what === 'dot'));
    expect(await ask(directory, { command: 'list' })).toMatchObject({ messages: [{ id, state: 'active' }] });
    expect(await ask(directory, { command: 'remove', ids: [id], dryRun: false })).toMatchObject({
      done: [],
      failed: [{ id }],
    });
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
  });

  it('nonsense gets an error, and does no harm', async () => {
    const { directory, serve } = await ground([new Switch().options], HOUR);
    const proxy = await serve();
    await sendAll(proxy, ['1@a.example']);
    for (const request of [{ command: 'explode' }, { command: 'show', id: '../../etc/passwd' }]) {
      const answer = await ask(directory, request as QueueRequest);
      expect(answer).toHaveProperty('error');
    }
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(1);
  });

  it('works on the directory itself when no proxy runs', async () => {
    const down = new Switch();
    const { directory, sinks, serve } = await ground([down.options], HOUR);
    const first = await serve();
    const [one, two, three] = (await sendAll(first, ['1@a.example', '2@a.example', '3@a.example'])) as [
      string,
      string,
      string,
    ];
    await first.close();
    const config = configOf(directory);
    const list = await runQueueCommand(config, { command: 'list' });
    expect(list.failures).toEqual([]);
    expect(list.json).toHaveLength(3);
    expect(list.lines).toHaveLength(4);
    for (const id of [one, two, three]) expect(list.lines.join('\n')).toContain(id);
    const shown = await runQueueCommand(config, { command: 'show', id: one });
    expect(shown.lines.join('\n')).toMatch(
      /pending +<1@a\.example> at smtp:\/\/127\.0\.0\.1:\d+: 451 4\.4\.1 /,
    );
    await expect(runQueueCommand(config, { command: 'show', id: 'nosuch' })).rejects.toThrow(
      /^queue: nosuch: no such message in --spool-dir .*queue list/,
    );
    const dry = await runQueueCommand(config, { command: 'remove', ids: [one], dryRun: true });
    expect(dry).toMatchObject({ failures: [], lines: [`${one}: would be removed`] });
    expect(filesIn(directory)).toHaveLength(6);
    const removed = await runQueueCommand(config, { command: 'remove', ids: [one, 'nosuch'], dryRun: false });
    expect(removed.lines).toEqual([`${one}: removed`]);
    expect(removed.failures).toEqual(['queue: nosuch: no such message']);
    expect(filesIn(directory)).toHaveLength(4);
    expect(await runQueueCommand(config, { command: 'retry', ids: [two] })).toMatchObject({ failures: [] });
    down.up = true;
    const second = await serve();
    await until(() => sinks[0]!.messages.length === 1);
    await sleep(60);
    // The third one waits for its hour.
    expect(sinks[0]!.messages.map(({ rcpts }) => rcpts)).toEqual([['RCPT TO:<2@a.example>']]);
    // The command finds the proxy that runs now.
    const running = await runQueueCommand(config, { command: 'list' });
    expect(running.json).toMatchObject([{ id: three, state: 'waiting' }]);
    await second.close();
    const rest = await runQueueCommand(config, { command: 'remove', ids: [three], dryRun: false });
    expect(rest.failures).toEqual([]);
    expect((await runQueueCommand(config, { command: 'list' })).lines).toEqual(['the queue is empty']);
  });

  it('says so where there is no spool', async () => {
    await expect(
      runQueueCommand(configOf(join(tmpdir(), 'cutthrough-none', 'spool')), { command: 'list' }),
    ).rejects.toThrow(/there is no spool at/);
  });
});
