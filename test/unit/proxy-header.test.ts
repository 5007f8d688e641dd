import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { canonicalAddress } from '../../src/routing/networks.ts';
import { type ProxyHeader, ProxyHeaderParser } from '../../src/upstream/proxy-header.ts';
import { addresses, V2_SIGNATURE, v2, v2Tcp, vector } from '../support/proxy-header.ts';

/** Feeds the chunks until there is an answer; `rest` has what was never fed as well. */
function feed(chunks: readonly Buffer[]): ProxyHeader {
  const parser = new ProxyHeaderParser();
  for (const [index, chunk] of chunks.entries()) {
    const header = parser.push(chunk);
    if (header.state === 'incomplete') continue;
    if (header.state === 'malformed') return header;
    return { ...header, rest: Buffer.concat([header.rest, ...chunks.slice(index + 1)]) };
  }
  return { state: 'incomplete' };
}

function parse(input: string | Buffer): ProxyHeader {
  return feed([Buffer.from(input as string, 'latin1')]);
}

/** The client told, or the state. */
function told(input: string | Buffer): unknown {
  const header = parse(input);
  return header.state === 'complete' ? header.client : header.state;
}

const line = (text: string) => `PROXY ${text}\r\n`;

const V4 = { address: '203.0.113.9', port: 56324 };

describe('version 1', () => {
  it.each<[string, unknown]>([
    ['TCP4 203.0.113.9 192.0.2.25 56324 25', V4],
    ['TCP4 255.255.255.255 255.255.255.255 65535 65535', { address: '255.255.255.255', port: 65535 }],
    ['TCP4 203.0.113.9 192.0.2.25 0 0', { address: '203.0.113.9', port: 0 }],
    ['TCP6 2001:DB8::9 2001:db8::25 56324 25', { address: '2001:db8::9', port: 56324 }],
    ['TCP6 2001:db8:0:0:0:0:0:9 ::1 1 25', { address: '2001:db8::9', port: 1 }],
    ['TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.25 56324 25', V4],
    ['UNKNOWN', null],
    ['UNKNOWN ffff:f:f:f:f:f:f:ffff ffff:f:f:f:f:f:f:ffff 65535 65535', null],
    ['UNKNOWN whatever it says', null],
  ])('%s', (text, expected) => {
    expect(told(line(text))).toEqual(expected);
  });

  it('is at most 107 octets, CRLF included', () => {
    const text = (octets: number) => `PROXY UNKNOWN ${'f'.repeat(octets - 16)}\r\n`;
    expect(parse(text(107)).state).toBe('complete');
    expect(parse(text(108)).state).toBe('malformed');
    expect(parse(`PROXY UNKNOWN ${'f'.repeat(200)}`).state).toBe('malformed');
  });

  it.each([
    line('TCP4 203.0.113.9 192.0.2.25 56324'),
    line('TCP4 203.0.113.9 192.0.2.25 56324 25 7'),
    line('TCP4 203.0.113.9 192.0.2.25 56324 25 '),
    line('TCP4  203.0.113.9 192.0.2.25 56324 25'),
    line('TCP4 203.0.113.09 192.0.2.25 56324 25'),
    line('TCP4 203.0.113.9 192.0.2.25 056324 25'),
    line('TCP4 203.0.113.9 192.0.2.25 65536 25'),
    line('TCP4 203.0.113.9 192.0.2.25 5 65536'),
    line('TCP4 203.0.113.9 192.0.2.25 -5 25'),
    line('TCP4 203.0.113 192.0.2.25 5 25'),
    line('TCP4 203.0.113.9 192.0.2 5 25'),
    line('TCP4 2001:db8::9 2001:db8::25 5 25'),
    line('TCP6 203.0.113.9 192.0.2.25 5 25'),
    line('TCP6 fe80::1%eth0 2001:db8::25 5 25'),
    line('TCP5 203.0.113.9 192.0.2.25 5 25'),
    line('UDP4 203.0.113.9 192.0.2.25 5 25'),
    line('tcp4 203.0.113.9 192.0.2.25 5 25'),
    line('UNKNOWNTCP4'),
    line('UNKNOWN \r'),
    line(''),
    'PROXY TCP4 203.0.113.9 192.0.2.25 56324 25\n',
    'PROXY TCP4 203.0.113.9 192.0.2.25\r 56324 25\r\n',
    'PROXY UNKNOWN\n',
    'proxy TCP4 203.0.113.9 192.0.2.25 56324 25\r\n',
    'PROXY\r\n',
    'EHLO client.example\r\n',
    '\r\n.',
    '\0',
    ' PROXY UNKNOWN\r\n',
  ])('refuses %j', (text) => {
    expect(parse(text).state).toBe('malformed');
  });
});

describe('version 2', () => {
  it.each<[string, Buffer, unknown]>([
    ['TCP over IPv4', v2Tcp('203.0.113.9', 56324), V4],
    ['TCP over IPv6', v2Tcp('2001:db8::9', 1), { address: '2001:db8::9', port: 1 }],
    ['an IPv4 client in an IPv6 block', v2Tcp('::ffff:203.0.113.9', 56324), V4],
    ['vectors', v2Tcp('203.0.113.9', 56324, vector(4, Buffer.alloc(9)), vector(0xe0, Buffer.from('x'))), V4],
    ['LOCAL', v2(0x20, 0x00), null],
    ['LOCAL with an address', v2(0x20, 0x11, addresses('203.0.113.9', 1, '192.0.2.1')), null],
    ['LOCAL with nonsense', v2(0x20, 0xff, Buffer.from('nonsense')), null],
    ['AF_UNSPEC', v2(0x21, 0x00), null],
    ['AF_UNSPEC with something', v2(0x21, 0x01, Buffer.from('something')), null],
    ['an unspecified protocol', v2(0x21, 0x10, addresses('203.0.113.9', 1, '192.0.2.1')), null],
    ['a Unix socket', v2(0x21, 0x31, Buffer.alloc(216, 'x')), null],
    ['UDP over IPv4', v2(0x21, 0x12, addresses('203.0.113.9', 1, '192.0.2.1')), null],
    ['2048 octets of addresses and vectors', v2Tcp('203.0.113.9', 56324, vector(4, Buffer.alloc(2033))), V4],
  ])('%s', (_, header, expected) => {
    expect(told(header)).toEqual(expected);
  });

  it.each<[string, Buffer]>([
    ['version 1', v2(0x11, 0x11, addresses('203.0.113.9', 1, '192.0.2.1'))],
    ['version 3', v2(0x31, 0x11, addresses('203.0.113.9', 1, '192.0.2.1'))],
    ['an unknown command', v2(0x22, 0x11, addresses('203.0.113.9', 1, '192.0.2.1'))],
    ['an unknown family', v2(0x21, 0x41, Buffer.alloc(300))],
    ['an unknown protocol', v2(0x21, 0x13, addresses('203.0.113.9', 1, '192.0.2.1'))],
    ['IPv4 addresses cut short', v2(0x21, 0x11, Buffer.alloc(11))],
    ['IPv6 addresses cut short', v2(0x21, 0x21, Buffer.alloc(35))],
    ['a Unix address cut short', v2(0x21, 0x31, Buffer.alloc(215))],
    ['a vector without its length', v2Tcp('203.0.113.9', 1, Buffer.from([4]))],
    ['a vector beyond the header', v2Tcp('203.0.113.9', 1, Buffer.from([4, 0, 2, 0]))],
    ['more than 2048 octets', v2Tcp('203.0.113.9', 1, vector(4, Buffer.alloc(2034)))],
    ['another signature', Buffer.from('\r\n\r\n\0\r\nQUIT\r\n', 'latin1')],
  ])('refuses %s', (_, header) => {
    expect(parse(header).state).toBe('malformed');
  });

  it('refuses what is too long before it has come', () => {
    expect(parse(Buffer.concat([V2_SIGNATURE, Buffer.from([0x21, 0x11, 0xff, 0xff])])).state).toBe(
      'malformed',
    );
  });

  describe('with a checksum', () => {
    // What a haproxy 2.6.12 sent: send-proxy-v2 proxy-v2-options crc32c,unique-id.
    const recorded = Buffer.concat([
      V2_SIGNATURE,
      Buffer.from('211100167f0000017f000001b1047995030004953dc488050000', 'hex'),
    ]);

    it('takes what haproxy sends', () => {
      expect(told(recorded)).toEqual({ address: '127.0.0.1', port: 0xb104 });
    });

    it('refuses it with any octet of the address changed', () => {
      for (let at = 16; at < 28; at++) {
        const changed = Buffer.from(recorded);
        changed[at]! ^= 1;
        expect(told(changed)).toBe('malformed');
      }
    });

    it('refuses one of another length', () => {
      expect(told(v2Tcp('203.0.113.9', 1, vector(3, Buffer.alloc(3))))).toBe('malformed');
    });
  });
});

describe('in any chunks', () => {
  const behind = Buffer.from('EHLO client.example\r\n\0\xff', 'latin1');
  const headers: [string, Buffer][] = [
    ['version 1', Buffer.from(line('TCP4 203.0.113.9 192.0.2.25 56324 25'))],
    ['UNKNOWN', Buffer.from(line('UNKNOWN'))],
    ['version 2', v2Tcp('203.0.113.9', 56324, vector(4, Buffer.from('PROXY \r\n')))],
    ['LOCAL', v2(0x20, 0)],
  ];

  it.each(headers)('%s: at every split the same, and the bytes behind it untouched', (_, header) => {
    const all = Buffer.concat([header, behind]);
    const whole = parse(all);
    expect(whole).toMatchObject({ state: 'complete', rest: behind });
    for (let at = 0; at <= all.length; at++) {
      expect(feed([all.subarray(0, at), all.subarray(at)])).toEqual(whole);
    }
    expect(feed([...all].map((octet) => Buffer.from([octet])))).toEqual(whole);
  });

  it.each(headers)('%s: nothing before its last octet', (_, header) => {
    for (let end = 0; end < header.length; end++) expect(told(header.subarray(0, end))).toBe('incomplete');
  });
});

describe('properties', () => {
  const port = fc.nat(0xffff);
  const cut = (input: Buffer, cuts: readonly number[]) => {
    const at = [...cuts.map((each) => each % (input.length + 1)), 0, input.length].sort((a, b) => a - b);
    return at.slice(1).map((end, index) => input.subarray(at[index], end));
  };

  it('finds any address and port in both versions, however it is cut', () => {
    const address = fc.oneof(fc.ipV4(), fc.ipV6());
    fc.assert(
      fc.property(address, port, fc.uint8Array(), fc.array(fc.nat()), (source, number, rest, cuts) => {
        const family = source.includes(':') ? 6 : 4;
        const text = line(`TCP${family} ${source} ${family === 6 ? '::1' : '127.0.0.1'} ${number} 25`);
        const client = { address: canonicalAddress(source), port: number };
        for (const header of [Buffer.from(text), v2Tcp(source, number)]) {
          const fed = feed(cut(Buffer.concat([header, rest]), cuts));
          expect(fed).toEqual({ state: 'complete', client, rest: Buffer.from(rest) });
        }
      }),
    );
  });

  it('neither throws nor waits for more than its limit, whatever comes', () => {
    const start = fc.constantFrom('', 'PROXY ', 'PROXY TCP4 ', V2_SIGNATURE.toString('latin1'));
    const octets = fc.uint8Array({ maxLength: 3000 });
    fc.assert(
      fc.property(start, octets, fc.array(fc.nat()), (text, random, cuts) => {
        const input = Buffer.concat([Buffer.from(text, 'latin1'), random]);
        const whole = feed([input]);
        expect(feed(cut(input, cuts)).state).toBe(whole.state);
        if (whole.state === 'incomplete') expect(input.length).toBeLessThan(16 + 2048);
        if (whole.state === 'complete') expect(whole.rest.length).toBeLessThan(input.length);
      }),
    );
  });
});
