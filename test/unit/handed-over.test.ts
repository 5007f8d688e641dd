// The ends of a worker's process that Node's cluster learns of too late; see also integration/workers.test.ts.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { expect, it } from 'vitest';
import { watchHandedOver } from '../../src/workers/handed-over.ts';

it('tells of the end of a channel at once, before anything else can be handed over', async () => {
  const child = spawn(process.execPath, ['-e', "process.on('message', () => {})"], {
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  watchHandedOver(child);
  let told = false;
  child.once('disconnect', () => {
    told = true;
  });
  const exited = once(child, 'exit');
  child.disconnect();
  expect(told).toBe(true);
  await exited;
});
