// The envelope of a queued message, and its file: JSON in two lines, a CRC-32 of the second in the first, so that a
// flipped bit in an address is found before mail goes astray. What does not check out is damaged, never guessed at.
import { crc32 } from 'node:zlib';
import type { Mailbox, MailParams, RcptParams } from '../smtp/address.ts';
import type { Sender } from '../smtp/envelope.ts';
import type { Reply } from '../smtp/reply.ts';

/** Claim 9: what is known of one recipient's copy. A Recipient with its fate. */
export type RecipientState = Readonly<{
  mailbox: Mailbox;
  params: RcptParams;
  /** `failed`: for good, or given up; whoever had to be told of it has been. */
  state: 'pending' | 'delivered' | 'failed';
  /** The last one, of the next hop or in our own words; null before the first attempt, or where the peer was lost. */
  reply: Reply | null;
  /** Label of the next hop last tried; empty before. */
  nextHop: string;
  /** Epoch milliseconds of the last attempt; null before. */
  triedAt: number | null;
}>;

export type QueuedMessage = Readonly<{
  id: string;
  /** Epoch milliseconds of our 250. */
  queuedAt: number;
  sender: Sender;
  recipients: readonly RecipientState[];
  /** Of the .eml. */
  octets: number;
  crc32: number;
  attempts: number;
  /** Epoch milliseconds. */
  nextAttemptAt: number;
  /** A delay warning has been sent (RFC 3461 §4.1, NOTIFY=DELAY). */
  delayNotified: boolean;
}>;

/** What is kept in memory of a queued message. */
export type QueuedSummary = Readonly<{
  id: string;
  queuedAt: number;
  nextAttemptAt: number;
  attempts: number;
  octets: number;
  /** Of the recipients that are pending. */
  domains: readonly string[];
}>;

/** A file of the spool that is not what was written. */
export class DamagedError extends Error {}

const VERSION = 1;

export function encodeEnvelope(message: QueuedMessage): string {
  const text = JSON.stringify(message);
  return `${JSON.stringify({ version: VERSION, crc32: crc32(text) })}\n${text}\n`;
}

/** @throws DamagedError when it is not what encodeEnvelope() gave; Error when a newer version wrote it */
export function decodeEnvelope(text: string): QueuedMessage {
  const [head = '', body = '', rest] = text.split('\n');
  const { version, crc32: written } = fields(head);
  if (typeof version === 'number' && version > VERSION)
    throw new Error(`written by a newer version (format ${version}, this one knows ${VERSION})`);
  if (version !== VERSION || rest !== '') throw new DamagedError('not an envelope');
  if (written !== crc32(body)) throw new DamagedError('the envelope does not match its checksum');
  const message = fields(body);
  if (!isMessage(message)) throw new DamagedError('the envelope lacks a field');
  return message;
}

function fields(line: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === 'object' && value !== null) return value as Readonly<Record<string, unknown>>;
  } catch {
    // Falls through: it isn't JSON.
  }
  throw new DamagedError('not an envelope');
}

/** The checksum has vouched for the content; this is about files made by other hands. */
function isMessage(value: object): value is QueuedMessage {
  const message = value as Partial<QueuedMessage>;
  const numbers = [message.queuedAt, message.octets, message.crc32, message.attempts, message.nextAttemptAt];
  return (
    typeof message.id === 'string' &&
    numbers.every((number) => typeof number === 'number') &&
    isSender(message.sender) &&
    Array.isArray(message.recipients) &&
    message.recipients.length > 0 &&
    message.recipients.every(isRecipient)
  );
}

function isSender(value: unknown): boolean {
  const { mailbox, params } = (value ?? {}) as { mailbox?: unknown; params?: Partial<MailParams> };
  return (mailbox === null || isMailbox(mailbox)) && typeof params?.smtputf8 === 'boolean';
}

function isRecipient(value: unknown): boolean {
  const { mailbox, params, state } = (value ?? {}) as Partial<RecipientState>;
  return (
    isMailbox(mailbox) && typeof params === 'object' && ['pending', 'delivered', 'failed'].includes(state!)
  );
}

function isMailbox(value: unknown): boolean {
  const { address, localPart, domain } = (value ?? {}) as Partial<Mailbox>;
  return (
    typeof address === 'string' &&
    typeof localPart === 'string' &&
    (domain === null || typeof domain === 'string')
  );
}
