import { describe, expect, it } from 'vitest';
import type { Route, StaticHost, TlsPolicy } from '../../src/config.ts';
import type { Dane, TlsaRecord } from '../../src/routing/dane.ts';
import type { MtaSts } from '../../src/routing/mta-sts.ts';
import type { StsPolicy } from '../../src/routing/mta-sts-policy.ts';
import type { Candidate, MxResult } from '../../src/routing/mx.ts';
import { createRouter, type NextHop, refusalOfRoute } from '../../src/routing/routes.ts';
import { formatReply } from '../../src/smtp/reply.ts';

const RELAY: StaticHost = {
  protocol: 'smtp',
  host: '10.0.0.5',
  port: 25,
  auth: null,
  tls: 'opportunistic',
  sni: null,
  ca: null,
};

function via(pattern: string, ...hosts: Partial<StaticHost>[]): Route {
  return { pattern, nextHop: { kind: 'static', hosts: hosts.map((host) => ({ ...RELAY, ...host })) } };
}

const AUTHORITIES = new Map([
  ['a.pem', 'PEM a'],
  ['b.pem', 'PEM b'],
]);

const mxRoute = (pattern: string): Route => ({ pattern, nextHop: { kind: 'mx' } });

function candidate(host: string, address: string, preference = 10): Candidate {
  return { host, address, preference, secure: false, alias: null };
}

type Options = { mxPort?: number; mxTls?: TlsPolicy; policies?: Record<string, StsPolicy>; dane?: Dane };

function router(routes: readonly Route[], answers: Record<string, MxResult> = {}, options: Options = {}) {
  const asked: string[] = [];
  const failures: string[] = [];
  const { policies, ...given } = options;
  const mtaSts: MtaSts = {
    policyFor: async (domain) => policies?.[domain] ?? null,
    reportFailure: (...failure) => void failures.push(failure.join(' ')),
  };
  const mx = {
    async resolve(domain: string): Promise<MxResult> {
      asked.push(domain);
      return answers[domain] ?? { kind: 'no-domain' };
    },
  };
  const defaults = {
    authorities: AUTHORITIES,
    mxAuthorities: null,
    mxPort: 25,
    mxTls: 'opportunistic',
  } as const;
  const { route } = createRouter({
    routes,
    mx,
    ...defaults,
    mtaSts: policies ? mtaSts : null,
    dane: null,
    ...given,
  });
  async function nextHop(domain: string): Promise<NextHop> {
    const found = await route(domain);
    if (found.kind !== 'next-hop') throw new Error(`${domain}: ${found.kind}`);
    return found.nextHop;
  }
  return { route, nextHop, asked, failures };
}

describe('the pattern that wins', () => {
  const routes = [
    via('*', { host: 'any.test' }),
    via('.example', { host: 'tld.test' }),
    via('.sub.example', { host: 'suffix.test' }),
    via('sub.example', { host: 'exact.test' }),
    via('deep.a.sub.example', { host: 'deep.test' }),
  ];

  it.each([
    ['sub.example', 'exact.test'],
    ['a.sub.example', 'suffix.test'],
    ['b.a.sub.example', 'suffix.test'],
    ['deep.a.sub.example', 'deep.test'],
    ['more.deep.a.sub.example', 'suffix.test'],
    ['other.example', 'tld.test'],
    ['notsub.example', 'tld.test'],
    ['example', 'any.test'],
    ['sub.example.com', 'any.test'],
    ['[192.0.2.1]', 'any.test'],
    ['[IPv6:2001:db8::1]', 'any.test'],
  ])('for %s is the most specific one', async (domain, host) => {
    for (const order of [routes, routes.toReversed()]) {
      expect((await router(order).nextHop(domain)).hosts[0]?.host).toBe(host);
    }
  });

  it.each(['example.com', 'notexample.org', '[192.0.2.1]', 'constructor', '__proto__'])(
    'is none for %s, which therefore has no route',
    async (domain) => {
      const { route, asked } = router([mxRoute('example.org'), mxRoute('.example.com')]);
      expect(await route(domain)).toEqual({ kind: 'no-route' });
      expect(asked).toEqual([]);
    },
  );

  it('may send a domain to its mail exchangers although its parent has a server', async () => {
    const { nextHop } = router([via('*', {}), mxRoute('a.example')], {
      'a.example': { kind: 'hosts', candidates: [candidate('mx.a.example', '192.0.2.1')] },
    });
    expect((await nextHop('a.example')).label).toBe('mx.a.example');
    expect((await nextHop('b.example')).label).toBe('smtp://10.0.0.5:25');
  });
});

describe('a static next hop', () => {
  it("has the operator's hosts in the operator's order, names left for the time of connecting", async () => {
    const auth = { user: 'u', pass: 'secret' };
    const { nextHop, asked } = router([
      via(
        '*',
        { host: 'relay.test', port: 587, auth, tls: 'verify', sni: 'mx.test', ca: 'a.pem' },
        { protocol: 'lmtp', host: '::1', port: 24 },
      ),
    ]);
    const found = await nextHop('a.example');
    expect(found.hosts).toEqual([
      {
        ...{ protocol: 'smtp', host: 'relay.test', address: null, port: 587, auth },
        ...{ tls: 'verify', sni: 'mx.test', ca: 'PEM a', demand: null },
      },
      {
        ...{ protocol: 'lmtp', host: '::1', address: '::1', port: 24, auth: null },
        ...{ tls: 'opportunistic', sni: null, ca: null, demand: null },
      },
    ]);
    expect(found.label).toBe('smtp://relay.test:587 (+1 more)');
    expect(asked).toEqual([]);
  });

  it('is another one where another name is verified, or other authorities are trusted', async () => {
    const queries = [{}, { sni: 'x.test' }, { ca: 'a.pem' }, { ca: 'b.pem' }, { ca: 'b.pem', sni: 'x.test' }];
    const { nextHop } = router(queries.map((query, at) => via(`${at}.example`, { tls: 'verify', ...query })));
    const keys = await Promise.all(queries.map(async (_, at) => (await nextHop(`${at}.example`)).key));
    expect(new Set(keys).size).toBe(queries.length);
  });

  it('shows no credentials in label or key', async () => {
    const { nextHop } = router([via('*', { auth: { user: 'someone', pass: 'secret' } })]);
    const { key, label } = await nextHop('a.example');
    expect(key + label).not.toMatch(/someone|secret/);
  });

  it('has a label of bounded length', async () => {
    const { nextHop } = router([via('*', { host: `${'a'.repeat(63)}.${'b'.repeat(63)}.test` })]);
    expect((await nextHop('a.example')).label.length).toBeLessThan(130);
  });

  it('writes IPv6 addresses in brackets', async () => {
    expect((await router([via('*', { host: '2001:db8::1' })]).nextHop('a.example')).label).toBe(
      'smtp://[2001:db8::1]:25',
    );
  });

  it('is shared by all domains that lead to the same hosts', async () => {
    const { nextHop } = router([via('a.example', {}), via('.example', {}), via('*', { port: 26 })]);
    expect((await nextHop('a.example')).key).toBe((await nextHop('b.example')).key);
    expect((await nextHop('a.example')).key).not.toBe((await nextHop('c.test')).key);
  });

  it.each<[string, Partial<StaticHost>]>([
    ['protocol', { protocol: 'lmtp' }],
    ['host', { host: '10.0.0.6' }],
    ['port', { port: 587 }],
    ['TLS policy', { tls: 'verify' }],
    ['user', { auth: { user: 'a', pass: 'x' } }],
  ])('is another one with another %s', async (_what, other) => {
    const { nextHop } = router([via('a.example', {}), via('b.example', other)]);
    expect((await nextHop('a.example')).key).not.toBe((await nextHop('b.example')).key);
  });

  it('is another one with another password or another order', async () => {
    const as = (pass: string) => ({ auth: { user: 'a', pass } });
    const { nextHop } = router([
      via('a.example', as('x'), { port: 26 }),
      via('b.example', as('y'), { port: 26 }),
      via('c.example', { port: 26 }, as('x')),
    ]);
    const keys = await Promise.all(['a.example', 'b.example', 'c.example'].map(nextHop));
    expect(new Set(keys.map(({ key }) => key)).size).toBe(3);
  });
});

describe('a next hop of mail exchangers', () => {
  const one = candidate('mx1.example', '192.0.2.1');
  const two = candidate('mx2.example', '2001:db8::2');
  const hosts = (...candidates: Candidate[]): MxResult => ({ kind: 'hosts', candidates });

  it('has their addresses in the order of the resolver, at the MX port with the MX TLS policy', async () => {
    const answers = { 'a.example': hosts(two, one) };
    const { nextHop } = router([mxRoute('*')], answers, { mxPort: 2525, mxTls: 'verify' });
    const common = {
      protocol: 'smtp',
      port: 2525,
      auth: null,
      tls: 'verify',
      sni: null,
      ca: null,
      demand: null,
    };
    const found = await nextHop('a.example');
    expect(found.hosts).toEqual([
      { ...common, host: 'mx2.example', address: '2001:db8::2' },
      { ...common, host: 'mx1.example', address: '192.0.2.1' },
    ]);
    expect(found.label).toBe('mx1.example:2525 (+1 more)');
  });

  it('has one key and one label however its hosts were shuffled, and for every domain that has them', async () => {
    const answers = { 'a.example': hosts(one, two), 'b.example': hosts(two, one), 'c.example': hosts(one) };
    const { nextHop } = router([mxRoute('*')], answers);
    const [a, b, c] = await Promise.all(['a.example', 'b.example', 'c.example'].map(nextHop));
    expect([b?.key, b?.label]).toEqual([a?.key, a?.label]);
    expect(c?.key).not.toBe(a?.key);
  });

  it('is named after the most preferred host', async () => {
    const answers = {
      'a.example': hosts({ ...two, preference: 5 }, one, candidate('mx2.example', '192.0.2.2', 5)),
    };
    expect((await router([mxRoute('*')], answers).nextHop('a.example')).label).toBe('mx2.example (+1 more)');
  });

  it('is shared by names of one server only where names are not verified', async () => {
    const answers = { 'a.example': hosts(one), 'b.example': hosts({ ...one, host: 'alias.example' }) };
    const keys = async (mxTls: 'opportunistic' | 'verify') => {
      const { nextHop } = router([mxRoute('*')], answers, { mxTls });
      return new Set([(await nextHop('a.example')).key, (await nextHop('b.example')).key]).size;
    };
    expect([await keys('opportunistic'), await keys('verify')]).toEqual([1, 2]);
  });

  it('never shares a key with a static next hop', async () => {
    const { nextHop } = router([mxRoute('a.example'), via('*', { host: '192.0.2.1' })], {
      'a.example': hosts(one),
    });
    expect((await nextHop('a.example')).key).not.toBe((await nextHop('b.example')).key);
  });
});

describe('an MTA-STS policy of the domain', () => {
  const answers: Record<string, MxResult> = Object.fromEntries(
    ['a.example', 'b.example', 'c.example'].map((domain) => [
      domain,
      {
        kind: 'hosts',
        candidates: [candidate('mx1.example', '192.0.2.1', 10), candidate('mx2.test', '192.0.2.2', 20)],
      },
    ]),
  );
  const policy = (mode: StsPolicy['mode'], ...mx: string[]): StsPolicy => ({
    mode,
    mx,
    maxAgeSeconds: 86_400,
  });
  const withPolicies = (policies: Record<string, StsPolicy>, mxTls: TlsPolicy = 'opportunistic') =>
    router([mxRoute('*')], answers, { policies, mxTls });

  it.each(['off', 'opportunistic', 'require', 'verify'] as const)(
    'that is enforced leaves the hosts that it names, and these are verified (--downstream-tls %s)',
    async (mxTls) => {
      const { nextHop } = withPolicies({ 'a.example': policy('enforce', '*.example') }, mxTls);
      const { hosts, label } = await nextHop('a.example');
      const demand = { by: 'mta-sts', mode: 'enforce', domain: 'a.example' };
      expect(hosts).toMatchObject([{ host: 'mx1.example', tls: 'verify', demand }]);
      expect(label).toBe('mx1.example');
    },
  );

  it('that is enforced and names no host gives none for now', async () => {
    const { route } = withPolicies({ 'a.example': policy('enforce', 'mx.elsewhere.test') });
    const found = await route('a.example');
    expect(found).toEqual({ kind: 'policy', reason: expect.stringContaining('a.example names none') });
    expect(formatReply(refusalOfRoute(found as { kind: 'policy'; reason: string }))).toMatch(/^451 4\.7\.5 /);
  });

  it('under test changes nothing but what is reported', async () => {
    const { nextHop, failures } = withPolicies({ 'a.example': policy('testing', 'mx2.test') });
    const [tested, plain] = [await nextHop('a.example'), await nextHop('b.example')];
    const demand = { by: 'mta-sts', mode: 'testing', domain: 'a.example' };
    expect(tested).toEqual({ ...plain, hosts: plain.hosts.map((host) => ({ ...host, demand })) });
    expect(failures).toEqual(['a.example mx1.example not named by the MTA-STS policy']);
  });

  it('of mode none demands nothing', async () => {
    const { nextHop } = withPolicies({ 'a.example': policy('none') });
    expect(await nextHop('a.example')).toEqual(await nextHop('b.example'));
  });

  it('keeps its mail apart from what goes to the same hosts unverified', async () => {
    const all = policy('enforce', 'mx1.example', 'mx2.test');
    const { nextHop } = withPolicies({ 'a.example': all, 'b.example': all });
    const keys = await Promise.all(
      ['a', 'b', 'c'].map(async (name) => (await nextHop(`${name}.example`)).key),
    );
    expect(keys[0]).toBe(keys[1]);
    expect(keys[2]).not.toBe(keys[0]);
  });
});

describe('the TLSA records of a host', () => {
  const RECORD: TlsaRecord = { usage: 3, selector: 1, matchingType: 1, data: Buffer.alloc(32) };

  /** The keys of two domains that share a host with these records. */
  async function keys(records: readonly TlsaRecord[] | null, secure = true): Promise<readonly string[]> {
    const one = { ...candidate('mx1.example', '192.0.2.1'), secure };
    const answers: Record<string, MxResult> = Object.fromEntries(
      ['a.example', 'b.example'].map((domain) => [domain, { kind: 'hosts', candidates: [one] }]),
    );
    const lookUp: Dane['lookUp'] = async (base) =>
      records ? { kind: 'records', base, records } : { kind: 'none' };
    const { nextHop } = router([mxRoute('*')], answers, { dane: { lookUp }, mxTls: 'require' });
    return [(await nextHop('a.example')).key, (await nextHop('b.example')).key];
  }

  it('keep its mail apart from what was not verified by the same ones', async () => {
    const other = { ...RECORD, data: Buffer.alloc(32, 1) };
    const found = await Promise.all([keys(null), keys([RECORD]), keys([other]), keys([RECORD, other])]);
    expect(new Set(found.map(([key]) => key)).size).toBe(4);
    expect(await keys([other, RECORD])).toEqual(found[3]);
  });

  it('are shared by domains, unless a name of the domain may have been what was verified', async () => {
    const shared = await keys([RECORD]);
    expect(shared[0]).toBe(shared[1]);
    const apart = await keys([{ ...RECORD, usage: 2 }]);
    expect(apart[0]).not.toBe(apart[1]);
  });

  it('are not asked for where DNSSEC has not proved the way', async () => {
    expect(await keys([RECORD], false)).toEqual(await keys(null));
  });
});

describe('what is no next hop', () => {
  it.each<MxResult>([
    { kind: 'null-mx' },
    { kind: 'no-domain' },
    { kind: 'temporary', reason: 'MX a.example: SERVFAIL' },
    { kind: 'forbidden' },
    { kind: 'unroutable', reason: 'no mail exchanger has an address' },
    { kind: 'loop' },
  ])('is passed on: $kind', async (result) => {
    expect(await router([mxRoute('*')], { 'a.example': result }).route('a.example')).toEqual(result);
  });
});
