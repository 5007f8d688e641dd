// TLS on both sides, and the bytes that mail is allowed to hold, with swaks, openssl and nodemailer as clients and
// smtp-server as the next hop.
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createTransport } from 'nodemailer';
import { SMTPServer, type SMTPServerOptions } from 'smtp-server';
import { expect, it, onTestFinished, type TestContext } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { needTools, type Ran, run, SmtpSink, selfSigned } from '../support/tools.ts';

type Arrived = { text: string; recipients: string[]; secure: boolean };

type Files = Awaited<ReturnType<typeof selfSigned>>;

/** A next hop that knows TLS (smtp-sink doesn't). */
async function tlsSink(files: Files, options: SMTPServerOptions = {}) {
  const arrived: Arrived[] = [];
  const [cert, key] = await Promise.all([readFile(files.certFile), readFile(files.keyFile)]);
  const server = new SMTPServer({
    cert,
    key,
    disabledCommands: ['AUTH'],
    disableReverseLookup: true,
    onData(stream, session, callback) {
      const chunks: Buffer[] = [];
      stream.on('data', (chunk: Buffer) => chunks.push(chunk));
      stream.on('end', () => {
        arrived.push({
          text: Buffer.concat(chunks).toString('latin1'),
          recipients: session.envelope.rcptTo.map(({ address }) => address),
          secure: session.secure,
        });
        callback();
      });
    },
    ...options,
  });
  server.on('error', () => {});
  server.listen(0, '127.0.0.1');
  await once(server.server, 'listening');
  onTestFinished(async () => await new Promise<void>((resolve) => server.close(() => resolve())));
  return { arrived, port: (server.server.address() as AddressInfo).port };
}

/** A proxy with STARTTLS and an smtps:// listener, in front of a next hop with TLS. */
async function startTlsProxy(context: TestContext, route: (port: number) => string, sinkOptions = {}) {
  await needTools(context, 'openssl', 'swaks');
  const files = await selfSigned();
  const sink = await tlsSink(files, sinkOptions);
  const proxy = await Program.start([
    ...['--listen', 'smtp://127.0.0.1:0', '--listen', 'smtps://127.0.0.1:0'],
    ...['--tls-cert', files.certFile, '--tls-key', files.keyFile],
    ...['--route', `*=${route(sink.port)}`, '--connect-retries', '0'],
  ]);
  return { files, sink, proxy };
}

const requireTls = (port: number) => `smtp://127.0.0.1:${port}?tls=require`;

async function swaks(port: number, flags: readonly string[], message?: string | Buffer): Promise<Ran> {
  const envelope = ['--from', 's@src.example', '--to', 'u@a.example', '--helo', 'client.example'];
  const data = message === undefined ? [] : ['--data', '-'];
  const server = ['--server', '127.0.0.1', '--port', `${port}`];
  return await run('swaks', [...envelope, ...server, ...data, ...flags], message);
}

for (const [flag, version] of [
  ['tlsv1_2', 'TLSv1.2'],
  ['tlsv1_3', 'TLSv1.3'],
] as const) {
  it(`speaks ${version} after STARTTLS with swaks, and TLS with the next hop`, async (context) => {
    const { sink, proxy } = await startTlsProxy(context, requireTls);
    const ran = await swaks(proxy.port(), ['--tls', '--tls-protocol', flag]);
    expect(ran.exitCode, ran.output).toBe(0);
    expect(ran.output).toContain(`TLS started with cipher ${version}`);
    expect(sink.arrived).toHaveLength(1);
    expect(sink.arrived[0]?.secure).toBe(true);
    expect(unfolded(sink.arrived[0]!.text)).toMatch(
      new RegExp(`^Received: from client\\.example .* with ESMTPS .*${version.replace('.', '\\.')}`),
    );
  });
}

it('speaks TLS from the first byte at an smtps:// listener and to an smtps:// route', async (context) => {
  const { sink, proxy } = await startTlsProxy(context, (port) => `smtps://127.0.0.1:${port}`, {
    secure: true,
  });
  const ran = await swaks(proxy.port(1), ['--tls-on-connect']);
  expect(ran.exitCode, ran.output).toBe(0);
  expect(sink.arrived).toHaveLength(1);
  expect(sink.arrived[0]?.secure).toBe(true);
  expect(unfolded(sink.arrived[0]!.text)).toMatch(/^Received: .* with ESMTPS /);
});

for (const [what, port, starttls] of [
  ['after STARTTLS', 0, ['-starttls', 'smtp']],
  ['at an smtps:// listener', 1, []],
] as const) {
  it(`refuses TLS 1.1 ${what}`, async (context) => {
    const { proxy } = await startTlsProxy(context, requireTls);
    const connect = ['s_client', '-connect', proxy.address(port), ...starttls];
    // Debian's openssl would not even offer it above security level 0.
    const refused = await run('openssl', [...connect, '-tls1_1', '-cipher', 'DEFAULT@SECLEVEL=0']);
    expect(refused.exitCode).not.toBe(0);
    expect(refused.output).toMatch(/alert protocol version/);
    const taken = await run('openssl', [...connect, '-tls1_2'], 'QUIT\r\n');
    expect(taken.output).toMatch(/Protocol *: TLSv1\.2/);
  });
}

it('delivers to a next hop with ?tls=verify only when its certificate is trusted', async (context) => {
  await needTools(context, 'openssl', 'swaks');
  const files = await selfSigned();
  const sink = await tlsSink(files);
  const flags = ['--route', `*=smtp://localhost:${sink.port}?tls=verify`, '--connect-retries', '0'];
  const distrustful = await Program.start(flags);
  const refused = await swaks(distrustful.port(), []);
  expect(refused.output).toMatch(/<\*\* 451 4\.4\.1 /);
  expect(sink.arrived).toHaveLength(0);
  const trusting = await Program.start(flags, { env: { NODE_EXTRA_CA_CERTS: files.certFile } });
  const ran = await swaks(trusting.port(), []);
  expect(ran.exitCode, ran.output).toBe(0);
  expect(sink.arrived).toHaveLength(1);
});

it('does not send in clear to a next hop with ?tls=require that offers no STARTTLS', async (context) => {
  const { sink, proxy } = await startTlsProxy(context, requireTls, {
    hideSTARTTLS: true,
    disabledCommands: ['AUTH', 'STARTTLS'],
  });
  const ran = await swaks(proxy.port(), ['--tls']);
  expect(ran.output).toMatch(/<~\* 451 4\.4\.1 /);
  expect(sink.arrived).toHaveLength(0);
});

it('carries 8-bit text, lines of 998 and 5,000 octets and leading dots through TLS as they are', async (context) => {
  const { sink, proxy } = await startTlsProxy(context, requireTls);
  const lines = [
    'Subject: bytes',
    '',
    'Gr\xfc\xdfe \xc3\xa9 \x80\xff',
    'a'.repeat(998),
    'b'.repeat(5_000),
    '.',
    '..',
    '.c',
    '\ttab and trailing space ',
    '',
    'end',
  ];
  const ran = await swaks(proxy.port(), ['--tls'], Buffer.from(`${lines.join('\n')}\n`, 'latin1'));
  expect(ran.exitCode, ran.output.slice(-500)).toBe(0);
  const { text } = sink.arrived[0]!;
  const ours = text.indexOf('Subject: bytes');
  expect(text.slice(0, ours)).toMatch(/^Received: /);
  expect(text.slice(ours).trimEnd().split('\r\n')).toEqual(lines);
});

it('carries SMTPUTF8 addresses from nodemailer to a next hop that takes them, and to no other', async (context) => {
  const { sink, proxy } = await startTlsProxy(context, requireTls);
  const envelope = { from: 'jos\u00e9@src.example', to: ['\u7528\u6237@a.example'] };
  const mail = { envelope, from: envelope.from, to: envelope.to, subject: 'Gr\u00fc\u00dfe', text: 'x' };
  const clientTo = (port: number) =>
    createTransport({ host: '127.0.0.1', port, tls: { rejectUnauthorized: false } });
  const { response } = await clientTo(proxy.port()).sendMail(mail);
  expect(response).toMatch(/^250 2\.0\.0 /);
  expect(sink.arrived[0]?.recipients).toEqual(envelope.to);
  expect(sink.arrived[0]?.secure).toBe(true);
  expect(unfolded(sink.arrived[0]!.text)).toMatch(/^Received: .* with UTF8SMTPS /);

  await needTools(context, 'smtp-sink');
  const ascii = await SmtpSink.start();
  const refusing = await Program.start(['--route', `*=${ascii.url}`]);
  await expect(clientTo(refusing.port()).sendMail(mail)).rejects.toThrow(/550 5\.6\.7 /);
  const client = await Client.hello(refusing.port());
  expect(await client.command('MAIL FROM:<jos\u00e9@src.example>')).toMatch(/^553 5\.6\.7 /);
  client.destroy();
  expect(await ascii.messages()).toEqual([]);
});

function unfolded(text: string): string {
  return text.replace(/\r\n[ \t]+/g, ' ');
}
