// --dots ordered: the next hop whose answer is most in doubt is asked first, while nobody has the message yet.
import type { Leg } from './leg.ts';

/** By failures in a row, then by the share of refused and failed messages of the last five minutes; else as they were. */
export function leastTrustedFirst(legs: readonly Leg[], nowMs: number): readonly Leg[] {
  const ranked = legs.map((leg) => ({ leg, doubt: leg.health.doubt(nowMs) }));
  ranked.sort((a, b) => b.doubt.inARow - a.doubt.inARow || b.doubt.share - a.doubt.share);
  return ranked.map(({ leg }) => leg);
}
