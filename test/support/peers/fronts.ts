// nginx's mail proxy and haproxy, in front of a proxy under test. The service that nginx asks is a few lines here.
import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { temporaryDirectory } from '../tools.ts';
import { Daemon } from './daemon.ts';
import { programOf } from './installed.ts';

/** nginx with this `mail` section, which listens on `port`. */
export async function startNginx(mail: string, port: number): Promise<Daemon> {
  const directory = await temporaryDirectory();
  const logDirectory = join(directory, 'log');
  await mkdir(logDirectory);
  const file = join(directory, 'nginx.conf');
  const main = [
    `load_module ${programOf('nginx')};`,
    'user root;',
    'daemon off;',
    `pid ${directory}/pid;`,
    `error_log ${logDirectory}/error.log info;`,
    'events {}',
  ];
  await writeFile(file, `${main.join('\n')}\n${mail}`);
  const args = ['-c', file, '-e', join(logDirectory, 'error.log'), '-p', directory];
  return await Daemon.start({ command: 'nginx', args, ports: [port], logDirectory });
}

export async function startHaproxy(sections: string, port: number): Promise<Daemon> {
  const file = join(await temporaryDirectory(), 'haproxy.cfg');
  await writeFile(file, sections);
  return await Daemon.start({ command: programOf('haproxy'), args: ['-f', file], ports: [port] });
}

/** What nginx asks where a client's mail goes: always to `port`. Gives its own. */
export async function startAuthService(port: number): Promise<number> {
  const server = http.createServer((_, response) => {
    const headers = { 'Auth-Status': 'OK', 'Auth-Server': '127.0.0.1', 'Auth-Port': `${port}` };
    response.writeHead(200, headers).end();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}
