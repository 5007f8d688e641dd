// The TLSA records that bind a mail exchanger's certificate (RFC 7672): looked up where DNSSEC has proved the way to the
// host, remembered for a minute. What they say is in the result; matching them is left to who makes the connection.
// Owns the queries under way and a bounded cache. Never rejects: a lookup that fails is an outcome, and an important
// one, because such a host must not be used (§2.1.1).
import type { TlsaRecord, ValidatingDns } from './validating-dns.ts';

export type { TlsaRecord } from './validating-dns.ts';

export type DaneResult =
  /** Nothing is published, or nothing that is proved. */
  | Readonly<{ kind: 'none' }>
  /** `records`: those that can be used; with none of them TLS is demanded, but nobody is verified (§2.2). */
  | Readonly<{ kind: 'records'; base: string; records: readonly TlsaRecord[] }>
  | Readonly<{ kind: 'failed'; reason: string }>;

export type Dane = Readonly<{
  /** `alias`: what the host's name is an alias for. Only for hosts whose addresses are proved by DNSSEC. */
  lookUp: (host: string, alias: string | null) => Promise<DaneResult>;
}>;

export type DaneDeps = Readonly<{
  dns: Pick<ValidatingDns, 'resolveTlsa'>;
  port: number;
  /** Milliseconds, monotonic. */
  now: () => number;
}>;

const TTL_MS = 60_000;
const FAILED_TTL_MS = 5_000;
/** An entry can hold one DNS answer, 64 KiB. */
const MAX_CACHED = 1_000;

/** Certificate usages (RFC 7672 §3.1): the others are for clients that trust public authorities as well. */
export const DANE_TA = 2;
export const DANE_EE = 3;

export function createDane({ dns, port, now }: DaneDeps): Dane {
  const cache = new Map<string, Readonly<{ result: DaneResult; untilMs: number }>>();
  const underWay = new Map<string, Promise<DaneResult>>();

  async function ask(base: string): Promise<DaneResult> {
    const result = await tlsaAt(base, port, dns);
    cache.delete(base);
    cache.set(base, { result, untilMs: now() + (result.kind === 'failed' ? FAILED_TTL_MS : TTL_MS) });
    if (cache.size > MAX_CACHED) cache.delete(cache.keys().next().value ?? '');
    return result;
  }

  async function at(base: string): Promise<DaneResult> {
    const cached = cache.get(base);
    if (cached !== undefined && now() < cached.untilMs) return cached.result;
    const query = underWay.get(base) ?? ask(base).finally(() => underWay.delete(base));
    underWay.set(base, query);
    return await query;
  }

  return {
    async lookUp(host, alias) {
      // §2.2.3: what an alias leads to comes first, then the name itself.
      for (const base of alias === null ? [host] : [alias, host]) {
        const result = await at(base);
        if (result.kind !== 'none') return result;
      }
      return { kind: 'none' };
    },
  };
}

async function tlsaAt(base: string, port: number, dns: DaneDeps['dns']): Promise<DaneResult> {
  try {
    const { secure, records } = await dns.resolveTlsa(`_${port}._tcp.${base}`);
    return secure ? { kind: 'records', base, records: records.filter(isUsable) } : { kind: 'none' };
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'failed';
    if (code === 'ENOTFOUND' || code === 'ENODATA' || code === 'EBADNAME') return { kind: 'none' };
    return { kind: 'failed', reason: `TLSA ${base}: ${code.replace(/^E/, '')}` };
  }
}

const DIGEST_OCTETS: Readonly<Record<number, number>> = { 1: 32, 2: 64 };

function isUsable({ usage, selector, matchingType, data }: TlsaRecord): boolean {
  if ((usage !== DANE_TA && usage !== DANE_EE) || selector > 1 || matchingType > 2) return false;
  const octets = DIGEST_OCTETS[matchingType];
  return octets === undefined ? data.length > 0 : data.length === octets;
}
