// Servers that take only so many messages in a session: an upstream that goes on in its own session hears nothing of
// what a next hop thinks of ours.
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { Exim } from '../support/peers/exim.ts';
import { needPeers } from '../support/peers/installed.ts';
import { OpenSmtpd } from '../support/peers/opensmtpd.ts';
import { Tap } from '../support/peers/tap.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';

/** OpenSMTPD takes 100; exim is told to take 10. */
const MESSAGES = 120;

for (const name of ['opensmtpd', 'exim'] as const) {
  it(`carries ${MESSAGES} messages of one session to ${name}, which takes fewer in one`, async (context) => {
    needPeers(context, name);
    const domains = ['a.example'];
    const server =
      name === 'exim'
        ? await Exim.start({ domains, main: 'smtp_accept_max_per_connection = 10' })
        : await OpenSmtpd.start({ domains });
    const tap = await Tap.start(server.port);
    const proxy = await Program.start(['--route', `*=smtp://127.0.0.1:${tap.port}?tls=off`]);
    const client = await Client.hello(proxy.port());
    for (let nth = 0; nth < MESSAGES; nth++) {
      const reply = await client.send('s@src.example', ['box@a.example'], 'Subject: x\r\n\r\nx\r\n');
      expect(reply, `message ${nth}`).toMatch(/^250 /);
    }
    client.destroy();
    await until(async () => (await server.mailbox.messages()).length === MESSAGES, 30_000);
    expect(tap.connections).toBe(name === 'exim' ? MESSAGES / 10 : 2);
  });
}

it('lets exim deliver at once, which queues what comes in one session after 10 messages', async (context) => {
  needPeers(context, 'exim');
  const server = await Exim.start({ domains: ['a.example'], main: '' });
  const route = ['--route', `*=smtp://127.0.0.1:${server.port}?tls=off`];
  const proxy = await Program.start([...route, '--session-max-messages', '10']);
  const client = await Client.hello(proxy.port());
  for (let nth = 0; nth < 25; nth++) {
    const reply = await client.send('s@src.example', ['box@a.example'], 'Subject: x\r\n\r\nx\r\n');
    expect(reply, `message ${nth}`).toMatch(/^250 /);
  }
  client.destroy();
  await until(async () => (await server.mailbox.messages()).length === 25, 20_000);
});
