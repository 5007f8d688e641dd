// The Grafana dashboard as its own types have it, and its queries as Grafana would send them.
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { DataSourceRef, VizLegendOptions } from '@grafana/grafana-foundation-sdk/common';
import type {
  AnnotationQuery,
  Dashboard,
  FieldConfig,
  FieldConfigSource,
  GridPos,
  Panel,
  RowPanel,
  VariableModel,
} from '@grafana/grafana-foundation-sdk/dashboard';
import type * as heatmap from '@grafana/grafana-foundation-sdk/heatmap';
import type * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';
import type * as stat from '@grafana/grafana-foundation-sdk/stat';
import type * as statetimeline from '@grafana/grafana-foundation-sdk/statetimeline';
import type * as table from '@grafana/grafana-foundation-sdk/table';
import type * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';
import type * as units from '@grafana/grafana-foundation-sdk/units';
import { run, temporaryDirectory } from './tools.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const FILE = join(ROOT, 'grafana/dashboards/cutthrough.json');

/** As in JSON: an enum is one of its values, and there are no methods. */
type Plain<T> = 0 extends 1 & T
  ? T
  : T extends string
    ? `${T}`
    : T extends number | boolean | null | undefined
      ? T
      : T extends readonly (infer U)[]
        ? Plain<U>[]
        : { [K in keyof T as T[K] extends (...a: never[]) => unknown ? never : K]: Plain<T[K]> };

type Unit = (typeof units)[keyof typeof units];

/** Grafana's panel, whose options depend on its type, with what none of ours may lack. */
type PanelOf<Type extends string, Options, Custom> = Omit<
  Plain<Panel>,
  'type' | 'options' | 'fieldConfig' | 'targets'
> & {
  type: Type;
  id: number;
  title: string;
  description: string;
  gridPos: Plain<GridPos>;
  datasource: Plain<DataSourceRef>;
  targets: Plain<prometheus.Dataquery>[];
  options: Plain<Options>;
  fieldConfig: {
    defaults: Omit<Plain<FieldConfig>, 'custom' | 'unit'> & { unit: Unit; custom?: Plain<Custom> };
    overrides: Plain<FieldConfigSource>['overrides'];
  };
};

export type CheckedPanel =
  | PanelOf<'timeseries', timeseries.Options & { legend: VizLegendOptions }, timeseries.FieldConfig>
  | PanelOf<'stat', stat.Options, never>
  | PanelOf<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | PanelOf<'state-timeline', statetimeline.Options, statetimeline.FieldConfig>
  | PanelOf<'table', table.Options, table.FieldConfig>;

export type CheckedDashboard = Omit<Plain<Dashboard>, 'panels' | 'templating' | 'annotations'> & {
  uid: string;
  panels: (CheckedPanel | (Plain<RowPanel> & { gridPos: Plain<GridPos> }))[];
  templating: { list: Plain<VariableModel>[] };
  annotations: { list: Plain<AnnotationQuery>[] };
};

export async function readDashboard(): Promise<CheckedDashboard> {
  return JSON.parse(await readFile(FILE, 'utf8')) as CheckedDashboard;
}

export function panelsOf(dashboard: CheckedDashboard): readonly CheckedPanel[] {
  return dashboard.panels.filter((panel): panel is CheckedPanel => panel.type !== 'row');
}

/** What the compiler has against the dashboard as a CheckedDashboard: '' for nothing. */
export async function complaintsOfTypes(dashboard: unknown): Promise<string> {
  const file = join(await temporaryDirectory(), 'dashboard.ts');
  const types = join(ROOT, 'test/support/dashboard.ts');
  // As a literal: read from the JSON file, a string would be any string, and a surplus key would be none.
  const text = `import type { CheckedDashboard } from '${types}';\nexport const it: CheckedDashboard = ${JSON.stringify(dashboard, null, 1)};\n`;
  await writeFile(file, text);
  const flags = ['--noEmit', '--ignoreConfig', '--strict', '--skipLibCheck', '--allowImportingTsExtensions'];
  const target = ['--target', 'es2023', '--module', 'nodenext', '--types', 'node'];
  const roots = ['--typeRoots', join(ROOT, 'node_modules/@types')];
  const tsc = join(ROOT, 'node_modules/typescript/bin/tsc');
  const { exitCode, output } = await run(process.execPath, [tsc, ...flags, ...target, ...roots, file]);
  return exitCode === 0 ? '' : output;
}

/** Grafana's own variables, for a view of `rangeSeconds` in steps of `stepSeconds`. */
export type View = Readonly<{ rangeSeconds: number; stepSeconds: number; scrapeSeconds: number }>;

/** The query as Grafana sends it. @param values of the template variables */
export function interpolated(
  expr: string,
  { rangeSeconds, stepSeconds, scrapeSeconds }: View,
  values: Readonly<Record<string, readonly string[]>>,
): string {
  const rate = Math.max(stepSeconds + scrapeSeconds, 4 * scrapeSeconds);
  return expr.replace(/\$(\w+)/g, (variable, name: string) => {
    if (name === '__rate_interval') return `${rate * 1000}ms`;
    if (name === '__range') return `${Math.ceil(rangeSeconds)}s`;
    const chosen = values[name];
    if (chosen === undefined) throw new Error(`${variable} is no variable of the dashboard`);
    // Within a PromQL string, so every backslash is two.
    const escaped = chosen.map((value) => value.replace(/[\\^$*+?.()|[\]{}]/g, '\\\\$&'));
    return escaped.length === 1 ? escaped[0]! : `(${escaped.join('|')})`;
  });
}
