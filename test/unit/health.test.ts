// How next hops fare: what counts, for how long, and that there is an end to how many are remembered.
import { describe, expect, it } from 'vitest';
import { NextHopHealth } from '../../src/downstream/health.ts';
import type { NextHop } from '../../src/routing/routes.ts';

const MINUTE = 60_000;
const hop = (kind: 'static' | 'mx', name: string): NextHop => ({
  key: `${kind}:${name}`,
  label: name,
  hosts: [],
});

function start(limit?: number) {
  const clock = { now: 1_000_000 };
  const health = new NextHopHealth(() => clock.now, limit);
  const at = (name: string) => health.of(hop('static', name));
  const seen = (name: string) => health.list(true).find((each) => each.name === name);
  return { clock, health, at, seen };
}

describe('a next hop', () => {
  it('has nothing to tell before its first message', () => {
    const { at, seen } = start();
    at('a');
    expect(seen('a')).toEqual({
      name: 'a',
      sessions: { active: 0, idle: 0 },
      lastOkMs: null,
      lastFailure: null,
      consecutiveFailures: 0,
      totals: { delivered: 0, refused: 0, failed: 0 },
      fiveMinutes: { delivered: 0, refused: 0, failed: 0 },
    });
  });

  it('shows failures in a row until it takes or refuses a message, and the last one after that as well', () => {
    const { clock, at, seen } = start();
    at('a').failed('connect', 'refused', clock.now);
    at('a').failed('body', 'timeout', clock.now);
    clock.now += 500;
    expect(seen('a')).toMatchObject({
      consecutiveFailures: 2,
      lastOkMs: null,
      lastFailure: { ageMs: 500, phase: 'body', cause: 'timeout' },
    });
    at('a').refused(clock.now);
    expect(seen('a')).toMatchObject({ consecutiveFailures: 0, lastOkMs: 0, lastFailure: { ageMs: 500 } });
    at('a').failed('dot', 'closed', clock.now);
    at('a').delivered(clock.now);
    expect(seen('a')).toMatchObject({
      consecutiveFailures: 0,
      totals: { delivered: 1, refused: 1, failed: 3 },
    });
  });

  it('counts the last five minutes, and all that ever was', () => {
    const { clock, at, seen } = start();
    for (let minute = 0; minute < 7; minute++) {
      for (let n = 0; n <= minute; n++) at('a').delivered(clock.now);
      at('a').failed('dot', 'closed', clock.now);
      if (minute < 6) clock.now += MINUTE;
    }
    // Those of minutes 2 to 6 are in ten slots of half a minute, the one under way included.
    expect(seen('a')).toMatchObject({
      totals: { delivered: 28, failed: 7 },
      fiveMinutes: { delivered: 3 + 4 + 5 + 6 + 7, failed: 5 },
    });
    clock.now += 4 * MINUTE;
    expect(seen('a')).toMatchObject({ fiveMinutes: { delivered: 7, failed: 1 } });
    clock.now += 60 * MINUTE;
    expect(seen('a')).toMatchObject({
      fiveMinutes: { delivered: 0, refused: 0, failed: 0 },
      totals: { delivered: 28 },
    });
  });
});

describe('the doubt about a next hop', () => {
  it('is failures in a row, and the share of what it has not taken lately', () => {
    const { clock, at } = start();
    const doubt = () => at('a').doubt(clock.now);
    expect(doubt()).toEqual({ inARow: 0, share: 0 });
    at('a').delivered(clock.now);
    at('a').refused(clock.now);
    expect(doubt()).toEqual({ inARow: 0, share: 0.5 });
    at('a').failed('dot', 'closed', clock.now);
    at('a').failed('dot', 'closed', clock.now);
    expect(doubt()).toEqual({ inARow: 2, share: 0.75 });
    clock.now += 60 * MINUTE;
    expect(doubt()).toEqual({ inARow: 2, share: 0 });
  });
});

describe('many next hops', () => {
  it('the least recently used one makes room, those with sessions last', () => {
    const { clock, health, at } = start(3);
    const names = () => health.list(true).map(({ name }) => name);
    for (const name of ['a', 'b', 'c']) {
      clock.now++;
      at(name);
    }
    at('a').active = 1;
    clock.now++;
    at('b');
    clock.now++;
    at('d');
    expect(names()).toEqual(['a', 'b', 'd']);
    for (const name of ['b', 'd']) at(name).idle = 1;
    clock.now++;
    at('a');
    clock.now++;
    at('e');
    expect(names()).toHaveLength(3);
    expect(names()).toContain('e');
    expect(names()).toContain('a');
  });

  it('stays within a hundred', () => {
    const { clock, health } = start();
    for (let n = 0; n < 1000; n++) {
      clock.now++;
      health.of(hop('mx', `mx${n}`)).active = 1;
    }
    expect(health.list(false)).toHaveLength(100);
    expect(health.list(true).at(-1)!.name).toBe('mx999');
  });

  it('names without details are numbers by kind, which nobody else gets', () => {
    const { health } = start(2);
    const [first, mx, second] = [hop('static', 'a'), hop('mx', 'm'), hop('static', 'b')];
    for (const each of [first, mx, second]) health.of(each);
    expect(health.list(false).map(({ name }) => name)).toEqual(['mx #1', 'static #2']);
    expect(health.nameOf(mx)).toBe('mx #1');
    // Forgotten, and so without a number.
    expect(health.nameOf(first)).toBe('static');
    health.of(first);
    expect(health.nameOf(first)).toBe('static #3');
  });

  it('static ones of the configuration are there before their use, and gone with it', () => {
    const { health, at } = start();
    health.configure([hop('static', 'a'), hop('static', 'b')]);
    health.of(hop('mx', 'm'));
    at('b').active = 1;
    health.configure([hop('static', 'c')]);
    expect(health.list(true).map(({ name }) => name)).toEqual(['b', 'm', 'c']);
  });
});
