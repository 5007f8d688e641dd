// SMTP replies as values: the only place that builds, parses and formats them (RFC 5321 §4.2, RFC 3463).
// Every reply that the proxy itself gives has its named maker here; nothing else writes a bare code.
// A peer's text is data: whatever is read off a peer is bounded and stripped of control characters here,
// before anything else sees it. Malformed text parses to null; nothing here throws.

export type Reply = Readonly<{
  /** Three digits, 200 to 599. */
  code: number;
  /** Enhanced status, RFC 3463 ("5.1.1"), or null where the peer gave none. */
  enhanced: string | null;
  /** Text lines without code and enhanced status; at least one. */
  lines: readonly string[];
}>;

/** 2xx, 3xx, 4xx, 5xx. */
export type ReplyClass = 2 | 3 | 4 | 5;

/** RFC 5321 §4.5.3.1.5: a reply line is at most 512 octets, code, enhanced status and CRLF included. */
const MAX_TEXT_OCTETS = 400;
/** More lines than this of a peer's reply are not passed on. */
const MAX_LINES = 20;

const REPLY_LINE = /^([2-5]\d\d)(?:[- ](.*))?$/s;
/** What most replies are: one line of printable ASCII, far from any limit. */
const PLAIN_REPLY = /^[2-5]\d\d [\x21-\x7e][\x20-\x7e]{0,199}(?<! )$/;
const PLAIN_TEXT = /^[\x20-\x7e]{0,200}$/;
const ENHANCED = /^([245])\.\d{1,3}\.\d{1,3}(?= |$)/;
/** C0, DEL, C1, and the Unicode line and paragraph separators. */
const CONTROLS = /[\p{Cc}\p{Zl}\p{Zp}]/gu;

export function reply(code: number, enhanced: string | null, ...lines: string[]): Reply {
  return { code, enhanced, lines: lines.length > 0 ? lines : [''] };
}

export function replyClass(of: Reply): ReplyClass {
  return Math.floor(of.code / 100) as ReplyClass;
}

/**
 * Reads a peer's whole reply, its lines joined by "\n", each with its code.
 * @param options `utf8`: keep non-ASCII text, which only a client that said SMTPUTF8 may be shown (RFC 6531 §3.7.4)
 * @returns null when it is not a reply: a line without a code, codes that differ, a code outside 200 to 599
 */
export function parseReply(raw: string, options: { utf8?: boolean } = {}): Reply | null {
  if (PLAIN_REPLY.test(raw)) {
    const text = raw.slice(4);
    const status = enhancedStatus(text, raw);
    return reply(Number(raw.slice(0, 3)), status, status === null ? text : text.slice(status.length + 1));
  }
  let code: string | undefined;
  let enhanced: string | null = null;
  const texts: string[] = [];
  for (const line of raw.split('\n')) {
    const match = REPLY_LINE.exec(line.trimEnd());
    // RFC 5321 §4.2.1: the code is the same on every line.
    if (match === null || (code !== undefined && match[1] !== code)) return null;
    code = match[1]!;
    if (texts.length === MAX_LINES) continue;
    const text = peerText(match[2] ?? '', options.utf8 === true);
    const status = enhancedStatus(text, code);
    enhanced ??= status;
    texts.push(bounded(status === null ? text : text.slice(status.length + 1)));
  }
  return code === undefined ? null : reply(Number(code), enhanced, ...texts);
}

/** The wire form, with the enhanced status on every line (RFC 2034 §4); no line is over 512 octets. */
export function formatReply(of: Reply): string {
  return fixedTexts.get(of) ?? textOf(of);
}

function textOf({ code, enhanced, lines }: Reply): string {
  const last = lines.length - 1;
  if (last === 0 && PLAIN_TEXT.test(lines[0]!)) {
    return enhanced === null
      ? `${code} ${lines[0]}\r\n`
      : `${code} ${enhanced} ${lines[0]}`.trimEnd().concat('\r\n');
  }
  return lines
    .map((line, index) => {
      const text = bounded(line.replace(CONTROLS, ' '));
      const rest = enhanced === null ? text : text === '' ? enhanced : `${enhanced} ${text}`;
      return `${code}${index === last ? ' ' : '-'}${rest}\r\n`;
    })
    .join('');
}

/**
 * A downstream's refusal as the upstream gets it.
 * @returns null for 2xx and 3xx, which are never passed on as a refusal
 */
export function passOn(refusal: Reply): Reply | null {
  if (replyClass(refusal) < 4) return null;
  // RFC 5321 §3.8: 421 says that the channel closes, and whether ours does is not the downstream's to say.
  return refusal.code === 421 ? reply(451, refusal.enhanced, ...refusal.lines) : refusal;
}

function peerText(text: string, utf8: boolean): string {
  const clean = text.replace(CONTROLS, ' ').replace(/\p{Cs}/gu, '?');
  return (utf8 ? clean : clean.replace(/[^\x20-\x7e]/gu, '?')).trimEnd();
}

/** RFC 3463 §2: a status whose class is not the code's is no status; it stays part of the text. */
function enhancedStatus(text: string, code: string): string | null {
  const match = ENHANCED.exec(text);
  return match !== null && match[1] === code[0] ? match[0] : null;
}

/** Cut to MAX_TEXT_OCTETS, never within a character. */
function bounded(text: string): string {
  if (text.length * 3 <= MAX_TEXT_OCTETS) return text;
  const bytes = Buffer.from(text);
  if (bytes.length <= MAX_TEXT_OCTETS) return text;
  let end = MAX_TEXT_OCTETS;
  while ((bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.toString('utf8', 0, end).trimEnd();
}

/** Wire forms of the replies that are said for every message. */
const fixedTexts = new Map<Reply, string>();

/** Answers to EHLO by what they say. */
const ehlos = new Map<string, Reply>();
const MAX_EHLOS = 64;

/** Said for every message, so built and formatted once. */
function always(fixed: Reply): () => Reply {
  fixedTexts.set(fixed, textOf(fixed));
  return () => fixed;
}

// ---- The session ----

/** RFC 2034 §4: neither the greeting nor the answer to HELO or EHLO has an enhanced status. */
export const greeting = (hostname: string, protocol: 'ESMTP' | 'LMTP' = 'ESMTP') =>
  reply(220, null, `${hostname} ${protocol} cutthrough`);
export const helo = (hostname: string) => reply(250, null, hostname);
export function ehlo(hostname: string, keywords: readonly string[]): Reply {
  // Many a client says it for each message.
  const key = `${hostname} ${keywords.join(' ')}`;
  const known = ehlos.get(key);
  if (known !== undefined) return known;
  const fresh = reply(250, null, hostname, ...keywords);
  if (ehlos.size < MAX_EHLOS) ehlos.set(key, always(fresh)());
  return fresh;
}
export const startTls = () => reply(220, '2.0.0', 'ready to start TLS');
export const closing = () => reply(221, '2.0.0', 'closing the channel');
export const ok = always(reply(250, '2.0.0', 'ok'));
/** RFC 5321 §3.5.3: what a server says that knows no mailboxes. */
export const cannotVerify = () =>
  reply(252, '2.0.0', 'cannot verify, but will take messages for accepted recipients');
export const help = () => reply(214, '2.0.0', 'a cut-through SMTP proxy; see RFC 5321');

// RFC 5321 §3.8: after a 421 the channel is closed.
export const shuttingDown = () => reply(421, '4.3.2', 'shutting down, try again later');
export const overloadedConnections = () => reply(421, '4.3.2', 'too many connections, try again later');
export const timeout = () => reply(421, '4.4.2', 'idle for too long, closing the channel');
export const tooManyErrors = () => reply(421, '4.7.0', 'too many errors, closing the channel');
/** RFC 2920 §3.1: what follows a refused DATA would be run as commands. */
export const bodyAfterRefusal = () =>
  reply(421, '4.5.0', 'DATA was refused but followed by more, closing the channel');

// ---- Commands that can't be carried out ----

export const commandUnknown = () => reply(500, '5.5.2', 'command not recognized');
/** RFC 2033 §4.1: LMTP has LHLO in the place of EHLO and HELO, and only LMTP has it. */
export const otherHello = (known: string) => reply(500, '5.5.1', `not known here, say ${known}`);
export const commandNotImplemented = () => reply(502, '5.5.1', 'command not implemented');
export const lineTooLong = () => reply(500, '5.5.2', 'line too long');
/** RFC 5321 §2.3.8: only CRLF ends a line. */
export const bareLineFeedCommand = () => reply(500, '5.5.2', 'a command line must end in CRLF');
export const badSequence = (text: string) => reply(503, '5.5.1', text);
export const syntax = (text: string) => reply(501, '5.5.4', text);
export const unknownParameter = (name: string) => reply(555, '5.5.4', `parameter ${name} not recognized`);
/** RFC 3207 §4. */
export const mustStartTls = () => reply(530, '5.7.0', 'must issue a STARTTLS command first');
export const tlsNotAvailable = () => reply(454, '4.7.0', 'TLS not available');

// ---- MAIL and RCPT ----

export const senderOk = always(reply(250, '2.1.0', 'sender ok'));
export const recipientOk = always(reply(250, '2.1.5', 'recipient ok'));
export const badSenderSyntax = (text = 'bad sender address syntax') => reply(501, '5.1.7', text);
export const badRecipientSyntax = (text = 'bad recipient address syntax') => reply(501, '5.1.3', text);
/** RFC 6531 §3.5. */
export const nonAsciiNeedsSmtputf8 = () => reply(553, '5.6.7', 'a non-ASCII address needs SMTPUTF8');
export const nextHopLacksSmtputf8 = () => reply(550, '5.6.7', 'the next hop does not offer SMTPUTF8');
/** XCLIENT and XFORWARD, of a peer that isn't listed. */
export const announcingDenied = () => reply(550, '5.7.0', 'not permitted');
export const relayingDenied = () => reply(550, '5.7.1', 'relaying denied');
export const tooManyRecipients = () => reply(452, '4.5.3', 'too many recipients');
/** A next hop's own limits (RFC 9422). */
export const tooManyForNextHop = () =>
  reply(452, '4.5.3', 'too many recipients for the next hop, send the others in another transaction');
export const tooManyDomainsForNextHop = () =>
  reply(451, '4.3.0', 'too many domains for the next hop, send this one in a transaction of its own');
/** --mixed split: one reply can tell the truth for one next hop. */
export const otherNextHop = () =>
  reply(451, '4.3.0', 'another next hop than the first recipient, send it in a transaction of its own');
export const noSuchDomain = () => reply(550, '5.1.2', 'the domain does not exist');
/** RFC 7505 §4.2. */
export const nullMx = () => reply(556, '5.1.10', 'the domain does not accept mail (null MX)');
export const dnsTemporary = () => reply(451, '4.4.3', 'DNS lookup failed, try again later');
/** No route at all, or only to addresses that are refused (--mx-allow). */
export const unroutable = () => reply(550, '5.4.4', 'unable to route to the domain');
/**
 * No mail exchanger may be used by the domain's own policy (RFC 8461 §5): temporary, because such a policy can be a
 * mistake that is put right, and the code that other servers use for a certificate that isn't trusted.
 */
export const refusedByPolicy = (reason: string) =>
  reply(451, '4.7.5', `no mail exchanger may be used: ${reason}`);
/** RFC 5321 §5.1: the domain's best mail exchanger is this host. */
export const routingLoop = () =>
  reply(554, '5.4.6', 'routing loop: the mail exchanger of the domain is this host');

/** Claim 24. */
export function nextHopUnreachable(label: string, attempts: number, reason: string): Reply {
  const times = attempts === 1 ? '1 attempt' : `${attempts} attempts`;
  return reply(451, '4.4.1', `next hop ${label} unreachable after ${times}: ${reason}`);
}

/** --max-sessions-per-next-hop, and none came free in time. */
export function nextHopBusy(label: string): Reply {
  return reply(451, '4.4.5', `all sessions with next hop ${label} are in use`);
}

// ---- DATA ----

export const startData = always(reply(354, null, 'start mail input; end with <CRLF>.<CRLF>'));
export const noValidRecipients = () => reply(554, '5.5.1', 'no valid recipients');
/** RFC 2033 §4.2. */
export const noRecipientsForLmtp = () => reply(503, '5.5.1', 'no valid recipients');
export const overloadedData = () => reply(451, '4.3.2', 'too many messages under way, try again later');
/** Bare CR, bare LF or NUL in the message. */
export const bareNewline = () =>
  reply(554, '5.6.0', 'bare CR, bare LF or NUL in the message; nothing was delivered');
/** RFC 5321 §6.3. */
export const mailLoop = () => reply(554, '5.4.6', 'mail loop: too many Received header fields');
export const transactionAborted = () => reply(451, '4.3.0', 'transaction aborted, try again later');

/** RFC 1870 §6; null where the limit is not known. */
export function messageTooBig(maxMessageBytes: number | null): Reply {
  const limit = maxMessageBytes === null ? 'the limit' : `${maxMessageBytes} octets`;
  return reply(552, '5.3.4', `message exceeds ${limit}`);
}

/** Claim 22: every next hop has said 2xx; with one of them, in its own words. */
export function delivered(downstream: Reply | null): Reply {
  const lines = (downstream?.lines ?? []).filter((line) => line !== '');
  return reply(250, '2.0.0', ...(lines.length > 0 ? lines : ['message delivered']));
}

/** Claim 23: some have the message and some do not. */
export function mixed(counts: Readonly<{ accepted: number; total: number; temporary: boolean }>): Reply {
  const text = `message delivered to ${counts.accepted} of ${counts.total} recipients`;
  return counts.temporary
    ? reply(451, '4.5.0', `${text}; try again later for the others`)
    : reply(554, '5.5.0', `${text}; permanently refused for the others`);
}

// ---- Each recipient's own reply ----

/** PRDR: one reply for each recipient follows, then the one to the message as a whole. */
export const prdrBegins = always(reply(353, null, 'a reply for each recipient follows'));
/** PRDR's last: it confirms what each was told. */
export const acceptedFor = (accepted: number, total: number) =>
  reply(250, '2.0.0', `message accepted for ${accepted} of ${total} recipients`);

// ---- The ledger ----

/** What a recipient counts as who had the message from an earlier try. */
export const alreadyDelivered = () => reply(250, '2.0.0', 'message delivered before');
/** The message's dots went out for an upstream that has gone since, and the answers have not come. */
export const stillDelivering = () =>
  reply(451, '4.4.5', 'an earlier try is still waiting for its next hop, try again later');
/** Sender, client and header block were those of an earlier message, but the body was not. */
export const notTheSame = () => reply(451, '4.3.0', 'taken for an earlier message by mistake, try again');

// ---- The spool ----

/** Claim 7: on disk, and ours to deliver. */
export const queued = (id: string) => reply(250, '2.0.0', `queued as ${id}`);
export const noDiskSpace = () => reply(452, '4.3.1', 'insufficient system storage, try again later');
export const storageFailed = () => reply(451, '4.3.0', 'the message could not be stored, try again later');
/** Claim 10, by hand and without a fallback. */
export const fastPathDisabled = () => reply(451, '4.3.2', 'not accepting messages, try again later');
/** For the notification after --max-queue-age where no next hop ever said anything. */
export const queueTimeExpired = () => reply(451, '4.4.7', 'delivery time expired');

const PHASE_LABELS: Readonly<Record<string, string>> = {
  mail: 'sending MAIL',
  rcpt: 'sending RCPT',
  data: 'sending DATA',
  body: 'sending the message',
  dot: 'sending the end of the message',
};

/** A leg broke off before its final dot: nobody has the message. */
export function legLost(nextHop: string, phase: string): Reply {
  return reply(451, '4.4.2', `lost ${nextHop} while ${PHASE_LABELS[phase] ?? phase}; nothing was delivered`);
}

/** A leg broke off after its final dot (RFC 1047): temporary, since the upstream still has the message. */
export function outcomeUnknown(nextHop: string): Reply {
  return reply(451, '4.4.2', `sent but not confirmed by ${nextHop}; the message may have been delivered`);
}
