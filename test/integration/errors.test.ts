// What the built program says when something is wrong with the machine or the files: one line each, that says what to do.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { expect, it, onTestFinished, vi } from 'vitest';
import { Program } from '../support/program.ts';
import { Sink } from '../support/sink.ts';
import { collect, run, selfSigned, start, temporaryDirectory } from '../support/tools.ts';

// Each test starts the program several times, on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

type Ended = Readonly<{ exitCode: number | null; output: string }>;

async function cutthrough(
  args: readonly string[],
  options: { uid?: number; cwd?: string } = {},
): Promise<Ended> {
  const env = { ...process.env, CUTTHROUGH_HOSTNAME: 'mx.example' };
  const child = start(process.execPath, [CLI, ...args], { stdio: 'pipe', env, ...options });
  const output = collect(child);
  child.stdin?.end();
  const [exitCode] = (await once(child, 'close')) as [number | null];
  return { exitCode, output: output() };
}

const HTTP_OFF = ['--http', 'off'];
const ANY_PORT = ['--listen', 'smtp://127.0.0.1:0'];

/** A port that is taken, by something that answers nothing. */
async function takenPort(): Promise<number> {
  const server = net.createServer((socket) => socket.on('error', () => {}).resume()).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}

it('names the flag of an address that cannot be listened on', async () => {
  const port = await takenPort();
  const taken = 'another program does already; stop it or choose another address by';
  expect(await cutthrough(['serve', '--listen', `smtp://127.0.0.1:${port}`, ...HTTP_OFF])).toEqual({
    exitCode: 1,
    output: `cutthrough: cannot listen on 127.0.0.1:${port}: ${taken} --listen\n`,
  });
  expect(await cutthrough(['serve', ...ANY_PORT, '--http', `127.0.0.1:${port}`])).toEqual({
    exitCode: 1,
    output: `cutthrough: cannot listen on 127.0.0.1:${port}: ${taken} --http\n`,
  });
  expect(await cutthrough(['serve', '--listen', 'smtp://192.0.2.1:2525', ...HTTP_OFF])).toEqual({
    exitCode: 1,
    output:
      'cutthrough: cannot listen on 192.0.2.1:2525: this machine has no such address; choose another by --listen\n',
  });
  expect(await cutthrough(['serve', '--listen', 'smtp://no.invalid:2525', ...HTTP_OFF])).toEqual({
    exitCode: 1,
    output:
      'cutthrough: cannot listen on no.invalid: the name has no address here; give an address of this machine by --listen\n',
  });
});

it('says what port 25 takes, to a user who may not have it', async (context) => {
  if (process.getuid?.() !== 0) return context.skip('needs root, to become somebody who is not');
  const { exitCode, output } = await cutthrough(['serve', '--listen', 'smtp://127.0.0.1:25', ...HTTP_OFF], {
    uid: 65_534,
    cwd: '/',
  });
  if (/ready/.test(output)) return context.skip('everybody may have port 25 here');
  expect({ exitCode, output }).toEqual({
    exitCode: 1,
    output:
      'cutthrough: cannot listen on 127.0.0.1:25: no permission; ' +
      'give the program CAP_NET_BIND_SERVICE or choose a port above 1023 by --listen\n',
  });
});

it('says what is wrong with a config file, all at once', async () => {
  const directory = await temporaryDirectory();
  const file = async (name: string, text: string) => {
    await writeFile(join(directory, name), text);
    return join(directory, name);
  };
  const check = async (name: string) => await cutthrough(['check', '--config', name]);
  const absent = join(directory, 'absent.yaml');
  expect(await check(absent)).toEqual({
    exitCode: 1,
    output: `cutthrough: --config ${absent}: cannot be read: there is no such file\n`,
  });
  expect(await check(directory)).toEqual({
    exitCode: 1,
    output: `cutthrough: --config ${directory}: cannot be read: it is a directory; name a file in it\n`,
  });
  const keys = await file('keys.yaml', 'mxPrt: 25\nmode: spol\nlisten: []\n');
  expect(await check(keys)).toEqual({
    exitCode: 1,
    output:
      `cutthrough: ${keys}: mxPrt: unknown key; the nearest known one is mxPort\n` +
      `cutthrough: ${keys}: mode: spol: must be one of cut-through, fast-path, spool\n` +
      `cutthrough: ${keys}: listen: needs at least one value\n`,
  });
  const broken = await file('broken.yaml', 'trust: [\n');
  expect((await check(broken)).output).toMatch(/^cutthrough: \S+broken\.yaml: .* at line 2, column 1\n$/);
});

it('says what a certificate and a key should be', async () => {
  const { certFile, keyFile } = await selfSigned();
  const other = await selfSigned();
  const directory = await temporaryDirectory();
  const junk = join(directory, 'junk');
  await writeFile(junk, 'junk\n');
  const locked = join(directory, 'locked.pem');
  const made = await run('openssl', [
    'pkey',
    '-in',
    keyFile,
    '-aes256',
    '-passout',
    'pass:x',
    '-out',
    locked,
  ]);
  expect(made.exitCode).toBe(0);
  const said = async (cert: string, key: string) =>
    (await cutthrough(['check', '--tls-cert', cert, '--tls-key', key])).output;
  expect(await said(junk, keyFile)).toMatch(
    /junk: is no PEM certificate: one begins with -----BEGIN CERTIFICATE-----/,
  );
  expect(await said(certFile, junk)).toMatch(
    /junk: is no unencrypted PEM private key: one begins with -----BEGIN PRIV/,
  );
  expect(await said(certFile, locked)).toMatch(/locked\.pem: .*it has a passphrase.*"openssl pkey -in FILE/);
  expect(await said(certFile, other.keyFile)).toMatch(/--tls-key \S+: does not belong to --tls-cert/);
  expect(await said(certFile, directory)).toMatch(/cannot be read: it is a directory; name a file in it/);
  expect((await cutthrough(['check', '--tls-cert', certFile])).output).toMatch(
    /: needs --tls-key as well\n$/,
  );
});

it('says whose a spool is, and what is not in it', async () => {
  const directory = await temporaryDirectory();
  const spool = join(directory, 'spool');
  const program = await Program.start(['--mode', 'spool', '--spool-dir', spool]);
  expect(
    await cutthrough(['serve', '--mode', 'spool', '--spool-dir', spool, ...ANY_PORT, ...HTTP_OFF]),
  ).toEqual({
    exitCode: 1,
    output: `cutthrough: --spool-dir ${spool}: in use by another process; give each its own directory\n`,
  });
  expect(await cutthrough(['queue', 'retry', 'x.1', 'x.2', '--spool-dir', spool])).toEqual({
    exitCode: 1,
    output: 'cutthrough: queue: x.1: no such message\ncutthrough: queue: x.2: no such message\n',
  });
  expect(await cutthrough(['queue', 'show', 'x.1', '--spool-dir', spool])).toEqual({
    exitCode: 1,
    output: `cutthrough: queue: x.1: no such message in --spool-dir ${spool}; "cutthrough queue list" has them all\n`,
  });
  await program.stop();
  await mkdir(join(directory, 'in'));
  await writeFile(join(directory, 'file'), '');
  expect(
    await cutthrough([
      'serve',
      '--mode',
      'spool',
      '--spool-dir',
      join(directory, 'file'),
      ...ANY_PORT,
      ...HTTP_OFF,
    ]),
  ).toEqual({
    exitCode: 1,
    output: `cutthrough: --spool-dir ${join(directory, 'file')}: not a directory; name one, or a path for a new one\n`,
  });
  // Where no directory can be: Node's own way to make it would never end.
  for (const flags of [
    ['--mode', 'spool', '--spool-dir', '/proc/none/spool'],
    ['--ledger-dir', '/proc/none/spool'],
  ])
    expect(await cutthrough(['serve', ...flags, ...ANY_PORT, ...HTTP_OFF])).toEqual({
      exitCode: 1,
      output: `cutthrough: ${flags.at(-2)} /proc/none/spool: no directory can be made there; name another one\n`,
    });
  expect((await cutthrough(['queue', 'list', '--spool-dir', join(directory, 'none')])).output).toMatch(
    /there is no spool at \S+; give --spool-dir, or --config as for serve\n$/,
  );
  expect((await cutthrough(['queue', 'retry', '--spool-dir', spool])).output).toMatch(/give ids, or --all/);
});

it('says where a proxy was looked for, and what else there is', async () => {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  const nobody = await cutthrough(['trace', 'x.1', '--http', `127.0.0.1:${port}`]);
  expect(nobody).toEqual({
    exitCode: 1,
    output:
      `cutthrough: trace: no proxy answers at 127.0.0.1:${port} (ECONNREFUSED); start it, name its address by ` +
      '--http HOST:PORT (or --config as for serve), or read its log by --log FILE\n',
  });
  expect((await cutthrough(['trace', 'x.1', ...HTTP_OFF])).output).toMatch(/--http is off.*give --log FILE/);
  expect((await cutthrough(['trace', 'x.1', '--log', '/no/log'])).output).toMatch(
    /\/no\/log cannot be read: there is no such file\n$/,
  );
  expect((await cutthrough(['trace', 'x.1', '--log', '-'])).output).toMatch(
    /no line of standard input is about x\.1/,
  );
});

it('tells a mail server from a proxy when asked for a trace', async () => {
  const sink = await Sink.start();
  const { exitCode, output } = await cutthrough(['trace', 'x.1', '--http', `127.0.0.1:${sink.port}`]);
  await sink.close();
  expect(exitCode).toBe(1);
  expect(output).toMatch(/^cutthrough: trace: no proxy answers at .*\n$/);
});

it('probes with an answer for scripts, and a line on stderr and exit code 1 where nobody accepts', async () => {
  const sink = await Sink.start({
    script: { rcpt: (line) => (/no@/.test(line) ? '550 5.1.1 no such user' : null) },
  });
  const probe = async (address: string) => {
    const child = spawn(process.execPath, [CLI, 'probe', address, '--json', '--route', `*=${sink.url}`], {
      env: { ...process.env, CUTTHROUGH_HOSTNAME: 'mx.example' },
    });
    const ended = once(child, 'close');
    const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
    const [exitCode] = (await ended) as [number];
    return { exitCode, stderr, report: JSON.parse(stdout) as Record<string, unknown> };
  };
  const good = await probe('u@a.example');
  expect(good).toMatchObject({ exitCode: 0, stderr: '' });
  const ms = {
    connect: expect.any(Number),
    tls: null,
    greeting: expect.any(Number),
    ehlo: expect.any(Number),
  };
  expect(good.report).toMatchObject({
    address: 'u@a.example',
    ok: true,
    hosts: [
      {
        connected: true,
        rcpt: '250 2.1.5 ok',
        ms: { ...ms, mail: expect.any(Number), rcpt: expect.any(Number) },
      },
    ],
  });
  const bad = await probe('no@a.example');
  expect(bad.exitCode).toBe(1);
  expect(bad.stderr).toBe(`cutthrough: probe: no@a.example -> ${sink.url}: accepted by no server\n`);
  expect(bad.report).toMatchObject({ ok: false, hosts: [{ rcpt: '550 5.1.1 no such user' }] });
  expect(sink.messages).toEqual([]);
  await sink.close();
});

it('says of a server that refuses in its greeting that it did so there', async () => {
  const sink = await Sink.start({ script: { greeting: '554 5.7.1 not you' } });
  const { exitCode, output } = await cutthrough(['probe', 'u@a.example', '--route', `*=${sink.url}`]);
  expect(exitCode).toBe(1);
  expect(output).toContain('not connected: refused with 554 (greeting)');
  await sink.close();
});
