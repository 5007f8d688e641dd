// SMTP replies as values: the only place that builds, parses and formats them (RFC 5321 §4.2).
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

/** RFC 5321 §4.5.3.1.5: a reply line is at most 512 octets, code and CRLF included. */
const MAX_TEXT_OCTETS = 400;
/** More lines than this of a peer's reply are not passed on. */
const MAX_LINES = 20;

export function reply(code: number, enhanced: string | null, ...lines: string[]): Reply {
  return Object.freeze({ code, enhanced, lines: Object.freeze(lines.length > 0 ? lines : ['']) });
}

export function replyClass(of: Reply): ReplyClass {
  return Math.floor(of.code / 100) as ReplyClass;
}
