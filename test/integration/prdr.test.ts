// PRDR as a protocol (per-recipient data responses, as Exim has them); what its clients hear of each recipient is in
// each-recipient.test.ts.
import { afterEach, describe, expect, it } from 'vitest';
import { sendEach } from '../support/each.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import { spoolDirectory } from '../support/spool.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const MESSAGE = 'Subject: x\r\n\r\nhello\r\n';
const TWO = ['u@a.example', 'v@b.example'];

describe('is offered', () => {
  it('after EHLO', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.command('EHLO client.example')).toMatch(/^250-PRDR$/m);
    expect(await client.command('MAIL FROM:<s@src.example> PRDR=yes')).toMatch(/^501 5\.5\.4/);
    expect(await client.command('MAIL FROM:<s@src.example> PRDR')).toMatch(/^250 /);
  });

  it('not after HELO, nor taken then', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    await client.command('HELO client.example');
    expect(await client.command('MAIL FROM:<s@src.example> PRDR')).toMatch(/^555 5\.5\.4 .*PRDR/);
  });

  it.each(['fast-path', 'spool'] as const)('not in mode %s, nor taken there', async (mode) => {
    const { directory: spoolDir, remove } = await spoolDirectory();
    proxy = await startProxy([{}], { mode, spoolDir });
    const client = await proxy.client();
    expect(await client.command('EHLO client.example')).not.toMatch(/PRDR/);
    expect(await client.command('MAIL FROM:<s@src.example> PRDR')).toMatch(/^555 5\.5\.4 .*PRDR/);
    await proxy.close();
    await remove();
  });
});

it('353, a reply for each, and 250 at last while anybody has the message', async () => {
  proxy = await startProxy([{}, { script: { dot: '554 5.7.1 never' } }]);
  const { each, around } = await sendEach(await proxy.client(), 'PRDR', TWO, MESSAGE);
  expect(each).toEqual(['250 2.0.0 queued', '554 5.7.1 never']);
  expect(around).toEqual([
    '353 a reply for each recipient follows',
    '250 2.0.0 message accepted for 1 of 2 recipients',
  ]);
});

it.each<[string, string, string, RegExp]>([
  ['all refuse', '550 5.7.1 no', '554 5.7.1 never', /^550 5\.7\.1 no/],
  ['one refuses, one defers', '550 5.7.1 no', '451 4.3.0 later', /^451 4\.3\.0 later/],
])('at last, when %s', async (_what, first, second, last) => {
  proxy = await startProxy([{ script: { dot: first } }, { script: { dot: second } }]);
  const { each, around } = await sendEach(await proxy.client(), 'PRDR', TWO, MESSAGE);
  expect(each).toEqual([first, second]);
  expect(around[1]).toMatch(last);
});

it('one recipient has one reply', async () => {
  const rcpt = (line: string) => (line.includes('no@') ? '550 5.1.1 no such user' : null);
  proxy = await startProxy([{ script: { rcpt } }]);
  const client = await proxy.client();
  const { each, around } = await sendEach(client, 'PRDR', ['no@a.example', 'u@a.example'], MESSAGE);
  expect([each, around]).toEqual([['250 2.0.0 queued'], []]);
  expect(await client.command('NOOP')).toMatch(/^250 2\.0\.0 ok/);
});

it('a client that does not ask has one reply, and neither is a next hop asked', async () => {
  proxy = await startProxy([{ prdr: true }, { script: { dot: '451 4.3.0 later' } }]);
  const client = await proxy.client();
  expect(await client.send('s@src.example', [...TWO, 'u2@a.example'], MESSAGE)).toMatch(
    /^451 4\.5\.0 .*2 of 3/,
  );
  expect(proxy.sinks[0]!.messages[0]!.mail).not.toMatch(/PRDR/);
  // The next message of the same sessions may be another's.
  expect(
    (await sendEach(client, 'PRDR', ['u@a.example', 'u2@a.example'], `X: y\r\n${MESSAGE}`)).each.length,
  ).toBe(2);
  expect(proxy.sinks[0]!.messages[1]!.mail).toMatch(/PRDR$/);
});

it('a next hop that does not offer it is not asked', async () => {
  proxy = await startProxy([{}]);
  await sendEach(await proxy.client(), 'PRDR', ['u@a.example', 'u2@a.example'], MESSAGE);
  expect(proxy.sinks[0]!.messages[0]!.mail).toBe('MAIL FROM:<s@src.example>');
});

it('a 353 that nobody has asked for is no answer', async () => {
  proxy = await startProxy([{ script: { dot: '353 what?' } }]);
  const { each } = await sendEach(await proxy.client(), 'PRDR', ['u@a.example', 'u2@a.example'], MESSAGE);
  for (const one of each) expect(one).toMatch(/^451 4\.4\.2/);
});

it('the time line has every answer of the next hop, with whom it is about', async () => {
  const dot = (line: string) => (line.includes('spam') ? '550 5.7.1 spam' : null);
  proxy = await startProxy([{ prdr: true, script: { dot } }]);
  await sendEach(await proxy.client(), 'PRDR', ['u@a.example', 'spam@a.example'], MESSAGE);
  const trace = proxy.log.find(({ event }) => event === 'trace') as unknown as {
    events: { event: string; leg: number | null; recipient?: string; code?: number }[];
  };
  const replies = trace.events.filter(({ event, leg }) => event === 'reply' && leg !== null);
  expect(replies.map(({ recipient, code }) => [recipient, code])).toEqual([
    [undefined, 353],
    ['u@a.example', 250],
    ['spam@a.example', 550],
    [undefined, 250],
  ]);
});
