// The lock of a spool directory, fought over by real processes that run the built program's module, each doing on its
// stdin's word what the test says.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import net, { type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { connectToHolder, DirectoryLock } from '../../src/directory-lock.ts';

const MODULE = new URL('../../dist/directory-lock.js', import.meta.url).href;
const CHILD = `
  import { createInterface } from 'node:readline';
  import { DirectoryLock } from ${JSON.stringify(MODULE)};
  let lock = null;
  const say = (word) => process.stdout.write(word + '\\n');
  const words = {
    acquire: async () => {
      try {
        lock = await DirectoryLock.acquire(process.argv[1], (socket) => socket.end('pid ' + process.pid));
        say('held');
      } catch (error) {
        say(error.message);
      }
    },
    release: async () => {
      await lock.release();
      say('released');
    },
  };
  createInterface({ input: process.stdin }).on('line', (word) => words[word]());
  say('up');
`;

let directory: string;
const children = new Set<Child>();

beforeEach(() => {
  directory = mkdtempSync(join(realpathSync(tmpdir()), 'lock-'));
});
afterEach(async () => {
  vi.restoreAllMocks();
  await Promise.all([...children].map((child) => child.kill()));
  rmSync(directory, { recursive: true });
});

class Child {
  readonly #process: ChildProcess;
  readonly #words: AsyncIterator<string>;

  constructor(process: ChildProcess) {
    this.#process = process;
    this.#words = createInterface({ input: process.stdout! })[Symbol.asyncIterator]();
    children.add(this);
  }

  static async start(): Promise<Child> {
    const args = ['--input-type=module', '--eval', CHILD, directory];
    const child = new Child(spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] }));
    expect(await child.#next()).toBe('up');
    return child;
  }

  get pid(): number {
    return this.#process.pid!;
  }

  signal(signal: NodeJS.Signals): void {
    this.#process.kill(signal);
  }

  /** What it says to the word. */
  async say(word: 'acquire' | 'release'): Promise<string> {
    this.#process.stdin!.write(`${word}\n`);
    return await this.#next();
  }

  async kill(): Promise<void> {
    if (!children.delete(this)) return;
    const closed = once(this.#process, 'close');
    this.#process.kill('SIGKILL');
    await closed;
  }

  async #next(): Promise<string> {
    const { value, done } = await this.#words.next();
    if (done) throw new Error('the child is gone');
    return value;
  }
}

const ignore = (socket: Socket) => void socket.resume().end();
const inUse = () => `--spool-dir ${directory}: in use by another process; give each its own directory`;

async function told(socket: Socket): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

async function holderSays(): Promise<string> {
  return await told((await connectToHolder(directory))!);
}

it('is held once, by a socket that only its owner may use, and free again after release', async () => {
  const lock = await DirectoryLock.acquire(directory, (socket) => void socket.end('hello'));
  expect(readdirSync(directory)).toEqual(['control.sock']);
  expect(statSync(join(directory, 'control.sock')).mode & 0o777).toBe(0o600);
  const before = performance.now();
  await expect(DirectoryLock.acquire(directory, ignore)).rejects.toThrow(inUse());
  expect(performance.now() - before).toBeLessThan(1000);
  expect(readdirSync(directory)).toEqual(['control.sock']);
  expect(await holderSays()).toBe('hello');
  await Promise.all([lock.release(), lock.release()]);
  expect(readdirSync(directory)).toEqual([]);
  expect(await connectToHolder(directory)).toBeNull();
  await (await DirectoryLock.acquire(directory, ignore)).release();
});

it('closes the connections of others when it is released, and survives those that break off', async () => {
  const lock = await DirectoryLock.acquire(directory, (socket) => void socket.write('x'.repeat(1_000_000)));
  const rude = (await connectToHolder(directory))!;
  rude.destroy();
  const open = (await connectToHolder(directory))!;
  await once(open, 'data');
  const closed = once(open.resume(), 'close');
  await lock.release();
  await closed;
});

it('leaves no socket behind by being refused', async () => {
  const pipes = () => process.getActiveResourcesInfo().filter((each) => each.startsWith('Pipe')).length;
  const lock = await DirectoryLock.acquire(directory, ignore);
  const before = pipes();
  for (let round = 0; round < 3; round++) {
    await expect(DirectoryLock.acquire(directory, ignore)).rejects.toThrow(inUse());
  }
  await vi.waitFor(() => expect(pipes()).toBe(before));
  await lock.release();
});

it('gives the directory to exactly one of two that start at once after a kill -9, 20 times', async () => {
  let holder = await Child.start();
  let [one, other, next] = await Promise.all([Child.start(), Child.start(), Child.start()]);
  expect(await holder.say('acquire')).toBe('held');
  for (let round = 0; round < 20; round++) {
    await holder.kill();
    const spare = Child.start();
    const answers = await Promise.all([one.say('acquire'), other.say('acquire')]);
    expect(answers.toSorted()).toEqual([inUse(), 'held'].toSorted());
    expect(readdirSync(directory)).toEqual(['control.sock']);
    [holder, other] = answers[0] === 'held' ? [one, other] : [other, one];
    expect(await holderSays()).toBe(`pid ${holder.pid}`);
    [one, next] = [next, await spare];
  }
});

it('gives it to exactly one of two that start at once in an empty directory', async () => {
  const [one, other] = await Promise.all([Child.start(), Child.start()]);
  for (let round = 0; round < 5; round++) {
    const answers = await Promise.all([one.say('acquire'), other.say('acquire')]);
    expect(answers.toSorted()).toEqual([inUse(), 'held'].toSorted());
    expect(await (answers[0] === 'held' ? one : other).say('release')).toBe('released');
    expect(readdirSync(directory)).toEqual([]);
  }
});

it('refuses within a second when the holder is stopped, also when it can take no more connections', async () => {
  const holder = await Child.start();
  expect(await holder.say('acquire')).toBe('held');
  holder.signal('SIGSTOP');
  const waiting: Socket[] = [];
  try {
    const refused = async () => {
      const before = performance.now();
      await expect(DirectoryLock.acquire(directory, ignore)).rejects.toThrow(inUse());
      expect(performance.now() - before).toBeLessThan(1000);
    };
    await refused();
    for (let full = false; !full; ) {
      const socket = net.connect(join(directory, 'control.sock'));
      waiting.push(socket);
      full = await new Promise((resolve) => {
        socket.once('connect', () => resolve(false)).on('error', () => resolve(true));
      });
    }
    await refused();
    await expect(connectToHolder(directory)).rejects.toThrow("the process that holds it can't be asked");
  } finally {
    for (const socket of waiting) socket.destroy();
    holder.signal('SIGCONT');
  }
});

it('does not hold what another process has taken away meanwhile', async () => {
  const acquired = DirectoryLock.acquire(directory, ignore);
  acquired.catch(() => {});
  const path = join(directory, 'control.sock');
  while (statSync(path, { throwIfNoEntry: false }) === undefined) await new Promise(setImmediate);
  rmSync(path);
  const other = net.createServer();
  await once(other.listen(join(directory, 'other')), 'listening');
  linkSync(join(directory, 'other'), path);
  await expect(acquired).rejects.toThrow(inUse());
  // The other's stays.
  expect(statSync(path).isSocket()).toBe(true);
  other.close();
});

it('gives back what it took for stale when another process was quicker, whose lock stays', async () => {
  const path = join(directory, 'control.sock');
  const listenOn = async (name: string) => {
    const server = net.createServer((socket) => socket.end());
    await once(server.listen(join(directory, name)), 'listening');
    return server;
  };
  const killed = await listenOn('killed');
  linkSync(join(directory, 'killed'), path);
  killed.close();
  const quicker = await listenOn('quicker');
  const connect = net.connect;
  vi.spyOn(net, 'connect').mockImplementationOnce(((to: string) => {
    // Refused by the system already, which is heard of later.
    const socket = connect(to);
    rmSync(path);
    linkSync(join(directory, 'quicker'), path);
    return socket;
  }) as typeof net.connect);
  await expect(DirectoryLock.acquire(directory, ignore)).rejects.toThrow(inUse());
  expect(statSync(path).ino).toBe(statSync(join(directory, 'quicker')).ino);
  expect(readdirSync(directory)).toEqual(['control.sock', 'quicker']);
  quicker.close();
});

it('leaves a file of that name that is no socket alone', async () => {
  writeFileSync(join(directory, 'control.sock'), 'precious');
  await expect(DirectoryLock.acquire(directory, ignore)).rejects.toThrow(
    'control.sock in it is no socket; remove it',
  );
  expect(readdirSync(directory)).toEqual(['control.sock']);
});

it('says in one line that there is no such directory', async () => {
  const missing = join(directory, 'missing');
  await expect(DirectoryLock.acquire(missing, ignore)).rejects.toThrow(/^--spool-dir .*missing: .*ENOENT.*$/);
  expect(await connectToHolder(missing)).toBeNull();
});

describe('paths around the limit for socket names, and far beyond', () => {
  it.each([93, 94, 95, 107, 300])('%i octets', async (length) => {
    let path = directory;
    while (path.length < length - 120) path = join(path, 'd'.repeat(100));
    path = join(path, 'e'.repeat(length - path.length - 1));
    expect(path).toHaveLength(length);
    mkdirSync(path, { recursive: true });
    const lock = await DirectoryLock.acquire(path, (socket) => void socket.end('far'));
    expect(readdirSync(path)).toEqual(['control.sock']);
    await expect(DirectoryLock.acquire(path, ignore)).rejects.toThrow('in use by another process');
    expect(await told((await connectToHolder(path))!)).toBe('far');
    await lock.release();
    expect(readdirSync(path)).toEqual([]);
    expect(await connectToHolder(path)).toBeNull();
  });
});
