// An upstream of the simulation: a queue that sends a message again until every recipient is told something final, and that
// itself disappears now and then, in every phase. It speaks LMTP, or SMTP and asks for PRDR now and then.
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '../client.ts';
import { portOf } from '../proxy.ts';
import type { Chance } from './chance.ts';
import type { Message, Model } from './model.ts';

/** Of the attempts. */
const FAULTY = 0.3;
/** Of the attempts over SMTP. */
const PRDR = 0.3;
const FAULTS = [
  'reset after the envelope',
  'reset before the body',
  'reset in the body',
  'reset behind the dot',
  'close behind the dot',
  'deaf',
  'deaf, with QUIT sent ahead',
  'QUIT sent ahead',
  'RSET',
] as const;
type Fault = (typeof FAULTS)[number] | null;

/**
 * The end of a larger message may wait to be read behind a slow disk until the next try is through. Nobody can tell them
 * from two messages then; and a queue doesn't try again so soon.
 */
const UNREAD_OCTETS = 2_000;

const MOST_ATTEMPTS = 60;

/** As a queue has it: what a next hop keeps open for an --ack-timeout must not take up all the attempts. */
export async function patience(attempts: number): Promise<void> {
  if (attempts > 5) await sleep(80);
}

export class Upstream {
  attempts = 0;
  readonly #port: number;
  /** Each recipient has a reply of its own. */
  readonly #lmtp: boolean;
  readonly #model: Model;
  #client: Client | null = null;
  /** This time each recipient is answered for. */
  #hearsEach = false;

  constructor(url: string, model: Model) {
    this.#port = portOf(url);
    this.#lmtp = url.startsWith('lmtp');
    this.#model = model;
  }

  /** Until every recipient has its reply. */
  async deliver(message: Message, chance: Chance): Promise<ReadonlyMap<string, string>> {
    const final = new Map<string, string>();
    for (let nth = 0; final.size < message.recipients.length; nth++) {
      if (nth === MOST_ATTEMPTS)
        throw new Error(`${this.#model.storyOf(message)}\n${message.id} comes to no end`);
      await this.attempt(message, final, chance);
      await patience(nth);
    }
    return final;
  }

  /** @param final whoever is in it is not tried again; whoever is told something final is put there */
  async attempt(message: Message, final: Map<string, string>, chance: Chance): Promise<void> {
    const drawn = chance.is(FAULTY) ? chance.of(FAULTS) : null;
    const waits = message.wire.length > UNREAD_OCTETS && drawn?.endsWith('behind the dot');
    const fault = waits ? 'deaf' : drawn;
    if (this.#client?.closed) this.#client = null;
    this.#client ??= await this.#connect();
    this.#hearsEach = this.#lmtp || (this.#model.offersPrdr && chance.is(PRDR));
    this.attempts++;
    this.#model.attempted(message, fault);
    const goesOn = await this.#transact(this.#client, message, final, { fault, chance });
    if (goesOn && chance.is(0.7)) return;
    if (goesOn) await this.#client.command('QUIT');
    this.close();
  }

  /** Waits for a proxy that is being started again. */
  async #connect(): Promise<Client> {
    for (;;) {
      const client = await Client.open(this.#port).catch(() => sleep(20, null));
      if ((await client?.reply())?.startsWith('220')) {
        await client!.command(`${this.#lmtp ? 'LHLO' : 'EHLO'} client.example`);
        return client!;
      }
      client?.destroy();
    }
  }

  close(): void {
    this.#client?.destroy();
    this.#client = null;
  }

  /** Whether the session can go on. */
  async #transact(
    client: Client,
    message: Message,
    final: Map<string, string>,
    { fault, chance }: { fault: Fault; chance: Chance },
  ): Promise<boolean> {
    const accepted = await this.#envelope(client, message, final, chance.is(0.5));
    if (accepted === null) return false;
    if (fault === 'reset after the envelope') return this.#reset(client);
    if (fault === 'RSET' || accepted.length === 0) return (await client.command('RSET')) !== 'closed';
    const go = await client.command('DATA');
    if (!go.startsWith('354')) {
      if (go.startsWith('5')) for (const each of accepted) final.set(each, go);
      return go !== 'closed' && (await client.command('RSET')) !== 'closed';
    }
    if (fault === 'reset before the body') return this.#reset(client);
    const half = message.wire.length >> 1;
    const pauses = fault === 'reset in the body' || chance.is(0.4);
    if (pauses) {
      client.write(message.wire.subarray(0, half));
      await sleep(chance.below(4));
      if (fault === 'reset in the body') return this.#reset(client);
    }
    this.#model.completes(message, accepted);
    const ahead = fault === 'QUIT sent ahead' || fault === 'deaf, with QUIT sent ahead';
    const rest = pauses ? message.wire.subarray(half) : message.wire;
    client.write(Buffer.concat([rest, Buffer.from(ahead ? '.\r\nQUIT\r\n' : '.\r\n')]));
    if (fault?.endsWith('behind the dot')) {
      await sleep(chance.below(5));
      if (fault.startsWith('reset')) return this.#reset(client);
      return false;
    }
    const answers = await this.#answers(client, message, accepted);
    if (answers === null || fault?.startsWith('deaf')) return false;
    for (const [each, reply] of answers) {
      if (!/^[25]/.test(reply)) continue;
      final.set(each, reply);
      this.#model.heard(message, each, reply);
    }
    return !ahead;
  }

  /** What each is told after the dot; null when the session has ended. */
  async #answers(
    client: Client,
    message: Message,
    accepted: readonly string[],
  ): Promise<readonly (readonly [string, string])[] | null> {
    const framed = this.#hearsEach && !this.#lmtp && accepted.length > 1;
    const first = framed ? await client.reply() : '';
    if (first === 'closed') return null;
    const groups = this.#hearsEach ? accepted.map((each) => [each]) : [accepted];
    const replies = await client.replies(groups.length + (framed ? 1 : 0));
    if (replies.includes('closed')) return null;
    if (framed) this.#model.framed(message, first, replies.slice(0, -1), replies.at(-1)!);
    const answers = groups.map((whom, nth) => [whom, replies[nth]!] as const);
    for (const [whom, reply] of answers) this.#model.answered(message, accepted, reply, whom);
    return answers.flatMap(([whom, reply]) => whom.map((each) => [each, reply] as const));
  }

  /** The recipients that were accepted; null when the session has ended. */
  async #envelope(
    client: Client,
    { sender, recipients, silent }: Message,
    final: Map<string, string>,
    pipelined: boolean,
  ): Promise<string[] | null> {
    const left = recipients.filter((each) => !final.has(each));
    const params = this.#hearsEach && !this.#lmtp ? ' PRDR' : '';
    const commands = [
      `MAIL FROM:<${sender}>${params}`,
      ...left.map((each) => `RCPT TO:<${each}>${silent ? ' NOTIFY=NEVER' : ''}`),
    ];
    if (pipelined) client.write(`${commands.join('\r\n')}\r\n`);
    const replies: string[] = [];
    for (const line of commands) replies.push(pipelined ? await client.reply() : await client.command(line));
    if (replies.includes('closed')) return null;
    // What is said to RCPT then is of no sender.
    if (!replies[0]!.startsWith('2')) return [];
    const answers = left.map((each, nth) => [each, replies[nth + 1]!] as const);
    for (const [each, reply] of answers) if (reply.startsWith('5')) final.set(each, reply);
    return answers.filter(([, reply]) => reply.startsWith('2')).map(([each]) => each);
  }

  #reset(client: Client): false {
    client.reset();
    return false;
  }
}
