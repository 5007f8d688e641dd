// The upstream goes away (FIN, RST, QUIT, RSET) at every phase: no next hop gets a dot, or a tail that a lenient server
// could take for one; nobody has the message, and everything is released at once, not at some deadline.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import net, { type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Client } from '../support/client.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import type { SinkOptions } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

/** Longer than the tests wait: what is released sooner was released by the upstream's end. */
const PATIENT = {
  // What is left open then is no session kept for later.
  sessionIdleTimeout: '20ms',
  connectTimeout: '20s',
  greetingTimeout: '20s',
  commandTimeout: '20s',
  dataTimeout: '20s',
  ackTimeout: '20s',
  rcptDeadline: '20s',
};
const PROMPTLY_MS = 1_500;
const HEADER = 'Subject: x\r\n\r\n';

type End = 'FIN' | 'RST' | 'QUIT' | 'RSET';

async function leave(client: Client, end: End): Promise<void> {
  switch (end) {
    case 'FIN':
      return void client.socket.end();
    case 'RST':
      return client.reset();
    default:
      return client.write(`${end}\r\n`);
  }
}

const gauge = async (name: string) => await proxy.metric(`cutthrough_${name}`);

async function expectNothingLeft(end: End): Promise<void> {
  await until(
    async () =>
      (await gauge('transactions_active')) === 0 &&
      (await gauge('downstream_sessions_active')) === 0 &&
      (await gauge('downstream_sessions_idle')) === 0 &&
      ((await gauge('upstream_connections_active')) === 0 || end === 'RSET'),
    PROMPTLY_MS,
  );
  await until(() => proxy.sinks.every((sink) => sink.sessions.every(({ closed }) => closed)), PROMPTLY_MS);
}

function expectNobodyHasIt(): void {
  for (const sink of proxy.sinks) {
    expect(sink.messages).toHaveLength(0);
    for (const session of sink.sessions) {
      expect(session.sawDot).toBe(false);
      expect(session.raw.toString('latin1')).not.toMatch(/[\r\n]\.|\.\r?\n?$/);
    }
  }
}

type Stage = {
  sinks: SinkOptions[];
  reach: (client: Client) => Promise<void>;
};

const anySession = () => proxy.sinks.flatMap((sink) => sink.sessions);
const sawCommand = (verb: string) =>
  anySession().some((session) => session.commands.some((line) => line.startsWith(verb)));

const STAGES: Record<string, Stage> = {
  'after EHLO': { sinks: [{}], reach: async () => {} },
  'after MAIL': {
    sinks: [{}],
    reach: async (client) => void (await client.command('MAIL FROM:<s@src.example>')),
  },
  'while an RCPT waits for a greeting': {
    sinks: [{ script: { greeting: { act: 'stall' } } }],
    async reach(client) {
      await client.command('MAIL FROM:<s@src.example>');
      client.write('RCPT TO:<u@a.example>\r\n');
      await until(() => anySession().length > 0);
    },
  },
  "while an RCPT waits for the next hop's reply": {
    sinks: [{}, { script: { rcpt: { act: 'stall' } } }],
    async reach(client) {
      await client.command('MAIL FROM:<s@src.example>');
      await client.command('RCPT TO:<u@a.example>');
      client.write('RCPT TO:<v@b.example>\r\n');
      await until(
        () => proxy.sinks[1]!.sessions[0]?.commands.some((line) => line.startsWith('RCPT')) ?? false,
      );
    },
  },
  'after an accepted RCPT': {
    sinks: [{}, {}],
    async reach(client) {
      await client.command('MAIL FROM:<s@src.example>');
      await client.command('RCPT TO:<u@a.example>');
      await client.command('RCPT TO:<v@b.example>');
    },
  },
};

for (const [stage, { sinks, reach }] of Object.entries(STAGES)) {
  describe(stage, () => {
    for (const end of ['FIN', 'RST', 'QUIT', 'RSET'] as const) {
      it(`releases every leg after ${end}`, async () => {
        proxy = await startProxy(sinks, PATIENT);
        const client = await proxy.client();
        await reach(client);
        await leave(client, end);
        await expectNothingLeft(end);
        expectNobodyHasIt();
        expect(sawCommand('DATA')).toBe(false);
        if (stage !== 'after EHLO') {
          await until(() => proxy.transactions().length === 1);
          expect(proxy.transactions()[0]).toMatchObject({ result: 'aborted' });
        }
        if (end === 'RSET') {
          // The RCPT under way has its reply too, and the session goes on.
          if (stage.startsWith('while')) expect(await client.reply()).toMatch(/^4/);
          expect(await client.reply()).toMatch(/^250/);
          expect(await client.command('MAIL FROM:<t@src.example>')).toMatch(/^250/);
        }
      });
    }
  });
}

/** A port at which connecting neither succeeds nor fails: a listener that is stopped, with its backlog full. */
async function hangingPort(): Promise<number> {
  const program =
    "const s = require('net').createServer().listen({port: 0, host: '127.0.0.1', backlog: 1}, () => console.log(s.address().port))";
  const child: ChildProcess = spawn(process.execPath, ['-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const fillers: Socket[] = [];
  onTestFinished(async () => {
    for (const filler of fillers) filler.destroy();
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  });
  const [line] = (await once(child.stdout!, 'data')) as [Buffer];
  const port = Number(line.toString());
  child.kill('SIGSTOP');
  for (let connected = true; connected; ) {
    const filler = net.connect({ port, host: '127.0.0.1' });
    filler.on('error', () => {});
    fillers.push(filler);
    connected = await Promise.race([once(filler, 'connect').then(() => true), sleep(150).then(() => false)]);
  }
  return port;
}

describe('while connecting to the next hop hangs', () => {
  for (const end of ['FIN', 'RST', 'QUIT', 'RSET'] as const) {
    it(`gives up connecting after ${end}`, async () => {
      const port = await hangingPort();
      proxy = await startProxyOnly({ ...PATIENT, route: [`a.example=smtp://127.0.0.1:${port}`] });
      const client = await proxy.client();
      await client.command('MAIL FROM:<s@src.example>');
      const sockets = () =>
        process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;
      const before = sockets();
      client.write('RCPT TO:<u@a.example>\r\n');
      await until(() => sockets() === before + 1);
      await leave(client, end);
      await expectNothingLeft(end);
      // The client's socket and ours for it have gone as well, unless the session goes on.
      await until(() => sockets() === (end === 'RSET' ? before : before - 2), PROMPTLY_MS);
      expect(proxy.transactions()).toMatchObject([{ result: 'aborted' }]);
    });
  }
});

describe('while DATA waits for the next hop', () => {
  for (const end of ['FIN', 'RST'] as const) {
    it(`drops both legs after ${end}`, async () => {
      proxy = await startProxy([{}, { script: { data: { act: 'stall' } } }], PATIENT);
      const client = await proxy.client();
      await client.command('MAIL FROM:<s@src.example>');
      await client.command('RCPT TO:<u@a.example>');
      await client.command('RCPT TO:<v@b.example>');
      client.write('DATA\r\n');
      await until(() =>
        proxy.sinks.every((sink) => sink.sessions[0]!.commands.some((line) => line === 'DATA')),
      );
      await leave(client, end);
      await expectNothingLeft(end);
      expectNobodyHasIt();
      // Neither QUIT nor RSET after a DATA: what a server makes of them in a body is its own affair.
      for (const session of anySession()) expect(session.commands.at(-1)).toBe('DATA');
      expect(proxy.transactions()).toMatchObject([{ result: 'aborted', reply: null }]);
    });
  }
});

/** What was sent last, in a chunk of its own, and what of the body may have reached a next hop. */
const BODY_ENDS: Record<string, readonly [sent: string, innocent: string]> = {
  'in the middle of a line': ['half a li', 'half a li'],
  'behind a whole line': ['line\r\n', 'line\r\n'],
  'behind CR': ['line\r', 'line'],
  'behind CRLF.': ['line\r\n.', 'line\r\n'],
  'behind CRLF.CR': ['line\r\n.\r', 'line\r\n'],
  'behind a stuffed dot': ['line\r\n..', 'line\r\n..'],
};

describe('in mid-body', () => {
  for (const [where, [sent, innocent]] of Object.entries(BODY_ENDS)) {
    for (const legs of [1, 2]) {
      for (const end of ['FIN', 'RST'] as const) {
        it(`drops ${legs === 1 ? 'the leg' : 'both legs'} without a dot after ${end} ${where}`, async () => {
          proxy = await startProxy(Array(legs).fill({}), PATIENT);
          const client = await proxy.client();
          const to = ['u@a.example', 'v@b.example'].slice(0, legs);
          expect(await client.envelope('s@src.example', to)).toMatch(/^354/);
          client.write(HEADER);
          const before = () => proxy.sinks.every(({ sessions }) => text(sessions[0]!.raw).endsWith(HEADER));
          await until(before);
          client.write(sent);
          const arrived = () =>
            proxy.sinks.every(({ sessions }) => text(sessions[0]!.raw).endsWith(HEADER + innocent));
          await until(arrived);
          await leave(client, end);
          await expectNothingLeft(end);
          for (const session of anySession()) {
            expect(session.sawDot).toBe(false);
            expect(text(session.raw).endsWith(HEADER + innocent)).toBe(true);
          }
          expect(proxy.sinks.flatMap((sink) => sink.messages)).toHaveLength(0);
          expect(proxy.transactions()).toMatchObject([{ result: 'aborted', reply: null }]);
        });
      }
    }
  }

  it('drops both legs although the dot has come, while one of them has not taken the body', async () => {
    proxy = await startProxy([{}, { stopReadingAfter: 100 }], { ...PATIENT, dataTimeout: '800ms' });
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
    client.write(`${'x'.repeat(998)}\r\n`.repeat(12_000));
    client.write('.\r\n');
    await until(async () => (await gauge('buffered_bytes')) > 0);
    client.reset();
    await until(async () => (await gauge('transactions_active')) === 0);
    await until(async () => (await gauge('downstream_sessions_active')) === 0);
    await until(async () => (await gauge('upstream_connections_active')) === 0);
    expectNoDot();
  });

  it('drops the legs when the upstream falls silent', async () => {
    proxy = await startProxy([{}, {}], { ...PATIENT, idleTimeout: '300ms' });
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
    client.write(`${HEADER}text\r\n.`);
    expect(await client.reply()).toMatch(/^421 4\.4\.2 /);
    await expectNothingLeft('FIN');
    expectNobodyHasIt();
  });
});

function expectNoDot(): void {
  expect(anySession().some((session) => session.sawDot)).toBe(false);
  expect(proxy.sinks.flatMap((sink) => sink.messages)).toHaveLength(0);
}

describe('after the dot', () => {
  const slow: SinkOptions = { script: { dot: { act: 'delay', ms: 250, next: '250 2.0.0 queued' } } };

  for (const end of ['FIN', 'RST'] as const) {
    it(`lets the next hops finish after ${end}, and logs what became of the message`, async () => {
      proxy = await startProxy([slow, {}], PATIENT);
      const client = await proxy.client();
      expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
      client.write(`${HEADER}text\r\n.\r\n`);
      await until(() => anySession().every((session) => session.sawDot));
      await leave(client, end);
      await until(() => proxy.transactions().length === 1);
      expect(proxy.transactions()[0]).toMatchObject({ result: 'delivered', reply: 250 });
      await expectNothingLeft(end);
      for (const sink of proxy.sinks) expect(sink.messages).toHaveLength(1);
    });
  }

  it('answers a QUIT that was sent right behind it in order', async () => {
    proxy = await startProxy([slow], PATIENT);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write(`${HEADER}text\r\n.\r\nQUIT\r\n`);
    expect(await client.reply()).toBe('250 2.0.0 queued');
    expect(await client.reply()).toMatch(/^221/);
    expect(await client.reply()).toBe('closed');
    await expectNothingLeft('QUIT');
  });
});

describe('a client that sends no more, and still waits for its answers', () => {
  const slow: SinkOptions = { script: { dot: { act: 'delay', ms: 150, next: '250 2.0.0 queued' } } };

  // Exim does so: QUIT right behind the dot, and a FIN behind that.
  it.each<[string, readonly string[], RegExp[]]>([
    ['QUIT with the dot', ['text\r\n.\r\nQUIT\r\n'], [/^250/, /^221/]],
    ['QUIT behind the dot', ['text\r\n.\r\n', 'QUIT\r\n'], [/^250/, /^221/]],
    ['no QUIT', ['text\r\n.\r\n'], [/^250/]],
  ])('gets them, with %s and a FIN', async (_what, writes, replies) => {
    proxy = await startProxy([slow], PATIENT);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^354/);
    client.write(HEADER);
    for (const each of writes) {
      client.write(each);
      await until(() => proxy.sinks[0]!.sessions[0]!.sawDot);
    }
    client.socket.end();
    for (const each of replies) expect(await client.reply()).toMatch(each);
    expect(await client.reply()).toBe('closed');
    await expectNothingLeft('FIN');
    expect(proxy.transactions()).toMatchObject([{ result: 'delivered', reply: 250 }]);
  });
});

describe('pipelined (RFC 2920 §3.1)', () => {
  // Postfix probes an address with MAIL, RCPT, RSET (or QUIT) in one write.
  for (const end of ['RSET', 'QUIT'] as const) {
    it(`answers an RCPT as the next hop does although ${end} is already behind it`, async () => {
      const slow = { act: 'delay', ms: 100, next: '550 5.1.1 who?' } as const;
      proxy = await startProxy([{ script: { rcpt: slow } }], PATIENT);
      const client = await proxy.client();
      client.write(`MAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\n${end}\r\n`);
      expect(await client.reply()).toMatch(/^250/);
      expect(await client.reply()).toBe('550 5.1.1 who?');
      expect(await client.reply()).toMatch(end === 'RSET' ? /^250/ : /^221/);
      await expectNothingLeft(end);
    });
  }
});

function text(bytes: Buffer): string {
  return bytes.toString('latin1');
}
