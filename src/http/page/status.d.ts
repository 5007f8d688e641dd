// The shape of /status as the page reads it. test/integration/http.test.ts holds it against what statusOf() gives.
type LegStatus = Readonly<{ nextHop: string; phase: string; recipients: number }>;

export type TransactionStatus = Readonly<{
  id: string;
  state: string;
  ms: number;
  bytes: number;
  legs: readonly LegStatus[];
  legCount: number;
  client?: string;
  reversePath?: string;
  recipients?: readonly string[];
}>;

type Outcomes = Readonly<{ delivered: number; refused: number; failed: number }>;

export type HopStatus = Readonly<{
  name: string;
  sessions: Readonly<{ active: number; idle: number }>;
  lastOkMs: number | null;
  lastFailure: Readonly<{ ageMs: number; phase: string; cause: string }> | null;
  consecutiveFailures: number;
  totals: Outcomes;
  fiveMinutes: Outcomes;
}>;

export type Status = Readonly<{
  version: string;
  details: boolean;
  monotonicMs: number;
  mode: string;
  fallback: string;
  fastPath: Readonly<{ enabled: boolean; reasons: readonly string[]; sinceMs: number | null }>;
  queue: Readonly<{
    messages: number;
    bytes: number;
    oldestAgeSeconds: number;
    active: number;
    nextDueSeconds: number | null;
    attempts: Readonly<Record<string, number>>;
  }>;
  draining: boolean;
  listen: readonly string[];
  connections: number;
  maxConnections: number;
  sessions: Readonly<{ active: number; idle: number }>;
  bufferedBytes: number;
  maxBufferedBytes: number;
  totals: Readonly<{
    transactions: Readonly<Record<string, number>>;
    recipients: Readonly<Record<string, number>>;
    bytes: Readonly<{ in: number; out: number }>;
  }>;
  nextHops: readonly HopStatus[];
  transactionsActive: number;
  transactions: readonly TransactionStatus[];
}>;
