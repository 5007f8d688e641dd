// Delivery status notifications: RFC 3464 in the multipart/report of RFC 6522, honouring NOTIFY, RET, ENVID and ORCPT
// (RFC 3461); with the types of RFC 6533 where the original needed SMTPUTF8, else 7-bit wherever the original is.
// Who is to be told, and the notification as bytes with its envelope; pure, and the same for the same input. Peers'
// text and addresses are data: without control characters, bounded, folded. Queueing and sending are the caller's.
import { isAscii, isUtf8 } from 'node:buffer';
import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import MimeNode from 'nodemailer/lib/mime-node';
import { encodeOrcpt } from '../smtp/address.ts';
import type { Recipient, Sender } from '../smtp/envelope.ts';
import type { Reply } from '../smtp/reply.ts';
import type { QueuedMessage, RecipientState } from './envelope.ts';

/** `expired`: --max-queue-age is over; `relayed`: NOTIFY=SUCCESS, and the next hop that took it has no DSN. */
export type DsnKind = 'failed' | 'delayed' | 'expired' | 'relayed';

export type DsnDeps = Readonly<{
  hostname: string;
  /** Epoch milliseconds. */
  now: () => number;
  newId: () => string;
  maxQueueAgeMs: number;
}>;

/** What of the original is returned, in wire form. */
export type DsnOriginal = Readonly<{ content: 'headers' | 'full'; bytes: Buffer }>;

export type Notification = Readonly<{
  /** Wire form: CRLF, dot-stuffed, without the final dot line. */
  bytes: Buffer;
  /** The null reverse-path (RFC 5321 §4.5.5). */
  sender: Sender;
  /** The original sender. */
  recipient: Recipient;
}>;

/** What the parts are written from; `utf8`: the notification needs SMTPUTF8. */
type Notice = Readonly<{
  message: QueuedMessage;
  recipients: readonly RecipientState[];
  kind: DsnKind;
  deps: DsnDeps;
  utf8: boolean;
}>;

const MAX_HEADER_OCTETS = 64 * 1024;
/** A larger original is returned as its header alone, RET=FULL or not. */
const MAX_FULL_OCTETS = 1024 * 1024;
/** Of a peer's reply. */
const MAX_DIAGNOSTIC_OCTETS = 800;
/** RFC 5322 §2.1.1, without the CRLF. */
const MAX_LINE_OCTETS = 998;
const LINE_OCTETS = 76;

const UNDELIVERED = 'Undelivered mail: returned to sender';
const KINDS = {
  failed: { action: 'failed', subject: UNDELIVERED, notify: 'FAILURE' },
  expired: { action: 'failed', subject: UNDELIVERED, notify: 'FAILURE' },
  delayed: { action: 'delayed', subject: 'Delayed mail: still being tried', notify: 'DELAY' },
  relayed: { action: 'relayed', subject: 'Relayed mail: no further report', notify: 'SUCCESS' },
} as const;

/** Which of the recipients the sender is to be told about; nobody where the reverse-path is null. */
export function toBeNotified(
  message: QueuedMessage,
  recipients: readonly RecipientState[],
  kind: DsnKind,
): readonly RecipientState[] {
  if (message.sender.mailbox === null) return [];
  return recipients.filter(({ params }) => {
    // RFC 3461 §4.1: without NOTIFY, of failures; of delays at the server's discretion, so only where that is asked for.
    const wishes = params.notify?.split(',') ?? ['FAILURE'];
    return wishes.includes(KINDS[kind].notify);
  });
}

/**
 * As much of the original as its notification returns.
 * @param chunks the .eml from its first octet; not read further than need be
 */
export async function readOriginal(
  message: QueuedMessage,
  kind: DsnKind,
  chunks: AsyncIterable<Buffer>,
): Promise<DsnOriginal> {
  const full = returnsFull(message, kind) && message.octets <= MAX_FULL_OCTETS;
  const enough = full ? message.octets : MAX_HEADER_OCTETS;
  const taken: Buffer[] = [];
  let octets = 0;
  for await (const chunk of chunks) {
    taken.push(chunk);
    octets += chunk.length;
    if (octets >= enough) break;
  }
  const bytes = Buffer.concat(taken);
  return full ? { content: 'full', bytes } : { content: 'headers', bytes: headerBlock(bytes) };
}

/**
 * The one notification about these recipients.
 * @param recipients at least one, as toBeNotified() gave them
 * @throws Error for the null reverse-path, which is never notified (RFC 5321 §4.5.5)
 */
export async function composeDsn(
  message: QueuedMessage,
  recipients: readonly RecipientState[],
  kind: DsnKind,
  original: DsnOriginal,
  deps: DsnDeps,
): Promise<Notification> {
  const { mailbox, params } = message.sender;
  if (mailbox === null) throw new Error(`no notification of ${message.id}: its reverse-path is null`);
  const content = unstuffed(original.bytes);
  const header = headerBlock(content);
  const nonAscii = mailbox.nonAscii || recipients.some((each) => each.mailbox.nonAscii) || isWide(header);
  const utf8 = params.smtputf8 && nonAscii;
  const full = original.content === 'full' && returnsFull(message, kind) && hasShortLines(content);
  const returned = full ? content : header;
  const eightBit = utf8 || (full && !isAscii(returned));

  const notice = { message, recipients, kind, deps, utf8 };
  const id = deps.newId();
  const root = new MimeNode('multipart/report; report-type=delivery-status', {
    // An id can be guessed, but no original holds its own hash.
    baseBoundary: createHash('sha256').update(id).update(content).digest('hex').slice(0, 32),
    disableFileAccess: true,
    disableUrlAccess: true,
  });
  root.setHeader([
    { key: 'From', value: { name: 'Mail Delivery System', address: `MAILER-DAEMON@${deps.hostname}` } },
    { key: 'To', value: { name: '', address: mailbox.address } },
    { key: 'Subject', value: KINDS[kind].subject },
    { key: 'Date', value: dateTime(deps.now()) },
    { key: 'Message-ID', value: `<${id}@${deps.hostname}>` },
    // RFC 3834 §5.
    { key: 'Auto-Submitted', value: 'auto-replied' },
  ]);
  // RFC 2045 §6.4: a multipart is labelled as what is inside.
  if (eightBit) root.setHeader('Content-Transfer-Encoding', '8bit');
  root.createChild('text/plain').setContent(explanation(notice));
  root
    .createChild(utf8 ? 'message/global-delivery-status' : 'message/delivery-status')
    .setHeader('Content-Transfer-Encoding', utf8 ? '8bit' : '7bit')
    .setContent(deliveryStatus(notice));
  root.appendChild(full ? fullPart(returned, utf8) : headerPart(returned, utf8));

  const plain = await root.build();
  return {
    // RFC 5321 §4.5.2.
    bytes: Buffer.from(plain.toString('latin1').replace(/(^|\r\n)\./g, '$1..'), 'latin1'),
    sender: {
      mailbox: null,
      params: {
        size: plain.length,
        body: eightBit ? '8BITMIME' : null,
        smtputf8: utf8,
        ret: null,
        envid: null,
      },
    },
    recipient: { mailbox, params: { notify: null, orcpt: null } },
  };
}

/** RFC 3461 §4.3: RET is about failures; of other notifications the header is all that is returned. */
function returnsFull({ sender }: QueuedMessage, kind: DsnKind): boolean {
  return sender.params.ret === 'FULL' && KINDS[kind].action === 'failed';
}

// ---- The original ----

/** The fields without the empty line behind them, in whole lines, as many as fit MAX_HEADER_OCTETS. */
function headerBlock(bytes: Buffer): Buffer {
  const end = bytes.indexOf('\r\n\r\n');
  const fields = bytes.subarray(0, Math.min(end === -1 ? bytes.length : end + 2, MAX_HEADER_OCTETS));
  const last = fields.lastIndexOf('\r\n');
  return fields.subarray(0, last === -1 ? 0 : last + 2);
}

/** The wire scanner lets no bare CR, LF or NUL in; what has been on a disk is looked at once more. */
function unstuffed(wire: Buffer): Buffer {
  const text = wire.toString('latin1').replace(/(^|\r\n)\./g, '$1');
  return Buffer.from(text.replace(/\r\n|[\r\n]/g, '\r\n').replaceAll('\0', ''), 'latin1');
}

function hasShortLines(bytes: Buffer): boolean {
  return bytes
    .toString('latin1')
    .split('\r\n')
    .every((line) => line.length <= MAX_LINE_OCTETS);
}

/** RFC 6532: more than ASCII, and UTF-8. */
function isWide(bytes: Buffer): boolean {
  return !isAscii(bytes) && isUtf8(bytes);
}

/** A message may not be encoded (RFC 2046 §5.2.1), so it is passed on as it is. */
function fullPart(content: Buffer, utf8: boolean): MimeNode {
  return new MimeNode(utf8 && isWide(headerBlock(content)) ? 'message/global' : 'message/rfc822')
    .setHeader('Content-Transfer-Encoding', isAscii(content) ? '7bit' : '8bit')
    .setContent(content);
}

function headerPart(content: Buffer, utf8: boolean): MimeNode {
  const wide = utf8 && isWide(content);
  const type = wide ? 'message/global-headers' : 'text/rfc822-headers';
  // RFC 6522 §4, RFC 6533: encoded only where there is no other way.
  if (!(wide || isAscii(content)) || !hasShortLines(content)) {
    return new MimeNode(type).setHeader('Content-Transfer-Encoding', 'quoted-printable').setContent(content);
  }
  // Raw, since the composer would encode any text with a line over 76 octets.
  const fields = `Content-Type: ${type}\r\nContent-Transfer-Encoding: ${wide ? '8bit' : '7bit'}\r\n\r\n`;
  return new MimeNode().setRaw(Buffer.concat([Buffer.from(fields), content]));
}

// ---- For machines ----

/** RFC 3464 §2.1: the fields of the message, then those of each recipient, between empty lines. */
function deliveryStatus(notice: Notice): string {
  const { message, recipients, deps } = notice;
  const { envid } = message.sender.params;
  const fields = [
    ...(envid === null ? [] : [`Original-Envelope-Id: ${printable(envid, false)}`]),
    `Reporting-MTA: dns; ${deps.hostname}`,
    `Arrival-Date: ${dateTime(message.queuedAt)}`,
    ...recipients.flatMap((recipient) => ['', ...recipientFields(recipient, notice)]),
  ];
  return `${fields.join('\r\n')}\r\n`;
}

function recipientFields(recipient: RecipientState, { kind, utf8, ...notice }: Notice): string[] {
  const { mailbox, params, reply, triedAt } = recipient;
  const remote = hasAnswered(recipient);
  const final = { type: mailbox.nonAscii ? 'utf-8' : 'rfc822', address: mailbox.address };
  const fields = [
    `Final-Recipient: ${typed(final, utf8)}`,
    `Action: ${KINDS[kind].action}`,
    `Status: ${status(reply, kind)}`,
  ];
  if (params.orcpt !== null) {
    const original = `Original-Recipient: ${typed(params.orcpt, utf8)}`;
    // It can't be folded; longer is only what was made up to be.
    if (Buffer.byteLength(original) <= MAX_LINE_OCTETS) fields.unshift(original);
  }
  if (remote) fields.push(`Remote-MTA: dns; ${printable(remoteName(recipient.nextHop), false)}`);
  if (reply !== null) {
    // RFC 3464 §2.3.6: the type tells whose code it is.
    const type = remote ? 'smtp' : 'x-cutthrough';
    fields.push(...folded(`Diagnostic-Code: ${type}; ${said(reply, utf8)}`, ' '));
  }
  if (triedAt !== null) fields.push(`Last-Attempt-Date: ${dateTime(triedAt)}`);
  if (kind === 'delayed') fields.push(`Will-Retry-Until: ${dateTime(givenUpAt(notice))}`);
  return fields;
}

function givenUpAt({ message, deps }: Pick<Notice, 'message' | 'deps'>): number {
  return message.queuedAt + deps.maxQueueAgeMs;
}

/** RFC 3464 §2.1.2 and, for the type `utf-8` in 7-bit and in UTF-8 surroundings, RFC 6533 §3. */
function typed(orcpt: Readonly<{ type: string; address: string }>, utf8: boolean): string {
  const isUtf8Type = orcpt.type.toLowerCase() === 'utf-8';
  const text =
    isUtf8Type && !utf8 ? encodeOrcpt(orcpt).replace(';', '; ') : `${orcpt.type}; ${orcpt.address}`;
  return printable(text, utf8);
}

/** RFC 3463; a status goes with the action. */
function status(reply: Reply | null, kind: DsnKind): string {
  if (kind === 'expired') return '4.4.7';
  // Relayed to a system that does not speak this protocol.
  if (kind === 'relayed') return '2.1.9';
  if (kind === 'delayed' && reply === null) return '4.4.1';
  const statusClass = kind === 'failed' ? '5' : '4';
  return reply?.enhanced?.startsWith(statusClass) ? reply.enhanced : `${statusClass}.0.0`;
}

/** 4.4.1, 4.4.2 and 4.4.7 are what we say ourselves: no answer, broken off, expired. */
function hasAnswered({ reply, nextHop }: RecipientState): boolean {
  return reply !== null && nextHop !== '' && !/^4\.4\.[127]$/.test(reply.enhanced ?? '');
}

/** A label is a name, or a URL; its ` (+2 more)` is a comment in RFC 3464 too. */
function remoteName(label: string): string {
  const [, host = label, more = ''] =
    /^(?:[a-z]+:\/\/)?(\[[^\]]*\]|[^: ]*)(?::\d+)?( \(.*\))?$/.exec(label) ?? [];
  const bare = host.replace(/^\[|\]$/g, '');
  // RFC 5321 §4.1.3.
  const literal = isIP(bare) === 6 ? `[IPv6:${bare}]` : `[${bare}]`;
  return `${isIP(bare) === 0 ? host : literal}${more}`;
}

// ---- For people ----

function explanation({ recipients, kind, utf8, ...notice }: Notice): string {
  const lines = [`This is the mail system at ${notice.deps.hostname}.`, ''];
  const arrival = dateTime(notice.message.queuedAt);
  lines.push(...folded(OPENINGS[kind](arrival, dateTime(givenUpAt(notice))), ''));
  for (const recipient of recipients) {
    const { mailbox, reply, nextHop } = recipient;
    const who = hasAnswered(recipient)
      ? `The server ${printable(remoteName(nextHop), false)} said:`
      : 'This mail system says:';
    const reason = reply === null ? 'No answer came from the server there.' : `${who} ${said(reply, utf8)}`;
    lines.push('', `<${printable(mailbox.address, utf8)}>`, ...folded(`    ${reason}`, '    '));
  }
  return `${lines.join('\r\n')}\r\n`;
}

const OPENINGS: Readonly<Record<DsnKind, (arrival: string, until: string) => string>> = {
  failed: () =>
    'Your message could not be delivered to the recipients below, and will not be tried again. ' +
    'If it still matters, put right what is said below and send it again.',
  expired: (arrival) =>
    `Your message of ${arrival} could not be delivered to the recipients below for so long that it has been given ` +
    'up. It will not be tried again; if it still matters, send it again later.',
  delayed: (_, until) =>
    'Your message has not been delivered to the recipients below yet. You need not do anything: it will be tried ' +
    `again until ${until}, and you will be told if that fails.`,
  relayed: () =>
    'Your message has been passed on for the recipients below, to a server that does not report on deliveries. ' +
    'You need not do anything. If it is delivered you will not be told.',
};

// ---- Text ----

/** The reply on one line. */
function said({ code, enhanced, lines }: Reply, utf8: boolean): string {
  const text = [String(code), ...(enhanced === null ? [] : [enhanced]), ...lines].join(' ');
  const bytes = Buffer.from(printable(text, utf8));
  if (bytes.length <= MAX_DIAGNOSTIC_OCTETS) return bytes.toString();
  return `${bytes.toString('utf8', 0, MAX_DIAGNOSTIC_OCTETS).replace(/\ufffd+$/, '')} ...`;
}

function printable(text: string, utf8: boolean): string {
  const clean = text.replace(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, ' ').replace(/\p{Cs}/gu, '?');
  return utf8 ? clean : clean.replace(/[^\x20-\x7e]/gu, '?');
}

/** Broken at spaces into lines of LINE_OCTETS where that can be; all but the first start with `indent`. */
function folded(text: string, indent: string): string[] {
  const lines: string[] = [];
  for (const word of text.trimEnd().split(/(?<=\S) +/)) {
    const line = lines.at(-1);
    const longer = `${line} ${word}`;
    if (line !== undefined && Buffer.byteLength(longer) <= LINE_OCTETS) lines[lines.length - 1] = longer;
    else lines.push(line === undefined ? word : indent + word);
  }
  return lines;
}

/** RFC 5322 §3.3, in UTC. */
function dateTime(ms: number): string {
  return new Date(ms).toUTCString().replace('GMT', '+0000');
}
