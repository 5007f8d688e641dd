import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { WireScanner } from '../../src/smtp/wire.ts';

type Scan = { onward: string; end: number; violation: string | null; octets: number; pieces: string[] };

/** Feeds `chunks`; `end` counts from the first byte of all of them. */
function scan(chunks: readonly string[]): Scan {
  const scanner = new WireScanner();
  const pieces: string[] = [];
  let offset = 0;
  let end = -1;
  for (const chunk of chunks) {
    const at = scanner.push(Buffer.from(chunk, 'latin1'), (piece) => pieces.push(piece.toString('latin1')));
    if (at !== -1) {
      end = offset + at;
      break;
    }
    offset += chunk.length;
  }
  return {
    onward: pieces.join(''),
    end,
    violation: scanner.violation,
    octets: scanner.messageOctets,
    pieces,
  };
}

/** What the scanner must make of `wire`, by a plain reading of RFC 5321. */
function model(wire: string): { body: string; end: number; violation: boolean } {
  const end = wire.startsWith('.\r\n')
    ? 3
    : wire.indexOf('\r\n.\r\n') === -1
      ? -1
      : wire.indexOf('\r\n.\r\n') + 5;
  const body = end === -1 ? wire : wire.slice(0, end - 3);
  return { body, end, violation: /\r(?!\n)|(?<!\r)\n|\0/.test(end === -1 ? body.replace(/\r$/, '') : body) };
}

const SMUGGLING = [
  '\n.\n',
  '\n.\r\n',
  '\r\n.\n',
  '\r.\r',
  '\r.\r\n',
  '\r\n.\r',
  '\n\n.\r\n',
  '\r\n.\r\r\n',
  '\r\r\n.\r\n',
  '\0\r\n.\r\n',
  '\r\n\0.\r\n',
  '\r\n.\0\r\n',
];

describe('end of data', () => {
  it.each([
    ['an empty message', '.\r\n', '', 3],
    ['one line', 'a\r\n.\r\n', 'a\r\n', 6],
    ['an empty line', '\r\n.\r\n', '\r\n', 5],
    ['a stuffed dot, left as it is', '..\r\n.\r\n', '..\r\n', 7],
    ['an unstuffed dot, left as it is', '.a\r\n.\r\n', '.a\r\n', 7],
    ['a dot in mid-line', 'a.\r\n.\r\n', 'a.\r\n', 7],
    ['commands behind it', 'a\r\n.\r\nQUIT\r\n', 'a\r\n', 6],
    ['8-bit and control characters', '\xff\t\x0c\x0b\x01\r\n.\r\n', '\xff\t\x0c\x0b\x01\r\n', 10],
  ])('finds it behind %s', (_name, wire, body, end) => {
    expect(scan([wire])).toMatchObject({ onward: body, end, violation: null });
  });

  it('finds the same end and body wherever the wire is split in three', () => {
    const wires = [
      '.\r\n',
      'a\r\n.\r\n',
      '\r\n.\r\n',
      'ab\r\n..\r\n.x\r\n.\r\n',
      'x'.repeat(20).concat('\r\n.\r\nQUIT\r\n'),
    ];
    for (const wire of wires) {
      const whole = scan([wire]);
      for (let i = 0; i <= wire.length; i++) {
        for (let j = i; j <= wire.length; j++) {
          const split = scan([wire.slice(0, i), wire.slice(i, j), wire.slice(j)]);
          expect({ ...split, pieces: [] }).toEqual({ ...whole, pieces: [] });
        }
      }
    }
  });

  it('agrees with a plain reading of the wire, for any bytes and any chunks', () => {
    const unit = fc.constantFrom(
      '\r\n',
      '\r',
      '\n',
      '.',
      '\0',
      'a',
      '\xff',
      '\r\n.\r\n',
      'x'.repeat(13),
      '..',
    );
    const wire = fc.array(unit, { maxLength: 12 }).map((units) => units.join(''));
    fc.assert(
      fc.property(wire, fc.array(fc.integer({ min: 1, max: 9 })), (text, cuts) => {
        const chunks: string[] = [];
        let rest = text;
        for (const cut of cuts) {
          chunks.push(rest.slice(0, cut));
          rest = rest.slice(cut);
        }
        const got = scan([...chunks, rest]);
        const want = model(text);
        expect(got.end).toBe(want.end);
        expect(got.violation !== null).toBe(want.violation);
        if (want.violation) return;
        // Only what may still be a line end or the last line is held back.
        const held = want.end === -1 ? want.body.slice(got.onward.length) : '';
        expect(got.onward + held).toBe(want.body);
        expect(['', '\r', '.', '.\r']).toContain(held);
      }),
      { numRuns: 3000 },
    );
  });

  it.each(SMUGGLING)('never takes %j for the end', (sequence) => {
    const { end, violation } = scan([`a${sequence}b`]);
    expect(end).toBe(sequence.endsWith('\r\n.\r\n') ? `a${sequence}`.length : -1);
    expect(violation).not.toBeNull();
  });
});

describe('hold-back', () => {
  it.each(['\r', '\r\n.', '\r\n.\r'])('keeps the tail of a chunk that ends in %j', (tail) => {
    expect(scan([`a${tail}`]).onward).toBe(tail.startsWith('\r\n') ? 'a\r\n' : 'a');
  });

  it('keeps a dot that begins the message', () => {
    expect(scan(['.']).onward).toBe('');
    expect(scan(['.', '\r']).onward).toBe('');
  });

  it('hands the tail on once it is innocent', () => {
    expect(scan(['a\r\n.', '.b\r\n']).onward).toBe('a\r\n..b\r\n');
    expect(scan(['a\r', '\nb']).onward).toBe('a\r\nb');
  });

  it.each(SMUGGLING)('hands on nothing of a chunk with %j in it, nor of later ones', (sequence) => {
    const { onward } = scan(['fine\r\n', `a${sequence}b`, 'more\r\n']);
    expect(onward).toBe('fine\r\n');
  });

  it('still finds the end after a violation', () => {
    expect(scan(['a\nb\r\n', '.\r', '\nQUIT']).end).toBe(8);
  });
});

describe('size', () => {
  it('counts octets without stuffed dots and the final line (RFC 1870 §5)', () => {
    expect(scan(['a\r\n..b\r\n...\r\n.\r\n']).octets).toBe('a\r\n.b\r\n..\r\n'.length);
  });
});

describe('speed path', () => {
  it('sees a special byte at every alignment', () => {
    for (let offset = 0; offset < 8; offset++) {
      for (let at = 0; at < 24; at++) {
        const bytes = Buffer.alloc(64, 'x');
        bytes[offset + at] = 0;
        const scanner = new WireScanner();
        scanner.push(bytes.subarray(offset, offset + 24), () => {});
        expect(scanner.violation).toBe('nul');
      }
    }
  });
});
