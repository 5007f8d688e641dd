// What the sender asked to be told (RFC 3461), kept or passed on by the spool modes.
import { afterEach, describe, expect, it } from 'vitest';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';
import type { Sink, SinkOptions } from '../support/sink.ts';
import { spoolDirectory } from '../support/spool.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Recipients are at a.example, the sender is at b.example. */
async function start(next: SinkOptions): Promise<{ proxy: TestProxy; next: Sink; home: Sink }> {
  const { directory: spoolDir, remove } = await spoolDirectory();
  closers.push(remove);
  const proxy = await startProxy([next, {}], { mode: 'spool', spoolDir, retrySchedule: '50ms' });
  closers.push(() => proxy.close());
  return { proxy, next: proxy.sinks[0]!, home: proxy.sinks[1]! };
}

async function send(proxy: TestProxy, notify: string): Promise<string> {
  const client = await proxy.client();
  expect(await client.command('MAIL FROM:<s@b.example> ENVID=QQ314 RET=HDRS')).toMatch(/^250 /);
  const orcpt = 'ORCPT=rfc822;First+2BLast@a.example';
  expect(await client.command(`RCPT TO:<u@a.example> NOTIFY=${notify} ${orcpt}`)).toMatch(/^250 /);
  expect(await client.command('DATA')).toMatch(/^354 /);
  client.write('Subject: asked\r\n\r\nbody\r\n.\r\n');
  return await client.reply();
}

const WITH_DSN = ['PIPELINING', 'DSN', 'ENHANCEDSTATUSCODES'];
const WITHOUT_DSN = ['PIPELINING', 'ENHANCEDSTATUSCODES'];

it('offers DSN from the first session on', async () => {
  const { proxy } = await start({});
  expect(await (await proxy.client()).command('EHLO again.example')).toMatch(/^250-DSN$/m);
});

describe('NOTIFY=SUCCESS', () => {
  it('is passed on where the next hop has DSN, which then is the one that reports', async () => {
    const { proxy, next, home } = await start({ extensions: WITH_DSN });
    expect(await send(proxy, 'SUCCESS')).toMatch(/^250 /);
    expect(next.messages[0]!.mail).toMatch(/ENVID=QQ314/);
    expect(next.messages[0]!.rcpts[0]).toMatch(/NOTIFY=SUCCESS/);
    expect(await proxy.metric('cutthrough_dsn_total{kind="relayed"}')).toBe(0);
    expect(home.messages).toEqual([]);
  });

  it.each(['at once', 'from the queue'])(
    'is answered by a report of ours where it has none: %s',
    async (when) => {
      let greeted = 0;
      const greeting = () => (when === 'at once' || greeted++ > 3 ? null : '421 4.3.2 not now');
      const { proxy, next, home } = await start({ extensions: WITHOUT_DSN, script: { greeting } });
      expect(await send(proxy, 'SUCCESS,FAILURE')).toMatch(/^250 /);
      await until(() => home.messages.length === 1);
      expect(next.messages).toHaveLength(1);
      expect(next.messages[0]!.rcpts[0]).not.toMatch(/NOTIFY/);
      const [report] = home.messages;
      expect(report!.mail).toMatch(/^MAIL FROM:<>/);
      const text = report!.body.toString();
      for (const field of [
        'Original-Envelope-Id: QQ314',
        'Original-Recipient: rfc822; First+Last@a.example',
        'Final-Recipient: rfc822; u@a.example',
        'Action: relayed',
        'Subject: asked',
      ])
        expect(text).toContain(field);
      await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
      expect(await proxy.metric('cutthrough_dsn_total{kind="relayed"}')).toBe(1);
      expect(home.messages).toHaveLength(1);
    },
  );
});

it.each([
  ['NEVER', 0],
  ['SUCCESS', 0],
  ['FAILURE', 1],
])('a failure in the queue with NOTIFY=%s is reported %i times', async (notify, reports) => {
  let greeted = 0;
  const { proxy, home } = await start({
    script: {
      greeting: () => (greeted++ > 3 ? null : '421 4.3.2 not now'),
      rcpt: '550 5.1.1 no such user',
    },
  });
  expect(await send(proxy, notify)).toMatch(/^250 2\.0\.0 queued/);
  await until(() => proxy.log.some(({ event }) => event === 'attempt' && greeted > 4));
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  expect(home.messages).toHaveLength(reports);
});
