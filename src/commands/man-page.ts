// `cutthrough man`: the manual page, in man(7). Commands and options come from the description of the commands; the rest is
// prose. man/cutthrough.1 is what this prints, and a test says when it is not. Pure.

import { envName } from '../options.ts';
import type { CommandInfo, FlagInfo } from './command-line.ts';

/** Of the prose; a date of the day would make every build another page. */
const DATE = '2026-11-24';

export function manPage(program: CommandInfo, version: string): string {
  const serve = program.commands.find(({ name }) => name === 'serve')!;
  return [
    '.\\" Made by: npm run man',
    `.TH CUTTHROUGH 1 ${DATE} "cutthrough ${version}" "User Commands"`,
    ...section('NAME', 'cutthrough \\- cut-through SMTP proxy: 250 only when every next hop has said so'),
    '.SH SYNOPSIS',
    ...leaves(program).flatMap(synopsis).slice(1),
    ...DESCRIPTION,
    '.SH COMMANDS',
    ...leaves(program).flatMap((command) => commandText(command, serve)),
    '.SH OPTIONS',
    ...roff(
      'Options of every command but completion and man. One marked with + can be repeated. ' +
        'Sizes take KiB, MiB and GiB, durations ms, s, m, h and d.',
    ),
    ...optionsText(serve.flags),
    ...AFTER_OPTIONS,
  ]
    .join('\n')
    .concat('\n');
}

function leaves(command: CommandInfo): readonly CommandInfo[] {
  return command.commands.length === 0 ? [command] : command.commands.flatMap(leaves);
}

function section(title: string, ...text: readonly string[]): readonly string[] {
  return [`.SH ${title}`, ...text];
}

function synopsis({ name, operands, flags }: CommandInfo): readonly string[] {
  const own = flags.filter(({ group }) => group === '').map((each) => `[${termOf(each)}]`);
  const takesOptions = flags.some(({ group }) => group !== '');
  const words = [...own, ...(takesOptions ? ['[options]'] : []), operands].filter(Boolean).join(' ');
  return ['.br', `.B cutthrough ${escaped(name)}`, ...(words === '' ? [] : roff(words))];
}

function commandText({ name, help, operands, flags }: CommandInfo, serve: CommandInfo): readonly string[] {
  const own = flags.filter(({ flag }) => !serve.flags.some((each) => each.flag === flag));
  return [
    '.TP',
    `.B ${escaped(`${name} ${operands}`.trim())}`,
    ...roff(`${sentence(help)}${own.map((each) => ` ${termOf(each)}: ${each.help}.`).join('')}`),
  ];
}

function optionsText(flags: readonly FlagInfo[]): readonly string[] {
  let group = '';
  return flags.flatMap((each) => {
    const heading = each.group === group ? [] : [`.SS ${each.group}`];
    group = each.group;
    const isNegative = each.flag.startsWith('--no-');
    const variable = isNegative ? '' : ` ${envName(each.flag.slice(2))}.`;
    return [...heading, '.TP', `.B ${escaped(termOf(each))}`, ...roff(`${sentence(each.help)}${variable}`)];
  });
}

function termOf({ flag, arg }: FlagInfo): string {
  return arg === '' ? flag : `${flag} ${arg}`;
}

function sentence(text: string): string {
  const [first = ''] = text;
  return `${first.toUpperCase()}${text.slice(1)}.`;
}

/** Text, in lines that a reader of the source can stand. */
function roff(text: string): readonly string[] {
  const lines = [''];
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!;
    if (line !== '' && line.length + word.length > 76) lines.push(word);
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
  }
  return lines.map(escaped);
}

/** A hyphen that is to be copied is a minus; a dot or a quote at the start of a line would be a request. */
function escaped(text: string): string {
  const plain = text.replaceAll('\\', '\\e').replaceAll('-', '\\-').replaceAll('§', '\\(sc');
  return /^[.']/.test(plain) ? `\\&${plain}` : plain;
}

function item(term: string, text: string): readonly string[] {
  return ['.TP', `.B ${escaped(term)}`, ...roff(text)];
}

const DESCRIPTION = section(
  'DESCRIPTION',
  ...roff(
    'cutthrough stands inline between mail servers. It asks the next hop of every recipient while the client waits for ' +
      'the reply to RCPT, passes the message through byte for byte, and says 250 only when every next hop has said so. ' +
      'It stores nothing, unless a fallback or another mode is chosen.',
  ),
);

const AFTER_OPTIONS: readonly string[] = [
  '.SH ENVIRONMENT',
  ...item(
    'CUTTHROUGH_NAME',
    'Every option, as its entry says. A flag beats the variable, which beats the file. The values of a repeatable ' +
      'option are separated by white space or commas (routes by white space alone); none empties it.',
  ),
  ...item('NO_COLOR', 'If set, no colour on a terminal. Elsewhere there is none anyway.'),
  '.SH FILES',
  ...item('the file of --config', 'YAML: a map of options by their names in camelCase, such as mxPort: 25.'),
  ...item('the directory of --spool-dir', 'The queue. It belongs to one process at a time.'),
  '.SH SIGNALS',
  ...item('SIGTERM, SIGINT', 'Drain: no new connections; running transactions end within --drain-timeout.'),
  ...item('SIGHUP', 'Read config and certificates again. A broken file changes nothing and is logged.'),
  '.SH EXIT STATUS',
  ...item('0', 'Good. Of probe: some server said 2xx to the RCPT. Of trace: found.'),
  ...item(
    '1',
    'A failure, told in one line on standard error. Of trace: not found. Of check: an error in the values.',
  ),
  ...item('2', 'Wrong usage.'),
  '.SH JSON',
  ...roff('These keys stay as they are; others may be added.'),
  ...item(
    'check',
    'ok; errors and warnings (lists of text); config: the effective options by their names in the file, passwords ' +
      'masked, null if there are errors.',
  ),
  ...item(
    'probe',
    'address, ok, route, mx (preference, host, address), hosts: host, address, port, protocol, connected, detail (why ' +
      'not, or TLS), capabilities, mail and rcpt (the replies, or null), ms (connect, tls, greeting, ehlo, mail, rcpt: ' +
      'how long each took, null where it did not come to it; tls is, after STARTTLS, the handshake and the second EHLO). ' +
      'With a bad address: address, ok, error.',
  ),
  ...item(
    'trace',
    'id, began, running, client, helo, reversePath, recipients (address, nextHop, outcome, reply), result, ms, legs ' +
      '(next hops), omitted, events: ms since MAIL, leg (index, null is the side of the client), event, and where it has ' +
      'them code, text, recipient, octets. From a log at level info: the line of the transaction as it is.',
  ),
  ...item(
    'event',
    'Of the client: mail, rcpt, rcpt-reply, data, data-reply, body, end-of-data, reply, gone.',
  ),
  ...roff(
    'Of a leg: connect, attempt-failed, connected, reused, unreachable, mail, mail-reply, rcpt, rcpt-reply, data, ' +
      'data-reply, end-of-data, reply, reset, withheld, lost.',
  ),
  '.SH EXAMPLES',
  '.nf',
  escaped("cutthrough serve --route 'example.com=smtp://10.0.0.5:25'"),
  escaped('cutthrough check --config /etc/cutthrough.yaml'),
  escaped('cutthrough probe user@example.com --json'),
  escaped('cutthrough trace 3q2AbC9x.1f'),
  escaped('journalctl -u cutthrough -o cat | cutthrough trace 3q2AbC9x.1f --log -'),
  '.fi',
  '.SH SEE ALSO',
  escaped('RFC 5321 (SMTP), RFC 2033 (LMTP), RFC 3464 (delivery status notifications)'),
];
