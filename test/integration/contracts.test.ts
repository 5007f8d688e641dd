// What this project relies on inside its libraries. A failure here after an update says which of our subclasses to read
// again, before mail does.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import SMTPConnection from 'smtp-connection';
import { SMTPServer } from 'smtp-server';
import { SMTPConnection as ServerConnection } from 'smtp-server/lib/smtp-connection.js';
import { SMTPStream } from 'smtp-server/lib/smtp-stream.js';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import { readChunks, readInPlace } from '../../src/read-in-place.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

const require = createRequire(import.meta.url);
const prototypeOf = (type: unknown) => (type as { prototype: Record<string, unknown> }).prototype;

describe('versions', () => {
  it('loads the nodemailer that package.json names under smtp-connection, and no other', () => {
    const wanted = JSON.parse(
      readFileSync(new URL('../../package.json', import.meta.url), 'utf8'),
    ).dependencies;
    const from = createRequire(require.resolve('smtp-connection'));
    expect(from('nodemailer/package.json').version).toBe(wanted.nodemailer);
    expect(from('nodemailer/lib/smtp-connection')).toBe(SMTPConnection);
    expect(require('smtp-server/package.json').version).toBe(wanted['smtp-server']);
    expect(require('smtp-connection/package.json').version).toBe(wanted['smtp-connection']);
  });
});

describe('smtp-connection', () => {
  let sink: Sink | null = null;
  afterEach(async () => {
    await sink?.close();
    sink = null;
  });

  it.each([
    'connect',
    'login',
    'close',
    '_onError',
    '_onData',
    '_actionGreeting',
    '_actionEHLO',
    '_actionHELO',
    '_actionSTARTTLS',
    '_sendCommand',
    '_parseEhloExtensions',
  ])('has the method %s', (method) => {
    expect(typeof prototypeOf(SMTPConnection)[method]).toBe('function');
  });

  it('hands whole replies to its response actions in order, lines joined by LF, and destroys its socket at close', async () => {
    sink = await Sink.start({ script: { mail: '250-2.1.0 one\n250 2.1.0 two', rcpt: '550 5.1.1 no' } });
    const socket = net.connect(sink.port, '127.0.0.1');
    await new Promise((resolve) => socket.once('connect', resolve));
    const connection = new (SMTPConnection as unknown as new (options: object) => Record<string, never>)({
      connection: socket,
      socketCloseTimeout: 0,
      ignoreTLS: true,
      logger: false,
    }) as unknown as {
      _socket: net.Socket;
      _responseActions: ((text: string) => void)[];
      _ehloLines: string[];
      connect(done: () => void): void;
      close(): void;
      on(event: string, listener: () => void): void;
    };
    connection.on('error', () => {});
    await new Promise<void>((resolve) => connection.connect(resolve));
    expect(connection._socket).toBe(socket);
    expect(connection._ehloLines).toContain('PIPELINING');
    const replies = await new Promise<string[]>((resolve) => {
      const got: string[] = [];
      const take = (text: string) => {
        if (got.push(text) === 2) resolve(got);
      };
      connection._responseActions.push(take, take);
      connection._socket.write('MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n');
    });
    expect(replies).toEqual(['250-2.1.0 one\n250 2.1.0 two', '550 5.1.1 no']);
    connection.close();
    expect(socket.destroyed).toBe(true);
  });

  it('forgets nothing of an earlier EHLO by itself, and logs in by what its mechanisms are set to', async () => {
    sink = await Sink.start({ extensions: ['AUTH PLAIN'], script: { mail: '250 ok' } });
    const connection = new (SMTPConnection as unknown as new (options: object) => Record<string, never>)({
      connection: net.connect(sink.port, '127.0.0.1'),
      ignoreTLS: true,
      logger: false,
    }) as unknown as {
      _ehloLines: string[];
      _supportedAuth: string[];
      allowsAuth: boolean;
      _responseActions: ((text: string) => void)[];
      _sendCommand(line: string): void;
      _parseEhloExtensions(reply: string): void;
      connect(done: () => void): void;
      login(auth: object, done: () => void): void;
      close(): void;
      on(event: string, listener: () => void): void;
    };
    connection.on('error', () => {});
    await new Promise<void>((resolve) => connection.connect(resolve));
    expect([connection._supportedAuth, connection.allowsAuth]).toEqual([['PLAIN'], true]);
    const heard = new Promise<string>((resolve) => connection._responseActions.push(resolve));
    connection._sendCommand('EHLO again.example');
    expect(await heard).toBe('250-sink.example\n250 AUTH PLAIN');
    connection._supportedAuth = [];
    connection.allowsAuth = false;
    connection._parseEhloExtensions('250-sink.example\n250-SIZE 1000\n250 AUTH LOGIN');
    expect([connection._supportedAuth, connection.allowsAuth]).toEqual([['LOGIN'], true]);
    expect(connection._ehloLines).toEqual(['SIZE 1000', 'AUTH LOGIN']);
    await new Promise<void>((resolve) => connection.login({ user: 'u', pass: 'p' }, resolve));
    expect(sink.sessions[0]!.commands).toEqual([
      expect.stringMatching(/^EHLO /),
      'EHLO again.example',
      'AUTH LOGIN',
    ]);
    connection.close();
  });
});

describe('smtp-server', () => {
  it.each([
    'connect',
    'listen',
    'updateSecureContext',
    '_acceptSocket',
    '_expectsProxyHeader',
    '_handleProxy',
    '_upgrade',
  ])('the server has %s', (method) => {
    expect(typeof prototypeOf(SMTPServer)[method]).toBe('function');
  });

  it.each([
    'init',
    'connectionReady',
    'close',
    'upgrade',
    '_sendGreeting',
    '_createParser',
    '_setListeners',
    '_armTimeout',
    '_onClose',
    '_onCommand',
    '_whenWritable',
  ])('the connection has %s', (method) => {
    expect(typeof prototypeOf(ServerConnection)[method]).toBe('function');
  });

  it.each(['write', '_flushData'])('the parser has %s', (method) => {
    expect(typeof prototypeOf(SMTPStream)[method]).toBe('function');
  });

  it('builds its parser through _createParser, from within its constructor', () => {
    const built: unknown[] = [];
    class Connection extends ServerConnection {
      override _createParser() {
        const parser = super._createParser();
        built.push(parser);
        return parser;
      }
    }
    const server = new SMTPServer({ disabledCommands: ['AUTH', 'STARTTLS'], logger: false });
    const connection = new Connection(server, new net.Socket());
    expect(built).toEqual([connection._parser]);
    connection._socket.destroy();
  });
});

describe('net', () => {
  /** An accepted socket, and its peer. */
  async function pair(): Promise<[net.Socket, net.Socket]> {
    const server = net.createServer();
    server.listen(0, '127.0.0.1');
    const accepted = new Promise<net.Socket>((resolve) => server.once('connection', resolve));
    await new Promise((resolve) => server.once('listening', resolve));
    const peer = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
    const socket = await accepted;
    onTestFinished(() => {
      for (const each of [socket, peer]) each.on('error', () => {}).destroy();
      server.close();
    });
    return [socket, peer];
  }

  it.each<[string, (socket: net.Socket, take: (chunk: Buffer) => boolean) => boolean]>([
    [
      'in place',
      (socket, take) =>
        readInPlace(socket, (buffer, length) => take(Buffer.from(buffer.subarray(0, length)))),
    ],
    ['in chunks that can be kept', readChunks],
  ])('reads %s: every octet once, in order, with pauses, and the end', async (_, startReading) => {
    const [socket, peer] = await pair();
    const sent = Buffer.alloc(3_000_000);
    for (let at = 0; at < sent.length; at++) sent[at] = (at * 7) % 251;
    const pieces: Buffer[] = [];
    let chunks = 0;
    const done = startReading(socket, (chunk) => {
      pieces.push(chunk);
      if (++chunks % 3 !== 0) return true;
      setImmediate(() => socket.resume());
      return false;
    });
    expect(done).toBe(true);
    let isEnded = false;
    socket.on('end', () => {
      isEnded = true;
    });
    socket.on('data', () => expect.unreachable('a data event'));
    peer.end(sent);
    await until(() => isEnded);
    expect(Buffer.concat(pieces).equals(sent)).toBe(true);
    expect(chunks).toBeGreaterThan(3);
  });

  it('reads in chunks: one that is not kept is read into again, one that is kept never', async () => {
    const [socket, peer] = await pair();
    const isKept = (nth: number) => nth % 4 === 3;
    const kept: { chunk: Buffer; copy: Buffer }[] = [];
    const buffers = new Set<ArrayBufferLike>();
    let chunks = 0;
    let octets = 0;
    readChunks(
      socket,
      (chunk) => {
        chunks++;
        octets += chunk.length;
        buffers.add(chunk.buffer);
        if (isKept(chunks)) kept.push({ chunk, copy: Buffer.from(chunk) });
        return true;
      },
      () => isKept(chunks),
    );
    peer.end(Buffer.from(Array.from({ length: 4_000_000 }, (_, at) => (at * 7) % 251)));
    await until(() => octets === 4_000_000);
    expect(kept.length).toBeGreaterThan(3);
    for (const { chunk, copy } of kept) expect(chunk.equals(copy)).toBe(true);
    expect(buffers.size).toBeLessThan(chunks / 2);
  });

  it('reads in place: nothing comes during a pause', async () => {
    const [socket, peer] = await pair();
    let octets = 0;
    readInPlace(socket, (_, length) => {
      octets += length;
      return false;
    });
    peer.write('one');
    await until(() => octets === 3);
    peer.write('two');
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(octets).toBe(3);
    socket.resume();
    await until(() => octets === 6);
  });

  it('is read as ever where something has come already', async () => {
    const [socket, peer] = await pair();
    peer.write('early');
    await until(() => socket.readableLength > 0);
    expect(readInPlace(socket, () => true)).toBe(false);
    expect(String(socket.read())).toBe('early');
  });
});
