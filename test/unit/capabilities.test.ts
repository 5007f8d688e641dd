import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type MailParams, parseMail, parseRcpt, type RcptParams } from '../../src/smtp/address.ts';
import {
  type Capabilities,
  mailCommand,
  NO_CAPABILITIES,
  parseCapabilities,
  rcptCommand,
  refusalBeforeMail,
  refusalBeforeRcpt,
} from '../../src/smtp/capabilities.ts';

const codePoint = fc.oneof(fc.nat(0x7f), fc.nat(0x9f), fc.nat(0x10ffff));
/** Control characters, surrogates and all; fast-check's own unit for that takes a second to build. */
const anyCharacter = codePoint.map((point) => String.fromCodePoint(point));

const EVERYTHING = parseCapabilities(['PIPELINING', 'SIZE 5000', '8BITMIME', 'SMTPUTF8', 'DSN', 'PRDR']);

function sender(line: string) {
  const parsed = parseMail(`MAIL FROM:${line}`);
  if (!parsed.ok) throw new Error(parsed.reply.lines[0]);
  return parsed;
}

function recipient(line: string) {
  const parsed = parseRcpt(`RCPT TO:${line}`, { smtputf8: true });
  if (!parsed.ok) throw new Error(parsed.reply.lines[0]);
  return parsed;
}

describe('parseCapabilities', () => {
  it('reads keywords in any case', () => {
    expect(parseCapabilities(['pipelining', '8BitMIME', 'SMTPUTF8', 'dsn', 'StartTLS', 'prdr'])).toEqual({
      ...NO_CAPABILITIES,
      pipelining: true,
      eightBitMime: true,
      smtputf8: true,
      dsn: true,
      prdr: true,
    });
  });

  it('takes whole keywords only', () => {
    expect(parseCapabilities(['XPIPELINING', 'STARTTLS-LATER', 'DSNX', 'X DSN', '8BITMIME2'])).toEqual(
      NO_CAPABILITIES,
    );
  });

  it.each<[string, number | null]>([
    ['SIZE 1000', 1000],
    ['size 1000', 1000],
    // RFC 1870 §4: no fixed maximum.
    ['SIZE 0', null],
    ['SIZE', null],
    ['SIZE big', null],
    ['SIZE 0x10', null],
    ['SIZE 99999999999999999999', null],
  ])('%s', (line, size) => {
    expect(parseCapabilities([line])).toMatchObject({ sizeOffered: true, size });
  });

  it('asks no LMTP server for PRDR, which would answer each recipient twice', () => {
    expect(parseCapabilities(['PRDR'], { lmtp: true }).prdr).toBe(false);
  });

  const none = { mailMax: null, rcptMax: null, rcptDomainMax: null };
  it.each<[string, Partial<Capabilities>]>([
    ['LIMITS MAILMAX=10 RCPTMAX=2 RCPTDOMAINMAX=1', { mailMax: 10, rcptMax: 2, rcptDomainMax: 1 }],
    ['limits  rcptmax=999999', { ...none, rcptMax: 999_999 }],
    ['LIMITS OTHER=1 XRCPTMAX=3 RCPTMAX2=4 MAILMAX=5', { ...none, mailMax: 5 }],
    // RFC 9422 §4: at most six digits, and no limit is 0.
    ['LIMITS MAILMAX=0 RCPTMAX=-1 RCPTDOMAINMAX=1000000', none],
    ['LIMITS MAILMAX RCPTMAX= RCPTDOMAINMAX=1=2', none],
    ['LIMITS MAILMAX=1x RCPTMAX=0x10 RCPTDOMAINMAX=01', none],
    ['LIMITS', none],
    ['XLIMITS MAILMAX=10', none],
  ])('%s', (line, limits) => {
    expect(parseCapabilities([line])).toMatchObject(limits);
  });

  it('takes whatever a peer sends', () => {
    fc.assert(
      fc.property(fc.array(fc.string({ unit: anyCharacter })), (lines) => {
        expect(Object.isFrozen(parseCapabilities(lines))).toBe(true);
      }),
    );
  });
});

describe('mailCommand', () => {
  const all = '<s@a.example> SIZE=100 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb PRDR';

  it.each<[string, string, Capabilities, string]>([
    ['says all that is offered', all, EVERYTHING, `MAIL FROM:${all}`],
    ['says nothing that is not', all, NO_CAPABILITIES, 'MAIL FROM:<s@a.example>'],
    [
      'says SIZE to a server without a limit',
      all,
      parseCapabilities(['SIZE']),
      'MAIL FROM:<s@a.example> SIZE=100',
    ],
    ['says only what was said to us', '<s@a.example>', EVERYTHING, 'MAIL FROM:<s@a.example>'],
    ['has the null reverse-path', '<>', EVERYTHING, 'MAIL FROM:<>'],
    ['drops a source route', '<@x.example:s@a.example>', EVERYTHING, 'MAIL FROM:<s@a.example>'],
    ['does not pass AUTH on', '<s@a.example> AUTH=<>', EVERYTHING, 'MAIL FROM:<s@a.example>'],
  ])('%s', (_, line, offered, wire) => {
    const { mailbox, params } = sender(line);
    expect(mailCommand(mailbox, params, offered)).toBe(wire);
  });
});

describe('refusalBeforeRcpt', () => {
  it.each<[string, readonly string[], string, number | null]>([
    ['', ['a.example', 'b.example'], 'c.example', null],
    ['RCPTMAX=2', ['a.example'], 'a.example', null],
    ['RCPTMAX=2', ['a.example', 'a.example'], 'a.example', 452],
    ['RCPTDOMAINMAX=1', [], 'a.example', null],
    ['RCPTDOMAINMAX=1', ['a.example', 'a.example'], 'a.example', null],
    ['RCPTDOMAINMAX=1', ['a.example'], 'b.example', 451],
    ['RCPTDOMAINMAX=2', ['a.example', 'a.example'], 'b.example', null],
    ['RCPTDOMAINMAX=2', ['a.example', 'b.example'], 'c.example', 451],
    ['RCPTMAX=2 RCPTDOMAINMAX=1', ['a.example', 'a.example'], 'b.example', 452],
  ])('%s after %j, %s: %s', (limits, asked, domain, code) => {
    const offered = parseCapabilities([`LIMITS ${limits}`]);
    expect(refusalBeforeRcpt(domain, asked, offered)?.code ?? null).toBe(code);
  });
});

describe('rcptCommand', () => {
  const all = '<u@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;u+2Bx@b.example';

  it.each<[string, string, Capabilities, string]>([
    ['says what is offered', all, EVERYTHING, `RCPT TO:${all}`],
    ['says nothing that is not', all, NO_CAPABILITIES, 'RCPT TO:<u@b.example>'],
    ['keeps a quoted local part', '<"a b"@B.example>', EVERYTHING, 'RCPT TO:<"a b"@b.example>'],
    [
      'encodes a UTF-8 ORCPT so that any server may have it',
      '<u@b.example> ORCPT=utf-8;\u00fc\\x{2B}x@b.example',
      EVERYTHING,
      'RCPT TO:<u@b.example> ORCPT=utf-8;\\x{FC}\\x{2B}x@b.example',
    ],
  ])('%s', (_, line, offered, wire) => {
    const { mailbox, params } = recipient(line);
    expect(rcptCommand(mailbox, params, offered)).toBe(wire);
  });
});

it('what is said to a next hop with every extension reads as what was said to us', () => {
  const printable = fc.string({ unit: 'grapheme-ascii', minLength: 1, maxLength: 40 });
  const mail: fc.Arbitrary<MailParams> = fc.record({
    size: fc.option(fc.maxSafeNat()),
    body: fc.constantFrom(null, '7BIT', '8BITMIME'),
    smtputf8: fc.boolean(),
    ret: fc.constantFrom(null, 'FULL', 'HDRS'),
    envid: fc.option(printable),
  });
  const ascii = fc.record({ type: fc.constantFrom('rfc822', 'x-other'), address: printable });
  const wide = fc.record({
    type: fc.constant('utf-8'),
    address: fc
      .string({ unit: 'grapheme', minLength: 1, maxLength: 20 })
      .filter((text) => !/[\p{Cc}\p{Zl}\p{Zp}]/u.test(text)),
  });
  const rcpt: fc.Arbitrary<RcptParams> = fc.record({
    notify: fc.constantFrom(null, 'NEVER', 'SUCCESS,FAILURE', 'DELAY'),
    orcpt: fc.option(fc.oneof(ascii, wide)),
  });
  const { mailbox } = sender('<"a b>"@c.example>');
  fc.assert(
    fc.property(mail, rcpt, (mailParams, rcptParams) => {
      expect(parseMail(mailCommand(mailbox, mailParams, EVERYTHING))).toEqual({
        ok: true,
        mailbox,
        params: mailParams,
      });
      const toRcpt = parseRcpt(rcptCommand(mailbox!, rcptParams, EVERYTHING), { smtputf8: false });
      expect(toRcpt).toEqual({ ok: true, mailbox, params: rcptParams });
    }),
  );
});

describe('refusalBeforeMail', () => {
  it.each<[string, string, Capabilities, number | null]>([
    ['a message that fits', '<s@a.example> SIZE=5000', EVERYTHING, null],
    ['a message that is too big', '<s@a.example> SIZE=5001', EVERYTHING, 552],
    ['a size not declared', '<s@a.example>', EVERYTHING, null],
    ['a server without a limit', '<s@a.example> SIZE=5001', parseCapabilities(['SIZE 0']), null],
    ['SMTPUTF8 that is offered', '<s@a.example> SMTPUTF8', EVERYTHING, null],
    ['SMTPUTF8 that is not', '<s@a.example> SMTPUTF8', NO_CAPABILITIES, 550],
    ['8BITMIME that is not offered', '<s@a.example> BODY=8BITMIME', NO_CAPABILITIES, null],
  ])('%s', (_, line, offered, code) => {
    expect(refusalBeforeMail(sender(line).params, offered)?.code ?? null).toBe(code);
  });
});
