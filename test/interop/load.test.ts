// Many messages at a time, from postfix's load generator to its sink: none is lost, none arrives twice.
import { expect, it, type TestContext } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { needTools, type Ran, report, run, SmtpSink } from '../support/tools.ts';

const SESSIONS = 20;
const MESSAGE_OCTETS = 4096;

type Load = Readonly<{ messages: number; recipients: number; flags?: readonly string[] }>;

/** -N: each recipient gets a number of its own, by which it is known again. */
async function source(proxy: Program, { messages, recipients, flags = [] }: Load): Promise<Ran> {
  const what = ['-m', `${messages}`, '-r', `${recipients}`, '-s', `${SESSIONS}`, '-l', `${MESSAGE_OCTETS}`];
  const who = ['-N', '-f', 's@src.example', '-t', 'u@a.example', '-M', 'source.example'];
  const began = performance.now();
  const ran = await run('smtp-source', [...what, ...who, ...flags, proxy.address()]);
  const perSecond = Math.round((messages * 1000) / (performance.now() - began));
  report(`smtp-source ${[...flags, ...what].join(' ')}: ${perSecond} messages/s`);
  return ran;
}

async function carriesEachOnce(context: TestContext, load: Load): Promise<void> {
  await needTools(context, 'smtp-source', 'smtp-sink');
  const sink = await SmtpSink.start();
  const proxy = await Program.start(['--route', `*=${sink.url}`]);
  const ran = await source(proxy, load);
  expect(ran.output).toBe('');
  expect(ran.exitCode).toBe(0);
  const arrived = await sink.messages();
  expect(arrived).toHaveLength(load.messages);
  const recipients = arrived.flatMap((message) => message.recipients);
  expect(new Set(recipients).size).toBe(load.messages * load.recipients);
  expect(recipients).toHaveLength(load.messages * load.recipients);
  expect(arrived.every((message) => message.recipients.length === load.recipients)).toBe(true);
  expect(proxy.transactions().filter((line) => line.result === 'delivered')).toHaveLength(load.messages);
  expect(await proxy.stop()).toBe(0);
  expect(proxy.complaints).toEqual([]);
}

it('carries 3,000 messages in 20 sessions at a time, each once, with a connection for each', async (context) => {
  await carriesEachOnce(context, { messages: 3_000, recipients: 1 });
});

it('carries 3,000 messages over 20 connections, each once', async (context) => {
  await carriesEachOnce(context, { messages: 3_000, recipients: 1, flags: ['-d'] });
});

it('carries 500 messages with five recipients to one next hop as one message each', async (context) => {
  await carriesEachOnce(context, { messages: 500, recipients: 5, flags: ['-d'] });
});

// smtp-source knows one domain only, so these come from a client of ours.
it('carries 500 messages with recipients at two next hops, each once to each', async (context) => {
  await needTools(context, 'smtp-sink');
  const sinks = [await SmtpSink.start(), await SmtpSink.start()];
  const routes = sinks.flatMap((sink, index) => ['--route', `${'ab'[index]}.example=${sink.url}`]);
  const proxy = await Program.start(routes);
  const clients = await Promise.all(Array.from({ length: 10 }, () => Client.hello(proxy.port())));
  const body = `Subject: x\r\n\r\n${`${'x'.repeat(70)}\r\n`.repeat(50)}`;
  const loops = clients.map(async (client, session) => {
    for (let nth = 0; nth < 50; nth++) {
      const id = `${session}.${nth}`;
      const reply = await client.send('s@src.example', [`${id}@a.example`, `${id}@b.example`], body);
      expect(reply).toMatch(/^250 /);
    }
    expect(await client.command('QUIT')).toMatch(/^221/);
  });
  await Promise.all(loops);
  for (const [index, sink] of sinks.entries()) {
    const arrived = await sink.messages();
    expect(arrived).toHaveLength(500);
    const recipients = arrived.flatMap((message) => message.recipients);
    expect(new Set(recipients).size).toBe(500);
    expect(recipients.every((recipient) => recipient.endsWith(`@${'ab'[index]}.example>`))).toBe(true);
  }
});
