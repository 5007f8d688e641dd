// The spool directory with real files. What the store and the buffer ask of the system is written down on the way, and
// can be made to fail, or to wait, at any step.
import { once } from 'node:events';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import type { FileHandle } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { createLogger } from '../../src/log.ts';
import { MemoryBudget, MessageBuffer } from '../../src/spool/buffer.ts';
import { DamagedError, encodeEnvelope, type QueuedMessage } from '../../src/spool/envelope.ts';
import { SpoolStore } from '../../src/spool/store.ts';

/** What was asked of the system so far, as `fsync a.eml.tmp`, and then what came of it: `fsync a.eml.tmp done`. */
const steps: string[] = [];
/** May throw, or keep the step waiting. */
let before: (step: string) => unknown = () => {};

async function step<T>(name: string, run: () => Promise<T>): Promise<T> {
  steps.push(name);
  await before(name);
  const result = await run();
  steps.push(`${name} done`);
  return result;
}

vi.mock('node:fs/promises', async (importOriginal) => {
  const real = await importOriginal<typeof import('node:fs/promises')>();
  const watched = (file: FileHandle, name: string) =>
    new Proxy(file, {
      get(_, key: keyof FileHandle) {
        const member = file[key];
        if (typeof member !== 'function') return member;
        const call = (member as (...args: unknown[]) => Promise<unknown>).bind(file);
        if (key === 'sync') return () => step(`fsync ${name}`, call);
        if (key === 'read' || key === 'writev' || key === 'writeFile')
          return (...args: unknown[]) => step(`${key.slice(0, 5)} ${name}`, () => call(...args));
        return call;
      },
    });
  const short = (path: string) => basename(path).replace(/^store-.*/, '.');
  return {
    ...real,
    open: (path: string, ...rest: [string, number]) =>
      step(`open ${short(path)}`, async () => watched(await real.open(path, ...rest), short(path))),
    rename: (from: string, to: string) =>
      step(`rename ${short(from)} ${short(to)}`, () => real.rename(from, to)),
    unlink: (path: string) => step(`unlink ${short(path)}`, () => real.unlink(path)),
    readFile: (path: string, encoding: 'utf8') =>
      step(`read ${short(path)}`, () => real.readFile(path, encoding)),
    statfs: (path: string) => step('statfs', () => real.statfs(path)),
  };
});

let directory: string;
let log: Record<string, unknown>[];
let stores: SpoolStore[];
let now: number;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'store-'));
  log = [];
  stores = [];
  now = 0;
});
afterEach(async () => {
  before = () => {};
  await Promise.all(stores.map((store) => store.close()));
  rmSync(directory, { recursive: true });
});

const logger = createLogger({
  level: 'trace',
  format: 'json',
  stream: { write: (line) => void log.push(JSON.parse(line) as Record<string, unknown>) },
});

async function open(minFreeOctets = 0): Promise<SpoolStore> {
  await SpoolStore.prepare(directory, logger);
  const store = await SpoolStore.open(directory, { log: logger, minFreeOctets, now: () => now });
  stores.push(store);
  steps.length = 0;
  return store;
}

async function reopen(): Promise<SpoolStore> {
  await Promise.all(stores.splice(0).map((store) => store.close()));
  return await open();
}

const BODY = Buffer.from('Received: by us\r\nSubject: hello\r\n\r\n..text\r\n');

function envelope(
  id: string,
  domains: readonly string[] = ['b.example'],
): Omit<QueuedMessage, 'octets' | 'crc32'> {
  const mailbox = (domain: string) => ({
    localPart: 'x',
    domain,
    address: `x@${domain}`,
    nonAscii: false,
    unquotedLocal: 'x',
  });
  return {
    id,
    queuedAt: 1000,
    sender: {
      mailbox: mailbox('a.example'),
      params: { size: null, body: null, smtputf8: false, ret: null, envid: null },
    },
    client: null,
    recipients: domains.map((domain) => ({
      mailbox: mailbox(domain),
      params: { notify: null, orcpt: null },
      state: 'pending',
      reply: null,
      nextHop: '',
      triedAt: null,
    })),
    attempts: 0,
    nextAttemptAt: 2000.5,
    delayNotified: false,
  };
}

function bufferFor(store: SpoolStore, id: string, body = BODY, threshold = 1000): MessageBuffer {
  const budget = new MemoryBudget(1_000_000);
  const path = store.temporaryPath(id);
  const buffer = new MessageBuffer({ policy: 'overflow', thresholdOctets: threshold, budget, path });
  void buffer.write([body]);
  return buffer;
}

async function commit(store: SpoolStore, id: string, body = BODY): Promise<QueuedMessage> {
  const buffer = bufferFor(store, id, body);
  return await store.commit(envelope(id), buffer).finally(() => buffer.release());
}

async function bodyOf(store: SpoolStore, message: QueuedMessage): Promise<Buffer> {
  const body = await store.openBody(message);
  try {
    const chunks: Buffer[] = [];
    for await (const chunk of body.read()) chunks.push(chunk);
    expect(Math.max(0, ...chunks.map((chunk) => chunk.length))).toBeLessThanOrEqual(64 * 1024);
    return Buffer.concat(chunks);
  } finally {
    await body.close();
  }
}

const at = (...names: string[]) => join(directory, ...names);
const files = () => readdirSync(directory).filter((name) => name !== 'quarantine');
const quarantined = () => readdirSync(at('quarantine'));
const reasons = () => log.filter(({ event }) => event === 'quarantined').map(({ reason }) => reason);
const ids = (store: SpoolStore) => store.recovered.map(({ id }) => id).toSorted();
const asked = () => steps.filter((name) => !name.endsWith(' done'));

function fail(name: string, code = 'EIO'): void {
  before = (each) => {
    if (each === name) throw Object.assign(new Error(`${name} failed`), { code });
  };
}

const COMMIT = [
  'open a.eml.tmp',
  'write a.eml.tmp',
  'fsync a.eml.tmp',
  'rename a.eml.tmp a.eml',
  'open a.json.tmp',
  'write a.json.tmp',
  'fsync a.json.tmp',
  'rename a.json.tmp a.json',
  'fsync .',
];

describe('commit', () => {
  it('makes body, envelope and directory durable in this order, each step after the one before', async () => {
    const store = await open();
    await commit(store, 'a');
    expect(steps).toEqual(COMMIT.flatMap((name) => [name, `${name} done`]));
  });

  it.each(COMMIT)('does not settle while "%s" is under way', async (name) => {
    const store = await open();
    let settled = false;
    let go = () => {};
    const reached = new Promise<void>((resolve) => {
      before = (each) => {
        if (each !== name) return;
        resolve();
        return new Promise<void>((done) => {
          go = done;
        });
      };
    });
    const committed = commit(store, 'a').then(() => {
      settled = true;
    });
    await reached;
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect([settled, asked().at(-1)]).toEqual([false, name]);
    go();
    await committed;
  });

  it.each(COMMIT)(
    'rejects and leaves nothing behind when "%s" fails, which is not tried again',
    async (name) => {
      const store = await open();
      fail(name, 'ENOSPC');
      const buffer = bufferFor(store, 'a');
      await expect(store.commit(envelope('a'), buffer)).rejects.toMatchObject({ code: 'ENOSPC' });
      // The directory's once more, for what has been removed from it.
      expect(asked().filter((each) => each === name)).toHaveLength(name === 'fsync .' ? 2 : 1);
      expect(files()).toEqual([]);
      before = () => {};
      await buffer.discard();
      // The store is none the worse for it.
      await commit(store, 'b');
      expect(ids(await reopen())).toEqual(['b']);
      expect(quarantined()).toEqual([]);
    },
  );

  it('rejects what could not be read back, and leaves nothing behind', async () => {
    const store = await open();
    const wrong = { ...envelope('a'), attempts: -1 };
    const buffer = bufferFor(store, 'a');
    await expect(store.commit(wrong, buffer)).rejects.toThrow('attempts');
    expect(files()).toEqual([]);
    await buffer.discard();
  });

  it('keeps all bytes of a body, in files that only the owner may read', async () => {
    const store = await open();
    const body = Buffer.alloc(200_000, 'line\r\n');
    const buffer = bufferFor(store, 'a', body);
    const message = await store.commit(envelope('a'), buffer);
    await buffer.release();
    expect(message).toEqual({ ...envelope('a'), octets: body.length, crc32: crc32(body) });
    expect(await store.load('a')).toEqual(message);
    expect((await bodyOf(store, message)).equals(body)).toBe(true);
    expect(readFileSync(at('a.eml')).equals(body)).toBe(true);
    expect(files().map((name) => statSync(at(name)).mode & 0o777)).toEqual([0o600, 0o600]);
    await commit(store, 'empty', Buffer.alloc(0));
    expect((await bodyOf(store, await store.load('empty'))).length).toBe(0);
  });

  it('serves many with few fsyncs of the directory, each of them with one that began after its rename', async () => {
    const store = await open();
    const names = Array.from({ length: 30 }, (_, number) => `m${number}`);
    const syncsDone = () => steps.filter((name) => name === 'fsync . done').length;
    const committed = names.map(async (id) => {
      await commit(store, id);
      const began = steps.indexOf('fsync .', steps.indexOf(`rename ${id}.json.tmp ${id}.json done`));
      expect(began).toBeGreaterThan(0);
      const number = steps.slice(0, began).filter((name) => name === 'fsync .').length + 1;
      expect(syncsDone()).toBeGreaterThanOrEqual(number);
    });
    await Promise.all(committed);
    expect(syncsDone()).toBeLessThan(25);
    expect(ids(await reopen())).toEqual(names.toSorted());
  });

  it('fails all who waited for a directory fsync that failed, and none who come later', async () => {
    const store = await open();
    fail('fsync .');
    const results = await Promise.allSettled(['a', 'b', 'c'].map((id) => commit(store, id)));
    expect(results.map(({ status }) => status)).toEqual(Array(3).fill('rejected'));
    expect(files()).toEqual([]);
    before = () => {};
    await commit(store, 'd');
  });
});

describe('update', () => {
  const UPDATE = COMMIT.slice(4);

  it('replaces the envelope durably', async () => {
    const store = await open();
    const message = await commit(store, 'a');
    steps.length = 0;
    await store.update({ ...message, attempts: 1 });
    expect(steps).toEqual(UPDATE.flatMap((name) => [name, `${name} done`]));
    expect(await store.load('a')).toEqual({ ...message, attempts: 1 });
  });

  it.each(UPDATE.slice(0, -1))('leaves the old envelope when "%s" fails', async (name) => {
    const store = await open();
    const message = await commit(store, 'a');
    fail(name);
    await expect(store.update({ ...message, attempts: 1 })).rejects.toThrow(`${name} failed`);
    before = () => {};
    expect(files()).toEqual(['a.eml', 'a.json']);
    expect(await store.load('a')).toEqual(message);
    await store.update({ ...message, attempts: 2 });
    expect((await store.load('a')).attempts).toBe(2);
  });

  it('makes the changes of one message in call order, also after one that failed', async () => {
    const store = await open();
    const message = await commit(store, 'a');
    let opened = 0;
    before = (name) => {
      if (name !== 'open a.json.tmp') return;
      opened++;
      if (opened === 2) throw new Error('the second fails');
      // The earlier ones take longer.
      return new Promise((resolve) => setTimeout(resolve, 20 - 5 * opened));
    };
    const updates = [1, 2, 3, 4].map((attempts) => store.update({ ...message, attempts }));
    const results = await Promise.allSettled(updates);
    expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled', 'fulfilled']);
    expect((await store.load('a')).attempts).toBe(4);
  });

  it('does not bring back what is removed after it, and is waited for by close', async () => {
    const store = await open();
    const message = await commit(store, 'a');
    const other = await commit(store, 'b');
    void store.update({ ...message, attempts: 1 });
    void store.remove('a');
    void store.update({ ...other, attempts: 7 });
    await store.close();
    stores.length = 0;
    expect(files()).toEqual(['b.eml', 'b.json']);
    expect((await (await open()).load('b')).attempts).toBe(7);
  });
});

describe('remove', () => {
  it('takes the envelope first, and settles when that is durable', async () => {
    const store = await open();
    await commit(store, 'a');
    steps.length = 0;
    await store.remove('a');
    expect(asked()).toEqual(['unlink a.json', 'unlink a.eml', 'fsync .']);
    expect(files()).toEqual([]);
    await expect(store.load('a')).rejects.toMatchObject({ code: 'ENOENT' });
    await store.remove('a');
  });

  it('leaves no message without a body when it fails', async () => {
    const store = await open();
    await commit(store, 'a');
    fail('unlink a.json');
    await expect(store.remove('a')).rejects.toThrow('unlink a.json failed');
    expect(files()).toEqual(['a.eml', 'a.json']);
    fail('unlink a.eml');
    await expect(store.remove('a')).rejects.toThrow('unlink a.eml failed');
    before = () => {};
    expect(ids(await reopen())).toEqual([]);
    expect([files(), quarantined()]).toEqual([[], []]);
  });
});

describe('damage', () => {
  /** Changes one file of the message, and expects it to be found and set aside, whole, while another one flows. */
  async function expectFound(store: SpoolStore, id: string, name: string, change: (path: string) => void) {
    const message = await commit(store, id);
    change(at(name));
    const damaged = Object.fromEntries(
      files()
        .filter((each) => each.startsWith(`${id}.`))
        .map((each) => [each, readFileSync(at(each), 'latin1')]),
    );
    const found = name.endsWith('.json') ? store.load(id) : bodyOf(store, message);
    await expect(found).rejects.toBeInstanceOf(DamagedError);
    expect(files().filter((each) => each.startsWith(`${id}.`))).toEqual([]);
    for (const [each, content] of Object.entries(damaged))
      expect(readFileSync(at('quarantine', each), 'latin1')).toBe(content);
    expect(log.at(-1)).toMatchObject({
      level: 'error',
      event: 'quarantined',
      id,
      reason: expect.any(String),
    });
  }

  const flip = (position: number) => (path: string) => {
    const bytes = readFileSync(path);
    bytes[position]! ^= 1 << (position & 7);
    writeFileSync(path, bytes);
  };

  it('of a bit is found, in the envelope and at every octet of the body', async () => {
    const store = await open();
    const { length } = encodeEnvelope({ ...envelope('j00'), octets: 1, crc32: 1 });
    for (let position = 0; position < length; position += 37)
      await expectFound(store, `j${position}`, `j${position}.json`, flip(position));
    for (let position = 0; position < BODY.length; position++)
      await expectFound(store, `e${position}`, `e${position}.eml`, flip(position));
    await commit(store, 'whole');
    expect(ids(await reopen())).toEqual(['whole']);
  });

  it('of a bit is found in a chunk far into a large body, before any octet is given', async () => {
    const store = await open();
    const message = await commit(store, 'a', Buffer.alloc(300_000, 'line\r\n'));
    flip(299_999)(at('a.eml'));
    await expect(store.openBody(message)).rejects.toThrow(
      expect.objectContaining({ name: 'Error', message: 'the message does not match its checksum' }),
    );
  });

  it('of length is found: truncated anywhere, appended to, or gone', async () => {
    const store = await open();
    for (let length = 0; length < BODY.length; length++)
      await expectFound(store, `t${length}`, `t${length}.eml`, (path) => truncateSync(path, length));
    await expectFound(store, 'more', 'more.eml', (path) => appendFileSync(path, 'x'));
    await expectFound(store, 'gone', 'gone.eml', (path) => rmSync(path));
    await expectFound(store, 'short', 'short.json', (path) => truncateSync(path, 100));
    await expectFound(store, 'none', 'none.json', (path) => truncateSync(path, 0));
  });

  it('of the disk itself is damage', async () => {
    const store = await open();
    const message = await commit(store, 'a');
    fail('read a.eml');
    await expect(store.openBody(message)).rejects.toBeInstanceOf(DamagedError);
    expect(quarantined()).toEqual(['a.eml', 'a.json']);
    await commit(store, 'b');
    fail('read b.json', 'EMFILE');
    await expect(store.load('b')).rejects.toMatchObject({ code: 'EMFILE' });
    before = () => {};
    await store.load('b');
  });

  it('keeps what was in quarantine before', async () => {
    const store = await open();
    for (const body of ['first', 'second', 'third']) {
      await commit(store, 'a', Buffer.from(body));
      await store.quarantine('a', 'test');
    }
    expect(quarantined()).toEqual(['a.2.eml', 'a.2.json', 'a.3.eml', 'a.3.json', 'a.eml', 'a.json']);
    expect(readFileSync(at('quarantine', 'a.eml'), 'utf8')).toBe('first');
    expect(readFileSync(at('quarantine', 'a.3.eml'), 'utf8')).toBe('third');
    expect(steps.slice(-4)).toEqual(['fsync quarantine', 'fsync quarantine done', 'fsync .', 'fsync . done']);
  });

  it('is reported when it can not be set aside, without an exception', async () => {
    const store = await open();
    await commit(store, 'a');
    fail('rename a.json a.json');
    await store.quarantine('a', 'test');
    expect(log.at(-1)).toMatchObject({ level: 'error', event: 'quarantine-failed', id: 'a' });
    // The other one is set aside all the same.
    expect(quarantined()).toEqual(['a.eml']);
    await store.quarantine('nobody', 'test');
    await store.quarantine('../a', 'test');
    expect(log.at(-1)).toMatchObject({ event: 'quarantine-failed', id: '../a' });
  });
});

describe('recovery', () => {
  it('finds what was committed, with the domains that are pending, each list once', async () => {
    const store = await open();
    for (const [id, domains] of [
      ['a', ['b.example', 'c.example', 'b.example']],
      ['b', ['b.example', 'c.example']],
      ['c', ['c.example']],
    ] as const) {
      const buffer = bufferFor(store, id);
      const message = await store.commit(envelope(id, domains), buffer);
      await buffer.release();
      const [first, ...rest] = message.recipients;
      if (id === 'b') await store.update({ ...message, attempts: 2, recipients: [...rest, first!] });
      if (id === 'c') await store.update({ ...message, recipients: [{ ...first!, state: 'delivered' }] });
    }
    const recovered = [...(await reopen()).recovered].toSorted((one, other) => (one.id < other.id ? -1 : 1));
    const common = { queuedAt: 1000, nextAttemptAt: 2000.5, attempts: 0, octets: BODY.length };
    expect(recovered).toEqual([
      { ...common, id: 'a', domains: ['b.example', 'c.example'] },
      { ...common, id: 'b', domains: ['c.example', 'b.example'], attempts: 2 },
      { ...common, id: 'c', domains: [] },
    ]);
    for (const id of ['d', 'e']) await commit(stores[0]!, id);
    const again = (await reopen()).recovered;
    expect(again.find(({ id }) => id === 'd')!.domains).toBe(again.find(({ id }) => id === 'e')!.domains);
  });

  it('removes what was never acknowledged, sets aside what is damaged, and leaves the rest alone', async () => {
    let store = await open();
    const alive = ['ok1', 'ok2', 'noeml', 'cut', 'flipped', 'moved', 'garbage'];
    for (const id of alive) await commit(store, id);
    await store.close();
    stores.length = 0;
    for (const name of ['x.eml.tmp', 'x.json.tmp', 'orphan.eml', 'ok1.json.tmp'])
      writeFileSync(at(name), 'x');
    rmSync(at('noeml.eml'));
    truncateSync(at('cut.eml'), 3);
    const text = readFileSync(at('flipped.json'), 'utf8');
    writeFileSync(at('flipped.json'), text.replace('x@b.example', 'y@b.example'));
    writeFileSync(at('other.json'), readFileSync(at('moved.json')));
    writeFileSync(at('garbage.json'), Buffer.from([0xff, 0xfe, 0]));
    const strangers = ['README', 'notes.tmp', 'ä.json', 'ä.eml', `${'x'.repeat(65)}.json`, '.json'];
    for (const name of strangers) writeFileSync(at(name), 'keep');
    mkdirSync(at('dir.json'));
    mkdirSync(at('dir.eml.tmp'));
    const socket = net.createServer().listen(at('control.sock'));
    await once(socket, 'listening');

    store = await open();
    expect(ids(store)).toEqual(['moved', 'ok1', 'ok2']);
    expect(files().toSorted()).toEqual(
      [...strangers, 'dir.json', 'dir.eml.tmp', 'control.sock']
        .concat(['moved', 'ok1', 'ok2'].flatMap((id) => [`${id}.eml`, `${id}.json`]))
        .toSorted(),
    );
    expect(quarantined()).toEqual([
      'cut.eml',
      'cut.json',
      'flipped.eml',
      'flipped.json',
      'garbage.eml',
      'garbage.json',
      'noeml.json',
      'other.json',
    ]);
    expect(reasons().toSorted()).toEqual([
      'not an envelope',
      'the envelope does not match its checksum',
      'the envelope is of another message, moved',
      `the message has 3 octets instead of ${BODY.length}`,
      'the message is missing',
    ]);
    const warnings = log.filter(({ level }) => level === 'warn');
    expect(warnings).toMatchObject([{ event: 'spool-unknown-files', count: strangers.length + 2 }]);
    expect((await bodyOf(store, await store.load('ok1'))).equals(BODY)).toBe(true);
    socket.close();
  });

  it('starts with neither a file of a newer version nor one it may not read, and touches neither', async () => {
    const store = await open();
    await commit(store, 'a');
    await store.close();
    stores.length = 0;
    const body = '{"unheard":"of"}';
    writeFileSync(at('new.json'), `{"version":3,"crc32":${crc32(`3\n${body}`)}}\n${body}\n`);
    writeFileSync(at('new.eml'), BODY);
    await expect(open()).rejects.toThrow(
      `--spool-dir ${directory}: new.json: written by a newer version (format 3, this one knows 2)`,
    );
    expect(files()).toEqual(['a.eml', 'a.json', 'new.eml', 'new.json']);
    rmSync(at('new.json'));
    symlinkSync('loop.json', at('loop.json'));
    await expect(open()).rejects.toThrow(/^--spool-dir .*: loop\.json: ELOOP/);
    expect([existsSync(at('a.json')), quarantined()]).toEqual([true, []]);
  });

  it('lets the process live while it goes through a long queue', async () => {
    const store = await open();
    const message = await commit(store, 'a');
    for (let number = 0; number < 300; number++) {
      writeFileSync(at(`m${number}.json`), encodeEnvelope({ ...message, id: `m${number}` }));
      writeFileSync(at(`m${number}.eml`), BODY);
    }
    let turns = 0;
    const count = () => {
      turns++;
      timer = setImmediate(count);
    };
    let timer = setImmediate(count);
    const opening = SpoolStore.open(directory, { log: logger, minFreeOctets: 0, now: () => now });
    await vi.waitFor(() => expect(turns).toBeGreaterThan(0));
    const second = await opening;
    clearImmediate(timer);
    stores.push(second);
    expect(second.recovered).toHaveLength(301);
    expect(turns).toBeGreaterThanOrEqual(4);
  });
});

it('builds no path from what is no id', async () => {
  const store = await open();
  writeFileSync(at('quarantine', 'a.json'), 'x');
  for (const id of ['../a', 'quarantine/a', '', 'x'.repeat(65), 'a\0', 'ä', 'a b']) {
    expect(() => store.temporaryPath(id)).toThrow('is no queue id');
    await expect(store.load(id)).rejects.toThrow('is no queue id');
    await expect(store.remove(id)).rejects.toThrow('is no queue id');
    await expect(store.update({ ...envelope(id), octets: 0, crc32: 0 })).rejects.toThrow('is no queue id');
    await expect(store.openBody({ ...envelope(id), octets: 0, crc32: 0 })).rejects.toThrow('is no queue id');
  }
  expect(steps).toEqual([]);
  for (const id of ['.', '..', '...', '-', 'A_b.C-9', 'x'.repeat(64)]) await commit(store, id);
  expect((await reopen()).recovered).toHaveLength(6);
});

it('asks for the free space once a second, and has no room when it can not be asked', async () => {
  const store = await open(1);
  const lookups = () => asked().filter((name) => name === 'statfs').length;
  expect([await store.hasRoom(), await store.hasRoom(), lookups()]).toEqual([true, true, 1]);
  now = 1000;
  expect([await store.hasRoom(), lookups()]).toEqual([true, 1]);
  now = 1001;
  fail('statfs');
  expect([await store.hasRoom(), lookups()]).toEqual([false, 2]);
  expect(log.at(-1)).toMatchObject({ level: 'error', event: 'spool-room-unknown' });
  before = () => {};
  expect(await (await open(2 ** 62)).hasRoom()).toBe(false);
});

describe('the directory', () => {
  const mode = (path: string) => statSync(path).mode & 0o777;
  const prepare = (path = directory) => SpoolStore.prepare(path, logger);

  it('is made if it is missing, private and durable', async () => {
    const path = at('store-x', 'deep', 'spool');
    steps.length = 0;
    await prepare(path);
    expect([mode(path), mode(join(path, 'quarantine'))]).toEqual([0o700, 0o700]);
    expect(readdirSync(path)).toEqual(['quarantine']);
    expect(asked().filter((name) => name.startsWith('fsync'))).toEqual([
      'fsync spool',
      'fsync deep',
      'fsync .',
      'fsync .',
    ]);
    await prepare(path);
    expect(log).toEqual([]);
  });

  it('is made private when others could read it, with a warning', async () => {
    chmodSync(directory, 0o755);
    await prepare();
    expect(mode(directory)).toBe(0o700);
    expect(log).toMatchObject([{ level: 'warn', event: 'spool-mode', was: '755' }]);
  });

  it.each([0o770, 0o702, 0o777])('is refused when others can write it (%#)', async (open) => {
    chmodSync(directory, open);
    await expect(prepare()).rejects.toThrow(
      /^--spool-dir .* can be written by others \(mode 7..\); .*chmod 700$/,
    );
    expect(mode(directory)).toBe(open);
    chmodSync(directory, 0o700);
    mkdirSync(at('quarantine'));
    chmodSync(at('quarantine'), open);
    await expect(prepare()).rejects.toThrow('quarantine can be written by others');
  });

  it('is refused when it belongs to another user', async () => {
    const { uid } = statSync(directory);
    const spy = vi.spyOn(process, 'getuid').mockReturnValue(uid + 1);
    await expect(prepare()).rejects.toThrow('belongs to another user; change its owner, or name another');
    spy.mockRestore();
  });

  it('is refused when it is a file, or below one', async () => {
    writeFileSync(at('file'), '');
    for (const path of [at('file'), at('file', 'spool')])
      await expect(prepare(path)).rejects.toThrow(`--spool-dir ${path}: not a directory; name one`);
  });

  it('is refused when it can not be written', async () => {
    fail('open writable.json.tmp', 'EROFS');
    await expect(prepare()).rejects.toThrow(/^--spool-dir .*: not writable for this user; .*$/);
  });
});
