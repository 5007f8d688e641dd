// The main job: a message runs through, bit for bit, while the upstream is still sending.
import { afterEach, expect, it } from 'vitest';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const BODY =
  'From: <s@src.example>\r\nSubject: x\r\n\r\nline\r\n..stuffed\r\n.lenient\r\n\xe4\xf6\xfc \tend\r\n';

it('delivers to two next hops what was sent, with one Received line before it, and answers 250', async () => {
  proxy = await startProxy([{}, {}]);
  const client = await proxy.client();
  const reply = await client.send(
    's@src.example',
    ['u@a.example', 'v@b.example'],
    Buffer.from(BODY, 'latin1'),
  );
  expect(reply).toMatch(/^250 2\.0\.0 /);
  for (const sink of proxy.sinks) {
    expect(sink.messages).toHaveLength(1);
    const text = sink.messages[0]!.body.toString('latin1');
    expect(text.endsWith(`\r\n${BODY}`)).toBe(true);
    const ours = text.slice(0, -BODY.length);
    expect(ours).toMatch(
      /^Received: from client\.example [\s\S]*by proxy\.example[\s\S]*with ESMTP[\s\S]*\+0000\r\n$/,
    );
    expect(ours.match(/^Received:/gm)).toHaveLength(1);
  }
  expect(proxy.sinks[0]!.messages[0]!.rcpts).toEqual(['RCPT TO:<u@a.example>']);
  expect(proxy.sinks[1]!.messages[0]!.rcpts).toEqual(['RCPT TO:<v@b.example>']);
});

it("passes on the downstream's text when there is one leg", async () => {
  proxy = await startProxy([{ script: { dot: '250 2.6.0 queued as 4711' } }]);
  const client = await proxy.client();
  expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toBe('250 2.0.0 queued as 4711');
});

it('lets body bytes out before the upstream has sent its dot, and the 250 after the last acknowledgement', async () => {
  const slow = { act: 'delay', ms: 150, next: '250 2.0.0 late' } as const;
  proxy = await startProxy([{}, { script: { dot: slow } }]);
  const client = await proxy.client();
  expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
  client.write('Subject: early\r\n\r\nbody\r\n');
  await until(() => proxy.sinks.every((sink) => sink.sessions[0]!.bodyOctets > 30));
  expect(proxy.sinks.every((sink) => !sink.sessions[0]!.sawDot)).toBe(true);
  const began = performance.now();
  client.write('.\r\n');
  expect(await client.reply()).toMatch(/^250/);
  expect(performance.now() - began).toBeGreaterThan(140);
});

it('sends every octet as it came, to next hops that take a break at different places too', async () => {
  proxy = await startProxy([{ stopReadingAfter: 500_000 }, {}, { stopReadingAfter: 1_500_000 }], {
    dataTimeout: '10s',
    ackTimeout: '10s',
  });
  const lines = Array.from({ length: 300_000 }, (_, nth) => `Line ${nth} of a message that is long.\r\n`);
  const body = Buffer.from(lines.join(''));
  const client = await proxy.client();
  const reply = client.send('s@src.example', ['u@a.example', 'v@b.example', 'w@c.example'], body);
  for (const [nth, octets] of [
    [0, 500_000],
    [2, 1_500_000],
  ] as const) {
    await until(() => (proxy.sinks[nth]!.sessions[0]?.bodyOctets ?? 0) >= octets);
    await new Promise((resolve) => setTimeout(resolve, 100));
    proxy.sinks[nth]!.sessions[0]!.release();
  }
  expect(await reply).toMatch(/^250 /);
  for (const sink of proxy.sinks)
    expect(sink.messages[0]!.body.subarray(-body.length).equals(body)).toBe(true);
});

it('groups recipients of one next hop into one leg, whatever their domains', async () => {
  proxy = await startProxy([{}], {});
  const { url } = proxy.sinks[0]!;
  await proxy.proxy.close();
  const sinks = proxy.sinks;
  const { startProxyOnly } = await import('../support/proxy.ts');
  proxy = await startProxyOnly({ route: [`a.example=${url}`, `b.example=${url}`] }, sinks);
  const client = await proxy.client();
  expect(await client.send('s@src.example', ['u@a.example', 'v@b.example'], 'x\r\n')).toMatch(/^250/);
  expect(sinks[0]!.connections).toBe(1);
  expect(sinks[0]!.messages[0]!.rcpts).toHaveLength(2);
});

it('sends MAIL and the first RCPT in one write where the peer offers PIPELINING, and one by one where not', async () => {
  proxy = await startProxy([{}, { extensions: ['8BITMIME'] }]);
  const client = await proxy.client();
  expect(await client.send('s@src.example', ['u@a.example', 'w@a.example', 'v@b.example'], 'x\r\n')).toMatch(
    /^250/,
  );
  expect(proxy.sinks[1]!.messages[0]!.rcpts).toHaveLength(1);
});

it('answers pipelined RCPTs in order, having worked on them at the same time', async () => {
  const wait = (ms: number) => ({ act: 'delay', ms, next: '250 2.1.5 ok' }) as const;
  proxy = await startProxy([
    { script: { rcpt: wait(200) } },
    { script: { rcpt: '550 5.1.1 who?' } },
    { script: { rcpt: wait(200) } },
  ]);
  const client = await proxy.client();
  const began = performance.now();
  client.write(
    'MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\nRCPT TO:<v@b.example>\r\nRCPT TO:<w@c.example>\r\nDATA\r\n',
  );
  expect(await client.reply()).toMatch(/^250 2\.1\.0/);
  expect(await client.reply()).toMatch(/^250 2\.1\.5/);
  expect(await client.reply()).toBe('550 5.1.1 who?');
  expect(await client.reply()).toMatch(/^250 2\.1\.5/);
  expect(await client.reply()).toMatch(/^354/);
  expect(performance.now() - began).toBeLessThan(390);
  client.write('x\r\n.\r\n');
  expect(await client.reply()).toMatch(/^250/);
});

it('carries several messages over one upstream session', async () => {
  proxy = await startProxy([{}]);
  const client = await proxy.client();
  for (let i = 0; i < 5; i++) expect(await client.send('', ['u@a.example'], `n: ${i}\r\n`)).toMatch(/^250/);
  expect(proxy.sinks[0]!.messages.map((message) => message.mail)).toEqual(Array(5).fill('MAIL FROM:<>'));
  expect(proxy.transactions().map((line) => line.result)).toEqual(Array(5).fill('delivered'));
});

it('keeps a session for the next message, but not after an answer to the dot that makes no sense', async () => {
  const dot = (_line: string, nth: number) => (nth === 1 ? '354 more please' : '250 2.0.0 ok');
  proxy = await startProxy([{ script: { dot } }]);
  const client = await proxy.client();
  const replies: string[] = [];
  for (let i = 0; i < 3; i++) replies.push(await client.send('s@src.example', ['u@a.example'], 'x\r\n'));
  expect(replies.map((reply) => reply.slice(0, 3))).toEqual(['250', '451', '250']);
  expect(
    proxy.sinks[0]!.sessions.map(({ commands }) => commands.filter((line) => line === 'DATA').length),
  ).toEqual([2, 1]);
});
