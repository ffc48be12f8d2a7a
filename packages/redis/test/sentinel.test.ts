import { RedisLockStore } from "@effect-lock/redis"
import { LockStoreSuite, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it, layer } from "@effect/vitest"
import { Effect, Exit, Layer } from "effect"
import { build, patience, queued, until, untilSync } from "./support/client.ts"
import { quietly, sent } from "./support/observe.ts"
import { connectionsTo, connectSentinel, lineUp, occupy, refusal, replicated } from "./support/topology.ts"

// No failover is part of this.
const Servers = RedisServer.sentinel({ downAfter: "20 seconds" })

const onSentinel = () =>
  RedisServer.RedisSentinel.useSync(({ addresses, name }) =>
    RedisLockStore.layer({ ...patience, options: { sentinels: [...addresses], name } })
  ).pipe(
    Layer.unwrap,
    Layer.provide(Servers)
  )

LockStoreSuite.suite("Redis under Sentinels", onSentinel(), { otherClient: onSentinel })

/** Sentinels that are held up in the middle of a failover begin anew ten seconds later. */
const timeout = 120_000

const allOf = ({ sentinels, servers }: RedisServer.Sentinel) => [...servers, ...sentinels]

/** Brings everybody back to life, for the next test. */
const restored = (sentinel: RedisServer.Sentinel) =>
  Effect.gen(function*() {
    for (const server of allOf(sentinel)) {
      yield* Effect.ignore(server.resume)
      if (Exit.isFailure(yield* Effect.exit(server.pid))) yield* server.restart
    }
    yield* sentinel.settled
  }).pipe(Effect.orDie)

const grows = (tokens: ReadonlyArray<number>) => tokens.every((token, i) => i === 0 || token > tokens[i - 1]!)

/** Waits until the Sentinels call somebody else the master. */
const successorOf = Effect.fnUntraced(function*(sentinel: RedisServer.Sentinel, before: RedisServer.Server) {
  yield* until(Effect.map(sentinel.master, (master) => master !== before), "another master")
  return yield* sentinel.master
})

// A busy machine must not replace a master before the test does.
layer(RedisServer.sentinel({ downAfter: "4 seconds" }), { excludeTestServices: true })("a master", (it) => {
  const ways = [
    ["that is killed", (_: RedisServer.Sentinel, master: RedisServer.Server) => master.kill],
    // Not one that is replaced by command: it goes on taking writes for a moment, and they are lost.
    ["that hangs", (_: RedisServer.Sentinel, master: RedisServer.Server) => master.pause]
  ] as const

  it.effect.each(ways)(
    "%s: the holder keeps its lease, and every waiter enters in order",
    ([, end]) =>
      Effect.gen(function*() {
        const sentinel = yield* RedisServer.RedisSentinel
        // No heartbeat comes to help: grants are pushed, by the new master.
        const store = { heartbeat: "20 seconds", commandTimeout: "5 seconds" } as const
        const [one, other] = yield* Effect.all([
          connectSentinel(sentinel, { store }),
          connectSentinel(sentinel, { store })
        ])
        const holder = yield* occupy(one, "kept", { ttl: "1 minute", renewEvery: "100 millis" })
        yield* holder.entered
        const waiters = yield* lineUp([other, one, other], "kept", { ttl: "1 minute" })
        const master = yield* sentinel.master
        yield* replicated(master)
        yield* end(sentinel, master)

        const successor = yield* successorOf(sentinel, master)
        const monitor = yield* successor.monitor
        yield* until(
          Effect.map(monitor.all, (entries) => sent(entries).includes("renew")),
          "a renewal on the new master"
        )
        assert.isTrue(holder.isInside())
        const others = sentinel.servers.filter((server) => server !== master)
        yield* until(
          Effect.map(Effect.forEach(others, (server) => server.clients), (clients) =>
            clients.flat().filter((client) => client.get("name") === "effect-lock-subscriber").length === 2),
          "both subscribers have moved"
        )
        assert.deepStrictEqual(yield* holder.leave, Exit.void)
        for (const waiter of waiters) {
          yield* waiter.entered
          assert.deepStrictEqual(
            waiters.filter(({ isInside }) =>
              isInside()
            ),
            [waiter]
          )
          assert.deepStrictEqual(yield* waiter.leave, Exit.void)
        }
        const tokens = [holder, ...waiters].map(({ token }) => token())
        assert.isTrue(grows(tokens), tokens.join())
        yield* restored(sentinel)
      }).pipe(quietly),
    timeout
  )

  it.effect(
    "whose replicas know of nothing: the holder gets LockLost, and every waiter enters",
    () =>
      Effect.gen(function*() {
        const sentinel = yield* RedisServer.RedisSentinel
        const [one, other] = yield* Effect.all([connectSentinel(sentinel), connectSentinel(sentinel)])
        const master = yield* sentinel.master
        const replicas = sentinel.servers.filter((server) => server !== master)
        yield* Effect.forEach(replicas, (replica) => replica.pause)
        yield* master.command("CLIENT", "KILL", "TYPE", "replica")
        const holder = yield* occupy(one, "forgotten", { ttl: "1 minute", renewEvery: "100 millis" })
        yield* holder.entered
        const waiters = yield* lineUp([one, other, one], "forgotten", { ttl: "1 minute" })
        yield* master.kill
        yield* Effect.forEach(replicas, (replica) => replica.resume)

        const exit = yield* holder.exit
        assert.isTrue(Exit.isFailure(exit))
        assert.deepInclude(yield* Effect.flip(exit), { _tag: "LockLost", reason: "NotHeld", token: holder.token() })
        yield* Effect.forEach(waiters, (waiter) => Effect.andThen(waiter.entered, waiter.leave), {
          concurrency: "unbounded"
        })
        const tokens = waiters.map(({ token }) => token()).toSorted((a, b) => a - b)
        assert.isTrue(grows([holder.token(), ...tokens]), tokens.join())
        yield* restored(sentinel)
      }).pipe(quietly),
    timeout
  )

  it.effect("that is not one any more: READONLY is waited out, over a new connection", () =>
    Effect.gen(function*() {
      const sentinel = yield* RedisServer.RedisSentinel
      const client = yield* connectSentinel(sentinel, { store: { commandTimeout: "20 seconds" } })
      const master = yield* sentinel.master
      yield* client.lock.withLock(Effect.void, "warm-up")
      const connection = yield* connectionId(master)
      const refused = yield* refusal(master, "READONLY")
      yield* master.command("REPLICAOF", "127.0.0.1", 1)
      const holder = yield* occupy(client, "readonly")
      yield* refused
      yield* master.command("REPLICAOF", "NO", "ONE")
      yield* holder.entered
      yield* holder.leave
      if ((yield* sentinel.master) === master) assert.notStrictEqual(yield* connectionId(master), connection)
      yield* restored(sentinel)
    }).pipe(quietly), timeout)

  it.effect(
    "that hangs while a client closes: no connection is left, to Sentinels neither",
    () =>
      Effect.gen(function*() {
        const sentinel = yield* RedisServer.RedisSentinel
        const client = yield* connectSentinel(sentinel)
        const holder = yield* occupy(client, "closing")
        yield* holder.entered
        yield* occupy(client, "closing")
        yield* queued(client, "closing", 1)
        const master = yield* sentinel.master
        yield* master.pause
        yield* client.close
        yield* master.resume
        yield* restored(sentinel)
        yield* until(
          Effect.map(connectionsTo(allOf(sentinel)), (names) => names.length === 0),
          "all connections are closed"
        )
      }).pipe(quietly),
    timeout
  )
})

const connectionId = (server: RedisServer.Server) =>
  Effect.map(server.clients, (clients) => clients.find((client) => client.get("name") === "effect-lock")?.get("id"))

describe("a client of Sentinels", () => {
  it.live("asks another Sentinel when one hangs, and leaves no connection and no resource behind", () =>
    Effect.gen(function*() {
      const sentinel = yield* RedisServer.makeSentinel({ replicas: 1 })
      yield* sentinel.sentinels[0]!.pause
      const resources = () =>
        process.getActiveResourcesInfo().filter((name) => name !== "Timeout" && name !== "Immediate").length
      const before = resources()
      for (let i = 0; i < 3; i++) {
        const client = yield* connectSentinel(sentinel, { store: { commandTimeout: "16 seconds" } })
        yield* client.lock.withLock(Effect.void, "k")
        yield* client.close
      }
      yield* untilSync(() => resources() <= before, "all sockets are closed")
      yield* sentinel.sentinels[0]!.resume
      yield* until(
        Effect.map(connectionsTo(sentinel.servers), (names) => names.length === 0),
        "all connections are closed"
      )
    }))

  it.live("fails to build with Unavailable when no Sentinel can be reached", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.scoped(
          build(RedisLockStore.layer({ options: { sentinels: [{ host: "127.0.0.1", port: 1 }], name: "none" } }))
        )
      )
      assert.deepInclude(error, { _tag: "LockStoreError", reason: "Unavailable", operation: "connect" })
    }))
})
