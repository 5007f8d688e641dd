// Routing as a whole: routes, MX and what domains demand of TLS, with the real clock, dice and resolvers.
import { performance } from 'node:perf_hooks';
import type { Logger } from 'pino';
import { readAuthorities } from '../certificate.ts';
import type { Config } from '../config.ts';
import { createDane } from './dane.ts';
import { createMtaSts, type MtaSts, type PolicyCache } from './mta-sts.ts';
import { createMxResolver, type MxResolver, systemDns } from './mx.ts';
import { forbiddenUnless } from './networks.ts';
import { httpsPolicyFetch, type PolicyFetch } from './policy-fetch.ts';
import { createRouter, type Router } from './routes.ts';
import { validatingDns } from './validating-dns.ts';

/** What a program or a test may put in the place of the outside world. */
export type Outside = Readonly<{
  fetchPolicy?: PolicyFetch;
  /** PEM of the authorities that mail exchangers are verified by, instead of Node's. */
  mxAuthorities?: string;
}>;

export type RoutingDeps = Readonly<{
  config: Config;
  /** Whether an MX host (or address) is this proxy. */
  isOwn: (host: string, address: string | null) => boolean;
  log: Pick<Logger, 'info' | 'warn'>;
  /** Outlives a reload. */
  policies: PolicyCache;
  /** Ends what is under way. */
  signal: AbortSignal;
  outside: Outside;
}>;

/** `mtaSts`: null where policies aren't looked for. */
export type Routing = Readonly<{ mx: MxResolver; mtaSts: MtaSts | null; router: Router }>;

/** RFC 8461 §3.3 suggests one minute; half of --rcpt-deadline leaves time to deliver without a policy. */
const POLICY_TIMEOUT_MS = 60_000;

/** @throws Error naming the first `?ca=` file that can't be read or holds no certificate */
export function createRouting({ config, isOwn, log, policies, signal, outside }: RoutingDeps): Routing {
  const proving = config.dane === 'on' ? validatingDns(config.dns) : null;
  const dns = proving ?? systemDns(config.dns);
  const now = () => performance.now();
  const mx = createMxResolver({ dns, allow: config.mxAllow, isOwn, now, random: Math.random });
  const timeoutMs = Math.min(POLICY_TIMEOUT_MS, config.rcptDeadlineMs / 2);
  const isForbidden = forbiddenUnless(config.mxAllow);
  const fetch = outside.fetchPolicy ?? httpsPolicyFetch({ dns, isForbidden, timeoutMs, signal });
  const mtaSts = config.mtaSts === 'on' ? createMtaSts({ dns, fetch, cache: policies, log, now }) : null;
  const router = createRouter({
    routes: config.routes,
    authorities: readAuthorities(config.routes),
    mx,
    mxPort: config.mxPort,
    mxTls: config.downstreamTls,
    mxAuthorities: outside.mxAuthorities ?? null,
    mtaSts,
    dane: proving && createDane({ dns: proving, port: config.mxPort, now }),
  });
  return { mx, mtaSts, router };
}
