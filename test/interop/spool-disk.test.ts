// The disk that fails: errors of single system calls, no room, the power cut; and the clock that jumps. What isn't safe
// on disk is never answered with 250, and nothing of it stays.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it, onTestFinished, type TestContext } from 'vitest';
import { Client } from '../support/client.ts';
import { FlappingSink, Ledger, messageFiles, queuedIn, seeded } from '../support/crash.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { needTools, report, run, temporaryDirectory } from '../support/tools.ts';

const QUICK = ['--connect-retries', '1', '--connect-backoff', '5ms', '--memory-threshold', '8KiB'];
const TO = ['u@a.example'];
/** Of a message's way to the disk: its body, its envelope, the directory. */
const FSYNCS_OF_A_COMMIT = 3;

for (const mode of ['spool', 'fast-path']) {
  it(`answers 451 where any fsync fails, and keeps nothing of the message: ${mode}`, async (context) => {
    await needTools(context, 'strace');
    const ledger = new Ledger(seeded(1));
    const fsyncs = await fsyncsOfAStart();
    for (let nth = 1; nth <= FSYNCS_OF_A_COMMIT; nth++) {
      const directory = join(await temporaryDirectory(), 'spool');
      const next = await FlappingSink.start();
      const flags = [
        ...QUICK,
        '--mode',
        mode,
        '--spool-dir',
        directory,
        '--retry-schedule',
        '1h',
        ...next.route,
      ];
      const what = `inject=fsync,fdatasync:error=EIO:when=${fsyncs + nth}`;
      const program = await startTraced(flags, what, 'fsync,fdatasync');
      const client = await Client.hello(program.port());
      const failed = await ledger.send(client, TO, 20_000);
      expect(failed, `fsync ${nth}`).toMatch(/^451 4\.3\.0 /);
      expect(await messageFiles(directory)).toEqual([]);
      expect(program.log.find((line) => line.event === 'spool-failed')?.err).toMatchObject({ code: 'EIO' });
      expect(await ledger.send(client, TO, 20_000)).toMatch(/^250 /);
      expect(await messageFiles(directory)).toHaveLength(2);
      program.signal('SIGKILL');
      await until(() => program.exited);
      client.destroy();
      await next.sink.close();
      expect(ledger.lost(await queuedIn(directory, ledger))).toHaveLength(nth - 1);
    }
  });
}

it('answers 451 or 452 where any write or rename fails, and keeps nothing of the message', async (context) => {
  await needTools(context, 'strace');
  const ledger = new Ledger(seeded(2));
  const failures = [
    ['rename,renameat,renameat2', 1, 'EIO', /^451 4\.3\.0 /],
    ['rename,renameat,renameat2', 2, 'ENOSPC', /^452 4\.3\.1 /],
    ['pwrite64,pwritev,pwritev2', 1, 'ENOSPC', /^452 4\.3\.1 /],
    ['pwrite64,pwritev,pwritev2', 1, 'EIO', /^451 4\.3\.0 /],
  ] as const;
  for (const [calls, nth, error, reply] of failures) {
    const directory = join(await temporaryDirectory(), 'spool');
    const next = await FlappingSink.start();
    const flags = [
      ...QUICK,
      '--mode',
      'spool',
      '--spool-dir',
      directory,
      '--retry-schedule',
      '1h',
      ...next.route,
    ];
    const program = await startTraced(flags, `inject=${calls}:error=${error}:when=${nth}`, calls);
    const client = await Client.hello(program.port());
    expect(await ledger.send(client, TO, 20_000), `${calls} ${nth} ${error}`).toMatch(reply);
    expect(await messageFiles(directory)).toEqual([]);
    expect(await ledger.send(client, TO, 20_000)).toMatch(/^250 /);
    expect(await messageFiles(directory)).toHaveLength(2);
    client.destroy();
    expect(await program.stop()).toBe(0);
    await next.sink.close();
  }
});

/** How many fsyncs a start makes before it is ready. */
async function fsyncsOfAStart(): Promise<number> {
  const directory = join(await temporaryDirectory(), 'spool');
  const trace = join(await temporaryDirectory(), 'trace');
  const under = ['strace', '-D', '-f', '-qq', '-o', trace, '-e', 'trace=fsync,fdatasync'];
  const flags = ['--mode', 'spool', '--spool-dir', directory, '--route', '*=smtp://127.0.0.1:9'];
  const program = await Program.start(flags, { under, env: { UV_THREADPOOL_SIZE: '1' } });
  const { output } = await run('grep', ['-c', 'sync(', trace]);
  await program.stop();
  return Number(output);
}

async function startTraced(flags: readonly string[], injection: string, calls: string): Promise<Program> {
  // strace counts for each thread, so files are the work of one. -D: the pid is the program's.
  const under = ['strace', '-D', '-f', '-qq', '-o', '/dev/null', '-e', `trace=${calls}`, '-e', injection];
  return await Program.start(flags, { under, env: { UV_THREADPOOL_SIZE: '1' } });
}

it('answers 452 when the disk is full, and takes mail again when there is room', async (context) => {
  const ledger = new Ledger(seeded(3));
  const disk = await mounted(context, ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs']);
  const directory = join(disk, 'spool');
  const next = await FlappingSink.start();
  // So little that it is the disk that says no, in the middle of a message.
  const tiny = ['--spool-min-free', '1B', '--max-queue-age', '1h', '--retry-schedule', '50ms'];
  const flags = [...QUICK, ...tiny, '--mode', 'spool', '--spool-dir', directory, ...next.route];
  const program = await Program.start(flags);
  const client = await Client.hello(program.port());
  const replies: string[] = [];
  for (let nth = 0; nth < 20; nth++) replies.push(await ledger.send(client, TO, 100_000));
  const taken = replies.filter((reply) => reply.startsWith('250 ')).length;
  expect(taken).toBeGreaterThan(4);
  expect(taken).toBeLessThan(11);
  for (const reply of replies) expect(reply).toMatch(/^(250 |452 4\.3\.1 )/);
  const files = await messageFiles(directory);
  expect(files.filter((name) => name.endsWith('.eml'))).toHaveLength(taken);
  expect(files.filter((name) => name.endsWith('.json'))).toHaveLength(taken);
  expect(files).toHaveLength(2 * taken);
  next.up = true;
  await until(async () => (await messageFiles(directory)).length === 0, 15_000);
  expect(ledger.lost(ledger.arrivals(next.sink.messages))).toEqual([]);
  expect(await ledger.send(client, TO, 100_000)).toMatch(/^250 /);
  client.destroy();
  expect(await program.stop()).toBe(0);
  await next.sink.close();
  report(`full disk: ${taken} of ${replies.length} taken, all of them delivered`);
});

it('has every acknowledged message after a power cut', async (context) => {
  await needTools(context, 'xfs_io', 'mkfs.ext4');
  const random = seeded(Date.now());
  const ledger = new Ledger(random);
  const image = join(await temporaryDirectory(), 'disk');
  expect(await run('truncate', ['-s', '64M', image])).toMatchObject({ exitCode: 0 });
  expect(await run('mkfs.ext4', ['-q', '-F', image])).toMatchObject({ exitCode: 0 });
  const disk = await mounted(context, ['-o', 'loop', image]);
  const directory = join(disk, 'spool');
  const next = await FlappingSink.start();
  const flags = [...QUICK, '--spool-min-free', '1MiB', '--mode', 'spool', '--spool-dir', directory];
  const cuts = 4;
  for (let cut = 0; cut < cuts; cut++) {
    const program = await Program.start([...flags, ...next.route]);
    const load = Array.from({ length: 4 }, async () => {
      const client = await Client.hello(program.port());
      for (;;) {
        const reply = await ledger.send(client, TO, Math.floor(100 + random() * 30_000));
        if (!reply.startsWith('250 ')) return client.destroy();
      }
    });
    await sleep(300 + random() * 300);
    // Nothing of what is only in the kernel's memory gets to the disk any more, not even the journal's.
    expect(await run('xfs_io', ['-x', '-c', 'shutdown', disk])).toMatchObject({ exitCode: 0 });
    await Promise.all(load);
    program.signal('SIGKILL');
    await until(() => program.exited);
    expect(await run('umount', [disk])).toMatchObject({ exitCode: 0 });
    expect(await run('mount', ['-o', 'loop', image, disk])).toMatchObject({ exitCode: 0 });
    expect(ledger.lost(await queuedIn(directory, ledger)), `cut ${cut}`).toEqual([]);
  }
  await next.sink.close();
  expect(ledger.acknowledged.size).toBeGreaterThan(cuts);
  report(`power cuts: ${cuts}, ${ledger.acknowledged.size} of ${ledger.sent} acknowledged, all there`);
});

for (const days of [3, -3]) {
  it(`neither gives up nor puts off a message when the clock jumps ${days} days`, async (context) => {
    await needTools(context, 'faketime');
    const ledger = new Ledger(seeded(4));
    const directory = join(await temporaryDirectory(), 'spool');
    const clock = join(await temporaryDirectory(), 'clock');
    await writeFile(clock, '+0');
    const next = await FlappingSink.start();
    // Only the date jumps, as when somebody sets it: what is monotonic isn't touched.
    const env = {
      LD_PRELOAD: await libfaketime(),
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      DONT_FAKE_MONOTONIC: '1',
    };
    const age = ['--retry-schedule', '300ms', '--max-queue-age', '1d', '--ack-deadline', '2s'];
    const flags = [...QUICK, ...age, '--mode', 'spool', '--spool-dir', directory, ...next.route];
    const program = await Program.start(flags, { env });
    const client = await Client.hello(program.port());
    expect(await ledger.send(client, TO, 1_000)).toMatch(/^250 /);
    await writeFile(clock, `${days > 0 ? '+' : ''}${days}d`);
    expect(await ledger.send(client, TO, 1_000)).toMatch(/^250 /);
    const attempts = () => program.log.filter((line) => line.event === 'attempt');
    const before = attempts().length;
    await until(() => attempts().length > before + 4);
    const jumped = Date.parse(`${attempts().at(-1)!.time}`) - Date.now();
    expect(Math.abs(jumped - days * 86_400_000)).toBeLessThan(60_000);
    next.up = true;
    await until(async () => (await messageFiles(directory)).length === 0);
    expect(ledger.lost(ledger.arrivals(next.sink.messages))).toEqual([]);
    expect(next.sink.messages).toHaveLength(2);
    expect(program.log.filter((line) => line.event === 'dsn')).toEqual([]);
    client.destroy();
    await program.stop();
    await next.sink.close();
  });
}

function skip(context: TestContext, reason: string): never {
  report(`skipped: ${context.task.name}: ${reason}`);
  context.skip(reason);
}

async function libfaketime(): Promise<string> {
  const { output } = await run('find', ['/usr/lib', '/usr/local/lib', '-name', 'libfaketimeMT.so.1']);
  return output.split('\n')[0]!;
}

/** A directory on a file system of its own, unmounted with the test; needs root, and a kernel that lets it. */
async function mounted(context: TestContext, what: readonly string[]): Promise<string> {
  const directory = join(await temporaryDirectory(), 'mnt');
  await mkdir(directory);
  const { exitCode, output } = await run('mount', [...what, directory]);
  if (exitCode !== 0) skip(context, `mount: ${output.trim()}`);
  onTestFinished(async () => {
    await run('umount', ['-l', directory]);
  });
  return directory;
}
