// A wire between two parties that breaks once: when the answers to the first final dot are on their way.
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { onTestFinished } from 'vitest';

export class Cut {
  readonly port: number;
  /** It has broken, and passes everything on from now on. */
  done = false;

  private constructor(port: number) {
    this.port = port;
  }

  static async start(towards: () => number): Promise<Cut> {
    const sockets = new Set<Socket>();
    const server = net.createServer({ noDelay: true }, (inner) => {
      const outer = net.connect({ port: towards(), host: '127.0.0.1', noDelay: true });
      let sent = '';
      inner.on('data', (chunk: Buffer) => {
        if (!cut.done) sent += chunk.toString('latin1');
        outer.write(chunk);
      });
      outer.on('data', (chunk: Buffer) => {
        const isAnswer = !cut.done && sent.includes('\r\n.\r\n');
        if (!isAnswer) return inner.write(chunk);
        cut.done = true;
        inner.destroy();
        outer.destroy();
      });
      for (const [socket, other] of [
        [inner, outer],
        [outer, inner],
      ] as const) {
        sockets.add(socket);
        socket.on('error', () => other.destroy());
        socket.on('end', () => other.end());
        socket.on('close', () => sockets.delete(socket));
      }
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const cut = new Cut((server.address() as AddressInfo).port);
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return cut;
  }
}
