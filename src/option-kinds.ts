// The kinds of value an option can have: how its text is read, and how a value is written back.
// Every kind is a zod codec between the operator's text and the value in Config, so that what
// `describeConfig` prints can always be fed back in. Bad text is a zod issue that says what to write instead.

import { isIP } from 'node:net';
import { domainToASCII } from 'node:url';
import ipaddr from 'ipaddr.js';
import { z } from 'zod';

/** How TLS is used towards a server (`--downstream-tls`, `?tls=` of a route). */
export type TlsPolicy = 'opportunistic' | 'require' | 'verify' | 'off';

/** A host and a port. IPv6 addresses stand without their brackets. */
export type HostPort = Readonly<{ host: string; port: number }>;

/** One `--listen` URL. Port 0 = any free port. */
export type ListenAddress = Readonly<{ protocol: 'smtp' | 'smtps' | 'lmtp'; host: string; port: number }>;

/** One `--disable-fast-path-when`: it holds while what it measures is above its limit. */
export type Condition =
  | Readonly<{ kind: 'buffered'; percent: number }>
  | Readonly<{ kind: 'event-loop-lag' | 'spool-latency'; ms: number }>
  /** Nothing is measured; says that only the switch disables the fast path, which it can whatever the conditions. */
  | Readonly<{ kind: 'manual' }>;

/** `arg` is what the help shows in place of a value; `choices` are all values, where they can be told. */
export type Kind<T> = Readonly<{ arg: string; codec: z.ZodType<T, string>; choices?: readonly string[] }>;

/** Text that is not a value of its kind. The message completes a sentence that begins with the option. */
export class BadValue extends Error {}

/** A kind from two plain functions; `decode` throws {@link BadValue}. */
export function kind<T>(arg: string, decode: (text: string) => T, encode: (value: T) => string): Kind<T> {
  const codec = z.codec(z.string(), z.custom<T>(), {
    decode: (text, context) => {
      try {
        return decode(text);
      } catch (error) {
        if (!(error instanceof BadValue)) throw error;
        context.issues.push({ code: 'custom', input: text, message: error.message });
        return z.NEVER;
      }
    },
    encode,
  });
  return { arg, codec };
}

/** A whole number from `min` to `max`, both included. */
export function integer(min: number, max = Number.MAX_SAFE_INTEGER): Kind<number> {
  const range = max === Number.MAX_SAFE_INTEGER ? `${min} or more` : `from ${min} to ${max}`;
  const decode = (text: string): number => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) throw new BadValue(`must be a whole number, ${range}`);
    return value;
  };
  return kind('N', decode, String);
}

/** A number of processes, or `auto`: one for each core. */
export const workers: Kind<number | 'auto'> = kind(
  'N|auto',
  (text) => {
    if (text === 'auto') return text;
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= 1 && value <= 256)) throw new BadValue('must be auto, or a whole number from 1 to 256');
    return value;
  },
  String,
);

const SIZE_UNITS = { GiB: 2 ** 30, MiB: 2 ** 20, KiB: 2 ** 10, B: 1 } as const;

/** A size in bytes, at least one. */
export const size: Kind<number> = kind(
  'S',
  (text) => {
    const match = /^(\d+) ?(b|kib|mib|gib)?$/i.exec(text);
    if (match === null) throw new BadValue('must be a size: bytes, or a number with KiB, MiB or GiB (50MiB)');
    const unit = (match[2] ?? 'b').toLowerCase();
    const factor = Object.entries(SIZE_UNITS).find(([name]) => name.toLowerCase() === unit)?.[1] ?? 1;
    const bytes = Number(match[1]) * factor;
    if (bytes < 1 || !Number.isSafeInteger(bytes))
      throw new BadValue('must be at least 1 byte and below 8 PiB');
    return bytes;
  },
  (bytes) => inLargestUnit(bytes, SIZE_UNITS, 'B').replace(/(\d)B$/, '$1'),
);

const DURATION_UNITS = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1000, ms: 1 } as const;

// Node's timers hold a signed 32-bit count; anything longer would fire at once.
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** A duration in milliseconds, from `minMs` to the longest timer that Node has (24 days). */
export function duration(minMs = 1): Kind<number> {
  return kind('D', (text) => decodeDuration(text, minMs), encodeDuration);
}

/** Durations of 1ms or more with commas between: `1m,5m,1h`. */
export const durations: Kind<readonly number[]> = kind(
  'D,D,...',
  (text) => text.split(',').map((each, at) => decodeDuration(each.trim(), 1, `value ${at + 1} `)),
  (list) => list.map(encodeDuration).join(','),
);

/** @param subject begins the error, if the duration is only a part of the value */
function decodeDuration(text: string, minMs: number, subject = ''): number {
  const match = /^(\d+) ?(ms|s|m|h|d)$/.exec(text);
  if (match === null && text !== '0') {
    throw new BadValue(`${subject}must be a duration: a whole number with ms, s, m, h or d (250ms, 30s)`);
  }
  const ms = match === null ? 0 : Number(match[1]) * DURATION_UNITS[match[2] as keyof typeof DURATION_UNITS];
  if (ms < minMs) throw new BadValue(`${subject}must be ${minMs}ms or more`);
  if (ms > LONGEST_TIMER_MS) throw new BadValue(`${subject}must be 24d or less`);
  return ms;
}

function encodeDuration(ms: number): string {
  return ms === 0 ? '0' : inLargestUnit(ms, DURATION_UNITS, 'ms');
}

/** The value with the largest unit that divides it, so that nothing is rounded. */
function inLargestUnit(value: number, units: Readonly<Record<string, number>>, smallest: string): string {
  const unit = Object.keys(units).find((name) => value % (units[name] ?? 1) === 0) ?? smallest;
  return `${value / (units[unit] ?? 1)}${unit}`;
}

/** One of `choices`. */
export function choice<const T extends string>(choices: readonly T[]): Kind<T> {
  const decode = (text: string): T => {
    const found = choices.find((word) => word === text);
    if (found === undefined) throw new BadValue(`must be one of ${choices.join(', ')}`);
    return found;
  };
  return { ...kind(choices.join('|'), decode, (word) => word), choices };
}

const BOOLEANS = new Map([
  ['true', true],
  ['yes', true],
  ['on', true],
  ['1', true],
  ['false', false],
  ['no', false],
  ['off', false],
  ['0', false],
]);

export const boolean: Kind<boolean> = kind(
  '',
  (text) => {
    const value = BOOLEANS.get(text.toLowerCase());
    if (value === undefined) throw new BadValue('must be true or false');
    return value;
  },
  String,
);

export const file = pathName('FILE', 'file');
export const directory = pathName('DIR', 'directory');

/** A path as it was written, not resolved. */
function pathName(arg: string, what: string): Kind<string> {
  const decode = (text: string): string => {
    if (text === '' || text.includes('\0')) throw new BadValue(`must be the name of a ${what}`);
    return text;
  };
  return kind(arg, decode, (name) => name);
}

/** A domain as lower-case A-labels without the final dot (RFC 5890 §2.3.2.1), or null if it isn't one. */
export function toDomain(text: string): string | null {
  // domainToASCII also decodes percents and reads numbers as IPv4 addresses, so plain ASCII never goes through it.
  const ascii = /^[\x00-\x7f]*$/.test(text) ? text.toLowerCase() : domainToASCII(text.replaceAll('%', ' '));
  const domain = ascii.replace(/\.$/, '');
  // RFC 1035 §2.3.4: labels up to 63 octets, names up to 253. Underscores are no host names, but do occur.
  const labels = domain.split('.');
  const wellFormed = labels.every((label) => /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/.test(label));
  // RFC 3696 §2: no top-level domain is all digits, so that would be half an IPv4 address.
  return wellFormed && domain.length <= 253 && !/^\d+$/.test(labels.at(-1) ?? '') ? domain : null;
}

/** `example.com`; with `subdomains` also `.example.com`, which stands for every name below it. */
export function domain(options: { subdomains: boolean }): Kind<string> {
  const decode = (text: string): string => {
    const dot = options.subdomains && text.startsWith('.') ? '.' : '';
    const name = toDomain(text.slice(dot.length));
    if (name === null) {
      const shapes = options.subdomains
        ? 'example.com, or .example.com for its subdomains'
        : 'mail.example.com';
      throw new BadValue(`must be a domain: ${shapes}`);
    }
    return dot + name;
  };
  return kind(options.subdomains ? 'DOMAIN' : 'NAME', decode, (name) => name);
}

/** A network such as `10.0.0.0/8`; a bare address is a network of one. Written back without host bits. */
export const cidr: Kind<string> = kind('CIDR', decodeCidr, (network) => network);

function decodeCidr(text: string): string {
  const [address = '', prefix, ...rest] = text.split('/');
  const family = isIP(address);
  const width = family === 4 ? 32 : 128;
  const bits = prefix === undefined ? width : /^\d{1,3}$/.test(prefix) ? Number(prefix) : Number.NaN;
  if (family === 0 || address.includes('%') || rest.length > 0 || !(bits <= width)) {
    throw new BadValue('must be an address or a network: 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32');
  }
  const parsed = ipaddr.parse(address);
  // Clients are compared as IPv4 whenever they are IPv4, so a mapped network would never match (RFC 4291 §2.5.5.2).
  if (parsed instanceof ipaddr.IPv6 && parsed.isIPv4MappedAddress() && bits >= 96) {
    return decodeCidr(`${parsed.toIPv4Address()}/${bits - 96}`);
  }
  const net = family === 4 ? ipaddr.IPv4 : ipaddr.IPv6;
  return `${net.networkAddressFromCIDR(`${address}/${bits}`)}/${bits}`;
}

/** `host:port`, with an IPv6 address in brackets. */
export function formatHostPort({ host, port }: HostPort): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Reads `host:port` and `[::1]:port`; the port may be left out if `defaultPort` is given. Throws BadValue. */
export function parseHostPort(text: string, minPort: 0 | 1, defaultPort?: number): HostPort {
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? toHost(match?.[2] ?? '');
  if (match === null || host === null || (match[1] !== undefined && isIP(match[1]) !== 6)) {
    const hint = isIP(text) === 6 ? `; an IPv6 address needs brackets: [${text}]:25` : '';
    throw new BadValue(`must be host:port${hint}`);
  }
  const port = match[3] === undefined ? defaultPort : Number(match[3]);
  if (port === undefined) throw new BadValue('needs a port: host:port');
  if (port < minPort || port > 65_535) throw new BadValue(`needs a port from ${minPort} to 65535`);
  return { host, port };
}

function toHost(text: string): string | null {
  return isIP(text) === 4 ? text : toDomain(text);
}

/** `--listen`: a URL with host and port. */
export const listenUrl: Kind<ListenAddress> = kind(
  'URL',
  (text) => {
    const [, protocol, rest = ''] = /^([a-z]+):\/\/([^/]*)\/?$/i.exec(text) ?? [];
    const scheme = protocol?.toLowerCase();
    if (scheme !== 'smtp' && scheme !== 'smtps' && scheme !== 'lmtp') {
      throw new BadValue('must be smtp://host:port, smtps://host:port or lmtp://host:port');
    }
    const address = { protocol: scheme, ...parseHostPort(rest, 0) } as const;
    // RFC 2033 §5: whoever connects there expects SMTP.
    if (scheme === 'lmtp' && address.port === 25)
      throw new BadValue('must not be at port 25, which is for SMTP; 24 is usual for LMTP');
    return address;
  },
  (address) => `${address.protocol}://${formatHostPort(address)}`,
);

/** `--http`: `host:port`, or `off` for null. */
export const httpAddress: Kind<HostPort | null> = kind(
  'HOST:PORT',
  (text) => (text === 'off' ? null : parseHostPort(text, 0)),
  (address) => (address === null ? 'off' : formatHostPort(address)),
);

/** `--dns`: a resolver's address, kept as `host:port`, which is what `Resolver.setServers` takes. */
export const dnsServer: Kind<string> = kind(
  'HOST:PORT',
  (text) => {
    const server = isIP(text) === 6 ? { host: text, port: 53 } : parseHostPort(text, 1, 53);
    if (isIP(server.host) === 0) throw new BadValue("must be a resolver's IP address: 192.0.2.53:53");
    return formatHostPort(server);
  },
  (server) => server,
);

const EXAMPLES = {
  buffered: 'buffered>90%',
  'event-loop-lag': 'event-loop-lag>500ms',
  'spool-latency': 'spool-latency>2s',
} as const;

/** `--disable-fast-path-when`: `buffered>90%`, `event-loop-lag>500ms`, `spool-latency>2s` or `manual`. */
export const condition: Kind<Condition> = kind('COND', decodeCondition, (value) => {
  if (value.kind === 'manual') return 'manual';
  const limit = value.kind === 'buffered' ? `${value.percent}%` : encodeDuration(value.ms);
  return `${value.kind}>${limit}`;
});

function decodeCondition(text: string): Condition {
  const [, name, limit] = /^([a-z-]+)(?: *> *(.*))?$/.exec(text) ?? [];
  if (name === 'manual' && limit === undefined) return { kind: name };
  if (name !== 'buffered' && name !== 'event-loop-lag' && name !== 'spool-latency') {
    throw new BadValue('must be buffered>90%, event-loop-lag>500ms, spool-latency>2s or manual');
  }
  // What is left of it when a shell has taken the > for a redirection.
  if (limit === undefined) throw new BadValue(`needs a limit, and quotes in a shell: "${EXAMPLES[name]}"`);
  if (name !== 'buffered') return { kind: name, ms: decodeDuration(limit, 1, 'its limit ') };
  const percent = /^\d{1,3}%$/.test(limit) ? Number(limit.slice(0, -1)) : Number.NaN;
  if (!(percent >= 1 && percent <= 100)) throw new BadValue('needs a limit from 1% to 100%: buffered>90%');
  return { kind: name, percent };
}
