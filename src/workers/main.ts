// A worker's process: begun by the primary (worker-process.ts), it carries mail and does what the primary says.
// Signals are the primary's to judge: a terminal and a service manager send them to every process there is. When the
// primary is gone nobody listens any more, and the worker drains by itself.
import cluster from 'node:cluster';
import type { Logger } from 'pino';
import { createProxyPart, type ProxyPart } from '../app.ts';
import type { EntryKey, Peers } from '../ledger/ledger.ts';
import { createLogger } from '../log.ts';
import { exitOnBugs, setUpMemory } from '../process.ts';
import { startFailure } from '../start-failure.ts';
import { Channel, type Handlers } from './channel.ts';
import type { Orders, PrimaryCalls, WorkerCalls } from './protocol.ts';

type Running = Readonly<{ part: ProxyPart; drainTimeoutMs: number; started: Promise<void> }>;

let running: Running | null = null;

const handlers: Handlers<WorkerCalls> = {
  start: async (orders) => {
    const { config } = orders;
    const logger = createLogger({ level: config.logLevel, format: config.logFormat }).child({
      worker: orders.number,
    });
    exitOnBugs(logger);
    const part = createProxyPart(config, logger, {
      peers: peersOf(orders, logger),
      entries: orders.entries,
      spooling: orders.spooling,
    });
    if (!orders.fastPath) part.setFastPath(false);
    const started = part.start();
    running = { part, drainTimeoutMs: config.drainTimeoutMs, started };
    try {
      await started;
    } catch (error) {
      throw new Error(startFailure(error, config), { cause: error });
    }
    return part.addresses.listen;
  },
  drain: async ({ timeoutMs }) => {
    const { part, started } = current();
    await started;
    await part.close({ drainTimeoutMs: timeoutMs });
    return { metrics: await part.metricsAsJson(), status: part.status() };
  },
  heartbeat: () => {},
  metrics: async () => await (await listening()).metricsAsJson(),
  status: async () => (await listening()).status(),
  trace: async (id) => (await listening()).trace(id),
  setFastPath: (enabled) => current().part.setFastPath(enabled),
  setMode: async ({ mode, fallback }) => await (await listening()).setMode(mode, fallback),
  // Not after the start: what comes meanwhile must not be missed.
  learn: (entry) => current().part.ledger.learn(entry),
  unlearn: (key) => current().part.ledger.unlearn(key),
};

const channel = new Channel<PrimaryCalls, WorkerCalls>(process, handlers);

function current(): Running {
  if (running === null) throw new Error('not started');
  return running;
}

async function listening(): Promise<ProxyPart> {
  await current().started;
  return current().part;
}

function peersOf({ ledgerIsKept }: Orders, logger: Logger): Peers {
  let failed = false;
  const giveUp = (error: Error) => {
    if (!failed) logger.error({ event: 'ledger_failed', err: error });
    failed = true;
  };
  return {
    isKept: ledgerIsKept,
    put: (entry) => channel.call('record', entry).catch(giveUp),
    drop: ({ reversePath, forwardPath, fingerprint }: EntryKey) =>
      void channel.call('drop', { reversePath, forwardPath, fingerprint }).catch(giveUp),
  };
}

/** The primary has ended the channel, or itself. */
async function leave(): Promise<void> {
  channel.end();
  // Else Node would exit here and now.
  cluster.worker!.exitedAfterDisconnect = true;
  if (running !== null) await running.part.close({ drainTimeoutMs: running.drainTimeoutMs }).catch(() => {});
  process.exit(0);
}

setUpMemory();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});
process.on('message', (message) => channel.receive(message));
cluster.worker!.on('disconnect', () => void leave());
// Without an answer there is a disconnect as well.
channel.call('hello', null).catch(() => {});
