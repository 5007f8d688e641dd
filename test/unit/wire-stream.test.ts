// How much the upstream's stream takes in: what is being dealt with, and one chunk behind it.
import { once } from 'node:events';
import { expect, it } from 'vitest';
import { WireStream } from '../../src/upstream/wire-stream.ts';

const line = (text: string) => Buffer.from(`${text}\r\n`);

/** A stream, and what holds its next command or chunk until it is let go. */
function heldStream() {
  const stream = new WireStream();
  const commands: string[] = [];
  let letGo: () => void = () => {};
  stream.oncommand = (command, callback) => {
    commands.push(`${command}`);
    letGo = callback as () => void;
  };
  return { stream, commands, letGo: () => letGo() };
}

it('takes more while a command is being answered, but no more than a chunk', async () => {
  const { stream, commands, letGo } = heldStream();
  // A client that waits for its answer isn't stopped from sending: it won't.
  expect(stream.write(line('EHLO a'))).toBe(true);
  expect(stream.write(line('MAIL FROM:<>'))).toBe(false);
  const drained = once(stream, 'drain');
  letGo();
  letGo();
  await drained;
  expect(commands).toEqual(['EHLO a', 'MAIL FROM:<>']);
});

it('takes a short rest, but no more than a chunk, of a message that nobody takes', async () => {
  const { stream, letGo } = heldStream();
  stream.write(line('DATA'));
  let ready: () => void = () => {};
  const pushed: number[] = [];
  stream.startBody({
    push: (chunk) => {
      pushed.push(chunk.length);
      return { end: -1, ready: new Promise((resolve) => (ready = resolve)), kept: true };
    },
    end: () => {},
  });
  letGo();
  expect(stream.write(Buffer.alloc(1000))).toBe(true);
  expect(stream.write(Buffer.alloc(16_000))).toBe(true);
  expect(stream.write(Buffer.alloc(1000))).toBe(false);
  expect(pushed).toEqual([1000]);
  const drained = once(stream, 'drain');
  ready();
  await Promise.resolve();
  ready();
  await drained;
  expect(pushed).toEqual([1000, 17_000]);
});

it('goes on taking while a message is being answered, so that the end of the socket is seen', async () => {
  const { stream, commands, letGo } = heldStream();
  stream.write(line('DATA'));
  let ready: () => void = () => {};
  let answered: () => void = () => {};
  stream.startBody({
    push: (chunk) =>
      `${chunk}` === '.\r\n'
        ? { end: 3, ready: null, kept: true }
        : { end: -1, ready: new Promise((resolve) => (ready = resolve)), kept: true },
    end: (resume) => {
      answered = resume;
    },
  });
  letGo();
  expect(stream.write(line('first'))).toBe(true);
  expect(stream.write(line('.'))).toBe(true);
  ready();
  // The end has been seen, and its answer is due.
  await Promise.resolve();
  expect(stream.write(line('QUIT'))).toBe(true);
  expect(stream.write(Buffer.alloc(5_000))).toBe(false);
  expect(commands).toEqual(['DATA']);
  answered();
  expect(commands).toEqual(['DATA', 'QUIT']);
});

it('needs nothing of a chunk whose octets were all of a message, and have all been dealt with', () => {
  const { stream, letGo } = heldStream();
  let kept = false;
  stream.write(Buffer.concat([line('DATA'), line('first')]));
  stream.startBody({ push: () => ({ end: -1, ready: null, kept }), end: () => {} });
  letGo();
  expect(stream.keepsChunk).toBe(true);
  stream.write(line('second'));
  expect(stream.keepsChunk).toBe(false);
  kept = true;
  stream.write(line('third'));
  expect(stream.keepsChunk).toBe(true);
});
