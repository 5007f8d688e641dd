// The Dockerfile's words as Docker reads them, and its stages laid out in directories where there is no Docker: COPY and
// npm's part of RUN are done, under the .dockerignore; what needs Debian's packages or a path outside WORKDIR is not.
// Knows what our file uses, and throws at anything else.
import { execFile } from 'node:child_process';
import { cp, mkdir, readFile, stat } from 'node:fs/promises';
import { basename, join, relative } from 'node:path';
import { promisify } from 'node:util';

type Instruction = Readonly<{ word: string; rest: string }>;
export type Stage = Readonly<{ name: string; base: string; instructions: readonly Instruction[] }>;

const RUN_TIMEOUT_MS = 120_000;

export function parseDockerfile(text: string): readonly Stage[] {
  const stages: { name: string; base: string; instructions: Instruction[] }[] = [];
  const args = new Map<string, string>();
  const lines = text.replace(/^\s*#.*\n/gm, '').replaceAll(/\\\n\s*/g, '');
  for (const line of lines.split('\n').filter((each) => each.trim() !== '')) {
    const [, word = '', rest = ''] = /^([A-Z]+)\s+(.*)$/.exec(line) ?? [];
    if (word === 'FROM') {
      const [, base = '', name = ''] = /^(\S+) AS (\S+)$/.exec(rest) ?? [];
      stages.push({ name, base: substitute(base, args), instructions: [] });
    } else if (stages.length === 0 && word === 'ARG') {
      const [name = '', value = ''] = rest.split('=');
      args.set(name, value);
    } else stages.at(-1)!.instructions.push({ word, rest });
  }
  return stages;
}

function substitute(text: string, args: ReadonlyMap<string, string>): string {
  return text.replace(/\$\{(\w+)\}/g, (_, name: string) => args.get(name) ?? '');
}

/** What an instruction says last, those of the stage's own bases included. */
export function lastOf(stages: readonly Stage[], name: string, word: string): string | null {
  const stage = stages.find((each) => each.name === name);
  if (stage === undefined) return null;
  const own = stage.instructions.findLast((each) => each.word === word);
  return own?.rest ?? lastOf(stages, stage.base, word);
}

/** The exec form, `CMD ["node", "main.js"]`. */
export function execForm(rest: string | null): readonly string[] {
  return JSON.parse((rest ?? '').replace(/^[^[]*/, '')) as string[];
}

/** ENV of a stage and its bases. */
export function environmentOf(stages: readonly Stage[], name: string): Record<string, string> {
  const stage = stages.find((each) => each.name === name);
  if (stage === undefined) return {};
  const own = stage.instructions.filter(({ word }) => word === 'ENV').map(({ rest }) => rest.split('='));
  return { ...environmentOf(stages, stage.base), ...Object.fromEntries(own) };
}

/** Lays out the stages named and all they are made from. Gives the root directory of each. */
export async function layOut(
  stages: readonly Stage[],
  names: readonly string[],
  { context, under }: { context: string; under: string },
): Promise<ReadonlyMap<string, string>> {
  const roots = new Map<string, string>();
  const visible = ignoring(await readFile(join(context, '.dockerignore'), 'utf8'));
  for (const stage of new Set(names.flatMap((name) => neededFor(stages, name)))) {
    const root = join(under, stage.name);
    const base = roots.get(stage.base);
    await mkdir(root, { recursive: true });
    if (base !== undefined) await cp(base, root, { recursive: true, verbatimSymlinks: true });
    roots.set(stage.name, root);
    let cwd = join(root, lastOf(stages, stage.base, 'WORKDIR') ?? '/');
    await mkdir(cwd, { recursive: true });
    for (const { word, rest } of stage.instructions) {
      if (word === 'WORKDIR') {
        cwd = join(root, rest);
        await mkdir(cwd, { recursive: true });
      } else if (word === 'COPY') await copy(rest, { root, cwd, roots, context, visible });
      else if (word === 'RUN' && /^np[mx] /.test(rest)) await runIn(cwd, rest);
    }
  }
  return roots;
}

function neededFor(stages: readonly Stage[], name: string): readonly Stage[] {
  const stage = stages.find((each) => each.name === name);
  if (stage === undefined) return [];
  const from = stage.instructions.map(({ rest }) => /^--from=(\S+)/.exec(rest)?.[1] ?? '');
  const earlier = [stage.base, ...from].flatMap((each) => neededFor(stages, each));
  return [...new Set([...earlier, stage])];
}

/** Our .dockerignore shuts everything out and lets some things in again. */
function ignoring(text: string): (path: string) => boolean {
  const [first, ...others] = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  if (first !== '*' || !others.every((line) => line.startsWith('!')))
    throw new Error('.dockerignore: expected * and then exceptions');
  const allowed = others.map((line) => line.slice(1));
  const isWithin = (path: string, parent: string) => path === parent || path.startsWith(`${parent}/`);
  return (path) => allowed.some((each) => isWithin(path, each) || isWithin(each, path));
}

type Place = Readonly<{
  root: string;
  cwd: string;
  roots: ReadonlyMap<string, string>;
  context: string;
  visible: (path: string) => boolean;
}>;

async function copy(rest: string, { root, cwd, roots, context, visible }: Place): Promise<void> {
  const words = rest.split(/\s+/);
  const stage = words[0]!.startsWith('--from=') ? words.shift()!.slice('--from='.length) : null;
  const to = words.pop()!;
  const target = to.startsWith('/') ? join(root, to) : join(cwd, to);
  for (const word of words) {
    const from = join(stage === null ? context : roots.get(stage)!, word);
    const filter = (path: string) => stage !== null || visible(relative(context, path));
    if (!filter(from)) throw new Error(`COPY ${word}: kept out by .dockerignore`);
    const intoDirectory = to.endsWith('/') && !(await stat(from)).isDirectory();
    const final = intoDirectory ? join(target, basename(word)) : target;
    await cp(from, final, { recursive: true, verbatimSymlinks: true, filter });
  }
}

async function runIn(cwd: string, command: string): Promise<void> {
  const env = { ...process.env, npm_config_prefer_offline: 'true', npm_config_update_notifier: 'false' };
  await promisify(execFile)('sh', ['-ec', command], { cwd, env, timeout: RUN_TIMEOUT_MS });
}
