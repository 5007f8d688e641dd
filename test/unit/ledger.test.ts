import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { fingerprintOf } from '../../src/ledger/fingerprint.ts';
import { FILE_NAME, openJournal } from '../../src/ledger/journal.ts';
import { type Entry, type Journal, Ledger } from '../../src/ledger/ledger.ts';
import { MessageHistory } from '../../src/ledger/message-history.ts';
import { MessageBody } from '../../src/smtp/message-body.ts';
import { reply } from '../../src/smtp/reply.ts';
import { recipientOf, senderOf } from '../support/spool.ts';

const HOUR_MS = 3_600_000;
const clock = { ms: 0 };
const now = () => clock.ms;

function newLedger(maxEntries = 100): Ledger {
  return new Ledger({ ttlMs: 24 * HOUR_MS, maxEntries, now });
}

function copy(forwardPath: string, more: Partial<Omit<Entry, 'expiresAt'>> = {}): Omit<Entry, 'expiresAt'> {
  return {
    reversePath: 'sender@a.example',
    forwardPath,
    fingerprint: 'one',
    octets: 100,
    digest: '0123456789abcdef',
    fate: { kind: 'delivered' },
    durable: false,
    ...more,
  };
}

beforeEach(() => {
  clock.ms = 1_700_000_000_000;
});

describe('the ledger', () => {
  it('knows a copy by sender, recipient and fingerprint, and by nothing less', () => {
    const ledger = newLedger();
    void ledger.put(copy('b@b.example'));
    expect(ledger.knows('sender@a.example', 'b@b.example')).toBe(true);
    expect(ledger.knows('sender@a.example', 'B@b.example')).toBe(false);
    expect(ledger.knows('other@a.example', 'b@b.example')).toBe(false);
    expect(ledger.find(copy('b@b.example'))?.fate).toEqual({ kind: 'delivered' });
    expect(ledger.find(copy('b@b.example', { fingerprint: 'two' }))).toBeNull();
    expect(ledger.find(copy('c@b.example'))).toBeNull();
  });

  it('keeps the newest, in their order, whatever is put and dropped', () => {
    const step = fc.record({
      drop: fc.boolean(),
      path: fc.constantFrom('a@b.example', 'c@b.example', 'd@b.example'),
      fingerprint: fc.constantFrom('one', 'two'),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const ledger = newLedger(4);
        const model: string[] = [];
        for (const { drop, path, fingerprint } of steps) {
          const at = model.indexOf(`${path} ${fingerprint}`);
          if (at !== -1) model.splice(at, 1);
          if (drop) ledger.drop(copy(path, { fingerprint }));
          else {
            void ledger.put(copy(path, { fingerprint }));
            if (model.push(`${path} ${fingerprint}`) > 4) model.shift();
          }
          expect([...ledger.entries].map((entry) => `${entry.forwardPath} ${entry.fingerprint}`)).toEqual(
            model,
          );
          expect(ledger.size).toBe(model.length);
        }
      }),
    );
  });

  it('has one entry for a copy, the last', () => {
    const ledger = newLedger();
    const refusal = reply(550, '5.1.1', 'nobody here');
    void ledger.put(copy('b@b.example', { fate: { kind: 'pending' } }));
    void ledger.put(copy('b@b.example', { fate: { kind: 'rejected', reply: refusal } }));
    expect(ledger.size).toBe(1);
    expect(ledger.find(copy('b@b.example'))?.fate).toEqual({ kind: 'rejected', reply: refusal });
  });

  it('forgets a copy that is dropped, and no other of the same sender and recipient', () => {
    const ledger = newLedger();
    void ledger.put(copy('b@b.example'));
    void ledger.put(copy('b@b.example', { fingerprint: 'two' }));
    ledger.drop(copy('b@b.example'));
    expect(ledger.find(copy('b@b.example'))).toBeNull();
    expect(ledger.find(copy('b@b.example', { fingerprint: 'two' }))).not.toBeNull();
    ledger.drop(copy('b@b.example', { fingerprint: 'two' }));
    expect(ledger.knows('sender@a.example', 'b@b.example')).toBe(false);
  });

  it('forgets after --ledger-ttl, counted from when it was put last', () => {
    const ledger = newLedger();
    void ledger.put(copy('b@b.example'));
    clock.ms += 24 * HOUR_MS - 1;
    void ledger.put(copy('c@b.example'));
    expect(ledger.size).toBe(2);
    clock.ms += 1;
    expect(ledger.knows('sender@a.example', 'b@b.example')).toBe(false);
    expect(ledger.find(copy('c@b.example'))).not.toBeNull();
    clock.ms += 24 * HOUR_MS;
    expect(ledger.size).toBe(0);
  });

  it('holds --ledger-max entries, the newest', () => {
    const ledger = newLedger(10);
    for (let at = 0; at < 25; at++) void ledger.put(copy(`${at}@b.example`));
    expect(ledger.size).toBe(10);
    expect(ledger.knows('sender@a.example', '14@b.example')).toBe(false);
    expect(ledger.knows('sender@a.example', '15@b.example')).toBe(true);
  });

  it('agrees with a plain list, whatever is put, dropped and waited for', () => {
    const step = fc.oneof(
      fc.record({ put: fc.nat(3), print: fc.nat(2) }),
      fc.record({ drop: fc.nat(3), print: fc.nat(2) }),
      fc.record({ wait: fc.nat(30) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const ledger = newLedger(4);
        let model: Array<{ to: number; print: number; until: number }> = [];
        for (const each of steps) {
          if ('wait' in each) clock.ms += each.wait * HOUR_MS;
          const same = ({ to, print }: { to: number; print: number }) =>
            'print' in each && to === ('put' in each ? each.put : each.drop) && print === each.print;
          model = model.filter((one) => one.until > clock.ms && !same(one));
          if ('put' in each) {
            void ledger.put(copy(`${each.put}`, { fingerprint: `${each.print}` }));
            model.push({ to: each.put, print: each.print, until: clock.ms + 24 * HOUR_MS });
            model = model.slice(-4);
          }
          if ('drop' in each) ledger.drop(copy(`${each.drop}`, { fingerprint: `${each.print}` }));
          expect(ledger.size).toBe(model.length);
          for (const to of [0, 1, 2, 3]) {
            expect(ledger.knows('sender@a.example', `${to}`)).toBe(model.some((one) => one.to === to));
            for (const print of [0, 1, 2]) {
              const found = ledger.find(copy(`${to}`, { fingerprint: `${print}` })) !== null;
              expect(found).toBe(model.some((one) => one.to === to && one.print === print));
            }
          }
        }
      }),
    );
  });
});

describe('the fingerprint', () => {
  const client = { address: '192.0.2.1', helo: 'mx.example' };
  const header = Buffer.from('Subject: x\r\n\r\n');
  const base = fingerprintOf('a@a.example', client, header);

  it('is the same for the same message', () => {
    expect(fingerprintOf('a@a.example', { ...client }, Buffer.from(header))).toBe(base);
  });

  it.each([
    ['another sender', () => fingerprintOf('b@a.example', client, header)],
    ['another client', () => fingerprintOf('a@a.example', { ...client, address: '192.0.2.2' }, header)],
    ['another name', () => fingerprintOf('a@a.example', { ...client, helo: 'mx2.example' }, header)],
    ['another header', () => fingerprintOf('a@a.example', client, Buffer.from('Subject: y\r\n\r\n'))],
  ])('differs for %s', (_, other) => {
    expect(other()).not.toBe(base);
  });
});

describe("a message's history", () => {
  it('leaves nothing behind where the dots have not gone out after all', async () => {
    const kept: Entry[] = [];
    const dropped: string[] = [];
    const ledger = newLedger();
    const journal: Journal = {
      put: async (entry) => void kept.push(entry),
      drop: ({ forwardPath }) => void dropped.push(forwardPath),
      close: async () => {},
    };
    ledger.keepIn(journal, []);
    const client = { address: '::1', port: 1, name: null, helo: 'c.example', extended: true, tls: null };
    const history = new MessageHistory(ledger, senderOf('MAIL FROM:<s@a.example>'), client);
    const body = new MessageBody(Buffer.alloc(0), { maxMessageBytes: 1000, maxReceived: 9 });
    body.push(Buffer.from('Subject: x\r\n\r\nx\r\n.\r\n'));
    const recipients = [recipientOf('RCPT TO:<u@a.example>'), recipientOf('RCPT TO:<v@b.example>')];
    await history.intend(recipients, body);
    expect(kept.map(({ fate, durable }) => [fate.kind, durable])).toEqual([
      ['pending', true],
      ['pending', true],
    ]);
    history.abandon();
    expect(ledger.size).toBe(0);
    expect(dropped).toEqual(['u@a.example', 'v@b.example']);
  });
});

describe('the journal', () => {
  let directory = '';
  let logged: Array<Record<string, unknown>> = [];
  const log = pino({ base: null }, { write: (line: string) => void logged.push(JSON.parse(line)) });

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'cutthrough-ledger-'));
    logged = [];
  });
  afterEach(async () => await rm(directory, { recursive: true }));

  async function open(maxEntries = 1_000_000) {
    const ledger = newLedger(maxEntries);
    const entries = () => [...ledger.entries].filter(({ durable }) => durable);
    const { journal, recovered } = await openJournal(directory, { log, now, entries });
    ledger.keepIn(journal, recovered);
    return ledger;
  }

  const text = async () => await readFile(join(directory, FILE_NAME), 'utf8');

  it('brings back what was put as durable, and what was not dropped', async () => {
    const before = await open();
    const refusal = reply(554, '5.7.1', 'not "here"', 'nor there');
    await before.put(copy('b@b.example', { durable: true }));
    await before.put(copy('c@b.example', { durable: true, fate: { kind: 'rejected', reply: refusal } }));
    await before.put(copy('d@b.example', { durable: true }));
    void before.put(copy('e@b.example'));
    before.drop(copy('d@b.example'));
    const wanted = [...before.entries].filter(({ durable }) => durable);
    await before.close();
    const after = await open();
    expect([...after.entries]).toEqual(wanted);
    expect(after.find(copy('c@b.example'))?.fate).toEqual({ kind: 'rejected', reply: refusal });
    await after.close();
  });

  it('has a line on disk before put() settles', async () => {
    const ledger = await open();
    await Promise.all([0, 1, 2].map((at) => ledger.put(copy(`${at}@b.example`, { durable: true }))));
    expect((await text()).split('\n').length).toBe(4);
    await ledger.close();
  });

  it('writes nothing for entries that need not outlive the process', async () => {
    const ledger = await open();
    expect(ledger.put(copy('b@b.example'))).toBeNull();
    ledger.drop(copy('b@b.example'));
    await ledger.close();
    expect(await text()).toBe('');
  });

  it('does not bring back a fate that was not known, and says how many', async () => {
    const before = await open();
    await before.put(copy('b@b.example', { durable: true, fate: { kind: 'pending' } }));
    await before.put(copy('c@b.example', { durable: true, fate: { kind: 'pending' } }));
    await before.put(copy('c@b.example', { durable: true }));
    await before.close();
    const after = await open();
    expect([...after.entries].map(({ forwardPath }) => forwardPath)).toEqual(['c@b.example']);
    expect(logged).toContainEqual(expect.objectContaining({ event: 'ledger_unknown', recipients: 1 }));
    await after.close();
  });

  it('does not bring back what has expired meanwhile', async () => {
    const before = await open();
    await before.put(copy('b@b.example', { durable: true }));
    await before.close();
    clock.ms += 24 * HOUR_MS;
    const after = await open();
    expect(after.size).toBe(0);
    expect(await text()).toBe('');
    await after.close();
  });

  it('skips a line with any byte flipped, and keeps the others', async () => {
    const before = await open();
    for (const to of ['b', 'c', 'd']) await before.put(copy(`${to}@b.example`, { durable: true }));
    await before.close();
    const whole = Buffer.from(await text());
    const [start, end] = [whole.indexOf(0x0a) + 1, whole.indexOf(0x0a, whole.indexOf(0x0a) + 1)];
    for (let at = start; at < end; at++) {
      const flipped = Buffer.from(whole);
      flipped[at]! ^= 0x01;
      await writeFile(join(directory, FILE_NAME), flipped);
      const after = await open();
      const paths = [...after.entries].map(({ forwardPath }) => forwardPath);
      // A flip that makes a line end of a byte breaks one line in two, and no other.
      expect(paths).toEqual(['b@b.example', 'd@b.example']);
      await after.close();
    }
    expect(logged).toContainEqual(expect.objectContaining({ event: 'ledger_damaged' }));
  });

  it('survives a file cut off anywhere', async () => {
    const before = await open();
    for (const to of ['b', 'c']) await before.put(copy(`${to}@b.example`, { durable: true }));
    await before.close();
    const whole = await text();
    const first = whole.indexOf('\n') + 1;
    for (let length = 0; length < whole.length; length++) {
      await writeFile(join(directory, FILE_NAME), whole.slice(0, length));
      const after = await open();
      // The line end itself is no part of what is checked.
      expect(after.size).toBe(length >= whole.length - 1 ? 2 : length >= first - 1 ? 1 : 0);
      await after.close();
    }
  });

  it('stays small, however much comes and goes', async () => {
    const ledger = await open();
    for (let round = 0; round < 300; round++) {
      const paths = Array.from({ length: 20 }, (_, at) => `${round}-${at}@b.example`);
      await Promise.all(paths.map((path) => ledger.put(copy(path, { durable: true }))));
      for (const path of paths) ledger.drop(copy(path));
    }
    await ledger.put(copy('last@b.example', { durable: true }));
    await ledger.close();
    expect((await text()).length).toBeLessThan(1.2 * 1024 * 1024);
    const after = await open();
    expect([...after.entries].map(({ forwardPath }) => forwardPath)).toEqual(['last@b.example']);
    await after.close();
  });
});
