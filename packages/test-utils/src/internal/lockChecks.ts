/** What a `Lock` keeps on the store: the promises of both together. */
import * as Lock from "@effect-lock/core/Lock"
import * as LockStore from "@effect-lock/core/LockStore"
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { type Check, check } from "./check.ts"
import { freshKey, idsOf } from "./contender.ts"
import { eventually, expected, scaled, Subject } from "./subject.ts"

interface Client {
  readonly lock: Lock.Lock["Service"]
  readonly store: LockStore.LockStore["Service"]
  /** Returns when so many waiters have been told by the store that they wait. */
  readonly waiting: (count: number) => Effect.Effect<void, never, Subject>
}

/** A `Lock` on one of the suite's clients, until the scope closes. */
const open = Effect.fnUntraced(function*(client: 0 | 1) {
  const store = (yield* Subject).clients[client]
  const queued = new Set<string>()
  const watched: LockStore.LockStore["Service"] = {
    ...store,
    attempt: (request) =>
      Effect.tap(store.attempt(request), ({ _tag }) =>
        Effect.sync(() => {
          if (_tag === "Queued") queued.add(request.holderId)
        }))
  }
  const context = yield* Layer.build(Lock.layer().pipe(Layer.provide(Layer.succeed(LockStore.LockStore, watched))))
  return {
    lock: Context.get(context, Lock.Lock),
    store,
    waiting: (count: number) => eventually(`${count} waiting`, Effect.sync(() => queued.size >= count))
  }
})

const two: Effect.Effect<readonly [Client, Client], never, Subject | Scope.Scope> = Effect.orDie(
  Effect.all([open(0), open(1)])
)

/** Holds a key, from the moment this returns until `end`, or until it is lost. */
const hold = Effect.fnUntraced(function*(
  { lock }: Client,
  key: string,
  options?: Parameters<Lock.Lock["Service"]["withLock"]>[2]
) {
  const inside = Deferred.makeUnsafe<void>()
  const end = Deferred.makeUnsafe<void>()
  const interrupted = Deferred.makeUnsafe<void>()
  const body = Effect.andThen(Deferred.succeed(inside, undefined), Deferred.await(end)).pipe(
    Effect.onInterrupt(() => Deferred.succeed(interrupted, undefined))
  )
  const fiber = yield* Effect.forkScoped(lock.withLock(body, key, options))
  yield* expected(
    "the lock",
    Effect.raceFirst(Deferred.await(inside), Effect.andThen(Fiber.join(fiber), Effect.never))
  )
  return {
    fiber,
    interrupted: expected("the interruption", Deferred.await(interrupted)),
    end: Effect.andThen(Deferred.succeed(end, undefined), expected("the end", Fiber.join(fiber)))
  }
})

const isFree = (client: Client, key: string) =>
  expected("the lock", client.lock.withLock(Effect.void, key)).pipe(
    Effect.andThen(client.store.inspect(key)),
    Effect.map((state) => assert.deepStrictEqual(state, { key, holders: [], waiters: [] }))
  )

const now = Clock.clockWith((clock) => Effect.sync(() => LockStore.nowUnsafe(clock)))

const elapsed = (since: LockStore.Instant) =>
  Clock.clockWith((clock) => Effect.sync(() => LockStore.elapsedUnsafe(since, clock)))

/** @internal */
export const lockChecks: ReadonlyArray<Check> = [
  check(
    "Lock: no update is lost, and nobody is inside with somebody else",
    Effect.gen(function*() {
      const clients = yield* two
      const key = yield* freshKey
      let balance = 0
      let inside = 0
      const deposit = Effect.gen(function*() {
        inside++
        const before = balance
        yield* Effect.sleep(1)
        assert.strictEqual(inside, 1)
        balance = before + 1
        inside--
      })
      yield* expected(
        "all deposits",
        Effect.forEach(
          Array.from({ length: 24 }, (_, i) => clients[i % 2 === 0 ? 0 : 1].lock),
          (lock) => lock.withLock(deposit, key),
          { concurrency: "unbounded", discard: true }
        )
      )
      assert.strictEqual(balance, 24)
      yield* isFree(clients[0], key)
    })
  ),
  check(
    "Lock: waiters enter in order",
    Effect.gen(function*() {
      const clients = yield* two
      const key = yield* freshKey
      const entered: Array<number> = []
      const holder = yield* hold(clients[0], key)
      const waiters: Array<Fiber.Fiber<unknown, unknown>> = []
      for (let i = 0; i < 8; i++) {
        const { lock, waiting } = clients[i % 2 === 0 ? 0 : 1]
        waiters.push(yield* Effect.forkScoped(lock.withLock(Effect.sync(() => entered.push(i)), key)))
        yield* waiting(Math.floor(i / 2) + 1)
      }
      yield* holder.end
      yield* expected("all waiters", Fiber.joinAll(waiters))
      assert.deepStrictEqual(entered, [0, 1, 2, 3, 4, 5, 6, 7])
    }),
    ["fifo"]
  ),
  check(
    "Lock: the body's failure is returned unchanged, and the key is free",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const exit = yield* Effect.exit(one.lock.withLock(Effect.fail("no" as const), key))
      assert.deepStrictEqual(exit, Exit.fail("no" as const))
      yield* isFree(other, key)
    })
  ),
  check(
    "Lock: tryAcquire gives None while the key is held, and Some after",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const holder = yield* hold(one, key)
      assert.isTrue(Option.isNone(yield* Effect.scoped(other.lock.tryAcquire(key))))
      assert.deepStrictEqual((yield* other.store.inspect(key)).waiters, [])
      yield* holder.end
      assert.isTrue(Option.isSome(yield* Effect.scoped(other.lock.tryAcquire(key))))
      yield* isFree(one, key)
    })
  ),
  check(
    "Lock: withLockIfAvailable runs only while nobody holds the key",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      let ran = 0
      const run = Effect.sync(() => ++ran)
      const holder = yield* hold(one, key)
      assert.isTrue(Option.isNone(yield* other.lock.withLockIfAvailable(run, key)))
      yield* holder.end
      assert.deepStrictEqual(yield* other.lock.withLockIfAvailable(run, key), Option.some(1))
      yield* isFree(one, key)
    })
  ),
  check(
    "Lock: acquire holds the key until its scope closes, and tokens grow",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const scope = yield* Scope.make()
      const first = yield* Scope.provide(one.lock.acquire(key, { holder: { label: "first" } }), scope)
      const { holders } = yield* other.lock.inspect(key)
      assert.deepStrictEqual(idsOf(holders), [first.holderId])
      assert.strictEqual(holders[0]!.token, first.token)
      assert.strictEqual(holders[0]!.metadata["label"], "first")
      assert.isTrue(yield* first.isValid)
      const waiter = yield* Effect.forkScoped(Effect.scoped(other.lock.acquire(key)))
      yield* other.waiting(1)
      assert.isUndefined(waiter.pollUnsafe())
      yield* Scope.close(scope, Exit.void)
      const second = yield* expected("the second lease", Fiber.join(waiter))
      assert.isAbove(second.token, first.token)
      assert.isFalse(yield* first.isValid)
      yield* isFree(one, key)
    })
  ),
  check(
    "Lock: renewal keeps a lease with a short ttl alive, with its token",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      // A machine that stalls in the last third of it would cost the lease, whatever the store does.
      const ttl = yield* scaled(6000)
      yield* one.lock.withLock(
        Effect.gen(function*() {
          const [before] = (yield* other.store.inspect(key)).holders
          yield* Effect.sleep(1.5 * ttl)
          const [after] = (yield* other.store.inspect(key)).holders
          assert.strictEqual(after?.holderId, before!.holderId)
          assert.strictEqual(after?.token, before!.token)
          assert.isTrue(Option.isNone(yield* Effect.scoped(other.lock.tryAcquire(key))))
        }),
        key,
        { ttl }
      )
      yield* isFree(other, key)
    })
  ),
  check(
    "Lock: extend gives a lease more time in the store",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* one.lock.acquire(key, { ttl: "1 minute" })
        yield* lease.extend("10 minutes")
        assert.isAbove((yield* other.store.inspect(key)).holders[0]?.timeLeft ?? 0, 300_000)
        yield* lease.check
      }))
      yield* isFree(other, key)
    })
  ),
  check(
    "Lock: interrupted while waiting, leaves nothing behind, and the next one enters",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const holder = yield* hold(one, key)
      const first = yield* Effect.forkScoped(other.lock.withLock(Effect.die("entered"), key))
      yield* other.waiting(1)
      const second = yield* Effect.forkScoped(one.lock.withLock(Effect.succeed("entered"), key))
      yield* one.waiting(1)
      yield* expected("the interruption", Fiber.interrupt(first))
      assert.isAtMost((yield* one.store.inspect(key)).waiters.length, 1)
      yield* holder.end
      assert.strictEqual(yield* expected("the next one", Fiber.join(second)), "entered")
      yield* isFree(other, key)
    })
  ),
  check(
    "Lock: interrupted while holding, runs the body's finalizers before the next one enters",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const events: Array<string> = []
      const inside = Deferred.makeUnsafe<void>()
      const holder = yield* Effect.forkScoped(
        Effect.andThen(Deferred.succeed(inside, undefined), Effect.never).pipe(
          Effect.ensuring(Effect.andThen(Effect.sleep(50), Effect.sync(() => events.push("finalized")))),
          (body) => one.lock.withLock(body, key)
        )
      )
      yield* expected("the lock", Deferred.await(inside))
      const next = yield* Effect.forkScoped(other.lock.withLock(Effect.sync(() => events.push("entered")), key))
      yield* other.waiting(1)
      yield* expected("the interruption", Fiber.interrupt(holder))
      yield* expected("the next one", Fiber.join(next))
      assert.deepStrictEqual(events, ["finalized", "entered"])
    })
  ),
  check(
    "Lock: waitTimeout fails with who was in the way, and leaves nothing behind",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const holder = yield* hold(one, key, { holder: { label: "in the way" } })
      const [info] = (yield* one.store.inspect(key)).holders
      const waitTimeout = yield* scaled(300)
      const error = yield* Effect.flip(other.lock.withLock(Effect.void, key, { waitTimeout }))
      assert(error._tag === "LockTimeout", `expected LockTimeout, not ${error.message}`)
      assert.strictEqual(error.key, key)
      assert.strictEqual(error.waitTimeout, waitTimeout)
      assert.deepStrictEqual(idsOf(error.holders), [info!.holderId])
      assert.strictEqual(error.holders[0]!.token, info!.token)
      assert.strictEqual(error.holders[0]!.metadata["label"], "in the way")
      assert.isAbove(error.holders[0]!.timeLeft, 0)
      assert.include(error.message, "in the way")
      assert.include(error.message, key)
      assert.deepStrictEqual((yield* one.store.inspect(key)).waiters, [])
      yield* holder.end
      yield* isFree(other, key)
    })
  ),
  check(
    "Lock: waitTimeout tells the place in the queue",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      yield* hold(one, key)
      yield* Effect.forkScoped(one.lock.withLock(Effect.void, key))
      yield* one.waiting(1)
      const error = yield* Effect.flip(other.lock.withLock(Effect.void, key, { waitTimeout: yield* scaled(300) }))
      assert(error._tag === "LockTimeout", `expected LockTimeout, not ${error.message}`)
      assert.strictEqual(error.position, 1)
      assert.strictEqual(error.queueLength, 2)
    }),
    ["fifo"]
  ),
  check(
    "Lock: minHold keeps the key taken, however quick the body was",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const minHold = yield* scaled(1000)
      const before = yield* now
      yield* one.lock.withLock(Effect.void, key, { minHold })
      yield* expected("the next one", other.lock.withLock(Effect.void, key))
      assert.isAtLeast(yield* elapsed(before), minHold * (1 - other.store.driftFactor) - 2)
    })
  ),
  check(
    "Lock: maxHold interrupts the body, and lets the next one in",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      const maxHold = yield* scaled(300)
      const holder = yield* hold(one, key, { maxHold })
      const next = yield* Effect.forkScoped(other.lock.withLock(Effect.succeed("entered"), key))
      const error = yield* expected("the loss", Effect.flip(Fiber.join(holder.fiber)))
      assert(error._tag === "LockLost", `expected LockLost, not ${error.message}`)
      assert.strictEqual(error.reason, "MaxHold")
      assert.strictEqual(error.limit, maxHold)
      yield* holder.interrupted
      assert.strictEqual(yield* expected("the next one", Fiber.join(next)), "entered")
    })
  ),
  check(
    "Lock: a lease that is gone from the store interrupts the body with LockLost",
    Effect.gen(function*() {
      const [one, other] = yield* two
      const key = yield* freshKey
      // Told by a renewal, not by the time that a stalled machine lets pass.
      const holder = yield* hold(one, key, { ttl: yield* scaled(6000) })
      const [info] = (yield* other.store.inspect(key)).holders
      yield* other.store.abandon(key, info!.holderId)
      const error = yield* expected("the loss", Effect.flip(Fiber.join(holder.fiber)))
      assert(error._tag === "LockLost", `expected LockLost, not ${error.message}`)
      assert.strictEqual(error.reason, "NotHeld")
      assert.strictEqual(error.key, key)
      assert.strictEqual(error.holderId, info!.holderId)
      assert.strictEqual(error.token, info!.token)
      yield* holder.interrupted
      yield* isFree(other, key)
    })
  ),
  check(
    "Lock: a layer that closes releases what it holds, and sends its waiters home",
    Effect.gen(function*() {
      const other = yield* open(1)
      const [key, second] = [yield* freshKey, yield* freshKey]
      const blocker = yield* hold(other, second)
      const scope = yield* Scope.make()
      const closing = yield* Scope.provide(open(0), scope)
      const holder = yield* hold(closing, key)
      const waiter = yield* Effect.forkScoped(closing.lock.withLock(Effect.void, second))
      yield* closing.waiting(1)
      yield* expected("the layer's end", Scope.close(scope, Exit.void))
      const lost = yield* expected("the loss", Effect.flip(Fiber.join(holder.fiber)))
      assert(lost._tag === "LockLost" && lost.reason === "Closed", lost.message)
      const sentHome = yield* expected("the waiter's end", Effect.flip(Fiber.join(waiter)))
      assert.strictEqual(sentHome._tag, "LockClosed")
      assert.deepStrictEqual((yield* other.store.inspect(second)).waiters, [])
      yield* isFree(other, key)
      yield* blocker.end
      yield* isFree(other, second)
    })
  )
]
