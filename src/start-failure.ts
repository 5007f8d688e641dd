// What an operator is told when the proxy can't start: one line that says what to do.
import type { Config } from './config.ts';
import { formatHostPort } from './option-kinds.ts';

/** A failure to listen with what can be done about it; any other in its own words. */
export function startFailure(error: unknown, { http }: Config): string {
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
