import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { refusalOfData, verdict, verdictBeforeDots } from '../../src/cut-through/verdict.ts';
import { type Outcome, outcomeOf, withheldFrom } from '../../src/downstream/outcome.ts';
import { formatReply, reply } from '../../src/smtp/reply.ts';

const accepted: Outcome = { kind: 'accepted', reply: reply(250, '2.6.0', 'queued as 1') };
const rejected: Outcome = { kind: 'rejected', reply: reply(550, '5.7.1', 'no') };
const deferred: Outcome = { kind: 'deferred', reply: reply(452, '4.2.2', 'full') };
const closing: Outcome = { kind: 'deferred', reply: reply(421, '4.3.2', 'bye') };
const unknown: Outcome = { kind: 'lost', nextHop: 'mx.b.example', phase: 'dot', dotSent: true };
const withheld = withheldFrom('mx.c.example');
const gone: Outcome = { kind: 'lost', nextHop: 'mx.b.example', phase: 'body', dotSent: false };

describe('the verdict after the dots', () => {
  it.each<[string, Outcome[], number, RegExp, string]>([
    ['one accepts', [accepted], 1, /^250 2\.0\.0 queued as 1/, 'delivered'],
    ['one leg accepts for two recipients', [accepted, accepted], 1, /^250 2\.0\.0 queued as 1/, 'delivered'],
    ['two accept', [accepted, accepted], 2, /^250 2\.0\.0 (?!queued)/, 'delivered'],
    ['one rejects', [rejected], 1, /^550 5\.7\.1 no/, 'rejected'],
    ['one defers', [deferred], 1, /^452 4\.2\.2 full/, 'deferred'],
    ['one closes its channel', [closing], 1, /^451 4\.3\.2 bye/, 'deferred'],
    ['one is unknown', [unknown], 1, /^451 4\.4\.2 .*mx\.b\.example/, 'deferred'],
    ['all reject', [rejected, rejected], 2, /^550 5\.7\.1/, 'rejected'],
    ['one rejects, one defers', [rejected, deferred], 2, /^452 4\.2\.2/, 'deferred'],
    ['one rejects, one is unknown', [rejected, unknown], 2, /^451 4\.4\.2/, 'deferred'],
    ['one accepts, one rejects', [accepted, rejected], 2, /^554 5\.5\.0 .*1 of 2/, 'mixed'],
    ['one accepts, one defers', [accepted, deferred], 2, /^451 4\.5\.0 .*1 of 2/, 'mixed'],
    ['one accepts, one is unknown', [unknown, accepted], 2, /^451 4\.5\.0 .*1 of 2/, 'mixed'],
    ['one rejects, the other is withheld', [withheld, rejected], 2, /^550 5\.7\.1/, 'rejected'],
    ['one defers, the other is withheld', [withheld, deferred], 2, /^452 4\.2\.2/, 'deferred'],
    ['one is unknown, the other is withheld', [withheld, unknown], 2, /^451 4\.4\.2 .*mx\.b/, 'deferred'],
    [
      'one accepts, one rejects, one is withheld',
      [withheld, accepted, rejected],
      3,
      /^451 4\.5\.0 .*1 of 3/,
      'mixed',
    ],
    [
      'two accept, one rejects, one defers',
      [accepted, rejected, deferred, accepted],
      4,
      /^451 4\.5\.0 .*2 of 4/,
      'mixed',
    ],
  ])('%s', (_name, outcomes, legs, text, result) => {
    const decision = verdict(outcomes, legs);
    expect(formatReply(decision.reply)).toMatch(text);
    expect(decision.result).toBe(result);
  });

  it('is 250 only if all accept, 5xx only if nothing is in doubt, else 4xx', () => {
    const outcome = fc.constantFrom(accepted, rejected, deferred, closing, unknown, gone);
    fc.assert(
      fc.property(
        fc.array(outcome, { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 6 }),
        (outcomes, legs) => {
          const { code } = verdict(outcomes, legs).reply;
          const all = outcomes.every((each) => each.kind === 'accepted');
          const doubt = outcomes.some((each) => each.kind === 'deferred' || each.kind === 'lost');
          expect(Math.floor(code / 100)).toBe(all ? 2 : doubt ? 4 : 5);
          expect(code).not.toBe(421);
        },
      ),
    );
  });
});

describe('before the dots', () => {
  it('passes on the refusal of the only leg, in mid-body', () => {
    expect(verdictBeforeDots(rejected, 'mx.a.example', 1)).toMatchObject({
      reply: { code: 550 },
      result: 'rejected',
    });
  });

  it.each([rejected, deferred, gone])(
    'tells the upstream to keep the message when one of several fails',
    (failure) => {
      const decision = verdictBeforeDots(failure, 'mx.b.example', 2);
      expect(formatReply(decision.reply)).toMatch(/^451 4\.4\.2 .*mx\.b\.example/);
      expect(decision.result).toBe('deferred');
    },
  );

  it('answers DATA with a temporary refusal before a permanent one', () => {
    expect(refusalOfData([rejected, deferred]).code).toBe(452);
    expect(refusalOfData([rejected]).code).toBe(550);
    expect(refusalOfData([rejected, gone]).code).toBe(451);
  });
});

it('reads only 2xx, 4xx and 5xx as an outcome', () => {
  expect(outcomeOf(reply(250, null, 'ok'))?.kind).toBe('accepted');
  expect(outcomeOf(reply(354, null, 'go on'))).toBeNull();
  expect(outcomeOf(reply(421, null, 'bye'))?.kind).toBe('deferred');
  expect(outcomeOf(reply(554, null, 'no'))?.kind).toBe('rejected');
});
