// A signed message stays signed: nothing but our Received line is added, and nothing is changed.
import { createHash, createVerify, generateKeyPairSync } from 'node:crypto';
import { createTransport } from 'nodemailer';
import { expect, it } from 'vitest';
import { Client } from '../support/client.ts';
import { Program } from '../support/program.ts';
import { until } from '../support/proxy.ts';
import { Sink } from '../support/sink.ts';

const { privateKey, publicKey } = generateKeyPairSync('rsa', {
  modulusLength: 2048,
  privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  publicKeyEncoding: { type: 'spki', format: 'pem' },
});

/** A message that a careless relay would damage: folded fields, 8-bit text, dots, runs of spaces, empty lines at the end. */
const RAW = Buffer.from(
  [
    'From:  "A.  Sender"   <s@src.example>',
    'To: u@a.example,',
    '\t v@b.example',
    'SUBJECT:  folded',
    '  over   lines \t',
    'Date: Tue, 24 Nov 2026 12:00:00 +0000',
    'Message-ID: <1@src.example>',
    'MIME-Version: 1.0',
    'Content-Type: text/plain; charset=iso-8859-1',
    'Content-Transfer-Encoding: 8bit',
    '',
    'Gr\xfc\xdfe,\t two   spaces  ',
    '.a leading dot',
    '.',
    '..',
    'x'.repeat(998),
    '  ',
    '',
    '',
    '',
  ].join('\r\n'),
  'latin1',
);

async function signed(): Promise<Buffer> {
  const dkim = { domainName: 'src.example', keySelector: 'key', privateKey };
  const transport = createTransport({ streamTransport: true, buffer: true, newline: 'windows', dkim });
  const { message } = await transport.sendMail({
    envelope: { from: 's@src.example', to: 'u@a.example' },
    raw: RAW,
  });
  return message as Buffer;
}

it('delivers a DKIM-signed message bit for bit behind our Received line, and its signature verifies', async () => {
  const message = await signed();
  expect(verifies(message)).toBe(true);
  const sinks = [await Sink.start(), await Sink.start()];
  try {
    const routes = sinks.flatMap((sink, index) => ['--route', `${'ab'[index]}.example=${sink.url}`]);
    const proxy = await Program.start(routes);
    const client = await Client.hello(proxy.port());
    expect(await client.envelope('s@src.example', ['u@a.example', 'v@b.example'])).toMatch(/^354/);
    const stuffed = Buffer.from(message.toString('latin1').replace(/^\./gm, '..'), 'latin1');
    // In pieces that end within lines, line ends and dots.
    for (let at = 0; at < stuffed.length; at += 61) client.write(stuffed.subarray(at, at + 61));
    client.write('.\r\n');
    expect(await client.reply()).toMatch(/^250 2\.0\.0 /);
    client.destroy();
    await until(() => sinks.every((sink) => sink.messages.length === 1));
    for (const sink of sinks) {
      const arrived = Buffer.from(
        sink.messages[0]!.body.toString('latin1').replace(/^\.\./gm, '.'),
        'latin1',
      );
      const ours = arrived.subarray(0, arrived.length - message.length).toString('latin1');
      expect(ours).toMatch(/^Received: (?:[^\r\n]|\r\n[ \t])*\r\n$/);
      expect(arrived.subarray(-message.length).equals(message)).toBe(true);
      expect(verifies(arrived)).toBe(true);
      expect(verifies(Buffer.concat([arrived, Buffer.from('more\r\n')]))).toBe(false);
    }
  } finally {
    for (const sink of sinks) await sink.close();
  }
});

// RFC 6376 for one relaxed/relaxed rsa-sha256 signature, written without regard to the signer's code.
function verifies(message: Buffer): boolean {
  const text = message.toString('latin1');
  const end = text.indexOf('\r\n\r\n');
  const fields = text.slice(0, end).split(/\r\n(?![ \t])/);
  const signature = fields.find((field) => /^dkim-signature:/i.test(field))!;
  const tags = new Map<string, string>();
  for (const tag of signature.slice(signature.indexOf(':') + 1).split(';')) {
    const equals = tag.indexOf('=');
    tags.set(tag.slice(0, equals).trim(), tag.slice(equals + 1).replace(/\s/g, ''));
  }
  expect([tags.get('a'), tags.get('c')]).toEqual(['rsa-sha256', 'relaxed/relaxed']);

  const bodyHash = createHash('sha256')
    .update(relaxedBody(text.slice(end + 4)), 'latin1')
    .digest('base64');
  // §5.4.2: of several fields of one name the lowest are signed first.
  const unsigned = fields.toReversed();
  const taken = tags
    .get('h')!
    .split(':')
    .flatMap((name) => {
      const at = unsigned.findIndex((field) => field.toLowerCase().startsWith(`${name.toLowerCase()}:`));
      return at === -1 ? [] : unsigned.splice(at, 1);
    });
  const own = relaxedField(signature).replace(/([:;] ?b=)[^;]*/, '$1');
  const input = [...taken.map(relaxedField), own].join('\r\n');
  const good = createVerify('sha256').update(input, 'latin1').verify(publicKey, tags.get('b')!, 'base64');
  return good && bodyHash === tags.get('bh');
}

/** RFC 6376 §3.4.2. */
function relaxedField(field: string): string {
  const colon = field.indexOf(':');
  const value = field
    .slice(colon + 1)
    .replace(/\r\n/g, '')
    .replace(/[ \t]+/g, ' ')
    .trim();
  return `${field.slice(0, colon).trim().toLowerCase()}:${value}`;
}

/** RFC 6376 §3.4.4. */
function relaxedBody(body: string): string {
  const lines = body.split('\r\n').map((line) => line.replace(/[ \t]+/g, ' ').replace(/ $/, ''));
  while (lines.at(-1) === '') lines.pop();
  return lines.length === 0 ? '' : `${lines.join('\r\n')}\r\n`;
}
