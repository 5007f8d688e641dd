import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  decodeCommandLine,
  decodeXtext,
  encodeXtext,
  hasRouting,
  type ParsedMail,
  type ParsedRcpt,
  parseMail,
  parseRcpt,
} from '../../src/smtp/address.ts';

const codePoint = fc.oneof(fc.nat(0x7f), fc.nat(0x9f), fc.nat(0x10ffff));
/** Control characters, surrogates and all; fast-check's own unit for that takes a second to build. */
const anyCharacter = codePoint.map((point) => String.fromCodePoint(point));

/** "501 5.1.3", or the address. */
function outcome(parsed: ParsedMail | ParsedRcpt): string {
  if (!parsed.ok) return `${parsed.reply.code} ${parsed.reply.enhanced}`;
  return parsed.mailbox === null ? '' : parsed.mailbox.address;
}
const mail = (rest: string) => outcome(parseMail(`MAIL FROM:${rest}`));
const rcpt = (rest: string, smtputf8 = false) => outcome(parseRcpt(`RCPT TO:${rest}`, { smtputf8 }));

const LABEL_63 = 'l'.repeat(63);

describe('decodeCommandLine', () => {
  it.each<[string, Buffer, string | null]>([
    ['ASCII', Buffer.from('NOOP'), 'NOOP'],
    ['UTF-8', Buffer.from('RCPT TO:<\u00fc@x>'), 'RCPT TO:<\u00fc@x>'],
    ['a byte order mark', Buffer.from('\ufeffEHLO'), '\ufeffEHLO'],
    ['latin1', Buffer.from('\u00fc', 'latin1'), null],
    ['an overlong slash', Buffer.from([0xc0, 0xaf]), null],
    ['a surrogate', Buffer.from([0xed, 0xa0, 0x80]), null],
    ['a character cut short', Buffer.from([0xe2, 0x82]), null],
  ])('%s', (_, bytes, text) => expect(decodeCommandLine(bytes)).toBe(text));
});

describe('the command', () => {
  it.each([
    ['MAIL FROM:<a@b.example>', 'a@b.example'],
    ['mail from:<a@b.example>', 'a@b.example'],
    ['MAIL FROM:   <a@b.example>', 'a@b.example'],
    ['MAIL FROM:<a@b.example>  ', 'a@b.example'],
    ['MAIL FROM <a@b.example>', '501 5.5.4'],
    ['MAIL TO:<a@b.example>', '501 5.5.4'],
    ['MAILFROM:<a@b.example>', '501 5.5.4'],
    ['MAIL', '501 5.5.4'],
    ['MAIL FROM:', '501 5.1.7'],
    ['MAIL FROM:a@b.example', '501 5.1.7'],
    ['MAIL FROM:<a@b.example', '501 5.1.7'],
    ['MAIL FROM:a@b.example>', '501 5.1.7'],
    ['MAIL FROM:Joe <a@b.example>', '501 5.1.7'],
    ['MAIL FROM:<<a@b.example>>', '501 5.1.7'],
    ['MAIL FROM:\t<a@b.example>', '501 5.1.7'],
    ['MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>', '501 5.1.7'],
    ['MAIL FROM:<a@b.example>\0', '501 5.1.7'],
    ['MAIL FROM:<a@b.example>\u0085', '501 5.1.7'],
    ['MAIL FROM:<a@b.example>\u2028', '501 5.1.7'],
  ])('%j', (line, expected) => expect(outcome(parseMail(line))).toBe(expected));

  it('RCPT has its own codes', () => {
    expect(outcome(parseRcpt('RCPT FROM:<a@b.example>', { smtputf8: false }))).toBe('501 5.5.4');
    expect(rcpt('a@b.example')).toBe('501 5.1.3');
  });
});

describe('paths', () => {
  it.each([
    ['a dot-string', '<a.b+c@d.example>', 'a.b+c@d.example'],
    ['every atext', "<!#$%&'*+-/=?^_`{|}~@d.example>", "!#$%&'*+-/=?^_`{|}~@d.example"],
    ['the case of a local part', '<John.Doe@D.EXAMPLE>', 'John.Doe@d.example'],
    ['one label', '<a@localhost>', 'a@localhost'],
    ['a quoted string', '<"a b"@d.example>', '"a b"@d.example'],
    ['> in quotes', '<"a>b"@d.example>', '"a>b"@d.example'],
    ['@ in quotes', '<"a@b"@d.example>', '"a@b"@d.example'],
    ['quoted pairs', '<"a\\"b\\\\"@d.example>', '"a\\"b\\\\"@d.example'],
    ['an empty quoted string', '<""@d.example>', '""@d.example'],
    ['a source route', '<@x.example,@y.example:a@d.example>', 'a@d.example'],
    ['an IPv4 literal', '<a@[192.0.2.1]>', 'a@[192.0.2.1]'],
    ['an IPv6 literal', '<a@[ipv6:2001:DB8::1]>', 'a@[IPv6:2001:db8::1]'],
    ['an underscore', '<a@_x.my_host.example>', 'a@_x.my_host.example'],
    ['hyphens', '<a@r3---sn.x-y.example>', 'a@r3---sn.x-y.example'],
    ['an A-label', '<a@XN--BCHER-KVA.example>', 'a@xn--bcher-kva.example'],
    ['the longest label', `<a@${LABEL_63}.example>`, `a@${LABEL_63}.example`],
    ['a long local part', `<${'a'.repeat(128)}@d.example>`, `${'a'.repeat(128)}@d.example`],
  ])('takes %s', (_, path, address) => {
    expect(mail(path)).toBe(address);
    expect(rcpt(path)).toBe(address);
  });

  it.each([
    ['no local part', '<@d.example>'],
    ['no domain', '<a>'],
    ['an empty domain', '<a@>'],
    ['two @', '<a@b@d.example>'],
    ['a leading dot', '<.a@d.example>'],
    ['a trailing dot', '<a.@d.example>'],
    ['two dots', '<a..b@d.example>'],
    ['a space', '<a b@d.example>'],
    ['spaces in the brackets', '< a@d.example >'],
    ['a comment', '<a(b)@d.example>'],
    ['an open quote', '<"a@d.example>'],
    ['text after a quoted string', '<"a"b@d.example>'],
    ['a quoted pair of nothing', '<"a\\"@d.example>'],
    ['a trailing dot of the domain', '<a@d.example.>'],
    ['an empty label', '<a@d..example>'],
    ['a label that begins with a hyphen', '<a@-d.example>'],
    ['a label that ends in a hyphen', '<a@d-.example>'],
    ['a label too long', `<a@${LABEL_63}l.example>`],
    ['a domain too long', `<a@${`${LABEL_63}.`.repeat(4)}example>`],
    ['a local part too long', `<${'a'.repeat(129)}@d.example>`],
    ['an address too long', `<${'a'.repeat(128)}@${`${LABEL_63}.`.repeat(3)}example>`],
    ['a bad A-label', '<a@xn--a.example>'],
    ['an address without brackets', '<a@192.0.2.1>'],
    ['an address in disguise', '<a@0x7f.1>'],
    ['a number', '<a@2130706433>'],
    ['a bad IPv4 literal', '<a@[192.0.2.256]>'],
    ['an IPv6 literal without its tag', '<a@[::1]>'],
    ['a bad IPv6 literal', '<a@[IPv6:1::2::3]>'],
    ['an IPv6 zone', '<a@[IPv6:fe80::1%eth0]>'],
    ['another kind of literal', '<a@[tag:x]>'],
    ['an empty literal', '<a@[]>'],
    ['a percent escape in the domain', '<a@d%2eexample>'],
    ['a source route without colon', '<@x.example,a@d.example>'],
    ['a source route to nobody', '<@x.example:>'],
    ['a source route through a bad name', '<@x..example:a@d.example>'],
    ['a source route to Postmaster', '<@x.example:postmaster>'],
  ])('refuses %s', (_, path) => {
    expect(mail(path)).toBe('501 5.1.7');
    expect(rcpt(path)).toBe('501 5.1.3');
  });

  it('has the null reverse-path for MAIL alone', () => {
    expect(parseMail('MAIL FROM:<> SIZE=1')).toMatchObject({ ok: true, mailbox: null, params: { size: 1 } });
    expect(rcpt('<>')).toBe('501 5.1.3');
  });

  it('has Postmaster without a domain for RCPT alone', () => {
    expect(rcpt('<PostMaster>')).toBe('PostMaster');
    expect(parseRcpt('RCPT TO:<postmaster>', { smtputf8: false })).toMatchObject({
      mailbox: { domain: null },
    });
    expect(mail('<postmaster>')).toBe('501 5.1.7');
    expect(rcpt('<"postmaster">')).toBe('501 5.1.3');
  });

  it.each([
    ['a@b', 'a'],
    ['"a b"@b', 'a b'],
    ['"a\\"\\\\\\b"@b', 'a"\\b'],
  ])('%s unquoted', (address, unquotedLocal) => {
    expect(parseMail(`MAIL FROM:<${address}>`)).toMatchObject({ mailbox: { unquotedLocal } });
  });
});

describe('addresses that are not ASCII', () => {
  it.each([
    ['<\u00fc@d.example>', '\u00fc@d.example', true],
    ['<"\u00fc \u4f60"@d.example>', '"\u00fc \u4f60"@d.example', true],
    ['<a@B\u00dcCHER.example>', 'a@xn--bcher-kva.example', false],
    ['<a@b\u00fccher\u3002example>', 'a@xn--bcher-kva.example', false],
    ['<@b\u00fccher.example:a@d.example>', 'a@d.example', false],
  ])('%s needs SMTPUTF8', (path, address, nonAscii) => {
    expect(mail(path)).toBe('553 5.6.7');
    expect(rcpt(path)).toBe('553 5.6.7');
    expect(mail(`${path} SMTPUTF8`)).toBe(address);
    expect(rcpt(path, true)).toBe(address);
    expect(parseMail(`MAIL FROM:${path} SMTPUTF8`)).toMatchObject({ mailbox: { nonAscii } });
  });

  it.each([
    ['an address in full-width digits', '<a@\uff11\uff12\uff17.0.0.1>'],
    ['a name that maps to an empty label', '<a@\u00ad.example>'],
    ['a label too long as an A-label', `<a@${'\u00fc'.repeat(60)}.example>`],
  ])('refuses %s', (_, path) => expect(mail(`${path} SMTPUTF8`)).toBe('501 5.1.7'));
});

describe('MAIL parameters', () => {
  const none = { size: null, body: null, smtputf8: false, ret: null, envid: null };

  it.each<[string, object]>([
    ['', none],
    [' SIZE=0', { ...none, size: 0 }],
    [' SIZE=99999999999999999999', { ...none, size: Number.MAX_SAFE_INTEGER }],
    [' size=10   body=8bitmime', { ...none, size: 10, body: '8BITMIME' }],
    [' BODY=7BIT', { ...none, body: '7BIT' }],
    [' SMTPUTF8', { ...none, smtputf8: true }],
    [' RET=full ENVID=a+2Bb+3D+20c', { ...none, ret: 'FULL', envid: 'a+b= c' }],
    [' AUTH=<>', none],
    [' AUTH=a+40b', none],
    [' PRDR', { ...none, prdr: true }],
    [` ENVID=${'x'.repeat(100)}`, { ...none, envid: 'x'.repeat(100) }],
  ])('takes %j', (words, params) => {
    expect(parseMail(`MAIL FROM:<a@b.example>${words}`)).toMatchObject({ ok: true, params });
  });

  it.each([
    ['SIZE=1', '501 5.5.4'],
    [' SIZE', '501 5.5.4'],
    [' SIZE=', '501 5.5.4'],
    [' SIZE=x', '501 5.5.4'],
    [' SIZE=-1', '501 5.5.4'],
    [' SIZE=100000000000000000000', '501 5.5.4'],
    [' SIZE=1=2', '501 5.5.4'],
    [' SIZE=1 size=1', '501 5.5.4'],
    [' BODY=BINARYMIME', '501 5.5.4'],
    [' BODY', '501 5.5.4'],
    [' SMTPUTF8=1', '501 5.5.4'],
    [' AUTH', '501 5.5.4'],
    [' RET=SOME', '501 5.5.4'],
    [' ENVID=', '501 5.5.4'],
    [' ENVID=a+2b', '501 5.5.4'],
    [' ENVID=a+0Ab', '501 5.5.4'],
    [` ENVID=${'x'.repeat(101)}`, '501 5.5.4'],
    [' =1', '501 5.5.4'],
    [' -X=1', '501 5.5.4'],
    [' SIZE =1', '501 5.5.4'],
    [' X-FOO=1', '555 5.5.4'],
    [' NOTIFY=NEVER', '555 5.5.4'],
    [' constructor', '555 5.5.4'],
    [' S\u0131ZE=1', '501 5.5.4'],
  ])('refuses %j', (words, expected) => expect(mail(`<a@b.example>${words}`)).toBe(expected));
});

describe('RCPT parameters', () => {
  it.each<[string, object]>([
    ['', { notify: null, orcpt: null }],
    [' NOTIFY=never', { notify: 'NEVER', orcpt: null }],
    [' notify=Success,DELAY,success', { notify: 'SUCCESS,DELAY', orcpt: null }],
    [' ORCPT=rfc822;a+2Bb@c', { notify: null, orcpt: { type: 'rfc822', address: 'a+b@c' } }],
    // As Postfix writes one that isn't ASCII.
    [
      ' ORCPT=rfc822;+E7+94+A8a+2B@b.example',
      { notify: null, orcpt: { type: 'utf-8', address: '\u7528a+@b.example' } },
    ],
    [
      ' ORCPT=utf-8;a\\x{FC}\\x{1F4A9}b',
      { notify: null, orcpt: { type: 'utf-8', address: 'a\u00fc\u{1f4a9}b' } },
    ],
    [
      ' ORCPT=utf-8;\\x{10FFFD}\\x{2B}c0ffee',
      { notify: null, orcpt: { type: 'utf-8', address: '\u{10fffd}+c0ffee' } },
    ],
  ])('takes %j', (words, params) => {
    expect(parseRcpt(`RCPT TO:<a@b.example>${words}`, { smtputf8: false })).toMatchObject({
      ok: true,
      params,
    });
  });

  it.each([
    [' NOTIFY', '501 5.5.4'],
    [' NOTIFY=', '501 5.5.4'],
    [' NOTIFY=NEVER,SUCCESS', '501 5.5.4'],
    [' NOTIFY=SUCCESS,', '501 5.5.4'],
    [' NOTIFY=SOMETIMES', '501 5.5.4'],
    [' NOTIFY=NEVER NOTIFY=NEVER', '501 5.5.4'],
    [' ORCPT=a@b', '501 5.5.4'],
    [' ORCPT=;a', '501 5.5.4'],
    [' ORCPT=rfc822;', '501 5.5.4'],
    [' ORCPT=rfc822;a+', '501 5.5.4'],
    [' ORCPT=rfc822;a+0D+0Ab', '501 5.5.4'],
    [' ORCPT=rfc822;a+FCb', '501 5.5.4'],
    [' ORCPT=rfc822;a+C2+85b', '501 5.5.4'],
    [` ORCPT=rfc822;${'x'.repeat(501)}`, '501 5.5.4'],
    [' ORCPT=utf-8;a\\x{A}', '501 5.5.4'],
    [' ORCPT=utf-8;a\\x{0A}', '501 5.5.4'],
    [' ORCPT=utf-8;a\\x{D800}', '501 5.5.4'],
    [' ORCPT=utf-8;a\\x{110000}', '501 5.5.4'],
    [' ORCPT=utf-8;a+b', '501 5.5.4'],
    [' ORCPT=utf-8;\u00fc', '553 5.6.7'],
    [' ORCPT=rfc822;\u00fc', '501 5.5.4'],
    [' SIZE=1', '555 5.5.4'],
  ])('refuses %j', (words, expected) => expect(rcpt(`<a@b.example>${words}`)).toBe(expected));

  it('takes a UTF-8 ORCPT as it is in an SMTPUTF8 transaction', () => {
    expect(parseRcpt('RCPT TO:<a@b.example> ORCPT=utf-8;\u00fc', { smtputf8: true })).toMatchObject({
      params: { orcpt: { type: 'utf-8', address: '\u00fc' } },
    });
  });

  it('is quick with a long bad value', () => {
    const began = performance.now();
    expect(rcpt(`<a@b.example> ORCPT=utf-8;${'\\x{10FFFF}'.repeat(2_000)}+`)).toBe('501 5.5.4');
    expect(rcpt(`<${'a.'.repeat(20_000)}@b.example>`)).toBe('501 5.1.3');
    expect(rcpt(`<"${'\\"'.repeat(20_000)}@b.example>`)).toBe('501 5.1.3');
    expect(performance.now() - began).toBeLessThan(500);
  });
});

describe('xtext', () => {
  it.each([
    ['plain', 'plain'],
    ['a+b=c d', 'a+2Bb+3Dc+20d'],
    ['~!', '~!'],
    ['\u00fc', '+C3+BC'],
  ])('%j is %s', (text, encoded) => expect(encodeXtext(text)).toBe(encoded));

  it.each(['+', '+2', '+2b', '+zz', 'a=b', 'a b', '\u00fc', '+00', '+0A', '+7F', '+C3+BC'])(
    'refuses %s',
    (text) => {
      expect(decodeXtext(text)).toBeNull();
    },
  );

  it('comes back as it was', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme-ascii' }), (text) => {
        const encoded = encodeXtext(text);
        expect(encoded).toMatch(/^[!-~]*$/);
        expect(decodeXtext(encoded)).toBe(text);
      }),
    );
  });
});

describe('hasRouting', () => {
  it.each([
    ['<user@a.example>', false],
    ['<user%b.example@a.example>', true],
    ['<b.example!user@a.example>', true],
    ['<"user@b.example"@a.example>', true],
    ['<"user\\@b.example"@a.example>', true],
    ['<"u ser"@a.example>', false],
  ])('%s: %s', (path, routing) => {
    const parsed = parseRcpt(`RCPT TO:${path}`, { smtputf8: false });
    expect(parsed.ok && hasRouting(parsed.mailbox)).toBe(routing);
  });
});

describe('any line', () => {
  const words = fc.constantFrom(
    '<',
    '>',
    '@',
    '"',
    '\\',
    '[',
    ']',
    ':',
    ',',
    ' ',
    '.',
    'a',
    'b.example',
    '=',
    '\u00fc',
  );
  const line = fc.oneof(
    fc.string({ unit: anyCharacter }),
    fc.array(words, { maxLength: 16 }).map((parts) => parts.join('')),
    fc.array(words, { maxLength: 8 }).map((parts) => `<${parts.join('')}@b.example>`),
  );

  it('parses to an address that is safe to send on, or to a refusal; nothing throws', () => {
    fc.assert(
      fc.property(line, fc.boolean(), (text, smtputf8) => {
        const fromMail = parseMail(`MAIL FROM:${text}${smtputf8 ? ' SMTPUTF8' : ''}`);
        const fromRcpt = parseRcpt(`RCPT TO:${text}`, { smtputf8 });
        expect(parseMail(text).ok).toBe(false);
        for (const parsed of [fromMail, fromRcpt]) {
          if (!parsed.ok) {
            expect(parsed.reply.code).toBeGreaterThanOrEqual(500);
            continue;
          }
          if (parsed.mailbox === null) continue;
          const { address, domain, nonAscii } = parsed.mailbox;
          expect(address).not.toMatch(/[\x00-\x1f\x7f-\x9f]/);
          expect(domain ?? '').toMatch(/^[!-~]*$/);
          expect(nonAscii).toBe(/[^\x00-\x7f]/.test(address));
          // What we send on is read there as what was read here.
          expect(parseRcpt(`RCPT TO:<${address}>`, { smtputf8 })).toMatchObject({
            ok: true,
            mailbox: parsed.mailbox,
          });
        }
      }),
      { numRuns: 2_000 },
    );
  });
});
