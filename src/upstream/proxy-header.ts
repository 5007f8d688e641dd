// The header of the PROXY protocol, versions 1 and 2, in which a balancer says whom it speaks for
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt; its sections are named beside the rules).
// Pure: bytes in any chunks go in, the announced client comes out, with whatever came behind the header. What can't
// become a header is refused as soon as that shows; no more than MAX_V2_OCTETS are ever held.
import { isIPv4, isIPv6 } from 'node:net';
import { canonicalAddress } from '../routing/networks.ts';

/** The client that a balancer speaks for, in canonical form; port 0 where it isn't told. */
export type Announced = Readonly<{ address: string; port: number }>;

export type ProxyHeader =
  | Readonly<{ state: 'incomplete' }>
  | Readonly<{ state: 'malformed'; reason: string }>
  /** `client` is null where the connection is the balancer's own, or its client unknown: the real peer counts. */
  | Readonly<{ state: 'complete'; client: Announced | null; rest: Buffer }>;

/** §2.1: "PROXY UNKNOWN" with two IPv6 addresses and ports, and CRLF. */
const MAX_V1_OCTETS = 107;
/** Addresses of Unix sockets, 216 octets, leave room enough for what balancers add (TLS details, unique ids). */
const MAX_V2_OCTETS = 16 + 2048;
const FIXED_OCTETS = 16;
const V1_START = Buffer.from('PROXY ');
const V2_SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n');
const NOTHING = Buffer.alloc(0);
const LF = 0x0a;
const CRC32C_TYPE = 0x03;
const CRC32C_OCTETS = 4;

const INCOMPLETE = { state: 'incomplete' } as const;

export class ProxyHeaderParser {
  #input: Buffer = NOTHING;

  /** How many octets have come that didn't make a header yet. */
  get pending(): number {
    return this.#input.length;
  }

  /** Not to be called again after anything but `incomplete`. */
  push(chunk: Buffer): ProxyHeader {
    this.#input = this.#input.length === 0 ? chunk : Buffer.concat([this.#input, chunk]);
    if (startsLike(this.#input, V2_SIGNATURE)) return parseV2(this.#input);
    if (startsLike(this.#input, V1_START)) return parseV1(this.#input);
    return malformed('no PROXY header');
  }
}

/** Whether it begins with `start`, as far as it has come. */
function startsLike(input: Buffer, start: Buffer): boolean {
  const length = Math.min(input.length, start.length);
  return input.subarray(0, length).equals(start.subarray(0, length));
}

function malformed(reason: string): ProxyHeader {
  return { state: 'malformed', reason };
}

// ---- Version 1 (§2.1) ----

function parseV1(input: Buffer): ProxyHeader {
  const lf = input.subarray(0, MAX_V1_OCTETS).indexOf(LF);
  if (lf === -1) return input.length >= MAX_V1_OCTETS ? malformed('line too long') : INCOMPLETE;
  const line = input.toString('latin1', 0, lf + 1);
  const rest = input.subarray(lf + 1);
  // What an UNKNOWN line says beyond that is to be ignored.
  if (/^PROXY UNKNOWN(?: [^\r\n]*)?\r\n$/.test(line)) return { state: 'complete', client: null, rest };
  const [, family, source = '', destination = '', sourcePort, destinationPort] =
    /^PROXY TCP([46]) ([\d.:a-fA-F]+) ([\d.:a-fA-F]+) (\d{1,5}) (\d{1,5})\r\n$/.exec(line) ?? [];
  const isAddress = family === '4' ? isIPv4 : isIPv6;
  const port = portOf(sourcePort);
  if (!isAddress(source) || !isAddress(destination) || port === null || portOf(destinationPort) === null) {
    return malformed('bad version 1 line');
  }
  return { state: 'complete', client: { address: canonicalAddress(source)!, port }, rest };
}

function portOf(text = ''): number | null {
  return /^(?:0|[1-9]\d*)$/.test(text) && Number(text) <= 0xffff ? Number(text) : null;
}

// ---- Version 2 (§2.2) ----

/** Octets of the address block, by address family; below its source address, source port at the place given. */
const ADDRESS_OCTETS = [0, 12, 36, 216] as const;

function parseV2(input: Buffer): ProxyHeader {
  const [versionCommand, familyProtocol] = [input[12], input[13]];
  // §2.2: any other version or command must be dropped.
  if (versionCommand !== undefined && versionCommand !== 0x20 && versionCommand !== 0x21) {
    return malformed('bad version or command');
  }
  if (familyProtocol === undefined || input.length < FIXED_OCTETS) return INCOMPLETE;
  const octets = FIXED_OCTETS + input.readUInt16BE(14);
  if (octets > MAX_V2_OCTETS) return malformed('header too long');
  if (input.length < octets) return INCOMPLETE;
  const header = input.subarray(0, octets);
  const rest = input.subarray(octets);
  // LOCAL: the balancer's own connection, such as a health check. All that it says is to be discarded.
  if (versionCommand === 0x20) return { state: 'complete', client: null, rest };
  return parseProxied(header, familyProtocol, rest);
}

function parseProxied(header: Buffer, familyProtocol: number, rest: Buffer): ProxyHeader {
  const [family, protocol] = [familyProtocol >> 4, familyProtocol & 0xf];
  const addressOctets = ADDRESS_OCTETS[family];
  if (addressOctets === undefined || protocol > 2) return malformed('bad address family or protocol');
  // §2.2: of an unspecified protocol the addresses are ignored, whatever their length; nor is it known where they end.
  if (family === 0 || protocol === 0) return { state: 'complete', client: null, rest };
  const vectorsAt = FIXED_OCTETS + addressOctets;
  if (header.length < vectorsAt) return malformed('address block too short');
  const wrong = vectorsFault(header, vectorsAt);
  if (wrong !== null) return malformed(wrong);
  const client = protocol === 1 ? sourceOf(header, family) : null;
  return { state: 'complete', client, rest };
}

/** Null for a Unix socket, which has no address that would mean anything here. */
function sourceOf(header: Buffer, family: number): Announced | null {
  if (family === 1) {
    return { address: header.subarray(16, 20).join('.'), port: header.readUInt16BE(24) };
  }
  if (family === 2) {
    const groups = Array.from({ length: 8 }, (_, i) => header.readUInt16BE(16 + 2 * i).toString(16));
    return { address: canonicalAddress(groups.join(':'))!, port: header.readUInt16BE(48) };
  }
  return null;
}

/** The type-length-value vectors behind the addresses are skipped, but for the checksum. Null: nothing wrong. */
function vectorsFault(header: Buffer, start: number): string | null {
  for (let at = start; at < header.length; ) {
    const valueAt = at + 3;
    const end = valueAt <= header.length ? valueAt + header.readUInt16BE(at + 1) : Infinity;
    if (end > header.length) return 'a vector reaches beyond the header';
    if (header[at] === CRC32C_TYPE && !checksumHolds(header, valueAt, end)) return 'bad checksum';
    at = end;
  }
  return null;
}

/** §2.2.3: over the whole header, the checksum itself counting as zero. */
function checksumHolds(header: Buffer, valueAt: number, end: number): boolean {
  if (end - valueAt !== CRC32C_OCTETS) return false;
  const zeroed = Buffer.from(header);
  zeroed.fill(0, valueAt, end);
  return crc32c(zeroed) === header.readUInt32BE(valueAt);
}

/** RFC 4960 appendix B. Without a table: a few hundred octets once a connection, and of few balancers. */
function crc32c(octets: Buffer): number {
  let crc = 0xffffffff;
  for (const octet of octets) {
    crc ^= octet;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc >>> 0;
}
