// 200 MiB to a slow and a fast next hop: the slow one sets the pace, and the program's memory does not grow with the
// message. The test holds none of it either.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { expect, it, onTestFinished } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { report } from '../support/tools.ts';

const MIB = 1024 * 1024;
const MESSAGE_OCTETS = 200 * MIB;
const MAX_GROWTH_OCTETS = 64 * MIB;
const HEADER = 'Subject: big\r\n\r\n';
/** The slow next hop takes a break of so long after so many octets: 100 breaks for the whole message. */
const BREAK_MS = 40;
const BREAK_EVERY_OCTETS = 2 * MIB;
/** CRLF.CRLF */
const HELD_OCTETS = 5;

type Pace = 'slow' | 'fast';

/** A next hop for one message that keeps nothing but its length and hash, from HEADER on. */
class HashingSink {
  octets = 0;
  digest = '';
  readonly #hash = createHash('sha256');
  readonly #pace: Pace;
  /** What may be the final line, or (at first) all there is before HEADER. */
  #held: Buffer = Buffer.alloc(0);
  #inMessage = false;

  constructor(pace: Pace) {
    this.#pace = pace;
  }

  static async start(pace: Pace): Promise<{ sink: HashingSink; port: number }> {
    const sink = new HashingSink(pace);
    const server = net.createServer((socket) => sink.#serve(socket)).listen(0, '127.0.0.1');
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    return { sink, port: (server.address() as AddressInfo).port };
  }

  #serve(socket: Socket): void {
    let sinceBreak = 0;
    let inBody = false;
    onTestFinished(() => void socket.destroy());
    socket.on('error', () => {});
    socket.write('220 sink.example ESMTP\r\n');
    socket.on('data', (chunk: Buffer) => {
      if (!inBody) {
        // The proxy does not pipeline with a peer that doesn't offer it: one chunk is one command.
        inBody = chunk.toString('latin1') === 'DATA\r\n';
        socket.write(inBody ? '354 go on\r\n' : '250 2.0.0 ok\r\n');
        return;
      }
      if (this.#take(chunk)) {
        inBody = false;
        socket.write('250 2.0.0 got it\r\n');
      }
      sinceBreak += chunk.length;
      if (this.#pace === 'slow' && sinceBreak >= BREAK_EVERY_OCTETS) {
        sinceBreak = 0;
        socket.pause();
        setTimeout(() => socket.resume(), BREAK_MS);
      }
    });
  }

  /** True at the end of the message. */
  #take(chunk: Buffer): boolean {
    let bytes = this.#held.length > 0 ? Buffer.concat([this.#held, chunk]) : chunk;
    if (!this.#inMessage) {
      const begin = bytes.indexOf(HEADER);
      this.#held = bytes;
      if (begin === -1) return false;
      this.#inMessage = true;
      bytes = bytes.subarray(begin);
    }
    const ended = bytes.subarray(-HELD_OCTETS).equals(Buffer.from('\r\n.\r\n'));
    const known = bytes.subarray(0, ended ? -3 : -HELD_OCTETS);
    this.#hash.update(known);
    this.octets += known.length;
    this.#held = Buffer.from(bytes.subarray(-HELD_OCTETS));
    if (ended) this.digest = this.#hash.digest('hex');
    return ended;
  }
}

/** Streams the message without its dot. */
async function sendBody(client: Client): Promise<{ octets: number; digest: string }> {
  const hash = createHash('sha256');
  let octets = 0;
  for (let block = 0; octets < MESSAGE_OCTETS; block++) {
    const line = `${String(block).padStart(8, '0')}${'abcdefghi'.repeat(9)}\r\n`;
    const bytes = Buffer.from(octets === 0 ? HEADER : line.repeat(720));
    hash.update(bytes);
    octets += bytes.length;
    if (!client.socket.write(bytes)) await once(client.socket, 'drain');
  }
  return { octets, digest: hash.digest('hex') };
}

// The figures come from Linux's /proc.
it.runIf(process.platform === 'linux')(
  'streams 200 MiB to a slow and a fast next hop within 64 MiB of its idle memory',
  async () => {
    const slow = await HashingSink.start('slow');
    const fast = await HashingSink.start('fast');
    const warm = await HashingSink.start('fast');
    const to = ({ port }: { port: number }) => `smtp://127.0.0.1:${port}`;
    const proxy = await Program.start([
      ...['--max-message-size', '256MiB'],
      ...['--route', `a.example=${to(slow)}`, '--route', `b.example=${to(fast)}`],
      ...['--route', `warm.example=${to(warm)}`],
    ]);
    const client = await Client.hello(proxy.port());
    expect(await client.send('s@src.example', ['u@warm.example'], `${HEADER}x\r\n`)).toMatch(/^250 /);
    const idle = (await proxy.memory()).now;
    await proxy.resetPeak();

    expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354 /);
    let [polled, gap] = [0, 0];
    const poll = setInterval(() => {
      gap = Math.max(gap, fast.sink.octets - slow.sink.octets);
      void proxy.memory().then(
        ({ now }) => {
          polled = Math.max(polled, now);
        },
        () => {},
      );
    }, 50);
    onTestFinished(() => clearInterval(poll));
    const began = performance.now();
    const { octets, digest } = await sendBody(client);
    // Nothing is kept back for the dot: the next hops have the message before it.
    await until(() => [slow, fast].every(({ sink }) => sink.octets === octets - HELD_OCTETS), 20_000);
    expect([slow.sink.digest, fast.sink.digest]).toEqual(['', '']);
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^250 2\.0\.0 /);
    const seconds = (performance.now() - began) / 1000;
    clearInterval(poll);
    expect([slow.sink.digest, fast.sink.digest]).toEqual([digest, digest]);

    const peak = Math.max(polled, (await proxy.memory()).peak);
    const mib = (octets: number) => `${Math.round(octets / MIB)} MiB`;
    report(
      `200 MiB in ${seconds.toFixed(1)} s: idle ${mib(idle)}, peak ${mib(peak)}, fast ahead by up to ${mib(gap)}`,
    );
    expect(peak - idle).toBeLessThan(MAX_GROWTH_OCTETS);
    client.destroy();
    expect(await proxy.stop()).toBe(0);
  },
);
