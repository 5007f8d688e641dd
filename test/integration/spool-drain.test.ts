// SIGTERM while the spool modes hold messages: what is under way is made durable, its upstream is told, and the next
// start delivers it. SIGHUP that brings a spool where there was none.
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { parseConfig } from '../../src/config.ts';
import { QUICK, startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { spoolDirectory } from '../support/spool.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function newDirectory(): Promise<string> {
  const { directory, remove } = await spoolDirectory();
  closers.push(remove);
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
    const spoolDir = await newDirectory();
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
  const spoolDir = await newDirectory();
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

it('opens the spool that a reload names, and no other', async () => {
  const spoolDir = await newDirectory();
  const elsewhere = join(spoolDir, '..', 'elsewhere');
  const sink = await Sink.start({ script: { greeting: '421 4.3.2 not now' } });
  const options = { ...QUICK, route: [`*=${sink.url}`], spoolDir: elsewhere };
  const proxy = await startProxyOnly(options, [sink]);
  closers.push(() => proxy.close());
  const parsed = parseConfig({ file: { ...options, spoolDir, fallback: 'spool' } });
  if (!parsed.ok) throw new Error(parsed.errors.join());
  await proxy.proxy.reload(parsed.config);
  const client = await proxy.client();
  expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250 2\.0\.0 queued/);
  expect(queued(spoolDir)).toBe(1);
  expect(existsSync(elsewhere)).toBe(false);
});
