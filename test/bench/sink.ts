// Where the mail ends: postfix's smtp-sink, or our fast sink where smtp-sink would be what is measured. Both write
// mesg=COUNT to their standard output for each message that came to its dot.
import { fstatSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { end, start, startOnPorts } from './processes.ts';

/** Each recipient domain is one sink's: what relays by domain and what relays by port get the same mail. */
export const DOMAINS = [
  'a.example',
  'b.example',
  'c.example',
  'd.example',
  'e.example',
  'fast.example',
] as const;
export type Domain = (typeof DOMAINS)[number];
export type Sinks = Readonly<Record<Domain, Sink>>;

const SESSIONS = 3_000;
const BACKLOG = 4_096;
/** More than one of the counts, which smtp-sink writes over one another. */
const TAIL_OCTETS = 200;

export class Sink {
  readonly port: number;
  readonly stop: () => Promise<void>;
  readonly #counts: number;

  private constructor(port: number, counts: number, stop: () => Promise<void>) {
    this.port = port;
    this.#counts = counts;
    this.stop = stop;
  }

  /** @throws Error that tells what the sink said */
  static async start(domain: Domain, directory: string): Promise<Sink> {
    const counts = openSync(join(directory, `${domain}.counts`), 'a+');
    const complaints = join(directory, `sink of ${domain}`);
    const said = openSync(complaints, 'a');
    const { child, ports } = await startOnPorts(1, complaints, async ([port]) => {
      const [command, args] = commandOf(domain, port!);
      return start(command, args, { stdio: ['ignore', counts, said] });
    });
    return new Sink(ports[0]!, counts, () => end(child));
  }

  /** Messages that have come to their dot. Read synchronously: asked often, it must cost next to nothing. */
  count(): number {
    return this.#last(/mesg=(\d+)\D/g);
  }

  /** That have come in; the fast sink's alone. */
  octets(): number {
    return this.#last(/octets=(\d+)\D/g);
  }

  #last(pattern: RegExp): number {
    const { size } = fstatSync(this.#counts);
    const tail = Buffer.alloc(TAIL_OCTETS);
    const octets = readSync(this.#counts, tail, 0, TAIL_OCTETS, Math.max(0, size - TAIL_OCTETS));
    return Number([...tail.toString('latin1', 0, octets).matchAll(pattern)].at(-1)?.[1] ?? 0);
  }
}

function commandOf(domain: Domain, port: number): readonly [string, readonly string[]] {
  if (domain === 'fast.example') {
    return [process.execPath, [fileURLToPath(new URL('./fast-sink.js', import.meta.url)), `${port}`]];
  }
  // It insists on giving up root.
  const user = process.getuid?.() === 0 ? ['-u', 'postfix'] : [];
  return ['smtp-sink', ['-c', ...user, '-m', `${SESSIONS}`, `127.0.0.1:${port}`, `${BACKLOG}`]];
}
