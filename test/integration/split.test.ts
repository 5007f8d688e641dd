// `--mixed split`: one next hop for each transaction, so that the one reply is true for all of its recipients.
import { afterEach, describe, expect, it } from 'vitest';
import { startDnsServer } from '../support/dns-server.ts';
import { startProxy, startProxyOnly, type TestProxy } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

async function envelope(...to: string[]): Promise<string[]> {
  const client = await proxy.client();
  await client.command('MAIL FROM:<s@src.example>');
  client.write(to.map((each) => `RCPT TO:<${each}>\r\n`).join(''));
  const replies: string[] = [];
  for (const _ of to) replies.push((await client.reply()).slice(0, 9));
  return replies;
}

describe('--mixed split', () => {
  it('puts off a recipient whose next hop differs from the first one', async () => {
    proxy = await startProxy([{}, {}], { mixed: 'split' });
    const to = ['u@a.example', 'v@b.example', 'w@a.example'];
    expect(await envelope(...to)).toEqual(['250 2.1.5', '451 4.3.0', '250 2.1.5']);
    expect(proxy.sinks[1]!.sessions).toEqual([]);
  });

  it('goes by the next hop, and not by the domain', async () => {
    const sink = await Sink.start();
    const route = [`a.example=${sink.url}`, `b.example=${sink.url}`];
    proxy = await startProxyOnly({ route, mixed: 'split' }, [sink]);
    expect(await envelope('u@a.example', 'v@b.example')).toEqual(['250 2.1.5', '250 2.1.5']);
  });

  it('delivers to each destination, once, for a client that does as it is told', async () => {
    proxy = await startProxy(
      [{}, { script: { dot: (_line, nth) => (nth === 0 ? '451 4.3.0 later' : null) } }],
      {
        mixed: 'split',
      },
    );
    const client = await proxy.client();
    let left = ['u@a.example', 'v@b.example'];
    for (let tries = 0; left.length > 0 && tries < 5; tries++) {
      await client.command('MAIL FROM:<s@src.example>');
      const taken: string[] = [];
      for (const each of left)
        if ((await client.command(`RCPT TO:<${each}>`)).startsWith('250')) taken.push(each);
      await client.command('DATA');
      client.write('Subject: x\r\n\r\nx\r\n.\r\n');
      if ((await client.reply()).startsWith('250')) left = left.filter((each) => !taken.includes(each));
    }
    expect(left).toEqual([]);
    expect(proxy.sinks.map((sink) => sink.messages.length)).toEqual([1, 1]);
  });

  it.each([
    ['refuses', { rcpt: '550 5.1.1 no' }, '550 5.1.1'],
    ['puts off', { rcpt: { act: 'delay', ms: 50, next: '450 4.2.1 no' } }, '450 4.2.1'],
    ["can't be reached", { greeting: '554 5.3.2 no' }, '451 4.4.1'],
  ] as const)('a next hop that %s all its recipients puts off nobody else', async (_, script, no) => {
    proxy = await startProxy([{ script }, {}, {}], { mixed: 'split', connectRetries: 0 });
    const to = ['u@a.example', 'v@b.example', 'w@a.example', 'x@c.example', 'y@b.example'];
    expect(await envelope(...to)).toEqual([no, '250 2.1.5', '451 4.3.0', '451 4.3.0', '250 2.1.5']);
  });

  it('asks at one next hop at a time, in the order of the commands', async () => {
    const rcpt = (_: string, nth: number) => (nth === 0 ? '550 5.1.1 no' : null);
    proxy = await startProxy([{ script: { rcpt } }, { script: { rcpt } }], { mixed: 'split' });
    const to = ['u@a.example', 'v@b.example', 'w@a.example', 'x@b.example'];
    expect(await envelope(...to)).toEqual(['550 5.1.1', '550 5.1.1', '250 2.1.5', '451 4.3.0']);
  });

  it('knows the first by the order of the commands, however slow its DNS is', async () => {
    const sink = await Sink.start();
    const zone = {
      'slow.example': { MX: [[10, 'mx.example']] },
      'mx.example': { A: ['127.0.0.1'] },
    } as const;
    const dns = await startDnsServer(structuredClone(zone) as never);
    const other = await Sink.start();
    const options = { dns: [dns.address], mxPort: sink.port, mxAllow: ['127.0.0.0/8'] };
    proxy = await startProxyOnly(
      { ...options, route: [`quick.example=${other.url}`, '*=mx'], mixed: 'split' },
      [sink, other],
    );
    expect(await envelope('u@slow.example', 'v@quick.example')).toEqual(['250 2.1.5', '451 4.3.0']);
    await dns.close();
  });

  it.each([
    ['split', 'LIMITS RCPTMAX=7 RCPTDOMAINMAX=1'],
    ['fail', null],
  ] as const)('%s: LIMITS is %s', async (mixed, limits) => {
    proxy = await startProxy([{}], { mixed, maxRecipients: 7 });
    const client = await proxy.client();
    const lines = (await client.command('EHLO c.example')).split('\n').map((line) => line.slice(4));
    expect(lines.find((line) => line.startsWith('LIMITS')) ?? null).toBe(limits);
  });
});
