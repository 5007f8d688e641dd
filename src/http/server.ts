// Metrics, health and status for operators (INTERFACE.md, HTTP). Read-only; answers from memory, never from a peer.
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export type HttpSources = Readonly<{
  metrics: () => Promise<{ contentType: string; text: string }>;
  ready: () => boolean;
  status: () => unknown;
}>;

export type HttpServer = Readonly<{ address: string; close: () => Promise<void> }>;

const MAX_CONNECTIONS = 100;
const REQUEST_TIMEOUT_MS = 10_000;

/** @throws the system's error (EADDRINUSE, EACCES) */
export async function startHttp(
  at: { host: string; port: number },
  sources: HttpSources,
): Promise<HttpServer> {
  const server = createServer((request, response) => {
    respond(request, response, sources).catch(() => response.destroy());
  });
  server.maxConnections = MAX_CONNECTIONS;
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.headersTimeout = REQUEST_TIMEOUT_MS;
  server.listen(at);
  await once(server, 'listening');
  return { address: addressOf(server), close: () => close(server) };
}

async function respond(
  request: IncomingMessage,
  response: ServerResponse,
  sources: HttpSources,
): Promise<void> {
  const path = (request.url ?? '/').split('?')[0];
  if (path === '/fast-path' || path === '/mode')
    return send(response, 501, 'not available yet in this version\n');
  if (request.method !== 'GET' && request.method !== 'HEAD')
    return send(response, 405, 'only GET and HEAD\n');
  switch (path) {
    case '/metrics': {
      const { contentType, text } = await sources.metrics();
      return send(response, 200, text, contentType);
    }
    case '/healthz':
      return send(response, 200, 'ok\n');
    case '/readyz':
      return sources.ready() ? send(response, 200, 'ready\n') : send(response, 503, 'not ready\n');
    case '/status':
      return send(response, 200, `${JSON.stringify(sources.status())}\n`, 'application/json; charset=utf-8');
    case '/':
      return send(response, 200, 'cutthrough: /metrics /healthz /readyz /status\n');
    default:
      return send(response, 404, 'not found; there are /metrics /healthz /readyz /status\n');
  }
}

function send(
  response: ServerResponse,
  code: number,
  body: string,
  type = 'text/plain; charset=utf-8',
): void {
  response.writeHead(code, {
    'content-type': type,
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
  });
  response.end(response.req.method === 'HEAD' ? undefined : body);
}

function addressOf(server: Server): string {
  const { address, family, port } = server.address() as AddressInfo;
  return family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`;
}

async function close(server: Server): Promise<void> {
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  server.closeAllConnections();
  await closed;
}
