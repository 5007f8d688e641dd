// Pure: test/bench/RESULTS.md.
import type { Facts } from './machine.ts';
import { table } from './tables.ts';

export function results(facts: Facts, text: string, command: string): string {
  return `# What the benchmark found

Written by \`${command}\` and not by hand. Client, peer and sink share one machine, over loopback: what counts are
ratios within a round (medians of them), not the figures themselves, and on a machine that is busy with other work not even these.
Every run's messages were counted at the sinks, and all were there exactly once, or it is named under "Failed".

${table(['', ''], facts)}

${text}

## How to read it

- Ours is one process with stock options: wire checks, deadlines, metrics, log and ledger are on.
- CPU is the peer's alone, of all its processes, in kernel and user space.
- \`f1\`, latency, fan-out, recipients and memory are measured with a client of ours on Node, and \`f1\` with a sink of ours:
  compare \`direct\`, which shows what they can do.
- Latency is of a whole transaction: connecting (where the connection is new), MAIL, RCPT, DATA, body, reply.
- Memory is of a fresh process that has been warmed up: RSS, and the processes' PSS summed up where a peer has many.
- Exim and Postfix get fewer messages in a run, and so does the spool with the fast path disabled.
`;
}
