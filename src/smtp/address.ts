// MAIL and RCPT command lines (RFC 5321 §4.1.1.2, §4.1.1.3, §4.1.2), with the parameters of SIZE, 8BITMIME, SMTPUTF8,
// DSN and AUTH. Pure. What breaks the grammar comes back as the reply to send; nothing throws.
// A local part is kept as it came, case and quotes included; a domain becomes lower-case A-labels.
import { isIPv4, isIPv6 } from 'node:net';
import { domainToASCII } from 'node:url';
import {
  syntax,
  badRecipientSyntax,
  badSenderSyntax,
  nonAsciiNeedsSmtputf8,
  type Reply,
  unknownParameter,
} from './reply.ts';

export type Mailbox = Readonly<{
  /** As received, with its quotes if it is quoted. */
  localPart: string;
  /** Without quotes and backslashes. */
  unquotedLocal: string;
  /** Lower-case A-labels, or an address literal in brackets; null for a bare `Postmaster`. */
  domain: string | null;
  /** What goes downstream between the angle brackets. */
  address: string;
}>;

export type MailParams = Readonly<{
  /** Declared message size, octets. */
  size: number | null;
  body: '7BIT' | '8BITMIME' | null;
  smtputf8: boolean;
  ret: 'FULL' | 'HDRS' | null;
  /** Decoded. */
  envid: string | null;
}>;

export type RcptParams = Readonly<{
  /** Canonical: `NEVER`, or a list of SUCCESS, FAILURE, DELAY. */
  notify: string | null;
  orcpt: Readonly<{ type: string; /** Decoded. */ address: string }> | null;
}>;

export type Refused = Readonly<{ ok: false; reply: Reply }>;
export type ParsedMail = Readonly<{ ok: true; mailbox: Mailbox | null; params: MailParams }> | Refused;
export type ParsedRcpt = Readonly<{ ok: true; mailbox: Mailbox; params: RcptParams }> | Refused;

/** RFC 5321 §4.5.3.1.1 says 64; forwarding services write longer ones, so twice that is let through. */
const MAX_LOCAL_OCTETS = 128;
const MAX_DOMAIN_OCTETS = 255;
const MAX_LABEL_OCTETS = 63;
/** RFC 3461 §4.4, §4.2. */
const MAX_ENVID = 100;
const MAX_ORCPT = 500;

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** A command line without its CRLF; null where it is not valid UTF-8. */
export function decodeCommandLine(bytes: Buffer): string | null {
  try {
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

export function parseMail(line: string): ParsedMail {
  const split = splitPath(line, /^MAIL FROM:[ \t]*/i);
  if (split === null) return refuse(badSenderSyntax());
  const params = mailParams(split.params);
  if ('ok' in params) return params;
  if (split.path === '') return { ok: true, mailbox: null, params };
  const mailbox = parsePath(split.path);
  if (mailbox === null || mailbox.domain === null) return refuse(badSenderSyntax());
  if (needsUtf8(split.path) && !params.smtputf8) return refuse(nonAsciiNeedsSmtputf8());
  return { ok: true, mailbox, params };
}

/** `smtputf8`: the transaction's MAIL carried it. */
export function parseRcpt(line: string, { smtputf8 }: { smtputf8: boolean }): ParsedRcpt {
  const split = splitPath(line, /^RCPT TO:[ \t]*/i);
  if (split === null || split.path === '') return refuse(badRecipientSyntax());
  const mailbox = parsePath(split.path);
  if (mailbox === null) return refuse(badRecipientSyntax());
  if (needsUtf8(split.path) && !smtputf8) return refuse(nonAsciiNeedsSmtputf8());
  const params = rcptParams(split.params);
  if ('ok' in params) return params;
  return { ok: true, mailbox, params };
}

/** Whether the local part asks for relaying by itself: `user%elsewhere`, `elsewhere!user`, `"user@elsewhere"`. */
export function hasRouting(mailbox: Mailbox): boolean {
  return /[%!@]/.test(mailbox.unquotedLocal);
}

/** RFC 3461 §4: anything but printable ASCII without `+` and `=` becomes `+` and two upper-case hex digits. */
export function encodeXtext(text: string): string {
  const hex = (octet: number) => `+${octet.toString(16).toUpperCase().padStart(2, '0')}`;
  return [...Buffer.from(text)]
    .map((octet) => {
      const plain = octet > 0x20 && octet < 0x7f && octet !== 0x2b && octet !== 0x3d;
      return plain ? String.fromCharCode(octet) : hex(octet);
    })
    .join('');
}

/** Null where `text` is no xtext. */
export function decodeXtext(text: string): string | null {
  if (!/^(?:[\x21-\x2a\x2c-\x3c\x3e-\x7e]|\+[0-9A-F]{2})*$/.test(text)) return null;
  const octets = text.replace(/\+(..)/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return decodeCommandLine(Buffer.from(octets, 'latin1'));
}

function refuse(reply: Reply): Refused {
  return { ok: false, reply };
}

function needsUtf8(path: string): boolean {
  return /[^\x00-\x7f]/.test(path);
}

/** The path between the brackets and the words behind it; null if there are no brackets, or control characters. */
function splitPath(line: string, command: RegExp): { path: string; params: string[] } | null {
  const start = command.exec(line);
  if (start === null || /[\x00-\x08\x0a-\x1f\x7f-\x9f]/.test(line)) return null;
  // A quoted string may hold `>`; a quoted pair may hold `"`.
  const bracketed = /^<((?:"(?:\\.|[^"\\])*"|[^">])*)>(.*)$/u.exec(line.slice(start[0].length));
  if (bracketed === null) return null;
  const [, path = '', rest = ''] = bracketed;
  if (rest !== '' && !/^[ \t]/.test(rest)) return null;
  return { path, params: rest.split(/[ \t]+/).filter((word) => word !== '') };
}

function parsePath(path: string): Mailbox | null {
  // RFC 5321 §4.1.1.3, App. C: a source route is accepted, and stripped.
  const mailbox = path.replace(/^@[^:,@]+(?:,@[^:,@]+)*:/, '');
  const parts = /^("(?:\\[\x20-\x7e]|[^"\\])*"|[^"@]*)(?:@(.*))?$/u.exec(mailbox);
  if (parts === null) return null;
  const [, localPart = '', given] = parts;
  const quoted = localPart.startsWith('"');
  if (!isLocalPart(localPart, quoted)) return null;
  const unquotedLocal = quoted ? localPart.slice(1, -1).replace(/\\(.)/g, '$1') : localPart;
  if (given === undefined) {
    // RFC 5321 §4.5.1: the only address without a domain.
    if (localPart.toLowerCase() !== 'postmaster') return null;
    return Object.freeze({ localPart, unquotedLocal, domain: null, address: localPart });
  }
  const domain = given.startsWith('[') ? addressLiteral(given) : domainName(given);
  if (domain === null) return null;
  return Object.freeze({ localPart, unquotedLocal, domain, address: `${localPart}@${domain}` });
}

function isLocalPart(text: string, quoted: boolean): boolean {
  if (Buffer.byteLength(text) > MAX_LOCAL_OCTETS) return false;
  if (quoted) return !/\t/.test(text);
  // dot-string: atoms of atext (RFC 5322 §3.2.3) or UTF-8 (RFC 6531 §3.3), single dots between.
  return /^[\w!#$%&'*+/=?^`{|}~\u{a0}-\u{10ffff}-]+(?:\.[\w!#$%&'*+/=?^`{|}~\u{a0}-\u{10ffff}-]+)*$/u.test(text);
}

/** RFC 5321 §4.1.3; null where the brackets hold no address. */
function addressLiteral(text: string): string | null {
  const inner = /^\[(?:(IPv6:)(.+)|(.+))\]$/i.exec(text);
  if (inner === null) return null;
  if (inner[1] !== undefined) return isIPv6(inner[2]!) ? `[IPv6:${inner[2]!.toLowerCase()}]` : null;
  return isIPv4(inner[3]!) ? `[${inner[3]}]` : null;
}

function domainName(text: string): string | null {
  // domainToASCII would also repair escapes and full-width characters, and read numbers as addresses.
  if (!/^[\w\u{80}-\u{10ffff}-]+(?:\.[\w\u{80}-\u{10ffff}-]+)*$/u.test(text)) return null;
  const domain = needsUtf8(text) ? domainToASCII(text) : text.toLowerCase();
  if (domain === '' || domain.length > MAX_DOMAIN_OCTETS || isIPv4(domain)) return null;
  const fine = (label: string) => label.length <= MAX_LABEL_OCTETS && /^[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?$/.test(label);
  return domain.split('.').every(fine) ? domain : null;
}

type Words = ReadonlyMap<string, string | null>;

function keywords(words: readonly string[], known: readonly string[]): Words | Refused {
  const found = new Map<string, string | null>();
  for (const each of words) {
    const at = each.indexOf('=');
    const keyword = (at === -1 ? each : each.slice(0, at)).toUpperCase();
    if (!known.includes(keyword)) return refuse(unknownParameter(keyword));
    if (found.has(keyword)) return refuse(syntax(`${keyword} given twice`));
    found.set(keyword, at === -1 ? null : each.slice(at + 1));
  }
  return found;
}

function mailParams(words: readonly string[]): MailParams | Refused {
  const found = keywords(words, ['SIZE', 'BODY', 'SMTPUTF8', 'RET', 'ENVID', 'AUTH']);
  if ('ok' in found) return found;
  const size = found.get('SIZE');
  if (size !== undefined && !/^\d{1,20}$/.test(size ?? '')) return refuse(syntax('bad SIZE'));
  const body = choice(found, 'BODY', ['7BIT', '8BITMIME'] as const);
  if (body === undefined) return refuse(syntax('BODY is 7BIT or 8BITMIME'));
  const ret = choice(found, 'RET', ['FULL', 'HDRS'] as const);
  if (ret === undefined) return refuse(syntax('RET is FULL or HDRS'));
  if (found.has('SMTPUTF8') && found.get('SMTPUTF8') !== null) return refuse(syntax('SMTPUTF8 takes no value'));
  const envid = found.has('ENVID') ? decodeXtext(found.get('ENVID') ?? '') : null;
  if (found.has('ENVID') && (envid === null || envid === '' || envid.length > MAX_ENVID)) {
    return refuse(syntax('bad ENVID'));
  }
  return Object.freeze({ size: size == null ? null : Number(size), body, smtputf8: found.has('SMTPUTF8'), ret, envid });
}

function rcptParams(words: readonly string[]): RcptParams | Refused {
  const found = keywords(words, ['NOTIFY', 'ORCPT']);
  if ('ok' in found) return found;
  const notify = found.has('NOTIFY') ? canonicalNotify(found.get('NOTIFY') ?? '') : null;
  if (notify === undefined) return refuse(syntax('NOTIFY is NEVER, or a list of SUCCESS, FAILURE, DELAY'));
  if (!found.has('ORCPT')) return Object.freeze({ notify, orcpt: null });
  const [, type, xtext] = /^([a-z0-9-]+);(.+)$/i.exec(found.get('ORCPT') ?? '') ?? [];
  const address = xtext === undefined ? null : decodeXtext(xtext);
  if (type === undefined || address === null || address.length > MAX_ORCPT) return refuse(syntax('bad ORCPT'));
  return Object.freeze({ notify, orcpt: { type, address } });
}

/** Null: not given. Undefined: given with another value. */
function choice<T extends string>(found: Words, keyword: string, values: readonly T[]): T | null | undefined {
  if (!found.has(keyword)) return null;
  return values.find((value) => value === found.get(keyword)?.toUpperCase());
}

function canonicalNotify(text: string): string | undefined {
  const words = text.toUpperCase().split(',');
  const known = words.every((word) => ['SUCCESS', 'FAILURE', 'DELAY'].includes(word));
  return text.toUpperCase() === 'NEVER' || known ? [...new Set(words)].join(',') : undefined;
}
