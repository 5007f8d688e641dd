// Asks /status every second and shows what it says. While nobody looks, it doesn't ask; when the proxy can't be reached
// it says so, asks less and less often, and goes on as soon as there is an answer.
import { arrange } from './arrange.js';
import { Drawing, drawLegend } from './draw.js';
import { age } from './format.js';
import { byId, put, showPanel } from './panel.js';
import { Rates } from './rates.js';

/** @import {Status} from './status.d.ts' */

const EVERY_MS = 1000;
const SLOWEST_MS = 15_000;
const TIMEOUT_MS = 5000;

const rates = new Rates();
const flow = byId('flow');
const drawing = new Drawing(flow);
/** @type {Status | null} */
let latest = null;
let failures = 0;
let lostSince = 0;
let isPaused = false;
let isAsking = false;
/** @type {number | undefined} */
let timer;
/** @type {number | undefined} */
let ticker;

/** @param {number} ms */
function next(ms) {
  clearTimeout(timer);
  if (!isPaused && !document.hidden) timer = setTimeout(() => void poll(), ms);
}

async function poll() {
  if (isAsking) return;
  isAsking = true;
  try {
    const response = await fetch('status', { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!response.ok) throw new Error((await response.text()).slice(0, 200));
    const status = /** @type {Status} */ (await response.json());
    onStatus(status);
    next(EVERY_MS);
  } catch (error) {
    onLost(error);
  } finally {
    isAsking = false;
  }
}

/** @param {Status} status */
function onStatus(status) {
  failures = 0;
  clearInterval(ticker);
  latest = status;
  rates.push(status);
  document.documentElement.classList.remove('is-stale');
  showPanel(status, rates);
  draw();
  say();
}

/** @param {unknown} error */
function onLost(error) {
  if (failures === 0) lostSince = Date.now();
  failures++;
  const waitMs = Math.min(SLOWEST_MS, EVERY_MS * 2 ** (failures - 1));
  const nextAt = Date.now() + waitMs;
  document.documentElement.classList.add('is-stale');
  const tick = () => {
    const seconds = Math.max(0, Math.ceil((nextAt - Date.now()) / 1000));
    put('notice-more', `For ${age(Date.now() - lostSince)}. Trying again in ${seconds} s.`);
  };
  clearInterval(ticker);
  ticker = setInterval(tick, EVERY_MS);
  const said = error instanceof Error && !/fetch|timed? ?out|abort/i.test(error.message) ? error.message : '';
  say(said.trim());
  tick();
  next(waitMs);
}

function draw() {
  const width = flow.clientWidth;
  if (latest !== null && width > 0) drawing.show(arrange(latest, rates, width));
}

/** The lamp, and what has to be said in words. A screen reader hears it only when it changes. */
function say(why = '') {
  const [lamp, word, text] = situation(why);
  byId('lamp').className = `lamp ${lamp}`;
  put('link-state', word);
  put('notice-text', text);
  if (failures === 0) put('notice-more', '');
  const notice = byId('notice');
  notice.hidden = text === '';
  notice.className = lamp === 'is-lost' ? 'is-bad' : '';
  document.title = `${word === 'live' ? '' : `${word} · `}cutthrough`;
}

/** @param {string} why @returns {readonly [string, string, string]} */
function situation(why) {
  if (failures > 0) {
    const known = latest === null ? '' : ' The figures below are the last ones known.';
    if (why !== '') return ['is-lost', 'no status', `The proxy gives no status: ${why}.${known}`];
    const drained = latest?.draining
      ? 'The proxy was draining, and has gone.'
      : "The proxy can't be reached.";
    return ['is-lost', 'unreachable', `${drained}${known}`];
  }
  if (isPaused) return ['', 'paused', 'Paused. The figures stand still.'];
  if (latest === null) return ['', 'connecting', ''];
  if (latest.draining)
    return ['is-warned', 'draining', 'Draining: no new sessions, running transactions end.'];
  if (!latest.fastPath.enabled)
    return [
      'is-warned',
      'fast path off',
      `The fast path is disabled: ${latest.fastPath.reasons.join(', ')}.`,
    ];
  return ['is-live', 'live', ''];
}

const pause = byId('pause');
pause.addEventListener('click', () => {
  isPaused = !isPaused;
  pause.setAttribute('aria-pressed', String(isPaused));
  say();
  next(0);
});
document.addEventListener('visibilitychange', () => next(0));
addEventListener('online', () => next(0));
// A table that is opened between two polls.
for (const details of document.querySelectorAll('details'))
  details.addEventListener('toggle', () => latest !== null && showPanel(latest, rates));
new ResizeObserver(draw).observe(flow);
drawLegend(byId('legend'));
void poll();
