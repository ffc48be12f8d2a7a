import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Scope } from "effect"
import { connect, connections, hold, leftovers, queued, until } from "./support/client.ts"
import { quietly, sent } from "./support/observe.ts"

const keys = Array.from({ length: 50 }, (_, i) => `key:${i}`)

const commands = (recording: RedisServer.Recording) =>
  Effect.map(recording.all, (entries) => sent(entries).filter((name) => name !== "inspect"))

const times = (count: number, name: string) => Array.from({ length: count }, () => name)

describe("closing a layer with 50 held leases and 50 waiters", () => {
  for (const [where, own] of [["keys of its own", true], ["keys that others hold", false]] as const) {
    it.live(`sends one command for each, all in one round trip, when the waiters wait for ${where}`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const proxy = yield* FaultProxy.make(server)
        // Nothing but the end is sent meanwhile.
        const options = {
          store: { heartbeat: "20 seconds", commandTimeout: "20 seconds" },
          lock: { ttl: "10 minutes", releaseTimeout: "20 seconds" }
        } as const
        const client = yield* connect(proxy, options)
        const other = yield* connect(server, options)
        const occupied = own ? keys : keys.map((key) => `${key} of others`)
        const holders = yield* Effect.forEach(keys, (key) => hold(client, key))
        for (const { entered } of holders) yield* entered
        const others = own ? [] : yield* Effect.forEach(occupied, (key) => hold(other, key))
        for (const { entered } of others) yield* entered
        const waiters = yield* Effect.forEach(occupied, (key) => hold(client, key))
        for (const key of occupied) yield* queued(other, key, 1)

        const monitor = yield* server.monitor
        // No answer arrives: whatever waits for one is not sent.
        yield* proxy.blackhole("replies")
        const closing = yield* Effect.forkChild(client.close, { startImmediately: true })
        yield* until(Effect.map(commands(monitor), ({ length }) => length >= 100), "all of it has been sent")
        yield* proxy.heal
        yield* Fiber.join(closing)
        assert.deepStrictEqual((yield* commands(monitor)).toSorted(), [
          ...times(50, "abandon"),
          ...times(50, "release")
        ])
        for (const { exit } of holders) assert.include(String(yield* exit), "LockLost")
        for (const { exit, isInside } of waiters) {
          assert.include(String(yield* exit), "LockClosed")
          assert.isFalse(isInside())
        }
        for (const { isInside, leave } of others) {
          assert.isTrue(isInside())
          yield* leave
        }
        for (const key of [...keys, ...occupied]) assert.deepStrictEqual(yield* leftovers(server, key), [], key)
        yield* until(Effect.map(connections(server), ({ length }) => length === 2), "only the other client is left")
        assert.strictEqual((yield* Effect.flip(client.lock.withLock(Effect.void, "k")))._tag, "LockClosed")
      }).pipe(quietly))
  }

  it.live("leases whose scopes stay open are told at once, and released together when their time is over", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const client = yield* connect(proxy, {
        store: { heartbeat: "20 seconds", commandTimeout: "20 seconds" },
        lock: { ttl: "10 minutes", releaseTimeout: "6 seconds" }
      })
      const scope = yield* Scope.make()
      const leases = yield* Effect.forEach(keys, (key) => Scope.provide(client.lock.acquire(key), scope))
      const monitor = yield* server.monitor
      yield* proxy.blackhole("replies")
      const closing = yield* Effect.forkChild(client.close, { startImmediately: true })
      for (const { lost } of leases) assert.strictEqual((yield* Effect.flip(lost)).reason, "Closed")
      yield* until(Effect.map(commands(monitor), ({ length }) => length >= 50), "all of it has been sent")
      yield* proxy.heal
      yield* Fiber.join(closing)
      assert.deepStrictEqual(yield* commands(monitor), times(50, "release"))
      for (const key of keys) assert.deepStrictEqual(yield* leftovers(server, key), [], key)
    }).pipe(quietly))
})
