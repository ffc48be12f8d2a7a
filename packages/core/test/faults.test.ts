import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Metric } from "effect"
import { TestClock } from "effect/testing"
import { type Lock, type LockError, LockMetrics } from "../src/index.ts"
import { withMetrics } from "./support/observe.ts"
import { make, makeLock, type TestStore, unavailable } from "./support/TestStore.ts"
import { drive } from "./support/time.ts"

const ttl = 90

interface Stage {
  readonly lock: Lock.Lock["Service"]
  readonly other: Lock.Lock["Service"]
  readonly work: Effect.Effect<string>
}

const scenarios: ReadonlyArray<{
  readonly title: string
  readonly victim: (stage: Stage) => Effect.Effect<unknown, unknown>
  readonly isContended?: boolean
}> = [
  { title: "withLock", victim: ({ lock, work }) => lock.withLock(work, "k") },
  { title: "withLock that has to wait", victim: ({ lock, work }) => lock.withLock(work, "k"), isContended: true },
  {
    title: "withLock that waits for too long",
    victim: ({ lock, work }) => lock.withLock(work, "k", { waitTimeout: 10 }),
    isContended: true
  },
  { title: "withLockIfAvailable", victim: ({ lock, work }) => lock.withLockIfAvailable(work, "k") },
  {
    title: "acquire that has to wait",
    victim: ({ lock, work }) => Effect.scoped(Effect.flatMap(lock.acquire("k"), (lease) => lease.protect(work))),
    isContended: true
  },
  {
    title: "nested siblings",
    victim: ({ lock, work }) =>
      lock.withLock(Effect.all([lock.withLock(work, "k"), lock.withLock(work, "k")], { concurrency: 2 }), "k")
  },
  {
    title: "the work is interrupted",
    victim: ({ lock, work }) => Effect.timeout(lock.withLock(work, "k"), 20)
  }
]

type Answer = Effect.Effect<never, LockError.LockStoreError>

/** What can become of one command. */
const faults: ReadonlyArray<{
  readonly title: string
  readonly fault: (run: Answer) => Answer
  readonly only?: ReadonlyArray<string>
}> = [
  { title: "gets lost", fault: () => unavailable },
  { title: "is done, and its reply lost", fault: (run) => Effect.andThen(run, unavailable) },
  { title: "is done, and dies", fault: (run) => Effect.andThen(run, Effect.die("bug")) },
  { title: "dies", fault: () => Effect.die("bug") },
  { title: "is done late", fault: (run) => Effect.delay(run, ttl * 1.5) },
  { title: "is done, and answered late", fault: (run) => Effect.tap(run, () => Effect.sleep(ttl * 1.5)) },
  {
    title: "is done, and runs into the store's time-out",
    fault: (run) => Effect.andThen(run, Effect.delay(unavailable, 150))
  },
  // The store bounds its commands itself; these must not be waited for in any case.
  { title: "is never answered", fault: (run) => Effect.andThen(run, Effect.never), only: ["renew", "release"] }
]

/** Makes the command with this number, counted over all verbs, go wrong. */
const breakCommand = (store: TestStore, number: number, { fault, only }: (typeof faults)[number]) => {
  let commands = 0
  for (const verb of ["attempt", "renew", "release", "abandon"] as const) {
    const broken = <A>(run: Effect.Effect<A, LockError.LockStoreError>) =>
      commands++ === number && only?.includes(verb) !== false ? fault(run as Answer) : run
    Object.assign(store.faults, { [verb]: broken })
  }
  return { wasSent: () => commands > number }
}

describe("G12: whichever command goes wrong, nothing is left behind, nobody is inside with another, and the end is typed", () => {
  for (const scenario of scenarios) {
    for (const fault of faults) {
      it.effect(`${scenario.title}: a command ${fault.title}`, () =>
        withMetrics(Effect.gen(function*() {
          let runs = 0
          for (let wasSent = true; wasSent; runs++) {
            const store = yield* make
            const command = breakCommand(store, runs, fault)
            let inside = 0
            const work = Effect.acquireUseRelease(
              Effect.sync(() => assert.strictEqual(++inside, 1)),
              () => Effect.as(Effect.sleep(35), "done"),
              () => Effect.sync(() => inside--)
            )
            const lock = yield* makeLock(store, { ttl, releaseTimeout: 200 })
            const other = yield* makeLock(store, { ttl, releaseTimeout: 200 })
            if (scenario.isContended === true) {
              yield* Effect.forkChild(Effect.exit(other.withLock(Effect.sleep(15), "k")))
            }
            const exit = yield* drive(yield* Effect.forkChild(scenario.victim({ lock, other, work })), { step: 5 })
            if (Exit.isFailure(exit) && !fault.title.includes("dies")) assert.isFalse(Exit.hasDies(exit), String(exit))
            wasSent = command.wasSent()
            Object.assign(store.faults, {
              attempt: undefined,
              renew: undefined,
              release: undefined,
              abandon: undefined
            })
            // At the latest when the ttl of what could not be released is over.
            yield* TestClock.adjust(2 * ttl + 500)
            assert.deepStrictEqual(yield* store.inspect("k"), { key: "k", holders: [], waiters: [] })
            assert.strictEqual((yield* Metric.value(LockMetrics.waiting)).value, 0)
            assert.strictEqual((yield* Metric.value(LockMetrics.held)).value, 0)
            const next = yield* Effect.forkChild(lock.withLock(Effect.succeed("in"), "k", { waitTimeout: 0 }))
            assert.deepStrictEqual(yield* drive(next, { step: 5 }), Exit.succeed("in"))
          }
          assert.isAbove(runs, 2)
        })))
    }
  }
})

it.effect("G12: a store that fails an acquisition is reported at once, and tidied up behind the caller's back", () =>
  Effect.gen(function*() {
    const store = yield* make
    // Done, but the reply is lost; and the first tries to tidy up fail, too.
    store.faults.attempt = (run) => Effect.andThen(run, unavailable)
    store.faults.abandon = (run, index) => index < 2 ? unavailable : run
    const lock = yield* makeLock(store, { releaseTimeout: "5 seconds" })
    const error = yield* Effect.flip(lock.withLock(Effect.void, "k"))
    assert.strictEqual(error._tag, "LockStoreError")
    assert.lengthOf((yield* store.inspect("k")).holders, 1)
    yield* TestClock.adjust("1 second")
    assert.lengthOf((yield* store.inspect("k")).holders, 0)
  }))
