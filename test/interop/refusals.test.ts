// Every way in which postfix's smtp-sink can refuse or leave: the client hears of it at the right command, in the
// sink's own words where there are any, and no message arrives that was refused.
import { describe, expect, it, type TestContext } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { needTools, run, SmtpSink } from '../support/tools.ts';

type Command = 'MAIL' | 'RCPT' | 'DATA' | '.';
type Answer = Readonly<{ at: Command; reply: string }>;

const HARD = '550 5.7.1 policy says no';
const SOFT = '452 4.2.2 mailbox is full';

/** The first reply that isn't positive, and the command it came for; else the reply to the dot. */
async function attempt(port: number): Promise<Answer> {
  const client = await Client.hello(port);
  try {
    for (const line of ['MAIL FROM:<s@src.example>', 'RCPT TO:<u@a.example>', 'DATA']) {
      const reply = await client.command(line);
      if (!/^[23]/.test(reply)) return { at: line.slice(0, 4) as Command, reply };
    }
    client.write('Subject: x\r\n\r\n.\r\n');
    return { at: '.', reply: await client.reply() };
  } finally {
    client.destroy();
  }
}

async function startBehind(context: TestContext, sinkFlags: readonly string[], protocol = 'smtp') {
  await needTools(context, 'smtp-sink');
  const sink = await SmtpSink.start(...sinkFlags);
  const route = `*=${protocol}://127.0.0.1:${sink.port}`;
  const proxy = await Program.start([
    '--route',
    route,
    '--connect-retries',
    '1',
    '--connect-backoff',
    '10ms',
  ]);
  return { sink, proxy };
}

describe("a refusal reaches the client in smtp-sink's own words", () => {
  const texts = ['-b', SOFT, '-B', HARD];
  // MAIL goes downstream with the first RCPT, whose answer it therefore is.
  const places: [string, Command][] = [
    ['MAIL', 'RCPT'],
    ['RCPT', 'RCPT'],
    ['DATA', 'DATA'],
    ['.', '.'],
  ];
  for (const [refused, at] of places) {
    for (const [flag, reply] of [
      ['-f', HARD],
      ['-r', SOFT],
    ] as const) {
      it(`at ${at} when it says ${reply.slice(0, 3)} to ${refused}`, async (context) => {
        const { sink, proxy } = await startBehind(context, [...texts, flag, refused]);
        expect(await attempt(proxy.port())).toEqual({ at, reply });
        // smtp-sink dumps what came before its dot, whatever it says to that.
        expect(await sink.messages()).toHaveLength(refused === '.' ? 1 : 0);
      });
    }
  }

  it('at the end of the message when it says 550 right after its 354', async (context) => {
    const { sink, proxy } = await startBehind(context, ['-A', '0']);
    expect(await attempt(proxy.port())).toEqual({ at: '.', reply: '550 This violates SMTP' });
    expect(await sink.messages()).toEqual([]);
  });

  it('as swaks sees it', async (context) => {
    await needTools(context, 'swaks');
    const { proxy } = await startBehind(context, [...texts, '-f', 'RCPT']);
    const to = ['--to', 'u@a.example', '--from', 's@src.example', '--server', '127.0.0.1'];
    const ran = await run('swaks', [...to, '--port', `${proxy.port()}`]);
    expect(ran.output).toContain(`<** ${HARD}`);
    // swaks: 24 is an error around RCPT.
    expect(ran.exitCode).toBe(24);
  });
});

describe('a sink that leaves without a word is a temporary failure', () => {
  const places: [string, Command, RegExp][] = [
    ['CONNECT', 'RCPT', /^451 4\.4\.1 .* after 2 attempts/],
    ['EHLO', 'RCPT', /^451 4\.4\.1 .* after 2 attempts/],
    ['MAIL', 'RCPT', /^451 4\.4\.2 .*nothing was delivered/],
    ['RCPT', 'RCPT', /^451 4\.4\.2 .*nothing was delivered/],
    ['DATA', 'DATA', /^451 4\.4\.2 .*nothing was delivered/],
    ['.', '.', /^451 4\.4\.2 .*may have been delivered/],
  ];
  for (const [left, at, reply] of places) {
    it(`at ${at} when it leaves at ${left}`, async (context) => {
      const { proxy } = await startBehind(context, ['-q', left]);
      const answer = await attempt(proxy.port());
      expect(answer.reply).toMatch(reply);
      expect(answer.at).toBe(at);
    });
  }
});

describe("a sink's 421 is no 421 to the client, whose own session goes on", () => {
  const places: [string, Command, RegExp][] = [
    ['CONNECT', 'RCPT', /^451 4\.4\.1 /],
    ['EHLO', 'RCPT', /^451 4\.4\.1 /],
    ['MAIL', 'RCPT', /^451 4\./],
    ['RCPT', 'RCPT', /^451 4\./],
    ['DATA', 'DATA', /^451 4\./],
    ['.', '.', /^451 4\./],
  ];
  for (const [left, at, reply] of places) {
    it(`at ${at} when it says 421 at ${left}`, async (context) => {
      const { proxy } = await startBehind(context, ['-Q', left]);
      const answer = await attempt(proxy.port());
      expect(answer.reply).toMatch(reply);
      expect(answer.at).toBe(at);
    });
  }
});

describe('a sink that can do less still gets its mail', () => {
  const poor: [string, readonly string[]][] = [
    ['that knows no ESMTP', ['-e']],
    ['that looks like a Cisco PIX', ['-P']],
    ['that refuses EHLO', ['-f', 'EHLO']],
    ['without PIPELINING', ['-p']],
    ['without 8BITMIME, DSN, ENHANCEDSTATUSCODES', ['-8', '-N', '-E']],
    ['that thinks before it answers', ['-w', '1', '-W', 'RCPT:1']],
  ];
  for (const [what, flags] of poor) {
    it(what, async (context) => {
      const { sink, proxy } = await startBehind(context, flags);
      expect((await attempt(proxy.port())).reply).toMatch(/^250 2\.0\.0 /);
      expect(await sink.messages()).toHaveLength(1);
    });
  }

  it('over LMTP', async (context) => {
    const { sink, proxy } = await startBehind(context, ['-L'], 'lmtp');
    const client = await Client.hello(proxy.port());
    const reply = await client.send('s@src.example', ['u@a.example', 'v@a.example'], 'x\r\n');
    expect(reply).toMatch(/^250 2\.0\.0 /);
    client.destroy();
    expect((await sink.messages())[0]?.recipients).toEqual(['<u@a.example>', '<v@a.example>']);
  });
});
