import { expect, it } from 'vitest';
import { proxyHeader } from '../../src/downstream/proxy-header.ts';

/** proxy-protocol.txt, §2.2. */
const SIGNATURE = '0d0a0d0a000d0a515549540a';
const LOCAL = `${SIGNATURE}20000000`;

const at = (address: string, port: number) => ({ address, port });
const hex = (...args: Parameters<typeof proxyHeader>) => proxyHeader(...args).toString('hex');

it('IPv4: both addresses, then both ports', () => {
  expect(hex(at('192.0.2.1', 54321), at('198.51.100.255', 25))).toBe(
    `${SIGNATURE}2111000c${'c0000201'}${'c63364ff'}${'d431'}${'0019'}`,
  );
});

it('IPv6: both addresses, then both ports', () => {
  expect(hex(at('2001:db8::1', 65535), at('2001:DB8:0:0:0:0:0:FF00', 256))).toBe(
    `${SIGNATURE}21210024${'20010db8000000000000000000000001'}${'20010db800000000000000000000ff00'}ffff0100`,
  );
});

it('an IPv4 address in IPv6 clothes is IPv4, and a zone is none of the next hop’s business', () => {
  const plain = hex(at('192.0.2.1', 1), at('192.0.2.2', 2));
  expect(hex(at('::ffff:192.0.2.1', 1), at('192.0.2.2', 2))).toBe(plain);
  expect(hex(at('192.0.2.1', 1), at('::ffff:c000:202', 2))).toBe(plain);
  expect(hex(at('fe80::1%eth0', 1), at('fe80::2%lo', 2))).toBe(hex(at('fe80::1', 1), at('fe80::2', 2)));
});

it.each([
  ['no client', null, at('192.0.2.2', 25)],
  ['IPv4 to IPv6', at('192.0.2.1', 1), at('2001:db8::2', 25)],
  ['IPv6 to IPv4', at('2001:db8::1', 1), at('192.0.2.2', 25)],
  ['a name', at('client.example', 1), at('192.0.2.2', 25)],
  ['no address', at('', 1), at('192.0.2.2', 25)],
  ['an abbreviation', at('127.1', 1), at('192.0.2.2', 25)],
  ['no destination', at('192.0.2.1', 1), at('', 25)],
])('%s: LOCAL, without addresses', (_, source, destination) => {
  expect(hex(source, destination)).toBe(LOCAL);
});

it.each([0, -1, 65536, 1.5, Number.NaN])('port %s becomes 0, and the address stays', (port) => {
  expect(hex(at('192.0.2.1', port), at('192.0.2.2', 25))).toBe(hex(at('192.0.2.1', 0), at('192.0.2.2', 25)));
});
