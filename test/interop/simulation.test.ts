// The long run of the simulation: more than ten thousand transactions, and those around a proxy that is killed now and
// then, or has two workers.
import { expect, it } from 'vitest';
import { KILLED, nameOf, POLICIES, SEED, simulate } from '../support/simulation/main.ts';
import { type Policy, spoolsForAll } from '../support/simulation/model.ts';
import { report } from '../support/tools.ts';

const TRANSACTIONS = 2_500;
/** Each takes several deliveries and a disk. */
const SPOOLED = 600;
/** In a process of its own. */
const APART = 250;

function transactionsOf(policy: Policy): number {
  if (KILLED.includes(policy)) return APART;
  return spoolsForAll(policy) ? SPOOLED : TRANSACTIONS;
}

it.concurrent.each([...POLICIES, ...KILLED].map((policy) => [nameOf(policy), policy] as const))(
  `%s: nothing lost, damaged or avoidably duplicated (SIMULATION_SEED=${SEED})`,
  async (_name, policy) => {
    const began = performance.now();
    const { violations, ...figures } = await simulate(policy, transactionsOf(policy));
    const seconds = Math.round((performance.now() - began) / 1000);
    report(JSON.stringify({ ...policy, ...figures, violations: violations.length, seconds }));
    expect(violations).toEqual([]);
  },
  240_000,
);
