import type { Route, TlsPolicy } from '../config.ts';
import type { MxResolver, MxResult } from './mx.ts';
export type HopHost = Readonly<{
  protocol: 'smtp' | 'smtps' | 'lmtp';
  host: string;
  address: string | null;
  port: number;
  auth: Readonly<{ user: string; pass: string }> | null;
  tls: TlsPolicy;
}>;
export type NextHop = Readonly<{ key: string; label: string; hosts: readonly HopHost[] }>;
export type RouteResult =
  | { kind: 'next-hop'; nextHop: NextHop }
  | Exclude<MxResult, { kind: 'hosts' }>
  | { kind: 'no-route' };
export interface Router {
  route(domain: string, signal?: AbortSignal): Promise<RouteResult>;
}
export function createRouter(deps: {
  routes: readonly Route[];
  mx: MxResolver;
  mxPort: number;
  mxTls: TlsPolicy;
}): Router {
  return {
    async route(domain) {
      const route = deps.routes.find((r) => r.pattern === domain) ?? deps.routes.find((r) => r.pattern === '*');
      if (route === undefined) return { kind: 'no-route' };
      if (route.nextHop.kind === 'mx') return { kind: 'no-domain' };
      const hosts = route.nextHop.hosts.map((h) => ({ ...h, address: null }));
      const label = hosts.map((h) => `${h.protocol}://${h.host}:${h.port}`).join(',');
      return { kind: 'next-hop', nextHop: { key: label, label, hosts } };
    },
  };
}
