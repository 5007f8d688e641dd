// What is deployed, put to the tools it is for: docker-compose, systemd, and (there being no Docker here) the stages of
// the Dockerfile laid out in directories and run as the image would run: its user, no capability, a read-only root.
import { type ChildProcess, execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { chmod, chown, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it, type TestContext } from 'vitest';
import { parse } from 'yaml';
import { environmentOf, execForm, lastOf, layOut, parseDockerfile } from '../support/dockerfile.ts';
import { type Line, portOf, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { collect, needTools, report, run, selfSigned, start, temporaryDirectory } from '../support/tools.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const IMAGE_TIMEOUT_MS = 240_000;
const START_TIMEOUT_MS = 20_000;
const RESULTS_TIMEOUT_MS = 45_000;
/** Of what is put on top of Node's image: a dependency that is large should be noticed. */
const MAX_TREE_MIB = 40;
/** systemd's score of a unit, from 0 (safe) to 10. */
const MAX_EXPOSURE = 2;

it('docker-compose accepts docker-compose.yml, without and with the load generator', async (context) => {
  await needTools(context, 'docker-compose');
  const file = ['-f', join(ROOT, 'docker-compose.yml')];
  const servicesWith = async (...flags: string[]) => {
    const { exitCode, output } = await run('docker-compose', [...file, ...flags, 'config']);
    expect(exitCode, output).toBe(0);
    return Object.keys((parse(output) as { services: object }).services).toSorted();
  };
  const always = ['cutthrough', 'grafana', 'inbox-a', 'inbox-b', 'prometheus'];
  // Version 1 shows those of a profile in any case.
  expect(await servicesWith()).toEqual(expect.arrayContaining(always));
  expect(await servicesWith('--profile', 'load')).toEqual([...always, 'load'].toSorted());
});

it('systemd accepts the unit without a warning, and finds it well shut in', async (context) => {
  await needTools(context, 'systemd-analyze');
  const directory = await temporaryDirectory();
  // It looks whether the program can be executed, and Node may be elsewhere here.
  const text = await readFile(join(ROOT, 'deploy/systemd/cutthrough.service'), 'utf8');
  const unit = join(directory, 'cutthrough.service');
  await writeFile(unit, text.replaceAll('/usr/bin/node', process.execPath));
  const verified = await run('systemd-analyze', ['verify', '--man=no', unit]);
  expect(verified).toEqual({ exitCode: 0, output: '' });
  const judged = await run('systemd-analyze', ['security', '--offline=true', unit]);
  const exposure = Number(/Overall exposure level[^:]*: ([\d.]+)/.exec(judged.output)?.[1]);
  report(`systemd-analyze security: exposure ${exposure}`);
  expect(exposure).toBeLessThan(MAX_EXPOSURE);
});

it('the command lines and variables of the unit are accepted by the program', async (context) => {
  await needTools(context, 'openssl');
  const { certFile, keyFile } = await selfSigned();
  const text = await readFile(join(ROOT, 'deploy/systemd/cutthrough.service'), 'utf8');
  const credentials: Record<string, string> = { '%d/tls.pem': certFile, '%d/tls.key': keyFile };
  const here = (line: string) =>
    line
      .replaceAll('/usr/bin/node', process.execPath)
      .replaceAll('/opt/cutthrough/dist', join(ROOT, 'dist'))
      .replaceAll('/etc/cutthrough/cutthrough.yaml', join(ROOT, 'deploy/cutthrough.yaml'));
  const env = [...text.matchAll(/^Environment=([^=]+)=(.*)$/gm)].map(
    ([, name, value]) => `${name}=${credentials[value!]}`,
  );
  expect(env).toHaveLength(2);
  const [serve] = /^ExecStart=.*$/m.exec(text)!;
  const [reload] = /^ExecReload=.*check.*$/m.exec(text)!;
  // What serve is given, given to check: they take the same options.
  const started = here(serve.replace('ExecStart=', '')).replace(' serve ', ' check ');
  for (const command of [started, here(reload.replace('ExecReload=', ''))]) {
    const { exitCode, output } = await run('env', [...env, 'sh', '-c', command]);
    expect(output).not.toContain('cutthrough:');
    expect(exitCode).toBe(0);
  }
});

it('the image relays, queues and stops as its user, on a read-only root, under the load generator', {
  timeout: IMAGE_TIMEOUT_MS,
}, async (context) => {
  await needTools(context, 'unshare', 'setpriv');
  if (process.getuid?.() !== 0) return notRoot(context);
  const stages = parseDockerfile(await readFile(join(ROOT, 'Dockerfile'), 'utf8'));
  const under = await temporaryDirectory();
  const roots = await layOut(stages, ['proxy', 'load'], { context: ROOT, under });
  const [proxyRoot, loadRoot] = [roots.get('proxy')!, roots.get('load')!];
  const mib = Number(execFileSync('du', ['-sk', proxyRoot], { encoding: 'utf8' }).split('\t')[0]) / 1024;
  report(`the image is Node's and ${mib.toFixed(1)} MiB`);
  expect(mib).toBeLessThan(MAX_TREE_MIB);
  expect(await readdir(join(proxyRoot, 'app/node_modules'))).not.toContain('typescript');

  const user = lastOf(stages, 'proxy', 'USER')!;
  const spool = await spoolOf(user);
  const [a, b, shakyPort] = [await Sink.start(), await Sink.start(), await portNobodyHas()];
  const command = inTree(proxyRoot, commandOf('proxy'));
  const env = {
    ...environmentOf(stages, 'proxy'),
    CUTTHROUGH_CONFIG: join(proxyRoot, environmentOf(stages, 'proxy').CUTTHROUGH_CONFIG!),
    CUTTHROUGH_LISTEN: 'smtp://127.0.0.1:0',
    CUTTHROUGH_HTTP: '127.0.0.1:0',
    CUTTHROUGH_SPOOL_DIR: spool,
    CUTTHROUGH_FALLBACK: 'spool',
    CUTTHROUGH_RETRY_SCHEDULE: '1s',
    CUTTHROUGH_ROUTE: `a.example=${a.url} b.example=${b.url} shaky.example=smtp://127.0.0.1:${shakyPort}`,
    CUTTHROUGH_TRUST: 'none',
    CUTTHROUGH_ACCEPT_DOMAIN: 'a.example b.example shaky.example',
  };
  const proxy = contained(spool, user, command, env);
  const { smtp, http } = await addressesOf(proxy);
  const probe = execForm(lastOf(stages, 'proxy', 'HEALTHCHECK')).map((word) =>
    word.replace('127.0.0.1:9525', http),
  );
  const health = async () => (await run(probe[0]!, probe.slice(1))).exitCode;
  expect(await health()).toBe(0);

  const load = contained(spool, user, inTree(loadRoot, commandOf('load')), {
    LOAD_TARGET: smtp,
    LOAD_SHAKY_LISTEN: `127.0.0.1:${shakyPort}`,
    LOAD_SHAKY_UP: '1',
    LOAD_SHAKY_DOWN: '1',
    LOAD_RATE: '60',
  });
  const said = collect(load);
  await until(() => showsAll(http), RESULTS_TIMEOUT_MS);
  expect(await stopped(load)).toBe(0);
  expect(JSON.parse(said().trim().split('\n').at(-1)!)).toMatchObject({ event: 'load', lost: 0 });
  expect(a.messages.length).toBeGreaterThan(0);
  expect(b.messages.length).toBeGreaterThan(0);

  expect(await stopped(proxy)).toBe(0);
  expect(await health()).toBe(1);

  const volume = await volumeOf(user);
  const inVolume = { ...env, CUTTHROUGH_SPOOL_DIR: join(volume, 'spool') };
  const inCluster = contained(volume, user, command, inVolume);
  await addressesOf(inCluster);
  expect(await stopped(inCluster)).toBe(0);
  expect(await readdir(volume)).toEqual(['spool']);
  await Promise.all([a.close(), b.close()]);

  function commandOf(stage: string): readonly string[] {
    const [, , ...entry] = execForm(lastOf(stages, stage, 'ENTRYPOINT'));
    return [...entry, ...execForm(lastOf(stages, stage, 'CMD'))];
  }
});

function notRoot(context: TestContext): void {
  const reason = 'needs root, to become the user of the image';
  if (process.env.CI) throw new Error(reason);
  report(`skipped: ${context.task.name}: ${reason}`);
  context.skip(reason);
}

/** /app of the image is in the tree. */
function inTree(root: string, command: readonly string[]): readonly string[] {
  return command.map((word) => word.replace(/^(?:\/app\/)?((?:dist|load)\/\S+)$/, join(root, 'app/$1')));
}

async function spoolOf(user: string): Promise<string> {
  const directory = join(await temporaryDirectory(), 'spool');
  const [uid, gid] = user.split(':').map(Number);
  await mkdir(directory, { mode: 0o700 });
  await chown(directory, uid!, gid!);
  return directory;
}

/** As a cluster mounts one under fsGroup: root's, and the group's to write. */
async function volumeOf(user: string): Promise<string> {
  const directory = join(await temporaryDirectory(), 'volume');
  await mkdir(directory);
  await chown(directory, 0, Number(user.split(':')[1]));
  await chmod(directory, 0o2775);
  return directory;
}

async function portNobodyHas(): Promise<number> {
  const sink = await Sink.start();
  const { port } = sink;
  await sink.close();
  return port;
}

// The mounts are this process's own, and the spool is bound over itself, so that it stays writable.
const CONTAINED = `mount --bind "$0" "$0"
mount -o remount,bind,ro /
! mountpoint -q /tmp || mount -o remount,bind,ro /tmp
! touch "$0/../written" 2>/dev/null || { echo 'the root is not read-only' >&2; exit 1; }
exec setpriv "$@"`;

/** What docker run --read-only --cap-drop ALL --security-opt no-new-privileges does to a process; keeps its pid. */
function contained(
  spool: string,
  user: string,
  command: readonly string[],
  env: Readonly<Record<string, string>>,
): ChildProcess {
  const [uid, gid] = user.split(':');
  const who = [`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--no-new-privs'];
  const what = ['--bounding-set=-all', '--inh-caps=-all'];
  const shell = ['--mount', '--propagation', 'private', 'sh', '-ec', CONTAINED, spool];
  const program = command.map((word) => (word === 'node' ? process.execPath : word));
  return start('unshare', [...shell, ...who, ...what, ...program], { env, cwd: '/' });
}

async function addressesOf(proxy: ChildProcess): Promise<{ smtp: string; http: string }> {
  const said = collect(proxy);
  const ready = () =>
    said()
      .split('\n')
      .find((line) => line.includes('"event":"ready"'));
  await until(() => ready() !== undefined || proxy.exitCode !== null, START_TIMEOUT_MS);
  if (ready() === undefined) throw new Error(`did not start: ${said()}`);
  const { listen, http } = JSON.parse(ready()!) as Line;
  return { smtp: `127.0.0.1:${portOf((listen as string[])[0]!)}`, http: http as string };
}

/** Whether everything has happened that the panels of the dashboard are about. */
async function showsAll(http: string): Promise<boolean> {
  const text = await (await fetch(`http://${http}/metrics`)).text();
  const results = ['delivered', 'rejected', 'deferred', 'aborted', 'spooled'].map(
    (result) => new RegExp(`^cutthrough_transactions_total\\{[^}]*result="${result}"\\} [1-9]`, 'm'),
  );
  const others = [
    /^cutthrough_queue_attempts_total\{result="delivered"\} [1-9]/m,
    /^cutthrough_downstream_connect_attempts_total\{result="refused"\} [1-9]/m,
  ];
  return [...results, ...others].every((pattern) => pattern.test(text));
}

async function stopped(child: ChildProcess): Promise<number | null> {
  const closed = once(child, 'close');
  child.kill('SIGTERM');
  await closed;
  return child.exitCode;
}
