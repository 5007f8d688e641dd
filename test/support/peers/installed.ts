// Where whole mail servers are found. Those that Debian can't install beside postfix are unpacked, not installed, into
// node_modules/.cache by .ci/run. All of them change user, so the tests that need them run as root; without, or where one
// is missing, a test is skipped with the reason, and fails on CI.
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { TestContext } from 'vitest';
import { skip } from '../tools.ts';

const UNPACKED = fileURLToPath(new URL('../../../node_modules/.cache/cutthrough-peers', import.meta.url));

/** Where each program may be, the first that exists being used, and the package it comes with. */
const PROGRAMS = {
  postfix: { places: ['/usr/lib/postfix/sbin/master'], from: 'apt-get install postfix' },
  exim: { places: [join(UNPACKED, 'usr/sbin/exim4'), '/usr/sbin/exim4'], from: 'unpacked by .ci/run' },
  opensmtpd: { places: [join(UNPACKED, 'usr/sbin/smtpd')], from: 'unpacked by .ci/run' },
  nginx: {
    places: ['/usr/lib/nginx/modules/ngx_mail_module.so'],
    from: 'apt-get install nginx libnginx-mod-mail',
  },
  haproxy: { places: ['/usr/sbin/haproxy'], from: 'apt-get install haproxy' },
} as const;
export type PeerName = keyof typeof PROGRAMS;

export function needPeers(context: TestContext, ...peers: readonly PeerName[]): void {
  const missing = peers.filter((peer) => found(peer) === undefined);
  const how = missing.map((peer) => `${peer} (${PROGRAMS[peer].from})`);
  if (missing.length > 0) skip(context, `needs ${how.join(', ')}`);
  else if (process.getuid?.() !== 0) skip(context, `needs root, as ${peers.join(', ')} changes user`);
}

/** The path of a peer's program; a test asks needPeers() first. */
export function programOf(peer: PeerName): string {
  const path = found(peer);
  if (path === undefined) throw new Error(`${peer} is not here`);
  return path;
}

/** The root of the unpacked tree. */
export const unpackedRoot = UNPACKED;

function found(peer: PeerName): string | undefined {
  return PROGRAMS[peer].places.find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    // A module is loaded, not run.
    accessSync(path, path.endsWith('.so') ? constants.R_OK : constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
