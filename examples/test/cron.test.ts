import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  const [, reports, different] = /^(\d+) reports, (\d+) of them different$/m.exec(output)!
  assert.isAtLeast(Number(reports), 4, output)
  assert.strictEqual(different, reports)
  assert.match(output, /The run of the tick at .* failed/)
  assert.match(output, /PrinterOnFire/)
  assert.lengthOf(Array.from(output.matchAll(/^A reminder is sent$/gm)), 1)
  assert.match(output, /^1 of 3 reminded$/m)
}

describe("examples/cron.ts", () => {
  it.live("runs each tick once, goes on after a run that failed, and reminds once, in memory", () =>
    Effect.gen(function*() {
      assertTold(yield* run("cron.ts"))
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on Redis", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      assertTold(yield* run("cron.ts", { REDIS_URL: server.url }))
    }).pipe(Effect.provide(NodeServices.layer)))
})
