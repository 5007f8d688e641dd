// Which servers take a domain's mail, and in which order to try them: RFC 5321 §5.1 over a DNS client.
//   1. the MX records; without any, the domain's own addresses; null MX (RFC 7505) means that there is no mail
//   2. this host, and whatever is no more preferred than it, is left out: sending there would be a loop
//   3. the addresses of every host that is left, both families, without those that the SSRF filter refuses
//   4. by preference, shuffled among equals
// Owns the cache of answers and the queries under way; all callers with the same domain share one query.
// What DNS says is an outcome. Rejects with the caller's abort reason, and for bugs.

import { Resolver } from 'node:dns/promises';
import { isIP } from 'node:net';
import { toDomain } from '../option-kinds.ts';
import { canonicalAddress, forbiddenUnless } from './networks.ts';

/** The queries in use. They reject with an Error whose `code` is as in node:dns. */
export interface DnsClient {
  resolveMx(name: string): Promise<readonly MxRecord[]>;
  resolve4(name: string): Promise<readonly AddressRecord[]>;
  resolve6(name: string): Promise<readonly AddressRecord[]>;
  /** Each record in its strings. */
  resolveTxt(name: string): Promise<readonly (readonly string[])[]>;
}

/** `secure`: proved by DNSSEC; only a client that can tell says so. */
type MxRecord = Readonly<{ exchange: string; priority: number; secure?: boolean }>;
/** `ttl` in seconds. `alias`: the name that has the address, where it isn't the one asked for. */
type AddressRecord = Readonly<{ address: string; ttl: number; secure?: boolean; alias?: string }>;

/** One address to try. `host` is the mail exchanger's name, or the address of an address literal. */
export type Candidate = Readonly<{
  host: string;
  address: string;
  preference: number;
  /** The way to this address is proved by DNSSEC. */
  secure: boolean;
  /** The name that `host` is an alias for. */
  alias: string | null;
}>;

export type MxResult =
  /** At least one, in the order to try, no address twice. */
  | Readonly<{ kind: 'hosts'; candidates: readonly Candidate[] }>
  /** RFC 7505: the domain takes no mail. */
  | Readonly<{ kind: 'null-mx' }>
  /** No such name, or one with neither MX nor address. */
  | Readonly<{ kind: 'no-domain' }>
  /** SERVFAIL, REFUSED, a timeout; another time may do. */
  | Readonly<{ kind: 'temporary'; reason: string }>
  /** There are addresses, but the SSRF filter refuses every one. */
  | Readonly<{ kind: 'forbidden' }>
  /** Mail exchangers without any address. */
  | Readonly<{ kind: 'unroutable'; reason: string }>
  /** This host is the most preferred. */
  | Readonly<{ kind: 'loop' }>;

export type MxResolver = Readonly<{
  /** `domain`: a name in any case, or an address literal in brackets. Never rejects. */
  resolve: (domain: string) => Promise<MxResult>;
}>;

export type MxDeps = Readonly<{
  dns: MxDns;
  /** CIDRs that the SSRF filter lets through. */
  allow: readonly string[];
  /** Whether a mail exchanger is this host: by its name (`address` null), or by one of its addresses. */
  isOwn: (host: string, address: string | null) => boolean;
  /** Milliseconds, monotonic. */
  now: () => number;
  /** From 0 up to 1, as Math.random. */
  random: () => number;
}>;

type MxDns = Pick<DnsClient, 'resolveMx' | 'resolve4' | 'resolve6'>;

type Rules = Readonly<{ dns: MxDns; isOwn: MxDeps['isOwn']; isForbidden: (address: string) => boolean }>;

type Exchanger = Readonly<{ host: string; preference: number; secure: boolean }>;
/** A mail exchanger with its addresses, each list in the order of the DNS answer. `secure`: these are, too. */
type Host = Exchanger & Readonly<{ v6: readonly string[]; v4: readonly string[]; alias: string | null }>;
/** `ttlMs` is Infinity without an address; `failure` names a query that failed for now. */
type LookedUpHost = Host & Readonly<{ ttlMs: number; failure: string | null }>;

/** What is remembered: everything but the order, which is drawn anew for each caller. */
type Found = Readonly<{ kind: 'hosts'; hosts: readonly Host[] }> | Exclude<MxResult, { kind: 'hosts' }>;
type Lookup = Readonly<{ found: Found; ttlMs: number }>;
type Cached = Readonly<{ found: Found; expiresAtMs: number }>;

type Answer<T> =
  | Readonly<{ kind: 'records'; records: readonly T[] }>
  | Readonly<{ kind: 'no-records' }>
  | Readonly<{ kind: 'no-name' }>
  | Readonly<{ kind: 'failed'; code: string }>;

/** RFC 5321 §5.1 allows a limit on addresses tried. */
const MAX_ADDRESSES = 10;
/** A stranger's zone decides how many queries one recipient costs us; the most preferred hosts are asked about. */
const MAX_EXCHANGERS = 16;
/** Node doesn't tell the TTL of MX records, so that of the addresses counts, up to this. */
const MAX_TTL_MS = 60_000;
const NEGATIVE_TTL_MS = 30_000;
/** Enough that a burst for one broken domain doesn't hammer its servers. */
const TEMPORARY_TTL_MS = 5_000;
const MAX_CACHED = 10_000;

/** Answers that say something of the server only; another one may know better. */
const LAME = new Set(['ESERVFAIL', 'EREFUSED', 'ENOTIMP', 'EFORMERR']);

/**
 * The resolver of the operating system's servers, or of `servers` (`address:port`).
 * `timeoutMs` is the first of two tries; the second waits longer.
 */
export function systemDns(servers: readonly string[], timeoutMs = 2_000): DnsClient {
  const resolverOf = (some: readonly string[]) => {
    const resolver = new Resolver({ timeout: timeoutMs, tries: 2 });
    if (some.length > 0) resolver.setServers(some);
    return resolver;
  };
  const all = resolverOf(servers);
  const addresses = all.getServers();

  async function ask<T>(query: (resolver: Resolver) => Promise<T>): Promise<T> {
    let asked = query(all);
    // Of its own accord it goes on to the next server only where one is silent.
    for (let next = 1; next < addresses.length; next++) {
      try {
        return await asked;
      } catch (error) {
        if (!LAME.has((error as NodeJS.ErrnoException).code ?? '')) throw error;
        asked = query(resolverOf(addresses.slice(next)));
      }
    }
    return await asked;
  }

  return {
    resolveMx: (name) => ask((resolver) => resolver.resolveMx(name)),
    resolve4: (name) => ask((resolver) => resolver.resolve4(name, { ttl: true })),
    resolve6: (name) => ask((resolver) => resolver.resolve6(name, { ttl: true })),
    resolveTxt: (name) => ask((resolver) => resolver.resolveTxt(name)),
  };
}

export function createMxResolver(deps: MxDeps): MxResolver {
  const rules: Rules = { dns: deps.dns, isOwn: deps.isOwn, isForbidden: forbiddenUnless(deps.allow) };
  const cache = new Map<string, Cached>();
  const underWay = new Map<string, Promise<Found>>();

  async function ask(domain: string): Promise<Found> {
    const { found, ttlMs } = await lookUp(domain, rules);
    if (ttlMs > 0) {
      // Deleted first, because a Map keeps the old place of a key, and the oldest one has to be the first.
      cache.delete(domain);
      cache.set(domain, { found, expiresAtMs: deps.now() + ttlMs });
      if (cache.size > MAX_CACHED) cache.delete(cache.keys().next().value ?? '');
    }
    return found;
  }

  async function find(written: string): Promise<Found> {
    const domain = toDomain(written);
    if (domain === null) return { kind: 'no-domain' };
    const cached = cache.get(domain);
    if (cached !== undefined && deps.now() < cached.expiresAtMs) return cached.found;
    const shared = underWay.get(domain);
    if (shared !== undefined) return await shared;
    const query = ask(domain).finally(() => underWay.delete(domain));
    underWay.set(domain, query);
    return await query;
  }

  return {
    async resolve(domain) {
      const found = domain.startsWith('[') ? resolveLiteral(domain, rules) : await find(domain);
      if (found.kind !== 'hosts') return found;
      return { kind: 'hosts', candidates: inOrder(found.hosts, deps.random) };
    },
  };
}

const LITERAL = { preference: 0, v6: [], secure: false, alias: null };

/** RFC 5321 §4.1.3: `[192.0.2.1]` and `[IPv6:2001:db8::1]` are their own mail exchanger. */
function resolveLiteral(domain: string, { isOwn, isForbidden }: Rules): Found {
  const [, tag, text = ''] = /^\[(IPv6:)?([^%\]]*)\]$/i.exec(domain) ?? [];
  const address = isIP(text) === (tag === undefined ? 4 : 6) ? canonicalAddress(text) : null;
  if (address === null) return { kind: 'no-domain' };
  if (isOwn(address, address)) return { kind: 'loop' };
  if (isForbidden(address)) return { kind: 'forbidden' };
  return { kind: 'hosts', hosts: [{ ...LITERAL, host: address, v4: [address] }] };
}

async function lookUp(domain: string, rules: Rules): Promise<Lookup> {
  const mx = await answerTo(rules.dns.resolveMx(domain));
  switch (mx.kind) {
    case 'no-name':
      return negative({ kind: 'no-domain' });
    case 'failed':
      return temporary(`MX ${domain}: ${mx.code}`);
    case 'no-records': {
      // RFC 5321 §5.1: only without any MX record is the domain its own mail exchanger, with preference 0.
      const lookup = await lookUpHosts([{ host: domain, preference: 0, secure: true }], rules);
      return lookup.found.kind === 'unroutable' ? negative({ kind: 'no-domain' }) : lookup;
    }
    case 'records':
      // RFC 7505 §3: the root as the only exchanger. Beside others it is merely a bad name.
      if (mx.records.every(({ exchange }) => exchange === '' || exchange === '.')) {
        return negative({ kind: 'null-mx' });
      }
      return await lookUpHosts(exchangers(mx.records), rules);
    default:
      return mx satisfies never;
  }
}

/** Sorted by preference, each name once; names that aren't any, IP addresses among them, are no exchangers. */
function exchangers(records: readonly MxRecord[]): readonly Exchanger[] {
  const best = new Map<string, number>();
  const secure = records.every((record) => record.secure === true);
  for (const { exchange, priority } of records) {
    // RFC 5321 §5.1: the exchanger is a domain name; an address in its place isn't to be used.
    const host = toDomain(exchange);
    if (host !== null) best.set(host, Math.min(priority, best.get(host) ?? priority));
  }
  const found = [...best].map(([host, preference]) => ({ host, preference, secure }));
  return found.sort((a, b) => a.preference - b.preference || (a.host < b.host ? -1 : 1));
}

async function lookUpHosts(all: readonly Exchanger[], rules: Rules): Promise<Lookup> {
  const { dns, isOwn, isForbidden } = rules;
  if (all.length === 0) return negative({ kind: 'unroutable', reason: 'no mail exchanger has a valid name' });
  const others = betterThanOwn(all, ({ host }) => isOwn(host, null)).slice(0, MAX_EXCHANGERS);
  const lookedUp = await Promise.all(others.map((exchanger) => lookUpHost(exchanger, dns)));
  const hosts = betterThanOwn(lookedUp, ({ host, v6, v4 }) =>
    [...v6, ...v4].some((address) => isOwn(host, address)),
  );
  if (hosts.length === 0) return negative({ kind: 'loop' });

  const permit = (addresses: readonly string[]) => addresses.filter((address) => !isForbidden(address));
  const permitted = hosts.map((host) => ({ ...host, v6: permit(host.v6), v4: permit(host.v4) }));
  const failure = hosts.find((host) => host.failure !== null)?.failure ?? null;
  if (permitted.some(hasAddress)) {
    // With a part missing it is asked again soon.
    const longest = failure === null ? MAX_TTL_MS : TEMPORARY_TTL_MS;
    return {
      found: { kind: 'hosts', hosts: withinLimit(permitted) },
      ttlMs: Math.min(longest, ...hosts.map(({ ttlMs }) => ttlMs)),
    };
  }
  if (failure !== null) return temporary(failure);
  if (hosts.some(hasAddress)) return negative({ kind: 'forbidden' });
  return negative({ kind: 'unroutable', reason: 'no mail exchanger has an address' });
}

/** RFC 5321 §5.1: where this host is among them, only those more preferred than it are left. */
function betterThanOwn<T extends Exchanger>(list: readonly T[], isOwn: (host: T) => boolean): readonly T[] {
  const own = Math.min(...list.filter(isOwn).map(({ preference }) => preference));
  return list.filter(({ preference }) => preference < own);
}

async function lookUpHost({ host, preference, secure }: Exchanger, dns: MxDns): Promise<LookedUpHost> {
  const [aaaa, a] = await Promise.all([answerTo(dns.resolve6(host)), answerTo(dns.resolve4(host))]);
  const records = [aaaa, a].flatMap((answer) => (answer.kind === 'records' ? answer.records : []));
  const canonical = records.map(({ address }) => canonicalAddress(address));
  const addresses = [...new Set(canonical.filter((address) => address !== null))];
  const failures = [
    ...(aaaa.kind === 'failed' ? [`AAAA ${host}: ${aaaa.code}`] : []),
    ...(a.kind === 'failed' ? [`A ${host}: ${a.code}`] : []),
  ];
  return {
    host,
    preference,
    secure: secure && records.every((record) => record.secure === true),
    alias: records.find(({ alias }) => alias !== undefined)?.alias ?? null,
    v6: addresses.filter((address) => isIP(address) === 6),
    v4: addresses.filter((address) => isIP(address) === 4),
    ttlMs: Math.min(...records.map(({ ttl }) => ttl * 1000)),
    failure: failures[0] ?? null,
  };
}

/** Settles a query. Rejects for what is no DNS error. */
async function answerTo<T>(query: Promise<readonly T[]>): Promise<Answer<T>> {
  try {
    const records = await query;
    return records.length === 0 ? { kind: 'no-records' } : { kind: 'records', records };
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && typeof error.code === 'string')) throw error;
    if (error.code === 'ENODATA') return { kind: 'no-records' };
    // EBADNAME: a name too long to be asked for, which therefore doesn't exist either.
    if (error.code === 'ENOTFOUND' || error.code === 'EBADNAME') return { kind: 'no-name' };
    return { kind: 'failed', code: error.code.replace(/^E/, '') };
  }
}

/**
 * At most MAX_ADDRESSES in all, dealt out by turns (one of each family at a time), so that a host with many leaves a
 * place to its backups. The same hosts always get the same addresses, in whichever order they were answered. An
 * address of several hosts stays with the most preferred: trying it twice would only cost time.
 */
function withinLimit(hosts: readonly Host[]): readonly Host[] {
  const queues = hosts.map((host) => ({ host, queue: interleave(host.v6.toSorted(), host.v4.toSorted()) }));
  const owners = new Map<string, Host>();
  for (let at = 0; queues.some(({ queue }) => at < queue.length); at += 2) {
    for (const { host, queue } of queues) {
      for (const address of queue.slice(at, at + 2)) {
        const owner = owners.get(address);
        if (owner === undefined ? owners.size < MAX_ADDRESSES : host.preference < owner.preference) {
          owners.set(address, host);
        }
      }
    }
  }
  const keep = (host: Host, list: readonly string[]) =>
    list.filter((address) => owners.get(address) === host);
  return hosts
    .map((host) => ({ ...host, v6: keep(host, host.v6), v4: keep(host, host.v4) }))
    .filter(hasAddress);
}

function hasAddress({ v6, v4 }: Host): boolean {
  return v6.length + v4.length > 0;
}

/** IPv6 first, then by turns: a family that doesn't work costs one attempt before the other is tried. */
function interleave(v6: readonly string[], v4: readonly string[]): readonly string[] {
  const turns = Array.from({ length: Math.max(v6.length, v4.length) }, (_, at) => [v6[at], v4[at]]);
  return turns.flat().filter((address) => address !== undefined);
}

/** RFC 5321 §5.1: lowest preference first, and at random among equals, to spread the load. */
function inOrder(hosts: readonly Host[], random: () => number): readonly Candidate[] {
  const sorted = shuffled(hosts, random).sort((a, b) => a.preference - b.preference);
  return sorted.flatMap(({ host, preference, secure, alias, v6, v4 }) =>
    interleave(v6, v4).map((address) => ({ host, address, preference, secure, alias })),
  );
}

/** A shuffled copy (Fisher and Yates). */
function shuffled<T>(list: readonly T[], random: () => number): T[] {
  const copy = [...list];
  for (let last = copy.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [copy[last], copy[other]] = [copy[other]!, copy[last]!];
  }
  return copy;
}

function negative(found: Found): Lookup {
  return { found, ttlMs: NEGATIVE_TTL_MS };
}

function temporary(reason: string): Lookup {
  return { found: { kind: 'temporary', reason }, ttlMs: TEMPORARY_TTL_MS };
}
