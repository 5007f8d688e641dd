// TLS on both sides: STARTTLS and implicit TLS from the upstream, every policy towards next hops, credentials, and
// certificates that are replaced while sessions run.
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { parseConfig } from '../../src/config.ts';
import { type Issued, issue, issueAuthority } from '../support/certificates.ts';
import { Client } from '../support/client.ts';
import { portOf, QUICK, startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { type PeerOptions, TlsPeer } from '../support/tls-peer.ts';

/** Names of PEM files. */
type Files = Readonly<{ cert: string; key: string }>;

let directory: string;
/** The next hops'; nobody vouches for it. */
const own = issue({ name: 'own.example', for: ['localhost', '127.0.0.1'] });
let first: Files;
let second: Files;

async function write({ name, cert, key }: Issued): Promise<Files> {
  const files = { cert: join(directory, `${name}.crt`), key: join(directory, `${name}.key`) };
  await Promise.all([writeFile(files.cert, cert), writeFile(files.key, key)]);
  return files;
}

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'cutthrough-tls-'));
  const both = ['first.example', 'second.example'].map((name) => issue({ name, for: ['127.0.0.1'] }));
  [first, second] = (await Promise.all(both.map((each) => write(each)))) as [Files, Files];
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

let proxy: TestProxy | null = null;
afterEach(async () => {
  await proxy?.close();
  proxy = null;
});

const gauge = async (name: string) => await proxy!.metric(`cutthrough_${name}`);

const withCertificate = (files: Files): Options => ({ tlsCert: files.cert, tlsKey: files.key });

describe('from the upstream', () => {
  async function start(options: Options = {}): Promise<TestProxy> {
    proxy = await startProxy([{}], { ...withCertificate(first), ...options });
    return proxy;
  }

  it('STARTTLS protects the session, and Received says ESMTPS', async () => {
    const { sinks } = await start();
    const client = await proxy!.client();
    expect(await client.command('STARTTLS')).toMatch(/^220 /);
    await client.startTls();
    expect(await client.command('EHLO client.example')).not.toMatch(/STARTTLS/);
    expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250/);
    expect(sinks[0]!.messages[0]!.body.toString()).toMatch(/with ESMTPS\s+\(TLSv1\.[23] \S+\)/);
    expect(await client.command('STARTTLS')).toMatch(/^503 /);
  });

  it('STARTTLS is offered only where there is a certificate', async () => {
    await start();
    expect(await (await Client.connect(proxy!.port)).command('EHLO c.example')).toMatch(/^250[- ]STARTTLS$/m);
    await proxy!.close();
    proxy = await startProxy([{}]);
    const client = await Client.connect(proxy.port);
    expect(await client.command('EHLO c.example')).not.toMatch(/STARTTLS/);
    expect(await client.command('STARTTLS')).toMatch(/^454 4\.7\.0 /);
    expect(await client.command('NOOP')).toMatch(/^250/);
    client.destroy();
  });

  it('what was learnt in clear is forgotten: EHLO and a transaction under way', async () => {
    const { sinks } = await start();
    const client = await proxy!.client();
    expect(await client.command('MAIL FROM:<clear@src.example>')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
    await client.command('STARTTLS');
    await client.startTls();
    expect(await client.command('RCPT TO:<v@a.example>')).toMatch(/^503 /);
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^503 /);
    expect(await client.command('EHLO client.example')).toMatch(/^250/);
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(sinks[0]!.messages.map(({ mail }) => mail)).toEqual([expect.stringContaining('<s@src.example>')]);
    expect(proxy!.transactions().map(({ result }) => result)).toEqual(['aborted', 'delivered']);
  });

  it.each([
    ['a whole command', 'STARTTLS\r\nMAIL FROM:<injected@evil.example>\r\n'],
    ['half a command', 'STARTTLS\r\nMAIL FROM:<injected@evil.ex'],
    ['hundreds of commands', `STARTTLS\r\n${'NOOP\r\n'.repeat(300)}`],
  ])('plaintext behind STARTTLS is discarded: %s', async (_, text) => {
    await start();
    const client = await proxy!.client();
    client.write(text);
    expect(await client.reply()).toMatch(/^220 /);
    await client.startTls();
    expect(await client.command('VRFY x')).toMatch(/^252/);
    expect(await client.command('EHLO client.example')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^503 /);
    expect(await gauge('transactions_active')).toBe(0);
  });

  it('smtps:// is TLS from the first byte', async () => {
    const { sinks } = await start({ listen: ['smtps://127.0.0.1:0', 'smtp://127.0.0.1:0'] });
    expect(proxy!.proxy.addresses.listen[0]).toMatch(/^smtps:\/\/127\.0\.0\.1:\d+$/);
    const socket = tls.connect({ port: proxy!.port, host: '127.0.0.1', rejectUnauthorized: false });
    const client = new Client(socket);
    expect(await client.reply()).toMatch(/^220 /);
    expect(await client.command('EHLO client.example')).not.toMatch(/STARTTLS/);
    expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250/);
    expect(sinks[0]!.messages[0]!.body.toString()).toMatch(/with ESMTPS\s/);
    client.destroy();
    expect(await proxy!.metric('cutthrough_upstream_connections_total{listener="smtps"}')).toBe(1);
  });

  it('--require-tls refuses MAIL in clear with 530 5.7.0', async () => {
    await start({ requireTls: true });
    const client = await proxy!.client();
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^530 5\.7\.0 /);
    await client.command('STARTTLS');
    await client.startTls();
    await client.command('EHLO client.example');
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  });

  it.each(['TLSv1', 'TLSv1.1'] as const)('%s is refused, and leaves nothing behind', async (version) => {
    await start({ listen: ['smtp://127.0.0.1:0', 'smtps://127.0.0.1:0'] });
    const old = { minVersion: version, maxVersion: version, ciphers: 'DEFAULT@SECLEVEL=0' } as const;
    const client = await proxy!.client();
    await client.command('STARTTLS');
    await expect(client.startTls(old)).rejects.toThrow();
    const port = portOf(proxy!.proxy.addresses.listen[1]!);
    const socket = tls.connect({ port, host: '127.0.0.1', rejectUnauthorized: false, ...old });
    await expect(once(socket, 'secureConnect')).rejects.toThrow();
    await until(async () => (await gauge('upstream_connections_active')) === 0);
  });

  it.each(['garbage', 'FIN', 'RST'])('a handshake that ends in %s ends the session', async (how) => {
    await start();
    const client = await proxy!.client();
    await client.command('MAIL FROM:<s@src.example>');
    await client.command('RCPT TO:<u@a.example>');
    await client.command('STARTTLS');
    if (how === 'garbage') client.write('MAIL FROM:<s@src.example>\r\n');
    else if (how === 'FIN') client.socket.end();
    else client.reset();
    await until(async () => (await gauge('upstream_connections_active')) === 0);
    await until(async () => (await gauge('downstream_sessions_active')) === 0);
    // The process has survived it.
    expect(await (await proxy!.client()).command('NOOP')).toMatch(/^250/);
  });

  /** The beginning of a ClientHello: a record that announces more than comes. */
  const HALF_HELLO = Buffer.from('16030100f8010000f40303', 'hex');

  it.each([
    ['nothing', Buffer.alloc(0)],
    ['half a ClientHello', HALF_HELLO],
  ])('a handshake that stalls after %s is given up after --idle-timeout', async (_, bytes) => {
    await start({ idleTimeout: '250ms' });
    const client = await proxy!.client();
    await client.command('STARTTLS');
    client.write(bytes);
    expect(await client.reply(3_000)).toBe('closed');
    await until(async () => (await gauge('upstream_connections_active')) === 0);
    expect(await (await proxy!.client()).command('NOOP')).toMatch(/^250/);
  });

  it.each(['STARTTLS', 'smtps://'])(
    'a handshake (%s) that comes octet by octet is given up as well',
    async (how) => {
      await start({ idleTimeout: '300ms', listen: ['smtp://127.0.0.1:0', 'smtps://127.0.0.1:0'] });
      const listener = how === 'STARTTLS' ? 0 : 1;
      const client = await Client.open(portOf(proxy!.proxy.addresses.listen[listener]!));
      if (how === 'STARTTLS') {
        await client.reply();
        await client.command('EHLO client.example');
        await client.command('STARTTLS');
      }
      client.write(HALF_HELLO);
      const began = performance.now();
      const more = setInterval(() => client.socket.writable && client.write('\0'), 20);
      onTestFinished(() => clearInterval(more));
      expect(await client.reply(3_000)).toBe('closed');
      expect(performance.now() - began).toBeLessThan(1_500);
    },
  );

  it('a handshake that stalls does not hold up draining', async () => {
    await start({ listen: ['smtp://127.0.0.1:0', 'smtps://127.0.0.1:0'] });
    const client = await proxy!.client();
    await client.command('STARTTLS');
    client.write(HALF_HELLO);
    const implicit = net.connect(portOf(proxy!.proxy.addresses.listen[1]!), '127.0.0.1');
    implicit.on('error', () => {});
    await once(implicit, 'connect');
    implicit.write(HALF_HELLO);
    const began = performance.now();
    await proxy!.proxy.close({ drainTimeoutMs: 200 });
    expect(performance.now() - began).toBeLessThan(1_500);
    expect(await client.reply()).toBe('closed');
  });
});

describe('towards a next hop', () => {
  async function startTo(peer: TlsPeer, query = '', options: Options = {}, scheme = 'smtp') {
    proxy = await startProxyOnly({ route: [`*=${scheme}://127.0.0.1:${peer.port}${query}`], ...options });
    return await proxy.client();
  }

  const send = async (client: Client) =>
    await client.send('s@src.example', ['u@a.example'], 'Subject: x\r\n\r\ntext\r\n');
  const attempts = async (result: string) =>
    await gauge(`downstream_connect_attempts_total{result="${result}"}`);

  it.each(['', '?tls=opportunistic', '?tls=require'])(
    'uses STARTTLS with a self-signed certificate ("%s")',
    async (query) => {
      const peer = await TlsPeer.start({}, own);
      expect(await send(await startTo(peer, query))).toMatch(/^250 2\.0\.0 queued/);
      expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
      expect(peer.lines('EHLO').map(({ secure }) => secure)).toEqual([false, true]);
      expect(peer.messages[0]).toMatch(/\r\nSubject: x\r\n\r\ntext$/);
      expect(await attempts('ok')).toBe(1);
    },
  );

  it.each(['close', 'garbage', 'stall'] as const)(
    'falls back to clear when the handshake ends in %s (opportunistic)',
    async (handshake) => {
      const peer = await TlsPeer.start({ handshake }, own);
      expect(await send(await startTo(peer, '', { connectRetries: 0 }))).toMatch(/^250 /);
      expect(peer.lines('MAIL')).toMatchObject([{ secure: false }]);
      expect(peer.messages).toHaveLength(1);
      expect(await attempts('tls')).toBe(1);
      expect(await attempts('ok')).toBe(1);
    },
  );

  it('goes on in clear when STARTTLS is refused (opportunistic)', async () => {
    const peer = await TlsPeer.start({ startTls: '454 4.7.0 not now' }, own);
    expect(await send(await startTo(peer))).toMatch(/^250 /);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: false }]);
  });

  it.each([
    ['require, not offered', '?tls=require', { startTls: null }],
    ['require, refused', '?tls=require', { startTls: '454 4.7.0 not now' }],
    ['require, handshake broken', '?tls=require', { handshake: 'close' }],
    ['require, handshake is no TLS', '?tls=require', { handshake: 'garbage' }],
    ['verify, self-signed', '?tls=verify', {}],
    ['verify by --downstream-tls, self-signed', '', {}],
    ['verify, not offered', '?tls=verify', { startTls: null }],
  ] satisfies [string, string, PeerOptions][])(
    'is not used without what is demanded: %s',
    async (_, query, how) => {
      const peer = await TlsPeer.start(how, own);
      const client = await startTo(peer, query, query === '' ? { downstreamTls: 'verify' } : {});
      await client.command('MAIL FROM:<s@src.example>');
      expect(await client.command('RCPT TO:<u@a.example>')).toMatch(
        /^451 4\.4\.1 .*127\.0\.0\.1.* 2 attempts/,
      );
      expect(peer.lines('MAIL')).toHaveLength(0);
      expect(await attempts('tls')).toBe(2);
      await until(() => peer.sockets.every(({ destroyed }) => destroyed));
    },
  );

  describe('whose authority is pinned', () => {
    let pinned: Issued;
    let between: Issued;
    let noAuthority: Issued;
    let other: Issued;
    let query: string;

    beforeAll(async () => {
      pinned = issueAuthority('pinned');
      between = issueAuthority('between', pinned);
      noAuthority = issue({ name: 'no authority', for: ['mx.example'], issuer: pinned });
      other = issueAuthority('other');
      query = `?ca=${(await write(pinned)).cert}`;
      await write(other);
    });

    const peerWith = async (leaf: Issued, chain = '', options: PeerOptions = {}) =>
      await TlsPeer.start(options, { cert: leaf.cert + chain, key: leaf.key });

    it.each(['smtp', 'smtps'])('is trusted over %s://, and hears the name of sni=', async (scheme) => {
      const leaf = issue({ name: 'leaf', for: ['mx.example'], issuer: between });
      const peer = await peerWith(leaf, between.cert, { implicit: scheme === 'smtps' });
      const client = await startTo(peer, `${query}&sni=mx.example&tls=verify`, {}, scheme);
      expect(await send(client)).toMatch(/^250 2\.0\.0 queued/);
      expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
      expect(peer.names).toEqual(['mx.example']);
      expect(await attempts('ok')).toBe(1);
    });

    it('is verified by its address without sni=, and ca= alone means verify', async () => {
      const peer = await peerWith(issue({ name: 'leaf', for: ['127.0.0.1'], issuer: pinned }));
      expect(await send(await startTo(peer, query, { downstreamTls: 'off' }))).toMatch(/^250 /);
      expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
      expect(peer.names).toEqual([false]);
    });

    it.each([
      ['the name is another', () => issue({ name: 'a', for: ['x.example'], issuer: pinned }), 'another name'],
      [
        'the certificate has expired',
        () => issue({ name: 'b', for: ['mx.example'], issuer: pinned, from: -9, until: -1 }),
        'expired',
      ],
      [
        'the certificate is not valid yet',
        () => issue({ name: 'c', for: ['mx.example'], issuer: pinned, from: 1 }),
        'not valid yet',
      ],
      [
        'another authority has signed',
        () => issue({ name: 'd', for: ['mx.example'], issuer: other }),
        'trusted authority',
      ],
      [
        'an authority of the same name has signed',
        () => issue({ name: 'e', for: ['mx.example'], issuer: issueAuthority('pinned') }),
        /451 4\.4\.1 /,
      ],
      ['it signs itself', () => issue({ name: 'f', for: ['mx.example'] }), 'trusted authority'],
      [
        'one that is no authority has signed',
        () => issue({ name: 'g', for: ['mx.example'], issuer: noAuthority }),
        'trusted authority',
      ],
    ] satisfies [string, () => Issued, string | RegExp][])(
      'is not used when %s, and the upstream hears why',
      async (_, leaf, reason) => {
        for (const [scheme, implicit] of [
          ['smtp', false],
          ['smtps', true],
        ] as const) {
          const peer = await peerWith(leaf(), noAuthority.cert, { implicit });
          const client = await startTo(peer, `${query}&sni=mx.example`, { connectRetries: 0 }, scheme);
          await client.command('MAIL FROM:<s@src.example>');
          const reply = await client.command('RCPT TO:<u@a.example>');
          expect(reply).toMatch(/^451 4\.4\.1 .* after 1 attempt: /);
          expect(reply).toMatch(reason);
          expect(peer.lines('MAIL')).toHaveLength(0);
          expect(await attempts('tls')).toBe(1);
          await proxy!.close();
        }
      },
    );

    it('is trusted by the new file after a reload, and the old config stays when it cannot be read', async () => {
      const peer = await peerWith(issue({ name: 'leaf', for: ['127.0.0.1'], issuer: other }));
      const file = join(directory, 'reloaded.pem');
      await writeFile(file, pinned.cert);
      const client = await startTo(peer, `?ca=${file}`, { connectRetries: 0 });
      expect(await send(client)).toMatch(/^554 5\.5\.1 /);
      expect(await attempts('tls')).toBe(1);
      const route = [`*=smtp://127.0.0.1:${peer.port}?ca=${file}`];
      const parsed = parseConfig({ file: { ...QUICK, route } });
      if (!parsed.ok) throw new Error(parsed.errors.join());
      await rm(file);
      await expect(proxy!.proxy.reload(parsed.config)).rejects.toThrow(/cannot be read/);
      expect(await send(await proxy!.client())).toMatch(/^554 5\.5\.1 /);
      expect(await attempts('tls')).toBe(2);
      await writeFile(file, other.cert);
      await proxy!.proxy.reload(parsed.config);
      expect(await send(await proxy!.client())).toMatch(/^250 /);
    });

    it('is an error at the start when the file holds no certificate', async () => {
      const route = [`*=smtp://127.0.0.1:1?ca=${first.key}`];
      await expect(startProxyOnly({ route })).rejects.toThrow(/holds no PEM certificate/);
    });
  });

  it('does not use TLS with off', async () => {
    const peer = await TlsPeer.start({}, own);
    expect(await send(await startTo(peer, '?tls=off'))).toMatch(/^250 /);
    expect(peer.lines('STARTTLS')).toHaveLength(0);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: false }]);
  });

  it('smtps:// is TLS from the first byte', async () => {
    const peer = await TlsPeer.start({ implicit: true }, own);
    expect(await send(await startTo(peer, '', {}, 'smtps'))).toMatch(/^250 /);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
    expect(peer.lines('EHLO')).toHaveLength(1);
  });

  it.each([
    ['smtps:// with a certificate that does not verify', '?tls=verify', { implicit: true }],
    ['smtps:// with a broken handshake', '', { implicit: true, handshake: 'close' }],
    ['smtps:// with a stalled handshake', '', { implicit: true, handshake: 'stall' }],
  ] satisfies [string, string, PeerOptions][])('never falls back from %s', async (_, query, how) => {
    const peer = await TlsPeer.start(how, own);
    const client = await startTo(peer, query, { connectRetries: 0 }, 'smtps');
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 /);
    expect(peer.heard).toHaveLength(0);
    await until(() => peer.sockets.every(({ destroyed }) => destroyed));
  });

  it('discards plaintext that a next hop (or who is in between) sends behind its 220', async () => {
    const injected =
      '220 go ahead\r\n250-peer.example\r\n250-XINJECTED\r\n250 SIZE 1\r\n250 2.0.0 ok\r\n250 ok';
    const peer = await TlsPeer.start({ startTls: injected }, own);
    const client = await startTo(peer, '?tls=require');
    // With the injected SIZE this would be 552.
    expect(await client.command('MAIL FROM:<s@src.example> SIZE=5000')).toMatch(/^250/);
    const rcpt = await client.command('RCPT TO:<u@a.example>');
    // Either the injected bytes break the session, or they are without effect.
    if (rcpt.startsWith('451')) return expect(peer.messages).toHaveLength(0);
    expect(rcpt).toMatch(/^250/);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('x: y\r\n\r\nz\r\n.\r\n');
    expect(await client.reply()).toBe('250 2.0.0 queued');
    expect(peer.messages).toHaveLength(1);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
  });

  it('drops a leg over TLS in mid-body without a dot, and without a tail', async () => {
    const peer = await TlsPeer.start({}, own);
    const client = await startTo(peer);
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write('Subject: x\r\n\r\ntext\r\n.');
    await until(async () => (await gauge('message_bytes_total{direction="in"}')) > 0);
    client.reset();
    await until(async () => (await gauge('downstream_sessions_active')) === 0);
    await until(() => peer.sockets.every(({ destroyed }) => destroyed));
    expect(peer.messages).toHaveLength(0);
  });

  describe('credentials', () => {
    const authRoute = (peer: TlsPeer, query = '', host = '127.0.0.1', scheme = 'smtp') => ({
      route: [`*=${scheme}://user:pa%25ss@${host}:${peer.port}${query}`],
    });
    const PLAIN = `AUTH PLAIN ${btoa('\0user\0pa%ss')}`;

    it('go by AUTH PLAIN over TLS', async () => {
      const peer = await TlsPeer.start({ auth: 'LOGIN PLAIN' }, own);
      expect(await send(await startTo(peer, '', authRoute(peer)))).toMatch(/^250/);
      expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: true }]);
    });

    it('go by AUTH LOGIN where nothing else is offered', async () => {
      const peer = await TlsPeer.start({ auth: 'LOGIN' }, own);
      expect(await send(await startTo(peer, '', authRoute(peer)))).toMatch(/^250/);
      const at = peer.heard.findIndex(({ line }) => line === 'AUTH LOGIN');
      expect(peer.heard.slice(at, at + 3)).toEqual([
        { line: 'AUTH LOGIN', secure: true },
        { line: btoa('user'), secure: true },
        { line: btoa('pa%ss'), secure: true },
      ]);
    });

    it('go over smtps://', async () => {
      const peer = await TlsPeer.start({ auth: 'PLAIN', implicit: true }, own);
      expect(await send(await startTo(peer, '', authRoute(peer, '', '127.0.0.1', 'smtps')))).toMatch(/^250/);
      expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: true }]);
    });

    it('go in clear over loopback', async () => {
      const peer = await TlsPeer.start({ auth: 'PLAIN', startTls: null }, own);
      expect(await send(await startTo(peer, '', authRoute(peer)))).toMatch(/^250/);
      expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: false }]);
    });

    it('that are refused make the next hop unreachable, and the reply does not tell them', async () => {
      const peer = await TlsPeer.start({ auth: 'PLAIN', refuseAuth: true }, own);
      const client = await startTo(peer, '', authRoute(peer));
      await client.command('MAIL FROM:<s@src.example>');
      const reply = await client.command('RCPT TO:<u@a.example>');
      expect(reply).toMatch(/^451 4\.4\.1 /);
      expect(reply + JSON.stringify(proxy!.log)).not.toMatch(/pa%|user:|dXNlc/);
      await until(() => peer.sockets.every(({ destroyed }) => destroyed));
    });

    it.each([
      ['no AUTH', {}],
      ['no mechanism of ours', { auth: 'GSSAPI XOAUTH2' }],
    ])('are not sent where %s is offered', async (_, offered) => {
      const peer = await TlsPeer.start(offered, own);
      const client = await startTo(peer, '', authRoute(peer));
      await client.command('MAIL FROM:<s@src.example>');
      expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 .*AUTH/);
      expect(peer.lines('AUTH')).toHaveLength(0);
      expect(peer.lines('MAIL')).toHaveLength(0);
    });

    const outside = Object.values(networkInterfaces())
      .flat()
      .find((each) => each?.family === 'IPv4' && !each.internal)?.address;

    describe.skipIf(outside === undefined)('beyond loopback', () => {
      const atOutside = async (how: PeerOptions) => await TlsPeer.start({ ...how, host: outside! }, own);

      it.each([
        ['without STARTTLS', { startTls: null }],
        ['with STARTTLS refused', { startTls: '454 4.7.0 not now' }],
        ['with a broken handshake', { handshake: 'close' }],
      ] satisfies [string, PeerOptions][])('do not go in clear %s', async (_, how) => {
        const peer = await atOutside({ auth: 'PLAIN', ...how });
        const client = await startTo(peer, '', authRoute(peer, '', outside));
        await client.command('MAIL FROM:<s@src.example>');
        expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 /);
        expect(peer.lines('AUTH')).toHaveLength(0);
        expect(peer.lines('MAIL')).toHaveLength(0);
      });

      it('go in clear with ?tls=off', async () => {
        const peer = await atOutside({ auth: 'PLAIN' });
        expect(await send(await startTo(peer, '', authRoute(peer, '?tls=off', outside)))).toMatch(/^250/);
        expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: false }]);
      });
    });
  });
});

describe('a reload', () => {
  function configOf(options: Options) {
    const parsed = parseConfig({ file: { ...QUICK, ...options } });
    if (!parsed.ok) throw new Error(parsed.errors.join('\n'));
    return parsed.config;
  }

  const subject = async (port: number, implicit: boolean) => {
    const client = implicit ? null : await Client.hello(port);
    await client?.command('STARTTLS');
    const socket = client?.socket ?? net.connect({ port, host: '127.0.0.1' });
    const secured = tls.connect({ socket, rejectUnauthorized: false });
    await once(secured, 'secureConnect');
    const { CN } = secured.getPeerCertificate().subject;
    secured.destroy();
    return CN;
  };

  const LISTEN = ['smtp://127.0.0.1:0', 'smtps://127.0.0.1:0'];

  it('gives new sessions the new certificate, and leaves running ones alone', async () => {
    proxy = await startProxy([{}], { listen: LISTEN, ...withCertificate(first) });
    const { proxy: running, sinks } = proxy;
    const [plainPort, securePort] = running.addresses.listen.map(portOf) as [number, number];
    const route = [`a.example=${sinks[0]!.url}`];
    const before = await proxy.client();
    await before.command('STARTTLS');
    await before.startTls();
    await before.command('EHLO client.example');
    expect(await before.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const implicit = new Client(
      tls.connect({ port: securePort, host: '127.0.0.1', rejectUnauthorized: false }),
    );
    expect(await implicit.reply()).toMatch(/^220 /);
    expect(await implicit.command('EHLO client.example')).toMatch(/^250/);
    expect(await subject(plainPort, false)).toBe('first.example');
    expect(await subject(securePort, true)).toBe('first.example');
    await running.reload(configOf({ listen: LISTEN, route, ...withCertificate(second) }));
    expect(await subject(plainPort, false)).toBe('second.example');
    expect(await subject(securePort, true)).toBe('second.example');
    before.write('x\r\n.\r\n');
    expect(await before.reply()).toMatch(/^250/);
    expect(await before.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(await implicit.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    for (const { socket } of [before, implicit])
      expect((socket as tls.TLSSocket).getPeerCertificate().subject.CN).toBe('first.example');
    implicit.destroy();
  });

  it('that adds a certificate makes new sessions offer STARTTLS', async () => {
    proxy = await startProxy([{}]);
    const before = await proxy.client();
    await proxy.proxy.reload(configOf(withCertificate(first)));
    expect(await before.command('EHLO client.example')).not.toMatch(/STARTTLS/);
    expect(await before.command('STARTTLS')).toMatch(/^454/);
    expect(await subject(proxy.port, false)).toBe('first.example');
  });

  it.each([
    ['a file that is not there', async () => ({ cert: join(directory, 'none'), key: first.key })],
    ['a key that belongs to another certificate', async () => ({ cert: second.cert, key: first.key })],
    [
      'a file that is no certificate',
      async () => {
        const cert = join(directory, 'broken.crt');
        await writeFile(cert, 'not a certificate');
        return { cert, key: first.key };
      },
    ],
  ])('with %s changes nothing at all', async (_, broken) => {
    proxy = await startProxy([{}], { listen: LISTEN, ...withCertificate(first) });
    const route = ['a.example=smtp://127.0.0.1:1'];
    const config = configOf({ listen: LISTEN, route, ...withCertificate(await broken()) });
    await expect(proxy.proxy.reload(config)).rejects.toThrow();
    const [plainPort, securePort] = proxy.proxy.addresses.listen.map(portOf) as [number, number];
    expect(await subject(plainPort, false)).toBe('first.example');
    expect(await subject(securePort, true)).toBe('first.example');
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  });
});
