// `cutthrough probe ADDRESS`: how an address would be routed, and what its servers say up to RCPT. Sends no message.
// Every host is asked once, without retries. Nothing here throws for what a peer or the DNS does.
import type { Config } from '../config.ts';
import { openSession } from '../downstream/connect.ts';
import { introductionTo } from '../downstream/forward-client.ts';
import type { DownstreamSession, Exchange, ReplyPhase } from '../downstream/session.ts';
import { addressesOf } from '../routing/addresses.ts';
import { PolicyCache } from '../routing/mta-sts.ts';
import type { HopHost, NextHop, RouteResult } from '../routing/routes.ts';
import { createRouting, type Outside } from '../routing/routing.ts';
import { type Mailbox, parseRcpt } from '../smtp/address.ts';
import { formatReply } from '../smtp/reply.ts';
import { colourOfCode, columns, type Paint } from '../terminal.ts';

/** The steps of a session, in their order. With STARTTLS, `tls` is the handshake and the second EHLO. */
const STEPS = ['connect', 'tls', 'greeting', 'ehlo', 'mail', 'rcpt'] as const;
type Step = (typeof STEPS)[number];

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
  /** What it was told of the client, where --forward-client has it told: that there is none. */
  client: string | null;
  /** The replies to MAIL FROM:<> and RCPT. */
  mail: string | null;
  rcpt: string | null;
  /** How long each step took; null where it did not come to it. */
  ms: Readonly<Record<Step, number | null>>;
}>;

type ProbeReport = Readonly<{
  address: string;
  route: string;
  mx: readonly Readonly<{ preference: number; host: string; address: string }>[];
  hosts: readonly HostReport[];
  /** Some host said 2xx to the RCPT. */
  ok: boolean;
}>;

export type Probed = Readonly<{
  /** In one line; null where some server takes the address. */
  failure: string | null;
  /** For scripts. */
  json: unknown;
  /** For people. */
  lines: (paint: Paint) => readonly string[];
}>;

/** Null where it is no address. */
export async function probeAddress(
  config: Config,
  address: string,
  outside: Outside = {},
): Promise<Probed | null> {
  const parsed = parseRcpt(`RCPT TO:<${address}>`, { smtputf8: true });
  if (!parsed.ok) return null;
  const report = await probe(config, parsed.mailbox, outside);
  const failure = report.ok ? null : `${report.address} -> ${report.route}: ${verdictOf(report)}`;
  return { failure, json: report, lines: (paint) => render(report, paint) };
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
  const introduction = introductionTo(nextHop, config.forwardClient, null);
  const client = introduction && AS_CLIENT[introduction.kind];
  const none = { connected: false, verified: null, capabilities: [], client, mail: null, rcpt: null };
  const deadline = AbortSignal.timeout(config.rcptDeadlineMs);
  const watch = new StopWatch();
  const opened = await openSession(
    { ...nextHop, hosts: [host] },
    {
      config: { ...config, connectRetries: 0 },
      lookup: (name) => addressesOf(name, config.dns),
      onResult: () => {},
      onRetry: () => {},
      onReply: (phase) => watch.onReply(phase),
      introduction,
    },
    deadline,
    { onStep: (step) => watch.done(step), onTried: () => {} },
  );
  if (opened.kind === 'unreachable') return { ...at, ...none, detail: opened.reason, ms: watch.times };
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
    client,
    mail,
    rcpt,
    ms: watch.times,
  };
  await session.quit();
  return report;
}

/** XFORWARD comes with a message. */
const AS_CLIENT = {
  proxy: 'LOCAL (PROXY protocol)',
  xclient: '[UNAVAILABLE] (XCLIENT)',
  xforward: null,
} as const;

/** A step lasts from the end of the one before. Of several addresses the last one tried is timed. */
class StopWatch {
  times: Readonly<Record<Step, number | null>> = UNTIMED;
  #since = performance.now();

  done(step: Step): void {
    const now = performance.now();
    // Another address, or the same one again.
    const earlier = step === 'connect' ? UNTIMED : this.times;
    this.times = { ...earlier, [step]: Math.round((now - this.#since) * 10) / 10 };
    this.#since = now;
  }

  onReply(phase: ReplyPhase): void {
    if (phase === 'greeting' || phase === 'mail' || phase === 'rcpt') this.done(phase);
    else if (phase === 'ehlo') this.done(this.times.ehlo === null ? 'ehlo' : 'tls');
  }
}

const UNTIMED: HostReport['ms'] = Object.freeze({
  connect: null,
  tls: null,
  greeting: null,
  ehlo: null,
  mail: null,
  rcpt: null,
});

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

function verdictOf({ ok, hosts }: ProbeReport): string {
  if (ok) return 'accepted';
  return hosts.length === 0 ? 'no server to ask' : 'accepted by no server';
}

function render(report: ProbeReport, paint: Paint): readonly string[] {
  const { address, route, ok, mx, hosts } = report;
  const verdict = paint(ok ? 'green' : 'red', verdictOf(report));
  const byMx = mx.map(({ preference, host, address }) => ['  MX', `${preference}`, host, `[${address}]`]);
  return [
    `${paint('bold', address)} -> ${route}: ${verdict}`,
    ...columns(byMx),
    ...hosts.flatMap((host) => ['', ...renderHost(host, paint)]),
  ];
}

function renderHost(report: HostReport, paint: Paint): readonly string[] {
  const { host, address, port, protocol, connected, detail, policy, verified } = report;
  const { capabilities, client, mail, rcpt, ms } = report;
  const at = `${protocol}://${host}:${port}${address === null || address === host ? '' : ` [${address}]`}`;
  const reply = (text: string) =>
    paint(colourOfCode(Number(text.slice(0, 3)) || 500), text.replaceAll('\r\n', ' / '));
  const took = STEPS.filter((step) => ms[step] !== null).map((step) => `${step} ${ms[step]}`);
  const rows: string[][] = [];
  if (connected) rows.push(['  TLS', detail]);
  rows.push(['  policy', verified === null ? policy : `${policy}; ${verified}`]);
  if (client !== null) rows.push(['  client', client]);
  if (capabilities.length > 0) rows.push(['  offers', capabilities.join(', ')]);
  if (mail !== null) rows.push(['  MAIL FROM:<>', reply(mail)]);
  if (rcpt !== null) rows.push(['  RCPT', reply(rcpt)]);
  if (took.length > 0) rows.push(['  took ms', paint('dim', took.join(', '))]);
  return [
    `${paint('bold', at)} ${connected ? paint('green', 'connected') : paint('red', `not connected: ${detail}`)}`,
    ...columns(rows),
  ];
}
