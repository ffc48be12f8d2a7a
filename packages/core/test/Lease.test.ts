import { assert, describe, it } from "@effect/vitest"
import { Clock, DateTime, Deferred, Duration, Effect, Exit, Fiber, Option, Schedule, Scope } from "effect"
import { TestClock } from "effect/testing"
import type { Lock, LockOptions } from "../src/index.ts"
import type { LockLost } from "../src/LockError.ts"
import { makeLock, refused, setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { jumpingClock, now, settle, until } from "./support/time.ts"

/** Runs work that never ends under a lock until it is lost: the loss, and when the work was interrupted and the loss told. */
const loseIt = Effect.fnUntraced(function*(lock: Lock.Lock["Service"], options?: LockOptions.LockOptions) {
  let interruptedAt = NaN
  const work = Effect.onInterrupt(Effect.never, () => Effect.map(now, (time) => void (interruptedAt = time)))
  return yield* Effect.forkChild(
    Effect.flip(lock.withLock(work, "k", options)).pipe(
      Effect.flatMap((error) => Effect.map(now, (toldAt) => ({ error, interruptedAt, toldAt })))
    )
  )
})

const isLost = (error: { readonly _tag: string }, reason: LockLost["reason"]) => {
  assert.strictEqual(error._tag, "LockLost")
  assert.strictEqual((error as LockLost).reason, reason)
}

describe("renewal", () => {
  it.effect("is sent whenever a third of the ttl is over, also if that is no whole number", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 1000 })
      const sent: Array<number> = []
      store.faults.renew = (run) => Effect.andThen(Effect.map(now, (time) => sent.push(time)), run)
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.as(Effect.sleep(2500), "done"), "k"))
      yield* TestClock.adjust(2500)
      assert.strictEqual(yield* Fiber.join(fiber), "done")
      assert.deepStrictEqual(sent, [333, 666, 999, 1332, 1665, 1998, 2331])
      assert.isTrue(store.renewals.every(({ ttl }) => ttl === 1000))
    }))

  it.effect("is one at a time, though its answer takes a while", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = (run) => Effect.delay(run, 50)
      const lease = yield* lock.acquire("k")
      // Others are due while it is waited for.
      for (const ttl of [930, 990, 1050]) yield* lock.acquire(`${ttl}`, { ttl })
      yield* TestClock.adjust(3100)
      assert.isTrue(yield* lease.isValid)
      assert.strictEqual(store.renewals.filter(({ lease }) => lease.key === "k").length, 10)
    }))

  it.effect("is sent when renewEvery says so", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 1000, renewEvery: 800 })
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.sleep(2500), "k"))
      yield* TestClock.adjust(2500)
      yield* Fiber.join(fiber)
      assert.strictEqual(store.count("renew"), 3)
    }))

  it.effect("is in time for each of many leases, however they follow each other", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const due = new Map<string, number>()
      const sent = new Map<string, number>()
      store.faults.renew = (run) =>
        Effect.andThen(
          Effect.map(now, (time) => {
            const { key } = store.renewals.at(-1)!.lease
            if (!sent.has(key)) sent.set(key, time)
          }),
          run
        )
      for (let i = 0; i < 60; i++) {
        // Long ones and short ones, in an order that is none.
        const ttl = 30 + ((i * 7919) % 1000) * 3
        yield* lock.acquire(`${i}`, { ttl })
        due.set(`${i}`, (yield* now) + ttl / 3)
        yield* TestClock.adjust((i * 31) % 5)
      }
      yield* TestClock.adjust(1100)
      assert.deepStrictEqual(Object.fromEntries(sent), Object.fromEntries(due))
    }))

  it.effect("that fails for a while and then works loses nothing", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 4500 })
      store.faults.renew = (run, index) =>
        index < 3 ? unavailable : index < 4 ? Effect.die("bug") : index < 5 ? refused : run
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.as(Effect.sleep("20 seconds"), "done"), "k"))
      yield* TestClock.adjust("20 seconds")
      assert.strictEqual(yield* Fiber.join(fiber), "done")
    }))

  it.effect("with an unknown outcome is tried again as renewRetry says, and regularly when that gives up", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({
        ttl: 3000,
        renewRetry: Schedule.max([Schedule.spaced(100), Schedule.recurs(2)])
      })
      const sent: Array<number> = []
      store.faults.renew = () => Effect.andThen(Effect.map(now, (time) => sent.push(time)), unavailable)
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(3000)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
      assert.deepStrictEqual(sent, [1000, 1100, 1200, 2200, 2300, 2400])
    }))

  it.effect("G5: does not bring back a lease that the store gave to somebody else, nor end his", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const other = yield* makeLock(store)
      const stuck = yield* Deferred.make<void>()
      store.faults.renew = (run) => Effect.andThen(Deferred.await(stuck), run)
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(900)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
      const lease = yield* other.acquire("k")
      yield* Deferred.succeed(stuck, undefined)
      // What was on its way all the time gets to the store at last.
      const late = { key: "k", holderId: store.requests[0]!.holderId, token: store.renewals[0]!.lease.token }
      assert.strictEqual(yield* store.service.renew(late, 900), "NotHeld")
      assert.strictEqual(yield* store.service.release(late, 0), "NotHeld")
      yield* store.service.abandon("k", late.holderId)
      const { holders } = yield* store.inspect("k")
      assert.deepStrictEqual(holders.map(({ holderId }) => holderId), [lease.holderId])
      assert.isTrue(yield* lease.isValid)
    }))
})

describe("the local deadline", () => {
  const ttl = 900

  const hopeless: ReadonlyArray<{ readonly title: string; readonly renew: NonNullable<TestStore["faults"]["renew"]> }> =
    [
      { title: "hangs", renew: () => Effect.never },
      { title: "fails", renew: () => unavailable },
      { title: "is refused", renew: () => refused },
      { title: "dies", renew: () => Effect.die(new Error("bug")) },
      { title: "interrupts itself", renew: () => Effect.interrupt },
      { title: "throws", renew: () => assert.fail("bug") },
      { title: "is answered too late", renew: (run) => Effect.delay(run, 700) }
    ]

  for (const { renew, title } of hopeless) {
    it.effect(`G3: interrupts the work and fails with LockLost at the ttl when renewal ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl })
        store.faults.renew = renew
        const fiber = yield* loseIt(lock)
        yield* TestClock.adjust(ttl - 1)
        assert.isUndefined(fiber.pollUnsafe())
        yield* TestClock.adjust(1)
        const { error, interruptedAt, toldAt } = yield* Fiber.join(fiber)
        isLost(error, "Expired")
        assert.strictEqual((error as LockLost).limit, ttl)
        assert.strictEqual(interruptedAt, ttl)
        assert.strictEqual(toldAt, ttl)
      }))
  }

  it.effect("G3: does not ask a failing store without a pause", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000 })
      store.faults.renew = () => Effect.die("bug")
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(30_000)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
      assert.isAtMost(store.count("renew"), 5 + 20_000 / 800)
    }))

  it.effect("G3: counts from when the last confirmed renewal was sent, not from its reply", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.renew = (run, index) => index === 0 ? Effect.delay(run, 250) : Effect.never
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(10_000)
      const { error, interruptedAt } = yield* Fiber.join(fiber)
      isLost(error, "Expired")
      assert.strictEqual(interruptedAt, 300 + ttl)
    }))

  it.effect("G3: is earlier by the store's drift", () =>
    Effect.gen(function*() {
      const store = (yield* setup()).store
      const lock = yield* makeLock({ ...store, service: { ...store.service, driftFactor: 0.01 } }, { ttl })
      store.faults.renew = () => Effect.never
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(ttl)
      assert.strictEqual((yield* Fiber.join(fiber)).interruptedAt, ttl * 0.99)
    }))

  it.effect("G3: a machine that was suspended has lost its lease, although its monotonic clock stood still", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000 })
      const { clock, jump } = yield* jumpingClock
      yield* Effect.gen(function*() {
        const lease = yield* lock.acquire("other")
        const fiber = yield* loseIt(lock)
        yield* until(() => store.trace.length === 4)
        assert.isTrue(yield* lease.isValid)
        jump(30_000)
        assert.isFalse(yield* lease.isValid)
        isLost(yield* Effect.flip(lease.check), "Expired")
        return { fiber, lease }
      }).pipe(
        Effect.provideService(Clock.Clock, clock),
        Effect.flatMap(({ fiber, lease }) =>
          Effect.gen(function*() {
            // No timer that was set before can be later than this.
            yield* TestClock.adjust(1000)
            isLost((yield* Fiber.join(fiber)).error, "Expired")
            isLost(yield* Effect.flip(lease.lost), "Expired")
          })
        )
      )
    }))

  it.effect("G3: a wall clock that is set back prolongs nothing", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000 })
      store.faults.renew = () => Effect.never
      const { clock, jump } = yield* jumpingClock
      const fiber = yield* Effect.provideService(loseIt(lock), Clock.Clock, clock)
      yield* TestClock.adjust(5000)
      jump(-Duration.toMillis("1 hour"))
      yield* TestClock.adjust(24_999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
    }))

  it.effect("G3: a reply that comes when the deadline is over brings nothing back", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000 })
      const answer = yield* Deferred.make<void>()
      store.faults.renew = (run) => Effect.andThen(run, Effect.as(Deferred.await(answer), "Done" as const))
      const { clock, jump } = yield* jumpingClock
      const fiber = yield* Effect.provideService(loseIt(lock), Clock.Clock, clock)
      yield* TestClock.adjust(10_000)
      assert.strictEqual(store.count("renew"), 1)
      // Suspended from 10 to 35 s; the renewal sent at 10 s would last until 40 s, but at 30 s nobody could know.
      jump(25_000)
      yield* Deferred.succeed(answer, undefined)
      yield* TestClock.adjust(1000)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
    }))

  it.effect("G4: work that ends after it, before any timer could fire, does not succeed", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup({ ttl })
      const { clock, jump } = yield* jumpingClock
      yield* Effect.gen(function*() {
        isLost(yield* Effect.flip(lock.withLock(Effect.sync(() => jump(ttl)), "k")), "Expired")
        const lease = yield* lock.acquire("k2")
        isLost(yield* Effect.flip(lease.protect(Effect.sync(() => jump(ttl)))), "Expired")
        const failure = lock.withLock(Effect.andThen(Effect.sync(() => jump(ttl)), Effect.fail("its own")), "k3")
        assert.strictEqual(yield* Effect.flip(failure), "its own")
      }).pipe(Effect.provideService(Clock.Clock, clock))
    }))

  it.effect("G4: no work begins after it, before any timer could fire", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup({ ttl })
      const { clock, jump } = yield* jumpingClock
      let ran = false
      const work = Effect.sync(() => void (ran = true))
      yield* Effect.gen(function*() {
        const lease = yield* lock.acquire("k")
        jump(ttl)
        isLost(yield* Effect.flip(lease.protect(work)), "Expired")
      }).pipe(Effect.provideService(Clock.Clock, clock))
      assert.isFalse(ran)
    }))

  it.effect("G3: is met to the millisecond whatever ttl and drift are, fractions included", () =>
    Effect.gen(function*() {
      for (let ttl = 10; ttl < 400; ttl += 13) {
        const { store } = yield* setup()
        const driftFactor = (ttl % 7) / 100 + 0.001
        const lock = yield* makeLock({ ...store, service: { ...store.service, driftFactor } }, { ttl })
        store.faults.renew = (run, index) => index < 2 ? run : unavailable
        const start = yield* now
        const fiber = yield* loseIt(lock)
        yield* TestClock.adjust(2 * ttl)
        const { interruptedAt } = yield* Fiber.join(fiber)
        const confirmedAt = start + 2 * Math.floor(ttl / 3)
        assert.approximately(interruptedAt, confirmedAt + ttl * (1 - driftFactor), 0.002, `ttl ${ttl}`)
      }
    }))

  it.effect("tells as the cause what the store answered last", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.renew = () => unavailable
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(ttl)
      const { error } = yield* Fiber.join(fiber)
      assert.strictEqual(((error as LockLost).cause as { _tag: string })._tag, "LockStoreError")
      assert.include(
        error.message,
        "not renewed within its ttl of 900 ms; last answer: The memory store is unreachable"
      )
    }))
})

describe("a lost lease", () => {
  it.effect("G4: is told by the store's NotHeld at the next renewal", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const fiber = yield* loseIt(lock)
      yield* until(() => store.count("attempt") === 1)
      yield* store.service.abandon("k", store.requests[0]!.holderId)
      yield* TestClock.adjust(300)
      const { error, interruptedAt } = yield* Fiber.join(fiber)
      isLost(error, "NotHeld")
      assert.strictEqual(interruptedAt, 300)
    }))

  it.effect("G4: is found out at once when the store has doubts, and one that is still there goes on", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000 })
      const [gone, other] = [yield* lock.acquire("k"), yield* lock.acquire("other")]
      yield* store.evict("k", gone.holderId)
      yield* store.tell({ _tag: "InDoubt", key: "other" })
      yield* settle
      assert.isTrue(yield* gone.isValid)
      assert.strictEqual(store.count("renew"), 1)
      yield* store.tell({ _tag: "InDoubt", key: undefined })
      isLost(yield* Effect.flip(gone.lost), "NotHeld")
      yield* until(() => store.count("renew") === 3)
      assert.isTrue(yield* other.isValid)
    }))

  it.effect("G4: lets the work's own finalizers end before anything else", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      const work = Effect.onInterrupt(
        Effect.never,
        () => Effect.andThen(Effect.sleep(500), Effect.sync(() => store.trace.push("work cleaned up")))
      )
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(work, "k")))
      yield* TestClock.adjust(1399)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      isLost(yield* Fiber.join(fiber), "Expired")
      yield* settle
      assert.deepStrictEqual(store.trace.slice(-3), ["work cleaned up", "abandon sent", "abandon done"])
    }))

  it.effect("discards the result of what could not be interrupted", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      const fiber = yield* Effect.forkChild(
        Effect.flip(lock.withLock(Effect.uninterruptible(Effect.as(Effect.sleep(2000), "result")), "k"))
      )
      yield* TestClock.adjust(1999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      isLost(yield* Fiber.join(fiber), "Expired")
    }))

  it.effect("is told at once even if the store cannot be tidied up", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      store.faults.abandon = () => Effect.never
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(900)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
      yield* settle
      assert.strictEqual(store.count("abandon"), 1)
    }))

  it.effect("lets the next waiter in as soon as the store sees it expire", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const other = yield* makeLock(store)
      store.faults.renew = () => Effect.never
      const fiber = yield* loseIt(lock)
      const waiting = yield* Effect.forkChild(other.withLock(now, "k"))
      yield* TestClock.adjust(900)
      isLost((yield* Fiber.join(fiber)).error, "Expired")
      assert.strictEqual(yield* Fiber.join(waiting), 900)
    }))
})

describe("maxHold", () => {
  it.effect("ends a hold that is renewed all the time, and frees the key at once", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900, maxHold: "10 seconds" })
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(9999)
      assert.isUndefined(fiber.pollUnsafe())
      assert.isAbove(store.count("renew"), 25)
      yield* TestClock.adjust(1)
      const { error, interruptedAt } = yield* Fiber.join(fiber)
      isLost(error, "MaxHold")
      assert.strictEqual((error as LockLost).limit, 10_000)
      assert.include(error.message, "held for maxHold of 10000 ms")
      assert.strictEqual(interruptedAt, 10_000)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("ends it in time before the first renewal is due", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000, maxHold: 500 })
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(500)
      const { error, interruptedAt } = yield* Fiber.join(fiber)
      isLost(error, "MaxHold")
      assert.strictEqual(interruptedAt, 500)
      assert.strictEqual(store.count("renew"), 0)
    }))

  it.effect("ends it in time while a renewal gets no answer", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 3000, maxHold: 1500 })
      store.faults.renew = () => Effect.never
      const fiber = yield* loseIt(lock)
      yield* TestClock.adjust(1500)
      const { error, interruptedAt } = yield* Fiber.join(fiber)
      isLost(error, "MaxHold")
      assert.strictEqual(interruptedAt, 1500)
    }))
})

describe("minHold", () => {
  const options = { ttl: "30 seconds", minHold: "2 seconds" } as const

  it.effect("keeps the key taken in the store, delays nobody here, and lets the next one in when it is over", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      const other = yield* makeLock(store)
      const quick = yield* Effect.forkChild(Effect.andThen(lock.withLock(Effect.sleep(500), "k"), now))
      const waiting = yield* Effect.forkChild(other.withLock(now, "k"))
      yield* until(() => store.count("attempt") === 2)
      yield* TestClock.adjust(500)
      assert.strictEqual(yield* Fiber.join(quick), 500)
      assert.strictEqual(store.releases[0]?.keepFor, 1500)
      yield* TestClock.adjust(1499)
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* Fiber.join(waiting), 2000)
    }))

  it.effect("adds nothing to work that took longer", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.sleep(2500), "k"))
      yield* TestClock.adjust(2500)
      yield* Fiber.join(fiber)
      assert.strictEqual(store.releases[0]?.keepFor, 0)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("is not over sooner because the wall clock was set forward meanwhile", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      const { clock, jump } = yield* jumpingClock
      const work = Effect.sync(() => jump(1500))
      yield* Effect.provideService(lock.withLock(work, "k"), Clock.Clock, clock)
      assert.strictEqual(store.releases[0]?.keepFor, 2000)
    }))

  it.effect("also holds for work that fails or is interrupted", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup(options)
      yield* Effect.exit(lock.withLock(Effect.fail("no"), "a"))
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.never, "b"))
      yield* until(() => store.count("attempt") === 2)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(store.releases.map(({ keepFor }) => keepFor), [2000, 2000])
    }))

  it.effect("also holds when the layer closes", () =>
    Effect.gen(function*() {
      const { store } = yield* setup()
      const scope = yield* Scope.make()
      const lock = yield* Scope.provide(makeLock(store, options), scope)
      const fiber = yield* loseIt(lock)
      yield* until(() => store.count("attempt") === 1)
      yield* TestClock.adjust(500)
      yield* Scope.close(scope, Exit.void)
      isLost((yield* Fiber.join(fiber)).error, "Closed")
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.timeLeft, 1500)
    }))
})

describe("a lease", () => {
  it.effect("tells when it runs out, on the wall clock, and renewal moves that", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup({ ttl: 900 })
      yield* TestClock.setTime(Date.UTC(2030, 0, 1))
      const lease = yield* lock.acquire("k")
      const deadline = Effect.map(lease.deadline, DateTime.formatIso)
      assert.strictEqual(yield* deadline, "2030-01-01T00:00:00.900Z")
      yield* TestClock.adjust(299)
      assert.strictEqual(yield* deadline, "2030-01-01T00:00:00.900Z")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* deadline, "2030-01-01T00:00:01.200Z")
    }))

  it.effect("is valid up to its deadline, and at no moment after", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      const lease = yield* lock.acquire("k")
      yield* TestClock.adjust(899)
      assert.isTrue(yield* lease.isValid)
      yield* lease.check
      yield* TestClock.adjust(1)
      assert.isFalse(yield* lease.isValid)
      isLost(yield* Effect.flip(lease.check), "Expired")
    }))

  it.effect("fails `lost` as soon as it is lost, for everybody who listens", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      const lease = yield* lock.acquire("k")
      const listeners = yield* Effect.forEach([1, 2], () => Effect.forkChild(Effect.flip(lease.lost)))
      yield* TestClock.adjust(899)
      assert.isTrue(listeners.every((fiber) => fiber.pollUnsafe() === undefined))
      yield* TestClock.adjust(1)
      for (const fiber of listeners) isLost(yield* Fiber.join(fiber), "Expired")
      isLost(yield* Effect.flip(lease.lost), "Expired")
    }))

  it.effect("G4: protects work: interrupts it when lost, and lets nothing start afterwards", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      const lease = yield* lock.acquire("k")
      let cleanedUp = false
      const work = Effect.onInterrupt(Effect.never, () => Effect.sync(() => void (cleanedUp = true)))
      const fiber = yield* Effect.forkChild(Effect.flip(lease.protect(work)))
      yield* TestClock.adjust(900)
      isLost(yield* Fiber.join(fiber), "Expired")
      assert.isTrue(cleanedUp)
      isLost(yield* Effect.flip(lease.protect(Effect.die("must not run"))), "Expired")
    }))

  it.effect("lets protected work's own outcome through", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const lease = yield* lock.acquire("k")
      assert.strictEqual(yield* lease.protect(Effect.succeed(1)), 1)
      assert.strictEqual(yield* Effect.flip(lease.protect(Effect.fail("no"))), "no")
    }))

  it.effect("used after its scope has closed is lost: Released", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const lease = yield* Effect.scoped(lock.acquire("k"))
      assert.isFalse(yield* lease.isValid)
      isLost(yield* Effect.flip(lease.check), "Released")
      isLost(yield* Effect.flip(lease.lost), "Released")
      isLost(yield* Effect.flip(lease.protect(Effect.die("must not run"))), "Released")
      const error = yield* Effect.flip(lease.extend(1000))
      isLost(error, "Released")
      assert.include(error.message, "used after its scope or region ended")
      assert.strictEqual(store.count("renew"), 0)
    }))
})

describe("extend", () => {
  it.effect("renews at once, and from there on with the longer ttl", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const lease = yield* lock.acquire("k")
      yield* TestClock.adjust(100)
      yield* lease.extend("90 seconds")
      assert.strictEqual((yield* lease.deadline).epochMilliseconds, 90_100)
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.timeLeft, 90_000)
      const sent: Array<number> = []
      store.faults.renew = (run) => Effect.andThen(Effect.map(now, (time) => sent.push(time)), run)
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(sent, [30_100, 60_100, 90_100, 120_100].filter((time) => time <= 120_100))
      assert.isTrue(store.renewals.every(({ ttl }) => ttl === 90_000))
    }))

  it.effect("with a shorter ttl shortens nothing at once, but from the next renewals on", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000 })
      const lease = yield* lock.acquire("k")
      yield* lease.extend(3000)
      assert.strictEqual((yield* lease.deadline).epochMilliseconds, 30_000)
      yield* TestClock.adjust(30_000)
      const { epochMilliseconds } = yield* lease.deadline
      assert.isAtMost(epochMilliseconds, 33_000)
      assert.isAbove(epochMilliseconds, 31_000)
      assert.isAtLeast(store.count("renew"), 25)
      assert.isAtMost(store.count("renew"), 32)
    }))

  it.effect("does not turn into a storm of renewals, whatever renewEvery says", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 30_000, renewEvery: 20_000 })
      const lease = yield* lock.acquire("k")
      yield* lease.extend(3000)
      yield* TestClock.adjust("1 minute")
      assert.isTrue(yield* lease.isValid)
      assert.isAtMost(store.count("renew"), 61)
      const before = store.count("renew")
      yield* lease.extend("10 minutes")
      yield* TestClock.adjust("10 minutes")
      assert.isTrue(yield* lease.isValid)
      assert.isAtMost(store.count("renew") - before, 31)
    }))

  it.effect("keeps the later deadline when an earlier renewal is answered after it", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = (run, index) => index === 0 ? Effect.delay(run, 200) : run
      const lease = yield* lock.acquire("k")
      yield* TestClock.adjust(400)
      yield* lease.extend(60_000)
      yield* TestClock.adjust(100)
      assert.strictEqual((yield* lease.deadline).epochMilliseconds, 60_400)
    }))

  it.effect("fails with the store's error and leaves the lease as it was", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const lease = yield* lock.acquire("k")
      store.faults.renew = (run, index) => index === 0 ? unavailable : run
      assert.strictEqual((yield* Effect.flip(lease.extend(5000)))._tag, "LockStoreError")
      assert.isTrue(yield* lease.isValid)
      assert.strictEqual((yield* lease.deadline).epochMilliseconds, 900)
      yield* TestClock.adjust(10_000)
      assert.isTrue(yield* lease.isValid)
    }))

  it.effect("finds out that the lease is gone", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const lease = yield* lock.acquire("k")
      yield* store.service.abandon("k", lease.holderId)
      isLost(yield* Effect.flip(lease.extend(5000)), "NotHeld")
      isLost(yield* Effect.flip(lease.check), "NotHeld")
    }))

  it.effect("G3: does not wait beyond the deadline for a store that hangs", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const lease = yield* lock.acquire("k")
      store.faults.renew = () => Effect.never
      const fiber = yield* Effect.forkChild(Effect.flip(lease.extend(5000)))
      yield* TestClock.adjust(899)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      isLost(yield* Fiber.join(fiber), "Expired")
    }))
})

describe("tryAcquire", () => {
  it.effect("gives a lease that is renewed like any other", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const lease = Option.getOrThrow(yield* lock.tryAcquire("k"))
      yield* TestClock.adjust(10_000)
      assert.isTrue(yield* lease.isValid)
      assert.isAbove(store.count("renew"), 25)
    }))
})
