// Calls between the primary and a worker over Node's channel: each side has functions that the other may call by name,
// with one argument, and gets what they return. Messages arrive in the order in which they were sent.
// A call ends with its answer, with the channel, or with its time: whoever waits is told in any case.
import type { Serializable } from 'node:child_process';

/** By name: what is called for, and what comes back. */
export type Calls = Readonly<Record<string, (argument: never) => unknown>>;
type Argument<C extends Calls, N extends keyof C> = Parameters<C[N]>[0];
type Answer<C extends Calls, N extends keyof C> = Awaited<ReturnType<C[N]>>;

/** The functions that answer the other side's calls. */
export type Handlers<C extends Calls> = {
  readonly [N in keyof C]: (argument: Argument<C, N>) => Answer<C, N> | Promise<Answer<C, N>>;
};

/** A process as either side has it. */
type Port = {
  readonly connected?: boolean | undefined;
  send?: (message: Serializable, done: (error: Error | null) => void) => boolean;
};

type Message =
  | Readonly<{ call: string; id: number; argument: unknown }>
  | Readonly<{ answer: number; value?: unknown; error?: string }>;

type Waiting = Readonly<{ resolve: (value: never) => void; reject: (error: Error) => void }>;

export class Channel<Theirs extends Calls, Ours extends Calls> {
  readonly #port: Port;
  readonly #ours: Handlers<Ours>;
  readonly #waiting = new Map<number, Waiting>();
  #id = 0;

  constructor(port: Port, ours: Handlers<Ours>) {
    this.#port = port;
    this.#ours = ours;
  }

  /**
   * @param timeoutMs none: as long as the other side lives
   * @throws Error with the other side's words, or when it is gone, or late
   */
  call<N extends keyof Theirs & string>(
    name: N,
    argument: Argument<Theirs, N>,
    timeoutMs?: number,
  ): Promise<Answer<Theirs, N>> {
    const id = ++this.#id;
    return new Promise<Answer<Theirs, N>>((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const settle = () => {
        clearTimeout(timer);
        this.#waiting.delete(id);
      };
      const fail = (error: Error) => {
        settle();
        reject(error);
      };
      const succeed = (value: Answer<Theirs, N>) => {
        settle();
        resolve(value);
      };
      this.#waiting.set(id, { resolve: succeed, reject: fail });
      if (timeoutMs !== undefined)
        timer = setTimeout(() => fail(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
      this.#send({ call: name, id, argument }, fail);
    });
  }

  /** What the other side has sent. */
  receive(received: unknown): void {
    const message = received as Message;
    if ('call' in message) return void this.#serve(message.call, message.id, message.argument);
    const waiting = this.#waiting.get(message.answer);
    if (message.error === undefined) waiting?.resolve(message.value as never);
    else waiting?.reject(new Error(message.error));
  }

  /** The other side is gone. */
  end(): void {
    for (const { reject } of this.#waiting.values()) reject(gone());
  }

  async #serve(name: string, id: number, argument: unknown): Promise<void> {
    let answer: Message;
    try {
      answer = { answer: id, value: await this.#ours[name]!(argument as Argument<Ours, string>) };
    } catch (error) {
      answer = { answer: id, error: (error as Error).message };
    }
    // Nobody is left to be told when this fails.
    this.#send(answer, () => {});
  }

  #send(message: Message, failed: (error: Error) => void): void {
    if (this.#port.connected !== true) return failed(gone());
    this.#port.send?.(message as Serializable, (error) => error !== null && failed(error));
  }
}

function gone(): Error {
  return new Error('the other process is gone');
}
