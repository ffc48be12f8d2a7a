import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Scope } from "effect"
import { TestClock } from "effect/testing"
import type { Lock } from "../src/index.ts"
import { makeLock, refused, setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { drive, settle, until } from "./support/time.ts"

const ttl = 900

/** Work that is at it when the first renewal is under way, and whose finalizer takes its time. */
const work = (store: TestStore, end: Effect.Effect<string, string>) =>
  Effect.gen(function*() {
    store.trace.push("work begins")
    yield* Effect.addFinalizer(() =>
      Effect.andThen(Effect.sleep(10), Effect.sync(() => store.trace.push("work's finalizer")))
    )
    yield* Effect.sleep(350)
    store.trace.push("work ends")
    return yield* end
  }).pipe(Effect.scoped)

/** A renewal that takes long, and long to be interrupted. */
const slowRenewal = (store: TestStore): TestStore["faults"]["renew"] => () =>
  Effect.onInterrupt(
    Effect.never,
    () => Effect.andThen(Effect.sleep(20), Effect.sync(() => store.trace.push("renewal cleaned up")))
  )

interface Ending {
  readonly title: string
  readonly end: Effect.Effect<string, string>
  readonly isIt: (exit: Exit.Exit<unknown, unknown>) => boolean
}

const endings: ReadonlyArray<Ending> = [
  {
    title: "succeeds",
    end: Effect.succeed("value"),
    isIt: (exit) => Exit.isSuccess(exit) && exit.value === "value"
  },
  {
    title: "fails",
    end: Effect.fail("error"),
    isIt: (exit) => Exit.isFailure(exit) && reasons(exit.cause) === "Fail error"
  },
  {
    title: "dies",
    end: Effect.die("defect"),
    isIt: (exit) => Exit.isFailure(exit) && reasons(exit.cause) === "Die defect"
  },
  {
    title: "interrupts itself",
    end: Effect.interrupt,
    isIt: (exit) => Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
  }
]

const reasons = (cause: Cause.Cause<unknown>) =>
  cause.reasons.map((reason) =>
    reason._tag === "Fail"
      ? `Fail ${String(reason.error)}`
      : reason._tag === "Die"
      ? `Die ${String(reason.defect)}`
      : "Interrupt"
  ).join()

const releases: ReadonlyArray<{
  readonly title: string
  readonly release: TestStore["faults"]["release"]
  readonly took: number
}> = [
  { title: "works", release: undefined, took: 0 },
  { title: "fails", release: () => unavailable, took: 700 },
  { title: "dies", release: () => Effect.die("release bug"), took: 0 },
  { title: "throws", release: () => assert.fail("release bug"), took: 0 },
  { title: "interrupts itself", release: () => Effect.interrupt, took: 0 },
  { title: "hangs", release: () => Effect.never, took: 700 }
]

const combinations = endings.flatMap((ending) =>
  releases.map((release) => ({ ending, release, title: `${ending.title}, and the release ${release.title}` }))
)

describe("the order of an end", () => {
  it.effect("G6: work, its finalizers, renewal interrupted and awaited, release, waiters", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      const other = yield* makeLock(store, { ttl })
      store.faults.renew = slowRenewal(store)
      const fiber = yield* Effect.forkChild(lock.withLock(work(store, Effect.succeed("value")), "k"))
      yield* until(() => store.trace.includes("work begins"))
      yield* Effect.forkChild(other.withLock(Effect.sync(() => store.trace.push("waiter is in")), "k"))
      yield* drive(fiber)
      yield* settle
      assert.deepStrictEqual(store.trace, [
        "attempt sent",
        "attempt Granted",
        "work begins",
        "attempt sent",
        "attempt Queued",
        "renew sent",
        "work ends",
        "work's finalizer",
        "renewal cleaned up",
        "renew interrupted",
        "release sent",
        "release Done",
        "waiter is in",
        "release sent",
        "release Done"
      ])
    }))

  it.effect("G6: is the same when the work is interrupted", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.renew = slowRenewal(store)
      const fiber = yield* Effect.forkChild(lock.withLock(work(store, Effect.succeed("value")), "k"))
      yield* TestClock.adjust(310)
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* drive(interruption)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
      assert.deepStrictEqual(store.trace, [
        "attempt sent",
        "attempt Granted",
        "work begins",
        "renew sent",
        "work's finalizer",
        "renewal cleaned up",
        "renew interrupted",
        "release sent",
        "release Done"
      ])
    }))

  it.effect("G6: is the same for a lease and its scope", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.renew = slowRenewal(store)
      const fiber = yield* Effect.forkChild(Effect.scoped(Effect.gen(function*() {
        const lease = yield* lock.acquire("k")
        yield* lease.protect(work(store, Effect.succeed("value")))
      })))
      yield* drive(fiber)
      assert.deepStrictEqual(store.trace, [
        "attempt sent",
        "attempt Granted",
        "work begins",
        "renew sent",
        "work ends",
        "work's finalizer",
        "renewal cleaned up",
        "renew interrupted",
        "release sent",
        "release Done"
      ])
    }))

  it.effect("G6: is kept in a scope that closes its finalizers in parallel", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.renew = slowRenewal(store)
      const scope = yield* Scope.make("parallel")
      yield* Scope.provide(lock.acquire("k"), scope)
      yield* TestClock.adjust(310)
      yield* drive(yield* Effect.forkChild(Scope.close(scope, Exit.void)))
      assert.deepStrictEqual(store.trace.slice(2), [
        "renew sent",
        "renewal cleaned up",
        "renew interrupted",
        "release sent",
        "release Done"
      ])
    }))

  for (const { ending, release, title } of combinations) {
    it.effect(`G6: the work's own exit is what comes back: it ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl, releaseTimeout: 700 })
        store.faults.release = release.release
        let endedAt = 0
        const fiber = yield* Effect.forkChild(Effect.exit(lock.withLock(work(store, ending.end), "k")))
        // 350 ms of work and 10 ms of its finalizer.
        yield* TestClock.adjust(360)
        yield* settle
        while (fiber.pollUnsafe() === undefined && endedAt < 5000) {
          yield* TestClock.adjust(10)
          endedAt += 10
        }
        const exit = yield* Fiber.join(fiber)
        assert.isTrue(ending.isIt(exit), String(exit))
        assert.strictEqual(endedAt, release.took)
        assert.include(store.trace, "release sent")
      }))
  }

  for (const { release, title } of releases) {
    it.effect(`G6: interruption from outside stays just that when the release ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl, releaseTimeout: 700 })
        store.faults.release = release
        const fiber = yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
        yield* until(() => store.count("attempt") === 1)
        const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
        yield* drive(interruption, { limit: 1000 })
        const exit = yield* Fiber.await(fiber)
        assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
        assert.include(store.trace, "release sent")
      }))
  }

  it.effect("G6: a release is not cut short by an interruption", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.release = (run) => Effect.delay(run, 100)
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
      yield* until(() => store.count("release") === 1)
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* settle
      assert.isUndefined(interruption.pollUnsafe())
      yield* TestClock.adjust(100)
      yield* Fiber.join(interruption)
      assert.strictEqual(store.trace.at(-1), "release Done")
    }))

  it.effect("G6: a release whose outcome is unknown is sent again, one that is refused is not", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.release = (run, index) => index < 3 ? unavailable : run
      yield* drive(yield* Effect.forkChild(lock.withLock(Effect.void, "k")))
      assert.strictEqual(store.count("release"), 4)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
      store.faults.release = () => refused
      yield* lock.withLock(Effect.void, "k")
      assert.strictEqual(store.count("release"), 5)
    }))

  it.effect("a nested effect is over, finalizers and all, before the release of what it is nested in", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      let nested: Fiber.Fiber<unknown, unknown> | undefined
      const body = Effect.gen(function*() {
        nested = yield* Effect.forkDetach(lock.withLock(work(store, Effect.succeed("nested")), "k"))
        yield* until(() => store.trace.includes("work begins"))
        store.trace.push("outer work ends")
      })
      yield* drive(yield* Effect.forkChild(lock.withLock(body, "k")))
      assert.deepStrictEqual(store.trace, [
        "attempt sent",
        "attempt Granted",
        "work begins",
        "outer work ends",
        "work's finalizer",
        "release sent",
        "release Done"
      ])
      const error = yield* Effect.flip(Fiber.join(nested!))
      assert.deepInclude(error, { _tag: "LockLost", reason: "Released" })
    }))
})

describe("the order of a start", () => {
  /** Interrupts an acquisition at its only interesting moment: the holder must be known to the store's abandon. */
  const interruptedWhile = Effect.fnUntraced(function*(
    store: TestStore,
    acquiring: Effect.Effect<unknown, unknown>,
    moment: () => boolean
  ) {
    const fiber = yield* Effect.forkChild(acquiring)
    yield* until(moment)
    yield* Fiber.interrupt(fiber)
    assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    return yield* store.inspect("k")
  })

  const ways = [
    { title: "withLock", ask: (lock: Lock.Lock["Service"]) => lock.withLock(Effect.never, "k") },
    {
      title: "acquire into a scope that stays open",
      ask: (lock: Lock.Lock["Service"]) => lock.acquire("k") as Effect.Effect<unknown, unknown>
    }
  ]

  for (const { ask, title } of ways) {
    it.effect(`G7: a command that is under way when its sender is interrupted is undone: ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl })
        // The store does it, and the reply never comes.
        store.faults.attempt = (run) => Effect.andThen(run, Effect.never)
        const scope = yield* Effect.scope
        const state = yield* interruptedWhile(
          store,
          Scope.provide(ask(lock) as Effect.Effect<unknown, unknown, Scope.Scope>, scope),
          () => store.count("attempt") === 1
        )
        assert.deepStrictEqual(state, { key: "k", holders: [], waiters: [] })
        assert.deepStrictEqual(store.trace, ["attempt sent", "attempt interrupted", "abandon sent", "abandon done"])
      }))
  }

  for (const { ask, title } of ways) {
    it.effect(`G7: a wait is interruptible, and its place in the queue gone at once: ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl })
        const other = yield* makeLock(store)
        yield* other.acquire("k")
        const scope = yield* Effect.scope
        const state = yield* interruptedWhile(
          store,
          Scope.provide(ask(lock) as Effect.Effect<unknown, unknown, Scope.Scope>, scope),
          () => store.trace.at(-1) === "attempt Queued"
        )
        assert.deepStrictEqual(state.waiters, [])
        assert.strictEqual(state.holders.length, 1)
      }))
  }

  it.effect("G7: holder ids are minted anew for every acquisition and never used again", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      const other = yield* makeLock(store)
      for (const client of [lock, other, lock, other]) yield* client.withLock(Effect.void, "k")
      const ids = store.requests.map(({ holderId }) => holderId)
      assert.strictEqual(new Set(ids).size, 4)
      assert.isTrue(ids.every((id) => /^[0-9a-f]{32}-/.test(id)))
    }))

  it.effect("G7: renewal begins with the hold, not before", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      const other = yield* makeLock(store, { ttl: 60_000 })
      const scope = yield* Scope.make()
      yield* Scope.provide(other.acquire("k"), scope)
      yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
      yield* TestClock.adjust(10_000)
      assert.strictEqual(store.count("renew"), 0)
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust(300)
      assert.strictEqual(store.count("renew"), 1)
    }))
})
