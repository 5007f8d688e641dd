// The page at /: a few files beside this one, read once at the start, and served from memory. They hold nothing that
// changes; what they show, they ask of /status. The policy they are sent with lets them run their own script and style,
// talk to where they came from, and nothing else, so that a name a stranger has chosen can't become a script.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { gzipSync } from 'node:zlib';

export type PageFile = Readonly<{
  body: Buffer;
  gzipped: Buffer;
  headers: Readonly<Record<string, string>>;
  etag: string;
}>;

const TYPES = {
  'index.html': 'text/html; charset=utf-8',
  'page.css': 'text/css; charset=utf-8',
  'page.js': 'text/javascript; charset=utf-8',
  'arrange.js': 'text/javascript; charset=utf-8',
  'draw.js': 'text/javascript; charset=utf-8',
  'panel.js': 'text/javascript; charset=utf-8',
  'rates.js': 'text/javascript; charset=utf-8',
  'format.js': 'text/javascript; charset=utf-8',
} as const;

const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

/** By path: `/` and `/page/…`. @throws the system's error where a file is missing: a broken installation */
export async function loadPage(): Promise<ReadonlyMap<string, PageFile>> {
  const files = Object.entries(TYPES).map(async ([name, type]) => {
    const body = await readFile(new URL(`./page/${name}`, import.meta.url));
    // Weak, since it is the same for both encodings.
    const etag = `W/"${createHash('sha256').update(body).digest('base64url').slice(0, 22)}"`;
    const headers = {
      'content-type': type,
      'content-security-policy': POLICY,
      'referrer-policy': 'no-referrer',
      'cross-origin-opener-policy': 'same-origin',
      // Kept, but asked after each time: a new version must not meet an old script.
      'cache-control': 'no-cache',
      vary: 'accept-encoding',
      etag,
    };
    return [
      name === 'index.html' ? '/' : `/page/${name}`,
      { body, gzipped: gzipSync(body), headers, etag },
    ] as const;
  });
  return new Map(await Promise.all(files));
}
