// `npm run demo` as a reader runs it. What its time line shows is judged here anew, not by its own check marks; and it
// must be able to fail.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, onTestFinished } from 'vitest';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const LIMIT_MS = 20_000;
const SIDES = ['client', 'alpha', 'beta'] as const;

type Side = (typeof SIDES)[number];
type Event = { ms: number; side: Side; text: string };
type Ran = Readonly<{ exitCode: number | null; stdout: string; stderr: string }>;

/** `--ignore-scripts` leaves out the build, which has been made and which other tests are using. */
async function demo(env: Record<string, string>, ...args: readonly string[]): Promise<Ran> {
  const { NO_COLOR: _no, FORCE_COLOR: _force, ...rest } = process.env;
  const command = ['run', '--silent', '--ignore-scripts', 'demo', '--', ...args];
  // A group of its own, so that nothing of it outlives a test that is given up.
  const child = spawn('npm', command, { cwd: ROOT, env: { ...rest, ...env }, detached: true });
  onTestFinished(() => {
    if (child.exitCode === null) process.kill(-child.pid!, 'SIGKILL');
  });
  const texts = { stdout: '', stderr: '' };
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (text: string) => {
      texts[stream] += text;
    });
  }
  const [exitCode] = (await once(child, 'close')) as [number | null];
  return { exitCode, ...texts };
}

/** The acts by their number; each from its title to the next. */
function actsOf(stdout: string): readonly string[] {
  return stdout.split(/^(?= \d {2}\S)/m);
}

/** The time line's cells, line by line and left to right: that is the order of events. */
function eventsOf(act: string): readonly Event[] {
  const events: Event[] = [];
  for (const line of act.split('\n')) {
    const [time, ...cells] = line.split('│').map((cell) => cell.trim());
    if (cells.length !== SIDES.length || time === 'ms') continue;
    cells.forEach((text, lane) => {
      const side = SIDES[lane]!;
      if (text === '') return;
      if (time !== '') events.push({ ms: Number(time), side, text });
      // A long reply goes on in the next line of its lane.
      else events.findLast((event) => event.side === side)!.text += ` ${text}`;
    });
  }
  return events;
}

class Line {
  readonly events: readonly Event[];

  constructor(act: string) {
    this.events = eventsOf(act);
  }

  /** Places of all events of `side` that begin with `text`. */
  all(side: Side, text: string): readonly number[] {
    return this.events.flatMap((event, at) => (event.side === side && event.text.startsWith(text) ? at : []));
  }

  /** The place of the nth; there must be one. */
  at(side: Side, text: string, nth = 0): number {
    const place = this.all(side, text)[nth];
    expect(place, `${side}: ${text}`).toBeDefined();
    return place!;
  }

  ms(side: Side, text: string): number {
    return this.events[this.at(side, text)]!.ms;
  }

  octets(side: Side, end: number): number {
    const texts = this.events.slice(0, end).filter((event) => event.side === side);
    return texts.reduce((sum, { text }) => sum + Number(/^→ (\d+) octets/.exec(text)?.[1] ?? 0), 0);
  }
}

function expectAscending(...places: readonly number[]): void {
  expect(places).toEqual(places.toSorted((a, b) => a - b));
}

describe('npm run demo', () => {
  it('shows claims 21-24 in the order of events, as plain text, and leaves nothing running', async () => {
    const began = performance.now();
    const { exitCode, stdout, stderr } = await demo({ NO_COLOR: '1' });
    expect(stderr).toBe('');
    expect(exitCode).toBe(0);
    expect(performance.now() - began).toBeLessThan(LIMIT_MS);
    expect(stdout).not.toContain('\x1b');
    expect(stdout).not.toContain('✗');
    expect(Math.max(...stdout.split('\n').map((line) => line.length))).toBeLessThanOrEqual(110);
    expect(stdout).toContain('README.md');

    const [intro, all, none, down, counted] = actsOf(stdout);
    const pid = Number(/\(process (\d+),/.exec(intro!)![1]);
    expect(() => process.kill(pid, 0)).toThrow('ESRCH');
    expectEverybodyToHaveIt(new Line(all!));
    expectNobodyToHaveIt(new Line(none!));
    expectOneToBeDown(new Line(down!));
    expect(counted).toMatch(/messages delivered +0 +2 +transactions_total\{result="delivered"\}/);
    expect(counted).toMatch(/messages deferred +0 +1 /);
    expect(counted).toMatch(/connections tried: ok +0 +5 /);
    expect(counted).toMatch(/connections tried: refused +0 +3 /);
    expect(counted).toMatch(/tries after the first \(claim 21\) +0 +2 /);
  }, 25_000);

  it('is in colour where that is asked for, and says the same', async () => {
    const { exitCode, stdout } = await demo({ FORCE_COLOR: '1' });
    expect(exitCode).toBe(0);
    expect(stdout).toContain('\x1b[32m✓');
    const plain = stdout.replace(/\x1b\[\d+m/g, '');
    expect(plain).not.toContain('\x1b');
    expect(plain.match(/^ ✓ /gm)).toHaveLength(12);
    expectEverybodyToHaveIt(new Line(actsOf(plain)[1]!));
  }, 25_000);

  it('fails when the proxy says 250 and delivers nothing', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'cutthrough-demo-'));
    onTestFinished(async () => await rm(directory, { recursive: true }));
    await writeFile(join(directory, 'liar.mjs'), LIAR);
    const { exitCode, stdout, stderr } = await demo({}, join(directory, 'liar.mjs'));
    expect(exitCode).toBe(1);
    expect(stdout.match(/^ ✗ /gm)).toHaveLength(12);
    expect(stdout).not.toContain('✓');
    expect(stderr).toMatch(/^demo: not as claimed: Claim 21: recipients are asked live; .*\n$/);
  }, 25_000);
});

function expectEverybodyToHaveIt(line: Line): void {
  expectAscending(
    line.at('client', '→ RCPT TO:<user@alpha'),
    line.at('alpha', '← 250 2.1.5'),
    line.at('client', '← 250 2.1.5'),
    line.at('client', '→ RCPT TO:<user@beta'),
    line.at('beta', '← 250 2.1.5'),
    line.at('client', '← 250 2.1.5', 1),
    line.at('beta', '← 550 5.1.1 beta knows nobody'),
    line.at('client', '← 550 5.1.1 beta knows nobody'),
  );
  const dot = line.at('client', '→ .');
  for (const side of ['alpha', 'beta'] as const) {
    expectAscending(line.at(side, '← 354'), line.at('client', '← 354'), dot);
    expect(line.octets(side, dot)).toBeGreaterThan(line.octets('client', dot));
    expectAscending(
      dot,
      line.at(side, '→ .'),
      line.at(side, '← 250 2.0.0'),
      line.at('client', '← 250 2.0.0'),
    );
  }
  expect(line.octets('client', dot)).toBeGreaterThan(200);
  expect(line.ms('beta', '← 250 2.0.0') - line.ms('alpha', '← 250 2.0.0')).toBeGreaterThan(250);
}

function expectNobodyToHaveIt(line: Line): void {
  const cut = line.at('beta', '× connection gone, without dot');
  expectAscending(cut, line.at('alpha', '× connection gone, without dot'), line.at('client', '← 451 4.4.2 '));
  for (const side of ['alpha', 'beta'] as const) {
    expect(line.octets(side, cut)).toBeGreaterThan(0);
    expect(line.all(side, '→ .')).toEqual([]);
  }
  expect(line.all('client', '← 250 2.0.0')).toEqual([]);
}

function expectOneToBeDown(line: Line): void {
  const refusal = line.events[line.at('client', '← 451 4.4.1')]!;
  expect(refusal.text).toMatch(/beta\.example.* unreachable after 3 attempts: /);
  // Two waits of 100 and 200 ms at least.
  expect(refusal.ms - line.ms('client', '→ RCPT TO:<user@beta')).toBeGreaterThan(290);
  expect(line.events.filter(({ side }) => side === 'beta')).toEqual([]);
  expectAscending(
    line.at('client', '← 451 4.4.1'),
    line.at('client', '→ RCPT TO:<user@alpha'),
    line.at('alpha', '← 250 2.0.0 alpha has it'),
    line.at('client', '← 250 2.0.0 alpha has it'),
  );
}

/** Takes everything, and keeps it. */
const LIAR = `
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';

const smtp = createServer((socket) => {
  let inBody = false;
  socket.on('error', () => {});
  socket.on('data', (chunk) => {
    for (const line of chunk.toString().split('\\r\\n').slice(0, -1)) {
      if (inBody && line !== '.') continue;
      inBody = line === 'DATA';
      socket.write(inBody ? '354 go\\r\\n' : '250 2.0.0 ok\\r\\n');
    }
  });
  socket.write('220 liar\\r\\n');
});
const http = createHttpServer((_request, response) => response.end());
http.listen(0, '127.0.0.1', () => smtp.listen(0, '127.0.0.1', () => {
  const listen = ['smtp://127.0.0.1:' + smtp.address().port];
  console.log(JSON.stringify({ event: 'ready', listen, http: '127.0.0.1:' + http.address().port }));
}));
`;
