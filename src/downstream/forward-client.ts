// --forward-client: how a static next hop is told who the original client was. Pure but for the choice of a socket's
// address: the PROXY header, XCLIENT and XFORWARD (Postfix's XCLIENT_README and XFORWARD_README) in what a server offers.
//
// XCLIENT and PROXY make the client's identity count, so that mail must not go in as ours where they fail; XFORWARD is
// for the next hop's log. `identity` is what a session was opened for: it carries no mail of another.
import { isIPv4, type Socket } from 'node:net';
import type { ForwardClient } from '../config.ts';
import { canonicalAddress } from '../routing/networks.ts';
import type { NextHop } from '../routing/routes.ts';
import { encodeXtext } from '../smtp/address.ts';
import type { Origin } from '../smtp/envelope.ts';
import { type Endpoint, proxyHeader } from './proxy-header.ts';

export type Introduction = Readonly<{
  kind: Exclude<ForwardClient, 'none'>;
  /** Null: nobody's, the message is our own, or it isn't known any more. */
  client: Origin | null;
  /** Equal where a next hop is told the same. */
  identity: string;
}>;

/** Null: the next hop is told nothing. MX hosts are strangers, to whom who our clients are is no business. */
export function introductionTo(
  nextHop: NextHop,
  kind: ForwardClient,
  client: Origin | null,
): Introduction | null {
  if (kind === 'none' || !nextHop.key.startsWith('static:')) return null;
  return { kind, client, identity: `${kind} ${client === null ? '' : identityOf(client, kind)}` };
}

function identityOf(client: Origin, kind: Introduction['kind']): string {
  const { address, port, name, helo, extended, localAddress, localPort } = client;
  // A PROXY header tells nothing of names.
  const said = kind === 'proxy' ? [] : [name, helo, extended];
  return JSON.stringify([address, port, localAddress, localPort, ...said]);
}

// ---- PROXY ----

/** The destination is where the client was connected to, if that is known. */
export function proxyHeaderFor(client: Origin | null, socket: Socket): Buffer {
  const own = { address: socket.localAddress ?? '', port: socket.localPort ?? 0 };
  if (client === null) return proxyHeader(null, own);
  const { localAddress = '', localPort = 0 } = client;
  return proxyHeader(client, destinationOf(client, [{ address: localAddress, port: localPort }, own]));
}

/**
 * The first of the client's family. Where there is none, the client's address counts and ours doesn't: LOCAL would
 * send its mail in as our own.
 */
function destinationOf(client: Origin, candidates: readonly Endpoint[]): Endpoint {
  const familyOf = (address: string) => {
    const canonical = canonicalAddress(address);
    return canonical === null ? null : isIPv4(canonical);
  };
  const family = familyOf(client.address);
  const found = candidates.find(({ address }) => familyOf(address) === family);
  return found ?? { address: family ? '0.0.0.0' : '::', port: 0 };
}

// ---- XCLIENT and XFORWARD ----

/** RFC 5321 §4.5.3.1.4, without the CRLF. */
const MAX_LINE_OCTETS = 510;
/** Of a value, encoded; Postfix refuses longer ones. */
const MAX_VALUE_OCTETS = 255;
const UNAVAILABLE = '[UNAVAILABLE]';
const HOST_NAME = /^(?=.{1,255}$)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*$/;

/** The attributes that the EHLO keyword `verb` stands with; none where it isn't offered. */
function offered(verb: string, ehloLines: readonly string[]): ReadonlySet<string> {
  const words = ehloLines.map((line) => line.toUpperCase().split(/\s+/));
  return new Set(words.find(([keyword]) => keyword === verb)?.slice(1) ?? []);
}

/**
 * Command lines to be sent one after the other; none where the server doesn't take the client's address.
 * @param ehloLines after the first, without codes
 */
export function xclientCommands(client: Origin | null, ehloLines: readonly string[]): readonly string[] {
  const taken = offered('XCLIENT', ehloLines);
  if (!taken.has('ADDR')) return [];
  const name = nameOf(client);
  // Whoever has sent ADDR may be allowed no more, and each command resets what it doesn't name but the names.
  const values: readonly Attribute[] = [
    ['NAME', name],
    // Without it Postfix would go on with our own.
    ['REVERSE_NAME', name],
    ['DESTADDR', addressOf(client?.localAddress)],
    ['DESTPORT', portOf(client?.localPort)],
    ['LOGIN', UNAVAILABLE],
    // It knows SMTP and ESMTP, and no [UNAVAILABLE].
    ...(client === null ? [] : [['PROTO', protocolOf(client)] as const]),
    ['HELO', heloOf(client) ?? UNAVAILABLE],
    ['PORT', portOf(client?.port)],
    ['ADDR', addressOf(client?.address)],
  ];
  return commandLines(
    'XCLIENT',
    values.filter(([attribute]) => taken.has(attribute)),
  );
}

/** As xclientCommands(); valid for one transaction. @param id what our Received line calls the message */
export function xforwardCommands(
  client: Origin | null,
  id: string,
  ehloLines: readonly string[],
): readonly string[] {
  const taken = offered('XFORWARD', ehloLines);
  const values: readonly Attribute[] = [
    ['NAME', nameOf(client)],
    ['ADDR', addressOf(client?.address)],
    ['PORT', portOf(client?.port)],
    ['PROTO', client === null ? UNAVAILABLE : protocolOf(client)],
    ['HELO', heloOf(client) ?? UNAVAILABLE],
    ['IDENT', printable(id) ?? UNAVAILABLE],
    ['SOURCE', client === null ? 'LOCAL' : 'REMOTE'],
  ];
  return commandLines(
    'XFORWARD',
    values.filter(([attribute]) => taken.has(attribute)),
  );
}

/** The EHLO argument of the client, or null where it can't be repeated. */
export function heloOf(client: Origin | null): string | null {
  return client === null ? null : printable(client.helo);
}

type Attribute = readonly [name: string, value: string];

/** As few lines as may be, the last of them as long as may be. */
function commandLines(verb: string, values: readonly Attribute[]): readonly string[] {
  const lines: string[] = [];
  for (const [attribute, value] of values.toReversed()) {
    const word = ` ${attribute}=${encodeXtext(value)}`;
    const line = lines[0];
    if (line === undefined || line.length + word.length > MAX_LINE_OCTETS) lines.unshift(verb + word);
    else lines[0] = `${verb}${word}${line.slice(verb.length)}`;
  }
  return lines;
}

function nameOf(client: Origin | null): string {
  const name = client?.name ?? '';
  // A server that finds it no name would refuse all that stands beside it.
  return HOST_NAME.test(name) ? name : UNAVAILABLE;
}

function addressOf(address: string | undefined): string {
  const canonical = canonicalAddress(address ?? '');
  if (canonical === null) return UNAVAILABLE;
  return isIPv4(canonical) ? canonical : `IPV6:${canonical}`;
}

function portOf(port: number | undefined): string {
  return port !== undefined && Number.isInteger(port) && port > 0 && port <= 0xffff
    ? String(port)
    : UNAVAILABLE;
}

function protocolOf({ extended }: Origin): string {
  return extended ? 'ESMTP' : 'SMTP';
}

function printable(text: string): string | null {
  return /^[\x21-\x7e]+$/.test(text) && encodeXtext(text).length <= MAX_VALUE_OCTETS ? text : null;
}
