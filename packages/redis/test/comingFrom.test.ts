/**
 * How locks hurt elsewhere, one test for each story that users of other libraries tell, named after it. What is more is told
 * in docs/coming-from.md.
 */
import { type Lease, LockError, LockMetrics } from "@effect-lock/core"
import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { DateTime, Deferred, Duration, Effect, Fiber, Metric, Option, Schema } from "effect"
import { connect, connections, hold, leftovers, queued, until } from "./support/client.ts"
import { quietly, withLog, withMetrics } from "./support/observe.ts"
import { random } from "./support/random.ts"

/** What a loaded machine may add. */
const margin = 5000

const isLost = Schema.is(LockError.LockLost)

describe("pains of other libraries", () => {
  it.live("context deadline exceeded although no key exists: wait, command and lease are limits of their own, each told with its value and what the store knew", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const ttl = 8000
      const { lock, store } = yield* connect(proxy, {
        store: { commandTimeout: 4000 },
        lock: { ttl, waitTimeout: "1 minute" }
      })
      const other = yield* connect(server)

      // Somebody has the key, and somebody is before us: the wait.
      const holder = yield* hold(other, "k", { holder: { job: "nightly" } })
      yield* holder.entered
      const first = yield* hold(other, "k")
      yield* queued(other, "k", 1)
      const waited = yield* Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 200 }))
      assert.strictEqual(waited._tag, "LockTimeout")
      if (waited._tag !== "LockTimeout") return
      assert.strictEqual(waited.waitTimeout, 200)
      assert.strictEqual(waited.holders[0]!.metadata["job"], "nightly")
      assert.isAtLeast(waited.holders[0]!.heldFor, 150)
      assert.isAbove(waited.holders[0]!.timeLeft, 0)
      assert.deepStrictEqual([waited.position, waited.queueLength], [1, 2])
      assert.match(
        waited.message,
        /waitTimeout of 200 ms: held by .*job nightly.* ms of its lease left, position 1 of 2/
      )
      yield* holder.leave
      yield* first.leave

      // No key exists: that is never a time-out, however short the wait may be.
      assert.deepStrictEqual(yield* store.inspect("free"), { key: "free", holders: [], waiters: [] })
      for (let i = 0; i < 50; i++) yield* lock.withLock(Effect.void, "free", { waitTimeout: 0 })

      // Nobody has the key, and the server is silent: the command. Then a lease that cannot be renewed: the lease.
      const owner = yield* Effect.forkChild(lock.withLock(Effect.never, "owned"), { startImmediately: true })
      yield* until(Effect.map(store.inspect("owned"), ({ holders }) => holders.length === 1), "it is held")
      yield* proxy.blackhole()
      const silent = yield* Effect.flip(lock.withLock(Effect.void, "free"))
      assert.strictEqual(silent._tag, "LockStoreError")
      assert.match(silent.message, /did not answer "attempt" within commandTimeout of 4000 ms/)
      const lost = yield* Effect.flip(Fiber.join(owner))
      assert.strictEqual(lost._tag, "LockLost")
      assert.match(lost.message, /Lease on "owned" \(token \d+\) lost: not renewed within its ttl of 8000 ms/)

      const names = [waited, silent, lost].map(({ message }) => /(\w+) of \d+ ms/.exec(message)?.[1])
      assert.deepStrictEqual(names, ["waitTimeout", "commandTimeout", "ttl"])
      yield* proxy.heal
    }).pipe(quietly))

  it.live(
    "waitgate deadlock: thousands who take two locks in opposite order, with interruption, time-out and loss, all come to an end",
    () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const clients = [
          yield* connect(server, { store: { heartbeat: 200 } }),
          yield* connect(server, { store: { heartbeat: 200 } })
        ]
        const ends = { both: 0, timedOut: 0, lost: 0, interrupted: 0 }
        const contender = (seed: number) => {
          const next = random(seed)
          const { lock } = clients[seed % 2]!
          const [outer, inner] = next() < 0.5 ? ["a", "b"] : ["b", "a"]
          const both = lock.withLock(Effect.sync(() => void ends.both++), inner, { waitTimeout: next() * 10 })
          const taken = lock.withLock(both, outer, {
            waitTimeout: "1 minute",
            maxHold: next() < 0.2 ? 1 + next() * 5 : "Infinity"
          })
          const patience = next() < 0.3 ? next() * 2000 : undefined
          return (patience === undefined ? taken : Effect.timeout(taken, patience)).pipe(
            Effect.catch((error) =>
              Effect.sync(() => {
                if (error._tag === "LockTimeout") ends.timedOut++
                else if (error._tag === "LockLost") ends.lost++
                else if (error._tag === "TimeoutError") ends.interrupted++
                else throw error
              })
            )
          )
        }
        const contend = (count: number, concurrency: number | "unbounded") =>
          Effect.forEach(Array.from({ length: count }, (_, i) => i), contender, { concurrency, discard: true })
        yield* contend(3000, "unbounded")
        // On a slow machine hardly anybody in such a crowd gets the second lock in time.
        yield* contend(200, 4)
        for (const [end, count] of Object.entries(ends)) assert.isAbove(count, 10, end)
        for (const key of ["a", "b"]) {
          yield* until(Effect.map(leftovers(server, key), ({ length }) => length === 0), `nothing is left of ${key}`)
          for (const { lock } of clients) yield* lock.withLock(Effect.void, key, { waitTimeout: "10 seconds" })
        }
      }).pipe(quietly),
    300_000
  )

  it.live("cancel races with the next acquire, connection leaked while extending: the next one enters, over the same connections", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server)
      const before = yield* connections(server)
      const next = random(4)
      for (let i = 0; i < 300; i++) {
        const extending = Effect.scoped(Effect.gen(function*() {
          const lease = yield* lock.acquire("k")
          return yield* Effect.forever(lease.extend("30 seconds"))
        }))
        const fiber = yield* Effect.forkChild(extending, { startImmediately: true })
        yield* Effect.sleep(next() * 3)
        fiber.interruptUnsafe()
        // Asked for while the interruption is under way.
        yield* lock.withLock(Effect.void, "k", { waitTimeout: "10 seconds" })
        yield* Fiber.await(fiber)
      }
      assert.deepStrictEqual(yield* connections(server), before)
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }))

  it.live("old Redis: the plain path sends nothing that Redis 5 does not know", () =>
    Effect.gen(function*() {
      // ioredis asks whether RESP3 is known, and takes no for an answer.
      const server = yield* RedisServer.make({ config: ["rename-command HELLO \"\""] })
      const recording = yield* server.monitor
      const [one, other] = [yield* connect(server), yield* connect(server)]
      const holder = yield* hold(one, "k", { renewEvery: 50 })
      yield* holder.entered
      const waiter = yield* hold(other, "k", { minHold: 10, holder: { job: "j" } })
      yield* queued(one, "k", 1)
      yield* Effect.flip(other.lock.withLock(Effect.void, "k", { waitTimeout: 200 }))
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
      const ticket = yield* Effect.scoped(Effect.flatMap(one.lock.acquire("k"), (lease) => lease.handOff))
      yield* Effect.scoped(Effect.flatMap(other.lock.adopt(ticket), (lease) => lease.extend("40 seconds")))
      yield* Effect.scoped(one.lock.takeover("k"))
      // The test's own connections are not the plain path.
      const ours = new Set(["lua"])
      for (const client of yield* server.clients) {
        if (/^effect-lock(-subscriber)?$/.test(client.get("name")!)) ours.add(client.get("addr")!)
      }
      const sent = (yield* recording.all).filter(({ source }) => ours.has(source))
      assert.isAbove(sent.length, 50)
      for (const { command: [name, ...args] } of sent) {
        assert.include(known, name!.toLowerCase(), [name, ...args].join(" ").slice(0, 200))
        for (const arg of args) assert.notMatch(arg, /^(PXAT|EXAT|KEEPTTL|GT|LT|BYSCORE|BYLEX|REV)$/i, name)
      }
    }).pipe(quietly))

  it.live("Failed to extend lock: a body that ends in the middle of a renewal is released, and nothing has failed", () =>
    withLog((lines) =>
      withMetrics(Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const clients = [yield* connect(server), yield* connect(server)]
        let ended = 0
        yield* Effect.forEach([0, 1, 2, 3, 4, 5, 6, 7], (i) => {
          const next = random(i)
          const { lock } = clients[i % 2]!
          return Effect.suspend(() =>
            lock.withLock(Effect.sleep(next() * 30), `k${i >> 1}`, { ttl: 30_000, renewEvery: 3 })
          ).pipe(
            Effect.tap(() => Effect.sync(() => ended++)),
            Effect.repeat({ times: 99 })
          )
        }, { concurrency: "unbounded", discard: true })
        assert.strictEqual(ended, 800)
        const renewals = (outcome: string) =>
          Effect.map(Metric.value(Metric.withAttributes(LockMetrics.renewals, { outcome })), ({ count }) => count)
        assert.isAbove(yield* renewals("done"), 100)
        assert.deepStrictEqual([yield* renewals("not_held"), yield* renewals("failed")], [0, 0])
        assert.deepStrictEqual(lines.filter(({ level }) => level !== "Info").map(({ text }) => text), [])
      }))
    ))

  it.live("connection loss releases the lock: it does not; the store keeps it until its ttl, and the holder stops before", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const ttl = 6000
      const client = yield* connect(proxy, { lock: { ttl, renewEvery: 1000, releaseTimeout: "20 seconds" } })
      const other = yield* connect(server)
      const isFree = Effect.map(other.lock.withLockIfAvailable(Effect.void, "k"), Option.isSome)

      // A loss that ends in time costs nothing, over another connection.
      const first = yield* hold(client, "k")
      yield* first.entered
      yield* proxy.reset
      assert.isFalse(yield* isFree)
      yield* Effect.sleep(1.5 * ttl)
      assert.isFalse(yield* isFree)
      yield* first.leave
      assert.isTrue(yield* isFree)

      // One that lasts ends the work before the store would give the key to somebody else.
      const leased = yield* Deferred.make<Lease.Lease>()
      const second = yield* Effect.forkChild(Effect.scoped(Effect.gen(function*() {
        const lease = yield* client.lock.acquire("k")
        yield* Deferred.succeed(leased, lease)
        return yield* lease.protect(Effect.never)
      })))
      const lease = yield* Deferred.await(leased)
      yield* proxy.refuse
      assert.isFalse(yield* isFree)
      let enteredAt = 0
      const waiter = yield* Effect.forkChild(
        other.lock.withLock(Effect.sync(() => void (enteredAt = Date.now())), "k")
      )
      const [lostAfter, error] = yield* Effect.timed(Effect.flip(Fiber.join(second)))
      assert.isTrue(isLost(error) && error.reason === "Expired", String(error))
      assert.isBelow(Duration.toMillis(lostAfter), ttl + margin)
      yield* Fiber.join(waiter)
      // Which of the two is seen first is a matter of luck where this process was held up meanwhile.
      assert.isBelow(DateTime.toEpochMillis(yield* lease.deadline), enteredAt)
      yield* proxy.heal

      // A release that meets it is sent again, for as long as releaseTimeout.
      const patient = yield* hold(client, "k")
      yield* patient.entered
      yield* proxy.refuse
      const leaving = yield* Effect.forkChild(patient.leave, { startImmediately: true })
      assert.isFalse(yield* isFree)
      yield* proxy.heal
      yield* Fiber.join(leaving)
      assert.isTrue(yield* isFree)
    }).pipe(quietly))
})

/** What the plain path needs, all of it known to Redis 5. */
const known = [
  "client del eval evalsha exists get hdel hget hgetall hmget hset info pexpire pexpireat publish script set subscribe time",
  "zadd zcard zrange zrangebyscore zrank zrem zscore"
].flatMap((line) => line.split(" "))
