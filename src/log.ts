// The log: one event a line on stdout, as JSON for machines or as text for people.
// Writing is synchronous, so that the last line before an exit is never lost.

import { type DestinationStream, destination, type Logger, pino } from 'pino';
import { prettyFactory } from 'pino-pretty';

export type { Logger } from 'pino';

export type LogOptions = Readonly<{
  level: 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace' | 'silent';
  format: 'json' | 'pretty';
  /** Instead of stdout. */
  stream?: DestinationStream;
}>;

/** A logger whose lines carry `level` as a word, `time` in ISO 8601, and what the caller gives. */
export function createLogger({ level, format, stream }: LogOptions): Logger {
  const lines = stream ?? destination({ dest: 1, sync: true });
  const output = format === 'pretty' ? pretty(lines) : lines;
  const logger = pino(
    {
      level,
      // Whoever collects the lines knows the process and the machine already.
      base: null,
      timestamp: () => `,"time":"${isoTime(Date.now())}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    output,
  );
  return Object.assign(logger, { [OUTPUT]: output });
}

/** Of loggers made here, and inherited by their children. */
const OUTPUT = Symbol('output');
const bindings = new WeakMap<Logger, string>();

/**
 * As log.info(), for the one line that each message gets: pino's making it takes 4 % of what a small message does
 * (measured). The caller has looked at the level.
 * @param fields of a JSON object, without its braces
 */
export function logInfo(log: Logger, fields: string): void {
  const output = (log as { [OUTPUT]?: DestinationStream })[OUTPUT];
  if (output === undefined) return log.info(JSON.parse(`{${fields}}`));
  output.write(`{"level":"info","time":"${isoTime(Date.now())}"${bindingsOf(log)},${fields}}\n`);
}

function bindingsOf(log: Logger): string {
  let text = bindings.get(log);
  if (text === undefined) {
    const inner = JSON.stringify(log.bindings()).slice(1, -1);
    text = inner === '' ? '' : `,${inner}`;
    bindings.set(log, text);
  }
  return text;
}

let latest = { second: Number.NaN, text: '' };

/** As Date's toISOString(), which would take a twentieth of what a small message does: only the last digits are new. */
export function isoTime(epochMs: number): string {
  const second = Math.floor(epochMs / 1000);
  if (second !== latest.second)
    latest = { second, text: new Date(second * 1000).toISOString().slice(0, -'000Z'.length) };
  return `${latest.text}${String(epochMs - second * 1000).padStart(3, '0')}Z`;
}

/** Line by line in this process: a worker thread or a stream would have lines in flight when the process exits. */
function pretty(output: DestinationStream): DestinationStream {
  const toText = prettyFactory({
    colorize: process.stdout.isTTY === true && !process.env.NO_COLOR,
    messageFormat: '{event} {msg}',
    ignore: 'event',
    singleLine: true,
    translateTime: 'SYS:HH:MM:ss.l',
  });
  return { write: (line) => output.write(toText(line)) };
}
