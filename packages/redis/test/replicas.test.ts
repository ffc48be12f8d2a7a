/** Grants and renewals that count only once replicas have confirmed them, on a master and replicas that hang. */
import { RedisLockStore } from "@effect-lock/redis"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer } from "effect"
import { connect, leftovers, queued, until } from "./support/client.ts"
import { nameOf, quietly } from "./support/observe.ts"
import { connectionsTo, connectSentinel, occupy, replicated } from "./support/topology.ts"

// Replicas that do confirm are given the time that a busy machine may take.
const replicas = { acks: 1, timeout: "4 seconds" } as const

// When a replica attaches, others are not waited for.
const atOnce = ["repl-diskless-sync yes", "repl-diskless-sync-delay 0"]

const start = Effect.fnUntraced(function*(count = 1) {
  const master = yield* RedisServer.make({ config: atOnce })
  const all = yield* Effect.forEach(
    Array.from({ length: count }),
    () => RedisServer.make({ config: [`replicaof ${master.host} ${master.port}`] })
  )
  // Before it has loaded what it was sent first it confirms nothing.
  yield* Effect.forEach(all, (replica) =>
    until(
      Effect.map(replica.command("INFO", "replication"), (info) => String(info).includes("master_link_status:up")),
      "the replica follows"
    ))
  yield* replicated(master, count)
  return { master, replicas: all, replica: all[0]! }
})

const tooFew = (operation: string) =>
  ({ _tag: "LockStoreError", operation, reason: "Timeout", limitName: "replicas.timeout", limit: 4000 }) as const

describe("replicas", () => {
  it.live("that are there confirm grants and renewals before they count, over a connection of its own", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const { close, lock } = yield* connect(master, { store: { replicas } })
      const monitor = yield* master.monitor
      const waits = Effect.map(
        monitor.all,
        (entries) => entries.filter(({ command }) => nameOf(command) === "wait").length
      )
      yield* Effect.gen(function*() {
        const lease = yield* lock.acquire("k", { ttl: "1 minute" })
        assert.strictEqual(yield* waits, 1)
        assert.include(String(yield* replica.command("HGETALL", "effect-lock:{k}")), String(lease.token))
        yield* lease.extend("2 minutes")
        assert.strictEqual(yield* waits, 2)
      }).pipe(Effect.scoped)
      assert.sameMembers(yield* connectionsTo([master]), [
        "effect-lock",
        "effect-lock-subscriber",
        "effect-lock-replicas"
      ])
      yield* close
      yield* until(
        Effect.map(connectionsTo([master]), (names) => names.length === 0),
        "all connections are closed"
      )
    }))

  it.live("that hang make an acquisition fail, leave nothing in the store, and let the next one in when they are back", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const client = yield* connect(master, { store: { replicas } })
      yield* replica.pause
      const error = yield* Effect.flip(client.lock.withLock(Effect.die("no lock"), "k"))
      assert.deepInclude(error, { ...tooFew("attempt"), detail: "0 of 1 replicas confirmed it" })
      assert.include(error.message, "within replicas.timeout of 4000 ms: 0 of 1 replicas confirmed it")
      assert.deepStrictEqual(yield* leftovers(master, "k"), [])
      yield* replica.resume
      yield* replicated(master)
      assert.strictEqual(yield* client.lock.withLock(Effect.succeed("inside"), "k"), "inside")
    }).pipe(quietly))

  it.live("of which some hang are too few where all are asked for, and enough where one is", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start(2)
      const one = yield* connect(master, { store: { replicas } })
      const both = yield* connect(master, { store: { replicas: { ...replicas, acks: 2 } } })
      yield* both.lock.withLock(Effect.void, "k")
      yield* replica.pause
      yield* one.lock.withLock(Effect.void, "k")
      const error = yield* Effect.flip(both.lock.withLock(Effect.void, "k"))
      assert.deepInclude(error, { ...tooFew("attempt"), detail: "1 of 2 replicas confirmed it" })
      yield* replica.resume
    }).pipe(quietly))

  it.live("that hang when a waiter is granted: it fails, and the one behind it enters when they are back", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const client = yield* connect(master, { store: { replicas } })
      const holder = yield* occupy(client, "k")
      yield* holder.entered
      const waiter = yield* occupy(client, "k")
      yield* queued(client, "k", 1)
      yield* replica.pause
      assert.deepStrictEqual(yield* holder.leave, Exit.void)
      const exit = yield* waiter.exit
      assert.isTrue(Exit.isFailure(exit))
      assert.deepInclude(yield* Effect.flip(exit), tooFew("attempt"))
      assert.isFalse(waiter.isInside())
      assert.deepStrictEqual(yield* leftovers(master, "k"), [])
      yield* replica.resume
      yield* replicated(master)
      const first = yield* occupy(client, "k")
      yield* first.entered
      const second = yield* occupy(client, "k", { ttl: "1 minute" })
      yield* queued(client, "k", 1)
      yield* first.leave
      yield* second.entered
      // It was confirmed by a renewal for its whole ttl, not left to be an offer.
      assert.isAbove((yield* client.store.inspect("k")).holders[0]!.timeLeft, 50_000)
      assert.include(String(yield* replica.command("HGETALL", "effect-lock:{k}")), String(second.token()))
    }).pipe(quietly))

  it.live("that hang for the rest of a lease: it is lost at its deadline, and says why", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const client = yield* connect(master, { store: { replicas } })
      const holder = yield* occupy(client, "k", { ttl: "15 seconds" })
      yield* holder.entered
      yield* replica.pause
      const exit = yield* holder.exit
      assert.isTrue(Exit.isFailure(exit))
      const error = yield* Effect.flip(exit)
      assert.deepInclude(error, { _tag: "LockLost", reason: "Expired" })
      assert.include(String(error), "0 of 1 replicas confirmed it")
      yield* replica.resume
    }).pipe(quietly))

  it.live("one WAIT speaks for all who ask meanwhile, and an interrupted one leaves nothing behind", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const client = yield* connect(master, { store: { replicas: { acks: 1, timeout: "20 seconds" } } })
      const monitor = yield* master.monitor
      yield* replica.pause
      const keys = Array.from({ length: 20 }, (_, i) => `k${i}`)
      const fiber = yield* Effect.forkChild(
        Effect.forEach(keys, (key) => client.lock.withLock(Effect.void, key), { concurrency: "unbounded" }),
        { startImmediately: true }
      )
      const leaver = yield* Effect.forkChild(client.lock.withLock(Effect.void, "left"), { startImmediately: true })
      yield* until(
        Effect.map(client.store.inspect("left"), ({ holders }) => holders.length === 1),
        "granted, but not confirmed"
      )
      yield* Fiber.interrupt(leaver)
      assert.deepStrictEqual(yield* leftovers(master, "left"), [])
      yield* replica.resume
      yield* Fiber.join(fiber)
      const waits = (yield* monitor.all).filter(({ command }) => nameOf(command) === "wait").length
      assert.isAtMost(waits, 3)
    }).pipe(quietly))

  it.live("a layer that closes does not wait for them any longer than for anything else", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const client = yield* connect(master, { store: { replicas: { acks: 1, timeout: "20 seconds" } } })
      yield* replica.pause
      const fiber = yield* Effect.forkChild(Effect.exit(client.lock.withLock(Effect.void, "k")), {
        startImmediately: true
      })
      yield* until(
        Effect.map(client.store.inspect("k"), ({ holders }) => holders.length === 1),
        "granted, but not confirmed"
      )
      const started = performance.now()
      yield* client.close
      assert.isBelow(performance.now() - started, 10_000)
      assert.isTrue(Exit.isFailure(yield* Fiber.join(fiber)))
      yield* replica.resume
    }).pipe(quietly))

  it.live("take-over and adoption are confirmed, too", () =>
    Effect.gen(function*() {
      const { master, replica } = yield* start()
      const client = yield* connect(master, { store: { replicas }, lock: { ttl: "1 minute" } })
      const lease = yield* client.lock.acquire("k")
      const ticket = yield* lease.handOff
      yield* replica.pause
      assert.deepInclude(yield* Effect.flip(Effect.scoped(client.lock.adopt(ticket))), tooFew("adopt"))
      assert.deepInclude(yield* Effect.flip(Effect.scoped(client.lock.takeover("k"))), tooFew("takeover"))
      yield* replica.resume
      yield* replicated(master)
      assert.deepStrictEqual(yield* leftovers(master, "k"), [])
      yield* Effect.scoped(client.lock.takeover("k"))
    }).pipe(Effect.scoped, quietly))

  it.live("a confirmed lease outlives the failover that comes right after it", () =>
    Effect.gen(function*() {
      const sentinel = yield* RedisServer.makeSentinel({ replicas: 1, downAfter: "4 seconds" })
      const client = yield* connectSentinel(sentinel, {
        store: { replicas: { acks: 1, timeout: "20 seconds" }, lockDelay: true, slack: "1 second" }
      })
      const master = yield* sentinel.master
      const holder = yield* occupy(client, "k", { ttl: "1 minute", renewEvery: "59 seconds" })
      yield* holder.entered
      yield* master.kill
      yield* until(Effect.map(sentinel.master, (successor) => successor !== master), "another master")
      yield* until(
        Effect.orElseSucceed(
          Effect.map(client.store.inspect("k"), ({ holders }) => holders[0]?.token === holder.token()),
          () => false
        ),
        "the successor has it"
      )
      assert.isTrue(holder.isInside())
      assert.deepStrictEqual(yield* holder.leave, Exit.void)
    }).pipe(quietly), 120_000)

  it.live("are refused on a Cluster, and have to be at least one", () =>
    Effect.gen(function*() {
      const layers = [
        RedisLockStore.layer({ cluster: { nodes: [{ host: "127.0.0.1", port: 1 }] }, replicas }),
        RedisLockStore.layer({ replicas: { acks: 0 } }),
        RedisLockStore.layer({ replicas: { acks: 1, timeout: "1 hour" } })
      ]
      for (const layer of layers) {
        const error = yield* Effect.flip(Effect.scoped(Layer.build(layer)))
        assert.strictEqual(error._tag, "LockInvalid")
        assert.include(error.message, "replicas")
      }
    }))
})
