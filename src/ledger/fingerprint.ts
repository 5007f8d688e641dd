// By what a message is known again when its upstream repeats it (DESIGN, the ledger): who sends it, for whom, and its
// header block, which an upstream that queues keeps to the byte. Pure.
import { createHash } from 'node:crypto';
import type { Client } from '../smtp/envelope.ts';

/** @param header as the upstream sent it, wire form, up to the empty line */
export function fingerprintOf(
  reversePath: string,
  { address, helo }: Pick<Client, 'address' | 'helo'>,
  header: Buffer,
): string {
  // Neither paths nor names contain a line feed.
  const hash = createHash('sha256').update(`${reversePath}\n${address}\n${helo}\n`);
  return hash.update(header).digest('base64url');
}

/** Whether the header says which message this is, and not only what it says: a device's alarms may be alike to the byte. */
export function isIdentified(header: Buffer): boolean {
  return /^(?:message-id|date|received)[ \t]*:/im.test(header.toString('latin1'));
}
