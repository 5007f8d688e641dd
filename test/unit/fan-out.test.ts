// The order of the last bytes and the dots, with legs that do what the test says: a kernel's buffers can't be told to
// keep a rest back, so the legs here are stand-ins for the few members that the fan-out uses.
import { expect, it } from 'vitest';
import { FanOut, type FanOutDeps } from '../../src/downstream/fan-out.ts';
import type { Leg } from '../../src/downstream/leg.ts';
import { type Outcome, withheldFrom } from '../../src/downstream/outcome.ts';
import { reply } from '../../src/smtp/reply.ts';

class ScriptedLeg {
  readonly nextHop = { key: 'k', label: 'mx.example', hosts: [] };
  readonly written: string[] = [];
  readonly recipients = ['u'];
  phase: 'body' | 'dot' = 'body';
  answer: Outcome = { kind: 'accepted', reply: reply(250, null, 'ok') };
  onDot: () => Promise<void> | void = () => {};
  dots = 0;
  dropped = false;
  /** What was told of it before it was dropped, while that can still be seen. */
  readonly failures: string[] = [];
  unsentBytes = 0;
  last: Buffer | null = null;
  takeRest: () => void = () => {};
  speak: (outcome: Outcome) => void = () => {};
  readonly #early = new Promise<Outcome>((resolve) => {
    this.speak = resolve;
  });

  readonly session = {
    write: (bytes: Buffer) => this.written.push(bytes.toString()) > 0,
    cork: () => {},
    uncork: () => {},
    drained: () => this.#rest(),
    flushed: () => this.#rest(),
  };

  spokeEarly(): Promise<Outcome> {
    return this.#early;
  }

  async finish(last: Buffer | null): Promise<readonly Outcome[]> {
    this.dots++;
    this.phase = 'dot';
    this.last = last;
    await this.onDot();
    return [this.answer];
  }

  withhold(): readonly Outcome[] {
    this.drop();
    return [withheldFrom('mx.example')];
  }

  failedInBody(_: Outcome, cause?: string): void {
    this.failures.push(cause ?? 'spoke');
  }

  drop(): void {
    this.dropped = true;
    this.takeRest();
  }

  #rest(): Promise<void> {
    if (this.unsentBytes === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.takeRest = resolve;
    });
  }
}

const DEPS: FanOutDeps = {
  dataTimeoutMs: 50,
  ackTimeoutMs: 50,
  now: () => performance.now(),
  onStandstill: () => {},
};

function fanOut(count: number, deps: Partial<FanOutDeps> = {}): { legs: ScriptedLeg[]; body: FanOut } {
  const legs = Array.from({ length: count }, () => new ScriptedLeg());
  return { legs, body: new FanOut(legs as unknown as Leg[], { ...DEPS, ...deps }) };
}

it('sends no dot while one of several legs has not taken all body bytes', async () => {
  const { legs, body } = fanOut(2);
  const [quick, slow] = legs as [ScriptedLeg, ScriptedLeg];
  slow.unsentBytes = 10;
  const finished = body.finish([Buffer.from('end\r\n')]);
  await new Promise((resolve) => setImmediate(resolve));
  expect([quick.dots, slow.dots]).toEqual([0, 0]);
  expect(quick.written).toEqual(['end\r\n']);
  slow.unsentBytes = 0;
  slow.takeRest();
  expect(await finished).toHaveLength(2);
  expect([quick.dots, slow.dots]).toEqual([1, 1]);
});

it('sends no dot at all when one of several legs stalls with its last bytes', async () => {
  const { legs, body } = fanOut(2);
  legs[1]!.unsentBytes = 10;
  expect(await body.finish([Buffer.from('end\r\n')])).toBeNull();
  expect(legs.map(({ dots }) => dots)).toEqual([0, 0]);
  expect(legs.map(({ dropped }) => dropped)).toEqual([true, true]);
  expect(body.failure?.outcome).toMatchObject({ kind: 'lost', dotSent: false });
  expect(legs.map(({ failures }) => failures)).toEqual([[], ['timeout']]);
});

it('joins the last bytes and the dot in one write where there is one leg', async () => {
  const { legs, body } = fanOut(1);
  await body.finish([Buffer.from('a'), Buffer.from('b\r\n')]);
  expect(legs[0]!.last?.toString()).toBe('ab\r\n.\r\n');
  expect(legs[0]!.written).toEqual([]);
});

it('drops all when one speaks before the dots, and writes nothing more', async () => {
  const { legs, body } = fanOut(3);
  await body.write([Buffer.from('a')]);
  legs[1]!.speak({ kind: 'rejected', reply: reply(552, null, 'no') });
  await new Promise((resolve) => setImmediate(resolve));
  await body.write([Buffer.from('b')]);
  expect(await body.finish([])).toBeNull();
  expect(legs.map(({ dropped, dots, written }) => [dropped, dots, written])).toEqual(
    Array(3).fill([true, 0, ['a']]),
  );
  expect(legs.map(({ failures }) => failures)).toEqual([[], ['spoke'], []]);
});

/** The last leg first. */
const order = (legs: readonly Leg[]) => legs.toReversed();

it('in order: the next dot goes out when the one before was accepted, and answers keep the order of the legs', async () => {
  const { legs, body } = fanOut(2, { order });
  let accept = () => {};
  legs[1]!.onDot = () => new Promise((resolve) => (accept = resolve));
  legs[0]!.answer = { kind: 'deferred', reply: reply(451, null, 'later') };
  const finished = body.finish([Buffer.from('end\r\n')]);
  await new Promise((resolve) => setImmediate(resolve));
  expect(legs.map(({ dots }) => dots)).toEqual([0, 1]);
  accept();
  expect((await finished)?.map(([outcome]) => outcome?.kind)).toEqual(['deferred', 'accepted']);
});

it('in order: no dot at all while a leg has not taken all body bytes', async () => {
  const { legs, body } = fanOut(2, { order });
  legs[0]!.unsentBytes = 10;
  expect(await body.finish([Buffer.from('end\r\n')])).toBeNull();
  expect(legs.map(({ dots }) => dots)).toEqual([0, 0]);
});

it('in order: what a leg says while it waits for its dot is no answer to it', async () => {
  const { legs, body } = fanOut(3, { order });
  let accept = () => {};
  legs[2]!.onDot = () => new Promise((resolve) => (accept = resolve));
  const finished = body.finish([Buffer.from('end\r\n')]);
  await new Promise((resolve) => setImmediate(resolve));
  const early: Outcome = { kind: 'lost', nextHop: 'mx.example', phase: 'body', dotSent: false };
  legs[1]!.speak(early);
  await new Promise((resolve) => setImmediate(resolve));
  accept();
  expect(await finished).toEqual([[withheldFrom('mx.example')], [early], [legs[2]!.answer]]);
  expect(legs.map(({ dots, dropped }) => [dots, dropped])).toEqual([
    [0, true],
    [0, true],
    [1, false],
  ]);
});

it('in order: a dot for whose answer too little time is left is withheld', async () => {
  let at = 0;
  const { legs, body } = fanOut(3, { order, ackTimeoutMs: 100, now: () => at });
  const takes = (ms: number) => () => {
    at += ms;
  };
  legs[2]!.onDot = takes(40);
  legs[1]!.onDot = takes(20);
  const outcomes = await body.finish([Buffer.from('end\r\n')]);
  expect(outcomes?.map(([outcome]) => outcome?.kind)).toEqual(['lost', 'accepted', 'accepted']);
  expect(legs.map(({ dots }) => dots)).toEqual([0, 1, 1]);
});
