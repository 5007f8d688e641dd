// An authority of the test's own, and one certificate by it for everybody on loopback.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Owner, run, temporaryDirectory } from '../tools.ts';

export type Certificates = Readonly<{ caFile: string; certFile: string; keyFile: string }>;

export async function certificates(owner?: Owner): Promise<Certificates> {
  const directory = await temporaryDirectory(owner);
  const file = (name: string) => join(directory, name);
  const openssl = async (...args: readonly string[]) => {
    const made = await run('openssl', args, '', owner);
    if (made.exitCode !== 0) throw new Error(`openssl: ${made.output}`);
  };
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const ca = ['-keyout', file('ca.key'), '-out', file('ca.pem'), '-subj', '/CN=Test Authority'];
  await openssl('req', '-x509', ...key, '-days', '2', ...ca);
  const request = ['-keyout', file('key.pem'), '-out', file('request.pem'), '-subj', '/CN=localhost'];
  await openssl('req', ...key, ...request);
  await writeFile(file('names'), 'subjectAltName=DNS:localhost,DNS:proxy.example,IP:127.0.0.1\n');
  const by = ['-CA', file('ca.pem'), '-CAkey', file('ca.key'), '-CAcreateserial', '-days', '2'];
  await openssl(
    ...['x509', '-req', '-in', file('request.pem'), ...by],
    ...['-extfile', file('names'), '-out', file('cert.pem')],
  );
  return { caFile: file('ca.pem'), certFile: file('cert.pem'), keyFile: file('key.pem') };
}
