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
  const output = stream ?? destination({ dest: 1, sync: true });
  return pino(
    {
      level,
      // Whoever collects the lines knows the process and the machine already.
      base: null,
      timestamp: () => `,"time":"${isoTime(Date.now())}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    format === 'pretty' ? pretty(output) : output,
  );
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
