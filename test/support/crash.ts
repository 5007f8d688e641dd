// For tests that take a spool's process or disk away: messages that are known again byte by byte, a next hop that comes
// and goes, and what a directory holds once its process is dead.
import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import pino from 'pino';
import { SpoolStore } from '../../src/spool/store.ts';
import type { Client } from './client.ts';
import { type Act, type Received, Sink } from './sink.ts';

/** Numbers in [0, 1) that are the same for the same seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const FILLER = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .';

/** Of at least `octets`; no two bodies are alike anywhere. Some lines begin with a dot, doubled as on the wire. */
function bodyOf(tag: string, octets: number, random: () => number): string {
  const lines = [`Subject: ${tag}`, ''];
  for (let length = 0; length < octets; length += 72) {
    const text = Array.from({ length: 70 }, () => FILLER[Math.floor(random() * FILLER.length)]).join('');
    lines.push(text.startsWith('.') ? `.${text}` : text);
  }
  return `${lines.join('\r\n')}\r\n`;
}

function tagOf(body: string | Buffer): string | null {
  return /^Subject: (\S+)\r$/m.exec(body.toString('latin1'))?.[1] ?? null;
}

function hashOf(body: string | Buffer): string {
  return createHash('sha256').update(body).digest('hex');
}

/** What clients have sent, and what they were told. */
export class Ledger {
  /** Hashes of the bodies, by tag. */
  readonly #sent = new Map<string, string>();
  readonly acknowledged = new Set<string>();
  readonly #random: () => number;

  constructor(random: () => number) {
    this.#random = random;
  }

  get sent(): number {
    return this.#sent.size;
  }

  /** One message with a tag of its own; gives the last reply, 'closed' where there was none. */
  async send(client: Client, to: readonly string[], octets: number): Promise<string> {
    const tag = `m${this.#sent.size}`;
    const body = bodyOf(tag, octets, this.#random);
    this.#sent.set(tag, hashOf(body));
    const reply = await client.send('s@src.example', [...to], body);
    if (reply.startsWith('250')) this.acknowledged.add(tag);
    return reply;
  }

  /** The tag of a message in wire form, whole or without its end of data; throws when it isn't what was sent. */
  identify(wire: Buffer): string {
    const text = wire.toString('latin1');
    const tag = tagOf(text);
    const hash = tag === null ? undefined : this.#sent.get(tag);
    const start = text.indexOf(`Subject: ${tag}\r\n`);
    if (
      hash === undefined ||
      hashOf(text.slice(start)) !== hash ||
      !/^Received: [^\0]*\r\n$/.test(text.slice(0, start))
    )
      throw new Error(`damaged: ${JSON.stringify(text.slice(0, 300))} … (${text.length} octets)`);
    return tag!;
  }

  /** Every message that came, by tag, with how often it did; throws when one is damaged. */
  arrivals(messages: readonly Received[]): Map<string, number> {
    const count = new Map<string, number>();
    for (const { body } of messages) {
      const tag = this.identify(body);
      count.set(tag, (count.get(tag) ?? 0) + 1);
    }
    return count;
  }

  /** What was acknowledged and is in none of the `places`. */
  lost(...places: readonly Readonly<{ has: (tag: string) => boolean }>[]): string[] {
    return [...this.acknowledged].filter((tag) => !places.some((place) => place.has(tag)));
  }
}

/** A next hop that is there, or refuses everything for now, as the test has it. */
export class FlappingSink {
  up = false;
  readonly sink: Sink;

  private constructor(sink: Sink) {
    this.sink = sink;
  }

  /** @param dotMs until the reply to a message that was taken */
  static async start(dotMs: () => number = () => 0): Promise<FlappingSink> {
    const hold: { flapping?: FlappingSink } = {};
    const unlessUp = (act: Act) => () => (hold.flapping?.up === true ? null : act);
    const dot = (): Act =>
      hold.flapping?.up === true
        ? { act: 'delay', ms: dotMs(), next: '250 2.0.0 taken' }
        : '451 4.3.0 not now';
    const sink = await Sink.start({
      script: { greeting: unlessUp({ act: 'rst' }), mail: unlessUp('451 4.3.0 not now'), dot },
    });
    hold.flapping = new FlappingSink(sink);
    return hold.flapping;
  }

  get route(): readonly string[] {
    return ['--route', `*=${this.sink.url}`];
  }
}

/** What the directory of a dead process holds, recovered as at a start, by tag; nothing may be damaged. */
export async function queuedIn(directory: string, ledger: Ledger): Promise<Set<string>> {
  const complaints: string[] = [];
  const log = pino({ level: 'info' }, { write: (line: string) => void complaints.push(line) });
  await SpoolStore.prepare(directory, log);
  const store = await SpoolStore.open(directory, { log, minFreeOctets: 1, now: () => performance.now() });
  const tags = new Set<string>();
  for (const { id } of store.recovered) {
    const body = await store.openBody(await store.load(id));
    const chunks: Buffer[] = [];
    for await (const chunk of body.read()) chunks.push(chunk);
    await body.close();
    tags.add(ledger.identify(Buffer.concat(chunks)));
  }
  await store.close();
  if (complaints.length > 0) throw new Error(complaints.join(''));
  return tags;
}

/** Names in the spool directory that belong to messages, whole or not. */
export async function messageFiles(directory: string): Promise<string[]> {
  const names = [...(await readdir(directory)), ...(await quarantined(directory))];
  return names.filter((name) => /\.(eml|json)(\.tmp)?$/.test(name));
}

async function quarantined(directory: string): Promise<string[]> {
  return (await readdir(directory)).includes('quarantine') ? await readdir(`${directory}/quarantine`) : [];
}
