import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { checkCertificate, readAuthorities } from '../../src/certificate.ts';
import { parseConfig } from '../../src/config.ts';

// Made for these tests with `openssl req -x509 -newkey ec`; valid from 2026-11-24 to 2126-10-31.
const CERT = `-----BEGIN CERTIFICATE-----
MIIBgDCCASegAwIBAgIUV8Ins3O1Aa3oE+aPc586kdQ+3vMwCgYIKoZIzj0EAwIw
FTETMBEGA1UEAwwKbXguZXhhbXBsZTAgFw0yNjExMjQxMzE4NDJaGA8yMTI2MTAz
MTEzMTg0MlowFTETMBEGA1UEAwwKbXguZXhhbXBsZTBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABNvi/yyzTJSoOXZ73YjGY5tF7nYnr2fkIViIQMr5AE3J3KU3w94n
W5eBB5BDzwCn8CR3SooYYtJ278ZpA2CdMqujUzBRMB0GA1UdDgQWBBRbwT7cPmh/
l+SDAbPrbpQyypmHCTAfBgNVHSMEGDAWgBRbwT7cPmh/l+SDAbPrbpQyypmHCTAP
BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0cAMEQCIGvGUNrXys+b5JekcAKI
q3AL1dFQ6rRlWOJS/IOy0cGyAiBKz0/KBqmxba9NvAo0XqN0H5IwyBnVNHGimGCA
A9l+OQ==
-----END CERTIFICATE-----
`;
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGY8NQdCbE0ERgreF
IgQRm6+FKlLY2f5ZFTIkYKTXCy2hRANCAATb4v8ss0yUqDl2e92IxmObRe52J69n
5CFYiEDK+QBNydylN8PeJ1uXgQeQQ88Ap/Akd0qKGGLSdu/GaQNgnTKr
-----END PRIVATE KEY-----
`;
const OTHER_KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQsOLrioyRWRboi/8
QHH3h7JArK8OYDdet3E6ZNiaI+GhRANCAATjGKFhsN3lAePNZ5d830JlhDtNf4Cz
E27e2j0sMn2/hII49zlcz/BrSuZqYrQ+wZjK9i5gKf8ARQSPCn1pqEOy
-----END PRIVATE KEY-----
`;
const NOW = Date.parse('2030-01-01');

let directory: string;
const at = (name: string) => path.join(directory, name);

beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'cutthrough-certificate-'));
  const files = {
    'a.crt': CERT,
    'a.key': KEY,
    'b.key': OTHER_KEY,
    text: 'no PEM',
    bundle: `a comment\n${CERT}\n${CERT}`,
    broken: CERT.replace('MIIB', 'MIIA'),
  };
  for (const [name, content] of Object.entries(files)) writeFileSync(at(name), content);
});
afterAll(() => rmSync(directory, { recursive: true }));

test('finds nothing wrong with a matching pair, nor with none at all', () => {
  const nothing = { errors: [], warnings: [] };
  expect(checkCertificate({ tlsCert: at('a.crt'), tlsKey: at('a.key'), routes: [] }, NOW)).toEqual(nothing);
  expect(checkCertificate({ tlsCert: null, tlsKey: null, routes: [] }, NOW)).toEqual(nothing);
});

test.each<[cert: string, key: string, errors: readonly RegExp[]]>([
  ['a.crt', 'b.key', [/^--tls-key .*b\.key: does not belong to --tls-cert .*a\.crt$/]],
  [
    'text',
    'text',
    [/^--tls-cert .*text: is no PEM certificate/, /^--tls-key .*text: is no unencrypted PEM private key/],
  ],
  [
    'no.crt',
    'no.key',
    [
      /^--tls-cert .*cannot be read: there is no such file/,
      /^--tls-key .*cannot be read: there is no such file/,
    ],
  ],
])('reports all that is wrong with %s and %s', (cert, key, errors) => {
  const report = checkCertificate({ tlsCert: at(cert), tlsKey: at(key), routes: [] }, NOW);
  expect(report.errors).toEqual(errors.map((error) => expect.stringMatching(error)));
});

test.each([
  ['2200-01-01', /expired on Oct 31/],
  ['2020-01-01', /not valid before Nov 24/],
])('warns when it is %s and the certificate is not valid', (now, warning) => {
  const report = checkCertificate({ tlsCert: at('a.crt'), tlsKey: at('a.key'), routes: [] }, Date.parse(now));
  expect(report).toEqual({ errors: [], warnings: [expect.stringMatching(warning)] });
});

describe('the authorities of routes', () => {
  function routesWith(...names: string[]) {
    const route = names.map((name, index) => `${index}.example=smtp://h?ca=${at(name)}`);
    const parsed = parseConfig({ file: { route, hostname: 'a.example' } });
    if (!parsed.ok) throw new Error(parsed.errors.join());
    return parsed.config.routes;
  }

  test('are read once for each file, and every certificate in it counts', () => {
    const read = readAuthorities(routesWith('a.crt', 'bundle', 'bundle'));
    expect([...read.keys()]).toEqual([at('a.crt'), at('bundle')]);
    expect(read.get(at('bundle'))?.match(/BEGIN CERTIFICATE/g)).toHaveLength(2);
  });

  test.each([
    ['none', /^--route \?ca=.*none: cannot be read: there is no such file/],
    ['text', /^--route \?ca=.*text: holds no PEM certificate$/],
    ['a.key', /^--route \?ca=.*a\.key: holds no PEM certificate$/],
    ['broken', /^--route \?ca=.*broken: holds a broken certificate/],
  ])('are an error when the file is %s', (name, error) => {
    const routes = routesWith('a.crt', name);
    expect(() => readAuthorities(routes)).toThrow(error);
    const report = checkCertificate({ tlsCert: null, tlsKey: null, routes }, NOW);
    expect(report.errors).toEqual([expect.stringMatching(error)]);
  });

  test('that have expired are worth a warning', () => {
    const files = { tlsCert: null, tlsKey: null, routes: routesWith('a.crt') };
    expect(checkCertificate(files, Date.parse('2200-01-01')).warnings).toEqual([
      expect.stringMatching(/^--route \?ca=.*a\.crt: expired/),
    ]);
  });
});
