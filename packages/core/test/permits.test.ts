import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Metric, Option, Random } from "effect"
import { TestClock } from "effect/testing"
import { DistributedSemaphore, LockMetrics, type Permits, ReadWriteLock } from "../src/index.ts"
import { withMetrics } from "./support/observe.ts"
import { makeClient } from "./support/permits.ts"
import { make, unavailable } from "./support/TestStore.ts"

const ttl = 60
const limit = 5
const programs = 2000

/** What is inside, by what it means: never more than is allowed. */
const makeRooms = () => {
  const inside = { permits: 0, readers: 0, writers: 0 }
  const most = { permits: 0, readers: 0 }
  const change = (what: keyof typeof inside, by: number) =>
    Effect.sync(() => {
      inside[what] += by
      most.permits = Math.max(most.permits, inside.permits)
      most.readers = Math.max(most.readers, inside.readers)
      assert.isAtMost(inside.permits, limit, "permits")
      assert.isAtMost(inside.writers, inside.readers > 0 ? 0 : 1, `writers beside ${inside.readers} readers`)
    })
  const stay = (what: keyof typeof inside, count: number, millis: number) =>
    Effect.acquireUseRelease(change(what, count), () => Effect.sleep(millis), () => change(what, -count))
  return { inside, most, stay }
}

const chance = (probability: number) => Effect.map(Random.next, (next) => next < probability)

const soak = Effect.gen(function*() {
  const store = yield* make
  // The local deadline comes first, so whoever lost his lease is out before the next one is in.
  const strict = { ...store, service: { ...store.service, driftFactor: 0.05 } }
  const clients = yield* Effect.forEach([1, 2, 3], () => makeClient(strict, { ttl, releaseTimeout: 200 }))
  const rooms = makeRooms()
  const faults = {
    attempt: <A, E>(run: Effect.Effect<A, E>, index: number) =>
      index % 31 === 0
        ? Effect.andThen(run, unavailable)
        : index % 17 === 0
        ? Effect.tap(run, () => Effect.sleep(7))
        : run,
    // Some holders cannot renew for as long as they live.
    renew: <A, E>(run: Effect.Effect<A, E>) => store.renewals.at(-1)!.lease.token % 3 === 0 ? unavailable : run,
    release: <A, E>(run: Effect.Effect<A, E>, index: number) =>
      index % 23 === 0 ? Effect.andThen(run, unavailable) : run,
    abandon: <A, E>(run: Effect.Effect<A, E>, index: number) => index % 13 === 0 ? unavailable : run,
    shrink: <A, E>(run: Effect.Effect<A, E>, index: number) =>
      index % 7 === 0 ? Effect.andThen(run, unavailable) : index % 11 === 0 ? unavailable : run
  }
  Object.assign(store.faults, faults)

  const program = Effect.gen(function*() {
    const millis = yield* Random.nextIntBetween(0, (yield* chance(0.1)) ? 150 : 6)
    const [few, more] = [yield* Random.nextIntBetween(1, 4), yield* Random.nextIntBetween(1, 6)]
    const options = {
      waitTimeout: yield* Random.nextIntBetween(0, 2000),
      priority: yield* Random.nextIntBetween(-1, 2)
    }
    const semaphore = DistributedSemaphore.make("s", { limit, ...options })
    const rw = ReadWriteLock.make("rw", options)
    const { stay } = rooms

    const upgrading = (lease: ReadWriteLock.ReadLease) =>
      Effect.gen(function*() {
        yield* lease.protect(stay("readers", 1, millis))
        yield* Effect.scoped(Effect.flatMap(lease.upgrade, (upper) => upper.protect(stay("writers", 1, millis))))
        yield* lease.protect(stay("readers", 1, millis))
      })
    const downgrading = (lease: ReadWriteLock.WriteLease) =>
      Effect.gen(function*() {
        yield* lease.protect(stay("writers", 1, millis))
        const reading = yield* lease.downgrade
        yield* reading.protect(stay("readers", 1, millis))
        if (few === 1) yield* upgrading(reading)
      })
    const nested = Effect.all([
      rw.withWrite(stay("writers", 1, millis)),
      rw.withRead(stay("readers", 1, millis)),
      rw.withWrite(stay("writers", 1, millis))
    ], { concurrency: "unbounded" })
    const siblings = (lease: ReadWriteLock.ReadLease) =>
      Effect.all([
        rw.withRead(stay("readers", 1, millis)),
        Effect.scoped(Effect.flatMap(lease.upgrade, (upper) => upper.protect(stay("writers", 1, millis)))),
        rw.withRead(stay("readers", 1, millis))
      ], { concurrency: "unbounded" })
    const ways: ReadonlyArray<Effect.Effect<unknown, { readonly _tag: string }, Permits.Permits>> = [
      semaphore.withPermits(more % 5 + 1)(stay("permits", more % 5 + 1, millis)),
      Effect.scoped(Effect.flatMap(semaphore.acquire(few), (lease) => lease.protect(stay("permits", few, millis)))),
      semaphore.withPermitsIfAvailable(few)(stay("permits", few, millis)),
      semaphore.withPermits(few)(
        Effect.all([stay("permits", few, millis), semaphore.withPermits(2)(stay("permits", 2, millis))], {
          concurrency: "unbounded"
        })
      ),
      rw.withRead(rw.withRead(stay("readers", 1, millis))),
      rw.withWrite(nested),
      rw.withReadIfAvailable(stay("readers", 1, millis)),
      rw.withWriteIfAvailable(stay("writers", 1, millis)),
      rw.withReadLease(upgrading),
      rw.withReadLease(siblings),
      rw.withWriteLease(downgrading),
      Effect.scoped(Effect.flatMap(rw.acquireRead, upgrading)),
      Effect.scoped(Effect.flatMap(rw.acquireWrite, downgrading))
    ]
    const client = yield* Random.choice(clients)
    const asking = client(yield* Random.choice(ways))
    const start = yield* Random.nextIntBetween(0, 10_000)
    const patience = (yield* chance(0.3)) ? yield* Random.nextIntBetween(0, 400) : undefined
    return { asking, patience, start }
  })

  const ends: Record<string, number> = {}
  const run = Effect.fnUntraced(function*({ asking, patience, start }: Effect.Success<typeof program>) {
    yield* Effect.sleep(start)
    const fiber = yield* Effect.forkChild(asking)
    if (patience !== undefined) {
      yield* Effect.sleep(patience)
      yield* Fiber.interrupt(fiber)
    }
    const exit = yield* Fiber.await(fiber)
    assert.isFalse(Exit.hasDies(exit), String(exit))
    const failure = Exit.findErrorOption(exit)
    const end = Exit.isSuccess(exit) ? "success" : Option.isSome(failure) ? failure.value._tag : "interrupted"
    ends[end] = (ends[end] ?? 0) + 1
  })

  const plans = yield* Effect.forEach(Array.from({ length: programs }), () => program)
  const all = yield* Effect.forkChild(Effect.forEach(plans, run, { concurrency: "unbounded", discard: true }))
  for (let time = 0; all.pollUnsafe() === undefined; time += 50) {
    assert.isBelow(time, 600_000, "no progress")
    yield* TestClock.adjust(50)
  }
  yield* Fiber.join(all)
  for (const verb of Object.keys(faults)) Object.assign(store.faults, { [verb]: undefined })
  yield* TestClock.adjust(1000)
  return { clients, ends, rooms, store }
})

describe("thousands of random programs over semaphores and read-write locks", () => {
  for (const seed of ["one", "two", "three"]) {
    it.effect(`G1, G10: never exceed what is allowed, all come to an end, nothing is left: seed ${seed}`, () =>
      withMetrics(Effect.gen(function*() {
        const { clients, ends, rooms, store } = yield* Random.withSeed(soak, seed)
        assert.strictEqual(Object.values(ends).reduce((sum, count) => sum + count, 0), programs)
        for (
          const end of ["success", "interrupted", "LockTimeout", "LockLost", "LockStoreError", "LockUpgradeConflict"]
        ) {
          assert.isAbove(ends[end] ?? 0, 10, `${end} of ${JSON.stringify(ends)}`)
        }
        assert.deepStrictEqual(rooms.inside, { permits: 0, readers: 0, writers: 0 })
        assert.strictEqual(rooms.most.permits, limit, "the limit must have been reached")
        assert.isAbove(rooms.most.readers, 2, "readers must have been in together")
        for (const key of ["s", "rw"]) {
          assert.deepStrictEqual(yield* store.inspect(key), { key, holders: [], waiters: [] })
        }
        yield* clients[0]!(ReadWriteLock.make("rw", { waitTimeout: 0 }).withWrite(Effect.void))
        yield* clients[1]!(DistributedSemaphore.make("s", { limit, waitTimeout: 0 }).withPermits(limit)(Effect.void))
        assert.strictEqual((yield* Metric.value(LockMetrics.waiting)).value, 0)
        assert.strictEqual((yield* Metric.value(LockMetrics.held)).value, 0)
      })))
  }
})
