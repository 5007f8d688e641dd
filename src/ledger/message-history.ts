// One message's dealings with the ledger: what is on record of it from before, and what is to be put on record of it now.
//
//   RCPT     asks(): whether anything is known of this sender and recipient (almost never);
//   header   judge(): which recipients' fate is known, for it is the same message again;
//   the end  isSame(): whether the body is the same, too. Only then is anything suppressed; isOvertaken(): whether an earlier
//            try has come to its end meanwhile;
//   dots     intend(): with a journal and several legs, that the outcome is open; settled(): who has it, as that becomes known;
//   verdict  told(): what the upstream is about to be told; then confirmed(), since a later command shows that it knows,
//            or vanished(): it may not.
//
// An entry is left behind only where the upstream may not know the outcome.
import type { Outcome } from '../downstream/outcome.ts';
import type { Client, Recipient, Sender } from '../smtp/envelope.ts';
import { alreadyDelivered, type Reply, replyClass } from '../smtp/reply.ts';
import { fingerprintOf, isIdentified } from './fingerprint.ts';
import type { Entry, Fate, Ledger } from './ledger.ts';

/** What a message is known by, see MessageBody. */
type Message = Readonly<{ header: Buffer | null; octets: number; digest: Readonly<{ value: string }> }>;

/** One reply for all; or with `each` their own ones, and then it is 2xx if anybody's is. */
type Said = Readonly<{ reply: Reply; each?: ReadonlyMap<Recipient, Reply> | undefined }>;

export type RecipientOutcome = Readonly<{ recipient: Recipient; outcome: Outcome | null }>;

export class MessageHistory {
  readonly #ledger: Ledger;
  readonly #reversePath: string;
  readonly #client: Client;
  /** Seldom any: made when there are. */
  #suspects: Set<Recipient> | null = null;
  #known: Map<Recipient, Entry> | null = null;
  #fingerprint: string | null | undefined;
  #body: Message | null = null;
  /** Entries are to outlive the process. */
  #durable = false;
  #intended: readonly Recipient[] = [];
  /** Outcomes on their way to the disk. */
  #settling: Promise<unknown> = Promise.resolve();
  /** Nothing is open any more. */
  #isOver = false;
  /** What the upstream was told last, and who is covered by it. */
  #told: (Said & { recipients: readonly Recipient[] }) | null = null;

  constructor(ledger: Ledger, sender: Sender, client: Client) {
    this.#ledger = ledger;
    this.#reversePath = sender.mailbox?.address ?? '';
    this.#client = client;
  }

  /** At RCPT. True: the recipient's next hop must not get DATA before judge(). */
  asks(recipient: Recipient): boolean {
    if (!this.#ledger.knows(this.#reversePath, recipient.mailbox.address)) return false;
    this.#suspects ??= new Set();
    this.#suspects.add(recipient);
    return true;
  }

  get hasSuspects(): boolean {
    return this.#suspects !== null;
  }

  isSuspect(recipient: Recipient): boolean {
    return this.#suspects?.has(recipient) ?? false;
  }

  /** When the header block has come. False: the message's outcome is still open elsewhere, so nothing can be done now. */
  judge(body: Message): boolean {
    this.#body = body;
    this.#known = new Map();
    for (const recipient of this.#suspects ?? []) {
      const entry = this.#find(recipient);
      if (entry?.fate.kind === 'pending') return false;
      if (entry !== null) this.#known.set(recipient, entry);
    }
    return true;
  }

  /** Recipients who must not get the message again, and what it counts as for them. */
  get known(): ReadonlyMap<Recipient, Outcome> {
    if (this.#known === null) return NOBODY;
    return new Map([...this.#known].map(([recipient, { fate }]) => [recipient, outcomeOf(fate)]));
  }

  /**
   * At the end, before the dots. False: what is on record is not of this message, although all of its header is the
   * same; it is forgotten, so that the next try delivers.
   */
  isSame(): boolean {
    if (this.#known === null || this.#body === null) return true;
    const entries = [...this.#known.values()];
    if (entries.length === 0) return true;
    const { octets, digest } = this.#body;
    const different = entries.filter((entry) => entry.octets !== octets || entry.digest !== digest.value);
    for (const entry of different) this.#ledger.drop(entry);
    return different.length === 0;
  }

  /**
   * At the end, before the dots: by now recipients are on record of whom nothing was at RCPT. The upstream has sent the
   * message before, and we have read the end of that only now.
   */
  isOvertaken(recipients: readonly Recipient[], body: Message): boolean {
    if (this.#ledger.isEmpty) return false;
    this.#body = body;
    const isOurs = (recipient: Recipient) =>
      this.#known?.has(recipient) === true || this.#intended.includes(recipient);
    return recipients.some(
      (recipient) =>
        !isOurs(recipient) &&
        this.#ledger.knows(this.#reversePath, recipient.mailbox.address) &&
        this.#find(recipient) !== null,
    );
  }

  /** Before several dots: their outcomes will be open for a moment, and one of them may be all we learn. */
  async intend(recipients: readonly Recipient[], body: Message): Promise<void> {
    if (!this.#ledger.isKept) return;
    this.#body = body;
    this.#durable = true;
    this.#intended = [...this.#intended, ...recipients];
    await Promise.all(recipients.map((recipient) => this.#put(recipient, { kind: 'pending' })));
  }

  /** After intend(), as each outcome comes in. For whoever misses it all is open until told(): the queue may take it. */
  settled(outcomes: readonly RecipientOutcome[]): void {
    if (!this.#durable) return;
    const delivered = outcomes.filter(({ outcome }) => outcome?.kind === 'accepted');
    this.#settling = Promise.all([this.#settling, this.#putAll(delivered)]);
  }

  /** After intend() or pend(): the dots have not gone out after all. */
  abandon(): void {
    this.#durable = false;
    this.#forgetAll(this.#intended);
  }

  /** The upstream has gone, or may have, while the dots are out or about to go out. */
  pend(recipients: readonly Recipient[], body: Message): void {
    // While an outcome is on its way to the disk, nobody would ever settle what is put as open now.
    if (this.#isOver) return;
    this.#body = body;
    // What is on record already is not ours to forget.
    const fresh = recipients.filter((recipient) => this.#find(recipient) === null);
    this.#intended = [...this.#intended, ...fresh];
    for (const recipient of fresh) void this.#put(recipient, { kind: 'pending' });
  }

  /**
   * @param upstreamGone nobody hears the reply
   * @returns a promise where something must be on disk before the reply leaves
   */
  told(
    { reply, each }: Said,
    outcomes: readonly RecipientOutcome[],
    body: Message,
    upstreamGone: boolean,
  ): Promise<unknown> | null {
    // Kept while the upstream thinks of its next command: no more of it than that needs.
    this.#body = { header: body.header, octets: body.octets, digest: body.digest };
    this.#isOver = true;
    this.#told = { reply, each, recipients: outcomes.map(({ recipient }) => recipient) };
    if (replyClass(reply) === 2) {
      if (upstreamGone) this.#keepDelivered();
      return null;
    }
    if (outcomes.some(({ outcome }) => outcome?.kind === 'accepted')) {
      this.#durable ||= this.#ledger.isKept;
      return Promise.all([this.#settling, this.#putAll(outcomes)]);
    }
    // Nobody has it: whoever sends it again does right.
    this.#forgetAll(this.#told.recipients);
    return null;
  }

  /** A command has come that was sent after the reply. What the upstream will not repeat needs no entry. */
  confirmed(): void {
    if (this.#told !== null && replyClass(this.#told.reply) !== 4) this.#forgetAll(this.#told.recipients);
    this.#told = null;
  }

  /**
   * The connection has ended, and no later command came: the upstream has read the reply, or it has not. One that has
   * ended it in good order mostly has; and what then looks the same may be another message, where nothing in it says
   * which one it is. The loss of one is worse than a second copy.
   */
  vanished(byReset: boolean): void {
    const header = this.#body?.header ?? null;
    const isKnowable = byReset || (header !== null && isIdentified(header));
    const isOpen = this.#told?.recipients.some((recipient) => this.#find(recipient) !== null) ?? false;
    if (isKnowable || isOpen) this.#keepDelivered();
    else this.#told = null;
  }

  #keepDelivered(): void {
    const told = this.#told;
    this.#told = null;
    if (told === null || replyClass(told.reply) !== 2) return;
    for (const recipient of told.recipients) {
      const its = told.each?.get(recipient) ?? told.reply;
      if (replyClass(its) === 2) void this.#put(recipient, { kind: 'delivered' });
      else this.#forget(recipient);
    }
  }

  #forgetAll(recipients: readonly Recipient[]): void {
    if (this.#ledger.isEmpty) return;
    for (const recipient of recipients) this.#forget(recipient);
  }

  #forget(recipient: Recipient): void {
    const entry = this.#find(recipient);
    if (entry !== null) this.#ledger.drop(entry);
  }

  #find({ mailbox }: Recipient): Entry | null {
    const fingerprint = this.#fingerprinted();
    if (fingerprint === null) return null;
    return this.#ledger.find({
      reversePath: this.#reversePath,
      forwardPath: mailbox.address,
      fingerprint,
    });
  }

  async #putAll(outcomes: readonly RecipientOutcome[]): Promise<void> {
    await Promise.all(outcomes.map(({ recipient, outcome }) => this.#putOrDrop(recipient, outcome)));
  }

  /** A fate that is not final is not on record. */
  async #putOrDrop(recipient: Recipient, outcome: Outcome | null): Promise<void> {
    if (outcome?.kind === 'accepted') return await this.#put(recipient, { kind: 'delivered' });
    if (outcome?.kind === 'rejected')
      return await this.#put(recipient, { kind: 'rejected', reply: outcome.reply });
    this.#forget(recipient);
  }

  async #put({ mailbox }: Recipient, fate: Fate): Promise<void> {
    const fingerprint = this.#fingerprinted();
    if (fingerprint === null || this.#body === null) return;
    const key = { reversePath: this.#reversePath, forwardPath: mailbox.address, fingerprint };
    const { octets, digest } = this.#body;
    const known = this.#ledger.find(key);
    // What is known already is not open any more.
    if (known !== null && fate.kind === 'pending') return;
    if (known?.fate.kind === fate.kind && (known.durable || !this.#durable)) return;
    await this.#ledger.put({ ...key, octets, digest: digest.value, fate, durable: this.#durable });
  }

  /** Made when it is needed, which is seldom. Null: the header was too long to be kept. */
  #fingerprinted(): string | null {
    if (this.#fingerprint === undefined) {
      const header = this.#body?.header ?? null;
      this.#fingerprint = header && fingerprintOf(this.#reversePath, this.#client, header);
    }
    return this.#fingerprint;
  }
}

const NOBODY: ReadonlyMap<Recipient, Outcome> = new Map();

function outcomeOf(fate: Fate): Outcome {
  return fate.kind === 'rejected'
    ? { kind: 'rejected', reply: fate.reply }
    : { kind: 'accepted', reply: alreadyDelivered() };
}
