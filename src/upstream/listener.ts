// One `--listen` address: smtp-server's server, building our own connections.
// Owns the listening socket and the set of its sessions; drain() waits for them.
import { once } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { SMTPServer } from 'smtp-server';
import type { SMTPConnectionOptions } from 'smtp-server/lib/smtp-connection.js';
import type { Config, ListenAddress } from '../config.ts';
import { type SessionContext, UpstreamConnection } from './connection.ts';

/** PEM texts. */
export type Certificate = Readonly<{ cert: Buffer; key: Buffer }>;

/** What a listener makes of a new socket: the context for its session. */
export type ContextOf = (listener: Listener) => SessionContext;

const BACKLOG = 4096;

export class Listener extends SMTPServer {
  readonly address: ListenAddress;
  /** `smtp://127.0.0.1:2525`, with the port actually bound; empty before start(). */
  url = '';
  readonly #contextOf: ContextOf;
  /** All accepted sockets: smtp-server forgets a session that it is closing while the client still holds on. */
  readonly #sockets = new Set<Socket>();

  constructor(
    address: ListenAddress,
    { hostname, idleTimeoutMs }: Pick<Config, 'hostname' | 'idleTimeoutMs'>,
    certificate: Certificate | null,
    contextOf: ContextOf,
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
    this.#contextOf = contextOf;
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

  /** @throws the system's error (EADDRINUSE, EACCES) */
  async start(): Promise<void> {
    const { host, port } = this.address;
    this.listen({ host, port, backlog: BACKLOG });
    await once(this.server, 'listening');
    const { address, family, port: bound } = this.server.address() as AddressInfo;
    this.url = `${this.address.protocol}://${family === 'IPv6' ? `[${address}]` : address}:${bound}`;
  }

  /** For sessions after this call. */
  useCertificate(certificate: Certificate): void {
    this.updateSecureContext(certificate);
  }

  /** A socket that is gone by now must not get a TLS layer: Node does not survive that. */
  override _upgrade(socket: Socket, callback: (error: Error | null, tlsSocket?: TLSSocket) => void): void {
    if (socket.destroyed) callback(new Error('closed before the TLS handshake'));
    else super._upgrade(socket, callback);
  }

  override connect(socket: Socket, options?: SMTPConnectionOptions | null): void {
    const connection = new UpstreamConnection(this, socket, options ?? {}, this.#contextOf(this));
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
