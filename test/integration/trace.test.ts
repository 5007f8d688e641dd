// `cutthrough trace`: one transaction on both its sides, from the running proxy and from its log.
import { writeFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Trace, TraceEvent } from '../../src/time-line.ts';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { portOf, startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { run, temporaryDirectory } from '../support/tools.ts';

// The program is started several times, on a machine that may be busy.
vi.setConfig({ testTimeout: 60_000 });

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

let proxy: TestProxy | null = null;
afterEach(async () => {
  await proxy?.close();
  proxy = null;
});

const idOf = (nth: number) => proxy!.transactions()[nth]!.id as string;
const get = async (id: string) => await fetch(`${proxy!.httpUrl}/trace/${id}`);
const traceOf = async (id: string) => (await (await get(id)).json()) as Trace;
const names = (events: readonly TraceEvent[], leg: number | null) =>
  events.filter((event) => event.leg === leg).map(({ event, code }) => (code ? `${event} ${code}` : event));

const ON_LEG = [
  'mail',
  'rcpt',
  'mail-reply 250',
  'rcpt-reply 250',
  'data',
  'data-reply 354',
  'end-of-data',
  'reply 250',
];
const UPSTREAM = [
  'mail',
  'rcpt',
  'rcpt-reply 250',
  'data',
  'data-reply 354',
  'body',
  'end-of-data',
  'reply 250',
];

describe('GET /trace/ID', () => {
  it('has what was said on both sides, the first time and over a kept session', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    for (let nth = 0; nth < 2; nth++)
      expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    const [fresh, kept] = [await traceOf(idOf(0)), await traceOf(idOf(1))];
    expect(names(fresh.events, null)).toEqual(UPSTREAM);
    expect(names(fresh.events, 0)).toEqual(['connect', 'connected', ...ON_LEG]);
    expect(names(kept.events, null)).toEqual(UPSTREAM);
    expect(names(kept.events, 0)).toEqual(['reused', ...ON_LEG]);
    expect(fresh).toMatchObject({
      running: false,
      client: '127.0.0.1',
      helo: 'client.example',
      reversePath: 's@src.example',
      recipients: [{ address: 'u@a.example', outcome: 'accepted', reply: 250 }],
      result: 'delivered',
      legs: [proxy.sinks[0]!.url],
      omitted: 0,
    });
    expect(fresh.events.find(({ leg, event }) => leg === 0 && event === 'reply')).toMatchObject({
      text: '2.0.0 queued',
    });
    expect(fresh.events.find(({ leg, event }) => leg === null && event === 'end-of-data')).toMatchObject({
      octets: 3,
    });
    const received = proxy.sinks[0]!.messages[0]!.body.length;
    expect(fresh.events.find(({ leg, event }) => leg === 0 && event === 'end-of-data')).toMatchObject({
      octets: received,
    });
    expect(Math.abs(Date.parse(fresh.began) - Date.now())).toBeLessThan(10_000);
  });

  it('has every attempt with its reason, and what the upstream was told', async () => {
    const gone = await Sink.start();
    const { url } = gone;
    await gone.close();
    proxy = await startProxyOnly({ route: [`*=${url}`], connectRetries: 1 });
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], '')).toMatch(/^554|^503/);
    await client.command('RSET');
    const { events } = await traceOf(idOf(0));
    expect(names(events, 0)).toEqual(['connect', 'attempt-failed', 'attempt-failed', 'unreachable']);
    expect(events.find(({ event }) => event === 'attempt-failed')?.text).toMatch(/refused the connection/);
    expect(names(events, null)).toEqual(['mail', 'rcpt', 'rcpt-reply 451', 'gone']);
  });

  it('tells the legs apart, and where one was lost', async () => {
    proxy = await startProxy([{}, { script: { data: { act: 'rst' } } }]);
    const client = await proxy.client();
    await client.send('s@src.example', ['u@a.example', 'u@b.example'], 'x\r\n');
    const { events } = await traceOf(idOf(0));
    expect(names(events, 0).slice(-2)).toEqual(['data', 'data-reply 354']);
    expect(names(events, 1).slice(-2)).toEqual(['data', 'lost']);
    expect(names(events, null).slice(-2)).toEqual(['data', 'reply 451']);
  });

  it('has a refusal that no next hop was asked about', async () => {
    proxy = await startProxy([{}], {
      acceptDomain: ['a.example'],
      trust: ['none'],
      greetingDelay: '0',
    });
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    await client.command('RCPT TO:<u@elsewhere.example>');
    await client.command('RSET');
    expect(names((await traceOf(idOf(0))).events, null)).toEqual(['mail', 'rcpt-reply 550', 'gone']);
  });

  it('shows a transaction that still runs', async () => {
    proxy = await startProxy([{}]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    const status = (await (await fetch(`${proxy.httpUrl}/status`)).json()) as {
      transactions: { id: string }[];
    };
    const trace = await traceOf(status.transactions[0]!.id);
    expect(trace).toMatchObject({ running: true, result: null });
    expect(names(trace.events, null).at(-1)).toBe('data-reply 354');
  });

  it.each(['fast-path', 'spool'] as const)('shows the deliveries of mode %s', async (mode) => {
    proxy = await startProxy([{}], { mode, spoolDir: join(await temporaryDirectory(), 'spool') });
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    const { events } = await traceOf(idOf(0));
    expect(names(events, null)).toEqual(UPSTREAM);
    expect(names(events, 0)).toEqual(['connect', 'connected', ...ON_LEG]);
  });

  it('keeps none with --trace-buffer 0, and says so', async () => {
    proxy = await startProxy([{}], { traceBuffer: 0 });
    const client = await proxy.client();
    await client.send('s@src.example', ['u@a.example'], 'x\r\n');
    const answer = await get(idOf(0));
    expect([answer.status, await answer.text()]).toEqual([404, 'no such transaction; --trace-buffer 0\n']);
  });

  it('forgets all but the last ones that --trace-buffer asks for', async () => {
    proxy = await startProxy([{}], { traceBuffer: 3 });
    const client = await proxy.client();
    for (let nth = 0; nth < 4; nth++) {
      client.write('MAIL FROM:<s@src.example>\r\nRSET\r\n');
      await client.reply();
      await client.reply();
    }
    expect((await get(idOf(0))).status).toBe(404);
    expect((await get(idOf(1))).status).toBe(200);
  });

  it('is for this machine alone', async (context) => {
    const outside = Object.values(networkInterfaces())
      .flat()
      .find((each) => each?.internal === false && each.family === 'IPv4');
    if (outside === undefined) return context.skip('this machine has no address but loopback');
    proxy = await startProxy([{}], { http: '0.0.0.0:0' });
    const client = await proxy.client();
    await client.send('s@src.example', ['u@a.example'], 'x\r\n');
    const port = portOf(proxy.httpUrl);
    expect((await fetch(`http://${outside.address}:${port}/trace/${idOf(0)}`)).status).toBe(403);
    expect((await fetch(`http://127.0.0.1:${port}/trace/${idOf(0)}`)).status).toBe(200);
  });
});

describe('the command', () => {
  const trace = async (args: readonly string[], input = '') =>
    await run(process.execPath, [CLI, 'trace', ...args], input);

  it('finds it at the running proxy, in a log at level debug, and in summary in one at level info', async () => {
    const sink = await Sink.start();
    const program = await Program.start([
      '--route',
      `*=${sink.url}`,
      '--log-level',
      'debug',
      '--trace-buffer',
      '9',
    ]);
    const client = await Client.hello(program.port());
    await client.send('s@src.example', ['u@a.example'], 'x\r\n');
    await until(() => program.transactions().length === 1);
    const { id } = program.transactions()[0]! as unknown as { id: string };
    const http = program.log.find(({ event }) => event === 'ready')!.http as string;

    const live = await trace([id, '--http', http]);
    expect(live.exitCode).toBe(0);
    expect(live.output).toMatch(/→ RCPT TO:<u@a\.example>/);
    expect(live.output).toMatch(/ {20}→ MAIL FROM:<s@src\.example>/);
    expect(live.output).toMatch(/← 250 2\.0\.0 queued/);
    expect(live.output).not.toContain('\x1b');

    const file = join(await temporaryDirectory(), 'log');
    const lines = program.log.map((line) => JSON.stringify(line));
    await writeFile(file, `${lines.join('\n')}\n`);
    expect(await trace([id, '--log', file])).toEqual(live);
    const asJson = await trace([id, '--log', file, '--json']);
    expect(JSON.parse(asJson.output)).toMatchObject({ id, result: 'delivered', running: false });

    const atInfo = lines.filter((line) => !line.includes('"event":"trace"'));
    const summary = await trace(
      [id, '--log', '-'],
      `not JSON\nhost cutthrough[1]: ${atInfo.join('\nhost x: ')}`,
    );
    expect(summary.exitCode).toBe(0);
    expect(summary.output).toMatch(/delivered after \d+ ms/);
    expect(summary.output).toMatch(/only the summary.*--log-level debug/);

    const elsewhere = await trace(['nobody.1', '--http', http]);
    expect(elsewhere.exitCode).toBe(1);
    expect(elsewhere.output).toMatch(/^cutthrough: trace: nobody\.1 is not among the last 9 .*--log FILE\n$/);
    client.destroy();
    await program.stop();
    await sink.close();
  });

  it('lets no control character of a log reach the terminal', async () => {
    const line = {
      event: 'trace',
      id: 'x.1',
      began: 'now\x1b[2J',
      client: '\x1b]0;evil\x07',
      reversePath: 'a\x9b@b',
      recipients: [{ address: '\x1bu', outcome: 'accepted', reply: 250, nextHop: '\x1b' }],
      result: 'delivered\x1b',
      ms: 1,
      legs: ['\x1b'],
      events: [{ ms: 0, leg: 0, event: 'lost', text: '\x1b[31m' }],
      omitted: 0,
    };
    const { exitCode, output } = await trace(['x.1', '--log', '-'], JSON.stringify(line));
    expect(exitCode).toBe(0);
    expect(output).not.toMatch(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/);
  });
});
