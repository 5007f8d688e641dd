// Every mail server as the upstream, every one as the next hop, every kind of message between them: what arrives is what
// was sent, octet for octet, with one Received line before it; and what is refused is bounced with the next hop's words.
// In clear both wires are compared; over TLS (verified on both sides) the mailbox is. The upstreams run the README's
// recipes.
import { afterAll, describe, expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { type Certificates, certificates } from '../support/peers/authority.ts';
import type { Daemon } from '../support/peers/daemon.ts';
import { Exim } from '../support/peers/exim.ts';
import { needPeers } from '../support/peers/installed.ts';
import type { Maildir } from '../support/peers/maildir.ts';
import { OpenSmtpd } from '../support/peers/opensmtpd.ts';
import { Postfix } from '../support/peers/postfix.ts';
import { recipe } from '../support/peers/recipes.ts';
import { Tap } from '../support/peers/tap.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { ownedByFile, report } from '../support/tools.ts';

const SERVERS = ['postfix', 'exim', 'opensmtpd'] as const;
type ServerName = (typeof SERVERS)[number];
const MODES = ['in clear', 'over TLS'] as const;
type Mode = (typeof MODES)[number];

type Kind = Readonly<{
  body: string | Buffer;
  to?: string;
  from?: string;
  /** After MAIL FROM and RCPT TO; <id> becomes the message's own. */
  mail?: string;
  rcpt?: string;
  /** What a server must offer to take it from us. */
  needs?: string;
}>;

const BIG_LINE = `${'0123456789abcdef'.repeat(4)}\r\n`;
const KINDS: Readonly<Record<string, Kind>> = {
  text: { body: 'Hello,\r\n\r\nworld.\r\n' },
  '8-bit': {
    body: Buffer.from('Gr\xfc\xdfe \xc3\xa9 \x80\xff\r\n\ttab, trailing \r\n', 'latin1'),
    mail: ' BODY=8BITMIME',
  },
  dots: { body: '..\r\n...\r\n..a\r\n.. \r\n\r\n..\r\n\r\n' },
  '998 octets': { body: `${'a'.repeat(998)}\r\n${'b'.repeat(997)}\r\n` },
  '5,000 octets': { body: `${'a'.repeat(999)}\r\n${'b'.repeat(5_000)}\r\nc\r\n` },
  SMTPUTF8: {
    body: 'Gr\u00fc\u00dfe\r\n',
    from: 'jos\u00e9@src.example',
    to: '\u7528\u6237',
    mail: ' BODY=8BITMIME SMTPUTF8',
    needs: 'SMTPUTF8',
  },
  DSN: {
    body: 'with a receipt\r\n',
    mail: ' RET=HDRS ENVID=<id>',
    rcpt: ' NOTIFY=SUCCESS ORCPT=rfc822;original@src.example',
    needs: 'DSN',
  },
  '20 MiB': { body: Buffer.alloc(BIG_LINE.length * Math.ceil((20 * 2 ** 20) / BIG_LINE.length), BIG_LINE) },
  refused: { body: 'x\r\n', to: 'refused' },
};

/** Where it isn't "arrived": OpenSMTPD has no SMTPUTF8, so it neither takes such mail from its client nor from us. */
const EXCEPTIONS: Readonly<Record<string, string>> = {
  'postfix opensmtpd SMTPUTF8': 'bounced: 550 5.6.7',
  'exim opensmtpd SMTPUTF8': 'bounced: 550 5.6.7',
  'opensmtpd postfix SMTPUTF8': 'not taken',
  'opensmtpd exim SMTPUTF8': 'not taken',
  'opensmtpd opensmtpd SMTPUTF8': 'not taken',
};
const REFUSAL: Readonly<Record<ServerName, RegExp>> = {
  postfix: /550[ -]5\.1\.1 <refused@postfix\.example>: Recipient address rejected: no such mailbox here/,
  exim: /550[ -]5\.1\.1 no such mailbox here/,
  opensmtpd: /550[ -]Invalid recipient: <refused@opensmtpd\.example>/,
};

// OpenSMTPD 6.8 offers STARTTLS, and with OpenSSL 3 fails every handshake as a server ("missing private key"), so that it
// shows what `opportunistic` does then: connect again, in clear.
const TLS_TO = { postfix: 'verify', exim: 'verify', opensmtpd: 'opportunistic' } as const;

type Server = Readonly<{ port: number; daemon: Daemon; mailbox: Maildir }>;
type World = Readonly<{
  upstreams: Readonly<Record<ServerName, Server>>;
  nextHops: Readonly<Record<ServerName, Server>>;
  proxy: Program;
  wires: Readonly<Record<'in' | ServerName, Tap>> | null;
}>;

const ARRIVAL_TIMEOUT_MS = 40_000;

const owner = ownedByFile();
const worlds = new Map<Mode, Promise<World>>();
const results: string[][] = [];

function worldOf(mode: Mode): Promise<World> {
  const world = worlds.get(mode) ?? startWorld(mode);
  worlds.set(mode, world);
  return world;
}

async function startWorld(mode: Mode): Promise<World> {
  const secure = mode === 'over TLS' ? await certificates(owner) : null;
  const nextHops = await startNextHops(secure);
  const taps = secure === null ? await tapsBefore(nextHops) : null;
  const routes = SERVERS.flatMap((name) => {
    const port = taps?.[name].port ?? nextHops[name].port;
    const tls = secure === null ? 'off' : TLS_TO[name];
    return ['--route', `${name}.example=smtp://localhost:${port}?tls=${tls}`];
  });
  const identity = secure === null ? [] : ['--tls-cert', secure.certFile, '--tls-key', secure.keyFile];
  const env: Record<string, string> = secure === null ? {} : { NODE_EXTRA_CA_CERTS: secure.caFile };
  const proxy = await Program.start([...routes, ...identity], { env, owner });
  await seeWhatIsOffered(proxy, nextHops);
  const first = taps === null ? null : await Tap.start(proxy.port(), owner);
  const upstreams = await startUpstreams(first?.port ?? proxy.port(), secure);
  const wires = taps === null || first === null ? null : { in: first, ...taps };
  return { upstreams, nextHops, proxy, wires };
}

async function startNextHops(tls: Certificates | null): Promise<World['nextHops']> {
  const [postfix, exim, opensmtpd] = await Promise.all([
    Postfix.start({ owner, domains: domainsOf('postfix'), main: postfixIdentity(tls) }),
    Exim.start({ owner, domains: domainsOf('exim'), tls: tls ?? undefined }),
    OpenSmtpd.start({ owner, domains: domainsOf('opensmtpd'), ...opensmtpdIdentity(tls) }),
  ]);
  return { postfix, exim, opensmtpd };
}

/** Notifications go to the sender, whose mailbox each has too. */
function domainsOf(name: ServerName): string[] {
  return [`${name}.example`, 'src.example'];
}

async function startUpstreams(port: number, tls: Certificates | null): Promise<World['upstreams']> {
  const relay = recipe('opensmtpd-relay', { 2525: port });
  const verified = tls === null ? '' : `tls_verify_certificates = ${tls.caFile}\n  hosts_require_tls = *`;
  const [postfix, exim, opensmtpd] = await Promise.all([
    Postfix.start({
      owner,
      hostname: 'up.example',
      main: `${recipe('postfix-relay', { 2525: port })}${postfixIdentity(tls)}${postfixVerify(tls)}`,
    }),
    Exim.start({
      owner,
      hostname: 'up.example',
      router: recipe('exim-router', { 2525: port }),
      transport: `${recipe('exim-transport', {})}  message_linelength_limit = 10000\n  ${verified}\n`,
    }),
    OpenSmtpd.start({
      owner,
      hostname: 'up.example',
      relay: tls === null ? relay : relay.replace('smtp://127.0.0.1', 'smtp+tls://localhost'),
      ...(tls === null ? {} : { caFile: tls.caFile }),
    }),
  ]);
  return { postfix, exim, opensmtpd };
}

function postfixIdentity(tls: Certificates | null): string {
  if (tls === null) return '';
  return `smtpd_tls_chain_files = ${tls.keyFile}, ${tls.certFile}\nsmtpd_tls_security_level = may\n`;
}

function postfixVerify(tls: Certificates | null): string {
  if (tls === null) return '';
  const names = 'smtp_tls_verify_cert_match = proxy.example';
  return `smtp_tls_CAfile = ${tls.caFile}\nsmtp_tls_security_level = verify\n${names}\n`;
}

function opensmtpdIdentity(tls: Certificates | null): { before?: string; listen?: string } {
  if (tls === null) return {};
  return {
    before: `pki here cert "${tls.certFile}"\npki here key "${tls.keyFile}"`,
    listen: 'tls pki here',
  };
}

async function tapsBefore(nextHops: World['nextHops']): Promise<Record<ServerName, Tap>> {
  const { postfix, exim, opensmtpd } = nextHops;
  return {
    postfix: await Tap.start(postfix.port, owner),
    exim: await Tap.start(exim.port, owner),
    opensmtpd: await Tap.start(opensmtpd.port, owner),
  };
}

/** DSN is offered from when every next hop has been seen to offer it. */
async function seeWhatIsOffered(proxy: Program, nextHops: World['nextHops']): Promise<void> {
  const client = await Client.hello(proxy.port());
  for (const name of SERVERS) {
    const reply = await client.send('', [`box@${name}.example`], `Subject: first\r\n\r\nfirst ${name}\r\n`);
    const refusal = proxy.log.filter((line) => line.level === 'warn' || line.event === 'transaction');
    expect(reply, JSON.stringify(refusal.at(-1))).toMatch(/^250 /);
    await nextHops[name].mailbox.holding(`first ${name}`);
  }
  client.destroy();
}

let messages = 0;

/** One message all the way; what became of it. */
async function send(world: World, upstream: ServerName, nextHop: ServerName, name: string): Promise<string> {
  const kind = KINDS[name]!;
  const id = `case-${messages++}-${upstream}-${nextHop}`;
  const from = kind.from ?? 'sender@src.example';
  const message = Buffer.concat([Buffer.from(headerOf(id, from)), Buffer.from(kind.body)]);
  const to = `${kind.to ?? 'box'}@${nextHop}.example`;
  if (!(await give(world.upstreams[upstream], kind, { id, from, to, message }))) return 'not taken';
  if (kind.to === 'refused') {
    await world.upstreams[upstream].daemon.logged(new RegExp(`${to}.*${REFUSAL[nextHop].source}`));
    return 'arrived';
  }
  if (EXCEPTIONS[`${upstream} ${nextHop} ${name}`]?.startsWith('bounced')) {
    await world.upstreams[upstream].daemon.logged(/550[ -]5\.6\.7/);
    return 'bounced: 550 5.6.7';
  }
  await sameArrived(world, nextHop, id, message).catch(async (error: Error) => {
    const log = await world.upstreams[upstream].daemon.log();
    const lines = log.split('\n').filter((line) => /status=|result=|==|\*\*/.test(line));
    throw new Error(`${error.message}; the upstream's log: ${lines.slice(-5).join('\n')}`);
  });
  if (name === 'DSN') {
    if (world.wires !== null) {
      expect(world.wires[nextHop].saw(` ENVID=${id}`)).toBe(true);
      expect(world.wires[nextHop].saw(' ORCPT=rfc822;original@src.example')).toBe(true);
    }
    await receiptOf(world.nextHops[nextHop], nextHop, id);
  }
  return 'arrived';
}

function headerOf(id: string, from: string): string {
  const lines = [
    `From: <${from}>`,
    'To: undisclosed-recipients:;',
    'Subject: interop',
    'Date: Tue, 24 Nov 2026 12:00:00 +0000',
    `Message-ID: <${id}@src.example>`,
    `X-Case: ${id};`,
    'MIME-Version: 1.0',
    'Content-Type: text/plain; charset=utf-8',
    'Content-Transfer-Encoding: 8bit',
  ];
  return `${lines.join('\r\n')}\r\n\r\n`;
}

type Mail = Readonly<{ id: string; from: string; to: string; message: Buffer }>;

/** Hands the message to the upstream, in whose queue it is then; false where it doesn't take this kind. */
async function give(server: Server, kind: Kind, mail: Mail): Promise<boolean> {
  const client = await Client.connect(server.port);
  try {
    const offered = await client.command('EHLO client.example');
    if (kind.needs !== undefined && !offered.includes(kind.needs)) return false;
    const parameters = (kind.mail ?? '').replace('<id>', mail.id);
    const commands = [`MAIL FROM:<${mail.from}>${parameters}`, `RCPT TO:<${mail.to}>${kind.rcpt ?? ''}`];
    for (const line of commands) expect(await client.command(line)).toMatch(/^250 /);
    expect(await client.command('DATA')).toMatch(/^354 /);
    client.write(mail.message);
    client.write('.\r\n');
    expect(await client.reply(60_000)).toMatch(/^250 /);
    return true;
  } finally {
    client.destroy();
  }
}

async function sameArrived(world: World, nextHop: ServerName, id: string, sent: Buffer): Promise<void> {
  const found = await world.nextHops[nextHop].mailbox.holding(`X-Case: ${id};`, ARRIVAL_TIMEOUT_MS);
  const copies = found.filter((each) => !each.includes('report-type=delivery-status'));
  expect(copies).toHaveLength(1);
  // Dots were doubled for the wire, and maildirs have LF as line end.
  const expected = sent.toString('latin1').replaceAll('\r\n', '\n').replaceAll(/^\.\./gm, '.');
  expectSame(Buffer.from(copies[0]!.subarray(-expected.length)), Buffer.from(expected, 'latin1'));
  const traces = copies[0]!.subarray(0, -expected.length).toString('latin1');
  expect(traces).toMatch(/^Received: from \S+ \(.*\)\s+by proxy\.example/m);
  if (world.wires === null) {
    expect(traces).toMatch(/\s+by proxy\.example\s+with (UTF8SMTP|ESMTP)S\s/);
    const secured = /proxy\.example.*\swith (utf8esmtps|esmtps|utf8smtps)\s/is.test(hopOf(traces));
    expect(secured, traces).toBe(nextHop !== 'opensmtpd');
    return;
  }
  const [before, ...more] = world.wires.in.messages(`X-Case: ${id};`);
  const [after, ...again] = world.wires[nextHop].messages(`X-Case: ${id};`);
  expect([more, again]).toEqual([[], []]);
  expectSame(after!.subarray(-before!.length), before!);
  expect(after!.subarray(0, -before!.length).toString()).toMatch(
    /^Received: [^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*$/,
  );
}

/** The field that the next hop has written. */
function hopOf(traces: string): string {
  return /^Received: [^\n]*\n(?:[ \t][^\n]*\n)*/m.exec(traces)![0];
}

function expectSame(one: Buffer, other: Buffer): void {
  // A comparison of long texts would take longer to print than to make.
  if (one.equals(other)) return;
  const at = one.findIndex((octet, index) => octet !== other[index]);
  const around = (buffer: Buffer) => JSON.stringify(buffer.toString('latin1', Math.max(0, at - 60), at + 60));
  expect.fail(`differ at ${at}: ${around(one)} and ${around(other)}`);
}

/** NOTIFY, ORCPT and ENVID came through: the next hop itself has told the sender. */
async function receiptOf(server: Server, nextHop: ServerName, id: string): Promise<void> {
  let receipt: string | undefined;
  await until(async () => {
    const found = await server.mailbox.holding(id, ARRIVAL_TIMEOUT_MS);
    receipt = found.find((each) => each.includes('report-type=delivery-status'))?.toString();
    receipt ??= found.find((each) => each.includes('Action: delivered'))?.toString();
    return receipt !== undefined;
  }, ARRIVAL_TIMEOUT_MS);
  // OpenSMTPD's reports name neither.
  if (nextHop === 'opensmtpd') return;
  expect(receipt).toMatch(new RegExp(`^Original-Envelope-Id: ${id}$`, 'im'));
  expect(receipt).toMatch(/^Original-Recipient: rfc822; ?original@src\.example$/im);
}

function expectedOf(upstream: ServerName, nextHop: ServerName): Record<string, string> {
  const outcome = (kind: string) => EXCEPTIONS[`${upstream} ${nextHop} ${kind}`] ?? 'arrived';
  return Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, outcome(kind)]));
}

for (const mode of MODES) {
  describe(mode, () => {
    for (const upstream of SERVERS) {
      for (const nextHop of SERVERS) {
        it(`carries every kind of message from ${upstream} to ${nextHop}`, async (context) => {
          needPeers(context, ...SERVERS);
          const world = await worldOf(mode);
          const sent = Object.keys(KINDS).map(async (kind) => {
            const outcome = send(world, upstream, nextHop, kind);
            return [kind, await outcome.catch((error: Error) => error.message)] as const;
          });
          const outcomes = await Promise.all(sent);
          results.push([mode, upstream, nextHop, ...outcomes.map(([, outcome]) => brief(outcome))]);
          expect(Object.fromEntries(outcomes)).toEqual(expectedOf(upstream, nextHop));
        });
      }
    }
  });
}

function brief(outcome: string): string {
  if (outcome === 'arrived') return 'same';
  return /^(bounced|not taken)/.test(outcome) ? outcome.slice(0, 12) : 'FAILED';
}

afterAll(() => {
  const rows = [['', 'upstream', 'next hop', ...Object.keys(KINDS)], ...results];
  for (const row of rows) report(row.map((cell) => cell.padEnd(13)).join(''));
});
