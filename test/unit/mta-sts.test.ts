import { describe, expect, it } from 'vitest';
import { createMtaSts, PolicyCache } from '../../src/routing/mta-sts.ts';

const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;

function policyText(mode = 'enforce', mx = 'mx.a.example', maxAge = 604_800): string {
  return `version: STSv1\nmode: ${mode}\nmx: ${mx}\nmax_age: ${maxAge}\n`;
}

/** A domain whose record and policy can be changed; a string that begins with E fails with that code. */
function world(cache = new PolicyCache()) {
  const state = { txt: 'v=STSv1; id=1;', text: policyText(), nowMs: 1_000_000 };
  const asked: string[] = [];
  const log: Record<string, unknown>[] = [];
  const note = (line: unknown) => void log.push(line as Record<string, unknown>);
  let held: Promise<void> | null = null;
  const mtaSts = createMtaSts({
    dns: {
      async resolveTxt(name) {
        asked.push(`TXT ${name}`);
        if (state.txt.startsWith('E')) throw Object.assign(new Error('DNS'), { code: state.txt });
        return [[state.txt]];
      },
    },
    async fetch(domain) {
      asked.push(`GET ${domain}`);
      await held;
      if (state.text.startsWith('E')) throw new Error(state.text);
      return state.text;
    },
    cache,
    log: { info: note, warn: note },
    now: () => state.nowMs,
  });
  return {
    ...mtaSts,
    state,
    log,
    cache,
    /** What was asked since the last call. */
    asked: () => asked.splice(0),
    async mode(domain = 'a.example') {
      return (await mtaSts.policyFor(domain))?.mode ?? null;
    },
    hold(): () => void {
      let release = () => {};
      held = new Promise((resolve) => {
        release = resolve;
      });
      return () => {
        held = null;
        release();
      };
    },
  };
}

const BOTH = ['TXT _mta-sts.a.example', 'GET a.example'];
const ONLY_TXT = ['TXT _mta-sts.a.example'];

describe('a policy', () => {
  it('is fetched once, and the record asked for again after a minute', async () => {
    const { mode, asked, state } = world();
    expect(await mode()).toBe('enforce');
    expect(await mode('A.Example')).toBe('enforce');
    expect(asked()).toEqual(BOTH);
    state.nowMs += MINUTE_MS;
    expect(await mode()).toBe('enforce');
    expect(asked()).toEqual(ONLY_TXT);
  });

  it('is fetched once for all who ask at the same time', async () => {
    const { mode, asked } = world();
    expect(await Promise.all([mode(), mode(), mode()])).toEqual(['enforce', 'enforce', 'enforce']);
    expect(asked()).toEqual(BOTH);
  });

  it('is fetched anew when the id is another', async () => {
    const { mode, asked, state } = world();
    await mode();
    asked();
    Object.assign(state, {
      txt: 'v=STSv1; id=2;',
      text: policyText('testing'),
      nowMs: state.nowMs + MINUTE_MS,
    });
    expect(await mode()).toBe('testing');
    expect(asked()).toEqual(BOTH);
  });

  it('of mode none ends the one before', async () => {
    const { mode, state } = world();
    await mode();
    Object.assign(state, { txt: 'v=STSv1; id=2;', text: policyText('none'), nowMs: state.nowMs + MINUTE_MS });
    expect(await mode()).toBeNull();
  });

  it.each(['ENOTFOUND', 'ESERVFAIL', 'ETIMEOUT', 'v=spf1 -all'])(
    'stays in force until its max_age when the record is gone (%s)',
    async (txt) => {
      const { mode, state } = world();
      state.text = policyText('enforce', 'mx.a.example', 3_600);
      await mode();
      state.txt = txt;
      state.nowMs += 3_599_000;
      expect(await mode()).toBe('enforce');
      state.nowMs += MINUTE_MS;
      expect(await mode()).toBeNull();
    },
  );

  it('stays in force when the new one cannot be fetched, which is tried again after five minutes', async () => {
    const { mode, asked, state, log } = world();
    await mode();
    asked();
    Object.assign(state, { txt: 'v=STSv1; id=2;', text: 'ECONNREFUSED', nowMs: state.nowMs + MINUTE_MS });
    expect(await mode()).toBe('enforce');
    expect(asked()).toEqual(BOTH);
    expect(log).toEqual([
      { event: 'mta_sts_fetch_failed', domain: 'a.example', reason: 'ECONNREFUSED', cached: true },
    ]);
    for (let minute = 0; minute < 4; minute++) {
      state.nowMs += MINUTE_MS;
      await mode();
    }
    expect(asked()).toEqual([ONLY_TXT, ONLY_TXT, ONLY_TXT, ONLY_TXT].flat());
    state.nowMs += MINUTE_MS;
    state.text = policyText('testing');
    expect(await mode()).toBe('testing');
  });

  it('that cannot be fetched is none, unless its id is another one', async () => {
    const { mode, asked, state } = world();
    state.text = 'E404';
    expect(await mode()).toBeNull();
    state.nowMs += MINUTE_MS;
    expect(await mode()).toBeNull();
    expect(asked()).toEqual([...BOTH, ...ONLY_TXT]);
    Object.assign(state, { txt: 'v=STSv1; id=2;', text: policyText(), nowMs: state.nowMs + MINUTE_MS });
    expect(await mode()).toBe('enforce');
  });

  it('that is malformed is none', async () => {
    const { mode, state, log } = world();
    state.text = '<html>';
    expect(await mode()).toBeNull();
    expect(log).toMatchObject([{ reason: 'the policy is malformed', cached: false }]);
  });

  it('is fetched again in the background once a day, without anybody waiting', async () => {
    const { mode, asked, state, hold } = world();
    await mode();
    asked();
    const release = hold();
    state.nowMs += DAY_MS;
    expect(await mode()).toBe('enforce');
    expect(asked()).toEqual(BOTH);
    state.nowMs += MINUTE_MS;
    expect(await mode()).toBe('enforce');
    expect(asked()).toEqual(ONLY_TXT);
    release();
    await new Promise(setImmediate);
    state.nowMs += 604_800_000 - 2 * MINUTE_MS;
    state.txt = 'ESERVFAIL';
    expect(await mode()).toBe('enforce');
  });

  it('with max_age 0 holds until the record is asked for again', async () => {
    const { mode, asked, state } = world();
    state.text = policyText('enforce', 'mx.a.example', 0);
    expect(await mode()).toBe('enforce');
    state.nowMs += MINUTE_MS - 1;
    expect(await mode()).toBe('enforce');
    state.nowMs += 1;
    expect(await mode()).toBe('enforce');
    expect(asked()).toEqual([...BOTH, ...BOTH]);
  });

  it('outlives the one who fetched it, as at a reload', async () => {
    const before = world();
    await before.mode();
    const after = world(before.cache);
    after.state.text = 'ECONNREFUSED';
    expect(await after.mode()).toBe('enforce');
  });

  it.each(['[192.0.2.1]', '[IPv6:2001:db8::1]', 'not a domain'])('is not looked for: %s', async (domain) => {
    const { policyFor, asked } = world();
    expect(await policyFor(domain)).toBeNull();
    expect(asked()).toEqual([]);
  });

  it('under test is complained about once', async () => {
    const { policyFor, reportFailure, state, log } = world();
    state.text = policyText('testing');
    reportFailure('a.example', 'mx.a.example', 'no TLS');
    expect(log).toEqual([]);
    await policyFor('a.example');
    for (const host of ['mx.a.example', 'mx2.a.example']) reportFailure('a.example', host, 'no TLS');
    const line = { event: 'mta_sts_testing_failure', domain: 'a.example', reason: 'no TLS' };
    expect(log).toEqual([{ ...line, host: 'mx.a.example' }]);
    // Fetched again under the same id it is still the same policy; under another it isn't.
    state.nowMs += DAY_MS;
    await policyFor('a.example');
    await new Promise(setImmediate);
    reportFailure('a.example', 'mx.a.example', 'no TLS');
    expect(log).toHaveLength(1);
    Object.assign(state, { txt: 'v=STSv1; id=2;', nowMs: state.nowMs + MINUTE_MS });
    await policyFor('a.example');
    reportFailure('a.example', 'mx.a.example', 'no TLS');
    expect(log).toHaveLength(2);
  });
});

describe('the cache', () => {
  const policy = { mode: 'enforce', mx: ['mx.example'], maxAgeSeconds: 1 } as const;

  it('holds ten thousand domains, and forgets the oldest first', () => {
    const cache = new PolicyCache();
    for (let index = 0; index < 10_001; index++) cache.set(`${index}.example`, '1', policy, 0);
    expect(cache.get('0.example')).toBeNull();
    expect(cache.get('1.example')).not.toBeNull();
    expect(cache.get('10000.example')).not.toBeNull();
  });

  it('holds 16 MiB, however many hosts its policies name', () => {
    const cache = new PolicyCache();
    const large = { ...policy, mx: Array.from({ length: 100 }, (_, at) => `${at}`.padStart(253, 'm')) };
    for (let index = 0; index < 2_000; index++) cache.set(`${index}.example`, '1', large, 0);
    const left = Array.from({ length: 2_000 }, (_, index) => cache.get(`${index}.example`)).filter(Boolean);
    expect(left.length).toBeGreaterThan(600);
    expect(left.length).toBeLessThan(670);
  });
});
