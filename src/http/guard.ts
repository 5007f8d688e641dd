// Who may change the proxy, or see addresses, over HTTP: programs on this machine, and no web page that a browser on it
// happens to show. Pages reach loopback by a request that needs no leave (Origin, Sec-Fetch-Site give it away), or by a
// name of theirs that they make resolve to 127.0.0.1 (Host gives it away).
import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';

/** Put in by a proxy before us: its client is elsewhere, whatever the address it connects from. */
const FORWARDED = ['forwarded', 'via', 'x-forwarded-for', 'x-forwarded-host', 'x-real-ip'] as const;

/** Why this request is not taken for a program's on this machine; null: it is. */
export function whyNotLocal(request: IncomingMessage): string | null {
  const { headers } = request;
  if (!isLoopback(request.socket.remoteAddress)) return 'only from loopback';
  if (FORWARDED.some((name) => headers[name] !== undefined)) return 'only from loopback, not through a proxy';
  if (!namesAddress(headers.host)) return 'Host must be an address or localhost';
  if (isOfOtherSite(request)) return 'not for pages of other sites';
  return null;
}

/** Whether a page of another site could be the one that reads the answer, by a name that leads to this machine. */
export function mayBeRebound(request: IncomingMessage): boolean {
  return isLoopback(request.socket.localAddress) && !namesAddress(request.headers.host);
}

function isOfOtherSite({ headers }: IncomingMessage): boolean {
  const { origin } = headers;
  const site = headers['sec-fetch-site'];
  if (site !== undefined && site !== 'same-origin') return true;
  return origin !== undefined && origin !== `http://${headers.host}`;
}

/** `127.0.0.1:9525`, `[::1]`, `localhost:9525`: what no DNS can make lead elsewhere. */
function namesAddress(host: string | undefined): boolean {
  const [, name = ''] = /^(\[[^\]]*\]|[^:]*)(?::\d{1,5})?$/.exec(host ?? '') ?? [];
  if (name.startsWith('[')) return isIP(name.slice(1, -1)) === 6;
  return isIP(name) === 4 || name.toLowerCase() === 'localhost';
}

function isLoopback(address: string | undefined): boolean {
  return address === '::1' || /^(::ffff:)?127\./.test(address ?? '');
}
