// The ledger: an upstream that sends a message again, since it may not know what became of it, gives nobody a second copy;
// and nothing but the very same message is ever kept from anybody.
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import type { Client } from '../support/client.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import type { Act, SinkOptions } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const SENDER = 's@src.example';
const TWO = ['u@a.example', 'v@b.example'];
const MESSAGE = 'Subject: x\r\nMessage-ID: <1@src.example>\r\n\r\nhello\r\n';

/** Says 4xx to the first `times` dots. */
function later(times: number): SinkOptions {
  return { script: { dot: (_line, nth): Act | null => (nth < times ? '451 4.3.0 later' : null) } };
}

async function send(to: readonly string[], message = MESSAGE): Promise<string> {
  const client = await proxy.client();
  const reply = await client.send(SENDER, [...to], message);
  await client.command('QUIT');
  return reply;
}

/** The same message twice, up to its end: so it looks where the first one's end waits to be read. */
async function bothBeforeTheirDots(to: string[]): Promise<Readonly<{ first: Client; second: Client }>> {
  const [first, second] = [await proxy.client(), await proxy.client()];
  for (const client of [first, second]) {
    await client.envelope(SENDER, to);
    client.write(MESSAGE);
  }
  return { first, second };
}

const isMail = (line: string) => line.startsWith('MAIL');
const copies = () => proxy.sinks.map((sink) => sink.messages.length);
const suppressed = () => proxy.metric('cutthrough_duplicates_suppressed_total');
const entries = () => proxy.metric('cutthrough_ledger_entries');

describe('after a mixed result', () => {
  it('each recipient has one copy in the end, however often the upstream tries', async () => {
    proxy = await startProxy([{}, later(3)]);
    const replies: string[] = [];
    do replies.push(await send(TWO));
    while (!replies.at(-1)!.startsWith('2') && replies.length < 10);
    expect(replies.map((reply) => reply.slice(0, 9))).toEqual([
      '451 4.5.0',
      '451 4.5.0',
      '451 4.5.0',
      '250 2.0.0',
    ]);
    expect(copies()).toEqual([1, 1]);
    expect(await suppressed()).toBe(3);
    expect(await proxy.metric('cutthrough_recipients_total{result="suppressed"}')).toBe(3);
    // The upstream has read the 250.
    expect(await entries()).toBe(0);
    expect(proxy.transactions().at(-1)).toMatchObject({
      result: 'delivered',
      recipients: [{ outcome: 'suppressed' }, { outcome: 'accepted' }],
    });
  });

  it('the session at the next hop that has it is only reset, and serves the next message', async () => {
    proxy = await startProxy([{}, later(1)]);
    const client = await proxy.client();
    await client.send(SENDER, TWO, MESSAGE);
    await client.send(SENDER, TWO, MESSAGE);
    await client.send(SENDER, ['u@a.example'], `X: other\r\n${MESSAGE}`);
    const [session, ...others] = proxy.sinks[0]!.sessions;
    expect(others).toEqual([]);
    expect(session!.commands.filter((line) => /^(DATA|RSET)/.test(line))).toEqual(['DATA', 'RSET', 'DATA']);
  });

  it('a session whose next hop refuses the reset gets no further message', async () => {
    proxy = await startProxy([{ script: { rset: '500 5.5.1 what?' } }, later(1)]);
    const client = await proxy.client();
    await client.send(SENDER, TWO, MESSAGE);
    expect(await client.send(SENDER, TWO, MESSAGE)).toMatch(/^250/);
    expect(await client.send(SENDER, ['u@a.example'], `X: other\r\n${MESSAGE}`)).toMatch(/^250/);
    expect(proxy.sinks[0]!.sessions.map(({ commands }) => commands.includes('RSET'))).toEqual([true, false]);
    expect(copies()).toEqual([2, 1]);
  });

  it('a recipient refused for good keeps its refusal without being asked again', async () => {
    proxy = await startProxy([{}, { script: { dot: '554 5.7.1 never' } }, later(1)]);
    const three = [...TWO, 'w@c.example'];
    expect(await send(three)).toMatch(/^451 4\.5\.0 .*1 of 3/);
    expect(await send(three)).toMatch(/^554 5\.5\.0 .*2 of 3/);
    expect(copies()).toEqual([1, 0, 1]);
    expect(proxy.sinks[1]!.events.filter(({ what }) => what === 'dot').length).toBe(1);
    expect(await entries()).toBe(0);
  });

  it('a next hop with LMTP gets it only for those who have it not', async () => {
    let full = true;
    const dot = (line: string): Act => (line.includes('full') && full ? '452 4.2.2 full' : '250 2.1.5 ok');
    proxy = await startProxy([{ lmtp: true, script: { dot } }]);
    const to = ['u@a.example', 'full@a.example', 'v@a.example'];
    expect(await send(to)).toMatch(/^451 4\.5\.0 .*2 of 3/);
    full = false;
    expect(await send(to)).toMatch(/^250/);
    const [, again] = proxy.sinks[0]!.messages;
    expect(again!.rcpts).toEqual([expect.stringContaining('full@a.example')]);
    expect(proxy.sinks[0]!.messages.length).toBe(2);
  });

  it('another message to the same recipients is delivered to all', async () => {
    proxy = await startProxy([{}, later(1)]);
    expect(await send(TWO)).toMatch(/^451/);
    expect(await send(TWO, MESSAGE.replace('<1@', '<2@'))).toMatch(/^250/);
    expect(copies()).toEqual([1 + 1, 1]);
    expect(await suppressed()).toBe(0);
  });

  it('a message with the same header and another body is delivered at the second try at the latest', async () => {
    proxy = await startProxy([{}, later(1)]);
    expect(await send(TWO)).toMatch(/^451/);
    const other = MESSAGE.replace('hello', 'world');
    expect(await send(TWO, other)).toMatch(/^451 4\.3\.0/);
    expect(copies()).toEqual([1, 0]);
    expect(await send(TWO, other)).toMatch(/^250/);
    expect(copies()).toEqual([2, 1]);
  });

  it('the same message of another client is delivered', async () => {
    proxy = await startProxy([{}, later(1)]);
    expect(await send(TWO)).toMatch(/^451/);
    const client = await proxy.client();
    await client.command('EHLO other.example');
    expect(await client.send(SENDER, TWO, MESSAGE)).toMatch(/^250/);
    expect(copies()).toEqual([2, 1]);
  });

  it.each([
    ['refuses DATA', { data: '451 4.3.0 not now' }, /^451 4\.3\.0 not now/],
    ['is lost', { data: { act: 'rst' } as Act }, /^451 4\.4\.2/],
  ])('nobody gets more when the next hop that was held back %s', async (_what, script, reply) => {
    let again = false;
    const data = (): Act | null => (again ? script.data : null);
    proxy = await startProxy([{}, later(1), { script: { data } }]);
    const to = [...TWO, 'w@c.example'];
    expect(await send(to)).toMatch(/^451/);
    again = true;
    const client = await proxy.client();
    await client.envelope(SENDER, ['w@c.example', 'v@b.example']);
    client.write(`X: other\r\n${MESSAGE}.\r\n`);
    expect(await client.reply()).toMatch(reply);
    expect(copies()).toEqual([1, 0, 1]);
  });

  it('the entries end with --ledger-max, the oldest first', async () => {
    proxy = await startProxy([{}, later(1000)], { ledgerMax: 1 });
    await send(TWO);
    await send(TWO, `X: other\r\n${MESSAGE}`);
    expect(await entries()).toBe(1);
    await send(TWO);
    expect(copies()).toEqual([3, 0]);
  });

  it('a header that never seems to end is not held for ever', async () => {
    proxy = await startProxy([{}, later(1)]);
    await send(TWO);
    const huge = `${'X-Long: 0123456789012345678901234567890123456789\r\n'.repeat(4000)}\r\nbody\r\n`;
    expect(await send(TWO, huge)).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages[1]!.body.toString().endsWith(huge)).toBe(true);
  });
});

describe('when the upstream vanishes', () => {
  it('after its dot and before the reply, the message is not delivered again', async () => {
    proxy = await startProxy([{ script: { dot: { act: 'delay', ms: 150, next: '250 2.0.0 ok' } } }]);
    const client = await proxy.client();
    await client.envelope(SENDER, ['u@a.example']);
    client.write(`${MESSAGE}.\r\n`);
    await until(() => proxy.sinks[0]!.sessions[0]!.sawDot);
    client.reset();
    await until(() => proxy.transactions().length === 1);
    expect(await entries()).toBe(1);
    expect(await send(['u@a.example'])).toMatch(/^250/);
    expect(copies()).toEqual([1]);
    expect(await entries()).toBe(0);
  });

  it('and the end of its message is seen only when it is trying again, nobody gets a second copy', async () => {
    proxy = await startProxy([{}]);
    const { first, second } = await bothBeforeTheirDots(['u@a.example']);
    first.write('.\r\n');
    await until(() => proxy.transactions().length === 1);
    first.reset();
    await until(async () => (await entries()) === 1);
    second.write('.\r\n');
    expect(await second.reply()).toMatch(/^451 4\.4\.5/);
    expect(await second.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
    expect(copies()).toEqual([1]);
  });

  it('and tries again before the answer has come, it is told to wait', async () => {
    proxy = await startProxy([{ script: { dot: { act: 'delay', ms: 300, next: '250 2.0.0 ok' } } }]);
    const client = await proxy.client();
    await client.envelope(SENDER, ['u@a.example']);
    client.write(`${MESSAGE}.\r\n`);
    await until(() => proxy.sinks[0]!.sessions[0]!.sawDot);
    client.reset();
    await until(async () => (await entries()) === 1);
    expect(await send(['u@a.example'])).toMatch(/^451 4\.4\.5/);
    await until(() => proxy.transactions().some(({ result }) => result === 'delivered'));
    expect(await send(['u@a.example'])).toMatch(/^250/);
    expect(copies()).toEqual([1]);
  });

  it.each<[string, string, (client: Client) => void]>([
    ['closes its end', '', (client) => client.destroy()],
    ['closes its end, behind a QUIT sent ahead,', 'QUIT\r\n', (client) => client.destroy()],
    ['resets, behind a QUIT sent ahead,', 'QUIT\r\n', (client) => client.reset()],
  ])('%s and tries again before the answer has come, it is told to wait', async (_how, ahead, go) => {
    const slowly = { act: 'delay', ms: 300, next: '250 2.0.0 ok' } as const;
    proxy = await startProxy([{ script: { dot: slowly } }, {}]);
    const client = await proxy.client();
    await client.envelope(SENDER, TWO);
    client.write(`${MESSAGE}.\r\n${ahead}`);
    await until(() => proxy.sinks.every((sink) => sink.sessions[0]?.sawDot));
    go(client);
    expect(await send(TWO)).toMatch(/^451 4\.4\.5/);
    await until(() => proxy.transactions().some(({ result }) => result === 'delivered'));
    expect(await send(TWO)).toMatch(/^250/);
    expect(copies()).toEqual([1, 1]);
  });

  it('closes its end, and its message is delivered to nobody, nothing is kept', async () => {
    proxy = await startProxy([{}, { stopReadingAfter: 1_000 }]);
    const client = await proxy.client();
    await client.envelope(SENDER, TWO);
    client.write(`${MESSAGE}${'x'.repeat(900)}\r\n`.repeat(8_000));
    client.write('.\r\n');
    client.socket.end();
    expect(await client.reply()).toMatch(/^451 4\.4\.2/);
    await until(() => proxy.transactions().length === 1);
    expect(await entries()).toBe(0);
    expect(copies()).toEqual([0, 0]);
  });

  it('after the reply and before any other command, the message is not delivered again', async () => {
    proxy = await startProxy([{}, {}]);
    const client = await proxy.client();
    expect(await client.send(SENDER, TWO, MESSAGE)).toMatch(/^250/);
    client.destroy();
    await until(async () => (await entries()) === 2);
    expect(await send(TWO)).toMatch(/^250/);
    expect(copies()).toEqual([1, 1]);
    expect(await suppressed()).toBe(2);
  });

  it('after the reply to a message that nothing tells from the next one like it, both are delivered', async () => {
    proxy = await startProxy([{}, {}]);
    for (let alarms = 0; alarms < 3; alarms++) {
      const client = await proxy.client();
      expect(await client.send(SENDER, TWO, 'Subject: door open\r\n\r\nalarm\r\n')).toMatch(/^250/);
      client.socket.end();
      await until(async () => (await proxy.metric('cutthrough_upstream_connections_active')) === 0);
    }
    expect(copies()).toEqual([3, 3]);
    expect(await entries()).toBe(0);
  });

  it('by a reset, such a message is known again, too', async () => {
    proxy = await startProxy([{}, {}]);
    for (let tries = 0; tries < 2; tries++) {
      const client = await proxy.client();
      expect(await client.send(SENDER, TWO, 'Subject: door open\r\n\r\nalarm\r\n')).toMatch(/^250/);
      client.reset();
      await until(async () => (await proxy.metric('cutthrough_upstream_connections_active')) === 0);
    }
    expect(copies()).toEqual([1, 1]);
  });

  it.each(['QUIT', 'NOOP', 'RSET', 'MAIL FROM:<x@src.example>'])(
    'after a %s, nothing is kept',
    async (command) => {
      proxy = await startProxy([{}]);
      const client = await proxy.client();
      expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
      await client.command(command);
      client.destroy();
      expect(await entries()).toBe(0);
      expect(await send(['u@a.example'])).toMatch(/^250/);
      expect(copies()).toEqual([2]);
    },
  );

  it.each<[string, readonly string[]]>([
    ['with its dot', [`${MESSAGE}.\r\nQUIT\r\n`]],
    ['right behind its dot', [`${MESSAGE}.\r\n`, 'QUIT\r\n']],
    ['behind others, with its dot', [`${MESSAGE}.\r\nNOOP\r\n`, 'NOOP\r\n', 'QUIT\r\n']],
  ])('a QUIT that it sent %s does not show that it has read the reply', async (_how, chunks) => {
    const slowly = { act: 'delay', ms: 150, next: '250 2.0.0 ok' } as const;
    proxy = await startProxy([{ script: { dot: slowly } }]);
    const client = await proxy.client();
    await client.envelope(SENDER, ['u@a.example']);
    for (const chunk of chunks) {
      client.write(chunk);
      await sleep(20);
    }
    await until(() => proxy.transactions().length === 1);
    await until(() => client.closed);
    expect(await entries()).toBe(1);
    expect(await send(['u@a.example'])).toMatch(/^250/);
    expect(copies()).toEqual([1]);
  });

  it('the next message shows that it has read the reply, however early it sent the envelope', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    await client.envelope(SENDER, ['u@a.example']);
    client.write(`${MESSAGE}.\r\nMAIL FROM:<${SENDER}>\r\nRCPT TO:<u@a.example>\r\nDATA\r\n`);
    for (const code of [250, 250, 250, 354]) expect(await client.reply()).toMatch(new RegExp(`^${code}`));
    client.write(`X: other\r\n${MESSAGE}.\r\n`);
    expect(await client.reply()).toMatch(/^250/);
    await client.command('QUIT');
    expect(await entries()).toBe(0);
    expect(copies()).toEqual([2]);
  });

  it('where nobody has the message, nothing is kept', async () => {
    const slowly = { act: 'delay', ms: 100, next: '451 4.3.0 later' } as const;
    proxy = await startProxy([{ script: { dot: slowly } }, { script: { dot: slowly } }]);
    const client = await proxy.client();
    await client.envelope(SENDER, TWO);
    client.write(`${MESSAGE}.\r\n`);
    await until(() => proxy.sinks.every((sink) => sink.sessions[0]?.sawDot));
    client.reset();
    await until(() => proxy.transactions().length === 1);
    expect(await entries()).toBe(0);
  });
});

describe.each(['fast-path', 'spool'] as const)('mode %s', (mode) => {
  async function startWithSpool(sinks: readonly SinkOptions[], options: Options = {}): Promise<string> {
    const spoolDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
    proxy = await startProxy(sinks, { mode, spoolDir, ...options });
    return spoolDir;
  }

  it('delivers nothing again of what an upstream that vanished had delivered', async () => {
    const slowly = { act: 'delay', ms: 300, next: '250 2.0.0 ok' } as const;
    const refusing = later(1);
    const directory = await startWithSpool([{ script: { dot: slowly } }, refusing], { ackTimeout: '2s' });
    const client = await proxy.client();
    await client.envelope(SENDER, TWO);
    client.write(`${MESSAGE}.\r\n`);
    await until(() => proxy.sinks[0]!.sessions[0]?.sawDot ?? false);
    client.reset();
    expect(await send(TWO)).toMatch(/^451 4\.4\.5/);
    await until(() => proxy.transactions().some(({ result }) => result === 'aborted'));
    expect(await send(TWO)).toMatch(/^250/);
    expect(copies()).toEqual([1, 1]);
    expect(await suppressed()).toBe(1);
    await rm(directory, { recursive: true });
  });

  it('delivers nothing again where the end of the first try is seen late', async () => {
    const directory = await startWithSpool([{}, {}]);
    const { first, second } = await bothBeforeTheirDots(TWO);
    first.write('.\r\n');
    await until(() => proxy.transactions().length === 1);
    first.reset();
    await until(async () => (await entries()) === 2);
    second.write('.\r\n');
    expect(await second.reply()).toMatch(/^250/);
    expect(copies()).toEqual([1, 1]);
    await rm(directory, { recursive: true });
  });

  it('queues nothing again of what an upstream did not hear was queued', async () => {
    const directory = await startWithSpool([later(1), {}]);
    const client = await proxy.client();
    expect(await client.send(SENDER, TWO, MESSAGE)).toMatch(/^250 2\.0\.0 queued/);
    client.destroy();
    await until(async () => (await entries()) === 2);
    expect(await send(TWO)).toMatch(/^250/);
    expect(await proxy.metric('cutthrough_queue_messages')).toBe(1);
    expect(copies()).toEqual([0, 1]);
    await rm(directory, { recursive: true });
  });

  it('delivers a different body with the same header at once', async () => {
    const directory = await startWithSpool([{}]);
    const client = await proxy.client();
    expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
    client.destroy();
    await until(async () => (await entries()) === 1);
    expect(await send(['u@a.example'], MESSAGE.replace('hello', 'world'))).toMatch(/^250/);
    expect(copies()).toEqual([2]);
    await rm(directory, { recursive: true });
  });
});

it('a leg that shares its session with somebody new names only that one', async () => {
  proxy = await startProxy([{}]);
  const client = await proxy.client();
  expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 1);
  expect(await send(['u@a.example', 'new@a.example'])).toMatch(/^250/);
  expect(proxy.sinks[0]!.messages.map(({ rcpts }) => rcpts.map((line) => line.slice(8)))).toEqual([
    ['<u@a.example>'],
    ['<new@a.example>'],
  ]);
});

it('an upstream that ends its side while a leg is held back, and tries again, gives nobody a second copy', async () => {
  const rset: Act = { act: 'delay', ms: 1_000, next: '250 2.0.0 ok' };
  proxy = await startProxy([{ script: { rset } }], { commandTimeout: '5s' });
  const both = ['u@a.example', 'new@a.example'];
  const client = await proxy.client();
  expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 1);
  const again = await proxy.client();
  await again.envelope(SENDER, both);
  again.write(`${MESSAGE}.\r\n`);
  again.socket.end();
  const said = () => proxy.sinks[0]!.sessions.flatMap(({ commands }) => commands);
  await until(() => said().includes('RSET'));
  await sleep(50);
  // Told to wait, or (on a machine that is busy) that they have it.
  expect(await send(both)).toMatch(/^(?:451 4\.4\.5|250) /);
  await until(async () => (await proxy.metric('cutthrough_transactions_active')) === 0);
  expect(copies()).toEqual([2]);
});

it('a refusal that comes late for one is not the answer for those who have the message', async () => {
  // Named a second time, behind the reset, the new recipient is refused.
  const rcpt = (_line: string, nth: number): Act | null => (nth === 3 ? '550 5.1.1 who?' : null);
  proxy = await startProxy([{ script: { rcpt } }]);
  const client = await proxy.client();
  expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 1);
  expect(await send(['u@a.example', 'new@a.example'])).toMatch(/^451 4\.5\.0 message delivered to 1 of 2 /);
  expect(copies()).toEqual([1]);
});

it.each<[string, NonNullable<SinkOptions['script']>]>([
  ['MAIL is put off', { mail: (_line, nth) => (nth === 2 ? '451 4.3.0 later' : null) }],
  ['RCPT is put off', { rcpt: (_line, nth) => (nth === 4 ? '451 4.2.1 later' : null) }],
  ['one of two is refused', { rcpt: (_line, nth) => (nth === 4 ? '550 5.1.1 who?' : null) }],
  ['the session is lost at RCPT', { rcpt: (_line, nth) => (nth === 5 ? { act: 'fin' } : null) }],
  ['RSET is refused', { rset: (_line, nth) => (nth === 0 ? '502 5.5.1 what?' : null) }],
  ['the session is lost at RSET', { rset: (_line, nth) => (nth === 0 ? { act: 'rst' } : null) }],
  ['DATA is put off', { data: (_line, nth) => (nth === 1 ? '451 4.3.0 later' : null) }],
])('with a fallback, new recipients that are named anew get it from the queue: %s', async (_, script) => {
  const spoolDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  onTestFinished(() => rm(spoolDir, { recursive: true, force: true }));
  proxy = await startProxy([{ script }], { fallback: 'spool', spoolDir, retrySchedule: '50ms' });
  const client = await proxy.client();
  expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 1);
  expect(await send(['u@a.example', 'v@a.example', 'w@a.example'])).toMatch(/^250 2\.0\.0 queued/);
  const rcpts = () => proxy.sinks[0]!.messages.flatMap((message) => message.rcpts);
  await until(() => rcpts().length === 3);
  expect(rcpts().toSorted()).toEqual(['u', 'v', 'w'].map((name) => `RCPT TO:<${name}@a.example>`));
});

it('with a fallback, nobody gets a second copy from the queue where the next hop is down at the retry', async () => {
  const spoolDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  onTestFinished(() => rm(spoolDir, { recursive: true, force: true }));
  let down = false;
  const script = { greeting: () => (down ? '421 4.3.2 not now' : null) };
  const options = { fallback: 'spool', spoolDir, retrySchedule: '50ms', connectRetries: 0 } as const;
  proxy = await startProxy([{ script }, {}], { ...options, sessionIdleTimeout: '0s' });
  const client = await proxy.client();
  expect(await client.send(SENDER, TWO, MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 2);
  down = true;
  const again = await proxy.client();
  expect(await again.send(SENDER, ['u@a.example'], MESSAGE)).toBe('250 2.0.0 message delivered');
  again.destroy();
  expect(await proxy.metric('cutthrough_queue_messages')).toBe(0);
  expect(await send([...TWO, 'new@a.example'])).toMatch(/^250 2\.0\.0 queued/);
  down = false;
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  expect(proxy.sinks[0]!.messages.map(({ rcpts }) => rcpts)).toEqual([
    ['RCPT TO:<u@a.example>'],
    ['RCPT TO:<new@a.example>'],
  ]);
  expect(copies()).toEqual([2, 1]);
});

it('an upstream that goes while its new recipients are named anew leaves nothing running', async () => {
  // Of the retry: the first MAIL is for both, the second for the new one alone.
  const mail = (_line: string, nth: number): Act | null => (nth === 2 ? { act: 'stall' } : null);
  proxy = await startProxy([{ script: { mail } }], { commandTimeout: '5s' });
  const client = await proxy.client();
  expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 1);
  const again = await proxy.client();
  expect(await again.envelope(SENDER, ['u@a.example', 'new@a.example'])).toMatch(/^354/);
  again.write(`${MESSAGE}.\r\n`);
  const mails = () => proxy.sinks[0]!.sessions.flatMap(({ commands }) => commands).filter(isMail).length;
  await until(() => mails() === 3);
  again.reset();
  await until(async () => (await proxy.metric('cutthrough_transactions_active')) === 0);
  await until(async () => (await proxy.metric('cutthrough_downstream_sessions_active')) === 0);
  expect(await send(['new@a.example'])).toMatch(/^250/);
});

it('a 250 that a next hop says together with its 354 is no acknowledgement, however soon the dot follows', async () => {
  let retried = false;
  const dots: string[] = [];
  const server = net.createServer((socket) => {
    let body = false;
    socket.on('error', () => {});
    socket.write('220 sink.example ESMTP\r\n');
    socket.on('data', (chunk) => {
      for (const line of chunk.toString().split('\r\n').slice(0, -1)) {
        if (line === 'DATA') {
          body = true;
          socket.write(retried ? '354 go\r\n250 2.0.0 early\r\n' : '354 go\r\n');
        } else if (line === '.') {
          body = false;
          dots.push(retried ? 'retry' : 'first');
          if (!retried) socket.write('250 2.0.0 ok\r\n');
        } else if (!body)
          socket.write(line.startsWith('EHLO') ? '250-x\r\n250 PIPELINING\r\n' : '250 2.0.0 ok\r\n');
      }
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  proxy = await startProxyOnly({
    route: [`*=smtp://127.0.0.1:${(server.address() as net.AddressInfo).port}`],
  });
  const client = await proxy.client();
  expect(await client.send(SENDER, ['u@a.example'], MESSAGE)).toMatch(/^250/);
  client.destroy();
  await until(async () => (await entries()) === 1);
  // The leg is held until the header is there, and by then all of the message is.
  retried = true;
  const again = await proxy.client();
  await again.envelope(SENDER, ['u@a.example', 'new@a.example']);
  again.write(`${MESSAGE}.\r\n`);
  expect(await again.reply()).toMatch(/^451 4\.4\.2/);
  expect(dots).toEqual(['first']);
});

it('mixed outcomes outlive the process with --ledger-dir', async () => {
  const ledgerDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  proxy = await startProxy([{}, later(1)], { ledgerDir });
  expect(await send(TWO)).toMatch(/^451 4\.5\.0/);
  const before = proxy;
  await before.proxy.close();
  const route = ['a', 'b'].map((name, at) => `${name}.example=${before.sinks[at]!.url}`);
  proxy = await startProxyOnly({ route, ledgerDir }, before.sinks);
  expect(await entries()).toBe(1);
  await expect(startProxyOnly({ route, ledgerDir })).rejects.toThrow(/^--ledger-dir .*in use/);
  expect(await send(TWO)).toMatch(/^250/);
  expect(copies()).toEqual([1, 1]);
  await rm(ledgerDir, { recursive: true });
});

it('a mixed outcome outlives the process also for whom an earlier try had delivered it', async () => {
  const ledgerDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  proxy = await startProxy([{}, later(1)], { ledgerDir });
  const client = await proxy.client();
  await client.send(SENDER, ['u@a.example'], MESSAGE);
  client.reset();
  await until(async () => (await entries()) === 1);
  expect(await send(TWO)).toMatch(/^451 4\.5\.0 .*1 of 2/);
  const before = proxy;
  await before.proxy.close();
  const route = ['a', 'b'].map((name, at) => `${name}.example=${before.sinks[at]!.url}`);
  proxy = await startProxyOnly({ route, ledgerDir }, before.sinks);
  expect(await send(TWO)).toMatch(/^250/);
  expect(copies()).toEqual([1, 1]);
  await rm(ledgerDir, { recursive: true });
});

it('a mixed outcome of one LMTP next hop outlives the process, too', async () => {
  const ledgerDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  let full = true;
  const dot = (line: string): Act => (line.includes('full') && full ? '452 4.2.2 full' : '250 2.1.5 ok');
  proxy = await startProxy([{ lmtp: true, script: { dot } }], { ledgerDir });
  const to = ['u@a.example', 'full@a.example'];
  expect(await send(to)).toMatch(/^451 4\.5\.0/);
  const before = proxy;
  await before.proxy.close();
  full = false;
  proxy = await startProxyOnly({ route: [`*=${before.sinks[0]!.url}`], ledgerDir }, before.sinks);
  expect(await send(to)).toMatch(/^250/);
  const [, again] = proxy.sinks[0]!.messages;
  expect(again!.rcpts).toEqual([expect.stringContaining('full@a.example')]);
  await rm(ledgerDir, { recursive: true });
});

it('an outcome on disk stays there when the upstream goes while another is open', async () => {
  const ledgerDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  proxy = await startProxy([{}, { script: { dot: { act: 'delay', ms: 250, next: '250 2.0.0 ok' } } }], {
    ledgerDir,
  });
  const lines = async (what: string) => {
    const text = await readFile(join(ledgerDir, 'ledger.journal'), 'utf8');
    return text.split('\n').filter((line) => line.includes('u@a.example') && line.includes(what)).length;
  };
  const client = await proxy.client();
  await client.envelope(SENDER, TWO);
  client.write(`${MESSAGE}.\r\n`);
  await until(async () => (await lines('"delivered"')) === 1);
  client.reset();
  await until(() => proxy.transactions().length === 1);
  expect(await lines('"pending"')).toBe(1);
  expect(await send(TWO)).toMatch(/^250/);
  expect(copies()).toEqual([1, 1]);
  await proxy.proxy.close();
  await rm(ledgerDir, { recursive: true });
});

it('an upstream that goes while a mixed outcome is on its way to the disk is not told to wait for ever', async () => {
  const ledgerDir = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
  const to = ['u@a.example', 'full@a.example'];
  let goes: (() => void) | null = null;
  const dot = (line: string): Act => {
    if (!line.includes('full') || goes === null) return '250 2.1.5 ok';
    goes();
    return '452 4.2.2 full';
  };
  proxy = await startProxy([{ lmtp: true, script: { dot } }], { ledgerDir });
  // Its end is seen so many turns after the last answer; each of them once.
  for (const turns of [0, 1, 2, 3, 4]) {
    const message = `X-Turns: ${turns}\r\n${MESSAGE}`;
    const client = await proxy.client();
    const go = (left: number) => void (left === 0 ? client.socket.end() : setImmediate(go, left - 1));
    goes = () => go(turns);
    await client.envelope(SENDER, to);
    client.write(`${message}.\r\n`);
    await once(client.socket, 'close');
    goes = null;
    expect(await send(to, message), `${turns} turns`).toMatch(/^250 /);
  }
  await proxy.proxy.close();
  await rm(ledgerDir, { recursive: true });
});

it('a recipient who was to get nothing is told of as the others are, where the message turns out to be none', async () => {
  proxy = await startProxy([{}, later(1)]);
  expect(await send(TWO)).toMatch(/^451/);
  const client = await proxy.client();
  await client.envelope(SENDER, TWO);
  client.write(MESSAGE);
  await until(() => proxy.sinks[0]!.events.some(({ what }) => what === 'RSET'));
  client.write('a bare\nline feed\r\n.\r\n');
  expect(await client.reply()).toMatch(/^554 5\.6\.0/);
  const outcomes = proxy.transactions().at(-1)!.recipients as { outcome: string }[];
  expect(outcomes.map(({ outcome }) => outcome)).toEqual(['rejected', 'rejected']);
  expect(copies()).toEqual([1, 0]);
});

it('never keeps a different message from anybody, whatever they have in common', async () => {
  proxy = await startProxy([{}, later(1_000_000)]);
  const seen: string[] = [];
  const bodies = fc.array(fc.constantFrom('aa', 'bb', 'ab', 'ba'), { minLength: 1, maxLength: 6 });
  await fc.assert(
    fc.asyncProperty(bodies, fc.constantFrom('x', 'y'), async (texts, subject) => {
      // The same sender, recipients, size and Message-ID.
      for (const text of texts) {
        const message = `Subject: ${subject}\r\nMessage-ID: <1@src.example>\r\n\r\n${text}\r\n`;
        // One that was taken for another is asked for again.
        for (let tries = 0; tries < 2 && /^451 4\.3\.0/.test(await send(TWO, message)); tries++);
        seen.push(message);
        const last = proxy.sinks[0]!.messages.map(({ body }) => body.toString());
        expect(last.some((body) => body.endsWith(message))).toBe(true);
      }
    }),
    { numRuns: 12 },
  );
  expect(new Set(seen).size).toBeGreaterThan(4);
});
