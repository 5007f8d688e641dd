// The value of `--route PATTERN=NEXTHOP`: its reading, its writing, and the masking of the password in it.
// TLS stays null where a host says nothing, because `--downstream-tls` is only known once every option is.

import {
  BadValue,
  choice,
  formatHostPort,
  type Kind,
  kind,
  parseHostPort,
  type TlsPolicy,
  toDomain,
} from './option-kinds.ts';

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

type WrittenHost = Omit<StaticHost, 'tls'> & Readonly<{ tls: TlsPolicy | null }>;

/** A route before `--downstream-tls` is applied. */
export type WrittenRoute = Readonly<{
  pattern: string;
  nextHop: Readonly<{ kind: 'mx' }> | Readonly<{ kind: 'static'; hosts: readonly WrittenHost[] }>;
}>;

const DEFAULT_PORTS = { smtp: 25, smtps: 465, lmtp: 24 } as const;

/** `--downstream-tls` and `?tls=`. */
export const tlsPolicy: Kind<TlsPolicy> = choice(['opportunistic', 'require', 'verify', 'off']);

export const route: Kind<WrittenRoute> = kind('PATTERN=NEXTHOP', decodeRoute, encodeRoute);

function decodeRoute(text: string): WrittenRoute {
  const equals = text.indexOf('=');
  if (equals < 0)
    throw new BadValue('must be PATTERN=NEXTHOP, such as *=mx or example.com=smtp://10.0.0.5:25');
  const written = text.slice(0, equals).trim();
  const dot = written.startsWith('.') ? '.' : '';
  const domain = written === '*' ? '*' : toDomain(written.slice(dot.length));
  if (domain === null) throw new BadValue('needs a pattern: example.com, .example.com (subdomains) or *');
  const target = text.slice(equals + 1).trim();
  if (target === 'mx') return { pattern: dot + domain, nextHop: { kind: 'mx' } };
  return { pattern: dot + domain, nextHop: { kind: 'static', hosts: target.split(',').map(decodeHost) } };
}

function decodeHost(text: string): WrittenHost {
  const url = /^(smtps?|lmtp):\/\/(?:(.*)@)?([^/?#@]*)\/?(?:\?([^@]*))?$/i.exec(text.trim());
  if (url === null) {
    throw new BadValue(
      'needs a next hop: mx, or comma-separated smtp://[user:pass@]host:port (smtps://, lmtp://), ' +
        'with , as %2C and % as %25 in a password',
    );
  }
  const protocol = (url[1] ?? '').toLowerCase() as StaticHost['protocol'];
  const address = parseHostPort(url[3] ?? '', 1, DEFAULT_PORTS[protocol]);
  const tls = decodeQuery(url[4]);
  if (protocol === 'smtps' && tls === 'off')
    throw new BadValue('has smtps:// with tls=off; use smtp:// instead');
  return { protocol, ...address, auth: url[2] === undefined ? null : decodeAuth(url[2]), tls };
}

function decodeAuth(text: string): { user: string; pass: string } {
  const colon = text.indexOf(':');
  if (colon < 1) throw new BadValue('needs both user and password: smtp://user:pass@host:port');
  const [user, pass] = [text.slice(0, colon), text.slice(colon + 1)].map(percentDecode);
  // NUL separates the fields of AUTH PLAIN (RFC 4616 §2); no other control character belongs in one either.
  if (!user || !pass || /[\x00-\x1f\x7f]/.test(user + pass)) {
    throw new BadValue('has an empty user or password, or a control character in one');
  }
  return { user, pass };
}

function percentDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new BadValue('has a broken percent escape in user or password; write % as %25');
  }
}

function decodeQuery(query: string | undefined): TlsPolicy | null {
  if (query === undefined || query === '') return null;
  const [, policy] = /^tls=(.*)$/.exec(query) ?? [];
  if (policy === undefined) throw new BadValue('takes only ?tls= after a host; for example ?tls=verify');
  const parsed = tlsPolicy.codec.safeDecode(policy);
  if (!parsed.success) throw new BadValue(`has a bad ?tls=: ${parsed.error.issues[0]?.message}`);
  return parsed.data;
}

function encodeRoute({ pattern, nextHop }: WrittenRoute): string {
  return `${pattern}=${nextHop.kind === 'mx' ? 'mx' : nextHop.hosts.map(encodeHost).join(',')}`;
}

function encodeHost(host: WrittenHost): string {
  const auth = host.auth && `${encodeURIComponent(host.auth.user)}:${encodeURIComponent(host.auth.pass)}@`;
  const query = host.tls === null ? '' : `?tls=${host.tls}`;
  return `${host.protocol}://${auth ?? ''}${formatHostPort(host)}${query}`;
}

/** Fills in the TLS policy of each host that has none of its own. */
export function applyTlsPolicy({ pattern, nextHop }: WrittenRoute, policy: TlsPolicy): Route {
  if (nextHop.kind === 'mx') return { pattern, nextHop };
  // smtps:// is TLS from the first byte, so "off" for the others can only mean "don't verify" for it.
  const inherited = (host: WrittenHost) =>
    host.protocol === 'smtps' && policy === 'off' ? 'require' : policy;
  const hosts = nextHop.hosts.map((host) => ({ ...host, tls: host.tls ?? inherited(host) }));
  return { pattern, nextHop: { kind: 'static', hosts } };
}

/** The route with each password replaced by `***`, and without a `?tls=` that `policy` implies. */
export function withoutSecrets(value: Route, policy: TlsPolicy): WrittenRoute {
  if (value.nextHop.kind === 'mx') return { pattern: value.pattern, nextHop: value.nextHop };
  const hosts = value.nextHop.hosts.map((host) => ({
    ...host,
    auth: host.auth && { user: host.auth.user, pass: '***' },
    tls: host.tls === policy ? null : host.tls,
  }));
  return { pattern: value.pattern, nextHop: { kind: 'static', hosts } };
}

/**
 * Masks what may be a password in the text of a route, however malformed, for use in an error message:
 * in each URL everything between the first colon of its credentials and the last `@`.
 */
export function maskRouteText(text: string): string {
  return text
    .split(/,(?=\s*[a-z]+:\/\/)/i)
    .map((url) => url.replace(/^([^=:/@]*=)?(\s*[a-z][a-z0-9+.-]*:\/*)?([^:@]*):.*@/is, '$1$2$3:***@'))
    .join(',');
}
