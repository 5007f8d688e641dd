// What is told of a transaction when it is over: the counters, the one line in the log, and how it went (time-line.ts).
import { type Logger, logInfo } from './log.ts';
import type { Metrics, TransactionResult } from './metrics.ts';
import { brief, type RecentTimeLines, type TimeLine } from './time-line.ts';

/** What became of a recipient, as in downstream/outcome.ts; null where it is not known yet. */
type Fate =
  | Readonly<{ kind: 'accepted' | 'rejected' | 'deferred'; reply: Readonly<{ code: number }> }>
  | Readonly<{ kind: 'lost' }>
  | null;

type Answer = Readonly<{ code: number; enhanced: string | null; lines: readonly string[] }>;

export class RecipientRecord {
  /** Of the recipients, from 0. Private, since the log has what is not. */
  readonly #nth: number;
  readonly address: string;
  nextHop = '';
  outcome: '' | 'accepted' | 'rejected' | 'deferred' | 'suppressed' = '';
  reply: number | null = null;
  withheld?: true;

  constructor(address: string, nth: number) {
    this.address = address;
    this.#nth = nth;
  }

  get nth(): number {
    return this.#nth;
  }

  /** For the log. */
  get json(): string {
    const { address, nextHop, outcome, reply, withheld } = this;
    const more = withheld ? ',"withheld":true' : '';
    return `{"address":${text(address)},"nextHop":${text(nextHop)},"outcome":"${outcome}","reply":${reply}${more}}`;
  }

  /** The reply that stands for it, of the next hop or of ours. */
  answered({ code }: Readonly<{ code: number }>): void {
    this.outcome = code < 300 ? 'accepted' : code >= 500 ? 'rejected' : 'deferred';
    this.reply = code;
  }

  /** The message was not sent again: an earlier try of the same upstream had this end. */
  suppressed(fate: NonNullable<Fate>): void {
    this.outcome = 'suppressed';
    this.reply = fate.kind === 'lost' ? null : fate.reply.code;
  }

  /** Not tried, since another recipient's next hop had not accepted the message: it shares what the upstream is told. */
  withheldFor(answer: Answer): void {
    this.answered(answer);
    this.withheld = true;
  }

  /** What is not known is for the upstream, or for the queue, to try again. */
  ended(fate: Fate): void {
    const known = fate !== null && fate.kind !== 'lost';
    this.outcome = known ? fate.kind : 'deferred';
    this.reply = known ? fate.reply.code : null;
  }
}

const text = JSON.stringify as (value: string) => string;

/** Recipients of a transaction that has ended. */
const MAX_REMEMBERED = 32;

export type RecordDeps = Readonly<{
  config: Readonly<{ mode: string }>;
  metrics: Metrics;
  log: Logger;
  /** Milliseconds, monotonic. */
  now: () => number;
  timeLines: RecentTimeLines;
}>;

export class TransactionRecord {
  readonly #id: string;
  readonly #sender: Readonly<{ mailbox: Readonly<{ address: string }> | null }>;
  readonly #client: Readonly<{ address: string; ident?: string }>;
  readonly #deps: RecordDeps;
  readonly #began: number;
  readonly #recipients: RecipientRecord[] = [];
  #bodyBegan = false;
  /** Null where nobody would look at it. */
  readonly line: TimeLine | null;

  constructor(
    id: string,
    sender: Readonly<{ mailbox: Readonly<{ address: string }> | null }>,
    client: Readonly<{ address: string; helo: string; ident?: string }>,
    deps: RecordDeps,
  ) {
    this.#id = id;
    this.#sender = sender;
    this.#client = client;
    this.#deps = deps;
    this.#began = deps.now();
    const { timeLines, log } = deps;
    const isWanted = timeLines.size > 0 || log.isLevelEnabled('debug');
    const of = { id, client, sender, recipients: this.#recipients, began: this.#began };
    this.line = isWanted ? timeLines.begin(of) : null;
  }

  get milliseconds(): number {
    return this.#deps.now() - this.#began;
  }

  /** Addresses, for those who may see them; of the recipients only the first few. */
  people(most: number) {
    return {
      client: this.#client.address,
      reversePath: this.#sender.mailbox?.address ?? '',
      recipients: this.#recipients.slice(0, most).map(({ address }) => address),
    };
  }

  add(address: string): RecipientRecord {
    const nth = this.#recipients.length;
    const record = new RecipientRecord(address, nth);
    this.#recipients.push(record);
    this.line?.recipient('rcpt', nth, this.#deps.now());
    return record;
  }

  /** The reply to its RCPT. @param atOnce it follows from the last event without any wait */
  told(recipient: RecipientRecord, answer: Answer, atOnce = false): void {
    recipient.answered(answer);
    const { line } = this;
    if (line === null) return;
    line.recipient('rcpt-reply', recipient.nth, atOnce ? line.latest : this.#deps.now(), brief(answer));
  }

  /** An RCPT that no next hop was asked about. */
  refused(answer: Answer): void {
    this.line?.upstream('rcpt-reply', this.#deps.now(), brief(answer));
  }

  /** Bytes of the body came. @param octets of the whole message, once its end was seen */
  body(octets: number | null): void {
    if (this.line === null || (this.#bodyBegan && octets === null)) return;
    const at = this.#deps.now();
    if (!this.#bodyBegan) this.line.upstream('body', at);
    this.#bodyBegan = true;
    if (octets !== null) this.line.upstream('end-of-data', at, octets);
  }

  /** What it amounts to when there was no message: rejected or deferred if every RCPT was told so, else aborted. */
  get resultWithoutMessage(): TransactionResult {
    const outcomes = this.#recipients.map(({ outcome }) => outcome);
    if (outcomes.length > 0 && outcomes.every((outcome) => outcome === 'rejected')) return 'rejected';
    const refused = outcomes.every((outcome) => outcome === 'rejected' || outcome === 'deferred');
    return outcomes.length > 0 && refused ? 'deferred' : 'aborted';
  }

  /** @param reply what the upstream got, null where it got none */
  end(
    result: TransactionResult,
    reply: Answer | null,
    extra: Readonly<Record<string, number>>,
    at = this.#deps.now(),
  ): void {
    const { config, metrics } = this.#deps;
    const milliseconds = at - this.#began;
    metrics.transactions.inc(config.mode, result);
    metrics.transactionDuration.observe(milliseconds / 1000, config.mode);
    for (const { outcome } of this.#recipients) {
      if (outcome !== '' && (outcome !== 'accepted' || result !== 'aborted')) metrics.recipients.inc(outcome);
    }
    this.#log(result, reply, extra, milliseconds);
    if (this.line !== null) this.#endLine(this.line, result, reply, at);
  }

  #endLine(line: TimeLine, result: TransactionResult, reply: Answer | null, at: number): void {
    const { log, timeLines } = this.#deps;
    if (reply === null) line.upstream('gone', at);
    else line.upstream('reply', at, brief(reply));
    line.end(result, at);
    if (log.isLevelEnabled('debug')) log.debug({ event: 'trace', ...timeLines.describe(line) });
    // What is remembered is bounded; a client can have any number of RCPTs refused.
    if (this.#recipients.length > MAX_REMEMBERED) this.#recipients.length = MAX_REMEMBERED;
    timeLines.keep(line);
  }

  #log(
    result: TransactionResult,
    reply: Answer | null,
    extra: Readonly<Record<string, number>>,
    milliseconds: number,
  ): void {
    const { log } = this.#deps;
    if (!log.isLevelEnabled('info')) return;
    const { address, ident } = this.#client;
    const of = `"id":${text(this.#id)},"client":${text(address)}${ident === undefined ? '' : `,"ident":${text(ident)}`}`;
    const sender = text(this.#sender.mailbox?.address ?? '');
    const recipients = this.#recipients.map((recipient) => recipient.json).join(',');
    const rest = Object.entries(extra).map(([name, value]) => `"${name}":${value},`);
    logInfo(
      log,
      `"event":"transaction",${of},"reversePath":${sender},"recipients":[${recipients}],"result":"${result}",` +
        `"reply":${reply?.code ?? null},${rest.join('')}"ms":${Math.round(milliseconds)}`,
    );
  }
}
