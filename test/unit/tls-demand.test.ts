import { describe, expect, it } from 'vitest';
import { createDane, type DaneResult, type TlsaRecord } from '../../src/routing/dane.ts';
import type { StsPolicy } from '../../src/routing/mta-sts-policy.ts';
import type { Candidate } from '../../src/routing/mx.ts';
import { applyPolicies, type Policies } from '../../src/routing/tls-demand.ts';

const RECORD: TlsaRecord = { usage: 3, selector: 1, matchingType: 1, data: Buffer.alloc(32) };

function candidate(host: string): Candidate {
  return { host, address: '192.0.2.1', preference: 10, secure: true, alias: null };
}

const USABLE: DaneResult = { kind: 'records', base: 'mx1.example', records: [RECORD] };
const UNUSABLE: DaneResult = { kind: 'records', base: 'mx1.example', records: [] };
const FAILED: DaneResult = { kind: 'failed', reason: 'TLSA mx1.example: SERVFAIL' };
const ENFORCE: StsPolicy = { mode: 'enforce', mx: ['mx2.example'], maxAgeSeconds: 1 };
const ENFORCE_ALL: StsPolicy = { ...ENFORCE, mx: ['*.example'] };
const TESTING: StsPolicy = { ...ENFORCE, mode: 'testing' };

/** `tls demand` of each host, with TLSA records of the first; or the reason why none is left. */
function applied(
  policies: Partial<Omit<Policies, 'dane'>>,
  dane: DaneResult = { kind: 'none' },
  hosts = ['mx1.example', 'mx2.example'],
) {
  const found = applyPolicies(hosts.map(candidate), {
    ...{ domain: 'a.example', tls: 'opportunistic', sts: null },
    ...policies,
    dane: new Map([['mx1.example', dane]]),
  });
  if (found.kind === 'policy') return found.reason;
  return found.exchangers.map(({ host, tls, demand }) => `${host} ${tls} ${demand?.by ?? '-'}`);
}

describe('DANE and MTA-STS', () => {
  it.each<[string, Partial<Omit<Policies, 'dane'>>, DaneResult, string[]]>([
    ['neither', {}, { kind: 'none' }, ['mx1.example opportunistic -', 'mx2.example opportunistic -']],
    ['DANE for one host', {}, USABLE, ['mx1.example require dane', 'mx2.example opportunistic -']],
    [
      'DANE where nothing was to be used',
      { tls: 'off' },
      USABLE,
      ['mx1.example require dane', 'mx2.example off -'],
    ],
    [
      'DANE is enough for verify',
      { tls: 'verify' },
      USABLE,
      ['mx1.example require dane', 'mx2.example verify -'],
    ],
    [
      'DANE that cannot be used encrypts',
      {},
      UNUSABLE,
      ['mx1.example require dane', 'mx2.example opportunistic -'],
    ],
    [
      '… and lowers nothing',
      { tls: 'verify' },
      UNUSABLE,
      ['mx1.example verify dane', 'mx2.example verify -'],
    ],
    [
      '… nor MTA-STS',
      { sts: ENFORCE_ALL },
      UNUSABLE,
      ['mx1.example verify mta-sts', 'mx2.example verify mta-sts'],
    ],
    [
      '… nor is lowered by it',
      { sts: TESTING },
      UNUSABLE,
      ['mx1.example require mta-sts', 'mx2.example opportunistic mta-sts'],
    ],
    ['DANE that failed leaves the host out', {}, FAILED, ['mx2.example opportunistic -']],
    ['… whatever MTA-STS says', { sts: ENFORCE_ALL }, FAILED, ['mx2.example verify mta-sts']],
    [
      'MTA-STS leaves out what it does not name',
      { sts: ENFORCE },
      { kind: 'none' },
      ['mx2.example verify mta-sts'],
    ],
    [
      '… but not what DANE vouches for',
      { sts: ENFORCE },
      USABLE,
      ['mx1.example require dane', 'mx2.example verify mta-sts'],
    ],
  ])('%s', (_, policies, dane, expected) => {
    expect(applied(policies, dane)).toEqual(expected);
  });

  it('that leave no host give the reason', () => {
    expect(applied({}, FAILED, ['mx1.example'])).toBe('TLSA mx1.example: SERVFAIL');
    expect(applied({ sts: ENFORCE }, { kind: 'none' }, ['mx1.example'])).toContain('a.example names none');
  });

  it('DANE sends the name that its records belong to, and verifies that or the domain', () => {
    const dane = new Map([['mx1.example', { ...USABLE, base: 'real.example' }]]);
    const found = applyPolicies([candidate('mx1.example')], {
      domain: 'a.example',
      tls: 'off',
      sts: null,
      dane,
    });
    expect(found).toMatchObject({
      exchangers: [{ sni: 'real.example', demand: { names: ['real.example', 'a.example'] } }],
    });
  });
});

describe('the TLSA records of a host', () => {
  /** By name; a string is a code that the query fails with. */
  function dane(zone: Record<string, { secure: boolean; records: TlsaRecord[] } | string>) {
    const asked: string[] = [];
    const clock = { ms: 0 };
    const { lookUp } = createDane({
      port: 25,
      now: () => clock.ms,
      dns: {
        async resolveTlsa(name) {
          asked.push(name);
          const found = zone[name] ?? 'ENOTFOUND';
          if (typeof found === 'string') throw Object.assign(new Error('DNS'), { code: found });
          return found;
        },
      },
    });
    return { lookUp, asked, clock, zone };
  }
  const AT = '_25._tcp.mx.example';

  it('are those that can be used, if DNSSEC has proved them', async () => {
    const bad: Partial<TlsaRecord>[] = [
      { usage: 0 },
      { usage: 1 },
      { usage: 255 },
      { selector: 2 },
      { matchingType: 3 },
      { data: Buffer.alloc(31) },
      { matchingType: 2 },
      { matchingType: 0, data: Buffer.alloc(0) },
    ];
    const records = [...bad.map((each) => ({ ...RECORD, ...each })), RECORD];
    const { lookUp } = dane({ [AT]: { secure: true, records } });
    expect(await lookUp('mx.example', null)).toEqual({
      kind: 'records',
      base: 'mx.example',
      records: [RECORD],
    });
  });

  it.each<[string, { secure: boolean; records: TlsaRecord[] } | string, DaneResult]>([
    ['are none when they are not proved', { secure: false, records: [RECORD] }, { kind: 'none' }],
    ['are none when there is no such name', 'ENOTFOUND', { kind: 'none' }],
    ['are none when there is no such record', 'ENODATA', { kind: 'none' }],
    [
      'are unknown when the zone is bogus',
      'ESERVFAIL',
      { kind: 'failed', reason: 'TLSA mx.example: SERVFAIL' },
    ],
    ['are unknown when nobody answers', 'ETIMEOUT', { kind: 'failed', reason: 'TLSA mx.example: TIMEOUT' }],
  ])('%s', async (_, found, result) => {
    expect(await dane({ [AT]: found }).lookUp('mx.example', null)).toEqual(result);
  });

  it('are asked for where an alias leads, then at the name itself', async () => {
    const { lookUp, asked } = dane({ [AT]: { secure: true, records: [RECORD] } });
    expect(await lookUp('mx.example', 'real.example')).toMatchObject({ base: 'mx.example' });
    expect(asked).toEqual(['_25._tcp.real.example', AT]);
    const failing = dane({ [AT]: { secure: true, records: [RECORD] }, '_25._tcp.real.example': 'ESERVFAIL' });
    expect(await failing.lookUp('mx.example', 'real.example')).toMatchObject({ kind: 'failed' });
  });

  it('are remembered for a minute, a failure for five seconds, and asked for once at a time', async () => {
    const { lookUp, asked, clock, zone } = dane({ [AT]: 'ESERVFAIL' });
    await Promise.all([lookUp('mx.example', null), lookUp('mx.example', null)]);
    expect(asked).toHaveLength(1);
    clock.ms = 4_999;
    await lookUp('mx.example', null);
    expect(asked).toHaveLength(1);
    zone[AT] = { secure: true, records: [RECORD] };
    clock.ms = 5_000;
    expect(await lookUp('mx.example', null)).toMatchObject({ kind: 'records' });
    clock.ms += 59_999;
    await lookUp('mx.example', null);
    expect(asked).toHaveLength(2);
  });
});
