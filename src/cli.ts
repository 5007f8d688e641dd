#!/usr/bin/env node
// The program: commands, flags and exit codes. 0 good, 1 a failure in one line on stderr, 2 wrong usage.
// Flags come from the table of options; their values are judged by parseConfig, so that every error is told at once.

import { type Command, CommanderError } from 'commander';
import { checkCertificate } from './certificate.ts';
import { type Actions, buildProgram, describeCommands, OWN_FLAGS } from './commands/command-line.ts';
import { serve } from './commands/serve.ts';
import { type Config, describeConfig, effectiveOptions, loadConfig, type ParsedConfig } from './config.ts';
import { camelCase, isOptionName } from './options.ts';
import type { QueueRequest } from './spool/control.ts';
import { paintFor } from './terminal.ts';
import { VERSION } from './version.ts';

type ExitCode = 0 | 1 | 2;

/** Ends the program: `lines` go to stderr. */
class Failure extends Error {
  readonly exitCode: ExitCode;
  readonly lines: readonly string[];

  constructor(exitCode: ExitCode, lines: readonly string[]) {
    super(lines.join('\n'));
    this.exitCode = exitCode;
    this.lines = lines;
  }
}

const ACTIONS: Actions = {
  serve: runServe,
  check: runCheck,
  probe: runProbe,
  trace: runTraceCommand,
  queueList: async (command) => await runQueue({ command: 'list' }, command, 0),
  queueShow: async (id, command) => await runQueue({ command: 'show', id }, command, 1),
  queueRetry: async (ids, all, command) => {
    if (all === ids.length > 0)
      throw new Failure(2, ['queue retry: give ids, or --all; "cutthrough queue list" has the ids']);
    await runQueue({ command: 'retry', ids: all ? 'all' : ids }, command, ids.length);
  },
  queueRemove: async (ids, dryRun, command) =>
    await runQueue({ command: 'remove', ids, dryRun }, command, ids.length),
  completion: async (shell, command) => {
    const { completionScript } = await import('./commands/completion.ts');
    process.stdout.write(completionScript(shell, describeCommands(command.parent!)));
  },
  man: async (command) => {
    const { manPage } = await import('./commands/man-page.ts');
    process.stdout.write(manPage(describeCommands(command.parent!), VERSION));
  },
};

type Usage = Readonly<{ flags: Readonly<Record<string, unknown>>; wrong: boolean }>;

/** The flags as given, the unknown ones included: `parseConfig` names the nearest known one for each. */
function usageOf(command: Command, operands: number): Usage {
  // A copy: opts() is what the command still reads its own flags from.
  const flags = { ...command.opts<Record<string, unknown>>() };
  for (const name of OWN_FLAGS) delete flags[name];
  const leftOver = command.args.filter((word) => /^-./.test(word) && word !== '--');
  const extra = command.args.slice(operands);
  if (leftOver.length === 0 && extra.length > 0) {
    throw new Failure(2, [`${command.name()}: what is "${extra[0]}" for? See ${pathOf(command)} --help`]);
  }
  for (const word of leftOver) {
    const [, flag = word, value = true] = /^([^=]*)=(.*)$/s.exec(word) ?? [];
    // Commander has no --require-tls=false, and leaves it to us.
    const name = flag.replace(/^--/, '');
    flags[isOptionName(name) ? camelCase(name) : flag] = value;
  }
  return { flags, wrong: leftOver.length > 0 };
}

function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`;
}

function load({ flags }: Usage): ParsedConfig {
  return loadConfig({ flags, env: process.env });
}

function loadOrFail(usage: Usage): { config: Config; warnings: readonly string[] } {
  const parsed = load(usage);
  if (!parsed.ok) throw new Failure(2, parsed.errors);
  return parsed;
}

async function runServe(command: Command): Promise<void> {
  const usage = usageOf(command, 0);
  const { config, warnings } = loadOrFail(usage);
  await serve(() => load(usage), config, warnings);
}

function runCheck(json: boolean, command: Command): void {
  const usage = usageOf(command, 0);
  const parsed = load(usage);
  const certificate = checkCertificate(parsed.ok ? parsed.config : parsed.tlsFiles, Date.now());
  const errors = [...(parsed.ok ? [] : parsed.errors), ...certificate.errors];
  const warnings = [...(parsed.ok ? parsed.warnings : []), ...certificate.warnings];
  const good = parsed.ok && errors.length === 0;
  if (json) {
    const config = good ? effectiveOptions(parsed.config) : null;
    process.stdout.write(`${JSON.stringify({ ok: good, errors, warnings, config }, null, 2)}\n`);
  }
  // Bad values are what this command is there to find, so they are its failure and not wrong usage.
  if (!good) throw new Failure(usage.wrong ? 2 : 1, errors);
  for (const warning of warnings) complain(`warning: ${warning}`);
  if (!json) process.stdout.write(describeConfig(parsed.config));
}

async function runProbe(address: string, json: boolean, command: Command): Promise<void> {
  const { config, warnings } = loadOrFail(usageOf(command, 1));
  for (const warning of warnings) complain(`warning: ${warning}`);
  const { probeAddress } = await import('./commands/probe.ts');
  const result = await probeAddress(config, address);
  if (result === null)
    throw new Failure(2, [`probe: ${JSON.stringify(address)} is no address; it looks like user@example.com`]);
  print(json, result.json, result.lines(paintFor(process.stdout, process.env)));
  if (result.failure !== null) throw new Failure(1, [`probe: ${result.failure}`]);
  process.exit(0);
}

async function runTraceCommand(
  id: string,
  { log, json }: { log?: string; json?: boolean },
  command: Command,
): Promise<void> {
  const usage = usageOf(command, 1);
  if (!/^[\w.-]{1,64}$/.test(id))
    throw new Failure(2, [
      `trace: ${JSON.stringify(id)} is no id; it stands in the log and in our Received line`,
    ]);
  const { config } = loadOrFail(usage);
  const { runTrace } = await import('./commands/trace.ts');
  const report = await runTrace(config, id, log);
  print(json === true, report.json, report.lines(paintFor(process.stdout, process.env)));
}

function print(asJson: boolean, json: unknown, lines: readonly string[]): void {
  const text = asJson ? JSON.stringify(json, null, 2) : lines.join('\n');
  if (text !== '') process.stdout.write(`${text}\n`);
}

async function runQueue(request: QueueRequest, command: Command, operands: number): Promise<void> {
  const { config } = loadOrFail(usageOf(command, operands));
  const { runQueueCommand } = await import('./commands/queue.ts');
  const { json, lines, failures } = await runQueueCommand(config, request);
  print(command.opts<{ json?: boolean }>().json === true, json, lines);
  if (failures.length > 0) throw new Failure(1, failures);
}

function complain(line: string): void {
  process.stderr.write(`cutthrough: ${oneLine(line)}\n`);
}

function oneLine(text: string): string {
  return text.trim().replace(/\s*\n\s*/g, ' ');
}

async function main(): Promise<void> {
  try {
    await buildProgram(ACTIONS, complain).parseAsync();
  } catch (error) {
    // Commander has said what is wrong already; help that was asked for is no error.
    if (error instanceof CommanderError) process.exit(error.exitCode === 0 ? 0 : 2);
    const failure =
      error instanceof Failure
        ? error
        : new Failure(1, [error instanceof Error ? error.message : String(error)]);
    for (const line of failure.lines) complain(line);
    process.exit(failure.exitCode);
  }
}

await main();
