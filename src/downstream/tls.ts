// What TLS towards a host must be: the options of its handshake, and why one failed in words of our own.
// A certificate is a peer's text: nothing of it is ever repeated, only the code by which Node calls what is wrong.

import type { X509Certificate } from 'node:crypto';
import net from 'node:net';
import type { ConnectionOptions, TLSSocket } from 'node:tls';
import type { HopHost } from '../routing/routes.ts';
import { daneProblem } from './dane.ts';
import type { SessionOptions } from './session.ts';

export function startTlsOf(host: HopHost): SessionOptions['startTls'] {
  if (host.protocol === 'smtps' || host.tls === 'off') return 'ignore';
  return host.tls === 'opportunistic' ? 'if-offered' : 'required';
}

export function tlsOptionsOf(host: HopHost): ConnectionOptions {
  const name = host.sni ?? host.host;
  return {
    host: host.host,
    // RFC 6066 §3: an address is no server name.
    ...(net.isIP(name) === 0 ? { servername: name } : {}),
    ...(host.ca === null ? {} : { ca: host.ca }),
    rejectUnauthorized: host.tls === 'verify',
  };
}

/** DANE's judgement of the peer's chain (RFC 7672); null where there is none to be made. */
export function peerProblemOf({ demand }: HopHost): SessionOptions['peerProblem'] {
  if (demand?.by !== 'dane' || demand.records.length === 0) return null;
  return (socket) => daneProblem(chainOf(socket), demand.records, demand.names, Date.now());
}

function chainOf(socket: TLSSocket): X509Certificate[] {
  const chain: X509Certificate[] = [];
  let next = socket.getPeerX509Certificate();
  for (; next !== undefined && !chain.some(({ raw }) => next?.raw.equals(raw)); next = next.issuerCertificate)
    chain.push(next);
  return chain;
}

const CERTIFICATE_PROBLEMS: Readonly<Record<string, string>> = {
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_NOT_YET_VALID: 'its certificate is not valid yet',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name',
  ...Object.fromEntries(
    [
      'CERT_SIGNATURE_FAILURE',
      'CERT_UNTRUSTED',
      'DEPTH_ZERO_SELF_SIGNED_CERT',
      'INVALID_CA',
      'INVALID_PURPOSE',
      'SELF_SIGNED_CERT_IN_CHAIN',
      'UNABLE_TO_GET_ISSUER_CERT',
      'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
      'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    ].map((code) => [code, 'its certificate is not from a trusted authority']),
  ),
};

/** Why the certificate was not taken; null when the handshake failed over something else. */
export function certificateProblem(error: unknown): string | null {
  if (!(error instanceof Error)) return null;
  // smtp-connection puts a code of its own in the place of Node's.
  const { code, originalCode } = error as NodeJS.ErrnoException & { originalCode?: string };
  return CERTIFICATE_PROBLEMS[originalCode ?? code ?? ''] ?? null;
}
