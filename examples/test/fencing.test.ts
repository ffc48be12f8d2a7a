import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  const steps = [
    "Ada reads 100",
    "Ada's process is stopped",
    "Ben reads 100",
    "Ben writes 150",
    "Ada goes on",
    "Ada is late with token",
    "Ada is told: LockLost, Expired",
    "The balance is 150, should be 150"
  ].map((step) => output.indexOf(step))
  assert.isAbove(steps[0]!, -1, output)
  assert.deepStrictEqual(steps, steps.toSorted((a, b) => a - b), output)
  assert.match(output, /is late with token \d+: StaleToken/)
  assert.notInclude(output, "Ada writes")
}

describe("examples/fencing.ts", () => {
  it.live("refuses the late write of a holder whose process hung for longer than its lease, in memory", () =>
    Effect.gen(function*() {
      const told = yield* run("fencing.ts")
      assertTold(told)
      assert.include(told.output, "in the memory store")
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("refuses the late write of a process that was stopped by SIGSTOP for longer than its lease", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const told = yield* run("fencing.ts", { REDIS_URL: server.url })
      assertTold(told)
      assert.include(told.output, "in the redis store")
      for (const key of yield* server.keys("*")) {
        // A key that has gone meanwhile has -2.
        assert.notStrictEqual(Number(yield* server.command("PTTL", key)), -1, key)
      }
    }).pipe(Effect.provide(NodeServices.layer)))
})
