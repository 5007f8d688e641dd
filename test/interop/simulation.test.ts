// The long run of the simulation: ten thousand transactions.
import { expect, it } from 'vitest';
import { POLICIES, SEED, simulate } from '../support/simulation/main.ts';
import { report } from '../support/tools.ts';

const TRANSACTIONS = 10_000;

it.concurrent.each(POLICIES)(
  `--mixed $mixed --dots $dots: nothing lost, damaged or avoidably duplicated (SIMULATION_SEED=${SEED})`,
  async (policy) => {
    const began = performance.now();
    const { violations, ...figures } = await simulate(policy, TRANSACTIONS / POLICIES.length);
    const seconds = Math.round((performance.now() - began) / 1000);
    report(JSON.stringify({ ...policy, ...figures, violations: violations.length, seconds }));
    expect(violations).toEqual([]);
  },
  240_000,
);
