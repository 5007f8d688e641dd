// The one table of options. Flags, environment variables, YAML keys, defaults, help and the fields of Config
// all come from it, so that none of them can drift from the others.

import type { z } from 'zod';
import {
  boolean,
  choice,
  cidr,
  condition,
  directory,
  dnsServer,
  domain,
  duration,
  durations,
  file,
  httpAddress,
  integer,
  type Kind,
  listenUrl,
  size,
  workers,
} from './option-kinds.ts';
import { route, tlsPolicy } from './route-option.ts';

/** How many values an option takes, and whether it may be without one. */
type Takes = 'one' | 'optional' | 'many';

type Option<T, F extends string | null, K extends Takes> = Readonly<{
  /** Its field in Config; null = none, because there is nothing to choose yet or it isn't for the proxy. */
  field: F;
  takes: K;
  kind: Kind<T>;
  /** As an operator would write it. `null` = no value, or one that is found out at run time. */
  default: string | readonly string[] | null;
  help: string;
  /** A repeatable option that makes no sense without any value. */
  atLeastOne?: true;
  /** A value may have commas in it; where it is the only one, it may be a list in YAML. */
  commas?: true;
}>;

export type AnyOption = Option<unknown, string | null, Takes>;

function one<T, F extends string | null>(
  field: F,
  kind: Kind<T>,
  preset: string,
  help: string,
): Option<T, F, 'one'> {
  return { field, takes: 'one', kind, default: preset, help };
}

function many<T, F extends string>(
  field: F,
  kind: Kind<T>,
  preset: readonly string[],
  help: string,
): Option<T, F, 'many'> {
  return { field, takes: 'many', kind, default: preset, help };
}

function optional<T, F extends string | null>(
  field: F,
  kind: Kind<T>,
  help: string,
): Option<T, F, 'optional'> {
  return { field, takes: 'optional', kind, default: null, help };
}

export const OPTIONS = {
  config: optional(null, file, 'YAML file of options, in camelCase'),

  mode: one('mode', choice(['cut-through', 'fast-path', 'spool']), 'cut-through', 'how mail is passed on'),
  fallback: one(
    'fallback',
    choice(['none', 'fast-path', 'spool']),
    'none',
    'cut-through: what takes over when a next hop cannot be reached now',
  ),
  mixed: one(
    'mixed',
    choice(['fail', 'split', 'spool']),
    'fail',
    'cut-through: several destinations, some accepted and some not, after the final dot',
  ),

  dots: one(
    'dots',
    choice(['together', 'ordered']),
    'together',
    'final dots of several destinations: at once, or one after another until the first refusal',
  ),

  listen: {
    ...many(
      'listen',
      listenUrl,
      ['smtp://127.0.0.1:2525'],
      'smtp://, smtps:// or lmtp://host:port; port 0 = any free port',
    ),
    atLeastOne: true,
  },
  http: one('http', httpAddress, '127.0.0.1:9525', 'metrics, health and status; off disables it'),
  'http-details': one(
    'httpDetails',
    boolean,
    'false',
    'addresses of clients, senders, recipients and next hops in /status and on the page at /',
  ),
  hostname: one(
    'hostname',
    domain({ subdomains: false }),
    'the name of this machine',
    'for greeting, EHLO and Received',
  ),

  route: {
    ...many(
      'routes',
      route,
      ['*=mx'],
      'PATTERN: example.com, .example.com (subdomains) or *; NEXTHOP: mx, or comma-separated ' +
        'smtp://[user:pass@]host:port, smtps://, lmtp://, tried in order, each with an optional ' +
        '?tls=POLICY&sni=NAME&ca=FILE',
    ),
    atLeastOne: true,
    commas: true,
  },
  trust: many('trust', cidr, ['127.0.0.0/8', '::1/128'], 'clients that may relay to any domain'),
  'proxy-protocol': many(
    'proxyProtocol',
    cidr,
    [],
    'peers whose connections begin with a PROXY header, version 1 or 2',
  ),
  xclient: many('xclient', cidr, [], 'peers that XCLIENT and XFORWARD are honoured from'),
  'accept-domain': many(
    'acceptDomains',
    domain({ subdomains: true }),
    [],
    'recipient domains that anybody may send to',
  ),

  dns: many('dns', dnsServer, [], "resolvers for MX, A and AAAA instead of the system's"),
  'mx-port': one('mxPort', integer(1, 65_535), '25', 'port at MX hosts'),
  'mx-allow': many(
    'mxAllow',
    cidr,
    [],
    'private, loopback or other special networks that MX hosts may be in',
  ),

  'connect-retries': one('connectRetries', integer(0, 100), '2', 'connection attempts after the first one'),
  'connect-backoff': one(
    'connectBackoffMs',
    duration(0),
    '250ms',
    'first wait between attempts; doubles up to 5s',
  ),
  'connect-timeout': one('connectTimeoutMs', duration(), '10s', 'for a TCP or TLS connection to a host'),
  'greeting-timeout': one('greetingTimeoutMs', duration(), '30s', "for the next hop's greeting"),
  'command-timeout': one('commandTimeoutMs', duration(), '60s', "for the next hop's reply to a command"),
  'data-timeout': one('dataTimeoutMs', duration(), '180s', 'for the next hop to take more of the message'),
  'ack-timeout': one('ackTimeoutMs', duration(), '600s', "for the next hop's reply to the final dot"),
  'rcpt-deadline': one(
    'rcptDeadlineMs',
    duration(),
    '120s',
    'until an RCPT is answered, all attempts included',
  ),
  'idle-timeout': one(
    'idleTimeoutMs',
    duration(),
    '300s',
    'silence of the client before it is disconnected; a message that keeps up 500 octets/s is never cut off',
  ),
  'greeting-delay': one(
    'greetingDelayMs',
    duration(0),
    '100ms',
    'wait before greeting clients that are not trusted',
  ),
  'drain-timeout': one('drainTimeoutMs', duration(0), '30s', 'for running transactions after SIGTERM'),

  'max-sessions-per-next-hop': one(
    'maxSessionsPerNextHop',
    integer(1),
    '50',
    'downstream sessions with one next hop, those that are kept included',
  ),
  'session-idle-timeout': one(
    'sessionIdleTimeoutMs',
    duration(0),
    '10s',
    'how long a downstream session is kept for the next message; 0s keeps none',
  ),
  'session-max-age': one('sessionMaxAgeMs', duration(), '5m', 'of a downstream session that is used again'),
  'session-max-messages': one('sessionMaxMessages', integer(1), '100', 'over one downstream session'),

  'max-message-size': one('maxMessageBytes', size, '50MiB', 'offered as SIZE, enforced while streaming'),
  'max-recipients': one('maxRecipients', integer(1), '100', 'per transaction'),
  'max-connections': one('maxConnections', integer(1), '1000', 'clients at a time'),
  'max-buffered': one('maxBufferedBytes', size, '256MiB', 'memory for message bytes over the whole process'),
  'max-received': one('maxReceived', integer(1), '50', 'Received lines before a message counts as looping'),

  'memory-threshold': one('memoryThresholdBytes', size, '256KiB', 'bytes of a message kept in memory'),
  'spool-dir': one(
    'spoolDir',
    directory,
    './spool',
    'where messages are queued; pure cut-through never touches it',
  ),
  'spool-min-free': one('spoolMinFreeBytes', size, '100MiB', 'free disk that must be left'),
  'ack-deadline': one(
    'ackDeadlineMs',
    duration(),
    '60s',
    'modes fast-path and spool: how long delivery is tried before a message is queued',
  ),
  'retry-schedule': {
    ...one(
      'retryScheduleMs',
      durations,
      '1m,5m,15m,30m,1h',
      'waits between deliveries from the queue; the last one repeats',
    ),
    commas: true,
  },
  'max-queue-age': one('maxQueueAgeMs', duration(), '5d', 'when delivery is given up, and the sender told'),
  'disable-fast-path-when': many(
    'disableFastPathWhen',
    condition,
    ['buffered>90%', 'event-loop-lag>500ms', 'spool-latency>2s'],
    'conditions that send messages to disk first; manual: nothing but the switch does',
  ),

  'ledger-ttl': one(
    'ledgerTtlMs',
    duration(),
    '24h',
    'how long what became of a message is kept where the client may not know; so its retry makes no duplicates',
  ),
  'ledger-max': one('ledgerMax', integer(1), '100000', 'recipients whose outcomes are kept'),
  'ledger-dir': optional(
    'ledgerDir',
    directory,
    'where mixed outcomes are kept over a restart; without it in memory alone',
  ),

  'tls-cert': optional('tlsCert', file, 'PEM certificate chain; with --tls-key STARTTLS is offered'),
  'tls-key': optional('tlsKey', file, 'PEM private key of --tls-cert'),
  'require-tls': one('requireTls', boolean, 'false', 'clients must STARTTLS before MAIL'),
  'downstream-tls': one(
    'downstreamTls',
    tlsPolicy,
    'opportunistic',
    'TLS towards next hops that have no ?tls=',
  ),
  'mta-sts': one(
    'mtaSts',
    choice(['off', 'on']),
    'off',
    'honour the MTA-STS policies of domains sent to by MX, fetched over HTTPS',
  ),
  dane: one(
    'dane',
    choice(['off', 'on']),
    'off',
    'honour the TLSA records of MX hosts; needs --dns with validating resolvers',
  ),

  'log-level': one(
    'logLevel',
    choice(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']),
    'info',
    'least severe level that is logged',
  ),
  'log-format': one(
    'logFormat',
    choice(['json', 'pretty']),
    'json, pretty on a terminal',
    'one JSON object a line, or text',
  ),
  'trace-buffer': one(
    'traceBuffer',
    integer(0, 10_000),
    '256',
    'how many of the last transactions are kept for "cutthrough trace", 3 KiB each; 0: none is recorded',
  ),

  workers: one(
    'workers',
    workers,
    '1',
    'processes that share the listeners and the limits; auto: one for each core',
  ),
  'forward-client': one(
    'forwardClient',
    choice(['none', 'xclient', 'xforward', 'proxy']),
    'none',
    'how next hops with a --route of their own are told who the client is; MX hosts never are',
  ),
} as const satisfies Record<string, AnyOption>;

type Table = typeof OPTIONS;
export type OptionName = keyof Table;
export const OPTION_NAMES = Object.keys(OPTIONS) as readonly OptionName[];

/** Where in the table a group of the help begins: an option is in the last one that began before it. */
const GROUPS: Readonly<Partial<Record<string, string>>> = {
  config: 'Configuration',
  mode: 'How mail is passed on',
  listen: 'Listening',
  route: 'Routing, and who may send',
  dns: 'MX routing',
  'connect-retries': 'Attempts and timeouts',
  'max-sessions-per-next-hop': 'Downstream sessions',
  'max-message-size': 'Limits',
  'memory-threshold': 'Spool, queue and fast path',
  'ledger-ttl': 'Ledger',
  'tls-cert': 'TLS',
  'log-level': 'Log and traces',
  workers: 'Processes',
  'forward-client': 'Towards next hops',
} satisfies Partial<Record<OptionName, string>>;

/** The heading that the option stands under. */
export function groupOf(name: OptionName): string {
  let group = '';
  for (const each of OPTION_NAMES) {
    group = GROUPS[each] ?? group;
    if (each === name) break;
  }
  return group;
}

/** The values that can be given, where they can be told. */
export function choicesOf({ kind }: AnyOption): readonly string[] {
  return kind.choices ?? [];
}

/** What `Config` holds for an option. */
type ValueOf<O> = O extends { takes: infer K; kind: { codec: z.ZodType<infer T, string> } }
  ? K extends 'many'
    ? readonly T[]
    : K extends 'optional'
      ? T | null
      : T
  : never;

/** The values of all options that have a field in Config, by field. */
export type OptionValues = {
  readonly [N in OptionName as Table[N]['field'] extends string ? Table[N]['field'] : never]: ValueOf<
    Table[N]
  >;
};

type Camel<S extends string> = S extends `${infer Head}-${infer Tail}`
  ? `${Head}${Capitalize<Camel<Tail>>}`
  : S;

type Scalar<T> = T extends boolean | string ? T : T extends number ? number | string : string;

type Written<O> = O extends { takes: infer K; kind: { codec: z.ZodType<infer T, string> } }
  ? K extends 'many'
    ? string | readonly string[]
    : T extends readonly unknown[]
      ? string | readonly string[]
      : Scalar<T>
  : never;

/** Options as the YAML file and `createProxy` take them: camelCase names, values as an operator writes them. */
export type Options = { readonly [N in Exclude<OptionName, 'config'> as Camel<N>]?: Written<Table[N]> };

/** The option's key in YAML and in commander: `mxPort` for `mx-port`. */
export function camelCase(name: string): string {
  return name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** `mx-port` for `mxPort` and `MX_PORT`. */
export function kebabCase(name: string): string {
  const spaced = name.replace(/([a-z0-9])([A-Z])/g, '$1-$2');
  return spaced.toLowerCase().replaceAll('_', '-');
}

/** `CUTTHROUGH_MX_PORT` for `mx-port`. */
export function envName(name: string): string {
  return `CUTTHROUGH_${name.toUpperCase().replaceAll('-', '_')}`;
}

export function isOptionName(name: string): name is OptionName {
  return Object.hasOwn(OPTIONS, name);
}

/** The word of `known` that takes the fewest edits to become; the first one of several. */
export function nearest<T extends string>(word: string, known: readonly T[]): T {
  const ranked = known.map((candidate) => ({ candidate, edits: editDistance(word, candidate) }));
  return ranked.reduce((best, next) => (next.edits < best.edits ? next : best)).candidate;
}

/** Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment). */
function editDistance(a: string, b: string): number {
  let [previous, row]: [number[], number[]] = [[], Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const edits = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + same);
      next.push(swapped ? Math.min(edits, previous[j - 2]! + 1) : edits);
    }
    [previous, row] = [row, next];
  }
  return row[b.length]!;
}
