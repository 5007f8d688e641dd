// A small authoritative DNS server on loopback (UDP and TCP on one port) for tests and the demo: it answers from a
// literal zone map and can fail on demand, and it counts what it was asked. Wire format of RFC 1035, no dependency.
// A name that isn't in the zone doesn't exist; one without the type asked for has no such data (RFC 2308).
// Answers over 512 octets are truncated on UDP. What isn't a plain query is dropped without an answer.
import { createSocket, type Socket as UdpSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, isIPv6, type Server, type Socket } from 'node:net';
import ipaddr from 'ipaddr.js';

/** TIMEOUT: no answer at all. */
type Failure = 'SERVFAIL' | 'REFUSED' | 'NXDOMAIN' | 'TIMEOUT';

type Records = Readonly<{
  /** [preference, exchange]; '.' is the null MX. */
  MX?: readonly (readonly [number, string])[] | Failure;
  A?: readonly string[] | Failure;
  AAAA?: readonly string[] | Failure;
  TXT?: readonly string[] | Failure;
  /** [usage, selector, matching type, data]. */
  TLSA?: readonly (readonly [number, number, number, Buffer])[] | Failure;
  CNAME?: string;
  /** Whether answers say that DNSSEC has proved them (AD). */
  ad?: boolean;
  /** Seconds, for all records of the name; 60 unless given. */
  ttl?: number;
}>;

/** By name, lower case, without the final dot. */
export type Zone = Readonly<Record<string, Records | Failure>>;

type RecordType = 'A' | 'AAAA' | 'CNAME' | 'MX' | 'SOA' | 'TLSA' | 'TXT';

type Question = Readonly<{ id: Buffer; name: string; type: number; flags: number; raw: Buffer }>;
type ResourceRecord = Readonly<{ name: string; type: RecordType; ttl: number; data: Buffer }>;
type Answer = Readonly<{ rcode: number; records: readonly ResourceRecord[]; secure?: boolean }>;

const TYPES: Readonly<Record<RecordType, number>> = {
  ...{ A: 1, CNAME: 5, SOA: 6, MX: 15, TXT: 16, AAAA: 28, TLSA: 52 },
};
const RCODES = { NOERROR: 0, SERVFAIL: 2, NXDOMAIN: 3, REFUSED: 5 } as const;
const HEADER_OCTETS = 12;
const MAX_UDP_OCTETS = 512;
const MAX_CNAMES = 8;
const DEFAULT_TTL = 60;

export class DnsServer {
  /** What is answered from; may be replaced at any time. */
  zone: Zone;
  /** All questions so far, such as `MX a.example`. */
  readonly queries: string[] = [];
  readonly #udp: UdpSocket;
  readonly #tcp: Server;
  readonly #connections = new Set<Socket>();

  constructor(zone: Zone, udp: UdpSocket, tcp: Server) {
    this.zone = zone;
    this.#udp = udp;
    this.#tcp = tcp;
    udp.on('message', (message, peer) => {
      const reply = this.#replyTo(message, MAX_UDP_OCTETS);
      if (reply !== null) udp.send(reply, peer.port, peer.address, () => {});
    });
    tcp.on('connection', (socket) => this.#serve(socket));
  }

  /** `host:port`, as `--dns` takes it. */
  get address(): string {
    const { address, port } = this.#udp.address();
    return isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`;
  }

  /** How often `name` was asked for, tries included; without `type` for any. */
  count(name: string, type?: RecordType): number {
    return this.queries.filter((query) => (type ? query === `${type} ${name}` : query.endsWith(` ${name}`)))
      .length;
  }

  async close(): Promise<void> {
    const closed = Promise.all([once(this.#udp, 'close'), once(this.#tcp, 'close')]);
    this.#udp.close();
    this.#tcp.close();
    for (const socket of this.#connections) socket.destroy();
    await closed;
  }

  #serve(socket: Socket): void {
    let pending = Buffer.alloc(0);
    this.#connections.add(socket);
    socket.on('close', () => this.#connections.delete(socket));
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      pending = Buffer.concat([pending, chunk]);
      // RFC 1035 §4.2.2: each message is preceded by its length.
      while (pending.length >= 2 && pending.length >= 2 + pending.readUInt16BE(0)) {
        const end = 2 + pending.readUInt16BE(0);
        const reply = this.#replyTo(pending.subarray(2, end), 0xffff);
        pending = pending.subarray(end);
        if (reply !== null) socket.write(Buffer.concat([uint16(reply.length), reply]));
      }
    });
  }

  #replyTo(message: Buffer, maxOctets: number): Buffer | null {
    const question = parseQuery(message);
    if (question === null) return null;
    const type = typeName(question.type);
    this.queries.push(`${type ?? question.type} ${question.name}`);
    const answer = answerFrom(this.zone, question.name, type);
    if (answer === null) return null;
    const whole = encode(question, answer, false);
    return whole.length <= maxOctets ? whole : encode(question, { ...answer, records: [] }, true);
  }
}

/** Listens on `host` and `port` (0: any that is free). Rejects when that can't be bound. */
export async function startDnsServer(
  zone: Zone,
  { host = '127.0.0.1', port = 0 }: { host?: string; port?: number } = {},
): Promise<DnsServer> {
  for (let attempt = 1; ; attempt++) {
    const udp = createSocket(isIPv6(host) ? 'udp6' : 'udp4');
    const tcp = createServer();
    try {
      udp.bind(port, host);
      await once(udp, 'listening');
      tcp.listen(udp.address().port, host);
      await once(tcp, 'listening');
      return new DnsServer(zone, udp, tcp);
    } catch (error) {
      udp.close();
      // The port that UDP was given may be taken on TCP; another one will do.
      if (port !== 0 || attempt === 10) throw error;
    }
  }
}

/** Null: no answer. */
function answerFrom(zone: Zone, asked: string, type: RecordType | null): Answer | null {
  const records: ResourceRecord[] = [];
  let secure = true;
  let name = asked;
  for (let hop = 0; hop <= MAX_CNAMES; hop++) {
    const entry = Object.hasOwn(zone, name) ? zone[name]! : 'NXDOMAIN';
    secure &&= typeof entry === 'object' && entry.ad === true;
    const found = typeof entry === 'string' ? entry : dataOf(entry, type);
    if (found === 'TIMEOUT') return null;
    if (typeof found === 'string') return { rcode: RCODES[found], records };
    const ttl = typeof entry === 'object' ? (entry.ttl ?? DEFAULT_TTL) : DEFAULT_TTL;
    const { type: foundType, target } = found;
    records.push(...found.data.map((data) => ({ name, type: foundType, ttl, data })));
    // RFC 1034 §3.6.2: an alias is followed, unless it is what was asked for.
    if (target === null || type === 'CNAME') return { rcode: RCODES.NOERROR, records, secure };
    name = target.toLowerCase();
  }
  return { rcode: RCODES.SERVFAIL, records: [] };
}

type Data = Readonly<{ type: RecordType; data: readonly Buffer[]; target: string | null }>;

function dataOf(entry: Records, type: RecordType | null): Data | Failure {
  if (entry.CNAME !== undefined) {
    return { type: 'CNAME', data: [encodeName(entry.CNAME)], target: entry.CNAME };
  }
  if (type === null || type === 'SOA' || type === 'CNAME') return { type: 'SOA', data: [], target: null };
  const given = entry[type] ?? [];
  if (typeof given === 'string') return given;
  return { type, data: given.map((value) => encodeData(type, value)), target: null };
}

type Value = string | readonly [number, string] | readonly [number, number, number, Buffer];

function encodeData(type: RecordType, value: Value): Buffer {
  if (typeof value !== 'string' && value.length === 4)
    return Buffer.concat([Buffer.from(value.slice(0, 3) as number[]), value[3]]);
  if (typeof value !== 'string') return Buffer.concat([uint16(value[0]), encodeName(value[1])]);
  if (type === 'A' || type === 'AAAA') return Buffer.from(ipaddr.parse(value).toByteArray());
  return Buffer.concat([Buffer.from([value.length]), Buffer.from(value, 'latin1')]);
}

/** Null for what isn't one standard query. */
function parseQuery(message: Buffer): Question | null {
  if (message.length < HEADER_OCTETS + 5) return null;
  const flags = message.readUInt16BE(2);
  const isStandardQuery = (flags & 0xf800) === 0;
  if (!isStandardQuery || message.readUInt16BE(4) !== 1) return null;
  const labels: string[] = [];
  let at = HEADER_OCTETS;
  for (let length = message[at] ?? 0; length > 0; length = message[at] ?? 0) {
    if (length > 63 || at + length >= message.length) return null;
    labels.push(message.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
  const end = at + 5;
  if (end > message.length) return null;
  return {
    id: message.subarray(0, 2),
    name: labels.join('.').toLowerCase(),
    type: message.readUInt16BE(at + 1),
    flags,
    raw: message.subarray(HEADER_OCTETS, end),
  };
}

function encode(question: Question, { rcode, records, secure }: Answer, truncated: boolean): Buffer {
  const isNegative = rcode === RCODES.NXDOMAIN || (rcode === RCODES.NOERROR && !hasAnswer(question, records));
  const authority = isNegative && !truncated ? [encodeRecord(soaFor(question.name))] : [];
  // RFC 1035 §4.1.1: QR and AA; RD as asked, and RA, because stub resolvers want it.
  const ad = secure === true ? 0x0020 : 0;
  const flags = 0x8480 | (question.flags & 0x0100) | (truncated ? 0x0200 : 0) | ad | rcode;
  const counts = [1, records.length, authority.length, 0].map(uint16);
  return Buffer.concat([
    ...[question.id, uint16(flags), ...counts, question.raw],
    ...records.map(encodeRecord),
    ...authority,
  ]);
}

function hasAnswer(question: Question, records: readonly ResourceRecord[]): boolean {
  return records.some(({ type }) => TYPES[type] === question.type);
}

/** RFC 2308 §3: a negative answer says by the SOA record how long it holds. */
function soaFor(name: string): ResourceRecord {
  const zone = name.split('.').at(-1) ?? '';
  const numbers = [1, 3600, 600, 86_400, 30].map(uint32);
  const data = Buffer.concat([encodeName(`ns.${zone}`), encodeName(`hostmaster.${zone}`), ...numbers]);
  return { name: zone, type: 'SOA', ttl: 30, data };
}

function encodeRecord({ name, type, ttl, data }: ResourceRecord): Buffer {
  const inClass = uint16(1);
  return Buffer.concat([
    ...[encodeName(name), uint16(TYPES[type]), inClass, uint32(ttl), uint16(data.length)],
    data,
  ]);
}

function encodeName(name: string): Buffer {
  const labels = name.split('.').filter((label) => label !== '');
  const parts = labels.map((label) =>
    Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')]),
  );
  return Buffer.concat([...parts, Buffer.from([0])]);
}

function typeName(type: number): RecordType | null {
  return (Object.keys(TYPES) as RecordType[]).find((name) => TYPES[name] === type) ?? null;
}

function uint16(value: number): Buffer {
  const octets = Buffer.alloc(2);
  octets.writeUInt16BE(value);
  return octets;
}

function uint32(value: number): Buffer {
  const octets = Buffer.alloc(4);
  octets.writeUInt32BE(value);
  return octets;
}
