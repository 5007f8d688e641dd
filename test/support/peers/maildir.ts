// What a server has put into a maildir. Each file is read once, however often is asked.
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { until } from '../proxy.ts';

/** Where a text is looked for that tells a message from others. */
const HEAD_OCTETS = 16 * 1024;

export class Maildir {
  readonly #directory: string;
  readonly #read = new Map<string, Buffer>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** All messages, with LF as line end, as the servers store them. */
  async messages(): Promise<readonly Buffer[]> {
    const files = await readdir(join(this.#directory, 'new')).catch(() => []);
    for (const file of files) {
      if (!this.#read.has(file)) this.#read.set(file, await readFile(join(this.#directory, 'new', file)));
    }
    return [...this.#read.values()];
  }

  /** Those that hold the text near their beginning, of which there is to be one at least. */
  async holding(text: string, timeoutMs = 30_000): Promise<readonly Buffer[]> {
    let found: readonly Buffer[] = [];
    await until(async () => {
      const all = await this.messages();
      found = all.filter((message) => message.subarray(0, HEAD_OCTETS).includes(text));
      return found.length > 0;
    }, timeoutMs).catch(() => {
      throw new Error(`no message with ${text} within ${timeoutMs} ms`);
    });
    return found;
  }
}
