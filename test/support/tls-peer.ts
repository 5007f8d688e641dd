// A next hop that knows TLS, and how to do it wrong; it notes what it hears, and whether that was in clear.
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import tls, { TLSSocket } from 'node:tls';
import { onTestFinished } from 'vitest';

/** PEM text; the chain may follow the certificate. */
export type Credentials = Readonly<{ cert: string; key: string }>;

export type PeerOptions = {
  implicit?: boolean;
  /** The reply to STARTTLS; what it has behind its first line is plaintext that does not belong there. */
  startTls?: string | null;
  /** Instead of a handshake: close, or write what is no TLS record. */
  handshake?: 'close' | 'garbage' | 'stall';
  auth?: string;
  refuseAuth?: boolean;
  host?: string;
};

type Heard = { line: string; secure: boolean };

export class TlsPeer {
  readonly heard: Heard[] = [];
  readonly messages: string[] = [];
  readonly sockets: Socket[] = [];
  /** The names that were asked for (SNI), false where there was none. */
  readonly names: (string | false)[] = [];
  readonly #options: PeerOptions;
  readonly #credentials: tls.SecureContextOptions;
  readonly #server: net.Server;

  constructor(options: PeerOptions, credentials: tls.SecureContextOptions) {
    this.#options = options;
    this.#credentials = credentials;
    this.#server = net.createServer({ noDelay: true }, (socket) => {
      this.sockets.push(socket);
      socket.on('error', () => {});
      if (options.implicit) this.#secure(socket, true);
      else this.#serve(socket, true);
    });
  }

  static async start(options: PeerOptions, { cert, key }: Credentials): Promise<TlsPeer> {
    const peer = new TlsPeer(options, { cert, key });
    peer.#server.listen(0, options.host ?? '127.0.0.1');
    await once(peer.#server, 'listening');
    onTestFinished(async () => {
      for (const socket of peer.sockets) socket.destroy();
      await new Promise((resolve) => peer.#server.close(resolve));
    });
    return peer;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  lines(verb: string): Heard[] {
    return this.heard.filter(({ line }) => line.startsWith(verb));
  }

  #secure(socket: Socket, greet: boolean): void {
    switch (this.#options.handshake) {
      case 'close':
        return void socket.destroy();
      case 'garbage':
        return void socket.write('500 what is this\r\n');
      case 'stall':
        return void socket.resume();
      default: {
        const secured = new TLSSocket(socket, {
          isServer: true,
          secureContext: tls.createSecureContext(this.#credentials),
        });
        secured.on('error', () => {});
        secured.on('secure', () => this.names.push((secured as { servername?: string }).servername ?? false));
        secured.on('end', () => void secured.destroy());
        // It has taken over the handle; the one below is not told of its end in every case.
        this.sockets.splice(this.sockets.indexOf(socket), 1, secured);
        this.#serve(secured, greet);
      }
    }
  }

  #serve(socket: Socket, greet: boolean): void {
    const secure = socket instanceof TLSSocket;
    let buffer = '';
    let body = false;
    const say = (text: string) => socket.write(`${text}\r\n`);
    const onLine = (line: string): void => {
      this.heard.push({ line, secure });
      const verb = line.slice(0, 4).toUpperCase();
      switch (verb) {
        case 'EHLO': {
          const offers = ['PIPELINING', ...(this.#options.auth ? [`AUTH ${this.#options.auth}`] : [])];
          if (!secure && this.#options.startTls !== null) offers.push('STARTTLS');
          return void say(
            ['250-peer.example', ...offers.map((offer) => `250-${offer}`), '250 OK'].join('\r\n'),
          );
        }
        case 'STAR': {
          const reply = this.#options.startTls ?? '220 go ahead';
          socket.write(`${reply}\r\n`);
          if (!reply.startsWith('220')) return;
          socket.removeAllListeners('data');
          return this.#secure(socket, false);
        }
        case 'AUTH':
          if (this.#options.refuseAuth) return void say('535 5.7.8 no');
          if (line === 'AUTH LOGIN') return void say('334 VXNlcm5hbWU6');
          return void say('235 2.7.0 ok');
        case 'DATA':
          body = true;
          return void say('354 go');
        case 'QUIT':
          return void socket.end('221 bye\r\n');
        case 'MAIL':
        case 'RCPT':
        case 'RSET':
          return void say('250 2.0.0 ok');
        default:
          // The two steps of AUTH LOGIN.
          return void say(line === btoa('user') ? '334 UGFzc3dvcmQ6' : '235 2.7.0 ok');
      }
    };
    socket.on('data', (chunk: Buffer) => {
      buffer += chunk.toString('latin1');
      for (;;) {
        const end = body ? `\r\n.\r\n` : '\r\n';
        const at = buffer.indexOf(end);
        if (at === -1) return;
        const text = buffer.slice(0, at);
        buffer = buffer.slice(at + end.length);
        if (!body) onLine(text);
        else {
          this.messages.push(text);
          body = false;
          say('250 2.0.0 queued');
        }
      }
    });
    if (greet) say('220 peer.example ESMTP');
  }
}
