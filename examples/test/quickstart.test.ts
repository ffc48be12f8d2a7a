import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  assert.match(output, /without a lock: +120, should be 180: 6 of 8 deposits are lost/, output)
  assert.include(output, "4 inside at once")
  assert.match(output, /under the lock: +180, should be 180/, output)
  assert.match(output, /after Ben's turn: +190, should be 190/, output)
  assert.notInclude(output, "\u001b")

  const [, , guarded = "", loss = ""] = output.split(/^\d {2}/m)
  assert.notInclude(guarded, "inside at once")
  const tokens = Array.from(guarded.matchAll(/ reads .* (\d{10,}) /g), ([, token]) => Number(token))
  assert.lengthOf(tokens, 8)
  assert.deepStrictEqual(tokens, Array.from(new Set(tokens)).toSorted((a, b) => a - b))

  // Until Ada is told two may be inside, so Ben may come to his end before.
  const told = ["Ada finalizer: removes the draft", "Ada's audit has failed: LockLost, reason \"NotHeld\""]
  for (const ends of [told, ["Ben reads 180", "Ben writes 190"]]) {
    const steps = ["administrator: deletes the lock", ...ends].map((step) => loss.indexOf(step))
    assert.isAbove(steps[0]!, -1, output)
    assert.deepStrictEqual(steps, steps.toSorted((a, b) => a - b), output)
  }
  assert.notInclude(loss, "reads page 40 of 40")
}

describe("examples/quickstart.ts", () => {
  it.live("counts right under the lock and tells of a lost lease, in memory", () =>
    Effect.gen(function*() {
      const told = yield* run("quickstart.ts")
      assertTold(told)
      assert.include(told.output, "Locks live in the memory store")
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on Redis, and leaves no key without an expiry", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const told = yield* run("quickstart.ts", { REDIS_URL: server.url })
      assertTold(told)
      assert.include(told.output, "Locks live in the redis store")
      for (const key of yield* server.keys("*")) {
        // A key that has gone meanwhile has -2.
        assert.notStrictEqual(Number(yield* server.command("PTTL", key)), -1, key)
      }
    }).pipe(Effect.provide(NodeServices.layer)))
})
