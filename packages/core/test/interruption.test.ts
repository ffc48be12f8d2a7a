import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, type Fiber, Metric, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { type Lease, type Lock, type LockError, LockMetrics } from "../src/index.ts"
import { withMetrics } from "./support/observe.ts"
import { everyStep } from "./support/stepping.ts"
import { make, makeLock, type TestStore, unavailable } from "./support/TestStore.ts"
import { drive, until } from "./support/time.ts"

const ttl = 90

/** What a run has to play with. `work` must never be done by two at the same time. */
interface Stage {
  readonly store: TestStore
  readonly lock: Lock.Lock["Service"]
  readonly other: Lock.Lock["Service"]
  readonly work: Effect.Effect<string>
  /** Closes the layer of `lock`. */
  readonly close: Effect.Effect<void>
  /** After how many requests it was closed. */
  readonly closed: { after: number }
  /** Stays open until all is checked. */
  readonly wide: Scope.Closeable
  readonly counts: { begun: number; ended: number; inside: number; most: number }
}

const stage = Effect.gen(function*() {
  const store = yield* make
  // Commands and replies are on their way for a while: there are steps at which a command is sent but not yet executed,
  // and executed but not yet answered.
  const slow = <A, E>(run: Effect.Effect<A, E>) =>
    Effect.andThen(Effect.yieldNow, Effect.tap(run, () => Effect.yieldNow))
  for (const verb of ["attempt", "renew", "release", "abandon", "takeover", "transfer", "adopt"]) {
    Object.assign(store.faults, { [verb]: slow })
  }
  const layer = yield* Scope.make()
  const wide = yield* Scope.make()
  const counts = { begun: 0, ended: 0, inside: 0, most: 0 }
  const stage: Stage = {
    store,
    lock: yield* Scope.provide(makeLock(store, { ttl, holder: { client: "lock" } }), layer),
    other: yield* makeLock(store, { ttl }),
    close: Scope.close(layer, Exit.void),
    closed: { after: Infinity },
    wide,
    counts,
    work: Effect.acquireUseRelease(
      Effect.sync(() => {
        counts.begun++
        counts.most = Math.max(counts.most, ++counts.inside)
      }),
      () => Effect.as(Effect.sleep(35), "done"),
      () =>
        Effect.andThen(
          Effect.yieldNow,
          Effect.sync(() => {
            counts.inside--
            counts.ended++
          })
        )
    )
  }
  return stage
}).pipe(Effect.orDie)

/** Somebody else holds the key for a while after the victim has begun. */
const contended = ({ other }: Stage) => Effect.forkDetach(other.withLock(Effect.sleep(15), "k"))

/** In the canonical order one comes before "k" and one behind it. */
const several = ["l", "j", "k"]

const protectedBy =
  (work: Effect.Effect<string>) => (leases: ReadonlyArray<Lease.Lease>): Effect.Effect<string, LockError.LockLost> =>
    leases.reduce<Effect.Effect<string, LockError.LockLost>>((work, lease) => lease.protect(work), work)

interface Scenario {
  readonly title: string
  readonly victim: (stage: Stage) => Effect.Effect<unknown, unknown>
  readonly prepare?: (stage: Stage) => Effect.Effect<unknown>
  /** How the victim ends when nobody disturbs it. */
  readonly undisturbed?: "fails"
  /** How long, in milliseconds, the key may stay taken. */
  readonly freeAfter?: number
  /** What happens to it in tests of their own, besides interruption. */
  readonly also?: ReadonlyArray<"times out" | "closes" | "evicted">
}

const scenarios: ReadonlyArray<Scenario> = [
  { title: "withLock", also: ["times out", "closes", "evicted"], victim: ({ lock, work }) => lock.withLock(work, "k") },
  {
    title: "withLock that has to wait",
    also: ["times out", "closes"],
    prepare: contended,
    victim: ({ lock, work }) => lock.withLock(work, "k")
  },
  {
    title: "withLock that has to wait, and looks again",
    prepare: (stage) =>
      Effect.andThen(
        contended(stage),
        Effect.sync(() => {
          const { attempt } = stage.store.faults
          stage.store.faults.attempt = (run, index) =>
            Effect.map(attempt!(run, index), (answer) =>
              answer._tag === "Queued"
                ? { ...answer, signal: Effect.delay(Effect.succeed({ _tag: "LookAgain" as const }), 10) }
                : answer)
        })
      ),
    victim: ({ lock, work }) => lock.withLock(work, "k")
  },
  {
    title: "withLock that waits for too long",
    prepare: contended,
    victim: ({ lock, work }) => lock.withLock(work, "k", { waitTimeout: 10 }),
    undisturbed: "fails"
  },
  {
    title: "withLock whose grant is stale",
    also: ["closes"],
    prepare: ({ store }) =>
      Effect.sync(() => {
        store.faults.attempt = (run, index) => Effect.tap(run, () => Effect.sleep(index === 0 ? ttl : 1))
      }),
    victim: ({ lock, work }) => lock.withLock(work, "k")
  },
  {
    title: "withLock on a store that does what it says it did not",
    prepare: ({ store }) =>
      Effect.sync(() => {
        store.faults.attempt = (run) => Effect.andThen(run, unavailable)
      }),
    victim: ({ lock, work }) => lock.withLock(work, "k"),
    undisturbed: "fails"
  },
  { title: "withLockIfAvailable", victim: ({ lock, work }) => lock.withLockIfAvailable(work, "k") },
  {
    title: "withLockIfAvailable of a key that is taken",
    prepare: contended,
    victim: ({ lock, work }) => lock.withLockIfAvailable(work, "k")
  },
  {
    title: "acquire",
    victim: ({ lock, work }) => Effect.scoped(Effect.flatMap(lock.acquire("k"), (lease) => lease.protect(work)))
  },
  {
    title: "acquire that has to wait",
    also: ["times out", "closes", "evicted"],
    prepare: contended,
    victim: ({ lock, work }) => Effect.scoped(Effect.flatMap(lock.acquire("k"), (lease) => lease.protect(work)))
  },
  {
    title: "tryAcquire",
    victim: ({ lock, work }) =>
      Effect.scoped(
        Effect.flatMap(lock.tryAcquire("k"), (lease) =>
          Option.match(lease, {
            onNone: () => Effect.void,
            onSome: (lease) => lease.protect(work)
          }))
      )
  },
  {
    title: "takeover",
    prepare: contended,
    victim: ({ lock, work }) => Effect.scoped(Effect.flatMap(lock.takeover("k"), (lease) => lease.protect(work)))
  },
  {
    title: "handOff and adopt",
    // A ticket that got lost frees the key when its time left is over.
    freeAfter: ttl,
    victim: ({ lock, work }) =>
      Effect.scoped(Effect.flatMap(lock.acquire("k"), (lease) => lease.handOff)).pipe(
        Effect.flatMap((ticket) => Effect.scoped(Effect.flatMap(lock.adopt(ticket), (lease) => lease.protect(work))))
      )
  },
  {
    title: "withLocks",
    also: ["closes"],
    victim: ({ lock, work }) => lock.withLocks(work, several)
  },
  {
    title: "withLocks of keys of which one is taken",
    also: ["times out", "closes", "evicted"],
    prepare: contended,
    victim: ({ lock, work }) => lock.withLocks(work, several)
  },
  {
    title: "withLocks that waits for too long",
    prepare: contended,
    victim: ({ lock, work }) => lock.withLocks(work, several, { waitTimeout: 10 }),
    undisturbed: "fails"
  },
  {
    title: "withLocks inside withLock of one of the keys",
    also: ["evicted"],
    victim: ({ lock, work }) => lock.withLock(lock.withLocks(work, several), "k")
  },
  {
    title: "acquireAll of keys of which one is taken",
    also: ["closes"],
    prepare: contended,
    victim: ({ lock, work }) => Effect.scoped(Effect.flatMap(lock.acquireAll(several), protectedBy(work)))
  },
  {
    title: "nested withLock",
    victim: ({ lock, work }) => lock.withLock(lock.withLock(work, "k"), "k")
  },
  {
    title: "nested siblings that take turns",
    also: ["closes", "evicted"],
    victim: ({ lock, work }) =>
      lock.withLock(
        Effect.all([
          lock.withLock(work, "k"),
          lock.withLock(work, "k"),
          Effect.scoped(Effect.andThen(lock.acquire("k"), work))
        ], { concurrency: 3 }),
        "k"
      )
  },
  {
    title: "nested work that outlives its region",
    also: ["times out", "closes"],
    victim: ({ lock, work }) =>
      lock.withLock(
        Effect.gen(function*() {
          yield* Effect.forkDetach(lock.withLock(work, "k"))
          yield* Effect.forkDetach(lock.withLock(work, "k"))
          yield* Effect.sleep(35)
        }),
        "k"
      )
  }
]

/** What somebody does to the victim at one of its steps. */
interface Action {
  readonly name: "interrupted" | "times out" | "closes" | "evicted"
  readonly title: string
  /** Wraps the victim, and gives what is done to it. */
  readonly against: (
    stage: Stage,
    victim: Effect.Effect<unknown, unknown>
  ) => Effect.Effect<{
    readonly victim: Effect.Effect<unknown, unknown>
    readonly act: (fiber: Fiber.Fiber<unknown, unknown>) => void
  }>
}

/** An action that takes more than an instant. */
const doing = (action: (stage: Stage) => Effect.Effect<unknown>): Action["against"] => (stage, victim) =>
  Effect.gen(function*() {
    const start = yield* Deferred.make<void>()
    yield* Effect.forkDetach(Effect.andThen(Deferred.await(start), Effect.suspend(() => action(stage))))
    return { victim, act: () => Deferred.doneUnsafe(start, Effect.void) }
  })

const actions: ReadonlyArray<Action> = [
  {
    name: "interrupted",
    title: "interrupted",
    against: (_, victim) => Effect.succeed({ victim, act: (fiber) => fiber.interruptUnsafe() })
  },
  {
    name: "times out",
    title: "timed out, or its sibling failed",
    against: (_, victim) =>
      Effect.map(Deferred.make<never, string>(), (signal) => ({
        victim: Effect.raceFirst(Deferred.await(signal), victim),
        act: () => Deferred.doneUnsafe(signal, Effect.fail("timed out"))
      }))
  },
  {
    name: "closes",
    title: "in a layer that closes",
    against: doing(({ close, closed, store }) =>
      Effect.andThen(close, Effect.sync(() => closed.after = store.requests.length))
    )
  },
  {
    name: "evicted",
    title: "evicted from the store",
    against: doing(({ store }) =>
      Effect.forEach(store.requests.slice(), ({ holderId, key }) => store.evict(key, holderId))
    )
  }
]

/** Nothing is left of the victim, and who comes next gets in. */
const nothingLeft = (stage: Stage, freeAfter = 0) =>
  Effect.gen(function*() {
    const { close, closed, counts, other, store } = stage
    store.faults.attempt = undefined
    assert.isAtMost(counts.most, 1, "two were inside")
    const tooLate = store.requests.slice(closed.after).filter(({ metadata }) => metadata["client"] === "lock")
    assert.deepStrictEqual(tooLate, [], "asked by a client that is closed")
    assert.strictEqual(counts.ended, counts.begun, "work that did not end")
    const next = yield* Effect.forkDetach(
      other.withLock(Effect.succeed("in"), "k", { waitTimeout: freeAfter + ttl / 2 })
    )
    assert.deepStrictEqual(yield* drive(next, { step: 10 }), Exit.succeed("in"), "the next one does not get in")
    for (const key of several) {
      assert.deepStrictEqual(yield* store.inspect(key), { key, holders: [], waiters: [] })
    }
    const renewals = store.count("renew")
    yield* TestClock.adjust(10 * ttl)
    assert.strictEqual(store.count("renew"), renewals, "somebody still renews")
    assert.strictEqual((yield* Metric.value(LockMetrics.waiting)).value, 0, "gauge waiting")
    assert.strictEqual((yield* Metric.value(LockMetrics.held)).value, 0, "gauge held")
    // A holding that was forgotten would hold the layer up.
    const closing = yield* Effect.forkDetach(close)
    yield* until(() => closing.pollUnsafe() !== undefined)
  })

describe("G7: leaves nothing behind, at whatever step it is", () => {
  for (const scenario of scenarios) {
    for (const action of actions.filter(({ name }) => name === "interrupted" || scenario.also?.includes(name))) {
      it.effect(`${action.title}: ${scenario.title}`, () =>
        withMetrics(Effect.gen(function*() {
          const exits: Array<Exit.Exit<unknown, unknown>> = []
          const steps = yield* everyStep(Effect.gen(function*() {
            const it = yield* stage
            yield* scenario.prepare?.(it) ?? Effect.void
            const { act, victim } = yield* action.against(it, scenario.victim(it))
            return {
              act,
              victim,
              check: (exit) => {
                exits.push(exit)
                return nothingLeft(it, scenario.freeAfter)
              }
            }
          }))
          assert.isAbove(steps, 50)
          assert.strictEqual(exits.pop()?._tag, scenario.undisturbed === "fails" ? "Failure" : "Success")
          assert.isAbove(exits.filter(Exit.isFailure).length, 10, "the action must have met what it is to disturb")
        })))
    }
  }

  it.effect("interrupted: acquireAll into a scope that stays open, of keys of which one is taken", () =>
    withMetrics(Effect.gen(function*() {
      let interrupted = 0
      yield* everyStep(Effect.gen(function*() {
        const it = yield* stage
        yield* contended(it)
        return {
          // Not renewed before the check: what renews it would go on.
          victim: Scope.provide(it.lock.acquireAll(several, { ttl: 9000 }), it.wide),
          act: (fiber) => fiber.interruptUnsafe(),
          check: (exit) =>
            Effect.gen(function*() {
              yield* TestClock.adjust(20)
              const states = yield* Effect.forEach(several, it.store.inspect)
              const held = states.filter(({ holders }) => holders.length > 0).length
              assert.include([0, several.length], held, "some of the keys")
              if (Exit.isFailure(exit) && held === 0) interrupted++
              if (held > 0) yield* Scope.close(it.wide, Exit.void)
              yield* nothingLeft(it)
              yield* Scope.close(it.wide, Exit.void)
            })
        }
      }))
      assert.isAbove(interrupted, 30)
    })))

  for (const isContended of [false, true]) {
    const waits = isContended ? ", which has to wait" : ""

    it.effect(`interrupted: acquire into a scope that stays open${waits}`, () =>
      withMetrics(Effect.gen(function*() {
        let interrupted = 0
        let tooLate = 0
        yield* everyStep(Effect.gen(function*() {
          const it = yield* stage
          if (isContended) yield* contended(it)
          return {
            victim: Scope.provide(it.lock.acquire("k"), it.wide),
            act: (fiber) => fiber.interruptUnsafe(),
            check: (exit) =>
              Effect.gen(function*() {
                yield* TestClock.adjust(20)
                const isHeld = (yield* it.store.inspect("k")).holders.length > 0
                if (Exit.isFailure(exit) && isHeld) tooLate++
                if (Exit.isFailure(exit) && !isHeld) interrupted++
                if (isHeld) yield* Scope.close(it.wide, Exit.void)
                yield* nothingLeft(it)
                yield* Scope.close(it.wide, Exit.void)
              })
          }
        }))
        assert.isAbove(interrupted, 30)
        // Once `acquire` has succeeded the lease is its scope's, like everything else that is acquired into a scope: these
        // are the steps between its success and the end of the fiber.
        assert.isAtMost(tooLate, 4)
      })))

    it.effect(`acquire into a scope that closes${waits}`, () =>
      withMetrics(Effect.gen(function*() {
        let interrupted = 0
        yield* everyStep(Effect.gen(function*() {
          const it = yield* stage
          if (isContended) yield* contended(it)
          const closing = doing(({ wide }) => Scope.close(wide, Exit.void))
          const { act, victim } = yield* closing(it, Scope.provide(it.lock.acquire("k"), it.wide))
          return {
            act,
            victim,
            check: (exit) => {
              if (Exit.isFailure(exit)) interrupted++
              return Effect.andThen(Scope.close(it.wide, Exit.void), nothingLeft(it))
            }
          }
        }))
        assert.isAbove(interrupted, 20)
      })))
  }
})
