// What every process that carries mail sets up for itself.
import { setFlagsFromString } from 'node:v8';
import type { Logger } from 'pino';

export function setUpMemory(): void {
  // The buffers of message bytes live outside V8's heap and die young, but V8 counts them against it: after an idle
  // spell it would mark its whole heap for every 25 MiB that pass, twice the processor time of a large message. The
  // heap is small, so a full collection in one go costs less than all that.
  setFlagsFromString('--no-incremental-marking');
}

/** The last resort: whatever arrives here is a bug, and a process in an unknown state must not say 250. */
export function exitOnBugs(logger: Logger): void {
  const die = (event: string) => (err: unknown) => {
    logger.fatal({ event, err });
    process.exit(1);
  };
  process.on('uncaughtException', die('uncaught_exception'));
  process.on('unhandledRejection', die('unhandled_rejection'));
}
