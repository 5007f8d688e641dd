// One `--listen` address: smtp-server's server, building our own connections.
// Owns the listening socket and the set of its sessions; drain() waits for them.
import { once } from 'node:events';
import type { AddressInfo, Socket } from 'node:net';
import { SMTPServer } from 'smtp-server';
import type { SMTPConnectionOptions } from 'smtp-server/lib/smtp-connection.js';
import type { ListenAddress } from '../config.ts';
import { type SessionContext, UpstreamConnection } from './connection.ts';

/** PEM texts. */
export type Certificate = Readonly<{ cert: Buffer; key: Buffer }>;

/** What a listener makes of a new socket: the context for its session. */
export type ContextOf = (listener: Listener) => SessionContext;

const BACKLOG = 4096;

export class Listener extends SMTPServer {
  readonly address: ListenAddress;
  readonly #contextOf: ContextOf;

  constructor(
    address: ListenAddress,
    hostname: string,
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
    });
    this.address = address;
    this.#contextOf = contextOf;
    // A client that breaks off is no event; what matters is in the transaction's line.
    this.on('error', () => {});
  }

  /** `smtp://127.0.0.1:2525`, with the port actually bound. */
  get url(): string {
    const { address, family, port } = this.server.address() as AddressInfo;
    return `${this.address.protocol}://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
  }

  get sessions(): ReadonlySet<UpstreamConnection> {
    return this.connections as unknown as ReadonlySet<UpstreamConnection>;
  }

  /** @throws the system's error (EADDRINUSE, EACCES) */
  async start(): Promise<void> {
    const { host, port } = this.address;
    this.listen({ host, port, backlog: BACKLOG });
    await once(this.server, 'listening');
  }

  /** For sessions after this call. */
  useCertificate(certificate: Certificate): void {
    this.updateSecureContext(certificate);
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

  /** Ends every session that is left. */
  cutOff(): void {
    for (const session of this.sessions) session.destroy();
  }
}
