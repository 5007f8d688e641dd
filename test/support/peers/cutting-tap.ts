// Between an upstream and the proxy: passes everything on, but for the reply to the first final dot, in whose place the
// upstream gets a reset, and so does the proxy, which can't know that its reply was never read.
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import { onTestFinished } from 'vitest';

const DOT = '\r\n.\r\n';

export class CuttingTap {
  readonly port: number;
  /** What the proxy said that the upstream never read; null before that. */
  swallowed: string | null = null;

  private constructor(port: number) {
    this.port = port;
  }

  static async start(towards: number): Promise<CuttingTap> {
    const sockets = new Set<Socket>();
    const server = net.createServer({ noDelay: true, allowHalfOpen: true }, (inner) => {
      const outer = net.connect({ port: towards, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
      let sent = '';
      inner.on('data', (chunk: Buffer) => {
        sent += chunk.toString('latin1');
        outer.write(chunk);
      });
      outer.on('data', (chunk: Buffer) => {
        if (tap.swallowed !== null || !sent.includes(DOT)) return inner.write(chunk);
        tap.swallowed = chunk.toString('latin1');
        for (const socket of [inner, outer]) socket.resetAndDestroy();
      });
      for (const [socket, other] of [
        [inner, outer],
        [outer, inner],
      ] as const) {
        sockets.add(socket);
        socket.on('end', () => other.end());
        socket.on('error', () => other.destroy());
        socket.on('close', () => sockets.delete(socket));
      }
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const tap = new CuttingTap((server.address() as AddressInfo).port);
    onTestFinished(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    return tap;
  }
}
