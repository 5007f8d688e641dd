// The envelope of a queued message, and its file: JSON in two lines, the first with a CRC-32, so that a flipped
// bit in an address is found before mail goes astray. What does not check out is damaged, never guessed at.
import { crc32 } from 'node:zlib';
import { z } from 'zod';
import type { Mailbox, RcptParams } from '../smtp/address.ts';
import type { Origin, Sender } from '../smtp/envelope.ts';
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
  /** Whom it came from; null where it is our own, or where that was not written down. */
  client: Origin | null;
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

/** What a message may be called: names of files are made of it. */
export const QUEUE_ID = /^[A-Za-z0-9_.-]{1,64}$/;

/** 2: with `client`, which a reader of version 1 would take for damage. What has none is still version 1. */
const VERSION = 2;

const COUNT = z.int().nonnegative();
const CRC32 = COUNT.max(0xffff_ffff);
const EPOCH_MS = z.number().nonnegative();

const MAILBOX = z.strictObject({
  localPart: z.string(),
  domain: z.string().nullable(),
  address: z.string().min(1),
  nonAscii: z.boolean(),
  unquotedLocal: z.string(),
});

const SENDER = z.strictObject({
  mailbox: MAILBOX.nullable(),
  // Strips PRDR, which was between the client and us.
  params: z.object({
    size: COUNT.nullable(),
    body: z.enum(['7BIT', '8BITMIME']).nullable(),
    smtputf8: z.boolean(),
    ret: z.enum(['FULL', 'HDRS']).nullable(),
    envid: z.string().nullable(),
  }),
});

const RECIPIENT = z.strictObject({
  mailbox: MAILBOX,
  params: z.strictObject({
    notify: z.string().nullable(),
    orcpt: z.strictObject({ type: z.string(), address: z.string() }).nullable(),
  }),
  state: z.enum(['pending', 'delivered', 'failed']),
  reply: z
    .strictObject({
      code: z.int().min(200).max(599),
      enhanced: z.string().nullable(),
      lines: z.array(z.string()).min(1),
    })
    .nullable(),
  nextHop: z.string(),
  triedAt: EPOCH_MS.nullable(),
});

/** Strips what else is known of a client: its TLS is of no use later. */
const CLIENT = z.object({
  address: z.string(),
  port: COUNT,
  name: z.string().nullable(),
  helo: z.string(),
  extended: z.boolean(),
  localAddress: z.string().optional(),
  localPort: COUNT.optional(),
}) satisfies z.ZodType<Origin>;

const MESSAGE_1 = z.strictObject({
  id: z.string().regex(QUEUE_ID),
  queuedAt: EPOCH_MS,
  sender: SENDER,
  recipients: z.array(RECIPIENT).min(1),
  octets: COUNT,
  crc32: CRC32,
  attempts: COUNT,
  nextAttemptAt: EPOCH_MS,
  delayNotified: z.boolean(),
});

const MESSAGE_2 = z.strictObject({ ...MESSAGE_1.shape, client: CLIENT }) satisfies z.ZodType<QueuedMessage>;

/** The same in every version to come, or this one could not tell it from damage. */
const HEAD = z.strictObject({ version: z.int(), crc32: CRC32 });

/** @throws Error when decodeEnvelope() would not take it back: better no 250 than a message that is lost to us later */
export function encodeEnvelope(message: QueuedMessage): string {
  const { client, ...rest } = message;
  const version = client === null ? 1 : 2;
  const checked = client === null ? MESSAGE_1.safeParse(rest) : MESSAGE_2.safeParse(message);
  if (!checked.success) throw new Error(`not an envelope: ${whatIsWrong(checked.error)}`);
  const text = JSON.stringify(checked.data);
  return `${JSON.stringify({ version, crc32: checksum(version, text) })}\n${text}\n`;
}

/** @throws DamagedError when it is not what encodeEnvelope() gave; Error when a newer version wrote it */
export function decodeEnvelope(text: string): QueuedMessage {
  const end = text.indexOf('\n');
  const head = HEAD.safeParse(parsed(text.slice(0, end)));
  if (!head.success || !text.endsWith('\n')) throw new DamagedError('not an envelope');
  const { version, crc32: written } = head.data;
  const body = text.slice(end + 1, -1);
  if (written !== checksum(version, body)) throw new DamagedError('the envelope does not match its checksum');
  if (version > VERSION)
    throw new Error(`written by a newer version (format ${version}, this one knows ${VERSION})`);
  const message = fromVersion(version, parsed(body));
  if (!message.success) throw new DamagedError(`not an envelope: ${whatIsWrong(message.error)}`);
  return { client: null, ...message.data };
}

function fromVersion(version: number, body: unknown) {
  if (version === 2) return MESSAGE_2.safeParse(body);
  return MESSAGE_1.safeParse(version === 1 ? body : null);
}

/** Of the version, too: a flipped bit there must not pass for a newer one, which stops the start. */
function checksum(version: number, body: string): number {
  return crc32(`${version}\n${body}`);
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return null;
  }
}

function whatIsWrong({ issues }: z.ZodError): string {
  const { path, message } = issues[0]!;
  return [...path, message].join(': ');
}
