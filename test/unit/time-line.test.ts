// The record of a transaction's events: its words, its bounds, and that one array is used for many.
import { describe, expect, it } from 'vitest';
import { brief, inFull, RecentTimeLines, type TimeLine } from '../../src/time-line.ts';

const CLOCKS = { now: () => 1_100, wall: () => 1_700_000_000_000 };

function begin(recent: RecentTimeLines, id: string, recipients: readonly string[] = []): TimeLine {
  return recent.begin({
    id,
    client: { address: '192.0.2.1', helo: 'client.example' },
    sender: { mailbox: { address: 's@src.example' } },
    recipients: recipients.map((address) => ({ address })),
    began: 1_000,
  });
}

describe('describe()', () => {
  const recent = new RecentTimeLines(4, CLOCKS);

  it('has the events of both sides in the order of their times, since MAIL', () => {
    const line = begin(recent, 'a', ['u@a.example']);
    const leg = line.addLeg('smtp://192.0.2.2:25');
    line.leg(leg, 'data', 1_003.5);
    line.upstream('data', 1_003.25);
    expect(recent.describe(line).events).toEqual([
      { ms: 0, leg: null, event: 'mail' },
      { ms: 3.25, leg: null, event: 'data' },
      { ms: 3.5, leg: 0, event: 'data' },
    ]);
  });

  it('has the wall time of MAIL, and whether it runs still', () => {
    const line = begin(recent, 'a');
    expect(recent.describe(line)).toMatchObject({
      began: new Date(1_700_000_000_000 - 100).toISOString(),
      running: true,
      result: null,
      ms: 100,
    });
    line.end('delivered', 1_020);
    expect(recent.describe(line)).toMatchObject({ running: false, result: 'delivered', ms: 20 });
  });

  it('gives every reply of a next hop to the recipient that it is about', () => {
    const line = begin(recent, 'a');
    const leg = line.addLeg('lmtp://192.0.2.2:24');
    for (const each of ['a@x', 'b@x', 'c@x']) line.leg(leg, 'rcpt', 1_001, each);
    line.leg(leg, 'rcpt-reply', 1_002, 250);
    line.leg(leg, 'rcpt-reply', 1_002, '550 5.1.1 no b');
    line.leg(leg, 'rcpt-reply', 1_002, 250);
    line.leg(leg, 'reply', 1_003, '250 2.0.0 for a');
    line.leg(leg, 'reply', 1_003, '452 4.2.2 full');
    const replies = recent.describe(line).events.filter(({ event }) => event.endsWith('reply'));
    expect(replies.map(({ recipient, code }) => [recipient, code])).toEqual([
      ['a@x', 250],
      ['b@x', 550],
      ['c@x', 250],
      ['a@x', 250],
      ['c@x', 452],
    ]);
  });

  it('gives those of PRDR to each recipient between the 353 and the reply to the whole', () => {
    const line = begin(recent, 'a');
    const leg = line.addLeg('smtp://192.0.2.2:25');
    for (const each of ['a@x', 'b@x']) line.leg(leg, 'rcpt', 1_001, each);
    for (const _ of 'ab') line.leg(leg, 'rcpt-reply', 1_002, 250);
    for (const each of ['353 go on', '250 2.0.0 a', '550 5.7.1 b', '250 2.0.0 all'])
      line.leg(leg, 'reply', 1_003, each);
    const replies = recent.describe(line).events.filter(({ event }) => event === 'reply');
    expect(replies.map(({ recipient, code }) => [recipient, code])).toEqual([
      [undefined, 353],
      ['a@x', 250],
      ['b@x', 550],
      [undefined, 250],
    ]);
  });

  it('begins anew with the RCPTs of a leg that had to connect again', () => {
    const line = begin(recent, 'a');
    const leg = line.addLeg('smtp://192.0.2.2:25');
    line.leg(leg, 'rcpt', 1_001, 'a@x');
    line.leg(leg, 'lost', 1_001, 'connection closed');
    line.leg(leg, 'connect', 1_002);
    line.leg(leg, 'rcpt', 1_003, 'a@x');
    line.leg(leg, 'rcpt', 1_003, 'b@x');
    line.leg(leg, 'rcpt-reply', 1_004, 250);
    line.leg(leg, 'rcpt-reply', 1_004, 250);
    const replies = recent.describe(line).events.filter(({ event }) => event === 'rcpt-reply');
    expect(replies.map(({ recipient }) => recipient)).toEqual(['a@x', 'b@x']);
  });
});

describe('replies', () => {
  it('are kept as their code where they say yes, else with a text of bounded length', () => {
    expect(brief({ code: 250, enhanced: '2.1.5', lines: ['ok'] })).toBe(250);
    expect(brief({ code: 550, enhanced: '5.1.1', lines: ['no', 'such user'] })).toBe(
      '550 5.1.1 no such user',
    );
    expect(inFull({ code: 250, enhanced: null, lines: ['queued as 4XyZ'] })).toBe('250 queued as 4XyZ');
    expect(inFull({ code: 554, enhanced: null, lines: ['x'.repeat(5_000)] }).length).toBeLessThan(210);
  });
});

describe('bounds', () => {
  it('keeps 64 events at most, counts the others, and has room for how it ended whatever came before', () => {
    const recent = new RecentTimeLines(4, CLOCKS);
    const line = begin(recent, 'a', Array(100).fill('u@x'));
    const legs = Array.from({ length: 100 }, (_, nth) => line.addLeg(`smtp://192.0.2.2:${nth + 1}`));
    for (let nth = 0; nth < 100; nth++) line.recipient('rcpt', nth, 1_001);
    for (const leg of legs) line.leg(leg, 'rcpt', 1_002, 'u@x');
    for (const leg of legs) line.leg(leg, 'data', 1_003);
    line.upstream('end-of-data', 1_004, 5);
    line.upstream('reply', 1_005, 250);
    const { events, omitted, legs: named } = recent.describe(line);
    // MAIL is not counted: it is there by itself.
    expect(events).toHaveLength(61);
    expect(events.length - 1 + omitted).toBe(302);
    expect(events.filter(({ event }) => event === 'rcpt')).toHaveLength(32);
    expect(events.at(-1)).toMatchObject({ event: 'reply', code: 250 });
    expect(named).toHaveLength(32);
  });

  it('forgets the oldest, whose array serves another, and which takes nothing any more', () => {
    const recent = new RecentTimeLines(2, CLOCKS);
    const [first, second, third] = ['1', '2', '3'].map((id) => begin(recent, id));
    const leg = first!.addLeg('smtp://192.0.2.2:25');
    first!.leg(leg, 'connect', 1_001);
    for (const each of [first!, second!, third!]) recent.keep(each);
    expect(recent.find('1')).toBeUndefined();
    expect(recent.find('2')).toBe(second);
    const fourth = begin(recent, '4');
    fourth.upstream('data', 1_003);
    // A leg that is late: with nothing written down yet, and with something.
    first!.leg(leg, 'lost', 1_004, 'late');
    first!.leg(leg, 'lost', 1_004, 'late');
    expect(recent.describe(fourth).events.map(({ event }) => event)).toEqual(['mail', 'data']);
  });

  it('begins anew with another size, and keeps nothing with none', () => {
    const recent = new RecentTimeLines(2, CLOCKS);
    recent.keep(begin(recent, '1'));
    recent.resize(2);
    expect(recent.find('1')?.id).toBe('1');
    recent.resize(0);
    recent.keep(begin(recent, '2'));
    recent.resize(1);
    recent.keep(begin(recent, '3'));
    expect(['1', '2', '3'].map((id) => recent.find(id)?.id)).toEqual([undefined, undefined, '3']);
  });
});
