#!/usr/bin/env node
// The program: commands, flags and exit codes. 0 good, 1 a failure in one line on stderr, 2 wrong usage.
// Flags come from the table of options; their values are judged by parseConfig, so that every error is told at once.

import { Command, CommanderError, Option } from 'commander';
import { checkCertificate } from './certificate.ts';
import { type Config, describeConfig, loadConfig, type ParsedConfig } from './config.ts';
import {
  type AnyOption,
  camelCase,
  isOptionName,
  OPTION_NAMES,
  OPTIONS,
  type OptionName,
} from './options.ts';
import { serve } from './serve.ts';
import type { QueueRequest } from './spool/control.ts';
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

const HELP_ON_SOURCES = `
Every option is also a variable, CUTTHROUGH_<NAME> (CUTTHROUGH_MX_PORT), and a key of the YAML file that --config
names, in camelCase (mxPort). A flag beats the variable, which beats the file. An option marked with + can be
repeated; in a variable its values are separated by white space, in YAML they are a list. Giving it replaces its
default; "none" empties it. Sizes take KiB, MiB and GiB, durations ms, s, m, h and d.`;

function buildProgram(): Command {
  const program = new Command('cutthrough')
    .description('A cut-through SMTP proxy: 250 only when every next hop has said so.')
    .version(VERSION)
    .exitOverride()
    .configureOutput({
      outputError: (text, write) => write(`cutthrough: ${oneLine(text.replace(/^error: /, ''))}\n`),
    });
  withOptions(program.command('serve').description('run the proxy')).action(
    async (_options, command: Command) => {
      await runServe(command);
    },
  );
  withOptions(
    program.command('check').description('validate config and certificates, print the effective config'),
  ).action((_options, command: Command) => runCheck(command));
  withOptions(program.command('probe').description('show how an address would be routed; sends no message'))
    .argument('<address>', "a recipient's address")
    .option('--json', 'print JSON')
    .action(async (address: string, { json }: { json?: boolean }, command: Command) => {
      await runProbe(address, json === true, command);
    });
  addQueueCommands(program.command('queue').description('read and act on the queue of the spool'));
  return program;
}

/** Everything is said twice: for people, and with --json for scripts. */
function addQueueCommands(queue: Command): void {
  const json = ['--json', 'print JSON'] as const;
  withOptions(queue.command('list').description('the messages that wait'))
    .option(...json)
    .action(async (_options, command: Command) => await runQueue({ command: 'list' }, command, 0));
  withOptions(queue.command('show').description('one message, with the state of each recipient'))
    .argument('<id>')
    .option(...json)
    .action(
      async (id: string, _options, command: Command) => await runQueue({ command: 'show', id }, command, 1),
    );
  withOptions(queue.command('retry').description('try messages again now'))
    .argument('[ids...]')
    .option('--all', 'every message')
    .option(...json)
    .action(async (ids: string[], { all }: { all?: boolean }, command: Command) => {
      if ((all === true) === ids.length > 0) throw new Failure(2, ['queue retry: give ids, or --all']);
      await runQueue({ command: 'retry', ids: all === true ? 'all' : ids }, command, ids.length);
    });
  withOptions(queue.command('remove').description('remove messages without telling anybody'))
    .argument('<ids...>')
    .option('--dry-run', 'only say what would be removed')
    .option(...json)
    .action(async (ids: string[], { dryRun }: { dryRun?: boolean }, command: Command) => {
      await runQueue({ command: 'remove', ids, dryRun: dryRun === true }, command, ids.length);
    });
}

function withOptions(command: Command): Command {
  // Unknown flags are collected and reported along with everything else that is wrong.
  command.allowUnknownOption().allowExcessArguments().addHelpText('after', HELP_ON_SOURCES);
  for (const name of OPTION_NAMES) for (const option of flagsFor(name)) command.addOption(option);
  return command;
}

function flagsFor(name: OptionName): Option[] {
  const option: AnyOption = OPTIONS[name];
  if (option.kind.arg === '') {
    // The negative form lets a flag beat a file that says true.
    return [new Option(`--${name}`, option.help), new Option(`--no-${name}`, `the opposite (default)`)];
  }
  const preset = Array.isArray(option.default) ? option.default.join(' ') : option.default;
  const help = `${option.takes === 'many' ? '+ ' : ''}${option.help}${preset ? ` (default: ${preset})` : ''}`;
  const flag = new Option(`--${name} <${option.kind.arg}>`, help);
  if (option.takes === 'many') {
    flag.argParser((value: string, earlier: readonly string[] | undefined) => [...(earlier ?? []), value]);
  }
  return [flag];
}

type Usage = Readonly<{ flags: Readonly<Record<string, unknown>>; wrong: boolean }>;

/** The flags as given, the unknown ones included: `parseConfig` names the nearest known one for each. */
function usageOf(command: Command, operands: number): Usage {
  const { json: _json, all: _all, dryRun: _dryRun, ...flags } = command.opts<Record<string, unknown>>();
  const leftOver = command.args.filter((word) => /^-./.test(word) && word !== '--');
  const extra = command.args.slice(operands);
  if (leftOver.length === 0 && extra.length > 0) {
    throw new Failure(2, [
      `${command.name()}: what is "${extra[0]}" for? See cutthrough ${command.name()} --help`,
    ]);
  }
  for (const word of leftOver) {
    const [, flag = word, value = true] = /^([^=]*)=(.*)$/s.exec(word) ?? [];
    // Commander has no --require-tls=false, and leaves it to us.
    const name = flag.replace(/^--/, '');
    flags[isOptionName(name) ? camelCase(name) : flag] = value;
  }
  return { flags, wrong: leftOver.length > 0 };
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

function runCheck(command: Command): void {
  const usage = usageOf(command, 0);
  const parsed = load(usage);
  const certificate = checkCertificate(parsed.ok ? parsed.config : parsed.tlsFiles, Date.now());
  const errors = [...(parsed.ok ? [] : parsed.errors), ...certificate.errors];
  // Bad values are what this command is there to find, so they are its failure and not wrong usage.
  if (!parsed.ok || errors.length > 0) throw new Failure(usage.wrong ? 2 : 1, errors);
  for (const warning of [...parsed.warnings, ...certificate.warnings]) complain(`warning: ${warning}`);
  process.stdout.write(describeConfig(parsed.config));
}

async function runProbe(address: string, json: boolean, command: Command): Promise<void> {
  const { config, warnings } = loadOrFail(usageOf(command, 1));
  for (const warning of warnings) complain(`warning: ${warning}`);
  const { probeAddress } = await import('./probe.ts');
  const result = await probeAddress(config, address);
  process.stdout.write(json ? `${JSON.stringify(result.json, null, 2)}\n` : `${result.lines.join('\n')}\n`);
  process.exit(result.ok ? 0 : 1);
}

async function runQueue(request: QueueRequest, command: Command, operands: number): Promise<void> {
  const { config } = loadOrFail(usageOf(command, operands));
  const { runQueueCommand } = await import('./queue-command.ts');
  const { json, lines, ok } = await runQueueCommand(config, request);
  const asJson = command.opts<{ json?: boolean }>().json === true;
  process.stdout.write(asJson ? `${JSON.stringify(json, null, 2)}\n` : `${lines.join('\n')}\n`);
  if (!ok) process.exitCode = 1;
}

function complain(line: string): void {
  process.stderr.write(`cutthrough: ${oneLine(line)}\n`);
}

function oneLine(text: string): string {
  return text.trim().replace(/\s*\n\s*/g, ' ');
}

async function main(): Promise<void> {
  try {
    await buildProgram().parseAsync();
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
