// Received lines: building ours (RFC 5321 §4.4), and counting those of a message that runs through (§6.3).
// Pure; what a peer has said goes in only as harmless printable ASCII.

export type ReceivedFacts = Readonly<{
  /** The EHLO argument, as the client gave it. */
  helo: string;
  clientAddress: string;
  byHostname: string;
  protocol: string;
  tls: Readonly<{ version: string; cipher: string }> | null;
  id: string;
  /** Only where there is a single recipient: the line must not tell them of each other. */
  forRecipient: string | null;
  date: Date;
}>;

const MAX_WORD = 255;
const DAYS = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];
const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

/** The folded field with its final CRLF. */
export function receivedLine(facts: ReceivedFacts): Buffer {
  const tls = facts.tls === null ? '' : `\r\n\t(${word(facts.tls.version)} ${word(facts.tls.cipher)})`;
  const recipient = facts.forRecipient === null ? '' : `\r\n\tfor <${facts.forRecipient}>`;
  const text =
    `Received: from ${word(facts.helo)} (${literal(facts.clientAddress)})\r\n` +
    `\tby ${word(facts.byHostname)} with ${facts.protocol} id ${word(facts.id)}${tls}${recipient};\r\n` +
    `\t${dateTime(facts.date)}\r\n`;
  return Buffer.from(text);
}

/** RFC 3848, and RFC 6531 §3.7.3 for the UTF8 ones. */
export function protocolKeyword(session: { ehlo: boolean; tls: boolean; smtputf8: boolean }): string {
  if (!session.ehlo) return 'SMTP';
  const base = session.smtputf8 ? 'UTF8SMTP' : 'ESMTP';
  return session.tls ? `${base}S` : base;
}

function word(text: string): string {
  const harmless = text.slice(0, MAX_WORD).replace(/[^\x21-\x7e]|[()<>\\;"]/g, '_');
  return harmless === '' ? 'unknown' : harmless;
}

/** RFC 5321 §4.1.3. */
function literal(address: string): string {
  return address.includes(':') ? `[IPv6:${word(address)}]` : `[${word(address)}]`;
}

/** RFC 5322 §3.3, in UTC. */
function dateTime(date: Date): string {
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${DAYS[date.getUTCDay()]}, ${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]} ${date.getUTCFullYear()}`;
  return `${day} ${two(date.getUTCHours())}:${two(date.getUTCMinutes())}:${two(date.getUTCSeconds())} +0000`;
}

const FIELD = 'received:';
const LF = 0x0a;
const CR = 0x0d;

/** Counts `Received:` fields in the header block, fed in any chunks; constant memory. */
export class HeaderScanner {
  receivedCount = 0;
  /** The empty line that ends the header was seen; push() need not be called any more. */
  done = false;

  /** Octets of FIELD matched in this line; -1 when the rest of the line doesn't matter. */
  #matched = 0;
  #column = 0;

  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && !this.done) {
      if (this.#matched === -1) {
        const lf = chunk.indexOf(LF, at);
        if (lf === -1) return;
        at = lf + 1;
        this.#matched = 0;
        this.#column = 0;
      } else this.#look(chunk[at++]!);
    }
  }

  #look(byte: number): void {
    // The wire scanner has seen to it that CR and LF come as pairs.
    if (this.#column === 0 && byte === CR) this.done = true;
    else if (byte === FIELD.charCodeAt(this.#matched) || (byte | 0x20) === FIELD.charCodeAt(this.#matched)) {
      this.#matched++;
      if (this.#matched === FIELD.length) {
        this.receivedCount++;
        this.#matched = -1;
      }
    } else this.#matched = byte === LF ? 0 : -1;
    this.#column = byte === LF ? 0 : this.#column + 1;
  }
}
