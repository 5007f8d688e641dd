// A thousand transactions that end in every possible way leave nothing behind: no socket, timer, listener or count.
import { afterEach, describe, expect, it } from 'vitest';
import type { Client } from '../support/client.ts';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';
import type { Act, SinkOptions, SinkSession } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const TRANSACTIONS = 1_000;
const gauge = async (name: string) => await proxy.metric(`cutthrough_${name}`);

/** A next hop that does what the local part of the recipient says: `rcpt-550`, `data-rst`, `dot-451`. */
function obeying(): SinkOptions {
  const at = (phase: string) => (_line: string, _nth: number, session: SinkSession) => {
    const rcpt = session.commands.findLast((line) => line.startsWith('RCPT')) ?? '';
    const [, where, what = ''] = /<([a-z]+)-([a-z0-9]+)@/.exec(rcpt) ?? [];
    if (where !== phase) return null;
    return what === 'rst' || what === 'fin' ? { act: what } : `${what} ${what[0]}.7.1 as you wish`;
  };
  return { script: { rcpt: at('rcpt'), data: at('data'), dot: at('dot') } } as SinkOptions;
}

let serial = 0;
/** No message is another one again, for which the ledger would answer. */
const header = () => `Message-ID: <${++serial}@src.example>\r\n\r\n`;

type Way = (client: Client) => Promise<string | null>;

async function begin(client: Client, to: string[]): Promise<void> {
  await client.command('MAIL FROM:<s@src.example>');
  for (const each of to) await client.command(`RCPT TO:<${each}>`);
}

async function inBody(client: Client, to: string[]): Promise<void> {
  await begin(client, to);
  expect(await client.command('DATA')).toMatch(/^354/);
  client.write(`${header()}text\r\n`);
}

const BOTH = ['u@a.example', 'v@b.example'];
const send =
  (to: string[], expected: RegExp, body = 'text\r\n'): Way =>
  async (client) => {
    expect(await client.send('s@src.example', to, header() + body)).toMatch(expected);
    return null;
  };

/** Each leaves the client connected, or says how it went. */
const WAYS: Way[] = [
  send(['u@a.example'], /^250/),
  send(BOTH, /^250/),
  send(['rcpt-550@a.example'], /^554 5\.5\.1/),
  send(['rcpt-550@a.example', 'v@b.example'], /^250/),
  send(['rcpt-450@a.example'], /^554 5\.5\.1/),
  send(['rcpt-rst@a.example'], /^554 5\.5\.1/),
  send(['data-451@a.example', 'v@b.example'], /^451/),
  send(['data-rst@a.example'], /^451/),
  send(['dot-550@a.example'], /^550/),
  send(['dot-451@a.example', 'v@b.example'], /^451 4\.5\.0/),
  send(['dot-rst@a.example', 'v@b.example'], /^451 4\.5\.0/),
  send(['dot-fin@a.example'], /^451 4\.4\.2/),
  send(['u@c.example'], /^554 5\.5\.1/),
  send(['u@nowhere.example'], /^554 5\.5\.1/),
  send(BOTH, /^554 5\.6\.0/, 'bare\nline feed\r\n'),
  send(BOTH, /^552 5\.3\.4/, `${'x'.repeat(998)}\r\n`.repeat(9)),
  async (client) => {
    const unlucky = `u${++serial}`;
    await inBody(client, [`${unlucky}@a.example`, `${unlucky}@b.example`]);
    const [lost, sound] = proxy.sinks.map((sink) =>
      sink.sessions.find(({ commands }) => commands.at(-2)?.includes(`<${unlucky}@`)),
    );
    lost!.socket.resetAndDestroy();
    // The proxy has noticed when it has dropped the other one.
    await until(() => sound!.closed);
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^451 4\.4\.2/);
    return null;
  },
  async (client) => {
    await inBody(client, BOTH);
    client.reset();
    return 'gone';
  },
  async (client) => {
    await inBody(client, BOTH);
    client.socket.end();
    return 'gone';
  },
  async (client) => {
    await begin(client, BOTH);
    expect(await client.command('RSET')).toMatch(/^250/);
    return null;
  },
  async (client) => {
    await begin(client, BOTH);
    expect(await client.command('QUIT')).toMatch(/^221/);
    return 'gone';
  },
  async (client) => {
    await begin(client, BOTH);
    expect(await client.command('EHLO again.example')).toMatch(/^250/);
    return null;
  },
  async (client) => {
    await begin(client, BOTH);
    client.reset();
    return 'gone';
  },
  async (client) => {
    await inBody(client, BOTH);
    client.write('.\r\nQUIT\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^221/);
    return 'gone';
  },
];

async function transactions(count: number, from = 0): Promise<void> {
  let client: Client | null = null;
  for (let i = from; i < from + count; i++) {
    client ??= await proxy.client();
    const gone = await WAYS[i % WAYS.length]!(client).catch((error: unknown) => {
      throw new Error(`way ${i % WAYS.length}`, { cause: error });
    });
    if (gone !== null) client = null;
    // A transaction without a valid recipient is still under way.
    else await client.command('RSET');
  }
  await client?.command('QUIT');
}

const COUNTS = [
  'transactions_active',
  'downstream_sessions_active',
  'downstream_sessions_idle',
  'upstream_connections_active',
  'buffered_bytes',
];

async function untilQuiet(): Promise<void> {
  const counts = async () =>
    Object.fromEntries(await Promise.all(COUNTS.map(async (name) => [name, await gauge(name)])));
  // Together: a kept session that is ended is an active one again for a moment.
  await until(async () => Object.values(await counts()).every((count) => count === 0)).catch(() => {});
  expect(await counts()).toEqual(Object.fromEntries(COUNTS.map((name) => [name, 0])));
}

function resources(): Record<string, number> {
  const names = process.getActiveResourcesInfo().filter((name) => /TCP|TLS|Timeout|GETADDR|FSReq/.test(name));
  return Object.fromEntries(
    [...new Set(names)].map((name) => [name, names.filter((n) => n === name).length]),
  );
}

it(`${TRANSACTIONS} transactions that end in every way leave no socket, timer, listener or count`, async () => {
  const warnings: string[] = [];
  const onWarning = (warning: Error) => void warnings.push(`${warning.name}: ${warning.message}`);
  process.on('warning', onWarning);
  // The third next hop is not there.
  proxy = await startProxy([obeying(), {}, {}], {
    maxMessageSize: '8KiB',
    connectBackoff: '1ms',
    sessionIdleTimeout: '50ms',
  });
  await proxy.sinks[2]!.close();
  // One round first: what is made once (DNS channel, HTTP agent) is not counted against the rest.
  await transactions(WAYS.length);
  await untilQuiet();
  // What the first round of connections left is still going away while the first numbers are read.
  const before = resources();
  const workers = 4;
  const each = TRANSACTIONS / workers;
  await Promise.all(Array.from({ length: workers }, async (_, at) => await transactions(each, at * each)));
  await untilQuiet();
  const grown = () => Object.entries(resources()).filter(([name, count]) => count > (before[name] ?? 0));
  await until(() => grown().length === 0).catch(() => {});
  expect(grown()).toEqual([]);
  process.off('warning', onWarning);
  expect(warnings).toEqual([]);
  expect(proxy.log.filter(({ event }) => event === 'bug')).toEqual([]);
  // Every transaction has its one line.
  const ended = proxy.transactions();
  expect(ended).toHaveLength(TRANSACTIONS + WAYS.length);
  let counted = 0;
  for (const result of ['delivered', 'rejected', 'deferred', 'mixed', 'aborted'])
    counted += await gauge(`transactions_total{mode="cut-through",result="${result}"}`);
  expect(counted).toBe(ended.length);
}, 30_000);

describe('a kept downstream session', () => {
  it.each<[string, (proxy: TestProxy) => void]>([
    ['FIN', ({ sinks }) => void sinks[0]!.sessions[0]!.socket.end()],
    ['RST', ({ sinks }) => void sinks[0]!.sessions[0]!.socket.resetAndDestroy()],
    ['421 and FIN', ({ sinks }) => void sinks[0]!.sessions[0]!.socket.end('421 4.4.2 idle too long\r\n')],
  ])('that the peer ended with %s while it was idle costs the next transaction nothing', async (_, end) => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    await until(async () => (await gauge('downstream_sessions_idle')) === 1);
    end(proxy);
    await until(async () => (await gauge('downstream_sessions_idle')) === 0);
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(await gauge('downstream_connect_attempts_total{result="ok"}')).toBe(2);
    expect(await gauge('downstream_connect_retries_total')).toBe(0);
    for (const result of ['refused', 'timeout', 'greeting'])
      expect(await gauge(`downstream_connect_attempts_total{result="${result}"}`)).toBe(0);
    expect(proxy.transactions().map(({ result }) => result)).toEqual(['delivered', 'delivered']);
  });

  it.each<[string, Act]>([
    ['FIN', { act: 'fin' }],
    ['RST', { act: 'rst' }],
    ['421', '421 4.7.0 too many messages in this connection'],
  ])('that answers MAIL with %s is replaced by a new one, for every recipient', async (_, act) => {
    const mail = (__: string, nth: number) => (nth === 1 ? act : null);
    proxy = await startProxy([{ script: { mail } }]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    client.write('MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\nRCPT TO:<v@a.example>\r\nDATA\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages.map(({ rcpts }) => rcpts.length)).toEqual([1, 2]);
    expect(proxy.sinks[0]!.connections).toBe(2);
  });
});
