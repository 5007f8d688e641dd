// What a recipient's domain demands of TLS at its mail exchangers, over what the operator asks for anyway: TLSA records of
// a host (DANE, RFC 7672) before the MTA-STS policy of the domain (RFC 8461 §2), applied to the candidates of MX.
// Pure.
import type { TlsPolicy } from '../option-kinds.ts';
import type { DaneResult, TlsaRecord } from './dane.ts';
import { policyNames, type StsPolicy } from './mta-sts-policy.ts';
import type { Candidate } from './mx.ts';

export type TlsDemand =
  /** Under "testing" nothing is refused; what "enforce" would refuse is reported under `domain`. */
  | Readonly<{ by: 'mta-sts'; mode: 'enforce' | 'testing'; domain: string }>
  /** The chain must match a record, and a name where one is DANE-TA; without records nobody is verified. */
  | Readonly<{ by: 'dane'; records: readonly TlsaRecord[]; names: readonly string[] }>;

/** A mail exchanger that may be used, and how. `sni`: null for the host's own name. */
export type Exchanger = Candidate &
  Readonly<{ tls: TlsPolicy; sni: string | null; demand: TlsDemand | null }>;

export type Applied =
  /** `mismatches`: hosts that a policy under "testing" doesn't name. */
  | Readonly<{ kind: 'exchangers'; exchangers: readonly Exchanger[]; mismatches: readonly string[] }>
  | Readonly<{ kind: 'policy'; reason: string }>;

export type Policies = Readonly<{
  /** The recipient's. */
  domain: string;
  /** The operator's --downstream-tls. */
  tls: TlsPolicy;
  sts: StsPolicy | null;
  /** By host. */
  dane: ReadonlyMap<string, DaneResult>;
}>;

/** Either `Exchanger`, or why the host must not be used. */
type Judged = Exchanger | string;

export function applyPolicies(candidates: readonly Candidate[], policies: Policies): Applied {
  const judged = candidates.map((candidate) => judge(candidate, policies));
  const exchangers = judged.filter((each) => typeof each !== 'string');
  if (exchangers.length === 0)
    return { kind: 'policy', reason: judged.find((each) => typeof each === 'string') ?? '' };
  const { sts } = policies;
  const isMismatch = ({ host, demand }: Exchanger) =>
    sts !== null && demand?.by === 'mta-sts' && demand.mode === 'testing' && !policyNames(sts, host);
  const mismatches = new Set(exchangers.filter(isMismatch).map(({ host }) => host));
  return { kind: 'exchangers', exchangers, mismatches: [...mismatches] };
}

function judge(candidate: Candidate, policies: Policies): Judged {
  const found = policies.dane.get(candidate.host) ?? { kind: 'none' };
  switch (found.kind) {
    case 'none':
      return bySts(candidate, policies, null);
    case 'failed':
      return found.reason;
    case 'records': {
      const { records, base } = found;
      // RFC 7672 §2.2: published, but nothing of it can be used: encrypted, whoever it is.
      if (records.length === 0) return bySts(candidate, policies, { by: 'dane', records, names: [] });
      // §3.2.2: the base domain, and the domain that MX was asked for.
      const demand = { by: 'dane' as const, records, names: [base, policies.domain] };
      // What DANE has verified needs no public authority as well: most such certificates have none.
      return { ...candidate, tls: 'require', sni: base === candidate.host ? null : base, demand };
    }
    default:
      return found satisfies never;
  }
}

/** `least`: what DANE demands of the host anyway. */
function bySts(candidate: Candidate, { domain, tls, sts }: Policies, least: TlsDemand | null): Judged {
  const atLeast = least !== null && tls !== 'verify' ? 'require' : tls;
  if (sts === null || sts.mode === 'none') return { ...candidate, tls: atLeast, sni: null, demand: least };
  const demand = { by: 'mta-sts' as const, mode: sts.mode, domain };
  if (sts.mode === 'testing') return { ...candidate, tls: atLeast, sni: null, demand };
  if (!policyNames(sts, candidate.host)) return `the MTA-STS policy of ${domain} names none of them`;
  return { ...candidate, tls: 'verify', sni: null, demand };
}
