// What a server offers in its EHLO reply, and our MAIL and RCPT put in those terms (RFC 1870, 3461, 6152, 6531, 9422).
// A parameter that the next hop doesn't offer is left out; where leaving it out would break a promise, the refusal
// that the upstream gets instead is built here. Pure; unknown keywords are ignored.
import { encodeOrcpt, encodeXtext, type Mailbox, type MailParams, type RcptParams } from './address.ts';
import {
  messageTooBig,
  nextHopLacksSmtputf8,
  type Reply,
  tooManyDomainsForNextHop,
  tooManyForNextHop,
} from './reply.ts';

export type Capabilities = Readonly<{
  pipelining: boolean;
  sizeOffered: boolean;
  /** Largest message in octets; null where the server names none. */
  size: number | null;
  eightBitMime: boolean;
  smtputf8: boolean;
  dsn: boolean;
  /** Per-recipient data responses, as Exim has them. */
  prdr: boolean;
  /** RFC 9422: MAILs in one session, RCPTs in one transaction, and their domains in one session; null: unlimited. */
  mailMax: number | null;
  rcptMax: number | null;
  rcptDomainMax: number | null;
}>;

/** After a HELO. */
export const NO_CAPABILITIES: Capabilities = parseCapabilities([]);

/**
 * @param lines of the EHLO reply after the first, without codes
 * @param options `lmtp`: the server answers for each recipient without PRDR
 */
export function parseCapabilities(lines: readonly string[], options: { lmtp?: boolean } = {}): Capabilities {
  const offered = new Map<string, string>();
  const limits = new Map<string, number>();
  for (const line of lines) {
    const [keyword = '', argument = '', ...others] = line.trim().toUpperCase().split(/\s+/);
    offered.set(keyword, argument);
    if (keyword !== 'LIMITS') continue;
    for (const each of [argument, ...others]) {
      // RFC 9422 §4: no limit is 0. What isn't well-formed is no limit either.
      const [, name, value] = /^([A-Z]+)=([1-9]\d{0,5})$/.exec(each) ?? [];
      if (name !== undefined) limits.set(name, Number(value));
    }
  }
  const limit = offered.get('SIZE') ?? '';
  const size = /^\d{1,20}$/.test(limit) ? Number(limit) : 0;
  return Object.freeze({
    pipelining: offered.has('PIPELINING'),
    sizeOffered: offered.has('SIZE'),
    // RFC 1870 §4: 0 means that there is no fixed maximum.
    size: Number.isSafeInteger(size) && size > 0 ? size : null,
    eightBitMime: offered.has('8BITMIME'),
    smtputf8: offered.has('SMTPUTF8'),
    dsn: offered.has('DSN'),
    prdr: offered.has('PRDR') && options.lmtp !== true,
    mailMax: limits.get('MAILMAX') ?? null,
    rcptMax: limits.get('RCPTMAX') ?? null,
    rcptDomainMax: limits.get('RCPTDOMAINMAX') ?? null,
  });
}

/** What keeps this sender's message from this server before MAIL is even sent; null if nothing does. */
export function refusalBeforeMail(params: MailParams, offered: Capabilities): Reply | null {
  // RFC 1870 §6.1.
  const tooBig = params.size !== null && offered.size !== null && params.size > offered.size;
  if (tooBig) return messageTooBig(offered.size);
  // RFC 6531 §3.2: such a message must not go to a server that can't take it.
  if (params.smtputf8 && !offered.smtputf8) return nextHopLacksSmtputf8();
  return null;
}

/**
 * What keeps a further recipient out of this server's transaction; null if nothing does.
 * @param asked the domains of the RCPTs before, whatever was said to them (RFC 9422 §4.2)
 */
export function refusalBeforeRcpt(
  domain: string,
  asked: readonly string[],
  { rcptMax, rcptDomainMax }: Capabilities,
): Reply | null {
  if (rcptMax !== null && asked.length >= rcptMax) return tooManyForNextHop();
  if (rcptDomainMax === null || asked.includes(domain)) return null;
  return new Set(asked).size >= rcptDomainMax ? tooManyDomainsForNextHop() : null;
}

/** `mailbox` null is the null reverse-path. */
export function mailCommand(mailbox: Mailbox | null, params: MailParams, offered: Capabilities): string {
  const words = [`MAIL FROM:<${mailbox?.address ?? ''}>`];
  if (params.size !== null && offered.sizeOffered) words.push(`SIZE=${params.size}`);
  // Without 8BITMIME the bytes go as they came: converting them would break signatures.
  if (params.body !== null && offered.eightBitMime) words.push(`BODY=${params.body}`);
  if (params.smtputf8 && offered.smtputf8) words.push('SMTPUTF8');
  if (offered.dsn) {
    if (params.ret !== null) words.push(`RET=${params.ret}`);
    if (params.envid !== null) words.push(`ENVID=${encodeXtext(params.envid)}`);
  }
  if (params.prdr && offered.prdr) words.push('PRDR');
  return words.join(' ');
}

export function rcptCommand(mailbox: Mailbox, params: RcptParams, offered: Capabilities): string {
  const words = [`RCPT TO:<${mailbox.address}>`];
  if (offered.dsn) {
    if (params.notify !== null) words.push(`NOTIFY=${params.notify}`);
    if (params.orcpt !== null) words.push(`ORCPT=${encodeOrcpt(params.orcpt)}`);
  }
  return words.join(' ');
}
