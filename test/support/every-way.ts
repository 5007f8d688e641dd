// Proxies of every mode, and traffic that goes every way there is through them: what a dashboard can show, happens.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { onTestFinished } from 'vitest';
import { Client } from './client.ts';
import { Program } from './program.ts';
import { until } from './proxy.ts';
import { Sink, type SinkOptions, type SinkSession } from './sink.ts';
import { putInto, queuedMessage } from './spool.ts';
import { freePort, selfSigned, temporaryDirectory } from './tools.ts';

const QUICK = [
  ...['--connect-retries', '1', '--connect-backoff', '10ms', '--connect-timeout', '5s'],
  ...['--greeting-timeout', '2s', '--command-timeout', '10s', '--rcpt-deadline', '10s'],
];
const FROM = 's@a.example';
const BODY = 'Subject: x\r\n\r\nhello\r\n';
/** More than the kernel takes for a reader that doesn't read. */
const LARGE = Buffer.from(`Subject: large\r\n\r\n${`${'x'.repeat(70)}\r\n`.repeat(220_000)}`);
const STANDSTILL_MS = 400;
/** For what other processes do, on a busy machine. */
const PATIENCE_MS = 30_000;
const HOURS_MS = 3_600_000;

/** By domain: how the next hop of `<name>.example` refuses. */
const REFUSING: Readonly<Record<string, SinkOptions>> = {
  greeting: { script: { greeting: '554 5.3.2 no' } },
  ehlo: { script: { ehlo: '550 5.5.1 no' } },
  /** It is to offer STARTTLS, and doesn't. */
  tls: {},
  mail: { script: { mail: '450 4.2.0 later' } },
  rcpt: { script: { rcpt: '550 5.1.1 unknown' } },
  garbage: { script: { rcpt: { act: 'garbage' } } },
  data: { script: { data: '451 4.3.0 later' } },
  dot: { script: { dot: '554 5.6.0 no' } },
  later: { script: { dot: '451 4.3.0 later' } },
  silent: { script: { greeting: { act: 'stall' } } },
};

/** Places in `programs`. */
const [THROUGH, FALLBACK, FAST_PATH, DISK_FIRST, FULL] = [0, 1, 2, 3, 4] as const;

export class EveryWay {
  /** Cut-through, the same with a fallback, fast path, spool with the fast path disabled, spool without room. */
  readonly programs: readonly Program[];
  readonly #slow: Sink;

  constructor(programs: readonly Program[], slow: Sink) {
    this.programs = programs;
    this.#slow = slow;
  }

  static async start(): Promise<EveryWay> {
    const { certFile, keyFile } = await selfSigned();
    const slow = await sink({ script: { body: standStill } });
    const noDsn = await sink({ extensions: ['PIPELINING'] });
    const flags = [...QUICK, ...(await routes()), ...route('slow', slow.url), ...route('old', noDsn.url)];
    const full = ['--spool-min-free', '8000000GiB', '--max-connections', '1'];
    const programs = [
      ['--tls-cert', certFile, '--tls-key', keyFile],
      ['--fallback', 'spool', '--max-queue-age', '2s', ...(await spool('100ms'))],
      ['--mode', 'fast-path', ...(await spool('300ms', true))],
      ['--mode', 'spool', ...(await spool('300ms'))],
      ['--mode', 'spool', ...(await spool('1h')), ...full],
    ];
    return new EveryWay(await Promise.all(programs.map((each) => Program.start([...flags, ...each]))), slow);
  }

  /** Where Prometheus finds them. */
  get targets(): readonly string[] {
    return this.programs.map(({ log }) => log.find(({ event }) => event === 'ready')!.http as string);
  }

  #port(of: number): number {
    return this.programs[of]!.port();
  }

  /** @param isSeen whether the octets that a next hop doesn't take are where the test looks; it takes them then */
  async drive(isSeen: () => Promise<boolean>): Promise<void> {
    await fastPathOff(this.targets[DISK_FIRST]!);
    const all = [
      this.#cutThrough(),
      this.#refusals(),
      this.#standstills(isSeen),
      this.#queued(),
      this.#stored(),
      this.#turnedAway(),
    ];
    await Promise.all(all);
  }

  /** Success with and without TLS, a session used again, a client that resets, and one that is gone. */
  async #cutThrough(): Promise<void> {
    const client = await Client.hello(this.#port(THROUGH));
    await client.command('STARTTLS');
    await client.startTls();
    await client.command('EHLO client.example');
    for (const _ of [1, 2, 3]) await client.send(FROM, ['u@a.example', 'v@a.example'], BODY);
    await client.envelope(FROM, ['u@a.example']);
    client.write('Subject: half');
    client.destroy();
  }

  /** Each phase's refusal, no connection at all, and next hops that disagree. */
  async #refusals(): Promise<void> {
    const client = await Client.hello(this.#port(THROUGH));
    for (const name of [...Object.keys(REFUSING), 'gone', 'nowhere']) {
      await client.send(FROM, [`u@${name}.example`], BODY);
      await client.command('RSET');
    }
    // The last one is a retry: who has the message gets no second copy.
    for (const name of ['dot', 'later', 'later'])
      await client.send(FROM, ['u@a.example', `u@${name}.example`], BODY);
    client.destroy();
  }

  /** First the client keeps the next hop waiting, then the next hop the client. */
  async #standstills(isSeen: () => Promise<boolean>): Promise<void> {
    const client = await Client.hello(this.#port(THROUGH));
    const go = await client.envelope(FROM, ['u@slow.example']);
    if (!go.startsWith('354')) throw new Error(`no standstill: ${go}`);
    await sleep(STANDSTILL_MS);
    client.write(LARGE);
    client.write('.\r\n');
    await until(isSeen, PATIENCE_MS);
    this.#slow.sessions[0]!.release();
    await client.reply(PATIENCE_MS);
    client.destroy();
  }

  /** A fallback takes what can't be delivered: later delivered, refused for good, or given up. */
  async #queued(): Promise<void> {
    const client = await Client.hello(this.#port(FALLBACK));
    for (const name of ['gone', 'later']) await client.send(FROM, ['u@a.example', `u@${name}.example`], BODY);
    await client.send(FROM, ['u@a.example', 'u@dot.example'], BODY);
    client.destroy();
  }

  /** The spool modes: at once, by way of the disk, and with a report that the next hop can't give. */
  async #stored(): Promise<void> {
    for (const port of [this.#port(FAST_PATH), this.#port(DISK_FIRST)]) {
      const client = await Client.hello(port);
      await client.send(FROM, ['u@a.example'], BODY);
      client.destroy();
    }
    const client = await Client.hello(this.#port(FAST_PATH));
    await client.command(`MAIL FROM:<${FROM}>`);
    await client.command('RCPT TO:<u@old.example> NOTIFY=SUCCESS');
    await client.command('DATA');
    client.write(`${BODY}.\r\n`);
    await client.reply();
    client.destroy();
  }

  /** No room on the disk, and no room for another client. */
  async #turnedAway(): Promise<void> {
    const client = await Client.hello(this.#port(FULL));
    await client.send(FROM, ['u@a.example'], BODY);
    const another = await Client.open(this.#port(FULL));
    await another.reply();
    another.destroy();
    onTestFinished(() => client.destroy());
  }
}

async function sink(options: SinkOptions = {}): Promise<Sink> {
  const started = await Sink.start(options);
  onTestFinished(async () => await started.close());
  return started;
}

/** Takes nothing of a body until release(). */
function standStill(_line: string, _nth: number, session: SinkSession): null {
  session.socket.pause();
  return null;
}

/** To a next hop that takes everything, one of each that refuses, one that is not there, one without an address. */
async function routes(): Promise<readonly string[]> {
  const found = [
    ...route('a', (await sink()).url),
    ...route('gone', `smtp://127.0.0.1:${await freePort()}`),
    ...route('nowhere', 'smtp://nowhere.invalid:25'),
  ];
  for (const [name, options] of Object.entries(REFUSING)) {
    found.push(...route(name, (await sink(options)).url));
  }
  return found;
}

function route(name: string, url: string): readonly string[] {
  return ['--route', `${name}.example=${url}${name === 'tls' ? '?tls=require' : ''}`];
}

/** @param withOld one message has waited for hours, and its sender wants to know */
async function spool(retry: string, withOld = false): Promise<readonly string[]> {
  const directory = join(await temporaryDirectory(), 'spool');
  if (withOld) {
    await mkdir(directory, { mode: 0o700 });
    const queuedAt = Date.now() - 5 * HOURS_MS;
    const rcpt = ['RCPT TO:<u@gone.example> NOTIFY=DELAY,FAILURE'];
    putInto(directory, queuedMessage('old', `MAIL FROM:<${FROM}>`, rcpt, { queuedAt }));
  }
  return ['--spool-dir', directory, '--retry-schedule', retry];
}

async function fastPathOff(http: string): Promise<void> {
  const answer = await fetch(`http://${http}/fast-path`, { method: 'POST', body: '{"enabled":false}' });
  if (!answer.ok) throw new Error(`POST /fast-path: ${answer.status}`);
}
