// What --dots ordered saves and what it costs: two next hops that take 5 ms for their answer to the dot, of which one or
// both say 451 now and then. A thousand messages each way; the README has the figures of such a run.
import { expect, it } from 'vitest';
import { startProxy } from '../support/proxy.ts';
import type { Act } from '../support/sink.ts';
import { report } from '../support/tools.ts';

const MESSAGES = 1_000;
const CLIENTS = 8;
const ANSWER_MS = 5;
const FAILS = 0.1;

type Figures = Readonly<{ mixed: number; delivered: number; p50: number; p95: number }>;

function shaky(chance: number): (line: string) => Act {
  return () => ({
    act: 'delay',
    ms: ANSWER_MS,
    next: Math.random() < chance ? '451 4.3.0 not now' : '250 2.0.0 ok',
  });
}

async function measure(dots: 'together' | 'ordered', chances: readonly number[]): Promise<Figures> {
  const sinks = chances.map((chance) => ({ script: { dot: shaky(chance) } }));
  const proxy = await startProxy(sinks, { dots, logLevel: 'silent', traceBuffer: 0 });
  const took: number[] = [];
  let next = 0;
  const send = async () => {
    const client = await proxy.client();
    for (let nth = next++; nth < MESSAGES; nth = next++) {
      const message = `Message-ID: <${nth}@src.example>\r\n\r\nx\r\n`;
      expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
      const began = performance.now();
      client.write(`${message}.\r\n`);
      await client.reply();
      took.push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, send));
  const ended = (result: string) =>
    proxy.metric(`cutthrough_transactions_total{mode="cut-through",result="${result}"}`);
  const [mixed, delivered] = [await ended('mixed'), await ended('delivered')];
  await proxy.close();
  took.sort((a, b) => a - b);
  return { mixed, delivered, p50: took[took.length * 0.5]!, p95: took[took.length * 0.95]! };
}

it.each([
  ['one of two next hops', [0, FAILS]],
  ['each of two next hops', [FAILS, FAILS]],
])('fewer mixed results where %s fails now and then', async (who, chances) => {
  const together = await measure('together', chances);
  const ordered = await measure('ordered', chances);
  for (const [dots, { mixed, delivered, p50, p95 }] of Object.entries({ together, ordered }))
    report(
      `${who} defers ${FAILS * 100} % of ${MESSAGES} messages, --dots ${dots}: ${mixed} mixed, ${delivered} delivered, ` +
        `dot to reply ${p50.toFixed(1)} ms (median), ${p95.toFixed(1)} ms (95th percentile)`,
    );
  expect(ordered.mixed).toBeLessThan(together.mixed * 0.75);
  expect(ordered.delivered).toBeGreaterThan(0);
});
