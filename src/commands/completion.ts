// `cutthrough completion SHELL`: a script for the shell, made from the description of the commands. Pure.
import type { CommandInfo, FlagInfo, Shell } from './command-line.ts';

export function completionScript(shell: Shell, program: CommandInfo): string {
  const lines = { bash, zsh, fish }[shell](program);
  return `${lines.join('\n')}\n`;
}

/** What a flag's value is completed to. */
function valueKind({ arg, choices }: FlagInfo): 'none' | 'file' | 'directory' | 'choices' | 'free' {
  if (arg === '') return 'none';
  if (arg === 'FILE') return 'file';
  if (arg === 'DIR') return 'directory';
  return choices.length > 0 ? 'choices' : 'free';
}

function allCommands(program: CommandInfo): readonly CommandInfo[] {
  return [program, ...program.commands.flatMap(allCommands)];
}

/** The same name means the same in every command. */
function allFlags(program: CommandInfo): readonly FlagInfo[] {
  const byName = new Map(allCommands(program).flatMap(({ flags }) => flags.map((each) => [each.flag, each])));
  return [...byName.values()];
}

function lastWord(name: string): string {
  return name.slice(name.lastIndexOf(' ') + 1);
}

/** In single quotes, for all three shells. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

// ---- bash ----

// The script's own variables stand in it as they are.
// biome-ignore-start lint/suspicious/noTemplateCurlyInString: bash
function bash(program: CommandInfo): readonly string[] {
  const commands = allCommands(program).filter(({ name }) => name !== '');
  const flags = allFlags(program);
  const named = (kind: ReturnType<typeof valueKind>) =>
    flags.filter((each) => valueKind(each) === kind).map(({ flag }) => flag);
  const words = ({ commands, choices, flags }: CommandInfo) => [
    ...commands.map(({ name }) => lastWord(name)),
    ...choices,
    ...flags.map(({ flag }) => flag),
    '--help',
  ];
  return [
    '# bash completion of cutthrough, made by: cutthrough completion bash',
    '_cutthrough() {',
    "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path='' i",
    '  # --flag=value comes as three words.',
    "  if [[ $cur == = ]]; then cur=''; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi",
    '  for ((i = 1; i < COMP_CWORD; i++)); do',
    '    case "$path ${COMP_WORDS[i]}" in',
    `      ${commands.map(({ name }) => quoted(` ${name}`)).join('|')}) path="$path \${COMP_WORDS[i]}" ;;`,
    '    esac',
    '  done',
    '  COMPREPLY=()',
    '  case $prev in',
    ...flags
      .filter((each) => valueKind(each) === 'choices')
      .map(({ flag, choices }) => `    ${flag}) ${compgen(`-W ${quoted(choices.join(' '))}`)}; return ;;`),
    `    ${named('file').join('|')}) compopt -o filenames 2>/dev/null; ${compgen('-f')}; return ;;`,
    `    ${named('directory').join('|')}) compopt -o filenames 2>/dev/null; ${compgen('-d')}; return ;;`,
    `    ${named('free').join('|')}) return ;;`,
    '  esac',
    '  case $path in',
    ...allCommands(program).map(
      (each) =>
        `    ${quoted(each.name && ` ${each.name}`)}) ${compgen(`-W ${quoted(words(each).join(' '))}`)} ;;`,
    ),
    '  esac',
    '}',
    'complete -F _cutthrough cutthrough',
  ];
}

// biome-ignore-end lint/suspicious/noTemplateCurlyInString: bash

function compgen(what: string): string {
  return `mapfile -t COMPREPLY < <(compgen ${what} -- "$cur")`;
}

// ---- zsh ----

function zsh(program: CommandInfo): readonly string[] {
  return [
    '#compdef cutthrough',
    '# zsh completion of cutthrough, made by: cutthrough completion zsh',
    ...allCommands(program).flatMap(zshFunction),
    'if [[ $funcstack[1] == _cutthrough ]]; then _cutthrough "$@"; else compdef _cutthrough cutthrough; fi',
  ];
}

function zshFunction(command: CommandInfo): readonly string[] {
  const { flags, commands, choices, operands } = command;
  const specs = [...flags.map(zshFlag), quoted('(- *)--help[display help]')];
  if (commands.length === 0) {
    const operand = choices.length > 0 ? `:(${choices.join(' ')})` : ':';
    const some = operands === '' ? [] : [quoted(`*:${zshText(operands)}${operand}`)];
    return [`${zshName(command)}() {`, `  _arguments \\`, ...continued([...specs, ...some]), '}'];
  }
  const each = commands.map(({ name, help }) => `    ${quoted(`${lastWord(name)}:${zshText(help)}`)}`);
  return [
    `${zshName(command)}() {`,
    '  local line state',
    '  local -a commands=(',
    ...each,
    '  )',
    '  _arguments -C \\',
    ...continued([...specs, "'1: :->command'", "'*:: :->rest'"]),
    '  case $state in',
    "    command) _describe -t commands 'command' commands ;;",
    '    rest) case $line[1] in',
    ...commands.map((sub) => `      ${lastWord(sub.name)}) ${zshName(sub)} ;;`),
    '    esac ;;',
    '  esac',
    '}',
  ];
}

function continued(specs: readonly string[]): readonly string[] {
  return specs.map((spec, at) => `    ${spec}${at === specs.length - 1 ? '' : ' \\'}`);
}

function zshName({ name }: CommandInfo): string {
  return ['_cutthrough', ...name.split(' ').filter(Boolean)].join('_');
}

function zshFlag(info: FlagInfo): string {
  const { flag, arg, choices, help, repeatable } = info;
  const actions = {
    none: '',
    file: `:${zshText(arg)}:_files`,
    directory: `:${zshText(arg)}:_files -/`,
    choices: `: :(${choices.join(' ')})`,
    free: `:${zshText(arg)}: `,
  };
  return quoted(
    `${repeatable ? '*' : ''}${flag}${arg === '' ? '' : '='}[${zshText(help)}]${actions[valueKind(info)]}`,
  );
}

function zshText(text: string): string {
  return text.replace(/[\\[\]:]/g, '\\$&');
}

// ---- fish ----

function fish(program: CommandInfo): readonly string[] {
  return [
    '# fish completion of cutthrough, made by: cutthrough completion fish',
    'complete -c cutthrough -f',
    ...allCommands(program).flatMap((command) => {
      const here = `complete -c cutthrough -n ${quoted(fishCondition(command))}`;
      return [
        ...command.commands.map(
          ({ name, help }) => `${here} -a ${quoted(lastWord(name))} -d ${quoted(fishText(help))}`,
        ),
        ...(command.choices.length > 0 ? [`${here} -a ${quoted(command.choices.join(' '))}`] : []),
        ...command.flags.map(
          (info) => `${here} -l ${info.flag.slice(2)}${fishValue(info)} -d ${quoted(fishText(info.help))}`,
        ),
      ];
    }),
  ];
}

/** Where the cursor is. */
function fishCondition({ name, commands }: CommandInfo): string {
  const words = name.split(' ').filter(Boolean);
  const seen = words.map((word) => `__fish_seen_subcommand_from ${word}`);
  const subs = commands.map((each) => lastWord(each.name)).join(' ');
  return [...seen, ...(subs === '' ? [] : [`not __fish_seen_subcommand_from ${subs}`])].join('; and ');
}

function fishValue(info: FlagInfo): string {
  const values = {
    none: '',
    file: ' -r -F',
    directory: ` -x -a '(__fish_complete_directories)'`,
    choices: ` -x -a ${quoted(info.choices.join(' '))}`,
    free: ' -x',
  };
  return values[valueKind(info)];
}

function fishText(text: string): string {
  return text.replaceAll('\\', '\\\\');
}
