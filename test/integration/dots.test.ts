// --dots ordered: one final dot after another, the least trusted next hop's first; the first that doesn't accept ends it.
import { afterEach, expect, it } from 'vitest';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';
import type { Act, SinkOptions } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const MESSAGE = 'Subject: x\r\n\r\nx\r\n';
const THREE = ['u@a.example', 'v@b.example', 'w@c.example'];

/** What the next hop says to its dots, one after another; then 250. */
function says(...acts: Act[]): SinkOptions {
  return { script: { dot: (_line, nth) => acts[nth] ?? null } };
}

async function start(...sinks: SinkOptions[]): Promise<void> {
  proxy = await startProxy(sinks, { dots: 'ordered' });
}

async function send(to: readonly string[], message = MESSAGE): Promise<string> {
  const client = await proxy.client();
  const reply = await client.send('s@src.example', [...to], message);
  await client.command('QUIT');
  return reply;
}

const copies = () => proxy.sinks.map((sink) => sink.messages.length);
const dots = () => proxy.sinks.map((sink) => sink.events.filter(({ what }) => what === 'dot').length);
const withheld = () => proxy.metric('cutthrough_recipients_withheld_total');
const REFUSED = 'cutthrough_transactions_total{mode="cut-through",result="rejected"}';

it('all accept: one dot after another, and 250', async () => {
  await start(says({ act: 'delay', ms: 50, next: '250 2.0.0 ok' }), {}, {});
  expect(await send(THREE)).toMatch(/^250 2\.0\.0 /);
  expect(copies()).toEqual([1, 1, 1]);
  const [first, ...others] = proxy.sinks.map((sink) => sink.events.find(({ what }) => what === 'dot')!.at);
  for (const other of others) expect(other - first!).toBeGreaterThan(45);
  expect(await withheld()).toBe(0);
});

it.each<[string, Act, RegExp, string]>([
  ['4xx', '451 4.3.0 later', /^451 4\.3\.0 later$/, 'deferred'],
  ['5xx', '554 5.6.0 never', /^554 5\.6\.0 never$/, 'rejected'],
  ['nothing', { act: 'rst' }, /^451 4\.4\.2 /, 'deferred'],
  ['nothing in time', { act: 'stall' }, /^451 4\.4\.2 /, 'deferred'],
  ['nonsense', '354 more please', /^451 4\.4\.2 /, 'deferred'],
])('the first says %s: nobody has it, and its reply is the answer', async (_what, act, reply, result) => {
  await start(says(act), {}, {});
  expect(await send(THREE)).toMatch(reply);
  expect(dots()).toEqual([1, 0, 0]);
  expect(copies()).toEqual([0, 0, 0]);
  expect(await withheld()).toBe(2);
  const line = proxy.transactions().at(-1)!;
  expect(line).toMatchObject({ result, recipients: [{}, { withheld: true }, { withheld: true }] });
  const outcomes = (line.recipients as { outcome: string }[]).map(({ outcome }) => outcome);
  expect(outcomes).toEqual(Array(3).fill(result));
  expect(await proxy.metric(REFUSED)).toBe(result === 'rejected' ? 1 : 0);
  // Their sessions are in mid-message: cut off, and neither ended nor reset.
  await until(() => proxy.sinks.slice(1).every(({ sessions }) => sessions[0]!.closed));
  for (const sink of proxy.sinks.slice(1))
    expect(sink.sessions.map(({ commands }) => commands.at(-1))).toEqual(['DATA']);
  expect(await proxy.metric('cutthrough_ledger_entries')).toBe(0);
});

it('one that refuses after another has accepted: mixed, and the retry gives each one copy', async () => {
  await start({}, says('554 5.6.0 never'), {});
  expect(await send(THREE)).toMatch(/^451 4\.5\.0 .*1 of 3/);
  expect(dots()).toEqual([1, 1, 0]);
  expect(proxy.transactions().at(-1)).toMatchObject({
    result: 'mixed',
    recipients: [
      { outcome: 'accepted' },
      { outcome: 'rejected', reply: 554 },
      { outcome: 'deferred', withheld: true },
    ],
  });
  // Nobody is asked again who has answered for good.
  expect(await send(THREE)).toMatch(/^554 5\.5\.0 .*2 of 3/);
  expect(copies()).toEqual([1, 0, 1]);
  expect(dots()).toEqual([1, 1, 1]);
});

it('the one with the worst record is asked first', async () => {
  await start({}, {}, says({ act: 'rst' }, '451 4.3.0 later', '451 4.3.0 later'));
  expect(await send(THREE, `X: 1\r\n${MESSAGE}`)).toMatch(/^451 4\.5\.0 .*2 of 3/);
  expect(await send(THREE, `X: 2\r\n${MESSAGE}`)).toMatch(/^451 4\.3\.0 later/);
  // It has answered: no failure in a row any more, but the largest share of the bad.
  expect(await send(THREE, `X: 3\r\n${MESSAGE}`)).toMatch(/^451 4\.3\.0 later/);
  expect(await send(THREE, `X: 4\r\n${MESSAGE}`)).toMatch(/^250/);
  expect(dots()).toEqual([2, 2, 4]);
});

it('a next hop that speaks or goes while it waits for its dot is not taken to have accepted', async () => {
  const early = { act: 'delay', ms: 20, next: '250 2.0.0 early' } as const;
  await start(
    says({ act: 'delay', ms: 150, next: '250 2.0.0 ok' }),
    { script: { body: early } },
    { script: { body: { act: 'delay', ms: 20, next: { act: 'rst' } } } },
  );
  const client = await proxy.client();
  await client.envelope('s@src.example', THREE);
  client.write(`${MESSAGE}.\r\n`);
  expect(await client.reply()).toMatch(/^451 4\.5\.0 .*1 of 3/);
  expect(copies()).toEqual([1, 0, 0]);
  expect(dots()).toEqual([1, 0, 0]);
});

it('LMTP: one recipient refused ends it, too', async () => {
  const dot = (line: string) => (line.includes('full') ? '452 4.2.2 full' : '250 2.1.5 ok');
  await start({ lmtp: true, script: { dot } }, {});
  const to = ['u@a.example', 'full@a.example', 'v@b.example'];
  expect(await send(to)).toMatch(/^451 4\.5\.0 .*1 of 3/);
  expect(copies()).toEqual([1, 0]);
});

it('the upstream goes between the dots: what was delivered is not delivered again', async () => {
  await start(says({ act: 'delay', ms: 100, next: '250 2.0.0 ok' }), says('451 4.3.0 later'), {});
  const client = await proxy.client();
  await client.envelope('s@src.example', THREE);
  client.write(`${MESSAGE}.\r\n`);
  await until(() => dots()[0] === 1);
  client.reset();
  await until(() => proxy.transactions().length === 1);
  expect(await send(THREE)).toMatch(/^250/);
  expect(copies()).toEqual([1, 1, 1]);
});

it('the time line shows whose dot was withheld', async () => {
  await start(says('554 5.6.0 never'), {});
  await send(['u@a.example', 'v@b.example']);
  const { events } = proxy.log.find(({ event }) => event === 'trace') as unknown as {
    events: { leg: number | null; event: string }[];
  };
  expect(events.filter(({ leg }) => leg === 1).at(-1)).toMatchObject({ event: 'withheld' });
});
