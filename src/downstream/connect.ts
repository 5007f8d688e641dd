// Opens a session to a next hop (claim 21): one attempt tries every host in order, every address of each; when all
// fail, the attempt is repeated a bounded number of times with growing, jittered waits; claim 24's answer is
// `unreachable` with the number of attempts made.
// A host that greets with 5xx is not asked again. STARTTLS that fails under `opportunistic` is followed by a second
// connection in clear. Everything ends with the caller's signal; nothing is left open behind a failure.
import net, { type Socket } from 'node:net';
import tls, { type ConnectionOptions } from 'node:tls';
import pRetry, { AbortError } from 'p-retry';
import type { Config } from '../config.ts';
import type { HopHost, NextHop } from '../routing/routes.ts';
import { replyClass } from '../smtp/reply.ts';
import { Wait } from '../wait.ts';
import { type Introduction, proxyHeaderFor } from './forward-client.ts';
import {
  DownstreamSession,
  IntroductionError,
  OpenError,
  type ReplyPhase,
  type SessionOptions,
} from './session.ts';
import { certificateProblem, peerProblemOf, startTlsOf, tlsOptionsOf } from './tls.ts';

/** The `result` label of cutthrough_downstream_connect_attempts_total. */
type ConnectResult = 'ok' | ConnectFailure;
type ConnectFailure = 'refused' | 'timeout' | 'dns' | 'tls' | 'greeting';

export type Opened =
  | Readonly<{ kind: 'open'; session: DownstreamSession; host: HopHost; attempts: number }>
  /**
   * `answered`: a host was there and replied, though with a refusal. `failure`: of the last try that ended by itself;
   * null where the caller's signal ended the first.
   */
  | Readonly<{
      kind: 'unreachable';
      attempts: number;
      reason: string;
      answered: boolean;
      failure: ConnectFailure | null;
    }>;

export type ConnectDeps = Readonly<{
  config: Pick<
    Config,
    | 'hostname'
    | 'connectRetries'
    | 'connectBackoffMs'
    | 'connectTimeoutMs'
    | 'greetingTimeoutMs'
    | 'commandTimeoutMs'
  >;
  /** Addresses of a static next hop's host name, in the order to try. Rejects when there are none. */
  lookup: (host: string) => Promise<readonly string[]>;
  onResult: (result: ConnectResult) => void;
  onRetry: () => void;
  onReply: SessionOptions['onReply'];
  /** Whom the next hop is told that the session speaks for; null: nobody. */
  introduction: Introduction | null;
  /** Under an MTA-STS policy of mode "testing": why the host would have been refused under "enforce". */
  onPolicyFailure?: (domain: string, host: string, reason: string) => void;
}>;

/** Sees how it goes: for the time line of a transaction, and for `probe`. */
export type ConnectWatch = Readonly<{
  /** The TCP connection stands; with smtps:// also its TLS. */
  onStep?: (step: 'connect' | 'tls') => void;
  /** An address was tried, or none was found; a string says why it failed. */
  onTried: (host: HopHost, address: string | null, result: DownstreamSession | string) => void;
}>;

/** Claim 21's waits grow from `--connect-backoff` up to this. */
const MAX_BACKOFF_MS = 5_000;
const UNWATCHED: ConnectWatch = { onTried: () => {} };
/** Room in a downstream socket before back pressure sets in, octets. */
export const SOCKET_HIGH_WATER_OCTETS = 128 * 1024;

class ConnectError extends Error {
  readonly result: ConnectFailure;
  /** The host has said for good that it takes no mail. */
  readonly final: boolean;
  /** The host has said something. */
  readonly answered: boolean;

  constructor(
    result: ConnectFailure,
    message: string,
    options: { final?: boolean; answered?: boolean; cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause });
    this.result = result;
    this.final = options.final ?? false;
    this.answered = options.answered ?? false;
  }
}

class NoHostAnswers extends Error {}

/** Rejects for bugs only. An aborted `signal` gives `unreachable` with the attempts made so far. */
export async function openSession(
  nextHop: NextHop,
  deps: ConnectDeps,
  signal: AbortSignal,
  watch: ConnectWatch = UNWATCHED,
): Promise<Opened> {
  const hosts = new Set(nextHop.hosts);
  let attempts = 0;
  let lastReason = 'no host to connect to';
  let answered = false;
  let failure: ConnectFailure | null = null;
  const attempt = async (attemptNumber: number) => {
    attempts = attemptNumber;
    if (attemptNumber > 1) deps.onRetry();
    for (const host of hosts) {
      try {
        return await tryHost(host, deps, signal, watch);
      } catch (error) {
        if (!(error instanceof ConnectError)) throw new AbortError(asError(error));
        lastReason = error.message;
        answered ||= error.answered;
        if (!signal.aborted) failure = error.result;
        signal.throwIfAborted();
        if (error.final) hosts.delete(host);
      }
    }
    const noHost = new NoHostAnswers(lastReason);
    throw hosts.size === 0 ? new AbortError(noHost) : noHost;
  };
  try {
    const { session, host } = await pRetry(attempt, {
      retries: deps.config.connectRetries,
      minTimeout: deps.config.connectBackoffMs,
      maxTimeout: Math.max(MAX_BACKOFF_MS, deps.config.connectBackoffMs),
      factor: 2,
      randomize: true,
      signal,
    });
    return { kind: 'open', session, host, attempts };
  } catch (error) {
    if (!signal.aborted && !(error instanceof NoHostAnswers)) throw error;
    return { kind: 'unreachable', attempts, reason: lastReason, answered, failure };
  }
}

type HostSession = { session: DownstreamSession; host: HopHost };

async function tryHost(
  host: HopHost,
  deps: ConnectDeps,
  signal: AbortSignal,
  watch: ConnectWatch,
): Promise<HostSession> {
  const addresses = host.address === null ? await lookUp(host, deps, signal, watch) : [host.address];
  let failure = new ConnectError('dns', `${host.host} has no address`);
  for (const address of addresses) {
    let session: DownstreamSession | null = null;
    try {
      session = await tryAddress(host, address, deps, signal, watch);
      deps.onResult('ok');
      const { demand } = host;
      if (demand?.by === 'mta-sts' && demand.mode === 'testing' && session.unverified !== null)
        deps.onPolicyFailure?.(demand.domain, host.host, session.unverified);
      watch.onTried(host, address, session);
      return { session, host };
    } catch (error) {
      if (!(error instanceof ConnectError)) {
        session?.abort();
        throw error;
      }
      if (!signal.aborted) deps.onResult(error.result);
      watch.onTried(host, address, error.message);
      failure = error;
      if (error.final || signal.aborted) break;
    }
  }
  throw failure;
}

async function lookUp(
  host: HopHost,
  deps: ConnectDeps,
  signal: AbortSignal,
  watch: ConnectWatch,
): Promise<readonly string[]> {
  const wait = new Wait();
  const onAbort = () => wait.cut();
  signal.addEventListener('abort', onAbort);
  let failure: ConnectError;
  try {
    const found = await wait.for(deps.lookup(host.host));
    if (found !== null) return found;
    failure = new ConnectError('timeout', `looking up ${host.host} took too long`);
  } catch (cause) {
    deps.onResult('dns');
    failure = new ConnectError('dns', `no address for ${host.host}`, { cause });
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
  watch.onTried(host, null, failure.message);
  throw failure;
}

async function tryAddress(
  host: HopHost,
  address: string,
  deps: ConnectDeps,
  signal: AbortSignal,
  watch: ConnectWatch,
) {
  try {
    return await openAt(host, address, deps, signal, startTlsOf(host), watch);
  } catch (error) {
    const failedTls = error instanceof ConnectError && error.result === 'tls';
    // RFC 7435: opportunistic security protects where it can, and delivers where it can't.
    if (!failedTls || host.tls !== 'opportunistic' || host.protocol === 'smtps') throw error;
    deps.onResult('tls');
    watch.onTried(host, address, `${error.message}; again in clear`);
    return await openAt(host, address, deps, signal, 'ignore', watch);
  }
}

async function openAt(
  host: HopHost,
  address: string,
  deps: ConnectDeps,
  signal: AbortSignal,
  startTls: SessionOptions['startTls'],
  watch: ConnectWatch,
): Promise<DownstreamSession> {
  const { config } = deps;
  const tlsOptions = tlsOptionsOf(host);
  const { introduction } = deps;
  const plain = await dial({ host: address, port: host.port }, config.connectTimeoutMs, signal);
  try {
    // proxy-protocol.txt §2: before anything else, in one piece.
    if (introduction?.kind === 'proxy') plain.write(proxyHeaderFor(introduction.client, plain));
    watch.onStep?.('connect');
    const secured = host.protocol === 'smtps';
    const socket = secured ? await secure(plain, tlsOptions, config.connectTimeoutMs, signal) : plain;
    if (secured) watch.onStep?.('tls');
    return await DownstreamSession.open(
      {
        socket,
        secured,
        lmtp: host.protocol === 'lmtp',
        host: host.host,
        name: config.hostname,
        startTls,
        tls: tlsOptions,
        peerProblem: peerProblemOf(host),
        auth: host.auth,
        // `tls=off` is the operator's word that this path is safe; a loopback address is.
        authInClear: host.tls === 'off' || isLoopback(address),
        greetingTimeoutMs: config.greetingTimeoutMs,
        commandTimeoutMs: config.commandTimeoutMs,
        onReply: deps.onReply,
        introduction,
      },
      signal,
    );
  } catch (error) {
    if (error instanceof OpenError) throw asConnectError(error, host);
    // A bug, and perhaps from before anybody owned the socket.
    if (!(error instanceof ConnectError)) plain.destroy();
    throw error;
  }
}

const RESULT_OF_PHASE: Partial<Record<ReplyPhase, ConnectFailure>> = { starttls: 'tls' };

function asConnectError(error: OpenError, host: HopHost): ConnectError {
  const problem = error.phase === 'starttls' ? certificateProblem(error.cause) : null;
  if (problem !== null) return new ConnectError('tls', `${host.host}: ${problem}`, { cause: error });
  const result = RESULT_OF_PHASE[error.phase] ?? (error.timedOut ? 'timeout' : 'greeting');
  const permanent = error.reply !== null && replyClass(error.reply) === 5;
  const final = permanent && result !== 'tls' && !(error instanceof IntroductionError);
  return new ConnectError(result, error.message, { final, answered: error.reply !== null, cause: error });
}

function dial(to: { host: string; port: number }, timeoutMs: number, signal: AbortSignal): Promise<Socket> {
  const socket = net.connect({
    ...to,
    noDelay: true,
    highWaterMark: SOCKET_HIGH_WATER_OCTETS,
  } as net.NetConnectOpts);
  return settled(socket, 'connect', timeoutMs, signal, `${to.host} port ${to.port}`);
}

function secure(plain: Socket, options: ConnectionOptions, timeoutMs: number, signal: AbortSignal) {
  const socket = tls.connect({ ...options, socket: plain });
  return settled(socket, 'secureConnect', timeoutMs, signal, options.host ?? '');
}

/** The socket once `event` came; destroyed, with the reason thrown, when it fails or takes too long. */
function settled(
  socket: Socket,
  event: string,
  timeoutMs: number,
  signal: AbortSignal,
  to: string,
): Promise<Socket> {
  const failed: ConnectFailure = event === 'secureConnect' ? 'tls' : 'refused';
  return new Promise((resolve, reject) => {
    const finish = (error: ConnectError | null) => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.off('error', onError).off('close', onClose).off(event, onReady);
      if (error === null) return resolve(socket);
      socket.on('error', () => {});
      socket.destroy();
      reject(error);
    };
    const onReady = () => finish(null);
    const onClose = () => finish(new ConnectError(failed, `${to} closed the connection`));
    const onAbort = () => finish(new ConnectError('timeout', `connecting to ${to} took too long`));
    const onError = (cause: NodeJS.ErrnoException) =>
      finish(
        new ConnectError(cause.code === 'ETIMEDOUT' ? 'timeout' : failed, describe(to, cause), { cause }),
      );
    const timer = setTimeout(
      () => finish(new ConnectError('timeout', `${to} did not answer within ${timeoutMs} ms`)),
      timeoutMs,
    );
    socket.once('error', onError).once('close', onClose).once(event, onReady);
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) onAbort();
  });
}

function describe(to: string, cause: NodeJS.ErrnoException): string {
  switch (cause.code) {
    case 'ECONNREFUSED':
      return `${to} refused the connection`;
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
      return `${to} can't be reached`;
    default:
      return `${to}: ${certificateProblem(cause) ?? cause.code ?? 'connection failed'}`;
  }
}

function isLoopback(address: string): boolean {
  return address === '::1' || address.startsWith('127.') || address.startsWith('::ffff:127.');
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
