// The spool, wired: its queue routes and delivers by the generation of the moment.
import { performance } from 'node:perf_hooks';
import type { Config } from '../config.ts';
import { Spool } from '../spool/spool.ts';
import type { Foundation } from './foundation.ts';
import type { Generation } from './generation.ts';

/**
 * @param current the generation in force
 * @throws Error in one line when the directory can't be used, or another process uses it
 */
export async function openSpool(
  config: Config,
  foundation: Foundation,
  current: () => Generation,
): Promise<Spool> {
  const { metrics, fastPath, budget, log } = foundation;
  return await Spool.open(config, {
    config: () => current().config,
    budget,
    log,
    onCommitted: (ms) => fastPath.observeSpoolLatency(ms),
    onFailed: (reason) => metrics.spoolFailures.inc(reason),
    queue: {
      route: (domain) => current().router.route(domain || current().config.hostname),
      // The queue's schedule is what retries.
      delivery: () => current().deliveryDeps({ ...current().config, connectRetries: 0 }),
      newId: () => foundation.newId(),
      now: Date.now,
      monotonic: () => performance.now(),
      random: Math.random,
      onAttempt: (result) => metrics.queueAttempts.inc(result),
      onDsn: (kind) => metrics.dsn.inc(kind),
    },
  });
}
