// The replies to one final dot, in the order in which they go out.
import { prdrBegins, type Reply } from '../smtp/reply.ts';
import type { Answer } from '../spool/recipient-replies.ts';

/**
 * LMTP has one for each accepted recipient, repeated ones included (RFC 2033 §4.2). PRDR has them between a 353 and the
 * reply to the whole, and like Exim we leave that out where there is one recipient only.
 */
export function finalReplies({ reply, each }: Answer, lmtp: boolean): readonly Reply[] {
  if (each === null) return [reply];
  if (lmtp) return each;
  return each.length > 1 ? [prdrBegins(), ...each, reply] : [reply];
}
