// What the proxy is told: one frozen Config, parsed once from flags, environment and file.
// Flag beats environment beats file; a repeatable option replaces what a weaker source or the default says.
// Bad input is never thrown: all errors come back together, each naming the option as it was written.

import { readFileSync } from 'node:fs';
import os from 'node:os';
import { resolve } from 'node:path';
import { parseDocument, stringify } from 'yaml';
import {
  type Condition,
  formatHostPort,
  type HostPort,
  type ListenAddress,
  type TlsPolicy,
  toDomain,
} from './option-kinds.ts';
import {
  type AnyOption,
  camelCase,
  envName,
  isOptionName,
  kebabCase,
  nearest,
  OPTION_NAMES,
  OPTIONS,
  type OptionName,
  type OptionValues,
} from './options.ts';
import {
  applyTlsPolicy,
  maskRouteText,
  type Route,
  type WrittenRoute,
  withoutSecrets,
} from './route-option.ts';
import { whyUnreadable } from './unreadable.ts';

export type { Condition, ListenAddress, TlsPolicy } from './option-kinds.ts';
export type { Options } from './options.ts';
export type { Route, StaticHost } from './route-option.ts';

type Mode = 'cut-through' | 'fast-path' | 'spool';
type Fallback = 'none' | 'fast-path' | 'spool';
type MixedPolicy = 'fail' | 'split' | 'spool';
type Dots = 'together' | 'ordered';
export type ForwardClient = 'none' | 'xclient' | 'xforward' | 'proxy';

export type Config = Readonly<{
  mode: Mode;
  fallback: Fallback;
  mixed: MixedPolicy;
  /** With "ordered", `mode` is cut-through (at the start), `mixed` fail and `fallback` none. */
  dots: Dots;
  listen: readonly ListenAddress[];
  /** null = `--http off`. */
  http: HostPort | null;
  /** Addresses in /status. */
  httpDetails: boolean;
  hostname: string;
  routes: readonly Route[];
  /** CIDR strings. */
  trust: readonly string[];
  /** CIDR strings: peers that begin with a PROXY header. */
  proxyProtocol: readonly string[];
  /** CIDR strings: peers that may send XCLIENT and XFORWARD. */
  xclient: readonly string[];
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
  maxSessionsPerNextHop: number;
  sessionIdleTimeoutMs: number;
  sessionMaxAgeMs: number;
  sessionMaxMessages: number;
  maxMessageBytes: number;
  maxRecipients: number;
  maxConnections: number;
  maxBufferedBytes: number;
  maxReceived: number;
  /** Claims 1 and 25. */
  memoryThresholdBytes: number;
  /** As given, so relative to the working directory unless it is absolute. */
  spoolDir: string;
  spoolMinFreeBytes: number;
  ackDeadlineMs: number;
  /** At least one; the last one repeats. */
  retryScheduleMs: readonly number[];
  maxQueueAgeMs: number;
  /** Claim 10. At most one of each kind. */
  disableFastPathWhen: readonly Condition[];
  ledgerTtlMs: number;
  ledgerMax: number;
  /** null: the ledger is in memory alone. */
  ledgerDir: string | null;
  /** File names; both or none. */
  tlsCert: string | null;
  tlsKey: string | null;
  requireTls: boolean;
  downstreamTls: TlsPolicy;
  forwardClient: ForwardClient;
  /** RFC 8461. */
  mtaSts: 'off' | 'on';
  /** RFC 7672. With "on", `dns` isn't empty. */
  dane: 'off' | 'on';
  logLevel: 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace' | 'silent';
  logFormat: 'json' | 'pretty';
  /** Transactions whose time lines are kept; 0: none is recorded, except for the log at debug. */
  traceBuffer: number;
  /** Processes; auto: as many as there are cores. */
  workers: number | 'auto';
}>;

export type ParsedConfig =
  | Readonly<{ ok: true; config: Config; warnings: readonly string[] }>
  /** `tlsFiles` so that `check` can look at the files although something else is wrong. */
  | Readonly<{ ok: false; errors: readonly string[]; tlsFiles: TlsFiles }>;

export type TlsFiles = Pick<Config, 'tlsCert' | 'tlsKey'> &
  Readonly<{ routes: readonly (Route | WrittenRoute)[] }>;

export type ConfigSources = Readonly<{
  /** By name, camelCase or kebab-case, as commander or `createProxy` has them; undefined = not given. */
  flags?: Readonly<Record<string, unknown>>;
  /** The whole environment; only `CUTTHROUGH_*` is read. Repeatable options are separated by white space or commas. */
  env?: Readonly<Record<string, string | undefined>>;
  /** The parsed YAML, camelCase or kebab-case. */
  file?: unknown;
  /** Stands before each error about `file`. */
  fileName?: string | undefined;
  /** What the defaults of `--hostname` and `--log-format` depend on. */
  machine?: Readonly<{ hostname: string; terminal: boolean }>;
}>;

/** An option as one source gives it. */
type Given = Readonly<{ name: OptionName; label: string; raw: unknown; style: Style }>;

/** How a source writes options, so that errors can speak its language. */
type Style = Readonly<{
  label: (name: string) => string;
  written: (label: string, text: string) => string;
  /** Whether one string holds all values of a repeatable option. */
  splits: boolean;
}>;

const FLAG_STYLE: Style = {
  label: (name) => `--${name}`,
  written: (label, text) => `${label} ${text}`,
  splits: false,
};

const ENV_STYLE: Style = { label: envName, written: (label, text) => `${label}=${text}`, splits: true };

const FILE_STYLE: Style = {
  label: camelCase,
  written: (label, text) => `${label}: ${text}`,
  splits: false,
};

/** Reads all sources into one frozen Config, or says everything that is wrong with them. */
export function parseConfig(sources: ConfigSources): ParsedConfig {
  const errors: string[] = [];
  const given = new Map<OptionName, Given>();
  const inRisingOrder = [
    ...givenInFile(sources, errors),
    ...givenInEnv(sources, errors),
    ...givenAsFlags(sources, errors),
  ];
  for (const entry of inRisingOrder) given.set(entry.name, entry);

  const machine = sources.machine ?? { hostname: os.hostname(), terminal: process.stdout.isTTY === true };
  const values = readValues(given, machine, errors);
  const label = (name: OptionName) => given.get(name)?.label ?? FLAG_STYLE.label(name);
  errors.push(...contradictions(values, label));
  if (errors.length > 0) {
    return {
      ok: false,
      errors,
      tlsFiles: {
        tlsCert: values.tlsCert ?? null,
        tlsKey: values.tlsKey ?? null,
        routes: (values.routes ?? []).filter((route) => route !== undefined),
      },
    };
  }

  // No error means that every option of the table has its value.
  const complete = values as OptionValues;
  const routes = complete.routes.map((route) => applyTlsPolicy(route, complete.downstreamTls));
  const config = deepFreeze<Config>({ ...complete, routes });
  return { ok: true, config, warnings: warningsAbout(config) };
}

/** `parseConfig` with the file that `--config` or CUTTHROUGH_CONFIG names, read anew at each call. */
export function loadConfig(sources: Pick<ConfigSources, 'flags' | 'env' | 'machine'>): ParsedConfig {
  const fileName = sources.flags?.config ?? (sources.env?.CUTTHROUGH_CONFIG || undefined);
  if (typeof fileName !== 'string') return parseConfig(sources);
  const read = readYaml(fileName);
  const parsed = parseConfig({ ...sources, file: read.content, fileName });
  if (read.errors.length === 0) return parsed;
  const { errors, tlsFiles } = parsed.ok ? { errors: [], tlsFiles: parsed.config } : parsed;
  return { ok: false, errors: [...read.errors, ...errors], tlsFiles };
}

function readYaml(fileName: string): { content: unknown; errors: string[] } {
  try {
    const document = parseDocument(readFileSync(fileName, 'utf8'));
    const errors = document.errors.map((error) => `${fileName}: ${firstLine(error.message)}`);
    return { content: errors.length === 0 ? document.toJS() : {}, errors };
  } catch (error) {
    return { content: {}, errors: [`--config ${fileName}: cannot be read: ${whyUnreadable(error)}`] };
  }
}

function firstLine(text: string): string {
  return (text.split('\n')[0] ?? '').replace(/:$/, '');
}

function* givenAsFlags({ flags = {} }: ConfigSources, errors: string[]): Generator<Given> {
  for (const [key, raw] of Object.entries(flags)) {
    const name = kebabCase(key);
    if (raw === undefined) continue;
    if (isOptionName(name)) yield { name, label: FLAG_STYLE.label(name), raw, style: FLAG_STYLE };
    else errors.push(unknownOption('flag', key.startsWith('-') ? key : `--${name}`, FLAG_STYLE));
  }
}

function* givenInEnv({ env = {} }: ConfigSources, errors: string[]): Generator<Given> {
  for (const [label, raw] of Object.entries(env)) {
    // Compose files and unit files pass variables on empty when they mean "not set".
    if (!label.startsWith('CUTTHROUGH_') || raw === undefined || raw === '') continue;
    const name = OPTION_NAMES.find((option) => envName(option) === label);
    if (name !== undefined) yield { name, label, raw, style: ENV_STYLE };
    else if (!isServiceLink(label, raw)) errors.push(unknownOption('variable', label, ENV_STYLE));
  }
}

/** What Kubernetes sets in every pod beside a service that is called "cutthrough"; nobody wrote that for us. */
function isServiceLink(label: string, value: string): boolean {
  if (label === 'CUTTHROUGH_PORT') return /^(tcp|udp):\/\//.test(value);
  return /^CUTTHROUGH_(SERVICE_(HOST|PORT(_.*)?)|PORT_\d+_(TCP|UDP)(_.*)?)$/.test(label);
}

function* givenInFile({ file, fileName }: ConfigSources, errors: string[]): Generator<Given> {
  if (file === undefined || file === null) return;
  const prefix = fileName === undefined ? '' : `${fileName}: `;
  if (typeof file !== 'object' || Array.isArray(file)) {
    errors.push(`${fileName ?? 'the config file'}: must be a map of options, such as "mxPort: 25"`);
    return;
  }
  const seen = new Set<string>();
  for (const [key, raw] of Object.entries(file)) {
    const name = kebabCase(key);
    const label = prefix + key;
    if (raw === undefined) continue;
    if (seen.has(name))
      errors.push(`${label}: is there twice, as ${camelCase(name)} and as ${name}; keep one`);
    else if (name === 'config') errors.push(`${label}: one config file cannot name another; use --config`);
    else if (isOptionName(name)) yield { name, label, raw, style: FILE_STYLE };
    else errors.push(unknownOption('key', label, FILE_STYLE));
    seen.add(name);
  }
}

function unknownOption(what: 'flag' | 'variable' | 'key', label: string, style: Style): string {
  const known = OPTION_NAMES.map(style.label);
  return `${label}: unknown ${what}; the nearest known one is ${nearest(lastWord(label), known)}`;
}

/** The key without the name of its file. */
function lastWord(label: string): string {
  return label.slice(label.lastIndexOf(' ') + 1);
}

/** The value of every option, given or default; one with an error is left out. */
function readValues(
  given: ReadonlyMap<OptionName, Given>,
  machine: NonNullable<ConfigSources['machine']>,
  errors: string[],
): Partial<OptionValues> {
  const foundOut: Partial<Record<OptionName, string>> = {
    // A container's name may be all digits, which is no domain; that must not keep the proxy from starting.
    hostname: toDomain(machine.hostname) ?? 'localhost',
    'log-format': machine.terminal ? 'pretty' : 'json',
  };
  const values = new Map<string, unknown>();
  for (const name of OPTION_NAMES) {
    const option: AnyOption = OPTIONS[name];
    const preset = {
      name,
      label: FLAG_STYLE.label(name),
      raw: foundOut[name] ?? option.default,
      style: FLAG_STYLE,
    };
    const entry = given.get(name) ?? preset;
    const before = errors.length;
    const value = entry.raw === null && entry === preset ? null : readValue(option, entry, errors);
    if (option.field !== null && errors.length === before) values.set(option.field, value);
  }
  return Object.fromEntries(values) as Partial<OptionValues>;
}

function readValue(option: AnyOption, given: Given, errors: string[]): unknown {
  const texts = toTexts(option, given);
  if (typeof texts === 'string') {
    errors.push(`${given.label}: ${texts}`);
    return undefined;
  }
  const values = texts.map((text) => readText(option, given, text, errors));
  return option.takes === 'many' ? values : values[0];
}

/** The texts of an option's values, or what is wrong with their shape. */
function toTexts(option: AnyOption, { raw, style }: Given): readonly string[] | string {
  const list = Array.isArray(raw) ? raw : [raw];
  const mayBeList = option.takes === 'many' || option.commas === true;
  if (list.some((item) => item === null || typeof item === 'object' || item === undefined)) {
    return mayBeList ? 'must be a value or a list of values' : 'must have one value';
  }
  if (Array.isArray(raw) && !mayBeList) return 'takes one value, not a list';
  if (option.takes !== 'many') return [list.join(',')];
  const between = option.commas ? /\s+/ : /[\s,]+/;
  const texts = list.flatMap((item) =>
    style.splits ? String(item).split(between).filter(Boolean) : String(item),
  );
  if (option.atLeastOne) return texts.length > 0 ? texts : 'needs at least one value';
  return texts.length === 1 && texts[0] === 'none' ? [] : texts;
}

function readText(option: AnyOption, given: Given, text: string, errors: string[]): unknown {
  const written = given.style.written(given.label, printable(option, text));
  const result = option.kind.codec.safeDecode(text);
  if (!result.success) {
    errors.push(`${written}: ${result.error.issues[0]?.message}`);
  }
  return result.data;
}

/** The value for an error message: on one line, of bounded length and without a password. */
function printable(option: AnyOption, text: string): string {
  const masked = option === OPTIONS.route ? maskRouteText(text) : text;
  const short = masked.length > 200 ? `${masked.slice(0, 200)}...` : masked;
  return short === '' || /[\x00-\x1f\x7f]/.test(short) ? JSON.stringify(short) : short;
}

/** Values that are good by themselves but not together. Those that had an error are not looked at again. */
function contradictions(values: Partial<OptionValues>, label: (name: OptionName) => string): string[] {
  return [...aboutModes(values, label), ...aboutTlsAndAddresses(values, label)];
}

function aboutModes(values: Partial<OptionValues>, label: (name: OptionName) => string): string[] {
  const { mode, fallback, mixed, dots, disableFastPathWhen = [], spoolDir, ledgerDir } = values;
  const found: string[] = [];
  if (spoolDir !== undefined && ledgerDir && resolve(ledgerDir) === resolve(spoolDir))
    found.push(
      `${label('ledger-dir')} ${ledgerDir}: is the spool's directory; give the ledger one of its own`,
    );
  const cutThroughOnly = (name: 'fallback' | 'mixed' | 'dots', value: string) => {
    const instead = `leave it out, or use ${lastWord(label('mode'))} cut-through`;
    found.push(`${label(name)} ${value}: has no use in mode ${mode}, which queues by itself; ${instead}`);
  };
  if (mode === 'fast-path' || mode === 'spool') {
    if (fallback !== undefined && fallback !== 'none') cutThroughOnly('fallback', fallback);
    if (mixed === 'spool' || mixed === 'split') cutThroughOnly('mixed', mixed);
    if (dots === 'ordered') cutThroughOnly('dots', dots);
  } else if (dots === 'ordered') found.push(...uselessDots({ fallback, mixed }, label));
  for (const [index, { kind }] of disableFastPathWhen.entries()) {
    if (disableFastPathWhen.findIndex((other) => other.kind === kind) < index) {
      found.push(`${label('disable-fast-path-when')} ${kind}: this condition is there twice; keep one`);
    }
  }
  return found;
}

/** Where the queue has what others miss, withholding it only delays it; and one destination has nobody to wait for. */
function uselessDots(
  { fallback = 'none', mixed = 'fail' }: Partial<OptionValues>,
  label: (name: OptionName) => string,
): string[] {
  const useless = (why: string) =>
    `${label('dots')} ordered: has no use with ${why}; leave it out, or use ${lastWord(label('mixed'))} fail ` +
    `and ${lastWord(label('fallback'))} none`;
  if (fallback !== 'none')
    return [useless(`${label('fallback')} ${fallback}, which queues what a destination misses`)];
  if (mixed === 'spool') return [useless(`${label('mixed')} spool, which queues what a destination misses`)];
  if (mixed === 'split') return [useless(`${label('mixed')} split, which has one destination at a time`)];
  return [];
}

function aboutTlsAndAddresses(values: Partial<OptionValues>, label: (name: OptionName) => string): string[] {
  const { tlsCert, tlsKey, requireTls, downstreamTls, dane, dns, listen = [], routes = [] } = values;
  const noTls = tlsCert === null && tlsKey === null;
  const both = `${label('tls-cert')} and ${label('tls-key')}`;
  const found: string[] = [];
  if (tlsCert && tlsKey === null)
    found.push(`${label('tls-cert')} ${tlsCert}: needs ${label('tls-key')} as well`);
  if (tlsKey && tlsCert === null)
    found.push(`${label('tls-key')} ${tlsKey}: needs ${label('tls-cert')} as well`);
  if (dane === 'on' && dns?.length === 0)
    found.push(
      `${label('dane')} on: needs ${label('dns')} with resolvers that check DNSSEC, on this machine or a safe network`,
    );
  if (requireTls && noTls) found.push(`${label('require-tls')}: needs ${both}`);
  for (const [index, address] of listen.entries()) {
    const url = `${address.protocol}://${formatHostPort(address)}`;
    const isSame = (other: ListenAddress) => formatHostPort(other) === formatHostPort(address);
    if (address.protocol === 'smtps' && noTls) found.push(`${label('listen')} ${url}: needs ${both}`);
    if (address.port !== 0 && listen.findIndex(isSame) < index) {
      found.push(`${label('listen')} ${url}: this address is there twice; keep one`);
    }
  }
  for (const [index, { pattern, nextHop }] of routes.entries()) {
    const hosts = nextHop.kind === 'static' ? nextHop.hosts : [];
    const without = ({ protocol, tls, sni, ca }: (typeof hosts)[number]) =>
      sni !== null && ca === null && tls === null && protocol !== 'smtps';
    if (downstreamTls === 'off' && hosts.some(without)) {
      found.push(
        `${label('route')} ${pattern}=: has sni=, but no TLS by ${label('downstream-tls')} off; add tls=`,
      );
    }
    if (routes.findIndex((other) => other.pattern === pattern) < index) {
      found.push(
        `${label('route')} ${pattern}=: this pattern is there twice; put all its hosts in one, comma-separated`,
      );
    }
  }
  return found;
}

// RFC 5321 §4.5.3.2.3: a client waits 5 minutes for the reply to RCPT.
const RCPT_TIMEOUT_OF_CLIENTS_MS = 300_000;
// RFC 5321 §4.5.3.2.6: and 10 minutes for the reply to its final dot.
const DOT_TIMEOUT_OF_CLIENTS_MS = 600_000;

function warningsAbout(config: Config): readonly string[] {
  const warnings: string[] = [];
  const open = config.trust.filter((network) => network.endsWith('/0'));
  if (open.length > 0)
    warnings.push(`trust ${open.join(' ')}: everybody may relay to any domain (an open relay)`);
  for (const name of ['proxyProtocol', 'xclient'] as const) {
    const all = config[name].filter((network) => network.endsWith('/0'));
    if (all.length > 0)
      warnings.push(`${name} ${all.join(' ')}: everybody may pass for a client that --trust names`);
  }
  if (config.rcptDeadlineMs >= RCPT_TIMEOUT_OF_CLIENTS_MS) {
    warnings.push('rcptDeadline: clients wait 5m for an RCPT (RFC 5321 §4.5.3.2.3) and will be gone by then');
  }
  if (config.ackDeadlineMs >= DOT_TIMEOUT_OF_CLIENTS_MS) {
    warnings.push(
      'ackDeadline: clients wait 10m for the reply to a message (RFC 5321 §4.5.3.2.6) and will send it again',
    );
  }
  if (!config.hostname.includes('.') && config.routes.some(({ nextHop }) => nextHop.kind === 'mx')) {
    // RFC 5321 §2.3.5: only fully qualified names may be given in EHLO, and many MX hosts insist.
    warnings.push(
      `hostname ${config.hostname}: MX hosts may refuse a name without a domain; give --hostname`,
    );
  }
  return warnings;
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) Object.values(Object.freeze(value)).forEach(deepFreeze);
  return value;
}

/** The effective config as YAML that can be fed back in by `--config`, with the passwords of routes masked. */
export function describeConfig(config: Config): string {
  return stringify(effectiveOptions(config), { lineWidth: 0 });
}

/** The same as values. */
export function effectiveOptions(config: Config): Readonly<Record<string, unknown>> {
  const routes = config.routes.map((route) => withoutSecrets(route, config.downstreamTls));
  const fields: Readonly<Record<string, unknown>> = { ...config, routes };
  const settings: Record<string, unknown> = {};
  for (const name of OPTION_NAMES) {
    const option: AnyOption = OPTIONS[name];
    const value = option.field === null ? null : fields[option.field];
    const encode = (item: unknown) => scalar(option.kind.codec.encode(item));
    if (option.takes === 'many' && Array.isArray(value)) settings[camelCase(name)] = value.map(encode);
    // Null stands for "none", and has a word of its own only where it isn't the absence of the option.
    else if (option.field !== null && (value !== null || option.takes === 'one'))
      settings[camelCase(name)] = encode(value);
  }
  return settings;
}

/** Numbers and booleans stand in YAML as such. */
function scalar(text: string): string | number | boolean {
  if (text === 'true' || text === 'false') return text === 'true';
  return /^(0|[1-9]\d{0,14})$/.test(text) ? Number(text) : text;
}
