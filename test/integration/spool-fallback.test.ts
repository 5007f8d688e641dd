// Cut-through with something to fall back on: what can be cut through is, and the spool takes the rest. Also what
// switches between the two (claim 10), and `--mixed spool`, which takes over behind the dot alone.
import { readdirSync, watch } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import type { Client } from '../support/client.ts';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';
import type { Act, SinkOptions } from '../support/sink.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const SMALL = 'Subject: x\r\n\r\nhello\r\n..dot\r\n';
const BOTH = ['u@a.example', 'v@b.example'];

function filesIn(directory: string): string[] {
  return readdirSync(directory).filter((name) => /\.(eml|json|tmp)$/.test(name));
}

function watched(directory: string): Set<string> {
  const names = new Set<string>();
  const watcher = watch(directory, (_, name) => {
    if (name !== null && /\.(eml|json|tmp)$/.test(name)) names.add(name);
  });
  closers.push(() => watcher.close());
  return names;
}

async function start(sinks: readonly SinkOptions[], options: Options) {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-spool-'));
  closers.push(() => rm(directory, { recursive: true, force: true }));
  const proxy = await startProxy(sinks, {
    spoolDir: directory,
    memoryThreshold: '4KiB',
    retrySchedule: '50ms',
    disableFastPathWhen: 'manual',
    connectRetries: 0,
    ...options,
  });
  closers.push(() => proxy.close());
  return { proxy, directory, sinks: proxy.sinks };
}

/** A next hop that refuses connections by its greeting until it is `up`. */
class Switch {
  up = false;
  readonly options: SinkOptions = {
    script: { greeting: () => (this.up ? null : '421 4.3.2 not now') },
  };
}

/** An upstream that sends the message, and resets its connection while the first next hop's answer is waited for. */
async function sendAndVanish(proxy: TestProxy, recipients: string[], message: string): Promise<void> {
  const client = await proxy.client();
  expect(await client.envelope('s@src.example', recipients)).toMatch(/^354/);
  client.write(`${message}.\r\n`);
  await until(() => proxy.sinks[0]!.sessions[0]?.sawDot ?? false);
  client.reset();
  await until(() => proxy.transactions().length === 1);
}

/** The first time `act`, then as it should be. */
const once = (act: Act) => (_: string, nth: number) => (nth === 0 ? act : null);
const atSecond = (act: Act) => (_: string, nth: number) => (nth === 1 ? act : null);

async function untilQueueEmpty(proxy: TestProxy, directory: string): Promise<void> {
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  await until(() => filesIn(directory).length === 0);
}

async function post(proxy: TestProxy, path: string, body: unknown): Promise<number> {
  const response = await fetch(proxy.httpUrl + path, { method: 'POST', body: JSON.stringify(body) });
  await response.text();
  return response.status;
}

/** Both recipients, and the reply to DATA. */
async function begin(client: Client, from = 's@src.example'): Promise<string> {
  return await client.envelope(from, BOTH);
}

describe.each(['spool', 'fast-path'] as const)('--fallback %s', (fallback) => {
  const startBoth = (sinks: readonly SinkOptions[], more: Options = {}) =>
    start(sinks, { fallback, ...more });

  it('all accepted: cut through, with no file', async () => {
    const { proxy, directory, sinks } = await startBoth([{}, {}]);
    const names = watched(directory);
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, SMALL)).toMatch(/^250 2\.0\.0 message delivered/);
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250/);
    await sleep(30);
    expect([...names]).toEqual([]);
    expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([2, 1]);
    expect(proxy.transactions()).toMatchObject([{ result: 'delivered' }, { result: 'delivered' }]);
  });

  it('an unreachable next hop gets it later; the other one while it comes in', async () => {
    const down = new Switch();
    const { proxy, directory, sinks } = await startBoth([{}, down.options]);
    const [a, b] = sinks;
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250 2\.1\.5 /);
    expect(await client.command('RCPT TO:<v@b.example>')).toMatch(/^250 2\.1\.5 /);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write(SMALL);
    await until(() => (a!.sessions[0]?.bodyOctets ?? 0) > SMALL.length);
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^250 2\.0\.0 queued as/);
    expect(a!.messages).toHaveLength(1);
    expect(filesIn(directory)).toHaveLength(2);
    // The log and the counters say what became of whom, not what RCPT was told.
    expect(proxy.transactions()[0]!.recipients).toMatchObject([
      { address: 'u@a.example', outcome: 'accepted', reply: 250 },
      { address: 'v@b.example', outcome: 'deferred', reply: 451 },
    ]);
    down.up = true;
    await untilQueueEmpty(proxy, directory);
    await sleep(80);
    expect(a!.messages).toHaveLength(1);
    expect(b!.messages.map(({ rcpts }) => rcpts)).toEqual([['RCPT TO:<v@b.example>']]);
    expect(b!.messages[0]!.body.equals(a!.messages[0]!.body)).toBe(true);
  });

  it('nobody reachable: 250, and delivered later', async () => {
    const down = new Switch();
    const { proxy, directory, sinks } = await startBoth([down.options]);
    const client = await proxy.client();
    const body = `${SMALL}${'x'.repeat(70).concat('\r\n').repeat(500)}`;
    expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(/^250 2\.0\.0 queued as/);
    down.up = true;
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(sinks[0]!.messages[0]!.body.toString()).toMatch(/^Received: /);
    expect(sinks[0]!.messages[0]!.body.toString().endsWith(`\r\n${body}`)).toBe(true);
  });

  it('a leg lost in mid-body: the other one is not disturbed, the lost one gets it from the spool', async () => {
    const { proxy, directory, sinks } = await startBoth([{}, { script: { body: once({ act: 'rst' }) } }]);
    const [a, b] = sinks;
    const client = await proxy.client();
    expect(await begin(client)).toMatch(/^354/);
    client.write(SMALL);
    await until(() => b!.sessions[0]?.closed === true);
    await sleep(20);
    client.write(SMALL);
    await until(() => (a!.sessions[0]?.bodyOctets ?? 0) > 2 * SMALL.length);
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^250 2\.0\.0 queued as/);
    expect(a!.messages).toHaveLength(1);
    await untilQueueEmpty(proxy, directory);
    expect(a!.messages).toHaveLength(1);
    expect(a!.connections).toBe(1);
    expect(b!.messages).toHaveLength(1);
    expect(b!.messages[0]!.body.equals(a!.messages[0]!.body)).toBe(true);
    expect(b!.messages[0]!.body.toString().endsWith(SMALL + SMALL)).toBe(true);
  });

  it('the only leg lost in mid-body: the spool has all of it', async () => {
    const { proxy, directory, sinks } = await startBoth([{ script: { body: once({ act: 'rst' }) } }]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write(SMALL);
    await until(() => sinks[0]!.sessions[0]?.closed === true);
    client.write(`${SMALL}.\r\n`);
    expect(await client.reply()).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(sinks[0]!.messages[0]!.body.toString().endsWith(SMALL + SMALL)).toBe(true);
  });

  it('a leg lost between two RCPTs: both recipients get it from the spool', async () => {
    const rcpt = (_: string, nth: number): Act | null => (nth === 1 ? { act: 'rst' } : null);
    const { proxy, directory, sinks } = await startBoth([{ script: { rcpt } }]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example', 'w@a.example'], SMALL)).toMatch(/queued as/);
    await untilQueueEmpty(proxy, directory);
    const got = sinks[0]!.messages.map(({ rcpts }) => rcpts.toSorted());
    expect(got).toEqual([['RCPT TO:<u@a.example>', 'RCPT TO:<w@a.example>']]);
  });

  it('a next hop that says nothing until --rcpt-deadline: 250, and delivered later', async () => {
    const { proxy, directory, sinks } = await startBoth([{ script: { greeting: once({ act: 'stall' }) } }], {
      rcptDeadline: '100ms',
      greetingTimeout: '3s',
    });
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
  });

  it.each<[string, Act]>([
    ['4xx', '451 4.3.0 later'],
    ['a lost connection', { act: 'rst' }],
    ['silence', { act: 'stall' }],
  ])('%s to the dot of one of two: tried again there alone', async (_, act) => {
    const { proxy, directory, sinks } = await startBoth([{}, { script: { dot: once(act) } }], {
      ackTimeout: '150ms',
    });
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
    expect(sinks[0]!.events.filter(({ what }) => what === 'DATA')).toHaveLength(1);
  });

  it('4xx to the dot of the only one: tried again', async () => {
    const { proxy, directory, sinks } = await startBoth([{ script: { dot: once('451 4.3.0 later') } }]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
  });

  it('5xx to the dot of one of two: the sender is told of that one', async () => {
    const { proxy, directory, sinks } = await startBoth([{}, { script: { dot: '554 5.6.0 never' } }, {}]);
    const client = await proxy.client();
    expect(await client.send('s@c.example', BOTH, SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    const [a, b, c] = sinks;
    expect([a!, b!, c!].map(({ messages }) => messages.length)).toEqual([1, 0, 1]);
    const { mail, body } = c!.messages[0]!;
    expect(mail).toMatch(/^MAIL FROM:<>/);
    expect(body.toString()).toMatch(/^Content-Type: multipart\/report;/im);
    expect(body.toString()).toMatch(/^Final-Recipient: rfc822; ?v@b\.example/im);
    expect(body.toString()).not.toContain('u@a.example');
  });

  it('5xx to the dot of the only one, or of both: theirs is ours, and nothing is kept', async () => {
    const never = { script: { dot: '554 5.6.0 never' } };
    const { proxy, directory, sinks } = await startBoth([never, never, {}]);
    const names = watched(directory);
    const client = await proxy.client();
    expect(await client.send('s@c.example', ['u@a.example'], SMALL)).toBe('554 5.6.0 never');
    expect(await client.send('s@c.example', BOTH, SMALL)).toBe('554 5.6.0 never');
    await sleep(60);
    expect([...names]).toEqual([]);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(0);
    expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    expect(sinks[2]!.connections).toBe(0);
  });

  it.each([
    ['rcpt', '450 4.2.1 greylisted'],
    ['rcpt', '550 5.1.1 unknown'],
    ['mail', '450 4.7.1 greylisted'],
    ['mail', '550 5.7.1 denied'],
  ] as const)('to %s a next hop that is there says "%s", and so do we', async (phase, said) => {
    for (const extensions of [['PIPELINING'], []]) {
      const { proxy } = await startBoth([{ extensions, script: { [phase]: said } }]);
      const client = await proxy.client();
      await client.command('MAIL FROM:<s@src.example>');
      expect(await client.command('RCPT TO:<u@a.example>')).toBe(said);
      expect(await client.command('RCPT TO:<w@a.example>')).toBe(said);
      expect(await client.command('DATA')).toMatch(/^554 5\.5\.1 /);
    }
  });

  it.each<[string, Act]>([
    ['4xx', '451 4.3.0 later'],
    ['a lost connection', { act: 'rst' }],
  ])('%s to DATA of one of two: the other one gets it now, that one later', async (_, act) => {
    const { proxy, directory, sinks } = await startBoth([{}, { script: { data: once(act) } }]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    expect(sinks[0]!.messages).toHaveLength(1);
    await untilQueueEmpty(proxy, directory);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
  });

  it('5xx to DATA of all: no body is asked for', async () => {
    const never = { script: { data: '554 5.5.0 no' } };
    const { proxy, directory } = await startBoth([never, never]);
    const client = await proxy.client();
    expect(await begin(client)).toBe('554 5.5.0 no');
    expect(filesIn(directory)).toEqual([]);
  });

  it('the upstream goes before the dot: nobody has it, nothing is kept', async () => {
    const { proxy, directory, sinks } = await startBoth([{}, new Switch().options]);
    const client = await proxy.client();
    expect(await begin(client)).toMatch(/^354/);
    client.write('x'.repeat(70).concat('\r\n').repeat(500));
    await until(() => filesIn(directory).length > 0);
    client.destroy();
    await until(() => proxy.transactions().length > 0);
    await until(() => filesIn(directory).length === 0);
    expect(proxy.transactions()).toMatchObject([{ result: 'aborted' }]);
    expect(sinks[0]!.messages).toEqual([]);
    expect(sinks[0]!.sessions[0]!.sawDot).toBe(false);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(0);
    expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
  });

  it('a bare LF is refused although a leg is out: nothing is kept', async () => {
    const { proxy, directory, sinks } = await startBoth([{}, new Switch().options]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, 'Subject: x\r\n\r\nhello\nthere\r\n')).toMatch(
      /^554 5\.6\.0 /,
    );
    expect(sinks[0]!.messages).toEqual([]);
    expect(filesIn(directory)).toEqual([]);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(0);
  });

  it('a null sender is told nothing', async () => {
    const { proxy, directory, sinks } = await startBoth([{}, { script: { dot: '554 5.6.0 never' } }]);
    const client = await proxy.client();
    expect(await client.send('', BOTH, SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(proxy.log.filter(({ event }) => event === 'dsn' || event === 'dsn-failed')).toEqual([]);
  });

  it('no room on the disk: cut through all the same, 452 to what would need the disk', async () => {
    const { proxy, sinks } = await startBoth([{}, new Switch().options], { spoolMinFree: '8000GiB' });
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250/);
    expect(await begin(client)).toMatch(/^452 4\.3\.1 /);
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(await proxy.metric('cutthrough_spool_failures_total{reason="full"}')).toBe(2);
  });

  it('the fast path switched off: to disk first; on again: cut through', async () => {
    const greeting = (_: string, nth: number): Act | null =>
      nth === 0 ? { act: 'delay', ms: 200, next: '220 sink.example' } : null;
    const { proxy, directory, sinks } = await startBoth([{ script: { greeting } }]);
    expect(await post(proxy, '/fast-path', { enabled: false })).toBe(200);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    expect(sinks[0]!.messages).toHaveLength(0);
    expect(filesIn(directory)).toHaveLength(2);
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(await post(proxy, '/fast-path', { enabled: true })).toBe(200);
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toBe('250 2.0.0 queued');
  });
});

describe('--mixed spool without a fallback', () => {
  const startMixed = (sinks: readonly SinkOptions[], more: Options = {}) =>
    start(sinks, { mixed: 'spool', ...more });

  it.each<[string, Act]>([
    ['4xx', '451 4.3.0 later'],
    ['a lost connection', { act: 'rst' }],
  ])('some have it, others said %s: 250, and only those are tried again', async (_, act) => {
    const { proxy, directory, sinks } = await startMixed([{}, { script: { dot: once(act) } }]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
    expect(sinks[0]!.events.filter(({ what }) => what === 'DATA')).toHaveLength(1);
  });

  it('some have it, another refuses for good: 250, and the sender is told', async () => {
    const { proxy, directory, sinks } = await startMixed([{}, { script: { dot: '554 5.6.0 never' } }, {}]);
    const client = await proxy.client();
    expect(await client.send('s@c.example', BOTH, SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    await untilQueueEmpty(proxy, directory);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 0, 1]);
  });

  it.each([
    ['451 4.3.0 later', '451 4.3.0 later', /^451 4\.3\.0 later$/],
    ['554 5.6.0 never', '451 4.3.0 later', /^451 4\.3\.0 later$/],
    ['554 5.6.0 never', '554 5.6.0 never', /^554 5\.6\.0 never$/],
  ])('nobody has it (%s, %s): their reply, nothing kept', async (first, second, reply) => {
    const { proxy, directory } = await startMixed([{ script: { dot: first } }, { script: { dot: second } }]);
    const names = watched(directory);
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, SMALL)).toMatch(reply);
    await sleep(30);
    expect([...names]).toEqual([]);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(0);
    expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
  });

  it('a leg lost before the dot: 451, and nobody has it', async () => {
    const { proxy, directory, sinks } = await startMixed([{}, { script: { body: { act: 'rst' } } }]);
    const client = await proxy.client();
    expect(await begin(client)).toMatch(/^354/);
    client.write(SMALL);
    await until(() => sinks[1]!.sessions[0]?.closed === true);
    await sleep(20);
    client.write(`${SMALL}.\r\n`);
    expect(await client.reply()).toMatch(/^451 4\.4\.2 /);
    expect(sinks.map(({ messages }) => messages.length)).toEqual([0, 0]);
    expect(sinks[0]!.sessions[0]!.sawDot).toBe(false);
    expect(filesIn(directory)).toEqual([]);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(0);
  });

  it('an unreachable next hop is the upstream’s to try again', async () => {
    const { proxy } = await startMixed([new Switch().options]);
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 /);
  });
});

describe('switches', () => {
  const slowGreeting = (_: string, nth: number): Act | null =>
    nth === 0 ? { act: 'delay', ms: 200, next: '220 sink.example' } : null;

  it.each(['spool', 'fast-path'] as const)(
    'mode %s: off, to disk before delivery; on again',
    async (mode) => {
      const { proxy, directory, sinks } = await start([{ script: { greeting: slowGreeting } }], { mode });
      await post(proxy, '/fast-path', { enabled: false });
      expect(await proxy.metric('cutthrough_fast_path_enabled')).toBe(0);
      const client = await proxy.client();
      expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250 2\.0\.0 queued as/);
      expect(sinks[0]!.messages).toHaveLength(0);
      expect(filesIn(directory)).toHaveLength(2);
      await untilQueueEmpty(proxy, directory);
      expect(sinks[0]!.messages).toHaveLength(1);
      await post(proxy, '/fast-path', { enabled: true });
      const names = watched(directory);
      expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toBe('250 2.0.0 queued');
      await sleep(30);
      expect([...names]).toEqual([]);
    },
  );

  it('--mixed spool without a fallback: load that disables the fast path keeps no mail from coming', async () => {
    const { proxy } = await start([{}], { mixed: 'spool', disableFastPathWhen: 'event-loop-lag>1ms' });
    const client = await proxy.client();
    await until(async () => {
      const end = performance.now() + 80;
      while (performance.now() < end);
      return (await proxy.metric('cutthrough_fast_path_enabled')) === 0;
    });
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250/);
  });

  it('pure cut-through: off, 451 to MAIL; on again; no spool is ever made', async () => {
    const { proxy, directory, sinks } = await start([{}], {});
    const client = await proxy.client();
    await post(proxy, '/fast-path', { enabled: false });
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^451 4\.3\.2 /);
    await post(proxy, '/fast-path', { enabled: true });
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250/);
    expect(sinks[0]!.messages).toHaveLength(1);
    expect(readdirSync(directory)).toEqual([]);
  });

  it('POST /mode: sessions that begin from then on run by it', async () => {
    const down = new Switch();
    const { proxy, directory, sinks } = await start([down.options], {});
    const before = await proxy.client();
    await before.command('MAIL FROM:<s@src.example>');
    expect(await before.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 /);
    // Two at once: the spool is opened once.
    const both = [post(proxy, '/mode', { mode: 'spool' }), post(proxy, '/mode', { mode: 'spool' })];
    expect(await Promise.all(both)).toEqual([200, 200]);
    const spooling = await proxy.client();
    expect(await spooling.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    expect(filesIn(directory)).toHaveLength(2);
    expect(await post(proxy, '/mode', { mode: 'cut-through', fallback: 'fast-path' })).toBe(200);
    const falling = await proxy.client();
    expect(await falling.send('s@src.example', ['v@a.example'], SMALL)).toMatch(/^250 2\.0\.0 queued as/);
    expect(await post(proxy, '/mode', { mode: 'cut-through' })).toBe(200);
    const pure = await proxy.client();
    await pure.command('MAIL FROM:<s@src.example>');
    expect(await pure.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 /);
    // The queue goes on whatever the mode.
    down.up = true;
    await untilQueueEmpty(proxy, directory);
    expect(sinks[0]!.messages).toHaveLength(2);
    expect(await post(proxy, '/mode', { mode: 'warp' })).toBe(400);
    const status = (await (await fetch(`${proxy.httpUrl}/status`)).json()) as Record<string, unknown>;
    expect(status).toMatchObject({ mode: 'cut-through', fallback: 'none', queue: { messages: 0, bytes: 0 } });
  });
});

it('has the upstream send again what it went away from, and then reaches who was missed', async () => {
  const b = new Switch();
  const slowly = once({ act: 'delay', ms: 300, next: '250 2.0.0 ok' });
  const { proxy, sinks } = await start([{ script: { dot: slowly } }, b.options], { fallback: 'spool' });
  const message = `Message-ID: <1@src.example>\r\n${SMALL}`;
  await sendAndVanish(proxy, BOTH, message);
  expect(sinks[0]!.messages).toHaveLength(1);
  b.up = true;
  const again = await proxy.client();
  expect(await again.send('s@src.example', BOTH, message)).toMatch(/^250/);
  await until(() => sinks[1]!.messages.length === 1);
  expect(sinks[0]!.messages).toHaveLength(1);
});

it('queues nothing again for whom an earlier try was queued, while the next hop is still out of reach', async () => {
  const b = new Switch();
  const { proxy, directory, sinks } = await start([{}, b.options], {
    fallback: 'spool',
    retrySchedule: '300ms',
  });
  const message = `Message-ID: <1@src.example>\r\n${SMALL}`;
  for (const _ of ['the first try', 'the retry']) {
    const client = await proxy.client();
    expect(await client.send('s@src.example', BOTH, message)).toMatch(/^250/);
    // It may not have read that.
    client.reset();
    await until(async () => (await proxy.metric('cutthrough_ledger_entries')) === 2);
  }
  expect(await proxy.metric('cutthrough_queue_messages')).toBe(1);
  b.up = true;
  await untilQueueEmpty(proxy, directory);
  expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
});

it('has a retry wait for what an upstream that may be gone gets queued', async () => {
  const b = new Switch();
  const script = {
    dot: once({ act: 'delay', ms: 600, next: '250 2.0.0 ok' }),
    rcpt: atSecond('451 4.2.0 busy'),
  };
  const options = { fallback: 'spool', ackTimeout: '3s' } as const;
  const { proxy, directory, sinks } = await start([{ script }, b.options], options);
  const message = `Message-ID: <1@src.example>\r\n${SMALL}`;
  const again = await proxy.client();
  const client = await proxy.client();
  expect(await begin(client)).toMatch(/^354/);
  client.socket.end(`${message}.\r\n`);
  await until(() => sinks[0]!.sessions[0]?.sawDot ?? false);
  b.up = true;
  expect(await again.send('s@src.example', BOTH, message)).toMatch(/^451 4\.4\.5/);
  expect(await client.reply()).toMatch(/^250 2\.0\.0 queued/);
  await untilQueueEmpty(proxy, directory);
  expect(await again.send('s@src.example', BOTH, message)).toMatch(/^250/);
  expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
});

it('has it wait also for whom the next hop puts off meanwhile, where the ledger is kept on disk', async () => {
  const script = {
    dot: once({ act: 'delay', ms: 600, next: '250 2.0.0 ok' }),
    rcpt: atSecond('451 4.2.0 busy'),
  };
  const ledgerDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  closers.push(() => rm(ledgerDir, { recursive: true }));
  const options = { fallback: 'spool', ackTimeout: '3s', ledgerDir } as const;
  const busy = { script: { dot: once('451 4.2.0 busy') } };
  const { proxy, directory, sinks } = await start([{}, busy, { script }], options);
  const recipients = [...BOTH, 'w@c.example'];
  const message = `Message-ID: <1@src.example>\r\n${SMALL}`;
  const again = await proxy.client();
  const client = await proxy.client();
  expect(await client.envelope('s@src.example', recipients)).toMatch(/^354/);
  client.socket.end(`${message}.\r\n`);
  await until(() => sinks.every(({ sessions }) => sessions[0]?.sawDot));
  expect(await again.send('s@src.example', recipients, message)).toMatch(/^451 4\.4\.5/);
  expect(await client.reply()).toMatch(/^250 2\.0\.0 queued/);
  await untilQueueEmpty(proxy, directory);
  expect(await again.send('s@src.example', recipients, message)).toMatch(/^250/);
  expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1, 1]);
});

describe('of several at a next hop one has the message, and at the retry', () => {
  it.each([
    ['the other is put off', ['u@a.example', 'v@a.example'], '451 4.2.0 busy'],
    ['the other is lost', ['u@a.example', 'v@a.example'], { act: 'rst' } as const],
    ['one is put off', ['u@a.example', 'v@a.example', 'w@a.example'], '451 4.2.0 busy'],
    ['one is lost', ['u@a.example', 'v@a.example', 'w@a.example'], { act: 'rst' } as const],
    ['one is refused', ['u@a.example', 'v@a.example', 'w@a.example'], '550 5.1.1 unknown'],
  ])('%s: all have it in the end', async (_, recipients, act) => {
    const taken: string[] = [];
    const last = recipients.length - 1;
    const script: SinkOptions['script'] = {
      // The first try: u has it, the others have not.
      dot: (line, nth) => {
        if (nth === 0 || nth > last) taken.push(line);
        if (nth === last) return { act: 'delay', ms: 100, next: '451 4.2.0 busy' };
        return nth === 0 || nth > last ? null : '451 4.2.0 busy';
      },
      // At the retry each is named, and then all but u are named anew.
      rcpt: (_line, nth) => (nth === 3 * recipients.length - 2 ? act : null),
    };
    const { proxy, directory } = await start([{ lmtp: true, script }], { fallback: 'spool' });
    const message = `Message-ID: <1@src.example>\r\n${SMALL}`;
    await sendAndVanish(proxy, recipients, message);
    const again = await proxy.client();
    expect(await again.send('s@src.example', recipients, message)).toMatch(/^250/);
    await untilQueueEmpty(proxy, directory);
    expect(taken.map((line) => /<(.*)>/.exec(line)?.[1]).sort()).toEqual(recipients);
  });
});
