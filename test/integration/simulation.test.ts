// The short run of the simulation; test/interop/simulation.test.ts has the long one.
import { expect, it } from 'vitest';
import { POLICIES, SEED, simulate } from '../support/simulation/main.ts';

const TRANSACTIONS = 250;

it.concurrent.each(POLICIES)(
  `--mixed $mixed --dots $dots: nothing lost, damaged or avoidably duplicated (SIMULATION_SEED=${SEED})`,
  async (policy) => {
    const { violations, suppressed, duplicates } = await simulate(policy, TRANSACTIONS);
    expect(violations).toEqual([]);
    // It did meet what it is about.
    expect(suppressed).toBeGreaterThan(0);
    expect(duplicates).toBeGreaterThan(0);
  },
  60_000,
);
