// Who the client was, through other people's servers: haproxy and nginx tell us in each of their ways, Postfix tells us
// and hears it back. The client connects from 127.0.0.7 while all others are 127.0.0.1.
import { writeFile } from 'node:fs/promises';
import net from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { quietPort } from '../support/peers/daemon.ts';
import { startAuthService, startHaproxy, startNginx } from '../support/peers/fronts.ts';
import { needPeers } from '../support/peers/installed.ts';
import { Postfix } from '../support/peers/postfix.ts';
import { recipe } from '../support/peers/recipes.ts';
import { Program } from '../support/program.ts';
import { Sink } from '../support/sink.ts';
import { temporaryDirectory } from '../support/tools.ts';

const CLIENT = '127.0.0.7';
/** Who may relay: the client, and not those who speak for it. */
const TRUST = ['--trust', `${CLIENT}/32`];
const SPEAKERS = '127.0.0.1/32';

async function clientFrom(address: string, port: number): Promise<Client> {
  const client = new Client(net.connect({ port, host: '127.0.0.1', localAddress: address, noDelay: true }));
  await client.reply();
  await client.command('EHLO original.example');
  return client;
}

/** One message from CLIENT, and one from a stranger, whom the proxy doesn't relay for. */
async function tellApart(port: number, proxy: Program, sink: Sink, helo = 'original.example') {
  const client = await clientFrom(CLIENT, port);
  expect(await client.send('s@src.example', ['u@a.example'], 'Subject: x\r\n\r\nx\r\n')).toMatch(/^250 /);
  client.destroy();
  expect(proxy.transactions().map((line) => line.client)).toEqual([CLIENT]);
  const [, said, whence] = /^Received: from (\S+) \((.*?)\)/.exec(`${sink.messages[0]!.body}`)!;
  expect(said).toBe(helo);
  expect(whence).toContain(`[${CLIENT}]`);
  const stranger = await clientFrom('127.0.0.8', port);
  await stranger.command('MAIL FROM:<s@src.example>');
  expect(await stranger.command('RCPT TO:<u@a.example>')).toMatch(/^550 5\.7\.1 /);
  stranger.destroy();
}

describe('is told the client by', () => {
  for (const version of ['send-proxy', 'send-proxy-v2']) {
    it(`haproxy with ${version}`, async (context) => {
      needPeers(context, 'haproxy');
      const sink = await Sink.start();
      const proxy = await Program.start(['--route', `*=${sink.url}`, ...TRUST, '--proxy-protocol', SPEAKERS]);
      const [port, health] = [await quietPort(), Number(proxy.http.split(':').at(-1))];
      const ports = { 25: port, 2525: proxy.port(), 2526: proxy.port(), 9525: health, 9526: health };
      await startHaproxy(recipe('haproxy', ports).replaceAll(' check port', ` ${version}$&`), port);
      await tellApart(port, proxy, sink);
      await sink.close();
    });
  }

  // Behind a PROXY header nginx says its own name.
  for (const [flag, directives, helo] of [
    ['--xclient', 'xclient on;', 'original.example'],
    ['--proxy-protocol', 'xclient off; proxy_protocol on; proxy_smtp_auth off;', 'mx.example.com'],
  ] as const) {
    it(`nginx with ${directives}`, async (context) => {
      needPeers(context, 'nginx');
      const sink = await Sink.start();
      const proxy = await Program.start(['--route', `*=${sink.url}`, ...TRUST, flag, SPEAKERS]);
      const [port, auth] = [await quietPort(), await startAuthService(proxy.port())];
      const mail = recipe('nginx-mail', { 25: port, 9000: auth });
      await startNginx(mail.replace(/xclient +off;/, directives), port);
      await tellApart(port, proxy, sink, helo);
      await sink.close();
    });
  }
});

describe('goes between two services of one Postfix, whose log names the client behind it as well, as a filter', () => {
  it('before the queue', async (context) => {
    needPeers(context, 'postfix');
    const { postfix, front } = await startFilter('postfix-before-queue');
    await namesClient(postfix, front);
  });

  it('after the queue', async (context) => {
    needPeers(context, 'postfix');
    const { postfix } = await startFilter('postfix-after-queue-reinjection');
    await namesClient(postfix, postfix.port);
  });
});

async function startFilter(services: 'postfix-before-queue' | 'postfix-after-queue-reinjection') {
  const [front, back] = [await quietPort(), await quietPort()];
  const config = join(await temporaryDirectory(), 'cutthrough.yaml');
  await writeFile(config, recipe('cutthrough-to-reinjection', { 10026: back }));
  const proxy = await Program.start(['--config', config]);
  const before = services === 'postfix-before-queue';
  const postfix = await Postfix.start({
    domains: ['here.example'],
    main: before ? '' : recipe('postfix-after-queue', { 2525: proxy.port() }),
    services: recipe(services, before ? { 25: front, 2525: proxy.port(), 10026: back } : { 10026: back }),
    ports: before ? [front, back] : [back],
  });
  return { postfix, front };
}

async function namesClient(postfix: Postfix, port: number): Promise<void> {
  const client = await clientFrom(CLIENT, port);
  const reply = await client.send('s@src.example', ['box@here.example'], 'Subject: x\r\n\r\nx\r\n');
  expect(reply).toMatch(/^250 /);
  client.destroy();
  await postfix.daemon.logged(/client=localhost\[127\.0\.0\.1\], .*orig_client=\S+\[127\.0\.0\.7\]/);
  expect(await postfix.mailbox.holding('Subject: x')).toHaveLength(1);
}

it('passes on by PROXY to Postfix what haproxy has told by PROXY', async (context) => {
  needPeers(context, 'haproxy', 'postfix');
  const behind = await quietPort();
  const postfix = await Postfix.start({
    domains: ['here.example'],
    services: `127.0.0.1:${behind} inet n - n - - smtpd\n    -o smtpd_upstream_proxy_protocol=haproxy\n`,
  });
  const proxy = await Program.start([
    ...['--route', `*=smtp://127.0.0.1:${behind}?tls=off`, ...TRUST],
    ...['--proxy-protocol', SPEAKERS, '--forward-client', 'proxy'],
  ]);
  const [port, health] = [await quietPort(), Number(proxy.http.split(':').at(-1))];
  const ports = { 25: port, 2525: proxy.port(), 2526: proxy.port(), 9525: health, 9526: health };
  await startHaproxy(recipe('haproxy', ports).replaceAll(' check port', ' send-proxy-v2$&'), port);
  const client = await clientFrom(CLIENT, port);
  const reply = await client.send('s@src.example', ['box@here.example'], 'Subject: x\r\n\r\nx\r\n');
  expect(reply).toMatch(/^250 /);
  client.destroy();
  await postfix.daemon.logged(/: client=\S+\[127\.0\.0\.7\]/);
  expect(await postfix.mailbox.holding('Subject: x')).toHaveLength(1);
});
