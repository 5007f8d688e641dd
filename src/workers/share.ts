// One worker's part of what the operator gave to the whole proxy. Pure.
import type { Config } from '../config.ts';
import { partOf } from '../spool/parts.ts';

/** @param number of the worker, from 1 to `count` */
export function share(config: Config, number: number, count: number): Config {
  return {
    ...config,
    workers: 1,
    http: null,
    ledgerDir: null,
    spoolDir: partOf(config.spoolDir, number),
    maxConnections: part(config.maxConnections, number, count),
    maxBufferedBytes: part(config.maxBufferedBytes, number, count),
    maxSessionsPerNextHop: part(config.maxSessionsPerNextHop, number, count),
  };
}

/** Whole numbers that add up to `total`, unless there are fewer than workers: none is to be without. */
function part(total: number, number: number, count: number): number {
  const least = Math.floor(total / count);
  return Math.max(1, number <= total % count ? least + 1 : least);
}
