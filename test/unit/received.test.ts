import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HeaderScanner, protocolKeyword, type ReceivedFacts, receivedLine } from '../../src/smtp/received.ts';

const codePoint = fc.oneof(fc.nat(0x7f), fc.nat(0x9f), fc.nat(0x10ffff));
/** Control characters, surrogates and all; fast-check's own unit for that takes a second to build. */
const anyCharacter = codePoint.map((point) => String.fromCodePoint(point));

const FACTS: ReceivedFacts = {
  helo: 'client.example',
  clientAddress: '192.0.2.7',
  clientName: null,
  byHostname: 'proxy.example',
  protocol: 'ESMTP',
  tls: null,
  id: 'k3x9',
  forRecipient: null,
  date: new Date('2026-11-24T03:04:05.678Z'),
};

function line(facts: Partial<ReceivedFacts> = {}): string {
  return receivedLine({ ...FACTS, ...facts }).toString();
}

describe('receivedLine', () => {
  it('says from whom, by whom, how and when', () => {
    expect(line()).toBe(
      [
        'Received: from client.example ([192.0.2.7]) by proxy.example with ESMTP',
        '\tid k3x9; Tue, 24 Nov 2026 03:04:05 +0000',
        '',
      ].join('\r\n'),
    );
  });

  it('names the one recipient, the client and its TLS, folded between clauses', () => {
    const all = line({
      clientName: 'host.client.example',
      clientAddress: '2001:db8::7',
      protocol: 'ESMTPS',
      tls: { version: 'TLSv1.3', cipher: 'TLS_AES_256_GCM_SHA384' },
      forRecipient: '"a b"@dest.example',
    });
    expect(all).toBe(
      [
        'Received: from client.example (host.client.example [IPv6:2001:db8::7])',
        '\tby proxy.example with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) id k3x9',
        '\tfor <"a b"@dest.example>; Tue, 24 Nov 2026 03:04:05 +0000',
        '',
      ].join('\r\n'),
    );
  });

  it.each<[string, string]>([
    ['192.0.2.7', '[192.0.2.7]'],
    ['::ffff:192.0.2.7', '[192.0.2.7]'],
    ['::1', '[IPv6:::1]'],
    ['fe80::1%eth0', '[IPv6:fe80::1]'],
    ['', '[unknown]'],
  ])('writes the address %s as %s', (clientAddress, written) => {
    expect(line({ clientAddress })).toContain(`(${written})`);
  });

  it.each<[string, string]>([
    ['[192.0.2.1]', 'from [192.0.2.1] '],
    ['', 'from unknown '],
    ['a)(b\\c;d<e>"', 'from a__b_c_d_e__ '],
    ['x\r\nSubject: forged', 'from x__Subject:_forged '],
    ['b\u00fccher', 'from b_cher '],
    ['x'.repeat(300), `from ${'x'.repeat(255)}\r\n`],
  ])('makes the EHLO argument %j harmless', (helo, written) => {
    expect(line({ helo })).toContain(written);
  });

  it('leaves a recipient out that would break the line', () => {
    expect(line({ forRecipient: 'a\r\nb' })).not.toContain('for <');
  });

  it('is one field of short lines whatever the client says', () => {
    const text = fc.string({ unit: anyCharacter, maxLength: 400 });
    fc.assert(
      fc.property(text, text, fc.option(text), text, (helo, clientAddress, clientName, cipher) => {
        const written = line({ helo, clientAddress, clientName, tls: { version: 'TLSv1.2', cipher } });
        const lines = written.slice(0, -2).split('\r\n');
        expect(written.endsWith('\r\n')).toBe(true);
        expect(lines[0]).toMatch(/^Received: ?/);
        expect(lines.slice(1).every((each) => each.startsWith('\t'))).toBe(true);
        expect(written.replaceAll('\r\n\t', ' ')).toMatch(/^[\x20-\x7e]+\r\n$/);
        // RFC 5322 §2.1.1: the hard limit.
        expect(lines.every((each) => each.length <= 998)).toBe(true);
        expect(lines.every((each) => each.length < 78 || each.trim().split(' ').length <= 3)).toBe(true);
      }),
    );
  });

  it('has one date form in any time zone and for any day', () => {
    fc.assert(
      fc.property(fc.date({ min: new Date(0), max: new Date('9999-12-31'), noInvalidDate: true }), (date) => {
        const written = / ([A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000)\r\n$/.exec(
          line({ date }).replaceAll('\r\n\t', ' '),
        );
        expect(new Date(written![1]!).getTime()).toBe(Math.floor(date.getTime() / 1000) * 1000);
      }),
    );
  });
});

describe('protocolKeyword', () => {
  it.each([
    [false, false, false, 'SMTP'],
    [false, true, false, 'SMTP'],
    [true, false, false, 'ESMTP'],
    [true, true, false, 'ESMTPS'],
    [true, false, true, 'UTF8SMTP'],
    [true, true, true, 'UTF8SMTPS'],
  ])('EHLO %s, TLS %s, SMTPUTF8 %s: %s', (ehlo, tls, smtputf8, keyword) => {
    expect(protocolKeyword({ ehlo, tls, smtputf8 })).toBe(keyword);
  });

  it.each([
    [false, false, 'LMTP'],
    [true, false, 'LMTPS'],
    [false, true, 'UTF8LMTP'],
    [true, true, 'UTF8LMTPS'],
  ])('LHLO, TLS %s, SMTPUTF8 %s: %s', (tls, smtputf8, keyword) => {
    expect(protocolKeyword({ ehlo: true, tls, smtputf8, lmtp: true })).toBe(keyword);
  });
});

/** What the scanner must make of a message, by a plain reading of RFC 5322. */
function model(message: string): { receivedCount: number; done: boolean } {
  const lines = message.split('\r\n');
  const end = lines.slice(0, -1).indexOf('');
  const header = end === -1 ? lines : lines.slice(0, end);
  return { receivedCount: header.filter((each) => /^received:/i.test(each)).length, done: end !== -1 };
}

function scan(chunks: readonly string[]): { receivedCount: number; done: boolean } {
  const scanner = new HeaderScanner();
  for (const chunk of chunks) scanner.push(Buffer.from(chunk, 'latin1'));
  return { receivedCount: scanner.receivedCount, done: scanner.done };
}

describe('HeaderScanner', () => {
  it.each<[string, string, number, boolean]>([
    ['nothing', '', 0, false],
    ['no header', '\r\nReceived: x\r\n', 0, true],
    ['one field', 'Received: x\r\n\r\n', 1, true],
    ['any case', 'RECEIVED:x\r\nreceived: y\r\nrEcEiVeD: z\r\n', 3, false],
    ['folded fields', 'Received: x\r\n\tReceived: y\r\n received: z\r\nTo: a\r\n\r\n', 1, true],
    ['other names', 'X-Received: x\r\nReceived-SPF: y\r\nReceive: z\r\nReceived\r\n\r\n', 0, true],
    ['a control character for the colon', 'Received\x1a x\r\n\r\n', 0, true],
    ['text behind the header', 'To: a\r\n\r\nReceived: x\r\n', 0, true],
    ['an unfinished name', 'Receive', 0, false],
  ])('%s', (_, message, receivedCount, done) => {
    expect(model(message)).toEqual({ receivedCount, done });
    for (let at = 0; at <= message.length; at++) {
      expect(scan([message.slice(0, at), message.slice(at)])).toEqual({ receivedCount, done });
    }
    expect(scan([...message])).toEqual({ receivedCount, done });
  });

  it('reads any header in any chunks as a plain reading does', () => {
    const piece = fc.constantFrom(
      'Received:',
      'received',
      ':',
      ' x',
      '\r\n',
      '\r\n',
      'R',
      'To: a\r\n',
      '\t',
      '.',
    );
    const chunks = fc.array(fc.array(piece, { maxLength: 6 }).map((pieces) => pieces.join('')));
    fc.assert(
      fc.property(chunks, (given) => {
        expect(scan(given)).toEqual(model(given.join('')));
      }),
    );
  });
});
