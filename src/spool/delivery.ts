// One next hop's share of a buffered message: the envelope, the body from its start, the dot, the outcomes (claim 5).
// Owns its leg, which is released at the end, whatever the end is.
import { FanOut } from '../downstream/fan-out.ts';
import { Leg, type LegDeps } from '../downstream/leg.ts';
import { type Outcome, outcomeOf } from '../downstream/outcome.ts';
import type { NextHop } from '../routing/routes.ts';
import type { Recipient, Submission } from '../smtp/envelope.ts';
import type { TimeLine } from '../time-line.ts';

export type DeliveryDeps = Readonly<{
  leg: LegDeps;
  dataTimeoutMs: number;
  ackTimeoutMs: number;
  /** Seconds that the next hop was waited for in the body; the message is ours already, so only it can be. */
  onStandstill: (seconds: number) => void;
  /** Octets written to the next hop. */
  onSent: (octets: number) => void;
}>;

export type Delivery = Submission &
  Readonly<{
    recipients: readonly Recipient[];
    /** Wire form without the final line, from the first octet. */
    body: () => AsyncIterable<Buffer>;
    /** Of the transaction, while it is one. */
    line?: TimeLine | null;
  }>;

export type Delivered = Readonly<{
  /** One for each recipient. */
  outcomes: ReadonlyMap<Recipient, Outcome>;
  /** False: the next hop isn't there (claim 21's attempts included). */
  reached: boolean;
}>;

/** `soft`: a leg whose dot is not out is dropped; `hard`: every leg. */
export type Interrupt = Readonly<{ soft: AbortSignal; hard: AbortSignal }>;

/** In as many transactions as the next hop's own limits ask for (RFC 9422). Never rejects. */
export async function deliver(
  nextHop: NextHop,
  delivery: Delivery,
  deps: DeliveryDeps,
  interrupt: Interrupt,
): Promise<Delivered> {
  const first = await deliverOnce(nextHop, delivery, deps, interrupt);
  const outcomes = new Map(first.outcomes);
  let { left } = first;
  while (left.length > 0) {
    const next = await deliverOnce(nextHop, { ...delivery, recipients: left }, deps, interrupt);
    for (const [recipient, outcome] of next.outcomes) outcomes.set(recipient, outcome);
    left = next.left;
  }
  return { outcomes, reached: first.reached };
}

/** `left`: those for whom there is room in a transaction of their own. */
async function deliverOnce(
  nextHop: NextHop,
  delivery: Delivery,
  deps: DeliveryDeps,
  interrupt: Interrupt,
): Promise<Delivered & { left: readonly Recipient[] }> {
  const { recipients, body, line } = delivery;
  const leg = new Leg(nextHop, delivery, deps.leg, line);
  const outcomes = new Map<Recipient, Outcome>();
  const drop = () => leg.drop();
  const dropBeforeDot = () => {
    if (leg.phase !== 'dot') leg.drop();
  };
  interrupt.soft.addEventListener('abort', dropBeforeDot);
  interrupt.hard.addEventListener('abort', drop);
  if (interrupt.soft.aborted || interrupt.hard.aborted) leg.drop();
  try {
    const answers = await Promise.all(recipients.map((recipient) => leg.addRecipient(recipient)));
    for (const [at, answer] of answers.entries()) {
      const outcome = outcomeOf(answer);
      if (outcome !== null && outcome.kind !== 'accepted') outcomes.set(recipients[at]!, outcome);
    }
    if (leg.recipients.length > 0) {
      const results = await sendBody(leg, body, deps);
      for (const [at, recipient] of leg.recipients.entries()) outcomes.set(recipient, results[at]!);
    }
    // A next hop that was lost gets no more of it now.
    const left = leg.isAlive || leg.isReleased ? leg.beyondLimits : [];
    return { outcomes, reached: leg.reached, left };
  } finally {
    interrupt.soft.removeEventListener('abort', dropBeforeDot);
    interrupt.hard.removeEventListener('abort', drop);
    leg.release();
  }
}

/** The outcomes in the order of the leg's recipients. */
async function sendBody(leg: Leg, body: Delivery['body'], deps: DeliveryDeps): Promise<readonly Outcome[]> {
  const forAll = (outcome: Outcome) => leg.recipients.map(() => outcome);
  const refusal = await leg.startData();
  if (refusal !== null) return forAll(refusal);
  const standstill = { upstream: 0, downstream: 0 };
  const fanOut = new FanOut([leg], {
    dataTimeoutMs: deps.dataTimeoutMs,
    ackTimeoutMs: deps.ackTimeoutMs,
    independent: false,
    order: null,
    onAnswer: null,
    now: deps.leg.now,
    standstill,
  });
  let last: Buffer[] = [];
  try {
    for await (const chunk of body()) {
      const ready = fanOut.write(last);
      if (ready !== null) await ready;
      if (fanOut.failure !== null) break;
      last = [chunk];
    }
  } catch {
    // The buffer can't be read any more. A message cut short must not be completed: no dot.
    fanOut.drop();
    return forAll({ kind: 'lost', nextHop: leg.nextHop.label, phase: 'body', dotSent: false });
  }
  const outcomes = await fanOut.finish(last);
  deps.onSent(fanOut.bytesOut);
  if (standstill.downstream > 0) deps.onStandstill(standstill.downstream);
  return outcomes?.[0] ?? forAll(fanOut.failure!.outcome);
}
