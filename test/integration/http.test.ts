// What is seen and changed over HTTP: /status with addresses and without, how next hops fare, the page at /, and who may
// change anything.
import { once } from 'node:events';
import { request } from 'node:http';
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import type { HopStatus, Status } from '../../src/http/page/status.d.ts';
import { startHttp } from '../../src/http/server.ts';
import type { statusOf } from '../../src/status.ts';
import { startDnsServer } from '../support/dns-server.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';
import { spoolDirectory } from '../support/spool.ts';

let proxy: TestProxy;
afterEach(async () => await proxy?.close());

/** What the page reads is what the proxy tells; the compiler says so. */
const asThePageReadsIt: (told: ReturnType<typeof statusOf>) => Status = (told) => told;

type Answer = Readonly<{ code: number; headers: Record<string, unknown>; body: string }>;

/** With any header, Host and Origin included, which fetch() would not send. */
async function ask(
  method: string,
  path: string,
  headers: Readonly<Record<string, string>> = {},
  body = '',
): Promise<Answer> {
  const sent = request(`${proxy.httpUrl}${path}`, { method, headers, agent: false });
  sent.end(body);
  const [response] = await once(sent, 'response');
  return { code: response.statusCode, headers: response.headers, body: await text(response) };
}

const status = async () => JSON.parse((await ask('GET', '/status')).body) as Status;
const hops = async () => (await status()).nextHops;
const BODY = 'Subject: x\r\n\r\nhello\r\n';

/** A session that has delivered one message, and another one that is in mid-body. */
async function inMidBody(options: Options): Promise<void> {
  proxy = await startProxy([{}, {}], options);
  const done = await proxy.client();
  expect(await done.send('first@src.example', ['one@a.example'], BODY)).toMatch(/^250/);
  const client = await proxy.client();
  await client.envelope('sender@src.example', ['rcpt@a.example', 'v@b.example', 'w@b.example']);
  client.write('Subject: half\r\n\r\nhalf a line');
  await until(async () => (await status()).transactions[0]?.bytes !== 0);
}

describe('/status', () => {
  it('is what the page reads', () => {
    expect(asThePageReadsIt).toBeTypeOf('function');
  });

  it('shows no address of anybody without --http-details', async () => {
    await inMidBody({});
    const { body } = await ask('GET', '/status');
    expect(body).not.toMatch(/127\.0\.0\.1|example|sender|rcpt|@|:\/\//);
    const told = JSON.parse(body) as Status;
    expect(told).toMatchObject({
      details: false,
      mode: 'cut-through',
      fallback: 'none',
      fastPath: { enabled: true, reasons: [], sinceMs: null },
      queue: { messages: 0, bytes: 0, oldestAgeSeconds: 0, active: 0, nextDueSeconds: null, attempts: {} },
      draining: false,
      listen: ['smtp'],
      connections: 2,
      maxConnections: 1000,
      sessions: { active: 2, idle: 0 },
      totals: { transactions: { delivered: 1 }, recipients: { accepted: 1 } },
      transactionsActive: 1,
      transactions: [
        {
          state: 'body',
          legCount: 2,
          legs: [
            { nextHop: 'static #1', phase: 'body', recipients: 1 },
            { nextHop: 'static #2', phase: 'body', recipients: 2 },
          ],
        },
      ],
      nextHops: [
        { name: 'static #1', sessions: { active: 1, idle: 0 }, fiveMinutes: { delivered: 1 } },
        { name: 'static #2', sessions: { active: 1, idle: 0 }, lastOkMs: null },
      ],
    });
    expect(told.version).toMatch(/^\d/);
    expect(told.transactions[0]!.id).toMatch(/^[\w-]{8}\.\w+$/);
  });

  it('shows them with it', async () => {
    await inMidBody({ httpDetails: true });
    const told = await status();
    expect(told).toMatchObject({
      details: true,
      listen: [`smtp://127.0.0.1:${proxy.port}`],
      transactions: [
        {
          client: '127.0.0.1',
          reversePath: 'sender@src.example',
          recipients: ['rcpt@a.example', 'v@b.example', 'w@b.example'],
          legs: [{ nextHop: proxy.sinks[0]!.url }, { nextHop: proxy.sinks[1]!.url }],
        },
      ],
      nextHops: [{ name: proxy.sinks[0]!.url }, { name: proxy.sinks[1]!.url }],
    });
  });

  it('with addresses in it, answers no page that reaches loopback by a name of its own', async () => {
    await inMidBody({ httpDetails: true });
    expect(await ask('GET', '/status', { host: 'evil.example' })).toMatchObject({ code: 403 });
    expect((await ask('GET', '/status', { host: 'evil.example' })).body).not.toContain('sender');
    for (const host of ['localhost:9525', '127.0.0.1', '[::1]:9525'])
      expect((await ask('GET', '/status', { host })).code).toBe(200);
    // Health checks come by whatever name.
    expect((await ask('GET', '/readyz', { host: 'evil.example' })).code).toBe(200);
  });

  it('counts on, and tells what a long message has moved before it is over', async () => {
    proxy = await startProxy([{}]);
    const before = await status();
    const client = await proxy.client();
    await client.envelope('s@src.example', ['u@a.example']);
    client.write(`Subject: long\r\n\r\n${`${'x'.repeat(70)}\r\n`.repeat(3000)}`);
    await until(async () => (await status()).totals.bytes.out > 200_000);
    const during = await status();
    expect(during.transactions[0]!.bytes).toBeGreaterThan(200_000);
    expect(during.monotonicMs).toBeGreaterThan(before.monotonicMs);
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect((await status()).totals.bytes.out).toBeGreaterThanOrEqual(during.totals.bytes.out);
  });

  it('names next hops found by MX by number, not by a label that would tell the recipient’s domain', async () => {
    const dns = await startDnsServer({
      'secret.example': { MX: [[10, 'mail.secret.example']] },
      'mail.secret.example': { A: ['127.0.0.1'] },
    });
    onTestFinished(async () => await dns.close());
    const sink = await Sink.start({});
    proxy = await startProxyOnly({ dns: [dns.address], mxPort: sink.port, mxAllow: ['127.0.0.0/8'] }, [sink]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@secret.example'])).toMatch(/^354/);
    const { body } = await ask('GET', '/status');
    expect(body).not.toContain('secret');
    expect(JSON.parse(body)).toMatchObject({
      nextHops: [{ name: 'mx #1', sessions: { active: 1, idle: 0 } }],
      transactions: [{ legs: [{ nextHop: 'mx #1' }] }],
    });
  });

  it('tells of the queue: how many, how old, when the next is due, and what came of the attempts', async () => {
    const { directory, remove } = await spoolDirectory();
    onTestFinished(remove);
    proxy = await startProxy([{ script: { rcpt: '451 4.3.0 later' } }], {
      mode: 'fast-path',
      fallback: 'none',
      spoolDir: directory,
      spoolMinFree: '1',
      retrySchedule: '1h',
    });
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250 2\.0\.0 queued as/);
    const { queue } = await status();
    expect(queue).toMatchObject({ messages: 1, active: 0 });
    expect(queue.bytes).toBeGreaterThan(BODY.length);
    expect(queue.nextDueSeconds).toBeGreaterThan(3000);
    expect(queue.oldestAgeSeconds).toBeLessThan(10);
  });

  it('tells since when the fast path is off, and why', async () => {
    proxy = await startProxy([{}]);
    expect((await ask('POST', '/fast-path', {}, '{"enabled":false}')).code).toBe(200);
    const { fastPath } = await status();
    expect(fastPath).toMatchObject({ enabled: false, reasons: ['manual'] });
    expect(fastPath.sinceMs).toBeLessThan(5000);
    expect(fastPath.sinceMs).toBeGreaterThanOrEqual(0);
  });
});

describe('how a next hop fares', () => {
  const outcomeOf = async (sink: SinkOptions, options: Options = {}): Promise<HopStatus> => {
    proxy = await startProxy([sink], { connectRetries: 0, ...options });
    const client = await proxy.client();
    await client.send('s@src.example', ['u@a.example', 'v@a.example'], BODY);
    client.destroy();
    await until(async () => (await hops())[0]!.sessions.active === 0);
    return (await hops())[0]!;
  };

  it('delivered', async () => {
    expect(await outcomeOf({})).toMatchObject({
      totals: { delivered: 1, refused: 0, failed: 0 },
      lastFailure: null,
      consecutiveFailures: 0,
    });
  });

  it.each<[string, SinkOptions, number]>([
    ['MAIL', { script: { mail: '550 5.7.1 no' } }, 1],
    ['each RCPT', { script: { rcpt: '550 5.1.1 no' } }, 2],
    ['DATA', { script: { data: '452 4.3.1 no' } }, 1],
    ['the dot', { script: { dot: '554 5.6.0 no' } }, 1],
  ])('refused %s', async (_, sink, refused) => {
    expect(await outcomeOf(sink)).toMatchObject({
      totals: { delivered: 0, refused, failed: 0 },
      lastFailure: null,
      consecutiveFailures: 0,
    });
  });

  it.each<[string, SinkOptions, { phase: string; cause: string }]>([
    ['greets with 4xx', { script: { greeting: '421 4.3.2 no' } }, { phase: 'connect', cause: 'greeting' }],
    ['never greets', { script: { greeting: { act: 'stall' } } }, { phase: 'connect', cause: 'timeout' }],
    ['resets at MAIL', { script: { mail: { act: 'rst' } } }, { phase: 'mail', cause: 'closed' }],
    ['stalls at RCPT', { script: { rcpt: { act: 'stall' } } }, { phase: 'rcpt', cause: 'timeout' }],
    ['closes at DATA', { script: { data: { act: 'fin' } } }, { phase: 'data', cause: 'closed' }],
    ['says 250 to DATA', { script: { data: '250 what' } }, { phase: 'data', cause: 'protocol' }],
    ['stalls at the dot', { script: { dot: { act: 'stall' } } }, { phase: 'dot', cause: 'timeout' }],
    [
      'talks nonsense at the dot',
      { script: { dot: { act: 'garbage' } } },
      { phase: 'dot', cause: 'protocol' },
    ],
  ])('%s: one failure', async (_, sink, lastFailure) => {
    expect(await outcomeOf(sink)).toMatchObject({
      totals: { delivered: 0, failed: 1 },
      lastFailure,
      consecutiveFailures: 1,
    });
  });

  it('resets in the body: one failure', async () => {
    proxy = await startProxy([{ script: { body: { act: 'rst' } } }]);
    const client = await proxy.client();
    await client.envelope('s@src.example', ['u@a.example']);
    client.write(BODY);
    await until(async () => (await hops())[0]!.totals.failed === 1);
    expect((await hops())[0]).toMatchObject({ lastFailure: { phase: 'body', cause: 'closed' } });
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^451/);
    expect((await hops())[0]!.totals.failed).toBe(1);
  });

  it('takes nothing any more: a time-out in the body', async () => {
    proxy = await startProxy([{ stopReadingAfter: 1 }], { dataTimeout: '150ms' });
    const client = await proxy.client();
    await client.envelope('s@src.example', ['u@a.example']);
    client.write(`${'x'.repeat(70)}\r\n`.repeat(200_000));
    await until(async () => (await hops())[0]!.totals.failed === 1);
    expect((await hops())[0]).toMatchObject({ lastFailure: { phase: 'body', cause: 'timeout' } });
  });

  it('can’t be reached: the failure says how', async () => {
    const gone = await Sink.start({});
    const { url } = gone;
    await gone.close();
    proxy = await startProxyOnly({ route: [`a.example=${url}`] });
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^451/);
    expect((await hops())[0]).toMatchObject({
      consecutiveFailures: 1,
      lastFailure: { phase: 'connect', cause: 'refused' },
    });
  });

  it('a client that vanishes in mid-body is no failure of the next hop’s', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    await client.envelope('s@src.example', ['u@a.example']);
    client.write('half');
    client.reset();
    await until(async () => (await status()).transactionsActive === 0);
    await until(async () => (await hops())[0]!.sessions.active === 0);
    expect((await hops())[0]).toMatchObject({ totals: { delivered: 0, refused: 0, failed: 0 } });
  });
});

describe('the page', () => {
  const FILES = ['page.css', 'page.js', 'arrange.js', 'draw.js', 'format.js', 'panel.js', 'rates.js'];

  it('comes with all it loads, under a policy that lets nothing else in', async () => {
    proxy = await startProxy([{}]);
    const page = await ask('GET', '/');
    expect(page).toMatchObject({
      code: 200,
      headers: {
        'content-type': 'text/html; charset=utf-8',
        'x-content-type-options': 'nosniff',
        'referrer-policy': 'no-referrer',
        'cache-control': 'no-cache',
      },
    });
    const policy = String(page.headers['content-security-policy']).split('; ');
    for (const rule of [
      "default-src 'none'",
      "script-src 'self'",
      "style-src 'self'",
      "frame-ancestors 'none'",
    ])
      expect(policy).toContain(rule);
    expect(policy.join()).not.toMatch(/unsafe|\*|https?:/);
    for (const file of FILES) expect((await ask('GET', `/page/${file}`)).code, file).toBe(200);
    const loaded = [...page.body.matchAll(/(?:src|href)="(page\/[^"]+)"/g)].map((match) => match[1]);
    expect(loaded).toEqual(['page/page.css', 'page/page.js']);
  });

  it('weighs less than 40 KiB on the wire, and nothing when it is unchanged', async () => {
    proxy = await startProxy([{}]);
    let octets = 0;
    for (const path of ['/', ...FILES.map((file) => `/page/${file}`)]) {
      const zipped = await ask('GET', path, { 'accept-encoding': 'gzip' });
      expect(zipped.headers).toMatchObject({ 'content-encoding': 'gzip', vary: 'accept-encoding' });
      octets += Number(zipped.headers['content-length']);
      const { headers } = await ask('GET', path);
      expect(headers['content-encoding']).toBeUndefined();
      const again = await ask('GET', path, { 'if-none-match': String(headers.etag) });
      expect([again.code, again.body]).toEqual([304, '']);
      const none = await ask('HEAD', path);
      expect([none.code, none.body, none.headers['content-length']]).toEqual([
        200,
        '',
        headers['content-length'],
      ]);
    }
    expect(octets).toBeLessThan(40 * 1024);
  });

  it('gives no file that is not the page’s', async () => {
    proxy = await startProxy([{}]);
    for (const path of [
      '/page/',
      '/page/status.d.ts',
      '/page/tsconfig.json',
      '/page/../server.ts',
      '/page/%2e%2e/server.ts',
      '/page/index.html',
    ])
      expect((await ask('GET', path)).code, path).toBe(404);
    expect((await ask('POST', '/')).code).toBe(405);
  });
});

describe('who may change the proxy', () => {
  const OFF = '{"enabled":false}';
  const off = async (headers: Readonly<Record<string, string>>) =>
    (await ask('POST', '/fast-path', headers, OFF)).code;

  it('curl on this machine, as the README has it', async () => {
    proxy = await startProxy([{}]);
    expect(await off({ 'content-type': 'application/x-www-form-urlencoded' })).toBe(200);
    expect(await off({ host: 'localhost:9525' })).toBe(200);
    expect(await off({ host: '[::1]:9525' })).toBe(200);
    const { host } = new URL(proxy.httpUrl);
    const same = { origin: `http://${host}`, 'sec-fetch-site': 'same-origin' };
    expect(await off(same)).toBe(200);
  });

  it.each<[string, Record<string, string>]>([
    ['a page of another site', { origin: 'https://evil.example', 'content-type': 'text/plain' }],
    ['a page of another port here', { origin: 'http://127.0.0.1:8080' }],
    ['a sandboxed page', { origin: 'null' }],
    ['one without Origin', { 'sec-fetch-site': 'cross-site' }],
    ['a name that was made to lead here', { host: 'evil.example:9525', origin: 'http://evil.example:9525' }],
    ['a name that only begins like an address', { host: '127.0.0.1.evil.example' }],
    ['no name', { host: ':9525' }],
    ['through a proxy on this machine', { 'x-forwarded-for': '203.0.113.9' }],
  ])('not %s', async (_, headers) => {
    proxy = await startProxy([{}]);
    expect(await off(headers)).toBe(403);
    expect((await ask('POST', '/mode', headers, '{"mode":"spool"}')).code).toBe(403);
    expect(await status()).toMatchObject({ fastPath: { enabled: true }, mode: 'cut-through' });
  });
});

it('lets go of a request that never ends, in its head or in its body', async () => {
  const ignored = () => ({ found: null, kept: 0 });
  const sources = {
    metrics: async () => ({ contentType: '', text: '' }),
    ready: () => true,
    status: () => ({}),
  };
  const changes = { setFastPath() {}, async setMode() {}, trace: ignored, details: () => false };
  const server = await startHttp({ host: '127.0.0.1', port: 0 }, { ...sources, ...changes }, 100);
  const port = Number(server.address.split(':')[1]);
  const began = performance.now();
  const unfinished = [
    'GET /healthz HTTP/1.1\r\nHost: x\r\nX',
    'POST /mode HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 9\r\n\r\n{',
  ];
  const ended = unfinished.map(async (head) => {
    const socket = connect(port, '127.0.0.1').on('error', () => {});
    socket.resume().write(head);
    await once(socket, 'close');
  });
  await Promise.all(ended);
  expect(performance.now() - began).toBeLessThan(2_000);
  await server.close();
});
