// Postfix, both ways: as a proxy before a filter, which is the next hop, and with its queue, to which it takes a message
// (one fsync) before its 250, delivering from there.
import { execFileSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Running, Surroundings } from './peers.ts';
import { daemonOf, end, start, startOnPorts, waitsFor } from './processes.ts';

export async function startPostfixProxy(surroundings: Surroundings): Promise<Running> {
  return await startPostfix(surroundings, (sinkPort) => `-o smtpd_proxy_filter=127.0.0.1:${sinkPort}`);
}

export async function startPostfixQueue(surroundings: Surroundings): Promise<Running> {
  return await startPostfix(surroundings, () => '');
}

async function startPostfix(
  { directory, sinks }: Surroundings,
  options: (sinkPort: number) => string,
): Promise<Running> {
  const [etc, data, queue] = ['etc', 'data', 'queue'].map((each) => join(directory, each)) as [
    string,
    string,
    string,
  ];
  for (const each of [etc, data, queue]) await mkdir(each);
  execFileSync('chown', ['postfix', data]);
  const pidFile = join(queue, 'pid', 'master.pid');
  const complaints = join(directory, 'postfix says');
  const log = openSync(complaints, 'a');
  const [small, fast] = [sinks['a.example'].port, sinks['fast.example'].port];
  const { child, ports } = await startOnPorts(2, complaints, async (mine) => {
    await rm(pidFile, { force: true });
    await writeFile(join(etc, 'main.cf'), mainCf({ directory, data, queue, sinkPort: small }));
    const listeners = [small, fast].map(
      (to, at) => `127.0.0.1:${mine[at]} inet n - n - - smtpd ${options(to)}`,
    );
    await writeFile(join(etc, 'master.cf'), `${listeners.join('\n')}\n${SERVICES}`);
    const started = start('postfix', ['-c', etc, 'start-fg'], { stdio: ['ignore', log, log] });
    waitsFor(started, pidFile);
    return started;
  });
  const pid = daemonOf(child);
  if (pid === null) throw new Error('postfix did not say its pid');
  return { port: (domain) => ports[domain === 'fast.example' ? 1 : 0]!, pid, stop: () => end(child) };
}

/** Postfix as it comes, but for: nothing is asked of DNS, all may relay, everything goes to the sink, in any size. */
function mainCf(at: Readonly<{ directory: string; data: string; queue: string; sinkPort: number }>): string {
  return `compatibility_level = 3.6
queue_directory = ${at.queue}
data_directory = ${at.data}
maillog_file = ${join(at.directory, 'maillog')}
maillog_file_prefixes = ${at.directory}
mail_owner = postfix
setgid_group = postdrop
myhostname = proxy.example
mydestination =
mynetworks = 127.0.0.0/8
inet_protocols = ipv4
local_recipient_maps =
alias_maps =
disable_dns_lookups = yes
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
message_size_limit = 0
mailbox_size_limit = 0
default_transport = smtp:[127.0.0.1]:${at.sinkPort}
`;
}

/** The usual ones, none in a chroot. */
const SERVICES = `pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`;
