// The modes that take a message in whole (claims 1-9 and 25-27): what is in memory, on disk, at the next hops and in the
// sender's mailbox, whatever becomes of the message.
import { type FSWatcher, readdirSync, readFileSync, statSync, watch } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const SMALL = 'Subject: x\r\n\r\nhello\r\n..dot\r\n...\r\n';

/** In wire form: lines with dots in every place where one matters, and every octet that may be in a line. */
function largeBody(octets: number): Buffer {
  const printable = Buffer.from(
    Array.from({ length: 223 }, (_, at) => at + 32).filter((code) => code !== 127),
  );
  const lines = [Buffer.from('Subject: large\r\n\r\n')];
  for (let size = 0, nth = 0; size < octets; nth++) {
    const start = ['..', '...', 'a.', ''][nth % 4]!;
    const line = Buffer.concat([Buffer.from(start), printable.subarray(nth % 50), Buffer.from('\r\n')]);
    lines.push(line);
    size += line.length;
  }
  return Buffer.concat(lines);
}

async function spoolDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-spool-'));
  closers.push(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Files of messages, finished or not. */
function filesIn(directory: string): string[] {
  return readdirSync(directory).filter((name) => /\.(eml|json|tmp)$/.test(name));
}

function watched(directory: string): Set<string> {
  const names = new Set<string>();
  const watcher: FSWatcher = watch(directory, (_, name) => {
    if (name !== null && /\.(eml|json|tmp)$/.test(name)) names.add(name);
  });
  closers.push(() => watcher.close());
  return names;
}

/** Refuses connections by its greeting until it is `up`. */
class Switch {
  up = false;
  readonly options: SinkOptions = {
    script: { greeting: () => (this.up ? null : '421 4.3.2 not now') },
  };
}

async function queued(proxy: TestProxy): Promise<number> {
  return await proxy.metric('cutthrough_queue_messages');
}

async function untilQueueEmpty(proxy: TestProxy): Promise<void> {
  await until(async () => (await queued(proxy)) === 0);
}

describe.each(['spool', 'fast-path'] as const)('mode %s', (mode) => {
  const options = (directory: string): Options => ({
    mode,
    spoolDir: directory,
    memoryThreshold: '4KiB',
    retrySchedule: '50ms',
    disableFastPathWhen: 'manual',
    connectRetries: 0,
  });

  async function start(sinks: readonly SinkOptions[], more: Options = {}) {
    const directory = await spoolDirectory();
    const proxy = await startProxy(sinks, { ...options(directory), ...more });
    closers.push(() => proxy.close());
    return { proxy, directory, sinks: proxy.sinks };
  }

  describe('delivered at once', () => {
    it('leaves no trace on disk and gives the memory back; 250 in the next hop’s words', async () => {
      const { proxy, directory, sinks } = await start([{ script: { dot: '250 2.0.0 taken as 4711' } }]);
      const names = watched(directory);
      const client = await proxy.client();
      expect(await client.send('s@src.example', ['u@a.example', 'v@a.example'], SMALL)).toBe(
        '250 2.0.0 taken as 4711',
      );
      await sleep(30);
      expect([...names]).toEqual([]);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
      expect(await proxy.metric('cutthrough_spool_messages{where="memory"}')).toBe(0);
      expect(sinks[0]!.messages.map(({ rcpts }) => rcpts)).toEqual([
        ['RCPT TO:<u@a.example>', 'RCPT TO:<v@a.example>'],
      ]);
      expect(proxy.transactions()).toMatchObject([{ result: 'delivered', reply: 250 }]);
    });

    it('arrives bit for bit behind one Received line, below the threshold and above', async () => {
      const { proxy, sinks } = await start([{}, {}]);
      const client = await proxy.client();
      for (const body of [Buffer.from(SMALL), largeBody(300_000), Buffer.alloc(0)]) {
        expect(await client.send('s@src.example', ['u@a.example', 'v@b.example'], body)).toMatch(
          /^250 2\.0\.0 /,
        );
        for (const sink of sinks) {
          const got = sink.messages.at(-1)!.body;
          const head = got.subarray(0, got.length - body.length).toString('latin1');
          expect(got.subarray(head.length).equals(body)).toBe(true);
          expect(head).toMatch(/^Received: from (?:.*\r\n[ \t])*.*\r\n$/);
        }
      }
    });

    it('a large one has a file while it is delivered, and none afterwards', async () => {
      const { proxy, directory } = await start([
        { script: { dot: { act: 'delay', ms: 150, next: '250 2.0.0 ok' } } },
      ]);
      const client = await proxy.client();
      const body = largeBody(100_000);
      const reply = client.send('s@src.example', ['u@a.example'], body);
      await until(() => filesIn(directory).length > 0);
      expect(filesIn(directory)).toEqual([expect.stringMatching(/\.eml\.tmp$/)]);
      const { mode: bits } = statSync(join(directory, filesIn(directory)[0]!));
      expect(bits & 0o777).toBe(0o600);
      const kept = mode === 'fast-path' ? 4096 : 0;
      await until(async () => (await proxy.metric('cutthrough_spool_bytes{where="disk"}')) > 90_000);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(kept);
      expect(await reply).toMatch(/^250/);
      expect(filesIn(directory)).toEqual([]);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    });

    it('with next to no memory it goes by way of the disk', async () => {
      const { proxy, directory, sinks } = await start([{}], {
        maxBuffered: '1KiB',
        memoryThreshold: '64KiB',
      });
      const names = watched(directory);
      const client = await proxy.client();
      const body = largeBody(20_000);
      expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(/^250/);
      expect(sinks[0]!.messages[0]!.body.includes(body)).toBe(true);
      await until(() => names.size > 0);
      expect(filesIn(directory)).toEqual([]);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    });
  });

  describe('a next hop that is down', () => {
    it.each([
      ['small', Buffer.from(SMALL)],
      ['large', largeBody(60_000)],
    ])('%s: 250 once it is on disk, delivered when the next hop is back', async (_, body) => {
      const down = new Switch();
      const { proxy, directory, sinks } = await start([down.options]);
      const client = await proxy.client();
      const reply = await client.send('s@src.example', ['u@a.example'], body);
      const id = /^250 2\.0\.0 queued as (\S+)$/.exec(reply)?.[1];
      expect(id).toBeDefined();
      // Now, not some time later: the 250 is the promise.
      expect(filesIn(directory).sort()).toEqual([`${id}.eml`, `${id}.json`]);
      for (const name of filesIn(directory)) expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600);
      const stored = readFileSync(join(directory, `${id}.eml`));
      expect(stored.subarray(stored.length - body.length).equals(body)).toBe(true);
      expect(await queued(proxy)).toBe(1);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
      down.up = true;
      await untilQueueEmpty(proxy);
      await until(() => filesIn(directory).length === 0);
      expect(sinks[0]!.messages.map((message) => message.body.equals(stored))).toEqual([true]);
      expect(proxy.transactions()).toMatchObject([{ id, result: 'spooled', reply: 250 }]);
    });

    it('where nobody listens at all, too', async () => {
      const gone = await Sink.start();
      const { port, url } = gone;
      await gone.close();
      const directory = await spoolDirectory();
      const proxy = await startProxyOnly({ ...options(directory), route: [`a.example=${url}`] });
      closers.push(() => proxy.close());
      const client = await proxy.client();
      expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250 .* queued as/);
      const back = await Sink.start({ port });
      closers.push(() => back.close());
      await untilQueueEmpty(proxy);
      expect(back.messages).toHaveLength(1);
    });
  });

  describe('two next hops', () => {
    it('one refuses for good: the other has it once, the sender gets a notification', async () => {
      const refused = '554 5.7.1 no such luck';
      const { proxy, directory, sinks } = await start([{}, { script: { rcpt: refused } }, {}]);
      const client = await proxy.client();
      const reply = await client.send('sender@c.example', ['u@a.example', 'v@b.example'], SMALL);
      expect(reply).toMatch(/^250 2\.0\.0 queued as/);
      await untilQueueEmpty(proxy);
      const [a, b, c] = sinks;
      expect(a!.messages).toHaveLength(1);
      expect(b!.messages).toHaveLength(0);
      expect(c!.messages).toHaveLength(1);
      const { mail, rcpts, body } = c!.messages[0]!;
      expect(mail).toMatch(/^MAIL FROM:<>/);
      expect(rcpts).toEqual([expect.stringMatching(/^RCPT TO:<sender@c\.example>/)]);
      const text = body.toString('latin1');
      expect(text).toMatch(/^Content-Type: multipart\/report;/im);
      expect(text).toMatch(/^Final-Recipient: rfc822; ?v@b\.example/im);
      expect(text).toMatch(/^Action: failed/im);
      expect(text).toContain('no such luck');
      expect(text).not.toContain('u@a.example');
      expect(
        b!.sessions.flatMap(({ commands }) => commands).filter((each) => /^RCPT/.test(each)),
      ).toHaveLength(1);
      expect(await proxy.metric('cutthrough_dsn_total{kind="failed"}')).toBe(1);
      await until(() => filesIn(directory).length === 0);
    });

    it('a bounce that fails is not bounced', async () => {
      const { proxy, directory, sinks } = await start([{}, { script: { dot: '554 5.6.0 never' } }]);
      const client = await proxy.client();
      expect(await client.send('', ['u@a.example', 'v@b.example'], SMALL)).toMatch(/^250 .* queued as/);
      await untilQueueEmpty(proxy);
      await until(() => filesIn(directory).length === 0);
      expect(sinks[0]!.messages).toHaveLength(1);
      expect(await proxy.metric('cutthrough_dsn_total{kind="failed"}')).toBe(0);
      expect(proxy.log.filter(({ event }) => event === 'dsn' || event === 'dsn-failed')).toEqual([]);
    });

    it('a notification that its reader refuses is the end of it', async () => {
      const { proxy, directory, sinks } = await start([
        {},
        { script: { dot: '554 5.6.0 never' } },
        { script: { rcpt: '550 5.1.1 no such sender' } },
      ]);
      const client = await proxy.client();
      expect(await client.send('s@c.example', ['u@a.example', 'v@b.example'], SMALL)).toMatch(/queued as/);
      await untilQueueEmpty(proxy);
      await until(() => filesIn(directory).length === 0);
      expect(sinks[2]!.events.filter(({ what }) => /^MAIL/.test(what))).toHaveLength(1);
      expect(await proxy.metric('cutthrough_dsn_total{kind="failed"}')).toBe(1);
    });

    it('both refuse for good: so do we, and nothing is kept', async () => {
      const { proxy, directory, sinks } = await start([
        { script: { dot: '554 5.6.0 never' } },
        { script: { rcpt: '550 5.1.1 unknown' } },
        {},
      ]);
      const names = watched(directory);
      const client = await proxy.client();
      const reply = await client.send('s@c.example', ['u@a.example', 'v@b.example'], SMALL);
      expect(reply).toMatch(/^(554 5\.6\.0 never|550 5\.1\.1 unknown)$/);
      await sleep(100);
      expect(sinks[2]!.messages).toEqual([]);
      expect([...names]).toEqual([]);
      expect(await queued(proxy)).toBe(0);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    });

    it('one defers: tried again there, and only there', async () => {
      const { proxy, directory, sinks } = await start([
        {},
        { script: { dot: (_, nth) => (nth < 3 ? '451 4.3.0 later' : null) } },
      ]);
      const client = await proxy.client();
      const reply = await client.send('s@src.example', ['u@a.example', 'v@b.example', 'w@b.example'], SMALL);
      expect(reply).toMatch(/^250 2\.0\.0 queued as/);
      await untilQueueEmpty(proxy);
      await until(() => filesIn(directory).length === 0);
      expect(sinks[0]!.messages).toHaveLength(1);
      expect(sinks[1]!.messages.map(({ rcpts }) => rcpts)).toEqual([
        ['RCPT TO:<v@b.example>', 'RCPT TO:<w@b.example>'],
      ]);
      expect(sinks[0]!.events.filter(({ what }) => what === 'DATA')).toHaveLength(1);
      expect(sinks[1]!.events.filter(({ what }) => what === 'DATA')).toHaveLength(4);
      expect(await proxy.metric('cutthrough_queue_attempts_total{result="deferred"}')).toBe(4);
      expect(await proxy.metric('cutthrough_queue_attempts_total{result="delivered"}')).toBe(2);
    });

    it('one recipient of a next hop is deferred: the other one is not asked for again', async () => {
      const seen = new Map<string, number>();
      const rcpt = (line: string) => {
        seen.set(line, (seen.get(line) ?? 0) + 1);
        return line.includes('slow') && seen.get(line) === 1 ? '450 4.2.1 greylisted' : null;
      };
      const { proxy, sinks } = await start([{ script: { rcpt } }]);
      const client = await proxy.client();
      expect(await client.send('s@src.example', ['u@a.example', 'slow@a.example'], SMALL)).toMatch(
        /queued as/,
      );
      await untilQueueEmpty(proxy);
      expect(sinks[0]!.messages.map(({ rcpts }) => rcpts)).toEqual([
        ['RCPT TO:<u@a.example>'],
        ['RCPT TO:<slow@a.example>'],
      ]);
    });
  });

  describe('--ack-deadline', () => {
    it.each([
      ['to the dot', { dot: { act: 'delay', ms: 300, next: '250 2.0.0 ok' } }],
      ['to DATA', { data: { act: 'delay', ms: 300, next: '354 go' } }],
    ] as const)('250 within it where the answer %s is slow; the delivery goes on', async (_, script) => {
      const { proxy, directory, sinks } = await start([{ script }], {
        ackDeadline: '80ms',
        ackTimeout: '5s',
        commandTimeout: '5s',
      });
      const client = await proxy.client();
      const body = largeBody(50_000);
      const reply = await client.send('s@src.example', ['u@a.example'], body);
      expect(reply).toMatch(/^250 2\.0\.0 queued as/);
      expect(filesIn(directory)).toHaveLength(2);
      expect(await client.command('QUIT')).toMatch(/^221/);
      await untilQueueEmpty(proxy);
      await until(() => filesIn(directory).length === 0);
      await sleep(120);
      expect(sinks[0]!.messages).toHaveLength(1);
      expect(sinks[0]!.messages[0]!.body.includes(body)).toBe(true);
      // The one that was under way, not another one.
      expect(sinks[0]!.connections).toBe(1);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    });

    it('what the slow next hop then defers is tried again', async () => {
      const dot = (_: string, nth: number) =>
        nth === 0 ? ({ act: 'delay', ms: 250, next: '451 4.3.0 later' } as const) : null;
      const { proxy, sinks } = await start([{}, { script: { dot } }], { ackDeadline: '80ms' });
      const client = await proxy.client();
      expect(await client.send('s@src.example', ['u@a.example', 'v@b.example'], SMALL)).toMatch(/queued as/);
      await untilQueueEmpty(proxy);
      expect(sinks.map(({ messages }) => messages.length)).toEqual([1, 1]);
    });

    it('what it then refuses for good comes back to the sender', async () => {
      const dot = { act: 'delay', ms: 250, next: '554 5.6.0 never' } as const;
      const { proxy, sinks } = await start([{ script: { dot } }, {}], { ackDeadline: '80ms' });
      const client = await proxy.client();
      expect(await client.send('s@b.example', ['u@a.example'], SMALL)).toMatch(/queued as/);
      await untilQueueEmpty(proxy);
      expect(sinks[0]!.messages).toHaveLength(0);
      expect(sinks[1]!.messages).toHaveLength(1);
    });
  });

  describe('the upstream disappears', () => {
    it('before the end of the message: nobody has anything', async () => {
      const { proxy, directory, sinks } = await start([{}]);
      const client = await proxy.client();
      await client.envelope('s@src.example', ['u@a.example']);
      client.write(largeBody(50_000));
      await until(() => filesIn(directory).length > 0);
      client.reset();
      await until(() => proxy.transactions().length > 0);
      await until(() => filesIn(directory).length === 0);
      expect(sinks[0]!.connections).toBe(0);
      expect(proxy.transactions()).toMatchObject([{ result: 'aborted' }]);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    });

    it('during delivery, before the dot: nobody has it, nothing is queued', async () => {
      const { proxy, directory, sinks } = await start([{ script: { data: { act: 'stall' } } }], {
        commandTimeout: '5s',
      });
      const client = await proxy.client();
      await client.envelope('s@src.example', ['u@a.example']);
      client.write(`${SMALL}.\r\n`);
      await until(() => sinks[0]!.events.some(({ what }) => what === 'DATA'));
      client.reset();
      await until(() => proxy.transactions().length > 0);
      expect(proxy.transactions()).toMatchObject([{ result: 'aborted' }]);
      expect(sinks[0]!.messages).toEqual([]);
      expect(filesIn(directory)).toEqual([]);
      expect(await queued(proxy)).toBe(0);
      expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    });

    it('behind the dot: the outcome is waited for, nothing is queued', async () => {
      const dot = { act: 'delay', ms: 150, next: '451 4.3.0 later' } as const;
      const { proxy, directory, sinks } = await start([{ script: { dot } }]);
      const client = await proxy.client();
      await client.envelope('s@src.example', ['u@a.example']);
      client.write(`${SMALL}.\r\n`);
      await until(() => sinks[0]!.events.some(({ what }) => what === 'dot'));
      client.reset();
      await until(() => proxy.transactions().length > 0);
      expect(proxy.transactions()).toMatchObject([{ result: 'aborted' }]);
      expect(filesIn(directory)).toEqual([]);
      expect(await queued(proxy)).toBe(0);
    });

    it('behind the dot, and the next hop takes it: that is what the log says', async () => {
      const dot = { act: 'delay', ms: 150, next: '250 2.0.0 mine' } as const;
      const { proxy, sinks } = await start([{ script: { dot } }]);
      const client = await proxy.client();
      await client.envelope('s@src.example', ['u@a.example']);
      client.write(`${SMALL}.\r\n`);
      await until(() => sinks[0]!.events.some(({ what }) => what === 'dot'));
      client.reset();
      await until(() => proxy.transactions().length > 0);
      expect(proxy.transactions()).toMatchObject([{ result: 'delivered' }]);
    });
  });

  it.each([
    ['a bare LF', 'Subject: x\r\n\r\nhello\nthere\r\n', /^554 5\.6\.0 /],
    ['too much', `Subject: x\r\n\r\n${'x'.repeat(70).concat('\r\n').repeat(400)}`, /^552 5\.3\.4 /],
    ['a loop', `${'Received: from x\r\n'.repeat(6)}\r\nhello\r\n`, /^554 5\.4\.6 /],
  ])('%s is refused, and nothing is left of it', async (_, body, refusal) => {
    const { proxy, directory, sinks } = await start([{}], { maxMessageSize: '20KiB', maxReceived: 5 });
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], body)).toMatch(refusal);
    expect(filesIn(directory)).toEqual([]);
    expect(await queued(proxy)).toBe(0);
    expect(await proxy.metric('cutthrough_buffered_bytes')).toBe(0);
    expect(sinks[0]!.messages).toEqual([]);
    expect(await client.send('s@src.example', ['u@a.example'], SMALL)).toMatch(/^250/);
  });

  it('--max-queue-age: given up, and the sender told', async () => {
    const { proxy, directory, sinks } = await start([new Switch().options, {}], { maxQueueAge: '200ms' });
    const client = await proxy.client();
    expect(await client.send('s@b.example', ['u@a.example'], SMALL)).toMatch(/queued as/);
    await untilQueueEmpty(proxy);
    await until(() => filesIn(directory).length === 0);
    expect(sinks[1]!.messages).toHaveLength(1);
    const text = sinks[1]!.messages[0]!.body.toString('latin1');
    expect(text).toMatch(/^Final-Recipient: rfc822; ?u@a\.example/im);
    expect(text).toMatch(/^Action: failed/im);
    expect(text).toMatch(/^Status: [45]\.\d+\.\d+/im);
    expect(await proxy.metric('cutthrough_dsn_total{kind="expired"}')).toBe(1);
    expect(await proxy.metric('cutthrough_queue_attempts_total{result="expired"}')).toBe(1);
  });

  describe('a restart', () => {
    const restartable = async (down: Switch, more: Options = {}) => {
      const directory = await spoolDirectory();
      const sink = await Sink.start(down.options);
      closers.push(() => sink.close());
      const serve = async () => {
        const proxy = await startProxyOnly({
          ...options(directory),
          route: [`a.example=${sink.url}`],
          ...more,
        });
        closers.push(() => proxy.close());
        return proxy;
      };
      return { directory, sink, serve };
    };

    it('delivers what was queued, once', async () => {
      const down = new Switch();
      const { directory, sink, serve } = await restartable(down);
      const first = await serve();
      const client = await first.client();
      for (const to of ['1@a.example', '2@a.example', '3@a.example'])
        expect(await client.send('s@src.example', [to], SMALL)).toMatch(/queued as/);
      await first.close();
      expect(filesIn(directory)).toHaveLength(6);
      down.up = true;
      const second = await serve();
      await untilQueueEmpty(second);
      await until(() => filesIn(directory).length === 0);
      await sleep(120);
      const rcpts = sink.messages.flatMap((message) => message.rcpts).sort();
      expect(rcpts).toEqual(['RCPT TO:<1@a.example>', 'RCPT TO:<2@a.example>', 'RCPT TO:<3@a.example>']);
    });

    it('what a next hop has not answered when the drain ends is acknowledged from disk', async () => {
      const slow = new Switch();
      slow.up = true;
      let stall = true;
      slow.options.script!.data = () => (stall ? { act: 'stall' } : null);
      const { directory, sink, serve } = await restartable(slow, { commandTimeout: '10s' });
      const first = await serve();
      const client = await first.client();
      await client.envelope('s@src.example', ['1@a.example']);
      client.write(`${SMALL}.\r\n`);
      await until(() => sink.events.some(({ what }) => what === 'DATA'));
      const closed = first.proxy.close({ drainTimeoutMs: 100 });
      expect(await client.reply()).toMatch(/^250 2\.0\.0 queued as/);
      await closed;
      expect(filesIn(directory)).toHaveLength(2);
      expect(sink.messages).toEqual([]);
      stall = false;
      const second = await serve();
      await untilQueueEmpty(second);
      expect(sink.messages).toHaveLength(1);
    });

    it.each([
      ['changed', (bytes: Buffer) => Buffer.concat([bytes.subarray(0, -3), Buffer.from('?\r\n')])],
      ['cut short', (bytes: Buffer) => bytes.subarray(0, bytes.length - 5)],
    ])('a message that was %s on disk is set aside, and the rest flows', async (_, damage) => {
      const down = new Switch();
      const { directory, sink, serve } = await restartable(down);
      const first = await serve();
      const client = await first.client();
      const replies = [
        await client.send('s@src.example', ['1@a.example'], SMALL),
        await client.send('s@src.example', ['2@a.example'], SMALL),
      ];
      await first.close();
      const id = replies[0]!.split(' ').at(-1)!;
      const path = join(directory, `${id}.eml`);
      await writeFile(path, damage(readFileSync(path)));
      down.up = true;
      const second = await serve();
      await untilQueueEmpty(second);
      await until(() => filesIn(directory).length === 0);
      expect(sink.messages.map(({ rcpts }) => rcpts)).toEqual([['RCPT TO:<2@a.example>']]);
      expect(readdirSync(join(directory, 'quarantine')).some((name) => name.includes(id))).toBe(true);
    });

    it('one directory is for one process at a time', async () => {
      const { serve } = await restartable(new Switch());
      const first = await serve();
      await expect(serve()).rejects.toThrow(/in use by another process/);
      const client = await first.client();
      expect(await client.send('s@src.example', ['1@a.example'], SMALL)).toMatch(/queued as/);
      await first.close();
      await serve();
    });
  });

  it('--spool-min-free: 452 to DATA', async () => {
    const { proxy, directory, sinks } = await start([{}], { spoolMinFree: '8000GiB' });
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^452 4\.3\.1 /);
    expect(filesIn(directory)).toEqual([]);
    expect(sinks[0]!.connections).toBe(0);
    expect(await proxy.metric('cutthrough_spool_failures_total{reason="full"}')).toBe(1);
  });
});
