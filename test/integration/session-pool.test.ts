// Downstream sessions are kept for whoever needs one next, in bounds, and a next hop has only so many (downstream/pool.ts).
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import type { Options } from '../../src/app.ts';
import { DownstreamSession } from '../../src/downstream/session.ts';
import type { Client } from '../support/client.ts';
import { configOf, startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { type Act, Sink, type SinkSession } from '../support/sink.ts';
import { temporaryDirectory } from '../support/tools.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const gauge = async (name: string) => await proxy.metric(`cutthrough_${name}`);
const send = async (client: Client, to = 'u@a.example') =>
  await client.send('s@src.example', [to], 'Subject: x\r\n\r\nx\r\n');
const sinkOf = (at: number) => proxy.sinks[at]!;
const closed = (sink: Sink) => sink.sessions.filter((session) => session.closed).length;
const verbs = (sink: Sink, session = 0) =>
  sink.sessions[session]!.commands.map((line) => line.split(/[ :]/)[0]!.toUpperCase());

describe('a kept session', () => {
  it('carries the messages of any client', async () => {
    proxy = await startProxy([{}]);
    for (let clients = 0; clients < 4; clients++) {
      const client = await proxy.client();
      expect(await send(client)).toMatch(/^250/);
      await client.command('QUIT');
    }
    expect(sinkOf(0).connections).toBe(1);
    expect(await gauge('downstream_session_reuses_total')).toBe(3);
    expect(await gauge('downstream_sessions_idle')).toBe(1);
    expect(await gauge('downstream_sessions_active')).toBe(0);
  });

  it('ends with QUIT when it was idle for --session-idle-timeout', async () => {
    proxy = await startProxy([{}], { sessionIdleTimeout: '150ms' });
    const client = await proxy.client();
    await send(client);
    await sleep(100);
    expect(await send(client)).toMatch(/^250/);
    await sleep(100);
    expect(closed(sinkOf(0))).toBe(0);
    await until(() => closed(sinkOf(0)) === 1);
    expect(sinkOf(0).connections).toBe(1);
    expect(verbs(sinkOf(0)).at(-1)).toBe('QUIT');
    expect(await gauge('downstream_sessions_idle')).toBe(0);
  });

  it.each([
    ['--session-max-messages', { sessionMaxMessages: 2 }, 3],
    ['--session-max-age', { sessionMaxAge: '1ms' }, 5],
    ['--session-idle-timeout 0s', { sessionIdleTimeout: '0s' }, 5],
  ])('is not used beyond %s', async (_, options, connections) => {
    proxy = await startProxy([{}], options);
    const client = await proxy.client();
    for (let messages = 0; messages < 5; messages++) {
      expect(await send(client)).toMatch(/^250/);
      await sleep(3);
    }
    expect(sinkOf(0).connections).toBe(connections);
    await until(() => closed(sinkOf(0)) >= connections - 1, 1_000);
    expect(verbs(sinkOf(0)).at(-1)).toBe('QUIT');
  });

  it('is reset before the next transaction where the last one had no message', async () => {
    proxy = await startProxy([{}]);
    const [one, two] = [await proxy.client(), await proxy.client()];
    await one.command('MAIL FROM:<gone@src.example>');
    await one.command('RCPT TO:<other@a.example>');
    one.reset();
    await until(async () => (await gauge('downstream_sessions_idle')) === 1);
    expect(await send(two)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(1);
    expect(verbs(sinkOf(0))).toEqual(['EHLO', 'MAIL', 'RCPT', 'RSET', 'MAIL', 'RCPT', 'DATA']);
    expect(sinkOf(0).messages.map(({ rcpts }) => rcpts.length)).toEqual([1]);
  });

  it.each<[string, Record<string, Act>, string[]]>([
    ['sender', { mail: '550 5.7.1 no' }, ['EHLO', 'MAIL', 'RCPT', 'RSET']],
    ['recipient', { rcpt: '550 5.1.1 no' }, ['EHLO', 'MAIL', 'RCPT', 'RSET']],
    ['DATA', { data: '452 4.3.1 no' }, ['EHLO', 'MAIL', 'RCPT', 'DATA', 'RSET']],
  ])('survives the refusal of a %s', async (_, script, first) => {
    const once = Object.fromEntries(
      Object.entries(script).map(([phase, act]) => [
        phase,
        (__: string, nth: number) => (nth === 0 ? act : null),
      ]),
    );
    proxy = await startProxy([{ script: once }]);
    const [one, two] = [await proxy.client(), await proxy.client()];
    expect(await send(one)).toMatch(/^[45]5/);
    await one.command('RSET');
    await until(async () => (await gauge('downstream_sessions_idle')) === 1);
    expect(await send(two)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(1);
    expect(verbs(sinkOf(0))).toEqual([...first, 'MAIL', 'RCPT', 'DATA']);
  });

  it('that is gone at MAIL costs no recipient anything, where the next hop does not pipeline', async () => {
    const mail = (_: string, nth: number): Act | null => (nth === 1 ? { act: 'fin' } : null);
    proxy = await startProxy([{ extensions: ['8BITMIME'], script: { mail } }]);
    const client = await proxy.client();
    expect(await send(client)).toMatch(/^250/);
    client.write('MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\nRCPT TO:<v@a.example>\r\nDATA\r\n');
    for (const code of ['250', '250', '250', '354']) expect((await client.reply()).slice(0, 3)).toBe(code);
    client.write('Subject: x\r\n\r\nx\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(sinkOf(0).messages.map(({ rcpts }) => rcpts.length)).toEqual([1, 2]);
  });

  it.each([['PIPELINING'], ['8BITMIME']])(
    'that takes no more messages (452 to MAIL) gives way to another one; %s',
    async (extension) => {
      const mail = (_: string, __: number, session: SinkSession) =>
        session.commands.filter((line) => line.startsWith('MAIL')).length > 2 ? '452 4.5.3 too many' : null;
      proxy = await startProxy([{ extensions: [extension], script: { mail } }], { maxSessionsPerNextHop: 1 });
      const client = await proxy.client();
      for (let messages = 0; messages < 5; messages++) {
        client.write(
          'MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\nRCPT TO:<v@a.example>\r\nDATA\r\n',
        );
        for (const code of ['250', '250', '250', '354'])
          expect((await client.reply()).slice(0, 3)).toBe(code);
        client.write('Subject: x\r\n\r\nx\r\n.\r\n');
        expect(await client.reply()).toMatch(/^250/);
      }
      expect([sinkOf(0).messages.length, sinkOf(0).connections]).toEqual([5, 3]);
      expect(verbs(sinkOf(0)).at(-1)).toBe('QUIT');
    },
  );

  it('passes on what is said to MAIL in a new session', async () => {
    const mail = (_: string, nth: number) => (nth > 0 ? '451 4.7.1 not you' : null);
    proxy = await startProxy([{ script: { mail } }]);
    const client = await proxy.client();
    expect(await send(client)).toMatch(/^250/);
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toBe('451 4.7.1 not you');
    expect(sinkOf(0).connections).toBe(2);
  });

  it('is dropped where the client goes before the sender is answered for', async () => {
    const mail = (_: string, nth: number): Act | null => (nth === 1 ? { act: 'stall' } : null);
    proxy = await startProxy([{ script: { mail } }], { commandTimeout: '20s' });
    const [one, two] = [await proxy.client(), await proxy.client()];
    expect(await send(one)).toMatch(/^250/);
    one.write('MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\nRCPT TO:<v@a.example>\r\n');
    await until(() => verbs(sinkOf(0)).filter((verb) => verb === 'MAIL').length === 2);
    one.reset();
    await until(() => closed(sinkOf(0)) === 1);
    expect(await send(two)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(2);
  });

  it('is dropped where the RSET is refused', async () => {
    proxy = await startProxy([{ script: { rset: '502 what' } }]);
    const [one, two] = [await proxy.client(), await proxy.client()];
    await one.command('MAIL FROM:<s@src.example>');
    await one.command('RCPT TO:<u@a.example>');
    await one.command('RSET');
    await until(() => closed(sinkOf(0)) === 1);
    expect(await send(two)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(2);
  });

  it('is dropped, and never used again, when its transaction ended in the body', async () => {
    proxy = await startProxy([{}]);
    const [one, two] = [await proxy.client(), await proxy.client()];
    await one.command('MAIL FROM:<s@src.example>');
    await one.command('RCPT TO:<u@a.example>');
    await one.command('DATA');
    one.write('Subject: half\r\n\r\nha');
    await until(() => sinkOf(0).sessions[0]!.bodyOctets > 0);
    one.reset();
    await until(() => closed(sinkOf(0)) === 1);
    expect(await send(two)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(2);
    expect(sinkOf(0).messages).toHaveLength(1);
  });

  it('ends when the proxy drains, and with the configuration that it was opened under', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    await send(client);
    const options = { hostname: 'renamed.example', route: [`*=${sinkOf(0).url}`] };
    await proxy.proxy.reload(configOf(options));
    await until(() => closed(sinkOf(0)) === 1);
    expect(verbs(sinkOf(0)).at(-1)).toBe('QUIT');
    expect(await send(await proxy.client())).toMatch(/^250/);
    expect(sinkOf(0).sessions[1]!.helo).toContain('renamed.example');
    await proxy.proxy.close();
    expect(verbs(sinkOf(0), 1).at(-1)).toBe('QUIT');
  });

  it('is not shared by routes with other credentials or another TLS policy', async () => {
    const sink = await Sink.start({ extensions: ['PIPELINING', 'AUTH PLAIN'] });
    const at = sink.url.slice('smtp://'.length);
    const route = [`a.example=smtp://${at}`, `b.example=smtp://u:p@${at}`, `c.example=smtp://${at}?tls=off`];
    proxy = await startProxyOnly({ route }, [sink]);
    const client = await proxy.client();
    for (const to of ['u@a.example', 'u@b.example', 'u@c.example', 'u@a.example'])
      expect(await send(client, to)).toMatch(/^250/);
    expect(sink.connections).toBe(3);
  });
});

describe('--max-sessions-per-next-hop', () => {
  const slowDot = (ms: number): Act => ({ act: 'delay', ms, next: '250 2.0.0 ok' });
  const BUSY = /^451 4\.4\.5 all sessions with next hop smtp:\/\/127\.0\.0\.1:\d+ are in use$/;
  const waiting = async () => await gauge('downstream_sessions_waiting');

  /** A client that has the only session with the first next hop, in mid-body. */
  async function holder(): Promise<Client> {
    const client = await proxy.client();
    await client.envelope('s@src.example', ['u@a.example']);
    return client;
  }

  it('is never exceeded, and those who wait come in the order of their coming', async () => {
    const order: string[] = [];
    const mail = (line: string) => {
      order.push(/<(\d)@/.exec(line)![1]!);
      return null;
    };
    proxy = await startProxy([{ script: { mail, dot: slowDot(20) } }], { maxSessionsPerNextHop: 2 });
    const clients = await Promise.all(Array.from({ length: 8 }, async () => await proxy.client()));
    const replies: Promise<string>[] = [];
    for (const [at, client] of clients.entries()) {
      // The first two are in the body when the others come.
      if (at < 2) expect(await client.envelope(`${at}@src.example`, ['u@a.example'])).toMatch(/^354/);
      else replies.push(client.send(`${at}@src.example`, ['u@a.example'], 'x\r\n'));
      if (at >= 2) await until(async () => (await waiting()) === at - 1);
    }
    for (const client of clients.slice(0, 2)) {
      client.write('x\r\n.\r\n');
      replies.push(client.reply());
    }
    for (const reply of await Promise.all(replies)) expect(reply).toMatch(/^250/);
    expect(order).toEqual(['0', '1', '2', '3', '4', '5', '6', '7']);
    expect(sinkOf(0).connections).toBe(2);
    expect(await waiting()).toBe(0);
  });

  it('lets a slow next hop hold up nobody else', async () => {
    proxy = await startProxy([{}, {}], { maxSessionsPerNextHop: 1 });
    const slow = await holder();
    const next = await proxy.client();
    const second = send(next);
    await until(async () => (await waiting()) === 1);
    expect(await send(await proxy.client(), 'u@b.example')).toMatch(/^250/);
    expect(await waiting()).toBe(1);
    slow.write('x\r\n.\r\n');
    expect(await slow.reply()).toMatch(/^250/);
    expect(await second).toMatch(/^250/);
  });

  it.each(['550 5.7.1 no', '450 4.7.1 no', '250 2.0.0 ok', '25'])(
    'is left by a session whose next hop said more than its answer (%s)',
    async (more) => {
      const dot = (_: string, nth: number) => (nth === 0 ? `250 2.0.0 queued\n${more}` : null);
      proxy = await startProxy([{ script: { dot } }], { maxSessionsPerNextHop: 1 });
      const slow = await holder();
      const second = send(await proxy.client());
      await until(async () => (await waiting()) === 1);
      slow.write('x\r\n.\r\n');
      expect(await slow.reply()).toMatch(/^250/);
      expect(await second).toMatch(/^250/);
      expect([sinkOf(0).messages.length, sinkOf(0).connections]).toEqual([2, 2]);
      expect(verbs(sinkOf(0)).filter((verb) => verb === 'MAIL')).toHaveLength(1);
    },
  );

  it('is waited for no longer than --rcpt-deadline', async () => {
    proxy = await startProxy([{}], { maxSessionsPerNextHop: 1, rcptDeadline: '150ms' });
    const slow = await holder();
    const next = await proxy.client();
    await next.command('MAIL FROM:<s@src.example>');
    expect(await next.command('RCPT TO:<u@a.example>')).toMatch(BUSY);
    expect(await waiting()).toBe(0);
    slow.write('x\r\n.\r\n');
    expect(await slow.reply()).toMatch(/^250/);
    await next.command('RSET');
    expect(await send(next)).toMatch(/^250/);
  });

  it('is waited for a quarter of that by those who hold another next hop up', async () => {
    proxy = await startProxy([{}, {}], { maxSessionsPerNextHop: 1, rcptDeadline: '2s' });
    await holder();
    const both = await proxy.client();
    await both.command('MAIL FROM:<s@src.example>');
    expect(await both.command('RCPT TO:<u@b.example>')).toMatch(/^250/);
    const began = performance.now();
    expect(await both.command('RCPT TO:<u@a.example>')).toMatch(BUSY);
    expect(performance.now() - began).toBeLessThan(1_500);
    await both.command('DATA');
    both.write('x\r\n.\r\n');
    expect(await both.reply()).toMatch(/^250/);
    expect(sinkOf(1).messages).toHaveLength(1);
  });

  it('has its place again from a client that goes while it waits', async () => {
    proxy = await startProxy([{}], { maxSessionsPerNextHop: 1 });
    const slow = await holder();
    const next = await proxy.client();
    next.write('MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\n');
    await until(async () => (await waiting()) === 1);
    next.reset();
    await until(async () => (await waiting()) === 0);
    slow.write('x\r\n.\r\n');
    expect(await slow.reply()).toMatch(/^250/);
    expect(await send(slow)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(1);
  });

  it('has its place again from connections that fail, and from sessions that are lost', async () => {
    const once = (act: Act) => (_: string, nth: number) => (nth === 0 ? act : null);
    const script = {
      greeting: once('554 5.3.2 no'),
      ehlo: once({ act: 'fin' }),
      rcpt: once({ act: 'rst' }),
      dot: once({ act: 'garbage' }),
    };
    proxy = await startProxy([{ script }], { maxSessionsPerNextHop: 1, connectRetries: 0 });
    const client = await proxy.client();
    const replies: string[] = [];
    for (let messages = 0; messages < 5; messages++) {
      await client.command('MAIL FROM:<s@src.example>');
      let reply = await client.command('RCPT TO:<u@a.example>');
      if (reply.startsWith('250')) {
        await client.command('DATA');
        client.write('x\r\n.\r\n');
        reply = await client.reply();
      }
      replies.push(reply.slice(0, 9));
      await client.command('RSET');
    }
    expect(replies).toEqual(['451 4.4.1', '451 4.4.1', '451 4.4.2', '451 4.4.2', '250 2.0.0']);
  });

  const BUG = new TypeError('a bug');
  const opening = () => vi.spyOn(DownstreamSession, 'open').mockRejectedValueOnce(BUG);
  const opened = () =>
    vi.spyOn(DownstreamSession.prototype, 'tlsDescription', 'get').mockImplementationOnce(() => {
      throw BUG;
    });

  it.each([
    ['cut through', {}, opening],
    ['cut through, once it is open', {}, opened],
    ['with a fallback', { fallback: 'spool', retrySchedule: '100ms' }, opening],
    ['in mode spool', { mode: 'spool', retrySchedule: '100ms' }, opening],
  ])('has its place again when a bug keeps a session from being opened, %s', async (_, mode, inject) => {
    const spoolDir = join(await temporaryDirectory(), 'spool');
    proxy = await startProxy([{}], {
      ...(mode as Options),
      spoolDir,
      maxSessionsPerNextHop: 1,
      ackDeadline: '1s',
    });
    const injected = inject();
    onTestFinished(() => injected.mockRestore());
    const client = await proxy.client();
    const spools = Object.keys(mode).length > 0;
    await client.command('MAIL FROM:<s@src.example>');
    client.write('RCPT TO:<u@a.example>\r\nRCPT TO:<v@a.example>\r\n');
    const answers = await client.replies(2);
    for (const answer of answers) expect(answer).toMatch(spools ? /^250/ : /^451 4\.3\.0 /);
    if (spools) {
      await client.command('DATA');
      client.write('x\r\n.\r\n');
      expect(await client.reply()).toMatch(/^250/);
    } else await client.command('RSET');
    expect(await send(client)).toMatch(/^250/);
    // Whoever was told 250 before has the message, too.
    await until(() => sinkOf(0).messages.length === (spools ? 2 : 1));
    expect(proxy.log.filter(({ event }) => event === 'bug')).toMatchObject([{ err: { message: 'a bug' } }]);
    // Nothing is left of the connection that was lost over it.
    await until(() => sinkOf(0).sessions[0]!.closed);
  });

  it('leaves room for a new session in the place of one that the peer has ended', async () => {
    const mail = (_: string, nth: number): Act | null => (nth === 1 ? { act: 'fin' } : null);
    proxy = await startProxy([{ script: { mail } }], { maxSessionsPerNextHop: 1 });
    const client = await proxy.client();
    for (let messages = 0; messages < 3; messages++) expect(await send(client)).toMatch(/^250/);
    expect(sinkOf(0).connections).toBe(2);
    expect(await gauge('downstream_connect_retries_total')).toBe(0);
  });

  it("ends another client's kept session to make room", async () => {
    const sink = await Sink.start({ extensions: ['PIPELINING', 'XFORWARD NAME ADDR PORT PROTO HELO'] });
    const options = { maxSessionsPerNextHop: 1, forwardClient: 'xforward' as const };
    proxy = await startProxyOnly({ route: [`*=${sink.url}`], ...options }, [sink]);
    for (let clients = 0; clients < 3; clients++) expect(await send(await proxy.client())).toMatch(/^250/);
    expect(sink.connections).toBe(3);
    expect(closed(sink)).toBe(2);
    expect(verbs(sink).at(-1)).toBe('QUIT');
  });
});
