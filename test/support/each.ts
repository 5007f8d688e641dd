// Upstreams that hear of each recipient by itself after the final dot: over LMTP, and with PRDR.
import { Client } from './client.ts';
import type { TestProxy } from './proxy.ts';

export type EachProtocol = 'LMTP' | 'PRDR';

/** What --listen has for it. */
export const LISTEN_EACH: Readonly<Record<EachProtocol, readonly string[]>> = {
  LMTP: ['lmtp://127.0.0.1:0'],
  PRDR: ['smtp://127.0.0.1:0'],
};

/** Past its LHLO or EHLO. */
export async function eachClient(proxy: TestProxy, protocol: EachProtocol): Promise<Client> {
  const client = await (protocol === 'LMTP' ? Client.lhlo(proxy.port) : Client.hello(proxy.port));
  proxy.clients.push(client);
  return client;
}

export type Answers = Readonly<{
  /** To each RCPT. */
  rcpts: readonly string[];
  /** To DATA. */
  data: string;
  /** For each recipient that was accepted. */
  each: readonly string[];
  /** The 353 and the last reply of PRDR. */
  around: readonly string[];
}>;

/** The envelope in one write. */
export async function begin(client: Client, protocol: EachProtocol, to: readonly string[]) {
  const mail = `MAIL FROM:<s@src.example>${protocol === 'PRDR' ? ' PRDR' : ''}`;
  const lines = [mail, ...to.map((each) => `RCPT TO:<${each}>`), 'DATA'];
  client.write(`${lines.join('\r\n')}\r\n`);
  const [, ...rcpts] = await client.replies(to.length + 1);
  return { rcpts, data: await client.reply() };
}

/** Reads what comes after the final dot for `count` accepted recipients. */
export async function answers(client: Client, protocol: EachProtocol, count: number) {
  if (protocol === 'LMTP') return { each: await client.replies(count), around: [] };
  const first = await client.reply();
  // One recipient has the one reply of SMTP.
  if (!first.startsWith('353')) return { each: [first], around: [] };
  const each = await client.replies(count);
  return { each, around: [first, await client.reply()] };
}

export async function sendEach(
  client: Client,
  protocol: EachProtocol,
  to: readonly string[],
  message: string | Buffer,
): Promise<Answers> {
  const { rcpts, data } = await begin(client, protocol, to);
  if (!data.startsWith('354')) return { rcpts, data, each: [], around: [] };
  client.write(Buffer.concat([Buffer.from(message), Buffer.from('.\r\n')]));
  const count = rcpts.filter((reply) => reply.startsWith('250')).length;
  return { rcpts, data, ...(await answers(client, protocol, count)) };
}
