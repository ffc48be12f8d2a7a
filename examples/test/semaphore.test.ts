import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  assert.match(output, /without a semaphore: 12 at once/, output)
  assert.match(output, /under withPermit: +[23] at once/, output)
  assert.match(output, /somebody waits: not available/, output)
  assert.match(output, /Order: first call, big job, second call/, output)
  assert.match(output, /has grown: [4-6] at once/, output)
  assert.match(output, /two more: LockDeadlock/, output)
}

describe("examples/semaphore.ts", () => {
  it.live("lets in three at once, a big job in its turn, and six when the limit has grown", () =>
    Effect.gen(function*() {
      assertTold(yield* run("semaphore.ts"))
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on Redis", () =>
    Effect.gen(function*() {
      const { url } = yield* RedisServer.make()
      assertTold(yield* run("semaphore.ts", { REDIS_URL: url }))
    }).pipe(Effect.provide(NodeServices.layer)))
})
