import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import type { Lock, LockError } from "../src/index.ts"
import type { LockTimeout } from "../src/LockError.ts"
import { makeLock, setup, type TestStore } from "./support/TestStore.ts"
import { drive, now, settle, until } from "./support/time.ts"

const isLost = (error: unknown, reason: string) => assert.deepInclude(error, { _tag: "LockLost", reason })

const isDeadlock = (error: unknown) => assert.deepInclude(error, { _tag: "LockDeadlock", key: "k" })

/** Never ends, and when interrupted takes its time. */
const slowToEnd = ({ trace }: TestStore, name: string) =>
  Effect.onInterrupt(
    Effect.andThen(Effect.sync(() => trace.push(`${name} begins`)), Effect.never),
    () =>
      Effect.gen(function*() {
        trace.push(`${name} interrupted`)
        yield* Effect.sleep(100)
        trace.push(`${name} cleaned up`)
      })
  )

/** One of many that must not be inside together. */
const excluding = () => {
  const state = { inside: 0, most: 0, order: Array<number>() }
  const enter = (name: number) =>
    Effect.gen(function*() {
      state.most = Math.max(state.most, ++state.inside)
      state.order.push(name)
      yield* Effect.yieldNow
      yield* Effect.yieldNow
      state.inside--
      return name
    })
  return { enter, state }
}

describe("asking again inside withLock", () => {
  it.effect("shares the lease at any depth, and asks the store for nothing", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const innermost = Effect.map(Effect.scoped(lock.acquire("k")), ({ token }) => token)
      const token = yield* lock.withLock(lock.withLock(lock.withLock(innermost, "k"), "k"), "k")
      assert.strictEqual(token, store.releases[0]?.lease.token)
      assert.deepStrictEqual(store.trace, ["attempt sent", "attempt Granted", "release sent", "release Done"])
    }))

  it.effect("works through what forks fibers: timeout, race, forkChild, forEach", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const nested = lock.withLock(Effect.succeed("in"), "k")
      const results = yield* lock.withLock(
        Effect.all([
          Effect.timeout(nested, "1 second"),
          Effect.race(nested, Effect.never),
          Effect.raceFirst(Effect.never, nested),
          Effect.flatMap(Effect.forkChild(nested), Fiber.join),
          Effect.map(Effect.forEach([1, 2], () => nested, { concurrency: 2 }), (all) => all.join())
        ]),
        "k"
      )
      assert.deepStrictEqual(results, ["in", "in", "in", "in", "in,in"])
      assert.strictEqual(store.count("attempt"), 1)
    }))

  it.effect("G1: siblings take turns, in the order in which they asked, so they exclude each other", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const { enter, state } = excluding()
      const names = Array.from({ length: 100 }, (_, i) => i)
      yield* lock.withLock(
        Effect.forEach(names, (name) => lock.withLock(enter(name), "k"), { concurrency: "unbounded" }),
        "k"
      )
      assert.strictEqual(state.most, 1)
      assert.deepStrictEqual(state.order, names)
      assert.strictEqual(store.count("attempt"), 1)
    }))

  it.effect("G1: siblings of nested regions take turns at every level", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const { enter, state } = excluding()
      const fanOut = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.forEach([1, 2, 3], () => lock.withLock(effect, "k"), { concurrency: "unbounded", discard: true })
      yield* lock.withLock(fanOut(fanOut(fanOut(enter(0)))), "k")
      assert.strictEqual(state.order.length, 27)
      assert.strictEqual(state.most, 1)
    }))

  describe("G8: siblings that nest the same keys in different orders", () => {
    const outer = ["a", "b", "c"]
    const inOrder = ({ lock }: { readonly lock: Lock.Lock["Service"] }, keys: ReadonlyArray<string>) =>
      keys.reduceRight(
        (body, key) => lock.withLock(Effect.andThen(Effect.sleep(10), body), key),
        Effect.succeed(keys.join()) as Effect.Effect<string, LockError.LockError>
      )

    const circles = [
      { title: "two", orders: [["a", "b"], ["b", "a"]] },
      { title: "three", orders: [["a", "b"], ["b", "c"], ["c", "a"]] },
      { title: "those inside of two", orders: [["a", "c"], ["b", "a", "c"], ["c", "b"]] }
    ]
    for (const { orders, title } of circles) {
      it.effect(`fail with LockDeadlock where they would wait for each other, and the others go on: ${title}`, () =>
        Effect.gen(function*() {
          const it = yield* setup()
          const siblings = Effect.forEach(orders, (keys) => Effect.exit(inOrder(it, keys)), {
            concurrency: "unbounded"
          })
          const all = outer.reduceRight(
            (body, key) => it.lock.withLock(body, key),
            siblings as Effect.Effect<
              ReadonlyArray<Exit.Exit<string, LockError.LockError>>,
              LockError.LockError
            >
          )
          const fiber = yield* Effect.forkChild(all)
          yield* TestClock.adjust(1000)
          const exits = yield* Fiber.join(fiber)
          const failures = exits.flatMap((exit) => Exit.isFailure(exit) ? [Cause.squash(exit.cause)] : [])
          assert.lengthOf(failures, 1)
          assert.deepInclude(failures[0], { _tag: "LockDeadlock", reason: "Order" })
          assert.match(
            String(failures[0]),
            /in the wrong order: whose turn it is waits for ".", where it is this fiber's turn/
          )
          for (const key of outer) assert.deepStrictEqual((yield* it.store.inspect(key)).holders, [])
        }))
    }

    it.effect("wait, where nobody waits for them", () =>
      Effect.gen(function*() {
        const it = yield* setup()
        const siblings = Effect.forEach(
          [["a", "b"], ["a", "b", "c"], ["a", "c"], ["b", "c"], ["c"]],
          (keys) => inOrder(it, keys),
          { concurrency: "unbounded" }
        )
        const all = outer.reduceRight(
          (body, key) => it.lock.withLock(body, key),
          siblings as Effect.Effect<
            ReadonlyArray<string>,
            LockError.LockError
          >
        )
        const fiber = yield* Effect.forkChild(all)
        yield* TestClock.adjust(1000)
        assert.lengthOf(yield* Fiber.join(fiber), 5)
      }))
  })

  it.effect("G8: thousands of siblings take turns without running inside each other", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      let done = 0
      const names = Array.from({ length: 3000 })
      yield* lock.withLock(
        Effect.forEach(names, () => lock.withLock(Effect.sync(() => done++), "k"), { concurrency: "unbounded" }),
        "k"
      )
      assert.strictEqual(done, 3000)
    }))

  it.effect("does not count for other keys", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.withLock(lock.withLock(Effect.void, "other"), "k")
      assert.strictEqual(store.count("attempt"), 2)
    }))

  it.effect("lets a nested failure through, and the next sibling in", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const value = yield* lock.withLock(
        Effect.gen(function*() {
          const failed = yield* Effect.flip(lock.withLock(Effect.fail("no"), "k"))
          const died = yield* Effect.exit(lock.withLock(Effect.die("bug"), "k"))
          return [failed, Exit.hasDies(died), yield* lock.withLock(Effect.succeed("in"), "k")]
        }),
        "k"
      )
      assert.deepStrictEqual(value, ["no", true, "in"])
    }))

  it.effect("heeds no option of the nested call but waitTimeout", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const nested = lock.withLock(Effect.sleep(5000), "k", { ttl: 50_000, maxHold: 1000, minHold: 1000 })
      const fiber = yield* Effect.forkChild(lock.withLock(nested, "k"))
      yield* TestClock.adjust(5000)
      yield* Fiber.join(fiber)
      assert.isTrue(store.renewals.every(({ ttl }) => ttl === 900))
      assert.strictEqual(store.releases[0]?.keepFor, 0)
    }))

  it.effect("is interrupted together with its region when the lease is lost", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.renew = () => Effect.never
      let seen: unknown
      const nested = Effect.tapError(
        lock.withLock(Effect.never, "k"),
        (error) => Effect.sync(() => void (seen = error))
      )
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(
        Effect.forkDetach(nested).pipe(
          Effect.andThen(Effect.never)
        ),
        "k"
      )))
      yield* TestClock.adjust(900)
      isLost(yield* Fiber.join(fiber), "Expired")
      isLost(seen, "Expired")
    }))

  it.effect("is not seen by another client of the same store: that one waits like anybody else", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const nested = other.withLock(Effect.void, "k", { waitTimeout: 0 })
      const error = yield* Effect.flip(lock.withLock(nested, "k"))
      assert.strictEqual(error._tag, "LockTimeout")
      assert.strictEqual((error as LockTimeout).holders[0]?.holderId, store.requests[0]?.holderId)
      assert.isTrue(Option.isNone(yield* lock.withLock(other.withLockIfAvailable(Effect.void, "k"), "k")))
    }))
})

describe("waiting for a turn", () => {
  it.effect("ends with waitTimeout, and tells who was in the way", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ holder: { job: "outer" } })
      const fiber = yield* Effect.forkChild(lock.withLock(
        Effect.gen(function*() {
          yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
          yield* Effect.yieldNow
          const waiting = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 200 })))
          yield* TestClock.adjust(199)
          assert.isUndefined(waiting.pollUnsafe())
          yield* TestClock.adjust(1)
          return yield* Fiber.join(waiting)
        }),
        "k"
      ))
      const error = (yield* Fiber.join(fiber)) as LockTimeout
      assert.strictEqual(error._tag, "LockTimeout")
      assert.strictEqual(error.waitTimeout, 200)
      assert.strictEqual(error.position, 0)
      assert.strictEqual(error.queueLength, 1)
      assert.deepInclude(error.holders[0], {
        holderId: store.requests[0]!.holderId,
        heldFor: 200,
        timeLeft: 29_800,
        metadata: { job: "outer" }
      })
    }))

  it.effect("does not get more time from going on to the store when the region ends first", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const gate = yield* Deferred.make<void>()
      const outer = yield* Effect.forkChild(lock.withLock(
        Effect.gen(function*() {
          yield* Effect.forkDetach(lock.withLock(Effect.never, "k"))
          yield* Effect.yieldNow
          const waiting = yield* Effect.forkDetach(Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 1000 })))
          yield* Deferred.await(gate)
          return waiting
        }),
        "k"
      ))
      yield* until(() => store.count("attempt") === 1)
      yield* Effect.forkChild(other.withLock(Effect.never, "k"))
      yield* until(() => store.count("attempt") === 2)
      yield* TestClock.adjust(600)
      yield* Deferred.succeed(gate, undefined)
      const waiting = yield* Fiber.join(outer)
      yield* until(() => store.count("attempt") === 3)
      yield* TestClock.adjust(399)
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = (yield* Fiber.join(waiting)) as LockTimeout
      assert.strictEqual(error._tag, "LockTimeout")
      assert.strictEqual(error.waitTimeout, 1000)
    }))

  it.effect("does not get more time from going on to the outer region when the inner one ends first", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const gate = yield* Deferred.make<void>()
      const inner = Effect.gen(function*() {
        yield* Effect.forkDetach(lock.withLock(Effect.never, "k"))
        yield* settle
        const waiting = yield* Effect.forkDetach(Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 1000 })))
        yield* Deferred.await(gate)
        return waiting
      })
      const outer = yield* Effect.forkChild(lock.withLock(
        Effect.gen(function*() {
          const middle = yield* Effect.forkChild(lock.withLock(inner, "k"))
          yield* settle
          yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
          const waiting = yield* Fiber.join(middle)
          return yield* Effect.andThen(Fiber.join(waiting), Effect.map(now, (time) => ({ time, waiting })))
        }),
        "k"
      ))
      yield* settle
      yield* settle
      yield* settle
      yield* TestClock.adjust(600)
      yield* Deferred.succeed(gate, undefined)
      yield* settle
      yield* TestClock.adjust(10_000)
      const { time, waiting } = yield* Fiber.join(outer)
      assert.strictEqual((yield* Fiber.join(waiting))._tag, "LockTimeout")
      assert.strictEqual(time, 1000)
      assert.strictEqual(store.count("attempt"), 1)
    }))

  it.effect("can be interrupted, and passes the turn on", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const { enter, state } = excluding()
      yield* lock.withLock(
        Effect.gen(function*() {
          const gate = yield* Deferred.make<void>()
          const first = yield* Effect.forkChild(lock.withLock(Deferred.await(gate), "k"))
          yield* Effect.yieldNow
          const second = yield* Effect.forkChild(lock.withLock(enter(2), "k"))
          yield* Effect.yieldNow
          const third = yield* Effect.forkChild(lock.withLock(enter(3), "k"))
          yield* settle
          yield* Fiber.interrupt(second)
          yield* Fiber.interrupt(first)
          yield* Fiber.join(third)
        }),
        "k"
      )
      assert.deepStrictEqual(state.order, [3])
    }))

  it.effect("is not what withLockIfAvailable and tryAcquire do", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const results = yield* lock.withLock(
        Effect.gen(function*() {
          const free = yield* lock.withLockIfAvailable(Effect.succeed(1), "k")
          const lease = yield* Effect.scoped(lock.tryAcquire("k"))
          const busy = yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
          yield* settle
          const none = yield* lock.withLockIfAvailable(Effect.die("must not run"), "k")
          const noLease = yield* Effect.scoped(lock.tryAcquire("k"))
          yield* Fiber.interrupt(busy)
          const again = yield* lock.withLockIfAvailable(Effect.succeed(2), "k")
          return [free, Option.isSome(lease), none, noLease, again]
        }),
        "k"
      )
      assert.deepStrictEqual(results, [Option.some(1), true, Option.none(), Option.none(), Option.some(2)])
    }))
})

describe("a nested lease", () => {
  it.effect("has its turn until its scope closes", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.withLock(
        Effect.gen(function*() {
          const { enter, state } = excluding()
          const scope = yield* Scope.make()
          const lease = yield* Scope.provide(lock.acquire("k"), scope)
          assert.strictEqual(lease.holderId, store.requests[0]?.holderId)
          assert.isTrue(yield* lease.isValid)
          const sibling = yield* Effect.forkChild(lock.withLock(enter(1), "k"))
          yield* settle
          assert.deepStrictEqual(state.order, [])
          yield* Scope.close(scope, Exit.void)
          yield* Fiber.join(sibling)
        }),
        "k"
      )
      assert.strictEqual(store.count("attempt"), 1)
    }))

  it.effect("is lost when its own scope has closed, though the region goes on", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      yield* lock.withLock(
        Effect.gen(function*() {
          const lease = yield* Effect.scoped(lock.acquire("k"))
          assert.isFalse(yield* lease.isValid)
          isLost(yield* Effect.flip(lease.check), "Released")
          isLost(yield* Effect.flip(lease.lost), "Released")
          isLost(yield* Effect.flip(lease.protect(Effect.die("must not run"))), "Released")
          isLost(yield* Effect.flip(lease.extend(1000)), "Released")
        }),
        "k"
      )
    }))

  it.effect("in a scope wider than the region does not hold the region up, and is lost when that ends", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const scope = yield* Scope.make()
      let protectedWork: unknown
      const lease = yield* lock.withLock(
        Effect.gen(function*() {
          const lease = yield* Scope.provide(lock.acquire("k"), scope)
          yield* Effect.forkDetach(
            Effect.tapError(lease.protect(Effect.never), (error) => Effect.sync(() => void (protectedWork = error)))
          )
          yield* settle
          return lease
        }),
        "k"
      )
      assert.strictEqual(store.trace.at(-1), "release Done")
      isLost(yield* Effect.flip(lease.check), "Released")
      isLost(yield* Effect.flip(lease.lost), "Released")
      yield* until(() => protectedWork !== undefined)
      isLost(protectedWork, "Released")
      // It is in nobody's way, not even in its own fiber and scope.
      const again = yield* Scope.provide(lock.acquire("k", { waitTimeout: 0 }), scope)
      assert.isAbove(again.token, lease.token)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("is lost with the inner region it was acquired in, though the outer one goes on", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const scope = yield* Scope.make()
      yield* lock.withLock(
        Effect.gen(function*() {
          const lease = yield* lock.withLock(Scope.provide(lock.acquire("k"), scope), "k")
          isLost(yield* Effect.flip(lease.check), "Released")
          isLost(yield* Effect.flip(lease.lost), "Released")
          assert.strictEqual(yield* lock.withLock(Effect.succeed("in"), "k"), "in")
        }),
        "k"
      )
      yield* Scope.close(scope, Exit.void)
    }))

  it.effect("can be extended, which prolongs the region's lease", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      yield* lock.withLock(
        Effect.scoped(Effect.gen(function*() {
          const lease = yield* lock.acquire("k")
          yield* lease.extend(60_000)
          assert.strictEqual((yield* store.inspect("k")).holders[0]?.timeLeft, 60_000)
        })),
        "k"
      )
    }))
})

describe("outliving the region", () => {
  const detached = [
    { title: "forkDetach", fork: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkDetach(effect) },
    {
      title: "forkIn a wider scope",
      fork: <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.flatMap(Scope.make(), (scope) => Effect.forkIn(effect, scope))
    }
  ]

  for (const { fork, title } of detached) {
    it.effect(`G6: interrupts a nested effect, and waits for its finalizers: ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const outer = yield* Effect.forkChild(lock.withLock(
          Effect.tap(
            fork(Effect.flip(lock.withLock(slowToEnd(store, "nested"), "k"))),
            () => until(() => store.trace.includes("nested begins"))
          ),
          "k"
        ))
        yield* until(() => store.trace.includes("nested interrupted"))
        yield* TestClock.adjust(99)
        assert.deepStrictEqual(store.trace.slice(2), ["nested begins", "nested interrupted"])
        yield* TestClock.adjust(1)
        isLost(yield* Fiber.join(yield* Fiber.join(outer)), "Released")
        assert.deepStrictEqual(store.trace.slice(2), [
          "nested begins",
          "nested interrupted",
          "nested cleaned up",
          "release sent",
          "release Done"
        ])
      }))
  }

  it.effect("G6: waits for what is nested in what is nested, too", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const middle = Effect.andThen(Effect.forkDetach(lock.withLock(slowToEnd(store, "innermost"), "k")), Effect.never)
      const outer = yield* Effect.forkChild(lock.withLock(
        Effect.andThen(
          Effect.forkDetach(lock.withLock(middle, "k")),
          until(() => store.trace.includes("innermost begins"))
        ),
        "k"
      ))
      yield* drive(outer)
      assert.deepStrictEqual(store.trace.slice(2), [
        "innermost begins",
        "innermost interrupted",
        "innermost cleaned up",
        "release sent",
        "release Done"
      ])
    }))

  for (const { fork, title } of detached) {
    it.effect(`asking afterwards goes to the store: ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const gate = yield* Deferred.make<void>()
        const late = Effect.andThen(Deferred.await(gate), lock.withLock(Effect.succeed("in"), "k"))
        const fiber = yield* lock.withLock(fork(late), "k")
        assert.strictEqual(store.count("attempt"), 1)
        yield* Deferred.succeed(gate, undefined)
        assert.strictEqual(yield* Fiber.join(fiber), "in")
        assert.strictEqual(store.count("attempt"), 2)
      }))
  }

  it.effect("asking from what outlived the inner region uses the outer one", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const gate = yield* Deferred.make<void>()
      const late = Effect.andThen(Deferred.await(gate), lock.withLock(Effect.succeed("in"), "k"))
      const value = yield* lock.withLock(
        Effect.gen(function*() {
          const fiber = yield* lock.withLock(Effect.forkDetach(late), "k")
          yield* Deferred.succeed(gate, undefined)
          return yield* Fiber.join(fiber)
        }),
        "k"
      )
      assert.strictEqual(value, "in")
      assert.strictEqual(store.count("attempt"), 1)
    }))

  it.effect("who still waited for a turn goes on to wait in the store's queue", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const fiber = yield* lock.withLock(
        Effect.gen(function*() {
          yield* Effect.forkDetach(lock.withLock(Effect.never, "k"))
          yield* settle
          const waiting = yield* Effect.forkDetach(lock.withLock(now, "k"))
          yield* settle
          return waiting
        }),
        "k"
      )
      assert.strictEqual(yield* Fiber.join(fiber), 0)
      assert.deepStrictEqual(store.trace.slice(-4), ["attempt sent", "attempt Granted", "release sent", "release Done"])
      assert.strictEqual(store.count("attempt"), 2)
    }))
})

describe("after a hand-off", () => {
  it.effect("G1: asking again inside the region waits for who adopted the lease", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      let inside = false
      yield* lock.withLease("k", (lease) =>
        Effect.gen(function*() {
          const ticket = yield* lease.handOff
          const gate = yield* Deferred.make<void>()
          const adopter = yield* Effect.forkChild(
            Effect.scoped(Effect.andThen(other.adopt(ticket), Deferred.await(gate)))
          )
          yield* until(() => store.trace.includes("adopt Granted"))
          const nested = yield* Effect.forkChild(lock.withLock(Effect.sync(() => inside = true), "k"))
          yield* settle
          assert.isFalse(inside)
          yield* Deferred.succeed(gate, undefined)
          yield* Fiber.join(adopter)
          yield* Fiber.join(nested)
        }))
      assert.isTrue(inside)
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  it.effect("who acquired the lease may wait for the key again: somebody else has it", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const lease = yield* lock.acquire("k")
      const ticket = yield* lease.handOff
      yield* Effect.scoped(other.adopt(ticket))
      const again = yield* Effect.scoped(lock.acquire("k"))
      assert.isAbove(again.token, lease.token)
    }))
})

describe("LockDeadlock: who would wait for himself fails at once when he", () => {
  it.effect("acquires twice in one fiber", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const lease = yield* lock.acquire("k")
      const error = yield* Effect.flip(Effect.scoped(lock.acquire("k")))
      isDeadlock(error)
      assert.include(error.message, `Lock "k" is already held (token ${lease.token}) by this fiber or scope`)
      assert.strictEqual(store.count("attempt"), 1)
      assert.isTrue(yield* lease.isValid)
    }))

  it.effect("acquires into one scope from two fibers", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const scope = yield* Effect.scope
      yield* lock.acquire("k")
      const other = yield* Effect.forkChild(Effect.flip(Scope.provide(lock.acquire("k"), scope)))
      isDeadlock(yield* Fiber.join(other))
    }))

  it.effect("acquires into one scope from two fibers while the first still waits for its answer", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const answer = yield* Deferred.make<void>()
      store.faults.attempt = (run) => Effect.andThen(Deferred.await(answer), run)
      const scope = yield* Effect.scope
      const first = yield* Effect.forkChild(Scope.provide(lock.acquire("k"), scope))
      yield* until(() => store.count("attempt") === 1)
      const error = yield* Effect.flip(Scope.provide(lock.acquire("k"), scope))
      isDeadlock(error)
      assert.include(error.message, "already asked for")
      yield* Deferred.succeed(answer, undefined)
      assert.isTrue(yield* (yield* Fiber.join(first)).isValid)
    }))

  it.effect("acquires into one scope from two fibers inside a region of the key", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const error = yield* lock.withLock(
        Effect.scoped(Effect.gen(function*() {
          const scope = yield* Effect.scope
          yield* lock.acquire("k")
          return yield* Fiber.join(yield* Effect.forkChild(Effect.flip(Scope.provide(lock.acquire("k"), scope))))
        })),
        "k"
      )
      isDeadlock(error)
    }))

  it.effect("acquires, then uses withLock", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      yield* lock.acquire("k")
      isDeadlock(yield* Effect.flip(lock.withLock(Effect.void, "k")))
    }))

  it.effect("acquires inside the region of the key, then uses withLock", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const nested = Effect.andThen(lock.acquire("k"), Effect.flip(lock.withLock(Effect.void, "k")))
      isDeadlock(yield* lock.withLock(Effect.scoped(nested), "k"))
    }))

  it.effect("acquires, then asks again in the body of other locks", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      yield* lock.acquire("k")
      const again = Effect.flip(Effect.scoped(lock.acquire("k")))
      isDeadlock(yield* lock.withLock(again, "a"))
      isDeadlock(yield* lock.withLock(lock.withLock(again, "b"), "a"))
      // Nested: the body runs in a fiber of its own there, too.
      isDeadlock(yield* lock.withLock(lock.withLock(again, "a"), "a"))
      isDeadlock(yield* lock.withLock(lock.withLock(Effect.flip(lock.withLock(Effect.void, "k")), "a"), "a"))
    }))

  it.effect("but gets None when he does not want to wait", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      yield* lock.acquire("k")
      assert.deepStrictEqual(yield* Effect.scoped(lock.tryAcquire("k")), Option.none())
      assert.deepStrictEqual(yield* lock.withLockIfAvailable(Effect.void, "k"), Option.none())
    }))

  it.effect("not when the scope has closed meanwhile", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      yield* Effect.scoped(lock.acquire("k"))
      yield* Effect.scoped(lock.acquire("k"))
      assert.strictEqual(yield* lock.withLock(Effect.succeed("in"), "k"), "in")
    }))

  it.effect("not when the lease is lost: it is in nobody's way for long", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const lost = yield* lock.acquire("k")
      yield* store.service.abandon("k", lost.holderId)
      yield* TestClock.adjust(300)
      isLost(yield* Effect.flip(lost.check), "NotHeld")
      const lease = yield* lock.acquire("k")
      assert.isAbove(lease.token, lost.token)
      assert.isTrue(yield* lease.isValid)
    }))

  it.effect("not in another fiber with another scope: that one waits, and gets in", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const scope = yield* Scope.make()
      yield* Scope.provide(lock.acquire("k"), scope)
      const other = yield* Effect.forkChild(lock.withLock(Effect.succeed("in"), "k"))
      yield* settle
      assert.isUndefined(other.pollUnsafe())
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(yield* Fiber.join(other), "in")
    }))

  it.effect("not with another key, nor through another client", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* lock.acquire("k")
      yield* lock.acquire("other")
      assert.strictEqual((yield* Effect.flip(other.acquire("k", { waitTimeout: 0 })))._tag, "LockTimeout")
    }))
})
