// smtp-connection ships no types; it is nodemailer's class under another name.
declare module 'smtp-connection' {
  import type { EventEmitter } from 'node:events';

  const SMTPConnection: new (options: Record<string, unknown>) => EventEmitter;
  export default SMTPConnection;
}
