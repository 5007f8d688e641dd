import { Socket } from 'node:net';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  heloOf,
  introductionTo,
  proxyHeaderFor,
  xclientCommands,
  xforwardCommands,
} from '../../src/downstream/forward-client.ts';
import { proxyHeader } from '../../src/downstream/proxy-header.ts';
import { createRouter, type NextHop } from '../../src/routing/routes.ts';
import type { Origin } from '../../src/smtp/envelope.ts';

const CLIENT: Origin = {
  address: '192.0.2.1',
  port: 54321,
  name: 'client.example',
  helo: 'helo.example',
  extended: true,
  localAddress: '198.51.100.2',
  localPort: 25,
};
/** As Postfix 3.7 offers them. */
const OFFERS = [
  'PIPELINING',
  'XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT',
  'XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT',
];
const LONG = 'x'.repeat(255);

function words(line: string): Record<string, string> {
  return Object.fromEntries(
    line
      .split(' ')
      .slice(1)
      .map((word) => [word.slice(0, word.indexOf('=')), word.slice(word.indexOf('=') + 1)]),
  );
}
const xclient = (client: Origin | null, offers = OFFERS) => xclientCommands(client, offers);
const xforward = (client: Origin | null, id = 'abc.1', offers = OFFERS) =>
  xforwardCommands(client, id, offers);

describe('XCLIENT', () => {
  it('says everything that the server takes, in one line', () => {
    const lines = xclient(CLIENT);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(/^XCLIENT NAME=/);
    expect(words(lines[0]!)).toEqual({
      NAME: 'client.example',
      REVERSE_NAME: 'client.example',
      ADDR: '192.0.2.1',
      PORT: '54321',
      PROTO: 'ESMTP',
      HELO: 'helo.example',
      LOGIN: '[UNAVAILABLE]',
      DESTADDR: '198.51.100.2',
      DESTPORT: '25',
    });
  });

  it('says nothing that the server does not take, in whatever case it offers it', () => {
    expect(xclient(CLIENT, ['xclient Addr TTL helo'])).toEqual(['XCLIENT HELO=helo.example ADDR=192.0.2.1']);
  });

  it.each([[[]], [['XCLIENT']], [['XCLIENT NAME HELO']], [['X-XCLIENT ADDR']], [['SIZE XCLIENT ADDR']]])(
    'is nothing where the address is not taken: %j',
    (offers: string[]) => {
      expect(xclient(CLIENT, offers)).toEqual([]);
    },
  );

  it('without a client: [UNAVAILABLE], and no PROTO, which has no such value', () => {
    const { PROTO, ...said } = words(xclient(null)[0]!);
    expect(PROTO).toBeUndefined();
    expect(Object.keys(said)).toHaveLength(8);
    expect(new Set(Object.values(said))).toEqual(new Set(['[UNAVAILABLE]']));
  });

  it.each<[string, Partial<Origin>, Record<string, string>]>([
    ['IPv6', { address: '2001:DB8::1' }, { ADDR: 'IPV6:2001:db8::1' }],
    ['IPv4 in IPv6', { address: '::ffff:192.0.2.9' }, { ADDR: '192.0.2.9' }],
    ['a zone', { address: 'fe80::1%eth0' }, { ADDR: 'IPV6:fe80::1' }],
    ['what is no address', { address: '192.0.2.1 ADDR=10.0.0.1' }, { ADDR: '[UNAVAILABLE]' }],
    ['no address', { address: '' }, { ADDR: '[UNAVAILABLE]' }],
    ['no port', { port: 0 }, { PORT: '[UNAVAILABLE]' }],
    ['no name', { name: null }, { NAME: '[UNAVAILABLE]', REVERSE_NAME: '[UNAVAILABLE]' }],
    ['what is no name', { name: 'a..b' }, { NAME: '[UNAVAILABLE]' }],
    ['HELO', { extended: false }, { PROTO: 'SMTP' }],
    ['a name that needs encoding', { helo: 'a+b=c' }, { HELO: 'a+2Bb+3Dc' }],
    ['an address literal', { helo: '[IPv6:::1]' }, { HELO: '[IPv6:::1]' }],
    ['a line break', { helo: 'a\r\nRSET' }, { HELO: '[UNAVAILABLE]' }],
    ['a name that is not ASCII', { helo: 'hëlo' }, { HELO: '[UNAVAILABLE]' }],
    ['a name that is too long', { helo: `${LONG}x` }, { HELO: '[UNAVAILABLE]' }],
    ['a name that is too long when encoded', { helo: '+'.repeat(86) }, { HELO: '[UNAVAILABLE]' }],
    ['no HELO', { helo: '' }, { HELO: '[UNAVAILABLE]' }],
    ['nothing of our end', { localAddress: undefined, localPort: undefined }, { DESTADDR: '[UNAVAILABLE]' }],
  ])('%s', (_, changes, said) => {
    expect(words(xclient({ ...CLIENT, ...changes })[0]!)).toMatchObject(said);
  });

  it('splits what is longer than a line may be: the names first, and all that would be reset last', () => {
    const client = { ...CLIENT, address: `2001:db8::${'1111:'.repeat(5)}1`, helo: LONG, name: LONG };
    const lines = xclient({ ...client, localAddress: client.address });
    expect(lines.map((line) => Object.keys(words(line)))).toEqual([
      ['NAME'],
      ['REVERSE_NAME'],
      ['DESTADDR', 'DESTPORT', 'LOGIN', 'PROTO', 'HELO', 'PORT', 'ADDR'],
    ]);
  });
});

describe('XFORWARD', () => {
  it('says everything that the server takes', () => {
    const lines = xforward(CLIENT);
    expect(lines).toHaveLength(1);
    expect(words(lines[0]!)).toEqual({
      NAME: 'client.example',
      ADDR: '192.0.2.1',
      PORT: '54321',
      PROTO: 'ESMTP',
      HELO: 'helo.example',
      IDENT: 'abc.1',
      SOURCE: 'REMOTE',
    });
  });

  it('is nothing where it is not offered', () => {
    expect(xforward(CLIENT, 'x', ['PIPELINING'])).toEqual([]);
  });

  it('without a client: [UNAVAILABLE], and local', () => {
    const { IDENT, SOURCE, ...others } = words(xforward(null)[0]!);
    expect({ IDENT, SOURCE }).toEqual({ IDENT: 'abc.1', SOURCE: 'LOCAL' });
    expect(Object.keys(others)).toHaveLength(5);
    expect(new Set(Object.values(others))).toEqual(new Set(['[UNAVAILABLE]']));
  });
});

it('no line is longer than 512 octets, or more than one line, whatever the client says', () => {
  const text = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 300 }),
    fc.string({ unit: fc.constantFrom('a', '.', '+', '='), maxLength: 300 }),
  );
  const property = fc.property(text, text, text, fc.integer(), (name, helo, address, port) => {
    const client = { ...CLIENT, name, helo, address, port, localAddress: address, localPort: port };
    const lines = [...xclient(client), ...xforward(client, name)];
    expect(lines.length).toBeGreaterThan(0);
    for (const line of lines) expect(line).toMatch(/^[ -~]{10,510}$/);
    expect(heloOf(client) ?? 'x').toMatch(/^[!-~]{1,255}$/);
  });
  fc.assert(property, { numRuns: 200 });
});

describe('the PROXY header', () => {
  /** A socket that was never connected: it has no address of its own. */
  const socket = new Socket();
  const from = { address: CLIENT.address, port: CLIENT.port };

  it('has the client for source, and what it was connected to for destination', () => {
    expect(proxyHeaderFor(CLIENT, socket)).toEqual(proxyHeader(from, { address: '198.51.100.2', port: 25 }));
  });

  it('without a client is LOCAL', () => {
    expect(proxyHeaderFor(null, socket)[12]).toBe(0x20);
  });

  it.each([
    ['192.0.2.1', '2001:db8::2', '0.0.0.0'],
    ['2001:db8::1', '198.51.100.2', '::'],
  ])('names the client also where no destination of its family is known: %s', (address, localAddress, to) => {
    // LOCAL would have its mail go in as ours.
    expect(proxyHeaderFor({ ...CLIENT, address, localAddress }, socket)).toEqual(
      proxyHeader({ address, port: CLIENT.port }, { address: to, port: 0 }),
    );
  });
});

describe('who is introduced to whom', () => {
  const nextHopOf = async (nextHop: Parameters<typeof createRouter>[0]['routes'][number]['nextHop']) => {
    const candidate = {
      preference: 0,
      host: 'mx.example',
      address: '192.0.2.25',
      secure: false,
      alias: null,
    };
    const router = createRouter({
      routes: [{ pattern: '*', nextHop }],
      mx: { resolve: async () => ({ kind: 'hosts', candidates: [candidate] }) },
      mxPort: 25,
      mxTls: 'off',
      authorities: new Map(),
      mxAuthorities: null,
      mtaSts: null,
      dane: null,
    });
    const found = await router.route('a.example');
    return (found as { nextHop: NextHop }).nextHop;
  };
  const host = {
    protocol: 'smtp',
    host: '10.0.0.5',
    port: 25,
    auth: null,
    tls: 'off',
    sni: null,
    ca: null,
  } as const;

  it('nobody to MX hosts, and nobody unless asked for', async () => {
    const [byMx, byRoute] = [
      await nextHopOf({ kind: 'mx' }),
      await nextHopOf({ kind: 'static', hosts: [host] }),
    ];
    for (const kind of ['proxy', 'xclient', 'xforward'] as const) {
      expect(introductionTo(byMx, kind, CLIENT)).toBeNull();
      expect(introductionTo(byRoute, kind, CLIENT)).toMatchObject({ kind, client: CLIENT });
    }
    expect(introductionTo(byRoute, 'none', CLIENT)).toBeNull();
  });

  it('two clients are two identities, by whatever the next hop is told of them', async () => {
    const hop = await nextHopOf({ kind: 'static', hosts: [host] });
    const identity = (kind: 'proxy' | 'xclient' | 'xforward', changes: Partial<Origin> | null) =>
      introductionTo(hop, kind, changes === null ? null : { ...CLIENT, ...changes })!.identity;
    const others: Partial<Origin>[] = [
      { address: '192.0.2.2' },
      { port: 1 },
      { localAddress: '192.0.2.3' },
      { name: 'x' },
      { helo: 'x' },
      { extended: false },
    ];
    for (const kind of ['xclient', 'xforward'] as const) {
      const identities = [{}, ...others, null].map((changes) => identity(kind, changes));
      expect(new Set(identities).size).toBe(others.length + 2);
    }
    const told = [{}, ...others, null].map((changes) => identity('proxy', changes));
    expect(new Set(told).size).toBe(5);
    expect(identity('proxy', {})).not.toBe(identity('xclient', {}));
  });
});
