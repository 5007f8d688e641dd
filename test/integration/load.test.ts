// The load generator against the proxy, so that the dashboard it is there for has all of these to show.
import { afterEach, expect, it } from 'vitest';
import { SHAKY_SCRIPT } from '../support/load/shaky.ts';
import { lettersOfARound, send } from '../support/load/traffic.ts';
import { QUICK, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

let proxy: TestProxy | null = null;
afterEach(async () => await proxy?.close());

it('makes every kind of result in one round', async () => {
  const [a, b, shaky] = [await Sink.start(), await Sink.start(), await Sink.start({ script: SHAKY_SCRIPT })];
  const route = [`a.example=${a.url}`, `b.example=${b.url}`, `shaky.example=${shaky.url}`];
  const acceptDomain = ['a.example', 'b.example', 'shaky.example'];
  const running = await startProxyOnly({ ...QUICK, route, trust: ['none'], acceptDomain }, [a, b, shaky]);
  proxy = running;

  const letters = lettersOfARound({
    good: ['a.example', 'b.example'],
    shaky: 'shaky.example',
    foreign: 'elsewhere.example',
  });
  const outcomes: Record<string, string> = {};
  for (const letter of letters) {
    // One that breaks off leaves its session in the middle of a body.
    const client = await running.client();
    outcomes[letter.subject] = await send(client, letter);
  }
  expect(outcomes).toEqual({
    'one recipient': 'accepted',
    'one recipient at the other domain': 'accepted',
    'three recipients, one next hop': 'accepted',
    'two domains': 'accepted',
    'to a server that is down now and then': 'accepted',
    'to nobody': 'refused',
    'a quarter of a megabyte': 'accepted',
    'to a full mailbox': 'deferred',
    relaying: 'refused',
    'broken off': 'vanished',
    'two domains, one shaky': 'accepted',
    'a megabyte for two domains': 'accepted',
  });
  await until(() => running.transactions().some(({ result }) => result === 'aborted'));
  expect(a.messages.map(({ rcpts }) => rcpts.length)).toEqual([1, 3, 1, 1, 1, 1]);
  // The one that broke off has come to nobody.
  expect(b.messages).toHaveLength(4);
  expect(shaky.messages).toHaveLength(2);
});
