// What the proxy is told: one frozen Config, parsed once from flags, environment and file.

/** How TLS is used towards a server (`--downstream-tls`, `?tls=` of a route). */
export type TlsPolicy = 'opportunistic' | 'require' | 'verify' | 'off';

export type Mode = 'cut-through' | 'fast-path' | 'spool';
export type Fallback = 'none' | 'fast-path' | 'spool';
export type MixedPolicy = 'fail' | 'split' | 'spool';

/** One `--listen` URL. */
export type ListenAddress = Readonly<{ protocol: 'smtp' | 'smtps'; host: string; port: number }>;

/** One server of a static next hop, as the operator wrote it. */
export type StaticHost = Readonly<{
  protocol: 'smtp' | 'smtps' | 'lmtp';
  host: string;
  port: number;
  auth: Readonly<{ user: string; pass: string }> | null;
  /** From `?tls=`, else `--downstream-tls`. */
  tls: TlsPolicy;
}>;

/** One `--route PATTERN=NEXTHOP`. `pattern` is lower case, A-labels: `example.com`, `.example.com` or `*`. */
export type Route = Readonly<{
  pattern: string;
  nextHop: Readonly<{ kind: 'mx' }> | Readonly<{ kind: 'static'; hosts: readonly StaticHost[] }>;
}>;

export type Config = Readonly<{
  mode: Mode;
  fallback: Fallback;
  mixed: MixedPolicy;
  listen: readonly ListenAddress[];
  /** null = `--http off`. */
  http: Readonly<{ host: string; port: number }> | null;
  hostname: string;
  routes: readonly Route[];
  /** CIDR strings. */
  trust: readonly string[];
  /** Lower case, A-labels; `.example.com` covers subdomains. */
  acceptDomains: readonly string[];
  /** `host:port` of resolvers; empty = the system's. */
  dns: readonly string[];
  mxPort: number;
  mxAllow: readonly string[];
  connectRetries: number;
  connectBackoffMs: number;
  connectTimeoutMs: number;
  greetingTimeoutMs: number;
  commandTimeoutMs: number;
  dataTimeoutMs: number;
  ackTimeoutMs: number;
  rcptDeadlineMs: number;
  idleTimeoutMs: number;
  /** Wait before the greeting for clients that are not trusted. */
  greetingDelayMs: number;
  drainTimeoutMs: number;
  maxMessageBytes: number;
  maxRecipients: number;
  maxConnections: number;
  maxBufferedBytes: number;
  maxReceived: number;
  /** File names; both or none. */
  tlsCert: string | null;
  tlsKey: string | null;
  requireTls: boolean;
  downstreamTls: TlsPolicy;
  logLevel: 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace' | 'silent';
  logFormat: 'json' | 'pretty';
}>;
