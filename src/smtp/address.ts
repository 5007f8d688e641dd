// MAIL and RCPT command lines as values (RFC 5321 §4.1.1.2, §4.1.1.3, §4.1.2; RFC 6531 for non-ASCII addresses), with
// the parameters of SIZE (RFC 1870), 8BITMIME (RFC 6152), SMTPUTF8, DSN (RFC 3461) and PRDR.
// The grammar is kept to the letter: what a next hop could read in another way is refused here. Domains become
// A-labels in lower case, local parts stay as they came. A bad line parses to the reply that refuses it; nothing throws.
import { isAscii, isUtf8 } from 'node:buffer';
import { isIPv4, isIPv6 } from 'node:net';
import { domainToASCII, domainToUnicode } from 'node:url';
import {
  badRecipientSyntax,
  badSenderSyntax,
  nonAsciiNeedsSmtputf8,
  type Reply,
  syntax,
  unknownParameter,
} from './reply.ts';

export type Mailbox = Readonly<{
  /** As received, with its quotes if it was quoted. */
  localPart: string;
  /** A-labels in lower case, or an address literal with its brackets; null for `Postmaster` alone. */
  domain: string | null;
  /** What goes on the wire downstream. */
  address: string;
  /** The local part is not ASCII, so that only a next hop with SMTPUTF8 can take it. */
  nonAscii: boolean;
  unquotedLocal: string;
}>;

export type MailParams = Readonly<{
  /** Octets, as declared; at most Number.MAX_SAFE_INTEGER. */
  size: number | null;
  body: '7BIT' | '8BITMIME' | null;
  smtputf8: boolean;
  ret: 'FULL' | 'HDRS' | null;
  /** Decoded; printable ASCII. */
  envid: string | null;
  /** Each recipient's own reply after the final dot was asked for, by PRDR (draft-hall-prdr) or by speaking LMTP. */
  prdr?: true;
}>;

export type RcptParams = Readonly<{
  /** `NEVER`, or a list of `SUCCESS`, `FAILURE`, `DELAY`. */
  notify: string | null;
  /** The address decoded; the type as received. */
  orcpt: Readonly<{ type: string; address: string }> | null;
}>;

type Refused = Readonly<{ ok: false; reply: Reply }>;
export type ParsedMail = Readonly<{ ok: true; mailbox: Mailbox | null; params: MailParams }> | Refused;
export type ParsedRcpt = Readonly<{ ok: true; mailbox: Mailbox; params: RcptParams }> | Refused;

/** RFC 5321 §4.5.3.1.1 asks for 64; twice that, since local parts of forwarders (SRS, CAF) and VERP exceed it. */
const MAX_LOCAL_PART_OCTETS = 128;
/** RFC 5321 §4.5.3.1.2. */
const MAX_DOMAIN_OCTETS = 255;
/** RFC 5321 §4.5.3.1.3 asks for 256; more, by what the local part may have more. */
const MAX_ADDRESS_OCTETS = 320;
/** RFC 3461 §4.4 and §4.2. */
const MAX_ENVID_CHARACTERS = 100;
const MAX_ORCPT_CHARACTERS = 500;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** The one decoding of a command line; null when it is not UTF-8. */
export function decodeCommandLine(bytes: Buffer): string | null {
  try {
    if (isAscii(bytes)) return bytes.toString('latin1');
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

/** MAIL FROM:<reverse-path> [parameters]; `mailbox` is null for the null reverse-path. */
export function parseMail(line: string): ParsedMail {
  const command = /^MAIL +FROM: *(.*)$/is.exec(line);
  if (command === null) return refused(syntax('expected MAIL FROM:<address>'));
  const path = parsePath(command[1]!);
  // `Postmaster` alone is a forward-path only (RFC 5321 §4.5.1).
  if (path === null || path.mailbox?.domain === null) return refused(badSenderSyntax());
  const read = parseParams(path.rest, MAIL_PARAMETERS, NO_MAIL_PARAMS);
  if (!read.ok) return read;
  // RFC 6531 §3.5.
  if (path.nonAscii && !read.params.smtputf8) return refused(nonAsciiNeedsSmtputf8());
  return { ok: true, mailbox: path.mailbox, params: read.params };
}

/**
 * RCPT TO:<forward-path> [parameters].
 * @param options `smtputf8`: the transaction's MAIL had that parameter
 */
export function parseRcpt(line: string, options: { smtputf8: boolean }): ParsedRcpt {
  const command = /^RCPT +TO: *(.*)$/is.exec(line);
  if (command === null) return refused(syntax('expected RCPT TO:<address>'));
  const path = parsePath(command[1]!);
  if (path === null || path.mailbox === null) return refused(badRecipientSyntax());
  if (path.nonAscii && !options.smtputf8) return refused(nonAsciiNeedsSmtputf8());
  const read = parseParams(path.rest, RCPT_PARAMETERS, NO_RCPT_PARAMS);
  if (!read.ok) return read;
  // RFC 6533 §3: only in such a transaction may an ORCPT be non-ASCII on the wire.
  if (!options.smtputf8 && NON_ASCII.test(path.rest)) return refused(nonAsciiNeedsSmtputf8());
  return { ok: true, mailbox: path.mailbox, params: read.params };
}

/** The local part asks for relaying by its own syntax: `user%elsewhere@ours`, `elsewhere!user@ours`. */
export function hasRouting(mailbox: Mailbox): boolean {
  return /[%!@]/.test(mailbox.unquotedLocal);
}

function refused(reply: Reply): Refused {
  return { ok: false, reply };
}

// ---- Paths ----

const NON_ASCII = /[^\x00-\x7f]/;
const UNPRINTABLE = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]/u;
const WIDE = '\\u{80}-\\u{10ffff}';
const ATEXT = `[A-Za-z0-9!#$%&'*+\\-/=?^_\`{|}~${WIDE}]`;
const DOT_STRING = `${ATEXT}+(?:\\.${ATEXT}+)*`;
const QUOTED_STRING = `"(?:[ !#-\\[\\]-~${WIDE}]|\\\\[ -~])*"`;
const DOMAIN = `[A-Za-z0-9._\\-${WIDE}]+`;
const LITERAL = '\\[[A-Za-z0-9.:]+\\]';
/** `<`, a source route, the local part, the domain, `>`, and the rest of the line. */
const PATH = new RegExp(
  `^<(?:@(${DOMAIN}(?:,@${DOMAIN})*):)?(${DOT_STRING}|${QUOTED_STRING})(?:@(${DOMAIN}|${LITERAL}))?>(.*)$`,
  'su',
);

/** `mailbox` is null for `<>`; `nonAscii` is about the whole path as received. */
type Path = Readonly<{ mailbox: Mailbox | null; nonAscii: boolean; rest: string }>;

function parsePath(text: string): Path | null {
  if (UNPRINTABLE.test(text)) return null;
  if (text.startsWith('<>')) return { mailbox: null, nonAscii: false, rest: text.slice(2) };
  const match = PATH.exec(text);
  if (match === null) return null;
  const [, route, localPart = '', domain, rest = ''] = match;
  // RFC 5321 §4.1.1.3 and appendix C: a source route is taken and ignored.
  if (route?.split(',@').some((hop) => normalDomain(hop) === null)) return null;
  if (route !== undefined && domain === undefined) return null;
  const mailbox = domain === undefined ? postmaster(localPart) : mailboxOf(localPart, domain);
  if (mailbox === null) return null;
  return { mailbox, nonAscii: NON_ASCII.test(text.slice(0, text.length - rest.length)), rest };
}

/** RFC 5321 §4.5.1: in any case, without a domain. */
function postmaster(localPart: string): Mailbox | null {
  if (localPart.toLowerCase() !== 'postmaster') return null;
  return { localPart, domain: null, address: localPart, nonAscii: false, unquotedLocal: localPart };
}

function mailboxOf(localPart: string, text: string): Mailbox | null {
  const domain = text.startsWith('[') ? normalLiteral(text) : normalDomain(text);
  if (domain === null || Buffer.byteLength(localPart) > MAX_LOCAL_PART_OCTETS) return null;
  const address = `${localPart}@${domain}`;
  if (Buffer.byteLength(address) > MAX_ADDRESS_OCTETS) return null;
  const unquotedLocal = localPart.startsWith('"')
    ? localPart.slice(1, -1).replace(/\\(.)/gu, '$1')
    : localPart;
  return { localPart, domain, address, nonAscii: NON_ASCII.test(localPart), unquotedLocal };
}

/** RFC 5321 §4.1.3. Kinds of address other than IPv4 and IPv6 have no way to be reached. */
function normalLiteral(text: string): string | null {
  const inside = text.slice(1, -1);
  if (isIPv4(inside)) return text;
  const address = /^IPv6:(.*)$/i.exec(inside)?.[1] ?? '';
  return isIPv6(address) ? `[IPv6:${address.toLowerCase()}]` : null;
}

// RFC 5321 §4.1.2 sub-domain, RFC 1035 §2.3.4; an underscore is against the letter, but found in real names.
const LABEL = /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/;

/** A name that domainToASCII would return as it is: letters first, and no A-label to be checked. */
const PLAIN_DOMAIN = /^(?:[a-z](?!n--)[a-z0-9-]*\.)+[a-z][a-z0-9-]*$/;

/** Results of normalDomain(): a server sees the same few domains over and over. */
const knownDomains = new Map<string, string | null>();
const MAX_KNOWN_DOMAINS = 1000;

/** A-labels in lower case; null for what is no domain name. */
function normalDomain(text: string): string | null {
  const known = knownDomains.get(text);
  if (known !== undefined) return known;
  const domain = readDomain(text);
  if (knownDomains.size >= MAX_KNOWN_DOMAINS) knownDomains.clear();
  knownDomains.set(text, domain);
  return domain;
}

function readDomain(text: string): string | null {
  const lower = text.toLowerCase();
  const domain = PLAIN_DOMAIN.test(lower) ? lower : domainToASCII(lower);
  // Newer versions of Node let an A-label through that stands for nothing (RFC 5890 §2.3.2.1).
  if (domain.includes('xn--') && /(?:^|\.)xn--/.test(domainToUnicode(domain))) return null;
  if (domain.length > MAX_DOMAIN_OCTETS) return null;
  const labels = domain.split('.');
  // RFC 3696 §2: a top-level label is not all digits. It would be an address without its brackets (`user@127.0.0.1`),
  // in whatever disguise: domainToASCII makes 127.0.0.1 of `0x7f.1` too.
  if (!labels.every((label) => LABEL.test(label)) || /^\d+$/.test(labels.at(-1)!)) return null;
  return domain;
}

// ---- Parameters ----

/** What one parameter sets; null when its value is bad. */
type Reader<P> = (value: string | null) => Partial<P> | null;
type Readers<P> = ReadonlyMap<string, Reader<P>>;

const NO_MAIL_PARAMS: MailParams = Object.freeze({
  size: null,
  body: null,
  smtputf8: false,
  ret: null,
  envid: null,
});
const NO_RCPT_PARAMS: RcptParams = Object.freeze({ notify: null, orcpt: null });

const MAIL_PARAMETERS: Readers<MailParams> = new Map<string, Reader<MailParams>>([
  ['SIZE', readSize],
  ['BODY', (value) => oneOf(value, ['7BIT', '8BITMIME'], (body) => ({ body }))],
  ['SMTPUTF8', (value) => (value === null ? { smtputf8: true } : null)],
  // RFC 4954 §5: who first submitted the message is more than we can vouch for; not passed on.
  ['AUTH', (value) => (value === null ? null : {})],
  ['RET', (value) => oneOf(value, ['FULL', 'HDRS'], (ret) => ({ ret }))],
  ['ENVID', readEnvid],
  ['PRDR', (value) => (value === null ? { prdr: true } : null)],
]);

const RCPT_PARAMETERS: Readers<RcptParams> = new Map<string, Reader<RcptParams>>([
  ['NOTIFY', readNotify],
  ['ORCPT', readOrcpt],
]);

function parseParams<P>(
  rest: string,
  readers: Readers<P>,
  none: P,
): Readonly<{ ok: true; params: P }> | Refused {
  if (rest === '') return { ok: true, params: none };
  if (!rest.startsWith(' ')) return refused(syntax('expected a space after <address>'));
  const seen = new Set<string>();
  let params = none;
  for (const word of rest.split(' ').filter((each) => each !== '')) {
    // RFC 5321 §4.1.2 esmtp-param.
    const match = /^([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^=]+))?$/.exec(word);
    if (match === null) return refused(syntax('malformed parameter'));
    const keyword = match[1]!.toUpperCase();
    const read = readers.get(keyword);
    // RFC 5321 §4.1.1.11.
    if (read === undefined) return refused(unknownParameter(keyword));
    if (seen.has(keyword)) return refused(syntax(`duplicate parameter ${keyword}`));
    seen.add(keyword);
    const set = read(match[2] ?? null);
    if (set === null) return refused(syntax(`bad value of parameter ${keyword}`));
    params = { ...params, ...set };
  }
  return { ok: true, params };
}

function oneOf<V extends string, R>(
  value: string | null,
  allowed: readonly V[],
  then: (value: V) => R,
): R | null {
  const found = allowed.find((each) => each === value?.toUpperCase());
  return found === undefined ? null : then(found);
}

/** RFC 1870 §3. */
function readSize(value: string | null): Partial<MailParams> | null {
  if (value === null || !/^\d{1,20}$/.test(value)) return null;
  return { size: Math.min(Number(value), Number.MAX_SAFE_INTEGER) };
}

function readEnvid(value: string | null): Partial<MailParams> | null {
  const envid = value === null ? null : decodeXtext(value);
  return envid === null || envid.length > MAX_ENVID_CHARACTERS ? null : { envid };
}

/** RFC 3461 §4.1: NEVER stands alone. */
function readNotify(value: string | null): Partial<RcptParams> | null {
  const wishes = [...new Set((value ?? '').toUpperCase().split(','))];
  const known = wishes.every((wish) => wish === 'SUCCESS' || wish === 'FAILURE' || wish === 'DELAY');
  return known || (wishes.length === 1 && wishes[0] === 'NEVER') ? { notify: wishes.join(',') } : null;
}

/**
 * RFC 3461 §4.2. For an address that isn't ASCII, Postfix (3.7) gives the octets of its UTF-8 in xtext, as rfc822: not what
 * RFC 6533 §3 says, but to refuse it would be to bounce its mail. It is passed on as the type that it is.
 */
function readOrcpt(value: string | null): Partial<RcptParams> | null {
  const match = /^([A-Za-z0-9-]+);(.+)$/s.exec(value ?? '');
  if (match === null) return null;
  const [, type = '', encoded = ''] = match;
  const address = isUtf8Type(type) ? decodeUtf8Address(encoded) : decodeXtext(encoded);
  const octets = address === null && type.toLowerCase() === 'rfc822' ? decodeUtf8Xtext(encoded) : null;
  const orcpt = octets === null ? { type, address } : { type: 'utf-8', address: octets };
  if (orcpt.address === null || orcpt.address.length > MAX_ORCPT_CHARACTERS) return null;
  return { orcpt: Object.freeze({ type: orcpt.type, address: orcpt.address }) };
}

// ---- xtext ----

/** RFC 3461 §4: `+` and two upper-case hexadecimal digits for whatever may not stand for itself. */
export function encodeXtext(text: string): string {
  return [...Buffer.from(text)]
    .map((octet) => String.fromCharCode(octet))
    .map((character) => (/[!-*,-<>-~]/.test(character) ? character : `+${hex(character)}`))
    .join('');
}

/** Null where it is no xtext, or more than printable ASCII, which ENVID and ORCPT are (RFC 3461 §4.2, §4.4). */
export function decodeXtext(encoded: string): string | null {
  if (!/^(?:[!-*,-<>-~]|\+(?!7F)[2-7][0-9A-F])*$/.test(encoded)) return null;
  return encoded.replace(/\+(..)/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 16)));
}

/** The same for octets that are UTF-8, of which none is a control character. */
function decodeUtf8Xtext(encoded: string): string | null {
  if (!/^(?:[!-*,-<>-~]|\+[2-9A-F][0-9A-F])*$/.test(encoded)) return null;
  const octets = encoded.replace(/\+(..)/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 16)),
  );
  const bytes = Buffer.from(octets, 'latin1');
  if (!isUtf8(bytes)) return null;
  const address = bytes.toString('utf8');
  return UNPRINTABLE.test(address) ? null : address;
}

/** The value of an ORCPT parameter, encoded as its type asks. */
export function encodeOrcpt({ type, address }: NonNullable<RcptParams['orcpt']>): string {
  return `${type};${isUtf8Type(type) ? encodeUtf8Address(address) : encodeXtext(address)}`;
}

function isUtf8Type(type: string): boolean {
  return type.toLowerCase() === 'utf-8';
}

/** RFC 6533 §3 utf-8-addr-xtext: `\x{HEX}` for whatever may not stand for itself; legal without SMTPUTF8 too. */
function encodeUtf8Address(address: string): string {
  return address.replace(/[^!-*,-<>-[\]-~]/gu, (character) => `\\x{${hex(character)}}`);
}

/** RFC 6533 §3; no `\x{HEX}` over 10FFFF. */
const UTF8_ADDRESS =
  /^(?:[!-*,-<>-[\]-~\u{80}-\u{10ffff}]|\\x\{(?!1[1-9A-F][0-9A-F]{4}|[2-9A-F][0-9A-F]{5})[0-9A-F]{2,6}\})*$/u;

function decodeUtf8Address(encoded: string): string | null {
  if (!UTF8_ADDRESS.test(encoded)) return null;
  const address = encoded.replace(/\\x\{([^}]*)\}/g, (_, digits: string) =>
    String.fromCodePoint(Number.parseInt(digits, 16)),
  );
  return UNPRINTABLE.test(address) ? null : address;
}

function hex(character: string): string {
  return character.codePointAt(0)!.toString(16).toUpperCase().padStart(2, '0');
}
