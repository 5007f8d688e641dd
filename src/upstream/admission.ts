// Who may send to whom: trusted clients to anybody, all others to the accepted domains (never an open relay). And who
// is believed when it says for whom it speaks.
// Pure; built anew on every reload.
import type { Config } from '../config.ts';
import { networkSet } from '../routing/networks.ts';
import { hasRouting, type Mailbox } from '../smtp/address.ts';
import { type Reply, relayingDenied } from '../smtp/reply.ts';

export type Admission = Readonly<{
  isTrusted: (clientAddress: string) => boolean;
  /** Whether a peer's connections begin with a PROXY header. */
  announcesByProxy: (peerAddress: string) => boolean;
  /** Whether XCLIENT and XFORWARD are honoured. */
  mayAnnounce: (clientAddress: string) => boolean;
  /** Null: admitted. */
  refusal: (mailbox: Mailbox, trusted: boolean) => Reply | null;
  /** RFC 5321 §4.5.1: a bare `Postmaster` is ours; it is the first accepted domain's, else this host's. */
  withDomain: (mailbox: Mailbox) => Mailbox;
}>;

export function createAdmission(config: Config): Admission {
  const trust = networkSet(config.trust);
  const proxies = networkSet(config.proxyProtocol);
  const announcers = networkSet(config.xclient);
  const exact = new Set(config.acceptDomains.filter((domain) => !domain.startsWith('.')));
  const suffixes = config.acceptDomains.filter((domain) => domain.startsWith('.'));
  const accepts = (domain: string) => exact.has(domain) || suffixes.some((suffix) => domain.endsWith(suffix));
  return {
    isTrusted: (clientAddress) => trust.has(clientAddress),
    announcesByProxy: (peerAddress) => proxies.has(peerAddress),
    mayAnnounce: (clientAddress) => announcers.has(clientAddress),
    refusal(mailbox, trusted) {
      if (trusted) return null;
      if (mailbox.domain === null) return exact.size > 0 ? null : relayingDenied();
      // user%elsewhere@ours, elsewhere!user@ours: whether the next hop would relay these is not ours to find out.
      if (!accepts(mailbox.domain) || hasRouting(mailbox)) return relayingDenied();
      return null;
    },
    withDomain(mailbox) {
      if (mailbox.domain !== null) return mailbox;
      const domain = [...exact][0] ?? config.hostname.toLowerCase();
      return { ...mailbox, domain, address: `${mailbox.localPart}@${domain}` };
    },
  };
}
