// Cut-through keeps no message: strace sees the program open, create or rename no file while messages run through.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { needTools, SmtpSink, temporaryDirectory } from '../support/tools.ts';

/** Every system call by which a file can come to be or be opened. */
const CALLS =
  'open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,' +
  'truncate,memfd_create';
const MESSAGES = 20;
// The kernel's own answers; no message can be kept in them.
const PSEUDO = /"\/(proc|sys)\//;

it('opens and creates no file while 20 messages run through', async (context) => {
  await needTools(context, 'strace', 'smtp-sink');
  const trace = join(await temporaryDirectory(), 'trace');
  const sinks = [await SmtpSink.start(), await SmtpSink.start()];
  const routes = sinks.flatMap((sink, index) => ['--route', `${'ab'[index]}.example=${sink.url}`]);
  // -D: strace is the grandchild, so that the pid that we end is the program's.
  const under = ['strace', '-D', '-f', '-o', trace, '-e', `trace=${CALLS}`];
  const proxy = await Program.start(routes, { under });
  const client = await Client.hello(proxy.port());
  const to = ['u@a.example', 'v@b.example'];
  // Larger than any memory threshold.
  const body = `Subject: x\r\n\r\n${`${'x'.repeat(998)}\r\n`.repeat(600)}`;
  for (let warmUp = 0; warmUp < 2; warmUp++)
    expect(await client.send('s@src.example', to, body)).toMatch(/^250 /);
  await mark(proxy, client);
  for (let nth = 0; nth < MESSAGES; nth++)
    expect(await client.send('s@src.example', to, body)).toMatch(/^250 /);
  await mark(proxy, client);
  client.destroy();
  expect(await proxy.stop()).toBe(0);
  expect(await sinks[0]!.messages()).toHaveLength(MESSAGES + 2);

  const [before, during, after] = (await whole(trace)).split(/^.*--- SIGWINCH .*$/m);
  expect(after).toContain('SIGTERM');
  // The trace sees what there is to see: the program was read from its file.
  expect(before).toMatch(/open\w*\(.*dist\/cli\.js/);
  const calls = during!.split('\n').filter((line) => /\w+\(/.test(line) && !PSEUDO.test(line));
  expect(calls).toEqual([]);
});

/** Marks the place in the trace: Node ignores this signal, strace notes it, and nobody answers NOOP before taking it. */
async function mark(proxy: Program, client: Client): Promise<void> {
  proxy.signal('SIGWINCH');
  expect(await client.command('NOOP')).toMatch(/^250 /);
}

/** strace writes its last line a moment after the program's end. */
async function whole(file: string): Promise<string> {
  for (let tries = 0; tries < 100; tries++) {
    const text = await readFile(file, 'utf8');
    if (/\+\+\+ exited with 0 \+\+\+\n$/.test(text)) return text;
    await sleep(20);
  }
  throw new Error('strace did not finish its trace');
}
