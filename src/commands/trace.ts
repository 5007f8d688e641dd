// `cutthrough trace ID`: asks the proxy that runs, or reads its log, and shows one transaction with both its sides.
// A log at level info has only one line for each transaction; then that is shown, and how to get more.
// Whatever is read was partly said by strangers: no control character of it reaches the terminal.
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import type { Config } from '../config.ts';
import { formatHostPort, type HostPort } from '../option-kinds.ts';
import { type Colour, colourOfCode, columns, type Paint } from '../terminal.ts';
import type { Trace, TraceEvent } from '../time-line.ts';
import { whyUnreadable } from '../unreadable.ts';

export type TraceReport = Readonly<{ json: unknown; lines: (paint: Paint) => readonly string[] }>;

/** The transaction's line in a log at level info. */
type Summary = Readonly<{
  time: string;
  id: string;
  client: string;
  reversePath: string;
  recipients: Trace['recipients'];
  result: string;
  reply: number | null;
  ms: number;
  bodyMs?: number;
}>;

const TIMEOUT_MS = 5_000;
/** Longer text goes on in the next line. */
const UPSTREAM_COLUMNS = 44;
const DOWNSTREAM_COLUMNS = 60;

/**
 * @param log a file's name or `-` for stdin; undefined: the running proxy is asked
 * @throws Error in one line that says what to do, where the transaction is not found
 */
export async function runTrace(config: Config, id: string, log?: string): Promise<TraceReport> {
  if (log !== undefined) return await traceInLog(id, log);
  if (config.http === null)
    throw new Error('trace: --http is off, so no proxy can be asked; give --log FILE, or --http HOST:PORT');
  const trace = await askProxy(config.http, id);
  return { json: trace, lines: (paint) => renderTrace(trace, paint) };
}

async function askProxy(http: HostPort, id: string): Promise<Trace> {
  // What is bound to every address is reached at this machine's own.
  const local = { '0.0.0.0': '127.0.0.1', '::': '::1' } as const;
  const host = local[http.host as keyof typeof local] ?? http.host;
  const at = formatHostPort({ host, port: http.port });
  const response = await fetch(`http://${at}/trace/${encodeURIComponent(id)}`, {
    signal: AbortSignal.timeout(TIMEOUT_MS),
  }).catch((error: Error) => {
    const { code = error.message } = (error.cause ?? {}) as NodeJS.ErrnoException;
    const why = error.name === 'TimeoutError' ? `nothing within ${TIMEOUT_MS / 1000} s` : code;
    throw new Error(
      `trace: no proxy answers at ${at} (${why}); start it, name its address by ` +
        '--http HOST:PORT (or --config as for serve), or read its log by --log FILE',
    );
  });
  const text = await response.text();
  if (response.ok) return JSON.parse(text) as Trace;
  if (response.status === 403) throw new Error(`trace: the proxy at ${at} answers only on its own machine`);
  const kept = /^no such transaction; --trace-buffer (\d+)/.exec(text)?.[1];
  if (kept === undefined)
    throw new Error(`trace: what answers at ${at} knows no /trace; name the proxy's address by --http`);
  if (kept === '0')
    throw new Error(
      `trace: the proxy at ${at} keeps no transactions; start it with --trace-buffer 256, or read its log by --log FILE`,
    );
  throw new Error(
    `trace: ${id} is not among the last ${kept} transactions of the proxy at ${at}; try its log by --log FILE`,
  );
}

async function traceInLog(id: string, log: string): Promise<TraceReport> {
  const name = log === '-' ? 'standard input' : log;
  const { trace, summary } = await search(id, log === '-' ? process.stdin : createReadStream(log)).catch(
    (error: Error) => {
      throw new Error(`trace: ${name} cannot be read: ${whyUnreadable(error)}`);
    },
  );
  if (trace !== null) return { json: trace, lines: (paint) => renderTrace(trace, paint) };
  if (summary !== null) return { json: summary, lines: (paint) => renderSummary(summary, paint) };
  throw new Error(
    `trace: no line of ${name} is about ${id}; is it the proxy's log, in JSON (--log-format json)?`,
  );
}

/** The log's lines about the transaction; something may stand before the JSON, as journalctl has it. */
async function search(id: string, log: Readable): Promise<{ trace: Trace | null; summary: Summary | null }> {
  let trace: Trace | null = null;
  let summary: Summary | null = null;
  // readline tells nobody of its input's errors.
  const failed = new Promise<never>((_, reject) => log.once('error', reject));
  const read = async () => {
    for await (const line of createInterface({ input: log, crlfDelay: Infinity })) {
      if (!line.includes(id)) continue;
      const found = parse(line);
      if (found?.id !== id) continue;
      if (found.event === 'trace' && Array.isArray(found.events)) trace = found as unknown as Trace;
      if (found.event === 'transaction') summary = found as unknown as Summary;
    }
  };
  await Promise.race([read(), failed]);
  return { trace, summary };
}

function parse(line: string): Readonly<Record<string, unknown>> | null {
  try {
    return JSON.parse(line.slice(line.indexOf('{'))) as Readonly<Record<string, unknown>>;
  } catch {
    return null;
  }
}

function renderTrace(trace: Trace, paint: Paint): readonly string[] {
  const { running, result, ms, legs, events, omitted, helo } = trace;
  const outcome = running
    ? paint('yellow', `still running after ${ms.toFixed(1)} ms`)
    : `${paint(result === 'delivered' ? 'green' : 'yellow', clean(result))} after ${ms.toFixed(1)} ms`;
  const several = { legs: legs.length > 1, recipients: trace.recipients.length > 1 };
  const rows = events.flatMap((event) => {
    const { text, colour } = describe(event, trace, several.recipients);
    const leg = event.leg !== null && several.legs ? `${event.leg + 1} ` : '';
    return wrapped(text, event.leg === null ? UPSTREAM_COLUMNS : DOWNSTREAM_COLUMNS).map((line, at) => {
      const time = at === 0 ? paint('dim', event.ms.toFixed(2).padStart(9)) : '';
      const said = colour === null ? line : paint(colour, line);
      return event.leg === null
        ? [time, said, '']
        : [time, '', `${paint('dim', at === 0 ? leg : ' '.repeat(leg.length))}${said}`];
    });
  });
  const heading = [paint('bold', '       ms'), paint('bold', 'upstream'), paint('bold', 'downstream')];
  return [
    `${paint('bold', clean(trace.id))}  ${clean(trace.began)}  from ${clean(trace.client)}${helo ? ` (${clean(helo)})` : ''}`,
    `${clean(`<${trace.reversePath}>`)}: ${outcome}`,
    ...recipientLines(trace.recipients, paint),
    ...(several.legs ? legs.map((leg, at) => `  ${paint('dim', `${at + 1}`)} = ${clean(leg)}`) : []),
    '',
    ...columns([heading, ...rows]),
    ...(omitted > 0 ? ['', `${omitted} more events were not kept`] : []),
  ];
}

function recipientLines(recipients: Trace['recipients'], paint: Paint): readonly string[] {
  return columns(
    recipients.map(({ address, outcome, reply, nextHop }) => {
      const code = typeof reply === 'number' ? reply : null;
      const fate = `${clean(outcome || 'asked')}${code === null ? '' : ` ${code}`}`;
      const via = nextHop ? `by ${clean(nextHop)}` : '';
      return [`  <${clean(address)}>`, code === null ? fate : paint(colourOfCode(code), fate), via];
    }),
  );
}

type Said = Readonly<{ text: string; colour: Colour | null }>;

/** @param naming each recipient, since there are several */
function describe(event: TraceEvent, trace: Trace, naming: boolean): Said {
  const { code, leg } = event;
  const text = clean(event.text ?? '');
  const whom = event.recipient === undefined ? '' : `<${clean(event.recipient)}>`;
  const said = (what: string, colour: Colour | null = null): Said => ({ text: what, colour });
  const reply = (to: string): Said => {
    const words = [code, text, to].filter((word) => word !== undefined && word !== '').join(' ');
    return said(`← ${words}`, code === undefined ? null : colourOfCode(code));
  };
  switch (event.event) {
    case 'mail':
      return said(`→ MAIL FROM:<${clean(trace.reversePath)}>`);
    case 'mail-reply':
      return reply('(MAIL)');
    case 'rcpt':
      return said(`→ RCPT TO:${whom}`);
    case 'rcpt-reply':
      return reply(naming && whom ? `(RCPT ${whom})` : '(RCPT)');
    case 'data':
      return said('→ DATA');
    case 'data-reply':
    case 'reply':
      return reply(leg !== null && whom ? `(${whom})` : '');
    case 'body':
      return said('→ first octets of the message');
    case 'end-of-data':
      return said(`→ the final dot, after ${event.octets} octets`);
    case 'gone':
      return said('gone, or reset: it got no reply', 'yellow');
    case 'connect':
      return said('connecting');
    case 'connected':
      return said(`connected: ${text}`);
    case 'queued':
      return said('waiting for a session: as many as may be are in use', 'yellow');
    case 'reused':
      return said(`the kept session with ${text}`);
    case 'attempt-failed':
      return said(`failed: ${text}`, 'yellow');
    case 'unreachable':
      return said(`given up: ${text}`, 'red');
    case 'reset':
      return said('RSET: has the message from an earlier try');
    case 'withheld':
      return said('dropped without a dot: another next hop did not accept', 'yellow');
    case 'lost':
      return said(`lost: ${text || 'connection closed'}`, 'red');
    default:
      event.event satisfies never;
      // A log of a newer version.
      return said(clean(event.event));
  }
}

/** In lines of so many characters, where there are spaces; those after the first are indented. */
function wrapped(text: string, width: number): readonly string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const line = lines.at(-1);
    if (line === undefined) lines.push(word);
    else if (line.length + 1 + word.length <= width) lines[lines.length - 1] = `${line} ${word}`;
    else lines.push(`  ${word}`);
  }
  return lines;
}

function renderSummary(summary: Summary, paint: Paint): readonly string[] {
  const { id, time, ms, bodyMs, reply, result } = summary;
  const began = new Date(Date.parse(time) - ms).toISOString();
  const rows: string[][] = [['0', `→ MAIL FROM:<${clean(summary.reversePath)}>`]];
  if (bodyMs !== undefined) rows.push([`${ms - bodyMs}`, '← 354 to DATA']);
  const last =
    reply === null ? 'gone, or reset: it got no reply' : `← ${paint(colourOfCode(reply), `${reply}`)}`;
  rows.push([`${ms}`, last]);
  return [
    `${paint('bold', clean(id))}  ${began}  from ${clean(summary.client)}`,
    `${clean(`<${summary.reversePath}>`)}: ${clean(result)} after ${ms} ms`,
    ...recipientLines(summary.recipients, paint),
    '',
    ...columns([
      [paint('bold', '       ms'), paint('bold', 'upstream')],
      ...rows.map(([at, what]) => [paint('dim', at!.padStart(9)), what!]),
    ]),
    '',
    'This log has only the summary. Every event is in a log written at --log-level debug, and in the memory of a',
    `proxy that runs with --trace-buffer N, for its last N: cutthrough trace ${clean(id)} --http HOST:PORT`,
  ];
}

function clean(text: unknown): string {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '?');
}
