// What a recipient's domain demands of TLS at its mail exchangers, over what the operator asks for anyway: the MTA-STS
// policy (RFC 8461 §5) applied to the candidates that MX has given. Demands only ever add to --downstream-tls.
// Pure.
import type { TlsPolicy } from '../option-kinds.ts';
import { policyNames, type StsPolicy } from './mta-sts-policy.ts';
import type { Candidate } from './mx.ts';

export type TlsDemand =
  /** Under "testing" nothing is refused; what "enforce" would refuse is reported under `domain`. */
  Readonly<{ by: 'mta-sts'; mode: 'enforce' | 'testing'; domain: string }>;

/** A mail exchanger that may be used, and how. */
export type Exchanger = Candidate & Readonly<{ tls: TlsPolicy; demand: TlsDemand | null }>;

export type Applied =
  /** `mismatches`: hosts that a policy under "testing" doesn't name. */
  | Readonly<{ kind: 'exchangers'; exchangers: readonly Exchanger[]; mismatches: readonly string[] }>
  | Readonly<{ kind: 'policy'; reason: string }>;

/** `tls`: the operator's --downstream-tls. */
export function applyPolicy(
  candidates: readonly Candidate[],
  tls: TlsPolicy,
  sts: Readonly<{ domain: string; policy: StsPolicy }> | null,
): Applied {
  if (sts === null || sts.policy.mode === 'none') {
    const exchangers = candidates.map((candidate) => ({ ...candidate, tls, demand: null }));
    return { kind: 'exchangers', exchangers, mismatches: [] };
  }
  const { domain, policy } = sts;
  const demand = { by: 'mta-sts' as const, mode: policy.mode as 'enforce' | 'testing', domain };
  const named = candidates.filter(({ host }) => policyNames(policy, host));
  if (demand.mode === 'testing') {
    const exchangers = candidates.map((candidate) => ({ ...candidate, tls, demand }));
    const mismatches = candidates.filter((candidate) => !named.includes(candidate)).map(({ host }) => host);
    return { kind: 'exchangers', exchangers, mismatches: [...new Set(mismatches)] };
  }
  if (named.length === 0)
    return { kind: 'policy', reason: `the MTA-STS policy of ${domain} names none of them` };
  const exchangers = named.map((candidate) => ({ ...candidate, tls: 'verify' as const, demand }));
  return { kind: 'exchangers', exchangers, mismatches: [] };
}
