/** What users of semaphores and read-write locks rely on. */
import * as DistributedSemaphore from "@effect-lock/core/DistributedSemaphore"
import type { Lock } from "@effect-lock/core/Lock"
import type { LockError } from "@effect-lock/core/LockError"
import { PermitStore } from "@effect-lock/core/LockStore"
import * as Permits from "@effect-lock/core/Permits"
import * as ReadWriteLock from "@effect-lock/core/ReadWriteLock"
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { type Check, check as anyCheck } from "./check.ts"
import { contend, freshKey } from "./contender.ts"
import { eventually, expected, scaled, Subject } from "./subject.ts"

type Client = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, Permits.Permits | Lock>>

const check = (
  name: string,
  run: Effect.Effect<void, unknown, Subject | Scope.Scope>,
  needs: Check["needs"] = []
): Check => anyCheck(name, run, ["permits", ...needs])

/** Two clients, and a way to wait until so many queue for a key. */
const setup = Effect.gen(function*() {
  const { permitClients } = yield* Subject
  assert(permitClients !== undefined, "the layer provides no PermitStore")
  const open = (client: 0 | 1) =>
    Layer.build(Permits.layer().pipe(Layer.provide(Layer.succeed(PermitStore, permitClients[client])))).pipe(
      Effect.map((context): Client => Effect.provide(context)),
      Effect.orDie
    )
  const key = yield* freshKey
  const state = permitClients[0].inspect(key)
  return {
    key,
    one: yield* open(0),
    other: yield* open(1),
    state,
    waiting: (count: number) =>
      eventually(`${count} waiting`, Effect.map(state, ({ waiters }) => waiters.length === count)),
    isFree: eventually(
      "a free key",
      Effect.map(state, ({ holders, waiters }) => holders.length === 0 && waiters.length === 0)
    )
  }
})

/** Holds from the moment this returns until `end`, or until the lease is lost. */
const hold = Effect.fnUntraced(function*<E>(locked: (body: Effect.Effect<void>) => Effect.Effect<void, E>) {
  const inside = Deferred.makeUnsafe<void>()
  const gate = Deferred.makeUnsafe<void>()
  const fiber = yield* Effect.forkScoped(
    locked(Effect.andThen(Deferred.succeed(inside, undefined), Deferred.await(gate)))
  )
  yield* expected(
    "the permits",
    Effect.raceFirst(Deferred.await(inside), Effect.andThen(Fiber.join(fiber), Effect.never))
  )
  return { fiber, end: Effect.andThen(Deferred.succeed(gate, undefined), expected("the end", Fiber.join(fiber))) }
})

const isError = (error: { readonly _tag: string }, tag: LockError["_tag"] | "LockUpgradeConflict") =>
  assert.strictEqual(error._tag, tag)

/** Counts who is inside, and dies when readers and writers are there together. */
const makeRoom = () => {
  const entries: Array<string> = []
  let readers = 0
  let writers = 0
  const enter = (name: string, stay: Effect.Effect<unknown>, add: (by: number) => void) =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        entries.push(name)
        add(1)
        assert.isAtMost(writers, readers > 0 ? 0 : 1, `${writers} write, ${readers} read`)
      }),
      () => stay,
      () => Effect.sync(() => add(-1))
    )
  return {
    entries,
    read: (name: string, stay: Effect.Effect<unknown> = Effect.sleep(2)) => enter(name, stay, (by) => readers += by),
    write: (name: string, stay: Effect.Effect<unknown> = Effect.sleep(2)) => enter(name, stay, (by) => writers += by)
  }
}

const semaphoreChecks: ReadonlyArray<Check> = [
  check(
    "Semaphore: never more permits than the limit are held, and all of them can be",
    Effect.gen(function*() {
      const { isFree, key, one, other } = yield* setup
      const semaphore = DistributedSemaphore.make(key, { limit: 4 })
      const full = yield* Effect.forEach(
        [1, 1, 2],
        (permits, i) => hold((body) => (i % 2 === 0 ? one : other)(semaphore.withPermits(body, permits)))
      )
      for (const { end } of full) yield* end
      let inside = 0
      const work = (permits: number) =>
        Effect.acquireUseRelease(
          Effect.sync(() => assert.isAtMost(inside += permits, 4)),
          () => Effect.sleep(2),
          () => Effect.sync(() => inside -= permits)
        )
      yield* expected(
        "all",
        Effect.forEach(
          Array.from({ length: 24 }, (_, i) => 1 + i % 4),
          (permits, i) => (i % 2 === 0 ? one : other)(semaphore.withPermits(work(permits), permits)),
          { concurrency: "unbounded", discard: true }
        )
      )
      yield* isFree
    })
  ),
  check(
    "Semaphore: who asks for many is not passed by those who ask for few",
    Effect.gen(function*() {
      const { key, one, other, waiting } = yield* setup
      const semaphore = DistributedSemaphore.make(key, { limit: 4 })
      const entered: Array<string> = []
      const holder = yield* hold((body) => one(semaphore.withPermit(body)))
      const enter = (name: string, permits: number) =>
        Effect.forkScoped(other(semaphore.withPermits(Effect.sync(() => entered.push(name)), permits)))
      const large = yield* enter("large", 4)
      yield* waiting(1)
      const small = yield* enter("small", 1)
      yield* waiting(2)
      assert.isTrue(Option.isNone(yield* one(semaphore.withPermitsIfAvailable(1)(Effect.void))))
      assert.deepStrictEqual(entered, [])
      yield* holder.end
      yield* expected("both", Fiber.joinAll([large, small]))
      assert.deepStrictEqual(entered, ["large", "small"])
    }),
    ["fifo"]
  ),
  check(
    "Semaphore: permits of a holder that is never heard of again come back after its ttl, and only they are in the way",
    Effect.gen(function*() {
      const { key, one } = yield* setup
      const semaphore = DistributedSemaphore.make(key, { limit: 4 })
      yield* (yield* contend(key, { limit: 4, permits: 3, ttl: yield* scaled(1000) })).take()
      yield* expected("the rest", one(semaphore.withPermit(Effect.void)))
      yield* expected("all", one(semaphore.withPermits(4)(Effect.void)))
    })
  ),
  check(
    "Semaphore: nested permits are the asker's own; more than the rest of them fails at once",
    Effect.gen(function*() {
      const { isFree, key, one, state } = yield* setup
      const semaphore = DistributedSemaphore.make(key, { limit: 4 })
      const held = Effect.map(state, ({ holders }) => holders.map(({ permits }) => permits).toSorted((a, b) => a - b))
      yield* one(
        semaphore.withPermits(2)(Effect.gen(function*() {
          assert.deepStrictEqual(yield* semaphore.withPermit(held), [1, 2])
          isError(yield* expected("a failure", Effect.flip(semaphore.withPermits(3)(Effect.void))), "LockDeadlock")
        }))
      )
      yield* isFree
    })
  ),
  check(
    "Semaphore: another limit than the one in use is refused",
    Effect.gen(function*() {
      const { key, one, other } = yield* setup
      const holder = yield* hold((body) => one(DistributedSemaphore.make(key, { limit: 4 }).withPermit(body)))
      const wide = DistributedSemaphore.make(key, { limit: 5 })
      isError(yield* expected("a failure", Effect.flip(other(wide.withPermit(Effect.void)))), "PermitsRefused")
      isError(yield* expected("a failure", Effect.flip(other(wide.setLimit(3)))), "PermitsRefused")
      yield* holder.end
    })
  ),
  check(
    "Semaphore: a limit that grows grants at once; one that shrinks takes nothing away, and counts from then on",
    Effect.gen(function*() {
      const { isFree, key, one, other, state, waiting } = yield* setup
      const semaphore = DistributedSemaphore.make(key, { limit: 2 })
      const first = yield* hold((body) => one(semaphore.withPermits(body, 2)))
      const second = yield* Effect.forkScoped(hold((body) => other(semaphore.withPermits(body, 2))))
      yield* waiting(1)
      yield* other(semaphore.setLimit(4))
      const holder = yield* expected("the second", Fiber.join(second))
      yield* one(semaphore.setLimit(1))
      assert.strictEqual((yield* state).holders.length, 2)
      const third = yield* Effect.forkScoped(one(semaphore.withPermit(Effect.void)))
      yield* waiting(1)
      yield* first.end
      assert.strictEqual((yield* state).waiters.length, 1)
      isError(yield* expected("a failure", Effect.flip(other(semaphore.withPermits(2)(Effect.void)))), "PermitsRefused")
      yield* holder.end
      yield* expected("the third", Fiber.join(third))
      yield* one(semaphore.setLimit(2))
      const nested = Effect.andThen(other(semaphore.setLimit(1)), Effect.flip(semaphore.withPermit(Effect.void)))
      isError(yield* expected("a failure", one(semaphore.withPermit(nested))), "LockDeadlock")
      yield* isFree
    })
  ),
  check(
    "Semaphore: who is interrupted while waiting or holding leaves nothing behind",
    Effect.gen(function*() {
      const { isFree, key, one, other, waiting } = yield* setup
      const semaphore = DistributedSemaphore.make(key, { limit: 4 })
      const holder = yield* hold((body) => one(semaphore.withPermits(body, 3)))
      const waiter = yield* Effect.forkScoped(other(semaphore.withPermits(2)(Effect.die("entered"))))
      yield* waiting(1)
      yield* expected("the interruption", Fiber.interrupt(waiter))
      yield* expected("the rest", other(semaphore.withPermit(Effect.void)))
      yield* expected("the interruption", Fiber.interrupt(holder.fiber))
      yield* expected("all", other(semaphore.withPermits(4)(Effect.void)))
      yield* isFree
    })
  )
]

const readWriteChecks: ReadonlyArray<Check> = [
  check(
    "ReadWriteLock: readers that ask in a row are in together, then the writer behind them, then the next readers",
    Effect.gen(function*() {
      const { isFree, key, one, other, waiting } = yield* setup
      const lock = ReadWriteLock.make(key)
      const { entries, read, write } = makeRoom()
      const holder = yield* hold((body) => one(lock.withWrite(body)))
      // Readers wait inside for each other: they are in together, or never end.
      const meeting = (count: number) => {
        const met = Deferred.makeUnsafe<void>()
        return Effect.suspend(() => {
          if (--count === 0) Deferred.doneUnsafe(met, Effect.void)
          return Deferred.await(met)
        })
      }
      const [first, second] = [meeting(2), meeting(3)]
      const asking = [
        lock.withRead(read("r1", first)),
        lock.withRead(read("r1", first)),
        lock.withWrite(write("w1")),
        lock.withRead(read("r2", second)),
        lock.withRead(read("r2", second)),
        lock.withRead(read("r2", second)),
        lock.withWrite(write("w2"))
      ]
      const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
      for (const [i, work] of asking.entries()) {
        fibers.push(yield* Effect.forkScoped((i % 2 === 0 ? one : other)(work)))
        yield* waiting(i + 1)
      }
      yield* holder.end
      yield* expected("all", Fiber.joinAll(fibers))
      assert.deepStrictEqual(entries, ["r1", "r1", "w1", "r2", "r2", "r2", "w2"])
      yield* isFree
    }),
    ["fifo"]
  ),
  ...(["readers", "writers"] as const).map((crowd) =>
    check(
      `ReadWriteLock: ${crowd} that never cease to come keep nobody out`,
      Effect.gen(function*() {
        const { isFree, key, one, other } = yield* setup
        const lock = ReadWriteLock.make(key)
        const { entries, read, write } = makeRoom()
        // Of different lengths, so that they do not all leave at once: the key is never free of readers.
        const reading = (i: number) => lock.withRead(read("reader", Effect.repeat(Effect.sleep(5), { times: 1 + i })))
        const writing = () => lock.withWrite(write("writer"))
        const [many, single] = crowd === "readers" ? [reading, writing] : [writing, reading]
        const comeAndGo = (i: number) => (i % 2 === 0 ? one : other)(Effect.forever(many(i)))
        const crowds = yield* Effect.forEach([0, 1, 2, 3, 4, 5], (i) => Effect.forkScoped(comeAndGo(i)))
        yield* eventually("a crowd", Effect.sync(() => entries.length > 6))
        for (let turn = 0; turn < 5; turn++) yield* expected("a turn", one(single(turn)))
        yield* Effect.forEach(crowds, Fiber.interrupt, { concurrency: "unbounded" })
        yield* isFree
      })
    )
  ),
  check(
    "ReadWriteLock: a reader that is never heard of again is in a writer's way for its ttl",
    Effect.gen(function*() {
      const { key, one } = yield* setup
      const lock = ReadWriteLock.make(key)
      // Long enough for a machine that stalls before the writer asks.
      yield* (yield* contend(key, { limit: 2 ** 20, ttl: yield* scaled(5000) })).take()
      yield* expected("another reader", one(lock.withRead(Effect.void)))
      assert.isTrue(Option.isNone(yield* one(lock.withWriteIfAvailable(Effect.void))))
      yield* expected("the writer", one(lock.withWrite(Effect.void)))
    })
  ),
  check(
    "ReadWriteLock: an upgrade waits for the other readers, ahead of a writer; then it reads on",
    Effect.gen(function*() {
      const { isFree, key, one, other, waiting } = yield* setup
      const lock = ReadWriteLock.make(key)
      const { entries, write } = makeRoom()
      const reader = yield* hold((body) => other(lock.withRead(body)))
      const ready = Deferred.makeUnsafe<void>()
      const begun = Deferred.makeUnsafe<void>()
      const upgrading = yield* Effect.forkScoped(one(lock.withReadLease((lease) =>
        Effect.gen(function*() {
          yield* Deferred.succeed(begun, undefined)
          yield* Deferred.await(ready)
          yield* Effect.scoped(Effect.gen(function*() {
            const upper = yield* lease.upgrade
            assert.isAbove(upper.token, lease.token)
            yield* upper.protect(write("upgraded"))
            assert.isTrue(Option.isNone(yield* other(lock.withReadIfAvailable(Effect.void))))
          }))
          yield* lease.protect(Effect.sync(() => entries.push("reads on")))
        })
      )))
      yield* expected("the read lease", Deferred.await(begun))
      const writer = yield* Effect.forkScoped(other(lock.withWrite(write("writer"))))
      yield* waiting(1)
      yield* Deferred.succeed(ready, undefined)
      yield* waiting(2)
      yield* reader.end
      yield* expected("both", Fiber.joinAll([upgrading, writer]))
      assert.deepStrictEqual(entries, ["upgraded", "reads on", "writer"])
      yield* isFree
    }),
    ["fifo"]
  ),
  check(
    "ReadWriteLock: of two readers that upgrade one fails at once, and the other gets in when that one is gone",
    Effect.gen(function*() {
      const { isFree, key, one, other } = yield* setup
      const lock = ReadWriteLock.make(key)
      let reading = 0
      const met = Deferred.makeUnsafe<void>()
      const upgrading = lock.withReadLease((lease) =>
        Effect.gen(function*() {
          if (++reading === 2) yield* Deferred.succeed(met, undefined)
          yield* Deferred.await(met)
          return yield* Effect.scoped(Effect.as(lease.upgrade, "upgraded"))
        })
      ).pipe(Effect.catchTag("LockUpgradeConflict", ({ _tag }) => Effect.succeed<string>(_tag)))
      const ends = yield* expected("both", Effect.all([one(upgrading), other(upgrading)], { concurrency: 2 }))
      assert.deepStrictEqual(ends.toSorted(), ["LockUpgradeConflict", "upgraded"])
      yield* isFree
    })
  ),
  check(
    "ReadWriteLock: upgraded work ends when the read lease is lost",
    Effect.gen(function*() {
      const { isFree, key, one } = yield* setup
      const [client] = (yield* Subject).clients
      const lock = ReadWriteLock.make(key, { ttl: yield* scaled(6000) })
      const error = yield* expected(
        "the loss",
        Effect.scoped(Effect.gen(function*() {
          const lease = yield* lock.acquireRead
          const upper = yield* lease.upgrade
          yield* client.abandon(key, lease.holderId)
          return yield* Effect.flip(upper.protect(Effect.never))
        })).pipe(one)
      )
      isError(error, "LockLost")
      yield* isFree
    })
  ),
  check(
    "ReadWriteLock: a downgrade lets in those who wait to read, but no writer; the lease goes on",
    Effect.gen(function*() {
      const { isFree, key, one, other, state, waiting } = yield* setup
      const lock = ReadWriteLock.make(key)
      const { entries, read, write } = makeRoom()
      const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
      yield* one(lock.withWriteLease((lease) =>
        Effect.gen(function*() {
          const gate = Deferred.makeUnsafe<void>()
          for (const [i, name] of ["r1", "r2"].entries()) {
            fibers.push(yield* Effect.forkScoped(other(lock.withRead(read(name, Deferred.await(gate))))))
            yield* waiting(i + 1)
          }
          fibers.push(yield* Effect.forkScoped(other(lock.withWrite(write("writer")))))
          yield* waiting(3)
          yield* lease.downgrade
          yield* eventually("two readers", Effect.sync(() => entries.length === 2))
          const { holders, waiters } = yield* state
          const mine = holders.find(({ holderId }) => holderId === lease.holderId)
          assert.deepInclude(mine, { token: lease.token, permits: 1 })
          assert.strictEqual(waiters.length, 1)
          yield* lease.extend("30 seconds")
          yield* Deferred.succeed(gate, undefined)
        })
      ))
      yield* expected("all", Fiber.joinAll(fibers))
      assert.deepStrictEqual(entries.toSorted(), ["r1", "r2", "writer"])
      assert.strictEqual(entries[2], "writer")
      yield* isFree
    }),
    ["fifo"]
  ),
  check(
    "ReadWriteLock: what is nested uses the lease around it; writing inside reading fails at once",
    Effect.gen(function*() {
      const { isFree, key, one } = yield* setup
      const lock = ReadWriteLock.make(key)
      yield* expected("nested work", one(lock.withWrite(lock.withWrite(lock.withRead(Effect.void)))))
      yield* expected("nested work", one(lock.withRead(lock.withRead(Effect.void))))
      isError(
        yield* expected("a failure", Effect.flip(one(lock.withRead(lock.withWrite(Effect.void))))),
        "LockDeadlock"
      )
      yield* isFree
    })
  )
]

/** @internal */
export const permitChecks: ReadonlyArray<Check> = [...semaphoreChecks, ...readWriteChecks]
