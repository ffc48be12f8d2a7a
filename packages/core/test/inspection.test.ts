import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { type Lease, Lock, type LockEvent } from "../src/index.ts"
import * as engines from "../src/internal/engine.ts"
import { withMetrics } from "./support/observe.ts"
import { make, makeLock, refused, setup, unavailable } from "./support/TestStore.ts"
import { settle, until } from "./support/time.ts"

const keysOf = (states: ReadonlyArray<{ readonly key: string }>) => states.map(({ key }) => key)

describe("Lock.list", () => {
  it.effect("tells of the keys in use that begin so, sorted, each as inspect does", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "1 minute" })
      const other = yield* makeLock(store)
      for (const key of ["job:b", "job:a", "other", "job"]) yield* other.acquire(key, { holder: { key } })
      yield* Effect.forkChild(lock.withLock(Effect.void, "job:b", { holder: { job: "waits" } }))
      yield* settle
      yield* TestClock.adjust(500)
      const states = yield* lock.list("job:")
      assert.deepStrictEqual(keysOf(states), ["job:a", "job:b"])
      assert.deepStrictEqual(states, yield* Effect.forEach(["job:a", "job:b"], lock.inspect))
      assert.deepInclude(states[1]?.holders[0], { heldFor: 500, metadata: { key: "job:b" } })
      assert.deepInclude(states[1]?.waiters[0], { waitedFor: 500, metadata: { job: "waits" } })
      assert.deepStrictEqual(keysOf(yield* lock.list("")), ["job", "job:a", "job:b", "other"])
      assert.deepStrictEqual(yield* lock.list("none"), [])
    }))

  it.effect("tells of nothing that was released, or has expired", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      yield* lock.withLock(Effect.void, "released")
      store.faults.renew = () => refused
      yield* lock.acquire("expires")
      assert.deepStrictEqual(keysOf(yield* lock.list("")), ["expires"])
      yield* TestClock.adjust(900)
      assert.deepStrictEqual(yield* lock.list(""), [])
    }))

  it.effect("G12: fails as the store does", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("a")
      store.faults.inspect = () => refused
      assert.deepInclude(yield* Effect.flip(lock.list("")), { _tag: "LockStoreError", reason: "Refused" })
    }))
})

/** What has happened since, to the locks of this client. */
const listen = (lock: Lock.Lock["Service"]) =>
  Effect.gen(function*() {
    const events: Array<LockEvent.LockEvent> = []
    const fiber = yield* Effect.forkChild(
      Stream.runForEach(lock.events, (event) => Effect.sync(() => events.push(event))),
      { startImmediately: true }
    )
    return { events, fiber, tags: () => events.map(({ _tag }): string => _tag) }
  })

describe("Lock.events", () => {
  it.effect("tell of asking, waiting, holding and releasing", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const { events, tags } = yield* listen(lock)
      const gate = yield* Deferred.make<void>()
      yield* Effect.forkChild(other.withLock(Deferred.await(gate), "k"))
      yield* settle
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.sleep(300), "k"))
      yield* TestClock.adjust(700)
      yield* Deferred.succeed(gate, undefined)
      yield* settle
      yield* TestClock.adjust(300)
      yield* Fiber.join(fiber)
      yield* settle
      assert.deepStrictEqual(tags(), ["Queued", "Granted", "Released"])
      const [first, second] = store.requests
      const { token } = store.releases[1]!.lease
      const about = { key: "k", holderId: second!.holderId, permits: 1 }
      assert.deepStrictEqual(events, [
        { _tag: "Queued", ...about, at: 0, blockedBy: first!.holderId },
        { _tag: "Granted", ...about, at: 700, token, waitedFor: 700 },
        { _tag: "Released", ...about, at: 1000, token, heldFor: 300 }
      ])
    }))

  it.effect("tell why nothing was granted", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ releaseTimeout: 10 })
      const other = yield* makeLock(store)
      yield* other.acquire("k")
      const { events } = yield* listen(lock)
      yield* Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 0 }))
      yield* Effect.flip(lock.withLock(Effect.void, "k", { maxWaiters: 0 }))
      const waiting = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
      yield* settle
      yield* Fiber.interrupt(waiting)
      store.faults.attempt = () => refused
      yield* Effect.flip(lock.withLock(Effect.void, "k"))
      store.faults.attempt = () => Effect.die("bug")
      yield* Effect.exit(lock.withLock(Effect.void, "k"))
      yield* settle
      assert.deepStrictEqual(
        events.map((event) => event._tag === "NotGranted" ? event.outcome : event._tag),
        ["LockTimeout", "LockQueueFull", "Queued", "interrupted", "LockStoreError", "died"]
      )
    }))

  it.effect("tell of losses and of renewals that are in doubt", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const { events } = yield* listen(lock)
      const lease = yield* lock.acquire("k")
      store.faults.renew = (run, index) => index === 0 ? unavailable : run
      yield* TestClock.adjust(600)
      yield* store.evict("k", lease.holderId)
      yield* TestClock.adjust(900)
      yield* settle
      const about = { key: "k", holderId: lease.holderId, permits: 1, token: lease.token }
      const [granted, failed, lost, ...rest] = events
      assert.strictEqual(granted?._tag, "Granted")
      assert.deepInclude(failed, { _tag: "RenewalFailed", ...about, at: 300, timeLeft: 600 })
      assert.strictEqual(failed?._tag === "RenewalFailed" && String(failed.cause).includes("unreachable"), true)
      assert.deepInclude(lost, { _tag: "Lost", ...about, reason: "NotHeld" })
      assert.deepStrictEqual(rest, [])
    }))

  it.effect("tell of a hand-off on one side, and of the grant on the other", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const mine = yield* listen(lock)
      const others = yield* listen(other)
      const ticket = yield* Effect.scoped(Effect.flatMap(lock.acquire("k"), ({ handOff }) => handOff))
      yield* Effect.scoped(other.adopt(ticket))
      yield* settle
      assert.deepStrictEqual(mine.tags(), ["Granted", "HandedOff"])
      assert.deepStrictEqual(others.tags(), ["Granted", "Released"])
    }))

  it.effect("tell of a closing layer's losses, and of nothing that happens to other clients", () =>
    Effect.gen(function*() {
      const store = yield* make
      const layer = yield* Scope.make()
      const lock = yield* Scope.provide(makeLock(store), layer)
      const other = yield* makeLock(store)
      const { events } = yield* listen(lock)
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.never, "k")))
      yield* other.acquire("another")
      yield* settle
      yield* Scope.close(layer, Exit.void)
      yield* Fiber.join(fiber)
      yield* settle
      assert.deepStrictEqual(events.map((event) => event._tag === "Lost" ? event.reason : event._tag), [
        "Granted",
        "Closed"
      ])
    }))

  it.effect("G11: drop the oldest for who reads too slowly, and hold nobody up", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const gate = yield* Deferred.make<void>()
      const seen: Array<string> = []
      const fiber = yield* Effect.forkChild(
        lock.events.pipe(
          Stream.rechunk(1),
          Stream.runForEach(({ key }) => Effect.andThen(Effect.sync(() => seen.push(key)), Deferred.await(gate)))
        ),
        { startImmediately: true }
      )
      for (let i = 0; i < 2000; i++) yield* lock.withLock(Effect.void, `k${i}`)
      yield* Deferred.succeed(gate, undefined)
      yield* until(() => seen.at(-1) === "k1999" && seen.at(-2) === "k1999")
      assert.isBelow(seen.length, 2200)
      assert.isAtLeast(seen.length, 1024)
      yield* Fiber.interrupt(fiber)
    }))

  it.effect("G11: leave nothing behind when who listened stops", () =>
    Effect.gen(function*() {
      const engine = yield* engines.make((yield* make).service)
      const { fiber } = yield* listen(Lock.fromEngine(engine))
      assert.strictEqual(engine.listeners.size, 1)
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(engine.listeners.size, 0)
    }))

  it.effect("are told to all who listen, each until it stops", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const one = yield* listen(lock)
      const two = yield* listen(lock)
      yield* lock.withLock(Effect.void, "k")
      yield* settle
      yield* Fiber.interrupt(one.fiber)
      yield* lock.withLock(Effect.void, "k")
      yield* settle
      assert.deepStrictEqual(one.tags(), ["Granted", "Released"])
      assert.deepStrictEqual(two.tags(), ["Granted", "Released", "Granted", "Released"])
    }))
})

describe("Lock.withLease", () => {
  it.effect("gives the work its lease, and shares that with what is nested", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const token = (lease: Lease.Lease) => Effect.as(lease.check, lease.token)
      const tokens = yield* lock.withLease("k", (lease) => Effect.all([token(lease), lock.withLease("k", token)]))
      assert.deepStrictEqual(tokens, [store.releases[0]!.lease.token, store.releases[0]!.lease.token])
      assert.deepStrictEqual(store.trace, ["attempt sent", "attempt Granted", "release sent", "release Done"])
    }))

  it.effect("interrupts the work when the lease is lost, and tells who outlives it", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLease("k", () => Effect.never)))
      yield* until(() => store.count("attempt") === 1)
      yield* Effect.scoped(other.takeover("k"))
      assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", reason: "TakenOver" })
      const lease = yield* lock.withLease("k", Effect.succeed)
      assert.deepInclude(yield* Effect.flip(lease.check), { _tag: "LockLost", reason: "Released" })
    }))

  it.effect("IfAvailable runs nothing when somebody holds the key", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const work = (lease: Lease.Lease) => Effect.as(lease.check, lease.key)
      assert.deepStrictEqual(yield* lock.withLeaseIfAvailable("k", work), Option.some("k"))
      yield* other.acquire("k")
      assert.deepStrictEqual(yield* lock.withLeaseIfAvailable("k", () => Effect.die("must not run")), Option.none())
    })))
})
