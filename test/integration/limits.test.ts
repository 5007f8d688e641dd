// What the operator limits is limited: sizes, loops, recipients, connections, memory, patience.
import { once } from 'node:events';
import net, { type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { Client } from '../support/client.ts';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';
import type { SinkOptions } from '../support/sink.ts';
import { temporaryDirectory } from '../support/tools.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const gauge = async (name: string) => await proxy.metric(`cutthrough_${name}`);

async function start(sinks: SinkOptions[], options: Options = {}): Promise<Client> {
  proxy = await startProxy(sinks, options);
  return await proxy.client();
}

/** A body of exactly `octets`, counted as RFC 1870 does. */
function bodyOf(octets: number): string {
  const header = 'Subject: size\r\n\r\n';
  const line = `${'x'.repeat(62)}\r\n`;
  const lines = line.repeat(Math.floor((octets - header.length) / 64) - 1);
  const rest = octets - header.length - lines.length - 2;
  return `${header}${lines}${'y'.repeat(rest)}\r\n`;
}

function expectNothingDelivered(): void {
  for (const sink of proxy.sinks) {
    expect(sink.messages).toHaveLength(0);
    expect(sink.sessions.some((session) => session.sawDot)).toBe(false);
  }
}

describe('the size of a message', () => {
  it('is offered in EHLO', async () => {
    proxy = await startProxy([{}], { maxMessageSize: '64KiB' });
    const client = await Client.connect(proxy.port);
    expect(await client.command('EHLO client.example')).toMatch(/^250-SIZE 65536$/m);
    client.destroy();
  });

  it('is refused at MAIL when declared over the limit, and taken when declared at it', async () => {
    const client = await start([{}], { maxMessageSize: '64KiB' });
    expect(await client.command('MAIL FROM:<s@src.example> SIZE=65537')).toMatch(/^552 5\.3\.4 /);
    expect(await client.command('MAIL FROM:<s@src.example> SIZE=99999999999999999999')).toMatch(
      /^552 5\.3\.4 /,
    );
    expect(await client.command('MAIL FROM:<s@src.example> SIZE=65536')).toMatch(/^250/);
  });

  it('is refused at RCPT when declared over what that next hop takes, and only there', async () => {
    const client = await start([{ extensions: ['PIPELINING', 'SIZE 1000'] }, {}]);
    expect(await client.command('MAIL FROM:<s@src.example> SIZE=1001')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^552 5\.3\.4 /);
    expect(await client.command('RCPT TO:<v@b.example>')).toMatch(/^250/);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(proxy.sinks.map(({ messages }) => messages.length)).toEqual([0, 1]);
    expect(proxy.sinks[1]!.messages[0]!.mail).toBe('MAIL FROM:<s@src.example> SIZE=1001');
  });

  it.each([
    ['at the limit passes', 4096, /^250 2\.0\.0 /],
    ['one over it is refused', 4097, /^552 5\.3\.4 /],
  ])('undeclared: %s', async (_, octets, expected) => {
    const client = await start([{}, {}], { maxMessageSize: '4KiB' });
    const reply = await client.send('s@src.example', ['u@a.example', 'v@b.example'], bodyOf(octets));
    expect(reply).toMatch(expected);
    if (octets > 4096) expectNothingDelivered();
    else
      for (const { messages } of proxy.sinks) expect(messages[0]!.body.toString()).toContain(bodyOf(octets));
    // The session goes on.
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  });

  it.each([
    ['at the limit pass', 512, /^250 2\.0\.0 /],
    ['one octet over it are refused', 513, /^552 5\.3\.4 /],
  ])('does not include stuffed dots: lines of dots %s', async (_, lines, expected) => {
    // Three octets on the wire and one stuffed dot, for each line.
    const client = await start([{}], { maxMessageSize: '1536' });
    const body = lines === 512 ? '..\r\n'.repeat(512) : `${'..\r\n'.repeat(511)}..x\r\n`;
    expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(expected);
  });

  it('drops the next hops as soon as it is exceeded, and answers after the end', async () => {
    const client = await start([{}, {}], { maxMessageSize: '4KiB' });
    expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
    client.write(bodyOf(5000));
    await until(() => proxy.sinks.every(({ sessions }) => sessions[0]!.closed));
    client.write('more\r\n.\r\n');
    expect(await client.reply()).toMatch(/^552 5\.3\.4 /);
    expectNothingDelivered();
  });

  it('undeclared, over what one next hop takes, is refused for all (552 5.3.4 after DATA)', async () => {
    const client = await start([{ extensions: ['PIPELINING', 'SIZE 1000'] }, {}]);
    const reply = await client.send('s@src.example', ['u@a.example', 'v@b.example'], bodyOf(5000));
    expect(reply).toMatch(/^552 5\.3\.4 /);
    expectNothingDelivered();
  });
});

describe('Received lines', () => {
  const received = (count: number) =>
    'Received: from a by b; Mon, 23 Nov 2026 00:00:00 +0000\r\n'.repeat(count);

  it.each([
    ['as many as allowed pass', 5, /^250/],
    ['one more is a loop', 6, /^554 5\.4\.6 /],
  ])('%s', async (_, count, expected) => {
    const client = await start([{}, {}], { maxReceived: 5 });
    const body = `${received(count)}Subject: x\r\n\r\ntext\r\n`;
    expect(await client.send('s@src.example', ['u@a.example', 'v@b.example'], body)).toMatch(expected);
    if (count > 5) expectNothingDelivered();
  });

  it('count in any case, and whatever is between them', async () => {
    const client = await start([{}], { maxReceived: 2 });
    const body = 'RECEIVED: a\r\nX: y\r\nreceived: b\r\nreCeiVed: c\r\n\r\ntext\r\n';
    expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(/^554 5\.4\.6 /);
    expectNothingDelivered();
  });

  it('do not count in the body, in folded lines, or under another name', async () => {
    const client = await start([{}], { maxReceived: 2 });
    const header = 'X-Received: a\r\nReceived-SPF: pass\r\nSubject: a\r\n Received: b\r\n\tReceived: c\r\n';
    const body = `${header}${received(2)}\r\n${received(9)}`;
    expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(/^250/);
  });

  it('are counted when the line comes byte by byte', async () => {
    const client = await start([{}], { maxReceived: 1 });
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    for (const byte of `${received(2)}\r\n.\r\n`) {
      client.write(byte);
      await sleep(0);
    }
    expect(await client.reply()).toMatch(/^554 5\.4\.6 /);
    expectNothingDelivered();
  });
});

describe('recipients', () => {
  it('over the limit are deferred, and the message goes to the others', async () => {
    const client = await start([{}], { maxRecipients: 2 });
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<v@a.example>')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<w@a.example>')).toMatch(/^452 4\.5\.3 /);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages[0]!.rcpts).toHaveLength(2);
  });

  it('over the limit are deferred when pipelined, too', async () => {
    const client = await start([{ script: { rcpt: { act: 'delay', ms: 50, next: '250 2.1.5 ok' } } }], {
      maxRecipients: 3,
    });
    const names = [...'abcdefgh'];
    client.write(
      `MAIL FROM:<s@src.example>\r\n${names.map((name) => `RCPT TO:<${name}@a.example>\r\n`).join('')}`,
    );
    expect(await client.reply()).toMatch(/^250/);
    const replies: string[] = [];
    for (const _ of names) replies.push((await client.reply()).slice(0, 9));
    expect(replies).toEqual([...Array(3).fill('250 2.1.5'), ...Array(5).fill('452 4.5.3')]);
  });

  it('that are refused leave their place to those pipelined behind them', async () => {
    const rcpt = (line: string) => (line.includes('no') ? '550 5.1.1 no' : null);
    const client = await start([{ script: { rcpt } }], { maxRecipients: 2 });
    const names = ['no', 'a', 'no2', 'b', 'c'];
    client.write(
      `MAIL FROM:<s@src.example>\r\n${names.map((name) => `RCPT TO:<${name}@a.example>\r\n`).join('')}`,
    );
    expect(await client.reply()).toMatch(/^250/);
    const replies: string[] = [];
    for (const _ of names) replies.push((await client.reply()).slice(0, 9));
    expect(replies).toEqual(['550 5.1.1', '250 2.1.5', '550 5.1.1', '250 2.1.5', '452 4.5.3']);
  });

  it('up to the limit are taken although an earlier one still waits for its answer', async () => {
    const rcpt = { act: 'delay', ms: 300, next: '250 2.1.5 ok' } as const;
    const client = await start([{ script: { rcpt } }, {}, {}], { maxRecipients: 3 });
    await client.command('MAIL FROM:<s@src.example>');
    client.write('RCPT TO:<slow@a.example>\r\nRCPT TO:<quick@b.example>\r\n');
    // The second one is accepted, but its reply has to wait for the first one's.
    await until(() => proxy.sinks[1]!.sessions[0]?.commands.some((line) => line.startsWith('RCPT')) ?? false);
    await sleep(50);
    client.write('RCPT TO:<third@c.example>\r\n');
    for (const _ of [1, 2, 3]) expect(await client.reply()).toMatch(/^250 2\.1\.5 /);
  });
});

describe('connections', () => {
  it('over the limit get 421 4.3.2, and one that ends makes room', async () => {
    const first = await start([{}], { maxConnections: 2 });
    await proxy.client();
    const third = await Client.open(proxy.port);
    expect(await third.reply()).toMatch(/^421 4\.3\.2 /);
    expect(await third.reply()).toBe('closed');
    expect(await gauge('upstream_connections_refused_total')).toBe(1);
    expect(await gauge('upstream_connections_limit')).toBe(2);
    await first.command('QUIT');
    await until(async () => (await gauge('upstream_connections_active')) === 1);
    const fourth = await Client.open(proxy.port);
    expect(await fourth.reply()).toMatch(/^220 /);
    fourth.destroy();
  });

  it('that are gone before they were greeted leave nothing behind', async () => {
    await start([{}]);
    for (let i = 0; i < 100; i++) {
      const socket = net.connect({ port: proxy.port, host: '127.0.0.1' });
      socket.on('error', () => {});
      await once(socket, 'connect');
      if (i % 2 === 0) socket.resetAndDestroy();
      else socket.destroy();
    }
    await until(async () => (await gauge('upstream_connections_active')) === 1);
  });
});

describe('memory', () => {
  it('that a stuck message takes lets new DATA be answered 451 4.3.2 until it is free', async () => {
    const stuck = await start([{ stopReadingAfter: 100 }, {}], { maxBuffered: '64KiB', dataTimeout: '1s' });
    expect(await stuck.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    stuck.write(Buffer.alloc(12_000_000, `${'x'.repeat(998)}\r\n`));
    await until(async () => (await gauge('buffered_bytes')) >= 65536);
    const other = await proxy.client();
    expect(await other.send('t@src.example', ['v@b.example'], 'x\r\n')).toMatch(/^451 4\.3\.2 /);
    expect(proxy.sinks[1]!.messages).toHaveLength(0);
    expect(await gauge('buffered_bytes')).toBeLessThan(2_000_000);
    // The stuck leg is lost after --data-timeout.
    await until(async () => (await gauge('buffered_bytes')) === 0);
    expect(await other.send('t@src.example', ['v@b.example'], 'x\r\n')).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages).toHaveLength(0);
  });

  /** A client past MAIL that sends, and never reads. */
  async function deafClient(): Promise<Socket> {
    const socket = net.connect({ port: proxy.port, host: '127.0.0.1' });
    socket.on('error', () => {});
    socket.pause();
    onTestFinished(() => void socket.destroy());
    await once(socket, 'connect');
    socket.write('EHLO deaf.example\r\nMAIL FROM:<s@src.example>\r\n');
    return socket;
  }

  /** Long replies to short bursts of bad commands: each names the parameter. */
  const FLOOD = 30_000;
  const flood = (verb: string) => `${verb} ${'X'.repeat(380)}\r\n`.repeat(FLOOD);

  async function answeredWhenStill(verb: string): Promise<number> {
    const count = async () => await gauge(`upstream_commands_total{verb="${verb}",class="5xx"}`);
    let before = -1;
    for (let now = 0; now !== before; now = await count()) {
      before = now;
      await sleep(200);
    }
    return before;
  }

  it.each([
    ['RCPT', 'RCPT TO:<u@a.example>'],
    ['MAIL', 'RSET\r\nMAIL FROM:<>'],
  ])('is not spent on replies to %s that the upstream does not read', async (verb, line) => {
    await start([{}], { idleTimeout: '30s' });
    const socket = await deafClient();
    socket.write(flood(line));
    const answered = await answeredWhenStill(verb);
    expect(answered).toBeGreaterThan(0);
    expect(answered).toBeLessThan(FLOOD);
  });

  it('and a connection are not held for ever by a client that reads no replies', async () => {
    await start([{}], { idleTimeout: '300ms' });
    proxy.clients[0]!.destroy();
    const socket = await deafClient();
    socket.write(flood('RSET\r\nMAIL FROM:<>'));
    await answeredWhenStill('MAIL');
    await until(async () => (await gauge('upstream_connections_active')) === 0, 2_000);
  });
});

describe('patience', () => {
  it('ends for a client that is idle', async () => {
    const client = await start([{}], { idleTimeout: '200ms' });
    expect(await client.reply()).toMatch(/^421 4\.4\.2 /);
    expect(await client.reply()).toBe('closed');
    await until(async () => (await gauge('upstream_connections_active')) === 0);
  });

  /** Every so often what `next` gives, until the test is over. */
  function dribble(client: Client, everyMs: number, next: () => string): void {
    const timer = setInterval(() => client.socket.writable && client.write(next()), everyMs);
    onTestFinished(() => clearInterval(timer));
  }

  it.each(['after', 'before'])(
    'ends for a client that never gets to the end of a command, %s EHLO',
    async (when) => {
      const greeted = await start([{}], { idleTimeout: '300ms' });
      const client = when === 'after' ? greeted : await Client.connect(proxy.port);
      const began = performance.now();
      dribble(client, 20, () => 'E');
      expect(await client.reply()).toMatch(/^421 4\.4\.2 /);
      expect(performance.now() - began).toBeLessThan(1_500);
    },
  );

  it.each<[string, Options]>([
    ['cut-through', {}],
    ['spool', { mode: 'spool' }],
  ])('ends for a client whose message only trickles (%s)', async (_, mode) => {
    const spoolDir = join(await temporaryDirectory(), 'spool');
    const client = await start([{}], { ...mode, spoolDir, idleTimeout: '400ms' });
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const began = performance.now();
    dribble(client, 40, () => 'x');
    expect(await client.reply(3_000)).toMatch(/^421 4\.4\.2 /);
    expect(performance.now() - began).toBeLessThan(1_500);
    await until(async () => (await gauge('downstream_sessions_active')) === 0);
    await until(async () => (await gauge('transactions_active')) === 0);
    expectNothingDelivered();
  });

  it.each([
    ['NOOP', '250'],
    ['RCPT TO:<who@c.example>', '5'],
  ])('ends for a client that holds a session with a next hop by %s', async (command, answer) => {
    const client = await start([{}], { idleTimeout: '400ms' });
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
    const began = performance.now();
    let reply = '';
    while (!reply.startsWith('421') && performance.now() - began < 3_000) {
      await new Promise((resolve) => setTimeout(resolve, 60));
      client.write(`${command}\r\n`);
      reply = await client.reply();
      expect(reply.startsWith(answer) || reply.startsWith('421 4.4.2 ')).toBe(true);
    }
    expect(performance.now() - began).toBeLessThan(1_500);
    await until(async () => (await gauge('downstream_sessions_active')) === 0);
  });

  it('does not end between messages for a client that says NOOP, nor for one whose recipients are taken', async () => {
    const client = await start([{}], { idleTimeout: '400ms' });
    for (const command of ['NOOP', 'MAIL FROM:<s@src.example>', 'RCPT TO:<u@a.example>']) {
      for (let times = 0; times < (command.startsWith('MAIL') ? 1 : 5); times++) {
        expect(await client.command(command)).toMatch(/^250/);
        await new Promise((resolve) => setTimeout(resolve, 150));
      }
    }
  });

  it('does not end for a slow client that sends 500 octets a second', async () => {
    const client = await start([{}], { idleTimeout: '800ms' });
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const began = performance.now();
    let sent = 0;
    // By the clock, so that a late timer on a busy machine costs nothing of the rate.
    dribble(client, 50, () => {
      const due = Math.floor(((performance.now() - began) / 1000) * 10);
      const lines = `${'x'.repeat(48)}\r\n`.repeat(due - sent);
      sent = due;
      return sent < 30 ? lines : `${lines}.\r\n`;
    });
    expect(await client.reply()).toMatch(/^250/);
    expect(performance.now() - began).toBeGreaterThan(2_500);
  });

  it('does not end for a client that is held back by a next hop', async () => {
    const client = await start([{ stopReadingAfter: 100 }], {
      idleTimeout: '300ms',
      dataTimeout: '5s',
      ackTimeout: '5s',
    });
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write(`${'x'.repeat(998)}\r\n`.repeat(12_000));
    client.write('.\r\n');
    await until(async () => (await gauge('buffered_bytes')) > 0);
    await sleep(900);
    proxy.sinks[0]!.sessions[0]!.release();
    expect(await client.reply()).toMatch(/^250/);
  });

  it('ends for a client that is silent from the start, and between MAIL and RCPT', async () => {
    const client = await start([{}], { idleTimeout: '200ms' });
    const silent = await Client.open(proxy.port);
    expect(await silent.reply()).toMatch(/^220/);
    expect(await silent.reply()).toMatch(/^421 4\.4\.2 /);
    expect(await client.reply()).toMatch(/^421 4\.4\.2 /);
    const begun = await proxy.client();
    await begun.command('MAIL FROM:<s@src.example>');
    expect(await begun.reply()).toMatch(/^421 4\.4\.2 /);
    await until(async () => (await gauge('transactions_active')) === 0);
  });

  it('does not end while it is us who are waited for', async () => {
    const slow = (text: string) => ({ act: 'delay', ms: 350, next: text }) as const;
    const client = await start(
      [{ script: { rcpt: slow('250 ok'), data: slow('354 go'), dot: slow('250 2.0.0 late') } }],
      { idleTimeout: '150ms', commandTimeout: '2s', ackTimeout: '2s' },
    );
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toBe('250 2.0.0 late');
  });

  it('ends at the tenth unknown command', async () => {
    const client = await start([{}]);
    for (let i = 1; i < 10; i++) expect(await client.command(`XYZZY ${i}`)).toMatch(/^500 5\.5\.2 /);
    expect(await client.command('XYZZY 10')).toMatch(/^421 4\.7\.0 /);
    expect(await client.reply()).toBe('closed');
  });

  it('ends at once for an HTTP request, and nothing in it is run', async () => {
    const client = await start([{}]);
    client.write(
      'POST / HTTP/1.1\r\nHost: localhost\r\n\r\nMAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\n',
    );
    expect(await client.reply()).toMatch(/^421 /);
    expect(await client.reply()).toBe('closed');
    expect(proxy.sinks[0]!.connections).toBe(0);
    const other = await Client.connect(proxy.port);
    expect(await other.command('GET / HTTP/1.1')).toMatch(/^421 /);
    other.destroy();
  });
});

it('keeps the labels of upstream_commands_total to verbs that it knows', async () => {
  const client = await start([{}]);
  for (const verb of ['XYZZY', 'FOOBAR', 'A'.repeat(500)]) expect(await client.command(verb)).toMatch(/^500/);
  const text = await proxy.proxy.metrics();
  const verbs = [...text.matchAll(/cutthrough_upstream_commands_total\{verb="([^"]*)"/g)].map(([, v]) => v);
  expect(new Set(verbs)).toEqual(new Set(['EHLO', 'other']));
});
