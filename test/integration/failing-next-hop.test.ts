// Each phase of the downstream dialogue × each way of failing: an honest reply to the upstream, no message completed,
// nothing left open. With one leg, and with a second, sound one that must not be left with the message alone.
import { afterEach, describe, expect, it } from 'vitest';
import type { Client } from '../support/client.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { type Act, type Phase, Sink } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => {
  await proxy.close();
});

const FAILURES: Record<string, Act> = {
  '4xx': '452 4.2.2 mailbox full',
  '5xx': '550 5.7.1 no thanks',
  '421': '421 4.3.2 going down',
  FIN: { act: 'fin' },
  RST: { act: 'rst' },
  silence: { act: 'stall' },
  garbage: { act: 'garbage' },
  'an endless reply': { act: 'endless' },
  'a byte-dribbled reply': { act: 'dribble', text: `250 ${'x'.repeat(200)}\r\n`, everyMs: 20 },
  'an unexpected 3xx': '334 what',
};

/** What the upstream gets, by phase and failure; where a peer's own refusal is passed on, its text. */
function expected(phase: Phase, failure: string): RegExp {
  const own =
    failure === '4xx' ? /^452 4\.2\.2 mailbox full$/ : failure === '5xx' ? /^550 5\.7\.1 no thanks$/ : null;
  switch (phase) {
    case 'greeting':
      // A RST may come before the connection is seen to stand.
      return /^451 4\.4\.1 .*127\.0\.0\.1.* [12] attempts?: .* (\(greeting\)|ECONNRESET)$/;
    case 'ehlo':
      // A 5xx to EHLO is followed by HELO, which the script answers the same.
      return /^451 4\.4\.1 .*127\.0\.0\.1.* [12] attempts?: .* \(ehlo\)$/;
    case 'mail':
    case 'rcpt':
    case 'data':
      if (failure === '421') return /^451 4\.3\.2 going down$/;
      return own ?? /^451 4\.4\.2 /;
    case 'body':
      if (failure === '421') return /^451 4\.3\.2 going down$/;
      return own ?? /^451 4\.4\.2 /;
    case 'dot':
      if (failure === '421') return /^451 4\.3\.2 going down$/;
      return own ?? /^451 4\.4\.2 /;
    default:
      return phase satisfies never;
  }
}

/** What is left open is then no session kept for later. */
const FORGETFUL = { sessionIdleTimeout: '20ms' };

const PHASES: Phase[] = ['greeting', 'ehlo', 'mail', 'rcpt', 'data', 'body', 'dot'];

/** The reply that ends the attempt to send one message to `to`: the first that is not positive, else the last. */
async function attempt(to: string[], failsInBody: boolean): Promise<string> {
  const client = await proxy.client();
  const reply = await dialogue(client, to, failsInBody);
  client.write('QUIT\r\n');
  return reply;
}

async function dialogue(client: Client, to: string[], failsInBody: boolean): Promise<string> {
  const mail = await client.command('MAIL FROM:<s@src.example>');
  expect(mail).toMatch(/^250/);
  for (const each of to) {
    const rcpt = await client.command(`RCPT TO:<${each}>`);
    if (!rcpt.startsWith('250')) return rcpt;
  }
  const go = await client.command('DATA');
  if (!go.startsWith('354')) return go;
  client.write('Subject: x\r\n\r\n');
  // The beginning of the body is through; where that is too much for a next hop, all have been dropped before the dot.
  await until(() =>
    proxy.sinks.every(({ sessions }) => {
      const session = sessions.at(-1);
      return session === undefined || session.closed || (!failsInBody && session.bodyOctets > 0);
    }),
  );
  client.write('text\r\n.\r\n');
  return await client.reply();
}

for (const phase of PHASES) {
  describe(`at ${phase}`, () => {
    for (const [failure, act] of Object.entries(FAILURES)) {
      // In mid-body silence is no failure, and neither is a reply that never gets to its end before the dot's.
      if (phase === 'body' && ['silence', 'an endless reply', 'a byte-dribbled reply'].includes(failure))
        continue;

      it(`answers honestly to ${failure}`, async () => {
        proxy = await startProxy([{ script: { [phase]: act } }], FORGETFUL);
        const [sink] = proxy.sinks;
        const before = performance.now();
        let reply = await attempt(['u@a.example'], phase === 'body');
        if (phase === 'body' && !reply.startsWith('4') && !reply.startsWith('5'))
          reply = `accepted: ${reply}`;
        expect(reply).toMatch(expected(phase, failure));
        expect(performance.now() - before).toBeLessThan(3_000);
        expect(sink!.messages).toHaveLength(0);
        if (phase !== 'dot') expect(sink!.sessions.some((session) => session.sawDot)).toBe(false);
        await until(() => sink!.sessions.every((session) => session.closed || session.socket.destroyed));
        await until(async () => (await proxy.metric('cutthrough_downstream_sessions_active')) === 0);
      });
    }
  });
}

it.each(['421 4.3.2 not now', '502 5.5.1 what'])('an EHLO answered %s is no failure of TLS', async (ehlo) => {
  const sink = await Sink.start({ script: { ehlo } });
  proxy = await startProxyOnly({ route: [`*=${sink.url}?tls=require`], connectRetries: 0 }, [sink]);
  expect(await attempt(['u@a.example'], false)).toMatch(/refused with \d{3} \(ehlo\)$/);
  const attempts = 'cutthrough_downstream_connect_attempts_total';
  expect(await proxy.metric(`${attempts}{result="greeting"}`)).toBe(1);
  expect(await proxy.metric(`${attempts}{result="tls"}`)).toBe(0);
});

it('says so where --rcpt-deadline ends a session before its greeting', async () => {
  proxy = await startProxy([{ script: { greeting: { act: 'stall' } } }], { rcptDeadline: '100ms' });
  expect(await attempt(['u@a.example'], false)).toMatch(
    /^451 4\.4\.1 .* 1 attempt: took too long \(greeting\)$/,
  );
});

describe.each(['PIPELINING', '8BITMIME'])('RCPTs sent ahead to a slow next hop with %s', (extension) => {
  const start = async (answered: number) => {
    // One after the other, also where all have come at once.
    const step = extension === 'PIPELINING' ? 150 : 0;
    const rcpt = (_: string, nth: number): Act =>
      nth < answered ? { act: 'delay', ms: 150 + nth * step, next: '250 2.1.5 ok' } : '';
    const options = { rcptDeadline: '600ms', commandTimeout: '5s' };
    proxy = await startProxy([{ extensions: [extension], script: { rcpt } }], options);
    const client = await proxy.client();
    const began = performance.now();
    client.write('MAIL FROM:<s@src.example>\r\n');
    for (let at = 0; at < 6; at++) client.write(`RCPT TO:<u${at}@a.example>\r\n`);
    const replies = (await client.replies(7)).slice(1).map((reply) => reply.slice(0, 3));
    return { client, replies, tookMs: performance.now() - began };
  };

  it('have --rcpt-deadline from the answer before', async () => {
    const { client, replies } = await start(6);
    expect(replies).toEqual(Array(6).fill('250'));
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('Subject: x\r\n\r\nx\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages[0]!.rcpts).toHaveLength(6);
  });

  it('are answered within it where no answer comes', async () => {
    const { replies, tookMs } = await start(2);
    expect(replies).toEqual(['250', '250', '451', '451', '451', '451']);
    expect(tookMs).toBeLessThan(1_500);
  });
});

describe('a 2xx that comes before our dot', () => {
  it.each(['data', 'body'] as const)('at %s is never an acknowledgement', async (phase) => {
    proxy = await startProxy([{ script: { [phase]: '250 2.0.0 queued' } }]);
    expect(await attempt(['u@a.example'], phase === 'body')).toMatch(/^451 4\.4\.2 /);
    expect(proxy.sinks[0]!.sessions.some((session) => session.sawDot)).toBe(false);
    expect(proxy.transactions()).toMatchObject([{ result: 'deferred' }]);
  });
});

describe('next to a sound leg', () => {
  for (const phase of ['data', 'body'] as const) {
    for (const failure of ['4xx', '5xx', 'FIN', 'RST', 'garbage'] as const) {
      it(`lets nobody have the message after ${failure} at ${phase}`, async () => {
        proxy = await startProxy([{}, { script: { [phase]: FAILURES[failure]! } }], FORGETFUL);
        const reply = await attempt(['u@a.example', 'v@b.example'], phase === 'body');
        expect(reply).toMatch(/^[45]\d\d /);
        if (phase === 'body') expect(reply).toMatch(/^451 4\.4\.2 /);
        for (const sink of proxy.sinks) {
          expect(sink.messages).toHaveLength(0);
          expect(sink.sessions.some((session) => session.sawDot)).toBe(false);
        }
      });
    }
  }

  it('drops the sound leg when the other stalls in mid-body past --data-timeout', async () => {
    proxy = await startProxy([{}, { stopReadingAfter: 100 }]);
    const client = await proxy.client();
    expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
    const line = `${'x'.repeat(998)}\r\n`;
    client.write(line.repeat(12_000));
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^451 4\.4\.2 .*127\.0\.0\.1/);
    expect(proxy.sinks.flatMap((sink) => sink.messages)).toHaveLength(0);
    expect(proxy.sinks.some((sink) => sink.sessions[0]!.sawDot)).toBe(false);
  });
});
