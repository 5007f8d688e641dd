// The HTTPS client of MTA-STS against servers that do it right and wrong.
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { describe, expect, it, onTestFinished } from 'vitest';
import { forbiddenUnless } from '../../src/routing/networks.ts';
import { httpsPolicyFetch, type PolicyFetchDeps } from '../../src/routing/policy-fetch.ts';
import { type Issued, issue, issueAuthority } from '../support/certificates.ts';

const ca = issueAuthority('ca');
const good = issue({ name: 'good', for: ['mta-sts.a.example'], issuer: ca });
const TEXT = 'version: STSv1\nmode: enforce\nmx: mx.a.example\nmax_age: 86400\n';

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

const plain: Answer = (_, response) => {
  response.writeHead(200, { 'content-type': 'text/plain; charset=utf-8' }).end(TEXT);
};

async function serve(answer: Answer = plain, { cert, key }: Issued = good) {
  const asked: string[] = [];
  const server = https.createServer({ cert, key }, (request, response) => {
    asked.push(`${request.method} ${request.headers.host} ${request.url}`);
    answer(request, response);
  });
  const sockets = new Set<{ destroyed: boolean }>();
  server.on('connection', (socket) => sockets.add(socket));
  server.on('tlsClientError', () => {});
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return { asked, sockets, port: (server.address() as AddressInfo).port };
}

function fetcher(port: number, deps: Partial<PolicyFetchDeps> & { v4?: string[] } = {}) {
  const { v4 = ['127.0.0.1'], ...given } = deps;
  return httpsPolicyFetch({
    dns: {
      resolve4: async () => v4.map((address) => ({ address, ttl: 60 })),
      resolve6: async () => Promise.reject(Object.assign(new Error('none'), { code: 'ENODATA' })),
    },
    isForbidden: forbiddenUnless(['127.0.0.1/32']),
    timeoutMs: 5_000,
    signal: new AbortController().signal,
    authorities: ca.cert,
    port,
    ...given,
  });
}

describe('the policy file', () => {
  it('is fetched by GET from the well-known place', async () => {
    const { port, asked, sockets } = await serve();
    expect(await fetcher(port)('a.example')).toBe(TEXT);
    expect(asked).toEqual([`GET mta-sts.a.example:${port} /.well-known/mta-sts.txt`]);
    await expect.poll(() => [...sockets].every(({ destroyed }) => destroyed)).toBe(true);
  });

  it('is fetched from the second address when the first does not answer', async () => {
    const { port } = await serve();
    const v4 = ['127.0.0.9', '127.0.0.1'];
    expect(await fetcher(port, { v4, isForbidden: () => false })('a.example')).toBe(TEXT);
  });

  it.each<[what: string, reason: string, answer: Answer]>([
    [
      'a redirect',
      'HTTP status 301',
      (request, response) => {
        if (request.url === '/elsewhere') return plain(request, response);
        response.writeHead(301, { location: '/elsewhere', 'content-type': 'text/plain' }).end(TEXT);
      },
    ],
    ['404', 'HTTP status 404', (_, response) => response.writeHead(404).end()],
    [
      'another type',
      'not text/plain',
      (_, response) => response.writeHead(200, { 'content-type': 'text/html' }).end(TEXT),
    ],
    ['no type', 'not text/plain', (_, response) => response.writeHead(200).end(TEXT)],
    [
      'a type that only begins like it',
      'not text/plain',
      (_, response) => response.writeHead(200, { 'content-type': 'text/plainer' }).end(TEXT),
    ],
    [
      'an encoding',
      'it is encoded',
      (_, response) =>
        response.writeHead(200, { 'content-type': 'text/plain', 'content-encoding': 'gzip' }).end(TEXT),
    ],
    [
      'more than 64 KiB',
      'longer than 65536 octets',
      (_, response) => {
        response.writeHead(200, { 'content-type': 'text/plain' });
        response.end('x'.repeat(65_537));
      },
    ],
  ])('is not taken with %s', async (_, reason, answer) => {
    const { port, asked, sockets } = await serve(answer);
    await expect(fetcher(port)('a.example')).rejects.toThrow(reason);
    expect(asked).toHaveLength(1);
    await expect.poll(() => [...sockets].every(({ destroyed }) => destroyed)).toBe(true);
  });

  it('may be 64 KiB long', async () => {
    const { port } = await serve((_, response) => {
      response.writeHead(200, { 'content-type': 'text/plain' }).end('x'.repeat(65_536));
    });
    expect(await fetcher(port)('a.example')).toHaveLength(65_536);
  });

  it('that is cut off is not taken', async () => {
    const { port } = await serve((_, response) => {
      response.writeHead(200, { 'content-type': 'text/plain', 'content-length': 1_000 });
      response.write(TEXT, () => response.destroy());
    });
    await expect(fetcher(port)('a.example')).rejects.toThrow();
  });

  it.each<[string, () => Issued, string]>([
    ['another name', () => issue({ name: 'x', for: ['a.example'], issuer: ca }), 'ALTNAME_INVALID'],
    ['no trusted issuer', () => issue({ name: 'x', for: ['mta-sts.a.example'] }), 'SELF_SIGNED'],
    [
      'an end behind it',
      () => issue({ name: 'x', for: ['mta-sts.a.example'], issuer: ca, from: -9, until: -1 }),
      'EXPIRED',
    ],
  ])('is not taken from a server whose certificate has %s', async (_, certificate, reason) => {
    const { port, asked } = await serve(plain, certificate());
    await expect(fetcher(port)('a.example')).rejects.toThrow(reason);
    expect(asked).toEqual([]);
  });

  it.each<[string, Answer]>([
    ['says nothing', () => {}],
    [
      'trickles',
      (_, response) => {
        response.writeHead(200, { 'content-type': 'text/plain' });
        const timer = setInterval(() => response.write('x'), 20);
        response.on('close', () => clearInterval(timer));
      },
    ],
  ])('is given up in time when the server %s', async (_, answer) => {
    const { port, sockets } = await serve(answer);
    await expect(fetcher(port, { timeoutMs: 150 })('a.example')).rejects.toThrow('no answer in time');
    await expect.poll(() => [...sockets].every(({ destroyed }) => destroyed)).toBe(true);
  });

  it('is given up in time when the DNS does not answer, and when all is over', async () => {
    const never = async () => await new Promise<never>(() => {});
    const dns = { resolve4: never, resolve6: never };
    await expect(fetcher(1, { dns, timeoutMs: 50 })('a.example')).rejects.toThrow('no answer in time');
    const over = new AbortController();
    const fetching = fetcher(1, { dns, signal: over.signal })('a.example');
    over.abort();
    await expect(fetching).rejects.toThrow('no answer in time');
  });

  it.each([
    ['127.0.0.1', 'loopback'],
    ['10.0.0.1', 'private'],
    ['169.254.169.254', 'link-local'],
  ])('is not fetched from %s (%s) unless --mx-allow says so', async (address) => {
    const { port, sockets } = await serve();
    const deps = { v4: [address], isForbidden: forbiddenUnless([]) };
    await expect(fetcher(port, deps)('a.example')).rejects.toThrow('needs --mx-allow');
    expect(sockets.size).toBe(0);
  });

  it('is fetched only from the permitted ones of several addresses', async () => {
    const { port } = await serve();
    expect(await fetcher(port, { v4: ['10.0.0.1', '127.0.0.1'] })('a.example')).toBe(TEXT);
  });

  it('is not fetched without an address', async () => {
    await expect(fetcher(1, { v4: [] })('a.example')).rejects.toThrow('no address for mta-sts.a.example');
  });
});
