// PROXY headers of version 2, built from the specification's tables, for tests.
import { isIPv4 } from 'node:net';
import ipaddr from 'ipaddr.js';

export const V2_SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');

/** §2.2: signature, version and command, family and protocol, length, and what it counts. */
export function v2(versionCommand: number, familyProtocol: number, ...parts: readonly Buffer[]): Buffer {
  const block = Buffer.concat(parts);
  const fixed = Buffer.from([versionCommand, familyProtocol, block.length >> 8, block.length & 0xff]);
  return Buffer.concat([V2_SIGNATURE, fixed, block]);
}

/** The address block of a TCP connection: both addresses, both ports. */
export function addresses(source: string, sourcePort: number, destination: string): Buffer {
  const octets = [source, destination].flatMap((address) => ipaddr.parse(address).toByteArray());
  return Buffer.from([...octets, sourcePort >> 8, sourcePort & 0xff, 0, 25]);
}

/** Of a proxied TCP connection, whole. */
export function v2Tcp(source: string, port: number, ...vectors: readonly Buffer[]): Buffer {
  const destination = isIPv4(source) ? '192.0.2.25' : '2001:db8::25';
  return v2(0x21, isIPv4(source) ? 0x11 : 0x21, addresses(source, port, destination), ...vectors);
}

export function vector(type: number, value: Buffer): Buffer {
  return Buffer.concat([Buffer.from([type, value.length >> 8, value.length & 0xff]), value]);
}
