// TLS on both sides: STARTTLS and implicit TLS from the upstream, every policy towards next hops, credentials, and
// certificates that are replaced while sessions run.
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import net, { type AddressInfo, type Socket } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join } from 'node:path';
import tls, { TLSSocket } from 'node:tls';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { parseConfig } from '../../src/config.ts';
import { Client } from '../support/client.ts';
import { portOf, QUICK, startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';

const run = promisify(execFile);

type Files = Readonly<{ cert: string; key: string }>;

let directory: string;
let first: Files;
let second: Files;

const openssl = await run('openssl', ['version']).then(
  () => true,
  () => false,
);
if (!openssl && process.env.CI) throw new Error('openssl is needed for these tests');

async function makeCertificate(name: string): Promise<Files> {
  const files = { cert: join(directory, `${name}.crt`), key: join(directory, `${name}.key`) };
  const how = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const what = ['-subj', `/CN=${name}`, '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-days', '2'];
  await run('openssl', [...how, ...what, '-keyout', files.key, '-out', files.cert]);
  return files;
}

beforeAll(async () => {
  if (!openssl) return;
  directory = await mkdtemp(join(tmpdir(), 'cutthrough-tls-'));
  [first, second] = await Promise.all([makeCertificate('first.example'), makeCertificate('second.example')]);
});
afterAll(async () => {
  if (openssl) await rm(directory, { recursive: true });
});

let proxy: TestProxy | null = null;
afterEach(async () => {
  await proxy?.close();
  proxy = null;
});

const gauge = async (name: string) => await proxy!.metric(`cutthrough_${name}`);

/** A next hop that knows TLS, and how to do it wrong. */
type PeerOptions = {
  implicit?: boolean;
  /** The reply to STARTTLS; what it has behind its first line is plaintext that does not belong there. */
  startTls?: string | null;
  /** Instead of a handshake: close, or write what is no TLS record. */
  handshake?: 'close' | 'garbage' | 'stall';
  auth?: string;
  refuseAuth?: boolean;
  host?: string;
};

type Heard = { line: string; secure: boolean };

class TlsPeer {
  readonly heard: Heard[] = [];
  readonly messages: string[] = [];
  readonly sockets: Socket[] = [];
  readonly #options: PeerOptions;
  readonly #credentials: tls.SecureContextOptions;
  readonly #server: net.Server;

  constructor(options: PeerOptions, credentials: tls.SecureContextOptions) {
    this.#options = options;
    this.#credentials = credentials;
    this.#server = net.createServer({ noDelay: true }, (socket) => {
      this.sockets.push(socket);
      socket.on('error', () => {});
      if (options.implicit) this.#secure(socket, true);
      else this.#serve(socket, true);
    });
  }

  static async start(options: PeerOptions = {}, files = first): Promise<TlsPeer> {
    const [cert, key] = await Promise.all([readFile(files.cert), readFile(files.key)]);
    const peer = new TlsPeer(options, { cert, key });
    peer.#server.listen(0, options.host ?? '127.0.0.1');
    await once(peer.#server, 'listening');
    onTestFinished(async () => {
      for (const socket of peer.sockets) socket.destroy();
      await new Promise((resolve) => peer.#server.close(resolve));
    });
    return peer;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  lines(verb: string): Heard[] {
    return this.heard.filter(({ line }) => line.startsWith(verb));
  }

  #secure(socket: Socket, greet: boolean): void {
    switch (this.#options.handshake) {
      case 'close':
        return void socket.destroy();
      case 'garbage':
        return void socket.write('500 what is this\r\n');
      case 'stall':
        return void socket.resume();
      default: {
        const secured = new TLSSocket(socket, {
          isServer: true,
          secureContext: tls.createSecureContext(this.#credentials),
        });
        secured.on('error', () => {});
        secured.on('end', () => void secured.destroy());
        // It has taken over the handle; the one below is not told of its end in every case.
        this.sockets.splice(this.sockets.indexOf(socket), 1, secured);
        this.#serve(secured, greet);
      }
    }
  }

  #serve(socket: Socket, greet: boolean): void {
    const secure = socket instanceof TLSSocket;
    let buffer = '';
    let body = false;
    const say = (text: string) => socket.write(`${text}\r\n`);
    const onLine = (line: string): void => {
      this.heard.push({ line, secure });
      const verb = line.slice(0, 4).toUpperCase();
      switch (verb) {
        case 'EHLO': {
          const offers = ['PIPELINING', ...(this.#options.auth ? [`AUTH ${this.#options.auth}`] : [])];
          if (!secure && this.#options.startTls !== null) offers.push('STARTTLS');
          return void say(
            ['250-peer.example', ...offers.map((offer) => `250-${offer}`), '250 OK'].join('\r\n'),
          );
        }
        case 'STAR': {
          const reply = this.#options.startTls ?? '220 go ahead';
          socket.write(`${reply}\r\n`);
          if (!reply.startsWith('220')) return;
          socket.removeAllListeners('data');
          return this.#secure(socket, false);
        }
        case 'AUTH':
          if (this.#options.refuseAuth) return void say('535 5.7.8 no');
          if (line === 'AUTH LOGIN') return void say('334 VXNlcm5hbWU6');
          return void say('235 2.7.0 ok');
        case 'DATA':
          body = true;
          return void say('354 go');
        case 'QUIT':
          return void socket.end('221 bye\r\n');
        case 'MAIL':
        case 'RCPT':
        case 'RSET':
          return void say('250 2.0.0 ok');
        default:
          // The two steps of AUTH LOGIN.
          return void say(line === btoa('user') ? '334 UGFzc3dvcmQ6' : '235 2.7.0 ok');
      }
    };
    socket.on('data', (chunk: Buffer) => {
      buffer += chunk.toString('latin1');
      for (;;) {
        const end = body ? `\r\n.\r\n` : '\r\n';
        const at = buffer.indexOf(end);
        if (at === -1) return;
        const text = buffer.slice(0, at);
        buffer = buffer.slice(at + end.length);
        if (!body) onLine(text);
        else {
          this.messages.push(text);
          body = false;
          say('250 2.0.0 queued');
        }
      }
    });
    if (greet) say('220 peer.example ESMTP');
  }
}

const withCertificate = (files: Files): Options => ({ tlsCert: files.cert, tlsKey: files.key });

describe.skipIf(!openssl)('from the upstream', () => {
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

describe.skipIf(!openssl)('towards a next hop', () => {
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
      const peer = await TlsPeer.start();
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
      const peer = await TlsPeer.start({ handshake });
      expect(await send(await startTo(peer, '', { connectRetries: 0 }))).toMatch(/^250 /);
      expect(peer.lines('MAIL')).toMatchObject([{ secure: false }]);
      expect(peer.messages).toHaveLength(1);
      expect(await attempts('tls')).toBe(1);
      expect(await attempts('ok')).toBe(1);
    },
  );

  it('goes on in clear when STARTTLS is refused (opportunistic)', async () => {
    const peer = await TlsPeer.start({ startTls: '454 4.7.0 not now' });
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
      const peer = await TlsPeer.start(how);
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

  it('does not use TLS with off', async () => {
    const peer = await TlsPeer.start();
    expect(await send(await startTo(peer, '?tls=off'))).toMatch(/^250 /);
    expect(peer.lines('STARTTLS')).toHaveLength(0);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: false }]);
  });

  it('smtps:// is TLS from the first byte', async () => {
    const peer = await TlsPeer.start({ implicit: true });
    expect(await send(await startTo(peer, '', {}, 'smtps'))).toMatch(/^250 /);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
    expect(peer.lines('EHLO')).toHaveLength(1);
  });

  it.each([
    ['smtps:// with a certificate that does not verify', '?tls=verify', { implicit: true }],
    ['smtps:// with a broken handshake', '', { implicit: true, handshake: 'close' }],
    ['smtps:// with a stalled handshake', '', { implicit: true, handshake: 'stall' }],
  ] satisfies [string, string, PeerOptions][])('never falls back from %s', async (_, query, how) => {
    const peer = await TlsPeer.start(how);
    const client = await startTo(peer, query, { connectRetries: 0 }, 'smtps');
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^451 4\.4\.1 /);
    expect(peer.heard).toHaveLength(0);
    await until(() => peer.sockets.every(({ destroyed }) => destroyed));
  });

  it('discards plaintext that a next hop (or who is in between) sends behind its 220', async () => {
    const injected =
      '220 go ahead\r\n250-peer.example\r\n250-XINJECTED\r\n250 SIZE 1\r\n250 2.0.0 ok\r\n250 ok';
    const peer = await TlsPeer.start({ startTls: injected });
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
    const peer = await TlsPeer.start();
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
      const peer = await TlsPeer.start({ auth: 'LOGIN PLAIN' });
      expect(await send(await startTo(peer, '', authRoute(peer)))).toMatch(/^250/);
      expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: true }]);
    });

    it('go by AUTH LOGIN where nothing else is offered', async () => {
      const peer = await TlsPeer.start({ auth: 'LOGIN' });
      expect(await send(await startTo(peer, '', authRoute(peer)))).toMatch(/^250/);
      const at = peer.heard.findIndex(({ line }) => line === 'AUTH LOGIN');
      expect(peer.heard.slice(at, at + 3)).toEqual([
        { line: 'AUTH LOGIN', secure: true },
        { line: btoa('user'), secure: true },
        { line: btoa('pa%ss'), secure: true },
      ]);
    });

    it('go over smtps://', async () => {
      const peer = await TlsPeer.start({ auth: 'PLAIN', implicit: true });
      expect(await send(await startTo(peer, '', authRoute(peer, '', '127.0.0.1', 'smtps')))).toMatch(/^250/);
      expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: true }]);
    });

    it('go in clear over loopback', async () => {
      const peer = await TlsPeer.start({ auth: 'PLAIN', startTls: null });
      expect(await send(await startTo(peer, '', authRoute(peer)))).toMatch(/^250/);
      expect(peer.lines('AUTH')).toEqual([{ line: PLAIN, secure: false }]);
    });

    it('that are refused make the next hop unreachable, and the reply does not tell them', async () => {
      const peer = await TlsPeer.start({ auth: 'PLAIN', refuseAuth: true });
      const client = await startTo(peer, '', authRoute(peer));
      await client.command('MAIL FROM:<s@src.example>');
      const reply = await client.command('RCPT TO:<u@a.example>');
      expect(reply).toMatch(/^451 4\.4\.1 /);
      expect(reply + JSON.stringify(proxy!.log)).not.toMatch(/pa%|user:|dXNlc/);
      await until(() => peer.sockets.every(({ destroyed }) => destroyed));
    });

    const outside = Object.values(networkInterfaces())
      .flat()
      .find((each) => each?.family === 'IPv4' && !each.internal)?.address;

    describe.skipIf(outside === undefined)('beyond loopback', () => {
      const atOutside = async (how: PeerOptions) => await TlsPeer.start({ ...how, host: outside! });

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

describe.skipIf(!openssl)('a reload', () => {
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
    expect(await subject(plainPort, false)).toBe('first.example');
    await running.reload(configOf({ listen: LISTEN, route, ...withCertificate(second) }));
    expect(await subject(plainPort, false)).toBe('second.example');
    expect(await subject(securePort, true)).toBe('second.example');
    before.write('x\r\n.\r\n');
    expect(await before.reply()).toMatch(/^250/);
    expect(await before.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
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
