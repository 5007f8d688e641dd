import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createMxResolver, type MxDeps, type MxResult } from '../../src/routing/mx.ts';

/** A string is the `code` that the query fails with. */
type Records = Readonly<{
  MX?: readonly (readonly [number, string])[] | string;
  A?: readonly string[] | string;
  AAAA?: readonly string[] | string;
  ttl?: number;
}>;
type Zone = Readonly<Record<string, Records | string>>;

/** As a resolver answers from `zone`; counts the queries. */
function zoneDns(zone: Zone) {
  const queries: string[] = [];
  async function answer(name: string, type: 'MX' | 'A' | 'AAAA') {
    queries.push(`${type} ${name}`);
    const entry = zone[name] ?? 'ENOTFOUND';
    const records = typeof entry === 'string' ? entry : (entry[type] ?? 'ENODATA');
    if (typeof records === 'string') throw Object.assign(new Error(`${type} ${name}`), { code: records });
    const ttl = typeof entry === 'string' ? 0 : (entry.ttl ?? 300);
    return records.map((record) => ({ record, ttl }));
  }
  const addresses = async (name: string, type: 'A' | 'AAAA') =>
    (await answer(name, type)).map(({ record, ttl }) => ({ address: String(record), ttl }));
  const dns: MxDeps['dns'] = {
    resolveMx: async (name) =>
      (await answer(name, 'MX')).map(({ record }) => ({
        priority: Number(record[0]),
        exchange: String(record[1]),
      })),
    resolve4: (name) => addresses(name, 'A'),
    resolve6: (name) => addresses(name, 'AAAA'),
  };
  return { dns, queries };
}

function resolver(zone: Zone, deps: Partial<MxDeps> = {}) {
  const { dns, queries } = zoneDns(zone);
  const clock = { ms: 1_000_000 };
  const mx = createMxResolver({
    dns,
    allow: [],
    isOwn: () => false,
    now: () => clock.ms,
    random: () => 0.999,
    ...deps,
  });
  return { ...mx, queries, clock };
}

/** `host address preference` of each candidate, else the result itself. */
function summary(result: MxResult): MxResult | string[] {
  if (result.kind !== 'hosts') return result;
  return result.candidates.map(({ host, address, preference }) => `${host} ${address} ${preference}`);
}

async function resolveIn(zone: Zone, domain = 'a.example', deps: Partial<MxDeps> = {}) {
  return summary(await resolver(zone, deps).resolve(domain));
}

const mx1 = { 'mx1.example': { A: ['192.0.2.1'] } };
const mx2 = { 'mx2.example': { A: ['192.0.2.2'] } };
const mx3 = { 'mx3.example': { A: ['192.0.2.3'] } };
const NO_ADDRESS = { kind: 'unroutable', reason: 'no mail exchanger has an address' };

describe('RFC 5321 §5.1', () => {
  it.each<[string, Zone, MxResult | string[]]>([
    [
      'uses the MX record',
      { 'a.example': { MX: [[10, 'mx1.example']] }, ...mx1 },
      ['mx1.example 192.0.2.1 10'],
    ],
    [
      'sorts by preference',
      {
        'a.example': {
          MX: [
            [30, 'mx3.example'],
            [10, 'mx1.example'],
            [20, 'mx2.example'],
          ],
        },
        ...mx1,
        ...mx2,
        ...mx3,
      },
      ['mx1.example 192.0.2.1 10', 'mx2.example 192.0.2.2 20', 'mx3.example 192.0.2.3 30'],
    ],
    [
      'takes a name once, at its best preference, however it is written',
      {
        'a.example': {
          MX: [
            [20, 'MX1.example.'],
            [10, 'mx1.EXAMPLE'],
            [15, 'mx2.example'],
            [30, 'mx1.example'],
          ],
        },
        ...mx1,
        ...mx2,
      },
      ['mx1.example 192.0.2.1 10', 'mx2.example 192.0.2.2 15'],
    ],
    [
      'takes preferences 0 and 65535',
      {
        'a.example': {
          MX: [
            [65535, 'mx2.example'],
            [0, 'mx1.example'],
          ],
        },
        ...mx1,
        ...mx2,
      },
      ['mx1.example 192.0.2.1 0', 'mx2.example 192.0.2.2 65535'],
    ],
    ['falls back to A without any MX', { 'a.example': { A: ['192.0.2.9'] } }, ['a.example 192.0.2.9 0']],
    [
      'falls back to AAAA without any MX',
      { 'a.example': { AAAA: ['2001:db8::9'] } },
      ['a.example 2001:db8::9 0'],
    ],
    [
      'falls back when the answer is empty',
      { 'a.example': { MX: [], A: ['192.0.2.9'] } },
      ['a.example 192.0.2.9 0'],
    ],
    [
      'does not fall back to A when there is an MX',
      { 'a.example': { MX: [[10, 'gone.example']], A: ['192.0.2.9'] } },
      NO_ADDRESS as MxResult,
    ],
    ['finds no domain at NXDOMAIN', {}, { kind: 'no-domain' }],
    ['finds no domain without MX and addresses', { 'a.example': {} }, { kind: 'no-domain' }],
    [
      'finds no domain in a name that cannot be asked for',
      { 'a.example': 'EBADNAME' },
      { kind: 'no-domain' },
    ],
    ['finds null MX (RFC 7505)', { 'a.example': { MX: [[0, '']], A: ['192.0.2.9'] } }, { kind: 'null-mx' }],
    ['finds null MX written as a dot', { 'a.example': { MX: [[0, '.']] } }, { kind: 'null-mx' }],
    ['finds null MX with any preference', { 'a.example': { MX: [[10, '.']] } }, { kind: 'null-mx' }],
    [
      'skips null MX beside others',
      {
        'a.example': {
          MX: [
            [0, '.'],
            [10, 'mx1.example'],
          ],
        },
        ...mx1,
      },
      ['mx1.example 192.0.2.1 10'],
    ],
    [
      'skips addresses and bad names as exchangers',
      {
        'a.example': {
          MX: [
            [1, '192.0.2.7'],
            [2, '2001:db8::7'],
            [3, 'bad name'],
            [4, 'a..b'],
            [5, '[192.0.2.7]'],
            [6, '127.1'],
            [10, 'mx1.example'],
          ],
        },
        ...mx1,
      },
      ['mx1.example 192.0.2.1 10'],
    ],
    [
      'cannot route to bad names alone',
      { 'a.example': { MX: [[10, '192.0.2.7']], A: ['192.0.2.9'] } },
      { kind: 'unroutable', reason: 'no mail exchanger has a valid name' },
    ],
    [
      'cannot route to hosts without addresses',
      {
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [20, 'gone.example'],
          ],
        },
        'mx1.example': {},
      },
      NO_ADDRESS as MxResult,
    ],
    [
      'goes on to the next host when one has no address',
      {
        'a.example': {
          MX: [
            [10, 'gone.example'],
            [20, 'mx2.example'],
          ],
        },
        ...mx2,
      },
      ['mx2.example 192.0.2.2 20'],
    ],
  ])('%s', async (_name, zone, expected) => {
    expect(await resolveIn(zone)).toEqual(expected);
  });

  it.each(['A.Example', 'a.example.', 'A.EXAMPLE.'])('reads %s as a.example', async (domain) => {
    expect(await resolveIn({ 'a.example': { A: ['192.0.2.9'] } }, domain)).toEqual(['a.example 192.0.2.9 0']);
  });

  it.each([
    '',
    '.',
    'a..example',
    'a.example..',
    'a b.example',
    `${'a'.repeat(64)}.example`,
    '192.0.2.1',
    'a\0.example',
  ])('asks nobody about %j, which is no domain', async (domain) => {
    const { resolve, queries } = resolver({});
    expect(await resolve(domain)).toEqual({ kind: 'no-domain' });
    expect(queries).toEqual([]);
  });

  it('asks about the most preferred exchangers only, when a zone has very many', async () => {
    const names = Array.from({ length: 100 }, (_, at) => `mx${at}.example`);
    const { resolve, queries } = resolver({ 'a.example': { MX: names.map((name, at) => [at, name]) } });
    await resolve('a.example');
    expect(queries).toHaveLength(1 + 2 * 16);
    expect(queries).toContain('A mx15.example');
  });
});

describe('both address families', () => {
  it('are tried by turns, IPv6 first', async () => {
    const zone = {
      'a.example': { MX: [[10, 'mx.example']] as const },
      'mx.example': { AAAA: ['2001:db8::1', '2001:db8::2', '2001:db8::3'], A: ['192.0.2.1', '192.0.2.2'] },
    };
    expect(await resolveIn(zone)).toEqual([
      'mx.example 2001:db8::1 10',
      'mx.example 192.0.2.1 10',
      'mx.example 2001:db8::2 10',
      'mx.example 192.0.2.2 10',
      'mx.example 2001:db8::3 10',
    ]);
  });

  it.each<[string, Records, string[]]>([
    ['A when AAAA fails', { AAAA: 'ESERVFAIL', A: ['192.0.2.1'] }, ['a.example 192.0.2.1 0']],
    ['AAAA when A fails', { AAAA: ['2001:db8::1'], A: 'ETIMEOUT' }, ['a.example 2001:db8::1 0']],
    ['A when AAAA says NXDOMAIN', { AAAA: 'ENOTFOUND', A: ['192.0.2.1'] }, ['a.example 192.0.2.1 0']],
    [
      'each address once, in canonical form',
      { AAAA: ['::ffff:192.0.2.1', '2001:DB8:0::1'], A: ['192.0.2.1', '192.0.2.1'] },
      ['a.example 2001:db8::1 0', 'a.example 192.0.2.1 0'],
    ],
  ])('give %s', async (_name, records, expected) => {
    expect(await resolveIn({ 'a.example': records })).toEqual(expected);
  });

  it('leave an address with the most preferred host although another lists it first', async () => {
    const zone: Zone = {
      'a.example': {
        MX: [
          [20, 'x.example'],
          [10, 'y.example'],
        ],
      },
      'x.example': { A: ['192.0.2.9'] },
      'y.example': { A: ['192.0.2.1', '192.0.2.2', '192.0.2.9'] },
    };
    expect(await resolveIn(zone)).toEqual([
      'y.example 192.0.2.1 10',
      'y.example 192.0.2.2 10',
      'y.example 192.0.2.9 10',
    ]);
  });

  it('leave an address of two hosts with the most preferred', async () => {
    const shared = { A: ['192.0.2.1'] };
    const zone: Zone = {
      'a.example': {
        MX: [
          [20, 'x.example'],
          [10, 'y.example'],
        ],
      },
      'x.example': shared,
      'y.example': shared,
    };
    expect(await resolveIn(zone)).toEqual(['y.example 192.0.2.1 10']);
  });
});

describe('failures for now', () => {
  it.each(['ESERVFAIL', 'EREFUSED', 'ETIMEOUT', 'ECONNREFUSED', 'EFORMERR', 'EBADRESP'])(
    '%s on MX is temporary, and the address records are not asked for',
    async (code) => {
      const { resolve, queries } = resolver({ 'a.example': { MX: code, A: ['192.0.2.9'] } });
      const reason = `MX a.example: ${code.slice(1)}`;
      expect(await resolve('a.example')).toEqual({ kind: 'temporary', reason });
      expect(queries).toEqual(['MX a.example']);
    },
  );

  it.each<[string, Zone, MxResult | string[]]>([
    [
      'are temporary when no other host has an address',
      {
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [20, 'gone.example'],
          ],
        },
        'mx1.example': 'ESERVFAIL',
      },
      { kind: 'temporary', reason: 'AAAA mx1.example: SERVFAIL' },
    ],
    [
      'are temporary when the other family has nothing',
      { 'a.example': { A: 'ETIMEOUT' } },
      { kind: 'temporary', reason: 'A a.example: TIMEOUT' },
    ],
    [
      'are temporary when all else is forbidden',
      {
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [20, 'bad.example'],
          ],
        },
        'mx1.example': 'ESERVFAIL',
        'bad.example': { A: ['127.0.0.1'] },
      },
      { kind: 'temporary', reason: 'AAAA mx1.example: SERVFAIL' },
    ],
    [
      'of one host leave the others',
      {
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [20, 'mx2.example'],
          ],
        },
        'mx1.example': 'ESERVFAIL',
        ...mx2,
      },
      ['mx2.example 192.0.2.2 20'],
    ],
  ])('%s', async (_name, zone, expected) => {
    expect(await resolveIn(zone)).toEqual(expected);
  });

  it('are not what a bug is: that rejects, and is not remembered', async () => {
    const bug = new TypeError('not a DNS error');
    const { dns } = zoneDns({ 'a.example': { A: ['192.0.2.9'] } });
    let calls = 0;
    const resolveMx: MxDeps['dns']['resolveMx'] = (name) =>
      calls++ === 0 ? Promise.reject(bug) : dns.resolveMx(name);
    const { resolve } = resolver({}, { dns: { ...dns, resolveMx } });
    await expect(resolve('a.example')).rejects.toBe(bug);
    expect(summary(await resolve('a.example'))).toEqual(['a.example 192.0.2.9 0']);
  });
});

describe('our own host', () => {
  const isOwn: MxDeps['isOwn'] = (host, address) => host === 'own.example' || address === '192.0.2.50';
  const four: Zone = {
    'a.example': {
      MX: [
        [10, 'mx1.example'],
        [20, 'own.example'],
        [20, 'mx2.example'],
        [30, 'mx3.example'],
      ],
    },
    'own.example': { A: ['192.0.2.60'] },
    ...mx1,
    ...mx2,
    ...mx3,
  };

  it.each<[string, Zone, MxResult | string[]]>([
    ['is dropped by name, with all that is equal or worse', four, ['mx1.example 192.0.2.1 10']],
    [
      'is dropped by address, with all that is equal or worse',
      {
        ...four,
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [20, 'alias.example'],
            [30, 'mx3.example'],
          ],
        },
        'alias.example': { A: ['192.0.2.49', '192.0.2.50'] },
      },
      ['mx1.example 192.0.2.1 10'],
    ],
    ['is known in mapped form too', { 'a.example': { AAAA: ['::ffff:192.0.2.50'] } }, { kind: 'loop' }],
    ['is a loop as the only exchanger', { 'a.example': { MX: [[10, 'OWN.example.']] } }, { kind: 'loop' }],
    [
      'is a loop as the most preferred',
      {
        'a.example': {
          MX: [
            [5, 'own.example'],
            [10, 'mx1.example'],
          ],
        },
        ...mx1,
      },
      { kind: 'loop' },
    ],
    [
      'is a loop among equals',
      {
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [10, 'own.example'],
          ],
        },
        ...mx1,
      },
      { kind: 'loop' },
    ],
    ['is a loop as an implicit exchanger', { 'a.example': { A: ['192.0.2.50'] } }, { kind: 'loop' }],
    [
      'is a loop even where its address is forbidden',
      { 'a.example': { MX: [[10, 'own.example']] }, 'own.example': { A: ['127.0.0.1'] } },
      { kind: 'loop' },
    ],
    [
      'hides worse exchangers although better ones have no address',
      { ...four, 'mx1.example': {} },
      NO_ADDRESS as MxResult,
    ],
    [
      'hides worse exchangers while better ones fail',
      { ...four, 'mx1.example': 'ESERVFAIL' },
      { kind: 'temporary', reason: 'AAAA mx1.example: SERVFAIL' },
    ],
  ])('%s', async (_name, zone, expected) => {
    expect(await resolveIn(zone, 'a.example', { isOwn })).toEqual(expected);
  });

  it('is a loop when the domain itself is our name', async () => {
    expect(await resolveIn({ 'own.example': { A: ['192.0.2.60'] } }, 'own.example', { isOwn })).toEqual({
      kind: 'loop',
    });
  });

  it('is a loop as an address literal', async () => {
    expect(await resolveIn({}, '[192.0.2.50]', { isOwn })).toEqual({ kind: 'loop' });
  });
});

describe('the SSRF filter', () => {
  it.each(['127.0.0.1', '169.254.169.254', '10.1.2.3', '100.64.0.1', '0.0.0.0', '224.0.0.1'])(
    'refuses an exchanger at %s',
    async (address) => {
      const zone: Zone = { 'a.example': { MX: [[10, 'mx.example']] }, 'mx.example': { A: [address] } };
      expect(await resolveIn(zone)).toEqual({ kind: 'forbidden' });
    },
  );

  it.each(['::1', 'fe80::1', 'fd00::1', '::ffff:127.0.0.1', '64:ff9b::a00:1', '2002:7f00:1::', 'ff02::1'])(
    'refuses a domain at %s',
    async (address) => {
      expect(await resolveIn({ 'a.example': { AAAA: [address] } })).toEqual({ kind: 'forbidden' });
    },
  );

  it('skips refused addresses and keeps the others', async () => {
    const zone: Zone = {
      'a.example': {
        MX: [
          [10, 'mx.example'],
          [20, 'mx2.example'],
        ],
      },
      'mx.example': { AAAA: ['::1'], A: ['127.0.0.1', '192.0.2.9'] },
      ...mx2,
    };
    expect(await resolveIn(zone)).toEqual(['mx.example 192.0.2.9 10', 'mx2.example 192.0.2.2 20']);
  });

  it('lets through what is allowed, mapped forms included, and nothing more', async () => {
    const zone: Zone = {
      'a.example': { A: ['127.0.0.1', '127.0.0.2', '10.0.0.1'], AAAA: ['::ffff:127.0.0.3', '::1'] },
    };
    expect(await resolveIn(zone, 'a.example', { allow: ['127.0.0.0/30'] })).toEqual([
      'a.example 127.0.0.3 0',
      'a.example 127.0.0.1 0',
      'a.example 127.0.0.2 0',
    ]);
  });
});

describe('address literals', () => {
  it.each<[string, MxResult | string[]]>([
    ['[192.0.2.1]', ['192.0.2.1 192.0.2.1 0']],
    ['[IPv6:2001:db8::1]', ['2001:db8::1 2001:db8::1 0']],
    ['[ipv6:2001:DB8::1]', ['2001:db8::1 2001:db8::1 0']],
    ['[IPv6:::ffff:192.0.2.1]', ['192.0.2.1 192.0.2.1 0']],
    ['[127.0.0.1]', { kind: 'forbidden' }],
    ['[IPv6:::1]', { kind: 'forbidden' }],
    ['[IPv6:::ffff:127.0.0.1]', { kind: 'forbidden' }],
    ['[IPv6:fe80::1%eth0]', { kind: 'no-domain' }],
    ['[IPv6:192.0.2.1]', { kind: 'no-domain' }],
    ['[2001:db8::1]', { kind: 'no-domain' }],
    ['[192.0.2]', { kind: 'no-domain' }],
    ['[192.0.2.1', { kind: 'no-domain' }],
    ['[192.0.2.1].example', { kind: 'no-domain' }],
    ['[]', { kind: 'no-domain' }],
    ['[x25:1234]', { kind: 'no-domain' }],
  ])('%s', async (literal, expected) => {
    const { resolve, queries } = resolver({});
    expect(summary(await resolve(literal))).toEqual(expected);
    expect(queries).toEqual([]);
  });

  it('may be in an allowed network', async () => {
    expect(await resolveIn({}, '[127.0.0.1]', { allow: ['127.0.0.0/8'] })).toEqual(['127.0.0.1 127.0.0.1 0']);
  });
});

describe('at most ten addresses', () => {
  const many = (host: number) => Array.from({ length: 12 }, (_, at) => `192.0.${host}.${at + 1}`);

  it('are tried in all, and a host with many leaves a place to its backups', async () => {
    const zone: Zone = {
      'a.example': {
        MX: [
          [10, 'mx10.example'],
          [20, 'mx20.example'],
          [30, 'mx3.example'],
        ],
      },
      'mx10.example': { A: many(10) },
      'mx20.example': { A: many(20), AAAA: ['2001:db8::20'] },
      ...mx3,
    };
    const found = (await resolveIn(zone)) as string[];
    expect(found).toHaveLength(10);
    expect(found.map((line) => line.split(' ')[0])).toEqual([
      ...Array(5).fill('mx10.example'),
      ...Array(4).fill('mx20.example'),
      'mx3.example',
    ]);
    expect(found).toContain('mx20.example 2001:db8::20 20');
  });

  it('of one host are tried in the order of the answer', async () => {
    const addresses = many(10).toReversed();
    const found = (await resolveIn({ 'a.example': { A: addresses } })) as string[];
    expect(found).toHaveLength(10);
    expect(found.map((line) => line.split(' ')[1])).toEqual(
      addresses.filter((address) => found.join().includes(` ${address} `)),
    );
  });

  it('are the same ones however the answer is rotated', async () => {
    const set = async (addresses: string[]) =>
      new Set((await resolveIn({ 'a.example': { A: addresses } })) as string[]);
    expect(await set(many(10).toReversed())).toEqual(await set(many(10)));
  });
});

describe('the order', () => {
  const exchangers = fc.uniqueArray(fc.tuple(fc.nat(99), fc.nat(3)), {
    selector: ([host]) => host,
    minLength: 1,
    maxLength: 10,
  });

  it('is a permutation of the hosts, ascending by preference', async () => {
    const property = fc.asyncProperty(
      exchangers,
      fc.infiniteStream(fc.double({ min: 0, max: 0.999, noNaN: true })),
      async (list, draws) => {
        const zone: Record<string, Records> = {
          'a.example': { MX: list.map(([host, preference]) => [preference, `mx${host}.example`]) },
        };
        for (const [host] of list) zone[`mx${host}.example`] = { A: [`192.0.2.${host + 1}`] };
        const result = await resolver(zone, { random: () => draws.next().value }).resolve('a.example');
        if (result.kind !== 'hosts') throw new Error(result.kind);
        const preferences = result.candidates.map(({ preference }) => preference);
        expect(preferences).toEqual(preferences.toSorted((a, b) => a - b));
        const seen = result.candidates.map(
          ({ host, address, preference }) => `${host} ${address} ${preference}`,
        );
        const expected = list.map(
          ([host, preference]) => `mx${host}.example 192.0.2.${host + 1} ${preference}`,
        );
        expect(seen.toSorted()).toEqual(expected.toSorted());
      },
    );
    await fc.assert(property);
  });

  it('puts every one of the equals first about equally often, from one answer', async () => {
    const zone: Zone = {
      'a.example': {
        MX: [
          [10, 'mx1.example'],
          [10, 'mx2.example'],
          [10, 'mx3.example'],
        ],
      },
      ...mx1,
      ...mx2,
      ...mx3,
    };
    let seed = 1;
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647;
      return seed / 2_147_483_647;
    };
    const { resolve, queries } = resolver(zone, { random });
    const first = new Map<string, number>();
    for (let round = 0; round < 3000; round++) {
      const result = await resolve('a.example');
      const host = result.kind === 'hosts' ? (result.candidates[0]?.host ?? '') : result.kind;
      first.set(host, (first.get(host) ?? 0) + 1);
    }
    expect([...first.keys()].sort()).toEqual(['mx1.example', 'mx2.example', 'mx3.example']);
    for (const count of first.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
    expect(queries).toHaveLength(7);
  });
});

describe('the cache', () => {
  const hostZone = (ttl: number): Zone => ({
    'a.example': { MX: [[10, 'mx.example']] },
    'mx.example': { A: ['192.0.2.1'], ttl },
  });

  it.each<[string, Zone, number]>([
    ['addresses for their TTL', hostZone(7), 7_000],
    ['addresses for a minute at most', hostZone(86_400), 60_000],
    ['the absence of a domain for 30 s', {}, 30_000],
    ['null MX for 30 s', { 'a.example': { MX: [[0, '']] } }, 30_000],
    ['exchangers without addresses for 30 s', { 'a.example': { MX: [[10, 'gone.example']] } }, 30_000],
    ['forbidden addresses for 30 s', { 'a.example': { A: ['127.0.0.1'] } }, 30_000],
    ['failures for 5 s', { 'a.example': 'ESERVFAIL' }, 5_000],
    [
      'addresses for 5 s while another host failed',
      {
        'a.example': {
          MX: [
            [10, 'mx1.example'],
            [20, 'bad.example'],
          ],
        },
        ...mx1,
        'bad.example': 'ESERVFAIL',
      },
      5_000,
    ],
  ])('keeps %s', async (_name, zone, keptMs) => {
    const { resolve, queries, clock } = resolver(zone);
    const answer = await resolve('a.example');
    const asked = queries.length;
    clock.ms += keptMs - 1;
    expect(await resolve('A.Example.')).toEqual(answer);
    expect(queries).toHaveLength(asked);
    clock.ms += 1;
    expect(await resolve('a.example')).toEqual(answer);
    expect(queries).toHaveLength(2 * asked);
  });

  it('goes by the shortest TTL of all addresses', async () => {
    const zone: Zone = {
      'a.example': {
        MX: [
          [10, 'x.example'],
          [20, 'y.example'],
        ],
      },
      'x.example': { A: ['192.0.2.1'], ttl: 50 },
      'y.example': { A: ['192.0.2.2'], ttl: 3 },
    };
    const { resolve, queries, clock } = resolver(zone);
    await resolve('a.example');
    clock.ms += 3_000;
    await resolve('a.example');
    expect(queries).toHaveLength(10);
  });

  it('keeps nothing with a TTL of 0', async () => {
    const { resolve, queries } = resolver(hostZone(0));
    await resolve('a.example');
    await resolve('a.example');
    expect(queries).toHaveLength(6);
  });

  it('is bounded: the oldest answer goes first', async () => {
    const { resolve, queries } = resolver({});
    for (let at = 0; at <= 10_000; at++) await resolve(`d${at}.example`);
    await resolve('d1.example');
    expect(queries).toHaveLength(10_001);
    await resolve('d0.example');
    expect(queries).toHaveLength(10_002);
  });

  it('counts an answer that was asked for anew as young', async () => {
    const { resolve, queries, clock } = resolver({});
    await resolve('d0.example');
    await resolve('d1.example');
    clock.ms += 30_000;
    await resolve('d0.example');
    for (let at = 2; at <= 10_000; at++) await resolve(`d${at}.example`);
    await resolve('d0.example');
    expect(queries).toHaveLength(10_002);
  });
});

describe('one query under way', () => {
  /** A client that answers when told to. */
  function heldDns(zone: Zone) {
    const { dns, queries } = zoneDns(zone);
    const held = withResolvers();
    const resolveMx: MxDeps['dns']['resolveMx'] = async (name) => {
      const answer = dns.resolveMx(name);
      await Promise.all([held.promise, answer.catch(() => {})]);
      return await answer;
    };
    return { dns: { ...dns, resolveMx }, queries, answer: held.resolve };
  }

  const zone: Zone = { 'a.example': { MX: [[10, 'mx1.example']], ttl: 0 }, ...mx1 };
  const found = ['mx1.example 192.0.2.1 10'];

  it('serves all who ask meanwhile', async () => {
    const { dns, queries, answer } = heldDns(zone);
    const { resolve } = resolver({}, { dns });
    const asked = ['a.example', 'A.example', 'a.example.'].map((domain) => resolve(domain));
    answer();
    expect((await Promise.all(asked)).map(summary)).toEqual([found, found, found]);
    expect(queries).toHaveLength(3);
  });
});

function withResolvers() {
  let resolve = () => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}
