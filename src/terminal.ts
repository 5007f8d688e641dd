// Output for people: colour where it is wanted, and columns that line up.
// Pure: whether there is a terminal is the caller's to say.

export type Colour = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan';

/** Wraps text in a colour, or leaves it as it is. */
export type Paint = (colour: Colour, text: string) => string;

const CODES: Readonly<Record<Colour, readonly [on: number, off: number]>> = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  cyan: [36, 39],
};

const PLAIN: Paint = (_, text) => text;

const ANSI: Paint = (colour, text) => {
  const [on, off] = CODES[colour];
  return text === '' ? '' : `\x1b[${on}m${text}\x1b[${off}m`;
};

/** Colour for a terminal that hasn't been told otherwise (https://no-color.org). */
export function paintFor(
  stream: { isTTY?: boolean },
  env: Readonly<Record<string, string | undefined>>,
): Paint {
  return stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb' ? ANSI : PLAIN;
}

/** Of a reply: green for yes, yellow for not now, red for no. */
export function colourOfCode(code: number): Colour {
  if (code < 400) return 'green';
  return code < 500 ? 'yellow' : 'red';
}

/** Rows with their cells one below the other; the last cell of a row is as long as it is. */
export function columns(rows: readonly (readonly string[])[], gap = '  '): readonly string[] {
  const widths: number[] = [];
  for (const row of rows)
    for (const [at, cell] of row.slice(0, -1).entries())
      widths[at] = Math.max(widths[at] ?? 0, visibleLength(cell));
  return rows.map((row) =>
    row
      .map((cell, at) =>
        at === row.length - 1 ? cell : cell + ' '.repeat(widths[at]! - visibleLength(cell)),
      )
      .join(gap)
      .trimEnd(),
  );
}

function visibleLength(text: string): number {
  return text.replace(/\x1b\[\d+m/g, '').length;
}
