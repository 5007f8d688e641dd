// Per-recipient data responses of a next hop (PRDR; draft-hall-prdr, as Exim has it): to the final dot it says 353, then
// one reply for each recipient in the order of the RCPTs, then one for the message as a whole. Without the 353 there is
// one reply for all, as ever.
import type { Outcome } from './outcome.ts';
import type { Exchange } from './session.ts';

export function isPrdr(exchange: Exchange): boolean {
  return exchange.kind === 'reply' && exchange.reply.code === 353;
}

/**
 * What each recipient's own answer is worth once the last one has come. Only a 2xx confirms them. Any other end takes
 * back what was accepted, and a 5xx is for all; else whoever was refused stays so.
 */
export function judged(each: readonly Outcome[], last: Outcome): readonly Outcome[] {
  if (last.kind === 'accepted') return each;
  return each.map((one) => (last.kind === 'rejected' || one.kind === 'accepted' ? last : one));
}
