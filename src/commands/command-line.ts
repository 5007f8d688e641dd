// The commands with their flags and help, as commander has them, and as a plain description for the completions and the
// manual page: all from the table of options, so that none of them can go stale. What a command does is given by `run`.
import { Argument, Command, type HelpConfiguration, Option } from 'commander';
import { type AnyOption, choicesOf, groupOf, OPTION_NAMES, OPTIONS, type OptionName } from '../options.ts';
import { VERSION } from '../version.ts';

const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/** What the commands do. Each gets its own flags, and the command for the options of the table. */
export type Actions = Readonly<{
  serve: (command: Command) => Promise<void> | void;
  check: (json: boolean, command: Command) => Promise<void> | void;
  probe: (address: string, json: boolean, command: Command) => Promise<void> | void;
  trace: (id: string, flags: { log?: string; json?: boolean }, command: Command) => Promise<void> | void;
  queueList: (command: Command) => Promise<void> | void;
  queueShow: (id: string, command: Command) => Promise<void> | void;
  queueRetry: (ids: string[], all: boolean, command: Command) => Promise<void> | void;
  queueRemove: (ids: string[], dryRun: boolean, command: Command) => Promise<void> | void;
  completion: (shell: Shell, command: Command) => Promise<void> | void;
  man: (command: Command) => Promise<void> | void;
}>;

export type FlagInfo = Readonly<{
  /** `--mx-port` */
  flag: string;
  /** What stands for its value; '' = it takes none. */
  arg: string;
  choices: readonly string[];
  help: string;
  group: string;
  repeatable: boolean;
}>;

export type CommandInfo = Readonly<{
  /** `queue list` */
  name: string;
  help: string;
  operands: string;
  /** The values of its first operand, where they can be told. */
  choices: readonly string[];
  flags: readonly FlagInfo[];
  commands: readonly CommandInfo[];
}>;

/** Flags of single commands, which aren't options of the proxy. */
export const OWN_FLAGS = ['json', 'all', 'dryRun', 'log'] as const;

const MIN_HELP_COLUMNS = 60;
const MAX_HELP_COLUMNS = 100;
/** A flag that is longer has its help on the next line. */
const MAX_TERM_COLUMNS = 28;

const HELP_ON_SOURCES = `
Every option is also a variable, CUTTHROUGH_<NAME> (CUTTHROUGH_MX_PORT), and a
key of the YAML file that --config names, in camelCase (mxPort). A flag beats
the variable, which beats the file. An option marked with + can be repeated; in
a variable its values are separated by white space or commas (routes by white
space alone), in YAML they are a list. Giving it replaces its default; "none"
empties it.
Sizes take KiB, MiB and GiB, durations ms, s, m, h and d.`;

const HELP_ON_OTHERS = `
Every other option of "cutthrough serve" is taken as well, as a flag, a variable
or in the file of --config: what starts the proxy finds it, too.`;

/** What a command makes use of; the others are accepted, and left out of its help. */
const USED_BY = {
  probe: [
    'config',
    'hostname',
    'route',
    'dns',
    'mx-port',
    'mx-allow',
    'connect-timeout',
    'greeting-timeout',
    'command-timeout',
    'rcpt-deadline',
    'downstream-tls',
  ],
  trace: ['config', 'http'],
  queue: ['config', 'spool-dir', 'spool-min-free'],
} as const satisfies Record<string, readonly OptionName[]>;

/** @param onError gets what commander says of wrong usage */
export function buildProgram(run: Actions, onError: (text: string) => void): Command {
  const program = new Command('cutthrough')
    .description('A cut-through SMTP proxy: 250 only when every next hop has said so.')
    .version(VERSION)
    .exitOverride()
    .configureHelp(HELP);
  withOptions(program.command('serve').description('run the proxy')).action(
    async (_options, command: Command) => await run.serve(command),
  );
  const check = program
    .command('check')
    .description('validate config and certificates, print the effective config')
    .option('--json', 'print JSON: ok, errors, warnings, config');
  withOptions(check).action(
    async ({ json }: { json?: boolean }, command: Command) => await run.check(json === true, command),
  );
  const probe = program
    .command('probe')
    .description('show how an address would be routed, and what its servers say up to RCPT; sends no message')
    .argument('<address>', "a recipient's address")
    .option('--json', 'print JSON');
  withOptions(probe, USED_BY.probe).action(
    async (address: string, { json }: { json?: boolean }, command: Command) =>
      await run.probe(address, json === true, command),
  );
  const trace = program
    .command('trace')
    .description('show how one transaction went, on both sides, with times')
    .argument('<id>', 'its id, from the log or a Received line')
    .option('--log <FILE>', "read the proxy's log in place of asking the running proxy; - is standard input")
    .option('--json', 'print JSON');
  withOptions(trace, USED_BY.trace).action(
    async (id: string, flags: { log?: string; json?: boolean }, command: Command) =>
      await run.trace(id, flags, command),
  );
  addQueueCommands(program.command('queue').description('read and act on the queue of the spool'), run);
  program
    .command('completion')
    .description('print a script that completes commands, flags and values in a shell')
    .addArgument(new Argument('<shell>').choices([...SHELLS]))
    .addHelpText('after', HELP_ON_COMPLETION)
    .action(async (shell: Shell, _options, command: Command) => await run.completion(shell, command));
  program
    .command('man')
    .description('print the manual page: cutthrough man | man -l -')
    .action(async (_options, command: Command) => await run.man(command));
  sayWhere(program, 'cutthrough', onError);
  return program;
}

/** Commander says what is wrong, and here where the right is to be found. */
function sayWhere(command: Command, name: string, onError: (text: string) => void): void {
  const before = command.parent === null ? 'options stand after the command; ' : '';
  command.configureOutput({
    outputError: (text) => {
      const what = text
        .replace(/^error: /, '')
        .trim()
        .replace(/\.$/, '');
      const note = /^unknown option/.test(what) ? before : '';
      onError(/Did you mean/.test(what) ? what : `${what}; ${note}see ${name} --help`);
    },
  });
  for (const each of command.commands) sayWhere(each, `${name} ${each.name()}`, onError);
}

const HELP_ON_COMPLETION = `
bash:  source <(cutthrough completion bash)        in ~/.bashrc
zsh:   cutthrough completion zsh > DIR/_cutthrough  DIR being one of $fpath
fish:  cutthrough completion fish > ~/.config/fish/completions/cutthrough.fish`;

/** Everything is said twice: for people, and with --json for scripts. */
function addQueueCommands(queue: Command, run: Actions): void {
  const json = ['--json', 'print JSON'] as const;
  withOptions(
    queue
      .command('list')
      .description('the messages that wait')
      .option(...json),
    USED_BY.queue,
  ).action(async (_options, command: Command) => await run.queueList(command));
  const show = queue
    .command('show')
    .description('one message, with the state of each recipient')
    .argument('<id>')
    .option(...json);
  withOptions(show, USED_BY.queue).action(
    async (id: string, _options, command: Command) => await run.queueShow(id, command),
  );
  const retry = queue
    .command('retry')
    .description('try messages again now')
    .argument('[ids...]')
    .option('--all', 'every message')
    .option(...json);
  withOptions(retry, USED_BY.queue).action(
    async (ids: string[], { all }: { all?: boolean }, command: Command) =>
      await run.queueRetry(ids, all === true, command),
  );
  const remove = queue
    .command('remove')
    .description('remove messages without telling anybody')
    .argument('<ids...>')
    .option('--dry-run', 'only say what would be removed')
    .option(...json);
  withOptions(remove, USED_BY.queue).action(
    async (ids: string[], { dryRun }: { dryRun?: boolean }, command: Command) =>
      await run.queueRemove(ids, dryRun === true, command),
  );
}

function withOptions(command: Command, shown: readonly OptionName[] = OPTION_NAMES): Command {
  // Unknown flags are collected and reported along with everything else that is wrong.
  command.allowUnknownOption().allowExcessArguments();
  command.addHelpText('after', shown === OPTION_NAMES ? HELP_ON_SOURCES : HELP_ON_OTHERS);
  for (const name of OPTION_NAMES) {
    for (const option of flagsFor(name)) {
      if (!shown.includes(name)) option.hideHelp();
      command.addOption(option.helpGroup(`${groupOf(name)}:`));
    }
  }
  return command;
}

function flagsFor(name: OptionName): Option[] {
  const option: AnyOption = OPTIONS[name];
  if (option.kind.arg === '') {
    // The negative form lets a flag beat a file that says true.
    return [new Option(`--${name}`, option.help), new Option(`--no-${name}`, 'the opposite (default)')];
  }
  const preset = Array.isArray(option.default) ? option.default.join(' ') : option.default;
  const repeatable = option.takes === 'many';
  const help = `${repeatable ? '+ ' : ''}${option.help}${preset ? ` (default: ${preset})` : ''}`;
  const flag = new Option(`--${name} <${option.kind.arg}>`, help);
  if (option.takes === 'many') {
    flag.argParser((value: string, earlier: readonly string[] | undefined) => [...(earlier ?? []), value]);
  }
  return [flag];
}

const HELP: HelpConfiguration = {
  helpWidth: Math.max(MIN_HELP_COLUMNS, Math.min(MAX_HELP_COLUMNS, process.stdout.columns ?? 80)),
  // With all options in it the first line would be longer than the page.
  padWidth: () => MAX_TERM_COLUMNS,
  formatItem: (term, width, description, helper) => {
    const indent = ' '.repeat(width + 4);
    const text = helper
      .boxWrap(description, Math.max(MIN_HELP_COLUMNS - width, (helper.helpWidth ?? 80) - width - 4))
      .replaceAll('\n', `\n${indent}`);
    const fits = term.length <= width;
    return `  ${fits ? term.padEnd(width) : `${term}\n${' '.repeat(width + 2)}`}  ${text}`;
  },
};

export function describeCommands(command: Command, parent = ''): CommandInfo {
  const name = parent === '' && command.parent === null ? '' : `${parent} ${command.name()}`.trim();
  return {
    name,
    help: command.description(),
    operands: command.registeredArguments.map(operandOf).join(' '),
    choices: command.registeredArguments[0]?.argChoices ?? [],
    flags: command.options.filter((option) => !option.hidden).map(describeFlag),
    commands: command.commands.map((each) => describeCommands(each, name)),
  };
}

function operandOf(argument: Argument): string {
  const word = argument.argChoices?.join('|') ?? argument.name().toUpperCase();
  const text = argument.variadic ? `${word}...` : word;
  return argument.required ? text : `[${text}]`;
}

function describeFlag({ long, flags, description, helpGroupHeading }: Option): FlagInfo {
  const flag = long ?? flags;
  const name = flag.slice(2) as OptionName;
  const option: AnyOption | undefined = Object.hasOwn(OPTIONS, name) ? OPTIONS[name] : undefined;
  return {
    flag,
    arg: /<(.*)>/.exec(flags)?.[1] ?? '',
    choices: option === undefined ? [] : choicesOf(option),
    help: description,
    group: helpGroupHeading?.replace(/:$/, '') ?? '',
    repeatable: option?.takes === 'many',
  };
}
