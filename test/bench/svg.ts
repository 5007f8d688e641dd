// Pure: bars and lines as SVG, for light and dark. Lines differ in dash as well as in colour.

export type Bars = Readonly<{
  title: string;
  /** Of the values. */
  unit: string;
  bars: readonly Readonly<{ label: string; value: number; isOurs: boolean }>[];
  /** A value that is marked through all bars. */
  mark: number;
}>;

type Series = Readonly<{ label: string; points: readonly (readonly [number, number])[] }>;

/** x is logarithmic. */
export type Lines = Readonly<{ title: string; x: string; y: string; series: readonly Series[] }>;

type Panel = Readonly<{ height: number; svg: string }>;

const WIDTH = 860;
const LEFT = 250;
const RIGHT = 790;
const ROW = 24;
const PLOT = { left: 80, right: 600, top: 60, bottom: 280, height: 346 };
const TICKS = 5;
const SERIES = 5;

const STYLE = `
svg { --paper: #fff; --ink: #1f2328; --faint: #8c959f; --grid: #d8dee4;
  --s0: #0969da; --s1: #bc4c00; --s2: #1a7f37; --s3: #8250df; --s4: #59636e;
  font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #e6edf3; --faint: #848d97; --grid: #30363d;
  --s0: #58a6ff; --s1: #f0883e; --s2: #56d364; --s3: #d2a8ff; --s4: #9198a1; } }
text { fill: var(--ink) } .title { font-weight: 600; font-size: 15px } .end { text-anchor: end }
.middle { text-anchor: middle } .paper { fill: var(--paper) } .grid { stroke: var(--grid) }
.mark { stroke: var(--ink); stroke-dasharray: 3 3 } .bar { fill: var(--faint) } .bar.ours { fill: var(--s0) }
polyline { fill: none; stroke-width: 2 } circle { fill: var(--paper); stroke-width: 2 }
${Array.from({ length: SERIES }, (_, at) => `.s${at} { stroke: var(--s${at}) }`).join(' ')}
${[1, 2, 3, 4].map((at) => `polyline.s${at} { stroke-dasharray: ${at * 3} 3 }`).join(' ')}`;

export function bars({ title, unit, bars: all, mark }: Bars): Panel {
  const top = 34;
  const most = Math.max(mark, ...all.map(({ value }) => value));
  const x = (value: number) => LEFT + ((RIGHT - LEFT) * value) / most;
  const bottom = top + all.length * ROW;
  const rows = all.map(({ label, value, isOurs }, at) => {
    const y = top + at * ROW;
    return [
      text(LEFT - 8, y + 16, label, 'end'),
      `<rect class="bar${isOurs ? ' ours' : ''}" x="${LEFT}" y="${y + 4}" width="${round(x(value) - LEFT)}" height="${ROW - 8}"/>`,
      text(x(value) + 6, y + 16, value.toFixed(2)),
    ].join('');
  });
  const marked = line(x(mark), top, x(mark), bottom, 'mark') + text(x(mark), bottom + 16, unit, 'middle');
  return { height: bottom + 34, svg: text(20, 20, title, 'title') + rows.join('') + marked };
}

export function lines({ title, x: xTitle, y: yTitle, series }: Lines): Panel {
  const { left, right, top, bottom, height } = PLOT;
  const xs = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].toSorted((a, b) => a - b);
  const highest = Math.max(...series.flatMap(({ points }) => points.map(([, y]) => y)));
  const step = niceCeiling(highest / TICKS);
  const steps = Math.ceil(highest / step) || 1;
  const [first, last] = [Math.log(xs[0]!), Math.log(xs.at(-1)!)];
  const x = (value: number) => left + ((right - left) * (Math.log(value) - first)) / (last - first || 1);
  const y = (value: number) => bottom - ((bottom - top) * value) / (step * steps);
  const grid = Array.from({ length: steps + 1 }, (_, at) => {
    const value = step * at;
    return (
      line(left, y(value), right, y(value), 'grid') + text(left - 8, y(value) + 4, `${round(value)}`, 'end')
    );
  });
  const ticks = xs.map((value) => text(x(value), bottom + 18, `${value}`, 'middle'));
  const drawn = series.map(({ label, points }, at) => {
    const dots = points.map(([px, py]) => [round(x(px)), round(y(py))] as const);
    const className = `s${at % SERIES}`;
    const key = top + 8 + at * 22;
    return [
      `<polyline class="${className}" points="${dots.join(' ')}"/>`,
      ...dots.map(([cx, cy]) => `<circle class="${className}" cx="${cx}" cy="${cy}" r="2.5"/>`),
      `<polyline class="${className}" points="${right + 20},${key} ${right + 50},${key}"/>`,
      text(right + 58, key + 4, label),
    ].join('');
  });
  const names = text(20, 20, title, 'title') + text(20, top - 18, yTitle);
  const below = text((left + right) / 2, bottom + 40, xTitle, 'middle');
  return { height, svg: [names, ...grid, ...ticks, below, ...drawn].join('') };
}

/** One below the other. */
export function svgOf(panels: readonly Panel[]): string {
  let top = 10;
  const placed = panels.map(({ height, svg }) => {
    const group = `<g transform="translate(0 ${top})">${svg}</g>`;
    top += height;
    return group;
  });
  const size = `width="${WIDTH}" height="${top}" viewBox="0 0 ${WIDTH} ${top}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size}><style>${STYLE}</style><rect class="paper" width="100%" height="100%"/>${placed.join('\n')}</svg>\n`;
}

function text(x: number, y: number, content: string, className = ''): string {
  const escaped = content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
  return `<text x="${round(x)}" y="${round(y)}" class="${className}">${escaped}</text>`;
}

function line(x1: number, y1: number, x2: number, y2: number, className: string): string {
  const at = [x1, y1, x2, y2].map(round);
  return `<line x1="${at[0]}" y1="${at[1]}" x2="${at[2]}" y2="${at[3]}" class="${className}"/>`;
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

/** 1, 2 or 5 times a power of ten. */
function niceCeiling(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= value)!;
}
