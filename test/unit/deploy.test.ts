// The files an operator deploys by: each option in them is accepted by the program, and what they say to one another
// (ports, names, directories, time to stop) agrees.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { environmentOf, execForm, lastOf, parseDockerfile } from '../support/dockerfile.ts';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const CLI = join(ROOT, 'dist/cli.js');
const read = (file: string) => readFileSync(join(ROOT, file), 'utf8');
const scratch = mkdtempSync(join(tmpdir(), 'cutthrough-deploy-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

type Environment = Readonly<Record<string, string>>;
type Effective = Readonly<{
  listen: string[];
  http: string;
  route: string[];
  fallback: string;
  spoolDir: string;
  drainTimeout: string;
}>;

/** What `cutthrough check` makes of a file and an environment; it must have no complaints. */
function check(configFile: string, env: Environment = {}): Effective {
  const named = { CUTTHROUGH_HOSTNAME: 'mx.example.com', ...env, CUTTHROUGH_CONFIG: configFile };
  const ran = spawnSync(process.execPath, [CLI, 'check'], { env: named, encoding: 'utf8' });
  expect(ran.stderr).toBe('');
  expect(ran.status).toBe(0);
  return parse(ran.stdout) as Effective;
}

function seconds(text: string): number {
  const [, number = '', unit = ''] = /^(\d+)(s|m)$/.exec(text) ?? [];
  return Number(number) * (unit === 'm' ? 60 : 1);
}

const portOf = (url: string) => Number(url.slice(url.lastIndexOf(':') + 1));

const stages = parseDockerfile(read('Dockerfile'));

describe('the image', () => {
  const image = environmentOf(stages, 'proxy');
  const effective = check(join(ROOT, 'deploy/image/cutthrough.yaml'));

  test('starts from a config that is accepted, and put where the image says', () => {
    const copied = stages.find(({ name }) => name === 'proxy')?.instructions.map(({ rest }) => rest);
    expect(copied).toContain(`deploy/image/cutthrough.yaml ${image.CUTTHROUGH_CONFIG}`);
  });

  test('exposes and asks after the ports that the config listens at', () => {
    const ports = [...effective.listen.map(portOf), portOf(effective.http)];
    expect(lastOf(stages, 'proxy', 'EXPOSE')).toBe(ports.join(' '));
    const probe = execForm(lastOf(stages, 'proxy', 'HEALTHCHECK')).join(' ');
    expect(probe).toContain(`http://127.0.0.1:${portOf(effective.http)}/readyz`);
    expect(effective.listen.every((url) => url.includes('://0.0.0.0:'))).toBe(true);
  });

  test('runs as a user without a name, with a volume where it spools', () => {
    for (const name of ['proxy', 'load']) expect(lastOf(stages, name, 'USER')).toMatch(/^[1-9]\d*:[1-9]\d*$/);
    expect(lastOf(stages, 'proxy', 'VOLUME')).toBe(effective.spoolDir);
    const made = stages.find(({ name }) => name === 'proxy')?.instructions.map(({ rest }) => rest);
    const [user, group] = lastOf(stages, 'proxy', 'USER')!.split(':');
    expect(made?.join('\n')).toContain(`install -d -o ${user} -g ${group} -m 0700 ${effective.spoolDir}`);
  });

  test('is stopped by the signal that drains, through an init', () => {
    expect(lastOf(stages, 'proxy', 'STOPSIGNAL')).toBe('SIGTERM');
    expect(execForm(lastOf(stages, 'proxy', 'ENTRYPOINT'))[0]).toBe('/usr/bin/tini');
  });

  test('is built on exactly one version', () => {
    const others = stages.filter(({ base }) => !stages.some(({ name }) => name === base));
    const bases = [...new Set(others.map(({ base }) => base))];
    expect(bases).toHaveLength(1);
    expect(bases[0]).toMatch(/^node:\d+\.\d+\.\d+-\w+-slim$/);
  });

  test('is the default of docker build', () => {
    expect(stages.at(-1)?.name).toBe('proxy');
  });
});

type Service = Readonly<{
  image: string;
  build?: { target: string };
  environment?: Record<string, string>;
  depends_on?: Record<string, unknown>;
  secrets?: { source: string; target: string }[];
  volumes?: string[];
  ports?: string[];
  networks: string[];
  profiles?: string[];
  stop_grace_period?: string;
  read_only?: boolean;
  cap_drop?: string[];
  security_opt?: string[];
  mem_limit?: string;
  restart?: string;
}>;
type Compose = Readonly<{
  services: Record<string, Service>;
  secrets: Record<string, { file: string }>;
  volumes: Record<string, unknown>;
  networks: Record<string, unknown>;
}>;

/** `${NAME:-default}` with nothing set. */
function withDefaults(text: string): string {
  return text.replace(/\$\{\w+:-([^}]*)\}/g, '$1');
}

describe('docker-compose.yml', () => {
  const { services, secrets, volumes, networks } = parse(withDefaults(read('docker-compose.yml')), {
    merge: true,
  }) as Compose;
  const proxy = services.cutthrough!;
  const load = services.load!;
  const effective = check(join(ROOT, secrets['cutthrough-config']!.file), proxyEnvironment());

  function proxyEnvironment(): Environment {
    const { CUTTHROUGH_CONFIG: _file, ...others } = proxy.environment!;
    return others;
  }

  test('the proxy reads its config from its secret', () => {
    const [secret] = proxy.secrets!;
    expect(proxy.environment!.CUTTHROUGH_CONFIG).toBe(`/run/secrets/${secret!.target}`);
    expect(Object.keys(secrets)).toEqual([secret!.source]);
  });

  test('every route leads to a service on a network of the proxy, and to the port it listens at', () => {
    const hops = effective.route.map((route) => /^\S+=smtp:\/\/([^:]+):(\d+)$/.exec(route)!.slice(1));
    expect(hops).toEqual([
      ['inbox-a', '1025'],
      ['inbox-b', '1025'],
      ['load', '2500'],
    ]);
    for (const [host] of hops) expect(services[host!]!.networks).toContain('mail');
    expect(proxy.networks).toContain('mail');
    expect(load.environment!.LOAD_SHAKY_LISTEN).toBe('0.0.0.0:2500');
    expect(load.environment!.LOAD_TARGET).toBe(`cutthrough:${portOf(effective.listen[0]!)}`);
  });

  test('the load generator sends to domains that the proxy routes', () => {
    const domains = `${load.environment!.LOAD_DOMAINS} ${load.environment!.LOAD_SHAKY_DOMAIN}`.split(' ');
    expect(effective.route.map((route) => route.split('=')[0])).toEqual(domains);
    expect(load.profiles).toEqual(['load']);
  });

  test('what is published is published on this machine alone, and is what the proxy listens at', () => {
    const published = Object.values(services).flatMap(({ ports = [] }) => ports);
    expect(published.every((port) => port.startsWith('127.0.0.1:'))).toBe(true);
    expect(new Set(published.map((port) => port.split(':')[1])).size).toBe(published.length);
    const inside = proxy.ports!.map(portOf);
    expect(inside).toEqual([...effective.listen.map(portOf), portOf(effective.http)]);
  });

  test('the proxy has its spool on a volume, and more time to stop than it drains for', () => {
    expect(proxy.volumes).toEqual([`spool:${effective.spoolDir}`]);
    expect(seconds(proxy.stop_grace_period!)).toBeGreaterThan(seconds(effective.drainTimeout));
  });

  test('every service is hardened, limited and pinned', () => {
    for (const [name, service] of Object.entries(services)) {
      expect(service, name).toMatchObject({
        read_only: true,
        cap_drop: ['ALL'],
        security_opt: ['no-new-privileges:true'],
        restart: 'unless-stopped',
      });
      expect(service.mem_limit, name).toMatch(/^\d+m$/);
      if (service.build === undefined) expect(service.image, name).toMatch(/:v?\d+\.\d+\.\d+$/);
      else expect(stages.map((stage) => stage.name)).toContain(service.build.target);
    }
  });

  test('names no service, network or volume that is not there', () => {
    for (const { depends_on = {}, networks: of, volumes: mounts = [] } of Object.values(services)) {
      expect(Object.keys(services)).toEqual(expect.arrayContaining(Object.keys(depends_on)));
      expect(Object.keys(networks)).toEqual(expect.arrayContaining(of));
      const named = mounts.map((mount) => mount.split(':')[0]!).filter((source) => !source.startsWith('.'));
      expect(Object.keys(volumes)).toEqual(expect.arrayContaining(named));
    }
  });

  test('every file and directory that is mounted exists', (context) => {
    const sources = Object.values(services).flatMap(({ volumes: mounts = [] }) =>
      mounts.map((mount) => mount.split(':')[0]!).filter((source) => source.startsWith('.')),
    );
    // A tree that is being put together may lack the dashboards; one that is released may not.
    if (!process.env.CI && !existsSync(join(ROOT, 'grafana'))) context.skip('grafana/ is not there yet');
    const files = Object.values(secrets).map(({ file }) => file);
    expect([...sources, ...files].filter((source) => !existsSync(join(ROOT, source)))).toEqual([]);
    // One that isn't there is made by Docker, as a directory.
    for (const source of sources.filter((each) => /\.\w+$/.test(each)))
      expect(statSync(join(ROOT, source)).isFile()).toBe(true);
  });
});

type Pod = Readonly<{
  terminationGracePeriodSeconds: number;
  containers: {
    env: { name: string; value?: string; valueFrom?: { secretKeyRef: { name: string; key: string } } }[];
    ports: { name: string; containerPort: number }[];
    volumeMounts: { name: string; mountPath: string }[];
    lifecycle: { preStop: { exec: { command: string[] } } };
    securityContext: object;
  }[];
  volumes: { name: string; configMap?: { name: string } }[];
  securityContext: { runAsUser: number; runAsGroup: number; fsGroup: number };
}>;
type Manifest = Readonly<{
  kind: string;
  metadata: { name: string; labels: Record<string, string> };
  data: Record<string, string>;
  stringData: Record<string, string>;
  spec: {
    selector: object;
    template: { metadata: { labels: Record<string, string> }; spec: Pod };
    ports: { targetPort: string }[];
    podMetricsEndpoints: { port: string; path: string }[];
    volumeClaimTemplates: { metadata: { name: string } }[];
  };
}>;

describe('deploy/kubernetes', () => {
  const all = ['config', 'deployment', 'statefulset', 'service', 'podmonitor'].flatMap((name) =>
    parseAllDocuments(read(`deploy/kubernetes/${name}.yaml`)).map((each) => each.toJS() as Manifest),
  );
  const get = (kind: string) => all.find((each) => each.kind === kind)!;
  const pods = ['Deployment', 'StatefulSet'].map((kind) => get(kind).spec.template.spec);
  const configFile = join(scratch, 'kubernetes.yaml');
  writeFileSync(configFile, get('ConfigMap').data['cutthrough.yaml']!);

  test.each(pods)(
    'the config is accepted, with the variables of the pod and without the example of a Secret',
    (pod) => {
      const env = pod.containers[0]!.env.flatMap(({ name, value }) =>
        value === undefined ? [] : [[name, value]],
      );
      const { listen, http } = check(configFile, Object.fromEntries(env) as Environment);
      const ports = pod.containers[0]!.ports.map(({ containerPort }) => containerPort);
      expect(ports).toEqual([...listen.map(portOf), portOf(http)]);
      const mount = pod.containers[0]!.volumeMounts.find(({ name }) => name === 'config');
      expect(`${mount!.mountPath}/cutthrough.yaml`).toBe(environmentOf(stages, 'proxy').CUTTHROUGH_CONFIG);
    },
  );

  test('the example of a Secret is accepted, and beats the route of the ConfigMap', () => {
    const { route } = check(configFile, get('Secret').stringData);
    expect(route).toEqual([
      'example.com=smtp://store.mail.svc.cluster.local:25',
      '.example.com=smtps://proxy:***@relay.example.com:465?tls=verify',
    ]);
    const reference = pods[0]!.containers[0]!.env[0]!.valueFrom!.secretKeyRef;
    expect(reference).toMatchObject({ name: get('Secret').metadata.name, key: 'CUTTHROUGH_ROUTE' });
  });

  test.each(pods)('a pod has time for its hook and for draining', (pod) => {
    const [, hook] = pod.containers[0]!.lifecycle.preStop.exec.command;
    const needed = Number(hook) + seconds(check(configFile).drainTimeout);
    expect(pod.terminationGracePeriodSeconds).toBeGreaterThan(needed);
  });

  test.each(pods)(
    'a pod meets the restricted standard, as the user of the image',
    ({ securityContext, containers }) => {
      const [user, group] = lastOf(stages, 'proxy', 'USER')!.split(':').map(Number);
      expect(securityContext).toMatchObject({
        runAsNonRoot: true,
        runAsUser: user,
        runAsGroup: group,
        fsGroup: group,
        seccompProfile: { type: 'RuntimeDefault' },
      });
      expect(containers[0]!.securityContext).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      });
    },
  );

  test('the pods of the StatefulSet are those of the Deployment but for the spool', () => {
    const [plain, spooling] = structuredClone(pods) as [Pod, Pod];
    const [container] = spooling.containers;
    expect(container!.env.pop()).toEqual({ name: 'CUTTHROUGH_FALLBACK', value: 'spool' });
    const mount = container!.volumeMounts.pop()!;
    // A volume's root belongs to root, and the program wants a directory of its own; and where the image has a volume,
    // a cluster may put an empty one over ours.
    const { spoolDir } = check(configFile);
    expect(spoolDir.startsWith(`${mount.mountPath}/`)).toBe(true);
    expect(spoolDir.startsWith(lastOf(stages, 'proxy', 'VOLUME')!)).toBe(false);
    expect(get('StatefulSet').spec.volumeClaimTemplates.map(({ metadata }) => metadata.name)).toEqual([
      mount.name,
    ]);
    expect(spooling).toEqual(plain);
  });

  test('selectors, labels and names of ports agree', () => {
    const label = { 'app.kubernetes.io/name': 'cutthrough' };
    for (const { metadata } of all) expect(metadata.labels).toEqual(label);
    expect(get('Service').spec.selector).toEqual(label);
    for (const kind of ['Deployment', 'StatefulSet', 'PodMonitor', 'PodDisruptionBudget'])
      expect(get(kind).spec.selector).toEqual({ matchLabels: label });
    const names = pods[0]!.containers[0]!.ports.map(({ name }) => name);
    expect(names).toContain(get('Service').spec.ports[0]!.targetPort);
    expect(names).toContain(get('PodMonitor').spec.podMetricsEndpoints[0]!.port);
    const [volume] = pods[0]!.volumes;
    expect(volume!.configMap!.name).toBe(get('ConfigMap').metadata.name);
  });
});

describe('deploy/systemd', () => {
  const unit = read('deploy/systemd/cutthrough.service');
  const values = (name: string) =>
    [...unit.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].map((match) => match[1]!);

  test('the example config is accepted, and its spool is the one directory that the unit may write', () => {
    const { spoolDir, drainTimeout, fallback } = check(join(ROOT, 'deploy/cutthrough.yaml'));
    expect(fallback).toBe('spool');
    expect(values('StateDirectory').map((name) => `/var/lib/${name}`)).toEqual([spoolDir]);
    expect(values('ReadWritePaths')).toEqual([]);
    expect(seconds(values('TimeoutStopSec')[0]!)).toBeGreaterThan(seconds(drainTimeout));
  });

  test('gives the program the files that systemd loads for it, and a user that is made', () => {
    const loaded = values('LoadCredential').map((each) => `%d/${each.split(':')[0]}`);
    expect(values('Environment').map((each) => each.split('=')[1])).toEqual(loaded);
    expect(read('deploy/systemd/sysusers.conf')).toMatch(new RegExp(`^u ${values('User')[0]} `, 'm'));
  });
});
