import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { DistributedSemaphore, type Lease, Lock, Permits, ReadWriteLock } from "../src/index.ts"
import { crashed, hold, setup } from "./support/permits.ts"
import { makeLock, unavailable } from "./support/TestStore.ts"
import { drive, settle, until } from "./support/time.ts"

const api = DistributedSemaphore.make("api", { limit: 4 })

const permitsOf = (infos: ReadonlyArray<{ readonly permits: number }>) => infos.map(({ permits }) => permits)

describe("permits", () => {
  it.effect("G1: lets in as many as fit, and never more, whichever client they are of", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      let inside = 0
      let most = 0
      const work = (permits: number) =>
        Effect.acquireUseRelease(
          Effect.sync(() => most = Math.max(most, inside += permits)),
          () => Effect.sleep(5),
          () => Effect.sync(() => inside -= permits)
        )
      const all = yield* Effect.forkChild(Effect.forEach(
        Array.from({ length: 60 }, (_, i) => 1 + i % 4),
        (permits, i) => (i % 2 === 0 ? client : other)(api.withPermits(permits)(work(permits))),
        { concurrency: "unbounded" }
      ))
      while (all.pollUnsafe() === undefined) yield* TestClock.adjust(1)
      yield* Fiber.join(all)
      assert.strictEqual(most, 4)
      assert.strictEqual(inside, 0)
    }))

  it.effect("G10: who asks for many is not passed by those who ask for few, however many come", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const order: Array<string> = []
      const first = yield* hold((body) => client(api.withPermit(body)))
      const large = yield* Effect.forkChild(
        client(api.withPermits(Effect.sync(() => order.push("large")), 4))
      )
      yield* until(() => store.count("attempt") === 2)
      for (let i = 0; i < 10; i++) {
        yield* Effect.forkChild(other(api.withPermit(Effect.sync(() => order.push("small")))))
        yield* until(() => store.count("attempt") === 3 + i)
      }
      yield* settle
      assert.deepStrictEqual(order, [])
      assert.isTrue(Option.isNone(yield* other(api.withPermitsIfAvailable(1)(Effect.void))))
      assert.isTrue(Option.isNone(yield* Effect.scoped(other(api.tryAcquire(1)))))
      yield* first.end
      yield* Fiber.join(large)
      yield* until(() => order.length === 11)
      assert.strictEqual(order[0], "large")
    }))

  it.effect("of a holder that is never heard of again come back after its own ttl, and only its own were in the way", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      yield* crashed(store, { key: "api", permits: 3, limit: 4, ttl: 500 })
      assert.strictEqual(yield* client(api.withPermit(Effect.succeed("in"))), "in")
      const two = yield* Effect.forkChild(client(api.withPermits(2)(Effect.succeed("in"))))
      yield* TestClock.adjust(499)
      assert.isUndefined(two.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* Fiber.join(two), "in")
    }))

  it.effect("G4: of a lost lease are nobody's: the work is interrupted, that of others goes on", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup({ ttl: 300 })
      const one = yield* hold((body) => client(api.withPermits(2)(body)))
      const two = yield* hold((body) => client(api.withPermits(2)(body)))
      yield* store.evict("api", store.requests[0]!.holderId)
      yield* TestClock.adjust(100)
      assert.deepInclude(yield* Effect.flip(Fiber.join(one.fiber)), { _tag: "LockLost", reason: "NotHeld" })
      assert.isUndefined(two.fiber.pollUnsafe())
      yield* two.end
      yield* Fiber.join(two.fiber)
    }))

  it.effect("are told of by inspect, with the limit", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      const holder = yield* hold((body) => client(api.withPermits(3)(body)))
      yield* Effect.forkChild(client(api.withPermits(2)(Effect.void)))
      yield* until(() => store.count("attempt") === 2)
      const { holders, key, limit, waiters } = yield* client(api.inspect)
      assert.deepStrictEqual([key, limit, permitsOf(holders), permitsOf(waiters)], ["api", 4, [3], [2]])
      yield* holder.end
    }))

  it.effect("are waited for until waitTimeout, which tells who has them", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const impatient = DistributedSemaphore.make("api", { limit: 4, waitTimeout: 100 })
      yield* hold((body) => client(api.withPermits(3)(body)))
      const waiting = yield* Effect.forkChild(Effect.flip(client(impatient.withPermits(2)(Effect.void))))
      yield* TestClock.adjust(100)
      const error = yield* Fiber.join(waiting)
      assert(error._tag === "LockTimeout", error.message)
      assert.deepStrictEqual([error.permits, permitsOf(error.holders), error.position], [2, [3], 0])
    }))

  it.effect("with a lease: of work that reports progress are held for as long as it does", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      const watched = DistributedSemaphore.make("api", { limit: 4, progressTimeout: 1000 })
      const work = yield* Effect.forkChild(Effect.flip(client(watched.withPermitsLease(3, (lease) =>
        Effect.andThen(
          Effect.repeat(Effect.andThen(lease.heartbeat, Effect.sleep(600)), { times: 4 }),
          Effect.never
        )))))
      // The last heartbeat is that of 2400.
      yield* TestClock.adjust(3399)
      assert.deepStrictEqual(permitsOf((yield* other(api.inspect)).holders), [3])
      yield* TestClock.adjust(1)
      assert.deepInclude(yield* Fiber.join(work), { _tag: "LockLost", reason: "Stalled" })
      assert.deepStrictEqual((yield* other(api.inspect)).holders, [])
    }))

  it.effect("if available, and of acquire, are held until the end of the effect or scope", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      const scope = yield* Scope.make()
      const lease = yield* client(Scope.provide(api.acquire(2), scope))
      assert.isAbove(lease.token, 0)
      const inner = Effect.all([
        other(api.withPermitsIfAvailable(3)(Effect.succeed("in"))),
        other(api.withPermitsIfAvailable(Effect.succeed("in"), 2)),
        Effect.scoped(other(api.tryAcquire(3))),
        Effect.map(Effect.scoped(other(api.tryAcquire(1))), Option.isSome)
      ])
      assert.deepStrictEqual(yield* inner, [Option.none(), Option.some("in"), Option.none(), true])
      assert.deepStrictEqual((yield* client(api.inspect)).holders.length, 1)
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(yield* client(api.inspect), { key: "api", holders: [], waiters: [] })
    }))
})

describe("nested", () => {
  it.effect("withPermits takes permits of its own, and siblings are inside together", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const held = client(Effect.map(api.inspect, ({ holders }) => permitsOf(holders)))
      const gate = yield* Deferred.make<void>()
      let together = 0
      const sibling = api.withPermit(Effect.suspend(() => {
        if (++together === 2) Deferred.doneUnsafe(gate, Effect.void)
        return Effect.andThen(Deferred.await(gate), held)
      }))
      const [one] = yield* client(api.withPermits(2)(Effect.all([sibling, sibling], { concurrency: 2 })))
      assert.deepStrictEqual(one, [2, 1, 1])
    }))

  it.effect("withPermits has permits of its own, so those around it can be given back meanwhile", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const held = Effect.map(api.inspect, ({ holders }) => permitsOf(holders))
      const givingBack = (lease: Lease.Lease) =>
        api.withPermit(Effect.andThen(Permits.Permits.use((service) => service.shrink(lease, 1)), held))
      assert.deepStrictEqual(yield* client(api.withPermitsLease(3, givingBack)), [1, 1])
    }))

  for (
    const [title, inner] of [
      ["withPermits", api.withPermits(Effect.void, 2)],
      ["acquire", Effect.scoped(api.acquire(2))],
      ["withPermits two levels down", api.withPermit(api.withPermit(Effect.void))]
    ] as const
  ) {
    it.effect(`asking for more than the rest fails at once: ${title}`, () =>
      Effect.gen(function*() {
        const { client, store } = yield* setup()
        const error = yield* Effect.flip(client(api.withPermits(3)(inner)))
        assert.deepInclude(error, { _tag: "LockDeadlock", key: "api", reason: "Self", limit: 4 })
        assert.match(
          error.message,
          /^\d of the 4 permits of "api" asked for by .* has \d already .* Ask for all at once/
        )
        assert.deepStrictEqual((yield* store.inspect("api")).waiters, [])
      }))
  }

  it.effect("acquire counts what the fiber, or the scope, has already", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const fiber = Effect.scoped(Effect.andThen(api.acquire(3), api.withPermits(2)(Effect.void)))
      assert.deepInclude(yield* Effect.flip(client(fiber)), { _tag: "LockDeadlock", key: "api" })
      const scope = Effect.scoped(Effect.andThen(
        Effect.flatMap(Effect.forkChild(api.acquire(3)), Fiber.join),
        Effect.flatMap(Effect.forkChild(api.acquire(2)), Fiber.join)
      ))
      assert.deepInclude(yield* Effect.flip(client(scope)), { _tag: "LockDeadlock", key: "api" })
      yield* client(Effect.scoped(Effect.andThen(api.acquire(3), api.withPermit(Effect.void))))
    }))

  it.effect("what a fiber has through acquire and what is around it are counted together", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const inside = Effect.scoped(Effect.andThen(api.acquire(2), api.withPermit(api.withPermits(2)(Effect.void))))
      const between = api.withPermit(Effect.scoped(Effect.andThen(api.acquire(2), api.withPermits(2)(Effect.void))))
      for (const nested of [inside, between]) {
        assert.deepInclude(yield* Effect.flip(client(nested)), { _tag: "LockDeadlock", key: "api", reason: "Self" })
      }
      yield* client(api.withPermit(Effect.scoped(Effect.andThen(api.acquire(2), api.withPermit(Effect.void)))))
    }))

  it.effect("acquire for others makes a fiber wait for itself, though they would give back; for themselves, each waits", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const work = (scope: Scope.Closeable) => Effect.ensuring(Effect.sleep(1000), Scope.close(scope, Exit.void))
      const handingOut = Effect.gen(function*() {
        const scope = yield* Scope.make()
        yield* Scope.provide(api.acquire(2), scope)
        yield* Effect.forkChild(work(scope))
      })
      const error = yield* Effect.flip(client(Effect.all([handingOut, handingOut, handingOut])))
      assert.deepInclude(error, { _tag: "LockDeadlock", permits: 2, held: 4, limit: 4 })
      const worker = Effect.flatMap(
        Scope.make(),
        (scope) => Effect.andThen(Scope.provide(api.acquire(2), scope), work(scope))
      )
      const workers = yield* Effect.forkChild(client(Effect.all([worker, worker, worker], { concurrency: 3 })))
      assert.isTrue(Exit.isSuccess(yield* drive(workers, { step: 500 })))
    }))

  it.effect("asking for more than the rest gives None to who does not wait", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const inner = Effect.all([api.withPermitsIfAvailable(2)(Effect.void), Effect.scoped(api.tryAcquire(2))])
      assert.deepStrictEqual(yield* client(api.withPermits(3)(inner)), [Option.none(), Option.none()])
    }))
})

describe("another limit", () => {
  it.effect("than the one in use is refused, and told", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const lock = yield* makeLock(store)
      const wide = DistributedSemaphore.make("api", { limit: 8 })
      const holder = yield* hold((body) => client(api.withPermit(body)))
      const refused = { _tag: "PermitsRefused", key: "api", actual: 4 } as const
      assert.deepInclude(yield* Effect.flip(other(wide.withPermit(Effect.void))), { ...refused, permits: 1, limit: 8 })
      assert.deepInclude(yield* Effect.flip(other(wide.withPermitsIfAvailable(2)(Effect.void))), refused)
      assert.deepInclude(yield* Effect.flip(other(Effect.scoped(wide.tryAcquire(2)))), refused)
      assert.deepInclude(yield* Effect.flip(other(wide.setLimit(5))), { ...refused, limit: 8 })
      assert.deepInclude(yield* Effect.flip(lock.withLock(Effect.void, "api")), { ...refused, limit: 1 })
      assert.deepInclude(yield* Effect.flip(other(ReadWriteLock.make("api").withRead(Effect.void))), refused)
      yield* holder.end
      yield* Fiber.join(holder.fiber)
      yield* other(wide.withPermits(8)(Effect.void))
    }))

  it.effect("G1: what is nested in a region and counts otherwise is refused, not let in on the region's lease", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      const config = ReadWriteLock.make("api")
      const wide = DistributedSemaphore.make("api", { limit: 8 })
      const lock = Lock.withLock(Effect.void, "api")
      for (
        const [around, inside, actual] of [
          [api.withPermit, lock, 4],
          [api.withPermit, Effect.scoped(Lock.acquire("api")), 4],
          [api.withPermit, config.withRead(Effect.void), 4],
          [api.withPermit, wide.withPermit(Effect.void), 4],
          [config.withRead, lock, 2 ** 20],
          [Lock.withLock("api"), wide.withPermit(Effect.void), 1]
        ] as const
      ) {
        const sent = store.count("attempt")
        const refused: Effect.Effect<unknown, unknown, Permits.Permits | Lock.Lock> = inside
        const error = yield* client(around(Effect.flip(refused)))
        assert.deepInclude(error, { _tag: "PermitsRefused", key: "api", actual })
        assert.strictEqual(store.count("attempt"), sent + 1)
      }
    }))

  it.effect("that grows grants at once; one that shrinks takes nothing away", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const one = yield* hold((body) => client(api.withPermits(2)(body)))
      const two = yield* hold((body) => client(api.withPermits(2)(body)))
      const three = yield* Effect.forkChild(client(api.withPermits(2)(Effect.succeed("in"))))
      yield* until(() => store.count("attempt") === 3)
      yield* other(api.setLimit(2))
      yield* TestClock.adjust("5 minutes")
      assert.strictEqual((yield* client(api.inspect)).limit, 2)
      yield* one.end
      yield* Fiber.join(one.fiber)
      yield* settle
      assert.isUndefined(three.pollUnsafe(), "2 of 2 are still held")
      assert.isUndefined(two.fiber.pollUnsafe())
      yield* other(api.setLimit(6))
      assert.strictEqual(yield* Fiber.join(three), "in")
      yield* two.end
      yield* Fiber.join(two.fiber)
    }))

  it.effect("set while nobody uses the key is the one that counts afterwards", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      yield* client(api.setLimit(1))
      const holder = yield* hold((body) => client(api.withPermit(body)))
      assert.isTrue(Option.isNone(yield* other(api.withPermitsIfAvailable(1)(Effect.void))))
      yield* holder.end
      yield* Fiber.join(holder.fiber)
      yield* TestClock.adjust("29 days")
      const error = yield* Effect.flip(other(api.withPermits(2)(Effect.void)))
      assert.deepInclude(error, { _tag: "PermitsRefused", permits: 2, limit: 4, actual: 1 })
      yield* client(api.setLimit(2 ** 30))
      yield* other(api.withPermits(4)(Effect.void))
    }))

  it.effect("than one can wait for ends the wait: who waits for more than there are is refused", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const holder = yield* hold((body) => client(api.withPermit(body)))
      const large = yield* Effect.forkChild(Effect.flip(other(api.withPermits(4)(Effect.void))))
      yield* until(() => store.count("attempt") === 2)
      yield* client(api.setLimit(2))
      assert.deepInclude(yield* Fiber.join(large), { _tag: "PermitsRefused", permits: 4, limit: 4, actual: 2 })
      yield* holder.end
    }))
})

describe("a limit that is lowered while somebody has permits and asks for more", () => {
  const waitingForHimself = { _tag: "LockDeadlock", key: "api", permits: 1, held: 2, limit: 2 } as const

  it.effect("fails him at once if he would wait for himself, and nobody is kept out behind him", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      for (const inner of [api.withPermit(Effect.void), Effect.scoped(api.acquire(1))]) {
        const asking = Effect.andThen(other(api.setLimit(2)), Effect.flip<unknown, unknown, Permits.Permits>(inner))
        const error = yield* client(api.withPermits(2)(asking))
        assert.deepInclude(error, waitingForHimself)
        assert.match((error as Error).message, /setLimit has lowered the limit from 4$/)
        assert.deepStrictEqual(yield* store.inspect("api"), { key: "api", holders: [], waiters: [] })
        yield* other(api.setLimit(4))
      }
    }))

  it.effect("ends his wait as soon as he would renew, even if the store does not answer at first", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup({ ttl: 3000 })
      const holder = yield* hold((body) => other(api.withPermits(2)(body)))
      const waiting = yield* Effect.forkChild(client(api.withPermits(2)(Effect.flip(api.withPermit(Effect.void)))))
      yield* until(() => store.count("attempt") === 3)
      store.faults.inspect = () => unavailable
      yield* TestClock.adjust(1000)
      yield* other(api.setLimit(2))
      store.faults.inspect = undefined
      yield* TestClock.adjust(999)
      assert.isUndefined(waiting.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.deepInclude(yield* Fiber.join(waiting), waitingForHimself)
      assert.deepStrictEqual((yield* store.inspect("api")).waiters, [])
      yield* holder.end
    }))

  it.effect("lets him wait for others, and counts nothing that he has given back meanwhile", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup({ ttl: 3000 })
      const holder = yield* hold((body) => other(api.withPermits(2)(body)))
      const scope = yield* Scope.make()
      const waiting = yield* Effect.forkChild(client(Effect.scoped(
        Effect.andThen(Scope.provide(api.acquire(2), scope), api.withPermit(Effect.succeed("in")))
      )))
      yield* settle
      yield* other(api.setLimit(3))
      yield* TestClock.adjust(10_000)
      yield* other(api.setLimit(2))
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust(10_000)
      assert.isUndefined(waiting.pollUnsafe())
      yield* holder.end
      assert.strictEqual(yield* Fiber.join(waiting), "in")
    }))

  it.effect("is looked at for nobody who has none", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup({ ttl: 3000 })
      let looks = 0
      store.faults.inspect = (run) => {
        looks++
        return run
      }
      const holder = yield* hold((body) => other(api.withPermits(2)(api.withPermit(body))))
      const waiting = yield* Effect.forkChild(client(api.withPermits(2)(Effect.succeed("in"))))
      yield* TestClock.adjust("1 minute")
      yield* holder.end
      assert.strictEqual(yield* Fiber.join(waiting), "in")
      assert.strictEqual(looks, 0)
    }))
})

describe("what is invalid", () => {
  const invalid = (key: string, limit: number) => DistributedSemaphore.make(key, { limit })
  const shrink = (permits: number) =>
    Permits.Permits.use((service) => service.shrink({ holderId: "anybody" } as Lease.Lease, permits))

  for (
    const [title, use, input] of [
      ["a limit of 0", invalid("api", 0).withPermit(Effect.void), "limit"],
      ["a limit of 2^30 + 1", invalid("api", 2 ** 30 + 1).withPermit(Effect.void), "limit"],
      ["half a limit", Effect.scoped(invalid("api", 1.5).acquire(1)), "limit"],
      ["an empty key", invalid("", 4).withPermit(Effect.void), "key"],
      ["no permits", api.withPermits(0)(Effect.void), "permits"],
      ["more permits than the limit", Effect.scoped(api.tryAcquire(5)), "permits"],
      ["NaN permits", api.withPermitsIfAvailable(NaN)(Effect.void), "permits"],
      ["no ttl", DistributedSemaphore.make("api", { limit: 4, ttl: 0 }).withPermit(Effect.void), "ttl"],
      ["a new limit of 0", api.setLimit(0), "limit"],
      ["a new limit of 2^30 + 1", api.setLimit(2 ** 30 + 1), "limit"],
      ["a new limit for an invalid one", invalid("api", 0).setLimit(1), "limit"],
      ["a new limit for an empty key", invalid("", 4).setLimit(1), "key"],
      ["inspecting an empty key", invalid("", 4).inspect, "key"],
      ["shrinking to NaN", shrink(NaN), "permits"],
      ["shrinking to nothing", shrink(0), "permits"]
    ] as const
  ) {
    it.effect(`is found before anything is sent: ${title}`, () =>
      Effect.gen(function*() {
        const { client, store } = yield* setup()
        const used: Effect.Effect<unknown, unknown> = client(use)
        assert.deepInclude(yield* Effect.flip(used), { _tag: "LockInvalid", input })
        assert.deepStrictEqual(store.trace, [])
      }))
  }
})
