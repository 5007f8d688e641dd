// The life of `cutthrough serve` once its config is known: start, the `ready` line, signals, exit codes.
// SIGTERM and SIGINT drain; a second one exits at once. SIGHUP reloads, and a broken file changes nothing.

import { setFlagsFromString } from 'node:v8';
import type { Proxy as RunningProxy } from './app.ts';
import { checkCertificate } from './certificate.ts';
import type { Config, ParsedConfig } from './config.ts';
import type { Logger } from './log.ts';
import { createLogger } from './log.ts';
import { formatHostPort } from './option-kinds.ts';
import { VERSION } from './version.ts';

/**
 * Runs the proxy until a signal ends the process. `load` reads flags, environment and file anew at each SIGHUP.
 * @throws Error with a one-line message when the proxy cannot start
 */
export async function serve(
  load: () => ParsedConfig,
  first: Config,
  warnings: readonly string[],
): Promise<void> {
  // The buffers of message bytes live outside V8's heap and die young, but V8 counts them against it: after an idle
  // spell it would mark its whole heap for every 25 MiB that pass, twice the processor time of a large message. The
  // heap is small, so a full collection in one go costs less than all that.
  setFlagsFromString('--no-incremental-marking');
  const logger = createLogger({ level: first.logLevel, format: first.logFormat });
  exitOnBugs(logger);
  const certificate = checkCertificate(first, Date.now());
  if (certificate.errors.length > 0) throw new Error(certificate.errors.join('; '));
  for (const warning of [...warnings, ...certificate.warnings])
    logger.warn({ event: 'config_warning' }, warning);

  const proxy = await start(first, logger);
  let current = first;
  let stopping = false;
  // One after the other: a second SIGHUP during a reload must not be overtaken by the first.
  let reloading: Promise<void> = Promise.resolve();
  process.on('SIGHUP', () => {
    if (stopping) return;
    reloading = reloading.then(async () => {
      current = (await reload(proxy, load, logger)) ?? current;
    });
  });
  const onStop = (signal: NodeJS.Signals): void => {
    if (stopping) process.exit(1);
    stopping = true;
    void stop(proxy, current.drainTimeoutMs, signal, logger);
  };
  process.on('SIGTERM', onStop).on('SIGINT', onStop);
  logger.info({ event: 'ready', ...proxy.addresses, version: VERSION });
}

async function start(config: Config, logger: Logger): Promise<RunningProxy> {
  const { createProxyFromConfig } = await import('./app.ts');
  try {
    return await createProxyFromConfig(config, logger);
  } catch (error) {
    throw new Error(startFailure(error, config), { cause: error });
  }
}

/** What the operator can do about a failure to listen. */
function startFailure(error: unknown, { http }: Config): string {
  if (!(error instanceof Error)) return String(error);
  const { code, address, port, hostname } = error as NodeJS.ErrnoException & {
    address?: string;
    port?: number;
    hostname?: string;
  };
  if (hostname !== undefined && /^EAI_|^ENOTFOUND$/.test(code ?? ''))
    return `cannot listen on ${hostname}: the name has no address here; give an address of this machine by ${http?.host === hostname ? '--http' : '--listen'}`;
  if (address === undefined || port === undefined) return error.message;
  const flag = http?.host === address && http.port === port ? '--http' : '--listen';
  const cannot = `cannot listen on ${formatHostPort({ host: address, port })}`;
  switch (code) {
    case 'EADDRINUSE':
      return `${cannot}: another program does already; stop it or choose another address by ${flag}`;
    case 'EACCES':
      return `${cannot}: no permission; give the program CAP_NET_BIND_SERVICE or choose a port above 1023 by ${flag}`;
    case 'EADDRNOTAVAIL':
      return `${cannot}: this machine has no such address; choose another by ${flag}`;
    default:
      return `${cannot}: ${error.message}`;
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

async function stop(
  proxy: RunningProxy,
  drainTimeoutMs: number,
  signal: string,
  logger: Logger,
): Promise<void> {
  logger.info({ event: 'draining', signal, drainTimeoutMs });
  try {
    await proxy.close({ drainTimeoutMs });
  } catch (err) {
    logger.error({ event: 'stop_failed', err });
    process.exit(1);
  }
  logger.info({ event: 'stopped' });
  process.exit(0);
}

/** The last resort: whatever arrives here is a bug, and a process in an unknown state must not say 250. */
function exitOnBugs(logger: Logger): void {
  const die = (event: string) => (err: unknown) => {
    logger.fatal({ event, err });
    process.exit(1);
  };
  process.on('uncaughtException', die('uncaught_exception'));
  process.on('unhandledRejection', die('unhandled_rejection'));
}
