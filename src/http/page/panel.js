// The figures and the tables: every value has its place in index.html, and gets there as text.
import { failureOf, healthOf, PHASE_NAMES, phaseOfLeg } from './arrange.js';
import { glyph } from './draw.js';
import { age, bytes, count, plural, rate } from './format.js';

/** @import {HopStatus, Status, TransactionStatus} from './status.d.ts' */
/** @import {Rates} from './rates.js' */

const RESULTS = ['delivered', 'spooled', 'rejected', 'deferred', 'mixed', 'aborted'];
const MOST_ROWS = 100;
const SPARK = { width: 90, height: 24 };
const HEALTH_NAMES = { good: 'well', troubled: 'troubled', failing: 'failing', unused: 'not used yet' };

/** @param {string} id */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`no #${id}`);
  return found;
}

/** @param {string} id @param {string} text */
export function put(id, text) {
  const at = byId(id);
  if (at.textContent !== text) at.textContent = text;
}

/**
 * @param {Status} status
 * @param {Rates} rates
 */
export function showPanel(status, rates) {
  put('mode', status.mode);
  put('fallback', status.fallback);
  put('uptime', age(status.monotonicMs));
  put('version', status.version);
  showTraffic(status, rates);
  showSessions(status);
  showQueue(status);
  showFastPath(status);
  showTables(status);
  put(
    'privacy',
    status.details
      ? 'Addresses are shown, since --http-details is on.'
      : 'No addresses are shown; --http-details shows them.',
  );
}

/** @param {Status} status @param {Rates} rates */
function showTraffic({ totals, bufferedBytes, maxBufferedBytes }, rates) {
  put('messages-rate', rate(rates.of('messages')));
  drawSpark('messages-spark', rates.series('messages'));
  fill('results', RESULTS, (result) => [
    heading(result),
    number(rate(rates.of(`result ${result}`))),
    number(count(totals.transactions[result] ?? 0)),
  ]);
  put('in-rate', bytes(rates.of('in')));
  drawSpark('in-spark', rates.series('in'));
  put('out-rate', `${bytes(rates.of('out'))}/s`);
  put('in-total', bytes(totals.bytes.in));
  put('out-total', bytes(totals.bytes.out));
  put('buffered', bytes(bufferedBytes));
  put('max-buffered', bytes(maxBufferedBytes));
}

/** @param {Status} status */
function showSessions({ connections, maxConnections, transactionsActive, sessions, listen }) {
  put('connections', count(connections));
  put('max-connections', count(maxConnections));
  const percent = Math.min(100, (connections / maxConnections) * 100);
  const meter = byId('connections-meter');
  meter.setAttribute('width', percent.toFixed(1));
  meter.classList.toggle('is-near', percent >= 80);
  put('transactions-active', count(transactionsActive));
  put('sessions-active', count(sessions.active));
  put('sessions-idle', count(sessions.idle));
  put('listening', listen.join(' '));
}

/** @param {Status} status */
function showQueue({ queue }) {
  const { messages, attempts } = queue;
  put('queue-messages', count(messages));
  put('queue-bytes', messages === 0 ? 'empty' : bytes(queue.bytes));
  put('queue-oldest', messages === 0 ? '–' : age(queue.oldestAgeSeconds * 1000));
  const due = queue.nextDueSeconds;
  put('queue-next', due === null ? '–' : due === 0 ? 'now' : `in ${age(due * 1000)}`);
  put('queue-active', count(queue.active));
  put('attempts-delivered', count(attempts.delivered ?? 0));
  put('attempts-deferred', count(attempts.deferred ?? 0));
  put('attempts-given-up', count((attempts.rejected ?? 0) + (attempts.expired ?? 0)));
}

/** @param {Status} status */
function showFastPath({ fastPath: { enabled, reasons, sinceMs }, mode, fallback, monotonicMs }) {
  byId('fast-path').classList.toggle('is-off', !enabled);
  put('fast-path-state', enabled ? 'Enabled' : 'Disabled');
  put('fast-path-since', age(sinceMs ?? monotonicMs));
  put('fast-path-reasons', reasons.length === 0 ? '–' : reasons.join(', '));
  put('fast-path-meaning', meaningOf(enabled, mode === 'cut-through' && fallback === 'none'));
}

/** @param {boolean} enabled @param {boolean} isPure */
function meaningOf(enabled, isPure) {
  if (isPure && enabled) return 'Nothing stands behind it: switched off by hand, MAIL would get 451.';
  if (isPure) return 'MAIL gets 451 until it is switched on again.';
  if (enabled) return 'Messages go to their next hops before they go to a disk, if they do at all.';
  return 'Messages go to disk first, then to their next hops.';
}

/** @param {Status} status */
function showTables(status) {
  const failing = status.nextHops.filter((hop) => healthOf(hop) === 'failing').length;
  put('hops-count', `${count(status.nextHops.length)}${failing > 0 ? `, ${count(failing)} failing` : ''}`);
  put('transactions-count', count(status.transactionsActive));
  if (isOpen('hops-details')) fill('hops', worstFirst(status.nextHops), hopCells);
  if (!isOpen('transactions-details')) return;
  for (const cell of document.querySelectorAll('.detail')) cell.toggleAttribute('hidden', !status.details);
  const shown = status.transactions.slice(0, MOST_ROWS);
  fill('transactions', shown, (each) => transactionCells(each, status.details));
  const rest = status.transactionsActive - shown.length;
  if (rest > 0) byId('transactions').append(row([heading(`and ${count(rest)} more`)]));
}

/** @param {readonly HopStatus[]} hops */
function worstFirst(hops) {
  const rank = (/** @type {HopStatus} */ hop) => ['failing', 'troubled'].indexOf(healthOf(hop)) >>> 0;
  return [...hops].sort((a, b) => rank(a) - rank(b));
}

/** @param {HopStatus} hop */
function hopCells(hop) {
  const health = healthOf(hop);
  const state = document.createElement('td');
  state.append(glyph(health), HEALTH_NAMES[health]);
  const { delivered, refused, failed } = hop.fiveMinutes;
  return [
    heading(hop.name),
    state,
    number(count(hop.sessions.active)),
    number(count(hop.sessions.idle)),
    cell(hop.lastOkMs === null ? 'none' : `${age(hop.lastOkMs)} ago`),
    cell(failureOf(hop)),
    number(count(delivered)),
    number(count(refused)),
    number(count(failed)),
  ];
}

/** @param {TransactionStatus} transaction @param {boolean} details */
function transactionCells(transaction, details) {
  const { id, state, ms, bytes: octets, legs, legCount } = transaction;
  const legTexts = legs.map(({ nextHop, phase, recipients }) => {
    const where = nextHop === '' ? 'next hop not known now' : nextHop;
    return `${where}: ${PHASE_NAMES[phaseOfLeg(phase)]}, ${plural(recipients, 'recipient')}`;
  });
  if (legCount > legs.length) legTexts.push(`and ${count(legCount - legs.length)} more`);
  const cells = [heading(id), cell(state), number(age(ms)), number(bytes(octets)), wrapping(legTexts)];
  if (!details) return cells;
  const from = `<${transaction.reversePath ?? ''}> by ${transaction.client ?? ''}`;
  return [...cells, wrapping([from, ...(transaction.recipients ?? []).map((each) => `<${each}>`)])];
}

/** @param {string} id */
function isOpen(id) {
  return byId(id).hasAttribute('open');
}

/**
 * @template T
 * @param {string} id
 * @param {readonly T[]} items
 * @param {(item: T) => readonly HTMLElement[]} cellsOf
 */
function fill(id, items, cellsOf) {
  byId(id).replaceChildren(...items.map((item) => row(cellsOf(item))));
}

/** @param {readonly HTMLElement[]} cells */
function row(cells) {
  const made = document.createElement('tr');
  made.append(...cells);
  return made;
}

/** @param {string} text */
function heading(text) {
  const made = document.createElement('th');
  made.scope = 'row';
  made.textContent = text;
  return made;
}

/** @param {string} text */
function cell(text) {
  const made = document.createElement('td');
  made.textContent = text;
  return made;
}

/** @param {string} text */
function number(text) {
  const made = cell(text);
  made.className = 'n';
  return made;
}

/** @param {readonly string[]} texts */
function wrapping(texts) {
  const made = cell(texts.join('; '));
  made.className = 'wraps';
  return made;
}

/** @param {string} id @param {readonly number[]} values */
function drawSpark(id, values) {
  const { width, height } = SPARK;
  const top = Math.max(...values, 1e-9);
  const points = values.map((value, at) => {
    const x = width - (values.length - 1 - at);
    return `${x} ${(height - 1 - (value / top) * (height - 3)).toFixed(1)}`;
  });
  const [area, edge] = byId(id).querySelectorAll('path');
  const line = points.length < 2 ? '' : `M${points.join('L')}`;
  edge?.setAttribute('d', line);
  area?.setAttribute('d', line === '' ? '' : `${line}V${height}H${width - values.length + 1}z`);
}
