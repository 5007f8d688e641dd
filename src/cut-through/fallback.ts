// What the spool does beside the legs, under --fallback and --mixed spool: it keeps the message from its first byte, for
// those who miss it in the end (claims 1-4 and 25-27), and takes them over (claims 6 and 7).
// Owns the copy until settle() or discard().
import type { Config } from '../config.ts';
import type { Leg } from '../downstream/leg.ts';
import type { Outcome } from '../downstream/outcome.ts';
import type { Recipient, Submission } from '../smtp/envelope.ts';
import { type Reply, recipientOk } from '../smtp/reply.ts';
import type { MessageBuffer } from '../spool/buffer.ts';
import type { Result, Settled, Spooler } from '../spool/spooler.ts';
import type { Known } from './recipients.ts';

export class Fallback {
  readonly #spooler: Spooler;
  /** --fallback: for whoever misses the message. Else, with --mixed spool, only for who misses what others have. */
  readonly isForAll: boolean;
  readonly #missed: Known[] = [];
  #room = true;
  #copy: MessageBuffer | null = null;

  constructor(spooler: Spooler, { fallback }: Pick<Config, 'fallback'>) {
    this.#spooler = spooler;
    this.isForAll = fallback !== 'none';
  }

  /** Recipients whose next hop is out of reach, or has refused DATA, and what was said of it. */
  get missed(): readonly Known[] {
    return this.#missed;
  }

  /** Every one of them was refused for good: the upstream can be told. */
  get hasOnlyRefused(): boolean {
    return this.#missed.every(({ outcome }) => outcome.kind === 'rejected');
  }

  /** The recipient's next hop can't be reached now. @returns what its RCPT gets in place of what is `said` of that */
  miss(recipient: Recipient, nextHop: string, said: Reply): Reply {
    this.#missed.push({ recipient, nextHop, outcome: { kind: 'deferred', reply: said } });
    return recipientOk();
  }

  /** The leg is out, and its recipients get the message, or their sender a notification, later. */
  replace(leg: Leg, outcome: Outcome): void {
    leg.drop();
    for (const recipient of leg.recipients)
      this.#missed.push({ recipient, nextHop: leg.nextHop.label, outcome });
  }

  /** Whoever's fate is on record must not get the message again, from the queue neither. */
  leaveOut(known: ReadonlyMap<Recipient, Outcome>): void {
    const left = this.#missed.filter(({ recipient }) => !known.has(recipient));
    this.#missed.splice(0, this.#missed.length, ...left);
  }

  /** At DATA. False: there is no room on the disk for those who are missed already. */
  async findRoom(): Promise<boolean> {
    this.#room = await this.#spooler.hasRoom();
    return this.#room || this.#missed.length === 0;
  }

  /** A leg that fails from DATA on costs the message nothing. */
  get replacesLegs(): boolean {
    return this.isForAll && this.#room;
  }

  /** The body is about to come. @param accepted number of recipients */
  open(id: string, accepted: number): void {
    // --mixed spool needs it only where recipients can differ.
    if (this.#room && (this.isForAll || accepted > 1)) this.#copy = this.#spooler.newBuffer(id);
  }

  /** Null when the bytes are taken; else settles when the next may come. A copy that has failed says so at the end. */
  write(pieces: readonly Buffer[]): Promise<void> | null {
    return this.#copy?.write(pieces)?.catch(() => {}) ?? null;
  }

  /** Whether some must get the message from the spool. @param outcomes of those who were not missed */
  isNeeded(outcomes: readonly Outcome[]): boolean {
    if (this.#copy === null) return false;
    const accepted = outcomes.filter(({ kind }) => kind === 'accepted').length;
    if (accepted === outcomes.length && this.#missed.length === 0) return false;
    return this.isForAll || accepted > 0;
  }

  /** Where isNeeded(): the spool answers for `results`, and has the copy. */
  settle(submission: Submission, results: readonly Result[]): Promise<Settled> {
    const copy = this.#copy!;
    this.#copy = null;
    return this.#spooler.settle(submission, results, copy);
  }

  /** The message will not be needed again. */
  discard(): void {
    if (this.#copy !== null) void this.#spooler.discard(this.#copy);
  }
}
