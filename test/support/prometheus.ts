// A real Prometheus, with the configuration that is shipped: only its target and its interval are replaced. And what
// can be told of a PromQL expression without parsing it.
import { once } from 'node:events';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parse, stringify } from 'yaml';
import { until } from './proxy.ts';
import { collect, freePort, start, temporaryDirectory } from './tools.ts';

export const GRAFANA = fileURLToPath(new URL('../../grafana', import.meta.url));
export const SCRAPE_SECONDS = 0.5;
const START_TIMEOUT_MS = 20_000;

type Labels = Readonly<Record<string, string>>;
/** One series of a result; values that are no number (NaN) are left out. */
export type Series = Readonly<{ labels: Labels; values: readonly number[] }>;

type Config = {
  global: { scrape_interval: string; evaluation_interval: string };
  scrape_configs: { job_name: string; static_configs: { targets: string[] }[] }[];
};

export class Prometheus {
  readonly #url: string;

  constructor(url: string) {
    this.#url = url;
  }

  /** @param targets `host:port`, each a proxy */
  static async start(targets: readonly string[]): Promise<Prometheus> {
    const directory = await temporaryDirectory();
    const config = parse(await readFile(join(GRAFANA, 'prometheus.yml'), 'utf8')) as Config;
    config.global.scrape_interval = config.global.evaluation_interval = `${SCRAPE_SECONDS * 1000}ms`;
    for (const job of config.scrape_configs) job.static_configs = [{ targets: [...targets] }];
    await writeFile(join(directory, 'prometheus.yml'), stringify(config));
    await copyFile(join(GRAFANA, 'alerts.yml'), join(directory, 'alerts.yml'));
    const port = await freePort();
    const child = start('prometheus', [
      `--config.file=${join(directory, 'prometheus.yml')}`,
      `--storage.tsdb.path=${join(directory, 'data')}`,
      `--web.listen-address=127.0.0.1:${port}`,
      '--log.level=warn',
    ]);
    const output = collect(child);
    const exited = once(child, 'exit').then(() => Promise.reject(new Error(`prometheus: ${output()}`)));
    const prometheus = new Prometheus(`http://127.0.0.1:${port}`);
    await Promise.race([until(() => prometheus.isReady(), START_TIMEOUT_MS), exited]);
    exited.catch(() => {});
    return prometheus;
  }

  async isReady(): Promise<boolean> {
    const answer = await fetch(`${this.#url}/-/ready`).catch(() => null);
    return answer?.ok ?? false;
  }

  /** @throws Error with what Prometheus says is wrong with the expression */
  async query(query: string): Promise<readonly Series[]> {
    const { result } = await this.#get<{ result: Sample[] }>('query', { query });
    return result.map(seriesOf);
  }

  /** Times in seconds. */
  async queryRange(query: string, start: number, end: number, step: number): Promise<readonly Series[]> {
    const times = { start: `${start}`, end: `${end}`, step: `${step}` };
    const { result } = await this.#get<{ result: Sample[] }>('query_range', { query, ...times });
    return result.map(seriesOf);
  }

  async labelValues(label: string, selector: string): Promise<readonly string[]> {
    return await this.#get<string[]>(`label/${label}/values`, { 'match[]': selector });
  }

  async labelNames(selector: string): Promise<readonly string[]> {
    return await this.#get<string[]>('labels', { 'match[]': selector });
  }

  /** Rules with what Prometheus had to complain about when it evaluated them. */
  async rules(): Promise<readonly Readonly<{ name: string; state: string; lastError?: string }>[]> {
    type Group = { rules: { name: string; state: string; lastError?: string }[] };
    const { groups } = await this.#get<{ groups: Group[] }>('rules', {});
    return groups.flatMap(({ rules }) => rules);
  }

  async #get<T>(path: string, parameters: Record<string, string>): Promise<T> {
    const answer = await fetch(`${this.#url}/api/v1/${path}?${new URLSearchParams(parameters)}`);
    const said = (await answer.json()) as { status: string; error?: string; data: T };
    if (said.status !== 'success') throw new Error(`${said.error}: ${parameters.query ?? path}`);
    return said.data;
  }
}

type Sample = { metric: Labels; value?: [number, string]; values?: [number, string][] };

function seriesOf({ metric, value, values }: Sample): Series {
  const texts = (values ?? (value === undefined ? [] : [value])).map(([, text]) => text);
  return { labels: metric, values: texts.map(Number).filter(Number.isFinite) };
}

const STRING = String.raw`"(?:[^"\\]|\\.)*"`;
const BRACES = String.raw`\{(?:${STRING}|[^"}])*\}`;
const METRIC = String.raw`\b(?:(?:cutthrough|process|nodejs)_\w+|up|ALERTS)\b`;

/**
 * The condition with every comparison turned into 0 or 1 (PromQL's `bool`), so that it has a value for each series that
 * it judges, whether it holds or not.
 */
export function judging(condition: string): string {
  const comparison = new RegExp(`${STRING}|${BRACES}|==|!=|<=|>=|<|>`, 'g');
  return condition.replace(comparison, (found) => (/^["{]/.test(found) ? found : `${found} bool`));
}

export type Matcher = Readonly<{ metric: string; label: string; value: string }>;

/** Every value that a label is compared with, by `=` or as one of several in `=~`; a variable is none. */
export function matchersOf(expr: string): readonly Matcher[] {
  const found: Matcher[] = [];
  for (const [, metric, braces] of expr.matchAll(new RegExp(`(${METRIC})(${BRACES})?`, 'g'))) {
    for (const [, label, , text] of (braces ?? '').matchAll(/(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"/g)) {
      if (text!.startsWith('$')) continue;
      for (const value of text!.split('|')) found.push({ metric: metric!, label: label!, value });
    }
  }
  return found;
}

/** Labels that series are grouped or matched by, each with the metrics of the expression. */
export function groupingOf(
  expr: string,
): Readonly<{ metrics: readonly string[]; labels: readonly string[] }> {
  const lists = [...expr.matchAll(/\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)/g)];
  const labels = lists.flatMap(([, list]) => list!.split(',').map((label) => label.trim()));
  return { metrics: [...expr.matchAll(new RegExp(METRIC, 'g'))].map(([name]) => name), labels };
}
