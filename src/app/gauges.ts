// The gauges that are read when scraped: counting them up and down for each chunk and message would cost more than it
// tells.
import type { Gauge } from 'prom-client';
import type { Config } from '../config.ts';
import type { Foundation } from './foundation.ts';

export type GaugeSources = Readonly<{
  foundation: Foundation;
  /** In force. */
  config: () => Config;
  /** Sessions of upstreams. */
  connections: () => number;
  /** Unix time; 0 without one. */
  certificateExpiry: () => number;
  isReady: () => boolean;
}>;

export function readGauges(sources: GaugeSources): void {
  const { foundation, config } = sources;
  const { metrics, sessions, transactions, ledger, budget } = foundation;
  read(metrics.bufferedBytes, () => foundation.bufferedBytes);
  read(metrics.sessionsActive, () => sessions.active);
  read(metrics.sessionsIdle, () => sessions.idle);
  read(metrics.sessionsWaiting, () => sessions.waiting);
  read(metrics.transactionsActive, () => transactions.all.size);
  read(metrics.upstreamConnectionsActive, sources.connections);
  read(metrics.queueMessages, () => foundation.spool?.queue.size ?? 0);
  read(metrics.queueOldestAge, () => foundation.spool?.queue.oldestAgeSeconds ?? 0);
  read(metrics.ledgerEntries, () => ledger.size);
  read(metrics.workers, () => (sources.isReady() ? 1 : 0));
  read(metrics.certificateExpiry, sources.certificateExpiry);
  // What a reload can change; beside each stands what it limits.
  read(metrics.upstreamConnectionsLimit, () => config().maxConnections);
  read(metrics.queueAgeLimit, () => config().maxQueueAgeMs / 1000);
  // The spool's budget is made once.
  read(metrics.bufferedBytesLimit, () => (foundation.spool ? budget.limit : config().maxBufferedBytes));
  readByPlace(metrics.spoolMessages, foundation, 'messages', 'size');
  readByPlace(metrics.spoolBytes, foundation, 'octets', 'octets');
}

function read(gauge: Gauge, now: () => number): void {
  Object.assign(gauge, { collect: () => gauge.set(now()) });
}

function readByPlace(
  gauge: Gauge<'where'>,
  foundation: Foundation,
  ofBuffers: 'messages' | 'octets',
  ofQueue: 'size' | 'octets',
): void {
  Object.assign(gauge, {
    collect: () => {
      const { spool } = foundation;
      const held = spool?.spooler.held;
      gauge.set({ where: 'memory' }, held?.memory[ofBuffers] ?? 0);
      gauge.set({ where: 'disk' }, (held?.disk[ofBuffers] ?? 0) + (spool?.queue[ofQueue] ?? 0));
    },
  });
}
