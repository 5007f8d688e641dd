// The mail of the load generator: a round of letters, sent over and over, that between them make every kind of result:
// taken, refused, deferred, broken off, with one and with several next hops. The same round each time, so that a panel
// that moves does so for a reason.
// A session that fails is replaced after a pause; nothing here ever gives up.
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '../client.ts';

export type Letter = Readonly<{
  subject: string;
  to: readonly string[];
  octets: number;
  /** What the client does with the body: ends it with the dot, or disappears in the middle of it. */
  end: 'dot' | 'vanish';
}>;

/** By the last reply; `lost`: there was none. */
export type Outcome = 'accepted' | 'refused' | 'deferred' | 'vanished' | 'lost';

export type Domains = Readonly<{ good: readonly [string, string]; shaky: string; foreign: string }>;

export type Target = Readonly<{ host: string; port: number }>;

const KIB = 1024;
const REPLY_TIMEOUT_MS = 90_000;
const RECONNECT_AFTER_MS = 1_000;
const LINE = `The quick brown fox jumps over the lazy dog, 0123456789abcdef.\r\n`;

/** What the shaky server makes of a recipient goes by its name, see shaky.ts. */
export function lettersOfARound({ good: [a, b], shaky, foreign }: Domains): readonly Letter[] {
  const letter = (subject: string, to: readonly string[], octets = 2 * KIB): Letter => ({
    subject,
    to,
    octets,
    end: 'dot',
  });
  return [
    letter('one recipient', [`ann@${a}`]),
    letter('one recipient at the other domain', [`bob@${b}`]),
    letter('three recipients, one next hop', [`ann@${a}`, `amy@${a}`, `abe@${a}`]),
    letter('two domains', [`ann@${a}`, `bob@${b}`]),
    letter('to a server that is down now and then', [`zoe@${shaky}`]),
    letter('to nobody', [`nobody@${shaky}`]),
    letter('a quarter of a megabyte', [`ann@${a}`], 256 * KIB),
    letter('to a full mailbox', [`full@${shaky}`]),
    letter('one recipient', [`bea@${b}`]),
    letter('relaying', [`someone@${foreign}`]),
    { ...letter('broken off', [`ann@${a}`, `bob@${b}`], 64 * KIB), end: 'vanish' },
    letter('two domains, one shaky', [`ann@${a}`, `zoe@${shaky}`]),
    letter('a megabyte for two domains', [`amy@${a}`, `bea@${b}`], 1024 * KIB),
  ];
}

/** Sends one letter over a session that has said EHLO. A vanished or lost one leaves the session unusable. */
export async function send(client: Client, letter: Letter): Promise<Outcome> {
  let last = await say(client, 'MAIL FROM:<load@source.example>');
  let taken = 0;
  for (const recipient of last.startsWith('2') ? letter.to : []) {
    last = await say(client, `RCPT TO:<${recipient}>`);
    if (last.startsWith('2')) taken++;
  }
  if (taken > 0) last = await say(client, 'DATA');
  if (!last.startsWith('354')) {
    if (last !== 'closed') await say(client, 'RSET');
    return outcomeOf(last);
  }
  const text = textOf(letter);
  if (letter.end === 'vanish') {
    client.write(text.slice(0, text.length / 2));
    client.destroy();
    return 'vanished';
  }
  client.write(text);
  return outcomeOf(await say(client, '.'));
}

async function say(client: Client, line: string): Promise<string> {
  client.write(`${line}\r\n`);
  return await client.reply(REPLY_TIMEOUT_MS);
}

function outcomeOf(reply: string): Outcome {
  if (reply.startsWith('2')) return 'accepted';
  if (reply.startsWith('5')) return 'refused';
  return reply === 'closed' ? 'lost' : 'deferred';
}

function textOf({ subject, to, octets }: Letter): string {
  const header = [
    'From: Load generator <load@source.example>',
    `To: ${to.map((each) => `<${each}>`).join(', ')}`,
    `Subject: ${subject}`,
  ];
  return `${header.join('\r\n')}\r\n\r\n${LINE.repeat(Math.ceil(octets / LINE.length))}`;
}

export type Pace = Readonly<{ everyMs: number; onOutcome: (outcome: Outcome) => void }>;

/** One session's worth of work, for as long as the process lives: the next letter every so often. */
export async function keepSending(target: Target, next: () => Letter, pace: Pace): Promise<never> {
  const session: { client: Client | null } = { client: null };
  const attempt = async (): Promise<Outcome> => {
    session.client ??= await Client.hello(target.port, target.host);
    return await send(session.client, next());
  };
  for (;;) {
    const began = performance.now();
    const outcome = await attempt().catch((): Outcome => 'lost');
    pace.onOutcome(outcome);
    if (outcome === 'lost' || outcome === 'vanished') {
      session.client?.destroy();
      session.client = null;
    }
    const spent = performance.now() - began;
    await sleep(outcome === 'lost' ? RECONNECT_AFTER_MS : Math.max(0, pace.everyMs - spent));
  }
}
