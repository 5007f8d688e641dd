import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createMxResolver, type DnsClient, systemDns } from '../../src/routing/mx.ts';
import { type DnsServer, startDnsServer, type Zone } from '../support/dns-server.ts';

/** For servers that are never going to answer. */
const SHORT_TRY_MS = 100;

const ZONE: Zone = {
  'a.example': {
    MX: [
      [10, 'mx1.a.example'],
      [20, 'mx2.a.example'],
    ],
    TXT: ['v=spf1 -all'],
  },
  'mx1.a.example': { A: ['192.0.2.1', '192.0.2.2'], AAAA: ['2001:db8::1'], ttl: 7 },
  'mx2.a.example': { CNAME: 'real.a.example' },
  'real.a.example': { A: ['192.0.2.3'] },
  'plain.example': { A: ['192.0.2.4'] },
  'null.example': { MX: [[0, '.']] },
  'txt.example': { TXT: ['no mail here'] },
  'broken.example': 'SERVFAIL',
  'refused.example': 'REFUSED',
  'silent.example': 'TIMEOUT',
  'half.example': { AAAA: 'SERVFAIL', A: ['192.0.2.5'] },
  'alias.example': { CNAME: 'A.example' },
  'dangling.example': { CNAME: 'nowhere.example' },
  'round.example': { CNAME: 'round.example' },
  'many.example': {
    MX: Array.from({ length: 60 }, (_, at) => [at, `a-rather-long-name-number-${at}.many.example`] as const),
  },
};

let server: DnsServer;
let dns: DnsClient;
let impatientDns: DnsClient;

beforeEach(async () => {
  server = await startDnsServer(ZONE);
  dns = systemDns([server.address]);
  impatientDns = systemDns([server.address], SHORT_TRY_MS);
});

afterEach(() => server.close());

describe('systemDns', () => {
  it('reads MX, A and AAAA records with the TTL of addresses', async () => {
    const answers = await dns.resolveMx('a.example');
    expect(answers.map(({ priority, exchange }) => ({ priority, exchange }))).toEqual(
      expect.arrayContaining([
        { priority: 10, exchange: 'mx1.a.example' },
        { priority: 20, exchange: 'mx2.a.example' },
      ]),
    );
    expect(await dns.resolve4('mx1.a.example')).toEqual([
      { address: '192.0.2.1', ttl: 7 },
      { address: '192.0.2.2', ttl: 7 },
    ]);
    expect(await dns.resolve6('mx1.a.example')).toEqual([{ address: '2001:db8::1', ttl: 7 }]);
  });

  it('follows CNAME records', async () => {
    expect(await dns.resolve4('mx2.a.example')).toEqual([{ address: '192.0.2.3', ttl: 60 }]);
    expect(await dns.resolveMx('alias.example')).toHaveLength(2);
  });

  it('has no cache of its own that would outlive the TTL that counts', async () => {
    await dns.resolve4('plain.example');
    server.zone = { 'plain.example': { A: ['192.0.2.44'] } };
    expect(await dns.resolve4('plain.example')).toEqual([{ address: '192.0.2.44', ttl: 60 }]);
    expect(server.count('plain.example', 'A')).toBe(2);
  });

  it('asks again by TCP when an answer is too long for UDP', async () => {
    expect(await dns.resolveMx('many.example')).toHaveLength(60);
    expect(server.count('many.example', 'MX')).toBe(2);
  });

  it.each([
    ['gone.example', 'ENOTFOUND'],
    ['txt.example', 'ENODATA'],
    ['dangling.example', 'ENOTFOUND'],
    ['broken.example', 'ESERVFAIL'],
    ['refused.example', 'EREFUSED'],
    ['round.example', 'ESERVFAIL'],
  ])('rejects for %s with %s', async (name, code) => {
    await expect(dns.resolveMx(name)).rejects.toMatchObject({ code });
    await expect(dns.resolve4(name)).rejects.toMatchObject({ code });
  });

  it('tries a silent server twice', async () => {
    await expect(impatientDns.resolveMx('silent.example')).rejects.toMatchObject({ code: 'ETIMEOUT' });
    expect(server.count('silent.example')).toBe(2);
  });

  it.each(['SERVFAIL', 'REFUSED'] as const)('asks the next server where one says %s', async (failure) => {
    const lame = await startDnsServer({ 'mx1.a.example': failure, 'gone.example': failure });
    const both = systemDns([lame.address, server.address]);
    expect(await both.resolve6('mx1.a.example')).toHaveLength(1);
    await expect(both.resolveMx('gone.example')).rejects.toMatchObject({ code: 'ENOTFOUND' });
    await expect(both.resolve4('real.a.example')).rejects.toMatchObject({ code: 'ENOTFOUND' });
    expect(server.count('real.a.example')).toBe(0);
    await lame.close();
  });
});

describe('the MX resolver over real DNS', () => {
  const resolveWith = async (client: DnsClient, domain: string) => {
    const mx = createMxResolver({
      dns: client,
      allow: [],
      isOwn: () => false,
      now: () => 0,
      random: () => 0.5,
    });
    const result = await mx.resolve(domain);
    return result.kind === 'hosts'
      ? result.candidates.map(({ host, address }) => `${host} ${address}`)
      : result;
  };

  it.each([
    [
      'a.example',
      [
        'mx1.a.example 2001:db8::1',
        'mx1.a.example 192.0.2.1',
        'mx1.a.example 192.0.2.2',
        'mx2.a.example 192.0.2.3',
      ],
    ],
    ['plain.example', ['plain.example 192.0.2.4']],
    ['half.example', ['half.example 192.0.2.5']],
    ['null.example', { kind: 'null-mx' }],
    ['gone.example', { kind: 'no-domain' }],
    ['txt.example', { kind: 'no-domain' }],
    ['dangling.example', { kind: 'no-domain' }],
    ['many.example', { kind: 'unroutable', reason: 'no mail exchanger has an address' }],
    ['broken.example', { kind: 'temporary', reason: 'MX broken.example: SERVFAIL' }],
    ['refused.example', { kind: 'temporary', reason: 'MX refused.example: REFUSED' }],
  ])('%s', async (domain, expected) => {
    expect(await resolveWith(dns, domain)).toEqual(expected);
  });

  it('is temporary when the server stays silent', async () => {
    const reason = 'MX silent.example: TIMEOUT';
    expect(await resolveWith(impatientDns, 'silent.example')).toEqual({ kind: 'temporary', reason });
  });

  it('is temporary when there is no server', async () => {
    const { address } = server;
    await server.close();
    const result = await resolveWith(systemDns([address], SHORT_TRY_MS), 'a.example');
    server = await startDnsServer(ZONE);
    expect(result).toMatchObject({
      kind: 'temporary',
      reason: expect.stringMatching(/^MX a\.example: (CONNREFUSED|TIMEOUT)$/),
    });
  });
});
