// XCLIENT and XFORWARD (Postfix's XCLIENT_README and XFORWARD_README): what one in between tells of the client that it
// speaks for. XCLIENT says who the client is, for all purposes; XFORWARD, for one transaction, who the mail came from,
// for the log and --forward-client alone.
// Pure. Syntax errors are replies, and then nothing of the command counts. Values are bounded and harmless.
import { isIP } from 'node:net';
import { canonicalAddress } from '../routing/networks.ts';
import type { Client } from '../smtp/envelope.ts';
import { type Reply, syntax } from '../smtp/reply.ts';

/** What is told to be unknown is '' or 0 or null, as in `Client`; what isn't told is not there. */
export type Told = Readonly<
  Partial<Pick<Client, 'address' | 'port' | 'name' | 'helo' | 'extended'> & { ident: string }>
>;

type Parsed = Readonly<{ ok: true; told: Told } | { ok: false; reply: Reply }>;

/** What an attribute says; null for bad syntax. `value` is '' where it is told to be unknown. */
type Reader = (value: string) => Told | null;
type Readers = ReadonlyMap<string, Reader>;

// What is offered is what is honoured. The others are known, and change nothing: a LOGIN gives no right to relay here.
export const XCLIENT_KEYWORD = 'XCLIENT NAME ADDR PORT PROTO HELO';
export const XFORWARD_KEYWORD = 'XFORWARD NAME ADDR PORT PROTO HELO IDENT';

/** Of an attribute, encoded or not. */
const MAX_VALUE = 255;
const UNKNOWN = new Set(['[UNAVAILABLE]', '[TEMPUNAVAIL]']);
const HOST_NAME = /^[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?$/i;
/** What would mean something in a header field or a command. */
const SPECIALS = /[^\x21-\x7e]|[()<>\\;"@]/g;

const ignored: Reader = () => ({});
const name: Reader = (value) => {
  if (value === '') return { name: null };
  return HOST_NAME.test(value) ? { name: value } : null;
};
const address: Reader = (value) => {
  const text = value.replace(/^ipv6:/i, '');
  if (value === '') return { address: '' };
  return isIP(text) === 0 ? null : { address: canonicalAddress(text)! };
};
const port: Reader = (value) => {
  if (value === '') return { port: 0 };
  return /^\d{1,5}$/.test(value) && Number(value) <= 0xffff ? { port: Number(value) } : null;
};
const helo: Reader = (value) => ({ helo: value.replace(SPECIALS, '?') });
const ident: Reader = (value) => ({ ident: value.replace(SPECIALS, '?') });

const XCLIENT: Readers = new Map<string, Reader>([
  ['NAME', name],
  ['ADDR', address],
  ['PORT', port],
  ['PROTO', (value) => (/^e?smtp$/i.test(value) ? { extended: value.length === 5 } : null)],
  ['HELO', helo],
  ['REVERSE_NAME', ignored],
  ['LOGIN', ignored],
  ['DESTADDR', ignored],
  ['DESTPORT', ignored],
]);

const XFORWARD: Readers = new Map<string, Reader>([
  ['NAME', name],
  ['ADDR', address],
  ['PORT', port],
  // It need not be SMTP at all.
  ['PROTO', (value) => (value.length > 64 ? null : { extended: /^(?:e|utf8)smtp/i.test(value) })],
  ['HELO', helo],
  ['IDENT', ident],
  ['SOURCE', ignored],
]);

export function parseXclient(args: string): Parsed {
  return parse(args, XCLIENT);
}

export function parseXforward(args: string): Parsed {
  return parse(args, XFORWARD);
}

/** The client that XFORWARD tells of. Nothing of the session is mixed in: not even that the peer in between used TLS. */
export function forwardedClient(told: Told, relay: Client): Client {
  return {
    address: told.address ?? '',
    port: told.port ?? 0,
    name: told.name ?? null,
    helo: told.helo ?? '',
    extended: told.extended ?? false,
    tls: null,
    ...(told.ident ? { ident: told.ident } : {}),
    relay,
  };
}

function parse(args: string, readers: Readers): Parsed {
  if (args === '') return refused('attribute=value expected');
  let told: Told = {};
  for (const attribute of args.split(/ +/)) {
    const [, key = '', encoded = ''] = /^([^=]+)=(.+)$/.exec(attribute) ?? [];
    if (encoded === '') return refused('attribute=value expected');
    const read = readers.get(key.toUpperCase());
    if (read === undefined) return refused('unknown attribute');
    if (encoded.length > MAX_VALUE) return refused(`the value of ${key.toUpperCase()} is too long`);
    const value = decodeXtext(encoded);
    const said = read(UNKNOWN.has(value.toUpperCase()) ? '' : value);
    if (said === null) return refused(`bad ${key.toUpperCase()} syntax`);
    told = { ...told, ...said };
  }
  return { ok: true, told };
}

/** RFC 3461 §4. What isn't xtext is taken as it is: old implementations don't encode. */
function decodeXtext(text: string): string {
  if (/\+(?![0-9A-F]{2})/.test(text)) return text;
  return text.replace(/\+(..)/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

function refused(text: string): Parsed {
  return { ok: false, reply: syntax(text) };
}
