// Apart from octets.test.ts, so that it can make what that one needs.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import wabt from 'wabt';

const SOURCE = join(import.meta.dirname, '../../src/smtp');

it('runs octets.wat, and nothing else', async () => {
  const name = 'octets.wat';
  const { parseWat } = await wabt();
  const { buffer } = parseWat(name, await readFile(join(SOURCE, name)), { simd: true }).toBinary({});
  const code = `export const CODE =\n  '${Buffer.from(buffer).toString('base64')}';\n`;
  await expect(`// octets.wat, assembled.\n${code}`).toMatchFileSnapshot(join(SOURCE, 'octets-code.ts'));
});
