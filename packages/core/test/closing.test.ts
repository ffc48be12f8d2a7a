import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import type { LockOptions } from "../src/index.ts"
import { withLog } from "./support/observe.ts"
import { make, makeLock } from "./support/TestStore.ts"
import { drive, settle, until } from "./support/time.ts"

/** A store, and a client of it that the test closes. */
const setup = Effect.fnUntraced(function*(defaults?: LockOptions.LockOptions) {
  const store = yield* make
  const scope = yield* Scope.make()
  const lock = yield* Scope.provide(makeLock(store, defaults), scope)
  return { store, lock, close: Effect.forkChild(Scope.close(scope, Exit.void)) }
})

const isLost = (error: unknown) => assert.deepInclude(error, { _tag: "LockLost", reason: "Closed" })

const isClosed = (error: unknown) => assert.deepInclude(error, { _tag: "LockClosed", key: "k" })

describe("closing the layer", () => {
  it.effect("lets nobody acquire any more, nor who had made up his mind before", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup()
      const before: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
        lock.withLock(Effect.die("must not run"), "k"),
        lock.withLockIfAvailable(Effect.die("must not run"), "k"),
        Effect.scoped(lock.acquire("k")),
        Effect.scoped(lock.tryAcquire("k"))
      ]
      yield* Fiber.join(yield* close)
      const after: typeof before = [lock.withLock(Effect.die("must not run"), "k"), Effect.scoped(lock.tryAcquire("k"))]
      for (const asking of [...before, ...after]) {
        const error = yield* Effect.flip(asking)
        isClosed(error)
        assert.include((error as Error).message, "not acquired: the Lock layer is closing")
      }
      assert.deepStrictEqual(store.trace, [])
    }))

  it.effect("sends waiters home, out of the queue", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* other.acquire("k")
      const waiters = [
        yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.die("must not run"), "k"))),
        yield* Effect.forkChild(Effect.flip(Effect.scoped(lock.acquire("k"))))
      ]
      yield* until(() => store.count("attempt") === 3)
      yield* Fiber.join(yield* close)
      for (const fiber of waiters) isClosed(yield* Fiber.join(fiber))
      assert.deepStrictEqual((yield* store.inspect("k")).waiters, [])
    }))

  it.effect("tells of no loss where nothing was held", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { close, lock, store } = yield* setup()
        const other = yield* makeLock(store)
        yield* other.acquire("k")
        const events: Array<string> = []
        const told = Stream.runForEach(lock.events, ({ _tag }) => Effect.sync(() => events.push(_tag)))
        yield* Effect.forkChild(told, { startImmediately: true })
        const waiter = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.void, "k")))
        yield* until(() => store.trace.at(-1) === "attempt Queued")
        yield* Fiber.join(yield* close)
        isClosed(yield* Fiber.join(waiter))
        yield* settle
        assert.deepStrictEqual(events, ["Queued", "NotGranted"])
        assert.deepStrictEqual(lines.map(({ text }) => text), [])
      })
    ))

  it.effect("sends home who is asking at that moment, and gives back what he gets", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup()
      const answer = yield* Deferred.make<void>()
      store.faults.attempt = (run) => Effect.andThen(Deferred.await(answer), run)
      const asking = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.die("must not run"), "k")))
      yield* until(() => store.count("attempt") === 1)
      const closing = yield* close
      yield* settle
      assert.isUndefined(closing.pollUnsafe())
      yield* Deferred.succeed(answer, undefined)
      isClosed(yield* Fiber.join(asking))
      yield* Fiber.join(closing)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("G6: interrupts guarded work with LockLost, and keeps the order of an end", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () =>
        Effect.onInterrupt(Effect.never, () => Effect.sync(() => store.trace.push("renewal cleaned up")))
      const work = Effect.onInterrupt(
        Effect.never,
        () => Effect.andThen(Effect.sleep(100), Effect.sync(() => store.trace.push("work cleaned up")))
      )
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(work, "k")))
      yield* TestClock.adjust(310)
      const closing = yield* close
      yield* drive(closing)
      isLost(yield* Fiber.join(fiber))
      assert.deepStrictEqual(store.trace.slice(2), [
        "renew sent",
        "work cleaned up",
        "renewal cleaned up",
        "renew interrupted",
        "release sent",
        "release Done"
      ])
    }))

  it.effect("takes no time when everybody ends at once", () =>
    Effect.gen(function*() {
      const { close, lock } = yield* setup()
      const fibers = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, i) => `${i % 5}`),
        (key) => Effect.forkChild(Effect.exit(lock.withLock(Effect.never, key)))
      )
      yield* settle
      yield* Fiber.join(yield* close)
      yield* Fiber.joinAll(fibers)
    }))

  it.effect("releases a lease whose scope stays open, in bounded time, and its holder is told at once", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup({ releaseTimeout: 2000 })
      const lease = yield* lock.acquire("k")
      const told = yield* Effect.forkChild(Effect.flip(lease.lost))
      const closing = yield* close
      isLost(yield* Fiber.join(told))
      assert.isFalse(yield* lease.isValid)
      yield* TestClock.adjust(2000)
      yield* Fiber.join(closing)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("does not wait longer for work that cannot be interrupted than releaseTimeout, nor leaves its key taken", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup({ releaseTimeout: 2000 })
      const fiber = yield* Effect.forkChild(
        Effect.flip(lock.withLock(Effect.uninterruptible(Effect.sleep("1 hour")), "k"))
      )
      yield* until(() => store.count("attempt") === 1)
      const closing = yield* close
      yield* TestClock.adjust(1999)
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust(1)
      yield* Fiber.join(closing)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
      yield* TestClock.adjust("1 hour")
      isLost(yield* Fiber.join(fiber))
      assert.strictEqual(store.count("release"), 1)
    }))

  it.effect("is bounded when the store hangs", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup({ releaseTimeout: 2000 })
      yield* lock.acquire("a")
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.never, "k")))
      yield* until(() => store.count("attempt") === 2)
      store.faults.release = () => Effect.never
      store.faults.abandon = () => Effect.never
      const closing = yield* close
      yield* TestClock.adjust(4000)
      yield* Fiber.join(closing)
      isLost(yield* Fiber.join(fiber))
    }))

  it.effect("waits for a release that is under way", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup()
      store.faults.release = (run) => Effect.delay(run, 100)
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.succeed("done"), "k"))
      yield* until(() => store.count("release") === 1)
      const closing = yield* close
      yield* TestClock.adjust(99)
      assert.isUndefined(closing.pollUnsafe())
      yield* TestClock.adjust(1)
      yield* Fiber.join(closing)
      assert.strictEqual(store.trace.at(-1), "release Done")
      assert.strictEqual(yield* Fiber.join(fiber), "done")
    }))

  it.effect("ends nested work, and sends home who waits for a turn instead of on to the store", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup()
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(
        Effect.gen(function*() {
          const current = yield* Effect.forkDetach(Effect.flip(lock.withLock(Effect.never, "k")))
          yield* Effect.yieldNow
          const waiting = yield* Effect.forkDetach(Effect.flip(lock.withLock(Effect.die("must not run"), "k")))
          nested.push(current, waiting)
          return yield* Effect.never
        }),
        "k"
      )))
      const nested: Array<Fiber.Fiber<unknown, unknown>> = []
      yield* until(() => nested.length === 2)
      yield* settle
      yield* Fiber.join(yield* close)
      isLost(yield* Fiber.join(fiber))
      isLost(yield* Fiber.join(nested[0]!))
      isClosed(yield* Fiber.join(nested[1]!))
      assert.strictEqual(store.count("attempt"), 1)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("leaves other clients of the store alone", () =>
    Effect.gen(function*() {
      const { close, lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const lease = yield* other.acquire("a")
      const waiting = yield* Effect.forkChild(other.withLock(Effect.succeed("in"), "k"))
      yield* Effect.forkChild(Effect.exit(lock.withLock(Effect.never, "k")))
      yield* settle
      yield* Fiber.join(yield* close)
      assert.isTrue(yield* lease.isValid)
      assert.strictEqual(yield* Fiber.join(waiting), "in")
    }))
})
