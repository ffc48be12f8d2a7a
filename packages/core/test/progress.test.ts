import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect, Exit, Fiber, Scope } from "effect"
import { TestClock } from "effect/testing"
import { makeLock, setup } from "./support/TestStore.ts"
import { jumpingClock, until } from "./support/time.ts"

const options = { progressTimeout: "5 seconds" } as const

describe("progressTimeout", () => {
  it.effect("G4: interrupts work that reports no progress for so long, though its lease is renewed", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      let endedAt = 0
      const work = Effect.onInterrupt(Effect.never, () =>
        Effect.map(Clock.currentTimeMillis, (now) => {
          endedAt = now
        }))
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(work, "k", options)))
      yield* TestClock.adjust(4999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Fiber.join(fiber)
      assert.deepInclude(error, { _tag: "LockLost", reason: "Stalled", limit: 5000 })
      assert.strictEqual(
        error.message,
        `Lease on "k" (token ${store.releases[0]?.lease.token}) lost: no heartbeat for progressTimeout of 5000 ms`
      )
      assert.strictEqual(endedAt, 5000)
      assert.isAbove(store.count("renew"), 10)
    }))

  it.effect("lets the next one in at once: work that hangs blocks nobody", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "1 hour" })
      const other = yield* makeLock(store)
      yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.never, "k", options)))
      yield* until(() => store.count("attempt") === 1)
      const next = yield* Effect.forkChild(other.withLock(Effect.succeed("in"), "k"))
      yield* TestClock.adjust(4999)
      assert.isUndefined(next.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* Fiber.join(next), "in")
    }))

  it.effect("counts from the last heartbeat, and from the grant on", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "1 minute" })
      const scope = yield* Scope.make()
      const first = yield* Scope.provide(lock.acquire("k"), scope)
      const waiting = yield* Effect.forkChild(
        lock.acquire("k", options)
      )
      yield* TestClock.adjust("1 hour")
      assert.isTrue(yield* first.isValid)
      yield* Scope.close(scope, Exit.void)
      const lease = yield* Fiber.join(waiting)
      for (let i = 0; i < 5; i++) {
        yield* TestClock.adjust(4999)
        yield* lease.heartbeat
      }
      yield* TestClock.adjust(4999)
      assert.isTrue(yield* lease.isValid)
      yield* TestClock.adjust(1)
      assert.deepInclude(yield* Effect.flip(lease.heartbeat), { _tag: "LockLost", reason: "Stalled" })
      assert.isAtLeast(store.count("renew"), 1)
    }))

  it.effect("heeds the heartbeat of who shares the lease", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup({ ttl: "1 minute" })
      const beating = Effect.scoped(
        Effect.flatMap(lock.acquire("k"), (lease) => Effect.repeat(Effect.delay(lease.heartbeat, 3000), { times: 3 }))
      )
      const fiber = yield* Effect.forkChild(lock.withLock(beating, "k", options))
      yield* TestClock.adjust(12_000)
      yield* Fiber.join(fiber)
    }))

  it.effect("is noticed on a machine that was suspended", () =>
    Effect.gen(function*() {
      const { clock, jump } = yield* jumpingClock
      const { lock } = yield* setup({ ttl: "1 hour" }).pipe(Effect.provideService(Clock.Clock, clock))
      const fiber = yield* Effect.forkChild(
        Effect.flip(lock.withLock(Effect.never, "k", options)).pipe(Effect.provideService(Clock.Clock, clock))
      )
      yield* TestClock.adjust(1000)
      jump(10_000)
      yield* TestClock.adjust(1000)
      assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", reason: "Stalled" })
    }))

  it.effect("is not asked for unless it is set: a heartbeat is a check", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const scope = yield* Scope.make()
      const lease = yield* Scope.provide(lock.acquire("k"), scope)
      yield* TestClock.adjust("1 day")
      yield* lease.heartbeat
      yield* Scope.close(scope, Exit.void)
      assert.deepInclude(yield* Effect.flip(lease.heartbeat), { _tag: "LockLost", reason: "Released" })
    }))
})
