// Addresses of hosts: those that a route names, and this one.
import { lookup as systemLookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import { type DnsClient, systemDns } from './mx.ts';

/**
 * A static next hop's addresses: the given resolvers first, then the system (which also knows /etc/hosts).
 * @throws the system's error when it has none
 */
export async function addressesOf(host: string, servers: readonly string[]): Promise<readonly string[]> {
  if (isIP(host) !== 0) return [host];
  if (servers.length > 0) {
    const found = await addressesByDns(host, systemDns(servers));
    if (found.length > 0) return found;
  }
  return (await systemLookup(host, { all: true })).map(({ address }) => address);
}

async function addressesByDns(host: string, dns: DnsClient): Promise<string[]> {
  const answers = await Promise.allSettled([dns.resolve6(host), dns.resolve4(host)]);
  return answers.flatMap((answer) =>
    answer.status === 'fulfilled' ? answer.value.map(({ address }) => address) : [],
  );
}

/** Of every interface, as they are now. */
export function ownAddresses(): ReadonlySet<string> {
  return new Set(
    Object.values(networkInterfaces()).flatMap((addresses) =>
      (addresses ?? []).map(({ address }) => address),
    ),
  );
}
