// The completion scripts in real shells: what is offered at the cursor.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { OPTION_NAMES } from '../../src/options.ts';

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'cutthrough-completion-'));
  for (const shell of ['bash', 'zsh', 'fish'])
    writeFileSync(path.join(directory, shell), execFileSync(process.execPath, [CLI, 'completion', shell]));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** What bash offers for the last of the words. */
function offered(...words: readonly string[]): string[] {
  const ask = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cutthrough';
  // biome-ignore lint/suspicious/noTemplateCurlyInString: bash
  const script = `${ask}; ${'printf "%s\\n" "${COMPREPLY[@]}"'}`;
  const args = ['--norc', '-c', script, 'bash', path.join(directory, 'bash'), 'cutthrough', ...words];
  return execFileSync('bash', args, { encoding: 'utf8' }).split('\n').filter(Boolean);
}

test.each<[words: readonly string[], offered: readonly string[]]>([
  [['se'], ['serve']],
  [
    ['queue', 're'],
    ['retry', 'remove'],
  ],
  [
    ['completion', ''],
    ['bash', 'zsh', 'fish', '--help'],
  ],
  [
    ['serve', '--mode', ''],
    ['cut-through', 'fast-path', 'spool'],
  ],
  [['serve', '--mode', '=', 'f'], ['fast-path']],
  [['serve', '--mode', 'spool', '--mx-p'], ['--mx-port']],
  [['serve', '--mx-port', ''], []],
  [['trace', 'x.1', '--l'], ['--log']],
  [['queue', 'retry', '--a'], ['--all']],
])('bash, %j', (words, expected) => {
  expect(offered(...words)).toEqual(expected);
});

test('bash offers every option to serve, files to --config and directories to --spool-dir', () => {
  const flags = offered('serve', '--');
  for (const name of OPTION_NAMES) expect(flags).toContain(`--${name}`);
  expect(offered('serve', '--config', path.join(directory, 'b'))).toEqual([path.join(directory, 'bash')]);
  expect(offered('serve', '--spool-dir', path.join(directory, 'b'))).toEqual([]);
});

test('fish offers commands and values', (context) => {
  const shell = 'fish';
  if (!isInstalled(shell)) return context.skip('needs fish (Debian: apt-get install fish)');
  const complete = (line: string) => {
    const args = ['--no-config', '-c', `source ${path.join(directory, 'fish')}; complete -C"${line}"`];
    const text = execFileSync(shell, args, { encoding: 'utf8', env: { ...process.env, HOME: directory } });
    return text.split('\n').map((each) => each.split('\t')[0]);
  };
  expect(complete('cutthrough qu')).toContain('queue');
  expect(complete('cutthrough serve --mode ')).toEqual(
    expect.arrayContaining(['cut-through', 'fast-path', 'spool']),
  );
  expect(complete('cutthrough queue retry --a')).toContain('--all');
});

test('zsh takes the script', (context) => {
  if (!isInstalled('zsh')) return context.skip('needs zsh (Debian: apt-get install zsh)');
  const script = 'autoload -Uz compinit; compinit -D -u; source "$1"; print -r -- $_comps[cutthrough]';
  const ran = spawnSync('zsh', ['-f', '-c', script, 'zsh', path.join(directory, 'zsh')], {
    encoding: 'utf8',
  });
  expect({ out: ran.stdout, err: ran.stderr }).toEqual({ out: '_cutthrough\n', err: '' });
});

function isInstalled(shell: string): boolean {
  return spawnSync(shell, ['--version']).status === 0;
}
