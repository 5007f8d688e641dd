// What is not CRLF.CRLF ends no message, anywhere (SMTP smuggling): the upstream cannot hide a second message in one,
// and no next hop ever sees a byte that it could read as a line end of its own.
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import type { Client } from '../support/client.ts';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const BARE = /(?<!\r)\n|\r(?!\n)|\x00/;
const OPENING = 'Subject: x\r\n\r\ntext';
const SMUGGLED = [
  'MAIL FROM:<smuggled@evil.example>',
  'RCPT TO:<victim@a.example>',
  'DATA',
  'smuggled text',
  '.',
  '',
].join('\r\n');

const SEQUENCES: Record<string, string> = {
  'LF . LF': '\n.\n',
  'LF . CRLF': '\n.\r\n',
  'LF LF . CRLF': '\n\n.\r\n',
  'CRLF . LF': '\r\n.\n',
  'CR . CR': '\r.\r',
  'CR . CRLF': '\r.\r\n',
  'CR . LF': '\r.\n',
  'LF . CR': '\n.\r',
  'CRLF . CR': '\r\n.\r',
  'CRLF . CR CRLF': '\r\n.\r\r\n',
  'CRLF CR . CRLF': '\r\n\r.\r\n',
  'CRLF LF . CRLF': '\r\n\n.\r\n',
  'CRLF NUL . CRLF': '\r\n\x00.\r\n',
  'CRLF . NUL CRLF': '\r\n.\x00\r\n',
  'CRLF . CR NUL LF': '\r\n.\r\x00\n',
  'CRLF . . LF': '\r\n..\n',
  'a lone LF': 'a\nb\r\n',
  'a lone CR': 'a\rb\r\n',
  'a lone NUL': 'a\x00b\r\n',
  'LF CR': '\n\r',
};

/** How the bytes are cut into writes. */
const CHUNKINGS: Record<string, (bytes: string, from: number, to: number) => string[]> = {
  whole: (bytes) => [bytes],
  'byte by byte': (bytes) => [...bytes],
  'cut before, within and behind the sequence': (bytes, from, to) => {
    const middle = Math.ceil((from + to) / 2);
    return [bytes.slice(0, from), bytes.slice(from, middle), bytes.slice(middle, to), bytes.slice(to)];
  },
};

async function writeInChunks(client: Client, chunks: readonly string[]): Promise<void> {
  for (const chunk of chunks) {
    client.write(Buffer.from(chunk, 'latin1'));
    // The first turn may end the loop's round in which this was written, the second one has read it.
    await turn();
    await turn();
  }
}

/** All that next hops were sent, session by session. */
const raw = () => proxy.sinks.flatMap(({ sessions }) => sessions.map((each) => each.raw.toString('latin1')));

describe.each(Object.keys(SEQUENCES))('%s', (name) => {
  for (const [how, cut] of Object.entries(CHUNKINGS)) {
    it(`does not end a message, which is refused, ${how}`, async () => {
      proxy = await startProxy([{}]);
      const client = await proxy.client();
      expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
      const sequence = SEQUENCES[name]!;
      const message = OPENING + sequence + SMUGGLED;
      await writeInChunks(client, cut(message, OPENING.length, OPENING.length + sequence.length));
      // What is not a terminator within the sequence may be one together with what follows; there is one end only.
      expect(await client.reply()).toMatch(/^554 5\.6\.0 /);
      expect(proxy.sinks[0]!.messages).toHaveLength(0);
      expect(proxy.sinks[0]!.sessions.some((session) => session.sawDot)).toBe(false);
      // The very next reply is to this command: no hidden one was run.
      expect(await client.command('VRFY x')).toMatch(/^252/);
      expect(await client.send('s@src.example', ['u@a.example'], 'good: 1\r\n\r\n')).toMatch(/^250/);
      expect(proxy.sinks[0]!.messages).toHaveLength(1);
      for (const sent of raw()) {
        expect(sent).not.toMatch(BARE);
        expect(sent).not.toContain('smuggled');
      }
      expect(proxy.transactions().map(({ result, reply }) => [result, reply])).toEqual([
        ['rejected', 554],
        ['delivered', 250],
      ]);
    });
  }
});

it('leaves nothing of a message that ends in a bare line end with either of two next hops', async () => {
  proxy = await startProxy([{}, {}]);
  const client = await proxy.client();
  expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
  client.write(OPENING);
  await until(() => proxy.sinks.every(({ sessions }) => sessions[0]!.raw.toString().endsWith(OPENING)));
  client.write('\n.\n');
  await until(() => proxy.sinks.every(({ sessions }) => sessions[0]!.closed));
  client.write('more\r\n.\r\n');
  expect(await client.reply()).toMatch(/^554 5\.6\.0 /);
  for (const sent of raw()) expect(sent.endsWith(OPENING)).toBe(true);
  expect(proxy.sinks.flatMap(({ messages }) => messages)).toHaveLength(0);
});

it('ends a message with a bare CR at its real CRLF.CRLF, and refuses it', async () => {
  proxy = await startProxy([{}]);
  const client = await proxy.client();
  expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
  client.write('text\r\r\n.\r\nVRFY x\r\n');
  expect(await client.reply()).toMatch(/^554 5\.6\.0 /);
  expect(await client.reply()).toMatch(/^252/);
  expect(proxy.sinks[0]!.messages).toHaveLength(0);
  for (const sent of raw()) expect(sent).not.toMatch(BARE);
});

describe('the end of data', () => {
  const MESSAGE = 'A: b\r\n\r\nc\r\n..\r\n.\r\nNOOP\r\n';

  it('is found at every split point, and what follows is a command', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    for (let at = 1; at < MESSAGE.length; at++) {
      expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
      await writeInChunks(client, [MESSAGE.slice(0, at), MESSAGE.slice(at)]);
      expect(await client.reply(), `split at ${at}`).toMatch(/^250 2\.0\.0 /);
      expect(await client.reply(), `split at ${at}`).toBe('250 2.0.0 ok');
      expect(proxy.sinks[0]!.messages).toHaveLength(at);
      expect(proxy.sinks[0]!.messages.at(-1)!.body.toString()).toMatch(/A: b\r\n\r\nc\r\n\.\.\r\n$/);
    }
  });

  it('is found at every pair of split points around it', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    const text = 'x\r\n.\r\n';
    let count = 0;
    for (let first = 1; first < text.length - 1; first++) {
      for (let second = first + 1; second < text.length; second++) {
        expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
        await writeInChunks(client, [text.slice(0, first), text.slice(first, second), text.slice(second)]);
        expect(await client.reply()).toMatch(/^250 2\.0\.0 /);
        expect(proxy.sinks[0]!.messages).toHaveLength(++count);
      }
    }
  });

  it('may be the very first line, and an empty message has its Received line', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], '')).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages).toHaveLength(1);
    expect(proxy.sinks[0]!.messages[0]!.body.toString()).toMatch(/^Received: [\s\S]*\r\n$/);
  });

  it('is followed by the commands behind it, one after the other and in order', async () => {
    const dot = { act: 'delay', ms: 80, next: '250 2.0.0 queued' } as const;
    proxy = await startProxy([{ script: { dot } }]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const next = 'MAIL FROM:<t@src.example>\r\nRCPT TO:<v@a.example>\r\nDATA\r\n';
    client.write(`first\r\n.\r\n${next}`);
    expect(await client.reply()).toBe('250 2.0.0 queued');
    expect(await client.reply()).toMatch(/^250 2\.1\.0/);
    expect(await client.reply()).toMatch(/^250 2\.1\.5/);
    expect(await client.reply()).toMatch(/^354/);
    client.write('second\r\n.\r\nRSET\r\nNOOP\r\nQUIT\r\n');
    expect(await client.reply()).toBe('250 2.0.0 queued');
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^221/);
    const messages = proxy.sinks[0]!.messages.map(({ mail, body }) => [mail, body.toString().slice(-8)]);
    expect(messages).toEqual([
      [expect.stringContaining('MAIL FROM:<s@src.example>'), expect.stringMatching(/first\r\n$/)],
      [expect.stringContaining('MAIL FROM:<t@src.example>'), expect.stringMatching(/second\r\n$/)],
    ]);
  });
});

describe('a command line', () => {
  const LINES: Record<string, string> = {
    'that ends in a bare LF': 'NOOP\n',
    'with a bare LF in front of its CRLF': 'NOOP\nMAIL FROM:<s@src.example>\r\n',
    'that is a bare LF only': '\n',
  };
  for (const [which, line] of Object.entries(LINES)) {
    it(`${which} is refused, and nothing behind it is run`, async () => {
      proxy = await startProxy([{}]);
      const client = await proxy.client();
      client.write(`${line}MAIL FROM:<s@src.example>\r\n`);
      expect(await client.reply()).toMatch(/^500 5\.5\.2 /);
      expect(await client.reply()).toBe('closed');
      expect(await proxy.metric('cutthrough_transactions_active')).toBe(0);
    });
  }

  it('with a bare CR in it is refused', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.command('MAIL FROM:<s@src.example>\rRCPT TO:<u@a.example>')).toMatch(/^501 /);
    expect(await client.command('MAIL FROM:<s\r@src.example>')).toMatch(/^501 /);
    expect(await client.command('MAIL FROM:<s\x00@src.example>')).toMatch(/^501 /);
  });

  it.each([
    ['with its end', `NOOP ${'x'.repeat(5_000)}\r\n`],
    ['without an end', 'x'.repeat(5_000)],
  ])('that is too long, %s, is refused and ends the session', async (_, line) => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    client.write(line);
    expect(await client.reply()).toMatch(/^500 5\.5\.2 /);
    expect(await client.reply()).toBe('closed');
  });

  it('that the upstream never ended is not run at its FIN', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^250/);
    client.socket.end('RCPT TO:<u@a.example>');
    await until(async () => (await proxy.metric('cutthrough_upstream_connections_active')) === 0);
    expect(proxy.sinks[0]!.connections).toBe(0);
  });
});

it('puts nothing of a hostile EHLO argument into the Received line but harmless characters', async () => {
  proxy = await startProxy([{}]);
  const client = await proxy.client();
  await client.command('EHLO evil(comment)<x>;\x01\x7f\u00e9"\\');
  expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250/);
  const [first] = proxy.sinks[0]!.messages[0]!.body.toString('latin1').split('\r\n');
  expect(first).toMatch(/^Received: from [\x21-\x7e]+ /);
  expect(first).not.toMatch(/[<>;"\\]/);
});
