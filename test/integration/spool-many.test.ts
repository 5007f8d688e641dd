// Many queued messages for many next hops, half of which are down: those that answer are served at once, and those that
// don't are asked by one message at a time.
import { readdirSync } from 'node:fs';
import { expect, it, onTestFinished } from 'vitest';
import { startProxyOnly, until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';
import { putInto, queuedMessage, spoolDirectory } from '../support/spool.ts';

const DOMAINS = 60;
const PER_DOMAIN = 20;
it('serves the next hops that answer while the others are down, each message once', async () => {
  const { directory: spoolDir, remove } = await spoolDirectory();
  onTestFinished(remove);
  for (let at = 0; at < DOMAINS * PER_DOMAIN; at++) {
    const rcpt = `RCPT TO:<u${at}@d${at % DOMAINS}.example>`;
    putInto(spoolDir, queuedMessage(`m.${at}`, 'MAIL FROM:<s@src.example>', [rcpt]));
  }
  const good = await Sink.start({ host: '0.0.0.0' });
  // It takes connections, and never says a word.
  const silent = await Sink.start({ host: '0.0.0.0', script: { greeting: { act: 'stall' } } });
  // An address of its own for each domain makes each a next hop of its own.
  const route = Array.from({ length: DOMAINS }, (_, at) => {
    const { port } = at % 2 === 0 ? good : silent;
    return `d${at}.example=smtp://127.0.1.${at + 1}:${port}`;
  });
  const proxy = await startProxyOnly(
    { mode: 'spool', spoolDir, retrySchedule: '1h', greetingTimeout: '30s', route },
    [good, silent],
  );
  onTestFinished(() => proxy.close());
  const served = (DOMAINS / 2) * PER_DOMAIN;
  await until(() => good.messages.length >= served, 12_000);
  await until(() => readdirSync(spoolDir).filter((name) => name.endsWith('.json')).length === served);
  expect(new Set(good.messages.flatMap(({ rcpts }) => rcpts)).size).toBe(served);
  expect(good.messages).toHaveLength(served);
  expect(silent.sessions).toHaveLength(DOMAINS / 2);
  expect(await proxy.metric('cutthrough_queue_messages')).toBe(served);
});
