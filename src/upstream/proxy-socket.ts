// The PROXY header of an accepted socket: read before TLS and before a word of ours, since until then it isn't known
// who speaks. Bytes behind it stay in the socket for whoever reads next.
// A socket whose header doesn't come in time, is malformed or breaks off is destroyed without an answer.
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { type Announced, ProxyHeaderParser } from './proxy-header.ts';

/** `quiet`: nothing was said at all, as by a balancer that only looks whether the port is open. */
type Failure = Readonly<{ reason: string; quiet: boolean }>;

/** Calls back once; `client` is null where the socket's own peer counts. On a failure the socket is destroyed. */
export function readProxyHeader(
  socket: Socket,
  timeoutMs: number,
  done: (failure: Failure | null, client: Announced | null) => void,
): void {
  const parser = new ProxyHeaderParser();
  const timer = setTimeout(() => fail(`no PROXY header within ${timeoutMs} ms`), timeoutMs);
  const stop = () => {
    clearTimeout(timer);
    socket.off('readable', onReadable).off('end', onEnd).off('close', onEnd);
  };
  const fail = (reason: string, quiet = false) => {
    stop();
    socket.destroy();
    done({ reason, quiet }, null);
  };
  const onEnd = () => fail('closed before the PROXY header was complete', parser.pending === 0);
  const onReadable = () => {
    for (let chunk = socket.read(); chunk !== null; chunk = socket.read()) {
      const header = parser.push(chunk as Buffer);
      if (header.state === 'incomplete') continue;
      if (header.state === 'malformed') return fail(`malformed PROXY header: ${header.reason}`);
      stop();
      if (header.rest.length > 0) socket.unshift(header.rest);
      return done(null, header.client);
    }
  };
  socket.on('readable', onReadable).on('end', onEnd).on('close', onEnd);
}

/** One warning in this time; what comes in between is counted. */
const WARN_EVERY_MS = 10_000;

/** The log's lines about headers, which a peer must not be able to fill a disk with. */
export class HeaderComplaints {
  #next = -Infinity;
  #suppressed = 0;

  tell(log: Logger, { reason, quiet }: Failure, where: Readonly<{ peer: string; listener: string }>): void {
    const fields = { event: 'proxy_header_refused', ...where, reason };
    const now = performance.now();
    if (quiet) log.debug(fields);
    else if (now < this.#next) this.#suppressed++;
    else {
      log.warn({ ...fields, suppressed: this.#suppressed });
      this.#next = now + WARN_EVERY_MS;
      this.#suppressed = 0;
    }
  }
}
