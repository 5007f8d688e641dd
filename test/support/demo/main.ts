// `npm run demo`: claims 21-24 on loopback, before one's eyes. Every act is played over real sockets against the built
// proxy, shown on one time line, and then checked: what does not hold makes the demo fail.
// Exit codes: 0 all as claimed, 1 something was not, in one line on stderr. Ends every process that it started.
// An argument names another build of the command line program than dist/cli.js.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Client } from '../client.ts';
import type { Act, SinkOptions } from '../sink.ts';
import type { Recording } from './dialogue.ts';
import { type Change, changes, growth } from './metrics.ts';
import { type Finding, findings, paint, print, prose, table, timeline, title } from './page.ts';
import { eventually, Stage } from './stage.ts';

const PAUSE_MS = 70;
/** How much later than alpha beta acknowledges. */
const LATE_MS = 300;
/** The demo must never hang. */
const LIMIT_MS = 18_000;

const MAIL = 'MAIL FROM:<ann@home.example>';
const TO_ALPHA = 'RCPT TO:<user@alpha.example>';
const TO_BETA = 'RCPT TO:<user@beta.example>';
const TO_NOBODY = 'RCPT TO:<nobody@beta.example>';

const CHUNKS = [
  'From: Ann <ann@home.example>\r\nTo: <user@alpha.example>, <user@beta.example>\r\nSubject: Straight through\r\n',
  '\r\nWhat you read here has never been stored:\r\n',
  'it was on its way to you while I was still typing,\r\n',
  'and nobody has said 250 before you had it.\r\n',
];

type Script = NonNullable<SinkOptions['script']>;

const after = (ms: number, next: Act): Act => ({ act: 'delay', ms, next });
const ALPHA: Script = {
  rcpt: after(30, '250 2.1.5 alpha knows user'),
  data: '354 alpha is ready',
  dot: '250 2.0.0 alpha has it',
};
const BETA: Script = {
  rcpt: (line) =>
    line === TO_NOBODY ? after(30, '550 5.1.1 beta knows nobody') : after(60, '250 2.1.5 beta knows user'),
  data: after(80, '354 beta is ready'),
  dot: after(LATE_MS, '250 2.0.0 beta has it'),
};

async function main(program: string): Promise<readonly Finding[]> {
  const all: Finding[] = [];
  const tell = (some: readonly Finding[]) => {
    findings(some);
    all.push(...some);
  };
  try {
    await stage.set(program, { alpha: ALPHA, beta: BETA });
    introduce();
    const before = await stage.counters();
    tell(await everybodyHasIt());
    tell(await nobodyHasIt());
    tell(await oneIsDown());
    tell(showMetrics(changes(before, await stage.counters())));
    const exitCode = await stage.strike();
    tell([{ holds: exitCode === 0, claim: 'SIGTERM ends the proxy', figures: `exit code ${exitCode}` }]);
  } finally {
    await stage.strike();
  }
  return all;
}

function introduce(): void {
  title('cutthrough', 'a demo of claims 21-24');
  prose(
    `A client sends mail through the proxy (process ${stage.pid}, ${stage.listen}) to two mail servers, which the ` +
      `proxy finds by ${stage.byMx ? 'their MX records in a DNS zone of the demo' : 'static routes, this machine having one loopback address'}. ` +
      'All of it is real: sockets, processes, bytes. It is watched at the client and at the two servers.',
  );
  print(' → towards the recipients   ← what they answer   × the end of a connection');
}

async function everybodyHasIt(): Promise<readonly Finding[]> {
  title('1  Everybody has it: 250', 'claims 21 and 22');
  prose(
    'Look for: each RCPT answered only when the next hop has answered it, 354 after both 354s, the body at both ' +
      `servers before the client has sent its final dot, and 250 after both servers' own (beta's is ${LATE_MS} ms late).`,
  );
  const client = await stage.act();
  const { recording } = stage;
  for (const line of [MAIL, TO_ALPHA, TO_BETA, TO_NOBODY]) await client.command(line);
  await startData(client);
  await sendBody(client, CHUNKS);
  // The client keeps its dot back until the whole body has arrived, which it never would if the proxy stored it.
  const sent = CHUNKS.join('').length;
  await eventually(() => octetsAt(recording).every((octets) => octets >= sent));
  await client.command('.');
  end(recording, client);
  return checkDelivery(recording);
}

function checkDelivery(recording: Recording): readonly Finding[] {
  const upstream = (command: string) => recording.replyTo('upstream', command);
  const alpha = (command: string) => recording.replyTo('alpha', command);
  const beta = (command: string) => recording.replyTo('beta', command);
  const time = (place: number) => timeOf(recording, place);
  const text = (place: number) => recording.moments[place]?.text ?? 'nothing';
  const dot = recording.find('upstream', 'dot');
  const bodies = [recording.octetsBefore('alpha', dot), recording.octetsBefore('beta', dot)];
  const sent = CHUNKS.join('');
  return [
    {
      holds:
        inOrder(alpha(TO_ALPHA), upstream(TO_ALPHA), beta(TO_BETA), upstream(TO_BETA)) &&
        inOrder(beta(TO_NOBODY), upstream(TO_NOBODY)) &&
        text(upstream(TO_NOBODY)) === text(beta(TO_NOBODY)),
      claim: 'Claim 21: recipients are asked live',
      figures: `alpha at ${time(alpha(TO_ALPHA))}, beta at ${time(beta(TO_BETA))}; and "${text(upstream(TO_NOBODY))}" is beta's own word`,
    },
    {
      holds: inOrder(alpha('DATA'), upstream('DATA')) && inOrder(beta('DATA'), upstream('DATA')),
      claim: 'Claim 21: no body before every next hop wants it',
      figures: `354 from alpha at ${time(alpha('DATA'))}, beta at ${time(beta('DATA'))}, to the client at ${time(upstream('DATA'))}`,
    },
    {
      holds: dot !== -1 && bodies.every((octets) => octets >= sent.length),
      claim: 'Claim 21: the body runs straight through',
      figures: `${bodies[0]} octets at alpha and ${bodies[1]} at beta before the client's dot at ${time(dot)} (${sent.length} sent, and a Received line)`,
    },
    {
      holds:
        inOrder(dot, alpha('.'), upstream('.')) &&
        inOrder(dot, beta('.'), upstream('.')) &&
        text(upstream('.')).startsWith('250 '),
      claim: 'Claim 22: 250 is the last word',
      figures: `alpha acknowledged at ${time(alpha('.'))}, beta at ${time(beta('.'))}, the client got 250 at ${time(upstream('.'))}`,
    },
    {
      holds: servers().every(({ messages }) =>
        messages.at(-1)?.body.toString('latin1').endsWith(`\r\n${sent}`),
      ),
      claim: 'Bit for bit',
      figures: 'both servers have what the client sent, below one Received line',
    },
  ];
}

async function nobodyHasIt(): Promise<readonly Finding[]> {
  title('2  One breaks off in mid-body: nobody has it', 'claim 23');
  prose(
    'Look for: beta resetting its connection in the middle of the body, alpha being cut off without a dot (so ' +
      'that it cannot take half a message for a whole one), and the client being told that it still has the message.',
  );
  const had = countMessages();
  const client = await stage.act();
  const { recording } = stage;
  for (const line of [MAIL, TO_ALPHA, TO_BETA]) await client.command(line);
  await startData(client);
  await sendBody(client, CHUNKS.slice(0, 2));
  await eventually(() => octetsAt(recording).every((octets) => octets > 0));
  stage.servers.beta.sessions.at(-1)?.socket.resetAndDestroy();
  await eventually(() => recording.find('alpha', 'closed') !== -1);
  await sendBody(client, CHUNKS.slice(2));
  const verdict = await client.command('.');
  end(recording, client);
  const dots = (['alpha', 'beta'] as const).filter((side) => recording.find(side, 'dot') !== -1).length;
  const gained = countMessages() - had;
  return [
    {
      holds: /^451 4\.4\.2 /.test(verdict),
      claim: 'Claim 23: the client is told',
      figures: `"${verdict}"`,
    },
    {
      holds: recording.find('alpha', 'closed') !== -1 && dots === 0 && gained === 0,
      claim: 'All or none',
      figures: `${dots} servers got a dot, ${gained} have the message; alpha was cut off at ${timeOf(recording, recording.find('alpha', 'closed'))}`,
    },
  ];
}

async function oneIsDown(): Promise<readonly Finding[]> {
  title('3  One is down: a bounded number of attempts', 'claims 21 and 24');
  prose(
    'Look for: the wait before 451, in which the proxy tries to connect three times (--connect-retries 2), its naming ' +
      'the next hop and the number of attempts, and the other recipient going through when the client goes on without beta.',
  );
  await stage.closeBeta();
  const before = await stage.counters();
  const client = await stage.act();
  const { recording } = stage;
  await client.command(MAIL);
  const refusal = await client.command(TO_BETA);
  await client.command(TO_ALPHA);
  await startData(client);
  await sendBody(client, CHUNKS.slice(0, 2));
  const verdict = await client.command('.');
  end(recording, client);
  const moved = changes(before, await stage.counters());
  const refused = growth(moved, 'downstream_connect_attempts_total{result="refused"}');
  const retries = growth(moved, 'downstream_connect_retries_total');
  const acknowledged = recording.replyTo('alpha', '.');
  return [
    {
      holds:
        /^451 4\.4\.1 .* after 3 attempts/.test(refusal) && (!stage.byMx || refusal.includes('beta.example')),
      claim: 'Claim 24: connecting was not successful',
      figures: `"${refusal}"`,
    },
    {
      holds: refused === 3 && retries === 2,
      claim: 'Claim 21: a predetermined number of times',
      figures: `by its metrics ${refused} connections were refused, ${retries} of them retries`,
    },
    {
      holds:
        inOrder(acknowledged, recording.replyTo('upstream', '.')) &&
        verdict.startsWith('250 ') &&
        verdict === recording.moments[acknowledged]?.text,
      claim: 'The other recipient has it',
      figures: `alpha acknowledged at ${timeOf(recording, acknowledged)}; "${verdict}" is alpha's own word`,
    },
  ];
}

function showMetrics(moved: readonly Change[]): readonly Finding[] {
  title('4  The same, counted', 'GET /metrics');
  prose('Every counter that has moved since the beginning, as Prometheus would see it:');
  const number = (value: number) => `${Number(value.toFixed(2))}`;
  table(
    ['', 'before', 'after', 'cutthrough_…'],
    moved.map(({ name, series, before, after }) => [name, number(before), number(after), series]),
  );
  const delivered = growth(moved, 'transactions_total{result="delivered"}');
  const deferred = growth(moved, 'transactions_total{result="deferred"}');
  return [
    {
      holds: delivered === 2 && deferred === 1,
      claim: 'The metrics agree',
      figures: `${delivered} messages delivered (acts 1 and 3), ${deferred} deferred (act 2)`,
    },
  ];
}

function invite(): void {
  title('Try it yourself', 'a mail server of yours on port 1025, say');
  print(
    `   ${paint("npm start -- --route '*=smtp://127.0.0.1:1025'", 'bold')}`,
    `   ${paint('swaks --server 127.0.0.1:2525 --from you@example.org --to friend@example.org', 'bold')}`,
    '',
    ` Read on in README.md.`,
    '',
  );
}

// ---- what the acts share ----

async function startData(client: Client): Promise<void> {
  const reply = await client.command('DATA');
  if (!reply.startsWith('354')) throw new Error(`DATA was answered "${reply}" instead of 354`);
}

async function sendBody(client: Client, chunks: readonly string[]): Promise<void> {
  for (const chunk of chunks) {
    client.write(chunk);
    await sleep(PAUSE_MS);
  }
}

/** What follows, the QUITs, is of no interest. */
function end(recording: Recording, client: Client): void {
  recording.stop();
  client.write('QUIT\r\n');
  timeline(recording);
}

function octetsAt(recording: Recording): readonly number[] {
  return [recording.octetsBefore('alpha'), recording.octetsBefore('beta')];
}

function servers() {
  return Object.values(stage.servers);
}

function countMessages(): number {
  return servers().reduce((sum, { messages }) => sum + messages.length, 0);
}

/** Whether all places exist, each behind the one before. */
function inOrder(...places: readonly number[]): boolean {
  return places.every((place, nth) => place !== -1 && (nth === 0 || places[nth - 1]! < place));
}

function timeOf({ moments }: Recording, place: number): string {
  const moment = moments[place];
  return moment === undefined ? 'no time' : `${Math.round(moment.at)} ms`;
}

function fail(reason: string): void {
  console.error(`demo: ${reason}`);
  process.exitCode = 1;
}

const stage = new Stage();
process.once('exit', () => stage.kill());
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
setTimeout(() => {
  fail(`not done within ${LIMIT_MS / 1000} s`);
  process.exit();
}, LIMIT_MS).unref();

try {
  const wrong = (await main(process.argv[2] ?? 'dist/cli.js')).filter(({ holds }) => !holds);
  if (wrong.length === 0) invite();
  else fail(`not as claimed: ${wrong.map(({ claim }) => claim).join('; ')}`);
} catch (error) {
  fail(error instanceof Error ? error.message : String(error));
}
