// Two legs, every combination of answers to the final dot (INTERFACE.md's reply table, `--mixed fail`).
import { afterEach, describe, expect, it } from 'vitest';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import type { Act } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const ANSWERS: Record<string, Act> = {
  '2xx': '250 2.0.0 ok',
  '4xx': '451 4.3.0 later',
  '5xx': '554 5.6.0 never',
  lost: { act: 'rst' },
  silent: { act: 'stall' },
  nonsense: '354 more please',
};
const TEMPORARY = ['4xx', 'lost', 'silent', 'nonsense'];

function expected(first: string, second: string): { reply: RegExp; result: string } {
  const both = [first, second];
  const temporary = both.some((each) => TEMPORARY.includes(each));
  const accepted = both.filter((each) => each === '2xx').length;
  if (accepted === 2) return { reply: /^250 2\.0\.0 /, result: 'delivered' };
  if (accepted === 1) {
    return { reply: temporary ? /^451 4\.5\.0 .*1 of 2/ : /^554 5\.5\.0 .*1 of 2/, result: 'mixed' };
  }
  if (!temporary) return { reply: /^554 5\.6\.0 never$/, result: 'rejected' };
  return { reply: /^451 4\./, result: 'deferred' };
}

describe.each(Object.keys(ANSWERS))('first next hop %s', (first) => {
  it.each(Object.keys(ANSWERS))('second next hop %s', async (second) => {
    proxy = await startProxy([{ script: { dot: ANSWERS[first]! } }, { script: { dot: ANSWERS[second]! } }]);
    const client = await proxy.client();
    const reply = await client.send(
      's@src.example',
      ['u@a.example', 'v@b.example'],
      'Subject: x\r\n\r\nx\r\n',
    );
    const want = expected(first, second);
    expect(reply).toMatch(want.reply);
    expect(proxy.transactions().at(-1)).toMatchObject({ result: want.result });
    expect(
      await proxy.metric(`cutthrough_transactions_total{mode="cut-through",result="${want.result}"}`),
    ).toBe(1);
    // Whatever the verdict, the session goes on.
    expect(await client.command('NOOP')).toMatch(/^250/);
  });
});

it('an LMTP next hop answers for each recipient, and the verdict counts them', async () => {
  const dot = (line: string) => (line.includes('full') ? '452 4.2.2 full' : '250 2.1.5 ok');
  proxy = await startProxy([{ lmtp: true, script: { dot } }]);
  const client = await proxy.client();
  const reply = await client.send('s@src.example', ['u@a.example', 'full@a.example'], 'x\r\n');
  expect(reply).toMatch(/^451 4\.5\.0 .*1 of 2/);
  expect(await client.send('s@src.example', ['u@a.example', 'v@a.example'], 'x\r\n')).toMatch(/^250/);
});
