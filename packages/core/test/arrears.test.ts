import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import { TestClock } from "effect/testing"
import { withLog } from "./support/observe.ts"
import { make, makeLock, refused, setup, unavailable } from "./support/TestStore.ts"
import { drive, until } from "./support/time.ts"

const quietly = <A, E, R>(test: Effect.Effect<A, E, R>) => withLog(() => test)

const options = { ttl: "1 minute", releaseTimeout: 1000 } as const

describe("arrears: what could not be ended in time", () => {
  for (
    const [name, fault] of [
      ["cannot be reached", unavailable],
      ["hangs", Effect.never],
      ["answers too late", Effect.delay(unavailable, 5000)]
    ] as const
  ) {
    it.effect(`G9: a key whose release failed because the store ${name} is free soon after that is over, long before its ttl`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup(options)
        store.faults.release = () => fault
        const fiber = yield* Effect.forkChild(lock.withLock(Effect.succeed("done"), "k"))
        assert.deepStrictEqual(yield* drive(fiber), Exit.succeed("done"))
        yield* TestClock.adjust("20 seconds")
        assert.lengthOf((yield* store.inspect("k")).holders, 1)
        store.faults.release = undefined
        yield* TestClock.adjust("2 seconds")
        assert.lengthOf((yield* store.inspect("k")).holders, 0)
        const sent = store.count("release")
        yield* TestClock.adjust("2 minutes")
        assert.strictEqual(store.count("release"), sent)
      }).pipe(quietly))
  }

  it.effect("G7: a place in the queue that could not be left is left as soon as the store is back", () =>
    Effect.gen(function*() {
      const store = yield* make
      const lock = yield* makeLock(store, options)
      const other = yield* makeLock(store)
      yield* other.acquire("k")
      const waiter = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
      yield* until(() => store.count("attempt") === 2)
      store.faults.abandon = () => unavailable
      yield* Effect.forkChild(Fiber.interrupt(waiter))
      yield* TestClock.adjust("10 seconds")
      assert.lengthOf((yield* store.inspect("k")).waiters, 1)
      store.faults.abandon = undefined
      yield* TestClock.adjust("1 second")
      assert.lengthOf((yield* store.inspect("k")).waiters, 0)
    }).pipe(quietly))

  it.effect("G11: an outage costs a client two commands each second, however much it owes, and all of it is settled at the end", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      const keys = Array.from({ length: 100 }, (_, i) => `k${i}`)
      store.faults.release = () => unavailable
      const fibers = yield* Effect.forEach(keys, (key) => Effect.forkChild(lock.withLock(Effect.void, key)))
      yield* TestClock.adjust("5 seconds")
      yield* Fiber.joinAll(fibers)
      const before = store.count("release")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(store.count("release") - before, 20)
      // The first that is tried again may be one that still fails.
      store.faults.release = (run, index) => index % 10 === 0 ? unavailable : run
      yield* TestClock.adjust("5 seconds")
      for (const key of keys) assert.lengthOf((yield* store.inspect(key)).holders, 0)
    }).pipe(quietly))

  it.effect("G11: nothing is tried on when the ttl is over, or the layer is closed", () =>
    Effect.gen(function*() {
      const store = yield* make
      const scope = yield* Scope.make()
      const lock = yield* Scope.provide(makeLock(store, options), scope)
      store.faults.release = () => unavailable
      const fail = Effect.flatMap(Effect.forkChild(lock.withLock(Effect.void, "k")), drive)
      yield* fail
      yield* TestClock.adjust("1 minute")
      const atTtl = store.count("release")
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(store.count("release"), atTtl)
      yield* fail
      yield* TestClock.adjust("10 seconds")
      const atClose = store.count("release")
      assert.isAbove(atClose, atTtl + 20)
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(store.count("release"), atClose)
    }).pipe(quietly))

  it.effect("a release that is refused is not tried on", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      store.faults.release = () => refused
      yield* lock.withLock(Effect.void, "k")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(store.count("release"), 1)
    }).pipe(quietly))

  it.effect("what is kept for minHold is not kept for longer because its release came late", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      store.faults.release = () => unavailable
      yield* drive(yield* Effect.forkChild(lock.withLock(Effect.void, "k", { minHold: "30 seconds" })))
      yield* TestClock.adjust("20 seconds")
      store.faults.release = undefined
      yield* TestClock.adjust("1 second")
      assert.isBelow(store.releases.at(-1)!.keepFor, 10_000)
      yield* TestClock.adjust("10 seconds")
      assert.lengthOf((yield* store.inspect("k")).holders, 0)
    }).pipe(quietly))

  it.effect("G5: what is settled late takes nothing from the next holder", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      // Done, but nobody learns of it.
      store.faults.release = (run) => Effect.andThen(run, unavailable)
      yield* drive(yield* Effect.forkChild(lock.withLock(Effect.void, "k")))
      const next = yield* lock.acquire("k")
      store.faults.release = undefined
      yield* TestClock.adjust("5 seconds")
      assert.isTrue(yield* next.isValid)
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.token, next.token)
    }).pipe(quietly))
})
