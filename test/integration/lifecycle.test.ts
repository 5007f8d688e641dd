// Starting, watching, reloading and stopping: what an operator and an embedding program rely on.
import { once } from 'node:events';
import net from 'node:net';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import { createProxy, type Options } from '../../src/app.ts';
import { parseConfig } from '../../src/config.ts';
import { Client } from '../support/client.ts';
import { QUICK, startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy?.close());

const gauge = async (name: string) => await proxy.metric(`cutthrough_${name}`);
const get = async (path: string) => await fetch(`${proxy.httpUrl}${path}`);
const slowDot: SinkOptions = { script: { dot: { act: 'delay', ms: 300, next: '250 2.0.0 true verdict' } } };

describe('close()', () => {
  it('tells idle sessions 421 4.3.2, and is done when they are gone', async () => {
    proxy = await startProxy([{}]);
    const clients = [await proxy.client(), await proxy.client(), await Client.connect(proxy.port)];
    await proxy.proxy.close({ drainTimeoutMs: 5_000 });
    for (const client of clients) {
      expect(await client.reply()).toMatch(/^421 4\.3\.2 /);
      expect(await client.reply()).toBe('closed');
    }
  });

  it('lets a running transaction finish with its true verdict, then ends its session', async () => {
    proxy = await startProxy([slowDot]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const closing = proxy.proxy.close({ drainTimeoutMs: 5_000 });
    client.write('still coming\r\n.\r\n');
    expect(await client.reply()).toBe('250 2.0.0 true verdict');
    expect(await client.reply()).toMatch(/^421 4\.3\.2 /);
    expect(await client.reply()).toBe('closed');
    await closing;
    expect(proxy.sinks[0]!.messages).toHaveLength(1);
    await until(() => proxy.sinks[0]!.sessions.every(({ closed }) => closed));
    expect(proxy.sinks[0]!.sessions[0]!.commands.at(-1)).toBe('QUIT');
  });

  it('lets a transaction between MAIL and DATA go on to its end', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    const closing = proxy.proxy.close({ drainTimeoutMs: 5_000 });
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^421 4\.3\.2 /);
    await closing;
  });

  it('does not begin another transaction', async () => {
    proxy = await startProxy([slowDot]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const closing = proxy.proxy.close({ drainTimeoutMs: 5_000 });
    client.write('x\r\n.\r\nMAIL FROM:<t@src.example>\r\nRCPT TO:<u@a.example>\r\n');
    expect(await client.reply()).toBe('250 2.0.0 true verdict');
    expect(await client.reply()).toMatch(/^421 4\.3\.2 /);
    expect(await client.reply()).toBe('closed');
    await closing;
    expect(proxy.transactions()).toHaveLength(1);
  });

  it('cuts off what is not done within the drain timeout, without a dot', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write('half a mess');
    const began = performance.now();
    await proxy.proxy.close({ drainTimeoutMs: 200 });
    expect(performance.now() - began).toBeLessThan(1_000);
    await until(() => proxy.sinks[0]!.sessions[0]!.closed);
    expect(proxy.sinks[0]!.sessions[0]!.sawDot).toBe(false);
    expect(proxy.transactions()).toMatchObject([{ result: 'aborted' }]);
    expect(await gauge('downstream_sessions_active')).toBe(0);
  });

  it('is not held up by a client that does not close its side', async () => {
    proxy = await startProxy([{}]);
    const socket = net.connect({ port: proxy.port, host: '127.0.0.1', allowHalfOpen: true });
    onTestFinished(() => void socket.destroy());
    socket.on('error', () => {});
    await once(socket, 'data');
    const began = performance.now();
    await proxy.proxy.close({ drainTimeoutMs: 200 });
    expect(performance.now() - began).toBeLessThan(1_500);
  });

  it('leaves no downstream session behind, not even one that owes its answer to the dot', async () => {
    const sink: SinkOptions = { script: { dot: { act: 'stall' } } };
    proxy = await startProxy([sink], { ackTimeout: '3s' });
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    await until(() => proxy.sinks[0]!.sessions[0]!.sawDot);
    await proxy.proxy.close({ drainTimeoutMs: 100 });
    await until(() => proxy.sinks[0]!.sessions[0]!.closed, 500);
  });

  it('refuses new connections while it drains, and /readyz says 503', async () => {
    proxy = await startProxy([slowDot]);
    const client = await proxy.client();
    const { port, httpUrl } = proxy;
    const getHere = async (path: string) => await fetch(`${httpUrl}${path}`);
    expect((await get('/readyz')).status).toBe(200);
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const closing = proxy.proxy.close({ drainTimeoutMs: 5_000 });
    await expect(Client.open(port)).rejects.toThrow();
    expect((await getHere('/readyz')).status).toBe(503);
    expect((await getHere('/healthz')).status).toBe(200);
    expect(await (await getHere('/status')).json()).toMatchObject({ draining: true });
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    await closing;
    await expect(getHere('/healthz')).rejects.toThrow();
  });

  it('leaves the addresses to be read, during and after it', async () => {
    proxy = await startProxy([{}]);
    await proxy.client();
    const { addresses } = proxy.proxy;
    const closing = proxy.proxy.close({ drainTimeoutMs: 5_000 });
    expect(proxy.proxy.addresses.listen).toEqual(addresses.listen);
    await closing;
    expect(proxy.proxy.addresses.listen).toEqual(addresses.listen);
  });

  it('may be called twice, and the second waits as well', async () => {
    proxy = await startProxy([slowDot]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const closing = [
      proxy.proxy.close({ drainTimeoutMs: 5_000 }),
      proxy.proxy.close({ drainTimeoutMs: 5_000 }),
    ];
    let done = false;
    void closing[1]!.then(() => {
      done = true;
    });
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(done).toBe(false);
    await Promise.all(closing);
  });
});

describe('HTTP', () => {
  it('shows a live transaction with its legs in /status', async () => {
    proxy = await startProxy([{}, {}], { httpDetails: true });
    const client = await proxy.client();
    await client.envelope('sender@src.example', ['rcpt@a.example', 'v@b.example', 'w@b.example']);
    const response = await get('/status');
    expect(response.headers.get('content-type')).toMatch(/^application\/json/);
    expect(await response.json()).toMatchObject({
      mode: 'cut-through',
      fallback: 'none',
      draining: false,
      listen: [`smtp://127.0.0.1:${proxy.port}`],
      connections: 1,
      transactions: [
        {
          state: 'body',
          legs: [
            { nextHop: proxy.sinks[0]!.url, phase: 'body', recipients: 1 },
            { nextHop: proxy.sinks[1]!.url, phase: 'body', recipients: 2 },
          ],
        },
      ],
    });
    client.write('x\r\n.\r\n');
    await client.reply();
    expect(await (await get('/status')).json()).toMatchObject({ transactions: [] });
  });

  it('answers /healthz, /readyz and /, and nothing else', async () => {
    proxy = await startProxy([{}]);
    for (const path of ['/healthz', '/readyz', '/', '/metrics']) expect((await get(path)).status).toBe(200);
    expect((await get('/etc/passwd')).status).toBe(404);
    const refused = await fetch(`${proxy.httpUrl}/metrics`, { method: 'DELETE' });
    expect([refused.status, refused.headers.get('allow')]).toEqual([405, 'GET, HEAD']);
    expect((await get('/mode')).headers.get('allow')).toBe('POST');
  });

  /** INTERFACE.md's, and the limits beside what they limit. */
  const METRICS: Record<string, readonly string[]> = {
    build_info: ['version', 'node'],
    workers: [],
    worker_restarts_total: ['reason'],
    mode_info: ['mode', 'fallback'],
    upstream_connections_total: ['listener'],
    upstream_connections_active: [],
    upstream_connections_limit: [],
    upstream_connections_refused_total: [],
    tls_certificate_expiry_timestamp_seconds: [],
    upstream_commands_total: ['verb', 'class'],
    transactions_total: ['mode', 'result'],
    transactions_active: [],
    recipients_total: ['result'],
    message_bytes_total: ['direction'],
    message_size_bytes: [],
    buffered_bytes: [],
    buffered_bytes_limit: [],
    downstream_connect_attempts_total: ['result'],
    downstream_connect_retries_total: [],
    downstream_sessions_active: [],
    downstream_sessions_idle: [],
    downstream_session_reuses_total: [],
    downstream_replies_total: ['phase', 'class'],
    phase_duration_seconds: ['phase'],
    transaction_duration_seconds: ['mode'],
    backpressure_seconds_total: ['side'],
    fast_path_enabled: [],
    fast_path_disabled_total: ['reason'],
    spool_messages: ['where'],
    spool_bytes: ['where'],
    queue_messages: [],
    queue_oldest_age_seconds: [],
    queue_age_limit_seconds: [],
    queue_attempts_total: ['result'],
    spool_failures_total: ['reason'],
    dsn_total: ['kind'],
    ledger_entries: [],
    duplicates_suppressed_total: [],
  };

  it('has every metric with its labels, and no address or domain in any', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250/);
    const text = await (await get('/metrics')).text();
    for (const [name, labels] of Object.entries(METRICS)) {
      expect(text, name).toMatch(new RegExp(`^# TYPE cutthrough_${name} (counter|gauge|histogram)$`, 'm'));
      for (const label of labels)
        expect(text, name).toMatch(new RegExp(`^cutthrough_${name}\\w*\\{[^}]*\\b${label}="[^"]+"`, 'm'));
    }
    expect(text).toMatch(/^process_cpu_seconds_total /m);
    expect(text).not.toMatch(/example|127\.0\.0\.1|@/);
  });

  it('counts a delivery once in each', async () => {
    proxy = await startProxy([{}, {}]);
    const client = await proxy.client();
    await client.send('s@src.example', ['u@a.example', 'v@b.example'], 'x: y\r\n\r\n');
    expect(await gauge('transactions_total{mode="cut-through",result="delivered"}')).toBe(1);
    expect(await gauge('recipients_total{result="accepted"}')).toBe(2);
    expect(await gauge('message_size_bytes_count')).toBe(1);
    expect(await gauge('downstream_connect_attempts_total{result="ok"}')).toBe(2);
    for (const phase of ['greeting', 'ehlo', 'mail', 'rcpt', 'dot'])
      expect(await gauge(`downstream_replies_total{phase="${phase}",class="2xx"}`), phase).toBe(2);
    expect(await gauge('downstream_replies_total{phase="data",class="3xx"}')).toBe(2);
    expect(await gauge('upstream_commands_total{verb="RCPT",class="2xx"}')).toBe(2);
    for (const phase of ['connect', 'mail', 'rcpt', 'data', 'body', 'dot'])
      expect(await gauge(`phase_duration_seconds_count{phase="${phase}"}`), phase).toBe(2);
    expect(await gauge('transaction_duration_seconds_count{mode="cut-through"}')).toBe(1);
  });

  it('counts MAIL once for all recipients of a next hop', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    await client.send('s@src.example', ['u@a.example', 'v@a.example', 'w@a.example'], 'x: y\r\n\r\n');
    expect(await gauge('downstream_replies_total{phase="mail",class="2xx"}')).toBe(1);
    expect(await gauge('phase_duration_seconds_count{phase="mail"}')).toBe(1);
    expect(await gauge('phase_duration_seconds_count{phase="rcpt"}')).toBe(3);
  });

  it('counts as an answer to MAIL only what is one', async () => {
    const sink = await Sink.start({ extensions: ['XFORWARD NAME ADDR'], script: { rcpt: '550 5.1.1 no' } });
    proxy = await startProxyOnly({ route: [`*=${sink.url}`], forwardClient: 'xforward' }, [sink]);
    const client = await proxy.client();
    for (let tries = 0; tries < 2; tries++) {
      await client.command('MAIL FROM:<s@src.example>');
      expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^550/);
      await client.command('RSET');
    }
    const verbs = sink.sessions.flatMap(({ commands }) => commands.map((line) => line.split(' ')[0]));
    expect(verbs).toEqual(expect.arrayContaining(['XFORWARD', 'RSET']));
    expect(await gauge('downstream_replies_total{phase="mail",class="2xx"}')).toBe(2);
  });

  it('counts the answer to credentials, whichever it is', async () => {
    const sink = await Sink.start({ extensions: ['AUTH PLAIN'] });
    const at = sink.url.slice('smtp://'.length);
    proxy = await startProxyOnly({ route: [`*=smtp://u:p@${at}`] }, [sink]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x: y\r\n\r\n')).toMatch(/^250/);
    expect(await gauge('downstream_replies_total{phase="auth",class="2xx"}')).toBe(1);
  });
});

describe('reload()', () => {
  function configOf(options: Options) {
    const parsed = parseConfig({ file: { ...QUICK, ...options } });
    if (!parsed.ok) throw new Error(parsed.errors.join('\n'));
    return parsed.config;
  }

  it('gives new sessions the new routes and limits; running ones keep the old', async () => {
    const [before, after] = await Promise.all([Sink.start(), Sink.start()]);
    proxy = await startProxyOnly({ route: [`*=${before.url}`] }, [before, after]);
    const running = await proxy.client();
    await running.command('MAIL FROM:<s@src.example>');
    await proxy.proxy.reload(configOf({ route: [`*=${after.url}`], maxMessageSize: '1KiB', trust: [] }));
    expect(await running.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
    await running.command('RSET');
    expect(await running.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect([before.messages.length, after.messages.length]).toEqual([1, 0]);
    const fresh = await Client.connect(proxy.port);
    proxy.clients.push(fresh);
    expect(await fresh.command('EHLO client.example')).toMatch(/SIZE 1024/);
    await fresh.command('MAIL FROM:<s@src.example>');
    expect(await fresh.command('RCPT TO:<u@a.example>')).toMatch(/^550 5\.7\.1 /);
    await proxy.proxy.reload(configOf({ route: [`*=${after.url}`] }));
    expect(await (await proxy.client()).send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect([before.messages.length, after.messages.length]).toEqual([1, 1]);
  });
});

describe('createProxy()', () => {
  it('names every bad option in one error', async () => {
    const bad = { maxRecipients: 'many', idleTimeout: 'soon', listen: ['ftp://x'], trsut: ['::1'] };
    const failure = createProxy(bad as unknown as Options).then(
      () => null,
      (error: unknown) => error,
    );
    const error = await failure;
    expect(error).toBeInstanceOf(Error);
    for (const name of Object.keys(bad)) expect((error as Error).message).toContain(name);
    expect((error as Error).message).toContain('trust');
  });

  it('refuses several workers, since it is in one process', async () => {
    for (const workers of ['auto', 2] as const)
      await expect(createProxy({ workers })).rejects.toThrow(/workers: only "cutthrough serve"/);
  });

  it('rejects when an address is taken, and leaves no listener behind', async () => {
    proxy = await startProxy([{}]);
    const free = net.createServer().listen(0, '127.0.0.1');
    await once(free, 'listening');
    const { port } = free.address() as net.AddressInfo;
    await new Promise((resolve) => free.close(resolve));
    const listen = [`smtp://127.0.0.1:${port}`, `smtp://127.0.0.1:${proxy.port}`];
    await expect(createProxy({ ...QUICK, listen, logLevel: 'silent' })).rejects.toThrow(/EADDRINUSE/);
    await expect(Client.open(port)).rejects.toThrow(/ECONNREFUSED/);
  });

  it('gives several proxies in one process their own metrics', async () => {
    proxy = await startProxy([{}]);
    const other = await startProxy([{}]);
    onTestFinished(async () => await other.close());
    await (await proxy.client()).send('s@src.example', ['u@a.example'], 'x\r\n');
    expect(await gauge('transactions_total{mode="cut-through",result="delivered"}')).toBe(1);
    expect(await other.metric('cutthrough_transactions_total{mode="cut-through",result="delivered"}')).toBe(
      0,
    );
  });
});
