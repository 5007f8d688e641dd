// SIGTERM while the spool modes hold messages: what is under way is made durable, its upstream is told, and the next
// start delivers it.
import { readdirSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function spoolDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-spool-'));
  closers.push(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

function queued(directory: string): number {
  return readdirSync(directory).filter((name) => name.endsWith('.json')).length;
}

async function restart(spoolDir: string): Promise<{ proxy: TestProxy; sink: Sink }> {
  const sink = await Sink.start();
  const proxy = await startProxyOnly(
    { mode: 'spool', spoolDir, retrySchedule: '100ms', route: [`*=${sink.url}`] },
    [sink],
  );
  closers.push(() => proxy.close());
  return { proxy, sink };
}

it.each(['rcpt', 'dot'] as const)(
  'gives a message to the disk, and its upstream 250, when the next hop is stuck at %s',
  async (phase) => {
    const spoolDir = await spoolDirectory();
    const slow = { commandTimeout: '60s', ackTimeout: '60s', ackDeadline: '60s' };
    const proxy = await startProxy([{ script: { [phase]: { act: 'stall' } } }], {
      mode: 'spool',
      spoolDir,
      ...slow,
    });
    closers.push(() => proxy.close());
    const client = await proxy.client();
    const sent = client.send('s@src.example', ['u@a.example'], 'Subject: x\r\n\r\nkept\r\n');
    await until(() => proxy.sinks[0]!.sessions.some(({ stuck }) => stuck));
    await proxy.proxy.close({ drainTimeoutMs: 100 });
    expect(await sent).toMatch(/^250 2\.0\.0 queued as /);
    expect(queued(spoolDir)).toBe(1);

    const { sink } = await restart(spoolDir);
    await until(() => sink.messages.length === 1 && queued(spoolDir) === 0);
    expect(sink.messages[0]!.body.toString()).toMatch(/^Received: [\s\S]*Subject: x\r\n\r\nkept\r\n$/);
  },
);

it('leaves a message whose deliveries it broke off in the queue, once', async () => {
  const spoolDir = await spoolDirectory();
  const proxy = await startProxy([{ script: { rcpt: { act: 'stall' } } }], {
    mode: 'spool',
    spoolDir,
    commandTimeout: '60s',
    ackDeadline: '50ms',
  });
  closers.push(() => proxy.close());
  const client = await proxy.client();
  expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250 2\.0\.0 queued/);
  await proxy.proxy.close({ drainTimeoutMs: 100 });
  expect(queued(spoolDir)).toBe(1);
  const { sink } = await restart(spoolDir);
  await until(() => sink.messages.length === 1 && queued(spoolDir) === 0);
});
