import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import * as replies from '../../src/smtp/reply.ts';
import { formatReply, parseReply, passOn, type Reply, reply, replyClass } from '../../src/smtp/reply.ts';

const codePoint = fc.oneof(fc.nat(0x7f), fc.nat(0x9f), fc.nat(0x10ffff));
/** Control characters, surrogates and all; fast-check's own unit for that takes a second to build. */
const anyCharacter = codePoint.map((point) => String.fromCodePoint(point));

/** What a peer might send: lines that look like replies, with anything in them. */
const peerLine = fc
  .tuple(
    fc.constantFrom('250', '354', '421', '550', '199', '600', '25', 'abc'),
    fc.constantFrom(' ', '-', '', '\t'),
    fc.constantFrom('', '5.1.1 ', '2.0.0', '4.7.1  ', '5.1.1x '),
    fc.string({ unit: anyCharacter, maxLength: 600 }),
  )
  .map((parts) => parts.join(''));
const peerText = fc.oneof(
  fc.array(peerLine, { maxLength: 25 }).map((lines) => lines.join('\n')),
  fc.string({ unit: anyCharacter }),
);

describe('parseReply', () => {
  it.each<[string, string, number, string | null, string[]]>([
    ['one line', '250 2.1.0 ok', 250, '2.1.0', ['ok']],
    ['no enhanced status', '550 no such user', 550, null, ['no such user']],
    ['a bare code', '250', 250, null, ['']],
    ['a code and a space', '250 ', 250, null, ['']],
    ['an enhanced status alone', '250 2.0.0', 250, '2.0.0', ['']],
    ['several lines', '550-5.7.1 go\n550 5.7.1 away', 550, '5.7.1', ['go', 'away']],
    ['a status on some lines', '550-go\n550 5.7.1 away', 550, '5.7.1', ['go', 'away']],
    ['a status of another class', '550 4.7.1 hm', 550, null, ['4.7.1 hm']],
    ['a status that is none', '550 5.7.1234 hm', 550, null, ['5.7.1234 hm']],
    ['a status that runs into text', '550 5.7.1: hm', 550, null, ['5.7.1: hm']],
    ['no status for 3xx', '354 go', 354, null, ['go']],
    ['a trailing CR', '250 ok\r', 250, null, ['ok']],
    ['control characters', '550 a\x00b\x1b[31mc\x7f\u0085d', 550, null, ['a b [31mc  d']],
    ['characters that are not ASCII', '550 b\u00fcrgerin \u{1f4a9}\ufffd', 550, null, ['b?rgerin ??']],
  ])('reads %s', (_, raw, code, enhanced, lines) => {
    expect(parseReply(raw)).toEqual({ code, enhanced, lines });
  });

  it.each([
    ['nothing', ''],
    ['text', 'hello'],
    ['codes that differ', '250-a\n550 b'],
    ['a line without a code', '250-a\nb'],
    ['a code below 200', '150 a'],
    ['a code above 599', '600 a'],
    ['four digits', '2500 a'],
    ['another separator', '250\ta'],
    ['an empty last line', '250 a\n'],
  ])('refuses %s', (_, raw) => expect(parseReply(raw)).toBeNull());

  it('keeps non-ASCII text for a client that said SMTPUTF8', () => {
    expect(parseReply('550 b\u00fcrgerin\u0085\ud800', { utf8: true })?.lines).toEqual(['b\u00fcrgerin ?']);
  });

  it('bounds the lines and their number', () => {
    const long = parseReply(Array.from({ length: 30 }, () => `550-${'x'.repeat(2_000)}`).join('\n'))!;
    expect(long.lines).toHaveLength(20);
    expect(long.lines.every((line) => line.length === 400)).toBe(true);
    expect(Buffer.byteLength(parseReply(`550 a${'\u00fc'.repeat(500)}`, { utf8: true })!.lines[0]!)).toBe(
      399,
    );
  });

  it('still refuses a bad line behind those that it keeps', () => {
    expect(parseReply(`${'250-x\n'.repeat(25)}550 x`)).toBeNull();
  });

  it('takes whatever a peer sends without throwing', () => {
    fc.assert(
      fc.property(peerText, fc.boolean(), (raw, utf8) => {
        const parsed = parseReply(raw, { utf8 });
        if (parsed === null) return;
        expect([2, 3, 4, 5]).toContain(replyClass(parsed));
        expect(parsed.enhanced === null || parsed.enhanced.startsWith(`${replyClass(parsed)}.`)).toBe(true);
        expect(parsed.lines.length).toBeGreaterThan(0);
      }),
    );
  });
});

describe('formatReply', () => {
  it.each<[Reply, string]>([
    [reply(250, '2.0.0', 'ok'), '250 2.0.0 ok\r\n'],
    [reply(220, null, 'mx ESMTP'), '220 mx ESMTP\r\n'],
    [reply(550, '5.7.1', 'go', 'away'), '550-5.7.1 go\r\n550 5.7.1 away\r\n'],
    [reply(250, '2.0.0'), '250 2.0.0\r\n'],
    // RFC 5321 §4.2: the space stays even without text.
    [reply(250, null), '250 \r\n'],
    [reply(550, null, 'a\r\n250 b'), '550 a  250 b\r\n'],
  ])('%j', (given, wire) => expect(formatReply(given)).toBe(wire));

  it('never writes a control character, or a line over 512 octets', () => {
    const lines = fc.array(fc.string({ unit: anyCharacter, maxLength: 700 }), { minLength: 1, maxLength: 4 });
    fc.assert(
      fc.property(lines, fc.constantFrom(null, '5.999.999'), (texts, enhanced) => {
        const wire = formatReply(reply(550, enhanced, ...texts));
        expect(wire.endsWith('\r\n')).toBe(true);
        const written = wire.slice(0, -2).split('\r\n');
        expect(written).toHaveLength(texts.length);
        for (const line of written) {
          expect(line).not.toMatch(/[\x00-\x1f\x7f-\x9f\u2028\u2029]/);
          expect(Buffer.byteLength(line) + 2).toBeLessThanOrEqual(512);
        }
      }),
    );
  });

  it('writes what parseReply reads back', () => {
    fc.assert(
      fc.property(peerText, fc.boolean(), (raw, utf8) => {
        const parsed = parseReply(raw, { utf8 });
        if (parsed === null) return;
        const wire = formatReply(parsed).trimEnd().replaceAll('\r\n', '\n');
        expect(parseReply(wire, { utf8 })).toEqual(parsed);
      }),
    );
  });
});

describe('passOn', () => {
  it.each<[string, string | null]>([
    ['250 2.0.0 ok', null],
    ['354 go on', null],
    ['550-5.1.1 who\n550 5.1.1 is that', '550-5.1.1 who\r\n550 5.1.1 is that\r\n'],
    ['450 busy', '450 busy\r\n'],
    // Only we may close our channel.
    ['421 4.3.2 going down', '451 4.3.2 going down\r\n'],
    ['421 going down', '451 going down\r\n'],
  ])('%s', (raw, wire) => {
    const passed = passOn(parseReply(raw)!);
    expect(passed && formatReply(passed)).toBe(wire);
  });
});

describe('our own replies', () => {
  it.each<[Reply, string]>([
    [replies.greeting('mx.example'), '220 mx.example ESMTP cutthrough'],
    [replies.helo('mx.example'), '250 mx.example'],
    [replies.closing(), '221 2.0.0'],
    [replies.ok(), '250 2.0.0'],
    [replies.senderOk(), '250 2.1.0'],
    [replies.recipientOk(), '250 2.1.5'],
    [replies.startTls(), '220 2.0.0'],
    [replies.startData(), '354 '],
    [replies.cannotVerify(), '252 2.0.0'],
    [replies.help(), '214 2.0.0'],
    [replies.badSequence('need MAIL first'), '503 5.5.1 need MAIL first'],
    [replies.commandUnknown(), '500 5.5.2'],
    [replies.commandNotImplemented(), '502 5.5.1'],
    [replies.syntax('bad'), '501 5.5.4 bad'],
    [replies.badSenderSyntax(), '501 5.1.7'],
    [replies.badRecipientSyntax(), '501 5.1.3'],
    [replies.lineTooLong(), '500 5.5.2'],
    [replies.bareLineFeedCommand(), '500 5.5.2'],
    [replies.unknownParameter('FOO'), '555 5.5.4 parameter FOO '],
    [replies.refusedByPolicy('x'), '451 4.7.5 '],
    [replies.mustStartTls(), '530 5.7.0'],
    [replies.tlsNotAvailable(), '454 4.7.0'],
    [replies.nonAsciiNeedsSmtputf8(), '553 5.6.7'],
    [replies.nextHopLacksSmtputf8(), '550 5.6.7'],
    [replies.relayingDenied(), '550 5.7.1'],
    [replies.noSuchDomain(), '550 5.1.2'],
    [replies.nullMx(), '556 5.1.10'],
    [replies.dnsTemporary(), '451 4.4.3'],
    [replies.unroutable(), '550 5.4.4'],
    [replies.routingLoop(), '554 5.4.6'],
    [
      replies.nextHopUnreachable('mx:25', 1, 'refused'),
      '451 4.4.1 next hop mx:25 unreachable after 1 attempt: refused',
    ],
    [
      replies.nextHopUnreachable('mx:25', 3, 'refused'),
      '451 4.4.1 next hop mx:25 unreachable after 3 attempts: ',
    ],
    [replies.tooManyRecipients(), '452 4.5.3'],
    [replies.noValidRecipients(), '554 5.5.1'],
    [replies.messageTooBig(1000), '552 5.3.4 message exceeds 1000 octets'],
    [replies.messageTooBig(null), '552 5.3.4 message exceeds the limit'],
    [replies.bareNewline(), '554 5.6.0'],
    [replies.mailLoop(), '554 5.4.6'],
    [replies.legLost('mx:25', 'body'), '451 4.4.2 lost mx:25 while sending the message;'],
    [replies.outcomeUnknown('mx:25'), '451 4.4.2 sent but not confirmed by mx:25;'],
    [
      replies.mixed({ accepted: 1, total: 3, temporary: true }),
      '451 4.5.0 message delivered to 1 of 3 recipients;',
    ],
    [
      replies.mixed({ accepted: 2, total: 3, temporary: false }),
      '554 5.5.0 message delivered to 2 of 3 recipients;',
    ],
    [replies.delivered(null), '250 2.0.0 message delivered'],
    [replies.delivered(reply(250, '2.6.0', 'queued as 4711')), '250 2.0.0 queued as 4711'],
    [replies.delivered(reply(251, null, '')), '250 2.0.0 message delivered'],
    [replies.transactionAborted(), '451 4.3.0'],
    [replies.overloadedData(), '451 4.3.2'],
    [replies.overloadedConnections(), '421 4.3.2'],
    [replies.shuttingDown(), '421 4.3.2'],
    [replies.timeout(), '421 4.4.2'],
    [replies.tooManyErrors(), '421 4.7.0'],
    [replies.bodyAfterRefusal(), '421 4.5.0'],
  ])('%j', (given, beginning) => {
    const wire = formatReply(given);
    expect(wire.startsWith(beginning)).toBe(true);
    expect(parseReply(wire.slice(0, -2))).toEqual(given);
  });

  it('lists what is offered, one keyword a line', () => {
    expect(formatReply(replies.ehlo('mx.example', ['PIPELINING', 'SIZE 10']))).toBe(
      '250-mx.example\r\n250-PIPELINING\r\n250 SIZE 10\r\n',
    );
  });
});
