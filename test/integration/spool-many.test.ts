// Many queued messages for many next hops, half of which are down: those that answer are served at once, and those that
// don't are asked by one message at a time.
import { mkdirSync, mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { expect, it, onTestFinished } from 'vitest';
import { parseMail, parseRcpt } from '../../src/smtp/address.ts';
import { encodeEnvelope } from '../../src/spool/envelope.ts';
import { startProxyOnly, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

const DOMAINS = 60;
const PER_DOMAIN = 20;
const BODY = Buffer.from('Received: x\r\nSubject: many\r\n\r\nhello\r\n');

function fillSpool(directory: string): void {
  mkdirSync(directory, { mode: 0o700 });
  const sender = parseMail('MAIL FROM:<s@src.example>');
  if (!sender.ok) throw new Error('bad test');
  for (let at = 0; at < DOMAINS * PER_DOMAIN; at++) {
    const recipient = parseRcpt(`RCPT TO:<u${at}@d${at % DOMAINS}.example>`, { smtputf8: false });
    if (!recipient.ok) throw new Error('bad test');
    const { mailbox, params } = recipient;
    const id = `m.${at}`;
    const envelope = encodeEnvelope({
      id,
      queuedAt: Date.now(),
      sender: { mailbox: sender.mailbox, params: sender.params },
      recipients: [{ mailbox, params, state: 'pending', reply: null, nextHop: '', triedAt: null }],
      octets: BODY.length,
      crc32: crc32(BODY),
      attempts: 1,
      nextAttemptAt: Date.now(),
      delayNotified: false,
    });
    writeFileSync(join(directory, `${id}.eml`), BODY, { mode: 0o600 });
    writeFileSync(join(directory, `${id}.json`), envelope, { mode: 0o600 });
  }
}

it('serves the next hops that answer while the others are down, each message once', async () => {
  const parent = mkdtempSync(join(tmpdir(), 'cutthrough-spool-'));
  onTestFinished(() => rm(parent, { recursive: true, force: true }));
  const spoolDir = join(parent, 'spool');
  fillSpool(spoolDir);
  const good = await Sink.start({ host: '0.0.0.0' });
  // It takes connections, and never says a word.
  const silent = await Sink.start({ host: '0.0.0.0', script: { greeting: { act: 'stall' } } });
  // An address of its own for each domain makes each a next hop of its own.
  const route = Array.from({ length: DOMAINS }, (_, at) => {
    const { port } = at % 2 === 0 ? good : silent;
    return `d${at}.example=smtp://127.0.1.${at + 1}:${port}`;
  });
  const proxy = await startProxyOnly(
    { mode: 'spool', spoolDir, retrySchedule: '1h', greetingTimeout: '30s', route },
    [good, silent],
  );
  onTestFinished(() => proxy.close());
  const served = (DOMAINS / 2) * PER_DOMAIN;
  await until(() => good.messages.length >= served, 12_000);
  await until(() => readdirSync(spoolDir).filter((name) => name.endsWith('.json')).length === served);
  expect(new Set(good.messages.flatMap(({ rcpts }) => rcpts)).size).toBe(served);
  expect(good.messages).toHaveLength(served);
  expect(silent.sessions).toHaveLength(DOMAINS / 2);
  expect(await proxy.metric('cutthrough_queue_messages')).toBe(served);
});
