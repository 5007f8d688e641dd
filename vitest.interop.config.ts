// The built program against other people's: whole mail servers, postfix's smtp-source and smtp-sink, swaks, strace.
import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/interop/**/*.test.ts'],
    globalSetup: ['test/support/build.ts'],
    testTimeout: 60_000,
    hookTimeout: 15_000,
    pool: 'forks',
    // Throughput and memory are measured; two files at a time would measure each other.
    maxWorkers: 1,
  },
});
