// Which counters have moved between two scrapes of /metrics, in words.

type Counters = ReadonlyMap<string, number>;
export type Change = Readonly<{ name: string; series: string; before: number; after: number }>;

const PREFIX = 'cutthrough_';
/** Summed over, so that the table stays short. */
const FOLDED_LABELS = ['verb', 'phase', 'listener', 'mode'];

/** By metric; `*` stands for its labels' values. In the order of the table. */
const NAMES: Readonly<Record<string, string>> = {
  upstream_connections_total: 'connections from clients',
  upstream_commands_total: 'commands answered *',
  transactions_total: 'messages *',
  recipients_total: 'recipients *',
  message_bytes_total: 'message octets *',
  downstream_connect_attempts_total: 'connections tried: *',
  downstream_connect_retries_total: 'tries after the first (claim 21)',
  downstream_session_reuses_total: 'sessions used again',
  downstream_replies_total: 'next hops answered *',
  backpressure_seconds_total: 'seconds waited for the *',
};
const ORDER = Object.keys(NAMES);

export function changes(before: Counters, after: Counters): readonly Change[] {
  const [was, is] = [folded(before), folded(after)];
  const rank = ({ series }: Change) => ORDER.indexOf(metricOf(series));
  return [...is]
    .map(([series, value]) => ({ name: nameOf(series), series, before: was.get(series) ?? 0, after: value }))
    .filter((each) => each.before !== each.after)
    .sort((a, b) => rank(a) - rank(b) || a.series.localeCompare(b.series));
}

/** How much one series has grown. */
export function growth(all: readonly Change[], series: string): number {
  const found = all.find((each) => each.series === series);
  return found === undefined ? 0 : found.after - found.before;
}

function folded(counters: Counters): Counters {
  const sums = new Map<string, number>();
  for (const [series, value] of counters) {
    const labels = labelsOf(series).filter(([label]) => !FOLDED_LABELS.includes(label));
    const inner = labels.map(([label, text]) => `${label}="${text}"`).join(',');
    const key = `${metricOf(series)}${inner === '' ? '' : `{${inner}}`}`;
    sums.set(key, (sums.get(key) ?? 0) + value);
  }
  return sums;
}

function metricOf(series: string): string {
  return series.replace(/\{.*$/, '').replace(PREFIX, '');
}

function labelsOf(series: string): readonly (readonly [string, string])[] {
  return [...series.matchAll(/(\w+)="([^"]*)"/g)].map(([, label, text]) => [label!, text!] as const);
}

function nameOf(series: string): string {
  const values = labelsOf(series).map(([, text]) => text);
  return (NAMES[metricOf(series)] ?? '').replace('*', values.join(', '));
}
