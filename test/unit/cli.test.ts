// Drives the built program as an operator would: what is on stdout and stderr, and the exit code.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import packageJson from '../../package.json' with { type: 'json' };
import { OPTION_NAMES } from '../../src/options.ts';

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

type Run = Readonly<{ status: number | null; stdout: string; stderr: readonly string[] }>;

function cutthrough(args: readonly string[], env: Record<string, string> = {}): Run {
  const fixed = { CUTTHROUGH_HOSTNAME: 'mx.example' };
  const run = spawnSync(process.execPath, [CLI, ...args], {
    env: { ...fixed, ...env },
    encoding: 'utf8',
    timeout: 10_000,
  });
  return { status: run.status, stdout: run.stdout, stderr: run.stderr.split('\n').filter(Boolean) };
}

describe('help', () => {
  test('--version is that of the package', () => {
    expect(cutthrough(['--version'])).toEqual({ status: 0, stdout: `${packageJson.version}\n`, stderr: [] });
  });

  test('--help names the commands', () => {
    const { status, stdout } = cutthrough(['--help']);
    expect(status).toBe(0);
    for (const command of ['serve', 'check', 'probe', 'trace', 'queue', 'completion', 'man'])
      expect(stdout).toContain(`  ${command} `);
  });

  test('serve --help names every option', () => {
    const { status, stdout } = cutthrough(['serve', '--help']);
    expect(status).toBe(0);
    for (const name of OPTION_NAMES) expect(stdout).toContain(`  --${name} `);
  });

  test.each([[['serve']], [['check']], [['probe']], [['trace']], [['queue', 'retry']], [[]]])(
    '%j --help is no wider than 80 columns where there is no terminal',
    (command) => {
      const { stdout } = cutthrough([...command, '--help']);
      expect(stdout.split('\n').filter((line) => line.length > 80)).toEqual([]);
    },
  );

  test('serve --help has the options under headings, and trace --help only those that it uses', () => {
    const headings = cutthrough(['serve', '--help']).stdout.match(/^\S.*:$/gm);
    expect(headings).toEqual(expect.arrayContaining(['Listening:', 'Limits:', 'TLS:', 'Log and traces:']));
    const { stdout } = cutthrough(['trace', '--help']);
    expect(stdout).toContain('--http <HOST:PORT>');
    expect(stdout).not.toContain('--mx-port');
    expect(cutthrough(['trace', 'x.1', '--mx-port', '25', '--http', 'off']).stderr.join()).toMatch(
      /--http is off/,
    );
  });

  test('man/cutthrough.1 is what `cutthrough man` prints; npm run man makes it so', () => {
    const file = fileURLToPath(new URL('../../man/cutthrough.1', import.meta.url));
    expect(readFileSync(file, 'utf8')).toBe(cutthrough(['man']).stdout);
  });
});

describe('check', () => {
  test('prints the effective config as YAML with passwords masked', () => {
    const route = '*=smtp://user:secret@192.0.2.1:587';
    const { status, stdout, stderr } = cutthrough(['check', '--route', route, '--no-require-tls'], {
      CUTTHROUGH_MX_PORT: '2525',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: [] });
    expect(parse(stdout)).toMatchObject({
      mxPort: 2525,
      requireTls: false,
      route: ['*=smtp://user:***@192.0.2.1:587'],
    });
  });

  test('reports every error at once, those of the certificate files included', () => {
    const route = ['--route', '*=smtp://h?ca=/no/ca.pem'];
    const flags = ['--mx-port', 'x', '--tls-cert', '/no/cert.pem', '--tls-key', '/no/key.pem', ...route];
    const { status, stdout, stderr } = cutthrough(['check', ...flags], { CUTTHROUGH_LSTEN: 'x' });
    expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
    expect(stderr).toEqual([
      'cutthrough: CUTTHROUGH_LSTEN: unknown variable; the nearest known one is CUTTHROUGH_LISTEN',
      'cutthrough: --mx-port x: must be a whole number, from 1 to 65535',
      'cutthrough: --tls-cert /no/cert.pem: cannot be read: there is no such file',
      'cutthrough: --tls-key /no/key.pem: cannot be read: there is no such file',
      'cutthrough: --route ?ca=/no/ca.pem: cannot be read: there is no such file',
    ]);
  });

  test('reads the file of --config, and takes its own output for one', () => {
    const directory = mkdtempSync(path.join(tmpdir(), 'cutthrough-cli-'));
    try {
      const file = path.join(directory, 'a.yaml');
      writeFileSync(file, cutthrough(['check', '--max-received', '7']).stdout);
      expect(parse(cutthrough(['check', '--config', file]).stdout)).toMatchObject({ maxReceived: 7 });
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  test('--json has the config, or every error, and the same exit code', () => {
    const good = cutthrough(['check', '--json', '--trust', '0.0.0.0/0', '--mx-port', '26']);
    expect(good.status).toBe(0);
    expect(JSON.parse(good.stdout)).toMatchObject({
      ok: true,
      errors: [],
      warnings: [expect.stringContaining('open relay')],
      config: { mxPort: 26, trust: ['0.0.0.0/0'], route: ['*=mx'] },
    });
    const bad = cutthrough(['check', '--json', '--mx-port', 'x', '--trust', 'y']);
    expect(bad.status).toBe(1);
    const { ok, errors, config } = JSON.parse(bad.stdout) as Record<string, unknown>;
    expect({ ok, config }).toEqual({ ok: false, config: null });
    expect(errors).toHaveLength(2);
    expect(bad.stderr).toEqual((errors as string[]).map((line) => `cutthrough: ${line}`));
  });

  test('warns of an open relay', () => {
    const { status, stderr } = cutthrough(['check', '--trust', '0.0.0.0/0']);
    expect({ status, stderr }).toEqual({
      status: 0,
      stderr: [expect.stringMatching(/warning: .*open relay/)],
    });
  });
});

describe('wrong usage exits 2 and says so on one line each', () => {
  test.each<[args: readonly string[], stderr: readonly string[]]>([
    [['serv'], ["unknown command 'serv' (Did you mean serve?)"]],
    [
      ['--mx-port', '25', 'serve'],
      ["unknown option '--mx-port'; options stand after the command; see cutthrough --help"],
    ],
    [['serve', '--mx-port'], ["option '--mx-port <N>' argument missing; see cutthrough serve --help"]],
    [['serve', 'now'], ['serve: what is "now" for? See cutthrough serve --help']],
    [['serve', '--mx-prt=25'], ['--mx-prt: unknown flag; the nearest known one is --mx-port']],
    [['serve', '--require-tls=maybe'], ['--require-tls maybe: must be true or false']],
    [
      ['serve', '--lisen', 'smtp://[::1]:0', '--mixed', 'half', '--http', 'of'],
      [
        '--lisen: unknown flag; the nearest known one is --listen',
        '--mixed half: must be one of fail, split, spool',
        '--http of: needs a port: host:port',
      ],
    ],
    [['check', '--mx-prt', '25'], ['--mx-prt: unknown flag; the nearest known one is --mx-port']],
    [['probe'], ["missing required argument 'address'; see cutthrough probe --help"]],
    [['probe', 'nobody'], ['probe: "nobody" is no address; it looks like user@example.com']],
    [['queue', 'show'], ["missing required argument 'id'; see cutthrough queue show --help"]],
    [['queue', 'list', 'x'], ['list: what is "x" for? See cutthrough queue list --help']],
    [['trace', 'a b'], ['trace: "a b" is no id; it stands in the log and in our Received line']],
    [
      ['completion', 'tcsh'],
      [
        "command-argument value 'tcsh' is invalid for argument 'shell'. Allowed choices are bash, zsh, fish; " +
          'see cutthrough completion --help',
      ],
    ],
    [['probe', 'a@example.com', '--dns', 'x'], ["--dns x: must be a resolver's IP address: 192.0.2.53:53"]],
  ])('%j', (args, stderr) => {
    expect(cutthrough(args)).toEqual({
      status: 2,
      stdout: '',
      stderr: stderr.map((line) => `cutthrough: ${line}`),
    });
  });

  test('no command at all shows the help on stderr', () => {
    const { status, stdout, stderr } = cutthrough([]);
    expect({ status, stdout, first: stderr[0] }).toEqual({
      status: 2,
      stdout: '',
      first: 'Usage: cutthrough [options] [command]',
    });
  });
});

test('queue says where it looked for a spool', () => {
  const { status, stdout, stderr } = cutthrough(['queue', 'list', '--json', '--spool-dir', '/no/spool']);
  expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
  expect(stderr).toEqual([expect.stringContaining('there is no spool at /no/spool')]);
});

test('serve fails in one line when the certificate is missing', () => {
  const { status, stdout, stderr } = cutthrough([
    'serve',
    '--tls-cert',
    '/no/c.pem',
    '--tls-key',
    '/no/k.pem',
  ]);
  expect({ status, stdout }).toEqual({ status: 1, stdout: '' });
  expect(stderr).toEqual([
    expect.stringMatching(/^cutthrough: --tls-cert \/no\/c.pem: cannot be read: .*; --tls-key/),
  ]);
});
