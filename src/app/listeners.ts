// Every `--listen` address, as one: bound, drained and counted together.
import type { Logger } from 'pino';
import type { Config, ListenAddress } from '../config.ts';
import type { Metrics } from '../metrics.ts';
import { ownAddresses } from '../routing/addresses.ts';
import type { SessionContext } from '../upstream/connection.ts';
import { type Certificate, Listener } from '../upstream/listener.ts';

export type ListenersDeps = Readonly<{
  /** For a session that begins now. */
  contextFor: (protocol: ListenAddress['protocol']) => SessionContext;
  /** Whether this peer has to begin with a PROXY header. */
  announcesByProxy: (peerAddress: string) => boolean;
  /** --max-connections, of the moment. */
  maxConnections: () => number;
  metrics: Pick<Metrics, 'upstreamConnections'>;
  log: Logger;
}>;

export class Listeners {
  readonly #deps: ListenersDeps;
  #all: readonly Listener[] = [];
  #sessions = 0;

  constructor(deps: ListenersDeps) {
    this.#deps = deps;
  }

  /** @throws the system's error (EADDRINUSE, EACCES); those that are bound by then are to be drained */
  async start(config: Config, certificate: Certificate | null): Promise<void> {
    const { contextFor, announcesByProxy, maxConnections, metrics, log } = this.#deps;
    for (const { protocol } of config.listen) metrics.upstreamConnections.show(protocol);
    const deps = {
      contextOf: ({ address: { protocol } }: Listener) => {
        metrics.upstreamConnections.inc(protocol);
        this.#sessions++;
        return contextFor(protocol);
      },
      announcesByProxy,
      // Beside as many sessions: a balancer's client above the limit shall hear its 421.
      mayWait: () => this.#waiting < maxConnections(),
      log,
    };
    this.#all = config.listen.map((address) => new Listener(address, config, certificate, deps));
    for (const listener of this.#all) await listener.start();
  }

  /** In the order of `listen`. */
  get urls(): readonly string[] {
    return this.#all.map(({ url }) => url);
  }

  /** All of them, and there are some. */
  get areListening(): boolean {
    return this.#all.length > 0 && this.#all.every(({ server }) => server.listening);
  }

  /** Sessions now open. */
  get sessions(): number {
    return this.#sessions;
  }

  /** With the sockets that are to be sessions. */
  get connections(): number {
    return this.#sessions + this.#waiting;
  }

  get #waiting(): number {
    return this.#all.reduce((sum, { waiting }) => sum + waiting, 0);
  }

  sessionEnded(): void {
    this.#sessions--;
  }

  /** Whether who connects to `address` at this port connects to us (RFC 5321 §5.1). */
  areAt(address: string, port: number): boolean {
    return this.#all.some(({ url }) => {
      const bound = new URL(url);
      if (Number(bound.port) !== port) return false;
      const at = bound.hostname.replace(/^\[|\]$/g, '');
      return at === address || ((at === '0.0.0.0' || at === '::') && ownAddresses().has(address));
    });
  }

  /** For sessions after this call. */
  useCertificate(certificate: Certificate): void {
    for (const listener of this.#all) listener.useCertificate(certificate);
  }

  /** Stops accepting; settles when the last session is gone. */
  async drain(): Promise<void> {
    const listening = this.#all.filter(({ server }) => server.listening);
    await Promise.all(listening.map((listener) => listener.drain()));
  }

  /** Ends every session that is left. */
  cutOff(): void {
    for (const listener of this.#all) listener.cutOff();
  }
}
