// Whether the chain that a server has shown is one that its TLSA records stand for (RFC 7672 §3.1, RFC 6698 §2.1).
//   DANE-EE: the server's own certificate matches; neither its names nor its dates count (§3.1.1)
//   DANE-TA: some issuer above it matches; names, dates and signatures up to there do count (§3.1.2, §3.2.2)
// Pure, over certificates as the peer sent them.
import { createHash, createPublicKey, type KeyObject, X509Certificate } from 'node:crypto';
import { checkServerIdentity } from 'node:tls';
import { DANE_EE, DANE_TA, type TlsaRecord } from '../routing/dane.ts';

/** Longer chains are nobody's in earnest, and each step costs a signature. */
const MAX_CHAIN = 10;

/**
 * Null: some record stands for it.
 * @param chain as sent, the server's own certificate first
 * @param names reference identifiers, for DANE-TA
 */
export function daneProblem(
  chain: readonly X509Certificate[],
  records: readonly TlsaRecord[],
  names: readonly string[],
  nowMs: number,
): string | null {
  const [leaf] = chain;
  if (leaf === undefined) return 'it has no certificate';
  if (records.some((record) => record.usage === DANE_EE && matches(record, leaf))) return null;
  const anchors = records.filter(({ usage }) => usage === DANE_TA);
  if (!isAnchored(chain.slice(0, MAX_CHAIN), anchors, nowMs)) return 'its certificate is not the one in DNS';
  const legacy = leaf.toLegacyObject();
  if (names.some((name) => checkServerIdentity(name, legacy) === undefined)) return null;
  return 'its certificate is for another name';
}

function isAnchored(
  chain: readonly X509Certificate[],
  anchors: readonly TlsaRecord[],
  nowMs: number,
): boolean {
  const unused = new Set(chain.slice(1));
  let current = chain[0]!;
  for (;;) {
    if (!isValidAt(current, nowMs)) return false;
    const subject = current;
    if (anchors.some((anchor) => isIssuedByBare(subject, anchor, nowMs))) return true;
    const issuer = [...unused].find((other) => isIssuedBy(subject, other));
    if (issuer === undefined || !isValidAt(issuer, nowMs)) return false;
    if (anchors.some((anchor) => matches(anchor, issuer))) return true;
    unused.delete(issuer);
    current = issuer;
  }
}

function isIssuedBy(subject: X509Certificate, issuer: X509Certificate): boolean {
  return issuer.ca && subject.checkIssued(issuer) && isSignedBy(subject, issuer.publicKey);
}

/** RFC 7672 §3.1.2: an anchor that is in DNS in full need not be sent. */
function isIssuedByBare(
  subject: X509Certificate,
  { selector, matchingType, data }: TlsaRecord,
  nowMs: number,
) {
  if (matchingType !== 0) return false;
  try {
    if (selector === 1)
      return isSignedBy(subject, createPublicKey({ key: data, format: 'der', type: 'spki' }));
    const issuer = new X509Certificate(data);
    return isIssuedBy(subject, issuer) && isValidAt(issuer, nowMs);
  } catch {
    return false;
  }
}

function isSignedBy(subject: X509Certificate, key: KeyObject): boolean {
  try {
    return subject.verify(key);
  } catch {
    // A key of another kind than the signature's.
    return false;
  }
}

function isValidAt({ validFrom, validTo }: X509Certificate, nowMs: number): boolean {
  return Date.parse(validFrom) <= nowMs && nowMs <= Date.parse(validTo);
}

function matches({ selector, matchingType, data }: TlsaRecord, { raw }: X509Certificate): boolean {
  const selected = selector === 0 ? raw : publicKeyInfo(raw);
  if (matchingType === 0) return selected.equals(data);
  return createHash(matchingType === 1 ? 'sha256' : 'sha512')
    .update(selected)
    .digest()
    .equals(data);
}

/** subjectPublicKeyInfo, octet for octet (RFC 5280 §4.1): encoding the key anew might write it another way. */
function publicKeyInfo(certificate: Buffer): Buffer {
  const body = contentOf(contentOf(certificate));
  const VERSION = 0xa0;
  // serialNumber, signature, issuer, validity and subject come before it.
  let rest = body[0] === VERSION ? body.subarray(lengthOf(body)) : body;
  for (let field = 0; field < 5; field++) rest = rest.subarray(lengthOf(rest));
  return rest.subarray(0, lengthOf(rest));
}

function contentOf(der: Buffer): Buffer {
  return der.subarray(headerOf(der), lengthOf(der));
}

/** Octets of tag and length. OpenSSL has parsed it all before, so it is well-formed DER. */
function headerOf(der: Buffer): number {
  const first = der[1] ?? 0;
  return first < 0x80 ? 2 : 2 + (first & 0x7f);
}

function lengthOf(der: Buffer): number {
  const header = headerOf(der);
  return header + (header === 2 ? (der[1] ?? 0) : der.readUIntBE(2, header - 2));
}
