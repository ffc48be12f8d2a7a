import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { run } from "./support/run.ts"

const assertTold = ({ exitCode, output }: { readonly exitCode: number; readonly output: string }) => {
  assert.strictEqual(exitCode, 0, output)
  const steps = [
    "settling, with token",
    "voter one goes",
    "1 holder after 9000 ms: two votes of three have renewed its lease",
    "another key is locked meanwhile",
    "voter two goes, too",
    "settling is interrupted",
    "LockLost, Lease on \"demo:settle\"",
    "another key is not locked: Unavailable, no majority of 3 voters: one: unreachable"
  ].map((step) => output.indexOf(step))
  assert.isAbove(Math.min(...steps), -1, output)
  assert.deepStrictEqual(steps, steps.toSorted((a, b) => a - b), output)
  assert.match(output, /lost: not renewed within its ttl of 6000 ms/)
  assert.match(output, /one: unreachable \(.+\); two: unreachable \(.+\); three: granted$/m)
}

// Most of it is waiting: for a lease to be renewed, for another one to run out, for voters that do not answer.
describe("examples/quorum.ts", { concurrent: true, timeout: 120_000 }, () => {
  it.live("goes on without one of three voters, and ends by the deadline without two, on servers of its own", () =>
    Effect.gen(function*() {
      assertTold(yield* run("quorum.ts"))
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("does the same on servers that are there, and leaves them as they are", () =>
    Effect.gen(function*() {
      const { voters } = yield* RedisServer.makeQuorum(3)
      assertTold(yield* run("quorum.ts", { REDIS_URLS: voters.map(({ server }) => server.url).join() }))
      for (const { server } of voters) {
        assert.strictEqual(yield* server.command("PING"), "PONG")
        for (const key of yield* server.keys("*")) {
          // A key that has gone meanwhile has -2.
          assert.notStrictEqual(Number(yield* server.command("PTTL", key)), -1, key)
        }
      }
    }).pipe(Effect.provide(NodeServices.layer)))
})
