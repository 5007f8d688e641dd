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
  /** From `?tls=`, else "verify" with a `ca`, else `--downstream-tls`. */
  tls: TlsPolicy;
  /** From `?sni=`: the name that is sent and verified instead of `host`. */
  sni: string | null;
  /** From `?ca=`: a PEM file with the only authorities trusted. */
  ca: string | null;
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
  const query = decodeQuery(url[4]);
  if (protocol === 'smtps' && query.tls === 'off')
    throw new BadValue('has smtps:// with tls=off; use smtp:// instead');
  return { protocol, ...address, auth: url[2] === undefined ? null : decodeAuth(url[2]), ...query };
}

function decodeAuth(text: string): { user: string; pass: string } {
  const colon = text.indexOf(':');
  if (colon < 1) throw new BadValue('needs both user and password: smtp://user:pass@host:port');
  const [user, pass] = [text.slice(0, colon), text.slice(colon + 1)].map((part) => percentDecode(part));
  // NUL separates the fields of AUTH PLAIN (RFC 4616 §2); no other control character belongs in one either.
  if (!user || !pass || /[\x00-\x1f\x7f]/.test(user + pass)) {
    throw new BadValue('has an empty user or password, or a control character in one');
  }
  return { user, pass };
}

function percentDecode(text: string, where = 'in user or password'): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new BadValue(`has a broken percent escape ${where}; write % as %25`);
  }
}

type Query = Pick<WrittenHost, 'tls' | 'sni' | 'ca'>;

const QUERY_FORM = '?tls=POLICY&sni=NAME&ca=FILE, each at most once; for example ?tls=verify';

function decodeQuery(query = ''): Query {
  const given = new Map<string, string>();
  for (const part of query.split('&').filter(Boolean)) {
    const [, name = part, value = ''] = /^([^=]*)=(.*)$/s.exec(part) ?? [];
    if (!['tls', 'sni', 'ca'].includes(name) || given.has(name))
      throw new BadValue(`takes only ${QUERY_FORM} after a host`);
    given.set(name, percentDecode(value, `in ${name}=`));
  }
  const { tls, sni, ca } = { tls: null, sni: null, ca: null, ...Object.fromEntries(given) };
  const found = { tls: decodeTls(tls), sni: decodeSni(sni), ca: decodeCa(ca) };
  if (found.tls === 'off' && (sni ?? ca) !== null)
    throw new BadValue('has sni= or ca= with tls=off, which checks nothing; leave one of them out');
  // Nothing else looks at the certificate, and a pin that is accepted and ignored protects nobody.
  if (found.tls !== null && found.tls !== 'verify' && ca !== null)
    throw new BadValue(`has ca= with tls=${tls}, which does not check it; use tls=verify, or leave tls= out`);
  return found;
}

function decodeTls(text: string | null): TlsPolicy | null {
  if (text === null) return null;
  const parsed = tlsPolicy.codec.safeDecode(text);
  if (!parsed.success) throw new BadValue(`has a bad ?tls=: ${parsed.error.issues[0]?.message}`);
  return parsed.data;
}

function decodeSni(text: string | null): string | null {
  if (text === null) return null;
  const name = toDomain(text);
  // RFC 6066 §3: an address is no server name.
  if (name === null) throw new BadValue('has a bad ?sni=: must be a name such as mail.example.com');
  return name;
}

function decodeCa(text: string | null): string | null {
  if (text === '' || text?.includes('\0'))
    throw new BadValue('has a bad ?ca=: must be the name of a PEM file');
  return text;
}

function encodeRoute({ pattern, nextHop }: WrittenRoute): string {
  return `${pattern}=${nextHop.kind === 'mx' ? 'mx' : nextHop.hosts.map(encodeHost).join(',')}`;
}

function encodeHost(host: WrittenHost): string {
  const auth = host.auth && `${encodeURIComponent(host.auth.user)}:${encodeURIComponent(host.auth.pass)}@`;
  const query = [
    ...(host.tls === null ? [] : [`tls=${host.tls}`]),
    ...(host.sni === null ? [] : [`sni=${host.sni}`]),
    ...(host.ca === null ? [] : [`ca=${encodeURIComponent(host.ca).replaceAll('%2F', '/')}`]),
  ].join('&');
  return `${host.protocol}://${auth ?? ''}${formatHostPort(host)}${query && `?${query}`}`;
}

/** Fills in the TLS policy of each host that has none of its own. */
export function applyTlsPolicy({ pattern, nextHop }: WrittenRoute, policy: TlsPolicy): Route {
  if (nextHop.kind === 'mx') return { pattern, nextHop };
  // smtps:// is TLS from the first byte, so "off" for the others can only mean "don't verify" for it.
  const inherited = (host: WrittenHost) =>
    host.ca !== null ? 'verify' : host.protocol === 'smtps' && policy === 'off' ? 'require' : policy;
  const hosts = nextHop.hosts.map((host) => ({ ...host, tls: host.tls ?? inherited(host) }));
  return { pattern, nextHop: { kind: 'static', hosts } };
}

/** The route with each password replaced by `***`, and without a `?tls=` that `policy` or a `?ca=` implies. */
export function withoutSecrets(value: Route, policy: TlsPolicy): WrittenRoute {
  if (value.nextHop.kind === 'mx') return { pattern: value.pattern, nextHop: value.nextHop };
  const hosts = value.nextHop.hosts.map((host) => ({
    ...host,
    auth: host.auth && { user: host.auth.user, pass: '***' },
    tls: host.tls === (host.ca === null ? policy : 'verify') ? null : host.tls,
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
