// Other people's programs from Debian's packages, run on loopback for one test: found or skipped, bounded in time, and
// ended by their own pid when the test is over, however it ends.
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:fs';
import { access, chmod, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, onTestFinished, type TestContext } from 'vitest';

/** The packages that a missing tool comes with. */
const TOOLS = {
  'smtp-source': 'postfix',
  'smtp-sink': 'postfix',
  swaks: 'swaks',
  openssl: 'openssl',
  strace: 'strace',
  xfs_io: 'xfsprogs',
  'mkfs.ext4': 'e2fsprogs',
  faketime: 'faketime',
  prometheus: 'prometheus',
  promtool: 'prometheus',
  chromium: 'chromium',
} as const;
export type Tool = keyof typeof TOOLS;

// postfix's programs are in sbin, which a user's PATH may lack.
const PATH = `${process.env.PATH ?? ''}${delimiter}/usr/local/sbin${delimiter}/usr/sbin${delimiter}/sbin`;
const RUN_TIMEOUT_MS = 50_000;
const KILL_AFTER_MS = 5_000;
const OWNED_TIMEOUT_MS = 60_000;

/** Skips the test where a tool is missing, saying which; on CI that is a failure, since nobody would notice. */
export async function needTools(context: TestContext, ...tools: readonly Tool[]): Promise<void> {
  const found = await Promise.all(tools.map(isInstalled));
  const missing = tools.filter((_, index) => !found[index]);
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((tool) => TOOLS[tool]))].join(' ');
  skip(context, `needs ${missing.join(', ')} (Debian: apt-get install ${packages})`);
}

export function skip(context: TestContext, reason: string): void {
  if (process.env.CI) throw new Error(reason);
  report(`skipped: ${context.task.name}: ${reason}`);
  context.skip(reason);
}

async function isInstalled(tool: Tool): Promise<boolean> {
  const places = PATH.split(delimiter).filter((directory) => directory !== '');
  const tries = places.map((directory) => access(join(directory, tool), constants.X_OK));
  return (await Promise.allSettled(tries)).some((each) => each.status === 'fulfilled');
}

/** Who ends what is started: the test under way, unless said otherwise. */
export type Owner = (release: () => Promise<void>) => void;

/** For what the tests of one file share: it ends with the file's last test. Called at the top of the file. */
export function ownedByFile(): Owner {
  const releases: (() => Promise<void>)[] = [];
  afterAll(async () => {
    for (const release of releases.toReversed()) await release();
  }, OWNED_TIMEOUT_MS);
  return (release) => void releases.push(release);
}

/** A line for whoever reads the run: figures, and reasons for skipping. */
export function report(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Removed with all that is in it when the test is over. Open to smtp-sink, which gives up root. */
export async function temporaryDirectory(owner: Owner = onTestFinished): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'cutthrough-interop-'));
  await chmod(directory, 0o777);
  // A server's children may still be writing.
  owner(async () => await rm(directory, { recursive: true, force: true, maxRetries: 5 }));
  return directory;
}

// If the runner itself is stopped, no test gets to its end.
const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** Starts a program that is ended with the test, or with its other owner, at the latest. */
export function start(
  command: string,
  args: readonly string[],
  options: SpawnOptions = {},
  owner: Owner = onTestFinished,
): ChildProcess {
  const env = { ...(options.env ?? process.env), PATH };
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options, env });
  running.add(child);
  child.once('close', () => running.delete(child));
  owner(async () => await end(child));
  return child;
}

/** SIGTERM, and SIGKILL if that is not enough. */
export async function end(child: ChildProcess): Promise<void> {
  if (!running.has(child) || child.pid === undefined) return;
  const closed = once(child, 'close');
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), KILL_AFTER_MS);
  await closed;
  clearTimeout(timer);
}

export type Ran = Readonly<{ exitCode: number | null; output: string }>;

/** Runs a program to its end; `output` is both its streams. */
export async function run(
  command: string,
  args: readonly string[],
  input: string | Buffer = '',
  owner: Owner = onTestFinished,
): Promise<Ran> {
  const child = start(command, args, { stdio: 'pipe' }, owner);
  const timer = setTimeout(() => child.kill('SIGKILL'), RUN_TIMEOUT_MS);
  const output = collect(child);
  // One that exits without reading its input must not take us along.
  child.stdin?.on('error', () => {});
  child.stdin?.end(input);
  const [exitCode] = (await once(child, 'close')) as [number | null];
  clearTimeout(timer);
  return { exitCode, output: output() };
}

/** What the program has printed so far. */
export function collect(child: ChildProcess): () => string {
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
  }
  return () => text;
}

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** A message as smtp-sink has dumped it, with its line ends. */
export type Dumped = Readonly<{ recipients: readonly string[]; sender: string; text: string }>;

/** postfix's smtp-sink, keeping every message that came to its dot. */
export class SmtpSink {
  readonly port: number;
  readonly #directory: string;

  constructor(port: number, directory: string) {
    this.port = port;
    this.#directory = directory;
  }

  static async start(...args: readonly string[]): Promise<SmtpSink> {
    const directory = await temporaryDirectory();
    const user = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
    // Another program may take the port between our asking for it and smtp-sink's using it.
    for (let tries = 0; tries < 5; tries++) {
      const port = await freePort();
      const to = `127.0.0.1:${port}`;
      const child = start('smtp-sink', [...user, '-D', join(directory, 'dump'), ...args, to, '512']);
      const output = collect(child);
      if (await listens(child, port)) return new SmtpSink(port, directory);
      if (!/in use/i.test(output())) throw new Error(`smtp-sink: ${output()}`);
    }
    throw new Error('smtp-sink found no free port');
  }

  get url(): string {
    return `smtp://127.0.0.1:${this.port}`;
  }

  async messages(): Promise<Dumped[]> {
    if (!(await readdir(this.#directory)).includes('dump')) return [];
    const text = await readFile(join(this.#directory, 'dump'), 'latin1');
    // Each begins with X-Client-Addr, which no message of ours holds.
    return text.split(/^(?=X-Client-Addr: )/m).map(parseDump);
  }
}

function parseDump(text: string): Dumped {
  const values = (name: string) =>
    [...text.matchAll(new RegExp(`^X-${name}-Args: (.*)$`, 'gm'))].map((match) => match[1] ?? '');
  return { recipients: values('Rcpt'), sender: values('Mail')[0] ?? '', text };
}

/** Whether the child takes connections at the port; false once it has exited. */
export async function listens(child: ChildProcess, port: number): Promise<boolean> {
  const deadline = performance.now() + 5_000;
  while (child.exitCode === null && child.signalCode === null && performance.now() < deadline) {
    const socket = net.connect({ port, host: '127.0.0.1' });
    const connected = await once(socket, 'connect').then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (connected) return child.exitCode === null;
    await sleep(20);
  }
  return false;
}

/** A self-signed certificate for localhost, made by openssl. */
export async function selfSigned(): Promise<{ certFile: string; keyFile: string }> {
  const directory = await temporaryDirectory();
  const [certFile, keyFile] = [join(directory, 'cert.pem'), join(directory, 'key.pem')];
  const names = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'];
  const files = ['-days', '2', '-keyout', keyFile, '-out', certFile];
  const made = await run('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', ...names, ...files]);
  if (made.exitCode !== 0) throw new Error(`openssl: ${made.output}`);
  return { certFile, keyFile };
}
