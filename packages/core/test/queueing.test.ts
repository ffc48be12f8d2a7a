import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Metric, Scope } from "effect"
import { TestClock } from "effect/testing"
import { LockError, LockMetrics } from "../src/index.ts"
import { withMetrics } from "./support/observe.ts"
import { makeLock, setup } from "./support/TestStore.ts"
import { now, settle } from "./support/time.ts"

/** The key is held by a scope; those who get in are written down in their order. */
const start = Effect.gen(function*() {
  const { lock, store } = yield* setup({ ttl: "1 minute" })
  const other = yield* makeLock(store, { ttl: "1 minute" })
  const scope = yield* Effect.flatMap(Effect.scope, Scope.fork)
  yield* Scope.provide(other.acquire("k", { holder: { job: "first" } }), scope)
  const order: Array<string> = []
  const enter = (name: string, priority?: number, duration = 0) =>
    Effect.tap(
      Effect.forkChild(
        lock.withLock(Effect.andThen(Effect.sync(() => order.push(name)), Effect.sleep(duration)), "k", { priority })
      ),
      () => settle
    )
  return { enter, lock, order, other, store, release: Scope.close(scope, Exit.void) }
})

describe("priority", () => {
  it.effect("G10: is a head start in the queue; equals keep their order", () =>
    Effect.gen(function*() {
      const { enter, order, release } = yield* start
      const fibers = yield* Effect.all([
        enter("normal"),
        enter("low", -1),
        enter("high", 1),
        enter("higher", 2),
        enter("normal too"),
        enter("high too", 1)
      ])
      yield* release
      yield* Fiber.joinAll(fibers)
      assert.deepStrictEqual(order, ["higher", "high", "high too", "normal", "normal too", "low"])
    }))

  it.effect("is worth ten seconds a step: who has waited longer comes first all the same", () =>
    Effect.gen(function*() {
      const { enter, order, release } = yield* start
      const low = yield* enter("low")
      yield* TestClock.adjust(9999)
      const sooner = yield* enter("high, 9,999 ms later", 1)
      yield* TestClock.adjust(1)
      const level = yield* enter("high, ten seconds later", 1)
      const higher = yield* enter("higher, ten seconds later", 2)
      yield* release
      yield* Fiber.joinAll([low, sooner, level, higher])
      assert.deepStrictEqual(order, [
        "higher, ten seconds later",
        "high, 9,999 ms later",
        "low",
        "high, ten seconds later"
      ])
    }))

  it.effect("does not drive out who holds the key already", () =>
    Effect.gen(function*() {
      const { enter, order, store } = yield* start
      yield* enter("high", 1000)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(order, [])
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.metadata["job"], "first")
    }))

  it.effect("starves nobody under a constant load of a higher one", () =>
    Effect.gen(function*() {
      const { enter, order, release } = yield* start
      yield* enter("low")
      const load = yield* Effect.forkChild(
        Effect.forever(Effect.andThen(enter("high", 1, 1000), Effect.sleep(500)))
      )
      yield* settle
      yield* release
      let servedAt = Infinity
      for (let time = 0; servedAt === Infinity && time < 60_000; time += 500) {
        yield* TestClock.adjust(500)
        yield* settle
        if (order.includes("low")) servedAt = yield* now
      }
      yield* Fiber.interrupt(load)
      // Two come every second and one is served: those of the first ten seconds come before it, and nobody else.
      assert.isAtLeast(servedAt, 18_000)
      assert.isAtMost(servedAt, 22_000)
    }))
})

describe("maxWaiters", () => {
  it.effect("G12: fails at once when so many wait already, and says who holds the key", () =>
    withMetrics(Effect.gen(function*() {
      const { enter, lock, release, store } = yield* start
      const waiting = [yield* enter("one"), yield* enter("two")]
      const error = yield* Effect.flip(lock.withLock(Effect.die("must not run"), "k", { maxWaiters: 2 }))
      if (error._tag !== "LockQueueFull") return assert.fail(error._tag)
      assert.deepInclude(error, { key: "k", permits: 1, maxWaiters: 2, queueLength: 2 })
      assert.deepStrictEqual(error.holders[0]?.metadata, { job: "first" })
      assert.strictEqual(
        error.message,
        `Lock "k" not waited for: 2 wait already, maxWaiters is 2: held by ${
          error.holders[0]?.holderId
        } (job first), ` +
          `token ${error.holders[0]?.token} for 0 ms, 60000 ms of its lease left`
      )
      assert.strictEqual((yield* store.inspect("k")).waiters.length, 2)
      const refused = Metric.withAttributes(LockMetrics.acquisitions, { outcome: "LockQueueFull" })
      assert.strictEqual((yield* Metric.value(refused)).count, 1)
      yield* release
      yield* Fiber.joinAll(waiting)
    })))

  it.effect("lets as many wait, whatever the others' limits are, and who gets in at once", () =>
    Effect.gen(function*() {
      const { enter, lock, order, release } = yield* start
      const asking = (name: string, maxWaiters: number) =>
        Effect.tap(
          Effect.forkChild(lock.withLock(Effect.sync(() => order.push(name)), "k", { maxWaiters })),
          () => settle
        )
      const fibers = [yield* enter("any"), yield* asking("second", 2), yield* asking("third", Infinity)]
      assert.strictEqual((yield* Effect.flip(Fiber.join(yield* asking("none", 3))))._tag, "LockQueueFull")
      yield* release
      yield* Fiber.joinAll(fibers)
      yield* Fiber.join(yield* asking("free", 0))
      assert.deepStrictEqual(order, ["any", "second", "third", "free"])
    }))

  it.effect("counts places, not attempts: who is sent away leaves none, who leaves makes room", () =>
    Effect.gen(function*() {
      const { enter, lock, release } = yield* start
      const asking = lock.withLock(Effect.succeed("in"), "k", { maxWaiters: 1 })
      const waiting = yield* enter("one")
      for (let i = 0; i < 3; i++) assert.strictEqual((yield* Effect.flip(asking))._tag, "LockQueueFull")
      yield* Fiber.interrupt(waiting)
      const next = yield* Effect.forkChild(asking)
      yield* settle
      yield* release
      assert.strictEqual(yield* Fiber.join(next), "in")
    }))

  it.effect("is nothing to who does not wait", () =>
    Effect.gen(function*() {
      const { lock, order } = yield* start
      yield* lock.withLockIfAvailable(Effect.sync(() => order.push("in")), "k", { maxWaiters: 0 })
      assert.deepStrictEqual(order, [])
      const error = yield* Effect.flip(lock.withLock(Effect.void, "k", { maxWaiters: 0, waitTimeout: 0 }))
      assert.strictEqual(error._tag, "LockTimeout")
    }))
})

describe("a key that is in use with more permits", () => {
  it.effect("is refused, and the error says which limit it has", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const request = { key: "k", holderId: "h", ttl: 1000, permits: 2, limit: 5, wait: false }
      yield* store.service.attempt({ ...request, priority: 0, maxWaiters: 0, floor: 0, metadata: {} })
      for (
        const asking of [
          lock.withLock(Effect.void, "k"),
          lock.withLockIfAvailable(Effect.void, "k"),
          Effect.scoped(lock.acquire("k")),
          lock.withLocks(Effect.void, ["a", "k"])
        ]
      ) {
        const error = yield* Effect.flip<unknown, LockError.LockError, never>(asking)
        if (error._tag !== "PermitsRefused") return assert.fail(error._tag)
        assert.deepInclude(error, { key: "k", permits: 1, limit: 1, actual: 5 })
        assert.strictEqual(
          error.message,
          "\"k\" has 5 permits now: 1 with a limit of 1 cannot be had. " +
            "Say the limit that all other callers of the key say; setLimit changes how many there are, not what they say"
        )
      }
      assert.deepStrictEqual(yield* store.inspect("a"), { key: "a", holders: [], waiters: [] })
      assert.strictEqual((yield* store.inspect("k")).holders.length, 1)
    }))
})

describe("errors say what is in the way", () => {
  it("LockDeadlock: held or asked for by oneself, or in the wrong order", () => {
    type About = Omit<ConstructorParameters<typeof LockError.LockDeadlock>[0], "key" | "token" | "reason">
    const text = (token: number, reason: "Self" | "Order", about?: About) =>
      new LockError.LockDeadlock({ key: "k", token, reason, ...about }).message
    const one = { permits: 1, held: 1, limit: 1, detail: "Nest …" }
    const by = "by this fiber or scope; waiting would never end"
    assert.strictEqual(text(7, "Self", one), `Lock "k" is already held (token 7) ${by}. Nest …`)
    assert.strictEqual(text(0, "Self"), `Lock "k" is already asked for ${by}`)
    assert.strictEqual(
      text(7, "Self", { permits: 2, held: 3, limit: 4, detail: "Ask …" }),
      "2 of the 4 permits of \"k\" asked for by a fiber or scope that has 3 already (token 7); " +
        "waiting would never end. Ask …"
    )
    assert.strictEqual(text(0, "Order", { detail: "while …" }), "Lock \"k\" asked for in the wrong order: while …")
  })

  it("PermitsRefused: of more permits than there are, or with a limit that nobody else says", () => {
    const text = (permits: number) =>
      new LockError.PermitsRefused({ key: "k", permits, limit: 4, actual: 2 }).message.split("cannot be had. ")[1]
    assert.strictEqual(
      text(3),
      "Ask for at most 2, or raise the limit with setLimit; if others say another limit, say theirs"
    )
    assert.match(text(2)!, /^Say the limit that all other callers of the key say/)
  })

  it("LockQueueFull and LockTimeout: of permits, and without a holder that is known", () => {
    const about = { key: "k", permits: 3, limit: 5, holders: [], queueLength: 4 }
    assert.strictEqual(
      new LockError.LockQueueFull({ ...about, maxWaiters: 4 }).message,
      "3 permits of \"k\" not waited for: 4 wait already, maxWaiters is 4: no holder known"
    )
    assert.strictEqual(
      new LockError.LockTimeout({ ...about, waitTimeout: 5, position: 2 }).message,
      "3 permits of \"k\" not granted within waitTimeout of 5 ms: no holder known, position 2 of 4 in the queue"
    )
    assert.include(new LockError.LockQueueFull({ ...about, limit: 3, maxWaiters: 4 }).message, "All permits of \"k\"")
  })
})
