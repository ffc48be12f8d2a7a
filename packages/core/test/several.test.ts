import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Metric, Random, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { type Lease, type LockError, type LockEvent, LockMetrics } from "../src/index.ts"
import { withMetrics } from "./support/observe.ts"
import { make, makeLock, refused, setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { now, settle, until } from "./support/time.ts"

const none = (key: string) => ({ key, holders: [], waiters: [] })

const isFree = Effect.fnUntraced(function*(store: TestStore, keys: ReadonlyArray<string>) {
  for (const key of keys) assert.deepStrictEqual(yield* store.inspect(key), none(key))
})

const asked = ({ requests }: TestStore, from = 0) => requests.slice(from).map(({ key }) => key)

const heldKeys = Effect.fnUntraced(function*(store: TestStore, keys: ReadonlyArray<string>) {
  const states = yield* Effect.forEach(keys, store.inspect)
  return states.filter(({ holders }) => holders.length > 0).map(({ key }) => key).join("")
})

/** Somebody else holds the key until the deferred is done. */
const takenBy = Effect.fnUntraced(function*(store: TestStore, key: string) {
  const other = yield* makeLock(store)
  const gate = yield* Deferred.make<void>()
  const fiber = yield* Effect.forkChild(other.withLock(Deferred.await(gate), key))
  yield* until(() => store.requests.some((request) => request.key === key))
  return { fiber, free: Effect.andThen(Deferred.succeed(gate, undefined), Fiber.join(fiber)) }
})

describe("several keys that nobody has", () => {
  it.effect("are asked for at once and released at once: one round trip each", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const slow = <A, E>(run: Effect.Effect<A, E>) => Effect.delay(run, 10)
      store.faults.attempt = store.faults.release = slow
      const fiber = yield* Effect.forkChild(lock.withLocks(now, ["a", "b", "c"]))
      yield* TestClock.adjust(20)
      assert.strictEqual(yield* Fiber.join(fiber), 10)
      assert.strictEqual(yield* now, 20)
      const three = (event: string) => Array.from({ length: 3 }, () => event)
      assert.deepStrictEqual(store.trace, [
        ...three("attempt sent"),
        ...three("attempt Granted"),
        ...three("release sent"),
        ...three("release Done")
      ])
    }))

  it.effect("are each asked for once, in one order, however they are given", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* lock.withLocks(Effect.void, ["b", "é", "a", "B", "b", "a:2", "a:10"])
      const sorted = ["B", "a", "a:10", "a:2", "b", "é"]
      assert.deepStrictEqual(asked(store), sorted)
      const leases = yield* Effect.scoped(lock.acquireAll(["b", "a", "b"]))
      assert.deepStrictEqual(asked(store, sorted.length), ["a", "b"])
      assert.deepStrictEqual(leases.map(({ key }) => key), ["b", "a", "b"])
      assert.strictEqual(leases[0], leases[2])
    }))

  it.effect("are held for the work, whose own exit is returned", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const held = heldKeys(store, ["a", "b"])
      assert.strictEqual(yield* lock.withLocks(held, ["a", "b"]), "ab")
      assert.strictEqual(yield* Effect.flip(lock.withLocks(Effect.fail("no"), ["a", "b"])), "no")
      assert.isTrue(Exit.hasDies(yield* Effect.exit(lock.withLocks(Effect.die("bug"), ["a", "b"]))))
      const scope = yield* Scope.make()
      yield* Scope.provide(lock.acquireAll(["a", "b"]), scope)
      assert.strictEqual(yield* held, "ab")
      yield* Scope.close(scope, Exit.void)
      yield* isFree(store, ["a", "b"])
    }))
})

describe("several keys of which one is taken", () => {
  it.effect("keep what comes before it, give back what comes behind it, and wait for it alone", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const b = yield* takenBy(store, "b")
      const fiber = yield* Effect.forkChild(lock.withLocks(heldKeys(store, ["a", "b", "c"]), ["c", "b", "a"]))
      yield* settle
      assert.strictEqual(yield* heldKeys(store, ["a", "c"]), "a")
      assert.strictEqual((yield* store.inspect("b")).waiters.length, 1)
      assert.deepStrictEqual(asked(store, 1), ["a", "b", "c", "b"])
      yield* b.free
      assert.strictEqual(yield* Fiber.join(fiber), "abc")
      assert.deepStrictEqual(asked(store, 1), ["a", "b", "c", "b", "c"])
      yield* isFree(store, ["a", "b", "c"])
    }))

  it.effect("G8: two callers with the keys the other way round both get in", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const results = yield* Effect.forEach(
        Array.from({ length: 50 }, (_, i) => i),
        (i) => (i % 3 === 0 ? other : lock).withLocks(Effect.as(Effect.yieldNow, i), i % 2 ? ["a", "b"] : ["b", "a"]),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(results, Array.from({ length: 50 }, (_, i) => i))
      yield* isFree(store, ["a", "b"])
    }))

  it.effect("fail when waitTimeout is over, which bounds the whole, and say which key was in the way", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const a = yield* takenBy(store, "a")
      yield* takenBy(store, "b")
      const fiber = yield* Effect.forkChild(
        Effect.flip(lock.withLocks(Effect.void, ["a", "b", "c"], { waitTimeout: 1000 }))
      )
      yield* TestClock.adjust(600)
      yield* a.free
      yield* TestClock.adjust(399)
      assert.strictEqual(yield* heldKeys(store, ["a", "c"]), "a")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      const error = (yield* Fiber.join(fiber)) as LockError.LockTimeout
      assert.deepInclude(error, { _tag: "LockTimeout", key: "b", waitTimeout: 1000, position: 0, queueLength: 1 })
      assert.strictEqual(error.holders[0]?.heldFor, 1000)
      yield* isFree(store, ["a", "c"])
    }))

  it.effect("fail at once where nothing is waited for", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* takenBy(store, "b")
      const error = yield* Effect.flip(lock.withLocks(Effect.void, ["a", "b", "c"], { waitTimeout: 0 }))
      assert.deepInclude(error, { _tag: "LockTimeout", key: "b", waitTimeout: 0 })
      yield* isFree(store, ["a", "c"])
    }))

  it.effect("fail where too many wait for it already", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      yield* takenBy(store, "b")
      const error = yield* Effect.flip(lock.withLocks(Effect.void, ["a", "b", "c"], { maxWaiters: 0 }))
      assert.deepInclude(error, { _tag: "LockQueueFull", key: "b", maxWaiters: 0 })
      yield* isFree(store, ["a", "c"])
    }))

  it.effect("end the wait at once when a lease that was kept is lost", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const b = yield* takenBy(store, "b")
      const other = yield* makeLock(store)
      for (const asking of [lock.withLocks(Effect.void, ["a", "b"]), Effect.scoped(lock.acquireAll(["a", "b"]))]) {
        const fiber = yield* Effect.forkChild(Effect.flip<unknown, LockError.LockError, never>(asking))
        yield* settle
        yield* Effect.scoped(other.takeover("a"))
        assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", key: "a", reason: "TakenOver" })
        assert.deepStrictEqual((yield* store.inspect("b")).waiters, [])
      }
      yield* b.free
      yield* isFree(store, ["a", "b"])
    }))

  it.effect("keep nobody out for minHold with what they give back, nor when they fail: they did no work", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const b = yield* takenBy(store, "b")
      const options = { minHold: "1 minute", waitTimeout: 1000 } as const
      const failing = yield* Effect.forkChild(Effect.flip(lock.withLocks(Effect.void, ["a", "b", "c"], options)))
      yield* settle
      yield* isFree(store, ["c"])
      yield* TestClock.adjust(1000)
      yield* Fiber.join(failing)
      yield* isFree(store, ["a"])
      const fiber = yield* Effect.forkChild(lock.withLocks(Effect.void, ["a", "b", "c"], options))
      yield* settle
      yield* b.free
      yield* Fiber.join(fiber)
      yield* TestClock.adjust("59 seconds")
      assert.strictEqual(yield* heldKeys(store, ["a", "b", "c"]), "abc")
      yield* TestClock.adjust("1 second")
      yield* isFree(store, ["a", "b", "c"])
    }))

  it.effect("need no progress before the work begins, and then all do", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "1 minute" })
      const b = yield* takenBy(store, "b")
      const fiber = yield* Effect.forkChild(lock.acquireAll(["a", "b"], { progressTimeout: 300 }))
      yield* TestClock.adjust(5000)
      assert.isUndefined(fiber.pollUnsafe())
      yield* b.free
      const [first, second] = yield* Fiber.join(fiber)
      yield* TestClock.adjust(200)
      yield* first!.heartbeat
      yield* TestClock.adjust(200)
      assert.isTrue(yield* first!.isValid)
      assert.deepInclude(yield* Effect.flip(second!.check), { _tag: "LockLost", key: "b", reason: "Stalled" })
    }))

  it.effect("wait where the store grants nothing for a while, which counts as taken", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup()
      let isWithheld = true
      const gate = yield* Deferred.make<void>()
      store.faults.attempt = (run) => {
        if (!isWithheld) return run
        return store.requests.at(-1)!.wait ? Effect.andThen(Deferred.await(gate), run) : refused
      }
      for (const asking of [lock.withLocks(Effect.void, ["a", "b"]), Effect.scoped(lock.acquireAll(["a", "b"]))]) {
        isWithheld = true
        const fiber = yield* Effect.forkChild(Effect.asVoid<unknown, LockError.LockError, never>(asking))
        yield* settle
        isWithheld = false
        yield* Deferred.succeed(gate, undefined)
        yield* Fiber.join(fiber)
      }
      const count = Metric.withAttributes(LockMetrics.acquisitions, { outcome: "LockStoreError" })
      assert.strictEqual((yield* Metric.value(count)).count, 0)
      // Who does not wait is told.
      isWithheld = true
      const error = yield* Effect.flip(lock.withLocks(Effect.void, ["a", "b"], { waitTimeout: 0 }))
      assert.deepInclude(error, { _tag: "LockStoreError", reason: "Refused" })
      yield* isFree(store, ["a", "b"])
    })))

  it.effect("are kept for minHold from when the work begins", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "2 minutes" })
      const b = yield* takenBy(store, "b")
      const fiber = yield* Effect.forkChild(lock.withLocks(Effect.void, ["a", "b"], { minHold: "1 minute" }))
      yield* TestClock.adjust("40 seconds")
      yield* b.free
      yield* Fiber.join(fiber)
      yield* TestClock.adjust("59 seconds")
      assert.strictEqual(yield* heldKeys(store, ["a", "b"]), "ab")
      yield* TestClock.adjust("1 second")
      yield* isFree(store, ["a", "b"])
    }))

  it.effect("do not count as acquisitions that failed, nor tell of any", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const events: Array<string> = []
      yield* Effect.forkChild(
        Stream.runForEach(lock.events, (event: LockEvent.LockEvent) =>
          Effect.sync(() => events.push(`${event.key} ${event._tag}`))),
        { startImmediately: true }
      )
      const b = yield* takenBy(store, "b")
      const fiber = yield* Effect.forkChild(lock.withLocks(Effect.void, ["a", "b"]))
      yield* settle
      yield* b.free
      yield* Fiber.join(fiber)
      yield* settle
      const count = (outcome: string) =>
        Effect.map(Metric.value(Metric.withAttributes(LockMetrics.acquisitions, { outcome })), ({ count }) =>
          count)
      assert.strictEqual(yield* count("LockTimeout"), 0)
      assert.strictEqual(yield* count("taken"), 0)
      assert.strictEqual(yield* count("granted"), 3)
      assert.strictEqual((yield* Metric.value(LockMetrics.contended)).count, 1)
      assert.deepStrictEqual(events, ["a Granted", "b Queued", "b Granted", "b Released", "a Released"])
    })))
})

describe("several keys, all or nothing", () => {
  for (const failing of ["a", "b", "c"]) {
    it.effect(`when the store fails for ${failing}: nothing is kept`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        store.faults.attempt = (run) => store.requests.at(-1)?.key === failing ? Effect.andThen(run, unavailable) : run
        const ran = Effect.die("must not run")
        assert.strictEqual((yield* Effect.flip(lock.withLocks(ran, ["a", "b", "c"])))._tag, "LockStoreError")
        const scope = yield* Scope.make()
        const error = yield* Effect.flip(Scope.provide(lock.acquireAll(["a", "b", "c"]), scope))
        assert.strictEqual(error._tag, "LockStoreError")
        yield* until(() => store.count("abandon") === 2)
        yield* settle
        yield* isFree(store, ["a", "b", "c"])
      }))
  }

  for (const lost of ["a", "b", "c"]) {
    it.effect(`G4: losing ${lost} ends the work and releases the others`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const other = yield* makeLock(store)
        const fiber = yield* Effect.forkChild(Effect.flip(lock.withLocks(Effect.never, ["a", "b", "c"])))
        yield* settle
        yield* Effect.scoped(other.takeover(lost))
        assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", key: lost, reason: "TakenOver" })
        yield* isFree(store, ["a", "b", "c"])
      }))
  }

  it.effect("G4: when one is lost before all were got: nothing is kept, and nobody is given what is lost", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      store.faults.attempt = (run) => store.requests.at(-1)?.key === "b" ? Effect.delay(run, 10) : run
      const ran = Effect.die("must not run")
      for (const asking of [lock.withLocks(ran, ["a", "b"]), Effect.scoped(lock.acquireAll(["a", "b"]))]) {
        const fiber = yield* Effect.forkChild(Effect.flip<unknown, LockError.LockError, never>(asking))
        yield* settle
        assert.strictEqual(yield* heldKeys(store, ["a", "b"]), "a")
        yield* Effect.scoped(other.takeover("a"))
        yield* TestClock.adjust(10)
        assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", key: "a", reason: "TakenOver" })
        yield* isFree(store, ["a", "b"])
      }
    }))

  it.effect("without any key, or with an invalid one among them, nothing is sent", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const cases = [{ keys: [], input: "keys", value: "[]" }, { keys: ["a", ""], input: "key", value: "\"\"" }]
      for (const { input, keys, value } of cases) {
        const all = [lock.withLocks(Effect.die("must not run"), keys), Effect.scoped(lock.acquireAll(keys))]
        for (const asking of all) {
          const error = yield* Effect.flip<unknown, LockError.LockError, never>(asking)
          assert.deepInclude(error, { _tag: "LockInvalid", input, value })
        }
      }
      const error = yield* Effect.flip(lock.withLocks(Effect.void, ["a", "b"], { ttl: 0 }))
      assert.deepInclude(error, { _tag: "LockInvalid", input: "ttl" })
      assert.deepStrictEqual(store.trace, [])
    }))

  it.effect("asked for by who has one of them in an open scope: LockDeadlock, and that one is kept", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const leases = yield* lock.acquireAll(["a", "b"])
      const again = [lock.acquireAll(["b", "c"]), lock.acquireAll(["a", "b"]), lock.withLocks(Effect.void, ["b", "c"])]
      for (const asking of again) {
        const error = yield* Effect.flip<unknown, LockError.LockError, Scope.Scope>(asking)
        assert.deepInclude(error, { _tag: "LockDeadlock", reason: "Self" })
      }
      assert.deepStrictEqual(yield* Effect.forEach(leases, ({ isValid }) => isValid), [true, true])
      yield* isFree(store, ["c"])
    }))

  it.effect("in a layer that closes meanwhile: LockClosed, and nothing is kept", () =>
    Effect.gen(function*() {
      const store = yield* make
      const layer = yield* Scope.make()
      const lock = yield* Scope.provide(makeLock(store), layer)
      yield* takenBy(store, "b")
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLocks(Effect.void, ["a", "b"])))
      yield* settle
      yield* Scope.close(layer, Exit.void)
      assert.include(["LockClosed", "LockLost"], (yield* Fiber.join(fiber))._tag)
      yield* isFree(store, ["a"])
      assert.strictEqual((yield* store.inspect("b")).waiters.length, 0)
    }))
})

describe("several keys inside withLock of one of them", () => {
  it.effect("share its lease, and ask for the others only", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const inside = lock.acquireAll(["a", "b", "c"]).pipe(
        Effect.map((leases: ReadonlyArray<Lease.Lease>) => leases[1]!.token),
        Effect.scoped
      )
      const [token, held] = yield* lock.withLock(
        Effect.all([inside, lock.withLocks(heldKeys(store, ["a", "b", "c"]), ["a", "b", "c"])]),
        "b"
      )
      assert.deepStrictEqual(asked(store), ["b", "a", "c", "a", "c"])
      assert.strictEqual(held, "abc")
      assert.strictEqual(token, store.releases.at(-1)?.lease.token)
      yield* isFree(store, ["a", "b", "c"])
    }))

  it.effect("G6: are sent off when the region whose turn they have ends, which does not wait for the other key", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* Effect.forkChild(other.withLock(Effect.never, "b"))
      yield* settle
      const outer = yield* Effect.forkChild(lock.withLock(
        Effect.gen(function*() {
          const nested = yield* Effect.forkDetach(Effect.flip(lock.withLocks(Effect.void, ["a", "b"])))
          yield* settle
          assert.strictEqual((yield* store.inspect("b")).waiters.length, 1)
          return nested
        }),
        "a"
      ))
      // Not for the other key.
      yield* until(() => outer.pollUnsafe() !== undefined)
      const error = yield* Fiber.join(yield* Fiber.join(outer))
      assert.deepInclude(error, { _tag: "LockLost", key: "a", reason: "Released" })
      assert.deepStrictEqual((yield* store.inspect("b")).waiters, [])
    }))

  it.effect("G1: siblings take turns, and what comes behind a turn that is taken is given back", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const inside: Array<string> = []
      const most = new Map<string, number>()
      const use = (keys: ReadonlyArray<string>) =>
        Effect.gen(function*() {
          inside.push(...keys)
          for (const key of keys) {
            most.set(key, Math.max(most.get(key) ?? 0, inside.filter((other) => other === key).length))
          }
          yield* Effect.yieldNow
          for (const key of keys) inside.splice(inside.indexOf(key), 1)
        })
      const sets = Array.from({ length: 60 }, (_, i) => [["a", "b"], ["b", "c"], ["a", "b", "c"], ["c", "a"]][i % 4]!)
      yield* lock.withLocks(
        Effect.forEach(sets, (keys) => lock.withLocks(use(keys), keys), { concurrency: "unbounded" }),
        ["b", "c"]
      )
      assert.deepStrictEqual([most.get("a"), most.get("b"), most.get("c")], [1, 1, 1])
      yield* isFree(store, ["a", "b", "c"])
    }))
})

const contenders = 1200
const ttl = 60

/** Thousands of fibers that want random sets of a few keys, nested and not, while much goes wrong. */
const soak = Effect.gen(function*() {
  const store = yield* make
  const clients = yield* Effect.forEach(
    [1, 2, 3],
    () => makeLock({ ...store, service: { ...store.service, driftFactor: 0.05 } }, { ttl, releaseTimeout: 200 })
  )
  const keys = ["a", "b", "c", "d", "e", "f"]
  const users = new Map<string, number>()
  const ends: Record<string, number> = {}
  store.faults.attempt = (run, index) => index % 97 === 0 ? Effect.andThen(run, unavailable) : run
  store.faults.renew = (run) => store.renewals.at(-1)!.lease.token % 5 === 0 ? unavailable : run
  const contender = Effect.fnUntraced(function*(name: number) {
    const lock = yield* Random.choice(clients)
    const size = yield* Random.nextIntBetween(1, 5)
    const wanted = (yield* Random.shuffle(keys)).slice(0, size)
    const duration = (yield* Random.next) < 0.02 ? 100 : yield* Random.nextIntBetween(0, 3)
    const enter = Effect.sync(() => {
      for (const key of wanted) {
        assert.isUndefined(users.get(key), `${key}: ${name} came in while ${users.get(key)} was inside`)
        users.set(key, name)
      }
    })
    const leave = Effect.sync(() => {
      for (const key of wanted) users.delete(key)
    })
    const use = Effect.acquireUseRelease(enter, () => Effect.sleep(duration), () => leave)
    const options = (yield* Random.next) < 0.3 ? { waitTimeout: yield* Random.nextIntBetween(0, 3000) } : {}
    const way = yield* Random.nextIntBetween(0, 3)
    const asking: Effect.Effect<unknown, { readonly _tag: string }> = way === 0
      ? lock.withLocks(use, wanted, options)
      : way === 1
      // The keys of a call in a call are among those of the one around it.
      ? lock.withLocks(lock.withLocks(use, wanted.slice(0, 2), options), wanted, options)
      : Effect.scoped(
        Effect.flatMap(
          lock.acquireAll(wanted, options),
          (leases) => leases.reduce<Effect.Effect<void, LockError.LockLost>>((use, lease) => lease.protect(use), use)
        )
      )
    yield* Effect.sleep(yield* Random.nextIntBetween(0, 300))
    const fiber = yield* Effect.forkChild(asking)
    if ((yield* Random.next) < 0.2) {
      yield* Effect.sleep(yield* Random.nextIntBetween(0, 1500))
      yield* Fiber.interrupt(fiber)
    }
    const exit = yield* Fiber.await(fiber)
    assert.isFalse(Exit.hasDies(exit), String(exit))
    const failure = Exit.findErrorOption(exit)
    const end = Exit.isSuccess(exit) ? "success" : failure._tag === "Some" ? failure.value._tag : "interrupted"
    ends[end] = (ends[end] ?? 0) + 1
  })
  const names = Array.from({ length: contenders }, (_, i) => i)
  const all = yield* Effect.forkChild(Effect.forEach(names, contender, { concurrency: "unbounded", discard: true }))
  for (let time = 0; all.pollUnsafe() === undefined; time += 50) {
    assert.isBelow(time, 600_000, "no progress")
    yield* TestClock.adjust(50)
  }
  yield* Fiber.join(all)
  store.faults.attempt = store.faults.renew = undefined
  yield* TestClock.adjust(1000)
  return { store, keys, ends, lock: clients[0]! }
})

describe("thousands of contenders over random sets of keys", () => {
  for (const seed of ["one", "two"]) {
    it.effect(`G1, G8: all come to an end, no key has two users, nothing is left: seed ${seed}`, () =>
      withMetrics(Effect.gen(function*() {
        const { ends, keys, lock, store } = yield* Random.withSeed(soak, seed)
        assert.strictEqual(Object.values(ends).reduce((sum, count) => sum + count, 0), contenders)
        for (const end of ["success", "interrupted", "LockTimeout", "LockLost", "LockStoreError"]) {
          assert.isAbove(ends[end] ?? 0, 10, end)
        }
        yield* isFree(store, keys)
        assert.strictEqual(yield* lock.withLocks(Effect.succeed("in"), keys, { waitTimeout: 0 }), "in")
        assert.strictEqual((yield* Metric.value(LockMetrics.waiting)).value, 0)
        assert.strictEqual((yield* Metric.value(LockMetrics.held)).value, 0)
      })))
  }
})
