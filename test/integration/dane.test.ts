// DANE from DNS to the handshake, and the resolver behind it: AD bit, TLSA, TCP for what is truncated.
import { createHash, X509Certificate } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { probeAddress } from '../../src/commands/probe.ts';
import { validatingDns } from '../../src/routing/validating-dns.ts';
import { type Issued, issue, issueAuthority } from '../support/certificates.ts';
import type { Client } from '../support/client.ts';
import { startDnsServer, type Zone } from '../support/dns-server.ts';
import { configOf, startProxyOnly, type TestProxy } from '../support/proxy.ts';
import { type PeerOptions, TlsPeer } from '../support/tls-peer.ts';

const root = issueAuthority('root');
const leaf = issue({ name: 'leaf', for: ['mx.a.example'], issuer: root });
const own = issue({ name: 'own', for: ['whatever.example'], from: -9, until: -1 });

type Tlsa = readonly [number, number, number, Buffer];

function tlsa(usage: number, { cert }: Issued): Tlsa {
  return [usage, 0, 1, createHash('sha256').update(new X509Certificate(cert).raw).digest()];
}

async function serveZone(zone: Zone) {
  const dns = await startDnsServer(zone);
  onTestFinished(() => dns.close());
  return dns;
}

describe('the resolver', () => {
  const ZONE: Zone = {
    'a.example': { MX: [[10, 'mx.a.example']], TXT: ['one', 'two'], ad: true },
    'mx.a.example': { A: ['192.0.2.1'], AAAA: ['2001:db8::1'], ttl: 7 },
    'proved.example': { A: ['192.0.2.2'], ad: true },
    'alias.example': { CNAME: 'Proved.example', ad: true },
    'half.example': { CNAME: 'mx.a.example', ad: true },
    'none.example': { TXT: ['x'] },
    'null.example': { MX: [[0, '.']] },
    'round.example': { CNAME: 'round.example' },
    'broken.example': 'SERVFAIL',
    'refused.example': 'REFUSED',
    'silent.example': 'TIMEOUT',
    '_25._tcp.mx.a.example': { TLSA: [tlsa(3, leaf)], ad: true },
    '_25._tcp.large.example': { TLSA: [[2, 0, 0, Buffer.alloc(2_000, 7)]], ad: true },
  };

  it('tells what DNSSEC has proved', async () => {
    const { address } = await serveZone(ZONE);
    const dns = validatingDns([address]);
    expect(await dns.resolveMx('a.example')).toEqual([
      { exchange: 'mx.a.example', priority: 10, secure: true },
    ]);
    expect(await dns.resolve4('mx.a.example')).toEqual([{ address: '192.0.2.1', ttl: 7, secure: false }]);
    expect(await dns.resolve6('MX.a.example')).toEqual([{ address: '2001:db8::1', ttl: 7, secure: false }]);
    expect(await dns.resolve4('alias.example')).toEqual([
      { address: '192.0.2.2', ttl: 60, secure: true, alias: 'proved.example' },
    ]);
    expect(await dns.resolve4('half.example')).toMatchObject([{ secure: false, alias: 'mx.a.example' }]);
    expect(await dns.resolveTxt('a.example')).toEqual([['one'], ['two']]);
    expect(await dns.resolveMx('null.example')).toMatchObject([{ exchange: '.' }]);
    const [, , , data] = tlsa(3, leaf);
    expect(await dns.resolveTlsa('_25._tcp.mx.a.example')).toEqual({
      secure: true,
      records: [{ usage: 3, selector: 0, matchingType: 1, data }],
    });
  });

  it('asks by TCP for what is too long for UDP', async () => {
    const dns = await serveZone(ZONE);
    const { secure, records } = await validatingDns([dns.address]).resolveTlsa('_25._tcp.large.example');
    expect([secure, records[0]?.data.length]).toEqual([true, 2_000]);
    expect(dns.count('_25._tcp.large.example', 'TLSA')).toBe(2);
  });

  it.each([
    ['gone.example', 'ENOTFOUND', 1],
    ['none.example', 'ENODATA', 1],
    ['round.example', 'ESERVFAIL', 2],
    ['broken.example', 'ESERVFAIL', 2],
    ['refused.example', 'EREFUSED', 2],
    ['silent.example', 'ETIMEOUT', 2],
    [`${'a.'.repeat(124)}example`, 'EBADNAME', 0],
    [`${'a'.repeat(64)}.example`, 'EBADNAME', 0],
  ])('fails as node:dns does: %s with %s', async (name, code, queries) => {
    const dns = await serveZone(ZONE);
    await expect(validatingDns([dns.address], 100).resolve4(name)).rejects.toMatchObject({ code });
    expect(dns.queries).toHaveLength(queries);
  });

  it('asks the next server when one is not there, or fails', async () => {
    const [broken, good] = [await serveZone({ 'a.example': 'SERVFAIL' }), await serveZone(ZONE)];
    expect(
      await validatingDns(['127.0.0.1:1', broken.address, good.address]).resolveMx('a.example'),
    ).toHaveLength(1);
  });

  it('takes no answer to another question, and nothing that is none', async () => {
    const socket = createSocket('udp4');
    onTestFinished(() => void socket.close());
    socket.bind(0, '127.0.0.1');
    await once(socket, 'listening');
    socket.on('message', (query, { port, address }) => {
      const wrongId = Buffer.from(query);
      wrongId.writeUInt16BE(query.readUInt16BE(0) ^ 1);
      const response = Buffer.from(query);
      response.writeUInt16BE(0x8180, 2);
      response[13] = (response[13] ?? 0) ^ 2;
      wrongId.writeUInt16BE(0x8180, 2);
      for (const each of [wrongId, response, query, Buffer.from('nonsense'), Buffer.alloc(0)])
        socket.send(each, port, address);
    });
    const dns = validatingDns([`127.0.0.1:${socket.address().port}`], 100);
    await expect(dns.resolve4('a.example')).rejects.toMatchObject({ code: 'ETIMEOUT' });
  });
});

describe('DANE', () => {
  let proxy: TestProxy | null = null;
  afterEach(async () => {
    await proxy?.close();
    proxy = null;
  });

  type Setup = {
    records?: readonly Tlsa[] | 'SERVFAIL' | 'TIMEOUT';
    peer?: PeerOptions;
    certificate?: Issued;
    /** The names whose answers aren't proved. */
    insecure?: readonly string[];
    extra?: Zone;
    options?: Options;
  };

  async function start({
    records = [],
    peer: how = {},
    certificate = leaf,
    insecure = [],
    extra = {},
    options = {},
  }: Setup) {
    const peer = await TlsPeer.start(how, { cert: certificate.cert + root.cert, key: certificate.key });
    const at = `_${peer.port}._tcp.mx.a.example`;
    const zone: Zone = {
      'a.example': { MX: [[10, 'mx.a.example']], ad: !insecure.includes('a.example') },
      'b.example': { MX: [[10, 'mx.a.example']], ad: true },
      'mx.a.example': { A: ['127.0.0.1'], ad: !insecure.includes('mx.a.example') },
      [at]: { TLSA: records, ad: !insecure.includes('TLSA') },
      ...extra,
    };
    const dns = await serveZone(zone);
    const given: Options = {
      ...{ route: ['*=mx'], mxPort: peer.port, mxAllow: ['127.0.0.0/8'], dns: [dns.address] },
      ...{ connectRetries: 0, dane: 'on', ...options },
    };
    proxy = await startProxyOnly(given);
    return { client: await proxy.client(), peer, dns, at, given };
  }

  const send = async (client: Client, ...to: string[]) =>
    await client.send('s@src.example', to, 'x: y\r\n\r\nx\r\n');

  async function rcpt(client: Client): Promise<string> {
    await client.command('MAIL FROM:<s@src.example>');
    return await client.command('RCPT TO:<u@a.example>');
  }

  it.each<[string, Setup]>([
    [
      'the certificate itself, self-signed, expired and for another name',
      { records: [tlsa(3, own)], certificate: own },
    ],
    ['its issuer', { records: [tlsa(2, root)] }],
    ['one of several', { records: [tlsa(3, own), tlsa(1, leaf), tlsa(2, root)] }],
  ])('delivers over TLS when the records name %s', async (_, setup) => {
    const { client, peer } = await start(setup);
    expect(await send(client, 'u@a.example')).toMatch(/^250 2\.0\.0 queued/);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
    expect(peer.names).toEqual(['mx.a.example']);
  });

  const wrongName = issue({ name: 'w', for: ['mx.c.example'], issuer: root });
  it.each<[string, Setup, RegExp]>([
    ['name another certificate', { records: [tlsa(3, own)] }, /not the one in DNS/],
    [
      'name its issuer, and it is for another name',
      { records: [tlsa(2, root)], certificate: wrongName },
      /another name/,
    ],
    ['match, but STARTTLS is not offered', { records: [tlsa(3, leaf)], peer: { startTls: null } }, /TLS/],
    [
      'match, but the handshake fails',
      { records: [tlsa(3, leaf)], peer: { handshake: 'close' } },
      /starttls/,
    ],
    [
      'cannot be used, and STARTTLS is not offered',
      { records: [tlsa(1, leaf)], peer: { startTls: null } },
      /TLS/,
    ],
  ])('defers when the records %s', async (_, setup, reason) => {
    const { client, peer } = await start(setup);
    const reply = await rcpt(client);
    expect(reply).toMatch(/^451 4\.4\.1 .*mx\.a\.example/);
    expect(reply).toMatch(reason);
    expect(peer.lines('MAIL')).toHaveLength(0);
    expect(await proxy!.metric('cutthrough_downstream_connect_attempts_total{result="tls"}')).toBe(1);
  });

  it('encrypts, without verifying anybody, when no record can be used', async () => {
    const { client, peer } = await start({ records: [tlsa(1, own)] });
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
  });

  it.each(['SERVFAIL', 'TIMEOUT'] as const)(
    'does not connect to a host whose lookup ends in %s',
    async (records) => {
      const { client, peer } = await start({ records, options: { rcptDeadline: '20s' } });
      await client.command('MAIL FROM:<s@src.example>');
      client.write('RCPT TO:<u@a.example>\r\n');
      expect(await client.reply(12_000)).toMatch(/^451 4\.7\.5 .*TLSA mx\.a\.example/);
      expect(peer.sockets).toHaveLength(0);
    },
  );

  it('goes on to the next host when the lookup for the first fails', async () => {
    const { client, peer, dns, at } = await start({});
    dns.zone = {
      ...dns.zone,
      'a.example': {
        MX: [
          [10, 'broken.example'],
          [20, 'mx.a.example'],
        ],
        ad: true,
      },
      'broken.example': { A: ['127.0.0.2'], ad: true },
      [at.replace('mx.a.example', 'broken.example')]: 'SERVFAIL',
    };
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(peer.sockets).toHaveLength(1);
  });

  it.each([['a.example'], ['mx.a.example'], ['TLSA']])(
    'believes no record where DNSSEC has not proved %s',
    async (name) => {
      const { client, dns, at } = await start({
        records: [tlsa(3, own)],
        peer: { startTls: null },
        insecure: [name],
      });
      expect(await send(client, 'u@a.example')).toMatch(/^250 /);
      expect(dns.count(at, 'TLSA')).toBe(name === 'TLSA' ? 1 : 0);
    },
  );

  it('without records leaves everything as it is', async () => {
    const { client, peer } = await start({ peer: { startTls: null } });
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: false }]);
  });

  it('is for domains without MX records too, and by the name that an alias leads to', async () => {
    const { client, peer, dns } = await start({});
    dns.zone = {
      'a.example': { CNAME: 'real.example', ad: true },
      'real.example': { A: ['127.0.0.1'], ad: true },
      [`_${peer.port}._tcp.real.example`]: { TLSA: [tlsa(3, leaf)], ad: true },
    };
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(peer.names).toEqual(['real.example']);
  });

  it('lets domains share a session that the records of the host vouch for', async () => {
    const { client, peer } = await start({ records: [tlsa(3, leaf)] });
    expect(await send(client, 'u@a.example', 'v@b.example')).toMatch(/^250 /);
    expect(peer.sockets).toHaveLength(1);
  });

  it.each<[string, Setup, string[]]>([
    ['records that match', { records: [tlsa(3, leaf)] }, ['policy DANE 3 0 1; verified by DANE']],
    ['records that do not', { records: [tlsa(3, own)] }, ['not the one in DNS', 'policy DANE 3 0 1']],
    [
      'records that cannot be used',
      { records: [tlsa(1, own)] },
      ['policy DANE without usable records, TLS require; not verified: '],
    ],
    ['no records', {}, ['policy TLS opportunistic; not verified: ']],
  ])('is what the probe shows with %s', async (_, setup, expected) => {
    const { given } = await start(setup);
    const { lines } = (await probeAddress(configOf(given), 'u@a.example'))!;
    const shown = lines((_colour, text) => text).map((line) => line.replace(/ +/g, ' '));
    for (const text of expected) expect(shown.join('\n')).toContain(text);
  });

  it('is off by default', async () => {
    const { client, dns } = await start({
      records: [tlsa(3, own)],
      peer: { startTls: null },
      options: { dane: 'off' },
    });
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(dns.queries.filter((query) => query.startsWith('TLSA'))).toEqual([]);
  });
});
