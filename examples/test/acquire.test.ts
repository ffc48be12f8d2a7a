import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

describe("examples/acquire.ts", () => {
  it.live("shows one author after the other, a late write refused, and the spans and metrics of both", () =>
    Effect.gen(function*() {
      const { exitCode, output } = yield* run("acquire.ts")
      assert.strictEqual(exitCode, 0, output)
      const lines = output.split("\n")
      assert.deepStrictEqual(lines.slice(0, 6), [
        "Ada opens a draft",
        "held by Ada, waited for by Ben",
        "Ada closes the draft",
        "Ben opens a draft",
        "Ben closes the draft",
        "A late write is refused: StaleToken"
      ])
      assert.lengthOf(lines.filter((line) => line.includes("Lock.acquire")), 2, output)
      assert.match(output, /lock\.blocked_by/)
      assert.match(output, /effect_lock_acquisitions_total .* 2/)
    }).pipe(Effect.provide(NodeServices.layer)))
})
