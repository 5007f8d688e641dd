// DNS queries to resolvers that the operator vouches for, with what node:dns doesn't show: the AD bit, by which a
// validating resolver says that DNSSEC has proved an answer (RFC 4035 §3.2.3), and TLSA records (RFC 6698).
// UDP first, TCP where the answer is truncated; two rounds over the servers. Rejects with an Error whose `code` is as in
// node:dns. No socket outlives its query.
import { randomInt } from 'node:crypto';
import { createSocket } from 'node:dgram';
import net, { isIPv6 } from 'node:net';
import dnsPacket, { type DecodedPacket, type MxData, type TlsaData } from 'dns-packet';
import { parseHostPort } from '../option-kinds.ts';
import type { DnsClient } from './mx.ts';

/** RFC 6698 §2.1. */
export type TlsaRecord = Readonly<{ usage: number; selector: number; matchingType: number; data: Buffer }>;

export type ValidatingDns = DnsClient &
  Readonly<{
    /** `secure`: proved by DNSSEC. */
    resolveTlsa: (name: string) => Promise<Readonly<{ secure: boolean; records: readonly TlsaRecord[] }>>;
  }>;

/** What dns-packet makes of the record types in use. */
type Data = {
  A: string;
  AAAA: string;
  MX: MxData;
  TXT: Buffer | readonly Buffer[];
  TLSA: TlsaData;
};
type Type = keyof Data;
type Found<T extends Type> = Readonly<{
  secure: boolean;
  records: readonly Readonly<{ name: string; ttl?: number; data: Data[T] }>[];
}>;
type Server = Readonly<{ host: string; port: number }>;

const ROUNDS = 2;
/** What passes everywhere in one piece (DNS flag day 2020). */
const UDP_OCTETS = 1232;
const MAX_CNAMES = 8;
/** RFC 1035 §2.3.4. */
const MAX_NAME_OCTETS = 253;
const MAX_LABEL_OCTETS = 63;

class DnsError extends Error {
  readonly code: string;

  constructor(code: string, options?: ErrorOptions) {
    super(code, options);
    this.code = code;
  }
}

/** `servers`: `address:port`, at least one. `timeoutMs` is for one query to one server. */
export function validatingDns(servers: readonly string[], timeoutMs = 2_000): ValidatingDns {
  const all = servers.map((server) => parseHostPort(server, 1));

  async function resolve<T extends Type>(name: string, type: T): Promise<Found<T>> {
    if (name.length > MAX_NAME_OCTETS || name.split('.').some(({ length }) => length > MAX_LABEL_OCTETS))
      throw new DnsError('EBADNAME');
    let failure = new DnsError('ETIMEOUT');
    for (let round = 0; round < ROUNDS; round++) {
      for (const server of all) {
        try {
          return recordsIn(await ask(server, name, type, timeoutMs), name, type);
        } catch (error) {
          if (!(error instanceof DnsError)) throw error;
          if (error.code === 'ENOTFOUND' || error.code === 'ENODATA') throw error;
          failure = error;
        }
      }
    }
    throw failure;
  }

  async function addresses(name: string, type: 'A' | 'AAAA') {
    const { secure, records } = await resolve(name, type);
    return records.map(({ data, ttl = 0, name: owner }) => ({
      address: data,
      ttl,
      secure,
      ...(sameName(owner, name) ? {} : { alias: owner.toLowerCase() }),
    }));
  }

  return {
    async resolveMx(name) {
      const { secure, records } = await resolve(name, 'MX');
      return records.map(({ data }) => ({ exchange: data.exchange, priority: data.preference ?? 0, secure }));
    },
    resolve4: (name) => addresses(name, 'A'),
    resolve6: (name) => addresses(name, 'AAAA'),
    async resolveTxt(name) {
      const { records } = await resolve(name, 'TXT');
      return records.map(({ data }) => [data].flat().map((part) => part.toString('latin1')));
    },
    async resolveTlsa(name) {
      const { secure, records } = await resolve(name, 'TLSA');
      return {
        secure,
        records: records.map(({ data: { certificate, ...rest } }) => ({ ...rest, data: certificate })),
      };
    },
  };
}

async function ask(server: Server, name: string, type: Type, timeoutMs: number): Promise<DecodedPacket> {
  const id = randomInt(0x10000);
  const query = dnsPacket.encode({
    type: 'query',
    id,
    // RFC 6840 §5.7: AD in a query asks for it in the answer; older resolvers want DO for that.
    flags: dnsPacket.RECURSION_DESIRED | dnsPacket.AUTHENTIC_DATA,
    questions: [{ type, name, class: 'IN' }],
    additionals: [
      {
        type: 'OPT',
        name: '.',
        udpPayloadSize: UDP_OCTETS,
        flags: dnsPacket.DNSSEC_OK,
        options: [],
      } as never,
    ],
  });
  const accept = (message: Buffer) => answerTo(message, id, name, type);
  const answer = await overUdp(server, query, accept, timeoutMs);
  return answer.flag_tc ? await overTcp(server, query, accept, timeoutMs) : answer;
}

/** Null for what isn't the answer to this query: it may be forged, and the true one may still come. */
function answerTo(message: Buffer, id: number, name: string, type: Type): DecodedPacket | null {
  try {
    const packet = dnsPacket.decode(message);
    const [question] = packet.questions ?? [];
    const isOurs = packet.id === id && packet.type === 'response' && question?.type === type;
    return isOurs && sameName(question.name, name) ? packet : null;
  } catch {
    return null;
  }
}

type Accept = (message: Buffer) => DecodedPacket | null;

function overUdp(server: Server, query: Buffer, accept: Accept, timeoutMs: number): Promise<DecodedPacket> {
  return new Promise((resolve, reject) => {
    const socket = createSocket(isIPv6(server.host) ? 'udp6' : 'udp4');
    const finish = (outcome: DecodedPacket | DnsError) => {
      clearTimeout(timer);
      socket.removeAllListeners().on('error', () => {});
      socket.close();
      if (outcome instanceof DnsError) reject(outcome);
      else resolve(outcome);
    };
    const timer = setTimeout(() => finish(new DnsError('ETIMEOUT')), timeoutMs);
    socket.on('error', (cause) => finish(new DnsError('ECONNREFUSED', { cause })));
    socket.on('message', (message) => {
      const answer = accept(message);
      if (answer !== null) finish(answer);
    });
    // Connected, so that the kernel drops what comes from anywhere else.
    socket.connect(server.port, server.host, () => socket.send(query));
  });
}

function overTcp(server: Server, query: Buffer, accept: Accept, timeoutMs: number): Promise<DecodedPacket> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ ...server, noDelay: true });
    let received = Buffer.alloc(0);
    const finish = (outcome: DecodedPacket | DnsError) => {
      clearTimeout(timer);
      socket.removeAllListeners().on('error', () => {});
      socket.destroy();
      if (outcome instanceof DnsError) reject(outcome);
      else resolve(outcome);
    };
    const timer = setTimeout(() => finish(new DnsError('ETIMEOUT')), timeoutMs);
    socket.on('error', (cause) => finish(new DnsError('ECONNREFUSED', { cause })));
    socket.on('close', () => finish(new DnsError('ECONNREFUSED')));
    socket.on('data', (chunk) => {
      received = Buffer.concat([received, chunk]);
      // RFC 1035 §4.2.2: a message is preceded by its length, so this can't exceed 64 KiB and a chunk.
      if (received.length < 2 || received.length < 2 + received.readUInt16BE(0)) return;
      const answer = accept(received.subarray(2, 2 + received.readUInt16BE(0)));
      finish(answer ?? new DnsError('EBADRESP'));
    });
    const length = Buffer.alloc(2);
    length.writeUInt16BE(query.length);
    socket.write(Buffer.concat([length, query]));
  });
}

/** The records of the name, or of what it is an alias for. */
function recordsIn<T extends Type>(packet: DecodedPacket, asked: string, type: T): Found<T> {
  // dns-packet's types leave the code out, which decode() does give.
  const { rcode = 'SERVFAIL' } = packet as { rcode?: string };
  if (rcode === 'NXDOMAIN') throw new DnsError('ENOTFOUND');
  if (rcode !== 'NOERROR') throw new DnsError(`E${rcode}`);
  const answers = packet.answers ?? [];
  let name = asked;
  for (let hop = 0; hop <= MAX_CNAMES; hop++) {
    const at = answers.filter((answer) => sameName(answer.name, name));
    const records = at.filter((answer) => answer.type === type) as unknown as Found<T>['records'];
    if (records.length > 0) return { secure: packet.flag_ad, records };
    const alias = at.find((answer) => answer.type === 'CNAME');
    if (alias?.type !== 'CNAME') break;
    name = alias.data;
  }
  throw new DnsError('ENODATA');
}

function sameName(a: string, b: string): boolean {
  return a.toLowerCase() === b.toLowerCase();
}
