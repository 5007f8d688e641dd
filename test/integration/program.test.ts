// The built program: its ready line, signals and exit codes.
import { once } from 'node:events';
import { constants } from 'node:fs';
import { type FileHandle, mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { freePort, run, start, temporaryDirectory } from '../support/tools.ts';

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

describe('a signal while it starts, which a big queue makes long', () => {
  /** A program that recovers its queue, and goes on with that when it is let to. */
  async function starting(config: string) {
    const directory = await temporaryDirectory();
    const file = join(directory, 'cutthrough.yaml');
    await writeFile(file, config);
    // To read an envelope from a pipe is to wait for who writes it.
    const spool = join(directory, 'spool');
    await mkdir(spool, { mode: 0o700 });
    const envelope = join(spool, 'x.1.json');
    expect((await run('mkfifo', [envelope])).exitCode).toBe(0);
    const flags = [
      '--listen',
      'smtp://127.0.0.1:0',
      '--http',
      'off',
      '--mode',
      'spool',
      '--spool-dir',
      spool,
    ];
    const child = start(process.execPath, [CLI, 'serve', '--config', file, ...flags]);
    const closed = once(child, 'close');
    const program = new Program(child);
    let pipe: FileHandle | undefined;
    await until(async () => {
      pipe = await open(envelope, constants.O_WRONLY | constants.O_NONBLOCK).catch(() => undefined);
      return pipe !== undefined || program.exited;
    }, 20_000);
    const letGo = async () => {
      await pipe?.close();
    };
    return { child, closed, program, file, letGo };
  }

  it('SIGHUP is heeded when it has started', async () => {
    const { program, file, letGo } = await starting(`route: ['*=${first.url}']\n`);
    await writeFile(file, `route: ['*=${second.url}']\n`);
    program.signal('SIGHUP');
    await letGo();
    await until(() => program.log.some(({ event }) => event === 'reloaded') || program.exited);
    const client = await Client.hello(program.port());
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(second.messages).toHaveLength(1);
    client.destroy();
    expect(await program.stop()).toBe(0);
  });

  it('SIGTERM ends it in good order when it has started', async () => {
    const { child, closed, program, letGo } = await starting('');
    program.signal('SIGTERM');
    await letGo();
    await closed;
    expect(child.exitCode).toBe(0);
    expect(program.log.at(-1)).toMatchObject({ event: 'stopped' });
  });
});
