// A next hop of the simulation: does what the model has planned for the visit, and tells it what has become true.
// Raw sockets; it forgets what it has dealt with, since thousands of messages come through.
import { once } from 'node:events';
import net, { type AddressInfo, type Socket } from 'node:net';
import type { Chance } from './chance.ts';
import { envelopeOf, type Fault, type Model } from './model.ts';

const END = Buffer.from('\r\n.\r\n');
const OFFERS = '250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-DSN\r\n250 SIZE 100000000\r\n';
const OFFERS_PRDR = OFFERS.replace('250-DSN', '250-PRDR\r\n250-DSN');
/** Of the connections. */
const BROKEN = 0.02;

/** With PRDR it answers for each recipient where that is asked for; LMTP always does. */
export type Kind = 'smtp' | 'prdr' | 'lmtp';

export class NextHop {
  readonly #server: net.Server;
  readonly #sockets = new Set<Socket>();
  readonly #kind: Kind;

  private constructor(server: net.Server, kind: Kind) {
    this.#server = server;
    this.#kind = kind;
  }

  static async start(domain: string, model: Model, chance: Chance, kind: Kind): Promise<NextHop> {
    const server = net.createServer({ noDelay: true });
    const hop = new NextHop(server, kind);
    server.on('connection', (socket) => {
      hop.#sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => hop.#sockets.delete(socket));
      const broken = chance.is(BROKEN) ? chance.of(['connect', '421', '554', 'ehlo']) : '';
      if (broken === 'connect') return void socket.resetAndDestroy();
      new Session(socket, { domain, model, kind, diesAtEhlo: broken === 'ehlo' });
      socket.write(`${/^\d/.test(broken) ? broken : '220'} sink.example ESMTP\r\n`);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return hop;
  }

  get url(): string {
    return `${this.#kind === 'lmtp' ? 'lmtp' : 'smtp'}://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

type Setting = Readonly<{ domain: string; model: Model; kind: Kind; diesAtEhlo: boolean }>;

class Session {
  readonly #socket: Socket;
  readonly #setting: Setting;
  #input: Buffer = Buffer.alloc(0);
  #state: 'commands' | 'body' | 'waiting' | 'stuck' = 'commands';
  /** MAIL has asked for a reply for each recipient. */
  #prdr = false;
  /** Empty after a null reverse-path, until a recipient tells. */
  #envelope = '';
  /** RCPTs so far. */
  #named = 0;
  #recipients: string[] = [];
  #fault: Fault | null = null;
  /** What was said before the dot. */
  #early: string | null = null;

  constructor(socket: Socket, setting: Setting) {
    this.#socket = socket;
    this.#setting = setting;
    socket.on('data', (chunk: Buffer) => {
      this.#input = this.#input.length === 0 ? chunk : Buffer.concat([this.#input, chunk]);
      while (this.#step());
    });
  }

  #step(): boolean {
    if (this.#state === 'stuck' || this.#state === 'waiting') return false;
    if (this.#state === 'body') return this.#body();
    const at = this.#input.indexOf('\r\n');
    if (at === -1) return false;
    const line = this.#input.toString('latin1', 0, at);
    this.#input = this.#input.subarray(at + 2);
    this.#command(line);
    return true;
  }

  #command(line: string): void {
    const verb = line.slice(0, 4).toUpperCase();
    const path = /<(.*?)>/.exec(line)?.[1] ?? '';
    const { model, domain, kind } = this.#setting;
    if (verb === 'EHLO' || verb === 'LHLO') {
      if (this.#setting.diesAtEhlo) return this.#die();
      return void this.#socket.write(kind === 'prdr' ? OFFERS_PRDR : OFFERS);
    }
    if (verb === 'QUIT') return void this.#socket.end('221 bye\r\n');
    if (verb === 'MAIL') {
      this.#envelope = envelopeOf(path);
      this.#prdr = / PRDR( |$)/.test(line);
      this.#named = 0;
      this.#recipients = [];
      this.#fault = this.#envelope === '' ? null : model.visit(this.#envelope, domain);
      this.#early = null;
      return this.#answer('mail', '250', path);
    }
    if (verb === 'RSET') this.#recipients = [];
    if (verb === 'RCPT') {
      if (this.#envelope === '') this.#learn(envelopeOf(path));
      this.#named++;
      return this.#answer('rcpt', '250', path);
    }
    if (verb === 'DATA') return this.#answer('data', '354', path);
    this.#say('250');
  }

  /** It is too late for a fault at MAIL. */
  #learn(envelope: string): void {
    const { model, domain } = this.#setting;
    const fault = model.visit(envelope, domain);
    this.#envelope = envelope;
    this.#fault = fault?.phase === 'mail' ? { ...fault, phase: 'rcpt' } : fault;
  }

  /** The planned fault, or all is well. */
  #answer(phase: Fault['phase'], usual: string, path: string): void {
    const { model, domain } = this.#setting;
    const fault = this.#isDue(phase) ? this.#fault!.act : usual;
    if (fault === 'rst') return this.#die();
    this.#say(fault);
    if (fault.startsWith('5')) {
      const whom = phase === 'mail' ? null : phase === 'rcpt' ? [path] : this.#recipients;
      model.refused({ phase, envelope: this.#envelope, domain }, whom);
    }
    if (fault === '421') return this.#die('fin');
    if (phase === 'rcpt' && fault === usual) this.#recipients.push(path);
    if (phase === 'data' && fault === usual) this.#state = 'body';
  }

  #isDue(phase: Fault['phase']): boolean {
    if (this.#fault?.phase !== phase) return false;
    return phase !== 'rcpt' || this.#fault.nth < 2 || this.#fault.nth - 1 === this.#named;
  }

  #body(): boolean {
    const at = this.#input.indexOf(END);
    if (at === -1) {
      const act = this.#fault?.phase === 'body' && this.#early === null ? this.#fault.act : null;
      if (act === 'rst') this.#die();
      else if (act !== null) {
        this.#early = act;
        if (act.startsWith('5')) this.#refuse(this.#recipients);
        this.#say(act);
      }
      return false;
    }
    const wire = this.#input.subarray(0, at + 2);
    this.#input = this.#input.subarray(at + 5);
    this.#state = 'commands';
    if (this.#early === null) this.#afterDelay(() => this.#dot(wire));
    else if (this.#early === '250') this.#takeEarly(wire);
    return this.#state === 'commands';
  }

  /** With LMTP the one 250 that was said is the first recipient's. */
  #takeEarly(wire: Buffer): void {
    const told = this.#setting.kind === 'lmtp' ? 1 : this.#recipients.length;
    this.#take(wire, this.#recipients.slice(0, told), true);
    this.#take(wire, this.#recipients.slice(told), false);
  }

  #afterDelay(answer: () => void): void {
    const delayMs = this.#fault?.phase === 'dot' ? this.#fault.delayMs : 0;
    if (delayMs === 0) return answer();
    this.#state = 'waiting';
    setTimeout(() => {
      this.#state = 'commands';
      answer();
      while (this.#step());
    }, delayMs);
  }

  /** SMTP has one reply for all, LMTP (RFC 2033) one for each. */
  #dot(wire: Buffer): void {
    if (this.#prdr && this.#recipients.length > 1) return this.#dotForEach(wire);
    const groups =
      this.#setting.kind === 'lmtp' ? this.#recipients.map((each) => [each]) : [this.#recipients];
    const fault = this.#fault?.phase === 'dot' ? this.#fault : null;
    const faulty = fault === null ? -1 : fault.nth % groups.length;
    for (const [nth, group] of groups.entries()) {
      if (nth !== faulty || fault === null) {
        this.#take(wire, group, true);
        this.#say('250');
        continue;
      }
      if (!this.#misbehave(fault.act, wire, group, groups.slice(nth).flat())) return;
    }
  }

  /** PRDR: 353, a reply for each, and one to the whole, before which nobody has the message. */
  #dotForEach(wire: Buffer): void {
    const turns = [...this.#recipients.map((each) => [each]), this.#recipients];
    const fault = this.#fault?.phase === 'dot' ? this.#fault : null;
    const faulty = fault === null ? -1 : fault.nth % turns.length;
    let accepted = this.#recipients;
    this.#say('353');
    for (const [nth, group] of turns.entries()) {
      const isFaulty = nth === faulty && fault !== null;
      if (!isFaulty || fault.act === 'fin after 250') {
        if (group === this.#recipients) this.#take(wire, accepted, true);
        this.#say('250');
        if (isFaulty) return this.#die('fin');
        continue;
      }
      if (!this.#misbehave(fault.act, wire, group, accepted)) return;
      accepted = accepted.filter((each) => !group.includes(each));
    }
  }

  /** @param rest those from whom an answer is still due. @returns whether the session goes on */
  #misbehave(act: string, wire: Buffer, group: readonly string[], rest: readonly string[]): boolean {
    const last = rest.length === group.length;
    if (act === 'fin after 250') {
      this.#take(wire, group, true);
      this.#say('250');
      // What is not answered then, is neither taken.
      this.#die('fin');
      return false;
    }
    if (/^\d/.test(act)) {
      this.#say(act);
      if (act.startsWith('5')) this.#refuse(group);
      if (act === '421') this.#die('fin');
      return act !== '421';
    }
    if (act.startsWith('take')) this.#take(wire, rest, false);
    if (act.endsWith('nonsense')) this.#say('354');
    if (act.endsWith('stall') || (act.endsWith('nonsense') && !last)) this.#state = 'stuck';
    // A reset would take with it what was said to others and not read yet.
    if (act.endsWith('rst')) this.#die(this.#setting.kind === 'lmtp' ? 'fin' : 'rst');
    return false;
  }

  #refuse(recipients: readonly string[]): void {
    const { model, domain } = this.#setting;
    model.refused({ phase: 'dot', envelope: this.#envelope, domain }, recipients);
  }

  #take(wire: Buffer, recipients: readonly string[], told: boolean): void {
    for (const each of recipients) this.#setting.model.taken(wire, each, told);
  }

  #say(code: string): void {
    this.#socket.write(`${code} ${code[0]}.0.0 said\r\n`);
  }

  #die(how: 'rst' | 'fin' = 'rst'): void {
    this.#state = 'stuck';
    if (how === 'rst') this.#socket.resetAndDestroy();
    else this.#socket.end();
  }
}
