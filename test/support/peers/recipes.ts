// The README's recipes: each fenced block that follows `<!-- recipe: NAME -->` is what the tests run, with the ports of
// the moment in place of those in print, so that the README can't tell what was never tried.
import { readFileSync } from 'node:fs';

const README = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');

/** The block's text; `ports` maps each port in print to the one to use, and all of them must be there. */
export function recipe(name: string, ports: Readonly<Record<number, number>>): string {
  const block = new RegExp(`<!-- recipe: ${name} -->\\n+\`\`\`\\w*\\n(.*?)\\n\`\`\``, 's').exec(README);
  let text = block?.[1];
  if (text === undefined) throw new Error(`README.md has no recipe ${name}`);
  for (const printed of Object.keys(ports)) {
    if (!new RegExp(`(:|port )${printed}\\b`).test(text))
      throw new Error(`recipe ${name} names no port ${printed}`);
  }
  text = text.replaceAll(/(?<=:|port )\d{2,5}\b/g, (port) => `${ports[Number(port)] ?? port}`);
  return `${text}\n`;
}
