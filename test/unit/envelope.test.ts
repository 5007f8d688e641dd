import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DamagedError,
  decodeEnvelope,
  encodeEnvelope,
  type QueuedMessage,
} from '../../src/spool/envelope.ts';

const MESSAGE: QueuedMessage = {
  id: 'abc-123_x.y',
  queuedAt: 1_700_000_000_000,
  sender: {
    mailbox: {
      localPart: '"jörg\u2028\ufffd o"',
      domain: 'xn--bcher-kva.example',
      address: '"jörg\u2028\ufffd o"@xn--bcher-kva.example',
      nonAscii: true,
      unquotedLocal: 'jörg\u2028\ufffd o',
    },
    params: { size: 12345, body: '8BITMIME', smtputf8: true, ret: 'HDRS', envid: 'QQ+ 1' },
  },
  client: {
    address: '2001:db8::1',
    port: 54321,
    name: 'client.example',
    helo: 'hëlo',
    extended: true,
    localAddress: '2001:db8::2',
    localPort: 25,
  },
  recipients: [
    {
      mailbox: {
        localPart: 'b',
        domain: 'b.example',
        address: 'b@b.example',
        nonAscii: false,
        unquotedLocal: 'b',
      },
      params: { notify: 'SUCCESS,DELAY', orcpt: { type: 'rfc822', address: 'x@y' } },
      state: 'pending',
      reply: { code: 450, enhanced: '4.2.1', lines: ['not now', 'later'] },
      nextHop: 'mx.b.example',
      triedAt: 1_700_000_000_001.25,
    },
    {
      mailbox: {
        localPart: 'Postmaster',
        domain: null,
        address: 'Postmaster',
        nonAscii: false,
        unquotedLocal: 'Postmaster',
      },
      params: { notify: null, orcpt: null },
      state: 'delivered',
      reply: null,
      nextHop: '',
      triedAt: null,
    },
  ],
  octets: 0,
  crc32: 0xffff_ffff,
  attempts: 3,
  nextAttemptAt: 1_700_000_060_000.5,
  delayNotified: false,
};
const TEXT = encodeEnvelope(MESSAGE);
/** As it was before clients were written down. */
const { client: _, ...VERSION_1 } = MESSAGE;

/** With a checksum that fits. */
function file(body: string, version: unknown = 2): string {
  return `${JSON.stringify({ version, crc32: crc32(`${version}\n${body}`) })}\n${body}\n`;
}

/** With another value at `path`; undefined takes the field away. */
function altered(path: string, value: unknown): QueuedMessage {
  const message = structuredClone(MESSAGE);
  const keys = path.split('.');
  const last = keys.pop()!;
  let place = message as unknown as Record<string, unknown>;
  for (const key of keys) place = place[key] as Record<string, unknown>;
  place[last] = value;
  return message;
}

function expectDamaged(text: string): void {
  let result: unknown;
  try {
    result = decodeEnvelope(text);
  } catch (error) {
    result = error;
  }
  expect(result).toBeInstanceOf(DamagedError);
  expect((result as Error).message).not.toMatch(/[\r\n]/);
}

it('leaves out what was between the client and us, so that an older version reads it', () => {
  const sender = { ...MESSAGE.sender, params: { ...MESSAGE.sender.params, prdr: true } } as const;
  const message = { ...MESSAGE, sender, client: { ...MESSAGE.client!, lmtp: true } };
  expect(encodeEnvelope(message)).toBe(TEXT);
});

it('gives back what it was given, in two lines', () => {
  expect(decodeEnvelope(TEXT)).toEqual(MESSAGE);
  expect(TEXT.split('\n')).toHaveLength(3);
  const bounce = { ...MESSAGE, sender: { ...MESSAGE.sender, mailbox: null } };
  expect(decodeEnvelope(encodeEnvelope(bounce))).toEqual(bounce);
});

it('gives back any text that an address, a reply or an ENVID may hold', () => {
  const text = fc.string({ unit: 'binary' }).filter((each) => each !== '');
  const property = fc.property(text, text, (one, other) => {
    const recipients = [
      { ...MESSAGE.recipients[0]!, reply: { code: 550, enhanced: null, lines: [one, other] } },
    ];
    const message = { ...altered('sender.params.envid', other), recipients };
    const bytes = Buffer.from(encodeEnvelope(message));
    expect(decodeEnvelope(bytes.toString())).toEqual(message);
  });
  fc.assert(property, { numRuns: 50 });
});

it('finds every flipped bit', () => {
  const bytes = Buffer.from(TEXT);
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const flipped = Buffer.from(bytes);
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    expectDamaged(flipped.toString());
  }
});

it('finds every truncation, and whatever is appended', () => {
  const bytes = Buffer.from(TEXT);
  for (let length = 0; length < bytes.length; length++) expectDamaged(bytes.toString('utf8', 0, length));
  for (const more of ['\n', ' ', '\0', TEXT]) expectDamaged(TEXT + more);
  const zeros = Buffer.concat([bytes.subarray(0, 100), Buffer.alloc(bytes.length - 100)]);
  expectDamaged(zeros.toString());
});

it('refuses what a newer version wrote, without calling it damaged', () => {
  const newer = file('{"anything":1}', 3);
  expect(() => decodeEnvelope(newer)).toThrow('written by a newer version (format 3, this one knows 2)');
  expect(() => decodeEnvelope(newer)).not.toThrow(DamagedError);
  // Only where the checksum says that it's no flipped bit.
  expectDamaged(newer.replace('anything', 'anythinG'));
  expectDamaged(TEXT.replace('"version":2', '"version":3'));
});

it('reads what was written before clients were kept, and writes that form where there is none', () => {
  const old = { ...VERSION_1, client: null };
  const text = file(JSON.stringify(VERSION_1), 1);
  expect(decodeEnvelope(text)).toEqual(old);
  expect(encodeEnvelope(old)).toBe(text);
  // To a program of that time what has a client is newer, and no damage.
  expect(TEXT).toMatch(/^\{"version":2,/);
  expectDamaged(file(JSON.stringify(MESSAGE), 1));
  expectDamaged(file(JSON.stringify(VERSION_1), 2));
});

it('keeps of a client what next hops may be told, and no more', () => {
  const client = { ...MESSAGE.client!, tls: { version: 'TLSv1.3', cipher: 'x' } };
  expect(decodeEnvelope(encodeEnvelope({ ...MESSAGE, client })).client).toEqual(MESSAGE.client);
});

it('takes no older version, and no head of another form', () => {
  const body = JSON.stringify(MESSAGE);
  for (const version of [0, -1, 1.5, '1', null]) expectDamaged(file(body, version));
  for (const head of [
    '',
    'null',
    '[]',
    '1',
    '{}',
    '{"version":1}',
    `{"version":1,"crc32":"${crc32(`1\n${body}`)}"}`,
  ])
    expectDamaged(`${head}\n${body}\n`);
});

const WRONG: [what: string, path: string, value?: unknown][] = [
  ...Object.keys(MESSAGE).map((key) => [`no ${key}`, key] satisfies [string, string]),
  ['a field too many', 'extra', 1],
  ['a recipient with a field too many', 'recipients.0.extra', 1],
  ['a path for an id', 'id', '../../etc/passwd'],
  ['an empty id', 'id', ''],
  ['an id too long', 'id', 'x'.repeat(65)],
  ['negative octets', 'octets', -1],
  ['half an octet', 'octets', 0.5],
  ['a checksum too large', 'crc32', 2 ** 32],
  ['attempts as text', 'attempts', '3'],
  ['a time that is null', 'nextAttemptAt', null],
  ['an endless time', 'nextAttemptAt', Infinity],
  ['an empty list of recipients', 'recipients', []],
  ['recipients that are no list', 'recipients', { length: 1 }],
  ['a recipient without an address', 'recipients.0.mailbox.address'],
  ['an empty recipient address', 'recipients.0.mailbox.address', ''],
  ['a null recipient', 'recipients.0.mailbox', null],
  ['no RCPT parameters', 'recipients.0.params', null],
  ['an unknown state', 'recipients.0.state', 'lost'],
  ['no next hop', 'recipients.0.nextHop'],
  ['a reply without lines', 'recipients.0.reply.lines', []],
  ['a reply code of four digits', 'recipients.0.reply.code', 4500],
  ['a client without an address', 'client.address'],
  ['a port as text', 'client.port', '25'],
  ['an unknown body type', 'sender.params.body', 'BINARYMIME'],
  ['a size as text', 'sender.params.size', '1'],
  ['no sender parameters', 'sender.params'],
];

describe('takes no envelope with', () => {
  it.each(WRONG)('%s, nor writes one', (_, path, value) => {
    const message = altered(path, value);
    expectDamaged(file(JSON.stringify(message)));
    expect(() => encodeEnvelope(message)).toThrow('not an envelope');
  });

  it.each(['null', '[]', '1', '', '{', '"x"'])('%s for a message', (body) => expectDamaged(file(body)));
});
