// What happened in one transaction, and when: on the upstream's side, and on that of each leg. For `cutthrough trace`.
// Recording is on the way of every message, so an event is four values put into one flat array that is used again and
// again, its time one that was at hand; words are made when somebody asks. Bounded: 64 events, of which those of single
// recipients get half, and a text is cut. 256 transactions take 1 MiB, and 12 where strangers fill them (measured).

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
  | 'lost';
type What = UpstreamEvent | LegEvent;

/** A code, octets, an address, a reason, the text of a reply. */
type Detail = number | string | null;

type Slots = (What | Detail)[];

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
/** Whose, what, when, and the detail. */
const SLOTS = 4;
const MAX_SLOTS = 64 * SLOTS;
/** Legs leave room for how it ended upstream, and single recipients for how it went on. */
const MAX_LEG_SLOTS = 58 * SLOTS;
const MAX_RECIPIENT_SLOTS = 32 * SLOTS;
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

export class TimeLine {
  readonly #of: TimeLineOf;
  #marks: Slots;
  #used = 0;
  readonly #legs: string[] = [];
  #omitted = 0;
  #ended: Readonly<{ at: number; result: string }> | null = null;
  /** Wall time of MAIL, once somebody has asked: so that all are told the same. */
  #beganAt = '';
  /** When the last event was: for one that follows from it without any wait. */
  latest: number;

  constructor(of: TimeLineOf, slots: Slots = newSlots()) {
    this.#of = of;
    this.#marks = slots;
    this.latest = of.began;
  }

  get id(): string {
    return this.#of.id;
  }

  upstream(what: UpstreamEvent, at: number, detail: Detail = null): void {
    this.#push(UPSTREAM, what, at, detail, MAX_SLOTS);
  }

  /** @param nth of the recipients */
  recipient(what: 'rcpt' | 'rcpt-reply', nth: number, at: number, detail: Detail = null): void {
    this.#push(UPSTREAM - 1 - nth, what, at, detail, MAX_RECIPIENT_SLOTS);
  }

  /** Its index, for what happens at it. */
  addLeg(nextHop: string): number {
    if (this.#legs.length === MAX_LEGS) return MAX_LEGS;
    return this.#legs.push(nextHop) - 1;
  }

  leg(nth: number, what: LegEvent, at: number, detail: Detail = null): void {
    const most = what === 'rcpt' || what === 'rcpt-reply' ? MAX_RECIPIENT_SLOTS : MAX_LEG_SLOTS;
    if (nth < MAX_LEGS) this.#push(nth, what, at, detail, most);
    else this.#omitted++;
  }

  end(result: string, at: number): void {
    this.#ended = { at, result };
  }

  /** Gives its array for another one. A leg that still has something to say finds no room. */
  retire(): Slots {
    const slots = this.#marks;
    this.#marks = [];
    this.#used = MAX_SLOTS;
    return slots;
  }

  /** @param now on both clocks, the monotonic one and the wall's */
  describe(now: Readonly<{ monotonic: number; wall: number }>): Trace {
    const { id, client, sender, recipients, began } = this.#of;
    const end = this.#ended?.at ?? now.monotonic;
    this.#beganAt ||= new Date(now.wall - (now.monotonic - began)).toISOString();
    return {
      id,
      began: this.#beganAt,
      running: this.#ended === null,
      client: client.address,
      helo: client.helo ?? '',
      reversePath: sender.mailbox?.address ?? '',
      recipients: recipients.slice(0, MAX_RECIPIENTS).map((each) => ({ ...each })),
      result: this.#ended?.result ?? null,
      ms: rounded(end - began),
      legs: this.#legs,
      events: this.#events(),
      omitted: this.#omitted,
    };
  }

  #push(who: number, what: What, at: number, detail: Detail, most: number): void {
    this.latest = at;
    const slot = this.#used;
    if (slot >= most) {
      this.#omitted++;
      return;
    }
    const marks = this.#marks;
    marks[slot] = who;
    marks[slot + 1] = what;
    marks[slot + 2] = at;
    marks[slot + 3] = detail;
    this.#used = slot + SLOTS;
  }

  #events(): readonly TraceEvent[] {
    const { recipients, began } = this.#of;
    const events: TraceEvent[] = [{ ms: 0, leg: null, event: 'mail' }];
    const legs = this.#legs.map((nextHop) => new LegRecipients(nextHop));
    for (let slot = 0; slot < this.#used; slot += SLOTS) {
      const mark = this.#marks.slice(slot, slot + SLOTS);
      const [who, event, at, detail] = mark as [number, What, number, Detail];
      const words = event === 'rcpt' ? {} : inWords(event, detail);
      const recipient =
        who < 0 ? recipients[UPSTREAM - 1 - who]?.address : legs[who]!.of(event, detail, words.code);
      events.push({
        ms: rounded(at - began),
        leg: who < 0 ? null : who,
        event,
        ...(recipient === undefined ? {} : { recipient }),
        ...words,
      });
    }
    return events.sort((a, b) => a.ms - b.ms);
  }
}

/** Whom the replies of a next hop are about: it answers its RCPTs in their order. */
class LegRecipients {
  readonly #perRecipient: boolean;
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
    if (event === 'reply') return this.#perRecipient ? this.#accepted.shift() : undefined;
    if (event !== 'rcpt-reply') return undefined;
    const recipient = this.#asked.shift();
    if (recipient !== undefined && code < 300) this.#accepted.push(recipient);
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

function newSlots(): Slots {
  return new Array<Detail>(MAX_SLOTS).fill(null);
}

export type Clocks = Readonly<{
  /** Milliseconds, monotonic. */
  now: () => number;
  /** Milliseconds since 1970. */
  wall: () => number;
}>;

/** The time lines of the last transactions, while the process lives. */
export class RecentTimeLines {
  readonly #size: number;
  readonly #clocks: Clocks;
  readonly #kept: TimeLine[] = [];
  /** Of time lines that are no more: making an array for each message costs more than what is put into it. */
  readonly #spare: Slots[] = [];
  #next = 0;

  constructor(size: number, clocks: Clocks) {
    this.#size = size;
    this.#clocks = clocks;
  }

  begin(of: TimeLineOf): TimeLine {
    return new TimeLine(of, this.#spare.pop());
  }

  /** One that has ended; the oldest goes. */
  keep(line: TimeLine): void {
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
