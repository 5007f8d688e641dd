// A directory and those above it. Node's own mkdir with `recursive` never ends where a file system has no such thing and
// says ENOENT to it, as /proc does.
import { mkdir, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/**
 * For this user alone; one that is there already is left as it is.
 * @returns the topmost one that was made, undefined where there was none to make
 * @throws the system's error
 */
export async function makeDirectory(path: string): Promise<string | undefined> {
  const full = resolve(path);
  try {
    await mkdir(full, { mode: 0o700 });
    return full;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST' && (await stat(full)).isDirectory()) return undefined;
    if (code !== 'ENOENT') throw error;
  }
  const above = await makeDirectory(dirname(full));
  await mkdir(full, { mode: 0o700 });
  return above ?? full;
}

/** Why a directory can't be used for writing, and what to do. */
export function whyNoDirectory({ code, message }: NodeJS.ErrnoException): string {
  switch (code) {
    case 'EEXIST':
    case 'ENOTDIR':
      return 'not a directory; name one, or a path for a new one';
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return `not writable for this user; change its owner, or name another directory (${message})`;
    case 'ENOENT':
      return 'no directory can be made there; name another one';
    default:
      return message;
  }
}
