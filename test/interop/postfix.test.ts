// Postfix as an operator puts it before the proxy, by the README's recipes: its queue takes what the proxy doesn't, its
// bounces hold the next hop's words, and as a filter before or after its queue the proxy is passed through both ways.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { quietPort } from '../support/peers/daemon.ts';
import { needPeers } from '../support/peers/installed.ts';
import { Postfix } from '../support/peers/postfix.ts';
import { recipe } from '../support/peers/recipes.ts';
import { Tap } from '../support/peers/tap.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { needTools, run, SmtpSink, temporaryDirectory } from '../support/tools.ts';

const NO_SUCH_USER = '550 5.1.1 no such user, says the next hop';
const LATER = '451 4.2.1 not now, says the next hop';
/** The sender's mailbox is at the Postfix under test, so that its bounces stay there. */
const SENDER = 'sender@src.example';

async function give(port: number, to: readonly string[], subject: string, from = SENDER): Promise<string> {
  const client = await Client.hello(port);
  const body = `Subject: ${subject}\r\n\r\n${subject}\r\n`;
  const reply = await client.send(from, [...to], body);
  client.destroy();
  return reply;
}

/** `refused` for good and `later` once for now; all else is taken. */
async function moodySink(): Promise<Sink> {
  let refusals = 0;
  const rcpt = (line: string) => {
    if (line.includes('refused')) return NO_SUCH_USER;
    return line.includes('later') && refusals++ === 0 ? LATER : null;
  };
  return await Sink.start({ script: { rcpt } });
}

it('leaves to its queue what the next hop defers, to its bounces what it refuses, and nothing of what it takes', async (context) => {
  needPeers(context, 'postfix');
  const sink = await moodySink();
  const proxy = await Program.start(['--route', `example.com=${sink.url}`]);
  const main = recipe('postfix-transport', { 2525: proxy.port() });
  const postfix = await Postfix.start({ main, domains: ['src.example'] });
  for (const user of ['user', 'refused-one', 'later-one']) {
    expect(await give(postfix.port, [`${user}@example.com`], user)).toMatch(/^250 /);
  }
  await postfix.daemon.logged(/to=<user@example\.com>.*status=sent \(250 2\.0\.0 /);
  await postfix.daemon.logged(
    new RegExp(`to=<refused-one@example\\.com>.*status=bounced \\(.* said: ${NO_SUCH_USER}`),
  );
  await postfix.daemon.logged(
    new RegExp(`to=<later-one@example\\.com>.*status=deferred \\(.* said: ${LATER}`),
  );
  const [bounce] = await postfix.mailbox.holding('Undelivered Mail Returned to Sender');
  expect(bounce!.toString().replaceAll(/\s+/g, ' ')).toContain(NO_SUCH_USER);
  await until(async () => (await postfix.queue()).length === 1);
  expect((await postfix.queue())[0]?.recipients[0]?.delay_reason).toContain(LATER);
  await postfix.flush();
  await postfix.daemon.logged(/to=<later-one@example\.com>.*status=sent/);
  await until(async () => (await postfix.queue()).length === 0);
  expect(sink.messages.map(({ rcpts }) => rcpts.map(addressOf))).toEqual([
    ['user@example.com'],
    ['later-one@example.com'],
  ]);
  await sink.close();
});

function addressOf(rcpt: string): string {
  return /<(.*)>/.exec(rcpt)![1]!;
}

it("bounces of a message's recipients only the one whose next hop refuses it", async (context) => {
  needPeers(context, 'postfix');
  const [a, b] = [await Sink.start(), await moodySink()];
  const proxy = await Program.start(['--route', `a.example=${a.url}`, '--route', `b.example=${b.url}`]);
  const main = recipe('postfix-relay', { 2525: proxy.port() });
  const postfix = await Postfix.start({ main, domains: ['src.example'] });
  const to = ['one@a.example', 'two@b.example', 'refused-four@b.example', 'three@a.example'];
  expect(await give(postfix.port, to, 'several')).toMatch(/^250 /);
  await postfix.mailbox.holding('Undelivered Mail Returned to Sender');
  await until(async () => (await postfix.queue()).length === 0);
  expect(a.messages.map(({ rcpts }) => rcpts.map(addressOf).toSorted())).toEqual([[to[0], to[3]]]);
  expect(b.messages.map(({ rcpts }) => rcpts.map(addressOf))).toEqual([[to[1]]]);
  const log = await postfix.daemon.log();
  for (const each of [to[0], to[1], to[3]]) expect(log).toMatch(new RegExp(`to=<${each}>.*status=sent`));
  expect(log).toMatch(new RegExp(`to=<${to[2]}>.*status=bounced .*${NO_SUCH_USER}`));
  for (const sink of [a, b]) await sink.close();
});

it('is pipelined to, and kept connected for the next message', async (context) => {
  needPeers(context, 'postfix');
  await needTools(context, 'smtp-source');
  const messages = 40;
  const sink = await Sink.start();
  const proxy = await Program.start(['--route', `*=${sink.url}`]);
  const tap = await Tap.start(proxy.port());
  // One delivery at a time makes a backlog, for which Postfix keeps connections.
  const main = `${recipe('postfix-relay', { 2525: tap.port })}default_destination_concurrency_limit = 1\n`;
  const postfix = await Postfix.start({ main });
  const load = ['-N', '-s', '10', '-m', `${messages}`, '-f', SENDER, '-t', 'u@a.example'];
  const ran = await run('smtp-source', [...load, `127.0.0.1:${postfix.port}`]);
  expect(ran.output).toBe('');
  await until(() => sink.messages.length === messages, 30_000);
  await until(async () => (await postfix.queue()).length === 0);
  expect(new Set(sink.messages.flatMap(({ rcpts }) => rcpts)).size).toBe(messages);
  expect(sink.messages).toHaveLength(messages);
  expect(await postfix.daemon.log()).toMatch(/conn_use=[2-9]/);
  expect(tap.connections).toBeLessThan(messages / 2);
  expect(sink.connections).toBeLessThan(messages / 2);
  const envelope = /^MAIL FROM:<[^\r]*\r\nRCPT TO:<[^\r]*\r\nDATA\r\n$/;
  expect(
    tap
      .chunks()
      .flat()
      .some((chunk) => envelope.test(chunk)),
  ).toBe(true);
  await sink.close();
});

/** The last service of `lines` refuses `refused` at RCPT, one sender at DATA, and another at the end of the message. */
function refusing(lines: string): string {
  const access = (kind: string, pattern: string, reply: string) =>
    `check_${kind}_access regexp:{ {/^${pattern}@/ ${reply}} }`;
  const options = {
    smtpd_recipient_restrictions: access('recipient', 'refused', '550 5.1.1 no such mailbox here'),
    smtpd_data_restrictions: access('sender', 'at-data', '554 5.7.1 no data from you'),
    smtpd_end_of_data_restrictions: access('sender', 'at-end', '554 5.7.1 not this message'),
  };
  const flags = Object.entries(options).map(([name, value]) => `    -o { ${name} = ${value} }\n`);
  return `${lines}${flags.join('')}`;
}

/** The proxy between two services of one Postfix, by the recipes. */
async function startFilter(services: (front: number, proxy: number, back: number) => string, main = '') {
  const [front, back] = [await quietPort(), await quietPort()];
  const config = join(await temporaryDirectory(), 'cutthrough.yaml');
  await writeFile(config, recipe('cutthrough-to-reinjection', { 10026: back }));
  const proxy = await Program.start(['--config', config]);
  const filter = main === '' ? '' : recipe(main, { 2525: proxy.port() });
  const postfix = await Postfix.start({
    domains: ['here.example'],
    main: `${filter}smtpd_recipient_restrictions =\n`,
    services: services(front, proxy.port(), back),
    ports: [back],
  });
  return { postfix, proxy, front };
}

for (const speedAdjust of [false, true]) {
  it(`is a filter before the queue${speedAdjust ? ', with speed_adjust' : ''}: what Postfix says behind it is what the client hears`, async (context) => {
    needPeers(context, 'postfix');
    const { postfix, proxy, front } = await startFilter((...[front, proxy, back]) => {
      const lines = recipe('postfix-before-queue', { 25: front, 2525: proxy, 10026: back });
      const option = `$&\n    -o smtpd_proxy_options=speed_adjust`;
      return refusing(speedAdjust ? lines.replace(/^.*smtpd_proxy_filter.*$/m, option) : lines);
    });
    expect(await give(front, ['box@here.example'], 'taken')).toMatch(/^250 2\.0\.0 Ok: queued as /);
    const client = await Client.hello(front);
    await client.command(`MAIL FROM:<${SENDER}>`);
    const refusal = '550 5.1.1 <refused@here.example>: Recipient address rejected: no such mailbox here';
    expect(await client.command('RCPT TO:<refused@here.example>')).toMatch(speedAdjust ? /^250 / : refusal);
    client.destroy();
    if (speedAdjust) expect(await give(front, ['refused@here.example'], 'no')).toBe(refusal);
    const to = ['box@here.example'];
    expect(await give(front, to, 'no', 'at-data@src.example')).toMatch(/^554 5\.7\.1 .*no data from you/);
    expect(await give(front, to, 'no', 'at-end@src.example')).toMatch(/^554 5\.7\.1 .*not this message/);
    const [message] = await postfix.mailbox.holding('Subject: taken');
    expect(message!.toString()).toMatch(/^Received: from \S+ \(.*\)\s+by proxy\.example\s/m);
    await until(async () => (await postfix.queue()).length === 0);
    expect(await postfix.mailbox.messages()).toHaveLength(1);
    expect(proxy.transactions().filter((line) => line.result === 'delivered')).toHaveLength(1);
  });
}

it('is a filter after the queue, from which mail comes back once and goes on', async (context) => {
  needPeers(context, 'postfix');
  const { postfix, proxy } = await startFilter(
    (_front, _proxy, back) => refusing(recipe('postfix-after-queue-reinjection', { 10026: back })),
    'postfix-after-queue',
  );
  for (let nth = 0; nth < 5; nth++) {
    expect(await give(postfix.port, ['box@here.example'], `mail ${nth};`)).toMatch(/^250 /);
  }
  await until(async () => (await postfix.mailbox.messages()).length === 5, 20_000);
  await until(async () => (await postfix.queue()).length === 0);
  const subjects = (await postfix.mailbox.messages()).map((each) => /^Subject: (.*)$/m.exec(`${each}`)![1]);
  expect(new Set(subjects).size).toBe(5);
  expect(proxy.transactions().map((line) => line.result)).toEqual(Array(5).fill('delivered'));
});

it('loses and doubles nothing when one of the two proxies it relays to is drained under load', async (context) => {
  needPeers(context, 'postfix');
  await needTools(context, 'smtp-source', 'smtp-sink');
  const messages = 400;
  const sink = await SmtpSink.start();
  const [one, two] = [
    await Program.start(['--route', `*=${sink.url}`]),
    await Program.start(['--route', `*=${sink.url}`]),
  ];
  const main = recipe('postfix-relay-two', { 2525: one.port(), 2526: two.port() });
  const postfix = await Postfix.start({ main });
  const delivered = (proxy: Program) => proxy.transactions().filter(({ result }) => result === 'delivered');
  const load = ['-N', '-s', '10', '-m', `${messages}`, '-l', '4096', '-f', SENDER, '-t', 'u@a.example'];
  const source = run('smtp-source', [...load, `127.0.0.1:${postfix.port}`]);
  await until(() => delivered(one).length >= 50, 30_000);
  expect(await one.stop()).toBe(0);
  expect((await source).output).toBe('');
  await until(async () => {
    await postfix.flush();
    return (await postfix.queue()).length === 0;
  }, 40_000);
  const recipients = (await sink.messages()).flatMap((message) => message.recipients);
  expect(recipients).toHaveLength(messages);
  expect(new Set(recipients).size).toBe(messages);
  expect(delivered(two).length).toBeGreaterThan(0);
  expect(delivered(one).length + delivered(two).length).toBe(messages);
  expect(await postfix.daemon.log()).not.toContain('status=bounced');
});
