// What a reload replaces as a whole: the config with its routing and certificate, and what sessions, transactions and
// legs are given by it. Sessions that run finish with the generation that they began with.
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { performance } from 'node:perf_hooks';
import { createSecureContext } from 'node:tls';
import type { Config, ListenAddress } from '../config.ts';
import { Transaction } from '../cut-through/transaction.ts';
import type { LegDeps } from '../downstream/leg.ts';
import { SessionPool } from '../downstream/pool.ts';
import { classLabel } from '../metrics.ts';
import { addressesOf } from '../routing/addresses.ts';
import type { Router } from '../routing/routes.ts';
import type { Routing } from '../routing/routing.ts';
import type { Recipient } from '../smtp/envelope.ts';
import { type Incoming, receivedOf } from '../smtp/received.ts';
import { fastPathDisabled, type Reply } from '../smtp/reply.ts';
import type { DeliveryDeps } from '../spool/delivery.ts';
import { Spool } from '../spool/spool.ts';
import { StoredTransaction } from '../spool/stored-transaction.ts';
import { type Admission, createAdmission } from '../upstream/admission.ts';
import type { SessionContext } from '../upstream/connection.ts';
import type { Certificate } from '../upstream/listener.ts';
import { WaitLimit } from '../wait.ts';
import type { Foundation } from './foundation.ts';
import type { Listeners } from './listeners.ts';
import type { LiveTransaction } from './live-transactions.ts';

type Parts = Readonly<{
  config: Config;
  routing: Routing;
  certificate: Certificate | null;
  /** Unix time of its end; 0 without one. */
  certificateExpiry: number;
  admission: Admission;
  /** Of all its downstream sessions. */
  pool: SessionPool;
  rcptDeadline: WaitLimit;
  foundation: Foundation;
  listeners: Listeners;
}>;

export class Generation {
  readonly #parts: Parts;
  /** By the protocol of the listener. */
  readonly #contexts = new Map<ListenAddress['protocol'], SessionContext>();

  private constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** @throws Error when the certificate or its key can't be read, or they don't fit */
  static async load(
    config: Config,
    routing: Routing,
    foundation: Foundation,
    listeners: Listeners,
  ): Promise<Generation> {
    const certificate = await readCertificate(config);
    return new Generation({
      config,
      routing,
      certificate,
      certificateExpiry: certificate === null ? 0 : expiryOf(certificate),
      admission: createAdmission(config),
      pool: newPool(config, foundation),
      rcptDeadline: new WaitLimit(config.rcptDeadlineMs),
      foundation,
      listeners,
    });
  }

  /** For new sessions; pool, routing and all else stay. */
  with(changes: Pick<Config, 'mode' | 'fallback'>): Generation {
    return new Generation({ ...this.#parts, config: { ...this.config, ...changes } });
  }

  get config(): Config {
    return this.#parts.config;
  }

  get router(): Router {
    return this.#parts.routing.router;
  }

  get pool(): SessionPool {
    return this.#parts.pool;
  }

  get admission(): Admission {
    return this.#parts.admission;
  }

  get certificate(): Certificate | null {
    return this.#parts.certificate;
  }

  get certificateExpiry(): number {
    return this.#parts.certificateExpiry;
  }

  /** What sessions by this protocol are given; built when the first one begins. */
  contextFor(protocol: ListenAddress['protocol']): SessionContext {
    let context = this.#contexts.get(protocol);
    if (context === undefined) {
      context = this.#newContext(protocol);
      this.#contexts.set(protocol, context);
    }
    return context;
  }

  #newContext(protocol: ListenAddress['protocol']): SessionContext {
    const { config, admission, certificate, foundation, listeners } = this.#parts;
    const { metrics, log } = foundation;
    return {
      config,
      admission,
      metrics,
      log,
      lmtp: protocol === 'lmtp',
      startTls: certificate !== null && protocol !== 'smtps',
      offersDsn: () => config.mode !== 'cut-through' || this.#allOfferDsn,
      newTransaction: this.#transactions(),
      refusesMail: () => this.#refusesMail(),
      hasRoom: () => listeners.connections <= config.maxConnections,
      onClosed: () => listeners.sessionEnded(),
    };
  }

  /** Cut through, DSN is promised only where every next hop is known to take it: all static, each seen to offer it. */
  get #allOfferDsn(): boolean {
    const { offersDsn } = this.#parts.foundation;
    return this.router.nextHops?.every(({ key }) => offersDsn.get(key) === true) ?? false;
  }

  /** Switched off by hand, with nothing to take over. */
  #refusesMail(): Reply | null {
    const { mode, fallback } = this.config;
    const switchedOff = this.#parts.foundation.fastPath.reasons.includes('manual');
    const refuses = mode === 'cut-through' && fallback === 'none' && switchedOff;
    return refuses ? fastPathDisabled() : null;
  }

  /** How transactions of a session begin; what they are given is built once, since a small message is soon over. */
  #transactions(): SessionContext['newTransaction'] {
    const { config, rcptDeadline, foundation } = this.#parts;
    const { metrics, log, ledger, timeLines, fastPath, transactions } = foundation;
    const shared = {
      config,
      router: this.router,
      metrics,
      log,
      now: () => performance.now(),
      timeLines,
      rcptDeadline,
      ledger,
      newId: () => foundation.newId(),
      received: (message: Incoming, only: Recipient | null) =>
        receivedOf(message, only, config.hostname, new Date()),
      onEnd: (ended: LiveTransaction) => transactions.remove(ended),
    };
    const spooler = Spool.isNeeded(config) ? (foundation.spool?.spooler ?? null) : null;
    const delivery = this.deliveryDeps();
    const overloaded = () => foundation.isOverloaded(config);
    const cutThrough = { ...shared, spooler, overloaded, leg: delivery.leg };
    const stored = spooler && { ...shared, spooler, delivery, fastPathEnabled: () => fastPath.enabled };
    return (sender, client) => {
      // Claim 10: what is disabled is the fast path, and cut-through where something can take over.
      const disabled = config.fallback !== 'none' && !fastPath.enabled;
      const transaction =
        stored !== null && (config.mode !== 'cut-through' || disabled)
          ? new StoredTransaction(sender, client, stored)
          : new Transaction(sender, client, cutThrough);
      transactions.add(transaction);
      return transaction;
    };
  }

  /** For deliveries of stored messages. @param config where theirs differs */
  deliveryDeps(config: Config = this.config): DeliveryDeps {
    const { dataTimeoutMs, ackTimeoutMs } = config;
    const { messageBytes, backpressure } = this.#parts.foundation.metrics;
    return {
      leg: this.#legDeps(config),
      dataTimeoutMs,
      ackTimeoutMs,
      onStandstill: (seconds) => backpressure.add(seconds, 'downstream'),
      onSent: (octets) => messageBytes.add(octets, 'out'),
    };
  }

  #legDeps(config: Config): LegDeps {
    const { routing, pool, foundation } = this.#parts;
    const { metrics, health, offersDsn, log } = foundation;
    return {
      forwardClient: config.forwardClient,
      now: () => performance.now(),
      onPhase: (phase, seconds) => metrics.phaseDuration.observe(seconds, phase),
      pool,
      health,
      onOpened: (nextHop, offered) => offersDsn.set(nextHop.key, offered.dsn),
      onBug: (err) => log.error({ event: 'bug', err }),
      connect: {
        config,
        lookup: (host) => addressesOf(host, config.dns),
        onResult: (result) => metrics.connectAttempts.inc(result),
        onRetry: () => metrics.connectRetries.inc(),
        onPolicyFailure: (domain, host, reason) => routing.mtaSts?.reportFailure(domain, host, reason),
        onReply: (phase, reply) =>
          metrics.downstreamReplies.inc(phase, classLabel(reply === null ? null : reply.code)),
        introduction: null,
      },
    };
  }
}

async function readCertificate({ tlsCert, tlsKey }: Config): Promise<Certificate | null> {
  if (tlsCert === null || tlsKey === null) return null;
  const certificate = { cert: await readFile(tlsCert), key: await readFile(tlsKey) };
  // A pair that doesn't fit must be found out before any listener has taken it.
  createSecureContext(certificate);
  return certificate;
}

function expiryOf({ cert }: Certificate): number {
  return Date.parse(new X509Certificate(cert).validTo) / 1000;
}

function newPool(config: Config, { sessions, metrics }: Foundation): SessionPool {
  return new SessionPool({
    config,
    now: () => performance.now(),
    onCount: ({ active, idle }) => {
      sessions.active += active;
      sessions.idle += idle;
    },
    onReuse: () => metrics.sessionReuses.inc(),
    onWaiting: (change) => {
      sessions.waiting += change;
    },
  });
}
