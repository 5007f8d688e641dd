// What a next hop says of itself by LIMITS (RFC 9422) is kept to: it would only refuse what is beyond them.
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';
import { temporaryDirectory } from '../support/tools.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const BODY = 'Subject: x\r\n\r\nhello\r\n';
const limited = (limits: string, ...others: string[]): SinkOptions => ({
  extensions: [...others, `LIMITS ${limits}`],
});
const sink = () => proxy.sinks[0]!;
const rcptsOf = (sinkOfThem: Sink) =>
  sinkOfThem.messages.map(({ rcpts }) => rcpts.map((line) => line.slice('RCPT TO:<'.length, -1)));

/** One next hop for every domain. */
async function startForAll(sinkOptions: SinkOptions, options: Options = {}): Promise<void> {
  const only = await Sink.start(sinkOptions);
  proxy = await startProxyOnly({ route: [`*=${only.url}`], ...options }, [only]);
}

describe('MAILMAX', () => {
  it.each([
    ['MAILMAX=2', {}, 3],
    ['MAILMAX=2', { sessionMaxMessages: 1 }, 5],
    ['MAILMAX=9', { sessionMaxMessages: 2 }, 3],
    ['MAILMAX=0', {}, 1],
  ])('%s with %j: five messages take %i sessions', async (limits, options, connections) => {
    proxy = await startProxy([limited(limits, 'PIPELINING')], options);
    const client = await proxy.client();
    for (let messages = 0; messages < 5; messages++)
      expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    expect(sink().connections).toBe(connections);
  });

  it('counts a MAIL that no message followed', async () => {
    proxy = await startProxy([limited('MAILMAX=2', 'PIPELINING')]);
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    await client.command('RCPT TO:<u@a.example>');
    await client.command('RSET');
    await until(async () => (await proxy.metric('cutthrough_downstream_sessions_idle')) === 1);
    for (const connections of [1, 2]) {
      expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
      expect(sink().connections).toBe(connections);
    }
  });
});

describe.each([['PIPELINING'], ['8BITMIME']])('at a next hop with %s', (extension) => {
  it('RCPTMAX: whoever is too many hears 452 and comes in the next transaction', async () => {
    proxy = await startProxy([limited('RCPTMAX=2', extension)]);
    const client = await proxy.client();
    client.write('MAIL FROM:<s@src.example>\r\n');
    for (const local of ['u', 'v', 'w']) client.write(`RCPT TO:<${local}@a.example>\r\n`);
    const replies = await client.replies(4);
    expect(replies.map((line) => line.slice(0, 9))).toEqual([
      '250 2.1.0',
      '250 2.1.5',
      '250 2.1.5',
      '452 4.5.3',
    ]);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write(`${BODY}.\r\n`);
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.send('s@src.example', ['w@a.example'], BODY)).toMatch(/^250/);
    expect(rcptsOf(sink())).toEqual([['u@a.example', 'v@a.example'], ['w@a.example']]);
    expect(sink().connections).toBe(1);
  });

  it('RCPTMAX counts recipients that were refused', async () => {
    const rcpt = (line: string) => (line.includes('<bad') ? '550 5.1.1 no such user' : null);
    proxy = await startProxy([{ ...limited('RCPTMAX=2', extension), script: { rcpt } }]);
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    for (const [local, code] of [
      ['bad', /^550/],
      ['u', /^250/],
      ['v', /^452 4\.5\.3/],
    ] as const)
      expect(await client.command(`RCPT TO:<${local}@a.example>`)).toMatch(code);
  });

  it('RCPTMAX counts anew where a kept session is gone', async () => {
    const mail = (_: string, nth: number) => (nth === 1 ? ({ act: 'fin' } as const) : null);
    proxy = await startProxy([{ ...limited('RCPTMAX=2', extension), script: { mail } }]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    expect(await client.send('s@src.example', ['u@a.example', 'v@a.example'], BODY)).toMatch(/^250/);
    expect(rcptsOf(sink())).toEqual([['u@a.example'], ['u@a.example', 'v@a.example']]);
  });

  it('RCPTDOMAINMAX: another domain hears 451, and has a session of its own', async () => {
    await startForAll(limited('RCPTDOMAINMAX=1', extension));
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    for (const [address, code] of [
      ['u@a.example', /^250/],
      ['u@b.example', /^451 4\.3\.0/],
      ['v@A.example', /^250/],
    ] as const)
      expect(await client.command(`RCPT TO:<${address}>`)).toMatch(code);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write(`${BODY}.\r\n`);
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.send('s@src.example', ['u@b.example'], BODY)).toMatch(/^250/);
    expect(sink().connections).toBe(2);
  });
});

it.each([
  ['RCPTMAX=2', [['u@a.example', 'v@a.example'], ['w@b.example', 'x@b.example'], ['y@a.example']]],
  [
    'RCPTDOMAINMAX=1',
    [
      ['u@a.example', 'v@a.example', 'y@a.example'],
      ['w@b.example', 'x@b.example'],
    ],
  ],
])('from the spool, what is beyond %s follows at once', async (limits, expected) => {
  await startForAll(limited(limits, 'PIPELINING'), {
    mode: 'spool',
    spoolDir: join(await temporaryDirectory(), 'spool'),
  });
  const client = await proxy.client();
  const to = ['u@a.example', 'v@a.example', 'w@b.example', 'x@b.example', 'y@a.example'];
  const reply = await client.send('s@src.example', to, BODY);
  // All have it, so that nothing was queued.
  expect(reply).toMatch(/^250 2\.0\.0/);
  expect(reply).not.toContain('queued as');
  expect(rcptsOf(sink())).toEqual(expected);
});

it('from the spool, what is beyond a limit waits where the next hop is lost', async () => {
  const script = { dot: () => ({ act: 'fin' }) as const };
  await startForAll(
    { ...limited('RCPTMAX=1', 'PIPELINING'), script },
    { mode: 'spool', spoolDir: join(await temporaryDirectory(), 'spool') },
  );
  const client = await proxy.client();
  expect(await client.send('s@src.example', ['u@a.example', 'v@a.example'], BODY)).toMatch(/queued as/);
  expect(sink().sessions.map(({ commands }) => commands.filter((line) => line.startsWith('RCPT')))).toEqual([
    ['RCPT TO:<u@a.example>'],
  ]);
});
