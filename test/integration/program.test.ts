// The built program: its ready line, signals and exit codes.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { freePort, run, temporaryDirectory } from '../support/tools.ts';

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

let first: Sink;
let second: Sink;
beforeEach(async () => {
  first = await Sink.start();
  second = await Sink.start();
});
afterEach(async () => {
  await first.close();
  await second.close();
});

it('relays with nothing on stdout but log lines, and exits 0 on SIGTERM', async () => {
  const program = await Program.start(['--route', `*=${first.url}`]);
  const client = await Client.hello(program.port());
  expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  expect(first.messages).toHaveLength(1);
  expect(await program.stop()).toBe(0);
  expect(await client.reply()).toMatch(/^421 4\.3\.2/);
  expect(program.complaints).toEqual([]);
  expect(program.transactions()).toMatchObject([{ result: 'delivered' }]);
});

it('routes new sessions anew after SIGHUP, lets running ones be, and ignores a broken file', async () => {
  const file = join(await temporaryDirectory(), 'cutthrough.yaml');
  await writeFile(file, `route: ['*=${first.url}']\n`);
  const program = await Program.start(['--config', file]);
  const before = await Client.hello(program.port());

  await writeFile(file, `route: ['*=${second.url}']\n`);
  program.signal('SIGHUP');
  await until(() => program.log.some((line) => line.event === 'reloaded'));
  expect(await before.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  const after = await Client.hello(program.port());
  expect(await after.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  expect([first.messages.length, second.messages.length]).toEqual([1, 1]);

  await writeFile(file, 'rout: [nonsense]\n');
  program.signal('SIGHUP');
  await until(() => program.log.some((line) => line.event === 'reload_failed'));
  expect(JSON.stringify(program.log.find((line) => line.event === 'reload_failed'))).toMatch(/route/);
  const still = await Client.hello(program.port());
  expect(await still.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
  expect(second.messages).toHaveLength(2);
  for (const client of [before, after, still]) client.destroy();
  expect(await program.stop()).toBe(0);
});

it('prints the queue as JSON for scripts', async () => {
  const spool = join(await temporaryDirectory(), 'spool');
  const route = ['--route', `*=smtp://127.0.0.1:${await freePort()}`, '--connect-retries', '0'];
  const program = await Program.start([...route, '--fallback', 'spool', '--spool-dir', spool]);
  const client = await Client.hello(program.port());
  const said = await client.send('s@src.example', ['u@a.example'], 'x\r\n');
  const id = /^250 2\.0\.0 queued as (\S+)$/.exec(said)![1]!;
  const queue = async (...args: string[]): Promise<unknown> => {
    const { output } = await run(process.execPath, [CLI, 'queue', ...args, '--json', '--spool-dir', spool]);
    return JSON.parse(output);
  };
  expect(await queue('list')).toMatchObject([{ id }]);
  expect(await queue('show', id)).toMatchObject({ id });
  expect(await queue('remove', id)).toMatchObject({ failed: [] });
  expect(await queue('list')).toEqual([]);
  expect(await program.stop()).toBe(0);
});
