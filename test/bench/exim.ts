// Exim with cutthrough_delivery. Debian's package conflicts with postfix's: it is found where it was unpacked.
import { openSync } from 'node:fs';
import { access, chmod, chown, constants, copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Running, Surroundings } from './peers.ts';
import { end, start, startOnPorts } from './processes.ts';

const PLACES = [
  process.env.EXIM,
  'node_modules/.cache/cutthrough-peers/usr/sbin/exim4',
  '/usr/sbin/exim4',
  '/usr/sbin/exim',
];
/** It gives up root, and Debian's user for it isn't there without an installation. */
const NOBODY = 65_534;

export async function eximProgram(): Promise<string | null> {
  for (const place of PLACES) {
    if (place === undefined) continue;
    const executable = await access(place, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (executable) return place;
  }
  return null;
}

export async function startExim({ directory, sinks }: Surroundings): Promise<Running> {
  for (const each of ['log', 'spool']) {
    await mkdir(join(directory, each));
    await chown(join(directory, each), NOBODY, NOBODY);
  }
  // Without the package's set-user-id, and where `nobody` may run it.
  const command = join(directory, 'exim');
  await copyFile((await eximProgram())!, command);
  await chmod(command, 0o755);
  const configuration = join(directory, 'exim.conf');
  const complaints = join(directory, 'exim says');
  const said = openSync(complaints, 'a');
  const { child, ports } = await startOnPorts(1, complaints, async ([port]) => {
    const [small, fast] = [sinks['a.example'].port, sinks['fast.example'].port];
    await writeFile(configuration, eximConf(directory, port!, small, fast));
    return start(command, ['-C', configuration, '-bdf'], { stdio: ['ignore', said, said] });
  });
  return { port: () => ports[0]!, pid: child.pid!, stop: () => end(child) };
}

/** `queue_only`: what could not be cut through stays there, so that it is missed. */
function eximConf(directory: string, port: number, small: number, fast: number): string {
  const transport = (name: string, to: number) => `${name}:
  driver = smtp
  port = ${to}
  hosts_avoid_tls = *
  hosts_try_fastopen =
  allow_localhost
`;
  return `exim_path = ${directory}/exim
keep_environment =
primary_hostname = proxy.example
log_file_path = ${directory}/log/%slog
spool_directory = ${directory}/spool
pid_file_path = ${directory}/pid
exim_user = ${NOBODY}
exim_group = ${NOBODY}
never_users =
local_interfaces = 127.0.0.1
daemon_smtp_ports = ${port}
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 1024
message_size_limit = 0
queue_only
acl_smtp_rcpt = check_rcpt
begin acl
check_rcpt:
  accept control = cutthrough_delivery
begin routers
fast:
  driver = manualroute
  domains = fast.example
  route_list = * 127.0.0.1
  transport = fast
  self = send
small:
  driver = manualroute
  route_list = * 127.0.0.1
  transport = small
  self = send
begin transports
${transport('fast', fast)}${transport('small', small)}begin retry
* * F,2h,15m
`;
}
