// What arrange.js makes of a status, and draw.js puts on the screen.
import type { TransactionStatus } from './status.d.ts';

export type Phase = 'connect' | 'envelope' | 'data' | 'body' | 'dot';
export type Health = 'good' | 'troubled' | 'failing' | 'unused';
export type Tone = Phase | 'done' | 'refused' | 'failed';

/** Lengths are CSS pixels. */
export type Box = Readonly<{
  key: string;
  x: number;
  y: number;
  width: number;
  height: number;
  title: string;
  note: string;
  tone?: Tone;
  health?: Health;
  isId?: boolean;
  isLarge?: boolean;
}>;

export type Link = Readonly<{
  key: string;
  from: readonly [x: number, y: number];
  to: readonly [x: number, y: number];
  width: number;
  tone: Tone;
  kind: 'ghost' | 'still' | 'moving';
}>;

/** A link before it has a place. */
export type Tie = Readonly<{
  from: Box;
  to: Box;
  weight: number;
  tone: Tone;
  isMoving: boolean;
  isGhost: boolean;
}>;

/** Transactions that share a box. */
export type Group = Readonly<{ key: string; phase: Phase; transactions: readonly TransactionStatus[] }>;

export type Picture = Readonly<{
  width: number;
  height: number;
  boxes: readonly Box[];
  links: readonly Link[];
  headings: ReadonlyArray<readonly [text: string, x: number]>;
  summary: string;
}>;
