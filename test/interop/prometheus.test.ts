// The monitoring that is shipped, on a real Prometheus that scrapes the built program: every query of the dashboard and
// of the alerts finds what it is about, so none names a metric, a label or a value that doesn't exist. What can be told
// without Prometheus is checked without it.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import {
  type CheckedDashboard,
  type CheckedPanel,
  complaintsOfTypes,
  interpolated,
  panelsOf,
  readDashboard,
  type View,
} from '../support/dashboard.ts';
import { EveryWay } from '../support/every-way.ts';
import {
  GRAFANA,
  groupingOf,
  judging,
  matchersOf,
  Prometheus,
  SCRAPE_SECONDS,
  type Series,
} from '../support/prometheus.ts';
import { until } from '../support/proxy.ts';
import { needTools, report, run } from '../support/tools.ts';

type Alert = Readonly<{
  alert: string;
  expr: string;
  labels: Readonly<Record<string, string>>;
  annotations: Readonly<Record<string, string>>;
}>;

type AlertTest = Readonly<{
  tests: { alert_rule_test?: { alertname: string; exp_alerts?: unknown[] }[] }[];
}>;

const STEP_SECONDS = 1;
/** It takes 20 s on a quiet machine. */
const PATIENCE_MS = 60_000;
const SEVERITIES = ['critical', 'warning', 'info'];

async function yaml<T>(name: string): Promise<T> {
  return parse(await readFile(join(GRAFANA, name), 'utf8')) as T;
}

async function alerts(): Promise<readonly Alert[]> {
  const { groups } = await yaml<{ groups: { rules: Alert[] }[] }>('alerts.yml');
  return groups.flatMap(({ rules }) => rules);
}

describe('the rules', () => {
  for (const [what, args] of [
    ['configuration', ['check', 'config', 'prometheus.yml']],
    ['rules', ['check', 'rules', 'alerts.yml']],
    ["rules' tests", ['test', 'rules', 'alerts.test.yml']],
  ] as const) {
    it(`promtool finds nothing wrong with the ${what}`, async (context) => {
      await needTools(context, 'promtool');
      const files = args.map((arg) => (arg.endsWith('.yml') ? join(GRAFANA, arg) : arg));
      const { exitCode, output } = await run('promtool', files);
      expect(exitCode, output).toBe(0);
    });
  }

  it('are each tested firing and not firing', async () => {
    const { tests } = await yaml<AlertTest>('alerts.test.yml');
    const all = tests.flatMap(({ alert_rule_test }) => alert_rule_test ?? []);
    for (const { alert } of await alerts()) {
      const firing = all
        .filter(({ alertname }) => alertname === alert)
        .map(({ exp_alerts }) => exp_alerts?.length ?? 0);
      expect(firing, alert).toContain(0);
      expect(Math.max(...firing), alert).toBeGreaterThan(0);
    }
  });

  it('say how bad it is, what it is, what to do, and which panel shows it', async () => {
    const dashboard = await readDashboard();
    for (const { alert, labels, annotations } of await alerts()) {
      expect(SEVERITIES, alert).toContain(labels.severity);
      expect(annotations.summary, alert).not.toBe('');
      expect(annotations.description, alert).toMatch(/\$value|\$labels/);
      expect(annotations.runbook, alert).toMatch(/\w.*\.$/s);
      const link = /^\/d\/(\w+)\/\w+\?viewPanel=(\d+)(&var-instance=\{\{ \$labels\.instance \}\})?$/;
      const [, uid, id] = link.exec(annotations.panel ?? '') ?? [];
      expect(uid, alert).toBe(dashboard.uid);
      const panel = panelsOf(dashboard).find((each) => each.id === Number(id));
      expect(panel?.description, `${alert}: panel ${id}`).toContain(alert);
    }
  });
});

describe('the dashboard', () => {
  it("is one by Grafana's own types, which have every option and every unit", async () => {
    const dashboard = await readDashboard();
    expect(await complaintsOfTypes(dashboard)).toBe('');
  });

  it.each<[string, (panel: CheckedPanel) => void]>([
    ['an option that there isn’t', (panel) => Object.assign(panel.options, { tooltips: {} })],
    [
      'a value that an option can’t have',
      (panel) => Object.assign(panel.options, { tooltip: { mode: 'all' } }),
    ],
    ['a unit that there isn’t', (panel) => Object.assign(panel.fieldConfig.defaults, { unit: 'mails' })],
    ['a query without an expression', (panel) => Object.assign(panel, { targets: [{ refId: 'A' }] })],
  ])('is none with %s', async (_, spoil) => {
    const dashboard = await readDashboard();
    spoil(panelsOf(dashboard).find(({ type }) => type === 'timeseries')!);
    expect(await complaintsOfTypes(dashboard)).toMatch(/error TS/);
  });

  it('has a title, a description and the data source variable in every panel, and ids of their own', async () => {
    const dashboard = await readDashboard();
    const ids = dashboard.panels.map(({ id }) => id);
    expect(new Set(ids).size).toBe(ids.length);
    for (const panel of panelsOf(dashboard)) {
      expect(panel.title, `${panel.id}`).not.toBe('');
      expect(panel.description.length, panel.title).toBeGreaterThan(20);
      const sources = [panel.datasource, ...panel.targets.map(({ datasource }) => datasource)];
      for (const source of sources) expect(source).toEqual({ type: 'prometheus', uid: `\${datasource}` });
      const refs = panel.targets.map(({ refId }) => refId);
      expect(new Set(refs).size, panel.title).toBe(refs.length);
      if (panel.targets.length > 1 || /\bby\b/.test(panel.targets[0]!.expr))
        for (const { legendFormat, format } of panel.targets)
          expect(format === 'table' || legendFormat, panel.title).toBeTruthy();
    }
  });

  it('has no panels that overlap, or lie beside the grid', async () => {
    const taken = new Map<string, string>();
    for (const { gridPos, title } of (await readDashboard()).panels) {
      const { x, y, w, h } = gridPos;
      expect(x + w, title).toBeLessThanOrEqual(24);
      for (let column = x; column < x + w; column++) {
        for (let line = y; line < y + h; line++) {
          const cell = `${column},${line}`;
          expect(taken.get(cell), `${title} at ${cell}`).toBeUndefined();
          taken.set(cell, title ?? '');
        }
      }
    }
  });

  it('is found where the provisioning looks, by the data source that it provisions', async () => {
    type Sources = {
      datasources: { uid: string; type: string; url: string; jsonData: { timeInterval: string } }[];
    };
    const { datasources } = await yaml<Sources>('provisioning/datasources/prometheus.yml');
    const variable = (await readDashboard()).templating.list.find(({ name }) => name === 'datasource');
    expect(datasources).toHaveLength(1);
    const [{ uid, type, url, jsonData }] = datasources as [Sources['datasources'][0]];
    expect(variable).toMatchObject({ type: 'datasource', query: type, current: { value: uid } });
    expect(url).toBe('http://prometheus:9090');
    const { global } = await yaml<{ global: { scrape_interval: string } }>('prometheus.yml');
    expect(jsonData.timeInterval).toBe(global.scrape_interval);
    type Providers = { providers: { type: string; options: { path: string } }[] };
    const { providers } = await yaml<Providers>('provisioning/dashboards/cutthrough.yml');
    expect(providers).toMatchObject([{ type: 'file', options: { path: '/var/lib/grafana/dashboards' } }]);
  });
});

/** What the traffic can't bring about: no process is started anew, and none crashes. */
const STAYS_AT_ZERO = /^changes\(/;

/** Alerts that the traffic brings about; those with a `for` are on their way. */
const ROUSED: Readonly<Record<string, 'firing' | 'pending'>> = {
  CutthroughMixedResults: 'firing',
  CutthroughDuplicatesSuppressed: 'firing',
  CutthroughSpoolRefusing: 'firing',
  CutthroughConnectionsRefused: 'firing',
  CutthroughDeferring: 'pending',
  CutthroughNextHopFailing: 'pending',
  CutthroughNextHopDown: 'pending',
  CutthroughQueueOld: 'pending',
  CutthroughFastPathDisabled: 'pending',
  CutthroughConnectionLimitNear: 'pending',
  CutthroughCertificateExpiring: 'pending',
};

it(
  'every query of the dashboard and of the alerts finds what it asks for',
  async (context) => {
    await needTools(context, 'prometheus', 'openssl');
    const ways = await EveryWay.start();
    const prometheus = await Prometheus.start(ways.targets);
    // Before the first event, so that it is seen as an increase.
    await until(
      async () => (await prometheus.query('count(count_over_time(up[1m]) > 2)'))[0]?.values[0] === 5,
      PATIENCE_MS,
    );
    const began = Date.now() / 1000;
    await ways.drive(() => hasStood(prometheus));
    let missing: readonly string[] = [];
    const hasAll = async () => {
      missing = await missingOf(prometheus);
      return missing.length === 0;
    };
    await until(hasAll, PATIENCE_MS).catch(() => {});
    expect(missing).toEqual([]);
    // The last event is between two steps of the graph; the one behind it must not be left out.
    const ended = Date.now() / 1000 + STEP_SECONDS;
    const asked = new Asked(prometheus, await readDashboard(), began, ended);
    const queries = await asked.dashboard();
    const rules = await alerts();
    for (const { alert, expr } of rules) {
      await asked.names(expr, alert);
      const judged = await prometheus.query(judging(expr));
      expect(
        judged.some(({ values }) => values.length > 0),
        `${alert}: ${judging(expr)}`,
      ).toBe(true);
    }
    const evaluated = await prometheus.rules();
    expect(evaluated.filter(({ lastError }) => lastError)).toEqual([]);
    const states = Object.fromEntries(evaluated.map(({ name, state }) => [name, state]));
    expect(states).toMatchObject(ROUSED);
    report(`prometheus: ${queries} queries of panels and ${rules.length} alerts, all with series`);
  },
  3 * PATIENCE_MS,
);

/** Whether octets were held at two steps, one after the other: a graph's step, whenever it is, sees them. */
async function hasStood(prometheus: Prometheus): Promise<boolean> {
  const held = `count_over_time((cutthrough_buffered_bytes > 0)[1m:${STEP_SECONDS}s]) > 1`;
  return (await prometheus.query(held)).length > 0;
}

/** What the traffic brings about, by metric, label and values. */
const HAPPENS: readonly (readonly [string, string, readonly string[]])[] = [
  ['transactions_total', 'result', ['delivered', 'rejected', 'deferred', 'mixed', 'aborted', 'spooled']],
  ['downstream_connect_attempts_total', 'result', ['ok', 'refused', 'timeout', 'dns', 'tls', 'greeting']],
  ['downstream_replies_total', 'class', ['2xx', '3xx', '4xx', '5xx', 'invalid']],
  ['downstream_replies_total', 'phase', ['greeting', 'ehlo', 'mail', 'rcpt', 'data', 'dot']],
  ['backpressure_seconds_total', 'side', ['upstream', 'downstream']],
  ['queue_attempts_total', 'result', ['delivered', 'deferred', 'rejected', 'expired']],
  ['dsn_total', 'kind', ['failed', 'delayed', 'expired', 'relayed']],
  ['spool_failures_total', 'reason', ['full']],
  ['fast_path_disabled_total', 'reason', ['manual']],
  ['upstream_commands_total', 'verb', ['STARTTLS']],
  ['upstream_connections_total', 'listener', ['smtp']],
];

/** Which of it Prometheus hasn't seen yet. */
async function missingOf(prometheus: Prometheus): Promise<readonly string[]> {
  const wanted = HAPPENS.flatMap(([name, label, values]) =>
    values.map((value) => `${name}{${label}="${value}"}`),
  );
  wanted.push('upstream_connections_refused_total', 'downstream_session_reuses_total');
  const sums = await Promise.all(wanted.map((each) => prometheus.query(`sum(cutthrough_${each}) > 0`)));
  return wanted.filter((_, at) => sums[at]!.length === 0);
}

/** Asks Prometheus what Grafana would ask for the time of the test. */
class Asked {
  readonly #prometheus: Prometheus;
  readonly #dashboard: CheckedDashboard;
  readonly #began: number;
  readonly #ended: number;

  constructor(prometheus: Prometheus, dashboard: CheckedDashboard, began: number, ended: number) {
    this.#prometheus = prometheus;
    this.#dashboard = dashboard;
    this.#began = began;
    this.#ended = ended;
  }

  /** Every target of every panel, with all modes and instances chosen; how many there are. */
  async dashboard(): Promise<number> {
    const values = await this.#variables();
    let queries = 0;
    for (const panel of panelsOf(this.#dashboard)) {
      for (const { expr, instant, legendFormat } of panel.targets) {
        const what = `${panel.title}: ${expr}`;
        await this.names(expr, what);
        const series = await this.#ask(interpolated(expr, this.#view, values), instant === true);
        this.#judge(series, what, legendFormat ?? '', STAYS_AT_ZERO.test(expr));
        queries++;
      }
    }
    for (const { expr, name, titleFormat, textFormat } of this.#dashboard.annotations.list) {
      const series = await this.#ask(interpolated(expr!, this.#view, values), false);
      this.#judge(series, `annotation ${name}`, `${titleFormat} ${textFormat}`, STAYS_AT_ZERO.test(expr!));
    }
    return queries;
  }

  /** Every value compared with and every label grouped by exists. */
  async names(expr: string, what: string): Promise<void> {
    for (const { metric, label, value } of matchersOf(expr)) {
      const found = await this.#prometheus.labelValues(label, metric);
      expect(found, `${what}: ${metric}{${label}}`).toContain(value);
    }
    const { metrics, labels } = groupingOf(expr);
    const known = await Promise.all(metrics.map((metric) => this.#prometheus.labelNames(metric)));
    for (const label of labels) expect(known.flat(), what).toContain(label);
  }

  get #view(): View {
    const rangeSeconds = this.#ended - this.#began;
    return { rangeSeconds, stepSeconds: STEP_SECONDS, scrapeSeconds: SCRAPE_SECONDS };
  }

  async #variables(): Promise<Readonly<Record<string, readonly string[]>>> {
    const values: Record<string, readonly string[]> = {};
    for (const { name, type, definition } of this.#dashboard.templating.list) {
      if (type !== 'query') continue;
      const [, selector, label] = /^label_values\((.+), (\w+)\)$/.exec(definition ?? '') ?? [];
      values[name] = await this.#prometheus.labelValues(label!, interpolated(selector!, this.#view, values));
    }
    expect(values.mode?.toSorted()).toEqual(['cut-through', 'fast-path', 'spool']);
    expect(values.instance).toHaveLength(5);
    return values;
  }

  async #ask(query: string, instant: boolean): Promise<readonly Series[]> {
    if (instant) return await this.#prometheus.query(query);
    return await this.#prometheus.queryRange(query, this.#began, this.#ended, STEP_SECONDS);
  }

  #judge(series: readonly Series[], what: string, legend: string, zero: boolean): void {
    const values = series.flatMap((each) => each.values);
    expect(values.length, `no value: ${what}`).toBeGreaterThan(0);
    if (zero) expect(Math.max(...values), what).toBe(0);
    else expect(Math.max(...values), what).toBeGreaterThan(0);
    for (const [, label] of legend.matchAll(/\{\{(\w+)\}\}/g))
      for (const { labels } of series) expect(Object.keys(labels), what).toContain(label);
  }
}
