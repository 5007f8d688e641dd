// Upstreams that hear of each recipient by itself (LMTP, and PRDR): everybody's own outcome, in the order of the RCPTs,
// whatever happens; nothing is deferred for those who have the message, and a retry makes no copies.
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import type { Client } from '../support/client.ts';
import { answers, begin, eachClient, LISTEN_EACH, sendEach } from '../support/each.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { type Act, Sink, type SinkOptions, type SinkSession } from '../support/sink.ts';
import { spoolDirectory } from '../support/spool.ts';

let proxy: TestProxy;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  await proxy.close();
  for (const close of closers.splice(0).reverse()) await close();
});

const MESSAGE = 'Subject: x\r\nMessage-ID: <1@src.example>\r\n\r\nhello\r\n..dot\r\n';
const TWO = ['u@a.example', 'v@b.example'];

const codes = (replies: readonly string[]) => replies.map((reply) => Number(reply.slice(0, 3)));
const entries = () => proxy.metric('cutthrough_ledger_entries');
const copies = () => proxy.sinks.map((sink) => sink.messages.flatMap(({ taken }) => taken).length);
const outcomes = () =>
  (proxy.transactions().at(-1)!.recipients as { outcome: string }[]).map(({ outcome }) => outcome);
/** The first time `act`, then as it should be. */
const once = (act: Act) => (_: string, nth: number) => (nth === 0 ? act : null);

describe.each(['LMTP', 'PRDR'] as const)('%s', (protocol) => {
  const start = async (sinks: readonly SinkOptions[], options: Options = {}) => {
    proxy = await startProxy(sinks, { listen: LISTEN_EACH[protocol], ...options });
  };
  const connected = () => eachClient(proxy, protocol);
  const send = async (to: readonly string[], message: string | Buffer = MESSAGE) =>
    await sendEach(await connected(), protocol, to, message);

  it('answers in the order of the RCPTs that were accepted, repeated ones included', async () => {
    const rcpt = (line: string) => (line.includes('no@') ? '550 5.1.1 no such user' : null);
    const dot = '250 2.0.0 stored as 7';
    await start([
      { script: { rcpt, dot } },
      { script: { dot: '451 4.2.1 busy' } },
      { script: { dot: '554 5.7.1 never' } },
    ]);
    const to = ['w@c.example', 'u@a.example', 'no@a.example', 'v@b.example', 'u@a.example', 'u2@a.example'];
    const { rcpts, each, around } = await send(to);
    expect(codes(rcpts)).toEqual([250, 250, 550, 250, 250, 250]);
    expect(each).toEqual([
      '554 5.7.1 never',
      '250 2.0.0 stored as 7',
      '451 4.2.1 busy',
      '250 2.0.0 stored as 7',
      '250 2.0.0 stored as 7',
    ]);
    expect(around.map((reply) => reply.slice(0, 9))).toEqual(
      protocol === 'LMTP' ? [] : ['353 a rep', '250 2.0.0'],
    );
    expect(proxy.transactions()).toMatchObject([{ result: 'mixed', reply: 250 }]);
    expect(outcomes()).toEqual(['rejected', 'accepted', 'rejected', 'deferred', 'accepted', 'accepted']);
    expect(await proxy.metric('cutthrough_transactions_total{mode="cut-through",result="mixed"}')).toBe(1);
  });

  it.each<[string, Act, RegExp]>([
    ['refuses for now', '451 4.3.0 later', /^451 4\.3\.0 later$/],
    ['refuses for good', '554 5.6.0 never', /^554 5\.6\.0 never$/],
    ['closes its channel', '421 4.3.2 bye', /^451 4\.3\.2 bye$/],
    ['is lost', { act: 'rst' }, /^451 4\.4\.2 sent but not confirmed/],
    ['says nothing', { act: 'stall' }, /^451 4\.4\.2 sent but not confirmed/],
    ['talks nonsense', '354 more please', /^451 4\.4\.2 sent but not confirmed/],
  ])('one next hop %s after the dot: only its own recipients hear of it', async (_what, act, reply) => {
    await start([{ script: { dot: act } }, {}]);
    const client = await connected();
    const { each } = await sendEach(
      client,
      protocol,
      ['u@a.example', 'v@b.example', 'u2@a.example'],
      MESSAGE,
    );
    expect(codes(each)[1]).toBe(250);
    expect(each[0]).toMatch(reply);
    expect(each[2]).toMatch(reply);
    // The upstream knows, so there is nothing to remember.
    expect(await entries()).toBe(0);
    expect(await client.command('NOOP')).toMatch(/^250/);
  });

  it('gives the recipients of an LMTP next hop their own answers', async () => {
    const dot = (line: string): Act | null => (line.includes('full') ? '452 4.2.2 full' : null);
    await start([{ lmtp: true, script: { dot } }, { script: { dot: '550 5.7.1 no' } }]);
    const { each } = await send(['u@a.example', 'full@a.example', 'v@b.example', 'u2@a.example']);
    expect(codes(each)).toEqual([250, 452, 550, 250]);
  });

  it.each(['lmtp', 'prdr'])(
    'hears a next hop (%s) out that closes right behind its replies',
    async (kind) => {
      const to = ['u', 'v', 'w', 'x', 'y', 'z'].map((name) => `${name}@a.example`);
      // All of it, and the end of the connection, in one go.
      const dot = (_line: string, nth: number, { socket }: SinkSession) => {
        if (nth === 0) socket.cork();
        if (nth === to.length - 1) process.nextTick(() => socket.end());
        return null;
      };
      await start([{ [kind]: true, script: { dot } }]);
      expect(codes((await send(to)).each)).toEqual(to.map(() => 250));
    },
  );

  describe('a next hop with PRDR', () => {
    const dot = (line: string): Act | null => (line.includes('spam') ? '550 5.7.1 spam to me' : null);
    const three = ['u@a.example', 'spam@a.example', 'v@b.example'];

    it('is asked for it, and its recipients get their own answers', async () => {
      await start([{ prdr: true, script: { dot } }, {}]);
      const client = await connected();
      const { each } = await sendEach(client, protocol, three, MESSAGE);
      expect(codes(each)).toEqual([250, 550, 250]);
      expect(proxy.sinks[0]!.messages[0]!.mail).toMatch(/ PRDR$/);
      expect(copies()).toEqual([1, 1]);
      // The session serves the next message.
      expect(codes((await sendEach(client, protocol, three, MESSAGE)).each)).toEqual([250, 550, 250]);
      expect(proxy.sinks.map(({ connections }) => connections)).toEqual([1, 1]);
    });

    it.each<[string, Act, number[]]>([
      ['4xx takes back what was accepted', '451 4.3.0 no after all', [451, 550, 250]],
      ['5xx is for all', '554 5.3.0 no after all', [554, 554, 250]],
      ['missing leaves open what was accepted', { act: 'fin' }, [451, 550, 250]],
      ['silence leaves open what was accepted', { act: 'stall' }, [451, 550, 250]],
      ['nonsense leaves open what was accepted', '354 more please', [451, 550, 250]],
    ])('its last reply: %s', async (_what, overall, expected) => {
      await start([{ prdr: true, script: { dot, overall } }, {}]);
      expect(codes((await send(three)).each)).toEqual(expected);
    });

    it.each<[string, Act, number[]]>([
      ['nonsense', '354 more please', [451, 451]],
      ['the end of the connection', { act: 'rst' }, [451, 451]],
    ])(
      '%s in the middle leaves those behind it, and those accepted before, open',
      async (_what, act, expected) => {
        const second = (line: string) => (line.includes('u2') ? act : null);
        await start([{ prdr: true, script: { dot: second } }]);
        expect(codes((await send(['u@a.example', 'u2@a.example'])).each)).toEqual(expected);
      },
    );

    it('is not an acknowledgement when its 353 comes before the dot', async () => {
      await start([{ prdr: true, script: { body: '353 too early' } }]);
      const client = await connected();
      await begin(client, protocol, ['u@a.example', 'u2@a.example']);
      client.write('Subject: x\r\n\r\n');
      await until(() => proxy.sinks[0]!.sessions[0]!.closed);
      client.write('.\r\n');
      expect(codes((await answers(client, protocol, 2)).each)).toEqual([451, 451]);
      expect(proxy.sinks[0]!.sessions[0]!.sawDot).toBe(false);
    });

    it('that says one reply all the same is answered for by it', async () => {
      await start([{ extensions: ['PIPELINING', 'PRDR'], script: { dot: '250 2.0.0 all of you' } }]);
      const { each } = await send(['u@a.example', 'u2@a.example']);
      expect(each).toEqual(['250 2.0.0 all of you', '250 2.0.0 all of you']);
    });
  });

  describe('nobody has the message, and each is told the same', () => {
    it.each<[string, SinkOptions, Buffer, RegExp]>([
      ['too big', {}, Buffer.from(`${'x'.repeat(70)}\r\n`.repeat(40)), /^552 5\.3\.4/],
      ['a bare line feed', {}, Buffer.from('Subject: x\r\n\r\na\nb\r\n'), /^554 5\.6\.0/],
      ['a mail loop', {}, Buffer.from('Received: x\r\n'.repeat(60)), /^554 5\.4\.6/],
      [
        'a next hop lost in mid-body',
        { script: { body: { act: 'rst' } } },
        Buffer.from(MESSAGE),
        /^451 4\.4\.2/,
      ],
    ])('%s', async (_what, sink, message, reply) => {
      await start([sink, {}], { maxMessageSize: '2KiB' });
      const client = await connected();
      await begin(client, protocol, [...TWO, 'u@a.example']);
      client.write(message);
      if (sink.script !== undefined)
        await until(() => proxy.sinks.every(({ sessions }) => sessions[0]!.closed));
      client.write('.\r\n');
      const { each } = await answers(client, protocol, 3);
      for (const one of each) expect(one).toMatch(reply);
      expect(each.length).toBe(3);
      expect(proxy.sinks.map(({ sessions }) => sessions[0]!.sawDot)).toEqual([false, false]);
      expect(await client.command('NOOP')).toMatch(/^250/);
    });

    it('is answered to DATA where a next hop refuses that', async () => {
      await start([{ script: { data: '451 4.3.0 not now' } }, {}]);
      expect(await send(TWO)).toMatchObject({ data: '451 4.3.0 not now', each: [] });
    });
  });

  it('RSET begins anew: only the recipients named since are answered for', async () => {
    await start([{}, {}]);
    const client = await connected();
    await client.command('MAIL FROM:<s@src.example>');
    await client.command('RCPT TO:<u@a.example>');
    expect(await client.command('RSET')).toMatch(/^250/);
    expect((await sendEach(client, protocol, ['v@b.example', 'w@b.example'], MESSAGE)).each.length).toBe(2);
    expect(copies()).toEqual([0, 2]);
    expect(await client.command('NOOP')).toMatch(/^250 2\.0\.0 ok/);
  });

  it('--mixed split has nothing to put off', async () => {
    await start([{}, { script: { dot: '451 4.3.0 later' } }], { mixed: 'split' });
    const { rcpts, each } = await send(TWO);
    expect(codes(rcpts)).toEqual([250, 250]);
    expect(codes(each)).toEqual([250, 451]);
  });

  it('--dots ordered has nobody to withhold it from', async () => {
    await start([{ script: { dot: '451 4.3.0 later' } }, {}], { dots: 'ordered' });
    for (const subject of ['x', 'y']) {
      // At the second message the first next hop is the least trusted one.
      const { each } = await send(TWO, `Subject: ${subject}\r\n\r\nx\r\n`);
      expect(codes(each)).toEqual([451, 250]);
    }
  });

  it('any recipients at next hops of every kind, against a model', async () => {
    const wants = (line: string) => /<(\d+)/.exec(line)?.[1] ?? '250';
    const script: SinkOptions['script'] = {
      rcpt: (line) => (wants(line) === '500' ? '550 5.1.1 no such user' : null),
      // SMTP has one answer, which the first recipient decides.
      dot: (line, _nth, { commands }) => {
        const mail = commands.findLastIndex((each) => each.startsWith('MAIL'));
        const first = commands.slice(mail).find((each) => each.startsWith('RCPT') && wants(each) !== '500');
        return `${wants(line || first!)} as wanted`;
      },
      overall: '250 2.0.0 so be it',
    };
    await start([{ script }, { lmtp: true, script }, { prdr: true, script }]);
    const recipient = fc.tuple(fc.constantFrom(250, 451, 554, 500), fc.constantFrom('a', 'b', 'c'));
    const client = await connected();
    let serial = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(recipient, { minLength: 1, maxLength: 8 }), async (recipients) => {
        const to = recipients.map(([code, hop]) => `${code}@${hop}.example`);
        const subject = `Subject: ${serial++}\r\n\r\nx\r\n`;
        const { rcpts, each, data, around } = await sendEach(client, protocol, to, subject);
        expect(codes(rcpts)).toEqual(recipients.map(([code]) => (code === 500 ? 550 : 250)));
        const taken = recipients.filter(([code]) => code !== 500);
        const ofSmtp = taken.find(([, hop]) => hop === 'a')?.[0];
        expect(codes(each)).toEqual(taken.map(([code, hop]) => (hop === 'a' ? ofSmtp : code)));
        if (taken.length === 0) {
          expect(data).toMatch(/^5(03|54) 5\.5\.1/);
          expect(await client.command('RSET')).toMatch(/^250/);
        }
        if (around.length > 0) {
          const classes = new Set(each.map((reply) => reply[0]));
          expect(around[1]![0]).toBe(['2', '4', '5'].find((one) => classes.has(one)));
        }
      }),
      { numRuns: 60 },
    );
    // No reply was left over or missing: a session that isn't open any more was ended politely.
    const sessions = proxy.sinks.flatMap((sink) => sink.sessions);
    expect(sessions.filter(({ closed, commands }) => closed && !commands.includes('QUIT'))).toEqual([]);
    expect(sessions.length).toBeLessThan(serial);
  });

  describe('each mailbox has one copy in the end', () => {
    it('when the upstream repeats for those who failed', async () => {
      await start([{}, { script: { dot: (_, nth) => (nth < 3 ? '451 4.3.0 later' : null) } }]);
      let left: readonly string[] = TWO;
      for (let tries = 0; left.length > 0 && tries < 10; tries++) {
        const { each } = await send(left);
        left = left.filter((_, at) => !each[at]!.startsWith('250'));
      }
      expect(copies()).toEqual([1, 1]);
      expect(proxy.sinks[0]!.sessions.length).toBe(1);
    });

    async function sendAndGo(to: readonly string[], go: (client: Client) => unknown): Promise<void> {
      const client = await connected();
      await begin(client, protocol, to);
      client.write(`${MESSAGE}.\r\n`);
      await go(client);
      await until(() => proxy.transactions().length === 1);
    }
    const SLOWLY = { act: 'delay', ms: 120, next: '250 2.0.0 ok' } as const;

    it('when it has gone before the answers came', async () => {
      await start([{ script: { dot: once(SLOWLY) } }, { script: { dot: once('451 4.3.0 later') } }]);
      await sendAndGo(TWO, async (client) => {
        await until(() => proxy.sinks.every(({ sessions }) => sessions[0]?.sawDot ?? false));
        client.reset();
      });
      expect(await entries()).toBe(1);
      const again = await connected();
      expect(codes((await sendEach(again, protocol, TWO, MESSAGE)).each)).toEqual([250, 250]);
      expect(outcomes()).toEqual(['suppressed', 'accepted']);
      expect(copies()).toEqual([1, 1]);
      await again.command('NOOP');
      expect(await entries()).toBe(0);
    });

    it('when it has gone without having shown that it read them', async () => {
      await start([
        {},
        { script: { dot: once('451 4.3.0 later') } },
        { script: { dot: once('554 5.7.1 never') } },
      ]);
      const three = [...TWO, 'w@c.example'];
      await sendAndGo(three, async (client) => {
        await answers(client, protocol, 3);
        client.destroy();
      });
      // Of those who failed nothing is remembered: they are asked again.
      await until(async () => (await entries()) === 1);
      expect(codes((await send(three)).each)).toEqual([250, 250, 250]);
      expect(copies()).toEqual([1, 1, 1]);
    });

    it('when it has read them, and repeats for the one who failed', async () => {
      await start([{}, { script: { dot: once('451 4.3.0 later') } }]);
      const client = await connected();
      expect(codes((await sendEach(client, protocol, TWO, MESSAGE)).each)).toEqual([250, 451]);
      expect(await client.command('QUIT')).toMatch(/^221/);
      expect(await entries()).toBe(0);
      expect(codes((await send([TWO[1]!])).each)).toEqual([250]);
      expect(copies()).toEqual([1, 1]);
    });

    it('when one next hop holds both recipients, and answers for each (PRDR)', async () => {
      const full = (line: string, nth: number) =>
        line.includes('full') && nth < 2 ? '452 4.2.2 full' : null;
      await start([{ prdr: true, script: { dot: full } }]);
      const two = ['u@a.example', 'full@a.example'];
      await sendAndGo(two, async (client) => {
        await answers(client, protocol, 2);
        client.destroy();
      });
      await until(async () => (await entries()) === 1);
      expect(codes((await send(two)).each)).toEqual([250, 250]);
      const { messages } = proxy.sinks[0]!;
      expect(messages.map(({ taken }) => taken)).toEqual([
        ['RCPT TO:<u@a.example>'],
        ['RCPT TO:<full@a.example>'],
      ]);
    });

    it('with --ledger-dir, over a restart', async () => {
      const { directory: ledgerDir, remove } = await spoolDirectory();
      closers.push(remove);
      await start([{}, { script: { dot: once('451 4.3.0 later') } }], { ledgerDir });
      await sendAndGo(TWO, async (client) => {
        await answers(client, protocol, 2);
        client.destroy();
      });
      await until(async () => (await entries()) === 1);
      const before = proxy;
      await before.proxy.close();
      const route = ['a', 'b'].map((name, at) => `${name}.example=${before.sinks[at]!.url}`);
      proxy = await startProxyOnly({ listen: LISTEN_EACH[protocol], route, ledgerDir }, before.sinks);
      expect(codes((await send(TWO)).each)).toEqual([250, 250]);
      expect(copies()).toEqual([1, 1]);
    });
  });

  describe.each<[string, Options]>([
    ['--fallback spool', { fallback: 'spool' }],
    ['--fallback fast-path', { fallback: 'fast-path' }],
    ['--mixed spool', { mixed: 'spool' }],
    ...(protocol === 'LMTP'
      ? ([
          ['--mode fast-path', { mode: 'fast-path' }],
          ['--mode spool', { mode: 'spool' }],
        ] as [string, Options][])
      : []),
  ])('%s', (_name, options) => {
    async function startWithSpool(sinks: readonly SinkOptions[], more: Options = {}) {
      const { directory: spoolDir, remove } = await spoolDirectory();
      closers.push(remove);
      const settings = { retrySchedule: '50ms', disableFastPathWhen: 'manual', connectRetries: 0 };
      await start(sinks, { ...settings, spoolDir, ...options, ...more });
    }
    const queued = () => proxy.metric('cutthrough_queue_messages');
    const notified = () => proxy.metric('cutthrough_dsn_total{kind="failed"}');

    it('250 for who has it or will get it, a refusal for who refused it, and no notification of that', async () => {
      await startWithSpool([
        { script: { dot: '250 2.0.0 stored' } },
        { script: { dot: once('451 4.3.0 later') } },
        { script: { dot: '554 5.7.1 never' } },
      ]);
      const { each } = await send(['w@c.example', ...TWO]);
      expect(each[0]).toBe('554 5.7.1 never');
      expect(each[1]).toBe('250 2.0.0 stored');
      expect(each[2]).toMatch(/^250 2\.0\.0 queued as /);
      expect(proxy.transactions()).toMatchObject([{ result: 'spooled' }]);
      await until(async () => (await queued()) === 0);
      expect(copies()).toEqual([1, 1, 0]);
      // src.example has no route: a notification would stay in the queue, and be counted.
      expect(await notified()).toBe(0);
      expect(
        proxy.sinks[2]!.sessions.flatMap(({ commands }) => commands).filter((line) => line === 'DATA').length,
      ).toBe(1);
    });

    it('nothing is queued when all are final', async () => {
      await startWithSpool([{}, { script: { dot: '554 5.7.1 never' } }]);
      expect(codes((await send(TWO)).each)).toEqual([250, 554]);
      expect(await queued()).toBe(0);
      expect(proxy.transactions()).toMatchObject([{ result: 'mixed' }]);
      expect(await proxy.metric('cutthrough_spool_messages{where="memory"}')).toBe(0);
    });

    it('all refuse', async () => {
      await startWithSpool([{ script: { dot: '550 5.7.1 no' } }, { script: { dot: '554 5.7.1 never' } }]);
      expect(codes((await send(TWO)).each)).toEqual([550, 554]);
      expect(proxy.transactions()).toMatchObject([{ result: 'rejected' }]);
      expect(await queued()).toBe(0);
      expect(await proxy.metric('cutthrough_spool_messages{where="memory"}')).toBe(0);
    });

    it('queues nothing again of what the upstream did not hear of', async () => {
      await startWithSpool([{}, { script: { dot: once('451 4.3.0 later') } }], { retrySchedule: '1h' });
      const client = await connected();
      expect(codes((await sendEach(client, protocol, TWO, MESSAGE)).each)).toEqual([250, 250]);
      client.destroy();
      await until(async () => (await entries()) === 2);
      expect(codes((await send(TWO)).each)).toEqual([250, 250]);
      expect(await queued()).toBe(1);
      expect(copies()).toEqual([1, 0]);
    });
  });
});

it('PRDR while the fast path is disabled: each is told that it is on disk', async () => {
  const { directory: spoolDir, remove } = await spoolDirectory();
  closers.push(remove);
  proxy = await startProxy([{}, {}], { fallback: 'spool', spoolDir, disableFastPathWhen: 'manual' });
  const client = await eachClient(proxy, 'PRDR');
  const body = JSON.stringify({ enabled: false });
  await (await fetch(`${proxy.httpUrl}/fast-path`, { method: 'POST', body })).text();
  const { each, around } = await sendEach(client, 'PRDR', TWO, MESSAGE);
  expect(each).toEqual(Array(2).fill(expect.stringMatching(/^250 2\.0\.0 queued as /)));
  expect(codes(around)).toEqual([353, 250]);
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  expect(copies()).toEqual([1, 1]);
});

it('--ack-deadline over: who has refused by then is told so, and the others are queued', async () => {
  const { directory: spoolDir, remove } = await spoolDirectory();
  closers.push(remove);
  const sinks = [
    { script: { dot: '554 5.7.1 never' } },
    { script: { dot: { act: 'delay', ms: 300, next: '250 2.0.0 ok' } } },
  ] as const satisfies SinkOptions[];
  const options = { mode: 'fast-path', spoolDir, ackDeadline: '100ms', ackTimeout: '5s' } as const;
  proxy = await startProxy(sinks, { listen: LISTEN_EACH.LMTP, ...options });
  const { each } = await sendEach(await eachClient(proxy, 'LMTP'), 'LMTP', TWO, MESSAGE);
  expect(codes(each)).toEqual([554, 250]);
  await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  expect(copies()).toEqual([0, 1]);
  expect(await proxy.metric('cutthrough_dsn_total{kind="failed"}')).toBe(0);
});

it('a spool that fails is 4xx for those who needed it, and for nobody else', async () => {
  const { directory: spoolDir, remove } = await spoolDirectory();
  closers.push(remove);
  const next = await Sink.start({ script: { dot: '451 4.3.0 later' } });
  const has = await Sink.start({ script: { dot: { act: 'delay', ms: 50, next: '250 2.0.0 ok' } } });
  const route = [`a.example=${has.url}`, `b.example=${next.url}`];
  proxy = await startProxyOnly({ listen: LISTEN_EACH.LMTP, route, fallback: 'spool', spoolDir }, [has, next]);
  const client = await eachClient(proxy, 'LMTP');
  await begin(client, 'LMTP', TWO);
  await remove();
  client.write(`${MESSAGE}.\r\n`);
  const { each } = await answers(client, 'LMTP', 2);
  expect(each[0]).toMatch(/^250 /);
  expect(each[1]).toMatch(/^45[12] 4\.3\.[01]/);
  expect(proxy.transactions()).toMatchObject([{ result: 'mixed' }]);
});
