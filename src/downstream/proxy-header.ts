// The header of the PROXY protocol, version 2 (haproxy's proxy-protocol.txt, §2.2), for a connection on somebody else's
// behalf. Pure. What has no address is announced as LOCAL: "whoever connects speaks for itself".
import { isIPv4 } from 'node:net';
import ipaddr from 'ipaddr.js';
import { canonicalAddress } from '../routing/networks.ts';

export type Endpoint = Readonly<{ address: string; port: number }>;

const SIGNATURE = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1');
/** Version 2 in the upper half. */
const LOCAL = 0x20;
const PROXY = 0x21;
const UNSPEC = 0x00;
const TCP4 = 0x11;
const TCP6 = 0x21;

/** @param source the client; LOCAL where it is null, has no usable address, or another family than `destination` */
export function proxyHeader(source: Endpoint | null, destination: Endpoint): Buffer {
  const from = source === null ? null : canonicalAddress(source.address);
  const to = canonicalAddress(destination.address);
  if (source === null || from === null || to === null || isIPv4(from) !== isIPv4(to))
    return header(LOCAL, UNSPEC, Buffer.alloc(0));
  const ports = Buffer.alloc(4);
  ports.writeUInt16BE(port(source), 0);
  ports.writeUInt16BE(port(destination), 2);
  const addresses = [from, to].map((address) => Buffer.from(ipaddr.parse(address).toByteArray()));
  return header(PROXY, isIPv4(from) ? TCP4 : TCP6, Buffer.concat([...addresses, ports]));
}

function header(command: number, family: number, body: Buffer): Buffer {
  return Buffer.concat([
    SIGNATURE,
    Buffer.from([command, family, body.length >> 8, body.length & 0xff]),
    body,
  ]);
}

/** 0 for what is none: which port it was is lost, and whose address it is must not be. */
function port({ port: number }: Endpoint): number {
  return Number.isInteger(number) && number > 0 && number <= 0xffff ? number : 0;
}
