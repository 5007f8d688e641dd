// The PROXY header: required of listed peers, never read from others, before everything else; and what follows from
// the address that it announces.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { parseConfig } from '../../src/config.ts';
import { Client } from '../support/client.ts';
import { portOf, QUICK, startProxy, type TestProxy, until } from '../support/proxy.ts';
import { v2, v2Tcp } from '../support/proxy-header.ts';

const run = promisify(execFile);

let proxy: TestProxy;
afterEach(async () => await proxy.close());

/** The tests' own address is a balancer's, and trusted itself, so that whoever is taken for it may relay. */
const BALANCED: Options = { proxyProtocol: ['127.0.0.0/8'], greetingDelay: '0ms' };
const BODY = 'Subject: t\r\n\r\nhello\r\n';
const V1 = 'PROXY TCP4 203.0.113.9 192.0.2.25 56324 25\r\n';

/** A connection on which nothing was said yet. */
async function open(port = proxy.port): Promise<Client> {
  const client = await Client.open(port);
  proxy.clients.push(client);
  return client;
}

/** A client past EHLO, behind a header. */
async function behind(header: string | Buffer): Promise<Client> {
  const client = await open();
  client.write(header);
  expect(await client.reply()).toMatch(/^220 /);
  await client.command('EHLO client.example');
  return client;
}

async function relays(client: Client): Promise<string> {
  await client.command('MAIL FROM:<s@src.example>');
  return await client.command('RCPT TO:<u@a.example>');
}

const refusals = () => proxy.log.filter(({ event }) => event === 'proxy_header_refused');
const closed = async (client: Client) => expect(await client.reply()).toBe('closed');

describe('the address announced', () => {
  it.each<[string, string | Buffer, string]>([
    ['version 1', V1, '203.0.113.9'],
    ['version 1, IPv6', 'PROXY TCP6 2001:DB8:0::9 ::1 1 25\r\n', '2001:db8::9'],
    ['version 2', v2Tcp('203.0.113.9', 56324), '203.0.113.9'],
    ['version 2, IPv6', v2Tcp('2001:db8::9', 1), '2001:db8::9'],
  ])('stands in the log and in Received: %s', async (_, header, address) => {
    proxy = await startProxy([{}], { ...BALANCED, trust: ['203.0.113.9', '2001:db8::9'] });
    const client = await behind(header);
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    await until(() => proxy.transactions().length === 1);
    expect(proxy.transactions()[0]).toMatchObject({ client: address, result: 'delivered' });
    const literal = address.includes(':') ? `[IPv6:${address}]` : `[${address}]`;
    expect(proxy.sinks[0]!.messages[0]!.body.toString()).toContain(`from client.example (${literal}) by `);
  });

  it.each<[string, string | Buffer]>([
    ['UNKNOWN', 'PROXY UNKNOWN\r\n'],
    ['UNKNOWN with addresses', 'PROXY UNKNOWN 203.0.113.9 192.0.2.25 56324 25\r\n'],
    ['LOCAL', v2(0x20, 0)],
    ['AF_UNSPEC', v2(0x21, 0)],
  ])('is the real one for %s', async (_, header) => {
    proxy = await startProxy([{}], BALANCED);
    const client = await behind(header);
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    await until(() => proxy.transactions().length === 1);
    expect(proxy.transactions()[0]).toMatchObject({ client: '127.0.0.1' });
  });

  it("is what --trust applies to, and not the balancer's", async () => {
    proxy = await startProxy([{}], { ...BALANCED, trust: ['127.0.0.0/8', '198.51.100.0/24'] });
    expect(await relays(await behind(V1))).toMatch(/^550 5\.7\.1 /);
    expect(await relays(await behind(v2Tcp('198.51.100.7', 5)))).toMatch(/^250/);
  });

  it('is what --xclient applies to', async () => {
    proxy = await startProxy([{}], { ...BALANCED, xclient: ['203.0.113.9'] });
    const offers = async (header: string | Buffer) =>
      await (await behind(header)).command('EHLO client.example');
    expect(await offers(V1)).toContain('XCLIENT');
    expect(await offers('PROXY UNKNOWN\r\n')).not.toContain('XCLIENT');
  });

  it('is greeted late when it is not trusted, and let go when it speaks before', async () => {
    proxy = await startProxy([{}], { ...BALANCED, greetingDelay: '200ms' });
    const stranger = await open();
    stranger.write(`${V1}EHLO client.example\r\n`);
    expect(await stranger.reply()).toMatch(/^421 4\.7\.0 /);
    const trusted = await open();
    trusted.write('PROXY TCP4 127.0.0.9 192.0.2.25 1 25\r\nEHLO client.example\r\n');
    expect(await trusted.reply()).toMatch(/^220 /);
    expect(await trusted.reply()).toMatch(/^250-proxy\.example/);
  });
});

describe('the header', () => {
  it.each<[string, Buffer]>([
    ['version 1', Buffer.from(V1)],
    ['version 2', v2Tcp('203.0.113.9', 56324)],
  ])('is read however it is cut, and what comes behind it is the client’s: %s', async (_, header) => {
    proxy = await startProxy([{}], { ...BALANCED, trust: ['203.0.113.9'] });
    const session = Buffer.concat([header, Buffer.from('EHLO c.example\r\nMAIL FROM:<s@src.example>\r\n')]);
    const client = await open();
    for (const octet of session) {
      client.write(Buffer.from([octet]));
      await new Promise(setImmediate);
    }
    expect(await client.reply()).toMatch(/^220 /);
    expect(await client.reply()).toMatch(/^250-proxy\.example/);
    expect(await client.reply()).toMatch(/^250 2\.1\.0 /);
    const atOnce = await open();
    atOnce.write(session);
    expect(await atOnce.reply()).toMatch(/^220 /);
    expect(await atOnce.reply()).toMatch(/^250-proxy\.example/);
    expect(await atOnce.reply()).toMatch(/^250 2\.1\.0 /);
  });

  it('takes with it what a client sent that has closed its side already', async () => {
    proxy = await startProxy([{}], { ...BALANCED, trust: ['203.0.113.9'] });
    const client = await open();
    client.socket.end(`${V1}EHLO c.example\r\nQUIT\r\n`);
    expect(await client.reply()).toMatch(/^220 /);
  });

  it('is required: without one there is neither greeting nor reply', async () => {
    proxy = await startProxy([{}], BALANCED);
    const client = await open();
    client.write('EHLO client.example\r\n');
    await closed(client);
    expect(refusals()).toMatchObject([
      { level: 40, peer: '127.0.0.1', reason: expect.stringMatching(/malformed/), suppressed: 0 },
    ]);
    expect(proxy.log.some(({ event }) => event === 'bug')).toBe(false);
  });

  it('has a deadline that no byte prolongs', async () => {
    proxy = await startProxy([{}], { ...BALANCED, idleTimeout: '300ms' });
    const client = await open();
    const began = performance.now();
    client.write('PROXY UNKNOWN ');
    const more = setInterval(() => client.socket.writable && client.write('x'), 50);
    onTestFinished(() => clearInterval(more));
    await closed(client);
    expect(performance.now() - began).toBeLessThan(1_500);
    expect(refusals()).toMatchObject([{ reason: 'no PROXY header within 300 ms' }]);
  });

  it('fills no log: of many bad ones a single line tells', async () => {
    proxy = await startProxy([{}], BALANCED);
    for (let i = 0; i < 20; i++) {
      const client = await open();
      client.write('GET / HTTP/1.0\r\n\r\n');
      await closed(client);
    }
    expect(refusals()).toHaveLength(1);
  });

  it('that does not even begin is no warning: a balancer looks whether the port is open', async () => {
    proxy = await startProxy([{}], BALANCED);
    (await open()).socket.end();
    await until(() => refusals().length === 1);
    expect(refusals()).toMatchObject([{ level: 20 }]);
  });

  it('is a command, and an unknown one, from any other peer', async () => {
    proxy = await startProxy([{}], { ...BALANCED, proxyProtocol: ['192.0.2.1'] });
    const client = await proxy.client();
    expect(await client.command(V1.trimEnd())).toMatch(/^500 5\.5\.2 /);
    expect(await relays(client)).toMatch(/^250/);
    expect(refusals()).toEqual([]);
  });

  it('is read once: a second one is an unknown command', async () => {
    proxy = await startProxy([{}], BALANCED);
    const client = await behind(V1);
    expect(await client.command('PROXY TCP4 127.0.0.1 127.0.0.1 1 25')).toMatch(/^500 5\.5\.2 /);
    expect(await relays(client)).toMatch(/^550 5\.7\.1 /);
  });
});

describe('while a header is waited for', () => {
  it('a peer that resets or closes in any state of it harms nobody', async () => {
    proxy = await startProxy([{}], { ...BALANCED, trust: ['203.0.113.9'] });
    const header = v2Tcp('203.0.113.9', 56324);
    for (let length = 0; length <= header.length; length++) {
      for (const end of ['reset', 'destroy'] as const) {
        const client = await open();
        client.write(header.subarray(0, length));
        client[end]();
      }
    }
    await until(async () => (await proxy.metric('cutthrough_upstream_connections_active')) === 0);
    const client = await behind(header);
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
  });

  it('it counts as a connection: the client too many hears so', async () => {
    proxy = await startProxy([{}], { ...BALANCED, maxConnections: 2 });
    const waiting = await open();
    await behind(V1);
    const client = await open();
    client.write(V1);
    expect(await client.reply()).toMatch(/^421 4\.3\.2 /);
    await closed(client);
    waiting.write(V1);
    expect(await waiting.reply()).toMatch(/^220 /);
  });

  it('no more wait than there may be connections', async () => {
    proxy = await startProxy([{}], { ...BALANCED, maxConnections: 2 });
    const waiting = [await open(), await open()];
    await closed(await open());
    waiting[0]!.write(V1);
    expect(await waiting[0]!.reply()).toMatch(/^220 /);
    const next = await open();
    next.write(V1);
    expect(await next.reply()).toMatch(/^421 4\.3\.2 /);
  });

  it('a drain does not wait for it', async () => {
    proxy = await startProxy([{}], BALANCED);
    const client = await open();
    client.write('PROXY TCP4 ');
    const other = await open();
    await behind(V1);
    const began = performance.now();
    await proxy.proxy.close({ drainTimeoutMs: 10_000 });
    expect(performance.now() - began).toBeLessThan(3_000);
    await closed(client);
    await closed(other);
  });

  it('a reload changes who is listed', async () => {
    proxy = await startProxy([{}], BALANCED);
    const parsed = parseConfig({ file: { ...QUICK, trust: ['127.0.0.1'] } });
    if (!parsed.ok) throw new Error(parsed.errors.join());
    await proxy.proxy.reload(parsed.config);
    expect(await (await open()).reply()).toMatch(/^220 /);
  });
});

const openssl = await run('openssl', ['version']).then(
  () => true,
  () => false,
);
if (!openssl && process.env.CI) throw new Error('openssl is needed for these tests');
if (!openssl) process.stderr.write('no openssl: PROXY headers before TLS are not tested\n');

describe.skipIf(!openssl)('before TLS', () => {
  async function startTls(options: Options = {}): Promise<void> {
    const directory = await mkdtemp(join(tmpdir(), 'cutthrough-proxy-'));
    const files = { tlsCert: join(directory, 'crt'), tlsKey: join(directory, 'key') };
    const how = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    await run('openssl', [...how, '-subj', '/CN=p', '-keyout', files.tlsKey, '-out', files.tlsCert]);
    onTestFinished(async () => await rm(directory, { recursive: true }));
    const listen = ['smtp://127.0.0.1:0', 'smtps://127.0.0.1:0'];
    proxy = await startProxy([{}], { ...BALANCED, ...files, listen, trust: ['203.0.113.9'], ...options });
  }
  const implicit = () => portOf(proxy.proxy.addresses.listen[1]!);

  it.each<[string, Buffer]>([
    ['version 1', Buffer.from(V1)],
    ['version 2', v2Tcp('203.0.113.9', 56324)],
  ])('it comes in clear on a smtps:// listener: %s', async (_, header) => {
    await startTls();
    const client = await open(implicit());
    client.write(header);
    await client.startTls();
    expect(await client.reply()).toMatch(/^220 /);
    await client.command('EHLO client.example');
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    await until(() => proxy.transactions().length === 1);
    expect(proxy.transactions()[0]).toMatchObject({ client: '203.0.113.9' });
    expect(proxy.sinks[0]!.messages[0]!.body.toString()).toMatch(/\(\[203\.0\.113\.9\]\)[\s\S]*with ESMTPS/);
  });

  it('the ClientHello may come in one segment with it', async () => {
    await startTls();
    // The handshake's first bytes are held back until they can go with the header.
    const plain = net.connect(implicit(), '127.0.0.1');
    await once(plain, 'connect');
    const write = plain.write.bind(plain);
    const [pair, far] = await pairOfSockets();
    far.once('data', (hello) => {
      write(Buffer.concat([Buffer.from(V1), hello]));
      far.pipe(plain).pipe(far);
    });
    const client = new Client(pair);
    proxy.clients.push(client);
    await client.startTls();
    expect(await client.reply()).toMatch(/^220 /);
    await client.command('EHLO client.example');
    expect(await relays(client)).toMatch(/^250/);
  });

  it('a ClientHello instead of it ends the connection', async () => {
    await startTls();
    const client = await open(implicit());
    await expect(client.startTls()).rejects.toThrow();
    await until(() => refusals().length === 1);
  });

  it('STARTTLS keeps the address', async () => {
    await startTls();
    const client = await behind(V1);
    expect(await client.command('STARTTLS')).toMatch(/^220 /);
    await client.startTls();
    await client.command('EHLO client.example');
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    await until(() => proxy.transactions().length === 1);
    expect(proxy.transactions()[0]).toMatchObject({ client: '203.0.113.9' });
  });

  it('a peer that resets after the header, in the handshake, harms nobody', async () => {
    await startTls();
    for (const more of ['', '\x16', '\x16\x03\x01\x02\x00', 'EHLO x\r\n']) {
      for (const end of ['reset', 'destroy'] as const) {
        const client = await open(implicit());
        client.write(Buffer.concat([Buffer.from(V1), Buffer.from(more, 'latin1')]));
        client[end]();
      }
    }
    const client = await open(implicit());
    client.write(V1);
    await client.startTls();
    expect(await client.reply()).toMatch(/^220 /);
  });

  /** Two ends of one connection on loopback. */
  async function pairOfSockets(): Promise<[net.Socket, net.Socket]> {
    const server = net.createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const near = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
    const [far] = (await once(server, 'connection')) as [net.Socket];
    server.close();
    far.on('error', () => {});
    onTestFinished(() => void far.destroy());
    return [near, far];
  }
});
