import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  const lines = output.trimEnd().split("\n").filter((line) => !/^\[|^ |^}/.test(line))
  const tokens: Array<number> = []
  const story = lines.map((line) =>
    line.replace(/ token (\d+)$/, (_, token) => {
      tokens.push(Number(token))
      return " token"
    })
  )
  // Ada hears of it while Ben begins already: who comes first on the screen is a matter of chance.
  assert.deepStrictEqual(story.toSpliced(3, 2), [
    "Ada leads, token",
    "Ben knows who leads: Ada",
    "An administrator takes the post away",
    "Ben is told to end",
    "Ben closes the index",
    "Ada leads, token",
    "Ada closes the index",
    "Nobody leads: true"
  ], output)
  assert.sameMembers(story.slice(3, 5), ["Ada closes the index", "Ben leads, token"])
  assert.lengthOf(tokens, 3)
  assert.deepStrictEqual(tokens, Array.from(new Set(tokens)).toSorted((a, b) => a - b))
}

describe("examples/leader.ts", () => {
  it.live("shows one leader after the other, with growing tokens, in memory", () =>
    Effect.gen(function*() {
      assertTold(yield* run("leader.ts"))
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on Redis", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      assertTold(yield* run("leader.ts", { REDIS_URL: server.url }))
    }).pipe(Effect.provide(NodeServices.layer)))
})
