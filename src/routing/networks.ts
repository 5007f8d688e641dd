// Address arithmetic for access rules: whether an address lies in given networks (--trust, --mx-allow), and whether
// mail may be sent to it on the word of a stranger's DNS (the SSRF filter for MX targets).
// Both compare canonical addresses: an IPv4 address is one however it is wrapped, so that `::ffff:127.0.0.1` is no
// way round a rule about 127.0.0.0/8. Pure. Text that is no address is in no network, and may never be sent to.

import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';

type Address = ipaddr.IPv4 | ipaddr.IPv6;
type Network = readonly [Address, number];

export type NetworkSet = Readonly<{
  /** False for text that isn't an IP address. */
  has: (address: string) => boolean;
}>;

/** Why an address is no target for mail. */
export type ForbiddenReason =
  | 'not an address'
  | 'unspecified'
  | 'loopback'
  | 'link-local'
  | 'private'
  | 'multicast'
  | 'reserved';

// RFC 6890 and its registries. Documentation and benchmarking networks are left out: they are merely unroutable.
const FORBIDDEN: readonly (readonly [Network, ForbiddenReason])[] = [
  ...forbid('unspecified', '0.0.0.0/8', '::/128'),
  ...forbid('loopback', '127.0.0.0/8', '::1/128'),
  ...forbid('link-local', '169.254.0.0/16', 'fe80::/10'),
  // RFC 1918, 6598 (shared), 4193 (unique local), 3879 (site-local), 8215 (NAT64 inside a site).
  ...forbid('private', '10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10'),
  ...forbid('private', 'fc00::/7', 'fec0::/10', '64:ff9b:1::/48'),
  ...forbid('multicast', '224.0.0.0/4', 'ff00::/8'),
  // RFC 6890 §2.2.2 (IETF protocol assignments), RFC 1112 §4 (class E, broadcast included).
  ...forbid('reserved', '192.0.0.0/24', '240.0.0.0/4'),
];

/** Addresses that a set remembers its answer for. */
const MAX_KNOWN = 1024;

// IPv6 networks whose addresses lead to an IPv4 address, and the octet at which that begins.
const EMBEDDING: readonly (readonly [Network, number])[] = [
  [parseNetwork('::/96'), 12], // IPv4-compatible, RFC 4291 §2.5.5.1
  [parseNetwork('::ffff:0:0:0/96'), 12], // IPv4-translated, RFC 2765 §2.1
  [parseNetwork('64:ff9b::/96'), 12], // NAT64, RFC 6052 §2.1
  [parseNetwork('2002::/16'), 2], // 6to4, RFC 3056 §2
];

/**
 * The networks as one set.
 * @throws Error on text that isn't `address/bits` or an address; configuration has been checked before
 */
export function networkSet(cidrs: readonly string[]): NetworkSet {
  const networks = cidrs.map(parseNetwork);
  if (networks.length === 0) return { has: () => false };
  const known = new Map<string, boolean>();
  const find = (text: string) => {
    const address = parseAddress(text);
    return address !== null && networks.some((network) => contains(network, address));
  };
  return {
    // Few clients make most of the connections.
    has(text) {
      let found = known.get(text);
      if (found !== undefined) return found;
      found = find(text);
      if (known.size >= MAX_KNOWN) known.clear();
      known.set(text, found);
      return found;
    },
  };
}

/** Whether the word of a stranger's DNS is not enough to connect to an address. `allow`: CIDRs of --mx-allow. */
export function forbiddenUnless(allow: readonly string[]): (address: string) => boolean {
  const allowed = networkSet(allow);
  return (address) => forbiddenReason(address) !== null && !allowed.has(address);
}

/** Null: an ordinary unicast address. An IPv4 address inside an IPv6 one counts like itself. */
export function forbiddenReason(text: string): ForbiddenReason | null {
  const address = parseAddress(text);
  return address === null ? 'not an address' : reasonAgainst(address);
}

/** The one spelling of an address: mapped IPv4 as IPv4, no zone id, IPv6 as in RFC 5952. Null if it isn't one. */
export function canonicalAddress(text: string): string | null {
  return parseAddress(text)?.toString() ?? null;
}

function reasonAgainst(address: Address): ForbiddenReason | null {
  const found = FORBIDDEN.find(([network]) => contains(network, address));
  if (found !== undefined) return found[1];
  const embedding = EMBEDDING.find(([network]) => contains(network, address));
  if (embedding === undefined) return null;
  const [, at] = embedding;
  return reasonAgainst(new ipaddr.IPv4(address.toByteArray().slice(at, at + 4)));
}

function parseAddress(text: string): Address | null {
  // A zone id (RFC 4007 §11) says by which interface, not which address.
  const [address = ''] = text.split('%', 1);
  // ipaddr.js alone would take 127.1 and 0x7f000001 for addresses.
  return isIP(address) === 0 ? null : ipaddr.process(address);
}

function parseNetwork(cidr: string): Network {
  const [text = '', prefix] = cidr.split('/');
  const family = isIP(text);
  const width = family === 4 ? 32 : 128;
  const bits = prefix === undefined ? width : /^\d{1,3}$/.test(prefix) ? Number(prefix) : Number.NaN;
  if (family === 0 || !(bits <= width)) throw new Error(`not a network: ${cidr}`);
  const address = ipaddr.parse(text);
  // Addresses are compared in canonical form, in which nothing is in a mapped network (RFC 4291 §2.5.5.2).
  if (address instanceof ipaddr.IPv6 && address.isIPv4MappedAddress() && bits >= 96) {
    return [address.toIPv4Address(), bits - 96];
  }
  return [address, bits];
}

function contains([network, bits]: Network, address: Address): boolean {
  return network.kind() === address.kind() && address.match(network, bits);
}

function forbid(reason: ForbiddenReason, ...cidrs: string[]): [Network, ForbiddenReason][] {
  return cidrs.map((cidr) => [parseNetwork(cidr), reason]);
}
