import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { TestClock } from "effect/testing"
import { makeLock, setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { settle, until } from "./support/time.ts"

/** A lease of "k", somebody who waits for its revocation, and another client. */
const start = Effect.gen(function*() {
  const { lock, store } = yield* setup({ ttl: 900 })
  const other = yield* makeLock(store)
  const lease = yield* lock.acquire("k")
  const revoked = yield* Effect.forkChild(lease.revocation)
  yield* until(() => store.count("watch") === 1)
  yield* settle
  return { lease, lock, other, revoked, store }
})

const isWaiting = (fiber: Fiber.Fiber<unknown, unknown>) => assert.isUndefined(fiber.pollUnsafe())

const watches = ({ trace }: TestStore) => trace.filter((event) => event === "watch sent").length

describe("lease.revocation", () => {
  it.effect("succeeds at once when somebody queues, of whatever client", () =>
    Effect.gen(function*() {
      const { lease, lock, other, revoked } = yield* start
      isWaiting(revoked)
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* Fiber.join(revoked)
      assert.isTrue(yield* lease.isValid)
      const mine = yield* lock.acquire("mine")
      yield* Effect.forkChild(lock.withLock(Effect.void, "mine"))
      yield* mine.revocation
    }))

  it.effect("succeeds at once when somebody has queued before it was asked", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const lease = yield* lock.acquire("k")
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* settle
      yield* lease.revocation
    }))

  it.effect("is for one key, and not for who does not queue", () =>
    Effect.gen(function*() {
      const { lock, other, revoked } = yield* start
      yield* lock.acquire("another")
      yield* Effect.forkChild(other.withLock(Effect.void, "another"))
      yield* other.withLockIfAvailable(Effect.void, "k")
      yield* Effect.flip(other.withLock(Effect.void, "k", { waitTimeout: 0 }))
      yield* Effect.flip(other.withLock(Effect.void, "k", { maxWaiters: 0 }))
      yield* settle
      isWaiting(revoked)
    }))

  it.effect("forgets who has gone when it is asked again", () =>
    Effect.gen(function*() {
      const { lease, other, revoked } = yield* start
      const waiter = yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* Fiber.join(revoked)
      yield* Fiber.interrupt(waiter)
      const again = yield* Effect.forkChild(lease.revocation)
      yield* settle
      isWaiting(again)
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* Fiber.join(again)
    }))

  it.effect("tells all who wait for it", () =>
    Effect.gen(function*() {
      const { lease, other, revoked } = yield* start
      const second = yield* Effect.forkChild(lease.revocation)
      yield* settle
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* Fiber.join(revoked)
      yield* Fiber.join(second)
    }))

  it.effect("lets long work end early, and the next one in", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const work = lock.withLease("k", (lease) => Effect.as(Effect.raceFirst(lease.revocation, Effect.never), "early"))
      const fiber = yield* Effect.forkChild(work)
      yield* until(() => store.count("watch") === 1)
      assert.strictEqual(yield* other.withLock(Effect.succeed("in"), "k"), "in")
      assert.strictEqual(yield* Fiber.join(fiber), "early")
    }))

  it.effect("G9: asks as often as it renews where news get lost", () =>
    Effect.gen(function*() {
      const { other, revoked, store } = yield* start
      store.faults.news = "lost"
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* settle
      isWaiting(revoked)
      yield* TestClock.adjust(299)
      isWaiting(revoked)
      yield* TestClock.adjust(1)
      yield* Fiber.join(revoked)
    }))

  it.effect("goes on asking when the store fails", () =>
    Effect.gen(function*() {
      const { other, revoked, store } = yield* start
      store.faults.news = "lost"
      store.faults.watch = (run, index) => index < 3 ? unavailable : run
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* TestClock.adjust(600)
      isWaiting(revoked)
      yield* TestClock.adjust(300)
      yield* Fiber.join(revoked)
    }))

  it.effect("hears news that overtake the store's own answer", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const lease = yield* lock.acquire("k")
      store.faults.watch = (run) => Effect.andThen(run, Effect.never)
      const revoked = yield* Effect.forkChild(lease.revocation)
      yield* until(() => store.count("watch") === 1)
      yield* Effect.forkChild(other.withLock(Effect.void, "k"))
      yield* Fiber.join(revoked)
    }))

  it.effect("fails when the lease is lost, and finds that out itself", () =>
    Effect.gen(function*() {
      const { lease, other, revoked, store } = yield* start
      yield* Effect.scoped(other.takeover("k"))
      assert.deepInclude(yield* Effect.flip(Fiber.join(revoked)), { _tag: "LockLost", reason: "TakenOver" })
      assert.deepInclude(yield* Effect.flip(lease.revocation), { _tag: "LockLost", reason: "TakenOver" })
      const gone = yield* other.acquire("gone")
      yield* store.evict("gone", gone.holderId)
      assert.deepInclude(yield* Effect.flip(gone.revocation), { _tag: "LockLost", reason: "NotHeld" })
    }))

  it.effect("fails when its scope closes, and asks no more", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const scope = yield* Scope.make()
      const lease = yield* Scope.provide(lock.acquire("k"), scope)
      const revoked = yield* Effect.forkChild(Effect.flip(lease.revocation))
      yield* until(() => store.count("watch") === 1)
      yield* Scope.close(scope, Exit.void)
      assert.deepInclude(yield* Fiber.join(revoked), { _tag: "LockLost", reason: "Released" })
      const before = watches(store)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(watches(store), before)
    }))

  it.effect("asks no more once it is interrupted, and never without being asked", () =>
    Effect.gen(function*() {
      const { revoked, store } = yield* start
      yield* Fiber.interrupt(revoked)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(watches(store), 1)
    }))
})
