// Why a file can't be read, in words that say what to do, in place of the system's.

export function whyUnreadable(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  switch ((error as NodeJS.ErrnoException).code) {
    case 'ENOENT':
      return 'there is no such file';
    case 'ENOTDIR':
      return 'what its path leads through is no directory';
    case 'EISDIR':
      return 'it is a directory; name a file in it';
    case 'EACCES':
    case 'EPERM':
      return 'no permission; this user must be able to read it, and to enter its directories';
    default:
      return error.message.split('\n')[0] ?? '';
  }
}
