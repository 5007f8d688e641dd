// Every `cutthrough_` metric (INTERFACE.md), one registry for each proxy so that several can live in one process.
// Labels are bounded: never an address, a domain or an id.
import { type Aggregator, Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client';
import { TallyCounter, TallyHistogram } from './tally.ts';

const SECONDS = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600,
];
const OCTETS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144].map((kib) => kib * 1024);

const TRANSACTION_RESULTS = ['delivered', 'rejected', 'deferred', 'mixed', 'aborted', 'spooled'] as const;
export type TransactionResult = (typeof TRANSACTION_RESULTS)[number];

const DURATION_PHASES = ['connect', 'mail', 'rcpt', 'data', 'body', 'dot'] as const;
export type DurationPhase = (typeof DURATION_PHASES)[number];

const REPLY_PHASES = ['greeting', 'ehlo', 'starttls', 'auth', 'mail', 'rcpt', 'data', 'dot'];

/**
 * How the values of several processes are one, where that isn't their sum (workers/metrics.ts). What can be too much for
 * a process is told of the one that has most of it.
 */
const AGGREGATORS: Readonly<Record<string, Aggregator>> = {
  process_start_time_seconds: 'first',
  process_open_fds: 'max',
  process_max_fds: 'min',
  nodejs_eventloop_lag_seconds: 'max',
  nodejs_eventloop_lag_mean_seconds: 'max',
  nodejs_eventloop_lag_stddev_seconds: 'max',
  nodejs_eventloop_lag_p50_seconds: 'max',
  nodejs_eventloop_lag_p90_seconds: 'max',
  nodejs_eventloop_lag_p99_seconds: 'max',
  cutthrough_build_info: 'first',
  cutthrough_mode_info: 'max',
  cutthrough_fast_path_enabled: 'min',
  cutthrough_tls_certificate_expiry_timestamp_seconds: 'max',
  cutthrough_queue_oldest_age_seconds: 'max',
  cutthrough_queue_age_limit_seconds: 'max',
  // Each process has all of it.
  cutthrough_ledger_entries: 'max',
};

export type Metrics = ReturnType<typeof createMetrics>;

/** As one process tells them to another. */
export type MetricsAsJson = Awaited<ReturnType<Metrics['registry']['getMetricsAsJSON']>>;

export function createMetrics(info: { version: string; mode: string; fallback: string }) {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  const counter = (name: string, help: string) =>
    new Counter({ name: `cutthrough_${name}`, help, registers });
  /** `first`, `second`: values of the labels that are known beforehand, and so reported from the start. */
  const counterBy = <L extends string>(
    name: string,
    help: string,
    labelNames: readonly L[],
    first: readonly string[] = [],
    second: readonly string[] = [''],
  ) => {
    const counter = new TallyCounter({ name: `cutthrough_${name}`, help, labelNames, registry });
    for (const one of first) for (const other of second) counter.show(one, other);
    return counter;
  };
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
  const transactions = counterBy('transactions_total', 'Transactions ended.', ['mode', 'result']);
  const transactionDuration = histogramBy(
    'transaction_duration_seconds',
    'MAIL to the final reply.',
    SECONDS,
    ['mode'],
  );
  /** The mode can be changed while running. */
  const setMode = (mode: string, fallback: string) => {
    modeInfo.reset();
    modeInfo.set({ mode, fallback }, 1);
    for (const result of TRANSACTION_RESULTS) transactions.show(mode, result);
    transactionDuration.show(mode);
  };
  setMode(info.mode, info.fallback);
  const fastPathEnabled = gauge('fast_path_enabled', '0 while messages go to disk first (claim 10), else 1.');
  fastPathEnabled.set(1);
  const phaseDuration = histogramBy('phase_duration_seconds', 'Time a leg spent in a phase.', SECONDS, [
    'phase',
  ]);
  for (const phase of DURATION_PHASES) phaseDuration.show(phase);

  const workers = gauge('workers', 'Processes that take connections.');
  const workerRestarts = counterBy(
    'worker_restarts_total',
    'Processes put in the place of others, by why.',
    ['reason'],
    ['crash', 'reload'],
  );

  const metrics = {
    registry,
    workers,
    workerRestarts,
    setMode,
    fastPathEnabled,
    fastPathDisabled: counterBy(
      'fast_path_disabled_total',
      'How often the fast path was disabled, by reason.',
      ['reason'],
      ['buffered', 'event-loop-lag', 'spool-latency', 'manual'],
    ),
    upstreamConnections: counterBy('upstream_connections_total', 'Connections accepted.', ['listener']),
    upstreamConnectionsActive: gauge('upstream_connections_active', 'Upstream connections open now.'),
    upstreamConnectionsLimit: gauge('upstream_connections_limit', '--max-connections.'),
    upstreamConnectionsRefused: counter(
      'upstream_connections_refused_total',
      'Connections answered 421 at once, for --max-connections.',
    ),
    certificateExpiry: gauge(
      'tls_certificate_expiry_timestamp_seconds',
      'When the certificate of --tls-cert ends, Unix time; 0 without one.',
    ),
    upstreamCommands: counterBy('upstream_commands_total', 'Commands answered, by verb and reply class.', [
      'verb',
      'class',
    ]),
    transactions,
    transactionsActive: gauge('transactions_active', 'Transactions between MAIL and their end.'),
    recipients: counterBy(
      'recipients_total',
      'Recipients by their final outcome.',
      ['result'],
      ['accepted', 'rejected', 'deferred', 'suppressed'],
    ),
    messageBytes: counterBy(
      'message_bytes_total',
      'Octets of DATA taken in (with the final dot), and of messages written to all next hops.',
      ['direction'],
      ['in', 'out'],
    ),
    messageSize: histogramBy('message_size_bytes', 'Size of complete messages.', OCTETS),
    bufferedBytes: gauge('buffered_bytes', 'Message bytes held in memory now.'),
    bufferedBytesLimit: gauge('buffered_bytes_limit', '--max-buffered.'),
    connectAttempts: counterBy(
      'downstream_connect_attempts_total',
      'Connections tried, by how they ended.',
      ['result'],
      ['ok', 'refused', 'timeout', 'dns', 'tls', 'greeting'],
    ),
    connectRetries: counter('downstream_connect_retries_total', 'Attempts after the first (claim 21).'),
    sessionsActive: gauge('downstream_sessions_active', 'Downstream sessions in use.'),
    sessionsIdle: gauge('downstream_sessions_idle', 'Downstream sessions kept for reuse.'),
    sessionsWaiting: gauge(
      'downstream_sessions_waiting',
      'Legs that wait for a session, since their next hop has --max-sessions-per-next-hop.',
    ),
    sessionReuses: counter('downstream_session_reuses_total', 'Transactions that took a kept session.'),
    downstreamReplies: counterBy(
      'downstream_replies_total',
      'Downstream replies, by phase and class.',
      ['phase', 'class'],
      REPLY_PHASES,
      ['2xx', '4xx', '5xx'],
    ),
    phaseDuration,
    transactionDuration,
    backpressure: counterBy(
      'backpressure_seconds_total',
      'Time the message stood still, by the side waited for.',
      ['side'],
      ['upstream', 'downstream'],
    ),
    spoolMessages: gauge('spool_messages', 'Messages in buffers and in the spool, by where they are.', [
      'where',
    ]),
    spoolBytes: gauge('spool_bytes', 'Their octets, by where they are.', ['where']),
    queueMessages: gauge('queue_messages', 'Messages in the queue.'),
    queueOldestAge: gauge('queue_oldest_age_seconds', 'Age of the oldest message in the queue; 0 if empty.'),
    queueAgeLimit: gauge('queue_age_limit_seconds', '--max-queue-age: then the sender is notified.'),
    queueAttempts: counterBy(
      'queue_attempts_total',
      'Recipients tried from the queue, by outcome.',
      ['result'],
      ['delivered', 'deferred', 'rejected', 'expired'],
    ),
    spoolFailures: counterBy(
      'spool_failures_total',
      'Messages that the spool could not take: no room on the disk, or an error of it.',
      ['reason'],
      ['full', 'error'],
    ),
    ledgerEntries: gauge(
      'ledger_entries',
      'Recipients of whom is remembered what became of a message, so that a retry is not delivered twice.',
    ),
    duplicatesSuppressed: counter(
      'duplicates_suppressed_total',
      'Recipients not sent a message again that they had.',
    ),
    recipientsWithheld: counter(
      'recipients_withheld_total',
      'Recipients not sent a message that another next hop had not accepted (--dots ordered).',
    ),
    dsn: counterBy(
      'dsn_total',
      'Delivery status notifications, by kind.',
      ['kind'],
      ['failed', 'delayed', 'expired', 'relayed'],
    ),
  };
  // Some default metrics aren't there on every system.
  for (const [name, aggregator] of Object.entries(AGGREGATORS))
    Object.assign(registry.getSingleMetric(name) ?? {}, { aggregator });
  return metrics;
}

/** The `class` label: 2xx, 3xx, 4xx, 5xx, or `invalid` for what is no reply. */
export function classLabel(code: number | null): string {
  return code === null ? 'invalid' : CLASSES[Math.floor(code / 100)]!;
}

const CLASSES = ['', '1xx', '2xx', '3xx', '4xx', '5xx'];
