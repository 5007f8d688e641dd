// The page at / in Debian's chromium: what it shows of a proxy at work, that it asks nobody else anything, that it can be
// used by keyboard, on a phone, in the dark and by a screen reader, and that no name in it becomes markup.
import axe from 'axe-core';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeEach, describe, expect, it, onTestFinished, type TestContext } from 'vitest';
import type { HopStatus, Status, TransactionStatus } from '../../src/http/page/status.d.ts';
import { portOf, startProxy, startProxyOnly, type TestProxy } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { needTools } from '../support/tools.ts';

const EXECUTABLE = '/usr/bin/chromium';
const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 360, height: 740 };
const BODY = 'Subject: x\r\n\r\nhello\r\n';

let browser: Browser | null = null;
beforeEach(async (context: TestContext) => {
  await needTools(context, 'chromium');
  browser ??= await chromium.launch({ executablePath: EXECUTABLE, args: ['--no-sandbox'] });
});
afterAll(async () => await browser?.close());

type Look = Readonly<{
  viewport?: { width: number; height: number };
  dark?: boolean;
  still?: boolean;
  /** In place of what the proxy says; null: no answer. */
  status?: () => Status | null;
}>;

/** What went wrong in the browser, and whom it asked. */
type Opened = Readonly<{ page: Page; complaints: string[]; asked: Set<string> }>;

async function open(proxy: TestProxy, look: Look = {}): Promise<Opened> {
  const page = await browser!.newPage({
    viewport: look.viewport ?? DESKTOP,
    colorScheme: look.dark ? 'dark' : 'light',
    reducedMotion: look.still ? 'reduce' : 'no-preference',
  });
  onTestFinished(async () => await page.close());
  const complaints: string[] = [];
  const asked = new Set<string>();
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('request', (request) => {
    const { protocol, host } = new URL(request.url());
    if (protocol !== 'data:') asked.add(host);
  });
  const { status } = look;
  if (status !== undefined)
    await page.route('**/status', async (route) => {
      const told = status();
      await (told === null ? route.abort('connectionrefused') : route.fulfill({ json: told }));
    });
  await page.goto(proxy.httpUrl);
  return { page, complaints, asked };
}

async function proxyAndSinks(sinks: Parameters<typeof startProxy>[0] = [{}]): Promise<TestProxy> {
  const proxy = await startProxy(sinks);
  onTestFinished(async () => await proxy.close());
  return proxy;
}

const text = async (page: Page, id: string) => (await page.locator(`#${id}`).textContent()) ?? '';
const shows = async (page: Page, id: string, wanted: RegExp, timeout = 8_000) =>
  await expect.poll(async () => await text(page, id), { timeout }).toMatch(wanted);

const hop = (name: string, over: Partial<HopStatus> = {}): HopStatus => ({
  name,
  sessions: { active: 1, idle: 2 },
  lastOkMs: 100,
  lastFailure: null,
  consecutiveFailures: 0,
  totals: { delivered: 5, refused: 0, failed: 0 },
  fiveMinutes: { delivered: 5, refused: 0, failed: 0 },
  ...over,
});

function statusWith(transactions: number, hops: number, over: Partial<Status> = {}): Status {
  const phases = ['connect', 'envelope', 'data', 'body', 'dot'];
  const one = (n: number): TransactionStatus => ({
    id: `abcdefgh.${n}`,
    state: n % 5 < 2 ? 'envelope' : n % 5 === 2 ? 'starting' : 'body',
    ms: n * 100,
    bytes: n * 1000,
    legs: [{ nextHop: `mx #${(n % hops) + 1}`, phase: phases[n % 5]!, recipients: 1 }],
    legCount: 1,
  });
  const all = Array.from({ length: transactions }, (_, n) => one(n));
  return {
    version: '1.2.3',
    details: false,
    monotonicMs: performance.now(),
    mode: 'cut-through',
    fallback: 'spool',
    fastPath: { enabled: true, reasons: [], sinceMs: null },
    queue: { messages: 7, bytes: 9000, oldestAgeSeconds: 70, active: 1, nextDueSeconds: 5, attempts: {} },
    draining: false,
    listen: ['smtp'],
    connections: transactions + 3,
    maxConnections: 1000,
    sessions: { active: hops, idle: hops },
    bufferedBytes: 10,
    maxBufferedBytes: 1000,
    totals: {
      transactions: { delivered: Math.round(performance.now() / 10), rejected: 3 },
      recipients: {},
      bytes: { in: performance.now() * 100, out: performance.now() * 200 },
    },
    nextHops: Array.from({ length: hops }, (_, n) => hop(`mx #${n + 1}`)),
    transactionsActive: transactions,
    transactions: all,
    ...over,
  };
}

/** Everything between nothing at all and more than can be shown. */
const LOADS: readonly [string, () => Status][] = [
  ['nothing', () => statusWith(0, 1, { nextHops: [], connections: 0 })],
  ['one transaction', () => statusWith(1, 1)],
  ['five transactions', () => statusWith(5, 3)],
  ['200 transactions, 100 next hops', () => statusWith(200, 100)],
  [
    'trouble, with long names',
    () =>
      statusWith(4, 2, {
        details: true,
        connections: 990,
        listen: ['smtp://[2001:db8:1:2:3:4:5:6]:2525', 'smtps://198.51.100.200:465'],
        fastPath: { enabled: false, reasons: ['event-loop-lag', 'spool-latency', 'manual'], sinceMs: 5 },
        nextHops: [
          hop(`${'a-very-long-label.'.repeat(5)}example (+9 more)`, {
            consecutiveFailures: 9,
            lastFailure: { ageMs: 90_000, phase: 'connect', cause: 'timeout' },
          }),
          hop('mx #2', { fiveMinutes: { delivered: 1, refused: 80, failed: 3 } }),
        ],
      }),
  ],
];

describe('a proxy at work', () => {
  it('is shown live, without a complaint, and without a request to anybody else', async () => {
    const proxy = await proxyAndSinks([{}, {}]);
    const { page, complaints, asked } = await open(proxy);
    await shows(page, 'link-state', /^live$/);
    await shows(page, 'connections', /^0$/);
    const client = await proxy.client();
    await client.envelope('s@src.example', ['u@a.example', 'v@b.example']);
    await shows(page, 'connections', /^1$/);
    await shows(page, 'transactions-active', /^1$/);
    await expect.poll(async () => await text(page, 'flow')).toContain('static #2');
    expect(await text(page, 'flow')).toMatch(/body/);
    client.write(`${BODY}.\r\n`);
    expect(await client.reply()).toMatch(/^250/);
    for (let n = 0; n < 20; n++)
      expect(await client.send('s@src.example', ['u@a.example'], BODY)).toMatch(/^250/);
    await expect.poll(async () => await text(page, 'results')).toMatch(/^delivered[\d.]*\d21spooled/);
    expect(Number(await text(page, 'messages-rate'))).toBeGreaterThan(0);
    await shows(page, 'transactions-active', /^0$/);
    await expect.poll(async () => await text(page, 'hops')).toMatch(/static #1well/);
    expect(await page.locator('main').textContent()).not.toMatch(/127\.0\.0\.1|example|@/);
    expect(complaints).toEqual([]);
    expect([...asked]).toEqual([new URL(proxy.httpUrl).host]);
  });

  it('a next hop that fails is called so, in the picture and in the table', async () => {
    const gone = await Sink.start({});
    const { url } = gone;
    await gone.close();
    const proxy = await startProxyOnly({ route: [`a.example=${url}`] });
    onTestFinished(async () => await proxy.close());
    const { page } = await open(proxy);
    const client = await proxy.client();
    await client.command('MAIL FROM:<s@src.example>');
    await client.command('RCPT TO:<u@a.example>');
    await expect.poll(async () => await text(page, 'hops')).toMatch(/failing.*connecting: refused/);
    await shows(page, 'hops-count', /1 failing/);
    expect(await text(page, 'flow-summary')).toContain('1 failing');
    expect(await text(page, 'flow')).toContain('connecting: refused');
  });

  it('gone and back: says so, asks less often, and goes on', async () => {
    const first = await startProxy([{}]);
    const { page } = await open(first);
    await shows(page, 'link-state', /^live$/);
    const http = first.proxy.addresses.http!;
    await first.close();
    await shows(page, 'link-state', /^unreachable$/);
    await shows(page, 'notice-text', /can't be reached.*last ones known/);
    await shows(page, 'notice-more', /Trying again in [2-8] s/);
    expect(await page.title()).toBe('unreachable · cutthrough');
    const second = await startProxyOnly({ http, route: ['a.example=smtp://127.0.0.1:1'] });
    onTestFinished(async () => await second.close());
    await shows(page, 'link-state', /^live$/, 16_000);
    expect(await page.locator('#notice').isVisible()).toBe(false);
    expect(await text(page, 'messages-rate')).toBe('0');
  });

  it('asks nothing while it is paused or hidden', async () => {
    const proxy = await proxyAndSinks();
    let asked = 0;
    const { page } = await open(proxy, {
      status: () => {
        asked++;
        return statusWith(1, 1);
      },
    });
    await shows(page, 'link-state', /^live$/);
    await page.getByRole('button', { name: 'Pause' }).click();
    await shows(page, 'link-state', /^paused$/);
    const before = asked;
    await page.waitForTimeout(2_500);
    expect(asked).toBe(before);
    await page.getByRole('button', { name: 'Pause' }).click();
    await expect.poll(() => asked).toBeGreaterThan(before);
    await page.evaluate(() => {
      Object.defineProperty(document, 'hidden', { value: true, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    });
    await page.waitForTimeout(200);
    const hidden = asked;
    await page.waitForTimeout(2_500);
    expect(asked).toBe(hidden);
    await page.evaluate(() => {
      Object.defineProperty(document, 'hidden', { value: false, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    });
    await expect.poll(() => asked).toBeGreaterThan(hidden);
  });

  it('says that it drains, and that what drained has gone', async () => {
    const proxy = await proxyAndSinks();
    let told: Status | null = statusWith(1, 1, { draining: true });
    const { page } = await open(proxy, { status: () => told && { ...told, monotonicMs: performance.now() } });
    await shows(page, 'link-state', /^draining$/);
    told = null;
    await shows(page, 'notice-text', /was draining, and has gone/);
  });
});

describe('names that want to be markup', () => {
  it('stay text', async () => {
    const proxy = await proxyAndSinks();
    const evil = `"><img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`;
    const base = statusWith(1, 1);
    const status = (): Status => ({
      ...base,
      monotonicMs: performance.now(),
      details: true,
      mode: evil,
      version: evil,
      listen: [evil],
      fastPath: { enabled: false, reasons: [evil], sinceMs: 1 },
      nextHops: [
        hop(evil, {
          consecutiveFailures: 9,
          lastFailure: { ageMs: 1, phase: evil, cause: evil },
        }),
      ],
      transactions: [
        {
          ...base.transactions[0]!,
          id: evil,
          state: evil,
          client: evil,
          reversePath: evil,
          recipients: [evil],
          legs: [{ nextHop: evil, phase: evil, recipients: 1 }],
        },
      ],
    });
    const { page, complaints } = await open(proxy, { status });
    await page.locator('#transactions-details summary').click();
    await expect.poll(async () => await text(page, 'transactions')).toContain(evil);
    await expect.poll(async () => await text(page, 'hops')).toContain(evil);
    await page.waitForTimeout(1_200);
    expect(await page.locator('img, main script').count()).toBe(0);
    expect(await page.title()).not.toContain('owned');
    expect(complaints).toEqual([]);
  });
});

describe.each(LOADS)('%s', (_, status) => {
  it.each([
    ['desktop', DESKTOP],
    ['phone', PHONE],
  ] as const)('fits a %s, light and dark, and passes axe', async (_name, viewport) => {
    const proxy = await proxyAndSinks();
    for (const dark of [false, true]) {
      const { page, complaints } = await open(proxy, { viewport, dark, still: true, status });
      await page.locator('#transactions-details summary').click();
      await page.waitForTimeout(1_500);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      expect(wide, 'sideways').toBeLessThanOrEqual(0);
      // The policy lets no script in but its own; what drives the browser may.
      await page.evaluate(axe.source);
      const { violations } = await page.evaluate(
        async () =>
          await (globalThis as unknown as { axe: typeof axe }).axe.run({ resultTypes: ['violations'] }),
      );
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
      expect(found).toEqual([]);
      expect(await spilling(page)).toEqual([]);
      expect(await faint(page)).toEqual([]);
      expect(complaints).toEqual([]);
      await page.close();
    }
  });
});

/** Texts of the picture that leave their box. */
async function spilling(page: Page): Promise<string[]> {
  return await page.evaluate(() =>
    [...document.querySelectorAll('#flow g > text')].flatMap((each) => {
      const box = each.parentElement?.querySelector('.box')?.getBoundingClientRect();
      const own = each.getBoundingClientRect();
      const spills = box !== undefined && (own.right > box.right + 0.5 || own.bottom > box.bottom + 0.5);
      return spills ? [each.textContent ?? ''] : [];
    }),
  );
}

/** Texts of the picture, which axe doesn't look at, with less contrast than WCAG 2.2's 4.5 to 1. */
async function faint(page: Page): Promise<string[]> {
  return await page.evaluate(() => {
    const luminance = (colour: string) => {
      const [r = 0, g = 0, b = 0] = [...colour.matchAll(/[\d.]+/g)].slice(0, 3).map(([part]) => {
        const share = Number(part) / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = luminance(getComputedStyle(document.querySelector('.flow')!).backgroundColor);
    return [...document.querySelectorAll('#flow text')].flatMap((each) => {
      const own = luminance(getComputedStyle(each).fill);
      const contrast = (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05);
      return contrast < 4.5 ? [`${each.textContent}: ${contrast.toFixed(2)}`] : [];
    });
  });
}

describe('without a mouse, and without motion', () => {
  it('every control is reached by Tab, is seen to be, and works by Enter', async () => {
    const proxy = await proxyAndSinks();
    const { page } = await open(proxy, { status: () => statusWith(2, 2) });
    await shows(page, 'link-state', /^live$/);
    const walk: string[] = [];
    for (let n = 0; n < 9; n++) {
      await page.keyboard.press('Tab');
      const at = await page.evaluate(() => {
        const { activeElement } = document;
        const style = getComputedStyle(activeElement!);
        const name = activeElement?.getAttribute('aria-label') ?? activeElement?.textContent ?? '';
        return {
          name: name.trim(),
          seen: style.outlineStyle !== 'none' && Number.parseFloat(style.outlineWidth) >= 2,
        };
      });
      expect(at.seen, at.name).toBe(true);
      walk.push(at.name);
    }
    expect(walk).toEqual([
      'Skip to the figures',
      'Pause',
      'Next hops 2',
      'Next hops',
      'Live transactions 2',
      '/status',
      '/metrics',
      '/healthz',
      '/readyz',
    ]);
    await page.locator('#transactions-details summary').focus();
    await page.keyboard.press('Enter');
    await expect.poll(async () => await text(page, 'transactions')).toContain('abcdefgh.1');
    await page.locator('.skip').focus();
    expect(await page.locator('.skip').boundingBox()).toMatchObject({ x: 8, y: 8 });
    await page.keyboard.press('Enter');
    expect(await page.evaluate(() => document.activeElement?.id)).toBe('main');
  });

  it('nothing moves where the system says that nothing should', async () => {
    const proxy = await proxyAndSinks();
    const running = async (still: boolean) => {
      const { page } = await open(proxy, { still, status: () => statusWith(5, 2) });
      await page.locator('.link.is-moving').first().waitFor({ state: 'attached' });
      return await page.evaluate(() => document.getAnimations().length);
    };
    expect(await running(false)).toBeGreaterThan(0);
    expect(await running(true)).toBe(0);
  });

  it('what is announced is what changes in state, not in number', async () => {
    const proxy = await proxyAndSinks();
    let told: Status | null = statusWith(1, 1);
    const { page } = await open(proxy, { status: () => told && { ...told, monotonicMs: performance.now() } });
    await shows(page, 'link-state', /^live$/);
    await page.evaluate(() => {
      const heard: string[] = [];
      Object.assign(globalThis, { heard });
      for (const region of document.querySelectorAll('[aria-live], [role=status], [role=alert]'))
        new MutationObserver(() => heard.push(region.textContent ?? '')).observe(region, {
          childList: true,
          characterData: true,
          subtree: true,
        });
    });
    const heard = async () => await page.evaluate(() => (globalThis as unknown as { heard: string[] }).heard);
    await page.waitForTimeout(2_500);
    expect(await heard()).toEqual([]);
    told = null;
    await shows(page, 'link-state', /^unreachable$/);
    await page.waitForTimeout(3_500);
    expect(await heard()).toHaveLength(1);
  });
});

it('the built program serves it, too', async () => {
  const { Program } = await import('../support/program.ts');
  const program = await Program.start(['--route', '*=smtp://127.0.0.1:1']);
  const { http } = program.log.find(({ event }) => event === 'ready') as unknown as { http: string };
  const page = await browser!.newPage();
  onTestFinished(async () => await page.close());
  await page.goto(`http://${http}/`);
  await shows(page, 'link-state', /^live$/);
  expect(portOf(`http://${http}`)).toBeGreaterThan(0);
});
