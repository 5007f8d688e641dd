// Postfix and Exim before the proxy, with queues that try again: two destinations, of which one defers after the final
// dot, and each mailbox gets one copy. So it is when the proxy is killed between the dots and its reply, and when the
// upstream is cut off before it has read the reply.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { CuttingTap } from '../support/peers/cutting-tap.ts';
import { quietPort } from '../support/peers/daemon.ts';
import { Exim } from '../support/peers/exim.ts';
import { needPeers } from '../support/peers/installed.ts';
import { Postfix } from '../support/peers/postfix.ts';
import { recipe } from '../support/peers/recipes.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { type Act, Sink } from '../support/sink.ts';
import { needTools, temporaryDirectory } from '../support/tools.ts';

const TO = ['u@a.example', 'v@b.example'];

async function metricsOf(program: Program): Promise<string> {
  return await (await fetch(`http://${program.http}/metrics`)).text();
}

/** With a queue of its own, which it sends to the proxy. */
type Upstream = Readonly<{ port: number; queued: () => Promise<number>; flush: () => Promise<void> }>;

const UPSTREAMS = {
  postfix: (proxy: number): Promise<Upstream> =>
    Postfix.start({ main: recipe('postfix-relay', { 2525: proxy }) }),
  exim: (proxy: number): Promise<Upstream> =>
    Exim.start({
      router: recipe('exim-router', { 2525: proxy }),
      // With PRDR it hears of each recipient, see each-recipient.test.ts.
      transport: `${recipe('exim-transport', {})}  hosts_try_prdr =\n`,
    }),
};

async function give(port: number): Promise<void> {
  const client = await Client.hello(port);
  expect(await client.send('s@src.example', TO, 'Subject: one copy\r\n\r\none copy\r\n')).toMatch(/^250/);
  client.destroy();
}

/** Has it try again until it has nothing left. */
async function emptied(upstream: Upstream): Promise<void> {
  await until(async () => {
    if ((await upstream.queued()) === 0) return true;
    await upstream.flush();
    return false;
  }, 40_000);
}

/** It is cut off when it should read the first answer, and tries again until it has nothing left. @returns that answer */
async function cutOffOnce(name: keyof typeof UPSTREAMS, proxy: Program): Promise<string | null> {
  const tap = await CuttingTap.start(proxy.port());
  const upstream = await UPSTREAMS[name](tap.port);
  await give(upstream.port);
  await until(() => tap.swallowed !== null, 20_000);
  await emptied(upstream);
  return tap.swallowed;
}

describe.each(['postfix', 'exim'] as const)('%s', (name) => {
  it.for<[mixed: string, flags: string[]]>([
    ['fail', []],
    ['split', []],
    ['spool', ['--retry-schedule', '200ms']],
  ])(
    '--mixed %s: one copy each, though one destination defers three times after the dot',
    async ([mixed, flags], context) => {
      needPeers(context, name);
      const later = (_line: string, nth: number): Act | null => (nth < 3 ? '451 4.3.0 later' : null);
      const [a, b] = [await Sink.start(), await Sink.start({ script: { dot: later } })];
      const route = ['--route', `a.example=${a.url}`, '--route', `b.example=${b.url}`];
      const spool = join(await temporaryDirectory(), 'spool');
      const proxy = await Program.start([...route, '--mixed', mixed, '--spool-dir', spool, ...flags]);
      const upstream = await UPSTREAMS[name](proxy.port());
      await give(upstream.port);
      await emptied(upstream);
      await until(() => b.messages.length > 0, 20_000);
      expect([a, b].map((sink) => sink.messages.length)).toEqual([1, 1]);
      if (mixed === 'fail') {
        const outcomes = proxy
          .transactions()
          .map(({ recipients }) => (recipients as { outcome: string }[])[0]);
        expect(outcomes.map((each) => each?.outcome)).toEqual(['accepted', ...Array(3).fill('suppressed')]);
      }
      for (const sink of [a, b]) await sink.close();
    },
  );

  it('one copy each, though the proxy is killed between the dots and its reply', async (context) => {
    needPeers(context, name);
    const silent = (_line: string, nth: number): Act | null => (nth === 0 ? { act: 'stall' } : null);
    const [a, b] = [await Sink.start(), await Sink.start({ script: { dot: silent } })];
    const port = await quietPort();
    const flags = ['--listen', `smtp://127.0.0.1:${port}`, '--ledger-dir', await temporaryDirectory()];
    const route = ['--route', `a.example=${a.url}`, '--route', `b.example=${b.url}`];
    const first = await Program.start([...flags, ...route]);
    const upstream = await UPSTREAMS[name](port);
    await give(upstream.port);
    await until(() => a.messages.length === 1 && (b.sessions[0]?.sawDot ?? false));
    // The answer of the first is on record once it can be counted; that of the second never comes.
    await until(async () => /^cutthrough_ledger_entries 2$/m.test(await metricsOf(first)));
    await until(async () =>
      (await readFile(join(flags.at(-1)!, 'ledger.journal'), 'utf8')).includes('"delivered"'),
    );
    first.signal('SIGKILL');
    await until(() => first.exited);
    const second = await Program.start([...flags, ...route]);
    await emptied(upstream);
    expect([a, b].map((sink) => sink.messages.length)).toEqual([1, 1]);
    expect(second.log).toContainEqual(expect.objectContaining({ event: 'ledger_unknown', recipients: 1 }));
    for (const sink of [a, b]) await sink.close();
  });

  it('one copy each, though it is cut off before it has read the 250', async (context) => {
    needPeers(context, name);
    const [a, b] = [await Sink.start(), await Sink.start()];
    const proxy = await Program.start(['--route', `a.example=${a.url}`, '--route', `b.example=${b.url}`]);
    expect(await cutOffOnce(name, proxy)).toMatch(/^250 /);
    expect([a, b].map((sink) => sink.messages.length)).toEqual([1, 1]);
    const outcomes = proxy.transactions().map(({ recipients }) => (recipients as { outcome: string }[])[0]);
    expect(outcomes.map((each) => each?.outcome)).toEqual(['accepted', 'suppressed']);
    for (const sink of [a, b]) await sink.close();
  });

  it.for(['spool', 'fast-path'])(
    'one copy each by --fallback %s, though it is cut off before it has read that a next hop out of reach gets it later',
    async (fallback, context) => {
      needPeers(context, name);
      const [a, port] = [await Sink.start(), await quietPort()];
      const flags = ['--route', `a.example=${a.url}`, '--route', `b.example=smtp://127.0.0.1:${port}`];
      const spool = ['--spool-dir', join(await temporaryDirectory(), 'spool'), '--retry-schedule', '200ms'];
      const proxy = await Program.start([...flags, '--fallback', fallback, ...spool]);
      expect(await cutOffOnce(name, proxy)).toMatch(/^250 /);
      const b = await Sink.start({ port });
      await until(async () => /^cutthrough_queue_messages 0$/m.test(await metricsOf(proxy)), 20_000);
      expect([a, b].map((sink) => sink.messages.length)).toEqual([1, 1]);
      for (const sink of [a, b]) await sink.close();
    },
  );
});

it('goes on in memory, and says so, where the disk refuses an fsync', async (context) => {
  await needTools(context, 'strace');
  const later = (_line: string, nth: number): Act | null => (nth === 0 ? '451 4.3.0 later' : null);
  const [a, b] = [await Sink.start(), await Sink.start({ script: { dot: later } })];
  const flags = ['--route', `a.example=${a.url}`, '--route', `b.example=${b.url}`];
  const inject = ['-e', 'trace=fdatasync', '-e', 'inject=fdatasync:error=EIO'];
  const under = ['strace', '-D', '-f', '-qq', '-o', '/dev/null', ...inject];
  const proxy = await Program.start([...flags, '--ledger-dir', await temporaryDirectory()], { under });
  const client = await Client.hello(proxy.port());
  expect(await client.send('s@src.example', TO, 'Subject: x\r\n\r\nx\r\n')).toMatch(/^451 4\.5\.0/);
  expect(proxy.log).toContainEqual(expect.objectContaining({ event: 'ledger_failed' }));
  expect(await client.send('s@src.example', TO, 'Subject: x\r\n\r\nx\r\n')).toMatch(/^250/);
  expect([a, b].map((sink) => sink.messages.length)).toEqual([1, 1]);
  client.destroy();
  for (const sink of [a, b]) await sink.close();
});
