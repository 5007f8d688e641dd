// Notifications read back with a MIME reader of this file's own, so that the composer is not its own judge.
import { describe, expect, it } from 'vitest';
import { parseMail, parseRcpt } from '../../src/smtp/address.ts';
import { parseReply, queueTimeExpired, reply } from '../../src/smtp/reply.ts';
import {
  composeDsn,
  type DsnDeps,
  type DsnKind,
  type DsnOriginal,
  type Notification,
  readOriginal,
  toBeNotified,
} from '../../src/spool/dsn.ts';
import type { QueuedMessage, RecipientState } from '../../src/spool/envelope.ts';

const QUEUED_AT = Date.UTC(2026, 0, 5, 10, 0, 0);
const TRIED_AT = Date.UTC(2026, 0, 5, 11, 0, 0);
const NOW = Date.UTC(2026, 0, 5, 12, 0, 1);
const DAYS = 24 * 3600 * 1000;
const DEPS: DsnDeps = {
  hostname: 'proxy.example',
  now: () => NOW,
  newId: () => 'Ab-_123.z',
  maxQueueAgeMs: 5 * DAYS,
};
const KINDS: readonly DsnKind[] = ['failed', 'expired', 'delayed', 'relayed'];
const NO_USER = reply(550, '5.1.1', 'no such user');

const HEADER = 'Received: from a by proxy.example; x\r\nFrom: a@b.example\r\nSubject: hello\r\n';
const ORIGINAL = headers(HEADER);

function headers(text: string | Buffer): DsnOriginal {
  return { content: 'headers', bytes: Buffer.from(text) };
}

function full(text: string | Buffer): DsnOriginal {
  return { content: 'full', bytes: Buffer.from(text) };
}

/** @param mail what follows `MAIL FROM:` */
function message(mail = '<a@b.example>', changes: Partial<QueuedMessage> = {}): QueuedMessage {
  const parsed = parseMail(`MAIL FROM:${mail}`);
  if (!parsed.ok) throw new Error(mail);
  return {
    id: 'm1',
    queuedAt: QUEUED_AT,
    sender: { mailbox: parsed.mailbox, params: parsed.params },
    client: null,
    recipients: [],
    octets: 1000,
    crc32: 0,
    attempts: 2,
    nextAttemptAt: NOW,
    delayNotified: false,
    ...changes,
  };
}

/** @param rcpt what follows `RCPT TO:` */
function recipient(rcpt = '<c@d.example>', changes: Partial<RecipientState> = {}): RecipientState {
  const parsed = parseRcpt(`RCPT TO:${rcpt}`, { smtputf8: true });
  if (!parsed.ok) throw new Error(rcpt);
  return {
    mailbox: parsed.mailbox!,
    params: parsed.params,
    state: 'failed',
    reply: NO_USER,
    nextHop: 'mx.d.example',
    triedAt: TRIED_AT,
    ...changes,
  };
}

type Entity = Readonly<{ fields: ReadonlyMap<string, string>; body: Buffer }>;
type Report = Readonly<{ raw: Buffer; root: Entity; parts: readonly Entity[]; sent: Notification }>;

function fieldsOf(block: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of block.replace(/\r\n(?=[ \t])/g, '').split('\r\n')) {
    if (line === '') continue;
    const match = /^([!-9;-~]+): (.*)$/su.exec(line);
    if (match === null) throw new Error(`no field: ${line}`);
    const name = match[1]!.toLowerCase();
    if (fields.has(name)) throw new Error(`twice: ${name}`);
    fields.set(name, match[2]!);
  }
  return fields;
}

function entity(raw: Buffer): Entity {
  const end = raw.indexOf('\r\n\r\n');
  const fields = fieldsOf(raw.toString('utf8', 0, end));
  const body = raw.subarray(end + 4);
  switch (fields.get('content-transfer-encoding')) {
    case 'quoted-printable': {
      const text = body.toString('latin1').replace(/=\r\n/g, '');
      const decode = (_: string, hex: string) => String.fromCharCode(Number.parseInt(hex, 16));
      return { fields, body: Buffer.from(text.replace(/=([0-9A-F]{2})/g, decode), 'latin1') };
    }
    case 'base64':
      return { fields, body: Buffer.from(body.toString('latin1'), 'base64') };
    default:
      return { fields, body };
  }
}

async function compose(
  kind: DsnKind,
  from: QueuedMessage,
  to: readonly RecipientState[],
  original = ORIGINAL,
  deps = DEPS,
): Promise<Report> {
  const sent = await composeDsn(from, to, kind, original, deps);
  const wire = sent.bytes.toString('latin1');
  expect(wire).not.toMatch(/\r(?!\n)|(?<!\r)\n|\0/);
  expect(wire.endsWith('\r\n')).toBe(true);
  for (const line of wire.split('\r\n')) {
    expect(line.length).toBeLessThanOrEqual(999);
    if (line.startsWith('.')) expect(line.startsWith('..')).toBe(true);
  }
  const raw = Buffer.from(wire.replace(/(?<=^|\r\n)\.\./g, '.'), 'latin1');
  expect(sent.sender.params.size).toBe(raw.length);
  const root = entity(raw);
  const boundary = /boundary="([^"]+)"/.exec(root.fields.get('content-type')!)![1]!;
  expect(boundary.length).toBeLessThanOrEqual(70);
  const pieces = `\r\n${root.body.toString('latin1')}`.split(`\r\n--${boundary}`);
  expect(pieces[0]).toBe('');
  expect(pieces.at(-1)).toBe('--\r\n');
  const parts = pieces.slice(1, -1).map((piece) => entity(Buffer.from(piece.slice(2), 'latin1')));
  expect(parts).toHaveLength(3);
  return { raw, root, parts, sent };
}

const type = (of: Entity) => of.fields.get('content-type')!;
const encoding = (of: Entity) => of.fields.get('content-transfer-encoding');
const text = ({ parts }: Report) => parts[0]!.body.toString();

/** The fields of the message, then of each recipient. */
function status({ parts }: Report): ReadonlyMap<string, string>[] {
  return parts[1]!.body.toString().split('\r\n\r\n').map(fieldsOf);
}

const about = async (kind: DsnKind, changes: Partial<RecipientState>) =>
  status(await compose(kind, message(), [recipient('<c@d.example>', changes)]))[1]!;

describe('who is notified', () => {
  it.each<[string, DsnKind[]]>([
    ['', ['failed', 'expired']],
    [' NOTIFY=NEVER', []],
    [' NOTIFY=FAILURE', ['failed', 'expired']],
    [' NOTIFY=DELAY', ['delayed']],
    [' NOTIFY=SUCCESS', ['relayed']],
    [' NOTIFY=SUCCESS,FAILURE', ['failed', 'expired', 'relayed']],
    [' NOTIFY=success,failure,delay', [...KINDS].sort()],
  ])('RCPT with "%s": %j', (params, kinds) => {
    const to = [recipient(`<c@d.example>${params}`)];
    const told = KINDS.filter((kind) => toBeNotified(message(), to, kind).length > 0);
    expect(told.sort()).toEqual(kinds.sort());
  });

  it('picks among recipients, in their order', () => {
    const [first, never, last] = [
      recipient(),
      recipient('<n@d.example> NOTIFY=NEVER'),
      recipient('<e@f.example>'),
    ];
    expect(toBeNotified(message(), [first!, never!, last!], 'failed')).toEqual([first, last]);
  });

  it('nobody where the reverse-path is null, and no notification can be made then', async () => {
    const to = [recipient('<c@d.example> NOTIFY=SUCCESS,FAILURE,DELAY')];
    for (const kind of KINDS) expect(toBeNotified(message('<>'), to, kind)).toEqual([]);
    await expect(composeDsn(message('<>'), to, 'failed', ORIGINAL, DEPS)).rejects.toThrow(
      'reverse-path is null',
    );
  });
});

describe('envelope and header', () => {
  it('goes from the null reverse-path to the sender, and asks for no notification itself', async () => {
    const from = message('<a@b.example> RET=FULL ENVID=x');
    const { sent } = await compose('failed', from, [recipient('<c@d.example> NOTIFY=FAILURE')]);
    expect(sent.sender.mailbox).toBeNull();
    expect(sent.sender.params).toMatchObject({ body: null, smtputf8: false, ret: null, envid: null });
    expect(sent.recipient).toEqual({ mailbox: from.sender.mailbox, params: { notify: null, orcpt: null } });
  });

  it.each(KINDS)('has the fields of an automatic reply (%s)', async (kind) => {
    const { root, raw } = await compose(kind, message(), [recipient()]);
    expect(Object.fromEntries(root.fields)).toEqual({
      from: 'Mail Delivery System <MAILER-DAEMON@proxy.example>',
      to: 'a@b.example',
      subject: expect.stringMatching(/^(Undelivered|Delayed|Relayed) mail: /),
      date: 'Mon, 05 Jan 2026 12:00:01 +0000',
      'message-id': '<Ab-_123.z@proxy.example>',
      'auto-submitted': 'auto-replied',
      'mime-version': '1.0',
      'content-type': expect.stringMatching(/^multipart\/report; report-type=delivery-status; *boundary="/),
    });
    expect(raw.every((octet) => octet < 0x80)).toBe(true);
  });

  it('is the same for the same input', async () => {
    const once = await compose('failed', message(), [recipient()]);
    expect((await compose('failed', message(), [recipient()])).raw.equals(once.raw)).toBe(true);
  });

  it.each([
    ['<"a b"@b.example>', '<"a b"@b.example>'],
    ['<"a\\"@x, b"@b.example>', '<"a\\"@x, b"@b.example>'],
    ['<a@[192.0.2.1]>', '<a@[192.0.2.1]>'],
  ])('addresses %s as it was written', async (path, to) => {
    const { root, sent } = await compose('failed', message(path), [recipient()]);
    expect(root.fields.get('to')).toBe(to);
    expect(`<${sent.recipient.mailbox.address}>`).toBe(path);
  });
});

describe('the fields of the message', () => {
  it('are its arrival and the reporting host', async () => {
    const [fields] = status(await compose('failed', message(), [recipient()]));
    expect(Object.fromEntries(fields!)).toEqual({
      'reporting-mta': 'dns; proxy.example',
      'arrival-date': 'Mon, 05 Jan 2026 10:00:00 +0000',
    });
  });

  it('give the envelope id decoded', async () => {
    const [fields] = status(
      await compose('failed', message('<a@b.example> ENVID=QQ+2B1+3D+20x'), [recipient()]),
    );
    expect(fields!.get('original-envelope-id')).toBe('QQ+1= x');
  });
});

describe('the fields of a recipient', () => {
  it('for a failure', async () => {
    expect(Object.fromEntries(await about('failed', {}))).toEqual({
      'final-recipient': 'rfc822; c@d.example',
      action: 'failed',
      status: '5.1.1',
      'remote-mta': 'dns; mx.d.example',
      'diagnostic-code': 'smtp; 550 5.1.1 no such user',
      'last-attempt-date': 'Mon, 05 Jan 2026 11:00:00 +0000',
    });
  });

  it('for a delay, with the time when it will be over', async () => {
    const fields = await about('delayed', { state: 'pending', reply: reply(451, '4.7.1', 'greylisted') });
    expect(Object.fromEntries(fields)).toEqual({
      'final-recipient': 'rfc822; c@d.example',
      action: 'delayed',
      status: '4.7.1',
      'remote-mta': 'dns; mx.d.example',
      'diagnostic-code': 'smtp; 451 4.7.1 greylisted',
      'last-attempt-date': 'Mon, 05 Jan 2026 11:00:00 +0000',
      'will-retry-until': 'Sat, 10 Jan 2026 10:00:00 +0000',
    });
  });

  it.each<[DsnKind, string, Partial<RecipientState>]>([
    ['failed', '5.0.0', { reply: reply(550, null, 'no') }],
    ['failed', '5.0.0', { reply: null }],
    ['failed', '5.0.0', { reply: reply(451, '4.3.0', 'odd') }],
    ['expired', '4.4.7', { reply: reply(451, '4.7.1', 'greylisted') }],
    ['expired', '4.4.7', { reply: null }],
    ['delayed', '4.4.1', { reply: null, triedAt: null, nextHop: '' }],
    ['delayed', '4.0.0', { reply: reply(450, null, 'busy') }],
    ['relayed', '2.1.9', { reply: reply(250, '2.0.0', 'queued') }],
  ])('%s: status %s', async (kind, expected, changes) => {
    expect((await about(kind, changes)).get('status')).toBe(expected);
  });

  it.each<[DsnKind, string]>([
    ['failed', 'failed'],
    ['expired', 'failed'],
    ['delayed', 'delayed'],
    ['relayed', 'relayed'],
  ])('%s: action %s, and a time to retry until only for delays', async (kind, action) => {
    const fields = await about(kind, {});
    expect(fields.get('action')).toBe(action);
    expect(fields.has('will-retry-until')).toBe(kind === 'delayed');
  });

  it.each<[string, Partial<RecipientState>, string | undefined]>([
    [
      'nobody was asked',
      { reply: reply(550, '5.1.2', 'no such domain'), nextHop: '' },
      'x-cutthrough; 550 5.1.2 no such domain',
    ],
    [
      'nobody could be reached',
      { reply: reply(451, '4.4.1', 'unreachable') },
      'x-cutthrough; 451 4.4.1 unreachable',
    ],
    ['the next hop broke off', { reply: reply(451, '4.4.2', 'lost') }, 'x-cutthrough; 451 4.4.2 lost'],
    ['its time was over', { reply: queueTimeExpired() }, 'x-cutthrough; 451 4.4.7 delivery time expired'],
    ['there is no reply at all', { reply: null }, undefined],
  ])('name no remote host where %s', async (_, changes, diagnostic) => {
    const fields = await about('expired', changes);
    expect(fields.has('remote-mta')).toBe(false);
    expect(fields.get('diagnostic-code')).toBe(diagnostic);
  });

  it('have no time of an attempt where there was none', async () => {
    expect((await about('expired', { triedAt: null })).has('last-attempt-date')).toBe(false);
  });

  it.each([
    ['mx.d.example', 'mx.d.example'],
    ['mx.d.example:2525', 'mx.d.example'],
    ['smtp://mx.d.example:25', 'mx.d.example'],
    ['lmtp://10.0.0.5:24', '[10.0.0.5]'],
    ['smtp://[2001:db8::1]:25', '[IPv6:2001:db8::1]'],
    ['mx1.d.example (+2 more)', 'mx1.d.example (+2 more)'],
    ['smtp://mx1.d.example:25 (+1 more)', 'mx1.d.example (+1 more)'],
  ])('name the next hop %s as %s', async (nextHop, name) => {
    expect((await about('failed', { nextHop })).get('remote-mta')).toBe(`dns; ${name}`);
  });

  it.each([
    [' ORCPT=rfc822;Bob+2Bx@Old.example', 'rfc822; Bob+x@Old.example'],
    [' ORCPT=x400;/S=m+20n/', undefined],
    [' ORCPT=x400;/S+3Dm+20n/', 'x400; /S=m n/'],
    [' ORCPT=utf-8;b\\x{F6}b@old.example', 'utf-8; b\\x{F6}b@old.example'],
  ])('give the original recipient of "%s"', async (params, expected) => {
    if (expected === undefined) return expect(() => recipient(`<c@d.example>${params}`)).toThrow();
    const report = await compose('failed', message(), [recipient(`<c@d.example>${params}`)]);
    expect(status(report)[1]!.get('original-recipient')).toBe(expected);
    expect(type(report.parts[1]!)).toBe('message/delivery-status');
  });

  it('leave out an original recipient that no line can hold', async () => {
    const to = recipient(`<c@d.example> ORCPT=utf-8;${'\u4e2d'.repeat(480)}`);
    const [, fields] = status(await compose('failed', message(), [to]));
    expect(fields!.has('original-recipient')).toBe(false);
    expect(fields!.get('final-recipient')).toBe('rfc822; c@d.example');
  });

  it('keep the quotes of a local part', async () => {
    const [, fields] = status(await compose('failed', message(), [recipient('<"x; y\\"z"@d.example>')]));
    expect(fields!.get('final-recipient')).toBe('rfc822; "x; y\\"z"@d.example');
  });

  it('come once for each recipient, in order', async () => {
    const to = [
      recipient('<c@d.example>'),
      recipient('<e@f.example>', { reply: null }),
      recipient('<Postmaster>'),
    ];
    const [, ...each] = status(await compose('expired', message(), to));
    expect(each.map((fields) => fields.get('final-recipient'))).toEqual([
      'rfc822; c@d.example',
      'rfc822; e@f.example',
      'rfc822; Postmaster',
    ]);
  });
});

describe("a peer's text", () => {
  const hostile = reply(
    550,
    '5.1.1',
    'no\r\nAction: delivered\r\n\r\nBcc: x@y',
    'two\n--x\0\u0085\u2028end',
    '\ud800',
  );

  it.each(KINDS)('adds neither fields nor lines (%s)', async (kind) => {
    const report = await compose(kind, message(), [recipient('<c@d.example>', { reply: hostile })]);
    const groups = status(report);
    expect(groups).toHaveLength(2);
    expect(groups[1]!.get('diagnostic-code')).toBe(
      'smtp; 550 5.1.1 no Action: delivered Bcc: x@y two --x end ?',
    );
    expect(report.root.fields.has('bcc')).toBe(false);
    expect(text(report)).not.toMatch(/^(Action|Bcc|--x)/m);
  });

  it('is cut and folded where it is long, even without a space', async () => {
    const lines = Array.from({ length: 20 }, (_, index) => `line ${index} ${'y'.repeat(50)}`);
    for (const long of [reply(550, '5.0.0', ...lines), reply(550, '5.0.0', 'x'.repeat(5000))]) {
      const report = await compose('failed', message(), [recipient('<c@d.example>', { reply: long })]);
      const code = status(report)[1]!.get('diagnostic-code')!;
      expect(code).toMatch(/ \.\.\.$/);
      expect(code.length).toBeGreaterThan(700);
      expect(code.length).toBeLessThan(820);
    }
    const report = await compose('failed', message(), [
      recipient('<c@d.example>', { reply: reply(550, '5.0.0', ...lines) }),
    ]);
    for (const line of report.parts[1]!.body.toString().split('\r\n'))
      expect(line.length).toBeLessThanOrEqual(80);
  });

  it('is ASCII where the notification is', async () => {
    const foreign = parseReply('550 5.1.1 d\u00e9sol\u00e9', { utf8: true });
    const report = await compose('failed', message(), [recipient('<c@d.example>', { reply: foreign })]);
    expect(status(report)[1]!.get('diagnostic-code')).toBe('smtp; 550 5.1.1 d?sol?');
    expect(text(report)).toContain('550 5.1.1 d?sol?');
  });

  it('cannot come by the name of a next hop either', async () => {
    const fields = await about('failed', { nextHop: 'mx\r\nAction: delivered' });
    expect(fields.get('action')).toBe('failed');
  });
});

describe('the text for people', () => {
  const to = [recipient(), recipient('<e@f.example>', { reply: null })];

  it.each<[DsnKind, string[]]>([
    ['failed', ['could not be delivered', 'will not be tried again', 'send it again']],
    ['expired', ['of Mon, 05 Jan 2026 10:00:00 +0000', 'will not be tried again', 'send it again later']],
    ['delayed', ['need not do anything', 'until Sat, 10 Jan 2026 10:00:00 +0000']],
    ['relayed', ['passed on', 'need not do anything', 'not be told']],
  ])('says what to do, who and why (%s)', async (kind, phrases) => {
    const report = await compose(kind, message(), to);
    const flowing = text(report).replace(/\s+/g, ' ');
    for (const phrase of phrases) expect(flowing).toContain(phrase);
    expect(flowing).toContain('<c@d.example> The server mx.d.example said: 550 5.1.1 no such user');
    expect(flowing).toContain('<e@f.example> No answer came');
    expect(type(report.parts[0]!)).toMatch(/^text\/plain/);
    expect(encoding(report.parts[0]!)).toBe('7bit');
  });

  it('owns up to its own words', async () => {
    const own = recipient('<c@d.example>', { reply: reply(550, '5.1.2', 'no such domain'), nextHop: '' });
    expect(text(await compose('failed', message(), [own]))).toContain('This mail system says: 550 5.1.2');
  });
});

describe('the original', () => {
  const BODY = `${HEADER}\r\nHello\r\n..dots\r\n`;
  const asks = (ret: string, mail = '<a@b.example>') => message(`${mail}${ret}`);

  it.each<[DsnKind, string, string]>([
    ['failed', ' RET=FULL', 'message/rfc822'],
    ['expired', ' RET=FULL', 'message/rfc822'],
    ['delayed', ' RET=FULL', 'text/rfc822-headers'],
    ['relayed', ' RET=FULL', 'text/rfc822-headers'],
    ['failed', ' RET=HDRS', 'text/rfc822-headers'],
    ['failed', '', 'text/rfc822-headers'],
  ])('%s with "%s" comes back as %s', async (kind, ret, expected) => {
    for (const given of [await readOriginal(asks(ret), kind, chunks(BODY)), full(BODY)]) {
      const { parts, sent } = await compose(kind, asks(ret), [recipient()], given);
      expect(type(parts[2]!)).toBe(expected);
      expect(encoding(parts[2]!)).toBe('7bit');
      expect(sent.sender.params.body).toBeNull();
      const whole = `${HEADER}\r\nHello\r\n.dots\r\n`;
      expect(parts[2]!.body.toString()).toBe(expected === 'message/rfc822' ? whole : HEADER);
    }
  });

  it('has its stuffed dots taken off, and the notification its own put on', async () => {
    const { parts, sent } = await compose(
      'failed',
      message(),
      [recipient()],
      headers('..X: 1\r\nY: 2\r\n..Z: 3\r\n'),
    );
    expect(parts[2]!.body.toString()).toBe('.X: 1\r\nY: 2\r\n.Z: 3\r\n');
    expect(sent.bytes.toString()).toContain('\r\n\r\n..X: 1\r\nY: 2\r\n..Z: 3\r\n');
  });

  it('has no bare CR, LF or NUL, whatever the disk says', async () => {
    const { parts } = await compose(
      'failed',
      message(),
      [recipient()],
      headers('A: 1\rB: 2\nC: \x003\r\nD: cut\r'),
    );
    expect(parts[2]!.body.toString()).toBe('A: 1\r\nB: 2\r\nC: 3\r\nD: cut\r\n');
  });

  it('is encoded where its header is 8-bit or has overlong lines', async () => {
    for (const bytes of [
      Buffer.from('X: caf\xe9\r\n', 'latin1'),
      Buffer.from(`X: ${'x'.repeat(2000)}\r\n`),
    ]) {
      const { parts, raw, sent } = await compose('failed', message(), [recipient()], headers(bytes));
      expect(type(parts[2]!)).toBe('text/rfc822-headers');
      expect(encoding(parts[2]!)).toBe('quoted-printable');
      expect(parts[2]!.body.equals(bytes)).toBe(true);
      expect(raw.every((octet) => octet < 0x80)).toBe(true);
      expect(sent.sender.params.body).toBeNull();
    }
  });

  it('keeps a header line of up to 998 octets as it is', async () => {
    const line = `X: ${'x'.repeat(995)}\r\n`;
    const { parts } = await compose('failed', message(), [recipient()], headers(line));
    expect(encoding(parts[2]!)).toBe('7bit');
    expect(parts[2]!.body.toString()).toBe(line);
  });

  it('comes back whole and 8-bit where it is so, and is announced as that', async () => {
    const bytes = Buffer.concat([Buffer.from(`${HEADER}\r\n`), Buffer.from([0xe9, 0x0d, 0x0a])]);
    const { root, parts, sent } = await compose('failed', asks(' RET=FULL'), [recipient()], full(bytes));
    expect(parts[2]!.body.equals(bytes)).toBe(true);
    expect([root, parts[1]!, parts[2]!].map(encoding)).toEqual(['8bit', '7bit', '8bit']);
    expect(sent.sender.params).toMatchObject({ body: '8BITMIME', smtputf8: false });
  });

  it('comes back as its header where a line of it is too long', async () => {
    const given = full(`${HEADER}\r\n${'x'.repeat(999)}\r\n`);
    const { parts } = await compose('failed', asks(' RET=FULL'), [recipient()], given);
    expect(type(parts[2]!)).toBe('text/rfc822-headers');
    expect(parts[2]!.body.toString()).toBe(HEADER);
  });

  it('cannot play the line between the parts, even when it knows what was last used', async () => {
    const marks = new Set<string>();
    let body = BODY;
    for (let round = 0; round < 3; round++) {
      const { root, parts } = await compose('failed', asks(' RET=FULL'), [recipient()], full(body));
      expect(parts[2]!.body.toString()).toContain('.dots\r\n');
      const mark = /boundary="([^"]+)"/.exec(type(root))![1]!;
      marks.add(mark);
      body += `--${mark}\r\nAction: delivered\r\n--${mark}--\r\n`;
    }
    expect(marks.size).toBe(3);
  });

  it('may be empty', async () => {
    const { parts } = await compose('failed', message(), [recipient()], headers(''));
    expect(parts[2]!.body).toHaveLength(0);
  });
});

async function* chunks(text: string, octets = 7, onTaken = () => {}): AsyncGenerator<Buffer> {
  for (let at = 0; at < text.length; at += octets) {
    onTaken();
    yield Buffer.from(text.slice(at, at + octets));
  }
}

describe('reading the original', () => {
  const LONG = `${HEADER}\r\n${'body\r\n'.repeat(200_000)}`;

  it('takes the header alone, and not much more than the limit', async () => {
    let taken = 0;
    const read = await readOriginal(
      message(),
      'failed',
      chunks(LONG, 16 * 1024, () => taken++),
    );
    expect(read).toEqual(headers(HEADER));
    expect(taken).toBeLessThanOrEqual(4);
  });

  it('cuts a header that is larger than the limit behind a whole line', async () => {
    const { content, bytes } = await readOriginal(
      message(),
      'failed',
      chunks('X: 1234567\r\n'.repeat(9000), 4096),
    );
    expect(content).toBe('headers');
    expect(bytes.length).toBeLessThanOrEqual(64 * 1024);
    expect(bytes.length).toBeGreaterThan(64 * 1024 - 12);
    expect(bytes.toString().endsWith('X: 1234567\r\n')).toBe(true);
  });

  it('takes all of up to a mebibyte for RET=FULL', async () => {
    const small = LONG.slice(0, 1024 * 1024);
    const from = (octets: number) => message('<a@b.example> RET=FULL', { octets });
    const { content, bytes } = await readOriginal(from(small.length), 'failed', chunks(small, 64 * 1024));
    expect(content).toBe('full');
    expect(bytes.equals(Buffer.from(small))).toBe(true);
    expect(await readOriginal(from(small.length + 1), 'failed', chunks(LONG, 64 * 1024))).toEqual(
      headers(HEADER),
    );
  });
});

describe('where the original needed SMTPUTF8', () => {
  const WIDE_HEADER = 'Subject: gr\u00fc\u00dfe\r\nX: 1\r\n';
  const from = (mail = '<j\u00f6rg@b.example> SMTPUTF8') => message(mail);

  it('speaks UTF-8 throughout', async () => {
    const to = recipient('<\u7528\u6237@d.example> ORCPT=utf-8;\u7528@old.example', {
      reply: parseReply('550 5.1.1 \u4e0d\u5728', { utf8: true }),
    });
    const { root, parts, sent, ...report } = await compose(
      'failed',
      from(),
      [to, recipient()],
      headers(WIDE_HEADER),
    );
    expect(root.fields.get('to')).toBe('j\u00f6rg@b.example');
    expect(root.fields.get('content-type')).toMatch(/^multipart\/report; report-type=delivery-status;/);
    expect(parts.map(type)).toEqual([
      'text/plain; charset=utf-8',
      'message/global-delivery-status',
      'message/global-headers',
    ]);
    expect([root, ...parts].map(encoding)).toEqual([
      '8bit',
      expect.stringMatching(/quoted|base64/),
      '8bit',
      '8bit',
    ]);
    const [, wide, plain] = status({ root, parts, sent, ...report });
    expect(wide!.get('original-recipient')).toBe('utf-8; \u7528@old.example');
    expect(wide!.get('final-recipient')).toBe('utf-8; \u7528\u6237@d.example');
    expect(wide!.get('diagnostic-code')).toBe('smtp; 550 5.1.1 \u4e0d\u5728');
    expect(plain!.get('final-recipient')).toBe('rfc822; c@d.example');
    expect(parts[0]!.body.toString()).toContain('<\u7528\u6237@d.example>');
    expect(parts[2]!.body.toString()).toBe(WIDE_HEADER);
    expect(sent.sender.params).toMatchObject({ body: '8BITMIME', smtputf8: true });
    expect(sent.recipient.mailbox.address).toBe('j\u00f6rg@b.example');
  });

  it.each([
    ['<a@b.example> SMTPUTF8', '<\u7528@d.example>', HEADER, true, 'text/rfc822-headers'],
    ['<a@b.example> SMTPUTF8', '<c@d.example>', WIDE_HEADER, true, 'message/global-headers'],
    ['<a@b.example> SMTPUTF8', '<c@d.example>', HEADER, false, 'text/rfc822-headers'],
    [
      '<a@b.example> SMTPUTF8',
      '<c@d.example> ORCPT=utf-8;\u7528@o.example',
      HEADER,
      false,
      'text/rfc822-headers',
    ],
    ['<a@b.example>', '<c@d.example>', WIDE_HEADER, false, 'text/rfc822-headers'],
  ])('MAIL %s, RCPT %s, header %j: needs it, %s', async (mail, rcpt, header, needed, third) => {
    const report = await compose('delayed', from(mail), [recipient(rcpt)], headers(header));
    expect(report.sent.sender.params.smtputf8).toBe(needed);
    expect(report.raw.every((octet) => octet < 0x80)).toBe(!needed);
    expect(type(report.parts[2]!)).toBe(third);
    expect(report.parts[2]!.body.toString()).toBe(header);
  });

  it('returns the whole as message/global where its header is not ASCII', async () => {
    const whole = `${WIDE_HEADER}\r\nx\r\n`;
    const { parts } = await compose(
      'failed',
      from('<a@b.example> SMTPUTF8 RET=FULL'),
      [recipient()],
      full(whole),
    );
    expect(type(parts[2]!)).toBe('message/global');
    expect(parts[2]!.body.toString()).toBe(whole);
  });

  it('cuts long text within no character', async () => {
    const long = reply(550, '5.0.0', '\u4e2d'.repeat(2000));
    const report = await compose('failed', from(), [recipient('<c@d.example>', { reply: long })]);
    expect(status(report)[1]!.get('diagnostic-code')).toMatch(/^smtp; 550 5\.0\.0 \u4e2d+ \.\.\.$/);
  });
});
