// Metrics, health, status and the page for operators (INTERFACE.md, HTTP); from memory, never from a peer.
// What changes anything, or tells addresses unasked, is for this machine alone (guard.ts).
import { once } from 'node:events';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { mayBeRebound, whyNotLocal } from './guard.ts';
import { loadPage, type PageFile } from './page.ts';

export type HttpSources = Readonly<{
  metrics: () => Promise<{ contentType: string; text: string }>;
  ready: () => boolean;
  status: () => unknown | Promise<unknown>;
  /** How a transaction went, with addresses; null where it isn't known (any more). */
  trace: (id: string) => Found | Promise<Found>;
  /** --http-details: there are addresses in the status. */
  details: () => boolean;
  /** Claim 10's manual switch. */
  setFastPath: (enabled: boolean) => void | Promise<void>;
  /** Settles when new transactions run so. Rejects with what is wrong. */
  setMode: (mode: string, fallback: string | null) => Promise<void>;
}>;

type Found = Readonly<{ found: unknown; kept: number }>;

export type HttpServer = Readonly<{ address: string; close: () => Promise<void> }>;

const MAX_CONNECTIONS = 100;
const REQUEST_TIMEOUT_MS = 10_000;
const MAX_BODY_OCTETS = 1024;
const JSON_TYPE = 'application/json; charset=utf-8';
const COMMON_HEADERS = {
  'x-content-type-options': 'nosniff',
  'cross-origin-resource-policy': 'same-origin',
};

type Page = ReadonlyMap<string, PageFile>;

/**
 * @param requestTimeoutMs for a request to come in whole
 * @throws the system's error (EADDRINUSE, EACCES)
 */
export async function startHttp(
  at: { host: string; port: number },
  sources: HttpSources,
  requestTimeoutMs = REQUEST_TIMEOUT_MS,
): Promise<HttpServer> {
  const page = await loadPage();
  // Node looks for requests that take too long every 30 s only.
  const options = { connectionsCheckingInterval: requestTimeoutMs / 10 };
  const server = createServer(options, (request, response) => {
    respond(request, response, sources, page).catch(() => response.destroy());
  });
  server.maxConnections = MAX_CONNECTIONS;
  server.requestTimeout = requestTimeoutMs;
  server.headersTimeout = requestTimeoutMs;
  server.listen(at);
  await once(server, 'listening');
  return { address: addressOf(server), close: () => close(server) };
}

async function respond(
  request: IncomingMessage,
  response: ServerResponse,
  sources: HttpSources,
  page: Page,
): Promise<void> {
  const path = (request.url ?? '/').split('?')[0]!;
  if (path === '/fast-path' || path === '/mode') return await change(request, response, sources, path);
  if (request.method !== 'GET' && request.method !== 'HEAD') return refuseMethod(response, ['GET', 'HEAD']);
  if (path.startsWith('/trace/'))
    return await trace(request, response, sources, path.slice('/trace/'.length));
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
      if (sources.details() && mayBeRebound(request))
        return send(response, 403, 'with --http-details, Host must be an address or localhost\n');
      return send(response, 200, `${JSON.stringify(await sources.status())}\n`, JSON_TYPE);
    default: {
      const file = page.get(path);
      if (file !== undefined) return sendFile(request, response, file);
      return send(response, 404, 'not found; there are / /metrics /healthz /readyz /status\n');
    }
  }
}

/** For `cutthrough trace`: it shows addresses, so it is for this machine alone. */
async function trace(
  request: IncomingMessage,
  response: ServerResponse,
  sources: HttpSources,
  id: string,
): Promise<void> {
  const refusal = whyNotLocal(request);
  if (refusal !== null) return send(response, 403, `${refusal}\n`);
  const { found, kept } = await sources.trace(id);
  if (!found) return send(response, 404, `no such transaction; --trace-buffer ${kept}\n`);
  send(response, 200, `${JSON.stringify(found)}\n`, JSON_TYPE);
}

/** What changes the proxy is done from this machine alone. */
async function change(
  request: IncomingMessage,
  response: ServerResponse,
  sources: HttpSources,
  path: '/fast-path' | '/mode',
): Promise<void> {
  if (request.method !== 'POST') return refuseMethod(response, ['POST']);
  const refusal = whyNotLocal(request);
  if (refusal !== null) return send(response, 403, `${refusal}\n`);
  const body = await readJson(request);
  if (body === null)
    return send(response, 400, `expected a JSON object of at most ${MAX_BODY_OCTETS} octets\n`);
  if (path === '/fast-path') {
    if (typeof body.enabled !== 'boolean')
      return send(response, 400, 'expected {"enabled": true or false}\n');
    await sources.setFastPath(body.enabled);
    return send(response, 200, `${JSON.stringify({ enabled: body.enabled })}\n`, JSON_TYPE);
  }
  const { mode, fallback = null } = body;
  if (typeof mode !== 'string' || (fallback !== null && typeof fallback !== 'string'))
    return send(response, 400, 'expected {"mode": "..."}, and "fallback" if it is to change\n');
  try {
    await sources.setMode(mode, fallback);
  } catch (error) {
    return send(response, 400, `${(error as Error).message}\n`);
  }
  return send(response, 200, `${JSON.stringify({ mode, fallback })}\n`, JSON_TYPE);
}

async function readJson(request: IncomingMessage): Promise<Readonly<Record<string, unknown>> | null> {
  let text = '';
  for await (const chunk of request.setEncoding('utf8')) {
    text += chunk;
    if (text.length > MAX_BODY_OCTETS) return null;
  }
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === 'object' && value !== null;
    return isObject ? (value as Readonly<Record<string, unknown>>) : null;
  } catch {
    return null;
  }
}

function sendFile(request: IncomingMessage, response: ServerResponse, file: PageFile): void {
  const headers: Record<string, string | number> = { ...COMMON_HEADERS, ...file.headers };
  if (request.headers['if-none-match'] === file.etag) {
    response.writeHead(304, headers).end();
    return;
  }
  const zips = /\bgzip\b(?!;q=0(\.0*)?(,|$))/.test(String(request.headers['accept-encoding'] ?? ''));
  const body = zips ? file.gzipped : file.body;
  if (zips) headers['content-encoding'] = 'gzip';
  response.writeHead(200, { ...headers, 'content-length': body.length });
  response.end(request.method === 'HEAD' ? undefined : body);
}

/** RFC 9110 §15.5.6: a 405 says what is allowed. */
function refuseMethod(response: ServerResponse, allowed: readonly string[]): void {
  response.setHeader('allow', allowed.join(', '));
  send(response, 405, `only ${allowed.join(' and ')}\n`);
}

function send(
  response: ServerResponse,
  code: number,
  body: string,
  type = 'text/plain; charset=utf-8',
): void {
  response.writeHead(code, {
    ...COMMON_HEADERS,
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
