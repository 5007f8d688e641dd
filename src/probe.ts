// `cutthrough probe ADDRESS`: how an address would be routed, and what its servers say up to RCPT. Sends no message.
// Every host is asked once, without retries. Nothing here throws for what a peer or the DNS does.
import { addressesOf, createRouting, type Outside } from './app.ts';
import type { Config } from './config.ts';
import { openSession } from './downstream/connect.ts';
import type { DownstreamSession, Exchange } from './downstream/session.ts';
import { PolicyCache } from './routing/mta-sts.ts';
import type { HopHost, NextHop, RouteResult } from './routing/routes.ts';
import { type Mailbox, parseRcpt } from './smtp/address.ts';
import { formatReply } from './smtp/reply.ts';

type HostReport = Readonly<{
  host: string;
  address: string | null;
  port: number;
  protocol: string;
  connected: boolean;
  /** Why not, or the TLS version and cipher. */
  detail: string;
  /** What is demanded of TLS, and by whom. */
  policy: string;
  /** How the server was verified, or why it wasn't; null without a connection. */
  verified: string | null;
  capabilities: readonly string[];
  /** The replies to MAIL FROM:<> and RCPT. */
  mail: string | null;
  rcpt: string | null;
}>;

type ProbeReport = Readonly<{
  address: string;
  route: string;
  mx: readonly Readonly<{ preference: number; host: string; address: string }>[];
  hosts: readonly HostReport[];
  /** Some host said 2xx to the RCPT. */
  ok: boolean;
}>;

/** `lines` for people, `json` for scripts. */
export async function probeAddress(config: Config, address: string, outside: Outside = {}) {
  const parsed = parseRcpt(`RCPT TO:<${address}>`, { smtputf8: true });
  if (!parsed.ok)
    return { ok: false, lines: [`${address}: not an address`], json: { address, error: 'bad address' } };
  const report = await probe(config, parsed.mailbox, outside);
  return { ok: report.ok, lines: render(report), json: report };
}

async function probe(config: Config, mailbox: Mailbox, outside: Outside): Promise<ProbeReport> {
  const domain = mailbox.domain ?? config.hostname;
  const { mx, router } = createRouting({
    config,
    isOwn: (host) => host === config.hostname.toLowerCase(),
    log: { info() {}, warn() {} },
    policies: new PolicyCache(),
    signal: AbortSignal.timeout(config.rcptDeadlineMs),
    outside,
  });
  const found = await router.route(domain);
  const base = { address: mailbox.address, route: describeRoute(found) };
  if (found.kind !== 'next-hop') return { ...base, mx: [], hosts: [], ok: false };
  const hosts: HostReport[] = [];
  for (const host of found.nextHop.hosts) hosts.push(await probeHost(config, found.nextHop, host, mailbox));
  // The same answer as the route's, from the cache; a static route has no MX to show.
  const byMx = found.nextHop.hosts.some((host) => host.address !== null) ? await mx.resolve(domain) : null;
  const ok = hosts.some(({ rcpt }) => rcpt?.startsWith('2'));
  return { ...base, mx: byMx?.kind === 'hosts' ? byMx.candidates : [], hosts, ok };
}

function describeRoute(found: RouteResult): string {
  switch (found.kind) {
    case 'next-hop':
      return found.nextHop.label;
    case 'null-mx':
      return 'none: the domain accepts no mail (null MX)';
    case 'no-domain':
      return 'none: the domain does not exist';
    case 'temporary':
      return `none for now: ${found.reason}`;
    case 'forbidden':
      return 'none: every MX address is in a network that needs --mx-allow';
    case 'unroutable':
      return `none: ${found.reason}`;
    case 'loop':
      return 'none: the best MX host is this one';
    case 'policy':
      return `none for now: ${found.reason}`;
    case 'no-route':
      return 'none: no --route matches';
    default:
      return found satisfies never;
  }
}

async function probeHost(
  config: Config,
  nextHop: NextHop,
  host: HopHost,
  mailbox: Mailbox,
): Promise<HostReport> {
  const { demand, protocol } = host;
  const at = {
    host: host.host,
    address: host.address,
    port: host.port,
    protocol,
    policy: describePolicy(host),
  };
  const none = { connected: false, verified: null, capabilities: [], mail: null, rcpt: null };
  const deadline = AbortSignal.timeout(config.rcptDeadlineMs);
  const opened = await openSession(
    { ...nextHop, hosts: [host] },
    {
      config: { ...config, connectRetries: 0 },
      lookup: (name) => addressesOf(name, config.dns),
      onResult: () => {},
      onRetry: () => {},
      onReply: () => {},
    },
    deadline,
  );
  if (opened.kind === 'unreachable') return { ...at, ...none, detail: opened.reason };
  const { session } = opened;
  // The null reverse-path: what a bounce would use, and no sender is checked.
  const mail = await ask(session, 'mail', 'MAIL FROM:<>');
  const rcpt = mail.startsWith('2') ? await ask(session, 'rcpt', `RCPT TO:<${mailbox.address}>`) : null;
  const report = {
    ...at,
    connected: true,
    detail: session.tlsDescription,
    // A session that DANE does not vouch for is never open.
    verified:
      demand?.by === 'dane' && demand.records.length > 0
        ? 'verified by DANE'
        : session.unverified === null
          ? 'verified'
          : `not verified: ${session.unverified}`,
    capabilities: session.offers,
    mail,
    rcpt,
  };
  await session.quit();
  return report;
}

function describePolicy({ tls, demand }: HopHost): string {
  if (demand === null) return `TLS ${tls}`;
  if (demand.by === 'mta-sts') return `MTA-STS ${demand.mode}, TLS ${tls}`;
  const records = demand.records.map(
    ({ usage, selector, matchingType }) => `${usage} ${selector} ${matchingType}`,
  );
  return records.length === 0 ? `DANE without usable records, TLS ${tls}` : `DANE ${records.join(', ')}`;
}

async function ask(session: DownstreamSession, phase: 'mail' | 'rcpt', line: string): Promise<string> {
  const exchange: Exchange = await session.exchange([{ phase, line }])[0]!;
  return exchange.kind === 'reply' ? formatReply(exchange.reply).trim() : `no reply (${exchange.detail})`;
}

function render(report: ProbeReport): string[] {
  const lines = [`${report.address} -> ${report.route}`];
  for (const { preference, host, address } of report.mx)
    lines.push(`  MX ${preference} ${host} [${address}]`);
  for (const host of report.hosts) {
    const at = `${host.protocol}://${host.host}:${host.port}${host.address === null ? '' : ` [${host.address}]`}`;
    lines.push(`  ${at}: ${host.connected ? 'connected' : 'not connected'}, ${host.detail}`);
    lines.push(`    policy ${host.policy}${host.verified === null ? '' : `; ${host.verified}`}`);
    if (host.capabilities.length > 0) lines.push(`    offers ${host.capabilities.join(', ')}`);
    if (host.mail !== null) lines.push(`    MAIL FROM:<> ${host.mail}`);
    if (host.rcpt !== null) lines.push(`    RCPT ${host.rcpt}`);
  }
  return lines;
}
