// close(), which SIGTERM calls: running transactions end with their true verdict, and each leaves its line in the log.
import { afterEach, expect, it } from 'vitest';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const late = (ms: number) => ({ act: 'delay', ms, next: '250 2.0.0 late' }) as const;

it('waits for the verdict of a message whose sender has gone after the dot', async () => {
  proxy = await startProxy([{ script: { dot: late(200) } }]);
  const client = await proxy.client();
  await client.envelope('s@src.example', ['u@a.example']);
  client.write('x\r\n.\r\n');
  await until(() => proxy.sinks[0]!.sessions[0]!.sawDot);
  client.destroy();
  await proxy.proxy.close({ drainTimeoutMs: 5_000 });
  expect(proxy.transactions()).toMatchObject([
    { result: 'delivered', recipients: [{ outcome: 'accepted' }] },
  ]);
});

it('gives a message in transit its true verdict, and then 421', async () => {
  proxy = await startProxy([{ script: { dot: late(200) } }]);
  const client = await proxy.client();
  await client.envelope('s@src.example', ['u@a.example']);
  const closing = proxy.proxy.close({ drainTimeoutMs: 5_000 });
  client.write('x\r\n.\r\n');
  expect(await client.reply()).toMatch(/^250 /);
  expect(await client.reply()).toMatch(/^421 4\.3\.2/);
  await closing;
});

it('says at the end of --drain-timeout that the outcome is unknown, to the sender and in the log', async () => {
  proxy = await startProxy([{ script: { dot: { act: 'stall' } } }], { ackTimeout: '60s' });
  const client = await proxy.client();
  await client.envelope('s@src.example', ['u@a.example']);
  client.write('x\r\n.\r\n');
  await until(() => proxy.sinks[0]!.sessions[0]!.sawDot);
  const began = performance.now();
  await proxy.proxy.close({ drainTimeoutMs: 200 });
  expect(performance.now() - began).toBeLessThan(2_000);
  expect(await client.reply()).toMatch(/^451 4\.4\.2 /);
  expect(proxy.transactions()).toMatchObject([{ result: 'deferred', recipients: [{ outcome: 'deferred' }] }]);
});

it('cuts off a message in mid-body at the end of --drain-timeout, without a dot', async () => {
  proxy = await startProxy([{}]);
  const client = await proxy.client();
  await client.envelope('s@src.example', ['u@a.example']);
  client.write('half a message\r\n');
  await until(() => proxy.sinks[0]!.sessions[0]!.bodyOctets > 0);
  await proxy.proxy.close({ drainTimeoutMs: 100 });
  expect(await client.reply()).toMatch(/^421 4\.3\.2/);
  expect(proxy.sinks[0]!.messages).toHaveLength(0);
  expect(proxy.sinks[0]!.sessions[0]!.sawDot).toBe(false);
});
