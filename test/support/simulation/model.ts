// What is true, kept beside the proxy by those who know: the next hops, of what they have taken and said, and the
// upstream, of what it has sent and read. Each thing that happens is judged at once:
//   - a next hop takes whole messages only, of which the upstream has sent the end, and for whom it has accepted;
//   - it gets no copy for a recipient for whom it has said 2xx: a second copy is unavoidable, and so allowed, only where
//     the first was taken and nobody was told;
//   - what the upstream is told is true: 2xx: each recipient's next hop has said 2xx (or the queue will see to it); 4xx: not all have;
//     5xx: nothing is in doubt.
import type { Chance } from './chance.ts';

export type Fault = Readonly<{
  phase: 'mail' | 'rcpt' | 'data' | 'body' | 'dot';
  /** A code, or what else is done. With "take" the message is taken, and nobody is told. */
  act: string;
  /** With LMTP, whose reply: the one of this recipient, counted round. */
  nth: number;
  /** Before the answer to the dot. */
  delayMs: number;
}>;

const FAULTS: Readonly<Record<Fault['phase'], readonly string[]>> = {
  mail: ['451', '550', '421', 'rst'],
  rcpt: ['451', '550', '421', 'rst'],
  data: ['451', '554', '421', 'rst', '250'],
  body: ['451', '554', '250', 'rst'],
  dot: ['451', '451', '451', '554', '421', 'rst', 'nonsense', 'take rst', 'take nonsense', 'fin after 250'],
};
const PHASES = ['mail', 'rcpt', 'data', 'body', 'dot', 'dot', 'dot', 'dot'] as const;
/** Each costs an --ack-timeout. */
const STALLS = 0.01;
const MOST_FAULTS = 3;
const DELAYED = 0.3;
const MOST_DELAY_MS = 30;

export type Policy = Readonly<{ mixed: 'fail' | 'split' | 'spool'; dots: 'together' | 'ordered' }>;

export type Message = Readonly<{
  id: string;
  sender: string;
  recipients: readonly string[];
  /** Wire form, without the final dot. */
  wire: Buffer;
}>;

/** One recipient's copy. */
type Copy = {
  /** Taken, and the next hop has said so. */
  told: number;
  /** Taken, and nobody was told. */
  untold: number;
  refused: boolean;
  refusedData: boolean;
};

const NOTHING_YET: Copy = { told: 0, untold: 0, refused: false, refusedData: false };

type Known = {
  readonly message: Message;
  readonly copies: Map<string, Copy>;
  /** The upstream has begun to send its end. */
  complete: boolean;
  /** What came to pass, for whoever has to understand a violation. */
  readonly story: string[];
};

export class Model {
  readonly violations: string[] = [];
  /** Second copies, all of them unavoidable. */
  duplicates = 0;
  readonly #policy: Policy;
  readonly #messages = new Map<string, Known>();
  readonly #bySender = new Map<string, Known[]>();
  /** By sender and domain: what goes wrong at the visits to come. */
  readonly #faults = new Map<string, Fault[]>();

  constructor(policy: Policy) {
    this.#policy = policy;
  }

  add(message: Message): void {
    const copies = new Map(message.recipients.map((to) => [to, { ...NOTHING_YET }]));
    const known: Known = { message, copies, complete: false, story: [] };
    this.#messages.set(message.id, known);
    this.#bySender.set(message.sender, [...(this.#bySender.get(message.sender) ?? []), known]);
  }

  /** Up to three faults at each of the next hops of its recipients; then all is well. */
  plan({ sender, recipients }: Message, chance: Chance): void {
    for (const domain of new Set(recipients.map(domainOf))) {
      const faults = Array.from({ length: chance.below(MOST_FAULTS + 1) }, (): Fault => {
        const phase = chance.of(PHASES);
        const stalls = phase === 'dot' && chance.is(STALLS);
        const act = stalls ? chance.of(['stall', 'take stall']) : chance.of(FAULTS[phase]);
        return {
          phase,
          act,
          nth: chance.below(4),
          delayMs: chance.is(DELAYED) ? chance.below(MOST_DELAY_MS) : 0,
        };
      });
      this.#faults.set(`${sender} ${domain}`, faults);
    }
  }

  /** A next hop's MAIL command: what will go wrong this time. */
  visit(sender: string, domain: string): Fault | null {
    return this.#faults.get(`${sender} ${domain}`)?.shift() ?? null;
  }

  /** The upstream begins. */
  attempted({ id }: Message, fault: string | null): void {
    this.#messages.get(id)!.story.push(fault === null ? 'ATTEMPT' : `ATTEMPT (${fault})`);
  }

  /** The upstream is about to send the final dot. */
  completes({ id }: Message): void {
    this.#messages.get(id)!.complete = true;
  }

  /** A next hop has taken a message. */
  taken(wire: Buffer, recipient: string, told: boolean): void {
    const id = /^Message-ID: (\S+)\r\n/m.exec(wire.toString('latin1', 0, 2_000))?.[1] ?? '';
    const known = this.#messages.get(id);
    const copy = known?.copies.get(recipient);
    if (known === undefined || copy === undefined) {
      this.violations.push(`<${recipient}> got "${id}", which isn't its own`);
      return;
    }
    const { message, complete, story } = known;
    story.push(`${recipient} took it${told ? '' : ' and told nobody'}`);
    if (!wire.subarray(-message.wire.length).equals(message.wire))
      this.#violated(known, 'damaged or truncated');
    if (!complete) this.#violated(known, 'completed before its end had come');
    if (copy.told > 0) this.#violated(known, `<${recipient}> has it twice`);
    if (copy.told + copy.untold > 0) this.duplicates++;
    if (told) copy.told++;
    else copy.untold++;
  }

  /** A next hop has said 5xx. @param recipients null: to the sender, so for all of the domain */
  refused(
    at: Readonly<{ phase: string; sender: string; domain: string }>,
    recipients: readonly string[] | null,
  ): void {
    for (const { message, copies, story } of this.#bySender.get(at.sender) ?? []) {
      const whom = recipients ?? message.recipients.filter((each) => domainOf(each) === at.domain);
      story.push(`${whom.join(' ')} refused (${at.phase})`);
      for (const recipient of whom) {
        copies.get(recipient)!.refused = true;
        copies.get(recipient)!.refusedData ||= at.phase === 'data';
      }
    }
  }

  /** The upstream has read the reply to its final dot. */
  answered({ id }: Message, accepted: readonly string[], reply: string): void {
    const known = this.#messages.get(id)!;
    known.story.push(`"${reply}" for ${accepted.join(' ')}`);
    const all = accepted.map((recipient) => known.copies.get(recipient)!);
    const have = all.every(({ told }) => told > 0);
    const nobody = all.every(({ told }) => told === 0);
    const queued = this.#policy.mixed === 'spool';
    // A refusal of DATA is that of all, also when it comes late, since the header was waited for; and with ordered dots so is
    // the first one while nobody has the message.
    const first = this.#policy.dots === 'ordered' && nobody && all.some(({ refused }) => refused);
    const shared = first || all.some(({ refusedData }) => refusedData);
    if (reply.startsWith('2') && !have && !queued) this.#violated(known, 'not all have it');
    // 4.4.5: whoever sends it again while it is still being delivered has to wait.
    if (reply.startsWith('4') && have && !reply.includes('4.4.5')) this.#violated(known, 'all have it');
    if (reply.startsWith('5') && !shared && !all.every(({ told, refused }) => told > 0 || refused))
      this.#violated(known, 'something is in doubt');
    if (!/^[245]\d\d /.test(reply)) this.#violated(known, 'that is no answer');
  }

  /** In the end. @param bounced recipients that a notification names */
  final({ id }: Message, recipient: string, reply: string, bounced: ReadonlySet<string>): void {
    const known = this.#messages.get(id)!;
    const { told, refused } = known.copies.get(recipient)!;
    const notified = refused && bounced.has(recipient);
    if (reply.startsWith('2') && told === 0 && !notified)
      this.#violated(known, `<${recipient}> was promised it by "${reply}"`);
  }

  #violated({ message, story }: Known, what: string): void {
    this.violations.push(`${message.id}: ${what}\n  ${story.join('\n  ')}`);
  }
}

function domainOf(address: string): string {
  return address.slice(address.indexOf('@') + 1);
}
