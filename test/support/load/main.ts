// The load generator of `docker compose --profile load`: keeps a proxy busy with all that can happen to a message, so
// that its dashboard has something to show. Told by the environment alone (LOAD_*, see `settings`); ends on SIGTERM.
// Prints a JSON line every ten seconds. Exit codes: 0 stopped, 1 a failure in one line, 2 a setting that makes no sense.
import { workInShifts } from './shaky.ts';
import { keepSending, lettersOfARound, type Outcome } from './traffic.ts';

const REPORT_EVERY_MS = 10_000;

class BadSetting extends Error {}

function settings(env: NodeJS.ProcessEnv) {
  return {
    /** The proxy. */
    target: hostPort('LOAD_TARGET', env.LOAD_TARGET || '127.0.0.1:2525'),
    /** Two domains whose next hops take everything. */
    good: pair('LOAD_DOMAINS', env.LOAD_DOMAINS || 'a.example b.example'),
    /** A domain that the proxy routes to LOAD_SHAKY_LISTEN. */
    shaky: env.LOAD_SHAKY_DOMAIN || 'shaky.example',
    shakyListen: hostPort('LOAD_SHAKY_LISTEN', env.LOAD_SHAKY_LISTEN || '127.0.0.1:2500'),
    upMs: 1000 * positive('LOAD_SHAKY_UP', env.LOAD_SHAKY_UP || '60'),
    downMs: 1000 * positive('LOAD_SHAKY_DOWN', env.LOAD_SHAKY_DOWN || '20'),
    perSecond: positive('LOAD_RATE', env.LOAD_RATE || '10'),
    sessions: Math.ceil(positive('LOAD_SESSIONS', env.LOAD_SESSIONS || '5')),
  };
}

function hostPort(name: string, text: string): { host: string; port: number } {
  const [, host, port] = /^(.+):(\d{1,5})$/.exec(text) ?? [];
  if (host === undefined) throw new BadSetting(`${name}=${text}: expected HOST:PORT`);
  return { host, port: Number(port) };
}

function pair(name: string, text: string): [string, string] {
  const [a, b, ...more] = text.split(/\s+/).filter(Boolean);
  if (a === undefined || b === undefined || more.length > 0)
    throw new BadSetting(`${name}=${text}: expected two domains`);
  return [a, b];
}

function positive(name: string, text: string): number {
  const value = Number(text);
  if (!(Number.isFinite(value) && value > 0))
    throw new BadSetting(`${name}=${text}: expected a number above 0`);
  return value;
}

async function main(env: NodeJS.ProcessEnv): Promise<void> {
  const { target, good, shaky, shakyListen, upMs, downMs, perSecond, sessions } = settings(env);
  const letters = lettersOfARound({ good, shaky, foreign: 'elsewhere.example' });
  let turn = 0;
  const next = () => letters[turn++ % letters.length]!;
  const counts: Record<Outcome, number> = { accepted: 0, refused: 0, deferred: 0, vanished: 0, lost: 0 };
  const report = () => console.log(JSON.stringify({ event: 'load', ...counts }));
  setInterval(report, REPORT_EVERY_MS);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      report();
      process.exit(0);
    });
  }
  const pace = {
    everyMs: (1000 * sessions) / perSecond,
    onOutcome: (outcome: Outcome) => counts[outcome]++,
  };
  const work = Array.from({ length: sessions }, () => keepSending(target, next, pace));
  await Promise.all([workInShifts({ ...shakyListen, upMs, downMs }), ...work]);
}

try {
  await main(process.env);
} catch (error) {
  console.error(`load: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(error instanceof BadSetting ? 2 : 1);
}
