// nginx and haproxy in front of the proxy, by the README's recipes.
import { expect, it, type TestContext } from 'vitest';
import { Client } from '../support/client.ts';
import { certificates } from '../support/peers/authority.ts';
import { quietPort } from '../support/peers/daemon.ts';
import { startAuthService, startHaproxy, startNginx } from '../support/peers/fronts.ts';
import { needPeers } from '../support/peers/installed.ts';
import { recipe } from '../support/peers/recipes.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { needTools, SmtpSink } from '../support/tools.ts';

const NO_SUCH_USER = '550 5.1.1 no such user, says the next hop';
const BODY = Buffer.from(
  `Subject: x\r\n\r\nGr\xfc\xdfe\r\n..\r\n..a\r\n${'a'.repeat(998)}\r\n${'b'.repeat(5_000)}\r\n`,
  'latin1',
);

async function refusingSink(): Promise<Sink> {
  return await Sink.start({
    script: { rcpt: (line) => (line.includes('refused') ? NO_SUCH_USER : null) },
  });
}

/** A message through, and a refusal. */
async function talk(port: number, sink: Sink, secure: boolean): Promise<void> {
  const client = await Client.connect(port);
  const offered = await client.command('EHLO client.example');
  if (secure) {
    expect(offered).toContain('STARTTLS');
    expect(await client.command('STARTTLS')).toMatch(/^220 /);
    await client.startTls();
    await client.command('EHLO client.example');
  }
  expect(await client.command('MAIL FROM:<s@src.example> BODY=8BITMIME')).toMatch(/^250 /);
  expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250 /);
  expect(await client.command('RCPT TO:<refused@a.example>')).toBe(NO_SUCH_USER);
  expect(await client.command('DATA')).toMatch(/^354 /);
  client.write(BODY);
  client.write('.\r\n');
  expect(await client.reply()).toMatch(/^250 2\.0\.0 /);
  expect(await client.command('QUIT')).toMatch(/^221 /);
  client.destroy();
  const { body, rcpts } = sink.messages.at(-1)!;
  expect(body.subarray(-BODY.length).equals(BODY)).toBe(true);
  expect(rcpts).toHaveLength(1);
}

async function identity(context: TestContext): Promise<string[]> {
  await needTools(context, 'openssl');
  const { certFile, keyFile } = await certificates();
  return ['--tls-cert', certFile, '--tls-key', keyFile];
}

it('takes mail through nginx, and its clients hear the next hop', async (context) => {
  needPeers(context, 'nginx');
  const sink = await refusingSink();
  const proxy = await Program.start(['--route', `*=${sink.url}`]);
  const [port, auth] = [await quietPort(), await startAuthService(proxy.port())];
  await startNginx(recipe('nginx-mail', { 25: port, 9000: auth }), port);
  await talk(port, sink, false);
  await sink.close();
});

it('takes mail through nginx that ends TLS', async (context) => {
  needPeers(context, 'nginx');
  await needTools(context, 'openssl');
  const { certFile, keyFile } = await certificates();
  const sink = await refusingSink();
  const proxy = await Program.start(['--route', `*=${sink.url}`]);
  const [port, auth] = [await quietPort(), await startAuthService(proxy.port())];
  const tls = `mail {\n    ssl_certificate ${certFile};\n    ssl_certificate_key ${keyFile};\n    starttls on;`;
  await startNginx(recipe('nginx-mail', { 25: port, 9000: auth }).replace('mail {', tls), port);
  await talk(port, sink, true);
  await sink.close();
});

/** haproxy before two proxies, once it has found both of them ready. */
async function balanced(proxies: readonly [Program, Program]): Promise<number> {
  const [one, two] = proxies;
  const port = await quietPort();
  const health = proxies.map((proxy) => Number(proxy.http.split(':').at(-1)));
  const ports = { 25: port, 2525: one.port(), 2526: two.port(), 9525: health[0]!, 9526: health[1]! };
  await startHaproxy(recipe('haproxy', ports), port);
  return port;
}

for (const secure of [false, true]) {
  it(`takes mail through haproxy${secure ? ', TLS being ours' : ''}`, async (context) => {
    needPeers(context, 'haproxy');
    const flags = secure ? await identity(context) : [];
    const sink = await refusingSink();
    const route = ['--route', `*=${sink.url}`];
    const port = await balanced([
      await Program.start([...route, ...flags]),
      await Program.start([...route, ...flags]),
    ]);
    for (let nth = 0; nth < 4; nth++) await talk(port, sink, secure);
    expect(sink.messages).toHaveLength(4);
    await sink.close();
  });
}

/** Sends as a mail server would: what isn't answered 250 is sent again, over another connection. */
async function sendAll(port: number, recipients: readonly string[]): Promise<void> {
  let client: Client | null = null;
  for (const recipient of recipients) {
    for (;;) {
      client ??= await Client.hello(port);
      const reply = await client.send('s@src.example', [recipient], 'Subject: x\r\n\r\nx\r\n');
      if (reply.startsWith('250 ')) break;
      client.destroy();
      client = null;
    }
  }
  client?.destroy();
}

it('loses and doubles nothing when one of two proxies behind haproxy is drained under load', async (context) => {
  needPeers(context, 'haproxy');
  await needTools(context, 'smtp-sink');
  const sink = await SmtpSink.start();
  const route = ['--route', `*=${sink.url}`];
  const [one, two] = [await Program.start(route), await Program.start(route)];
  const port = await balanced([one, two]);
  const sessions = Array.from({ length: 10 }, (_, session) =>
    Array.from({ length: 40 }, (_each, nth) => `${session}.${nth}@a.example`),
  );
  const sent = sessions.map((recipients) => sendAll(port, recipients));
  const delivered = (proxy: Program) =>
    proxy.transactions().filter(({ result }) => result === 'delivered').length;
  await until(() => delivered(one) >= 40, 30_000);
  expect(await one.stop()).toBe(0);
  await Promise.all(sent);
  const arrived = (await sink.messages()).flatMap((message) => message.recipients);
  expect(arrived.toSorted()).toEqual(
    sessions
      .flat()
      .map((each) => `<${each}>`)
      .toSorted(),
  );
  expect(delivered(two)).toBeGreaterThan(0);
});
