// Spool directories for tests, and messages put into them as a proxy would have left them.
import { mkdirSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { parseMail, parseRcpt } from '../../src/smtp/address.ts';
import type { Recipient, Sender } from '../../src/smtp/envelope.ts';
import { encodeEnvelope, type QueuedMessage, type RecipientState } from '../../src/spool/envelope.ts';

export const QUEUED_BODY = Buffer.from('Received: x\r\nSubject: queued\r\n\r\nhello\r\n');

/** A directory of its own, and what removes it. */
export async function spoolDirectory(): Promise<{ directory: string; remove: () => Promise<void> }> {
  const parent = await mkdtemp(join(tmpdir(), 'cutthrough-spool-'));
  const directory = join(parent, 'spool');
  mkdirSync(directory, { mode: 0o700 });
  return { directory, remove: () => rm(parent, { recursive: true, force: true }) };
}

export function senderOf(mail: string): Sender {
  const parsed = parseMail(mail);
  if (!parsed.ok) throw new Error(`bad test: ${mail}`);
  return { mailbox: parsed.mailbox, params: parsed.params };
}

export function recipientOf(rcpt: string): Recipient {
  const parsed = parseRcpt(rcpt, { smtputf8: false });
  if (!parsed.ok) throw new Error(`bad test: ${rcpt}`);
  return { mailbox: parsed.mailbox, params: parsed.params };
}

function pending(rcpt: string): RecipientState {
  return { ...recipientOf(rcpt), state: 'pending', reply: null, nextHop: '', triedAt: null };
}

export function queuedMessage(
  id: string,
  mail: string,
  rcpts: readonly string[],
  fields: Partial<QueuedMessage> = {},
): QueuedMessage {
  return {
    id,
    queuedAt: Date.now(),
    sender: senderOf(mail),
    client: null,
    recipients: rcpts.map(pending),
    octets: QUEUED_BODY.length,
    crc32: crc32(QUEUED_BODY),
    attempts: 1,
    nextAttemptAt: Date.now(),
    delayNotified: false,
    ...fields,
  };
}

/** Writes the two files of a message with QUEUED_BODY. */
export function putInto(directory: string, message: QueuedMessage): void {
  writeFileSync(join(directory, `${message.id}.eml`), QUEUED_BODY, { mode: 0o600 });
  writeFileSync(join(directory, `${message.id}.json`), encodeEnvelope(message), { mode: 0o600 });
}
