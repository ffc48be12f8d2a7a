import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Metric, Random } from "effect"
import { TestClock } from "effect/testing"
import { type Lock, type LockError, LockMetrics } from "../src/index.ts"
import { withMetrics } from "./support/observe.ts"
import { make, makeLock, unavailable } from "./support/TestStore.ts"

const ttl = 60
const contenders = 2500
const keys = ["a", "b", "c", "d", "e", "f", "g", "h"]

/** A resource that many want to use: knows who is at it, and what fencing tokens it has seen. */
const makeResource = () => {
  let user: number | undefined
  let highest = 0
  return {
    enter: (token: number) => {
      assert.isUndefined(user, `${token} came in while ${user} was inside`)
      assert.isAbove(token, highest, "a token that did not grow")
      highest = token
      user = token
    },
    leave: () => {
      user = undefined
    }
  }
}

const chance = (probability: number) => Effect.map(Random.next, (next) => next < probability)

/** Thousands of fibers that want the same few keys, in all the ways there are, while much goes wrong. */
const soak = Effect.gen(function*() {
  const store = yield* make
  // The local deadline comes first, so whoever lost his lease is out before the next one is in.
  const clients = yield* Effect.forEach(
    [1, 2, 3],
    () => makeLock({ ...store, service: { ...store.service, driftFactor: 0.05 } }, { ttl, releaseTimeout: 200 })
  )
  const resources = new Map(keys.map((key) => [key, makeResource()]))
  const ends: Record<string, number> = {}
  const faults = {
    attempt: <A, E>(run: Effect.Effect<A, E>, index: number): Effect.Effect<A, E | LockError.LockStoreError> =>
      index % 31 === 0
        ? Effect.andThen(run, unavailable)
        : index % 17 === 0
        ? Effect.tap(run, () => Effect.sleep(7))
        : run,
    // Some holders cannot renew for as long as they live.
    renew: <A, E>(run: Effect.Effect<A, E>) => store.renewals.at(-1)!.lease.token % 3 === 0 ? unavailable : run,
    release: <A, E>(run: Effect.Effect<A, E>, index: number) =>
      index % 23 === 0 ? Effect.andThen(run, unavailable) : index % 29 === 0 ? unavailable : run,
    abandon: <A, E>(run: Effect.Effect<A, E>, index: number) => index % 13 === 0 ? unavailable : run
  }
  Object.assign(store.faults, faults)

  const contender = Effect.gen(function*() {
    const lock = yield* Random.choice(clients)
    const key = yield* Random.choice(keys)
    const resource = resources.get(key)!
    const duration = yield* Random.nextIntBetween(0, (yield* chance(0.08)) ? 200 : 4)
    const use = (token: number) =>
      Effect.acquireUseRelease(
        Effect.sync(() => resource.enter(token)),
        () => duration === 0 ? Effect.void : Effect.sleep(duration),
        () => Effect.sync(() => resource.leave())
      )
    const nested = Effect.scoped(Effect.flatMap(lock.acquire(key), (lease) => use(lease.token)))
    const options = {
      ...((yield* chance(0.3)) && { waitTimeout: yield* Random.nextIntBetween(0, 3000) }),
      ...((yield* chance(0.05)) && { minHold: 10 }),
      ...((yield* chance(0.05)) && { maxHold: 20 })
    }
    const way = yield* Random.nextIntBetween(0, 4)
    const asking: Effect.Effect<unknown, { readonly _tag: string }> = way === 0
      ? lock.withLock(nested, key, options)
      : way === 1
      ? lock.withLock(lock.withLock(nested, key), key, options)
      : way === 2
      ? lock.withLockIfAvailable(nested, key, options)
      : Effect.scoped(Effect.flatMap(lock.acquire(key, options), (lease) => lease.protect(use(lease.token))))
    const start = yield* Random.nextIntBetween(0, 200)
    const patience = (yield* chance(0.3)) ? yield* Random.nextIntBetween(0, 800) : undefined
    return { asking, patience, start }
  })

  const run = Effect.fnUntraced(function*({ asking, patience, start }: Effect.Success<typeof contender>) {
    yield* Effect.sleep(start)
    const fiber = yield* Effect.forkChild(asking)
    if (patience !== undefined) {
      yield* Effect.sleep(patience)
      yield* Fiber.interrupt(fiber)
    }
    const exit = yield* Fiber.await(fiber)
    assert.isFalse(Exit.hasDies(exit), String(exit))
    const failure = Exit.findErrorOption(exit)
    const end = Exit.isSuccess(exit) ? "success" : failure._tag === "Some" ? failure.value._tag : "interrupted"
    ends[end] = (ends[end] ?? 0) + 1
  })

  const plans = yield* Effect.forEach(Array.from({ length: contenders }), () => contender)
  const all = yield* Effect.forkChild(Effect.forEach(plans, run, { concurrency: "unbounded", discard: true }))
  for (let time = 0; all.pollUnsafe() === undefined; time += 50) {
    assert.isBelow(time, 600_000, "no progress")
    yield* TestClock.adjust(50)
  }
  yield* Fiber.join(all)
  for (const verb of Object.keys(faults)) Object.assign(store.faults, { [verb]: undefined })
  yield* TestClock.adjust(1000)
  return { store, clients, ends }
})

describe("thousands of contenders that are interrupted, time out and lose their leases", () => {
  for (const seed of ["one", "two"]) {
    it.effect(`G1, G2, G8: all come to an end, nobody is inside with another, nothing is left: seed ${seed}`, () =>
      withMetrics(Effect.gen(function*() {
        const { clients, ends, store } = yield* Random.withSeed(soak, seed)
        const sum = Object.values(ends).reduce((sum, count) => sum + count, 0)
        assert.strictEqual(sum, contenders)
        for (const end of ["success", "interrupted", "LockTimeout", "LockLost", "LockStoreError"]) {
          assert.isAbove(ends[end] ?? 0, 10, end)
        }
        for (const key of keys) {
          assert.deepStrictEqual(yield* store.inspect(key), { key, holders: [], waiters: [] })
          assert.strictEqual(yield* anyOf(clients).withLock(Effect.succeed("in"), key, { waitTimeout: 0 }), "in")
        }
        const renewals = store.count("renew")
        yield* TestClock.adjust(10 * ttl)
        assert.strictEqual(store.count("renew"), renewals)
        assert.strictEqual((yield* Metric.value(LockMetrics.waiting)).value, 0)
        assert.strictEqual((yield* Metric.value(LockMetrics.held)).value, 0)
      })))
  }
})

const anyOf = (clients: ReadonlyArray<Lock.Lock["Service"]>) => clients[0]!
