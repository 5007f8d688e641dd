// Where and with what the figures were made. Nothing that names the machine.
import { readFile } from 'node:fs/promises';
import os from 'node:os';
import { eximProgram } from './exim.ts';
import { run } from './processes.ts';

const TIMEOUT_MS = 5_000;

export type Facts = readonly (readonly [string, string])[];

/** To be asked before the benchmark makes load of its own. */
export async function describeMachine(): Promise<Facts> {
  const [cpu] = os.cpus();
  const gib = os.totalmem() / 1024 ** 3;
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '');
  const [, system = os.type()] = /^PRETTY_NAME="?([^"\n]*)/m.exec(release) ?? [];
  const commit = await said('git', ['rev-parse', '--short', 'HEAD']);
  const changed = (await said('git', ['status', '--porcelain', 'src'])) !== '';
  const exim = await eximProgram();
  const package_ = JSON.parse(await readFile('package.json', 'utf8')) as { version: string };
  return [
    ['date', new Date().toISOString().slice(0, 16).replace('T', ' ').concat(' UTC')],
    ['cutthrough', `${package_.version}${commit && `, commit ${commit}`}${changed ? ' with changes' : ''}`],
    [
      'machine',
      `${os.availableParallelism()} cores (${cpu?.model.trim() || 'unknown'}), ${gib.toFixed(0)} GiB`,
    ],
    ['system', `${system}, Linux ${os.release()}`],
    ['load average before', os.loadavg()[0]!.toFixed(2)],
    ['node', process.version.slice(1)],
    ['postfix', await said('postconf', ['-dh', 'mail_version'])],
    ['haproxy', version(await said('haproxy', ['-v']))],
    ['exim', exim === null ? '' : version(await said(exim, ['-bV']))],
  ].map(([name, value]) => [name!, value || 'none']);
}

function version(text: string): string {
  return /version (\S+)/i.exec(text)?.[1] ?? '';
}

/** Empty where it can't be asked. An exim that was only unpacked misses its files, and yet tells its version. */
async function said(command: string, args: readonly string[]): Promise<string> {
  return await run(command, args, TIMEOUT_MS).then(
    ({ output }) => output.trim(),
    () => '',
  );
}
