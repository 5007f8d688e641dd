import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { canonicalAddress, forbiddenReason, networkSet } from '../../src/routing/networks.ts';

describe('networkSet', () => {
  it.each([
    ['10.0.0.0/8', '10.255.255.255', true],
    ['10.0.0.0/8', '11.0.0.0', false],
    ['192.0.2.1', '192.0.2.1', true],
    ['192.0.2.1/32', '192.0.2.2', false],
    ['0.0.0.0/0', '203.0.113.9', true],
    ['0.0.0.0/0', '2001:db8::1', false],
    ['::/0', '2001:db8::1', true],
    ['::/0', '203.0.113.9', false],
    ['2001:db8::/33', '2001:db8:7fff::1', true],
    ['2001:db8::/33', '2001:db8:8000::1', false],
    ['::1/128', '::1', true],
    ['::1/128', '0:0:0:0:0:0:0:1', true],
    ['fe80::/10', 'fe80::1%eth0', true],
    ['127.0.0.0/8', '::ffff:127.0.0.1', true],
    ['127.0.0.0/8', '::ffff:7f00:1', true],
    ['::ffff:10.0.0.0/104', '10.1.2.3', true],
    ['::ffff:10.0.0.0/104', '::ffff:11.1.2.3', false],
  ])('%s has %s: %s', (cidr, address, expected) => {
    expect(networkSet([cidr]).has(address)).toBe(expected);
  });

  it.each([
    '',
    'localhost',
    '127.1',
    '0x7f.0.0.1',
    '0177.0.0.1',
    '2130706433',
    '127.0.0.1 ',
    '[::1]',
    '%eth0',
  ])('has no %j, which is no address', (text) => {
    expect(networkSet(['0.0.0.0/0', '::/0']).has(text)).toBe(false);
  });

  it('has what any of its networks has, and nothing without one', () => {
    const both = networkSet(['127.0.0.0/8', '::1/128']);
    expect([both.has('127.9.9.9'), both.has('::1'), both.has('192.0.2.1')]).toEqual([true, true, false]);
    expect(networkSet([]).has('127.0.0.1')).toBe(false);
  });

  it.each(['', 'example.com/8', '10.0.0.0/33', '::/129', '10.0.0.0/', '10.0.0.0/x'])(
    'throws on %j',
    (cidr) => {
      expect(() => networkSet([cidr])).toThrow('not a network');
    },
  );

  it('has exactly the addresses that share the first bits', () => {
    const octets = fc.tuple(fc.nat(255), fc.nat(255), fc.nat(255), fc.nat(255));
    const number = (address: readonly number[]) => address.reduce((sum, octet) => sum * 256 + octet, 0);
    fc.assert(
      fc.property(octets, octets, fc.nat(32), (network, address, bits) => {
        const size = 2 ** (32 - bits);
        const expected = Math.floor(number(network) / size) === Math.floor(number(address) / size);
        const set = networkSet([`${network.join('.')}/${bits}`]);
        return set.has(address.join('.')) === expected && set.has(`::ffff:${address.join('.')}`) === expected;
      }),
    );
  });
});

describe('forbiddenReason', () => {
  it.each([
    ['0.0.0.0', 'unspecified'],
    ['0.1.2.3', 'unspecified'],
    ['127.0.0.1', 'loopback'],
    ['127.255.255.255', 'loopback'],
    ['169.254.169.254', 'link-local'],
    ['10.0.0.1', 'private'],
    ['172.16.0.1', 'private'],
    ['172.31.255.255', 'private'],
    ['192.168.1.1', 'private'],
    ['100.64.0.1', 'private'],
    ['100.127.255.255', 'private'],
    ['192.0.0.8', 'reserved'],
    ['224.0.0.1', 'multicast'],
    ['239.255.255.255', 'multicast'],
    ['240.0.0.1', 'reserved'],
    ['255.255.255.255', 'reserved'],
    ['::', 'unspecified'],
    ['::1', 'loopback'],
    ['fe80::1', 'link-local'],
    ['fe80::1%eth0', 'link-local'],
    ['febf::1', 'link-local'],
    ['fc00::1', 'private'],
    ['fd12:3456::1', 'private'],
    ['fec0::1', 'private'],
    ['64:ff9b:1::a00:1', 'private'],
    ['ff02::1', 'multicast'],
    // An IPv4 address in disguise.
    ['::ffff:127.0.0.1', 'loopback'],
    ['::ffff:a9fe:a9fe', 'link-local'],
    ['::127.0.0.1', 'loopback'],
    ['::ffff:0:10.0.0.1', 'private'],
    ['64:ff9b::10.0.0.1', 'private'],
    ['64:ff9b::7f00:1', 'loopback'],
    ['2002:7f00:1::', 'loopback'],
    ['2002:c0a8:101::1', 'private'],
    ['localhost', 'not an address'],
    ['127.1', 'not an address'],
    ['', 'not an address'],
  ])('refuses %s as %s', (address, reason) => {
    expect(forbiddenReason(address)).toBe(reason);
  });

  it.each([
    '1.1.1.1',
    '9.255.255.255',
    '11.0.0.0',
    '100.63.255.255',
    '100.128.0.0',
    '126.255.255.255',
    '128.0.0.0',
    '169.253.255.255',
    '172.15.255.255',
    '172.32.0.0',
    '192.0.1.1',
    '192.0.2.1',
    '192.167.255.255',
    '198.18.0.1',
    '223.255.255.255',
    '2001:db8::1',
    '2606:4700::1111',
    '::ffff:8.8.8.8',
    '64:ff9b::8.8.8.8',
    '2002:808:808::1',
    'fbff::1',
  ])('has nothing against %s', (address) => {
    expect(forbiddenReason(address)).toBeNull();
  });

  it('judges an IPv4 address alike in every form', () => {
    fc.assert(
      fc.property(fc.ipV4(), (address) => {
        const [a, b, c, d] = address.split('.').map((octet) => Number(octet).toString(16).padStart(2, '0'));
        const forms = [
          `::ffff:${address}`,
          `64:ff9b::${address}`,
          `2002:${a}${b}:${c}${d}::1`,
          `::ffff:0:${address}`,
        ];
        return forms.every((form) => forbiddenReason(form) === forbiddenReason(address));
      }),
    );
  });
});

describe('canonicalAddress', () => {
  it.each([
    ['192.0.2.1', '192.0.2.1'],
    ['::FFFF:192.0.2.1', '192.0.2.1'],
    ['2001:DB8:0:0:0:0:0:1', '2001:db8::1'],
    ['fe80::1%eth0', 'fe80::1'],
    ['192.0.2', null],
    ['mx.example', null],
  ])('%s is %s', (text, expected) => {
    expect(canonicalAddress(text)).toBe(expected);
  });
});
