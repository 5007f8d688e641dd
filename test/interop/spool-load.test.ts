// Postfix's load generator to its sink, by way of the queue: the next hop is down at first, and comes up under load. Every
// message is taken with 250, none is lost, none arrives twice.
import net, { type AddressInfo, type Socket } from 'node:net';
import { expect, it, onTestFinished, type TestContext } from 'vitest';
import { messageFiles } from '../support/crash.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { needTools, report, run, SmtpSink, temporaryDirectory } from '../support/tools.ts';

const WHILE_DOWN = 600;
const WHILE_UP = 900;

/** A port in front of the sink, where nobody answers until it is `up`. */
class Door {
  up = false;
  readonly #server: net.Server;
  readonly #sockets = new Set<Socket>();

  constructor(sinkPort: number) {
    this.#server = net.createServer((client) => {
      if (!this.up) return client.destroy();
      const sink = net.connect(sinkPort, '127.0.0.1');
      for (const [from, to] of [[client, sink] as const, [sink, client] as const]) {
        this.#sockets.add(from);
        from.on('error', () => to.destroy()).on('close', () => to.destroy());
        from.setNoDelay(true).pipe(to);
      }
    });
  }

  async open(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => {
      for (const socket of this.#sockets) socket.destroy();
      this.#server.close();
    });
    return `smtp://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }
}

async function source(proxy: Program, messages: number, domain: string): Promise<void> {
  const what = [
    '-d',
    '-m',
    `${messages}`,
    '-s',
    '10',
    '-l',
    '4096',
    '-N',
    '-f',
    's@src.example',
    '-t',
    `u@${domain}.example`,
  ];
  const ran = await run('smtp-source', [...what, '-M', 'source.example', proxy.address()]);
  expect(ran).toEqual({ exitCode: 0, output: '' });
}

async function carriesEachOnce(context: TestContext, mode: readonly string[]): Promise<void> {
  await needTools(context, 'smtp-source', 'smtp-sink');
  const sink = await SmtpSink.start();
  const door = new Door(sink.port);
  const spool = `${await temporaryDirectory()}/spool`;
  const route = ['--route', `*=${await door.open()}`];
  const quick = ['--retry-schedule', '500ms', '--connect-retries', '0', '--spool-min-free', '1MiB'];
  const proxy = await Program.start([...mode, ...route, ...quick, '--spool-dir', spool]);
  await source(proxy, WHILE_DOWN, 'down');
  expect(await sink.messages()).toEqual([]);
  door.up = true;
  await source(proxy, WHILE_UP, 'up');
  const done = () => sink.messages().then((messages) => messages.length >= WHILE_DOWN + WHILE_UP);
  await until(done, 30_000);
  await until(async () => (await messageFiles(spool)).length === 0, 10_000);
  const recipients = (await sink.messages()).flatMap((message) => message.recipients);
  expect(recipients).toHaveLength(WHILE_DOWN + WHILE_UP);
  expect(new Set(recipients).size).toBe(WHILE_DOWN + WHILE_UP);
  const spooled = proxy.transactions().filter(({ result }) => result === 'spooled').length;
  expect(spooled).toBeGreaterThanOrEqual(WHILE_DOWN);
  report(`${mode.join(' ')}: ${spooled} of ${recipients.length} by way of the queue`);
  expect(await proxy.stop()).toBe(0);
}

for (const mode of ['--mode spool', '--mode fast-path', '--fallback spool', '--fallback fast-path']) {
  it(`carries 1,500 messages, each once, though the next hop comes up late: ${mode}`, async (context) => {
    await carriesEachOnce(context, mode.split(' '));
  });
}
