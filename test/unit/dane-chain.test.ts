import { createHash, X509Certificate } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { daneProblem } from '../../src/downstream/dane.ts';
import type { TlsaRecord } from '../../src/routing/dane.ts';
import { type Issued, issue, issueAuthority } from '../support/certificates.ts';

const root = issueAuthority('root');
const between = issueAuthority('between', root);
const leaf = issue({ name: 'leaf', for: ['mx.example'], issuer: between });
const stranger = issueAuthority('stranger');

const x509 = (...certificates: Issued[]) => certificates.map(({ cert }) => new X509Certificate(cert));

function record(usage: number, selector: number, matchingType: number, { cert }: Issued): TlsaRecord {
  const certificate = new X509Certificate(cert);
  const selected =
    selector === 0
      ? certificate.raw
      : (certificate.publicKey.export({ type: 'spki', format: 'der' }) as Buffer);
  const data =
    matchingType === 0
      ? selected
      : createHash(matchingType === 1 ? 'sha256' : 'sha512')
          .update(selected)
          .digest();
  return { usage, selector, matchingType, data };
}

const EVERY_FORM = [0, 1].flatMap((selector) =>
  [0, 1, 2].map((matchingType) => [selector, matchingType] as const),
);
const problem = (chain: Issued[], records: TlsaRecord[], names = ['mx.example']) =>
  daneProblem(x509(...chain), records, names, Date.now());

const NOT_IN_DNS = 'its certificate is not the one in DNS';

describe('DANE-EE', () => {
  it.each(EVERY_FORM)(
    'is the certificate of the server (selector %i, matching type %i)',
    (selector, matching) => {
      expect(problem([leaf], [record(3, selector, matching, leaf)])).toBeNull();
      expect(problem([leaf], [record(3, selector, matching, stranger)])).toBe(NOT_IN_DNS);
    },
  );

  it('is neither about names nor about dates', () => {
    const old = issue({ name: 'old', for: ['other.example'], from: -9, until: -1 });
    expect(problem([old], [record(3, 1, 1, old)])).toBeNull();
    expect(problem([leaf], [record(3, 1, 1, leaf)], ['other.example'])).toBeNull();
  });

  it('is not an issuer', () => {
    expect(problem([leaf, between], [record(3, 1, 1, between)])).toBe(NOT_IN_DNS);
  });

  it('may be one of several records', () => {
    const records = [record(3, 1, 1, stranger), record(2, 0, 1, stranger), record(3, 1, 2, leaf)];
    expect(problem([leaf], records)).toBeNull();
  });
});

describe('DANE-TA', () => {
  it.each(EVERY_FORM)('is an issuer in the chain (selector %i, matching type %i)', (selector, matching) => {
    for (const anchor of [between, root])
      expect(problem([leaf, between, root], [record(2, selector, matching, anchor)])).toBeNull();
    expect(problem([leaf, between, root], [record(2, selector, matching, stranger)])).toBe(NOT_IN_DNS);
  });

  it.each([0, 1])('may be left out of the chain when DNS has it in full (selector %i)', (selector) => {
    expect(problem([leaf, between], [record(2, selector, 0, root)])).toBeNull();
    expect(problem([leaf], [record(2, selector, 0, between)])).toBeNull();
    expect(problem([leaf], [record(2, selector, 0, stranger)])).toBe(NOT_IN_DNS);
  });

  it('must be in the chain when DNS has its digest alone', () => {
    expect(problem([leaf, between], [record(2, 0, 1, root)])).toBe(NOT_IN_DNS);
  });

  it('may stand anywhere behind the certificate of the server', () => {
    expect(problem([leaf, stranger, root, between], [record(2, 0, 1, root)])).toBeNull();
  });

  it('has to have signed, not only to be there, nor to have the same name', () => {
    const namesake = issueAuthority('between');
    expect(problem([leaf, stranger], [record(2, 0, 1, stranger)])).toBe(NOT_IN_DNS);
    expect(problem([leaf, namesake], [record(2, 0, 1, namesake)])).toBe(NOT_IN_DNS);
    expect(problem([leaf], [record(2, 1, 0, namesake)])).toBe(NOT_IN_DNS);
  });

  it('has to be an authority', () => {
    const none = issue({ name: 'none', for: ['mx.example'], issuer: root });
    const below = issue({ name: 'below', for: ['mx.example'], issuer: none });
    expect(problem([below, none, root], [record(2, 0, 1, root)])).toBe(NOT_IN_DNS);
    expect(problem([below, none], [record(2, 0, 1, none)])).toBe(NOT_IN_DNS);
    expect(problem([below], [record(2, 0, 0, none)])).toBe(NOT_IN_DNS);
  });

  it('is not the certificate of the server itself', () => {
    expect(problem([leaf, between], [record(2, 1, 1, leaf)])).toBe(NOT_IN_DNS);
    const own = issueAuthority('own');
    expect(problem([own], [record(2, 1, 1, own)])).toBe(NOT_IN_DNS);
  });

  it('asks for one of the names', () => {
    const records = [record(2, 0, 1, root)];
    const chain = [leaf, between, root];
    expect(problem(chain, records, ['alias.example', 'mx.example'])).toBeNull();
    expect(problem(chain, records, ['other.example'])).toBe('its certificate is for another name');
    expect(problem(chain, records, [])).toBe('its certificate is for another name');
  });

  it('asks for dates that hold, from the server up to the anchor', () => {
    const old = issue({ name: 'old', for: ['mx.example'], issuer: between, from: -9, until: -1 });
    const early = issue({ name: 'early', for: ['mx.example'], issuer: between, from: 1 });
    const oldBetween = issue({ name: 'between', issuer: root, isAuthority: true, from: -9, until: -1 });
    const below = issue({ name: 'below', for: ['mx.example'], issuer: oldBetween });
    const records = [record(2, 0, 1, root)];
    expect(problem([old, between, root], records)).toBe(NOT_IN_DNS);
    expect(problem([early, between, root], records)).toBe(NOT_IN_DNS);
    expect(problem([below, oldBetween, root], records)).toBe(NOT_IN_DNS);
    expect(problem([below, oldBetween, root], [record(2, 0, 1, oldBetween)])).toBe(NOT_IN_DNS);
    expect(problem([below], [record(2, 0, 0, oldBetween)])).toBe(NOT_IN_DNS);
  });

  it('ends with a chain that goes round', () => {
    expect(problem([leaf, between, root, root, between], [record(2, 0, 1, stranger)])).toBe(NOT_IN_DNS);
  });

  it('is not there when the data are nonsense', () => {
    for (const selector of [0, 1])
      expect(problem([leaf], [{ usage: 2, selector, matchingType: 0, data: Buffer.from('x') }])).toBe(
        NOT_IN_DNS,
      );
  });
});

it('no certificate is no match', () => {
  expect(problem([], [record(3, 1, 1, leaf)])).toBe('it has no certificate');
});
