// What MAIL and RCPT said of a message, in parsed form (RFC 5321 §2.3.1), and who said it.
import type { Mailbox, MailParams, RcptParams } from './address.ts';

/** `mailbox` is null for the null reverse-path. */
export type Sender = Readonly<{ mailbox: Mailbox | null; params: MailParams }>;
export type Recipient = Readonly<{ mailbox: Mailbox; params: RcptParams }>;

/** Who is connected, or who a trusted proxy in between says is: for the Received line, the log and --forward-client. */
export type Client = Readonly<{
  /** IPv4 or IPv6; '' where one in between has said that it doesn't know. */
  address: string;
  /** 0 where it isn't known. */
  port: number;
  /** Its host name, where one in between has told it; we look none up. */
  name: string | null;
  /** '' where it isn't known. */
  helo: string;
  /** False after HELO. */
  extended: boolean;
  tls: Readonly<{ version: string; cipher: string }> | null;
  /** It speaks LMTP. */
  lmtp?: boolean;
  /** The message's id where it comes from, told by XFORWARD. */
  ident?: string;
  /** The one connected, where it has told of another by XFORWARD: it is who the message was received from (RFC 5321 §4.4). */
  relay?: Client;
  /** Where it was connected to, if that is known. */
  localAddress?: string | undefined;
  localPort?: number | undefined;
}>;

/** What next hops may be told of a client. */
export type Origin = Pick<
  Client,
  'address' | 'port' | 'name' | 'helo' | 'extended' | 'localAddress' | 'localPort'
>;

/** A message as those see it who pass it on. `client` is null where it is our own. */
export type Submission = Readonly<{ id: string; sender: Sender; client: Origin | null }>;
