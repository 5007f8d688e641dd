// XCLIENT and XFORWARD: who may send them, what they change, and what they never change.
import { afterEach, describe, expect, it } from 'vitest';
import type { Options } from '../../src/app.ts';
import type { Client } from '../support/client.ts';
import { startProxy, type TestProxy, until } from '../support/proxy.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

const BODY = 'Subject: t\r\n\r\nhello\r\n';
/** The tests' own address may speak for others, and is trusted itself. */
const LISTED: Options = { xclient: ['127.0.0.1'], greetingDelay: '0ms' };

async function start(options: Options = LISTED): Promise<Client> {
  proxy = await startProxy([{}], options);
  return await proxy.client();
}

async function rcpt(client: Client): Promise<string> {
  expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^250/);
  return await client.command('RCPT TO:<u@a.example>');
}

async function send(client: Client): Promise<void> {
  expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
}

/** The Received line of the latest message, unfolded; and what its line in the log says of the client. */
async function latest(count = 1): Promise<{ received: string; client: unknown; ident: unknown }> {
  await until(() => proxy.transactions().length === count);
  const [received = ''] = proxy.sinks[0]!.messages.at(-1)!
    .body.toString()
    .split(/\r\n(?!\t)/);
  const { client, ident } = proxy.transactions().at(-1)!;
  return { received: received.replaceAll('\r\n\t', ' '), client, ident };
}

describe('a peer that is not listed', () => {
  it.each(['XCLIENT', 'XFORWARD'])('is not offered %s, and may not use it', async (verb) => {
    const client = await start({ xclient: ['192.0.2.1'] });
    expect(await client.command('EHLO client.example')).not.toContain(verb);
    expect(await client.command(`${verb} ADDR=203.0.113.9`)).toMatch(/^550 5\.7\.0 /);
    expect(await client.command(verb)).toMatch(/^550 5\.7\.0 /);
    await send(client);
    expect(await latest()).toMatchObject({ client: '127.0.0.1' });
  });
});

describe('XCLIENT', () => {
  it('is offered with what is honoured', async () => {
    const client = await start();
    const lines = (await client.command('EHLO client.example')).split('\n');
    expect(lines).toContain('250-XCLIENT NAME ADDR PORT PROTO HELO');
    expect(lines.join()).toContain('XFORWARD NAME ADDR PORT PROTO HELO IDENT');
  });

  it('begins the session anew as the announced client: greeting, EHLO, log and Received', async () => {
    const client = await start({ ...LISTED, trust: ['203.0.113.0/24'] });
    expect(await client.command('XCLIENT NAME=host.example ADDR=203.0.113.9 PORT=5 PROTO=ESMTP')).toBe(
      '220 proxy.example ESMTP cutthrough',
    );
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^503 5\.5\.1 /);
    await client.command('EHLO other.example');
    await send(client);
    const { received, client: logged } = await latest();
    expect(logged).toBe('203.0.113.9');
    expect(received).toMatch(
      /^Received: from other\.example \(host\.example \[203\.0\.113\.9\]\) by proxy\.example with ESMTP id/,
    );
  });

  it('may come before EHLO, and preset what EHLO would say', async () => {
    const client = await start({ ...LISTED, trust: ['2001:db8::/32'] });
    await client.command('XCLIENT ADDR=IPV6:2001:db8::9 HELO=preset.example PROTO=ESMTP');
    await send(client);
    expect((await latest()).received).toMatch(
      /^Received: from preset\.example \(\[IPv6:2001:db8::9\]\) by proxy\.example with ESMTP id/,
    );
  });

  it('without PROTO presets HELO', async () => {
    const client = await start({ ...LISTED, trust: ['203.0.113.9'] });
    await client.command('XCLIENT ADDR=203.0.113.9 HELO=preset.example');
    await send(client);
    expect((await latest()).received).toContain(' with SMTP id');
  });

  it('takes the trust away that the peer itself has', async () => {
    const client = await start();
    await client.command('XCLIENT ADDR=203.0.113.9');
    await client.command('EHLO client.example');
    expect(await rcpt(client)).toMatch(/^550 5\.7\.1 /);
  });

  it('gives the trust that the announced client has', async () => {
    const client = await start({ ...LISTED, trust: ['203.0.113.9'] });
    expect(await rcpt(client)).toMatch(/^550 5\.7\.1 /);
    await client.command('RSET');
    await client.command('XCLIENT ADDR=203.0.113.9');
    await client.command('EHLO client.example');
    expect(await rcpt(client)).toMatch(/^250/);
  });

  it('of an unknown address leaves no trust', async () => {
    const client = await start({ ...LISTED, trust: ['0.0.0.0/0', '::/0'] });
    await client.command('XCLIENT ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL]');
    await client.command('EHLO client.example');
    expect(await rcpt(client)).toMatch(/^550 5\.7\.1 /);
  });

  // nginx turns into a pipe once it has announced its client.
  it('is the last one when the announced client is not listed itself', async () => {
    const client = await start();
    await client.command('XCLIENT ADDR=203.0.113.9');
    expect(await client.command('EHLO client.example')).not.toMatch(/XCLIENT|XFORWARD/);
    expect(await client.command('XCLIENT ADDR=127.0.0.1')).toMatch(/^550 5\.7\.0 /);
    expect(await client.command('XFORWARD ADDR=127.0.0.1')).toMatch(/^550 5\.7\.0 /);
    expect(await rcpt(client)).toMatch(/^550 5\.7\.1 /);
  });

  it('comes in several commands until the address is told', async () => {
    const client = await start({ ...LISTED, trust: ['203.0.113.9'] });
    expect(await client.command('XCLIENT NAME=host.example')).toMatch(/^220 /);
    expect(await client.command('XCLIENT ADDR=203.0.113.9 HELO=h.example')).toMatch(/^220 /);
    await send(client);
    expect((await latest()).received).toMatch(
      /^Received: from h\.example \(host\.example \[203\.0\.113\.9\]\)/,
    );
  });

  it('is refused in a transaction, and with bad syntax, and then changes nothing', async () => {
    const client = await start();
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('XCLIENT ADDR=203.0.113.9')).toMatch(/^503 5\.5\.1 /);
    await client.command('RSET');
    for (const args of ['', 'ADDR', 'ADDR=203.0.113.9 PORT=x', 'ADDR=203.0.113.9 NAME=a+0D+0Ab']) {
      expect(await client.command(`XCLIENT ${args}`)).toMatch(/^501 5\.5\.4 /);
    }
    await send(client);
    expect(await latest(2)).toMatchObject({ client: '127.0.0.1' });
  });

  it('may be pipelined with what follows', async () => {
    const client = await start({ ...LISTED, trust: ['203.0.113.9'] });
    client.write('XCLIENT ADDR=203.0.113.9\r\nEHLO h.example\r\nMAIL FROM:<s@src.example>\r\n');
    expect(await client.reply()).toMatch(/^220 /);
    expect(await client.reply()).toMatch(/^250-/);
    expect(await client.reply()).toMatch(/^250 2\.1\.0 /);
  });

  it('has a label in the metrics', async () => {
    const client = await start();
    await client.command('XCLIENT ADDR=203.0.113.9');
    await client.command('XFORWARD ADDR=203.0.113.9');
    expect(await proxy.metric('cutthrough_upstream_commands_total{verb="XCLIENT",class="2xx"}')).toBe(1);
    expect(await proxy.metric('cutthrough_upstream_commands_total{verb="XFORWARD",class="5xx"}')).toBe(1);
  });
});

describe('XFORWARD', () => {
  it('tells the log who the mail came from, in any number of commands; Received names the peer', async () => {
    const client = await start();
    expect(await client.command('XFORWARD NAME=host.example ADDR=203.0.113.9 PORT=5')).toBe('250 2.0.0 ok');
    expect(await client.command('XFORWARD HELO=h.example IDENT=4XyZ PROTO=ESMTP SOURCE=REMOTE')).toMatch(
      /^250/,
    );
    await send(client);
    const { received, ...logged } = await latest();
    expect(logged).toEqual({ client: '203.0.113.9', ident: '4XyZ' });
    // RFC 5321 §4.4: the host that we have it from.
    expect(received).toMatch(
      /^Received: from client\.example \(\[127\.0\.0\.1\]\) by proxy\.example with ESMTP id/,
    );
  });

  it('mixes nothing of the session in', async () => {
    const client = await start();
    await client.command('XFORWARD NAME=host.example');
    await send(client);
    expect((await latest()).client).toBe('');
  });

  it.each<[string, Options, RegExp]>([
    ['gives no trust', { ...LISTED, trust: ['203.0.113.9'] }, /^550 5\.7\.1 /],
    ['takes none', LISTED, /^250/],
  ])('%s', async (_, options, reply) => {
    const client = await start(options);
    await client.command('XFORWARD ADDR=203.0.113.9');
    expect(await rcpt(client)).toMatch(reply);
  });

  it.each<[string, (client: Client) => Promise<unknown>, number]>([
    ['the final dot', send, 2],
    ['RSET', (client) => client.command('RSET'), 1],
    ['EHLO', (client) => client.command('EHLO client.example'), 1],
  ])('holds until %s', async (_, end, count) => {
    const client = await start();
    await client.command('XFORWARD ADDR=203.0.113.9');
    await end(client);
    await send(client);
    expect(await latest(count)).toMatchObject({ client: '127.0.0.1', ident: undefined });
  });

  it('holds for the next MAIL when one was refused', async () => {
    const client = await start();
    await client.command('XFORWARD ADDR=203.0.113.9');
    expect(await client.command('MAIL FROM:<')).toMatch(/^501/);
    await send(client);
    expect(await latest()).toMatchObject({ client: '203.0.113.9' });
  });

  it('is refused in a transaction and with bad syntax', async () => {
    const client = await start();
    expect(await client.command('XFORWARD ADDR=203.0.113.9 PORT=x')).toMatch(/^501 5\.5\.4 /);
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command('XFORWARD ADDR=203.0.113.9')).toMatch(/^503 5\.5\.1 /);
    await client.command('RSET');
    await send(client);
    expect(await latest(2)).toMatchObject({ client: '127.0.0.1' });
  });

  it('may be pipelined with MAIL', async () => {
    const client = await start();
    client.write(
      'XFORWARD ADDR=203.0.113.9\r\nMAIL FROM:<s@src.example>\r\nRCPT TO:<u@a.example>\r\nDATA\r\n',
    );
    for (const code of ['250 2.0.0', '250 2.1.0', '250 2.1.5', '354'])
      expect(await client.reply()).toContain(code);
    client.write(`${BODY}.\r\n`);
    expect(await client.reply()).toMatch(/^250/);
    expect(await latest()).toMatchObject({ client: '203.0.113.9' });
  });
});
