// A raw SMTP client: writes what it is told, whole lines or half of them, and reads replies.
import { once } from 'node:events';
import net, { type Socket } from 'node:net';
import tls from 'node:tls';

const REPLY_TIMEOUT_MS = 10_000;

export class Client {
  socket: Socket;
  #buffer = '';
  #waiting: (() => void) | null = null;
  closed = false;

  constructor(socket: Socket) {
    this.socket = socket;
    this.#attach();
  }

  /** Connects, and reads the greeting. */
  static async connect(port: number, host?: string): Promise<Client> {
    const client = await Client.open(port, host);
    await client.reply();
    return client;
  }

  static async open(port: number, host = '127.0.0.1'): Promise<Client> {
    const socket = net.connect({ port, host, noDelay: true });
    const client = new Client(socket);
    await once(socket, 'connect');
    return client;
  }

  /** Connects, greeting and EHLO. */
  static async hello(port: number, host?: string): Promise<Client> {
    const client = await Client.connect(port, host);
    await client.command('EHLO client.example');
    return client;
  }

  /** The same at an LMTP listener. */
  static async lhlo(port: number): Promise<Client> {
    const client = await Client.connect(port);
    await client.command('LHLO client.example');
    return client;
  }

  write(text: string | Buffer): void {
    this.socket.write(text);
  }

  /** Sends one command line and reads its reply. */
  async command(line: string): Promise<string> {
    this.write(`${line}\r\n`);
    return await this.reply();
  }

  /** The next whole reply, its lines joined by \n. 'closed' when the connection ended instead. */
  async reply(timeoutMs = REPLY_TIMEOUT_MS): Promise<string> {
    const lines: string[] = [];
    for (;;) {
      const line = await this.#line(timeoutMs);
      if (line === null) return 'closed';
      lines.push(line);
      if (line[3] !== '-') return lines.join('\n');
    }
  }

  async replies(count: number): Promise<string[]> {
    const replies: string[] = [];
    while (replies.length < count) replies.push(await this.reply());
    return replies;
  }

  /** Envelope and DATA; gives the reply to DATA. */
  async envelope(from: string, to: string[]): Promise<string> {
    await this.command(`MAIL FROM:<${from}>`);
    for (const each of to) await this.command(`RCPT TO:<${each}>`);
    return await this.command('DATA');
  }

  /** A whole message; gives the last reply. */
  async send(from: string, to: string[], body: string | Buffer): Promise<string> {
    const go = await this.envelope(from, to);
    if (!go.startsWith('354')) return go;
    this.write(body);
    this.write('.\r\n');
    return await this.reply();
  }

  async startTls(options: tls.ConnectionOptions = {}): Promise<void> {
    const plain = this.socket;
    plain.removeAllListeners('data');
    this.socket = tls.connect({ socket: plain, rejectUnauthorized: false, ...options });
    this.#attach();
    await once(this.socket, 'secureConnect');
  }

  destroy(): void {
    this.socket.destroy();
  }

  reset(): void {
    this.socket.resetAndDestroy();
  }

  #attach(): void {
    this.socket.on('data', (chunk) => {
      this.#buffer += chunk.toString('utf8');
      this.#waiting?.();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.closed = true;
      this.#waiting?.();
    });
  }

  async #line(timeoutMs: number): Promise<string | null> {
    for (;;) {
      const lf = this.#buffer.indexOf('\r\n');
      if (lf !== -1) {
        const line = this.#buffer.slice(0, lf);
        this.#buffer = this.#buffer.slice(lf + 2);
        return line;
      }
      if (this.closed) return null;
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error(`no reply within ${timeoutMs} ms`)), timeoutMs);
        this.#waiting = () => {
          clearTimeout(timer);
          this.#waiting = null;
          resolve();
        };
      });
    }
  }
}
