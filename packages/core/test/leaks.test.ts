import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as v8 from "node:v8"
import * as vm from "node:vm"
import { DistributedSemaphore, Lock, type LockError, type LockOptions, type Permits } from "../src/index.ts"
import { setup as setupPermits } from "./support/permits.ts"
import { makeLock, setup, type TestStore } from "./support/TestStore.ts"
import { drive, until } from "./support/time.ts"

v8.setFlagsFromString("--expose-gc")
const collectGarbage = vm.runInNewContext("gc") as () => void

interface Stage {
  readonly lock: Lock.Lock["Service"]
  readonly other: Lock.Lock["Service"]
  readonly store: TestStore
}

const intoClosed = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    yield* Scope.close(scope, Exit.void)
    const fiber = yield* Effect.forkChild(Scope.provide(effect, scope))
    return yield* Fiber.await(fiber)
  })

/** What is done with a lock; its options are referenced by everything that knows of it. */
const uses: ReadonlyArray<{
  readonly title: string
  readonly use: (stage: Stage, options: LockOptions.LockOptions) => Effect.Effect<unknown, unknown>
}> = [
  { title: "withLock", use: ({ lock }, options) => lock.withLock(Effect.sleep(50), "k", options) },
  { title: "withLock whose work fails", use: ({ lock }, options) => lock.withLock(Effect.fail("no"), "k", options) },
  {
    title: "withLock that is interrupted",
    use: ({ lock }, options) => Effect.timeout(lock.withLock(Effect.never, "k", options), 50)
  },
  {
    title: "withLock that waits for too long",
    use: ({ lock, other }, options) =>
      other.withLock(lock.withLock(Effect.void, "k", { ...options, waitTimeout: 10 }), "k")
  },
  {
    title: "withLock whose lease is lost",
    use: ({ lock, store }, options) =>
      lock.withLock(
        Effect.andThen(Effect.suspend(() => store.evict("k", store.requests.at(-1)!.holderId)), Effect.never),
        "k",
        { ...options, ttl: 90 }
      )
  },
  { title: "acquire", use: ({ lock }, options) => Effect.scoped(lock.acquire("k", options)) },
  {
    title: "acquire that is interrupted while it waits",
    use: ({ lock, other }, options) =>
      other.withLock(Effect.timeout(Effect.scoped(lock.acquire("k", options)), 10), "k")
  },
  { title: "tryAcquire", use: ({ lock }, options) => Effect.scoped(lock.tryAcquire("k", options)) },
  {
    title: "withLockIfAvailable of a key that is taken",
    use: ({ lock, other }, options) => other.withLock(lock.withLockIfAvailable(Effect.void, "k", options), "k")
  },
  {
    title: "nested withLock",
    use: ({ lock }, options) => lock.withLock(lock.withLock(Effect.void, "k"), "k", options)
  },
  {
    title: "acquire into a scope that has closed",
    use: ({ lock }, options) => intoClosed(lock.acquire("k", options))
  },
  {
    title: "takeover into a scope that has closed",
    use: ({ lock }, options) => intoClosed(lock.takeover("k", options))
  },
  { title: "takeover", use: ({ lock }, options) => Effect.scoped(lock.takeover("k", options)) },
  {
    title: "handOff and adopt",
    use: ({ lock }, options) =>
      Effect.flatMap(
        Effect.scoped(Effect.flatMap(lock.acquire("k", options), (lease) => lease.handOff)),
        (ticket) => Effect.scoped(lock.adopt(ticket, options))
      )
  }
]

describe("G11: a lock that has ended is remembered by nobody", () => {
  for (const { title, use } of uses) {
    it.effect(title, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: "1 hour" })
        const other = yield* makeLock(store)
        const references: Array<WeakRef<object>> = []
        const run = Effect.suspend(() => {
          const holder = { job: `${references.length}` }
          references.push(new WeakRef(holder))
          return Effect.exit(use({ lock, other, store }, { holder }))
        })
        for (let i = 0; i < 5; i++) {
          yield* drive(yield* Effect.forkChild(Effect.asVoid(run)), { step: 10 })
          // What the test itself remembers.
          store.requests.length = store.releases.length = store.renewals.length = 0
        }
        yield* TestClock.adjust("1 second")
        yield* until(() => {
          collectGarbage()
          return references.filter((reference) => reference.deref() !== undefined).length <= 1
        })
      }))
  }

  it.effect("nor does the scope remember what it was meant for and did not get", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 90 })
      const other = yield* makeLock(store)
      yield* other.acquire("busy")
      const scope = yield* Scope.make()
      for (let i = 0; i < 5; i++) {
        yield* Effect.flip(Scope.provide(lock.acquire(""), scope))
        yield* Effect.flip(Scope.provide(lock.acquire("busy", { waitTimeout: 0 }), scope))
        assert.isTrue(Option.isNone(yield* Scope.provide(lock.tryAcquire("busy"), scope)))
        const waiting = yield* Effect.forkChild(Scope.provide(lock.acquire("busy"), scope))
        yield* until(() => store.trace.at(-1) === "attempt Queued")
        yield* Fiber.interrupt(waiting)
      }
      const { state } = scope
      const finalizers = state._tag !== "Open" ? 0 : state.finalizer === undefined ? state.finalizers?.size : 1
      assert.strictEqual(finalizers, 0)
    }))

  const forking: ReadonlyArray<{
    readonly title: string
    readonly withLock: (
      job: number,
      holder: Record<string, string>
    ) => (work: Effect.Effect<void>) => Effect.Effect<void, LockError.LockError, Lock.Lock | Permits.Permits>
  }> = [
    {
      title: "each with a key of its own",
      withLock: (job, holder) => Lock.withLock(`job:${job}`, { holder })
    },
    {
      title: "all with a permit of one key",
      withLock: (_, holder) => DistributedSemaphore.make("jobs", { limit: 100, holder }).withPermit
    }
  ]
  for (const { title, withLock } of forking) {
    it.effect(`nor does the last of many jobs that fork the next one inside remember them: ${title}`, () =>
      Effect.gen(function*() {
        const { client, store } = yield* setupPermits({ ttl: "1 hour" })
        const scope = yield* Scope.Scope
        const references: Array<WeakRef<object>> = []
        const job: Effect.Effect<unknown, unknown> = Effect.suspend(() => {
          const holder = { job: `${references.length}` }
          const number = references.push(new WeakRef(holder))
          const next = Effect.andThen(Effect.forkIn(job, scope), until(() => references.length > number))
          return client(withLock(number, holder)(number < 50 ? next : Effect.never))
        })
        yield* job
        yield* until(() => references.length === 50)
        // What the test itself remembers.
        store.requests.length = store.releases.length = 0
        yield* until(() => {
          collectGarbage()
          // The last one remembers that in which it was forked, and what sleeps may have one at hand.
          return references.filter((reference) => reference.deref() !== undefined).length <= 5
        })
      }))
  }
})
