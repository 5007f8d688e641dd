// A process of its own, for what smtp-source can't do: latency, recipients of several domains, big bodies that don't
// wait for one another, sessions that idle. Prints a line of JSON. usage: client TASK (JSON, see below)
import { once } from 'node:events';
import net, { type Socket } from 'node:net';
import { percentile } from './statistics.ts';

export type Task = Readonly<{
  port: number;
  sessions: number;
  messages: number;
  /** Of these, by the first session to come to them, no times are taken: compiled code is what is compared. */
  untimed: number;
  /** Of a message's body. */
  octets: number;
  /** Many messages in a session, or one. */
  kept: boolean;
  recipients: readonly string[];
  /** Opens the sessions; a line of standard input later sends a message over each; its end ends them. */
  hold: boolean;
}>;

/** `seconds` is until the last 250. Latencies, in µs, are of a transaction, with connecting where sessions aren't kept. */
export type Told = Readonly<{ seconds: number; p50: number; p90: number; p99: number; bodiesAtOnce: number }>;

type Waiting = Readonly<{ digit: string; resolve: () => void; reject: (error: Error) => void }>;

const LINE_OCTETS = 80;
/** Sessions that are opened at a time, below every listen backlog. */
const BATCH = 50;

class Session {
  readonly #socket: Socket;
  readonly #waiting: Waiting[] = [];
  #text = '';
  #over: Error | null = null;

  private constructor(port: number) {
    this.#socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    this.#socket.setEncoding('latin1');
    this.#socket.on('data', (text: string) => this.#take(text));
    this.#socket.on('error', (error) => this.#fail(error));
    this.#socket.on('close', () => this.#fail(new Error('closed')));
  }

  static async open(port: number): Promise<Session> {
    const session = new Session(port);
    await session.reply('2');
    await session.say('EHLO client.example\r\n', '2');
    return session;
  }

  /** Waits for one reply for each digit, its first. */
  async say(octets: string | Buffer, digits: string): Promise<void> {
    this.#socket.write(octets);
    await Promise.all([...digits].map((digit) => this.reply(digit)));
  }

  reply(digit: string): Promise<void> {
    if (this.#over !== null) return Promise.reject(this.#over);
    return new Promise((resolve, reject) => this.#waiting.push({ digit, resolve, reject }));
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #take(text: string): void {
    this.#text += text;
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end);
      this.#text = this.#text.slice(end + 1);
      if (line[3] === '-') continue;
      const waiting = this.#waiting.shift();
      if (line[0] === waiting?.digit) waiting?.resolve();
      else waiting?.reject(new Error(`unexpected reply: ${line.trim()}`));
    }
  }

  #fail(error: Error): void {
    this.#over ??= error;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}

function bodyOf(octets: number): Buffer {
  const line = `${'X'.repeat(LINE_OCTETS - 2)}\r\n`;
  const text = line.repeat(Math.ceil(octets / LINE_OCTETS)).slice(0, octets - 2);
  return Buffer.from(`Subject: benchmark\r\n\r\n${text}\r\n.\r\n`, 'latin1');
}

let bodies = 0;
let bodiesAtOnce = 0;

/** One command at a time, as smtp-source does it; with several recipients the envelope in one write, as servers do. */
async function send(session: Session, { recipients }: Task, body: Buffer): Promise<void> {
  const envelope = ['MAIL FROM:<s@src.example>', ...recipients.map((each) => `RCPT TO:<${each}>`), 'DATA'];
  const lines = envelope.map((line) => `${line}\r\n`);
  if (recipients.length > 1) await session.say(lines.join(''), `${'2'.repeat(lines.length - 1)}3`);
  else for (const line of lines) await session.say(line, line.startsWith('DATA') ? '3' : '2');
  bodiesAtOnce = Math.max(bodiesAtOnce, ++bodies);
  await session.say(body, '2');
  bodies--;
}

async function sendAll(task: Task): Promise<Told> {
  const body = bodyOf(task.octets);
  const times: number[] = [];
  let left = task.messages;
  let endedAt = 0;
  const work = async () => {
    let session: Session | null = null;
    while (left > 0) {
      const nth = task.messages - left--;
      const began = performance.now();
      session ??= await Session.open(task.port);
      await send(session, task, body);
      endedAt = performance.now();
      if (nth >= task.untimed) times.push((endedAt - began) * 1000);
      if (task.kept && left > 0) continue;
      await session.say('QUIT\r\n', '2');
      session = null;
    }
  };
  const began = performance.now();
  await Promise.all(Array.from({ length: task.sessions }, work));
  const seconds = (endedAt - began) / 1000;
  const [p50, p90, p99] = [50, 90, 99].map((percent) => percentile(times, percent)) as [
    number,
    number,
    number,
  ];
  return { seconds, p50, p90, p99, bodiesAtOnce };
}

async function hold(task: Task): Promise<void> {
  const body = bodyOf(task.octets);
  const sessions: Session[] = [];
  while (sessions.length < task.sessions) {
    sessions.push(...(await Promise.all(Array.from({ length: BATCH }, () => Session.open(task.port)))));
  }
  console.log('held');
  await once(process.stdin, 'data');
  for (let at = 0; at < sessions.length; at += BATCH) {
    await Promise.all(sessions.slice(at, at + BATCH).map((session) => send(session, task, body)));
  }
  console.log('held');
  await once(process.stdin, 'end');
  for (const session of sessions) session.destroy();
}

try {
  const task = JSON.parse(process.argv[2] ?? '') as Task;
  if (task.hold) await hold(task);
  else console.log(JSON.stringify(await sendAll(task)));
} catch (error) {
  console.error(String(error));
  process.exit(1);
}
