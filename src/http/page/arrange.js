// Where everything in the picture goes: status and rates in, boxes and links out. Pure, so that none, a few or a
// thousand transactions can be tried without a browser. Up to twelve transactions are shown one by one; more of them by
// phase. Next hops beyond twelve share one box.
import { age, bytes, count, plural, rate } from './format.js';

/** @import {HopStatus, Status, TransactionStatus} from './status.d.ts' */
/** @import {Box, Group, Health, Link, Phase, Picture, Tie, Tone} from './picture.d.ts' */
/** @import {Rates} from './rates.js' */

/** @type {readonly Phase[]} */
export const PHASES = ['connect', 'envelope', 'data', 'body', 'dot'];
export const PHASE_NAMES = {
  connect: 'connecting',
  envelope: 'MAIL, RCPT',
  data: 'DATA',
  body: 'body',
  dot: 'after the dot',
};

const MOST = 12;
const BOX = 38;
const PITCH = 46;
const TOP = 24;
const FAILING_AFTER = 3;

/**
 * How a next hop does, from what came of its last messages.
 * @param {HopStatus} hop
 * @returns {Health}
 */
export function healthOf({ consecutiveFailures, fiveMinutes, lastOkMs, lastFailure, sessions }) {
  const { delivered, refused, failed } = fiveMinutes;
  if (consecutiveFailures >= FAILING_AFTER) return 'failing';
  if (consecutiveFailures > 0 && delivered + refused === 0) return 'failing';
  if (consecutiveFailures > 0 || failed > 0 || refused > delivered) return 'troubled';
  return lastOkMs === null && lastFailure === null && sessions.active === 0 ? 'unused' : 'good';
}

/** @param {string} phase @returns {Phase} */
export function phaseOfLeg(phase) {
  if (phase === 'starting') return 'data';
  if (phase === 'delivering') return 'body';
  if (phase === 'done' || phase === 'withheld') return 'dot';
  return PHASES.find((each) => each === phase) ?? 'envelope';
}

/**
 * The transaction's own: that of the leg that has furthest to go.
 * @param {TransactionStatus} transaction
 */
export function phaseOf({ state, legs }) {
  const phases = state === 'envelope' || state === 'body' ? legs.map(({ phase }) => phaseOfLeg(phase)) : [];
  if (state === 'body' && phases.some((phase) => phase === 'body')) return 'body';
  return PHASES.find((phase) => phases.includes(phase)) ?? phaseOfLeg(state);
}

/**
 * @param {Status} status
 * @param {Rates} rates
 * @param {number} width
 * @returns {Picture}
 */
export function arrange(status, rates, width) {
  const columns = columnsOf(width);
  const shown = shownHops(status.nextHops);
  const more = status.nextHops.length - shown.length;
  const groups = groupsOf(status);
  const rightCount = Math.max(1, shown.length + (more > 0 ? 1 : 0));
  const rows = Math.max(groups.length + 1, rightCount, 3);
  const height = TOP + rows * PITCH;
  const yOf = (/** @type {number} */ at, /** @type {number} */ of) =>
    TOP + ((rows - of) * PITCH) / 2 + at * PITCH + (PITCH - BOX) / 2;

  const upstream = upstreamBox(status, columns, height);
  const passed = passedBox(status, rates, columns, yOf(0, groups.length + 1), groups.length === 0);
  const middle = groups.map((group, at) =>
    groupBox(group, columns, yOf(at + 1, groups.length + 1), status.transactionsActive > MOST),
  );
  const right = shown.map((hop, at) => hopBox(hop, rates, columns, yOf(at, rightCount)));
  if (more > 0) right.push(moreBox(more, columns, yOf(shown.length, rightCount)));
  const boxOf = new Map(shown.map(({ name }, at) => [name, /** @type {Box} */ (right[at])]));
  const others = more > 0 ? right.at(-1) : undefined;

  const ties = [
    ...passedTies(status, rates, upstream, passed, (name) => boxOf.get(name) ?? others),
    ...groups.flatMap((group, at) =>
      groupTies(group, upstream, /** @type {Box} */ (middle[at]), (name) => boxOf.get(name) ?? others),
    ),
  ];
  return {
    width,
    height,
    boxes: [upstream, passed, ...middle, ...right],
    links: linksOf(ties, columns.narrow ? 7 : 12),
    headings: [
      [columns.narrow ? 'up' : 'upstream', columns.left],
      [columns.narrow ? 'live' : 'live transactions', columns.middle],
      ['next hops', columns.right],
    ],
    summary: summaryOf(status),
  };
}

/** @param {number} width */
function columnsOf(width) {
  const narrow = width < 560;
  const clamp = (/** @type {number} */ low, /** @type {number} */ high, /** @type {number} */ value) =>
    Math.round(Math.min(high, Math.max(low, value)));
  const leftWidth = clamp(64, 124, width * 0.11);
  const middleWidth = clamp(100, 250, width * 0.25);
  const rightWidth = clamp(112, 290, width * 0.28);
  const gap = (width - leftWidth - middleWidth - rightWidth - 2) / 2;
  const left = 1;
  const middle = Math.round(left + leftWidth + gap);
  return { narrow, left, leftWidth, middle, middleWidth, right: width - 1 - rightWidth, rightWidth };
}
/** @typedef {ReturnType<typeof columnsOf>} Columns */

/**
 * In the order the proxy gives, so that none jumps about; which ones, by what there is to see of them.
 * @param {readonly HopStatus[]} hops
 */
function shownHops(hops) {
  if (hops.length <= MOST) return hops;
  const interest = (/** @type {HopStatus} */ { sessions, fiveMinutes: { delivered, refused, failed } }) =>
    sessions.active * 1000 + failed * 100 + delivered + refused;
  const chosen = new Set([...hops].sort((a, b) => interest(b) - interest(a)).slice(0, MOST));
  return hops.filter((hop) => chosen.has(hop));
}

/**
 * @param {Status} status
 * @returns {Group[]}
 */
function groupsOf({ transactions, transactionsActive }) {
  if (transactionsActive <= MOST)
    return transactions.map((each) => ({ key: each.id, phase: phaseOf(each), transactions: [each] }));
  return PHASES.map((phase) => ({
    key: phase,
    phase,
    transactions: transactions.filter((each) => phaseOf(each) === phase),
  }));
}

/**
 * @param {Status} status
 * @param {Columns} columns
 * @param {number} height
 * @returns {Box}
 */
function upstreamBox({ connections, transactionsActive }, { left, leftWidth, narrow }, height) {
  const boxHeight = 62;
  const idle = Math.max(0, connections - transactionsActive);
  return {
    key: 'upstream',
    x: left,
    y: TOP + (height - TOP - boxHeight) / 2,
    width: leftWidth,
    height: boxHeight,
    title: count(connections),
    note: narrow ? `${count(idle)} idle` : `sessions, ${count(idle)} idle`,
    isLarge: true,
  };
}

/**
 * What has gone through since the last look: most messages come and go in between.
 * @param {Status} status
 * @param {Rates} rates
 * @param {Columns} columns
 * @param {number} y
 * @param {boolean} isAlone
 * @returns {Box}
 */
function passedBox({ totals }, rates, { middle, middleWidth, narrow }, y, isAlone) {
  const perSecond = rates.of('messages');
  const taken = ['delivered', 'spooled'].reduce((sum, result) => sum + rates.of(`result ${result}`), 0);
  const ever = Object.values(totals.transactions).reduce((sum, n) => sum + n, 0);
  const rest = perSecond - taken;
  const busy = narrow
    ? rest > 0
      ? `ended, ${rate(rest)} not`
      : 'ended'
    : `${rate(taken)}/s taken, ${rate(rest)}/s not`;
  const none = ever === 0 ? 'no mail yet' : 'no mail now';
  return {
    key: 'passed',
    x: middle,
    y,
    width: middleWidth,
    height: BOX,
    title: narrow ? `${rate(perSecond)}/s` : `${rate(perSecond)} ended a second`,
    note: perSecond > 0 ? busy : isAlone ? none : narrow ? 'ended' : 'none has ended just now',
    tone: perSecond > 0 ? (taken > 0 ? 'body' : 'refused') : 'done',
  };
}

/**
 * @param {Group} group
 * @param {Columns} columns
 * @param {number} y
 * @param {boolean} isMany
 * @returns {Box}
 */
function groupBox({ key, phase, transactions }, { middle: x, middleWidth: width, narrow }, y, isMany) {
  const at = { key: `row ${key}`, x, y, width, height: BOX, tone: phase };
  const [first] = transactions;
  if (isMany || first === undefined) {
    const oldest = Math.max(0, ...transactions.map(({ ms }) => ms));
    if (narrow) return { ...at, title: count(transactions.length), note: PHASE_NAMES[phase] };
    const note = first === undefined ? '' : `oldest ${age(oldest)}`;
    return { ...at, title: `${count(transactions.length)} ${PHASE_NAMES[phase]}`, note };
  }
  const size = first.bytes > 0 ? ` · ${bytes(first.bytes)}` : '';
  // All ids of a process begin alike.
  const id = narrow ? `…${first.id.slice(first.id.indexOf('.') + 1)}` : first.id;
  const who = !narrow && first.client !== undefined ? ` · ${first.client}` : '';
  const note = narrow ? PHASE_NAMES[phase] : `${PHASE_NAMES[phase]} · ${age(first.ms)}${size}${who}`;
  return { ...at, title: id, note, isId: true };
}

/**
 * @param {HopStatus} hop
 * @param {Rates} rates
 * @param {Columns} columns
 * @param {number} y
 * @returns {Box}
 */
function hopBox(hop, rates, { right: x, rightWidth: width, narrow }, y) {
  const health = healthOf(hop);
  const at = { key: `hop ${hop.name}`, x, y, width, height: BOX, title: hop.name, health };
  if (health === 'failing') return { ...at, note: narrow ? (hop.lastFailure?.cause ?? '') : failureOf(hop) };
  if (health === 'unused') return { ...at, note: 'not used yet' };
  const perSecond = rate(rates.of(`delivered at ${hop.name}`));
  const inUse = `${count(hop.sessions.active)} in use`;
  if (narrow) return { ...at, note: `${perSecond}/s, ${inUse}` };
  const trouble = hop.fiveMinutes.failed + hop.fiveMinutes.refused;
  const rest =
    trouble > 0
      ? `${count(hop.fiveMinutes.refused)} refused, ${count(hop.fiveMinutes.failed)} failed`
      : `${count(hop.fiveMinutes.delivered)} in 5 min`;
  return { ...at, note: `${perSecond}/s · ${inUse} · ${rest}` };
}

/** @param {HopStatus} hop */
export function failureOf({ lastFailure }) {
  if (lastFailure === null) return 'none';
  const { phase, cause, ageMs } = lastFailure;
  return `${phase === 'connect' ? 'connecting' : `in ${phase}`}: ${cause}, ${age(ageMs)} ago`;
}

/**
 * @param {number} n
 * @param {Columns} columns
 * @param {number} y
 * @returns {Box}
 */
function moreBox(n, { right: x, rightWidth: width, narrow }, y) {
  const note = narrow ? 'see the table' : 'in the table below';
  return { key: 'more', x, y, width, height: BOX, title: `${count(n)} more`, note };
}

/**
 * @param {Status} status
 * @param {Rates} rates
 * @param {Box} upstream
 * @param {Box} passed
 * @param {(name: string) => Box | undefined} boxOf
 */
function passedTies({ nextHops }, rates, upstream, passed, boxOf) {
  const ofRate = (/** @type {number} */ perSecond) => (perSecond > 0 ? Math.log2(1 + perSecond) : 0);
  const all = rates.of('messages');
  /** @type {Tie[]} */
  const ties = [
    {
      from: upstream,
      to: passed,
      weight: ofRate(all),
      tone: passed.tone ?? 'done',
      isMoving: all > 0,
      isGhost: all === 0,
    },
  ];
  for (const { name } of nextHops) {
    const to = boxOf(name);
    if (to === undefined) continue;
    const [delivered, refused, failed] = ['delivered', 'refused', 'failed'].map((kind) =>
      rates.of(`${kind} at ${name}`),
    );
    const sum = (delivered ?? 0) + (refused ?? 0) + (failed ?? 0);
    /** @type {Tone} */
    let tone = 'body';
    if ((refused ?? 0) > (delivered ?? 0)) tone = 'refused';
    if ((failed ?? 0) > (delivered ?? 0) && (failed ?? 0) >= (refused ?? 0)) tone = 'failed';
    ties.push({ from: passed, to, weight: ofRate(sum), tone, isMoving: sum > 0, isGhost: sum === 0 });
  }
  return ties;
}

/**
 * @param {Group} group
 * @param {Box} upstream
 * @param {Box} box
 * @param {(name: string) => Box | undefined} boxOf
 */
function groupTies({ phase, transactions }, upstream, box, boxOf) {
  if (transactions.length === 0) return [];
  const weightOf = (/** @type {number} */ n) => (n === 1 ? 1 : 1 + Math.log2(n));
  const isMoving = phase === 'body';
  /** @type {Tie[]} */
  const ties = [
    {
      from: upstream,
      to: box,
      weight: weightOf(transactions.length),
      tone: phase,
      isMoving,
      isGhost: false,
    },
  ];
  /** @type {Map<string, { to: Box, tone: Tone, n: number }>} */
  const legs = new Map();
  for (const { legs: each } of transactions) {
    for (const { nextHop, phase: legPhase } of each) {
      const to = boxOf(nextHop);
      if (to === undefined) continue;
      const tone = phaseOfLeg(legPhase);
      const leg = legs.get(`${to.key} ${tone}`) ?? { to, tone, n: 0 };
      leg.n++;
      legs.set(`${to.key} ${tone}`, leg);
    }
  }
  for (const { to, tone, n } of legs.values())
    ties.push({ from: box, to, weight: weightOf(n), tone, isMoving: tone === 'body', isGhost: false });
  return ties;
}

/**
 * Links leave and reach each box side by side, in the order of their other ends, so that few cross.
 * @param {readonly Tie[]} all
 * @param {number} thickest
 * @returns {Link[]}
 */
function linksOf(all, thickest) {
  const merged = mergeGhosts(all);
  const ports = (/** @type {'from' | 'to'} */ side, /** @type {'from' | 'to'} */ other) => {
    /** @type {Map<Tie, number>} */
    const at = new Map();
    for (const [box, ties] of groupBy(merged, side)) {
      const sorted = [...ties].sort((a, b) => a[other].y - b[other].y);
      const room = Math.min(box.height - 8, sorted.length * 9);
      for (const [index, tie] of sorted.entries())
        at.set(tie, box.y + (box.height - room) / 2 + ((index + 0.5) * room) / sorted.length);
    }
    return at;
  };
  const [leaving, reaching] = [ports('from', 'to'), ports('to', 'from')];
  return merged.map((tie) => ({
    key: `${tie.from.key} > ${tie.to.key} ${tie.isGhost ? '' : tie.tone}`,
    from: [tie.from.x + tie.from.width, leaving.get(tie) ?? 0],
    to: [tie.to.x, reaching.get(tie) ?? 0],
    width: tie.isGhost ? 1 : Math.min(thickest, 1.5 + 1.3 * tie.weight),
    tone: tie.tone,
    kind: tie.isGhost ? 'ghost' : tie.isMoving ? 'moving' : 'still',
  }));
}

/**
 * One link to the box that stands for many; and where something flows, nothing that doesn't.
 * @param {readonly Tie[]} ties
 */
function mergeGhosts(ties) {
  /** @type {Map<string, Tie>} */
  const byEnds = new Map();
  for (const tie of ties) {
    const key = `${tie.from.key} > ${tie.to.key} ${tie.from.key === 'passed' ? '' : tie.tone}`;
    const found = byEnds.get(key);
    if (found === undefined || (found.isGhost && !tie.isGhost)) byEnds.set(key, tie);
    else if (!tie.isGhost) byEnds.set(key, { ...found, weight: Math.max(found.weight, tie.weight) });
  }
  return [...byEnds.values()];
}

/** @param {readonly Tie[]} ties @param {'from' | 'to'} side */
function groupBy(ties, side) {
  /** @type {Map<Box, Tie[]>} */
  const groups = new Map();
  for (const tie of ties) groups.set(tie[side], [...(groups.get(tie[side]) ?? []), tie]);
  return groups;
}

/** @param {Status} status */
function summaryOf({ connections, transactionsActive, nextHops }) {
  const failing = nextHops.filter((hop) => healthOf(hop) === 'failing').length;
  const hops = `${plural(nextHops.length, 'next hop')}${failing > 0 ? `, ${count(failing)} failing` : ''}`;
  return `${plural(connections, 'upstream session')}, ${plural(transactionsActive, 'live transaction')}, ${hops}`;
}
