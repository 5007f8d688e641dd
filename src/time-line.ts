// What happened in one transaction, and when: on the upstream's side, and on that of each leg. For `cutthrough trace`.
// Not with --trace-buffer 0, unless the log is at debug: it takes 1.3 ± 0.5 % of the processor time of a small message.
// An event is three values put into an array that is used again and again, and a time that was mostly at hand; words are
// made when somebody asks. Bounded: 64 events, of which those of single recipients get half, and a text is cut. A
// transaction takes 3 KiB, and 45 where strangers fill it (measured).

/** On the upstream's side. */
type UpstreamEvent =
  | 'mail'
  | 'rcpt'
  | 'rcpt-reply'
  | 'data'
  | 'data-reply'
  | 'body'
  | 'end-of-data'
  | 'reply'
  | 'gone';
/** On a next hop's. */
export type LegEvent =
  /** For a place at the next hop (--max-sessions-per-next-hop). */
  | 'queued'
  | 'connect'
  | 'attempt-failed'
  | 'connected'
  | 'reused'
  | 'unreachable'
  | 'mail'
  | 'mail-reply'
  | 'rcpt'
  | 'rcpt-reply'
  | 'data'
  | 'data-reply'
  | 'end-of-data'
  | 'reply'
  /** The next hop has the message already. */
  | 'reset'
  /** No dot: another next hop had not accepted the message (--dots ordered). */
  | 'withheld'
  | 'lost';
type What = UpstreamEvent | LegEvent;

/** A code, octets, an address, a reason, the text of a reply. */
type Detail = number | string | null;

type ReplyLike = Readonly<{ code: number; enhanced: string | null; lines: readonly string[] }>;

/** As `GET /trace/ID`, the log (`event: "trace"`) and `trace --json` have it. */
export type TraceEvent = Readonly<{
  /** Since MAIL. */
  ms: number;
  /** Index in `legs`; null: the upstream's side. */
  leg: number | null;
  event: What;
  code?: number;
  /** Of a reply: enhanced status and text. Else what failed. */
  text?: string;
  recipient?: string;
  octets?: number;
}>;

export type Trace = Readonly<{
  id: string;
  /** Wall time of MAIL, ISO 8601. */
  began: string;
  running: boolean;
  client: string;
  helo: string;
  reversePath: string;
  recipients: readonly Readonly<Record<string, unknown>>[];
  /** Null while it runs. */
  result: string | null;
  /** Until its end, or until now. */
  ms: number;
  legs: readonly string[];
  events: readonly TraceEvent[];
  /** Events that found no more room. */
  omitted: number;
}>;

/** Whose event it is: a leg by its index, or the upstream. Below that, its recipients: -2 is the first. */
const UPSTREAM = -1;
const MAX_EVENTS = 64;
/** Legs leave room for how it ended upstream, and single recipients for how it went on. */
const MAX_LEG_EVENTS = 58;
const MAX_RECIPIENT_EVENTS = 32;
const MAX_TEXT = 200;
/** Recipients that are remembered after the end. */
const MAX_RECIPIENTS = 32;
const MAX_LEGS = 32;

export type TimeLineOf = Readonly<{
  id: string;
  client: Readonly<{ address: string; helo?: string }>;
  sender: Readonly<{ mailbox: Readonly<{ address: string }> | null }>;
  recipients: { readonly address: string }[];
  /** Milliseconds, monotonic. */
  began: number;
}>;

/** Whose, what, and the detail. */
const SLOTS = 3;

/**
 * What a time line is written on; used for one after the other: new arrays for each message, and numbers in them that
 * the garbage collector has to carry along, would cost more than the writing.
 */
class Sheet {
  readonly times = new Float64Array(MAX_EVENTS);
  readonly marks = new Array<What | Detail>(MAX_EVENTS * SLOTS).fill(null);
  readonly legs = new Array<string>(MAX_LEGS).fill('');
}

export class TimeLine {
  readonly id: string;
  readonly #client: string;
  readonly #helo: string;
  readonly #reversePath: string;
  readonly #recipients: TimeLineOf['recipients'];
  readonly #began: number;
  #sheet: Sheet;
  #events = 0;
  #legs = 0;
  #omitted = 0;
  #result: string | null = null;
  #endedAt = 0;
  /** Wall time of MAIL, once somebody has asked: so that all are told the same. */
  #beganAt = '';
  /** When the last event was: for one that follows from it without any wait. */
  latest: number;

  constructor({ id, client, sender, recipients, began }: TimeLineOf, sheet: Sheet = new Sheet()) {
    this.id = id;
    this.#client = client.address;
    this.#helo = client.helo ?? '';
    this.#reversePath = sender.mailbox?.address ?? '';
    this.#recipients = recipients;
    this.#began = began;
    this.#sheet = sheet;
    this.latest = began;
  }

  upstream(what: UpstreamEvent, at: number, detail: Detail = null): void {
    this.#note(UPSTREAM, what, at, detail, MAX_EVENTS);
  }

  /** @param nth of the recipients */
  recipient(what: 'rcpt' | 'rcpt-reply', nth: number, at: number, detail: Detail = null): void {
    this.#note(UPSTREAM - 1 - nth, what, at, detail, MAX_RECIPIENT_EVENTS);
  }

  /** Its index, for what happens at it. */
  addLeg(nextHop: string): number {
    if (this.#legs === MAX_LEGS) return MAX_LEGS;
    this.#sheet.legs[this.#legs] = nextHop;
    return this.#legs++;
  }

  leg(nth: number, what: LegEvent, at: number, detail: Detail = null): void {
    const most = what === 'rcpt' || what === 'rcpt-reply' ? MAX_RECIPIENT_EVENTS : MAX_LEG_EVENTS;
    if (nth < MAX_LEGS) this.#note(nth, what, at, detail, most);
    else this.#omitted++;
  }

  end(result: string, at: number): void {
    this.#result = result;
    this.#endedAt = at;
  }

  /** Gives its sheet for another one. A leg that still has something to say finds no room. */
  retire(): Sheet {
    const sheet = this.#sheet;
    this.#sheet = NO_SHEET;
    this.#events = MAX_EVENTS;
    this.#legs = MAX_LEGS;
    return sheet;
  }

  /** @param now on both clocks, the monotonic one and the wall's */
  describe(now: Readonly<{ monotonic: number; wall: number }>): Trace {
    const running = this.#result === null;
    const end = running ? now.monotonic : this.#endedAt;
    this.#beganAt ||= new Date(now.wall - (now.monotonic - this.#began)).toISOString();
    return {
      id: this.id,
      began: this.#beganAt,
      running,
      client: this.#client,
      helo: this.#helo,
      reversePath: this.#reversePath,
      recipients: this.#recipients.slice(0, MAX_RECIPIENTS).map((each) => ({ ...each })),
      result: this.#result,
      ms: rounded(end - this.#began),
      legs: this.#sheet.legs.slice(0, this.#legs),
      events: this.#inWords(),
      omitted: this.#omitted,
    };
  }

  #note(who: number, what: What, at: number, detail: Detail, most: number): void {
    this.latest = at;
    const nth = this.#events;
    if (nth >= most) {
      this.#omitted++;
      return;
    }
    this.#events = nth + 1;
    const { times, marks } = this.#sheet;
    times[nth] = at;
    marks[nth * SLOTS] = who;
    marks[nth * SLOTS + 1] = what;
    marks[nth * SLOTS + 2] = detail;
  }

  #inWords(): readonly TraceEvent[] {
    const { times, marks, legs } = this.#sheet;
    const events: TraceEvent[] = [{ ms: 0, leg: null, event: 'mail' }];
    const recipientsOf = legs.map((nextHop) => new LegRecipients(nextHop));
    for (let nth = 0; nth < this.#events; nth++) {
      const [who, event, detail] = marks.slice(nth * SLOTS, (nth + 1) * SLOTS) as [number, What, Detail];
      const words = event === 'rcpt' ? {} : inWords(event, detail);
      const recipient =
        who < 0
          ? this.#recipients[UPSTREAM - 1 - who]?.address
          : recipientsOf[who]!.of(event, detail, words.code);
      events.push({
        ms: rounded(times[nth]! - this.#began),
        leg: who < 0 ? null : who,
        event,
        ...(recipient === undefined ? {} : { recipient }),
        ...words,
      });
    }
    return events.sort((a, b) => a.ms - b.ms);
  }
}

/** Of time lines that are no more. Nothing is ever written on it. */
const NO_SHEET = new Sheet();

/** Whom the replies of a next hop are about: it answers its RCPTs in their order. */
class LegRecipients {
  #perRecipient: boolean;
  #asked: string[] = [];
  #accepted: string[] = [];

  constructor(nextHop: string) {
    // RFC 2033 §4.2: LMTP has a final reply for each.
    this.#perRecipient = nextHop.startsWith('lmtp:');
  }

  of(event: What, detail: Detail, code = 0): string | undefined {
    if (event === 'connect') this.#asked = [];
    if (event === 'rcpt') this.#asked.push(String(detail));
    if (event === 'rcpt') return String(detail);
    if (event === 'reply') return this.#ofFinal(code);
    if (event !== 'rcpt-reply') return undefined;
    const recipient = this.#asked.shift();
    if (recipient !== undefined && code < 300) this.#accepted.push(recipient);
    return recipient;
  }

  #ofFinal(code: number): string | undefined {
    const recipient = this.#perRecipient ? this.#accepted.shift() : undefined;
    // PRDR: the next ones are for each.
    this.#perRecipient ||= code === 353;
    return recipient;
  }
}

/** A reply as an event has it: of one that says yes the code is enough. */
export function brief(reply: ReplyLike): Detail {
  return reply.code < 400 ? reply.code : inFull(reply);
}

/** With its text: why not, or under which id the next hop has queued it. */
export function inFull({ code, enhanced, lines }: ReplyLike): string {
  const text = `${code} ${enhanced === null ? '' : `${enhanced} `}${lines.length === 1 ? lines[0] : lines.join(' ')}`;
  // Looking into it makes it a string of its own; else it would keep the whole chunk that the reply was read from.
  text.charCodeAt(0);
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}...` : text;
}

/** The details by their names. */
function inWords(what: What, detail: Detail): Pick<TraceEvent, 'code' | 'text' | 'octets'> {
  if (detail === null) return {};
  if (what === 'end-of-data') return { octets: Number(detail) };
  if (typeof detail === 'number') return { code: detail };
  const [, code, text = ''] = /^([2-5]\d\d) (.*)$/s.exec(detail) ?? [];
  const isReply = what === 'reply' || what.endsWith('-reply');
  return isReply && code !== undefined ? { code: Number(code), text } : { text: detail };
}

function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}

export type Clocks = Readonly<{
  /** Milliseconds, monotonic. */
  now: () => number;
  /** Milliseconds since 1970. */
  wall: () => number;
}>;

/** The time lines of the last transactions, while the process lives. */
export class RecentTimeLines {
  #size: number;
  readonly #clocks: Clocks;
  readonly #kept: TimeLine[] = [];
  readonly #spare: Sheet[] = [];
  #next = 0;

  constructor(size: number, clocks: Clocks) {
    this.#size = size;
    this.#clocks = clocks;
  }

  /** How many are kept. */
  get size(): number {
    return this.#size;
  }

  /** Forgets those that there are, if it is another size. */
  resize(size: number): void {
    if (size === this.#size) return;
    this.#size = size;
    this.#kept.length = 0;
    this.#spare.length = 0;
    this.#next = 0;
  }

  begin(of: TimeLineOf): TimeLine {
    return new TimeLine(of, this.#spare.pop());
  }

  /** One that has ended; the oldest goes. */
  keep(line: TimeLine): void {
    if (this.#size === 0) return;
    const oldest = this.#kept[this.#next];
    if (oldest !== undefined && this.#spare.length < this.#size) this.#spare.push(oldest.retire());
    this.#kept[this.#next] = line;
    this.#next = (this.#next + 1) % this.#size;
  }

  find(id: string): TimeLine | undefined {
    return this.#kept.find((line) => line.id === id);
  }

  describe(line: TimeLine): Trace {
    return line.describe({ monotonic: this.#clocks.now(), wall: this.#clocks.wall() });
  }
}
