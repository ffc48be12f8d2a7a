import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import { LockStore } from "../src/index.ts"
import { now, settle } from "./support/time.ts"

const make = Effect.map(
  Layer.build(Layer.fresh(LockStore.layerMemory)),
  (context) => {
    const store = Context.get(context, LockStore.PermitStore)
    const attempt = (holderId: string, options?: Partial<LockStore.Request>) =>
      store.attempt({
        key: "k",
        holderId,
        ttl: 1000,
        permits: 1,
        limit: 1,
        wait: true,
        priority: 0,
        maxWaiters: Infinity,
        floor: 0,
        metadata: {},
        ...options
      })
    return {
      store,
      attempt,
      /** A grant that comes at once. */
      grant: (holderId: string, options?: Partial<LockStore.Request>) =>
        Effect.map(attempt(holderId, options), (answer) => {
          if (answer._tag !== "Granted") return assert.fail(`not granted: ${answer._tag}`)
          return { key: options?.key ?? "k", holderId, ...answer.grant }
        }),
      /** A place in the queue, and the fiber of who waits there. */
      queue: (holderId: string, options?: Partial<LockStore.Request>) =>
        Effect.flatMap(attempt(holderId, options), (answer) => {
          if (answer._tag !== "Queued") return assert.fail(`not queued: ${answer._tag}`)
          const granted = Effect.flatMap(answer.signal, (signal) =>
            signal._tag === "Granted"
              ? Effect.map(now, (time) => ({ time, key: "k", holderId, ...signal.grant }))
              : assert.fail("told to look again"))
          return Effect.map(
            Effect.forkChild(granted, { startImmediately: true }),
            (fiber) => ({ fiber, standing: answer.standing, signal: answer.signal })
          )
        }),
      holders: Effect.map(store.inspect("k"), ({ holders }) => holders.map(({ holderId }) => holderId)),
      waiters: Effect.map(store.inspect("k"), ({ waiters }) => waiters.map(({ holderId }) => holderId))
    }
  }
)

describe("attempt", () => {
  it.effect("grants a free key for the ttl, and tells when it was asked", () =>
    Effect.gen(function*() {
      const { grant, holders } = yield* make
      yield* TestClock.adjust(500)
      const granted = yield* grant("a")
      assert.deepInclude(granted, { ttl: 1000, sentAt: { monotonic: 500, wall: 500 } })
      assert.deepStrictEqual(yield* holders, ["a"])
      yield* TestClock.adjust(999)
      assert.deepStrictEqual(yield* holders, ["a"])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* holders, [])
    }))

  it.effect("asked again by the holder gives the same grant, and a whole ttl", () =>
    Effect.gen(function*() {
      const { grant, store } = yield* make
      const first = yield* grant("a")
      yield* TestClock.adjust(400)
      const second = yield* grant("a")
      assert.strictEqual(second.token, first.token)
      assert.strictEqual(second.sentAt.monotonic, 400)
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.timeLeft, 1000)
      yield* grant("a", { ttl: 10 })
      assert.strictEqual((yield* store.inspect("k")).holders[0]?.timeLeft, 1000)
    }))

  it.effect("asked again by a waiter keeps the place", () =>
    Effect.gen(function*() {
      const { attempt, grant, queue, waiters } = yield* make
      yield* grant("a")
      yield* queue("b")
      yield* queue("c")
      const again = yield* attempt("b")
      assert.deepInclude(again, { _tag: "Queued" })
      if (again._tag === "Queued") assert.deepInclude(again.standing, { position: 0, queueLength: 2 })
      assert.deepStrictEqual(yield* waiters, ["b", "c"])
    }))

  it.effect("refuses who does not wait, and says who is in the way", () =>
    Effect.gen(function*() {
      const { attempt, grant, waiters } = yield* make
      const { token } = yield* grant("a", { metadata: { job: "x" } })
      yield* TestClock.adjust(100)
      const answer = yield* attempt("b", { wait: false })
      assert.deepStrictEqual(answer, {
        _tag: "Refused",
        standing: {
          holders: [{ holderId: "a", token, permits: 1, heldFor: 100, timeLeft: 900, metadata: { job: "x" } }],
          position: -1,
          queueLength: 0
        }
      })
      assert.deepStrictEqual(yield* waiters, [])
    }))

  it.effect("G10: nobody passes the queue, even if he fits", () =>
    Effect.gen(function*() {
      const { attempt, grant, holders, queue, store, waiters } = yield* make
      const first = yield* grant("a", { limit: 4, permits: 2 })
      yield* queue("large", { limit: 4, permits: 3 })
      assert.strictEqual((yield* attempt("small", { limit: 4, permits: 1, wait: false }))._tag, "Refused")
      yield* queue("b", { limit: 4, permits: 1 })
      yield* queue("c", { limit: 4, permits: 1 })
      assert.deepStrictEqual(yield* waiters, ["large", "b", "c"])
      yield* store.release(first, 0)
      assert.deepStrictEqual(yield* holders, ["large", "b"])
      assert.deepStrictEqual(yield* waiters, ["c"])
    }))

  it.effect("refuses another limit than the one in use, for as long as the key is in use", () =>
    Effect.gen(function*() {
      const { attempt, grant, store } = yield* make
      const lease = yield* grant("a", { limit: 2 })
      assert.deepEqual(yield* attempt("b", { limit: 3 }), { _tag: "OtherLimit", limit: 2 })
      yield* store.release(lease, 0)
      assert.strictEqual((yield* attempt("b", { limit: 3 }))._tag, "Granted")
    }))
})

describe("tokens", () => {
  it.effect("G2: are greater than the last one, the floor and what the clock says", () =>
    Effect.gen(function*() {
      const { grant, store } = yield* make
      const first = yield* grant("a")
      assert.strictEqual(first.token, 1)
      assert.strictEqual((yield* grant("b", { key: "other" })).token, 2)
      yield* store.release(first, 0)
      const second = yield* grant("c", { floor: 500 })
      assert.strictEqual(second.token, 501)
      yield* store.release(second, 0)
      assert.strictEqual((yield* grant("d", { floor: 7 })).token, 502)
      yield* TestClock.adjust("3 seconds")
      const third = yield* grant("e")
      assert.strictEqual(third.token, 3_000_000)
    }))

  it.effect("G2: stay exact numbers far into the future", () =>
    Effect.gen(function*() {
      const { grant } = yield* make
      yield* TestClock.setTime(Date.UTC(2200, 0, 1))
      const { token } = yield* grant("a")
      assert.isTrue(Number.isSafeInteger(token + 2 ** 20))
    }))
})

describe("renew", () => {
  it.effect("prolongs, never shortens, and is late in the very millisecond of the end", () =>
    Effect.gen(function*() {
      const { grant, store } = yield* make
      const lease = yield* grant("a")
      const timeLeft = Effect.map(store.inspect("k"), ({ holders }) => holders[0]?.timeLeft)
      yield* TestClock.adjust(900)
      assert.strictEqual(yield* store.renew(lease, 1000), "Done")
      assert.strictEqual(yield* timeLeft, 1000)
      assert.strictEqual(yield* store.renew(lease, 10), "Done")
      assert.strictEqual(yield* timeLeft, 1000)
      yield* TestClock.adjust(1000)
      assert.strictEqual(yield* store.renew(lease, 1000), "NotHeld")
    }))

  it.effect("G5: creates nothing, and acts for nobody else", () =>
    Effect.gen(function*() {
      const { grant, holders, queue, store } = yield* make
      assert.strictEqual(yield* store.renew({ key: "k", holderId: "a", token: 1 }, 1000), "NotHeld")
      assert.deepStrictEqual(yield* holders, [])
      const lease = yield* grant("a")
      yield* queue("b")
      for (const wrong of [{ holderId: "b" }, { token: lease.token + 1 }, { key: "other" }]) {
        assert.strictEqual(yield* store.renew({ ...lease, ...wrong }, 50_000), "NotHeld")
        assert.strictEqual(yield* store.release({ ...lease, ...wrong }, 0), "NotHeld")
      }
      const { holders: [holder] } = yield* store.inspect("k")
      assert.deepInclude(holder, { holderId: "a", timeLeft: 1000 })
    }))
})

describe("release", () => {
  it.effect("G9: grants to the head of the queue", () =>
    Effect.gen(function*() {
      const { grant, holders, queue, store, waiters } = yield* make
      const lease = yield* grant("a")
      const b = yield* queue("b")
      yield* queue("c")
      yield* TestClock.adjust(100)
      assert.strictEqual(yield* store.release(lease, 0), "Done")
      const granted = yield* Fiber.join(b.fiber)
      assert.deepInclude(granted, { time: 100, ttl: 1000, sentAt: { monotonic: 100, wall: 100 } })
      assert.isAbove(granted.token, lease.token)
      assert.deepStrictEqual([yield* holders, yield* waiters], [["b"], ["c"]])
      // Who lost the message and asks for the signal again gets the same grant.
      assert.deepInclude(yield* b.signal, { _tag: "Granted" })
      assert.strictEqual(yield* store.release(lease, 0), "NotHeld")
      assert.deepStrictEqual(yield* holders, ["b"])
    }))

  it.effect("keeps the key for nobody when told to: not for its last holder, not for one command longer", () =>
    Effect.gen(function*() {
      const { attempt, grant, holders, store } = yield* make
      const lease = yield* grant("a")
      assert.strictEqual(yield* store.release(lease, 300), "Done")
      assert.strictEqual(yield* store.renew(lease, 1000), "NotHeld")
      assert.strictEqual((yield* attempt("a", { wait: false }))._tag, "Refused")
      yield* TestClock.adjust(200)
      assert.strictEqual(yield* store.release(lease, 300), "NotHeld")
      assert.deepStrictEqual(yield* holders, ["a"])
      yield* TestClock.adjust(100)
      assert.deepStrictEqual(yield* holders, [])
    }))

  it.effect("G9: who waits is granted when the key was kept long enough, not when the lease would have ended", () =>
    Effect.gen(function*() {
      const { grant, queue, store } = yield* make
      const lease = yield* grant("a", { ttl: 30_000 })
      const { fiber } = yield* queue("b")
      yield* store.release(lease, 300)
      yield* TestClock.adjust(299)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(fiber)).time, 300)
    }))
})

describe("expiry", () => {
  it.effect("G9: grants to the head of the queue without anybody asking", () =>
    Effect.gen(function*() {
      const { grant, queue, store } = yield* make
      const lease = yield* grant("a")
      const { fiber } = yield* queue("b")
      yield* TestClock.adjust(999)
      assert.strictEqual(yield* store.renew(lease, 1000), "Done")
      yield* TestClock.adjust(999)
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual((yield* Fiber.join(fiber)).time, 1999)
    }))

  it.effect("G9: skips a waiter who died: his grant ends with his ttl, although the one before had a longer one", () =>
    Effect.gen(function*() {
      const { attempt, grant, queue, store } = yield* make
      const lease = yield* grant("a", { ttl: 60_000 })
      yield* attempt("dead", { ttl: 500 })
      const { fiber } = yield* queue("b")
      yield* TestClock.adjust(100)
      yield* store.release(lease, 0)
      yield* settle
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust(500)
      assert.strictEqual((yield* Fiber.join(fiber)).time, 600)
    }))

  it.effect("G9: of any one of several holders lets the next in", () =>
    Effect.gen(function*() {
      const { grant, queue } = yield* make
      yield* grant("a", { limit: 2, ttl: 5000 })
      yield* grant("b", { limit: 2, ttl: 2000 })
      const { fiber } = yield* queue("c", { limit: 2 })
      yield* TestClock.adjust(2000)
      assert.strictEqual((yield* Fiber.join(fiber)).time, 2000)
    }))
})

describe("abandon", () => {
  it.effect("takes a waiter out of the queue, and tells how he stood", () =>
    Effect.gen(function*() {
      const { grant, queue, store, waiters } = yield* make
      const lease = yield* grant("a")
      yield* queue("b")
      yield* queue("c")
      const standing = yield* store.abandon("k", "c")
      assert.deepInclude(standing, { position: 1, queueLength: 2 })
      assert.deepStrictEqual(standing.holders.map(({ holderId }) => holderId), ["a"])
      assert.deepStrictEqual(yield* waiters, ["b"])
      assert.strictEqual(yield* store.renew(lease, 1000), "Done")
    }))

  it.effect("of the head lets those go on who fitted behind it", () =>
    Effect.gen(function*() {
      const { grant, holders, queue, store } = yield* make
      yield* grant("a", { limit: 2 })
      yield* queue("large", { limit: 2, permits: 2 })
      const { fiber } = yield* queue("b", { limit: 2 })
      yield* store.abandon("k", "large")
      yield* Fiber.join(fiber)
      assert.deepStrictEqual(yield* holders, ["a", "b"])
    }))

  it.effect("ends a lease, lets the next in, and can be repeated", () =>
    Effect.gen(function*() {
      const { grant, holders, queue, store } = yield* make
      const lease = yield* grant("a")
      const { fiber } = yield* queue("b")
      yield* store.abandon("k", "a")
      yield* Fiber.join(fiber)
      assert.deepInclude(yield* store.abandon("k", "a"), { position: -1, queueLength: 0 })
      assert.deepStrictEqual(yield* holders, ["b"])
      assert.strictEqual(yield* store.renew(lease, 1000), "NotHeld")
    }))

  it.effect("knows nothing of a key that nobody holds or waits for", () =>
    Effect.gen(function*() {
      const { store } = yield* make
      assert.deepStrictEqual(yield* store.abandon("k", "a"), { holders: [], position: -1, queueLength: 0 })
      assert.deepStrictEqual(yield* store.inspect("k"), { key: "k", holders: [], waiters: [] })
    }))
})

describe("a limit that was set", () => {
  it.effect("does not end with a use of more than 30 days", () =>
    Effect.gen(function*() {
      const { grant, store } = yield* make
      yield* store.setLimit("k", 5, 2)
      const lease = yield* grant("a", { limit: 5, ttl: 172_800_000 })
      for (let day = 0; day < 31; day++) {
        yield* TestClock.adjust("1 day")
        assert.strictEqual(yield* store.renew(lease, 172_800_000), "Done")
      }
      yield* store.release(lease, 0)
      yield* grant("b", { limit: 5 })
      assert.strictEqual((yield* store.inspect("k")).limit, 2)
    }))
})
