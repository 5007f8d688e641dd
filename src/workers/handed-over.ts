// Connections on their way to a worker. Node's cluster (round_robin_handle.js) sends each with a message, one at a time for
// each listener, and closes its own copy when the worker says that it has it. Where the worker ends before that, nobody does:
// the client would wait for a greeting that never comes, and the descriptor stay open for good. And between the end of its
// channel and the event that tells of that, late where a message was cut off, it drops what is a worker's turn.
import type { ChildProcess } from 'node:child_process';

type Handle = { close: () => void };
type Message = Readonly<{ act?: unknown; key?: unknown }>;
type Send = (message: Message, handle?: Handle, ...rest: unknown[]) => boolean;

/** One that a worker doesn't take goes to another. */
const holders = new WeakMap<Handle, ChildProcess>();

/** @returns to be called at the end of the process: closes what it has not taken. What it has is closed already. */
export function watchHandedOver(process: ChildProcess): () => void {
  const latest = new Map<unknown, Handle>();
  const send = process.send.bind(process) as unknown as Send;
  const watched: Send = (message, handle, ...rest) => {
    if (handle !== undefined && message.act === 'newconn') {
      latest.set(message.key, handle);
      holders.set(handle, process);
    }
    return send(message, handle, ...rest);
  };
  process.send = watched as unknown as ChildProcess['send'];
  const disconnect = process.disconnect.bind(process);
  process.disconnect = () => {
    disconnect();
    // Cluster passes the worker over from here on.
    process.emit('disconnect');
  };
  return () => {
    for (const handle of latest.values()) if (holders.get(handle) === process) handle.close();
  };
}
