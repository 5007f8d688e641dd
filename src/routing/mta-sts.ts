// Which MTA-STS policy a recipient's domain has now (RFC 8461): asks for the TXT record, fetches the policy when its id
// is a new one, and remembers it for its max_age.
// Owns the queries and fetches under way, one for each domain, and the cache, bounded in entries and octets; the cache
// is handed in, because a reload must not forget policies: the first fetch is the one that an attacker can prevent.
// Never rejects. What can't be found out leaves the remembered policy in force, or none (§3.3, §5.1).
import type { Logger } from '../log.ts';
import { toDomain } from '../option-kinds.ts';
import { parseStsPolicy, parseStsRecord, type StsPolicy } from './mta-sts-policy.ts';
import type { DnsClient } from './mx.ts';
import type { PolicyFetch } from './policy-fetch.ts';

export type MtaSts = Readonly<{
  /** The policy in force, if it demands anything. `domain`: a name in any case. */
  policyFor: (domain: string) => Promise<StsPolicy | null>;
  /** Under mode "testing": says once for each policy what "enforce" would have refused. */
  reportFailure: (domain: string, host: string, reason: string) => void;
}>;

export type MtaStsDeps = Readonly<{
  dns: Pick<DnsClient, 'resolveTxt'>;
  fetch: PolicyFetch;
  cache: PolicyCache;
  log: Pick<Logger, 'info' | 'warn'>;
  /** Milliseconds, monotonic. */
  now: () => number;
}>;

type Stored = Readonly<{ id: string; policy: StsPolicy; fetchedAtMs: number; octets: number }>;
/** When to ask again; a fetch that has failed is not repeated for the same id before `retryAtMs`. */
type Checked = Readonly<{ untilMs: number; failedId: string | null; retryAtMs: number }>;

/** The TXT record is asked for again after this. Node doesn't tell its TTL. */
const CHECK_TTL_MS = 60_000;
const FAILED_CHECK_TTL_MS = 5_000;
/** RFC 8461 §3.3: failed fetches are repeated at most every five minutes. */
const FETCH_RETRY_MS = 300_000;
/** §3.3, §10.2: a policy is fetched again before it expires, so that an attacker finds no gap. */
const REFRESH_MS = 86_400_000;
const MAX_ENTRIES = 10_000;
const MAX_OCTETS = 16 * 1024 * 1024;

/** Policies by domain. The ones unused for longest are forgotten first. */
export class PolicyCache {
  readonly #stored = new Map<string, Stored>();
  readonly #reported = new WeakSet<Stored>();
  #octets = 0;

  get(domain: string): Stored | null {
    return this.#stored.get(domain) ?? null;
  }

  set(domain: string, id: string, policy: StsPolicy, nowMs: number): void {
    const before = this.get(domain);
    this.#delete(domain);
    // Copied, because a part of the fetched text would keep all of it in memory.
    const copy = JSON.parse(JSON.stringify(policy)) as StsPolicy;
    const octets = domain.length + copy.mx.reduce((sum, pattern) => sum + pattern.length, 0);
    const stored = { id, policy: copy, fetchedAtMs: nowMs, octets };
    this.#stored.set(domain, stored);
    if (before?.id === id && this.#reported.has(before)) this.#reported.add(stored);
    this.#octets += octets;
    while (this.#stored.size > MAX_ENTRIES || this.#octets > MAX_OCTETS) {
      const [oldest = ''] = this.#stored.keys();
      this.#delete(oldest);
    }
  }

  /** True the first time for this policy of the domain. */
  report(domain: string): boolean {
    const stored = this.#stored.get(domain);
    if (stored === undefined || this.#reported.has(stored)) return false;
    this.#reported.add(stored);
    return true;
  }

  #delete(domain: string): void {
    this.#octets -= this.#stored.get(domain)?.octets ?? 0;
    this.#stored.delete(domain);
  }
}

export function createMtaSts(deps: MtaStsDeps): MtaSts {
  const { cache, now, log } = deps;
  const checked = new Map<string, Checked>();
  const underWay = new Map<string, Promise<void>>();
  const renewing = new Set<string>();

  const inForce = (domain: string): StsPolicy | null => {
    const stored = cache.get(domain);
    return stored !== null && stored.policy.mode !== 'none' && now() < expiryOf(stored)
      ? stored.policy
      : null;
  };

  function remember(domain: string, ttlMs: number, failedId: string | null, retryAtMs: number): void {
    checked.delete(domain);
    checked.set(domain, { untilMs: now() + ttlMs, failedId, retryAtMs });
    if (checked.size > MAX_ENTRIES) checked.delete(checked.keys().next().value ?? '');
  }

  async function check(domain: string): Promise<void> {
    const id = await recordId(domain, deps.dns);
    const { failedId, retryAtMs } = checked.get(domain) ?? { failedId: null, retryAtMs: 0 };
    remember(domain, id === undefined ? FAILED_CHECK_TTL_MS : CHECK_TTL_MS, failedId, retryAtMs);
    if (id === undefined || id === null || (id === failedId && now() < retryAtMs)) return;
    const stored = cache.get(domain);
    if (stored?.id !== id || now() >= expiryOf(stored)) return await renew(domain, id);
    const refreshAtMs = Math.min(REFRESH_MS, stored.policy.maxAgeSeconds * 500);
    // Meanwhile the one we have is as good.
    if (now() >= stored.fetchedAtMs + refreshAtMs) void renew(domain, id);
  }

  async function renew(domain: string, id: string): Promise<void> {
    if (renewing.has(domain)) return;
    renewing.add(domain);
    const fetched = await fetchPolicy(domain, deps.fetch);
    renewing.delete(domain);
    if (typeof fetched !== 'string') return cache.set(domain, id, fetched, now());
    remember(domain, CHECK_TTL_MS, id, now() + FETCH_RETRY_MS);
    log.info({ event: 'mta_sts_fetch_failed', domain, reason: fetched, cached: inForce(domain) !== null });
  }

  return {
    async policyFor(written) {
      const domain = toDomain(written);
      if (domain === null) return null;
      if (now() >= (checked.get(domain)?.untilMs ?? 0)) {
        const query = underWay.get(domain) ?? check(domain).finally(() => underWay.delete(domain));
        underWay.set(domain, query);
        await query;
      }
      return inForce(domain);
    },
    reportFailure(domain, host, reason) {
      if (cache.report(domain)) log.warn({ event: 'mta_sts_testing_failure', domain, host, reason });
    },
  };
}

/** A policy that is to be forgotten at once still holds until the record is asked for again. */
function expiryOf({ policy, fetchedAtMs }: Stored): number {
  return fetchedAtMs + Math.max(policy.maxAgeSeconds * 1000, CHECK_TTL_MS);
}

/** Null: the domain has no policy. Undefined: it can't be found out now. */
async function recordId(domain: string, dns: MtaStsDeps['dns']): Promise<string | null | undefined> {
  try {
    return parseStsRecord(await dns.resolveTxt(`_mta-sts.${domain}`));
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : null;
    return code === 'ENOTFOUND' || code === 'ENODATA' || code === 'EBADNAME' ? null : undefined;
  }
}

/** The policy, or why there is none. */
async function fetchPolicy(domain: string, fetch: PolicyFetch): Promise<StsPolicy | string> {
  try {
    return parseStsPolicy(await fetch(domain)) ?? 'the policy is malformed';
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
