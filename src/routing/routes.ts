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
  relayingDenied,
  routingLoop,
  unroutable,
} from '../smtp/reply.ts';
import type { Candidate, MxResolver, MxResult } from './mx.ts';

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
  /** Port at mail exchangers. */
  mxPort: number;
  mxTls: TlsPolicy;
}>;

const MAX_NAME = 100;
const SMTP_PORT = 25;

export function createRouter(deps: RouterDeps): Router {
  const targets = new Map(
    deps.routes.map(({ pattern, nextHop }) => [
      pattern,
      nextHop.kind === 'mx' ? ('mx' as const) : staticNextHop(nextHop.hosts),
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
  const found = await deps.mx.resolve(domain);
  if (found.kind !== 'hosts') return found;
  return { kind: 'next-hop', nextHop: mxNextHop(found.candidates, deps) };
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
    case 'no-route':
      return relayingDenied();
    default:
      return found satisfies never;
  }
}

function staticNextHop(written: readonly StaticHost[]): NextHop {
  const hosts = written.map(({ protocol, host, port, auth, tls }) => {
    const address = isIP(host) === 0 ? null : host;
    return { protocol, host, address, port, auth, tls };
  });
  // Hashed because a password is part of what tells two next hops apart, and must not be readable in a key.
  const key = createHash('sha256').update(JSON.stringify(hosts)).digest('base64url');
  const names = hosts.map(
    (host) => `${host.protocol}://${formatHostPort({ ...host, host: short(host.host) })}`,
  );
  return { key: `static:${key}`, label: label(names), hosts };
}

function mxNextHop(candidates: readonly Candidate[], { mxPort, mxTls }: RouterDeps): NextHop {
  const hosts = candidates.map(({ host, address }) => {
    return { protocol: 'smtp' as const, host, address, port: mxPort, auth: null, tls: mxTls };
  });
  // Where names are verified, a session that was verified for one name must not carry another's mail.
  const member = ({ host, address, port }: HopHost) =>
    formatHostPort({ host: address ?? host, port }) + (mxTls === 'verify' ? `=${host}` : '');
  const members = [...new Set(hosts.map((host) => member(host)))].sort();
  // By preference and name, not as shuffled, so that one next hop has one label.
  const named = candidates.toSorted((a, b) => a.preference - b.preference || (a.host < b.host ? -1 : 1));
  const names = named.map(({ host }) =>
    mxPort === SMTP_PORT ? short(host) : formatHostPort({ host: short(host), port: mxPort }),
  );
  return { key: `mx:${members.join(',')}`, label: label([...new Set(names)]), hosts };
}

function label(names: readonly string[]): string {
  const others = names.length - 1;
  return others === 0 ? (names[0] ?? '') : `${names[0]} (+${others} more)`;
}

function short(name: string): string {
  return name.length > MAX_NAME ? `${name.slice(0, MAX_NAME)}...` : name;
}
