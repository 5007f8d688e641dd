// Received fields: building ours (RFC 5321 §4.4, the keywords of RFC 3848 and RFC 6531), and counting those of a
// message that runs through, since a loop shows in their number (RFC 5321 §6.3).
// What a peer has said goes into our line only as harmless printable ASCII of bounded length. Nothing here throws.
import type { Client, Recipient, Sender } from './envelope.ts';

export type ProtocolKeyword = 'SMTP' | `${'E' | 'UTF8'}SMTP${'' | 'S'}` | `${'' | 'UTF8'}LMTP${'' | 'S'}`;

export type ReceivedFacts = Readonly<{
  /** The EHLO argument, as the client gave it. */
  helo: string;
  /** IPv4 or IPv6, without brackets. */
  clientAddress: string;
  /** The client's name in DNS, where it was looked up. */
  clientName?: string | null;
  byHostname: string;
  protocol: ProtocolKeyword;
  tls?: Readonly<{ version: string; cipher: string }> | null;
  id: string;
  /** Only where there is a single recipient: the line must not tell recipients of each other (RFC 5321 §7.2). */
  forRecipient: string | null;
  date: Date;
}>;

/** A message as it comes in. */
export type Incoming = Readonly<{ id: string; sender: Sender; client: Client }>;

/** RFC 5322 §2.1.1: lines should be shorter than this. */
const LINE_OCTETS = 78;
/** As long as a domain can be (RFC 5321 §4.5.3.1.2). */
const MAX_WORD = 255;
const DAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** Our line for a message; `only` is its one recipient, if there is just one. */
export function receivedOf(
  { id, sender, client }: Incoming,
  only: Recipient | null,
  byHostname: string,
  date: Date,
): Buffer {
  const from = client.relay ?? client;
  return receivedLine({
    helo: from.helo,
    clientAddress: from.address,
    clientName: from.name,
    byHostname,
    protocol: protocolKeyword({
      ehlo: from.extended,
      tls: from.tls !== null,
      smtputf8: sender.params.smtputf8,
      lmtp: from.lmtp === true,
    }),
    tls: from.tls,
    id,
    forRecipient: only?.mailbox.address ?? null,
    date,
  });
}

/** The folded field with its final CRLF. */
export function receivedLine(facts: ReceivedFacts): Buffer {
  const { clientName, tls, forRecipient } = facts;
  const clauses = [`Received: from ${word(facts.helo)}`];
  clauses.push(
    clientName
      ? `(${word(clientName)} ${literal(facts.clientAddress)})`
      : `(${literal(facts.clientAddress)})`,
  );
  clauses.push(`by ${word(facts.byHostname)}`, `with ${facts.protocol}`);
  if (tls) clauses.push(`(${word(tls.version)} ${word(tls.cipher)})`);
  clauses.push(`id ${word(facts.id)}`);
  // Our own grammar let the address in, so it is well-formed; an embedder's need not be.
  if (forRecipient !== null && !/\p{Cc}/u.test(forRecipient)) clauses.push(`for <${forRecipient}>`);
  const last = clauses.pop()!;
  return Buffer.from(folded([...clauses, `${last};`, dateTime(facts.date)]));
}

/** RFC 3848, and RFC 6531 §3.7.3 for the UTF8 ones. A session opened by HELO is SMTP, whatever its transport. */
export function protocolKeyword(session: {
  ehlo: boolean;
  tls: boolean;
  smtputf8: boolean;
  lmtp?: boolean;
}): ProtocolKeyword {
  const secured = session.tls ? 'S' : '';
  if (session.lmtp) return `${session.smtputf8 ? 'UTF8' : ''}LMTP${secured}`;
  if (!session.ehlo) return 'SMTP';
  return `${session.smtputf8 ? 'UTF8' : 'E'}SMTP${secured}`;
}

function word(text: string): string {
  const harmless = text.slice(0, MAX_WORD).replace(/[^\x21-\x7e]|[()<>\\;"]/g, '_');
  return harmless === '' ? 'unknown' : harmless;
}

/** RFC 5321 §4.1.3. An IPv4 client of a dual-stack socket is an IPv4 client; a zone means nothing elsewhere. */
function literal(address: string): string {
  const plain = word(address.replace(/^::ffff:(?=\d+\.)/i, '').replace(/%.*$/s, ''));
  return plain.includes(':') ? `[IPv6:${plain}]` : `[${plain}]`;
}

/** RFC 5322 §2.2.3: breaks between clauses, so that no line is longer than need be. */
function folded(clauses: readonly string[]): string {
  let text = '';
  let lineOctets = 0;
  for (const clause of clauses) {
    const octets = Buffer.byteLength(clause) + 1;
    const fits = lineOctets + octets < LINE_OCTETS;
    text += text === '' ? clause : `${fits ? ' ' : '\r\n\t'}${clause}`;
    lineOctets = fits ? lineOctets + octets : octets;
  }
  return `${text}\r\n`;
}

let latest = { second: Number.NaN, text: '' };

/** RFC 5322 §3.3, in UTC. A busy server asks many times a second. */
function dateTime(date: Date): string {
  const second = Math.floor(date.getTime() / 1000);
  if (second !== latest.second) latest = { second, text: formatDateTime(date) };
  return latest.text;
}

function formatDateTime(date: Date): string {
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${DAYS[date.getUTCDay()]}, ${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]} ${date.getUTCFullYear()}`;
  return `${day} ${two(date.getUTCHours())}:${two(date.getUTCMinutes())}:${two(date.getUTCSeconds())} +0000`;
}

const FIELD = Buffer.from('received:');
const LF = 0x0a;
const CR = 0x0d;
const UPPER_A = 0x41;
const UPPER_Z = 0x5a;

/** Counts `Received:` fields in the header block, fed in any chunks; one number of state. */
export class HeaderScanner {
  #receivedCount = 0;
  #done = false;
  /** Octets of FIELD matched in this line, 0 at its start; -1 when the rest of the line doesn't matter. */
  #matched = 0;

  get receivedCount(): number {
    return this.#receivedCount;
  }

  /** The empty line that ends the header was seen; push() need not be called any more. */
  get done(): boolean {
    return this.#done;
  }

  /**
   * Feeds the next wire bytes; their line ends are CRLF, which the wire scanner has seen to.
   * @returns how many of them belong to the header block, the empty line behind it included
   */
  push(chunk: Buffer): number {
    let at = 0;
    while (at < chunk.length && !this.#done) {
      if (this.#matched >= 0) this.#look(chunk[at++]!);
      else {
        const lineFeed = chunk.indexOf(LF, at);
        if (lineFeed === -1) return chunk.length;
        at = lineFeed + 1;
        this.#matched = 0;
      }
    }
    return at;
  }

  #look(octet: number): void {
    if (octet === CR && this.#matched === 0) this.#done = true;
    else if (lowerCase(octet) !== FIELD[this.#matched]) this.#matched = octet === LF ? 0 : -1;
    else if (++this.#matched === FIELD.length) {
      this.#receivedCount++;
      this.#matched = -1;
    }
  }
}

function lowerCase(octet: number): number {
  return octet >= UPPER_A && octet <= UPPER_Z ? octet | 0x20 : octet;
}
