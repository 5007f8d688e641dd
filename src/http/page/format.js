// Numbers as people read them at a glance: few digits, one unit. Pure.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** @param {number} n */
export function count(n) {
  return Math.round(n).toLocaleString('en-GB');
}

/** @param {number} perSecond */
export function rate(perSecond) {
  if (perSecond === 0) return '0';
  if (perSecond < 0.1) return '< 0.1';
  return perSecond < 9.95 ? perSecond.toFixed(1) : count(perSecond);
}

/** @param {number} n */
export function bytes(n) {
  let at = 0;
  let value = n;
  while (value >= 1023.5 && at < UNITS.length - 1) {
    value /= 1024;
    at++;
  }
  return `${at === 0 || value >= 99.5 ? Math.round(value) : value.toFixed(1)} ${UNITS[at]}`;
}

/**
 * The two largest units: `350 ms`, `4.2 s`, `3 min 20 s`, `2 d 4 h`.
 * @param {number} ms
 */
export function age(ms) {
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return two(whole, 60, 'min', 1, 's');
  if (whole < 86_400) return two(whole, 3600, 'h', 60, 'min');
  return two(whole, 86_400, 'd', 3600, 'h');
}

/**
 * @param {number} seconds
 * @param {number} large
 * @param {string} largeName
 * @param {number} small
 * @param {string} smallName
 */
function two(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${largeName}${rest === 0 ? '' : ` ${rest} ${smallName}`}`;
}

/**
 * @param {number} n
 * @param {string} one
 */
export function plural(n, one) {
  return `${count(n)} ${one}${n === 1 ? '' : 's'}`;
}

/**
 * What fits, by an estimate; the middle goes, since names differ at both ends.
 * @param {string} text
 * @param {number} most characters
 */
export function shortened(text, most) {
  const characters = [...text];
  if (characters.length <= most) return text;
  const head = Math.max(1, Math.ceil((most - 1) * 0.6));
  const tail = Math.max(0, most - 1 - head);
  return `${characters.slice(0, head).join('')}…${tail === 0 ? '' : characters.slice(-tail).join('')}`;
}
