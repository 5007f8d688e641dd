// What was said over the wires of the client and of the two mail servers, as moments on one clock. All three are in
// this process and the proxy is not, so the order of the moments is the order in which things happened.
// Reads raw bytes; knows of SMTP no more than where a command, a reply, the body and its end begin and end.

export type Side = 'upstream' | 'alpha' | 'beta';

export type Moment = Readonly<{
  /** Milliseconds since the recording began. */
  at: number;
  side: Side;
  /** `command`, `body` and `dot` go towards the recipients, `reply` comes back; `closed`: the connection has ended. */
  kind: 'command' | 'reply' | 'body' | 'dot' | 'closed';
  text: string;
  /** Of `body`. */
  octets: number;
  /** Of a `reply`: the command that it answers, `.` for the final dot, empty for the greeting. */
  to: string;
}>;

export class Recording {
  readonly moments: Moment[] = [];
  readonly #began = performance.now();
  #stopped = false;

  /** One connection of `side`. */
  dialogue(side: Side): Dialogue {
    return new Dialogue((moment) => {
      if (!this.#stopped) this.moments.push({ at: performance.now() - this.#began, side, ...moment });
    });
  }

  stop(): void {
    this.#stopped = true;
  }

  /** The place of the first match in the order of events, -1 where there is none. */
  find(side: Side, kind: Moment['kind'], matches: (moment: Moment) => boolean = () => true): number {
    return this.moments.findIndex((each) => each.side === side && each.kind === kind && matches(each));
  }

  /** The place of the reply to the command that begins with `command`. */
  replyTo(side: Side, command: string): number {
    return this.find(side, 'reply', ({ to }) => to.startsWith(command));
  }

  /** Body octets that `side` saw before the place `end`. */
  octetsBefore(side: Side, end: number = this.moments.length): number {
    const body = this.moments.slice(0, Math.max(end, 0)).filter((each) => each.side === side);
    return body.reduce((sum, { octets }) => sum + octets, 0);
  }
}

type Told = Pick<Moment, 'kind' | 'text'> & Partial<Pick<Moment, 'octets' | 'to'>>;

export class Dialogue {
  readonly #tell: (moment: Omit<Moment, 'at' | 'side'>) => void;
  /** Not answered yet; the greeting comes unasked. */
  readonly #open: string[] = [''];
  #commands = '';
  #replies = '';
  #inBody = false;
  /** The last characters of the body: the end of data may come in pieces. */
  #tail = '';

  constructor(tell: (moment: Omit<Moment, 'at' | 'side'>) => void) {
    this.#tell = tell;
  }

  /** From the client of this connection. */
  asked(text: string): void {
    const rest = this.#inBody ? this.#body(text) : text;
    const lines = (this.#commands + rest).split('\r\n');
    this.#commands = lines.pop()!;
    for (const line of lines) {
      this.#open.push(line);
      this.#say({ kind: 'command', text: line });
    }
  }

  /** From its server. */
  answered(text: string): void {
    this.#replies += text;
    for (let end = endOfReply(this.#replies); end !== -1; end = endOfReply(this.#replies)) {
      const lines = this.#replies.slice(0, end - 2).split('\r\n');
      this.#replies = this.#replies.slice(end);
      const more = lines.length > 1 ? ` +${lines.length - 1} lines` : '';
      const reply = `${lines[0]!.replace(/^(\d{3})-/, '$1 ')}${more}`;
      const to = this.#open.shift() ?? '';
      this.#say({ kind: 'reply', text: reply, to });
      if (to === 'DATA' && reply.startsWith('354')) {
        this.#inBody = true;
        this.#tail = '\r\n';
      }
    }
  }

  closed(): void {
    this.#say({ kind: 'closed', text: this.#inBody ? 'connection gone, without dot' : 'connection gone' });
  }

  /** @returns what follows the end of the body */
  #body(text: string): string {
    const joined = this.#tail + text;
    const end = joined.indexOf('\r\n.\r\n');
    const octets = end === -1 ? text.length : end + 2 - this.#tail.length;
    if (octets > 0) this.#say({ kind: 'body', text: '', octets });
    this.#tail = joined.slice(-4);
    if (end === -1) return '';
    this.#inBody = false;
    this.#open.push('.');
    this.#say({ kind: 'dot', text: '.' });
    return joined.slice(end + 5);
  }

  #say({ kind, text, octets = 0, to = '' }: Told): void {
    this.#tell({ kind, text, octets, to });
  }
}

/** The index behind the first whole reply, -1 where there is none yet. */
function endOfReply(text: string): number {
  const match = /^(?:\d{3}-.*\r\n)*\d{3}(?: .*)?\r\n/.exec(text);
  return match === null ? -1 : match[0].length;
}
