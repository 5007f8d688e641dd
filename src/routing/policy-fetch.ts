// Fetches the policy file of MTA-STS over HTTPS (RFC 8461 §3.3): certificate verified, no redirects, no cache, only
// 200 and text/plain, bounded in size and time.
// A stranger's DNS says where to: addresses that mail may not be sent to are not connected to either.
// Rejects with a reason of our own; nothing of what the server says is in it.
import type { LookupAddress } from 'node:dns';
import type { IncomingMessage } from 'node:http';
import https from 'node:https';
import { isIP } from 'node:net';
import type { DnsClient } from './mx.ts';

/** The text at `https://mta-sts.<domain>/.well-known/mta-sts.txt`. `domain`: lower case, A-labels. */
export type PolicyFetch = (domain: string) => Promise<string>;

export type PolicyFetchDeps = Readonly<{
  dns: Pick<DnsClient, 'resolve4' | 'resolve6'>;
  /** The SSRF filter. */
  isForbidden: (address: string) => boolean;
  /** For everything: lookup, connect, answer. */
  timeoutMs: number;
  /** Ends all fetches under way. */
  signal: AbortSignal;
  port?: number;
  /** PEM of the authorities to trust instead of Node's. */
  authorities?: string | null;
}>;

/** RFC 8461 §3.3's suggestion. */
const MAX_OCTETS = 64 * 1024;
const ATTEMPT_TIMEOUT_MS = 5_000;

export function httpsPolicyFetch(deps: PolicyFetchDeps): PolicyFetch {
  return async (domain) => {
    const signal = AbortSignal.any([deps.signal, AbortSignal.timeout(deps.timeoutMs)]);
    try {
      const host = `mta-sts.${domain}`;
      const addresses = await within(signal, addressesOf(host, deps));
      return await textOf(await request(host, addresses, deps, signal));
    } catch (error) {
      throw signal.aborted ? new Error('no answer in time', { cause: error }) : error;
    }
  };
}

/** DNS queries can't be ended, but nobody has to wait for them. */
function within<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    work.then(resolve, reject);
  });
}

async function addressesOf(host: string, { dns, isForbidden }: PolicyFetchDeps): Promise<LookupAddress[]> {
  const answers = await Promise.allSettled([dns.resolve6(host), dns.resolve4(host)]);
  const found = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []));
  if (found.length === 0) throw new Error(`no address for ${host}`);
  const permitted = found.map(({ address }) => address).filter((address) => !isForbidden(address));
  if (permitted.length === 0) throw new Error(`${host} is in a network that needs --mx-allow`);
  return permitted.map((address) => ({ address, family: isIP(address) }));
}

function request(
  host: string,
  addresses: LookupAddress[],
  { port = 443, authorities = null }: PolicyFetchDeps,
  signal: AbortSignal,
): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const asked = https.request({
      host,
      servername: host,
      port,
      path: '/.well-known/mta-sts.txt',
      headers: { accept: 'text/plain', 'user-agent': 'cutthrough' },
      agent: false,
      signal,
      // Resolved and filtered already: a second lookup could answer otherwise.
      lookup: (_host, options, callback) =>
        options.all ? callback(null, addresses) : callback(null, addresses[0]!.address, addresses[0]!.family),
      autoSelectFamilyAttemptTimeout: ATTEMPT_TIMEOUT_MS,
      ...(authorities === null ? {} : { ca: authorities }),
    } as https.RequestOptions);
    asked.once('response', resolve);
    asked.on('error', (cause: NodeJS.ErrnoException) =>
      reject(new Error(`${host}: ${cause.code ?? 'connection failed'}`, { cause })),
    );
    asked.end();
  });
}

async function textOf(response: IncomingMessage): Promise<string> {
  const { statusCode, headers } = response;
  const chunks: Buffer[] = [];
  let octets = 0;
  try {
    // RFC 8461 §3.3: 3xx is not followed, and nothing but 200 counts.
    if (statusCode !== 200) throw new Error(`HTTP status ${statusCode}`);
    if (!/^text\/plain[ \t]*(;|$)/i.test(headers['content-type'] ?? '')) throw new Error('not text/plain');
    if ((headers['content-encoding'] ?? 'identity') !== 'identity') throw new Error('it is encoded');
    for await (const chunk of response as AsyncIterable<Buffer>) {
      octets += chunk.length;
      if (octets > MAX_OCTETS) throw new Error(`longer than ${MAX_OCTETS} octets`);
      chunks.push(chunk);
    }
    return Buffer.concat(chunks).toString('utf8');
  } finally {
    response.on('error', () => {});
    response.destroy();
  }
}
