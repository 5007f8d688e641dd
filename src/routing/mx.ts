export interface DnsClient {
  resolve4(name: string): Promise<{ address: string; ttl: number }[]>;
  resolve6(name: string): Promise<{ address: string; ttl: number }[]>;
}
export function systemDns(_servers: readonly string[]): DnsClient {
  return { resolve4: async () => [], resolve6: async () => [] };
}
export type MxResult =
  | { kind: 'hosts'; candidates: readonly { host: string; address: string; preference: number }[] }
  | { kind: 'null-mx' | 'no-domain' | 'forbidden' | 'loop' }
  | { kind: 'temporary' | 'unroutable'; reason: string };
export interface MxResolver {
  resolve(domain: string, signal?: AbortSignal): Promise<MxResult>;
}
export function createMxResolver(_deps: {
  dns: DnsClient;
  allow: readonly string[];
  isOwn(host: string, address: string | null): boolean;
  now(): number;
  random(): number;
}): MxResolver {
  return { resolve: async () => ({ kind: 'no-domain' }) };
}
