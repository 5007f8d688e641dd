import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseStsPolicy, parseStsRecord, policyNames } from '../../src/routing/mta-sts-policy.ts';

describe('the TXT record', () => {
  it.each<[records: string[][], id: string | null]>([
    [[['v=STSv1; id=20160831085700Z;']], '20160831085700Z'],
    [[['v=STSv1;id=1']], '1'],
    [[['v=STSv1 ; id=abc ;']], 'abc'],
    [[['v=STSv1; id', '=ab', 'c']], 'abc'],
    [[['v=STSv1; ext=1; id=abc; more=x:y']], 'abc'],
    [[['v=STSv1; id=first; id=second']], 'first'],
    [[['v=spf1 -all'], ['v=STSv1; id=1;']], '1'],
    [[['v=STSv1x; id=2;'], ['v=STSv1; id=1;']], '1'],
    [[], null],
    [[['v=spf1 -all']], null],
    [[['v=STSv1; id=1;'], ['v=STSv1; id=1;']], null],
    [[['v=stsv1; id=1;']], null],
    [[['id=1; v=STSv1;']], null],
    [[['v=STSv1']], null],
    [[['v=STSv1;']], null],
    [[['v=STSv1; id=;']], null],
    [[['v=STSv1; id=a-b;']], null],
    [[[`v=STSv1; id=${'a'.repeat(33)};`]], null],
    [[['v=STSv1; id=1;; x=y']], null],
    [[['v=STSv1; id=1; nonsense']], null],
  ])('%j has the id %s', (records, id) => {
    expect(parseStsRecord(records)).toBe(id);
  });
});

const POLICY =
  'version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmax_age: 604800\r\n';

describe('the policy file', () => {
  const parsed = { mode: 'enforce', mx: ['mail.example.com', '*.example.net'], maxAgeSeconds: 604_800 };

  it.each([
    ['with CRLF', POLICY],
    ['with LF, and none at the end', POLICY.replaceAll('\r\n', '\n').trimEnd()],
    [
      'in another order, without white space',
      POLICY.trim()
        .split('\r\n')
        .toReversed()
        .join('\n')
        .replaceAll(': ', ':')
        .replace('mx:*.example.net\nmx:mail.example.com', 'mx:mail.example.com\nmx:*.example.net'),
    ],
    ['with fields of later versions', `${POLICY}future: yes\r\n`],
    ['with white space and blank lines', POLICY.replaceAll('\r\n', ' \t\r\n\r\n')],
    ['with what is there twice', `${POLICY}mode: none\r\nmax_age: 1\r\nversion: STSv2\r\n`],
    ['in upper case and U-labels', POLICY.replace('mail.example.com', 'MAIL.Example.com.')],
  ])('%s', (_, text) => {
    expect(parseStsPolicy(text)).toEqual(parsed);
  });

  it('of mode none needs no hosts', () => {
    const text = 'version: STSv1\nmode: none\nmax_age: 86400\n';
    expect(parseStsPolicy(text)).toEqual({ mode: 'none', mx: [], maxAgeSeconds: 86_400 });
  });

  it('lives a year at most', () => {
    expect(parseStsPolicy(POLICY.replace('604800', '9999999999'))?.maxAgeSeconds).toBe(31_557_600);
  });

  it.each([
    ['', ''],
    ['an HTML page', '<!DOCTYPE html>\n<html>'],
    ['no version', POLICY.replace(/version.*\r\n/, '')],
    ['another version', POLICY.replace('STSv1', 'STSv2')],
    ['no mode', POLICY.replace(/mode.*\r\n/, '')],
    ['an unknown mode', POLICY.replace('enforce', 'Enforce')],
    ['no max_age', POLICY.replace(/max_age.*\r\n/, '')],
    ['a negative max_age', POLICY.replace('604800', '-1')],
    ['a long max_age', POLICY.replace('604800', '60480000000')],
    ['no hosts', POLICY.replaceAll(/mx:.*\r\n/g, '')],
    ['a host that is none', POLICY.replace('mail.example.com', 'mail..example.com')],
    ['a wildcard in the middle', POLICY.replace('*.example.net', 'mx.*.example.net')],
    ['a wildcard in a part', POLICY.replace('*.example.net', 'mx*.example.net')],
    ['a bare wildcard', POLICY.replace('*.example.net', '*')],
    ['an address', POLICY.replace('mail.example.com', '192.0.2.1')],
    ['a line that is no field', `${POLICY}nonsense\n`],
    ['too many hosts', POLICY + 'mx: a.example\n'.repeat(100)],
  ])('is none with %s', (_, text) => {
    expect(parseStsPolicy(text)).toBeNull();
  });

  it('of any text never throws', () => {
    const line = fc.oneof(fc.string(), fc.constantFrom(...POLICY.split('\r\n')));
    fc.assert(
      fc.property(fc.array(line), (lines) => {
        const policy = parseStsPolicy(lines.join('\n'));
        return policy === null || policy.maxAgeSeconds <= 31_557_600;
      }),
    );
  });
});

describe('a policy names', () => {
  const policy = parseStsPolicy(POLICY)!;
  it.each([
    ['mail.example.com', true],
    ['mx1.example.net', true],
    ['example.net', false],
    ['a.b.example.net', false],
    ['example.com', false],
    ['x.mail.example.com', false],
    ['mail.example.com.evil.test', false],
    ['evilexample.net', false],
    ['localhost', false],
  ])('%s: %s', (host, named) => {
    expect(policyNames(policy, host)).toBe(named);
  });
});
