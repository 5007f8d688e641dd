// Looks at the certificate and key files before they are used, so that a broken pair is reported as what it is
// and not as whatever OpenSSL makes of it in a client's handshake.

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createSecureContext } from 'node:tls';
import type { TlsFiles } from './config.ts';

export type CertificateReport = Readonly<{ errors: readonly string[]; warnings: readonly string[] }>;

/** Whether the files of `--tls-cert` and `--tls-key` can be read, parse and belong together. `now` is in ms. */
export function checkCertificate({ tlsCert, tlsKey }: TlsFiles, now: number): CertificateReport {
  const errors: string[] = [];
  const attempt = <T>(what: string, read: () => T): T | null => {
    try {
      return read();
    } catch (error) {
      errors.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
      return null;
    }
  };
  const certBytes = tlsCert && attempt(`--tls-cert ${tlsCert}: cannot be read`, () => readFileSync(tlsCert));
  const keyBytes = tlsKey && attempt(`--tls-key ${tlsKey}: cannot be read`, () => readFileSync(tlsKey));
  const cert =
    certBytes &&
    attempt(`--tls-cert ${tlsCert}: is no PEM certificate`, () => new X509Certificate(certBytes));
  const key =
    keyBytes &&
    attempt(`--tls-key ${tlsKey}: is no unencrypted PEM private key`, () => createPrivateKey(keyBytes));
  if (cert && key && certBytes && keyBytes) {
    if (!cert.checkPrivateKey(key))
      errors.push(`--tls-key ${tlsKey}: does not belong to --tls-cert ${tlsCert}`);
    // OpenSSL has more to say: too weak a key, a broken chain file.
    else
      attempt(`--tls-cert ${tlsCert}: is refused`, () =>
        createSecureContext({ cert: certBytes, key: keyBytes }),
      );
  }
  return { errors, warnings: cert ? validityWarnings(`--tls-cert ${tlsCert}`, cert, now) : [] };
}

function validityWarnings(what: string, cert: X509Certificate, now: number): string[] {
  if (Date.parse(cert.validTo) < now) return [`${what}: expired on ${cert.validTo}`];
  if (Date.parse(cert.validFrom) > now) return [`${what}: is not valid before ${cert.validFrom}`];
  return [];
}
