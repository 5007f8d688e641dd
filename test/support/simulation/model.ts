// What is true, kept beside the proxy by those who know: the next hops, of what they have taken and said, and the
// upstream, of what it has sent and read. Each thing that happens is judged at once:
//   - a next hop takes whole messages only, of which the upstream has sent the end, and for whom it has accepted;
//   - it gets no copy for a recipient for whom it has said 2xx: a second copy is unavoidable, and so allowed, only where
//     the first was taken and nobody was told. Who sends it again, the upstream or the queue, makes no difference;
//   - what the upstream is told is true: 2xx: each recipient's next hop has said 2xx, or the reply says that it is queued;
//     4xx: not all have; 5xx: nothing is in doubt;
//   - what is queued reaches each recipient in the end, or its sender gets one notification of a refusal. There is none
//     for the null reverse-path, with NOTIFY=NEVER, for who has the message, and for whom the upstream was told of the
//     refusal. A second one is allowed as a second copy is;
//   - after a kill a second copy is allowed once more: where nothing but memory knew of the first, where what the upstream
//     had not heard of may be queued, and where the queue had no time to note the first. What a mixed reply has counted is
//     never forgotten where the ledger outlives the kill.
import type { Chance } from './chance.ts';

export type Fault = Readonly<{
  phase: 'mail' | 'rcpt' | 'data' | 'body' | 'dot';
  /** A code, or what else is done. With "take" the message is taken, and nobody is told. */
  act: string;
  /** Which recipient's RCPT: from 2 on the first, the second, else each. With LMTP, whose reply to the dot, counted round. */
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
export const MOST_DELAY_MS = 30;

export type Policy = Readonly<{
  mode: 'cut-through' | 'fast-path' | 'spool';
  fallback: 'none' | 'fast-path' | 'spool';
  mixed: 'fail' | 'split' | 'spool';
  dots: 'together' | 'ordered';
  /** Now and then, by SIGKILL: the process, or one of two workers. */
  killed?: 'proxy' | 'worker';
  /** Processes that share the listeners. */
  workers?: number;
  /** Drawn, where it isn't said. */
  ledger?: 'in memory' | 'on disk';
}>;

/** Whatever is not delivered at once is the queue's. */
export function spoolsForAll({ mode, fallback }: Policy): boolean {
  return mode !== 'cut-through' || fallback !== 'none';
}

/** Where the senders are, and notifications go. */
export const SENDERS = 'src.example';

export type Message = Readonly<{
  id: string;
  /** Empty: the null reverse-path. */
  sender: string;
  recipients: readonly string[];
  /** NOTIFY=NEVER for all of them. */
  silent: boolean;
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
  /** Attempts that the upstream has ended, and that it knows of no failure of: the proxy may have promised it. */
  open: number;
  /** Of `told`, those before the attempt under way. */
  toldBefore: number;
  /** The proxy has been told, and must not have forgotten it. */
  known: boolean;
  /** When it was told, milliseconds. */
  toldAt: number;
  /** What is known of it is on disk, or where else it outlives a kill. */
  kept: boolean;
  /** The upstream has read a 2xx, and won't send it again. */
  promised: boolean;
  /** Attempts of which a kill has hidden the end: each may have left one in the queue … */
  hidden: number;
  /** … that has not been delivered yet. */
  strays: number;
  /** Of notifications, those that the sender's next hop has said to have. */
  notified: number;
  notifiedAt: number;
  /** Further ones that a kill may have caused. */
  notifiable: number;
};

/** Until the queue has noted what a next hop has told it, at the most. */
const NOTED_MS = 3_000;

const NOTHING_YET: Copy = {
  told: 0,
  untold: 0,
  refused: false,
  refusedData: false,
  open: 0,
  toldBefore: 0,
  known: false,
  toldAt: 0,
  kept: false,
  promised: false,
  hidden: 0,
  strays: 0,
  notified: 0,
  notifiedAt: 0,
  notifiable: 0,
};

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
  readonly #ledgerOutlives: boolean;
  /** From before a kill until all that was under way has come to its end: nobody may hear what is said now. */
  #dying = false;
  readonly #messages = new Map<string, Known>();
  readonly #byEnvelope = new Map<string, Known[]>();
  /** By envelope and domain: what goes wrong at the visits to come. */
  readonly #faults = new Map<string, Fault[]>();

  /** @param ledgerOutlives what is on record does */
  constructor(policy: Policy, ledgerOutlives: boolean) {
    this.#policy = policy;
    this.#ledgerOutlives = ledgerOutlives;
  }

  add(message: Message): void {
    const copies = new Map(message.recipients.map((to) => [to, { ...NOTHING_YET }]));
    const known: Known = { message, copies, complete: false, story: [] };
    this.#messages.set(message.id, known);
    const envelope = envelopeOf(message.recipients[0]!);
    this.#byEnvelope.set(envelope, [...(this.#byEnvelope.get(envelope) ?? []), known]);
  }

  /**
   * Up to three faults at each of the next hops of its recipients, and at its sender's; then all is well. A notification that
   * is refused has nobody left to tell.
   */
  plan({ recipients }: Message, chance: Chance): void {
    const envelope = envelopeOf(recipients[0]!);
    for (const domain of new Set([...recipients.map(domainOf), SENDERS])) {
      const faults = Array.from({ length: chance.below(MOST_FAULTS + 1) }, (): Fault => {
        const phase = chance.of(PHASES);
        const stalls = phase === 'dot' && chance.is(STALLS);
        const acts = FAULTS[phase].filter((act) => domain !== SENDERS || !act.startsWith('5'));
        const act = stalls ? chance.of(['stall', 'take stall']) : chance.of(acts);
        return {
          phase,
          act,
          nth: chance.below(4),
          delayMs: chance.is(DELAYED) ? chance.below(MOST_DELAY_MS) : 0,
        };
      });
      this.#faults.set(`${envelope} ${domain}`, faults);
    }
  }

  /** A transaction at a next hop begins: what will go wrong this time. */
  visit(envelope: string, domain: string): Fault | null {
    return this.#faults.get(`${envelope} ${domain}`)?.shift() ?? null;
  }

  /** Before a kill. */
  dies(): void {
    this.#dying = true;
    const now = performance.now();
    for (const { copies, story } of this.#messages.values()) {
      story.push('KILLED');
      for (const copy of copies.values()) this.#forget(copy, now);
    }
  }

  /** All that was under way at the kill has come to its end. */
  isDead(): void {
    this.#dying = false;
  }

  /** What is on record only where it ended with the process. */
  #forget(copy: Copy, now: number): void {
    const noted = copy.promised && copy.toldAt < now - NOTED_MS;
    if (this.#spools && !copy.promised) copy.hidden = copy.open;
    copy.known &&= noted || (copy.kept && copy.hidden === 0);
    if (!noted) copy.strays = copy.hidden;
    if (!this.#spools) return;
    // For each that is queued: that the notification was made may not be noted, nor that it was delivered.
    if (copy.notified === 0 || copy.notifiedAt > now - NOTED_MS) copy.notifiable += 2 * (1 + copy.hidden);
  }

  /** The upstream begins. */
  attempted({ id }: Message, fault: string | null): void {
    this.#messages.get(id)!.story.push(fault === null ? 'ATTEMPT' : `ATTEMPT (${fault})`);
  }

  /** The upstream is about to send the final dot. */
  completes({ id }: Message, accepted: readonly string[]): void {
    const known = this.#messages.get(id)!;
    known.complete = true;
    for (const recipient of accepted) {
      const copy = known.copies.get(recipient)!;
      copy.open++;
      copy.toldBefore = copy.told;
    }
  }

  /** A next hop has taken a message. */
  taken(wire: Buffer, recipient: string, told: boolean): void {
    if (domainOf(recipient) === SENDERS) return this.#notification(wire.toString('latin1'), recipient, told);
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
    if (copy.known && copy.strays === 0) this.#violated(known, `<${recipient}> has it twice`);
    else if (copy.known && told) copy.strays--;
    if (copy.told + copy.untold > 0) this.duplicates++;
    if (!told) {
      copy.untold++;
      return;
    }
    copy.told++;
    copy.toldAt = performance.now();
    copy.known ||= !this.#dying;
  }

  #notification(text: string, sender: string, told: boolean): void {
    const id = /^Message-ID: (\d+t?)\r$/m.exec(text)?.[1] ?? '';
    const known = this.#messages.get(id);
    if (known === undefined || known.message.sender !== sender) {
      this.violations.push(`<${sender}> got a notification about "${id}", which isn't its own`);
      return;
    }
    for (const [, recipient] of text.matchAll(/^Final-Recipient: rfc822; ?(\S+)\r$/gm)) {
      known.story.push(`notified of ${recipient}${told ? '' : ', and told nobody'}`);
      const copy = known.copies.get(recipient!);
      if (copy === undefined) {
        this.#violated(known, `notified of <${recipient}>`);
        continue;
      }
      if (!copy.refused) this.#violated(known, `notified of <${recipient}>, which was not refused`);
      if (known.message.silent) this.#violated(known, `notified of <${recipient}> in spite of NOTIFY=NEVER`);
      if (copy.notified > 0 && copy.notifiable-- <= 0)
        this.#violated(known, `notified of <${recipient}> twice`);
      if (!told) continue;
      copy.notified++;
      copy.notifiedAt = performance.now();
    }
  }

  /** A next hop has said 5xx. @param recipients null: to the sender, so for all of the domain */
  refused(
    at: Readonly<{ phase: string; envelope: string; domain: string }>,
    recipients: readonly string[] | null,
  ): void {
    for (const { message, copies, story } of this.#byEnvelope.get(at.envelope) ?? []) {
      const whom = recipients ?? message.recipients.filter((each) => domainOf(each) === at.domain);
      story.push(`${whom.join(' ')} refused (${at.phase})`);
      for (const recipient of whom) {
        copies.get(recipient)!.refused = true;
        copies.get(recipient)!.refusedData ||= at.phase === 'data';
      }
    }
  }

  /** The upstream has read the reply to its final dot. @param whom it is for, with LMTP one of those accepted */
  answered({ id }: Message, accepted: readonly string[], reply: string, whom: readonly string[]): void {
    const known = this.#messages.get(id)!;
    known.story.push(`"${reply}" for ${whom.join(' ')}`);
    const all = accepted.map((recipient) => known.copies.get(recipient)!);
    const its = whom.map((recipient) => known.copies.get(recipient)!);
    // No other attempt can have told it meanwhile.
    const own = whom.length === 1 && its[0]!.open === 1 && its[0]!.told > its[0]!.toldBefore;
    if (own && accepted.length > 1 && !reply.startsWith('2')) this.#violated(known, `<${whom[0]}> has it`);
    if (!reply.startsWith('2')) for (const copy of its) copy.open--;
    // Who has it is counted there, and so on record.
    if (this.#ledgerOutlives && / 4\.5\.0 /.test(reply)) for (const copy of all) copy.kept ||= copy.known;
    if (!/^[245]\d\d /.test(reply)) this.#violated(known, 'that is no answer');
    else if (spoolsForAll(this.#policy)) this.#answeredWithSpool(known, its, reply);
    else this.#answeredWithout(known, all, its, reply);
  }

  /** PRDR: with its first and its last reply the upstream has been told of each recipient what stands between them. */
  framed({ id }: Message, first: string, each: readonly string[], last: string): void {
    const known = this.#messages.get(id)!;
    known.story.push(`"${first}" … "${last}"`);
    // RFC 5321's classes: a 4xx or 5xx at last is for all.
    const best = each.map((reply) => reply[0]!).sort()[0]!;
    if (!first.startsWith('353') || last[0] !== best) this.#violated(known, 'it says something else at last');
  }

  get offersPrdr(): boolean {
    return this.#policy.mode === 'cut-through';
  }

  /** Whatever is in doubt is the queue's. */
  #answeredWithSpool(known: Known, its: readonly Copy[], reply: string): void {
    // An earlier attempt may have been promised, and then it is the queue's by now.
    const cared = its.every(({ told, open }) => told > 0 || open > 1);
    if (reply.startsWith('2') && !cared && !isQueued(reply)) this.#violated(known, 'nobody sees to it');
    // 4.4.5: whoever sends it again while it is still being delivered has to wait.
    if (reply.startsWith('4') && !reply.includes('4.4.5')) this.#violated(known, 'it could have been queued');
    // What a kill has left to the queue, it may have delivered by now.
    if (
      reply.startsWith('5') &&
      !its.every(({ known, refused, hidden }) => (!known || hidden > 0) && refused)
    )
      this.#violated(known, 'not all have refused it');
  }

  /** What goes wrong before the dots is told to each alike. */
  #answeredWithout(known: Known, all: readonly Copy[], its: readonly Copy[], reply: string): void {
    const have = all.every(({ known }) => known);
    const nobody = all.every(({ known }) => !known);
    const cared = its.every(({ told, open }) => told > 0 || (this.#spools && open > 1));
    // A refusal of DATA is that of all, also when it comes late, since the header was waited for; and with ordered dots so is
    // the first one while nobody has the message.
    const withholds = this.#policy.dots === 'ordered' && its.length === all.length;
    const first = withholds && nobody && all.some(({ refused }) => refused);
    const shared = first || all.some(({ refusedData }) => refusedData);
    if (reply.startsWith('2') && !cared && !(this.#spools && isQueued(reply)))
      this.#violated(known, 'not all have it');
    // As above.
    if (reply.startsWith('4') && have && !reply.includes('4.4.5')) this.#violated(known, 'all have it');
    if (reply.startsWith('5') && !shared && !its.every(({ told, refused }) => told > 0 || refused))
      this.#violated(known, 'something is in doubt');
  }

  /** The upstream acts on what it was told: it won't send the message again. */
  heard({ id }: Message, recipient: string, reply: string): void {
    const copy = this.#messages.get(id)!.copies.get(recipient)!;
    copy.promised = reply.startsWith('2');
    // Who has it stands in the envelope of what is queued, unless the queue has begun with it meanwhile.
    if (!spoolsForAll(this.#policy)) copy.kept ||= copy.known && copy.promised;
  }

  /** Some of the mail is the queue's. */
  get #spools(): boolean {
    return spoolsForAll(this.#policy) || this.#policy.mixed === 'spool';
  }

  /** In the end, when the queue is empty. */
  final({ id, sender, silent }: Message, recipient: string, reply: string): void {
    const known = this.#messages.get(id)!;
    const { told, refused, notified, notifiable, open } = known.copies.get(recipient)!;
    const isDone = told > 0 || (this.#spools && refused && (notified > 0 || silent || sender === ''));
    if (reply.startsWith('2') && !isDone)
      this.#violated(known, `<${recipient}> was promised it by "${reply}"`);
    // A message that is there twice, since its upstream could not know, can be refused for one of the two.
    if (told > 0 && notified > 0 && notifiable <= 0)
      this.#violated(known, `notified of <${recipient}>, which has it`);
    if (reply.startsWith('5') && open === 0 && notified > 0)
      this.#violated(known, `notified of <${recipient}>, although told of its refusal`);
  }

  storyOf({ id }: Message): string {
    return this.#messages.get(id)!.story.join('\n  ');
  }

  #violated({ message, story }: Known, what: string): void {
    this.violations.push(`${message.id}: ${what}\n  ${story.join('\n  ')}`);
  }
}

function isQueued(reply: string): boolean {
  return reply.includes('queued as');
}

/** The number that a message has in common with its twin stands in each address of theirs. */
export function envelopeOf(address: string): string {
  return /\d+/.exec(address)?.[0] ?? '';
}

function domainOf(address: string): string {
  return address.slice(address.indexOf('@') + 1);
}
