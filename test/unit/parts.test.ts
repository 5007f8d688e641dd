// Gathering the parts of a spool: whatever a crash has left half moved, each message is in one place, whole.
import { linkSync, mkdirSync, readdirSync, readFileSync, renameSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { DirectoryLock } from '../../src/directory-lock.ts';
import { gather, partOf } from '../../src/spool/parts.ts';
import { putInto, QUEUED_BODY, queuedMessage } from '../support/spool.ts';

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'cutthrough-parts-'));
});
afterEach(async () => await rm(directory, { recursive: true, force: true }));

const message = (id: string) => queuedMessage(id, 'MAIL FROM:<s@src.example>', ['RCPT TO:<u@a.example>']);

function part(number: number): string {
  const path = partOf(directory, number);
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return path;
}

const files = (path: string) => readdirSync(path).filter((name) => /\.(eml|json)/.test(name));

it('spreads what is there over the parts', async () => {
  for (const id of ['a', 'b']) putInto(directory, message(id));
  for (const id of ['c', 'd']) putInto(part(9), message(id));
  const parts = [part(1), part(2)];
  await gather(directory, parts);
  const found = parts.map(files);
  expect(found.map(({ length }) => length)).toEqual([4, 4]);
  expect(found.flat().toSorted()).toEqual(['a', 'b', 'c', 'd'].flatMap((id) => [`${id}.eml`, `${id}.json`]));
  expect(readdirSync(directory).toSorted()).toEqual(['worker-1', 'worker-2']);
});

it.each<[cut: string, half: (from: string, id: string) => void]>([
  ['before', () => {}],
  [
    'after the body got its second name',
    (from, id) => linkSync(join(from, `${id}.eml`), join(directory, `${id}.eml`)),
  ],
  [
    'after the message moved, with the body’s first name left',
    (from, id) => {
      linkSync(join(from, `${id}.eml`), join(directory, `${id}.eml`));
      renameSync(join(from, `${id}.json`), join(directory, `${id}.json`));
    },
  ],
])('goes on where a crash came %s', async (_cut, half) => {
  const from = part(1);
  putInto(from, message('m'));
  half(from, 'm');
  await gather(directory, [directory]);
  expect(readdirSync(directory).toSorted()).toEqual(['m.eml', 'm.json']);
  expect(readFileSync(join(directory, 'm.eml'))).toEqual(QUEUED_BODY);
});

it('leaves alone what another process works on, and says so', async () => {
  putInto(part(1), message('m'));
  const lock = await DirectoryLock.acquire(part(1), (socket) => socket.destroy());
  await expect(gather(directory, [directory])).rejects.toThrow(/worker-1: in use by another process/);
  expect(files(part(1))).toEqual(['m.eml', 'm.json']);
  await lock.release();
});
