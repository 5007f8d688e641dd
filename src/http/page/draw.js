// Puts the picture on the screen. What was there before is moved and relabelled, not made anew, so that nothing flickers
// and no animation starts over. All text goes in as text.
import { PHASE_NAMES, PHASES } from './arrange.js';
import { shortened } from './format.js';

/** @import {Box, Health, Link, Picture} from './picture.d.ts' */

const SVG = 'http://www.w3.org/2000/svg';
/** A circle, a triangle, a cross: told apart without their colour. */
const GLYPHS = {
  good: 'M6 2a4 4 0 1 1 0 8a4 4 0 1 1 0-8z',
  unused: 'M6 2a4 4 0 1 1 0 8a4 4 0 1 1 0-8z',
  troubled: 'M6 1.8L10.4 10H1.6z',
  failing: 'M2 2l8 8M10 2l-8 8',
};

/**
 * @param {string} name
 * @param {Readonly<Record<string, string | number>>} [attributes]
 */
function element(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

/** @param {Element} at @param {string} name @param {string | number} value */
function set(at, name, value) {
  if (at.getAttribute(name) !== String(value)) at.setAttribute(name, String(value));
}

/** @param {Element} at @param {string} text */
function write(at, text) {
  if (at.textContent !== text) at.textContent = text;
}

/** @type {WeakMap<Element, string>} */
const fitted = new WeakMap();

/**
 * As much of the text as there is room for. Measured, since nobody knows which font it is.
 * @param {SVGTextElement} at
 * @param {string} text
 * @param {number} room
 */
function place(at, text, room) {
  const wanted = `${Math.round(room)} ${text}`;
  if (fitted.get(at) === wanted) return;
  fitted.set(at, wanted);
  at.textContent = text;
  const length = at.getComputedTextLength();
  if (length <= room) return;
  let most = Math.floor(([...text].length * room) / length);
  do at.textContent = shortened(text, most--);
  while (most > 0 && at.getComputedTextLength() > room);
}

/** @param {Health} health */
export function glyph(health) {
  const box = element('svg', { viewBox: '0 0 12 12', class: 'glyph-box', 'aria-hidden': 'true' });
  box.append(element('path', { d: GLYPHS[health], class: `glyph h-${health}` }));
  return box;
}

/** @param {Element} legend */
export function drawLegend(legend) {
  const tones = [
    ...PHASES.map((phase) => [phase, PHASE_NAMES[phase]]),
    ['refused', 'refused'],
    ['failed', 'failed'],
  ];
  for (const [tone, name] of tones) {
    const item = document.createElement('li');
    const swatch = element('svg', { viewBox: '0 0 18 8', class: `p-${tone}`, 'aria-hidden': 'true' });
    swatch.append(element('rect', { class: 'swatch', y: 2, width: 18, height: 4, rx: 2 }));
    item.append(swatch, name ?? '');
    legend.append(item);
  }
}

export class Drawing {
  #svg;
  #links = element('g');
  #boxes = element('g');
  #headings = element('g');
  /** @type {Map<string, Element>} */
  #known = new Map();

  /** @param {Element} svg */
  constructor(svg) {
    this.#svg = svg;
    svg.append(this.#headings, this.#links, this.#boxes);
  }

  /** @param {Picture} picture */
  show({ width, height, boxes, links, headings, summary }) {
    set(this.#svg, 'viewBox', `0 0 ${width} ${height}`);
    set(this.#svg, 'height', height);
    const title = this.#svg.querySelector('title');
    if (title !== null) write(title, summary);
    const used = new Set();
    for (const [text, x] of headings) {
      const at = this.#take(used, `heading ${x} ${text}`, this.#headings, () =>
        element('text', { class: 'heading', y: 12 }),
      );
      set(at, 'x', x);
      write(at, text);
    }
    for (const link of links) drawLink(this.#take(used, link.key, this.#links, newLink), link);
    for (const box of boxes)
      drawBox(
        this.#take(used, box.key, this.#boxes, () => newBox(box)),
        box,
      );
    for (const [key, at] of this.#known) {
      if (used.has(key)) continue;
      at.remove();
      this.#known.delete(key);
    }
  }

  /**
   * @param {Set<string>} used
   * @param {string} key
   * @param {Element} parent
   * @param {() => Element} make
   */
  #take(used, key, parent, make) {
    // Two next hops can bear one name.
    let own = key;
    while (used.has(own)) own += "'";
    used.add(own);
    let found = this.#known.get(own);
    if (found === undefined) {
      found = make();
      this.#known.set(own, found);
      parent.append(found);
    }
    return found;
  }
}

function newLink() {
  const group = element('g');
  group.append(element('path'), element('path', { class: 'stream' }));
  return group;
}

/** @param {Element} group @param {Link} link */
function drawLink(group, { from: [x1, y1], to: [x2, y2], width, tone, kind }) {
  const bend = (x2 - x1) * 0.5;
  const r = (/** @type {number} */ n) => Math.round(n * 10) / 10;
  const line = `M${r(x1)} ${r(y1)}C${r(x1 + bend)} ${r(y1)} ${r(x2 - bend)} ${r(y2)} ${r(x2)} ${r(y2)}`;
  const [band] = group.children;
  for (const path of group.children) set(path, 'd', line);
  if (band !== undefined) set(band, 'stroke-width', r(width));
  set(group, 'class', `link is-${kind} p-${tone}`);
}

/** @param {Box} box */
function newBox({ health, tone, isId, isLarge }) {
  const group = element('g');
  group.append(element('rect', { class: 'box', rx: 5 }));
  if (tone !== undefined) group.append(element('rect', { class: 'edge-mark', width: 4, rx: 2 }));
  if (health !== undefined) group.append(element('path', { transform: 'translate(9 6)' }));
  group.append(element('title'));
  group.append(element('text', { class: isId ? 'id' : isLarge ? 'large' : '', y: isLarge ? 31 : 16 }));
  group.append(element('text', { class: 'small', y: isLarge ? 50 : 31 }));
  return group;
}

/** @param {Element} group @param {Box} box */
function drawBox(group, { x, y, width, height, title, note, tone, health }) {
  set(group, 'transform', `translate(${Math.round(x)} ${Math.round(y * 10) / 10})`);
  const [rect, mark] = group.querySelectorAll('rect');
  const [first, second] = group.querySelectorAll('text');
  if (rect === undefined || first === undefined || second === undefined) return;
  set(rect, 'width', width);
  set(rect, 'height', height);
  if (mark !== undefined) set(mark, 'height', height);
  set(group, 'class', tone === undefined ? '' : `p-${tone}`);
  const indent = health === undefined ? 11 : 26;
  const path = group.querySelector('path');
  if (path !== null && health !== undefined) {
    set(path, 'd', GLYPHS[health]);
    set(path, 'class', `glyph h-${health}`);
  }
  set(first, 'x', indent);
  set(second, 'x', 11);
  place(first, title, width - indent - 6);
  place(second, note, width - 17);
  const tip = group.querySelector('title');
  if (tip !== null) write(tip, note === '' ? title : `${title}: ${note}`);
}
