// Upstreams that hear of each recipient by itself, with queues that try again: Postfix and Exim over LMTP, and Exim with PRDR,
// which it uses by default. Two destinations, of which one defers after the final dot: each mailbox gets one copy, and who has
// it is not asked for again. So it is when the wire breaks before the answers are read, and when the proxy is killed
// between the dots and the answers. And Exim as the next hop, which answers for each.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { sendEach } from '../support/each.ts';
import { CuttingTap } from '../support/peers/cutting-tap.ts';
import { quietPort } from '../support/peers/daemon.ts';
import { Exim } from '../support/peers/exim.ts';
import { needPeers, type PeerName } from '../support/peers/installed.ts';
import { Postfix } from '../support/peers/postfix.ts';
import { recipe } from '../support/peers/recipes.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { type Act, Sink } from '../support/sink.ts';
import { temporaryDirectory } from '../support/tools.ts';

const TO = ['u@a.example', 'v@b.example'];
const MESSAGE = 'Subject: one copy\r\n\r\none copy\r\n';

/** `retry`: has all that is in the queue tried again, and says how much it was. */
type Started = Readonly<{ port: number; log: () => Promise<string>; retry: () => Promise<number> }>;
type Upstream = Readonly<{
  peer: PeerName;
  scheme: 'lmtp' | 'smtp';
  start: (port: number) => Promise<Started>;
}>;

const UPSTREAMS: Readonly<Record<string, Upstream>> = {
  'Postfix over LMTP': {
    peer: 'postfix',
    scheme: 'lmtp',
    start: async (port) => {
      const main = recipe('postfix-lmtp', { 2524: port });
      const postfix = await Postfix.start({ main, services: 'lmtp unix - - n - - lmtp\n' });
      return {
        port: postfix.port,
        log: () => postfix.daemon.log(),
        retry: async () => {
          const queue = await postfix.queue();
          if (queue.some(({ queue_name }) => queue_name === 'deferred')) await postfix.flush();
          return queue.length;
        },
      };
    },
  },
  'Exim with PRDR': {
    peer: 'exim',
    scheme: 'smtp',
    start: (port) => startEximBefore(port, ''),
  },
  'Exim over LMTP': {
    peer: 'exim',
    scheme: 'lmtp',
    start: (port) => startEximBefore(port, `  protocol = lmtp\n  port = ${port}\n`),
  },
};

async function startEximBefore(port: number, more: string): Promise<Started> {
  const router = recipe('exim-router', { 2525: port });
  const exim = await Exim.start({ router, transport: `${recipe('exim-transport', {})}${more}` });
  return {
    port: exim.port,
    log: () => exim.daemon.log(),
    retry: async () => {
      const left = await exim.queued();
      if (left > 0) await exim.flush();
      return left;
    },
  };
}

async function give(port: number): Promise<void> {
  const client = await Client.hello(port);
  expect(await client.send('s@src.example', TO, MESSAGE)).toMatch(/^250/);
  await client.command('QUIT');
}

const outcomesOf = (proxy: Program) =>
  proxy
    .transactions()
    .map(({ recipients }) =>
      (recipients as { address: string; outcome: string }[]).map(
        ({ address, outcome }) => `${address} ${outcome}`,
      ),
    );
const copiesIn = (sinks: readonly Sink[]) => sinks.map(({ messages }) => messages.length);

describe.each(Object.entries(UPSTREAMS))('%s', (name, { peer, scheme, start }) => {
  it('repeats for the one who defers, three times after the dot, and for nobody else', async (context) => {
    needPeers(context, peer);
    const later = (_line: string, nth: number): Act | null => (nth < 3 ? '451 4.3.0 later' : null);
    const sinks = [await Sink.start(), await Sink.start({ script: { dot: later } })] as const;
    const route = ['--route', `a.example=${sinks[0].url}`, '--route', `b.example=${sinks[1].url}`];
    const proxy = await Program.start(['--listen', `${scheme}://127.0.0.1:0`, ...route]);
    const upstream = await start(proxy.port());
    await give(upstream.port);
    await until(async () => (await upstream.retry()) === 0, 40_000);
    await until(() => copiesIn(sinks)[1] === 1, 20_000);
    expect(copiesIn(sinks)).toEqual([1, 1]);
    const [first, ...again] = outcomesOf(proxy);
    expect(first!.toSorted()).toEqual(['u@a.example accepted', 'v@b.example deferred']);
    expect(again).toEqual([...Array(2).fill(['v@b.example deferred']), ['v@b.example accepted']]);
    const log = await upstream.log();
    if (name === 'Exim with PRDR') {
      expect(log).toMatch(/=> u@a\.example .* PRDR/);
      expect(log).toMatch(/v@b\.example .*PRDR error after .*451 4\.3\.0 later/);
    } else if (name === 'Exim over LMTP')
      expect(log).toMatch(/v@b\.example .*LMTP error after .*451 4\.3\.0 later/);
    else expect(log).toMatch(/to=<v@b\.example>, .*status=deferred .*451 4\.3\.0 later/);
    for (const sink of sinks) await sink.close();
  });

  it('one copy each, though the wire breaks before it reads the answers', async (context) => {
    needPeers(context, peer);
    const later = (_line: string, nth: number): Act | null => (nth < 1 ? '451 4.3.0 later' : null);
    const sinks = [await Sink.start(), await Sink.start({ script: { dot: later } })] as const;
    const route = ['--route', `a.example=${sinks[0].url}`, '--route', `b.example=${sinks[1].url}`];
    const proxy = await Program.start(['--listen', `${scheme}://127.0.0.1:0`, ...route]);
    const cut = await CuttingTap.start(proxy.port());
    const upstream = await start(cut.port);
    await give(upstream.port);
    await until(() => cut.swallowed !== null, 20_000);
    await until(async () => (await upstream.retry()) === 0, 40_000);
    await until(() => copiesIn(sinks)[1] === 1, 20_000);
    expect(copiesIn(sinks)).toEqual([1, 1]);
    expect(outcomesOf(proxy)[1]!.toSorted()).toEqual(['u@a.example suppressed', 'v@b.example accepted']);
    for (const sink of sinks) await sink.close();
  });

  it('one copy each, though the proxy is killed between the dots and its answers', async (context) => {
    needPeers(context, peer);
    const silent = (_line: string, nth: number): Act | null => (nth === 0 ? { act: 'stall' } : null);
    const sinks = [await Sink.start(), await Sink.start({ script: { dot: silent } })] as const;
    const route = ['--route', `a.example=${sinks[0].url}`, '--route', `b.example=${sinks[1].url}`];
    const ledger = await temporaryDirectory();
    const port = await quietPort();
    const flags = ['--listen', `${scheme}://127.0.0.1:${port}`, '--ledger-dir', ledger, ...route];
    const first = await Program.start(flags);
    const upstream = await start(port);
    await give(upstream.port);
    await until(() => sinks.every(({ sessions }) => sessions[0]?.sawDot ?? false), 20_000);
    await until(async () => (await readFile(join(ledger, 'ledger.journal'), 'utf8')).includes('"delivered"'));
    first.signal('SIGKILL');
    await until(() => first.exited);
    await Program.start(flags);
    await until(async () => (await upstream.retry()) === 0, 40_000);
    expect(copiesIn(sinks)).toEqual([1, 1]);
    for (const sink of sinks) await sink.close();
  });
});

describe('Exim as the next hop', () => {
  const startExim = () =>
    Exim.start({ domains: ['a.example'], main: 'acl_smtp_data_prdr = accept local_parts = ! spam' });
  const routeTo = (exim: Exim) => ['--route', `a.example=smtp://127.0.0.1:${exim.port}`];

  it.for(['PRDR', 'LMTP'] as const)('answers for each, and so do we: %s', async (protocol, context) => {
    needPeers(context, 'exim');
    const exim = await startExim();
    const other = await Sink.start({ script: { dot: '451 4.3.0 later' } });
    const listen = ['--listen', protocol === 'LMTP' ? 'lmtp://127.0.0.1:0' : 'smtp://127.0.0.1:0'];
    const proxy = await Program.start([...listen, ...routeTo(exim), '--route', `b.example=${other.url}`]);
    const client = await (protocol === 'LMTP' ? Client.lhlo(proxy.port()) : Client.hello(proxy.port()));
    const to = ['u@a.example', 'spam@a.example', 'v@b.example', 'u2@a.example', 'u@a.example'];
    const { each, around } = await sendEach(client, protocol, to, MESSAGE);
    expect(each.map((reply) => reply.slice(0, 3))).toEqual(['250', '550', '451', '250', '250']);
    expect(each[1]).toMatch(/^550 PRDR R=<spam@a\.example> refusal/);
    expect(around.map((reply) => reply.slice(0, 3))).toEqual(protocol === 'LMTP' ? [] : ['353', '250']);
    await exim.daemon.logged(/<= s@src\.example .* PRDR/);
    await exim.daemon.logged(/ Completed/);
    const delivered = (await exim.daemon.log()).matchAll(/ [=-]> (\S+) /g);
    expect([...delivered].map(([, who]) => who).toSorted()).toEqual(['u', 'u2']);
    // The session is good for another message, to one recipient, which Exim answers once.
    expect((await sendEach(client, protocol, ['u2@a.example'], MESSAGE)).each[0]).toMatch(/^250 /);
    client.destroy();
    await other.close();
  });

  it('all refused by it', async (context) => {
    needPeers(context, 'exim');
    const exim = await startExim();
    const proxy = await Program.start(routeTo(exim));
    const client = await Client.hello(proxy.port());
    const { each, around } = await sendEach(client, 'PRDR', ['spam@a.example', 'spam@a.example'], MESSAGE);
    expect(each.map((reply) => reply.slice(0, 3))).toEqual(['550', '550']);
    expect(around[1]).toMatch(/^550/);
    client.destroy();
  });
});
