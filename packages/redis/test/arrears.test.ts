import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { connect, hold, queued, until } from "./support/client.ts"
import { quietly } from "./support/observe.ts"

const outages: ReadonlyArray<{
  readonly name: string
  readonly begin: (server: RedisServer.Server, proxy: FaultProxy.FaultProxy) => Effect.Effect<void, unknown>
  readonly end: (server: RedisServer.Server, proxy: FaultProxy.FaultProxy) => Effect.Effect<void, unknown>
}> = [
  { name: "frozen", begin: (server) => server.pause, end: (server) => server.resume },
  { name: "cut off", begin: (_, proxy) => proxy.refuse, end: (_, proxy) => proxy.heal }
]

describe("arrears", () => {
  for (const { begin, end, name } of outages) {
    it.live(`G9: what ended while the server was ${name} is free soon after that is over, long before its ttl`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const proxy = yield* FaultProxy.make(server)
        const client = yield* connect(proxy, {
          // Longer than this machine may stand still, and shorter than what is waited for: connections are given up, too.
          store: { commandTimeout: "4 seconds", heartbeat: "20 seconds" },
          lock: { ttl: "10 minutes", releaseTimeout: "5 seconds" }
        })
        const other = yield* connect(server, { lock: { ttl: "10 minutes" } })
        const holders = yield* Effect.forEach(["a", "b", "c"], (key) => hold(client, key))
        for (const { entered } of holders) yield* entered
        const owner = yield* hold(other, "k")
        yield* owner.entered
        const waiter = yield* hold(client, "k")
        yield* queued(other, "k", 1)

        yield* begin(server, proxy)
        // Their ends are bounded, and come to nothing.
        yield* Effect.forEach(holders, ({ leave }) => leave, { concurrency: "unbounded" })
        yield* waiter.interrupt
        yield* end(server, proxy)
        const since = performance.now()
        for (const key of ["a", "b", "c"]) {
          yield* until(Effect.map(other.store.inspect(key), ({ holders }) => holders.length === 0), `${key} is free`)
        }
        yield* queued(other, "k", 0)
        // The ttl has minutes left.
        assert.isBelow(performance.now() - since, 30_000)
        yield* owner.leave
      }).pipe(quietly))
  }
})
