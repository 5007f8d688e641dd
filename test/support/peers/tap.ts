// A wire-tap between two parties: passes everything on as it comes and keeps what the connecting side sends.
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { onTestFinished } from 'vitest';
import type { Owner } from '../tools.ts';

export class Tap {
  readonly port: number;
  readonly #connections: Buffer[][];

  private constructor(port: number, connections: Buffer[][]) {
    this.port = port;
    this.#connections = connections;
  }

  static async start(towards: number, owner: Owner = onTestFinished): Promise<Tap> {
    const connections: Buffer[][] = [];
    const sockets = new Set<Socket>();
    const server = net.createServer({ noDelay: true, allowHalfOpen: true }, (inner) => {
      const outer = net.connect({ port: towards, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
      const chunks: Buffer[] = [];
      connections.push(chunks);
      inner.on('data', (chunk: Buffer) => chunks.push(chunk));
      inner.pipe(outer);
      outer.pipe(inner);
      for (const [socket, other] of [
        [inner, outer],
        [outer, inner],
      ] as const) {
        sockets.add(socket);
        socket.on('error', () => other.destroy());
        socket.on('close', (failed) => {
          sockets.delete(socket);
          if (failed) other.destroy();
        });
      }
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    owner(async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return new Tap((server.address() as AddressInfo).port, connections);
  }

  get connections(): number {
    return this.#connections.length;
  }

  /** What was sent in one piece, per connection. */
  chunks(): readonly (readonly string[])[] {
    return this.#connections.map((chunks) => chunks.map((chunk) => chunk.toString('latin1')));
  }

  /** Whether it was sent, in one piece. */
  saw(text: string): boolean {
    return this.#connections.some((chunks) => chunks.some((chunk) => chunk.includes(text)));
  }

  /** The wire form of each message that holds the text, from its first octet to before its final dot. */
  messages(text: string): Buffer[] {
    return this.#connections.flatMap((chunks) => messagesIn(Buffer.concat(chunks), text));
  }
}

function messagesIn(sent: Buffer, text: string): Buffer[] {
  const found: Buffer[] = [];
  for (let at = sent.indexOf(text); at !== -1; ) {
    const begin = sent.lastIndexOf('\r\nDATA\r\n', at) + '\r\nDATA\r\n'.length;
    const end = sent.indexOf('\r\n.\r\n', at) + '\r\n'.length;
    if (end < at) break;
    found.push(sent.subarray(begin, end));
    at = sent.indexOf(text, end);
  }
  return found;
}
