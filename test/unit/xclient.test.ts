import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { forwardedClient, parseXclient, parseXforward } from '../../src/upstream/xclient.ts';

function told(parse: typeof parseXclient, args: string): unknown {
  const parsed = parse(args);
  return parsed.ok ? parsed.told : `${parsed.reply.code} ${parsed.reply.enhanced}`;
}

const BOTH = [
  ['XCLIENT', parseXclient],
  ['XFORWARD', parseXforward],
] as const;

describe.each(BOTH)('%s', (_, parse) => {
  it.each<[string, unknown]>([
    [
      'NAME=spike.porcupine.org ADDR=168.100.189.2',
      { name: 'spike.porcupine.org', address: '168.100.189.2' },
    ],
    ['name=a.example  addr=192.0.2.1', { name: 'a.example', address: '192.0.2.1' }],
    ['ADDR=IPV6:2001:DB8:0::1', { address: '2001:db8::1' }],
    ['ADDR=ipv6:::ffff:192.0.2.1', { address: '192.0.2.1' }],
    ['ADDR=2001:db8::1', { address: '2001:db8::1' }],
    ['ADDR=[UNAVAILABLE] NAME=[unavailable] PORT=[Unavailable]', { address: '', name: null, port: 0 }],
    ['NAME=[TEMPUNAVAIL]', { name: null }],
    ['PORT=0', { port: 0 }],
    ['PORT=65535 PROTO=ESMTP HELO=h.example', { port: 65535, extended: true, helo: 'h.example' }],
    ['PROTO=smtp', { extended: false }],
    ['HELO=[UNAVAILABLE]', { helo: '' }],
    ['HELO=[192.0.2.1]', { helo: '[192.0.2.1]' }],
    ['HELO=a+2Bb+3Dc', { helo: 'a+b=c' }],
    ['HELO=a+2bb', { helo: 'a+2bb' }],
    ['HELO=1+1=2', { helo: '1+1=2' }],
    ['HELO=a+0D+0AMAIL+20b+E9+3C+3E', { helo: 'a??MAIL?b???' }],
    ['NAME=+73pike.example', { name: 'spike.example' }],
    ['NAME=a.example NAME=b.example', { name: 'b.example' }],
  ])('%s', (args, expected) => {
    expect(told(parse, args)).toEqual(expected);
  });

  it.each([
    '',
    'NAME',
    'NAME=',
    '=x',
    'NAME=a.example ADDR',
    'NAME=a..example',
    'NAME=a+0D+0Ab',
    'NAME=a(b)',
    'NAME=a+20b',
    `NAME=${'a'.repeat(64)}.example`,
    'ADDR=192.0.2.256',
    'ADDR=192.0.2.1+0D+0A',
    'ADDR=IPV6:',
    'ADDR=[192.0.2.1]',
    'ADDR=unknown',
    'PORT=65536',
    'PORT=-1',
    'PORT=smtp',
    'COLOR=green',
    '__proto__=x',
    'constructor=x',
    `HELO=${'h'.repeat(256)}`,
    `NAME=a.example ADDR=192.0.2.1 PORT=x`,
  ])('refuses %j', (args) => {
    expect(told(parse, args)).toBe('501 5.5.4');
  });

  it('never throws, and tells nothing that could break a line', () => {
    const key = fc.constantFrom('NAME', 'ADDR', 'PORT', 'PROTO', 'HELO', 'IDENT', 'LOGIN', 'X');
    const octet = fc.nat(255).map((value) => `+${value.toString(16).toUpperCase().padStart(2, '0')}`);
    const value = fc.oneof(
      fc.string(),
      fc.array(octet).map((octets) => octets.join('')),
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(key, value)), (attributes) => {
        const parsed = parse(attributes.map(([name, text]) => `${name}=${text}`).join(' '));
        if (parsed.ok) expect(Object.values(parsed.told).join('')).toMatch(/^[\x21-\x7e]*$/);
      }),
    );
  });
});

it('XCLIENT ignores what gives no right here, and takes no other protocol', () => {
  expect(told(parseXclient, 'LOGIN=u+40a DESTADDR=192.0.2.1 DESTPORT=25 REVERSE_NAME=x')).toEqual({});
  expect(told(parseXclient, 'PROTO=LMTP')).toBe('501 5.5.4');
  expect(told(parseXclient, 'PROTO=[UNAVAILABLE]')).toBe('501 5.5.4');
  expect(told(parseXclient, 'IDENT=x')).toBe('501 5.5.4');
});

it('XFORWARD takes a message id, a source and any protocol', () => {
  expect(told(parseXforward, 'IDENT=4XyZ SOURCE=REMOTE PROTO=QMQP')).toEqual({
    ident: '4XyZ',
    extended: false,
  });
  expect(told(parseXforward, 'IDENT=[UNAVAILABLE] PROTO=[UNAVAILABLE]')).toEqual({
    ident: '',
    extended: false,
  });
  expect(told(parseXforward, `PROTO=${'x'.repeat(65)}`)).toBe('501 5.5.4');
  expect(told(parseXforward, 'LOGIN=u')).toBe('501 5.5.4');
});

it('what XFORWARD does not tell is unknown', () => {
  const relay = { address: '::1', port: 1, name: 'r', helo: 'r', extended: true, tls: null };
  const unknown = { address: '', port: 0, name: null, helo: '', extended: false, tls: null, relay };
  expect(forwardedClient({}, relay)).toEqual(unknown);
  expect(forwardedClient({ address: '192.0.2.1', ident: 'x' }, relay)).toEqual({
    ...unknown,
    address: '192.0.2.1',
    ident: 'x',
  });
});
