// Makes X.509 certificates for tests with nothing but node:crypto: authorities, servers, expired ones. EC keys, SHA-256.
// Just enough DER (X.690) for RFC 5280's Certificate with basicConstraints and subjectAltName.
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';
import { isIPv4 } from 'node:net';

export type Issued = Readonly<{ name: string; cert: string; key: string; privateKey: KeyObject }>;

type Request = Readonly<{
  /** The subject's common name. */
  name: string;
  /** DNS names and IPv4 addresses of subjectAltName. */
  for?: readonly string[];
  /** Signs it; without one it signs itself. */
  issuer?: Issued;
  isAuthority?: boolean;
  /** Days from now. */
  from?: number;
  until?: number;
}>;

const DAY_MS = 86_400_000;

const OID = {
  ecdsaWithSha256: '06082a8648ce3d040302',
  commonName: '0603550403',
  basicConstraints: '0603551d13',
  subjectAltName: '0603551d11',
} as const;

/** A new key pair and its certificate, both as PEM. */
export function issue(request: Request): Issued {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  const { name, issuer, from = -1, until = 2 } = request;
  const algorithm = sequence(oid('ecdsaWithSha256'));
  const toBeSigned = sequence(
    explicit(0, integer(Buffer.from([2]))),
    integer(Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    algorithm,
    commonName(issuer?.name ?? name),
    sequence(time(from), time(until)),
    commonName(name),
    publicKey.export({ type: 'spki', format: 'der' }),
    explicit(3, sequence(...extensions(request))),
  );
  const signature = sign('sha256', toBeSigned, issuer?.privateKey ?? privateKey);
  const der = sequence(toBeSigned, algorithm, bitString(signature));
  const base64 = der.toString('base64').replace(/(.{64})(?=.)/g, '$1\n');
  const cert = `-----BEGIN CERTIFICATE-----\n${base64}\n-----END CERTIFICATE-----\n`;
  return { name, cert, key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string, privateKey };
}

export function issueAuthority(name: string, issuer?: Issued): Issued {
  return issue({ name, isAuthority: true, ...(issuer && { issuer }) });
}

function extensions(request: Request): Buffer[] {
  const names = (request.for ?? []).map((name) =>
    isIPv4(name) ? tagged(0x87, Buffer.from(name.split('.').map(Number))) : tagged(0x82, Buffer.from(name)),
  );
  const isTrue = tagged(0x01, Buffer.from([0xff]));
  return [
    ...(request.isAuthority
      ? [sequence(oid('basicConstraints'), isTrue, octetString(sequence(isTrue)))]
      : []),
    ...(names.length > 0 ? [sequence(oid('subjectAltName'), octetString(sequence(...names)))] : []),
  ];
}

function commonName(text: string): Buffer {
  return sequence(tagged(0x31, sequence(oid('commonName'), tagged(0x0c, Buffer.from(text)))));
}

function time(days: number): Buffer {
  const text = new Date(Date.now() + days * DAY_MS).toISOString().replace(/\.\d+|[-:T]/g, '');
  return tagged(0x18, Buffer.from(text));
}

function oid(name: keyof typeof OID): Buffer {
  return Buffer.from(OID[name], 'hex');
}

function sequence(...parts: readonly Buffer[]): Buffer {
  return tagged(0x30, Buffer.concat(parts));
}

function integer(value: Buffer): Buffer {
  return tagged(0x02, value);
}

function octetString(value: Buffer): Buffer {
  return tagged(0x04, value);
}

function bitString(value: Buffer): Buffer {
  return tagged(0x03, Buffer.concat([Buffer.from([0]), value]));
}

function explicit(tag: number, value: Buffer): Buffer {
  return tagged(0xa0 + tag, value);
}

function tagged(tag: number, value: Buffer): Buffer {
  const length =
    value.length < 0x80
      ? Buffer.from([value.length])
      : value.length < 0x100
        ? Buffer.from([0x81, value.length])
        : Buffer.from([0x82, value.length >> 8, value.length & 0xff]);
  return Buffer.concat([Buffer.from([tag]), length, value]);
}
