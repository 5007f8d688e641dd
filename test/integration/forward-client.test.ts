// --forward-client: static next hops are told who the original client was, by each of the three ways, through TLS, again
// and again over one session, and from the queue; MX hosts never are. No session speaks for two clients.
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { probeAddress } from '../../src/commands/probe.ts';
import { parseConfig } from '../../src/config.ts';
import { connectToHolder } from '../../src/directory-lock.ts';
import { askHolder, type QueueRequest } from '../../src/spool/control.ts';
import type { Client } from '../support/client.ts';
import { startDnsServer } from '../support/dns-server.ts';
import { QUICK, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions, type SinkSession } from '../support/sink.ts';
import { spoolDirectory } from '../support/spool.ts';

const XCLIENT = 'XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT';
const XFORWARD = 'XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE';
/** As Postfix does: who is no longer the trusted one is offered something else. */
const TAKES_XCLIENT: SinkOptions = {
  extensions: (session) => (isTold(session) ? ['PIPELINING', 'DSN'] : [XCLIENT]),
};
const TAKES_XFORWARD: SinkOptions = { extensions: ['PIPELINING', XFORWARD] };
const TAKES_PROXY: SinkOptions = { proxyProtocol: true };
const BODY = 'Subject: x\r\n\r\nhello\r\n';

let tls: { cert: Buffer; key: Buffer };
beforeAll(async () => {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-forward-'));
  const [cert, key] = [join(directory, 'cert.pem'), join(directory, 'key.pem')];
  const what = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-subj', '/CN=x', '-days', '2'];
  await promisify(execFile)('openssl', ['req', '-x509', '-nodes', ...what, '-keyout', key, '-out', cert]);
  tls = { cert: await readFile(cert), key: await readFile(key) };
  await rm(directory, { recursive: true });
});

let proxy: TestProxy;
const sinks: Sink[] = [];
afterEach(async () => {
  await proxy.close();
  await Promise.all(sinks.splice(0).map((each) => each.close()));
});

async function sinkOf(options: SinkOptions): Promise<Sink> {
  const sink = await Sink.start(options);
  sinks.push(sink);
  return sink;
}

/** A proxy in front of one sink. */
async function start(
  forwardClient: 'none' | 'xclient' | 'xforward' | 'proxy',
  sinkOptions: SinkOptions,
  options: Options = {},
): Promise<Sink> {
  const sink = await sinkOf(sinkOptions);
  proxy = await startProxyOnly({ forwardClient, route: [`*=${sink.url}`], connectRetries: 0, ...options });
  return sink;
}

function isTold({ commands }: SinkSession): boolean {
  return commands.some((line) => line.startsWith('XCLIENT'));
}

const verbs = ({ commands }: SinkSession) => commands.map((line) => line.split(/[ :]/)[0]!);
const linesOf = ({ commands }: SinkSession, verb: string) => commands.filter((line) => line.startsWith(verb));
const all = (sink: Sink, verb: string) => sink.sessions.flatMap((session) => linesOf(session, verb));

/** Attributes of an XCLIENT or XFORWARD line. */
function said(line: string | undefined): Record<string, string> {
  const words = (line ?? '').split(' ').slice(1);
  return Object.fromEntries(words.map((word) => word.split('=') as [string, string]));
}

/** IPv4 addresses and ports of a PROXY header, as `source destination`. */
function endpoints(header: Buffer | null): string {
  expect(header?.toString('hex', 0, 16)).toBe('0d0a0d0a000d0a515549540a2111000c');
  const [source, destination] = [16, 20].map((at) => [...header!.subarray(at, at + 4)].join('.'));
  return `${source}:${header!.readUInt16BE(24)} ${destination}:${header!.readUInt16BE(26)}`;
}

const portOf = ({ socket }: Client) => String(socket.localPort);
const endsOf = (client: Client) => `127.0.0.1:${portOf(client)} 127.0.0.1:${proxy.port}`;
const send = (client: Client, from = 's@src.example') => client.send(from, ['u@a.example'], BODY);

/** By session, in order. */
const sendersOf = (sink: Sink) =>
  sink.sessions.map((session) => linesOf(session, 'MAIL').map((line) => /<(.*?)>/.exec(line)![1]));

describe('proxy', () => {
  it('the header comes before the greeting, once for each connection', async () => {
    const sink = await start('proxy', TAKES_PROXY);
    const [one, other] = [await proxy.client(), await proxy.client()];
    for (const client of [one, one, other]) expect(await send(client)).toMatch(/^250/);
    const headers = sink.sessions.map(({ proxyHeader }) => endpoints(proxyHeader));
    expect(headers).toEqual([endsOf(one), endsOf(other)]);
    expect(sink.messages).toHaveLength(3);
    expect(all(sink, 'X')).toEqual([]);
  });

  it.each([
    ['STARTTLS', 'smtp', false],
    ['TLS from the start', 'smtps', true],
  ])('before %s', async (_, protocol, implicit) => {
    const sink = await sinkOf({ ...TAKES_PROXY, tls: { ...tls, implicit }, extensions: ['STARTTLS'] });
    const route = `*=${protocol}://${sink.host}?tls=require`;
    proxy = await startProxyOnly({ forwardClient: 'proxy', route: [route] });
    const client = await proxy.client();
    expect(await send(client)).toMatch(/^250/);
    expect(endpoints(sink.sessions[0]!.proxyHeader)).toBe(endsOf(client));
    expect(sink.sessions[0]!.socket).toHaveProperty('encrypted', true);
  });

  it('and again on the connection in clear, where TLS has failed', async () => {
    // A server with no certificate can't shake hands.
    const sink = await start('proxy', { ...TAKES_PROXY, tls: {}, extensions: ['STARTTLS'] });
    const client = await proxy.client();
    expect(await send(client)).toMatch(/^250/);
    const headers = sink.sessions.map(({ proxyHeader }) => endpoints(proxyHeader));
    expect(headers).toEqual([endsOf(client), endsOf(client)]);
  });
});

describe('xclient', () => {
  it('the server is told once, then greeted as the client, and what it offers then is what counts', async () => {
    const sink = await start('xclient', TAKES_XCLIENT);
    const client = await proxy.client();
    for (let messages = 0; messages < 2; messages++) expect(await send(client)).toMatch(/^250/);
    expect(sink.sessions).toHaveLength(1);
    const [session] = sink.sessions;
    expect(verbs(session!).slice(0, 4)).toEqual(['EHLO', 'XCLIENT', 'EHLO', 'MAIL']);
    expect(linesOf(session!, 'EHLO')).toEqual(['EHLO proxy.example', 'EHLO client.example']);
    expect(said(linesOf(session!, 'XCLIENT')[0])).toEqual({
      NAME: '[UNAVAILABLE]',
      ADDR: '127.0.0.1',
      PORT: portOf(client),
      PROTO: 'ESMTP',
      HELO: 'client.example',
      LOGIN: '[UNAVAILABLE]',
      DESTADDR: '127.0.0.1',
      DESTPORT: String(proxy.port),
    });
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('RCPT TO:<u@a.example> NOTIFY=NEVER')).toMatch(/^250/);
    expect(linesOf(session!, 'RCPT').at(-1)).toBe('RCPT TO:<u@a.example> NOTIFY=NEVER');
    expect(await proxy.metric('cutthrough_downstream_replies_total{phase="greeting",class="2xx"}')).toBe(2);
    expect(await proxy.metric('cutthrough_downstream_replies_total{phase="ehlo",class="2xx"}')).toBe(2);
  });

  it('within TLS, and before AUTH, by what is offered after it', async () => {
    const sink = await sinkOf({
      tls,
      extensions: (session) => {
        if (!('encrypted' in session.socket)) return ['STARTTLS', 'AUTH PLAIN'];
        return isTold(session) ? ['AUTH LOGIN'] : [XCLIENT, 'AUTH PLAIN'];
      },
    });
    const route = `*=smtp://user:pass@${sink.host}?tls=require`;
    proxy = await startProxyOnly({ forwardClient: 'xclient', route: [route] });
    await send(await proxy.client());
    const [session] = sink.sessions;
    expect(verbs(session!).slice(0, 6)).toEqual(['EHLO', 'STARTTLS', 'EHLO', 'XCLIENT', 'EHLO', 'AUTH']);
    expect(linesOf(session!, 'AUTH')).toEqual(['AUTH LOGIN']);
  });

  it('over LMTP', async () => {
    const sink = await start('xclient', { ...TAKES_XCLIENT, lmtp: true });
    expect(await send(await proxy.client())).toMatch(/^250/);
    expect(verbs(sink.sessions[0]!).slice(0, 3)).toEqual(['LHLO', 'XCLIENT', 'LHLO']);
  });

  it.each<[string, SinkOptions, RegExp]>([
    ['is not offered', { extensions: ['PIPELINING'] }, /XCLIENT ADDR is not offered/],
    ['is not offered for the address', { extensions: ['XCLIENT NAME HELO'] }, /XCLIENT ADDR is not offered/],
    [
      'meets a server of the old kind',
      { script: { ehlo: (line) => (line.startsWith('EHLO') ? '502 no' : '250 sink.example') } },
      /XCLIENT ADDR is not offered/,
    ],
    [
      'is refused for good',
      { ...TAKES_XCLIENT, script: { xclient: '550 5.7.0 no' } },
      /refused XCLIENT with 550/,
    ],
    ['is refused for now', { ...TAKES_XCLIENT, script: { xclient: '421 no' } }, /refused XCLIENT with 421/],
    ['is not answered 220', { ...TAKES_XCLIENT, script: { xclient: '250 ok' } }, /refused XCLIENT with 250/],
    ['is cut off', { ...TAKES_XCLIENT, script: { xclient: { act: 'rst' } } }, /closed \(XCLIENT\)/],
    ['is not answered', { ...TAKES_XCLIENT, script: { xclient: { act: 'stall' } } }, /no reply in time/],
    ['gets nonsense', { ...TAKES_XCLIENT, script: { xclient: { act: 'garbage' } } }, /451 4\.4\.1/],
    [
      'is followed by a refused EHLO',
      { ...TAKES_XCLIENT, script: { ehlo: (_, nth) => (nth % 2 === 0 ? null : '550 no') } },
      /refused EHLO after XCLIENT with 550/,
    ],
  ])('where it %s, no mail goes in as ours', async (_, options, reason) => {
    const sink = await start('xclient', options, { connectRetries: 1 });
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    const answer = await client.command('RCPT TO:<u@a.example>');
    expect(answer).toMatch(/^451 4\.4\.1 /);
    expect(answer).toMatch(reason);
    expect(all(sink, 'MAIL')).toEqual([]);
    await until(() => sink.sessions.every(({ closed }) => closed));
    // Asked as often as any that can't be reached: it is temporary.
    expect(sink.connections).toBe(2);
    const result = reason.source.includes('in time') ? 'timeout' : 'greeting';
    const failures = await proxy.metric(`cutthrough_downstream_connect_attempts_total{result="${result}"}`);
    expect(failures).toBe(2);
  });

  it('a server that refuses it is passed over for the next one, and asked again', async () => {
    const takes = await sinkOf(TAKES_XCLIENT);
    const sink = await start(
      'xclient',
      { ...TAKES_XCLIENT, script: { xclient: (_, nth) => (nth === 0 ? '421 4.3.2 busy' : null) } },
      { connectRetries: 1 },
    );
    expect(await send(await proxy.client())).toMatch(/^250/);
    expect(sink.connections).toBe(2);
    expect(sink.messages).toHaveLength(1);
    await proxy.close();
    const refuses = await sinkOf({ extensions: [] });
    const route = [`*=${refuses.url},${takes.url}`];
    proxy = await startProxyOnly({ forwardClient: 'xclient', route });
    expect(await send(await proxy.client())).toMatch(/^250/);
    expect([refuses.messages.length, takes.messages.length]).toEqual([0, 1]);
  });

  it('a client with another name is another session, and the old one stays for its own', async () => {
    const sink = await start('xclient', TAKES_XCLIENT);
    const client = await proxy.client();
    await send(client, '1@src.example');
    await client.command('EHLO other.example');
    await send(client, '2@src.example');
    await send(client, '3@src.example');
    await client.command('EHLO client.example');
    // The port is the client's own, and so another client's session is never this one's.
    await send(client, '4@src.example');
    expect(sendersOf(sink)).toEqual([
      ['1@src.example', '4@src.example'],
      ['2@src.example', '3@src.example'],
    ]);
    const names = sink.sessions.map((session) => said(linesOf(session, 'XCLIENT')[0]).HELO);
    expect(names).toEqual(['client.example', 'other.example']);
    expect(await proxy.metric('cutthrough_downstream_sessions_idle')).toBe(2);
    expect(await proxy.metric('cutthrough_downstream_sessions_active')).toBe(0);
  });
});

describe('xforward', () => {
  it('goes with each MAIL and its RCPT in one write', async () => {
    const chunks: string[] = [];
    const sink = await start('xforward', {
      ...TAKES_XFORWARD,
      onWire: (_, what, text) => {
        if (what === 'read' && text.includes('XFORWARD')) chunks.push(text);
      },
    });
    const client = await proxy.client();
    for (let messages = 0; messages < 2; messages++) expect(await send(client)).toMatch(/^250/);
    expect(sink.sessions).toHaveLength(1);
    expect(chunks).toHaveLength(2);
    for (const [at, chunk] of chunks.entries()) {
      const lines = chunk.split('\r\n');
      expect(lines.map((line) => line.slice(0, 8))).toEqual(['XFORWARD', 'MAIL FRO', 'RCPT TO:', '']);
      expect(said(lines[0])).toEqual({
        NAME: '[UNAVAILABLE]',
        ADDR: '127.0.0.1',
        PORT: portOf(client),
        PROTO: 'ESMTP',
        HELO: 'client.example',
        IDENT: proxy.transactions()[at]!.id,
        SOURCE: 'REMOTE',
      });
    }
  });

  it('one after the other where the server does not pipeline', async () => {
    const answered: string[] = [];
    await start('xforward', {
      extensions: [XFORWARD],
      onWire: (_, what, text) => answered.push(`${what} ${text.slice(0, 8)}`),
    });
    const client = await proxy.client();
    expect(await send(client)).toMatch(/^250/);
    const from = answered.indexOf('read XFORWARD');
    expect(answered.slice(from, from + 6)).toEqual([
      'read XFORWARD',
      'written 250 2.0.',
      'read MAIL FRO',
      'written 250 2.1.',
      'read RCPT TO:',
      'written 250 2.1.',
    ]);
  });

  it.each([
    ['refused', { ...TAKES_XFORWARD, script: { xforward: '550 5.7.0 no' } }, 1],
    ['refused without pipelining', { extensions: [XFORWARD], script: { xforward: '501 no' } }, 1],
    ['not offered', { extensions: ['PIPELINING'] }, 0],
  ] as [string, SinkOptions, number][])('%s: the mail goes on', async (_, options, asked) => {
    const sink = await start('xforward', options);
    expect(await send(await proxy.client())).toMatch(/^250/);
    expect(all(sink, 'XFORWARD')).toHaveLength(asked);
  });

  it('a kept session that is gone meanwhile: the client is told of on the new one', async () => {
    const sink = await start('xforward', {
      ...TAKES_XFORWARD,
      script: { mail: (_, nth) => (nth === 1 ? { act: 'fin' } : null) },
    });
    const client = await proxy.client();
    await send(client);
    expect(await send(client)).toMatch(/^250/);
    expect(sink.sessions.map((session) => linesOf(session, 'XFORWARD').length)).toEqual([2, 1]);
    expect(sink.messages).toHaveLength(2);
  });

  it('a client with another name is another session', async () => {
    const sink = await start('xforward', TAKES_XFORWARD);
    const client = await proxy.client();
    await send(client);
    await client.command('EHLO other.example');
    await send(client);
    const names = sink.sessions.map((session) => linesOf(session, 'XFORWARD').map((line) => said(line).HELO));
    expect(names).toEqual([['client.example'], ['other.example']]);
  });
});

it('none: nobody is told anything, whatever is offered', async () => {
  const sink = await start('none', { extensions: ['PIPELINING', XCLIENT, XFORWARD] });
  const client = await proxy.client();
  await send(client);
  await client.command('EHLO other.example');
  expect(await send(client)).toMatch(/^250/);
  expect(sink.sessions.map((session) => linesOf(session, 'X'))).toEqual([[]]);
});

it.each(['xclient', 'xforward', 'proxy'] as const)('%s: MX hosts are told nothing', async (forwardClient) => {
  const sink = await sinkOf({ extensions: ['PIPELINING', XCLIENT, XFORWARD] });
  const dns = await startDnsServer({ 'a.example': { A: ['127.0.0.1'] } });
  onTestFinished(async () => await dns.close());
  const mx = { dns: [dns.address], mxPort: sink.port, mxAllow: ['127.0.0.0/8'], route: ['*=mx'] };
  proxy = await startProxyOnly({ forwardClient, ...mx });
  expect(await send(await proxy.client())).toMatch(/^250/);
  expect(sink.sessions[0]!.raw.toString('latin1')).toMatch(/^EHLO proxy\.example\r\nMAIL/);
});

describe('from the queue', () => {
  /** Everything goes to disk first. */
  async function startSpool(
    forwardClient: 'xclient' | 'xforward' | 'proxy',
    sinkOptions: SinkOptions,
    options: Options = {},
  ) {
    const { directory, remove } = await spoolDirectory();
    onTestFinished(remove);
    const spool: Options = {
      mode: 'spool',
      spoolDir: directory,
      retrySchedule: '200ms',
      disableFastPathWhen: 'manual',
      ...options,
    };
    const sink = await start(forwardClient, sinkOptions, spool);
    await toDiskFirst();
    return { sink, spool };
  }

  async function toDiskFirst(): Promise<void> {
    await fetch(`${proxy.httpUrl}/fast-path`, { method: 'POST', body: '{"enabled":false}' });
  }

  /** A sender for each client. */
  const from = (client: Client) => `${portOf(client)}@src.example`;

  it.each([
    ['xclient', TAKES_XCLIENT, (session: SinkSession) => said(linesOf(session, 'XCLIENT')[0]).PORT],
    [
      'proxy',
      TAKES_PROXY,
      ({ proxyHeader }: SinkSession) => proxyHeader && String(proxyHeader.readUInt16BE(24)),
    ],
    ['xforward', TAKES_XFORWARD, (session: SinkSession) => said(linesOf(session, 'XFORWARD')[0]).PORT],
  ] as const)('%s: no session carries two clients’ mail', async (forwardClient, takes, portTold) => {
    let up = false;
    const { sink } = await startSpool(forwardClient, {
      ...takes,
      script: { greeting: () => (up ? null : '421 4.3.2 not now') },
    });
    const clients = [await proxy.client(), await proxy.client(), await proxy.client()];
    for (const client of [...clients, ...clients, ...clients])
      expect(await send(client, from(client))).toMatch(/^250 2\.0\.0 queued/);
    await until(() => sink.sessions.some(({ closed }) => closed));
    up = true;
    await until(() => sink.messages.length === 9, 20_000);
    const withMail = sink.sessions.filter((session) => linesOf(session, 'MAIL').length > 0);
    for (const session of withMail) {
      const senders = new Set(linesOf(session, 'MAIL').map((line) => /<(\d+)@/.exec(line)![1]));
      expect([...senders]).toEqual([portTold(session)]);
    }
    const told = new Set(withMail.map((session) => portTold(session)));
    expect(told).toEqual(new Set(clients.map(portOf)));
    await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 0);
  });

  it('messages of one client share sessions', async () => {
    let up = false;
    const script: SinkOptions['script'] = { greeting: () => (up ? null : '421 4.3.2 not now') };
    const { sink, spool } = await startSpool(
      'xclient',
      { ...TAKES_XCLIENT, script },
      { retrySchedule: '1h' },
    );
    const client = await proxy.client();
    for (let messages = 0; messages < 30; messages++) await send(client);
    const ask = async (request: QueueRequest) =>
      await askHolder((await connectToHolder(spool.spoolDir as string))!, request);
    await until(async () => {
      const answer = await ask({ command: 'list' });
      const messages = 'messages' in answer ? answer.messages : [];
      return messages.length === 30 && messages.every(({ state }) => state === 'waiting');
    });
    up = true;
    // All at once, so that the lane is never without work, which would end its sessions.
    await ask({ command: 'retry', ids: 'all' });
    await until(() => sink.messages.length === 30, 20_000);
    const withMail = sink.sessions.filter((session) => linesOf(session, 'MAIL').length > 0);
    expect(withMail.length).toBeLessThanOrEqual(10);
  });

  it('the client is known after a restart', async () => {
    let up = false;
    const script: SinkOptions['script'] = { greeting: () => (up ? null : '421 4.3.2 not now') };
    const { sink, spool } = await startSpool('xclient', { ...TAKES_XCLIENT, script });
    const client = await proxy.client();
    await send(client);
    const before = {
      PORT: portOf(client),
      DESTPORT: String(proxy.port),
      HELO: 'client.example',
      PROTO: 'ESMTP',
    };
    await proxy.close();
    up = true;
    proxy = await startProxyOnly({ ...spool, forwardClient: 'xclient', route: [`*=${sink.url}`] });
    await until(() => sink.messages.length === 1);
    expect(said(all(sink, 'XCLIENT')[0])).toMatchObject(before);
  });

  it.each([
    ['xclient', TAKES_XCLIENT],
    ['xforward', TAKES_XFORWARD],
    ['proxy', TAKES_PROXY],
  ] as const)('%s: a notification of ours comes from nobody', async (forwardClient, takes) => {
    const { sink } = await startSpool(forwardClient, {
      ...takes,
      script: { rcpt: (line) => (line.includes('u@a.example') ? '550 5.1.1 no such user' : null) },
    });
    await send(await proxy.client());
    await until(() => sink.messages.length === 1, 20_000);
    expect(sink.messages[0]!.mail).toMatch(/^MAIL FROM:<>/);
    const session = sink.sessions.find((each) => linesOf(each, 'MAIL FROM:<>').length > 0)!;
    expect(sendersOf(sink)[sink.sessions.indexOf(session)]).toEqual(['']);
    if (forwardClient === 'proxy')
      return expect(session.proxyHeader!.toString('hex')).toBe('0d0a0d0a000d0a515549540a20000000');
    const { ADDR, PORT, HELO, SOURCE } = said(linesOf(session, 'X')[0]);
    expect([ADDR, PORT, HELO]).toEqual(['[UNAVAILABLE]', '[UNAVAILABLE]', '[UNAVAILABLE]']);
    expect(SOURCE).toBe(forwardClient === 'xforward' ? 'LOCAL' : undefined);
  });

  it('a client whom the next hop does not want holds up nobody else', async () => {
    const { sink } = await startSpool(
      'xclient',
      {
        ...TAKES_XCLIENT,
        script: { xclient: (line) => (line.includes('HELO=bad.example') ? '554 5.7.1 not you' : null) },
      },
      { retrySchedule: '1h' },
    );
    const [bad, good] = [await proxy.client(), await proxy.client()];
    await bad.command('EHLO bad.example');
    await send(bad);
    await until(() => proxy.log.some(({ event }) => event === 'attempt'));
    await send(good);
    await until(() => sink.messages.length === 1);
    await until(async () => (await proxy.metric('cutthrough_queue_messages')) === 1);
  });
});

it.each([
  ['xclient', TAKES_XCLIENT, '[UNAVAILABLE] (XCLIENT)'],
  ['proxy', TAKES_PROXY, 'LOCAL (PROXY protocol)'],
  ['xforward', TAKES_XFORWARD, null],
  ['none', {}, null],
] as const)('probe, %s: asks for nobody, and says so', async (forwardClient, takes, shown) => {
  const sink = await start(forwardClient, takes as SinkOptions);
  const parsed = parseConfig({ file: { ...QUICK, forwardClient, route: [`*=${sink.url}`] } });
  if (!parsed.ok) throw new Error(parsed.errors.join('; '));
  const { failure, lines, json } = (await probeAddress(parsed.config, 'u@a.example'))!;
  expect(failure).toBeNull();
  expect(json).toMatchObject({ hosts: [{ client: shown }] });
  const told = lines((_colour, text) => text).filter((line) => /^ +client /.test(line));
  expect(told.map((line) => line.trim().replace(/ +/, ' '))).toEqual(
    shown === null ? [] : [`client ${shown}`],
  );
  const [session] = sink.sessions;
  if (forwardClient === 'proxy') expect(session!.proxyHeader!.toString('hex', 12)).toBe('20000000');
  if (forwardClient === 'xclient') expect(said(linesOf(session!, 'XCLIENT')[0]).ADDR).toBe('[UNAVAILABLE]');
});
