import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Digest, lookAt, nextSpecial, octetAt, PART_OCTETS } from '../../src/smtp/octets.ts';

describe('nextSpecial()', () => {
  /** By a plain reading of what it says. */
  function model(text: string, before: string, from: number): number {
    const whole = before + text;
    for (let at = from; at < text.length; at++) {
      const [previous, octet] = [whole[at], whole[at + 1]];
      if ((previous === '\r') !== (octet === '\n')) return at;
      if (octet === '\0' || (previous === '\n' && octet === '.')) return at;
    }
    return text.length;
  }

  it('finds the first octet that is not ordinary text, wherever it begins', () => {
    const text = fc.array(
      fc.constantFrom('\r\n', '\r\n', '\r', '\n', '.', '\0', 'a', '\t', '\xff', 'x'.repeat(15)),
    );
    fc.assert(
      fc.property(text, fc.constantFrom('\r', '\n', ' ', '.'), fc.nat(40), (parts, before, skip) => {
        const chunk = parts.join('');
        const from = Math.min(skip, chunk.length);
        lookAt(Buffer.from(chunk, 'latin1'), 0, chunk.length, before.charCodeAt(0));
        expect(nextSpecial(from, chunk.length)).toBe(model(chunk, before, from));
      }),
      { numRuns: 2_000 },
    );
  });

  it('does not mind what is behind the end, from the part before', () => {
    lookAt(Buffer.from('\0'.repeat(64)), 0, 64, 0x20);
    lookAt(Buffer.from('abc'), 0, 3, 0x20);
    expect(nextSpecial(0, 3)).toBe(3);
  });

  it('takes a whole part, of which the last octet counts', () => {
    const chunk = Buffer.alloc(PART_OCTETS + 2, 'x');
    chunk[PART_OCTETS + 1] = 0;
    lookAt(chunk, 2, PART_OCTETS, 0x20);
    expect(nextSpecial(0, PART_OCTETS)).toBe(PART_OCTETS - 1);
    expect([octetAt(-1), octetAt(PART_OCTETS - 1)]).toEqual([0x20, 0]);
  });
});

describe('Digest', () => {
  function digestOf(parts: readonly Buffer[]): string {
    const digest = new Digest();
    for (const part of parts) {
      lookAt(part, 0, part.length, 0x0a);
      digest.add(part.length);
    }
    return digest.value;
  }

  it.each([
    ['', 'ef46db3751d8e999'],
    ['a', 'd24ec4f1a98c6e5b'],
    ['abc', '44bc2cf5ad770999'],
    ['Nobody inspects the spammish repetition', 'fbcea83c8a378bf1'],
  ])('of %j is what XXH64 gives elsewhere', (text, expected) => {
    expect(digestOf([Buffer.from(text)])).toBe(expected);
  });

  it('is the same however the message is cut, and whatever else is looked at in between', () => {
    const part = fc.uint8Array({ maxLength: 100 }).map((octets) => Buffer.from(octets));
    fc.assert(
      fc.property(fc.array(part, { maxLength: 8 }), (parts) => {
        const [one, other] = [new Digest(), new Digest()];
        for (const octets of parts) {
          lookAt(octets, 0, octets.length, 0x0a);
          one.add(octets.length);
          const others = Buffer.from(octets).reverse();
          lookAt(others, 0, others.length, 0x0a);
          other.add(others.length);
        }
        expect(one.value).toBe(digestOf([Buffer.concat(parts)]));
      }),
      { numRuns: 500 },
    );
  });

  it('differs when one bit does', () => {
    const message = Buffer.alloc(300, 'The same line again.\r\n');
    const seen = new Set([digestOf([message])]);
    for (let bit = 0; bit < message.length * 8; bit++) {
      const changed = Buffer.from(message);
      changed[bit >> 3]! ^= 1 << (bit & 7);
      seen.add(digestOf([changed]));
    }
    expect(seen.size).toBe(message.length * 8 + 1);
  });
});
