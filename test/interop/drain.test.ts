// SIGTERM under load: nobody is told 250 for a message that isn't delivered, and the program ends well.
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { collect, needTools, SmtpSink, start } from '../support/tools.ts';

const SESSIONS = 10;
const BODY = `Subject: x\r\n\r\n${`${'x'.repeat(70)}\r\n`.repeat(50)}`;

/** Sends one message after the other until the session is over, noting those that were answered 250. */
async function sendUntilClosed(port: number, session: number, accepted: string[]): Promise<void> {
  const client = await Client.hello(port);
  for (let nth = 0; ; nth++) {
    const recipient = `${session}.${nth}@a.example`;
    const reply = await client.send('s@src.example', [recipient], BODY);
    if (!reply.startsWith('250 ')) {
      client.destroy();
      return;
    }
    accepted.push(`<${recipient}>`);
  }
}

it('delivers, when SIGTERM comes in the middle of 10 busy sessions, exactly what it has answered 250', async (context) => {
  await needTools(context, 'smtp-sink');
  const sink = await SmtpSink.start();
  const proxy = await Program.start(['--route', `*=${sink.url}`]);
  const accepted: string[] = [];
  const loops = Array.from({ length: SESSIONS }, (_, session) =>
    sendUntilClosed(proxy.port(), session, accepted),
  );
  await until(() => accepted.length >= 200, 20_000);
  expect(await proxy.stop()).toBe(0);
  await Promise.all(loops);
  const delivered = (await sink.messages()).flatMap((message) => message.recipients);
  expect(delivered.toSorted()).toEqual(accepted.toSorted());
  expect(proxy.log.at(-1)?.event).toBe('stopped');
});

it('exits 0 when SIGTERM comes while smtp-source is sending, having lost nothing but what was under way', async (context) => {
  await needTools(context, 'smtp-source', 'smtp-sink');
  const sink = await SmtpSink.start();
  const proxy = await Program.start(['--route', `*=${sink.url}`]);
  // -c prints how many DATA commands were answered 354.
  const load = ['-c', '-d', '-N', '-m', '100000', '-s', `${SESSIONS}`, '-l', '4096', '-t', 'u@a.example'];
  const source = start('smtp-source', [...load, proxy.address()]);
  const output = collect(source);
  const counted = () => Number([...output().matchAll(/(\d+)\r/g)].at(-1)?.[1] ?? 0);
  await until(() => counted() >= 200, 20_000);
  expect(await proxy.stop()).toBe(0);
  // It gives up at the first 421, in the middle of what its other sessions are doing.
  await until(() => source.exitCode !== null, 10_000);
  const delivered = (await sink.messages()).length;
  expect(delivered).toBeLessThanOrEqual(counted());
  expect(delivered).toBeGreaterThanOrEqual(counted() - SESSIONS);
  const logged = proxy.transactions().filter((line) => line.result === 'delivered').length;
  expect(logged).toBeLessThanOrEqual(delivered);
});
