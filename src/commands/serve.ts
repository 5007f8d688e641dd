// The life of `cutthrough serve` once its config is known: start, the `ready` line, signals, exit codes; in one process,
// or as the primary of several.
// SIGTERM and SIGINT drain; a second one exits at once. SIGHUP reloads, and a broken file changes nothing. A big queue
// makes the start long: a signal is heeded after it.

import type { Proxy as RunningProxy } from '../app.ts';
import { checkCertificate } from '../certificate.ts';
import type { Config, ParsedConfig } from '../config.ts';
import type { Logger } from '../log.ts';
import { createLogger } from '../log.ts';
import { exitOnBugs, setUpMemory } from '../process.ts';
import { startFailure } from '../start-failure.ts';
import { VERSION } from '../version.ts';

/**
 * Runs the proxy until a signal ends the process. `load` reads flags, environment and file anew at each SIGHUP.
 * @throws Error with a one-line message when the proxy cannot start
 */
export async function serve(
  load: () => ParsedConfig,
  first: Config,
  warnings: readonly string[],
): Promise<void> {
  setUpMemory();
  const logger = createLogger({ level: first.logLevel, format: first.logFormat });
  exitOnBugs(logger);
  const certificate = checkCertificate(first, Date.now());
  if (certificate.errors.length > 0) throw new Error(certificate.errors.join('; '));
  for (const warning of [...warnings, ...certificate.warnings])
    logger.warn({ event: 'config_warning' }, warning);

  let current = first;
  let stopping = false;
  let started = (_: RunningProxy): void => {};
  const running = new Promise<RunningProxy>((resolve) => {
    started = resolve;
  });
  // One after the other: a second SIGHUP during a reload must not be overtaken by the first.
  let reloading = running;
  process.on('SIGHUP', () => {
    if (stopping) return;
    reloading = reloading.then(async (proxy) => {
      current = (await reload(proxy, load, logger)) ?? current;
      return proxy;
    });
  });
  const onStop = (signal: NodeJS.Signals): void => {
    if (stopping) process.exit(1);
    stopping = true;
    logger.info({ event: 'draining', signal, drainTimeoutMs: current.drainTimeoutMs });
    void running.then((proxy) => stop(proxy, current.drainTimeoutMs, logger));
  };
  process.on('SIGTERM', onStop).on('SIGINT', onStop);
  const proxy = await start(first, logger);
  if (!stopping) logger.info({ event: 'ready', ...proxy.addresses, version: VERSION });
  started(proxy);
}

async function start(config: Config, logger: Logger): Promise<RunningProxy> {
  try {
    const { startPrimary, workerCount } = await import('../workers/primary.ts');
    if (workerCount(config) > 1) return await startPrimary(config, logger);
    const { createProxyFromConfig } = await import('../app.ts');
    return await createProxyFromConfig(config, logger);
  } catch (error) {
    throw new Error(startFailure(error, config), { cause: error });
  }
}

/** The config that is in force from now on, or null if nothing has changed. */
async function reload(proxy: RunningProxy, load: () => ParsedConfig, logger: Logger): Promise<Config | null> {
  const parsed = load();
  const certificate = checkCertificate(parsed.ok ? parsed.config : parsed.tlsFiles, Date.now());
  const errors = [...(parsed.ok ? [] : parsed.errors), ...certificate.errors];
  if (!parsed.ok || errors.length > 0) {
    logger.error({ event: 'reload_failed', errors });
    return null;
  }
  try {
    await proxy.reload(parsed.config);
  } catch (error) {
    logger.error({
      event: 'reload_failed',
      errors: [error instanceof Error ? error.message : String(error)],
    });
    return null;
  }
  logger.level = parsed.config.logLevel;
  logger.info({ event: 'reloaded', warnings: [...parsed.warnings, ...certificate.warnings] });
  return parsed.config;
}

async function stop(proxy: RunningProxy, drainTimeoutMs: number, logger: Logger): Promise<void> {
  try {
    await proxy.close({ drainTimeoutMs });
  } catch (err) {
    logger.error({ event: 'stop_failed', err });
    process.exit(1);
  }
  logger.info({ event: 'stopped' });
  process.exit(0);
}
