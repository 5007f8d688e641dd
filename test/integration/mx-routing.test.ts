// MX routing and `probe`, over the project's own DNS server: every answer that the DNS can give, as the RCPT's reply.
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type DnsServer, startDnsServer, type Zone } from '../support/dns-server.ts';
import { startProxyOnly, type TestProxy } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

const CLI = fileURLToPath(new URL('../../dist/cli.js', import.meta.url));

let dns: DnsServer;
let sink: Sink;
let proxy: TestProxy | null = null;

// Every MX host is asked at --mx-port, so they differ by loopback address; nobody listens on 127.0.0.9.
const ZONE: Zone = {
  'one.example': { MX: [[10, 'mx1.example']] },
  'two.example': { MX: [[5, 'mx1.example']] },
  'backup.example': {
    MX: [
      [10, 'down.example'],
      [20, 'mx1.example'],
    ],
  },
  'down-only.example': { MX: [[10, 'down.example']] },
  'mx1.example': { A: ['127.0.0.1'] },
  'down.example': { A: ['127.0.0.9'] },
  'implicit.example': { A: ['127.0.0.1'] },
  'null.example': { MX: [[0, '.']] },
  'broken.example': 'SERVFAIL',
  'silent.example': 'TIMEOUT',
  'private.example': { MX: [[10, 'inside.example']] },
  'inside.example': { A: ['10.0.0.1'] },
  'own.example': {
    MX: [
      [10, 'proxy.example'],
      [20, 'mx1.example'],
    ],
  },
};

beforeEach(async () => {
  sink = await Sink.start();
  dns = await startDnsServer(ZONE);
});
afterEach(async () => {
  await proxy?.close();
  proxy = null;
  await sink.close();
  await dns.close();
});

async function start(): Promise<TestProxy> {
  proxy = await startProxyOnly({ dns: [dns.address], mxPort: sink.port, mxAllow: ['127.0.0.0/8'] });
  return proxy;
}

describe('RCPT', () => {
  it.each([
    ['one.example', /^250 2\.1\.5/],
    ['implicit.example', /^250 2\.1\.5/],
    ['backup.example', /^250 2\.1\.5/],
    ['[127.0.0.1]', /^250 2\.1\.5/],
    ['missing.example', /^550 5\.1\.2/],
    ['null.example', /^556 5\.1\.10/],
    ['broken.example', /^451 4\.4\.3/],
    ['private.example', /^550 5\.4\.4/],
    ['[10.0.0.1]', /^550 5\.4\.4/],
    ['own.example', /^554 5\.4\.6/],
    ['down-only.example', /^451 4\.4\.1 .*down\.example.* 2 attempts/],
  ])('to u@%s', async (domain, reply) => {
    const client = await (await start()).client();
    await client.command('MAIL FROM:<s@src.example>');
    expect(await client.command(`RCPT TO:<u@${domain}>`)).toMatch(reply);
  });

  it.each([
    ['mx', /^451 4\.4\.3 /],
    ['smtp://silent.example:25', /^451 4\.4\.1 .*silent\.example:25 .* 1 attempt: .* took too long/],
  ])('is answered within --rcpt-deadline while the DNS is silent (%s)', async (nextHop, reply) => {
    proxy = await startProxyOnly({ dns: [dns.address], route: [`*=${nextHop}`], rcptDeadline: '150ms' });
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    const began = performance.now();
    expect(await client.command('RCPT TO:<u@silent.example>')).toMatch(reply);
    expect(performance.now() - began).toBeLessThan(1_000);
  });

  it('shares one session between domains with the same servers', async () => {
    const client = await (await start()).client();
    expect(await client.send('s@src.example', ['u@one.example', 'v@two.example'], 'x\r\n')).toMatch(/^250/);
    expect(sink.connections).toBe(1);
    expect(sink.messages[0]!.rcpts).toHaveLength(2);
  });

  it('counts an attempt for each host that was tried, and the retries', async () => {
    const running = await start();
    const client = await running.client();
    await client.command('MAIL FROM:<s@src.example>');
    await client.command('RCPT TO:<u@down-only.example>');
    expect(await running.metric('cutthrough_downstream_connect_attempts_total{result="refused"}')).toBe(2);
    expect(await running.metric('cutthrough_downstream_connect_retries_total')).toBe(1);
  });
});

describe('cutthrough probe', () => {
  async function probe(address: string, ...more: string[]): Promise<{ code: number; stdout: string }> {
    const flags = ['--dns', dns.address, '--mx-port', String(sink.port), '--mx-allow', '127.0.0.0/8'];
    const args = [CLI, 'probe', address, ...flags, '--hostname', 'proxy.example', ...more];
    try {
      const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 10_000 });
      return { code: 0, stdout };
    } catch (error) {
      const { code, stdout } = error as { code: number; stdout: string };
      return { code, stdout };
    }
  }

  it('shows the MX list, what each server offers, and its reply to the RCPT, and sends no message', async () => {
    const { code, stdout } = await probe('u@backup.example');
    expect(stdout).toMatch(/MX +10 +down\.example +\[127\.0\.0\.9\]/);
    expect(stdout).toMatch(/MX +20 +mx1\.example +\[127\.0\.0\.1\]/);
    expect(stdout).toMatch(/down\.example.* not connected: /);
    expect(stdout).toMatch(/mx1\.example.* connected\n +TLS +no TLS/);
    expect(stdout).toMatch(/offers .*PIPELINING/);
    expect(stdout).toMatch(/RCPT +250 2\.1\.5/);
    expect(code).toBe(0);
    expect(sink.sessions[0]!.commands).toEqual([
      'EHLO proxy.example',
      'MAIL FROM:<>',
      'RCPT TO:<u@backup.example>',
      'QUIT',
    ]);
  });

  it('is 1 where nobody takes the address, and JSON for scripts', async () => {
    const { code, stdout } = await probe('u@missing.example', '--json');
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({ ok: false, route: expect.stringContaining('does not exist') });
  });
});
