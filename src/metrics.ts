// Every `cutthrough_` metric (INTERFACE.md), one registry for each proxy so that several can live in one process.
// Labels are bounded: never an address, a domain or an id.
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { TallyCounter, TallyHistogram } from './tally.ts';

const SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
];
const OCTETS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144].map((kib) => kib * 1024);

export type TransactionResult = 'delivered' | 'rejected' | 'deferred' | 'mixed' | 'aborted' | 'spooled';

export type DurationPhase = 'connect' | 'mail' | 'rcpt' | 'data' | 'body' | 'dot';

export type Metrics = ReturnType<typeof createMetrics>;

export function createMetrics(info: { version: string; mode: string; fallback: string }) {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  const counter = (name: string, help: string) =>
    new Counter({ name: `cutthrough_${name}`, help, registers });
  const counterBy = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new TallyCounter({ name: `cutthrough_${name}`, help, labelNames, registry });
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
    new Gauge({ name: `cutthrough_${name}`, help, labelNames, registers });
  const histogramBy = <L extends string>(
    name: string,
    help: string,
    bounds: readonly number[],
    labelNames: readonly L[] = [],
  ) => new TallyHistogram({ name: `cutthrough_${name}`, help, labelNames, registry }, bounds);

  gauge('build_info', 'Constant 1, labelled with the versions.', ['version', 'node']).set(
    { version: info.version, node: process.versions.node },
    1,
  );
  const modeInfo = gauge('mode_info', 'Constant 1, labelled with the mode in force.', ['mode', 'fallback']);
  /** The mode can be changed while running. */
  const setMode = (mode: string, fallback: string) => {
    modeInfo.reset();
    modeInfo.set({ mode, fallback }, 1);
  };
  setMode(info.mode, info.fallback);
  const fastPathEnabled = gauge('fast_path_enabled', '0 while messages go to disk first (claim 10), else 1.');
  fastPathEnabled.set(1);

  return {
    registry,
    setMode,
    fastPathEnabled,
    fastPathDisabled: counterBy(
      'fast_path_disabled_total',
      'How often the fast path was disabled, by reason.',
      ['reason'],
    ),
    upstreamConnections: counterBy('upstream_connections_total', 'Connections accepted.', ['listener']),
    upstreamConnectionsActive: gauge('upstream_connections_active', 'Upstream connections open now.'),
    upstreamCommands: counterBy('upstream_commands_total', 'Commands answered, by verb and reply class.', [
      'verb',
      'class',
    ]),
    transactions: counterBy('transactions_total', 'Transactions ended.', ['mode', 'result']),
    transactionsActive: gauge('transactions_active', 'Transactions between MAIL and their end.'),
    recipients: counterBy('recipients_total', 'Recipients by their final outcome.', ['result']),
    messageBytes: counterBy(
      'message_bytes_total',
      'Octets of DATA taken in (with the final dot), and of messages written to all next hops.',
      ['direction'],
    ),
    messageSize: histogramBy('message_size_bytes', 'Size of complete messages.', OCTETS),
    bufferedBytes: gauge('buffered_bytes', 'Message bytes held in memory now.'),
    connectAttempts: counterBy('downstream_connect_attempts_total', 'Connections tried, by how they ended.', [
      'result',
    ]),
    connectRetries: counter('downstream_connect_retries_total', 'Attempts after the first (claim 21).'),
    sessionsActive: gauge('downstream_sessions_active', 'Downstream sessions in use.'),
    sessionsIdle: gauge('downstream_sessions_idle', 'Downstream sessions kept for reuse.'),
    sessionReuses: counter('downstream_session_reuses_total', 'Transactions that took a kept session.'),
    downstreamReplies: counterBy('downstream_replies_total', 'Downstream replies, by phase and class.', [
      'phase',
      'class',
    ]),
    phaseDuration: histogramBy('phase_duration_seconds', 'Time a leg spent in a phase.', SECONDS, ['phase']),
    transactionDuration: histogramBy('transaction_duration_seconds', 'MAIL to the final reply.', SECONDS, [
      'mode',
    ]),
    backpressure: counterBy(
      'backpressure_seconds_total',
      'Time the message stood still, by the side waited for.',
      ['side'],
    ),
    spoolMessages: gauge('spool_messages', 'Messages in buffers and in the spool, by where they are.', [
      'where',
    ]),
    spoolBytes: gauge('spool_bytes', 'Their octets, by where they are.', ['where']),
    queueMessages: gauge('queue_messages', 'Messages in the queue.'),
    queueOldestAge: gauge('queue_oldest_age_seconds', 'Age of the oldest message in the queue; 0 if empty.'),
    queueAttempts: counterBy('queue_attempts_total', 'Recipients tried from the queue, by outcome.', [
      'result',
    ]),
    dsn: counterBy('dsn_total', 'Delivery status notifications, by kind.', ['kind']),
  };
}

/** The `class` label: 2xx, 3xx, 4xx, 5xx, or `invalid` for what is no reply. */
export function classLabel(code: number | null): string {
  return code === null ? 'invalid' : CLASSES[Math.floor(code / 100)]!;
}

const CLASSES = ['', '1xx', '2xx', '3xx', '4xx', '5xx'];
