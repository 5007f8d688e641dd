import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Outcome } from '../../src/downstream/outcome.ts';
import { judged } from '../../src/downstream/prdr.ts';
import type { Recipient } from '../../src/smtp/envelope.ts';
import { formatReply, noDiskSpace, queued, type Reply, reply } from '../../src/smtp/reply.ts';
import { inOrder, overall, settleEach } from '../../src/spool/recipient-replies.ts';
import type { Result, Settled } from '../../src/spool/spooler.ts';
import { finalReplies } from '../../src/upstream/final-replies.ts';

const accepted: Outcome = { kind: 'accepted', reply: reply(250, '2.6.0', 'stored as 1') };
const rejected: Outcome = { kind: 'rejected', reply: reply(550, '5.7.1', 'no') };
const deferred: Outcome = { kind: 'deferred', reply: reply(452, '4.2.2', 'full') };
const closing: Outcome = { kind: 'deferred', reply: reply(421, '4.3.2', 'bye') };
const unknown: Outcome = { kind: 'lost', nextHop: 'mx.b.example', phase: 'dot', dotSent: true };
const ANY = fc.constantFrom(accepted, rejected, deferred, closing, unknown);

/** Each an object of its own, as every RCPT is. */
const resultOf = (outcome: Outcome | null): Result => ({
  recipient: { mailbox: {}, params: {} } as Recipient,
  nextHop: 'mx',
  outcome,
});
const QUEUED: Settled = { reply: queued('1'), result: 'spooled' };
const FULL: Settled = { reply: noDiskSpace(), result: 'deferred' };

const codes = (replies: readonly Reply[]) => replies.map(({ code }) => code);

describe('each recipient is told its own outcome', () => {
  it.each<[string, Outcome[], string[], RegExp, string]>([
    ['one accepts', [accepted], ['250 2.0.0 stored as 1'], /^250 2\.0\.0 stored/, 'delivered'],
    [
      'all accept in the same words',
      [accepted, accepted],
      ['250 2.0.0 s', '250 2.0.0 s'],
      /stored/,
      'delivered',
    ],
    ['one accepts, one refuses', [accepted, rejected], ['250', '550 5.7.1 no'], /^250 .*1 of 2/, 'mixed'],
    ['one refuses, one accepts', [rejected, accepted], ['550', '250'], /^250 .*1 of 2/, 'mixed'],
    ['one accepts, one is unknown', [unknown, accepted], ['451 4.4.2', '250'], /^250 .*1 of 2/, 'mixed'],
    ['all refuse', [rejected, rejected], ['550', '550'], /^550 5\.7\.1 no/, 'rejected'],
    ['one refuses, one defers', [rejected, deferred], ['550', '452'], /^452 4\.2\.2/, 'deferred'],
    ['one closes its channel', [closing], ['451 4.3.2 bye'], /^451 4\.3\.2/, 'deferred'],
    ['all are unknown', [unknown, unknown], ['451', '451'], /^451 4\.4\.2/, 'deferred'],
  ])('%s', async (_name, outcomes, texts, whole, result) => {
    const results = outcomes.map(resultOf);
    const settled = await settleEach(results, null);
    const { each } = inOrder(
      settled,
      results.map(({ recipient }) => recipient),
    );
    expect(each!.map((one, at) => formatReply(one).slice(0, texts[at]!.length))).toEqual(texts);
    expect(formatReply(settled.reply)).toMatch(whole);
    expect(settled.result).toBe(result);
  });

  it('is 250 only for those who accept, 5xx only for those who refuse for good', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(ANY, { minLength: 1, maxLength: 6 }), async (outcomes) => {
        const results = outcomes.map(resultOf);
        const settled = await settleEach(results, null);
        const { each, reply: whole } = inOrder(
          settled,
          results.map(({ recipient }) => recipient),
        );
        const classes = { accepted: 2, rejected: 5, deferred: 4, lost: 4 };
        expect(codes(each!).map((code) => Math.floor(code / 100))).toEqual(
          outcomes.map(({ kind }) => classes[kind]),
        );
        expect(codes(each!)).not.toContain(421);
        // PRDR's last reply takes back every 250 if it is none, and every 4xx if it is a 5xx.
        const kinds = new Set(outcomes.map(({ kind }) => classes[kind]));
        expect(Math.floor(whole.code / 100)).toBe(kinds.has(2) ? 2 : kinds.has(4) ? 4 : 5);
      }),
    );
  });

  it('is the one reply to the message for everybody where they have none of their own', () => {
    const recipients = [resultOf(null), resultOf(null)].map(({ recipient }) => recipient);
    expect(codes(inOrder({ reply: noDiskSpace() }, recipients).each!)).toEqual([452, 452]);
  });
});

describe('with a spool behind', () => {
  async function settle(outcomes: readonly (Outcome | null)[], how: Settled) {
    const results = outcomes.map(resultOf);
    const kept: (Outcome | null)[] = [];
    const settled = await settleEach(results, async (others) => {
      kept.push(...others.map(({ outcome }) => outcome));
      return how;
    });
    return { kept, codes: codes(results.map(({ recipient }) => settled.each.get(recipient)!)), settled };
  }

  it('who refused is told so, and not given to it', async () => {
    const { kept, codes, settled } = await settle([rejected, null, accepted, deferred], QUEUED);
    expect(kept).toEqual([null, accepted, deferred]);
    expect(codes).toEqual([550, 250, 250, 250]);
    expect(settled.result).toBe('spooled');
  });

  it('who accepted has it, though the spool fails for the others', async () => {
    const { codes, settled } = await settle([deferred, accepted, unknown], FULL);
    expect(codes).toEqual([452, 250, 452]);
    expect(settled.result).toBe('mixed');
  });

  it('it gets nothing when all refuse', async () => {
    const { kept, codes, settled } = await settle([rejected, rejected], QUEUED);
    expect([kept, codes, settled.result]).toEqual([[], [550, 550], 'rejected']);
  });
});

it.each<[string, number[], number, string]>([
  ['all', [250, 250], 250, 'delivered'],
  ['some', [451, 250, 550], 250, 'mixed'],
  ['none, one for now', [550, 451], 451, 'deferred'],
  ['none, for good', [550, 554], 550, 'rejected'],
])('as a whole, %s: %j is %i', (_name, each, code, result) => {
  const whole = overall(each.map((one) => reply(one, null, `${one}`)));
  expect([whole.reply.code, whole.result]).toEqual([code, result]);
});

it.each<[string, number[] | null, boolean, number[]]>([
  ['SMTP', null, false, [299]],
  ['LMTP', [250, 451, 250], true, [250, 451, 250]],
  ['LMTP with one recipient', [451], true, [451]],
  ['PRDR', [250, 550], false, [353, 250, 550, 299]],
  ['PRDR with one recipient', [250], false, [299]],
])('%s: %j', (_name, each, lmtp, expected) => {
  const answer = { reply: reply(299, null, ''), each: each?.map((code) => reply(code, null, '')) ?? null };
  expect(codes(finalReplies(answer, lmtp))).toEqual(expected);
});

describe("a next hop's PRDR", () => {
  const no: Outcome = { kind: 'rejected', reply: reply(554, null, 'all of it') };
  const later: Outcome = { kind: 'deferred', reply: reply(450, null, 'all of it') };
  it.each<[string, Outcome[], Outcome, Outcome[]]>([
    ['a 2xx confirms each', [accepted, rejected, deferred], accepted, [accepted, rejected, deferred]],
    ['a 5xx is for all', [accepted, rejected, deferred], no, [no, no, no]],
    [
      'a 4xx takes back what was accepted',
      [accepted, rejected, deferred],
      later,
      [later, rejected, deferred],
    ],
    [
      'without an end nothing is known of it',
      [accepted, rejected, deferred],
      unknown,
      [unknown, rejected, deferred],
    ],
    ['one that is unknown stays so', [unknown, accepted], accepted, [unknown, accepted]],
  ])('%s', (_name, each, last, expected) => expect(judged(each, last)).toEqual(expected));
});
