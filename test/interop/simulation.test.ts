// The long run of the simulation: more than ten thousand transactions.
import { expect, it } from 'vitest';
import { POLICIES, SEED, simulate } from '../support/simulation/main.ts';
import { spoolsForAll } from '../support/simulation/model.ts';
import { report } from '../support/tools.ts';

const TRANSACTIONS = 2_500;
/** Each takes several deliveries and a disk. */
const SPOOLED = 600;

it.concurrent.each(POLICIES)(
  `--mode $mode --fallback $fallback --mixed $mixed --dots $dots: nothing lost, damaged or avoidably duplicated (SIMULATION_SEED=${SEED})`,
  async (policy) => {
    const began = performance.now();
    const transactions = spoolsForAll(policy) ? SPOOLED : TRANSACTIONS;
    const { violations, ...figures } = await simulate(policy, transactions);
    const seconds = Math.round((performance.now() - began) / 1000);
    report(JSON.stringify({ ...policy, ...figures, violations: violations.length, seconds }));
    expect(violations).toEqual([]);
  },
  240_000,
);
