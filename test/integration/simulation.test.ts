// The short run of the simulation; test/interop/simulation.test.ts has the long one.
import { expect, it } from 'vitest';
import { POLICIES, SEED, simulate } from '../support/simulation/main.ts';
import { spoolsForAll } from '../support/simulation/model.ts';

const TRANSACTIONS = 250;
/** Each takes several deliveries and a disk. */
const SPOOLED = 100;

it.concurrent.each(POLICIES)(
  `--mode $mode --fallback $fallback --mixed $mixed --dots $dots: nothing lost, damaged or avoidably duplicated (SIMULATION_SEED=${SEED})`,
  async (policy) => {
    const transactions = spoolsForAll(policy) ? SPOOLED : TRANSACTIONS;
    const { violations, suppressed, duplicates } = await simulate(policy, transactions);
    expect(violations).toEqual([]);
    // It did meet what it is about.
    expect(suppressed).toBeGreaterThan(0);
    expect(duplicates).toBeGreaterThan(0);
  },
  60_000,
);
