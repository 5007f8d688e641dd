// Where a recipient's mail goes: the operator's --route patterns over the domain, then MX or the servers named there.
// A static next hop is the operator's word: nothing about it is looked up or filtered here.
// Recipients share a leg by the key of their next hop, which stands for the servers and not for the domain.
// Everything that isn't a next hop is an outcome, passed on from the MX resolver.

import { createHash } from 'node:crypto';
import { isIP } from 'node:net';
import type { Route, StaticHost, TlsPolicy } from '../config.ts';
import { formatHostPort } from '../option-kinds.ts';
import {
  dnsTemporary,
  noSuchDomain,
  nullMx,
  type Reply,
  refusedByPolicy,
  relayingDenied,
  routingLoop,
  unroutable,
} from '../smtp/reply.ts';
import { DANE_TA, type Dane, type DaneResult } from './dane.ts';
import type { MtaSts } from './mta-sts.ts';
import type { Candidate, MxResolver, MxResult } from './mx.ts';
import { applyPolicies, type Exchanger, type TlsDemand } from './tls-demand.ts';

/** One server to try. */
export type HopHost = Readonly<{
  protocol: StaticHost['protocol'];
  /** The name for TLS and for messages. */
  host: string;
  /** Null: `host` is to be resolved when connecting. */
  address: string | null;
  port: number;
  auth: StaticHost['auth'];
  tls: TlsPolicy;
  /** The name that is sent (SNI) and verified, where it isn't `host`. */
  sni: string | null;
  /** PEM of the only authorities that are trusted; null: Node's. */
  ca: string | null;
  /** What the recipient's domain itself asks for. */
  demand: TlsDemand | null;
}>;

/** Where a recipient's mail goes. */
export type NextHop = Readonly<{
  /** Recipients with equal keys share a leg. For comparing only; to be shown there is `label`. */
  key: string;
  /** For replies and logs, of bounded length, without credentials: `mx.example.com`, `smtp://10.0.0.5:25`. */
  label: string;
  /** In the order to try. */
  hosts: readonly HopHost[];
}>;

export type RouteResult =
  | Readonly<{ kind: 'next-hop'; nextHop: NextHop }>
  | Exclude<MxResult, { kind: 'hosts' }>
  /** The domain's own policy permits none of its mail exchangers. */
  | Readonly<{ kind: 'policy'; reason: string }>
  /** No pattern matches the domain. */
  | Readonly<{ kind: 'no-route' }>;

export type Router = Readonly<{
  /** `domain`: lower-case A-labels, or an address literal in brackets. Never rejects. */
  route: (domain: string) => RouteResult | Promise<RouteResult>;
  /** Every next hop there is; null where MX routes make them countless. */
  nextHops: readonly NextHop[] | null;
  /** Those that are named by routes, in their order. */
  staticNextHops: readonly NextHop[];
}>;

export type RouterDeps = Readonly<{
  routes: readonly Route[];
  mx: Pick<MxResolver, 'resolve'>;
  /** PEM text by the file name of a `?ca=`. */
  authorities: ReadonlyMap<string, string>;
  /** Port at mail exchangers. */
  mxPort: number;
  mxTls: TlsPolicy;
  /** PEM of the authorities that mail exchangers are verified by; null: Node's. */
  mxAuthorities: string | null;
  /** Null: not looked for. */
  mtaSts: MtaSts | null;
  dane: Dane | null;
}>;

const MAX_NAME = 100;
const SMTP_PORT = 25;

export function createRouter(deps: RouterDeps): Router {
  const targets = new Map(
    deps.routes.map(({ pattern, nextHop }) => [
      pattern,
      nextHop.kind === 'mx' ? ('mx' as const) : staticNextHop(nextHop.hosts, deps.authorities),
    ]),
  );
  const all = [...targets.values()];
  const staticNextHops = all.filter((target) => target !== 'mx');
  return {
    nextHops: staticNextHops.length < all.length ? null : staticNextHops,
    staticNextHops,
    route(domain) {
      const target = mostSpecific(targets, domain);
      if (target === undefined) return { kind: 'no-route' };
      if (target !== 'mx') return { kind: 'next-hop', nextHop: target };
      return routeByMx(domain, deps);
    },
  };
}

async function routeByMx(domain: string, deps: RouterDeps): Promise<RouteResult> {
  const [found, policy] = await Promise.all([deps.mx.resolve(domain), deps.mtaSts?.policyFor(domain)]);
  if (found.kind !== 'hosts') return found;
  const dane = await daneOf(found.candidates, deps.dane);
  const policies = { domain, tls: deps.mxTls, sts: policy ?? null, dane };
  const applied = applyPolicies(found.candidates, policies);
  if (applied.kind !== 'exchangers') return applied;
  for (const host of applied.mismatches)
    deps.mtaSts?.reportFailure(domain, host, 'not named by the MTA-STS policy');
  return { kind: 'next-hop', nextHop: mxNextHop(applied.exchangers, deps) };
}

/** RFC 7672 §2.2: only of hosts that DNSSEC has led to; for the others the answer couldn't be believed. */
async function daneOf(
  candidates: readonly Candidate[],
  dane: Dane | null,
): Promise<ReadonlyMap<string, DaneResult>> {
  if (dane === null) return new Map();
  const secure = new Map(candidates.filter(({ secure }) => secure).map(({ host, alias }) => [host, alias]));
  const lookUp = async (host: string, alias: string | null) =>
    [host, await dane.lookUp(host, alias)] as const;
  return new Map(await Promise.all([...secure].map(([host, alias]) => lookUp(host, alias))));
}

/**
 * What the most specific pattern that matches leads to: `a.b.example`, `.b.example`, `.example`, `*`.
 * No pattern has brackets, so that an address literal is matched by `*` alone.
 */
function mostSpecific<T>(targets: ReadonlyMap<string, T>, domain: string): T | undefined {
  let target = targets.get(domain);
  for (let dot = domain.indexOf('.'); dot !== -1 && target === undefined; dot = domain.indexOf('.', dot + 1))
    target = targets.get(domain.slice(dot));
  return target ?? targets.get('*');
}

/** What a recipient gets whose domain leads to no next hop (INTERFACE.md's table). */
export function refusalOfRoute(found: Exclude<RouteResult, { kind: 'next-hop' }>): Reply {
  switch (found.kind) {
    case 'null-mx':
      return nullMx();
    case 'no-domain':
      return noSuchDomain();
    case 'temporary':
      return dnsTemporary();
    case 'forbidden':
    case 'unroutable':
      return unroutable();
    case 'loop':
      return routingLoop();
    case 'policy':
      return refusedByPolicy(found.reason);
    case 'no-route':
      return relayingDenied();
    default:
      return found satisfies never;
  }
}

function staticNextHop(written: readonly StaticHost[], authorities: RouterDeps['authorities']): NextHop {
  const hosts = written.map(({ protocol, host, port, auth, tls, sni, ca: file }) => {
    const address = isIP(host) === 0 ? null : host;
    const ca = file === null ? null : authorities.get(file);
    if (ca === undefined) throw new Error(`${file} was not read`);
    return { protocol, host, address, port, auth, tls, sni, ca, demand: null };
  });
  // Hashed because a password is part of what tells two next hops apart, and must not be readable in a key.
  const key = createHash('sha256').update(JSON.stringify(hosts)).digest('base64url');
  const names = hosts.map(
    (host) => `${host.protocol}://${formatHostPort({ ...host, host: short(host.host) })}`,
  );
  return { key: `static:${key}`, label: label(names), hosts };
}

function mxNextHop(exchangers: readonly Exchanger[], { mxPort, mxTls, mxAuthorities }: RouterDeps): NextHop {
  const hosts = exchangers.map(({ host, address, tls, sni, demand }) => {
    const at = { protocol: 'smtp' as const, host, address, port: mxPort };
    return { ...at, auth: null, tls, sni, ca: mxAuthorities, demand };
  });
  // A session that was opened under weaker demands, or verified for one name, must not carry another's mail.
  const member = ({ host, address, port, tls, demand }: HopHost) =>
    formatHostPort({ host: address ?? host, port }) +
    (tls === 'verify' ? `=${host}` : tls === mxTls ? '' : `=${tls}`) +
    keyOf(demand);
  const members = [...new Set(hosts.map((host) => member(host)))].sort();
  // By preference and name, not as shuffled, so that one next hop has one label.
  const named = exchangers.toSorted((a, b) => a.preference - b.preference || (a.host < b.host ? -1 : 1));
  const names = named.map(({ host }) =>
    mxPort === SMTP_PORT ? short(host) : formatHostPort({ host: short(host), port: mxPort }),
  );
  return { key: `mx:${members.join(',')}`, label: label([...new Set(names)]), hosts };
}

/** What a session of the next hop has to have been verified by. */
function keyOf(demand: TlsDemand | null): string {
  if (demand?.by !== 'dane' || demand.records.length === 0) return '';
  const records = demand.records.map(({ data, ...rest }) => JSON.stringify([rest, data.toString('base64')]));
  // Names are looked at for DANE-TA alone; without it, domains that share the host share its sessions.
  const names = demand.records.some(({ usage }) => usage === DANE_TA) ? demand.names : [];
  return `=dane:${createHash('sha256').update(records.sort().concat(names).join()).digest('base64url')}`;
}

function label(names: readonly string[]): string {
  const others = names.length - 1;
  return others === 0 ? (names[0] ?? '') : `${names[0]} (+${others} more)`;
}

function short(name: string): string {
  return name.length > MAX_NAME ? `${name.slice(0, MAX_NAME)}...` : name;
}
