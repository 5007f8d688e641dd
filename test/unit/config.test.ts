import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import {
  type Config,
  type ConfigSources,
  describeConfig,
  loadConfig,
  parseConfig,
} from '../../src/config.ts';
import { envName, kebabCase, nearest, OPTION_NAMES } from '../../src/options.ts';
import { maskRouteText } from '../../src/route-option.ts';

const machine = { hostname: 'mx1.example.net', terminal: false };

function good(sources: ConfigSources): Config {
  const parsed = parseConfig({ machine, ...sources });
  if (!parsed.ok) throw new Error(parsed.errors.join('\n'));
  return parsed.config;
}

function errorsOf(sources: ConfigSources): readonly string[] {
  const parsed = parseConfig({ machine, ...sources });
  return parsed.ok ? [] : parsed.errors;
}

const host = (over: object) => ({
  protocol: 'smtp',
  host: '10.0.0.5',
  port: 25,
  auth: null,
  tls: 'opportunistic',
  sni: null,
  ca: null,
  ...over,
});

test('has the defaults of the contract when nothing is given', () => {
  expect(good({})).toEqual({
    mode: 'cut-through',
    fallback: 'none',
    mixed: 'fail',
    dots: 'together',
    listen: [{ protocol: 'smtp', host: '127.0.0.1', port: 2525 }],
    http: { host: '127.0.0.1', port: 9525 },
    httpDetails: false,
    hostname: 'mx1.example.net',
    routes: [{ pattern: '*', nextHop: { kind: 'mx' } }],
    trust: ['127.0.0.0/8', '::1/128'],
    proxyProtocol: [],
    xclient: [],
    acceptDomains: [],
    dns: [],
    mxPort: 25,
    mxAllow: [],
    connectRetries: 2,
    maxSessionsPerNextHop: 50,
    sessionIdleTimeoutMs: 10_000,
    sessionMaxAgeMs: 300_000,
    sessionMaxMessages: 100,
    connectBackoffMs: 250,
    connectTimeoutMs: 10_000,
    greetingTimeoutMs: 30_000,
    commandTimeoutMs: 60_000,
    dataTimeoutMs: 180_000,
    ackTimeoutMs: 600_000,
    rcptDeadlineMs: 120_000,
    idleTimeoutMs: 300_000,
    greetingDelayMs: 100,
    drainTimeoutMs: 30_000,
    maxMessageBytes: 50 * 2 ** 20,
    maxRecipients: 100,
    maxConnections: 1000,
    maxBufferedBytes: 256 * 2 ** 20,
    maxReceived: 50,
    memoryThresholdBytes: 256 * 2 ** 10,
    spoolDir: './spool',
    spoolMinFreeBytes: 100 * 2 ** 20,
    ackDeadlineMs: 60_000,
    retryScheduleMs: [60_000, 300_000, 900_000, 1_800_000, 3_600_000],
    maxQueueAgeMs: 432_000_000,
    disableFastPathWhen: [
      { kind: 'buffered', percent: 90 },
      { kind: 'event-loop-lag', ms: 500 },
      { kind: 'spool-latency', ms: 2000 },
    ],
    ledgerTtlMs: 86_400_000,
    ledgerMax: 100_000,
    ledgerDir: null,
    tlsCert: null,
    tlsKey: null,
    requireTls: false,
    downstreamTls: 'opportunistic',
    forwardClient: 'none',
    mtaSts: 'off',
    dane: 'off',
    logLevel: 'info',
    logFormat: 'json',
    traceBuffer: 256,
    workers: 1,
  });
});

test('logs prettily on a terminal unless told otherwise', () => {
  const terminal = { ...machine, terminal: true };
  expect(good({ machine: terminal }).logFormat).toBe('pretty');
  expect(good({ machine: terminal, flags: { logFormat: 'json' } }).logFormat).toBe('json');
});

describe('good values', () => {
  test.each<
    [option: string, text: string | boolean | readonly string[], field: keyof Config, value: unknown]
  >([
    ['maxMessageSize', '1000', 'maxMessageBytes', 1000],
    ['maxMessageSize', '10KiB', 'maxMessageBytes', 10_240],
    ['maxMessageSize', '10 mib', 'maxMessageBytes', 10 * 2 ** 20],
    ['maxBuffered', '2GiB', 'maxBufferedBytes', 2 * 2 ** 30],
    ['idleTimeout', '250ms', 'idleTimeoutMs', 250],
    ['idleTimeout', '90s', 'idleTimeoutMs', 90_000],
    ['idleTimeout', '5m', 'idleTimeoutMs', 300_000],
    ['idleTimeout', '2h', 'idleTimeoutMs', 7_200_000],
    ['idleTimeout', '1d', 'idleTimeoutMs', 86_400_000],
    ['greetingDelay', '0', 'greetingDelayMs', 0],
    ['drainTimeout', '0s', 'drainTimeoutMs', 0],
    ['connectRetries', '0', 'connectRetries', 0],
    ['mxPort', '65535', 'mxPort', 65_535],
    ['http', 'off', 'http', null],
    ['http', '[::1]:0', 'http', { host: '::1', port: 0 }],
    ['hostname', 'MX.Bücher.example.', 'hostname', 'mx.xn--bcher-kva.example'],
    ['listen', ['smtp://[::]:25'], 'listen', [{ protocol: 'smtp', host: '::', port: 25 }]],
    ['listen', ['SMTP://localhost:0/'], 'listen', [{ protocol: 'smtp', host: 'localhost', port: 0 }]],
    [
      'trust',
      ['10.1.2.3', '10.1.2.3/8', '2001:DB8::1/32', '::1'],
      'trust',
      ['10.1.2.3/32', '10.0.0.0/8', '2001:db8::/32', '::1/128'],
    ],
    ['trust', ['::ffff:10.0.0.0/104'], 'trust', ['10.0.0.0/8']],
    ['trust', ['none'], 'trust', []],
    ['proxy-protocol', ['10.0.0.9/8', '::1'], 'proxyProtocol', ['10.0.0.0/8', '::1/128']],
    ['xclient', ['0.0.0.0/0'], 'xclient', ['0.0.0.0/0']],
    ['mxAllow', ['0.0.0.0/0'], 'mxAllow', ['0.0.0.0/0']],
    [
      'acceptDomain',
      ['Example.COM', '.straße.example', 'a_b.test'],
      'acceptDomains',
      ['example.com', '.xn--strae-oqa.example', 'a_b.test'],
    ],
    [
      'dns',
      ['192.0.2.53', '192.0.2.53:5353', '::1', '[::1]:54'],
      'dns',
      ['192.0.2.53:53', '192.0.2.53:5353', '[::1]:53', '[::1]:54'],
    ],
    ['requireTls', false, 'requireTls', false],
    ['httpDetails', 'on', 'httpDetails', true],
    ['requireTls', 'off', 'requireTls', false],
    ['downstreamTls', 'verify', 'downstreamTls', 'verify'],
    ['forwardClient', 'xclient', 'forwardClient', 'xclient'],
    ['logLevel', 'debug', 'logLevel', 'debug'],
    ['mode', 'fast-path', 'mode', 'fast-path'],
    ['mode', 'spool', 'mode', 'spool'],
    ['fallback', 'fast-path', 'fallback', 'fast-path'],
    ['fallback', 'spool', 'fallback', 'spool'],
    ['mixed', 'spool', 'mixed', 'spool'],
    ['dots', 'ordered', 'dots', 'ordered'],
    ['memoryThreshold', '64KiB', 'memoryThresholdBytes', 65_536],
    ['spoolDir', '/var/spool/../cutthrough', 'spoolDir', '/var/spool/../cutthrough'],
    ['spoolMinFree', '1GiB', 'spoolMinFreeBytes', 2 ** 30],
    ['ackDeadline', '5s', 'ackDeadlineMs', 5000],
    ['retrySchedule', '90s', 'retryScheduleMs', [90_000]],
    ['retrySchedule', '1ms, 1s,1m , 1d', 'retryScheduleMs', [1, 1000, 60_000, 86_400_000]],
    ['maxQueueAge', '24d', 'maxQueueAgeMs', 2_073_600_000],
    [
      'disableFastPathWhen',
      ['manual', 'buffered>1%', 'spool-latency > 1500ms'],
      'disableFastPathWhen',
      [{ kind: 'manual' }, { kind: 'buffered', percent: 1 }, { kind: 'spool-latency', ms: 1500 }],
    ],
    ['disableFastPathWhen', ['buffered>100%'], 'disableFastPathWhen', [{ kind: 'buffered', percent: 100 }]],
    ['disableFastPathWhen', ['none'], 'disableFastPathWhen', []],
  ])('--%s %s', (option, text, field, value) => {
    expect(good({ flags: { [option]: text } })[field]).toEqual(value);
  });
});

describe('bad values are named with what to write instead', () => {
  test.each<[option: string, text: string, message: string]>([
    ['max-message-size', '50MB', 'must be a size'],
    ['max-message-size', '0', 'at least 1 byte'],
    ['max-message-size', '9999999999GiB', 'below 8 PiB'],
    ['idle-timeout', '30', 'must be a duration'],
    ['idle-timeout', '1.5s', 'must be a duration'],
    ['idle-timeout', '0', 'must be 1ms or more'],
    // Node's timers would fire at once.
    ['idle-timeout', '25d', 'must be 24d or less'],
    ['connect-retries', '-1', 'whole number, from 0 to 100'],
    ['mx-port', '0', 'whole number, from 1 to 65535'],
    ['mx-port', '65536', 'whole number, from 1 to 65535'],
    ['mx-port', '2e3', 'whole number'],
    ['mx-port', '', 'whole number'],
    ['max-recipients', '0', '1 or more'],
    ['http', '127.0.0.1', 'needs a port'],
    ['http', ':9525', 'must be host:port'],
    ['http', '::1:9525', 'must be host:port'],
    ['http', '::1', 'needs brackets'],
    ['http', '[127.0.0.1]:9525', 'must be host:port'],
    ['http', '1.2.3:80', 'must be host:port'],
    ['hostname', 'a..b', 'must be a domain'],
    ['hostname', '.example.com', 'must be a domain'],
    ['hostname', '-a.example', 'must be a domain'],
    ['hostname', '192.0.2.1', 'must be a domain'],
    ['hostname', `${'a'.repeat(64)}.example`, 'must be a domain'],
    ['listen', 'smtp://127.0.0.1', 'needs a port'],
    ['listen', 'smtp://127.0.0.1:70000', 'port from 0 to 65535'],
    ['listen', '127.0.0.1:25', 'must be smtp://host:port, smtps://host:port or lmtp://host:port'],
    ['listen', 'lmtp://127.0.0.1:25', 'must not be at port 25'],
    ['trust', '10.0.0.0/33', 'must be an address or a network'],
    ['trust', '10.0.0/8', 'must be an address or a network'],
    ['trust', '::1/129', 'must be an address or a network'],
    ['trust', '10.0.0.0/8/8', 'must be an address or a network'],
    ['trust', 'localhost', 'must be an address or a network'],
    ['proxy-protocol', 'haproxy', 'must be an address or a network'],
    ['xclient', '10.0.0.0/33', 'must be an address or a network'],
    ['accept-domain', '*.example.com', '.example.com for its subdomains'],
    ['accept-domain', 'exa%6dple.com', 'must be a domain'],
    ['dns', 'ns.example.com:53', "resolver's IP address"],
    ['dns', '192.0.2.53:0', 'port from 1 to 65535'],
    ['require-tls', 'maybe', 'must be true or false'],
    ['downstream-tls', 'always', 'must be one of opportunistic, require, verify, off'],
    ['log-level', 'verbose', 'must be one of fatal'],
    ['mode', 'store', 'must be one of cut-through, fast-path, spool'],
    ['tls-cert', '', 'must be the name of a file'],
    ['fallback', 'queue', 'must be one of none, fast-path, spool'],
    ['spool-dir', '', 'must be the name of a directory'],
    ['memory-threshold', '0', 'at least 1 byte'],
    ['retry-schedule', '', 'value 1 must be a duration'],
    ['retry-schedule', '1m,5m,', 'value 3 must be a duration'],
    ['retry-schedule', '1m 5m', 'value 1 must be a duration'],
    ['retry-schedule', '1m,0,5m', 'value 2 must be 1ms or more'],
    ['retry-schedule', '1m,25d', 'value 2 must be 24d or less'],
    ['disable-fast-path-when', 'load>5', 'must be buffered>90%, event-loop-lag>500ms, spool-latency>2s or'],
    ['disable-fast-path-when', 'toString>5', 'must be buffered>90%'],
    ['disable-fast-path-when', 'buffered<90%', 'must be buffered>90%'],
    ['disable-fast-path-when', 'manual>1s', 'must be buffered>90%'],
    // What is left when a shell has made a file called "90%".
    ['disable-fast-path-when', 'buffered', 'needs a limit, and quotes in a shell: "buffered>90%"'],
    ['disable-fast-path-when', 'spool-latency', 'needs a limit, and quotes in a shell: "spool-latency>2s"'],
    ['disable-fast-path-when', 'buffered>0%', 'needs a limit from 1% to 100%'],
    ['disable-fast-path-when', 'buffered>101%', 'needs a limit from 1% to 100%'],
    ['disable-fast-path-when', 'buffered>90', 'needs a limit from 1% to 100%'],
    ['disable-fast-path-when', 'buffered>1s', 'needs a limit from 1% to 100%'],
    ['disable-fast-path-when', 'event-loop-lag>90%', 'its limit must be a duration'],
    ['disable-fast-path-when', 'event-loop-lag>0', 'its limit must be 1ms or more'],
  ])('--%s %j', (option, text, message) => {
    const errors = errorsOf({ flags: { [option]: text } }).filter((error) => error.includes(message));
    expect(errors).toEqual([expect.stringContaining(`--${option} ${text || '""'}`)]);
  });
});

describe('routes', () => {
  test.each<[text: string, route: object]>([
    ['*=mx', { pattern: '*', nextHop: { kind: 'mx' } }],
    ['Example.com=mx', { pattern: 'example.com', nextHop: { kind: 'mx' } }],
    ['.bücher.example=mx', { pattern: '.xn--bcher-kva.example', nextHop: { kind: 'mx' } }],
  ])('%s', (text, route) => {
    expect(good({ flags: { route: [text] } }).routes).toEqual([route]);
  });

  test.each<[hosts: string, expected: readonly object[]]>([
    ['smtp://10.0.0.5:2525', [host({ port: 2525 })]],
    ['smtp://10.0.0.5', [host({})]],
    ['SMTPS://mail.Example.com', [host({ protocol: 'smtps', host: 'mail.example.com', port: 465 })]],
    ['lmtp://[::1]', [host({ protocol: 'lmtp', host: '::1', port: 24 })]],
    [
      'smtp://u%40x:p%2Cw%25@10.0.0.5:587/?tls=verify',
      [host({ port: 587, auth: { user: 'u@x', pass: 'p,w%' }, tls: 'verify' })],
    ],
    ['smtp://u:a/b?c#d@e@10.0.0.5', [host({ auth: { user: 'u', pass: 'a/b?c#d@e' } })]],
    ['smtp://10.0.0.5?tls=off, smtp://10.0.0.5:26', [host({ tls: 'off' }), host({ port: 26 })]],
    ['smtp://10.0.0.5?sni=Mail.Example.com', [host({ sni: 'mail.example.com' })]],
    ['smtp://10.0.0.5?ca=/etc/ssl/ca.pem', [host({ ca: '/etc/ssl/ca.pem', tls: 'verify' })]],
    [
      'smtp://10.0.0.5/?ca=a%2Cb%26c%40%3D%25.pem&sni=m.example&tls=verify',
      [host({ ca: 'a,b&c@=%.pem', sni: 'm.example', tls: 'verify' })],
    ],
    [
      'smtp://u:p@10.0.0.5?ca=x=y.pem',
      [host({ auth: { user: 'u', pass: 'p' }, ca: 'x=y.pem', tls: 'verify' })],
    ],
  ])('*=%s', (hosts, expected) => {
    expect(good({ flags: { route: [`*=${hosts}`] } }).routes).toEqual([
      { pattern: '*', nextHop: { kind: 'static', hosts: expected } },
    ]);
  });

  test.each<[text: string, message: string]>([
    ['example.com', 'must be PATTERN=NEXTHOP'],
    ['=mx', 'needs a pattern'],
    ['*.example.com=mx', 'needs a pattern'],
    ['*=', 'needs a next hop'],
    ['*=10.0.0.5:25', 'needs a next hop'],
    ['*=http://10.0.0.5', 'needs a next hop'],
    ['*=mx,smtp://10.0.0.5', 'needs a next hop'],
    ['*=smtp://10.0.0.5/inbox', 'needs a next hop'],
    ['*=smtp://10.0.0.5:0', 'needs a port from 1 to 65535'],
    ['*=smtp://:25', 'must be host:port'],
    ['*=smtp://10.0.0.5?tls=maybe', 'must be one of opportunistic'],
    ['*=smtp://10.0.0.5?auth=plain', 'takes only ?tls=POLICY&sni=NAME&ca=FILE, each at most once'],
    ['*=smtp://10.0.0.5?tls=verify&tls=off', 'each at most once'],
    ['*=smtp://10.0.0.5?verify', 'takes only ?tls='],
    ['*=smtp://10.0.0.5?toString=x', 'takes only ?tls='],
    ['*=smtp://10.0.0.5?tls=off&sni=m.example', 'sni= or ca= with tls=off'],
    ['*=smtp://10.0.0.5?ca=c.pem&tls=off', 'sni= or ca= with tls=off'],
    ['*=smtp://10.0.0.5?ca=c.pem&tls=require', 'use tls=verify'],
    ['*=smtp://10.0.0.5?sni=192.0.2.1', 'bad ?sni='],
    ['*=smtp://10.0.0.5?sni=', 'bad ?sni='],
    ['*=smtp://10.0.0.5?ca=', 'bad ?ca='],
    ['*=smtp://10.0.0.5?ca=%00', 'bad ?ca='],
    ['*=smtp://10.0.0.5?ca=100%', 'broken percent escape in ca='],
    ['*=smtps://10.0.0.5?tls=off', 'use smtp:// instead'],
    ['*=smtp://user@10.0.0.5', 'needs both user and password'],
    ['*=smtp://user:@10.0.0.5', 'empty user or password'],
    ['*=smtp://user:%00@10.0.0.5', 'control character'],
    ['*=smtp://user:100%@10.0.0.5', 'broken percent escape'],
  ])('refuses %s', (text, message) => {
    expect(errorsOf({ flags: { route: [text] } })).toEqual([expect.stringContaining(message)]);
  });

  test('inherit --downstream-tls where they have no policy of their own', () => {
    const route = ['*=smtp://10.0.0.5,smtp://10.0.0.5:26?tls=off'];
    const [found] = good({ flags: { route, downstreamTls: 'verify' } }).routes;
    expect(found?.nextHop).toEqual({
      kind: 'static',
      hosts: [host({ tls: 'verify' }), host({ port: 26, tls: 'off' })],
    });
  });

  test('with sni= but no TLS by --downstream-tls off are refused, and with ca= they are verified', () => {
    const flags = (query: string) => ({ route: [`*=smtp://10.0.0.5?${query}`], downstreamTls: 'off' });
    expect(errorsOf({ flags: flags('sni=m.example') })).toEqual([
      '--route *=: has sni=, but no TLS by --downstream-tls off; add tls=',
    ]);
    const [found] = good({ flags: flags('sni=m.example&ca=c.pem') }).routes;
    expect(found?.nextHop).toMatchObject({ hosts: [{ tls: 'verify' }] });
  });

  test('stay encrypted over smtps:// when --downstream-tls is off', () => {
    const [found] = good({ flags: { route: ['*=smtps://10.0.0.5'], downstreamTls: 'off' } }).routes;
    expect(found?.nextHop).toEqual({
      kind: 'static',
      hosts: [host({ protocol: 'smtps', port: 465, tls: 'require' })],
    });
  });

  test('replace the default route rather than adding to it', () => {
    expect(good({ flags: { route: ['example.com=mx'] } }).routes).toHaveLength(1);
  });

  test('may name a pattern only once', () => {
    expect(errorsOf({ flags: { route: ['example.com=mx', 'EXAMPLE.com=smtp://10.0.0.5'] } })).toEqual([
      '--route example.com=: this pattern is there twice; put all its hosts in one, comma-separated',
    ]);
  });

  test.each<[text: string, masked: string]>([
    ['*=smtp://u:secret@h:99999', '*=smtp://u:***@h:99999'],
    ['*=smtp://u:se@cr=et/s@h', '*=smtp://u:***@h'],
    ['*=smtp://u:secret@h,smtps://v:secret=2:3@i', '*=smtp://u:***@h,smtps://v:***@i'],
    ['*=smtp:u:secret@h', '*=smtp:u:***@h'],
    ['smtp://u:secret@h', 'smtp://u:***@h'],
    ['u:secret@h', 'u:***@h'],
    ['*=smtp://u:sec,ret@h', '*=smtp://u:***@h'],
    ['*=smtp://[::1]:25', '*=smtp://[::1]:25'],
  ])('never show a password in an error: %s', (text, masked) => {
    expect(maskRouteText(text)).toBe(masked);
  });
});

describe('precedence', () => {
  test('flag beats environment beats file', () => {
    const file = { mxPort: 1, connectRetries: 1, maxReceived: 1 };
    const env = { CUTTHROUGH_MX_PORT: '2', CUTTHROUGH_CONNECT_RETRIES: '2' };
    expect(good({ file, env, flags: { mxPort: '3' } })).toMatchObject({
      mxPort: 3,
      connectRetries: 2,
      maxReceived: 1,
    });
  });

  test('a repeatable option replaces the weaker source as a whole', () => {
    const sources = { file: { trust: ['10.0.0.0/8', '192.0.2.1'] }, flags: { trust: ['198.51.100.1'] } };
    expect(good(sources).trust).toEqual(['198.51.100.1/32']);
  });

  test('the environment separates values by white space or commas, and routes, which have commas, by white space', () => {
    const env = {
      CUTTHROUGH_ROUTE: 'a.test=smtp://10.0.0.5,smtp://10.0.0.6\n  *=mx ',
      CUTTHROUGH_TRUST: '::1\t10.0.0.1,10.0.0.2, 10.0.0.3',
    };
    const config = good({ env });
    expect(config.routes.map(({ pattern }) => pattern)).toEqual(['a.test', '*']);
    expect(config.trust).toEqual(['::1/128', '10.0.0.1/32', '10.0.0.2/32', '10.0.0.3/32']);
  });

  test('empty and undefined mean not given', () => {
    expect(good({ env: { CUTTHROUGH_MX_PORT: '', HOME: '/' }, flags: { mxPort: undefined } }).mxPort).toBe(
      25,
    );
  });

  test('what a stronger source overrides is not judged', () => {
    expect(good({ file: { mixed: 'split' }, flags: { mixed: 'fail' } }).mixed).toBe('fail');
    expect(
      good({ file: { mode: 'spool' }, flags: { mode: 'cut-through', fallback: 'spool' } }),
    ).toMatchObject({
      mode: 'cut-through',
      fallback: 'spool',
    });
  });
});

describe('the file', () => {
  test('takes camelCase, kebab-case, numbers, booleans and single values of lists', () => {
    const file = { mxPort: 2525, 'connect-retries': 0, requireTls: false, trust: '10.0.0.1', dns: [] };
    expect(good({ file })).toMatchObject({
      mxPort: 2525,
      connectRetries: 0,
      trust: ['10.0.0.1/32'],
      dns: [],
    });
  });

  test.each([
    ['1m,5m', [60_000, 300_000]],
    [
      ['1m', '5m'],
      [60_000, 300_000],
    ],
    [['1m'], [60_000]],
  ])('takes a schedule as one value or as a list: %j', (retrySchedule, expected) => {
    expect(good({ file: { retrySchedule } }).retryScheduleMs).toEqual(expected);
  });

  test.each<[file: unknown, error: string]>([
    [
      { retrySchedule: [] },
      'a.yaml: retrySchedule: "": value 1 must be a duration: a whole number with ms, s, m, h or d (250ms, 30s)',
    ],
    [{ retrySchedule: ['1m', null] }, 'a.yaml: retrySchedule: must be a value or a list of values'],
    [{ ackDeadline: ['1m'] }, 'a.yaml: ackDeadline: takes one value, not a list'],
    [{ mxPort: 99_999 }, 'a.yaml: mxPort: 99999: must be a whole number, from 1 to 65535'],
    [{ 'mx-port': 0 }, 'a.yaml: mx-port: 0: must be a whole number, from 1 to 65535'],
    [{ mxPort: null }, 'a.yaml: mxPort: must have one value'],
    [{ mxPort: [1, 2] }, 'a.yaml: mxPort: takes one value, not a list'],
    [{ trust: { a: 1 } }, 'a.yaml: trust: must be a value or a list of values'],
    [{ listen: [] }, 'a.yaml: listen: needs at least one value'],
    [{ mxPort: 25, 'mx-port': 26 }, 'a.yaml: mx-port: is there twice, as mxPort and as mx-port; keep one'],
    [{ config: 'b.yaml' }, 'a.yaml: config: one config file cannot name another; use --config'],
    [
      { mode: 'spool', mixed: 'split' },
      'a.yaml: mixed split: has no use in mode spool, which queues by itself; ' +
        'leave it out, or use mode cut-through',
    ],
    [
      { spoolDir: './a/../b', ledgerDir: 'b' },
      "a.yaml: ledgerDir b: is the spool's directory; give the ledger one of its own",
    ],
    [
      { mode: 'spool', fallback: 'fast-path' },
      'a.yaml: fallback fast-path: has no use in mode spool, which queues by itself; ' +
        'leave it out, or use mode cut-through',
    ],
    [['mxPort'], 'a.yaml: must be a map of options, such as "mxPort: 25"'],
    ['mxPort', 'a.yaml: must be a map of options, such as "mxPort: 25"'],
  ])('%j', (file, error) => {
    expect(errorsOf({ file, fileName: 'a.yaml' })).toEqual([error]);
  });
});

describe('unknown names', () => {
  test.each<[sources: ConfigSources, error: string]>([
    [{ flags: { '--mx-prt': true } }, '--mx-prt: unknown flag; the nearest known one is --mx-port'],
    [{ flags: { lisetn: 'x' } }, '--lisetn: unknown flag; the nearest known one is --listen'],
    [
      { env: { CUTTHROUGH_ROUTES: 'x' } },
      'CUTTHROUGH_ROUTES: unknown variable; the nearest known one is CUTTHROUGH_ROUTE',
    ],
    [
      { env: { CUTTHROUGH_mx_port: '1' } },
      'CUTTHROUGH_mx_port: unknown variable; the nearest known one is CUTTHROUGH_MX_PORT',
    ],
    [{ file: { acceptDomains: 'x' } }, 'acceptDomains: unknown key; the nearest known one is acceptDomain'],
    [
      { file: { max_conections: 1 }, fileName: 'a b.yaml' },
      'a b.yaml: max_conections: unknown key; the nearest known one is maxConnections',
    ],
    [{ file: { constructor: 'x' } }, 'constructor: unknown key; the nearest known one is trust'],
  ])('%j', (sources, error) => {
    expect(errorsOf(sources)).toEqual([error]);
  });

  test('does not take what Kubernetes sets for a service called cutthrough for options', () => {
    const env = {
      CUTTHROUGH_SERVICE_HOST: '10.0.0.1',
      CUTTHROUGH_SERVICE_PORT_SMTP: '25',
      CUTTHROUGH_PORT: 'tcp://10.0.0.1:25',
      CUTTHROUGH_PORT_25_TCP_ADDR: '10.0.0.1',
    };
    expect(errorsOf({ env })).toEqual([]);
    expect(errorsOf({ env: { CUTTHROUGH_PORT: '25' } })).toHaveLength(1);
  });

  test('nearest counts a swap of neighbours as one edit', () => {
    expect(nearest('trsut', ['trace', 'trust'])).toBe('trust');
  });

  test('every name survives the way through its other spellings', () => {
    for (const name of OPTION_NAMES) expect(kebabCase(envName(name))).toBe(`cutthrough-${name}`);
  });
});

test('reports all errors together, each in the words of its source', () => {
  const parsed = parseConfig({
    machine,
    file: { mxPort: 'x', lisetn: 1 },
    fileName: 'a.yaml',
    env: { CUTTHROUGH_IDLE_TIMEOUT: '3', CUTTHROUGH_TRUST: '::1 nowhere' },
    flags: { route: ['*=smtp://u:secret@h:0'], requireTls: true, tlsCert: 'c.pem' },
  });
  expect(parsed).toEqual({
    ok: false,
    tlsFiles: { tlsCert: 'c.pem', tlsKey: null, routes: [] },
    errors: [
      'a.yaml: lisetn: unknown key; the nearest known one is listen',
      '--route *=smtp://u:***@h:0: needs a port from 1 to 65535',
      'CUTTHROUGH_TRUST=nowhere: must be an address or a network: 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32',
      'a.yaml: mxPort: x: must be a whole number, from 1 to 65535',
      'CUTTHROUGH_IDLE_TIMEOUT=3: must be a duration: a whole number with ms, s, m, h or d (250ms, 30s)',
      '--tls-cert c.pem: needs --tls-key as well',
    ],
  });
});

test('an error stays on one line, whatever the value', () => {
  const [error] = errorsOf({ flags: { mxPort: `1\r\n2${'0'.repeat(500)}` } });
  expect(error).toMatch(/^--mx-port "1\\r\\n20{100,200}\.\.\.": must be/);
});

describe('options that contradict each other', () => {
  const tls = { tlsCert: 'c.pem', tlsKey: 'k.pem' };
  test.each<[flags: Record<string, unknown>, errors: readonly string[]]>([
    [{ tlsKey: 'k.pem' }, ['--tls-key k.pem: needs --tls-cert as well']],
    [{ requireTls: true }, ['--require-tls: needs --tls-cert and --tls-key']],
    [{ dane: 'on' }, [expect.stringMatching(/^--dane on: needs --dns with resolvers that check DNSSEC/)]],
    [{ listen: ['smtps://[::1]:465'] }, ['--listen smtps://[::1]:465: needs --tls-cert and --tls-key']],
    [
      { listen: ['smtp://[::1]:25', 'smtp://[::1]:25'] },
      ['--listen smtp://[::1]:25: this address is there twice; keep one'],
    ],
    [{ listen: ['smtp://[::1]:0', 'smtp://[::1]:0'] }, []],
    [{ ...tls, requireTls: true, listen: ['smtps://[::1]:465'] }, []],
    ...['fast-path', 'spool'].flatMap((mode): [Record<string, unknown>, string[]][] => {
      const why = `has no use in mode ${mode}, which queues by itself`;
      const instead = 'leave it out, or use --mode cut-through';
      return [
        [{ mode, fallback: 'fast-path' }, [`--fallback fast-path: ${why}; ${instead}`]],
        [{ mode, fallback: 'spool' }, [`--fallback spool: ${why}; ${instead}`]],
        [{ mode, mixed: 'spool' }, [`--mixed spool: ${why}; ${instead}`]],
        [{ mode, dots: 'ordered' }, [`--dots ordered: ${why}; ${instead}`]],
        [{ mode, mixed: 'fail', fallback: 'none', dots: 'together' }, []],
      ];
    }),
    ...[
      ['mixed', 'spool', 'which queues what a destination misses'],
      ['mixed', 'split', 'which has one destination at a time'],
      ['fallback', 'spool', 'which queues what a destination misses'],
    ].map(([name, value, why]): [Record<string, unknown>, string[]] => {
      const instead = 'leave it out, or use --mixed fail and --fallback none';
      const error = `--dots ordered: has no use with --${name} ${value}, ${why}; ${instead}`;
      return [{ dots: 'ordered', [name!]: value }, [error]];
    }),
    [{ dots: 'ordered', mixed: 'fail' }, []],
    [{ mode: 'cut-through', mixed: 'spool', fallback: 'spool' }, []],
    [
      { disableFastPathWhen: ['buffered>50%', 'manual', 'buffered>90%'] },
      ['--disable-fast-path-when buffered: this condition is there twice; keep one'],
    ],
  ])('%j', (flags, errors) => {
    expect(errorsOf({ flags })).toEqual(errors);
  });
});

test.each(['0', '257', 'many', '-1', '1.5'])('--workers %s is refused', (workers) => {
  expect(errorsOf({ flags: { workers } })).toEqual([
    `--workers ${workers}: must be auto, or a whole number from 1 to 256`,
  ]);
});

test('starts as localhost where the machine has no proper name', () => {
  expect(good({ machine: { hostname: '012345678901', terminal: false } }).hostname).toBe('localhost');
});

describe('warnings', () => {
  test.each<[flags: Record<string, unknown>, warning: RegExp]>([
    [{ trust: ['0.0.0.0/0'] }, /open relay/],
    [{ proxyProtocol: ['0.0.0.0/0', '10.0.0.0/8'] }, /^proxyProtocol 0\.0\.0\.0\/0: everybody may pass/],
    [{ xclient: ['10.0.0.0/8', '::/0'] }, /^xclient ::\/0: everybody may pass/],
    [{ rcptDeadline: '5m' }, /clients wait 5m/],
    [{ ackDeadline: '10m' }, /clients wait 10m .* will send it again/],
    [{ hostname: 'mx1' }, /hostname mx1: MX hosts may refuse/],
  ])('%j', (flags, warning) => {
    expect(parseConfig({ machine, flags })).toMatchObject({
      ok: true,
      warnings: [expect.stringMatching(warning)],
    });
  });
});

test('the config is frozen to the bottom', () => {
  const config = good({ flags: { route: ['*=smtp://u:p@10.0.0.5'] } });
  const frozen = (value: unknown): boolean =>
    typeof value !== 'object' ||
    value === null ||
    (Object.isFrozen(value) && Object.values(value).every(frozen));
  expect(frozen(config)).toBe(true);
});

describe('describeConfig', () => {
  const PINNED = 'b.test=smtp://10.0.0.6:25?sni=mx.b.test&ca=/etc/ssl/a%2Cb%26c.pem,smtp://c.test:25?sni=c';
  const flags = {
    listen: ['smtp://[::1]:0', 'smtps://127.0.0.1:465', 'lmtp://127.0.0.1:24'],
    http: 'off',
    trust: ['none'],
    proxyProtocol: ['10.0.0.7/32'],
    xclient: ['10.0.0.8/31', '::1/128'],
    acceptDomain: ['.example.com'],
    dns: ['[::1]:54'],
    route: ['a.test=mx', '*=smtp://u%40x:p%2Cw@10.0.0.5:587?tls=verify,smtps://[::1],lmtp://lda', PINNED],
    greetingDelay: '0',
    idleTimeout: '90s',
    ackTimeout: '1500ms',
    maxMessageSize: '1000',
    maxBuffered: '3MiB',
    tlsCert: 'c.pem',
    tlsKey: 'k.pem',
    requireTls: true,
    downstreamTls: 'require',
    mtaSts: 'on',
    dane: 'on',
    fallback: 'spool',
    mixed: 'spool',
    memoryThreshold: '1KiB',
    spoolDir: '007',
    spoolMinFree: '1GiB',
    ackDeadline: '1500ms',
    retrySchedule: '1m,90s,1d',
    maxQueueAge: '36h',
    disableFastPathWhen: ['buffered>75%', 'event-loop-lag>1s', 'spool-latency>250ms', 'manual'],
  };
  const spooling = { mode: 'fast-path', retrySchedule: '5m', disableFastPathWhen: ['none'] };
  const unmask = (yaml: string) => ({ file: parse(yaml.replace(':***@', ':p%2Cw@')) });

  test.each<[string, Record<string, unknown>]>([
    ['the defaults', {}],
    ['all kinds of value', flags],
    ['another mode, a single retry wait, no conditions', spooling],
  ])('gives the same config when fed back in: %s', (_name, given) => {
    const config = good({ flags: given });
    expect(good(unmask(describeConfig(config)))).toEqual(config);
  });

  test('masks passwords, and writes values as an operator would', () => {
    const yaml = describeConfig(good({ flags }));
    expect(yaml).not.toContain('p%2Cw');
    expect(parse(yaml)).toMatchObject({
      route: [
        'a.test=mx',
        '*=smtp://u%40x:***@10.0.0.5:587?tls=verify,smtps://[::1]:465,lmtp://lda:24',
        PINNED,
      ],
      http: 'off',
      trust: [],
      idleTimeout: '90s',
      ackTimeout: '1500ms',
      maxMessageSize: 1000,
      maxBuffered: '3MiB',
      mxPort: 25,
      requireTls: true,
      spoolDir: '007',
      retrySchedule: '1m,90s,1d',
      maxQueueAge: '36h',
      disableFastPathWhen: ['buffered>75%', 'event-loop-lag>1s', 'spool-latency>250ms', 'manual'],
    });
  });
});

describe('loadConfig', () => {
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(path.join(tmpdir(), 'cutthrough-config-'));
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  function write(text: string): string {
    const name = path.join(directory, 'a.yaml');
    writeFileSync(name, text);
    return name;
  }

  test('reads the file that the flag or the variable names', () => {
    const name = write('mxPort: 2525\nhttp: off\nroute:\n  - "*=mx"\n');
    for (const sources of [{ flags: { config: name } }, { env: { CUTTHROUGH_CONFIG: name } }]) {
      expect(loadConfig({ machine, ...sources })).toMatchObject({
        ok: true,
        config: { mxPort: 2525, http: null },
      });
    }
  });

  test('an empty file says nothing', () => {
    expect(loadConfig({ machine, flags: { config: write('# nothing\n') } }).ok).toBe(true);
  });

  test.each<[text: string, error: RegExp]>([
    ['mxPort: [', /a\.yaml: .* at line 1, column \d+$/],
    ['mxPort: 1\nmxPort: 2\n', /a\.yaml: .*unique.* at line 2, column 1$/],
  ])('reports bad YAML along with the other errors: %j', (text, error) => {
    const parsed = loadConfig({ machine, flags: { config: write(text), maxReceived: '0' } });
    const errors = parsed.ok ? [] : parsed.errors;
    expect(errors[0]).toMatch(error);
    expect(errors.at(-1)).toMatch(/^--max-received 0: /);
  });

  test('reports a file that cannot be read', () => {
    const name = path.join(directory, 'missing.yaml');
    expect(loadConfig({ machine, flags: { config: name } })).toMatchObject({
      ok: false,
      errors: [expect.stringMatching(/^--config .*missing\.yaml: cannot be read: there is no such file/)],
    });
  });
});
