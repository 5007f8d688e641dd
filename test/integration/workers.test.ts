// Several processes behind one port: whatever becomes of one of them, mail goes on, none is lost or doubled, and one look
// at the metrics sees the whole.
import { randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pino from 'pino';
import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { runQueueCommand } from '../../src/commands/queue.ts';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { configOf, type Line, portOf, until } from '../support/proxy.ts';
import { type Act, Sink, type SinkOptions } from '../support/sink.ts';
import { putInto, queuedMessage } from '../support/spool.ts';
import { temporaryDirectory } from '../support/tools.ts';

// Each start is one of several processes.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 30_000 });
const SOON_MS = 30_000;

const MESSAGE = 'Subject: x\r\nMessage-ID: <1@src.example>\r\n\r\nhello\r\n';
const TWO = ['u@a.example', 'v@b.example'];

let sinks: Sink[];
beforeEach(() => {
  sinks = [];
});
afterEach(async () => {
  for (const sink of sinks) await sink.close();
});

async function sink(options: SinkOptions = {}): Promise<Sink> {
  const started = await Sink.start(options);
  sinks.push(started);
  return started;
}

/** Says 4xx to the first `times` dots. */
function later(times: number): SinkOptions {
  return { script: { dot: (_line, nth): Act | null => (nth < times ? '451 4.3.0 later' : null) } };
}

async function metric(program: Program, series: string): Promise<number> {
  const text = await (await fetch(`http://${program.http}/metrics`)).text();
  const line = text.split('\n').find((each) => each.startsWith(`cutthrough_${series} `));
  return line === undefined ? Number.NaN : Number(line.slice(line.lastIndexOf(' ') + 1));
}

const delivered = (program: Program) =>
  metric(program, 'transactions_total{mode="cut-through",result="delivered"}');

type Told = Readonly<{
  workers: readonly Readonly<{ number: number; pid: number; state: string }>[];
  connections: number;
  maxConnections: number;
  totals: { transactions: Record<string, number> };
  transactions: readonly Readonly<{ id: string }>[];
  nextHops: readonly Readonly<{ name: string; totals: { delivered: number } }>[];
  fastPath: { enabled: boolean };
}>;

async function status(program: Program): Promise<Told> {
  return (await (await fetch(`http://${program.http}/status`)).json()) as Told;
}

async function pids(program: Program): Promise<readonly number[]> {
  return (await status(program)).workers.map(({ pid }) => pid);
}

/** Neither running nor waiting for its parent. */
async function isGone(pid: number): Promise<boolean> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  return text === '' || /^\d+ \(.*\) Z/s.test(text);
}

async function allGone(gone: readonly number[]): Promise<boolean> {
  return (await Promise.all(gone.map(isGone))).every(Boolean);
}

/** One message in a session of its own; gives the last reply. */
async function sendOnce(
  program: Program,
  to: string[] = ['u@a.example'],
  message = MESSAGE,
): Promise<string> {
  const client = await Client.open(program.port());
  let reply = await client.reply();
  const rcpts = to.map((each) => `RCPT TO:<${each}>`);
  for (const line of ['EHLO client.example', 'MAIL FROM:<s@src.example>', ...rcpts, 'DATA'])
    if (reply.startsWith('2')) reply = await client.command(line);
  if (reply.startsWith('354')) {
    client.write(`${message}.\r\n`);
    reply = await client.reply();
  }
  client.write('QUIT\r\n');
  await client.reply();
  client.destroy();
  return reply;
}

async function post(program: Program, path: string, body: unknown): Promise<number> {
  const response = await fetch(`http://${program.http}${path}`, {
    method: 'POST',
    body: JSON.stringify(body),
  });
  return response.status;
}

const logged = (program: Program, event: string) => program.log.filter((line) => line.event === event);

describe('two workers', () => {
  it('share one port evenly, and one scrape counts what all of them have done', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    for (let nth = 0; nth < 20; nth++) expect(await sendOnce(program)).toMatch(/^250/);
    expect(await delivered(program)).toBe(20);
    expect(await metric(program, 'upstream_connections_total{listener="smtp"}')).toBe(20);
    expect(await metric(program, 'message_size_bytes_count')).toBe(20);
    expect(await metric(program, 'workers')).toBe(2);
    expect(await metric(program, 'upstream_connections_limit')).toBe(1000);
    expect(await metric(program, 'fast_path_enabled')).toBe(1);
    const by = (worker: number) => program.transactions().filter((line) => line.worker === worker).length;
    expect([by(1), by(2)]).toEqual([10, 10]);
    const text = await (await fetch(`http://${program.http}/metrics`)).text();
    expect(text).toMatch(/^cutthrough_build_info\{[^}]+\} 1$/m);
    expect(text).toMatch(/^cutthrough_mode_info\{mode="cut-through",fallback="none"\} 1$/m);
    expect(text).toMatch(/^process_start_time_seconds \d+/m);
    const told = await status(program);
    expect(told).toMatchObject({
      connections: 0,
      maxConnections: 1000,
      totals: { transactions: { delivered: 20 } },
      nextHops: [{ name: 'static #1', totals: { delivered: 20 } }],
      workers: [
        { number: 1, state: 'listening' },
        { number: 2, state: 'listening' },
      ],
    });
    expect(logged(program, 'ready')).toHaveLength(1);
    const workers = await pids(program);
    expect(await program.stop()).toBe(0);
    expect(await allGone(workers)).toBe(true);
  });

  it('have the connections of --max-connections between them', async () => {
    const program = await Program.start(['--workers', '2', '--max-connections', '2', '--route', '*=mx']);
    const clients = [await Client.hello(program.port()), await Client.hello(program.port())];
    const third = await Client.open(program.port());
    expect(await third.reply()).toMatch(/^421 4\.3\.2/);
    for (const client of [...clients, third]) client.destroy();
    await program.stop();
  });

  it('take the client from a balancer’s PROXY header', async () => {
    const { url } = await sink();
    const who = ['--proxy-protocol', '127.0.0.0/8', '--trust', '192.0.2.0/24'];
    const program = await Program.start(['--workers', '2', ...who, '--route', `*=${url}`]);
    for (const nth of [1, 2]) {
      const client = await Client.open(program.port());
      client.write(`PROXY TCP4 192.0.2.${nth} 127.0.0.1 5555 25\r\n`);
      expect(await client.reply()).toMatch(/^220/);
      await client.command('EHLO client.example');
      expect(await client.send('s@src.example', ['u@a.example'], MESSAGE)).toMatch(/^250/);
      client.destroy();
    }
    await until(() => program.transactions().length === 2);
    expect(program.transactions()).toMatchObject([
      { worker: 1, client: '192.0.2.1' },
      { worker: 2, client: '192.0.2.2' },
    ]);
    await program.stop();
  });

  it('tell of any of their transactions', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    const clients = [await Client.hello(program.port()), await Client.hello(program.port())];
    for (const client of clients) await client.envelope('s@src.example', ['u@a.example']);
    const { transactions } = await status(program);
    expect(transactions).toHaveLength(2);
    for (const { id } of transactions) {
      const response = await fetch(`http://${program.http}/trace/${id}`);
      expect(await response.json()).toMatchObject({ id, reversePath: 's@src.example' });
    }
    expect((await fetch(`http://${program.http}/trace/nosuch`)).status).toBe(404);
    for (const client of clients) client.destroy();
    await program.stop();
  });

  it('are switched together, and so are those that come later', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    expect(await post(program, '/fast-path', { enabled: false })).toBe(200);
    for (let nth = 0; nth < 4; nth++) expect(await sendOnce(program)).toMatch(/^451 4\.3\.2/);
    expect(await metric(program, 'fast_path_enabled')).toBe(0);
    const [first] = await pids(program);
    process.kill(first!, 'SIGKILL');
    await until(() => logged(program, 'worker_replaced').length === 1, SOON_MS);
    for (let nth = 0; nth < 4; nth++) expect(await sendOnce(program)).toMatch(/^451 4\.3\.2/);
    expect(await post(program, '/fast-path', { enabled: true })).toBe(200);
    for (let nth = 0; nth < 4; nth++) expect(await sendOnce(program)).toMatch(/^250/);
    expect(await post(program, '/mode', { mode: 'nonsense' })).toBe(400);
    await program.stop();
  });
});

it('a worker that is killed costs the others nothing, is replaced, and its counts stay', async () => {
  const { url } = await sink();
  const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
  const clients = [await Client.hello(program.port()), await Client.hello(program.port())];
  for (const client of clients)
    expect(await client.send('s@src.example', ['u@a.example'], MESSAGE)).toMatch(/^250/);
  expect(await delivered(program)).toBe(2);
  const [first] = await pids(program);
  process.kill(first!, 'SIGKILL');
  await until(() => clients.some(({ closed }) => closed));
  expect(clients.filter(({ closed }) => closed)).toHaveLength(1);
  const left = clients.find(({ closed }) => !closed)!;
  expect(await left.send('s@src.example', ['u@a.example'], MESSAGE)).toMatch(/^250/);
  // One listens, so nobody is refused meanwhile.
  expect(await sendOnce(program)).toMatch(/^250/);
  await until(() => logged(program, 'worker_replaced').length === 1, SOON_MS);
  expect(logged(program, 'worker_crashed')).toMatchObject([{ worker: 1, pid: first, signal: 'SIGKILL' }]);
  expect(await metric(program, 'worker_restarts_total{reason="crash"}')).toBe(1);
  expect(await metric(program, 'workers')).toBe(2);
  expect(await delivered(program)).toBe(4);
  expect((await status(program)).totals.transactions.delivered).toBeGreaterThanOrEqual(3);
  left.destroy();
  expect(await program.stop()).toBe(0);
});

it('a connection that was handed to a worker as it ended is closed, so that its client tries again', async () => {
  const { url } = await sink();
  const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
  const [first] = await pids(program);
  // It takes a connection in no more.
  process.kill(first!, 'SIGSTOP');
  const clients = await Promise.all([1, 2, 3, 4].map(() => Client.open(program.port())));
  const greetings = clients.map((client) => client.reply(SOON_MS));
  await Promise.race(greetings);
  process.kill(first!, 'SIGKILL');
  expect((await Promise.all(greetings)).map((reply) => reply.slice(0, 6)).sort()).toEqual([
    ...Array(3).fill('220 pr'),
    'closed',
  ]);
  for (const client of clients) client.destroy();
  expect(await program.stop()).toBe(0);
});

describe('a worker that hangs', () => {
  const DIST = new URL('../../dist/workers/primary.js', import.meta.url).href;
  const HEARTBEAT = { everyMs: 150, misses: 12 };
  const UNANSWERED_MS = HEARTBEAT.everyMs * HEARTBEAT.misses;

  /** The primary in this process, and workers in theirs. */
  async function startPrimary() {
    const { url } = await sink();
    const log: Line[] = [];
    const logger = pino({}, { write: (text: string) => void log.push(JSON.parse(text) as Line) });
    const primary = (await import(DIST)) as typeof import('../../src/workers/primary.ts');
    const config = configOf({ workers: 2, route: [`*=${url}`], logLevel: 'fatal' });
    const proxy = await primary.startPrimary(config, logger, HEARTBEAT);
    onTestFinished(async () => await proxy.close({ drainTimeoutMs: 100 }));
    const told = async () =>
      (await (await fetch(`http://${proxy.addresses.http}/status`)).json()) as unknown as Told;
    const pids = async () => (await told()).workers.map(({ pid }) => pid);
    const send = async () => {
      const client = await Client.hello(portOf(proxy.addresses.listen[0]!));
      const reply = await client.send('s@src.example', ['u@a.example'], MESSAGE);
      client.destroy();
      return reply;
    };
    return { proxy, pids, send, events: (event: string) => log.filter((line) => line.event === event) };
  }

  it('is killed and replaced like one that crashed, and the other goes on', async () => {
    const { proxy, pids, send, events } = await startPrimary();
    const [first, second] = await pids();
    process.kill(first!, 'SIGSTOP');
    await until(() => events('worker_replaced').length === 1, SOON_MS);
    expect(events('worker_hung')).toMatchObject([
      { level: 50, worker: 1, pid: first, silentMs: UNANSWERED_MS },
    ]);
    expect(events('worker_crashed')).toMatchObject([{ worker: 1, pid: first, signal: 'SIGKILL' }]);
    expect(await proxy.metrics()).toMatch(/^cutthrough_worker_restarts_total\{reason="crash"\} 1$/m);
    const now = await pids();
    expect(now).toContain(second);
    expect(now).not.toContain(first);
    for (let nth = 0; nth < 4; nth++) expect(await send()).toMatch(/^250/);
  });

  it('is not one that was only slow to answer, nor one that the primary could not hear', async () => {
    const { pids, events } = await startPrimary();
    const before = await pids();
    const pause = async () => {
      process.kill(before[0]!, 'SIGSTOP');
      await sleep(UNANSWERED_MS * 0.6);
      process.kill(before[0]!, 'SIGCONT');
    };
    await pause();
    await sleep(UNANSWERED_MS * 0.2);
    // What it once owed is forgotten; what it owes now has come when the primary looks again.
    await pause();
    const awake = performance.now() + UNANSWERED_MS * 1.5;
    while (performance.now() < awake);
    await sleep(UNANSWERED_MS / 2);
    expect(events('worker_hung')).toEqual([]);
    expect(await pids()).toEqual(before);
  });
});

it('all workers at once may end, and the port is the same after that', async () => {
  const { url } = await sink();
  const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
  for (const pid of await pids(program)) process.kill(pid, 'SIGKILL');
  await until(() => logged(program, 'worker_replaced').length === 2, SOON_MS);
  for (let nth = 0; nth < 4; nth++) expect(await sendOnce(program)).toMatch(/^250/);
  expect((await fetch(`http://${program.http}/readyz`)).status).toBe(200);
  expect(await program.stop()).toBe(0);
});

it('SIGHUP under load puts every worker in the place of its predecessor, with no connection refused and no message lost', async () => {
  const [before, after] = [await sink(), await sink()];
  const file = join(await temporaryDirectory(), 'cutthrough.yaml');
  await writeFile(file, `workers: 2\nroute: ['*=${before.url}']\n`);
  const program = await Program.start(['--config', file]);
  const old = await pids(program);
  // A session from before the reload finishes with the old configuration.
  const running = await Client.hello(program.port());
  await running.envelope('s@src.example', ['u@a.example']);
  running.write('Subject: half\r\n');
  let sent = 0;
  let done = false;
  const load = Array.from({ length: 4 }, async () => {
    while (!done) {
      const reply = await sendOnce(program, ['u@a.example'], `Subject: ${randomUUID()}\r\n\r\nx\r\n`);
      // Between its commands a session may be told to come again.
      expect(reply).toMatch(/^250|^421 4\.3\.2/);
      if (reply.startsWith('250')) sent++;
    }
  });
  await until(() => sent > 10, SOON_MS);
  await writeFile(file, `workers: 2\nroute: ['*=${after.url}']\nhttp: '127.0.0.1:1'\n`);
  program.signal('SIGHUP');
  await until(() => logged(program, 'reloaded').length === 1, SOON_MS);
  await until(() => after.messages.length > 10, SOON_MS);
  running.write('\r\nthe other half\r\n.\r\n');
  expect(await running.reply()).toMatch(/^250/);
  running.destroy();
  done = true;
  await Promise.all(load);
  await until(() => allGone(old), SOON_MS);
  expect(before.messages.filter(({ body }) => body.includes('the other half'))).toHaveLength(1);
  const total = before.messages.length + after.messages.length;
  expect(total).toBe(sent + 1);
  await until(async () => (await delivered(program)) === total);
  expect(await metric(program, 'worker_restarts_total{reason="reload"}')).toBe(2);
  expect(await metric(program, 'worker_restarts_total{reason="crash"}')).toBe(0);
  for (let nth = 0; nth < 4; nth++) await sendOnce(program);
  expect(after.messages.length + before.messages.length).toBe(total + 4);

  const now = await pids(program);
  await writeFile(file, 'rout: [nonsense]\n');
  program.signal('SIGHUP');
  await until(() => logged(program, 'reload_failed').length === 1);
  expect(await pids(program)).toEqual(now);
  expect(await sendOnce(program)).toMatch(/^250/);

  await writeFile(file, `workers: 3\nroute: ['*=${after.url}']\n`);
  program.signal('SIGHUP');
  await until(() => logged(program, 'reloaded').length === 2, SOON_MS);
  await until(async () => (await metric(program, 'workers')) === 3, SOON_MS);
  expect(await program.stop()).toBe(0);
});

describe('the end', () => {
  it('SIGTERM lets what runs finish, exits 0, and leaves nobody', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    const workers = await pids(program);
    const [running, idle] = [await Client.hello(program.port()), await Client.hello(program.port())];
    await running.envelope('s@src.example', ['u@a.example']);
    const stopped = program.stop();
    expect(await idle.reply()).toMatch(/^421 4\.3\.2/);
    expect((await fetch(`http://${program.http}/readyz`)).status).toBe(503);
    running.write('Subject: x\r\n\r\nx\r\n.\r\n');
    expect(await running.reply()).toMatch(/^250/);
    running.destroy();
    idle.destroy();
    expect(await stopped).toBe(0);
    expect(await allGone(workers)).toBe(true);
    expect(logged(program, 'worker_crashed')).toEqual([]);
  });

  it('signals that every process gets are the primary’s to judge', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    const client = await Client.hello(program.port());
    await client.envelope('s@src.example', ['u@a.example']);
    const workers = await pids(program);
    for (const pid of workers) for (const signal of ['SIGINT', 'SIGTERM'] as const) process.kill(pid, signal);
    expect(await sendOnce(program)).toMatch(/^250/);
    program.signal('SIGINT');
    client.write('Subject: x\r\n\r\nx\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    client.destroy();
    await until(() => program.exited, SOON_MS);
    expect(logged(program, 'worker_crashed')).toEqual([]);
    expect(await allGone(workers)).toBe(true);
  });

  it('a second signal ends all of them at once', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    const client = await Client.hello(program.port());
    await client.envelope('s@src.example', ['u@a.example']);
    const workers = await pids(program);
    program.signal('SIGTERM');
    await until(() => logged(program, 'draining').length === 1);
    expect(await program.stop()).toBe(1);
    await until(() => allGone(workers));
    expect(await client.reply()).toBe('closed');
  });

  it('workers whose primary is killed take nobody any more, finish, and end', async () => {
    const { url } = await sink();
    const program = await Program.start(['--workers', '2', '--route', `*=${url}`]);
    const workers = await pids(program);
    const running = await Client.hello(program.port());
    await running.envelope('s@src.example', ['u@a.example']);
    const port = program.port();
    program.signal('SIGKILL');
    await until(() => program.exited);
    await expect(Client.open(port)).rejects.toThrow(/ECONNREFUSED/);
    running.write('Subject: x\r\n\r\nx\r\n.\r\n');
    expect(await running.reply()).toMatch(/^250/);
    running.destroy();
    await until(() => allGone(workers), SOON_MS);
  });
});

describe('what one worker knows of a message', () => {
  const flags = async (dot: SinkOptions) => {
    const [a, b] = [await sink(), await sink(dot)];
    return ['--workers', '2', '--route', `a.example=${a.url}`, '--route', `b.example=${b.url}`];
  };
  const copies = () => sinks.map(({ messages }) => messages.length);

  it.each(['in memory', 'on disk'])(
    'the others know, %s, so that a retry makes no second copy',
    async (where) => {
      const dir = where === 'on disk' ? ['--ledger-dir', await temporaryDirectory()] : [];
      const program = await Program.start([...(await flags(later(3))), ...dir]);
      for (let nth = 0; nth < 3; nth++) expect(await sendOnce(program, TWO)).toMatch(/^451 4\.5\.0/);
      expect(await sendOnce(program, TWO)).toMatch(/^250/);
      expect(copies()).toEqual([1, 1]);
      // It was not one of them alone.
      expect(new Set(program.transactions().map(({ worker }) => worker)).size).toBe(2);
      expect(await metric(program, 'duplicates_suppressed_total')).toBe(3);
      await until(async () => (await metric(program, 'ledger_entries')) === 0);
      await program.stop();
    },
  );

  it('those know that come later, and with a directory those of the next start', async () => {
    const directory = await temporaryDirectory();
    const given = [...(await flags(later(3))), '--ledger-dir', directory];
    const first = await Program.start(given);
    expect(await sendOnce(first, TWO)).toMatch(/^451 4\.5\.0/);
    for (const pid of await pids(first)) process.kill(pid, 'SIGKILL');
    await until(() => logged(first, 'worker_replaced').length === 2, SOON_MS);
    expect(await sendOnce(first, TWO)).toMatch(/^451 4\.5\.0/);
    first.signal('SIGKILL');
    await until(() => first.exited);
    const second = await Program.start(given);
    expect(await sendOnce(second, TWO)).toMatch(/^451 4\.5\.0/);
    expect(await sendOnce(second, TWO)).toMatch(/^250/);
    expect(copies()).toEqual([1, 1]);
    await second.stop();
  });

  it('is forgotten where the worker ended before it knew the outcome, so that the retry is taken', async () => {
    const silent = (_line: string, nth: number): Act | null => (nth === 0 ? { act: 'stall' } : null);
    const program = await Program.start(await flags({ script: { dot: silent } }));
    const client = await Client.hello(program.port());
    await client.envelope('s@src.example', TWO);
    client.write(`${MESSAGE}.\r\n`);
    await until(() => sinks[1]!.sessions.some(({ sawDot }) => sawDot));
    client.reset();
    await until(async () => (await metric(program, 'ledger_entries')) === 2);
    expect(await sendOnce(program, TWO)).toMatch(/^4/);
    const worker = program.transactions().at(-1)!.worker;
    const { workers } = await status(program);
    process.kill(workers.find(({ number }) => number !== worker)!.pid, 'SIGKILL');
    await until(() => logged(program, 'ledger_unknown').length === 1);
    expect(await sendOnce(program, TWO)).toMatch(/^250/);
    await program.stop();
  });
});

describe('the spool', () => {
  const NOWHERE = '*=smtp://127.0.0.1:1';
  const SPOOL = [
    '--mode',
    'spool',
    '--ack-deadline',
    '200ms',
    '--connect-retries',
    '0',
    '--drain-timeout',
    '5s',
  ];
  const listed = async (spoolDir: string) => {
    const report = await runQueueCommand(configOf({ spoolDir }), { command: 'list' });
    return (report.json as { id: string }[]).map(({ id }) => id).toSorted();
  };

  it('keeps each message of every worker once, through a crash, a reload and with fewer processes', async () => {
    const directory = join(await temporaryDirectory(), 'spool');
    const file = join(await temporaryDirectory(), 'cutthrough.yaml');
    await writeFile(file, `route: ['${NOWHERE}']\nretrySchedule: 1h\n`);
    const flags = [...SPOOL, '--spool-dir', directory, '--config', file];
    const program = await Program.start([...flags, '--workers', '3']);
    for (let nth = 0; nth < 6; nth++)
      expect(await sendOnce(program, ['u@a.example'], `X-Nth: ${nth}\r\n\r\nx\r\n`)).toMatch(/^250 .*queued/);
    const ids = await listed(directory);
    expect(ids).toHaveLength(6);
    expect(await metric(program, 'queue_messages')).toBe(6);
    for (const number of [1, 2, 3])
      expect(
        (await readdir(join(directory, `worker-${number}`))).filter((name) => name.endsWith('.json')),
      ).toHaveLength(2);
    const config = configOf({ spoolDir: directory });
    const shown = await runQueueCommand(config, { command: 'show', id: ids[0]! });
    expect(shown.json).toMatchObject({ id: ids[0] });
    const retried = await runQueueCommand(config, { command: 'retry', ids: [ids[1]!, 'nosuch'] });
    expect(retried.json).toEqual({ done: [ids[1]], failed: [{ id: 'nosuch', reason: 'no such message' }] });

    process.kill((await pids(program))[0]!, 'SIGKILL');
    await until(() => logged(program, 'worker_replaced').length === 1, SOON_MS);
    expect(await listed(directory)).toEqual(ids);

    await writeFile(file, `route: ['${NOWHERE}']\nretrySchedule: 2h\nworkers: 2\n`);
    program.signal('SIGHUP');
    await until(() => logged(program, 'reloaded').length === 1, SOON_MS);
    expect(await listed(directory)).toEqual(ids);
    expect(await program.stop()).toBe(0);

    // Nobody works on it: gathered, to be looked at.
    expect(await listed(directory)).toEqual(ids);
    const there = await sink();
    await writeFile(file, `route: ['*=${there.url}']\n`);
    const fewer = await Program.start([...flags, '--workers', '2']);
    await runQueueCommand(config, { command: 'retry', ids: 'all' });
    await until(() => there.messages.length >= 6, SOON_MS);
    await until(async () => (await listed(directory)).length === 0, SOON_MS);
    const bodies = there.messages.map(({ body }) => /X-Nth: (\d)/.exec(body.toString())?.[1]).toSorted();
    expect(bodies).toEqual(['0', '1', '2', '3', '4', '5']);
    expect(await fewer.stop()).toBe(0);
  });

  it.each([1, 2])('with --workers %i takes up what others have left, wherever it is', async (count) => {
    const directory = join(await temporaryDirectory(), 'spool');
    for (const [at, part] of ['.', 'worker-1', 'worker-2', 'worker-7'].entries()) {
      await mkdir(join(directory, part), { recursive: true, mode: 0o700 });
      putInto(
        join(directory, part),
        queuedMessage(`left${at}`, 'MAIL FROM:<s@src.example>', [`RCPT TO:<u${at}@a.example>`]),
      );
    }
    const { url, messages } = await sink();
    const program = await Program.start([
      ...[...SPOOL, '--spool-dir', directory, '--workers', `${count}`, '--route', `*=${url}`],
    ]);
    await until(() => messages.length >= 4, SOON_MS);
    await until(async () => (await metric(program, 'queue_messages')) === 0);
    expect(messages.map(({ rcpts }) => rcpts[0]).toSorted()).toEqual(
      [0, 1, 2, 3].map((at) => expect.stringContaining(`<u${at}@a.example>`)),
    );
    expect((await readdir(directory)).filter((name) => name.startsWith('worker-7'))).toEqual([]);
    expect(await program.stop()).toBe(0);
  });

  it('is opened by all workers when the mode is switched to one that needs it', async () => {
    const directory = join(await temporaryDirectory(), 'spool');
    const given = ['--workers', '2', '--spool-dir', directory, '--route', NOWHERE, '--ack-deadline', '200ms'];
    const program = await Program.start([...given, '--connect-retries', '0']);
    expect(await readdir(directory).catch(() => 'none')).toBe('none');
    expect(await post(program, '/mode', { mode: 'spool' })).toBe(200);
    for (let nth = 0; nth < 2; nth++) expect(await sendOnce(program)).toMatch(/^250 .*queued/);
    process.kill((await pids(program))[0]!, 'SIGKILL');
    await until(() => logged(program, 'worker_replaced').length === 1, SOON_MS);
    expect(await listed(directory)).toHaveLength(2);
    expect(await metric(program, 'mode_info{mode="spool",fallback="none"}')).toBe(1);
    expect(await program.stop()).toBe(0);
  });
});

describe('what keeps it from starting is told in one line', () => {
  it.each(['listen', 'http'])('an address of --%s that is taken', async (option) => {
    const taken = net.createServer().listen(0, '127.0.0.1');
    await until(() => taken.listening);
    const { port } = taken.address() as AddressInfo;
    const url = option === 'http' ? `127.0.0.1:${port}` : `smtp://127.0.0.1:${port}`;
    const start = Program.start(['--workers', '2', '--route', '*=mx', `--${option}`, url]);
    await expect(start).rejects.toThrow(
      new RegExp(
        `^did not start: cutthrough: cannot listen on 127\\.0\\.0\\.1:${port}: another program does already; [^\\n]*--${option}$`,
      ),
    );
    taken.close();
  });

  it('a ledger that another one has', async () => {
    const given = ['--workers', '2', '--route', '*=mx', '--ledger-dir', await temporaryDirectory()];
    const program = await Program.start(given);
    await expect(Program.start(given)).rejects.toThrow(
      /^did not start: cutthrough: --ledger-dir [^\n]*in use[^\n]*$/,
    );
    await program.stop();
  });
});
