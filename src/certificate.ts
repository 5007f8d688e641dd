// Looks at the certificate and key files before they are used, so that a broken pair is reported as what it is
// and not as whatever OpenSSL makes of it in a client's handshake.

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import type { Route, TlsFiles } from './config.ts';
import { whyUnreadable } from './unreadable.ts';

export type CertificateReport = Readonly<{ errors: readonly string[]; warnings: readonly string[] }>;

/**
 * Whether the files of `--tls-cert` and `--tls-key` can be read, parse and belong together, and those of `?ca=` hold
 * certificates. `now` is in ms.
 */
export function checkCertificate({ tlsCert, tlsKey, routes }: TlsFiles, now: number): CertificateReport {
  const errors: string[] = [];
  const attempt = <T>(what: string, why: (error: unknown) => string, read: () => T): T | null => {
    try {
      return read();
    } catch (error) {
      errors.push(`${what}: ${why(error)}`);
      return null;
    }
  };
  const read = (what: string, file: string) =>
    attempt(`${what} ${file}: cannot be read`, whyUnreadable, () => readFileSync(file));
  const certBytes = tlsCert && read('--tls-cert', tlsCert);
  const keyBytes = tlsKey && read('--tls-key', tlsKey);
  const cert =
    certBytes &&
    attempt(`--tls-cert ${tlsCert}: is no PEM certificate`, noPem('CERTIFICATE'), () => {
      return new X509Certificate(certBytes);
    });
  const key =
    keyBytes &&
    attempt(`--tls-key ${tlsKey}: is no unencrypted PEM private key`, noKey(keyBytes), () =>
      createPrivateKey(keyBytes),
    );
  if (cert && key && certBytes && keyBytes) {
    if (!cert.checkPrivateKey(key))
      errors.push(`--tls-key ${tlsKey}: does not belong to --tls-cert ${tlsCert}`);
    // OpenSSL has more to say: too weak a key, a broken chain file.
    else
      attempt(`--tls-cert ${tlsCert}: is refused`, messageOf, () =>
        createSecureContext({ cert: certBytes, key: keyBytes }),
      );
  }
  const warnings = cert ? validityWarnings(`--tls-cert ${tlsCert}`, cert, now) : [];
  for (const file of authorityFiles(routes)) {
    const found = authoritiesIn(file);
    if (typeof found === 'string') errors.push(found);
    else warnings.push(...found.flatMap((each) => validityWarnings(`--route ?ca=${file}`, each, now)));
  }
  return { errors, warnings };
}

/**
 * The PEM text of every `?ca=` file, by file name.
 * @throws Error naming the first file that can't be read or holds no certificate
 */
export function readAuthorities(routes: readonly Route[]): ReadonlyMap<string, string> {
  const texts = new Map<string, string>();
  for (const file of authorityFiles(routes)) {
    const found = authoritiesIn(file);
    if (typeof found === 'string') throw new Error(found);
    texts.set(file, found.map(String).join(''));
  }
  return texts;
}

function authorityFiles(routes: TlsFiles['routes']): ReadonlySet<string> {
  const hosts = routes.flatMap(({ nextHop }) => (nextHop.kind === 'static' ? nextHop.hosts : []));
  return new Set(hosts.map(({ ca }) => ca).filter((ca) => ca !== null));
}

const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g;

/** The certificates in a PEM file, or what is wrong with it. */
function authoritiesIn(file: string): readonly X509Certificate[] | string {
  try {
    const blocks = readFileSync(file, 'latin1').match(PEM_CERTIFICATE) ?? [];
    if (blocks.length === 0) return `--route ?ca=${file}: holds no PEM certificate`;
    return blocks.map((block) => new X509Certificate(block));
  } catch (error) {
    const unreadable = error instanceof Error && 'syscall' in error;
    return unreadable
      ? `--route ?ca=${file}: cannot be read: ${whyUnreadable(error)}`
      : `--route ?ca=${file}: holds a broken certificate: ${messageOf(error)}`;
  }
}

/** OpenSSL's own words ("no start line") are no help where the file is another one altogether. */
function noPem(type: string): (error: unknown) => string {
  return (error) => `one begins with -----BEGIN ${type}----- (${messageOf(error)})`;
}

function noKey(bytes: Buffer): (error: unknown) => string {
  if (!bytes.includes('ENCRYPTED')) return noPem('PRIVATE KEY');
  return () =>
    'it has a passphrase, and nobody is there to give it; "openssl pkey -in FILE -out FILE2" takes it off';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function validityWarnings(what: string, cert: X509Certificate, now: number): string[] {
  if (Date.parse(cert.validTo) < now) return [`${what}: expired on ${cert.validTo}`];
  if (Date.parse(cert.validFrom) > now) return [`${what}: is not valid before ${cert.validFrom}`];
  return [];
}
