import { assert, describe, it } from "@effect/vitest"
import { Cause, Config, ConfigProvider, Deferred, Effect, Exit, Fiber, Layer, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { Lock, LockStore } from "../src/index.ts"
import { makeLock, refused, setup, unavailable } from "./support/TestStore.ts"
import { now, settle, until } from "./support/time.ts"

const live = Lock.layer().pipe(Layer.provideMerge(LockStore.layerMemory))

describe("withLock", () => {
  it.effect("G1: keeps a non-atomic read-modify-write of many fibers from losing updates", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      let counter = 0
      let inside = 0
      let mostInside = 0
      const increment = Effect.gen(function*() {
        mostInside = Math.max(mostInside, ++inside)
        const before = counter
        yield* Effect.yieldNow
        yield* Effect.yieldNow
        counter = before + 1
        inside--
      })
      const unguarded = yield* Effect.forEach(
        Array.from({ length: 200 }),
        () => increment,
        { concurrency: "unbounded", discard: true }
      ).pipe(Effect.map(() => counter))
      assert.isBelow(unguarded, 200, "the update must be one that gets lost without a lock")

      counter = mostInside = 0
      yield* Effect.forEach(
        Array.from({ length: 200 }),
        () => lock.withLock(increment, "counter"),
        { concurrency: "unbounded", discard: true }
      )
      assert.strictEqual(counter, 200)
      assert.strictEqual(mostInside, 1)
    }))

  it.effect("G1: excludes clients of one store from each other, and not what holds another key", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const entered: Array<string> = []
      const hold = (client: Lock.Lock["Service"], key: string, name: string) =>
        client.withLock(Effect.andThen(Effect.sync(() => entered.push(name)), Effect.never), key)
      const first = yield* Effect.forkChild(hold(lock, "a", "first"))
      yield* until(() => entered.length === 1)
      yield* Effect.forkChild(hold(other, "a", "second"))
      yield* Effect.forkChild(hold(other, "b", "third"))
      yield* until(() => store.count("attempt") === 3)
      yield* settle
      assert.deepStrictEqual(entered, ["first", "third"])
      yield* Fiber.interrupt(first)
      yield* until(() => entered.length === 3)
      assert.deepStrictEqual(entered, ["first", "third", "second"])
    }))

  it.effect("G10: lets waiters in in the order in which they queued", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const gate = yield* Deferred.make<void>()
      const order: Array<number> = []
      yield* Effect.forkChild(lock.withLock(Deferred.await(gate), "k"))
      for (let i = 0; i < 50; i++) {
        yield* Effect.forkChild(
          (i % 2 === 0 ? lock : other).withLock(Effect.andThen(Effect.yieldNow, Effect.sync(() => order.push(i))), "k")
        )
        yield* until(() => store.count("attempt") === i + 2)
      }
      yield* Deferred.succeed(gate, undefined)
      yield* until(() => order.length === 50)
      assert.deepStrictEqual(order, Array.from({ length: 50 }, (_, i) => i))
    }))

  it.effect("G8: works off a queue of thousands whose work takes no time, not one inside the other's release", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const gate = yield* Deferred.make<void>()
      const order: Array<number> = []
      const names = Array.from({ length: 2000 }, (_, i) => i)
      yield* Effect.forkChild(lock.withLock(Deferred.await(gate), "k"))
      yield* until(() => store.count("attempt") === 1)
      const all = yield* Effect.forkChild(
        Effect.forEach(names, (name) => lock.withLock(Effect.sync(() => order.push(name)), "k"), {
          concurrency: "unbounded",
          discard: true
        })
      )
      yield* until(() => store.count("attempt") === 2001)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(all)
      assert.deepStrictEqual(order, names)
    }))

  it.effect("G2: gives every grant a greater token, which renewal leaves as it is", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 300 })
      const other = yield* makeLock(store, { ttl: 300 })
      const tokens: Array<number> = []
      for (const client of [lock, other, lock, other]) {
        yield* Effect.scoped(Effect.gen(function*() {
          const lease = yield* client.acquire("k")
          tokens.push(lease.token)
          const renewals = store.count("renew")
          yield* TestClock.adjust(1000)
          assert.isAbove(store.count("renew"), renewals)
          assert.strictEqual(lease.token, tokens.at(-1))
          assert.strictEqual((yield* store.inspect("k")).holders[0]?.token, lease.token)
          assert.strictEqual(store.renewals.at(-1)?.lease.token, lease.token)
        }))
      }
      for (let i = 1; i < tokens.length; i++) assert.isAbove(tokens[i]!, tokens[i - 1]!)
      assert.isTrue(tokens.every(Number.isSafeInteger))
    }))

  it.effect("G2: asks for a token above the highest one the client has seen, whatever the store remembers", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const far = 2 ** 40
      store.faults.attempt = (run, index) =>
        Effect.map(run, (answer) =>
          index === 0 && answer._tag === "Granted"
            ? { ...answer, grant: { ...answer.grant, token: far } }
            : answer)
      assert.strictEqual((yield* Effect.scoped(lock.acquire("k"))).token, far)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual((yield* Effect.scoped(lock.acquire("k"))).token, far + 1)
      assert.strictEqual(store.requests[1]?.floor, far)
    }))

  it.effect("gives back the effect's value, failure and defect as they are", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      assert.strictEqual(yield* lock.withLock(Effect.succeed(1), "k"), 1)
      assert.strictEqual(yield* Effect.flip(lock.withLock(Effect.fail("no"), "k")), "no")
      const defect = yield* Effect.exit(lock.withLock(Effect.die("boom"), "k"))
      assert.isTrue(Exit.isFailure(defect) && Cause.squash(defect.cause) === "boom")
    }))

  it.effect("takes the effect first or last, and so do the functions that do not wait", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* Lock.withLock(Effect.succeed(1), "k"), 1)
      assert.strictEqual(yield* Effect.succeed(2).pipe(Lock.withLock("k", { ttl: 500 })), 2)
      assert.deepStrictEqual(yield* Lock.withLockIfAvailable(Effect.succeed(3), "k"), Option.some(3))
      assert.deepStrictEqual(yield* Effect.succeed(4).pipe(Lock.withLockIfAvailable("k")), Option.some(4))
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* Lock.acquire("k")
        assert.strictEqual((yield* Lock.inspect("k")).holders[0]?.holderId, lease.holderId)
      }))
      assert.isTrue(Option.isSome(yield* Effect.scoped(Lock.tryAcquire("k"))))
      assert.deepStrictEqual(yield* Lock.inspect("k"), { key: "k", holders: [], waiters: [] })
    }).pipe(Effect.provide(live)))

  it.effect("can be run again and again, as a value", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      let runs = 0
      const locked = lock.withLock(Effect.sync(() => ++runs), "k")
      yield* Effect.repeat(locked, { times: 2 })
      assert.strictEqual(runs, 3)
      assert.strictEqual(new Set(store.requests.map(({ holderId }) => holderId)).size, 3)
    }))

  it.effect("costs one command to acquire and one to release when nobody else wants the key", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.withLock(Effect.void, "k")
      assert.deepStrictEqual(store.trace, ["attempt sent", "attempt Granted", "release sent", "release Done"])
    }))
})

describe("waitTimeout", () => {
  it.effect("G12: says who held the key, for how long, what is left of his lease, and the place in the queue", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* lock.acquire("k", { ttl: 4000, holder: { job: "settle", host: "one" } })
      yield* TestClock.adjust(500)
      yield* Effect.forkScoped(other.withLock(Effect.void, "k"))
      yield* until(() => store.count("attempt") === 2)
      const asking = yield* Effect.forkChild(Effect.flip(other.withLock(Effect.void, "k", { waitTimeout: 300 })))
      yield* until(() => store.count("attempt") === 3)
      yield* Effect.forkScoped(other.withLock(Effect.void, "k"))
      yield* until(() => store.count("attempt") === 4)
      yield* TestClock.adjust(299)
      assert.isUndefined(asking.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = yield* Fiber.join(asking)
      assert.strictEqual(error._tag, "LockTimeout")
      if (error._tag !== "LockTimeout") return
      assert.strictEqual(error.key, "k")
      assert.strictEqual(error.waitTimeout, 300)
      assert.strictEqual(error.position, 1)
      assert.strictEqual(error.queueLength, 3)
      const [holder] = error.holders
      assert.deepStrictEqual(holder, {
        holderId: store.requests[0]!.holderId,
        token: holder!.token,
        permits: 1,
        heldFor: 800,
        timeLeft: 3200,
        metadata: { job: "settle", host: "one" }
      })
      assert.include(error.message, "\"k\" not granted within waitTimeout of 300 ms")
      assert.include(error.message, "job settle, host one")
      assert.include(error.message, "800 ms, 3200 ms of its lease left, position 1 of 3")
    }))

  it.effect("has left the queue by the time the error is seen", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("k")
      const other = yield* makeLock(store)
      const asking = yield* Effect.forkChild(
        Effect.flip(other.withLock(Effect.void, "k", { waitTimeout: 100 })).pipe(
          Effect.andThen(store.inspect("k"))
        )
      )
      yield* until(() => store.count("attempt") === 2)
      assert.strictEqual((yield* store.inspect("k")).waiters.length, 1)
      yield* TestClock.adjust(100)
      assert.deepStrictEqual((yield* Fiber.join(asking)).waiters, [])
      assert.strictEqual(store.count("abandon"), 1)
    }))

  it.effect("of zero asks once and does not queue", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("k")
      const other = yield* makeLock(store)
      const error = yield* Effect.flip(other.withLock(Effect.void, "k", { waitTimeout: 0 }))
      assert.strictEqual(error._tag, "LockTimeout")
      if (error._tag !== "LockTimeout") return
      assert.strictEqual(error.waitTimeout, 0)
      assert.strictEqual(error.position, -1)
      assert.strictEqual(error.holders[0]?.holderId, store.requests[0]?.holderId)
      assert.isFalse(store.requests[1]?.wait)
      assert.strictEqual(store.count("attempt"), 2)
      assert.strictEqual(store.count("abandon"), 0)
      assert.strictEqual(yield* other.withLock(Effect.succeed("in"), "free", { waitTimeout: 0 }), "in")
    }))

  it.effect("bounds the wait only, not the effect", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const fiber = yield* Effect.forkChild(
        lock.withLock(Effect.as(Effect.sleep("1 hour"), "done"), "k", { waitTimeout: 100 })
      )
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(yield* Fiber.join(fiber), "done")
    }))

  it.effect("names nobody's own grant when it ends in the very moment of the grant", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const holder = yield* lock.acquire("k")
      // The time-out is over while the command that leaves the queue is on its way, and so is the grant.
      const leaving = yield* Deferred.make<void>()
      store.faults.abandon = (run, index) => index === 0 ? Effect.andThen(Deferred.await(leaving), run) : run
      const asking = yield* Effect.forkChild(Effect.flip(other.withLock(Effect.void, "k", { waitTimeout: 100 })))
      yield* until(() => store.count("attempt") === 2)
      yield* TestClock.adjust(100)
      yield* store.service.release(holder, 0)
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.holderId, store.requests[1]?.holderId)
      yield* Deferred.succeed(leaving, undefined)
      const error = yield* Fiber.join(asking)
      assert.strictEqual(error._tag, "LockTimeout")
      if (error._tag !== "LockTimeout") return
      assert.deepStrictEqual(error.holders.map(({ holderId }) => holderId), [holder.holderId])
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("goes on counting when the store advises to look again", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("k")
      const other = yield* makeLock(store)
      store.faults.attempt = (run) =>
        Effect.map(run, (answer) =>
          answer._tag === "Queued"
            ? { ...answer, signal: Effect.delay(Effect.succeed({ _tag: "LookAgain" as const }), 40) }
            : answer)
      const start = yield* now
      const asking = yield* Effect.forkChild(
        Effect.flip(other.withLock(Effect.void, "k", { waitTimeout: 100 })).pipe(Effect.andThen(now))
      )
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(asking)) - start, 100)
      assert.strictEqual(new Set(store.requests.slice(1).map(({ holderId }) => holderId)).size, 1)
      assert.strictEqual(store.requests.length, 4)
      assert.deepStrictEqual((yield* store.inspect("k")).waiters, [])
    }))
})

describe("withLockIfAvailable and tryAcquire", () => {
  it.effect("give None when somebody holds the key, and leave nothing behind", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("k")
      const other = yield* makeLock(store)
      assert.deepStrictEqual(yield* other.withLockIfAvailable(Effect.die("must not run"), "k"), Option.none())
      assert.deepStrictEqual(yield* Effect.scoped(other.tryAcquire("k")), Option.none())
      const { holders, waiters } = yield* store.inspect("k")
      assert.strictEqual(holders.length, 1)
      assert.deepStrictEqual(waiters, [])
    }))

  it.effect("do not pass those who wait", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const holder = yield* lock.acquire("k")
      yield* Effect.forkScoped(other.withLock(Effect.never, "k"))
      yield* until(() => store.count("attempt") === 2)
      store.faults.attempt = (run) => Effect.andThen(store.service.release(holder, 0), run)
      assert.deepStrictEqual(yield* other.withLockIfAvailable(Effect.void, "k"), Option.none())
    }))

  it.effect("let the errors of the effect through, a LockTimeout of its own included", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* other.acquire("busy")
      const nested = lock.withLock(Effect.void, "busy", { waitTimeout: 0 })
      const error = yield* Effect.flip(lock.withLockIfAvailable(nested, "k"))
      assert.strictEqual(error._tag, "LockTimeout")
      assert.strictEqual(yield* Effect.flip(lock.withLockIfAvailable(Effect.fail("no"), "k")), "no")
    }))

  it.effect("keep what they got until the scope closes", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = Option.getOrThrow(yield* lock.tryAcquire("k"))
        assert.strictEqual((yield* store.inspect("k")).holders[0]?.holderId, lease.holderId)
      }))
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))
})

describe("acquire", () => {
  it.effect("closes what was opened after it before the release", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* Effect.scoped(Effect.gen(function*() {
        yield* Effect.addFinalizer(() => Effect.sync(() => store.trace.push("opened before closed")))
        yield* lock.acquire("k")
        yield* Effect.addFinalizer(() => Effect.sync(() => store.trace.push("opened after closed")))
      }))
      assert.deepStrictEqual(store.trace, [
        "attempt sent",
        "attempt Granted",
        "opened after closed",
        "release sent",
        "release Done",
        "opened before closed"
      ])
    }))

  it.effect("is interrupted, and leaves the queue, when its scope closes while it waits", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("k")
      const other = yield* makeLock(store)
      const scope = yield* Scope.make()
      const waiting = yield* Effect.forkChild(Scope.provide(other.acquire("k"), scope))
      yield* until(() => store.count("attempt") === 2)
      yield* Scope.close(scope, Exit.void)
      const exit = yield* Fiber.await(waiting)
      assert.isTrue(Exit.hasInterrupts(exit))
      assert.deepStrictEqual((yield* store.inspect("k")).waiters, [])
    }))

  it.effect("gives back a grant that is on its way while its scope closes", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const answer = yield* Deferred.make<void>()
      // The abandon gets to the store before the attempt does.
      store.faults.attempt = (run) => Effect.andThen(Deferred.await(answer), run)
      const scope = yield* Scope.make()
      const waiting = yield* Effect.forkChild(Scope.provide(lock.acquire("k"), scope))
      yield* until(() => store.count("attempt") === 1)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(store.count("abandon"), 1)
      yield* Deferred.succeed(answer, undefined)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(waiting)))
      assert.deepStrictEqual(yield* store.inspect("k"), { key: "k", holders: [], waiters: [] })
    }))

  it.effect("is interrupted when its scope is closed already", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const scope = yield* Scope.make()
      yield* Scope.close(scope, Exit.void)
      const exit = yield* Fiber.await(yield* Effect.forkChild(Scope.provide(lock.acquire("k"), scope)))
      assert.isTrue(Exit.hasInterrupts(exit))
      assert.strictEqual(store.count("attempt"), 0)
    }))

  it.effect("can be asked again in the same scope after a time-out", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const held = yield* Scope.make()
      yield* Scope.provide(other.acquire("k"), held)
      assert.strictEqual((yield* Effect.flip(lock.acquire("k", { waitTimeout: 0 })))._tag, "LockTimeout")
      const waiting = yield* Effect.forkChild(Effect.timeoutOption(lock.acquire("k"), 50))
      yield* TestClock.adjust(50)
      assert.isTrue(Option.isNone(yield* Fiber.join(waiting)))
      yield* Scope.close(held, Exit.void)
      const lease = yield* lock.acquire("k")
      assert.isTrue(yield* lease.isValid)
    }))
})

describe("a store that fails", () => {
  it.effect("fails the acquisition with its error and runs nothing", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      store.faults.attempt = () => refused
      const error = yield* Effect.flip(lock.withLock(Effect.die("must not run"), "k"))
      assert.strictEqual(error._tag, "LockStoreError")
      assert.strictEqual((yield* Effect.flip(lock.withLockIfAvailable(Effect.void, "k")))._tag, "LockStoreError")
      assert.strictEqual((yield* Effect.flip(Effect.scoped(lock.tryAcquire("k"))))._tag, "LockStoreError")
      store.faults.inspect = () => refused
      assert.strictEqual((yield* Effect.flip(lock.inspect("k")))._tag, "LockStoreError")
    }))

  it.effect("whose outcome is unknown is told to forget the holder, again and again until it hears", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      // The attempt does its work, and its reply is lost.
      store.faults.attempt = (run) => Effect.andThen(run, unavailable)
      store.faults.abandon = (run, index) => index < 3 ? unavailable : run
      const asking = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.void, "k")))
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(asking))._tag, "LockStoreError")
      assert.strictEqual(store.count("abandon"), 4)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("fails the wait when its signal fails", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.acquire("k")
      const other = yield* makeLock(store)
      store.faults.attempt = (run) =>
        Effect.map(run, (answer) => answer._tag === "Queued" ? { ...answer, signal: unavailable } : answer)
      assert.strictEqual((yield* Effect.flip(other.withLock(Effect.void, "k")))._tag, "LockStoreError")
      assert.deepStrictEqual((yield* store.inspect("k")).waiters, [])
    }))
})

describe("a stale grant", () => {
  const ttl = 1000

  it.effect("G3: that took longer to arrive than it lives is confirmed before anybody relies on it", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      // The store still knows it: somebody prolonged it there.
      store.faults.attempt = (run) =>
        Effect.tap(run, (answer) =>
          answer._tag === "Granted"
            ? Effect.andThen(
              store.service.renew({ ...store.requests[0]!, token: answer.grant.token }, ttl * 10),
              Effect.sleep(ttl)
            )
            : Effect.void)
      const sentAt = ttl
      const fiber = yield* Effect.forkChild(Effect.scoped(Effect.flatMap(lock.acquire("k"), (lease) => lease.deadline)))
      yield* TestClock.adjust(ttl - 1)
      assert.strictEqual(store.count("renew"), 1)
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(fiber)).epochMilliseconds, sentAt + ttl)
      assert.strictEqual(store.count("renew"), 2)
      assert.strictEqual(store.renewals[1]?.ttl, ttl)
    }))

  it.effect("G3: that is gone is asked for again, never used", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.attempt = (run, index) => index === 0 ? Effect.tap(run, () => Effect.sleep(ttl)) : run
      const fiber = yield* Effect.forkChild(Effect.scoped(lock.acquire("k")))
      yield* TestClock.adjust(ttl)
      const lease = yield* Fiber.join(fiber)
      assert.deepStrictEqual(store.trace, [
        "attempt sent",
        "attempt Granted",
        "renew sent",
        "renew NotHeld",
        "attempt sent",
        "attempt Granted",
        "release sent",
        "release Done"
      ])
      assert.strictEqual(store.requests[1]?.holderId, store.requests[0]?.holderId)
      assert.strictEqual(store.releases[0]?.lease.token, lease.token)
      assert.isAbove(lease.token, store.renewals[0]!.lease.token)
    }))

  it.effect("G3: counts a pushed grant from when it was sent, not from when it arrived", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.attempt = (run) => Effect.tap(run, () => Effect.sleep(400))
      const fiber = yield* Effect.forkChild(
        Effect.scoped(Effect.flatMap(lock.acquire("k"), (lease) => Effect.andThen(lease.lost, Effect.never))).pipe(
          Effect.flip,
          Effect.flatMap((error) => Effect.map(now, (time) => ({ error, time })))
        )
      )
      store.faults.renew = () => Effect.never
      yield* TestClock.adjust(10_000)
      const { error, time } = yield* Fiber.join(fiber)
      assert.strictEqual(error._tag, "LockLost")
      assert.strictEqual(time, ttl)
    }))

  it.effect("that lives for less than the ttl is renewed as soon as renewEvery says, if that is sooner than its third", () =>
    Effect.gen(function*() {
      for (const [renewEvery, first] of [[100, 100], [500, 200], [undefined, 200]] as const) {
        const { lock, store } = yield* setup({ ttl: 6000, renewEvery })
        store.faults.attempt = (run) =>
          Effect.map(
            run,
            (attempt) => attempt._tag === "Granted" ? { ...attempt, grant: { ...attempt.grant, ttl: 600 } } : attempt
          )
        yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
        yield* TestClock.adjust(first - 1)
        assert.strictEqual(store.count("renew"), 0)
        yield* TestClock.adjust(1)
        assert.strictEqual(store.count("renew"), 1)
      }
    }))

  it.effect("after another is no reason to ask for ever: waitTimeout ends that, too", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.attempt = (run) => Effect.tap(run, () => Effect.sleep(ttl))
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 2.5 * ttl })))
      yield* TestClock.adjust(10 * ttl)
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "LockTimeout")
      assert.strictEqual(store.count("attempt"), 3)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("fails a caller who does not wait, with the limit that was hit", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl })
      store.faults.attempt = (run) => Effect.tap(run, () => Effect.sleep(ttl))
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLockIfAvailable(Effect.void, "k")))
      yield* TestClock.adjust(ttl)
      const error = yield* Fiber.join(fiber)
      assert.strictEqual(error._tag, "LockStoreError")
      if (error._tag === "LockStoreError") {
        assert.strictEqual(error.reason, "Timeout")
        assert.strictEqual(error.limit, ttl)
      }
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))
})

describe("inspect", () => {
  it.effect("tells holders and waiters in the order of their grants, with what they said of themselves", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ holder: { host: "a" } })
      const lease = yield* lock.acquire("k", { ttl: 5000 })
      const other = yield* makeLock(store)
      for (const job of ["x", "y"]) {
        yield* Effect.forkScoped(other.withLock(Effect.void, "k", { holder: { job } }))
        yield* until(() => store.requests.at(-1)?.metadata["job"] === job)
        yield* TestClock.adjust(100)
      }
      const state = yield* lock.inspect("k")
      assert.deepStrictEqual(state.holders, [{
        holderId: lease.holderId,
        token: lease.token,
        permits: 1,
        heldFor: 200,
        timeLeft: 4800,
        metadata: { host: "a" }
      }])
      assert.deepStrictEqual(
        state.waiters.map(({ metadata, waitedFor }) => ({ metadata, waitedFor })),
        [{ metadata: { job: "x" }, waitedFor: 200 }, { metadata: { job: "y" }, waitedFor: 100 }]
      )
    }))
})

describe("layer", () => {
  it.effect("reads its defaults from configuration, and fails on what is no option", () =>
    Effect.gen(function*() {
      const layer = Lock.layerConfig({
        ttl: Config.Duration("LOCK_TTL").pipe(Config.withDefault("30 seconds")),
        waitTimeout: Config.Duration("LOCK_WAIT")
      }).pipe(Layer.provide(LockStore.layerMemory))
      const read = (env: Record<string, string>) =>
        Effect.scoped(Effect.flatMap(Lock.acquire("k"), (lease) => lease.deadline)).pipe(
          Effect.map(({ epochMilliseconds }) => epochMilliseconds),
          Effect.provide(layer),
          Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromUnknown(env))
        )
      assert.strictEqual(yield* read({ LOCK_WAIT: "1 second", LOCK_TTL: "7 seconds" }), 7000)
      assert.strictEqual((yield* Effect.flip(read({ LOCK_TTL: "7 seconds" })))._tag, "ConfigError")
      assert.strictEqual((yield* Effect.flip(read({ LOCK_WAIT: "1 second", LOCK_TTL: "1 milli" })))._tag, "LockInvalid")
    }))
})
