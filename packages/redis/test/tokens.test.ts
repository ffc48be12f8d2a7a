import { RedisServer } from "@effect-lock/test-utils"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { connect } from "./support/client.ts"

it.live("G2: tokens grow on over a server that forgot everything, also for clients that have not seen the last one", () =>
  Effect.gen(function*() {
    const server = yield* RedisServer.make()
    let last = 0
    for (let i = 0; i < 20; i++) {
      const { close, lock } = yield* connect(server)
      const { token } = yield* Effect.scoped(lock.acquire("k"))
      assert.isAbove(token, last)
      last = token
      yield* close
      yield* server.command("FLUSHALL")
    }
  }))
