import { expect, it } from 'vitest';
import { createLogger } from '../../src/log.ts';
import { createMetrics } from '../../src/metrics.ts';
import { RecentTimeLines } from '../../src/time-line.ts';
import { TransactionRecord } from '../../src/transaction-record.ts';

function recordOf(ident?: string) {
  const lines: string[] = [];
  const deps = {
    config: { mode: 'cut-through' },
    metrics: createMetrics({ version: '0', mode: 'cut-through', fallback: 'none' }),
    log: createLogger({ level: 'info', format: 'json', stream: { write: (line) => lines.push(line) } }),
    now: () => 5,
    timeLines: new RecentTimeLines(0, { now: () => 0, wall: () => 0 }),
  };
  const client = { address: '::1', helo: 'x', ...(ident === undefined ? {} : { ident }) };
  const sender = { mailbox: { address: '"a\\"b\u2028"@src.example' } };
  return { record: new TransactionRecord('id.1', sender, client, deps), logged: () => JSON.parse(lines[0]!) };
}

it('logs a transaction as one JSON object, whatever its names hold', () => {
  const { record, logged } = recordOf('some"one');
  const told = record.add('"quoted\\""@ü.example');
  told.nextHop = 'smtp://127.0.0.1:25';
  record.told(told, { code: 250, enhanced: '2.1.5', lines: ['ok'] });
  const withheld = record.add('b@b.example');
  withheld.withheldFor({ code: 451, enhanced: '4.3.0', lines: ['later'] });
  const lost = record.add('c@c.example');
  lost.ended({ kind: 'lost' });
  record.end('mixed', { code: 451, enhanced: '4.3.0', lines: ['some'] }, { bytes: 7, bodyMs: 2 });
  expect(logged()).toEqual({
    level: 'info',
    time: expect.any(String),
    event: 'transaction',
    id: 'id.1',
    client: '::1',
    ident: 'some"one',
    reversePath: '"a\\"b\u2028"@src.example',
    recipients: [
      { address: '"quoted\\""@ü.example', nextHop: 'smtp://127.0.0.1:25', outcome: 'accepted', reply: 250 },
      { address: 'b@b.example', nextHop: '', outcome: 'deferred', reply: 451, withheld: true },
      { address: 'c@c.example', nextHop: '', outcome: 'deferred', reply: null },
    ],
    result: 'mixed',
    reply: 451,
    bytes: 7,
    bodyMs: 2,
    ms: 0,
  });
});

it('logs a transaction without recipients, body, reply and ident', () => {
  const { record, logged } = recordOf();
  record.end('aborted', null, {});
  expect(logged()).toMatchObject({ recipients: [], result: 'aborted', reply: null, ms: 0 });
  expect(logged()).not.toHaveProperty('ident');
});
