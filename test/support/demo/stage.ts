// Starts what the demo shows, on loopback and on ports of the system's choosing: two mail servers, a DNS zone that leads
// to them, the built proxy as a process of its own, and clients. strike() ends all of it.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '../client.ts';
import { type DnsServer, startDnsServer } from '../dns-server.ts';
import { Sink, type SinkOptions } from '../sink.ts';
import { type Dialogue, Recording, type Side } from './dialogue.ts';

const START_TIMEOUT_MS = 8_000;
const PORT_TRIES = 10;
/** The mail servers' addresses. One port serves all MX hosts, so they must differ. */
const ADDRESSES = { alpha: '127.0.0.2', beta: '127.0.0.3' } as const;

const OFFERS = '250-PIPELINING\n250-8BITMIME\n250-SMTPUTF8\n250 ENHANCEDSTATUSCODES';

type Server = keyof typeof ADDRESSES;
type Servers = Record<Server, Sink>;
type Script = NonNullable<SinkOptions['script']>;

export class Stage {
  recording = new Recording();
  servers!: Servers;
  /** False where the machine has no loopback addresses but 127.0.0.1; then static routes stand in for MX. */
  byMx = true;
  #dns: DnsServer | null = null;
  #proxy: ChildProcess | null = null;
  #addresses = { listen: '', http: '' };
  #struck: Promise<number | null> | null = null;

  get pid(): number {
    return this.#proxy!.pid!;
  }

  get listen(): string {
    return this.#addresses.listen;
  }

  /** @param program the built command line program @throws when a part can't be started */
  async set(program: string, script: Record<Server, Script>): Promise<void> {
    this.byMx = await hasAddress(ADDRESSES.beta);
    this.servers = this.byMx
      ? await this.#startOnOnePort(script)
      : { alpha: await this.#start('alpha', script.alpha), beta: await this.#start('beta', script.beta) };
    const { alpha, beta } = this.servers;
    this.#dns = await startDnsServer({
      'alpha.example': { MX: [[10, 'mx.alpha.example']] },
      'beta.example': { MX: [[10, 'mx.beta.example']] },
      'mx.alpha.example': { A: [ADDRESSES.alpha] },
      'mx.beta.example': { A: [ADDRESSES.beta] },
    });
    const routing = this.byMx
      ? ['--dns', this.#dns.address, '--mx-port', `${alpha.port}`, '--mx-allow', '127.0.0.0/8']
      : ['--route', `alpha.example=${alpha.url}`, '--route', `beta.example=${beta.url}`];
    await this.#startProxy(program, routing);
  }

  /** A new recording, and a client past EHLO that is on it. */
  async act(): Promise<Client> {
    this.recording = new Recording();
    const socket = net.connect({ port: Number(new URL(this.listen).port), host: '127.0.0.1', noDelay: true });
    const dialogue = this.recording.dialogue('upstream');
    socket.on('data', (chunk) => dialogue.answered(chunk.toString('latin1')));
    const client = new RecordedClient(socket, dialogue);
    await client.reply();
    await client.command('EHLO client.example');
    return client;
  }

  /** From here on beta's next hop refuses connections. */
  async closeBeta(): Promise<void> {
    await this.servers.beta.close();
  }

  /** Every counter of ours that /metrics tells, by name and labels as Prometheus writes them. */
  async counters(): Promise<ReadonlyMap<string, number>> {
    const response = await fetch(`http://${this.#addresses.http}/metrics`);
    const lines = (await response.text()).split('\n');
    const names = new Set(lines.flatMap((line) => /^# TYPE (cutthrough_\w+) counter$/.exec(line)?.[1] ?? []));
    const samples = lines
      .map((line) => /^(\w+)(\{.*\})? (\S+)$/.exec(line))
      .filter((match) => match !== null);
    return new Map(
      samples
        .filter(([, name]) => names.has(name!))
        .map(([, name, labels = '', value]) => [`${name}${labels}`, Number(value)]),
    );
  }

  /** Ends everything. Gives the proxy's exit code, null where a signal ended it or it was never started. */
  async strike(): Promise<number | null> {
    this.#struck ??= this.#strike();
    return await this.#struck;
  }

  async #strike(): Promise<number | null> {
    const exitCode = await this.#stopProxy();
    await Promise.all([...Object.values(this.servers ?? {}).map((each) => each.close()), this.#dns?.close()]);
    return exitCode;
  }

  /** At once, for when the demo itself is being ended. */
  kill(): void {
    this.#proxy?.kill('SIGKILL');
  }

  async #startOnOnePort(script: Record<Server, Script>): Promise<Servers> {
    for (let attempt = 1; ; attempt++) {
      const alpha = await this.#start('alpha', script.alpha);
      try {
        return { alpha, beta: await this.#start('beta', script.beta, alpha.port) };
      } catch (error) {
        await alpha.close();
        // The port that alpha was given may be taken at beta's address; another one will do.
        if (attempt === PORT_TRIES) throw error;
      }
    }
  }

  async #start(name: Server, script: Script, port = 0): Promise<Sink> {
    const dialogues = new Map<object, Dialogue>();
    return await Sink.start({
      host: this.byMx ? ADDRESSES[name] : '127.0.0.1',
      port,
      script: {
        greeting: `220 mx.${name}.example ESMTP`,
        ehlo: `250-mx.${name}.example\n${OFFERS}`,
        ...script,
      },
      onWire: (session, what, text) => {
        const dialogue = dialogues.get(session) ?? this.recording.dialogue(name satisfies Side);
        dialogues.set(session, dialogue);
        if (what === 'read') dialogue.asked(text);
        else if (what === 'written') dialogue.answered(text);
        else dialogue.closed();
      },
    });
  }

  async #startProxy(program: string, routing: readonly string[]): Promise<void> {
    const at = ['--listen', 'smtp://127.0.0.1:0', '--http', '127.0.0.1:0', '--hostname', 'proxy.example'];
    const retries = ['--connect-retries', '2', '--connect-backoff', '100ms'];
    // Every scene is to show the whole of its sessions, and none that an earlier one has left.
    const own = ['--session-idle-timeout', '0s'];
    const args = [program, 'serve', '--log-format', 'json', ...at, ...routing, ...retries, ...own];
    // A setting of the reader's own would make it another demo.
    const env = Object.fromEntries(Object.entries(process.env).filter(([key]) => !/^CUTTHROUGH_/.test(key)));
    const proxy = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
    this.#proxy = proxy;
    const complaints: string[] = [];
    createInterface({ input: proxy.stderr }).on('line', (line) => complaints.push(line));
    createInterface({ input: proxy.stdout }).on('line', (line) => {
      if (!line.includes('"event":"ready"')) return;
      const { listen, http } = JSON.parse(line) as { listen: [string]; http: string };
      this.#addresses = { listen: listen[0], http };
    });
    await eventually(() => this.listen !== '' || proxy.exitCode !== null, START_TIMEOUT_MS);
    if (this.listen === '') throw new Error(`the proxy did not start: ${complaints.join(' ')}`);
  }

  async #stopProxy(): Promise<number | null> {
    const proxy = this.#proxy;
    if (proxy === null) return null;
    if (proxy.exitCode !== null) return proxy.exitCode;
    const closed = once(proxy, 'close');
    proxy.kill('SIGTERM');
    const timer = setTimeout(() => proxy.kill('SIGKILL'), START_TIMEOUT_MS);
    await closed;
    clearTimeout(timer);
    return proxy.exitCode;
  }
}

class RecordedClient extends Client {
  readonly #dialogue: Dialogue;

  constructor(socket: net.Socket, dialogue: Dialogue) {
    super(socket);
    this.#dialogue = dialogue;
  }

  override write(text: string | Buffer): void {
    this.#dialogue.asked(text.toString('latin1'));
    super.write(text);
  }
}

/** Whether `condition` comes to hold within `timeoutMs`. */
export async function eventually(condition: () => boolean, timeoutMs = 2_000): Promise<boolean> {
  const end = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > end) return false;
    await sleep(2);
  }
  return true;
}

async function hasAddress(host: string): Promise<boolean> {
  const server = net.createServer().listen(0, host);
  try {
    await once(server, 'listening');
    server.close();
    return true;
  } catch {
    return false;
  }
}
