import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  assert.match(output, /Without a lock: +some reads saw half a change/, output)
  assert.match(output, /Under ReadWriteLock: +no reads saw half a change; readers were in together/, output)
  const [, winner, loser] = /(Ada|Ben): changed it to 150\n +(Ada|Ben): 150 already/.exec(output) ?? []
  assert.isDefined(winner, output)
  assert.notStrictEqual(winner, loser, output)
  assert.include(output, `${loser}: somebody else is about to write, so looks again`)
  assert.match(output, /proofreads as a reader: 1 permit/, output)
  assert.match(output, /Prices: 200 and 200/, output)
}

describe("examples/read-write.ts", () => {
  it.live("shows reads that see half a change without a lock, and none under it; an upgrade and a downgrade", () =>
    Effect.gen(function*() {
      assertTold(yield* run("read-write.ts"))
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on Redis", () =>
    Effect.gen(function*() {
      const { url } = yield* RedisServer.make()
      assertTold(yield* run("read-write.ts", { REDIS_URL: url }))
    }).pipe(Effect.provide(NodeServices.layer)))
})
