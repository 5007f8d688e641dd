// One `--listen` address: smtp-server's server, building our own connections.
// Owns the listening socket and the set of its sessions; drain() waits for them. Sockets that wait for their PROXY
// header or TLS handshake are no sessions yet: they are bounded in number and time, and end when it drains.
import { once } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import { SMTPServer } from 'smtp-server';
import type { SMTPConnectionOptions } from 'smtp-server/lib/smtp-connection.js';
import type { Config, ListenAddress } from '../config.ts';
import { type SessionContext, UpstreamConnection } from './connection.ts';
import { HeaderComplaints, readProxyHeader } from './proxy-socket.ts';

/** PEM texts. */
export type Certificate = Readonly<{ cert: Buffer; key: Buffer }>;

export type ListenerDeps = Readonly<{
  /** What a listener makes of a new socket: the context for its session. */
  contextOf: (listener: Listener) => SessionContext;
  /** Whether this peer has to begin with a PROXY header. */
  announcesByProxy: (peerAddress: string) => boolean;
  /** False when as many sockets as there may be are waiting for their session. */
  mayWait: () => boolean;
  log: Logger;
}>;

const BACKLOG = 4096;
const NO_ID = '-';
/** A balancer sends its header at once; this is for lost segments. */
const PROXY_HEADER_TIMEOUT_MS = 10_000;

export class Listener extends SMTPServer {
  readonly address: ListenAddress;
  /** `smtp://127.0.0.1:2525`, with the port actually bound; empty before start(). */
  url = '';
  readonly #deps: ListenerDeps;
  readonly #headerTimeoutMs: number;
  readonly #complaints = new HeaderComplaints();
  /** What every connection comes to, where that is one address. */
  #bound: Pick<SMTPConnectionOptions, 'localAddress' | 'localPort'> = {};
  /** All accepted sockets: smtp-server forgets a session that it is closing while the client still holds on. */
  readonly #sockets = new Set<Socket>();

  constructor(
    address: ListenAddress,
    { hostname, idleTimeoutMs }: Pick<Config, 'hostname' | 'idleTimeoutMs'>,
    certificate: Certificate | null,
    deps: ListenerDeps,
  ) {
    super({
      name: hostname,
      secure: address.protocol === 'smtps',
      // Asked for by name, so that a client can't bring the version down.
      minVersion: 'TLSv1.2',
      ...(certificate ?? {}),
      authOptional: true,
      disabledCommands: certificate === null ? ['AUTH', 'STARTTLS'] : ['AUTH'],
      disableReverseLookup: true,
      logger: false,
      // For the handshake of smtps://; a session has deadlines of its own.
      socketTimeout: idleTimeoutMs,
    });
    this.address = address;
    this.#deps = deps;
    this.#headerTimeoutMs = Math.min(PROXY_HEADER_TIMEOUT_MS, idleTimeoutMs);
    this.server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    // A client that breaks off is no event; what matters is in the transaction's line.
    this.on('error', () => {});
  }

  get sessions(): ReadonlySet<UpstreamConnection> {
    return this.connections as unknown as ReadonlySet<UpstreamConnection>;
  }

  /** Sockets that wait for their PROXY header or TLS handshake. */
  get waiting(): number {
    return this._pendingSockets.size;
  }

  /** @throws the system's error (EADDRINUSE, EACCES) */
  async start(): Promise<void> {
    const { host, port } = this.address;
    this.listen({ host, port, backlog: BACKLOG });
    await once(this.server, 'listening');
    const { address, family, port: bound } = this.server.address() as AddressInfo;
    this.url = `${this.address.protocol}://${family === 'IPv6' ? `[${address}]` : address}:${bound}`;
    // Else it has to be asked for at every connection.
    if (address !== '0.0.0.0' && address !== '::') this.#bound = { localAddress: address, localPort: bound };
  }

  /** For sessions after this call. */
  useCertificate(certificate: Certificate): void {
    this.updateSecureContext(certificate);
  }

  /** Before the header or the handshake nothing can be said, not even that there are too many. */
  override _acceptSocket(socket: Socket, handshake: boolean): (() => void) | false {
    if (!handshake && !this._expectsProxyHeader(socket)) return super._acceptSocket(socket, handshake);
    // In between the library's listeners there are moments without one for errors.
    socket.on('error', () => {});
    if (this.#deps.mayWait()) return super._acceptSocket(socket, handshake);
    socket.destroy();
    return false;
  }

  override _expectsProxyHeader(socket: Socket): boolean {
    return this.#deps.announcesByProxy(socket.remoteAddress ?? '');
  }

  /** The library knows version 1 alone, and answers a bad header. */
  override _handleProxy(
    socket: Socket,
    callback: (error: Error | null, options?: SMTPConnectionOptions & { id: string }) => void,
  ): void {
    const peer = socket.remoteAddress ?? '';
    // The library would make a random id for its log, which isn't used.
    if (!this.#deps.announcesByProxy(peer)) return callback(null, { id: NO_ID, ...this.#bound });
    // The library's, which every byte would prolong.
    socket.setTimeout(0);
    readProxyHeader(socket, this.#headerTimeoutMs, (failure, client) => {
      if (failure === null) {
        const announced = client && { remoteAddress: client.address, remotePort: client.port };
        return callback(null, { id: NO_ID, ...announced });
      }
      this.#complaints.tell(this.#deps.log, failure, { peer, listener: this.url });
      callback(new Error(failure.reason));
    });
  }

  /** A socket that is gone by now must not get a TLS layer: Node does not survive that. */
  override _upgrade(socket: Socket, callback: (error: Error | null, tlsSocket?: TLSSocket) => void): void {
    if (socket.destroyed) callback(new Error('closed before the TLS handshake'));
    else super._upgrade(socket, callback);
  }

  override connect(socket: Socket, options?: SMTPConnectionOptions | null): void {
    const connection = new UpstreamConnection(this, socket, options ?? {}, this.#deps.contextOf(this));
    this.connections.add(connection);
    connection.on('error', () => {});
    connection.init();
  }

  /** Stops accepting and tells the sessions; settles when the last one is gone. */
  async drain(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    for (const pending of this._pendingSockets.values()) pending.destroy();
    for (const session of this.sessions) session.drain();
    await closed;
  }

  /** Ends every session that is left, and every connection of one that has ended. */
  cutOff(): void {
    for (const session of this.sessions) session.destroy();
    setImmediate(() => {
      for (const socket of this.#sockets) socket.destroy();
    });
  }
}
