import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

/** The processes that adopted, and the one that answers requests. */
const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  const answers = Array.from(output.matchAll(/^handler +\d+ answers (\d+)/gm), ([, status]) => Number(status))
  assert.deepStrictEqual(answers, [202, 409, 202], output)
  assert.match(output, /a ticket is good for one adoption: .*TicketRefused.*it was adopted before/)
  const adoptions = Array.from(
    output.matchAll(/^worker +(\d+) adopted demo:report, token (\d+) after (\d+)$/gm),
    ([, pid, token, before]) => ({ pid, token: Number(token), before: Number(before) })
  )
  const tokens = adoptions.flatMap(({ before, token }) => [before, token])
  assert.lengthOf(tokens, 4, output)
  assert.deepStrictEqual(tokens, tokens.toSorted((a, b) => a - b), output)
  assert.lengthOf(Array.from(output.matchAll(/^worker +\d+ is done$/gm)), 2, output)
  const [, handler] = /^handler +(\d+)/m.exec(output) ?? []
  return adoptions.map(({ pid }) => pid === handler)
}

describe("examples/handoff.ts", { concurrent: true }, () => {
  it.live("hands a lease from a request to a worker, once, with a greater token", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(assertTold(yield* run("handoff.ts")), [true, true])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on Redis, into another process", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      assert.deepStrictEqual(assertTold(yield* run("handoff.ts", { REDIS_URL: server.url })), [false, true])
    }).pipe(Effect.provide(NodeServices.layer)))
})
