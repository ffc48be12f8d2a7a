import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Option } from "effect"
import { connect, connections, hold, queued, until } from "./support/client.ts"
import { nameOf, sent } from "./support/observe.ts"

/** So rare that none is due in the time a test takes. */
const rarely = { heartbeat: "20 seconds" } as const

const isHeartbeat = (name: string) => name === "heartbeat"

describe("cost, as the server counts it", () => {
  it.live("G11: an uncontended lock is one script call to acquire and one to release", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server)
      const before = yield* server.commandStats
      const monitor = yield* server.monitor
      for (let i = 0; i < 10; i++) yield* lock.withLock(Effect.void, `key:${i}`)
      assert.deepStrictEqual(sent(yield* monitor.all), Array.from({ length: 10 }, () => ["attempt", "release"]).flat())
      const after = yield* server.commandStats
      assert.strictEqual((after.get("evalsha") ?? 0) - (before.get("evalsha") ?? 0), 20)
      assert.strictEqual(after.get("eval") ?? 0, before.get("eval") ?? 0)
    }))

  it.live("G11: asking for a key that is taken, without waiting, is one script call and nothing to clean up", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server)
      const other = yield* connect(server)
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const monitor = yield* server.monitor
      assert.deepStrictEqual(yield* other.lock.withLockIfAvailable(Effect.void, "k"), Option.none())
      const error = yield* Effect.flip(other.lock.withLock(Effect.void, "k", { waitTimeout: 0 }))
      assert.strictEqual(error._tag, "LockTimeout")
      assert.deepStrictEqual(sent(yield* monitor.all), ["attempt", "attempt"])
    }))

  it.live("several free keys are asked for at once: the server has all attempts before the client has any answer", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const patient = { store: { commandTimeout: "2 minutes" }, lock: { ttl: "2 minutes" } } as const
      const { lock } = yield* connect(proxy, patient)
      const keys = ["a", "b", "c"]
      // Every script is known to the server from here on.
      yield* lock.withLocks(Effect.void, keys)
      const monitor = yield* server.monitor
      yield* proxy.blackhole("replies")
      const fiber = yield* Effect.forkChild(lock.withLocks(Effect.succeed("in"), keys), { startImmediately: true })
      const attempts = Effect.map(monitor.all, (entries) => sent(entries).filter((name) => name === "attempt"))
      yield* until(Effect.map(attempts, ({ length }) => length === keys.length), "an attempt for each key")
      yield* proxy.heal
      assert.strictEqual(yield* Fiber.join(fiber), "in")
      assert.strictEqual((yield* attempts).length, keys.length)
    }))

  for (const clients of [1, 2]) {
    it.live(`G11: 100 contended hand-overs among waiters of ${clients} client(s) take at most 220 commands`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const connected = yield* Effect.replicateEffect(connect(server, { store: rarely }), clients)
        const holder = yield* hold(connected[0]!, "k", { ttl: "1 minute" })
        yield* holder.entered

        const monitor = yield* server.monitor
        const entered: Array<number> = []
        const waiters = yield* Effect.forEach(
          Array.from({ length: 100 }, (_, i) => i),
          (i) =>
            Effect.andThen(Effect.sync(() => entered.push(i)), Effect.yieldNow).pipe(
              (body) => connected[i % clients]!.lock.withLock(body, "k", { ttl: "1 minute" }),
              Effect.forkChild({ startImmediately: true }),
              Effect.tap(() => clients === 1 ? Effect.void : queued(connected[0]!, "k", i + 1))
            )
        )
        yield* queued(connected[0]!, "k", 100)
        yield* holder.leave
        yield* Effect.forEach(waiters, Fiber.join)
        assert.deepStrictEqual(entered, Array.from({ length: 100 }, (_, i) => i))

        const commands = sent(yield* monitor.all).filter((name) => !isHeartbeat(name) && name !== "inspect")
        assert.isAtMost(commands.length, 220)
        assert.deepStrictEqual([...new Set(commands)].toSorted(), ["attempt", "release"])
      }))
  }

  it.live("G11: 200 waiters of a client share one subscriber connection and one heartbeat for each interval", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // Offers, which last for three of them, must outlast a machine that stands still, or places are lost.
      const interval = 2000
      const one = yield* connect(server)
      const other = yield* connect(server, { store: { heartbeat: interval } })
      const holder = yield* hold(one, "k", { ttl: "10 minutes" })
      yield* holder.entered
      const entered: Array<number> = []
      const waiters = yield* Effect.forEach(
        Array.from({ length: 200 }, (_, i) => i),
        (i) =>
          Effect.forkChild(other.lock.withLock(Effect.sync(() => entered.push(i)), "k"), { startImmediately: true })
      )
      yield* queued(other, "k", 200)
      assert.deepStrictEqual(yield* connections(server), [
        "effect-lock",
        "effect-lock",
        "effect-lock-subscriber",
        "effect-lock-subscriber"
      ])

      const monitor = yield* server.monitor
      const heartbeats = Effect.map(
        monitor.all,
        (entries) => entries.filter(({ command, source }) => source !== "lua" && isHeartbeat(nameOf(command)))
      )
      yield* until(Effect.map(heartbeats, ({ length }) => length >= 5), "five heartbeats")
      const beats = yield* heartbeats
      // For longer than an unheard client counts as alive, nobody had to ask again.
      assert.deepStrictEqual([...new Set(sent(yield* monitor.all))], ["heartbeat"])
      for (let i = 1; i < beats.length; i++) {
        // Each is timed from the reply to the one before, so load only draws them apart.
        assert.isAtLeast(beats[i]!.time - beats[i - 1]!.time, interval - 2)
      }
      assert.strictEqual((yield* connections(server)).length, 4)

      yield* holder.leave
      yield* Effect.forEach(waiters, Fiber.join)
      assert.deepStrictEqual(entered, Array.from({ length: 200 }, (_, i) => i))
      // Nobody waits any more, so nothing is polled any more.
      yield* monitor.take
      yield* Effect.sleep(3 * interval)
      assert.deepStrictEqual(sent(yield* monitor.all), [])
    }))
})
