// --forward-client towards a real Postfix, by each of its three ways: its log must name the original client, and its
// rules must judge that one. The client connects from 127.0.0.7; the proxy itself, on 127.0.0.1, is trusted by Postfix.
import { once } from 'node:events';
import { chown, mkdir, readFile, writeFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { expect, it, type TestContext } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { needTools, report, run, selfSigned, start, temporaryDirectory } from '../support/tools.ts';

const CLIENT = '127.0.0.7';

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => net.createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

/** Takes mail for a.example; relays for 127.0.0.1 alone. Postfix's master wants root. */
async function startPostfix(context: TestContext) {
  await needTools(context, 'smtp-sink', 'openssl');
  if (process.getuid?.() !== 0) {
    report(`skipped: ${context.task.name}: needs root, to start Postfix`);
    context.skip('needs root');
  }
  const directory = await temporaryDirectory();
  const { certFile, keyFile } = await selfSigned();
  const [plain, proxied, wrapped] = await freePorts(3);
  const log = join(directory, 'log');
  await Promise.all(['etc', 'spool', 'data'].map((name) => mkdir(join(directory, name))));
  const uid = Number((await run('id', ['-u', 'postfix'])).output);
  await chown(join(directory, 'data'), uid, 0);
  const main = [
    'compatibility_level = 3.6',
    `queue_directory = ${directory}/spool`,
    `data_directory = ${directory}/data`,
    `maillog_file = ${log}`,
    'maillog_file_prefixes = /tmp, /var',
    'myhostname = postfix.example',
    'mydestination = a.example',
    'mynetworks = 127.0.0.1',
    'local_recipient_maps =',
    'local_transport = discard',
    'inet_interfaces = loopback-only',
    'smtpd_peername_lookup = no',
    'smtpd_authorized_xclient_hosts = 127.0.0.1',
    'smtpd_authorized_xforward_hosts = 127.0.0.1',
    `smtpd_tls_cert_file = ${certFile}`,
    `smtpd_tls_key_file = ${keyFile}`,
    'smtpd_tls_security_level = may',
  ];
  const haproxy = 'smtpd -o smtpd_upstream_proxy_protocol=haproxy';
  const master = [
    `127.0.0.1:${plain} inet n - n - - smtpd`,
    `127.0.0.1:${proxied} inet n - n - - ${haproxy}`,
    `127.0.0.1:${wrapped} inet n - n - - ${haproxy} -o smtpd_tls_wrappermode=yes`,
    'cleanup unix n - n - 0 cleanup',
    'qmgr unix n - n 300 1 qmgr',
    'rewrite unix - - n - - trivial-rewrite',
    'bounce unix - - n - 0 bounce',
    'defer unix - - n - 0 bounce',
    'discard unix - - n - - discard',
    'error unix - - n - - error',
    'anvil unix - - n - 1 anvil',
    'proxymap unix - - n - - proxymap',
    'tlsmgr unix - - n 1000? 1 tlsmgr',
    'postlog unix-dgram n - n - 1 postlogd',
  ];
  await writeFile(join(directory, 'etc/main.cf'), `${main.join('\n')}\n`);
  await writeFile(join(directory, 'etc/master.cf'), `${master.join('\n')}\n`);
  const config = ['-c', join(directory, 'etc')];
  // Makes the directories of the queue. What it starts by itself would outlive the test.
  const checked = await run('postfix', [...config, 'check']);
  if (checked.exitCode !== 0) throw new Error(`postfix: ${checked.output}`);
  const daemons = (await run('postconf', [...config, '-h', 'daemon_directory'])).output.trim();
  start(join(daemons, 'master'), config);
  const read = async () => await readFile(log, 'utf8').catch(() => '');
  await until(async () => (await read()).includes('daemon started'), 20_000);
  return { plain, proxied, wrapped, read };
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
    const postfix = await startPostfix(context);
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
