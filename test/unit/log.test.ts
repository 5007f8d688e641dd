import { pino } from 'pino';
import { expect, test } from 'vitest';
import { createLogger, isoTime, logInfo } from '../../src/log.ts';

function capture(): { lines: string[]; stream: { write: (line: string) => void } } {
  const lines: string[] = [];
  return { lines, stream: { write: (line) => lines.push(line) } };
}

test('writes one JSON object a line with level, ISO time, event and fields, and nothing about the machine', () => {
  const { lines, stream } = capture();
  createLogger({ level: 'info', format: 'json', stream }).info({ event: 'leg_lost', phase: 'body' });
  expect(lines).toHaveLength(1);
  expect(lines[0]?.endsWith('\n')).toBe(true);
  expect(JSON.parse(lines[0] ?? '')).toEqual({
    level: 'info',
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
    event: 'leg_lost',
    phase: 'body',
  });
});

test('says nothing below its level', () => {
  const { lines, stream } = capture();
  createLogger({ level: 'warn', format: 'json', stream }).info({ event: 'reloaded' });
  expect(lines).toEqual([]);
});

test('a pretty line names the event and the fields, and keeps to one line', () => {
  const { lines, stream } = capture();
  createLogger({ level: 'info', format: 'pretty', stream }).info({
    event: 'leg_lost',
    reply: '451 no\r\n250 ok',
  });
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/INFO.*leg_lost.*"reply":"451 no\\r\\n250 ok"/);
  expect(lines[0]?.trimEnd()).not.toContain('\n');
});

test('tells the time as Date does, whichever was asked for before', () => {
  const start = Date.UTC(2026, 11, 31, 23, 59, 58);
  for (const ms of [0, 1, 42, 999, 1_000, 1_999, 2_000, 1_500, 86_400_007, 0]) {
    expect(isoTime(start + ms)).toBe(new Date(start + ms).toISOString());
  }
});

test("logInfo() writes what info() does, by children with what they add, and by others' loggers as these like", () => {
  const fields = { event: 'transaction', id: 'a.1', text: '"\\\r\n\u2028é', reply: null, ms: 3 };
  const json = JSON.stringify(fields).slice(1, -1);
  for (const format of ['json', 'pretty'] as const) {
    const { lines, stream } = capture();
    const root = createLogger({ level: 'info', format, stream });
    for (const log of [root, root.child({ worker: 2 }), root.child({})]) {
      log.info(fields);
      logInfo(log, json);
    }
    const withoutTime = lines.map((line) => line.replace(/[\d:.TZ-]{12,24}/, ''));
    expect(withoutTime).toHaveLength(6);
    for (const at of [0, 2, 4]) expect(withoutTime[at + 1]).toBe(withoutTime[at]);
    expect(withoutTime[3]).toContain('worker');
  }
  const { lines, stream } = capture();
  logInfo(pino({ base: { pid: 1 } }, stream), json);
  expect(JSON.parse(lines[0]!)).toMatchObject({ level: 30, pid: 1, ...fields });
});
