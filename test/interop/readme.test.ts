// Every command that README.md shows is run here as it stands there, with this machine's ports and directories in place of
// those in print, or is named below with where else it is run, or why it can't be: a new one that is neither fails.
import { readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { parseConfig } from '../../src/config.ts';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { freePort, report, run, temporaryDirectory } from '../support/tools.ts';

const README = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** Run by what stands behind it. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  'npm ci && npm run demo': '.ci/run, test/integration/demo.test.ts',
  'npm ci && npm test': '.ci/run',
  'npm ci && npm run build': '.ci/run, and before every run of the tests',
  "node dist/cli.js serve --route 'example.com=smtp://10.0.0.5:25'":
    'test/support/program.ts, for most tests here',
  'docker build -t cutthrough .': 'no Docker: test/interop/deploy.test.ts lays out and runs its stages',
  'docker run': 'no Docker: the same',
  'docker exec cutthrough cutthrough check': 'no Docker: the same',
  'docker compose up --build': 'no Docker: test/interop/deploy.test.ts has docker-compose read the file',
  'docker compose --profile load up --build':
    'no Docker: the same; the load is run by test/integration/load.test.ts',
  'CUTTHROUGH_CONFIG=./mine.yaml docker compose up': 'no Docker: test/interop/deploy.test.ts',
  'install -': 'changes the machine: test/interop/deploy.test.ts has systemd-analyze verify the unit',
  'systemctl daemon-reload': 'changes the machine: the same',
  'kubectl apply': 'no cluster: test/unit/deploy.test.ts reads the manifests',
  'npm run check': '.ci/run',
  'npm run man': 'test/unit/cli.test.ts: the file is what the command prints',
  'npm run test:interop': 'this',
  '.ci/run': 'itself',
};

/** The commands of the indented blocks, without comments; what a backslash continues is one. */
function commandsOf(text: string): readonly string[] {
  const outside = text.replace(/^```.*?^```/gms, '').replaceAll(/\\\n\s*/g, '');
  const lines = outside.split('\n').filter((line) => /^ {4}\S/.test(line));
  const program =
    /^(?:npm|node|curl|docker|kubectl|install|systemctl|cutthrough|journalctl|source|CUTTHROUGH_\w+=\S*|\.ci\/run)\b/;
  return lines.map((line) => line.trim().replace(/ {2,}#.*$/, '')).filter((line) => program.test(line));
}

const elsewhere = (command: string) => Object.keys(ELSEWHERE).find((start) => command.startsWith(start));

/** What stands for what is in print. */
type InPlace = Readonly<{ spool: string; http: string; hop: string; id: string; trace: string; log: string }>;

/** As it can be typed: what is optional both ways, and each of several in one line. */
function spelledOut(command: string, at: InPlace): readonly string[] {
  const real = command
    .replaceAll('/var/spool/cutthrough', at.spool)
    .replaceAll('127.0.0.1:9525', at.http)
    .replaceAll('10.0.0.5:25', at.hop)
    .replaceAll('/var/log/cutthrough.log', at.log)
    .replaceAll('journalctl -u cutthrough -o cat', `cat ${at.log}`)
    .replaceAll('man -l -', 'head -n 3')
    .replace(/trace \S+\.\w+/, `trace ${at.trace}`);
  const all = real.split(' · ').flatMap((each) => {
    const whole = each.startsWith('queue ') ? `node dist/cli.js ${each}` : each;
    return whole
      .split(' | --')
      .map((part, nth) => (nth === 0 ? part : `node dist/cli.js queue retry --${part}`));
  });
  const ofQueue = (each: string) => (/ queue (?!list)/.test(each) ? `${each} --spool-dir ${at.spool}` : each);
  return all
    .map((each) => ofQueue(each.replaceAll(/\bID…?/g, at.id)))
    .flatMap((each) => {
      const [, option] = /\[(--[a-z-]+)\]/.exec(each) ?? [];
      const without = each.replace(/ ?\[--[a-z-]+\]/, '');
      // First the one that changes nothing.
      return option === undefined ? [each] : [`${without} ${option}`, without];
    });
}

/** A proxy whose queue has one message, and whose log one transaction. */
async function withQueue(): Promise<{ at: InPlace; program: Program }> {
  const hop = await Sink.start();
  const directory = await temporaryDirectory();
  const spool = join(directory, 'spool');
  const route = [
    '--route',
    `a.example=${hop.url}`,
    '--route',
    `b.example=smtp://127.0.0.1:${await freePort()}`,
  ];
  const flags = [
    '--mode',
    'fast-path',
    '--connect-retries',
    '0',
    '--retry-schedule',
    '1h',
    '--log-level',
    'debug',
  ];
  const program = await Program.start([...route, ...flags, '--spool-dir', spool]);
  const client = await Client.hello(program.port());
  expect(await client.send('s@a.example', ['u@a.example', 'u@b.example'], 'x\r\n')).toMatch(/queued as/);
  client.destroy();
  await until(() => program.log.some(({ event }) => event === 'trace'));
  const id = program.transactions()[0]!.id as string;
  const log = join(directory, 'log');
  await writeFile(log, program.log.map((line) => `${JSON.stringify(line)}\n`).join(''));
  return { at: { spool, http: program.http, hop: new URL(hop.url).host, id, trace: id, log }, program };
}

it('its commands do what they say', async () => {
  const commands = commandsOf(README);
  expect(commands.length).toBeGreaterThan(20);
  const { at } = await withQueue();
  let ran = 0;
  for (const command of commands.filter((each) => elsewhere(each) === undefined)) {
    for (const line of spelledOut(command, at)) {
      const shell = `set -o pipefail; cd '${ROOT}'; cutthrough() { node dist/cli.js "$@"; }; ${line}`;
      const { exitCode, output } = await run('bash', ['-c', shell]);
      expect(`${line}: ${exitCode}: ${exitCode === 0 ? '' : output}`).toBe(`${line}: 0: `);
      ran++;
    }
  }
  expect(ran).toBeGreaterThan(12);
  report(`README: ${ran} commands run here, ${commands.length} in print`);
}, 120_000);

it('nothing is said to be run elsewhere that is not in print', () => {
  const commands = commandsOf(README);
  const unused = Object.keys(ELSEWHERE).filter((start) => !commands.some((each) => each.startsWith(start)));
  expect(unused).toEqual([]);
});

describe('its configurations', () => {
  const blocks = [...README.matchAll(/^```yaml\n(.*?)^```/gms)].map(([, text]) => text!);

  it.each(blocks.map((text) => [text.split('\n')[0]!, text] as const))('%s', (_, text) => {
    const parsed = parseConfig({ file: parse(text) });
    expect(parsed.ok ? [] : parsed.errors).toEqual([]);
  });

  it('are all of them', () => expect(blocks.length).toBeGreaterThan(6));
});

it('its program runs', async () => {
  const [, program] = /^```ts\n(.*?)^```/ms.exec(README)!;
  const file = join(await temporaryDirectory(), 'program.mjs');
  const real = program!.replace("'cutthrough'", `'${new URL('../../dist/app.js', import.meta.url)}'`);
  await writeFile(file, real);
  const { exitCode, output } = await run(process.execPath, [file]);
  expect(output).toMatch(/smtp:\/\/127\.0\.0\.1:\d+/);
  expect(exitCode).toBe(0);
});
