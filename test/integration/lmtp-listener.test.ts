// The LMTP listener (RFC 2033) as a protocol; what its clients hear of each recipient is in each-recipient.test.ts.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import { issue } from '../support/certificates.ts';
import { Client } from '../support/client.ts';
import { sendEach } from '../support/each.ts';
import { portOf, startProxy, type TestProxy } from '../support/proxy.ts';
import type { SinkOptions } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const MESSAGE = 'Subject: x\r\n\r\nhello\r\n';

async function start(options: Options = {}, sinks: readonly SinkOptions[] = [{}]): Promise<void> {
  proxy = await startProxy(sinks, { listen: ['lmtp://127.0.0.1:0', 'smtp://127.0.0.1:0'], ...options });
}

async function lhlo(): Promise<Client> {
  const client = await Client.lhlo(proxy.port);
  proxy.clients.push(client);
  return client;
}

const keywords = (ehlo: string) => ehlo.split('\n').map((line) => line.slice(4).split(' ')[0]);

it('greets as LMTP, and takes LHLO in the place of EHLO and HELO', async () => {
  await start();
  const client = await Client.open(proxy.port);
  proxy.clients.push(client);
  expect(await client.reply()).toBe('220 proxy.example LMTP cutthrough');
  expect(await client.command('EHLO client.example')).toBe('500 5.5.1 not known here, say LHLO');
  expect(await client.command('HELO client.example')).toMatch(/^500 /);
  expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^503 5\.5\.1 send LHLO first/);
  expect(await client.command('LHLO')).toMatch(/^501 /);
  expect(keywords(await client.command('LHLO client.example'))).toEqual([
    'proxy.example',
    'PIPELINING',
    'SIZE',
    '8BITMIME',
    'SMTPUTF8',
    'ENHANCEDSTATUSCODES',
  ]);
  expect(await proxy.metric('cutthrough_upstream_connections_total{listener="lmtp"}')).toBe(1);
  expect(await proxy.metric('cutthrough_upstream_commands_total{verb="LHLO",class="2xx"}')).toBe(1);
  expect(proxy.proxy.addresses.listen[0]).toMatch(/^lmtp:\/\/127\.0\.0\.1:\d+$/);
});

it('LHLO is not known where SMTP is spoken', async () => {
  await start();
  const client = await Client.connect(portOf(proxy.proxy.addresses.listen[1]!));
  proxy.clients.push(client);
  expect(await client.command('LHLO client.example')).toBe('500 5.5.1 not known here, say EHLO');
  expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^503 5\.5\.1 send EHLO first/);
  expect(await client.command('EHLO client.example')).toMatch(/^250-/);
});

it.each([
  ['', 'LMTP'],
  [' SMTPUTF8', 'UTF8LMTP'],
])('Received says how it came: MAIL%s is %s', async (params, keyword) => {
  await start();
  const client = await lhlo();
  await client.command(`MAIL FROM:<s@src.example>${params}`);
  await client.command('RCPT TO:<u@a.example>');
  await client.command('DATA');
  client.write(`${MESSAGE}.\r\n`);
  expect(await client.reply()).toMatch(/^250 /);
  expect(proxy.sinks[0]!.messages[0]!.body.toString()).toMatch(
    new RegExp(
      `^Received: from client\\.example \\(\\[127\\.0\\.0\\.1\\]\\)\\s+by proxy\\.example with ${keyword}\\s`,
    ),
  );
});

it('STARTTLS protects the session, and Received says LMTPS', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-lmtp-'));
  const { cert, key } = issue({ name: 'proxy.example', for: ['127.0.0.1'] });
  const [tlsCert, tlsKey] = [join(directory, 'cert'), join(directory, 'key')];
  await Promise.all([writeFile(tlsCert, cert), writeFile(tlsKey, key)]);
  await start({ tlsCert, tlsKey, requireTls: true });
  await rm(directory, { recursive: true });
  const client = await lhlo();
  expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^530 5\.7\.0/);
  expect(await client.command('STARTTLS')).toMatch(/^220 /);
  await client.startTls();
  expect(keywords(await client.command('LHLO client.example'))).not.toContain('STARTTLS');
  expect((await sendEach(client, 'LMTP', ['u@a.example'], MESSAGE)).each).toEqual(['250 2.0.0 queued']);
  expect(proxy.sinks[0]!.messages[0]!.body.toString()).toMatch(/ with LMTPS\s/);
});

it('DATA without a recipient is 503, after refusals too, and the session goes on', async () => {
  const rcpt = (line: string) => (line.includes('no@') ? '550 5.1.1 no such user' : null);
  await start({}, [{ script: { rcpt } }]);
  const client = await lhlo();
  await client.command('MAIL FROM:<s@src.example>');
  expect(await client.command('DATA')).toBe('503 5.5.1 no valid recipients');
  expect(await client.command('RCPT TO:<no@a.example>')).toMatch(/^550 5\.1\.1/);
  expect(await client.command('DATA')).toBe('503 5.5.1 no valid recipients');
  expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
  expect(await client.command('DATA')).toMatch(/^354/);
  client.write(`${MESSAGE}.\r\n`);
  expect(await client.reply()).toMatch(/^250/);
});

it('admits recipients as the other listeners do', async () => {
  await start({ trust: ['none'], acceptDomain: ['a.example'], greetingDelay: '0' });
  const { rcpts, each } = await sendEach(await lhlo(), 'LMTP', ['u@b.example', 'u@a.example'], MESSAGE);
  expect(rcpts.map((reply) => reply.slice(0, 9))).toEqual(['550 5.7.1', '250 2.1.5']);
  expect(each.length).toBe(1);
});

it('PRDR and LIMITS are not offered: it has the one by itself, and needs no other', async () => {
  await start({ mixed: 'split' });
  const client = await lhlo();
  const offered = keywords(await client.command('LHLO client.example'));
  expect(offered).not.toContain('LIMITS');
  expect(offered).not.toContain('PRDR');
  expect(await client.command('MAIL FROM:<s@src.example> PRDR')).toMatch(/^555 5\.5\.4/);
});

it('XCLIENT begins it anew as LMTP', async () => {
  await start({ xclient: ['127.0.0.1/32'], trust: ['127.0.0.0/8', '192.0.2.7/32'] });
  const client = await lhlo();
  expect(await client.command('XCLIENT ADDR=192.0.2.7 PROTO=ESMTP HELO=other.example')).toMatch(
    /^220 .* LMTP /,
  );
  expect(await client.command('LHLO other.example')).toMatch(/^250-/);
  expect((await sendEach(client, 'LMTP', ['u@a.example'], MESSAGE)).each.length).toBe(1);
  expect(proxy.sinks[0]!.messages[0]!.body.toString()).toMatch(/\[192\.0\.2\.7\].*\s+.* with LMTP\s/);
});

it('the replies to many recipients leave in one piece, for a client that sent everything in one', async () => {
  await start();
  const client = await lhlo();
  let chunks = 0;
  const to = Array.from({ length: 50 }, (_, at) => `u${at}@a.example`);
  const rcpts = to.map((each) => `RCPT TO:<${each}>\r\n`).join('');
  client.write(`MAIL FROM:<s@src.example>\r\n${rcpts}DATA\r\n`);
  expect((await client.replies(52)).at(-1)).toMatch(/^354/);
  client.socket.on('data', () => chunks++);
  client.write(`${MESSAGE}.\r\nQUIT\r\n`);
  const answers = await client.replies(51);
  expect(answers.slice(0, 50)).toEqual(Array(50).fill('250 2.0.0 queued'));
  expect(answers[50]).toMatch(/^221/);
  expect(chunks).toBeLessThan(5);
});
