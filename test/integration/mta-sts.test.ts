// MTA-STS from the client's RCPT to the next hop's handshake: DNS, policy, choice of mail exchangers, certificate.
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import type { Options } from '../../src/app.ts';
import { probeAddress } from '../../src/commands/probe.ts';
import { type Issued, issue, issueAuthority } from '../support/certificates.ts';
import type { Client } from '../support/client.ts';
import { type DnsServer, startDnsServer, type Zone } from '../support/dns-server.ts';
import { configOf, startProxyOnly, type TestProxy } from '../support/proxy.ts';
import { type PeerOptions, TlsPeer } from '../support/tls-peer.ts';

const authority = issueAuthority('public authority');
const good = issue({ name: 'good', for: ['mx.a.example'], issuer: authority });

let proxy: TestProxy | null = null;
afterEach(async () => {
  await proxy?.close();
  proxy = null;
});

/** a.example and b.example have the same server; policies are as given, by domain. */
async function start(
  policies: Record<string, string>,
  peerOptions: PeerOptions = {},
  certificate: Issued = good,
  options: Options = {},
) {
  const peer = await TlsPeer.start(peerOptions, certificate);
  const zone: Zone = {
    'a.example': { MX: [[10, 'mx.a.example']] },
    'b.example': { MX: [[10, 'mx.a.example']] },
    'mx.a.example': { A: ['127.0.0.1'] },
    ...Object.fromEntries(
      Object.keys(policies).map((domain) => [`_mta-sts.${domain}`, { TXT: ['v=STSv1; id=1;'] }]),
    ),
  };
  const dns: DnsServer = await startDnsServer(zone);
  onTestFinished(() => dns.close());
  const fetched: string[] = [];
  const given: Options = {
    ...{ route: ['*=mx'], mxPort: peer.port, mxAllow: ['127.0.0.0/8'], dns: [dns.address] },
    ...{ connectRetries: 0, mtaSts: 'on', ...options },
  };
  proxy = await startProxyOnly(given, [], {
    mxAuthorities: authority.cert,
    fetchPolicy: async (domain) => {
      fetched.push(domain);
      if (policies[domain] === undefined) throw new Error('none');
      return policies[domain];
    },
  });
  return { client: await proxy.client(), peer, dns, fetched, given };
}

const policy = (mode: string, mx = 'mx.a.example') =>
  `version: STSv1\r\nmode: ${mode}\r\nmx: ${mx}\r\nmax_age: 86400\r\n`;

const send = async (client: Client, ...to: string[]) =>
  await client.send('s@src.example', to, 'Subject: x\r\n\r\nx\r\n');

async function rcpt(client: Client, to = 'u@a.example'): Promise<string> {
  await client.command('MAIL FROM:<s@src.example>');
  return await client.command(`RCPT TO:<${to}>`);
}

const events = (event: string) => proxy!.log.filter((line) => line.event === event);

describe('a policy that is enforced', () => {
  it('lets mail go to a host that it names, whose certificate is verified by its name', async () => {
    const { client, peer, fetched } = await start({ 'a.example': policy('enforce') });
    expect(await send(client, 'u@a.example')).toMatch(/^250 2\.0\.0 queued/);
    expect(peer.lines('MAIL')).toMatchObject([{ secure: true }]);
    expect(peer.names).toEqual(['mx.a.example']);
    expect(fetched).toEqual(['a.example']);
  });

  it.each<[string, PeerOptions, Issued, RegExp]>([
    ['without STARTTLS', { startTls: null }, good, /TLS/],
    ['with a broken handshake', { handshake: 'close' }, good, /starttls/],
    ['with another name', {}, issue({ name: 'x', for: ['mx.b.example'], issuer: authority }), /another name/],
    ['with an unknown issuer', {}, issue({ name: 'x', for: ['mx.a.example'] }), /trusted authority/],
    [
      'with an expired certificate',
      {},
      issue({ name: 'x', for: ['mx.a.example'], issuer: authority, from: -9, until: -1 }),
      /expired/,
    ],
  ])('gives mail to no host %s, for now', async (_, peerOptions, certificate, reason) => {
    const { client, peer } = await start({ 'a.example': policy('enforce') }, peerOptions, certificate);
    const reply = await rcpt(client);
    expect(reply).toMatch(/^451 4\.4\.1 .*mx\.a\.example/);
    expect(reply).toMatch(reason);
    expect(peer.lines('MAIL')).toHaveLength(0);
    expect(await proxy!.metric('cutthrough_downstream_connect_attempts_total{result="tls"}')).toBe(1);
  });

  it('gives mail to no host that it does not name, for now, and no connection is made', async () => {
    const { client, peer } = await start({ 'a.example': policy('enforce', '*.elsewhere.example') });
    expect(await rcpt(client)).toMatch(/^451 4\.7\.5 .*MTA-STS policy of a\.example/);
    expect(peer.sockets).toHaveLength(0);
  });

  it('keeps its mail in a session of its own', async () => {
    const { client, peer } = await start({ 'a.example': policy('enforce') });
    expect(await send(client, 'u@a.example', 'v@a.example', 'w@b.example')).toMatch(/^250 /);
    expect(peer.sockets).toHaveLength(2);
    expect(peer.lines('RCPT').map(({ line }) => line)).toEqual(
      expect.arrayContaining([expect.stringContaining('u@a'), expect.stringContaining('w@b')]),
    );
  });

  it('is remembered over a reload, so that it cannot be made to fail by who stands in between', async () => {
    const policies: Record<string, string> = { 'a.example': policy('enforce') };
    const { client, given } = await start(policies, { startTls: null });
    expect(await rcpt(client)).toMatch(/^451 4\.4\.1 /);
    delete policies['a.example'];
    await proxy!.proxy.reload(configOf(given));
    expect(await rcpt(await proxy!.client())).toMatch(/^451 4\.4\.1 /);
    expect(events('mta_sts_fetch_failed')).toEqual([]);
  });
});

describe('a policy under test', () => {
  it.each<[string, string, PeerOptions, Issued, string]>([
    ['without TLS', 'mx.a.example', { startTls: null }, good, 'no TLS'],
    [
      'with another name in its certificate',
      'mx.a.example',
      {},
      issue({ name: 'x', for: ['mx.b.example'], issuer: authority }),
      'ERR_TLS_CERT_ALTNAME_INVALID',
    ],
    ['that it does not name', 'mx.c.example', {}, good, 'not named by the MTA-STS policy'],
  ])('delivers to a host %s, and the log says so once', async (_, mx, peerOptions, certificate, reason) => {
    const { client, peer } = await start({ 'a.example': policy('testing', mx) }, peerOptions, certificate);
    for (let message = 0; message < 2; message++) {
      expect(await send(client, 'u@a.example')).toMatch(/^250 /);
      for (const socket of peer.sockets) socket.destroy();
    }
    const line = { domain: 'a.example', host: 'mx.a.example', reason };
    expect(events('mta_sts_testing_failure')).toMatchObject([line]);
  });

  it('with nothing to complain about is silent, and shares sessions', async () => {
    const { client, peer } = await start({ 'a.example': policy('testing') });
    expect(await send(client, 'u@a.example', 'w@b.example')).toMatch(/^250 /);
    expect(peer.sockets).toHaveLength(1);
    expect(events('mta_sts_testing_failure')).toEqual([]);
  });
});

it('a probe shows the mode of the policy, and whether the server is verified', async () => {
  const { given } = await start({ 'a.example': policy('testing') });
  const outside = { mxAuthorities: authority.cert, fetchPolicy: async () => policy('enforce') };
  const { lines } = (await probeAddress(configOf(given), 'u@a.example', outside))!;
  const shown = lines((_colour, text) => text).map((line) => line.trim().replace(/ +/g, ' '));
  expect(shown).toContain('policy MTA-STS enforce, TLS verify; verified');
});

describe('no policy', () => {
  it('is in force when it cannot be fetched for the first time', async () => {
    const { client, fetched } = await start({ 'a.example': 'nonsense' }, { startTls: null });
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(fetched).toEqual(['a.example']);
    expect(events('mta_sts_fetch_failed')).toMatchObject([{ domain: 'a.example', cached: false }]);
  });

  it('is looked for with --mta-sts off, which is the default', async () => {
    const options: Options = { mtaSts: 'off' };
    const { client, dns, fetched } = await start(
      { 'a.example': policy('enforce') },
      { startTls: null },
      good,
      options,
    );
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(fetched).toEqual([]);
    expect(dns.count('_mta-sts.a.example')).toBe(0);
    expect(configOf({}).mtaSts).toBe('off');
  });

  it('is looked for where a static route leads', async () => {
    const peer = await TlsPeer.start({ startTls: null }, good);
    const options = { route: [`*=smtp://127.0.0.1:${peer.port}`] };
    const { client, dns } = await start({ 'a.example': policy('enforce') }, {}, good, options);
    expect(await send(client, 'u@a.example')).toMatch(/^250 /);
    expect(dns.queries).toEqual([]);
  });
});
