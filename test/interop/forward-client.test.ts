// --forward-client towards a real Postfix, by each of its three ways: its log must name the original client, and its
// rules must judge that one. The client connects from 127.0.0.7; the proxy itself, on 127.0.0.1, is trusted by Postfix.
import net from 'node:net';
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { quietPort } from '../support/peers/daemon.ts';
import { needPeers } from '../support/peers/installed.ts';
import { Postfix } from '../support/peers/postfix.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { needTools, selfSigned } from '../support/tools.ts';

const CLIENT = '127.0.0.7';

/** Takes mail for a.example; relays for 127.0.0.1 alone. */
async function startPostfix() {
  const { certFile, keyFile } = await selfSigned();
  const [proxied, wrapped] = [await quietPort(), await quietPort()];
  const main = `mynetworks = 127.0.0.1
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_peername_lookup = no
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_authorized_xforward_hosts = 127.0.0.1
smtpd_tls_cert_file = ${certFile}
smtpd_tls_key_file = ${keyFile}
smtpd_tls_security_level = may
`;
  const haproxy = 'smtpd -o smtpd_upstream_proxy_protocol=haproxy';
  const services = `127.0.0.1:${proxied} inet n - n - - ${haproxy}
127.0.0.1:${wrapped} inet n - n - - ${haproxy} -o smtpd_tls_wrappermode=yes
`;
  const ports = [proxied, wrapped];
  const postfix = await Postfix.start({ main, services, ports, domains: ['a.example'] });
  return { plain: postfix.port, proxied, wrapped, read: async () => await postfix.daemon.log() };
}

/** From another loopback address, which Postfix does not relay for. */
async function connect(port: number): Promise<Client> {
  const client = new Client(net.connect({ port, host: '127.0.0.1', localAddress: CLIENT }));
  await client.reply();
  await client.command('EHLO original.example');
  return client;
}

type Way = Readonly<{ forward: string; protocol: string; at: 'plain' | 'proxied' | 'wrapped'; tls: string }>;

it.for<Way>([
  { forward: 'xclient', protocol: 'smtp', at: 'plain', tls: 'off' },
  { forward: 'xclient', protocol: 'smtp', at: 'plain', tls: 'require' },
  { forward: 'xforward', protocol: 'smtp', at: 'plain', tls: 'off' },
  { forward: 'xforward', protocol: 'smtp', at: 'plain', tls: 'require' },
  { forward: 'proxy', protocol: 'smtp', at: 'proxied', tls: 'off' },
  { forward: 'proxy', protocol: 'smtp', at: 'proxied', tls: 'require' },
  { forward: 'proxy', protocol: 'smtps', at: 'wrapped', tls: 'require' },
])(
  '$forward, $protocol, TLS $tls: Postfix knows the client',
  async ({ forward, protocol, at, tls }, context) => {
    needPeers(context, 'postfix');
    await needTools(context, 'openssl');
    const postfix = await startPostfix();
    const route = `*=${protocol}://127.0.0.1:${postfix[at]}?tls=${tls}`;
    const proxy = await Program.start(['--forward-client', forward, '--route', route]);
    const client = await connect(proxy.port());
    const body = 'Subject: x\r\n\r\nhello\r\n';
    // Twice over one session.
    for (let messages = 0; messages < 2; messages++)
      expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(/^250 2\.0\.0 Ok: queued/);
    const known = forward === 'xforward' ? /orig_client=unknown\[(.*?)\]/g : /: client=unknown\[(.*?)\]/g;
    const clients = [...(await postfix.read()).matchAll(known)].map((match) => match[1]);
    expect(clients).toEqual([CLIENT, CLIENT]);

    await client.command('MAIL FROM:<s@src.example>');
    const relayed = await client.command('RCPT TO:<u@elsewhere.example>');
    client.destroy();
    // Whose mail it is counts, but for XFORWARD, which is for the log.
    if (forward === 'xforward') return expect(relayed).toMatch(/^250/);
    expect(relayed).toMatch(/^[45]54 .*Relay access denied/);
    const helo = forward === 'xclient' ? 'original.example' : 'proxy.example';
    await until(async () =>
      new RegExp(`reject: RCPT from unknown\\[${CLIENT}\\].* helo=<${helo}>`).test(await postfix.read()),
    );
  },
);
