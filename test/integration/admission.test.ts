// Who may send what to whom, in which words and in which order; and what of it a next hop gets to see.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { Client } from '../support/client.ts';
import { startDnsServer } from '../support/dns-server.ts';
import { startProxy, startProxyOnly, type TestProxy, until } from '../support/proxy.ts';
import { Sink, type SinkOptions } from '../support/sink.ts';

let proxy: TestProxy;
afterEach(async () => await proxy.close());

/** The tests' own address is a stranger's. */
const STRANGER: Options = { trust: ['192.0.2.0/24'], greetingDelay: '0ms' };

async function start(options: Options = {}, sinks: SinkOptions[] = [{}]): Promise<Client> {
  proxy = await startProxy(sinks, options);
  return await proxy.client();
}

/** A proxy that takes every domain to one next hop. */
async function startCatchAll(options: Options = {}, sinkOptions: SinkOptions = {}): Promise<Client> {
  const sink = await Sink.start(sinkOptions);
  proxy = await startProxyOnly({ route: [`*=${sink.url}`], ...options }, [sink]);
  return await proxy.client();
}

async function rcptAfterMail(client: Client, path: string, mail = 'MAIL FROM:<s@src.example>') {
  await client.command('RSET');
  expect(await client.command(mail)).toMatch(/^250/);
  return await client.command(`RCPT TO:${path}`);
}

const commands = (verb: string) =>
  proxy.sinks.flatMap(({ sessions }) =>
    sessions.flatMap((session) => session.commands.filter((line) => line.startsWith(verb))),
  );

describe('a client that is not trusted', () => {
  const ADMITTING: Options = {
    ...STRANGER,
    acceptDomain: ['a.example', '.sub.example', 'b\u00fccher.example'],
  };

  it.each([
    ['a foreign domain', '<u@foreign.example>'],
    ['a name that ends like an accepted one', '<u@evila.example>'],
    ['a subdomain of a domain accepted by itself', '<u@x.a.example>'],
    ['the domain of which only subdomains are accepted', '<u@sub.example>'],
    ['an address literal', '<u@[127.0.0.1]>'],
    ['a percent sign', '<u%foreign.example@a.example>'],
    ['a bang path', '<foreign.example!u@a.example>'],
    ['an @ in quotes', '<"u@foreign.example"@a.example>'],
    ['an @ in quotes, quoted twice', '<"u\\@foreign.example"@a.example>'],
    ['a percent sign in quotes', '<"u%foreign.example"@a.example>'],
    ['a source route through an accepted domain', '<@a.example:u@evil.example>'],
    ['a source route through two', '<@a.example,@x.sub.example:u@evil.example>'],
  ])('may not relay by %s', async (_, path) => {
    const client = await startCatchAll(ADMITTING);
    expect(await rcptAfterMail(client, path)).toMatch(/^550 5\.7\.1 /);
    expect(proxy.sinks[0]!.connections).toBe(0);
  });

  it.each([
    ['an accepted domain', '<u@a.example>', '<u@a.example>'],
    ['an accepted domain in capitals', '<u@A.EXAMPLE>', '<u@a.example>'],
    ['a subdomain of the form .sub.example', '<u@x.sub.example>', '<u@x.sub.example>'],
    ['a subdomain of a subdomain', '<u@Y.x.SUB.example>', '<u@y.x.sub.example>'],
    ['an accepted domain in A-labels', '<u@xn--bcher-kva.example>', '<u@xn--bcher-kva.example>'],
    ['a source route, which is stripped', '<@x.example,@y.example:u@a.example>', '<u@a.example>'],
  ])('may send to %s', async (_, path, onward) => {
    const client = await startCatchAll(ADMITTING);
    expect(await rcptAfterMail(client, path)).toMatch(/^250/);
    expect(commands('RCPT')).toEqual([`RCPT TO:${onward}`]);
  });

  it('may not relay at all where no domain is accepted', async () => {
    const client = await startCatchAll(STRANGER);
    expect(await rcptAfterMail(client, '<u@a.example>')).toMatch(/^550 5\.7\.1 /);
    expect(await rcptAfterMail(client, '<Postmaster>')).toMatch(/^550 5\.7\.1 /);
  });

  it('may write to the bare Postmaster, who is at the first accepted domain', async () => {
    const client = await startCatchAll(ADMITTING);
    for (const path of ['<Postmaster>', '<postmaster>', '<POSTMASTER>'])
      expect(await rcptAfterMail(client, path)).toMatch(/^250/);
    expect(commands('RCPT')).toEqual([
      'RCPT TO:<Postmaster@a.example>',
      'RCPT TO:<postmaster@a.example>',
      'RCPT TO:<POSTMASTER@a.example>',
    ]);
  });

  it('is let go when it talks before the greeting', async () => {
    proxy = await startProxy([{}], { ...STRANGER, greetingDelay: '500ms' });
    const client = await Client.open(proxy.port);
    client.write('EHLO early.example\r\n');
    expect(await client.reply()).toMatch(/^421 /);
    expect(await client.reply()).toBe('closed');
  });
});

describe('a trusted client', () => {
  it('may send to any domain that has a route, and to nobody else', async () => {
    const client = await start();
    expect(await rcptAfterMail(client, '<u@a.example>')).toMatch(/^250/);
    expect(await rcptAfterMail(client, '<u@elsewhere.example>')).toMatch(/^550 5\.7\.1 /);
  });

  it('has its greeting without delay, and may pipeline into it', async () => {
    proxy = await startProxy([{}], { greetingDelay: '5s' });
    const client = await Client.open(proxy.port);
    client.write('EHLO early.example\r\n');
    expect(await client.reply(1_000)).toMatch(/^220/);
    expect(await client.reply(1_000)).toMatch(/^250/);
    client.destroy();
  });
});

describe('an address', () => {
  it.each([
    ['null reverse-path', '<>', '<>'],
    ['local part in mixed case', '<SenDer@SRC.Example>', '<SenDer@src.example>'],
    [
      'quoted local part with a space and >',
      '<"a b>c\\"d"@src.example> SIZE=7',
      '<"a b>c\\"d"@src.example> SIZE=7',
    ],
    ['address literal', '<s@[192.0.2.7]>', '<s@[192.0.2.7]>'],
    ['IPv6 literal', '<s@[IPv6:2001:DB8::1]>', '<s@[IPv6:2001:db8::1]>'],
  ])('of the sender goes on: %s', async (_, path, onward) => {
    const client = await startCatchAll();
    expect(await rcptAfterMail(client, '<u@a.example>', `MAIL FROM:${path}`)).toMatch(/^250/);
    expect(commands('MAIL')).toEqual([`MAIL FROM:${onward}`]);
  });

  it.each([
    ['local part in mixed case', '<RecipIent@A.Example>', '<RecipIent@a.example>'],
    ['quoted local part with spaces, > and @', '<"x > y@z\\\\"@a.example>', '<"x > y@z\\\\"@a.example>'],
    ['quoted local part that needs no quotes', '<"plain"@a.example>', '<"plain"@a.example>'],
    ['signs of atext', "<!#$%&'*+-/=?^_`{|}~@a.example>", "<!#$%&'*+-/=?^_`{|}~@a.example>"],
    ['the bare Postmaster', '<PostMaster>', '<PostMaster@proxy.example>'],
    ['a space before it', ' <u@a.example>', '<u@a.example>'],
  ])('of a recipient goes on: %s', async (_, path, onward) => {
    const client = await startCatchAll();
    expect(await rcptAfterMail(client, path)).toMatch(/^250/);
    expect(commands('RCPT')).toEqual([`RCPT TO:${onward}`]);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages).toHaveLength(1);
  });

  it.each([
    '<u@>',
    '<@a.example>',
    'u@a.example',
    '<u@a.example',
    '<u@a..example>',
    '<u@-a.example>',
    '<.u@a.example>',
    '<u.@a.example>',
    '<u u@a.example>',
    '<"u@a.example>',
    '<u@b@a.example>',
    '<u@127.0.0.1>',
    '<u@a.example.>',
    '<u@[300.0.0.1]>',
    '<u@[a.example]>',
    '<>',
    '<user>',
    `<${'x'.repeat(200)}@a.example>`,
    `<u@${'x'.repeat(64)}.example>`,
  ])('of a recipient is refused when malformed: %s', async (path) => {
    const client = await startCatchAll();
    expect(await rcptAfterMail(client, path)).toMatch(/^501 5\.1\.3 /);
    expect(proxy.sinks[0]!.connections).toBe(0);
  });

  it.each(['<s@>', 's@src.example', '<s s@src.example>', '<Postmaster>', '<s@src.example'])(
    'of the sender is refused when malformed: %s',
    async (path) => {
      const client = await startCatchAll();
      expect(await client.command(`MAIL FROM:${path}`)).toMatch(/^501 5\.1\.7 /);
      expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^250/);
    },
  );
});

describe('an address that is not ASCII', () => {
  const LOCAL = '<j\u00fcrgen@a.example>';
  const utf8Mail = 'MAIL FROM:<s@src.example> SMTPUTF8';

  it('is refused without SMTPUTF8', async () => {
    const client = await startCatchAll();
    expect(await client.command('MAIL FROM:<j\u00fcrgen@src.example>')).toMatch(/^553 5\.6\.7 /);
    expect(await rcptAfterMail(client, LOCAL)).toMatch(/^553 5\.6\.7 /);
    expect(proxy.sinks[0]!.connections).toBe(0);
  });

  it('goes to a next hop that offers SMTPUTF8, verbatim but for its domain', async () => {
    const client = await startCatchAll();
    const to = '<j\u00fcrgen@B\u00fccher.example>';
    expect(await rcptAfterMail(client, to, 'MAIL FROM:<\u00e9@src.example> SMTPUTF8 BODY=8BITMIME')).toMatch(
      /^250/,
    );
    expect(commands('MAIL')).toEqual(['MAIL FROM:<\u00e9@src.example> BODY=8BITMIME SMTPUTF8']);
    expect(commands('RCPT')).toEqual(['RCPT TO:<j\u00fcrgen@xn--bcher-kva.example>']);
  });

  it('and a transaction with SMTPUTF8 at all, are refused for a next hop that does not offer it', async () => {
    const client = await startCatchAll({}, { extensions: ['PIPELINING', '8BITMIME'] });
    expect(await rcptAfterMail(client, LOCAL, utf8Mail)).toMatch(/^550 5\.6\.7 /);
    expect(await rcptAfterMail(client, '<u@a.example>', utf8Mail)).toMatch(/^550 5\.6\.7 /);
    expect(commands('MAIL')).toEqual([]);
    expect(await rcptAfterMail(client, '<u@a.example>')).toMatch(/^250/);
  });

  it('is refused when it is no UTF-8', async () => {
    const client = await startCatchAll();
    await client.command(utf8Mail);
    client.write(Buffer.from('RCPT TO:<j\xfcrgen@a.example>\r\n', 'latin1'));
    expect(await client.reply()).toMatch(/^501 /);
  });
});

describe('routing by MX', () => {
  async function startByMx(options: Options = {}): Promise<Client> {
    const sink = await Sink.start();
    const dns = await startDnsServer({
      'loop.example': { MX: [[10, 'mx.loop.example']] },
      'mx.loop.example': { A: ['127.0.0.1'] },
      'null.example': { MX: [[0, '.']] },
      'slow.example': 'SERVFAIL',
    });
    onTestFinished(async () => await dns.close());
    proxy = await startProxyOnly({ dns: [dns.address], mxPort: sink.port, ...options }, [sink]);
    return await proxy.client();
  }

  it('refuses literals and hosts in loopback space', async () => {
    const client = await startByMx();
    expect(await rcptAfterMail(client, '<u@[127.0.0.1]>')).toMatch(/^550 5\.4\.4 /);
    expect(await rcptAfterMail(client, '<u@[IPv6:::ffff:127.0.0.1]>')).toMatch(/^550 5\.4\.4 /);
    expect(await rcptAfterMail(client, '<u@loop.example>')).toMatch(/^550 5\.4\.4 /);
    expect(proxy.sinks[0]!.connections).toBe(0);
  });

  it('allows them by --mx-allow', async () => {
    const client = await startByMx({ mxAllow: ['127.0.0.0/8'] });
    expect(await rcptAfterMail(client, '<u@[127.0.0.1]>')).toMatch(/^250/);
    expect(await rcptAfterMail(client, '<u@loop.example>')).toMatch(/^250/);
    expect(commands('RCPT')).toEqual(['RCPT TO:<u@[127.0.0.1]>', 'RCPT TO:<u@loop.example>']);
  });

  it('passes on what DNS says', async () => {
    const client = await startByMx();
    expect(await rcptAfterMail(client, '<u@gone.example>')).toMatch(/^550 5\.1\.2 /);
    expect(await rcptAfterMail(client, '<u@null.example>')).toMatch(/^556 5\.1\.10 /);
    expect(await rcptAfterMail(client, '<u@slow.example>')).toMatch(/^451 4\.4\.3 /);
  });
});

describe('parameters', () => {
  const MAIL = 'MAIL FROM:<s@src.example> RET=HDRS ENVID=a+2Bb+3D SIZE=500 BODY=8BITMIME';
  const RCPT = '<u@a.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;o+2Bx@old.example';

  it('go on where the next hop offers what they need', async () => {
    const client = await startCatchAll();
    expect(await rcptAfterMail(client, RCPT, MAIL)).toMatch(/^250/);
    const [mail] = commands('MAIL');
    expect(mail?.split(' ').slice(0, 2)).toEqual(['MAIL', 'FROM:<s@src.example>']);
    expect(mail?.split(' ').slice(2).sort()).toEqual([
      'BODY=8BITMIME',
      'ENVID=a+2Bb+3D',
      'RET=HDRS',
      'SIZE=500',
    ]);
    expect(commands('RCPT')).toEqual([
      'RCPT TO:<u@a.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;o+2Bx@old.example',
    ]);
  });

  it('are left out where it does not', async () => {
    const client = await startCatchAll({}, { extensions: ['PIPELINING'] });
    expect(await rcptAfterMail(client, RCPT, MAIL)).toMatch(/^250/);
    expect(commands('MAIL')).toEqual(['MAIL FROM:<s@src.example>']);
    expect(commands('RCPT')).toEqual(['RCPT TO:<u@a.example>']);
  });

  it.each([
    ['MAIL FROM:<s@src.example> FOO=bar', /^555 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> REQUIRETLS', /^555 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> HOLDFOR=3', /^555 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> SIZE=abc', /^501 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> SIZE=1 SIZE=2', /^501 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> BODY=BINARYMIME', /^501 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> RET=SOME', /^501 5\.5\.4 /],
    ['MAIL FROM:<s@src.example> ENVID=a+0D+0AQUIT', /^501 5\.5\.4 /],
    ['MAIL FROM:<s@src.example>SIZE=1', /^501 /],
  ])('of MAIL are refused: %s', async (line, reply) => {
    const client = await startCatchAll();
    expect(await client.command(line)).toMatch(reply);
  });

  it.each([
    ['<u@a.example> FOO=bar', /^555 5\.5\.4 /],
    ['<u@a.example> SIZE=1', /^555 5\.5\.4 /],
    ['<u@a.example> NOTIFY=NEVER,SUCCESS', /^501 5\.5\.4 /],
    ['<u@a.example> NOTIFY=SOMETIMES', /^501 5\.5\.4 /],
    ['<u@a.example> ORCPT=u@a.example', /^501 5\.5\.4 /],
    ['<u@a.example> ORCPT=rfc822;u+0D+0AQUIT@a.example', /^501 5\.5\.4 /],
  ])('of RCPT are refused: %s', async (path, reply) => {
    const client = await startCatchAll();
    expect(await rcptAfterMail(client, path)).toMatch(reply);
    expect(proxy.sinks[0]!.connections).toBe(0);
  });
});

describe('EHLO', () => {
  const keywords = async (client: Client) =>
    (await client.command('EHLO client.example'))
      .split('\n')
      .slice(1)
      .map((line) => line.slice(4));

  it('offers what can be kept, and nothing else', async () => {
    const client = await startCatchAll({ maxMessageSize: '1MiB' });
    expect(await keywords(client)).toEqual([
      'PIPELINING',
      'SIZE 1048576',
      '8BITMIME',
      'SMTPUTF8',
      'PRDR',
      'ENHANCEDSTATUSCODES',
    ]);
  });

  it('offers DSN once the only static next hop was seen to offer it', async () => {
    const client = await startCatchAll();
    expect(await keywords(client)).not.toContain('DSN');
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(await keywords(client)).toContain('DSN');
  });

  it('does not offer DSN where a next hop was seen without it', async () => {
    const client = await startCatchAll({}, { extensions: ['PIPELINING'] });
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(await keywords(client)).not.toContain('DSN');
  });

  it('does not offer DSN while a next hop has not been seen yet', async () => {
    const client = await start({}, [{}, { extensions: ['PIPELINING'] }]);
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(await keywords(client)).not.toContain('DSN');
  });

  it('does not offer DSN where mail goes by MX', async () => {
    const sink = await Sink.start();
    proxy = await startProxyOnly({ route: [`a.example=${sink.url}`, '*=mx'] }, [sink]);
    const client = await proxy.client();
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(await keywords(client)).not.toContain('DSN');
  });

  it.each(['EHLO', 'HELO', 'EHLO a b', 'HELO  '])('needs one argument: "%s"', async (line) => {
    const client = await startCatchAll();
    expect(await client.command(line)).toMatch(/^501 /);
  });

  it('in mid-transaction resets it (RFC 5321 §4.1.4)', async () => {
    const client = await startCatchAll();
    expect(await rcptAfterMail(client, '<u@a.example>')).toMatch(/^250/);
    await keywords(client);
    expect(await client.command('RCPT TO:<v@a.example>')).toMatch(/^503 /);
    await until(async () => (await proxy.metric('cutthrough_downstream_sessions_active')) === 0);
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^250/);
  });

  it('is not what a HELO session got: Received says SMTP', async () => {
    await startCatchAll();
    const client = await Client.connect(proxy.port);
    expect(await client.command('HELO old.example')).toBe('250 proxy.example');
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages[0]!.body.toString()).toMatch(/by proxy\.example\s+with SMTP\s/);
    client.destroy();
  });

  it.each(['AUTH PLAIN AGEAYg==', 'BDAT 5 LAST', 'ETRN x', 'TURN', 'EXPN x'])(
    'offers no %s, which is not implemented',
    async (line) => {
      const client = await startCatchAll();
      expect(await client.command(line)).toMatch(/^502 5\.5\.1 /);
      expect(await client.command('NOOP')).toMatch(/^250/);
    },
  );
});

describe('the order of commands', () => {
  it('is kept: MAIL before EHLO, RCPT before MAIL, DATA before both, MAIL twice are 503', async () => {
    await startCatchAll();
    const client = await Client.connect(proxy.port);
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^503 5\.5\.1 /);
    expect(await client.command('EHLO client.example')).toMatch(/^250/);
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^503 5\.5\.1 /);
    expect(await client.command('DATA')).toMatch(/^503 5\.5\.1 /);
    expect(await client.command('MAIL FROM:<s@src.example>')).toMatch(/^250/);
    expect(await client.command('MAIL FROM:<t@src.example>')).toMatch(/^503 5\.5\.1 /);
    expect(await client.command('DATA now')).toMatch(/^501 /);
    expect(await client.command('DATA')).toMatch(/^554 5\.5\.1 /);
    // None of these has spoilt the transaction.
    expect(await client.command('RCPT TO:<u@a.example>')).toMatch(/^250/);
    expect(await client.command('DATA')).toMatch(/^354/);
    client.write('x\r\n.\r\n');
    expect(await client.reply()).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages).toMatchObject([{ rcpts: ['RCPT TO:<u@a.example>'] }]);
    expect(commands('MAIL FROM:<s@src.example>')).toHaveLength(1);
    client.destroy();
  });

  it('is free for RSET, NOOP, VRFY and HELP, before EHLO too', async () => {
    await startCatchAll();
    const client = await Client.connect(proxy.port);
    expect(await client.command('RSET')).toMatch(/^250/);
    expect(await client.command('noop')).toMatch(/^250/);
    expect(await client.command('VRFY u')).toMatch(/^252/);
    expect(await client.command('HELP')).toMatch(/^214/);
    expect(await client.command('quit')).toMatch(/^221/);
    expect(await client.reply()).toBe('closed');
  });
});

describe('a refused DATA', () => {
  const BODY = [
    'MAIL FROM:<injected@evil.example>',
    'RCPT TO:<victim@a.example>',
    'DATA',
    'injected',
    '.',
    'QUIT',
    '',
  ].join('\r\n');
  const REFUSED = { script: { data: '451 4.3.0 not now' } };

  it.each([
    ['with the first bytes of a body in the same write', async () => {}],
    ['with a body that comes while the next hop is asked', async () => await sleep(40)],
  ])('ends the session %s, none of which is run', async (_, pause) => {
    const script = { data: { act: 'delay', ms: 120, next: '451 4.3.0 not now' } } as const;
    const client = await startCatchAll({}, { script });
    expect(await rcptAfterMail(client, '<u@a.example>')).toMatch(/^250/);
    client.write('DATA\r\n');
    await pause();
    client.write(BODY);
    expect(await client.reply()).toBe('451 4.3.0 not now');
    expect(await client.reply()).toMatch(/^421 /);
    expect(await client.reply()).toBe('closed');
    expect(commands('MAIL')).toHaveLength(1);
    expect(commands('RCPT')).toHaveLength(1);
    expect(proxy.sinks[0]!.messages).toHaveLength(0);
    expect(proxy.transactions()).toHaveLength(1);
  });

  it('for want of a recipient ends the session when a body is behind it', async () => {
    const client = await startCatchAll();
    client.write(`MAIL FROM:<s@src.example>\r\nDATA\r\n${BODY}`);
    expect(await client.reply()).toMatch(/^250/);
    expect(await client.reply()).toMatch(/^554 5\.5\.1 /);
    expect(await client.reply()).toMatch(/^421 /);
    expect(await client.reply()).toBe('closed');
    expect(commands('MAIL')).toHaveLength(0);
  });

  it('ends the session at the first line of a body that comes later', async () => {
    const client = await startCatchAll({}, REFUSED);
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^451 4\.3\.0 not now/);
    client.write('From: <s@src.example>\r\n\r\nMAIL FROM:<injected@evil.example>\r\n');
    expect(await client.reply()).toMatch(/^421 /);
    expect(await client.reply()).toBe('closed');
  });

  it('alone leaves the session for the next message', async () => {
    let refuse = true;
    const data = () => (refuse ? '451 4.3.0 not now' : null);
    const client = await startCatchAll({}, { script: { data } });
    expect(await client.envelope('s@src.example', ['u@a.example'])).toMatch(/^451 4\.3\.0 not now/);
    refuse = false;
    expect(await client.send('s@src.example', ['u@a.example'], 'x\r\n')).toMatch(/^250/);
    expect(proxy.sinks[0]!.messages).toHaveLength(1);
  });
});
