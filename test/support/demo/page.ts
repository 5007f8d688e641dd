// How the demo looks: prose, the time line of a recording, the results of checks, a table. Plain text without a
// terminal; one colour for each peer on one. At most WIDTH columns.
import type { Moment, Recording, Side } from './dialogue.ts';

const WIDTH = 108;
const TIME_COLUMNS = 6;
const LANES: ReadonlyArray<Readonly<{ side: Side; title: string; columns: number; colour: Colour }>> = [
  { side: 'upstream', title: 'client', columns: 31, colour: 'cyan' },
  { side: 'alpha', title: 'mx.alpha.example', columns: 31, colour: 'yellow' },
  { side: 'beta', title: 'mx.beta.example', columns: 31, colour: 'magenta' },
];

/** SGR parameters that begin and end it. */
const STYLES = {
  bold: [1, 22],
  dim: [2, 22],
  red: [31, 39],
  green: [32, 39],
  yellow: [33, 39],
  magenta: [35, 39],
  cyan: [36, 39],
} as const;
type Style = keyof typeof STYLES;
type Colour = Exclude<Style, 'bold' | 'dim'>;

/** https://no-color.org, and the reverse of it, which wins as it does in Node itself. */
function wantsColour({ FORCE_COLOR, NO_COLOR, TERM }: NodeJS.ProcessEnv, isTerminal: boolean): boolean {
  if (FORCE_COLOR !== undefined) return !['0', 'false'].includes(FORCE_COLOR);
  if (NO_COLOR !== undefined && NO_COLOR !== '') return false;
  return isTerminal && TERM !== 'dumb';
}

const isColoured = wantsColour(process.env, process.stdout.isTTY === true);

export function paint(text: string, ...styles: readonly Style[]): string {
  if (!isColoured) return text;
  return styles.reduce((inner, style) => `\x1b[${STYLES[style][0]}m${inner}\x1b[${STYLES[style][1]}m`, text);
}

export function print(...lines: readonly string[]): void {
  for (const line of lines) console.log(line.trimEnd());
}

export function title(text: string, aside: string): void {
  const rest = '─'.repeat(Math.max(0, WIDTH - text.length - aside.length - 4));
  print('', ` ${paint(text, 'bold')} ${paint(`${rest} ${aside}`, 'dim')}`, '');
}

export function prose(text: string): void {
  print(...wrap(text, WIDTH - 2).map((line) => ` ${line}`), '');
}

/** Whether what was claimed holds, and by which figures. */
export type Finding = Readonly<{ holds: boolean; claim: string; figures: string }>;

export function findings(all: readonly Finding[]): void {
  print('');
  for (const { holds, claim, figures } of all) {
    const mark = holds ? paint('✓', 'green') : paint('✗', 'red', 'bold');
    print(` ${mark} ${claim}`, ...wrap(figures, WIDTH - 3).map((line) => `   ${paint(line, 'dim')}`));
  }
}

/**
 * One row for each moment; what happened in one millisecond, each a lane further to the right, shares one. So read
 * line by line, left to right, it is the order of events.
 */
export function timeline({ moments }: Recording): void {
  const heads = LANES.map((lane) => paint(lane.title.padEnd(lane.columns), lane.colour, 'bold'));
  print(row(paint('ms'.padStart(TIME_COLUMNS), 'dim'), heads));
  print(paint(rule(), 'dim'));
  for (const each of rowsOf(moments)) print(...render(each));
}

type Row = { at: number; lane: number; cells: Map<Side, Moment> };

function rowsOf(moments: readonly Moment[]): readonly Row[] {
  const rows: Row[] = [];
  for (const moment of moments) {
    const at = Math.round(moment.at);
    const lane = LANES.findIndex(({ side }) => side === moment.side);
    const last = rows.at(-1);
    if (last !== undefined && last.at === at && last.lane < lane) {
      last.lane = lane;
      last.cells.set(moment.side, moment);
    } else {
      rows.push({ at, lane, cells: new Map([[moment.side, moment]]) });
    }
  }
  return rows;
}

/** A moment's text may take several lines of its lane. */
function render({ at, cells }: Row): readonly string[] {
  const lanes = LANES.map(({ side, columns, colour }) => {
    const moment = cells.get(side);
    if (moment === undefined) return [];
    return wrap(textOf(moment), columns - 2).map((line, index) => {
      const arrow = index === 0 ? paint(ARROWS[moment.kind], 'dim') : ' ';
      return `${arrow} ${paint(line, ...stylesOf(moment, colour))}${' '.repeat(columns - 2 - line.length)}`;
    });
  });
  const height = Math.max(...lanes.map((lane) => lane.length));
  return Array.from({ length: height }, (_, index) => {
    const time = paint((index === 0 ? `${at}` : '').padStart(TIME_COLUMNS), 'dim');
    return row(
      time,
      lanes.map((lane, nth) => lane[index] ?? ' '.repeat(LANES[nth]!.columns)),
    );
  });
}

const ARROWS: Readonly<Record<Moment['kind'], string>> = {
  command: '→',
  body: '→',
  dot: '→',
  reply: '←',
  closed: '×',
};

function textOf(moment: Moment): string {
  if (moment.kind === 'body') return `${moment.octets} octets of body`;
  return moment.kind === 'dot' ? '.  (final dot)' : moment.text;
}

/** What decides stands out: the dots, the answers to them and to DATA, and refusals. */
function stylesOf({ kind, to, text }: Moment, colour: Colour): readonly Style[] {
  if (kind === 'closed' || (kind === 'reply' && /^[45]/.test(text))) return [colour, 'bold'];
  return kind === 'dot' || to === '.' || to === 'DATA' ? [colour, 'bold'] : [colour];
}

function row(time: string, cells: readonly string[]): string {
  return `${time} ${cells.map((cell) => `${paint('│', 'dim')} ${cell}`).join(' ')}`;
}

function rule(): string {
  return `${'─'.repeat(TIME_COLUMNS + 1)}${LANES.map(({ columns }) => `┼${'─'.repeat(columns + 2)}`).join('')}`;
}

/** The first and the last column are aligned left, those between right. */
export function table(heads: readonly string[], rows: readonly (readonly string[])[]): void {
  const widths = heads.map((head, nth) => Math.max(head.length, ...rows.map((each) => each[nth]!.length)));
  const line = (cells: readonly string[]) =>
    cells.map((cell, nth) =>
      nth === 0 || nth === cells.length - 1 ? cell.padEnd(widths[nth]!) : cell.padStart(widths[nth]!),
    );
  print(` ${paint(line(heads).join('   '), 'dim')}`);
  print(` ${paint('─'.repeat(widths.reduce((sum, each) => sum + each + 3, -3)), 'dim')}`);
  for (const each of rows) {
    const [name, ...rest] = line(each);
    const last = rest.pop()!;
    print(` ${[name, ...rest].join('   ')}   ${paint(last, 'dim')}`);
  }
}

function wrap(text: string, columns: number): readonly string[] {
  const lines: string[] = [''];
  // A number stays with its unit.
  for (const word of text.split(/ (?!ms\b)/)) {
    const line = lines.at(-1)!;
    if (line !== '' && line.length + 1 + word.length > columns) lines.push(word);
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
  }
  return lines;
}
