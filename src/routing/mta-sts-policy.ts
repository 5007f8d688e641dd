// MTA-STS as text (RFC 8461): the `_mta-sts` TXT record, the policy file, and whether a policy names an MX host.
// Pure. What isn't well-formed is no record and no policy: both parse to null, and nothing here throws.
import { toDomain } from '../option-kinds.ts';

export type StsPolicy = Readonly<{
  mode: 'enforce' | 'testing' | 'none';
  /** Lower case, A-labels: `mx.example.com`, or `*.example.com` for one label before it. */
  mx: readonly string[];
  maxAgeSeconds: number;
}>;

/** RFC 8461 §3.2: about a year. */
const MAX_AGE_SECONDS = 31_557_600;
/** More than any domain has; a stranger decides what we keep for each domain that mail goes to. */
const MAX_PATTERNS = 100;

/**
 * The id of the domain's policy, from all TXT records at `_mta-sts.<domain>`, each in its strings.
 * Null: the domain has no policy, or doesn't say so clearly (RFC 8461 §3.1).
 */
export function parseStsRecord(records: readonly (readonly string[])[]): string | null {
  const texts = records.map((strings) => strings.join(''));
  const [only, ...others] = texts.filter((text) => /^v=STSv1[ \t]*;/.test(text));
  if (only === undefined || others.length > 0) return null;
  const fields = only.split(';').slice(1);
  if (fields.at(-1)?.trim() === '') fields.pop();
  const pairs = fields.map((field) =>
    /^[ \t]*([a-z0-9][a-z0-9_.-]{0,31})=([\x21-\x3a\x3c\x3e-\x7e]+)[ \t]*$/i.exec(field),
  );
  if (pairs.includes(null)) return null;
  // §3.2: of a field that is there twice the first one counts, and unknown ones are ignored.
  const id = pairs.find((pair) => pair?.[1] === 'id')?.[2] ?? '';
  return /^[a-z0-9]{1,32}$/i.test(id) ? id : null;
}

/** The policy in the text of `mta-sts.txt` (RFC 8461 §3.2). */
export function parseStsPolicy(text: string): StsPolicy | null {
  const fields = new Map<string, string>();
  const patterns: string[] = [];
  for (const line of text.split(/\r?\n/)) {
    if (line.trim() === '') continue;
    const [, name, value = ''] = /^([a-z0-9][a-z0-9_.-]{0,31}):[ \t]*(.*?)[ \t]*$/i.exec(line) ?? [];
    if (name === undefined) return null;
    if (name === 'mx') patterns.push(value);
    else if (!fields.has(name)) fields.set(name, value);
  }
  const mode = modeOf(fields.get('mode'));
  const maxAge = fields.get('max_age') ?? '';
  const mx = patterns.map(toPattern).filter((pattern) => pattern !== null);
  if (fields.get('version') !== 'STSv1' || mode === null || !/^\d{1,10}$/.test(maxAge)) return null;
  if (mx.length < patterns.length || mx.length > MAX_PATTERNS) return null;
  if (mx.length === 0 && mode !== 'none') return null;
  return { mode, mx, maxAgeSeconds: Math.min(Number(maxAge), MAX_AGE_SECONDS) };
}

function modeOf(text: string | undefined): StsPolicy['mode'] | null {
  return text === 'enforce' || text === 'testing' || text === 'none' ? text : null;
}

function toPattern(text: string): string | null {
  const wildcard = text.startsWith('*.') ? '*.' : '';
  const domain = toDomain(text.slice(wildcard.length));
  return domain === null ? null : wildcard + domain;
}

/** RFC 8461 §4.1: a wildcard stands for exactly one label, the leftmost. `host`: lower case, A-labels. */
export function policyNames({ mx }: StsPolicy, host: string): boolean {
  const dot = host.indexOf('.');
  const wildcard = dot > 0 ? `*${host.slice(dot)}` : null;
  return mx.some((pattern) => pattern === host || pattern === wildcard);
}
