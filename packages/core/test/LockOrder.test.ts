import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Layer, Option, Scope } from "effect"
import { LockOrder } from "../src/index.ts"
import { CurrentOrder } from "../src/internal/order.ts"
import type { LockDeadlock, LockError } from "../src/LockError.ts"
import { type LogLine, withLog } from "./support/observe.ts"
import { setup } from "./support/TestStore.ts"
import { settle } from "./support/time.ts"

/** A lock, and a way to nest keys: the first is the outermost. */
const start = Effect.map(setup(), ({ lock, store }) => ({
  lock,
  store,
  nest: (...keys: ReadonlyArray<string>) =>
    keys.reduceRight<Effect.Effect<void, LockError>>((body, key) => lock.withLock(body, key), Effect.void)
}))

const watched = (options: Partial<LockOrder.Options> = {}) =>
  Effect.provide(LockOrder.layer({ onInversion: "fail", ...options }))

/** The error of an inversion. */
const inversion = <R>(effect: Effect.Effect<unknown, LockError, R>): Effect.Effect<LockDeadlock, unknown, R> =>
  Effect.map(Effect.flip(effect), (error) => {
    assert.deepInclude(error, { _tag: "LockDeadlock", reason: "Order" })
    return error as LockDeadlock
  })

describe("LockOrder", () => {
  it.effect("G8: fails the second order in which two classes are nested, and names both places", () =>
    Effect.gen(function*() {
      const { nest, store } = yield* start
      const transfer = Effect.fn("transfer")(function*() {
        return yield* nest("account:1", "invoice:2")
      })
      yield* transfer()
      const error = yield* inversion(nest("invoice:3", "account:4").pipe(Effect.withSpan("settle")))
      assert.strictEqual(error.key, "account:4")
      const detail = error.detail!.replaceAll(/ at \S*LockOrder\.test\.ts:\d+:\d+/g, " at here")
      assert.strictEqual(
        detail,
        "while \"invoice:3\" is held, in settle at here; but \"invoice:2\" was asked for while \"account:1\" was held, " +
          "in transfer at here < transfer (definition) at here"
      )
      assert.include(error.message, "Lock \"account:4\" asked for in the wrong order: while \"invoice:3\" is held")
      assert.strictEqual(store.requests.at(-1)?.key, "invoice:3", "nothing is asked for")
      assert.deepStrictEqual((yield* store.inspect("invoice:3")).holders, [])
    }).pipe(watched()))

  it.effect("goes on with the order that was seen first, and fails the other one each time", () =>
    Effect.gen(function*() {
      const { nest } = yield* start
      yield* nest("a:1", "b:1")
      for (const id of [1, 2]) {
        assert.strictEqual((yield* inversion(nest(`b:${id}`, `a:${id}`))).key, `a:${id}`)
        yield* nest("a:2", "b:2")
      }
    }).pipe(watched()))

  it.effect("warns once for each pair of classes, and lets it go on", () =>
    withLog((lines: ReadonlyArray<LogLine>) =>
      Effect.gen(function*() {
        const { nest } = yield* start
        yield* nest("a:1", "b:1")
        for (const id of [1, 2, 3]) yield* nest(`b:${id}`, `a:${id}`)
        assert.strictEqual(lines.length, 1)
        assert.strictEqual(lines[0]?.level, "Warn")
        assert.include(
          lines[0]?.text,
          "Lock \"a:1\" asked for in the wrong order: while \"b:1\" is held, in a place without"
        )
        assert.deepInclude(lines[0]?.annotations, { module: "effect-lock", key: "a:1" })
        yield* nest("b:1", "c:1")
        yield* nest("c:1", "b:1")
        assert.strictEqual(lines.length, 2)
      }).pipe(watched({ onInversion: "warn" }))
    ))

  it.effect("finds circles over more than two classes, and names every place of them", () =>
    Effect.gen(function*() {
      const { nest } = yield* start
      yield* nest("a:1", "b:1")
      yield* nest("b:2", "c:2")
      yield* nest("c:3", "d:3")
      yield* nest("a:4", "d:4")
      const error = yield* inversion(nest("d:5", "b:5"))
      for (const key of ["\"d:5\"", "\"c:2\"", "\"b:2\"", "\"d:3\"", "\"c:3\""]) assert.include(error.detail, key)
      assert.notInclude(error.detail, "\"a:1\"")
      yield* nest("a:6", "b:6", "c:6", "d:6")
    }).pipe(watched()))

  it.effect("reports a class nested in itself, but not the keys of one call", () =>
    Effect.gen(function*() {
      const { lock, nest } = yield* start
      yield* lock.withLocks(Effect.void, ["a:1", "a:2", "b:1"])
      yield* Effect.scoped(lock.acquireAll(["a:1", "a:2"]))
      const error = yield* inversion(nest("a:1", "a:2"))
      assert.include(error.detail, "while \"a:1\" is held")
      assert.include(error.detail, "keys of one class have no order, take them together with Lock.withLocks")
      yield* inversion(lock.withLock(lock.withLocks(Effect.void, ["a:2", "b:1"]), "a:1"))
    }).pipe(watched()))

  it.effect("counts the order of several keys of one call for those that are nested", () =>
    Effect.gen(function*() {
      const { lock, nest } = yield* start
      yield* lock.withLocks(Effect.void, ["b:1", "a:1"])
      const error = yield* inversion(nest("b:2", "a:2"))
      assert.include(error.detail, "\"b:1\" was asked for while \"a:1\" was held")
      yield* nest("d:1", "c:1")
      yield* inversion(lock.withLocks(Effect.void, ["c:2", "d:2"]))
    }).pipe(watched()))

  it.effect("knows that calls of several keys do not contradict each other, whatever their classes are", () =>
    Effect.gen(function*() {
      const { lock, nest } = yield* start
      yield* lock.withLocks(Effect.void, ["a-b:1", "a:1", "a"])
      yield* lock.withLocks(Effect.void, ["a", "a-b:1", "a-b:2", "a:2"])
      yield* lock.withLocks(Effect.void, ["a-b:3", "a:3"])
      yield* inversion(nest("a:4", "a-b:4"))
    }).pipe(watched()))

  it.effect("takes asking again for what is held, and asking without waiting, for no nesting", () =>
    Effect.gen(function*() {
      const { lock, nest } = yield* start
      yield* nest("a:1", "b:1", "a:1")
      yield* lock.withLock(lock.withLocks(Effect.void, ["a:1", "b:1"]), "a:1")
      assert.isTrue(Option.isSome(yield* lock.withLock(lock.withLockIfAvailable(Effect.void, "a:2"), "b:2")))
      assert.isTrue(Option.isSome(yield* lock.withLock(Effect.scoped(lock.tryAcquire("a:2")), "b:2")))
    }).pipe(watched()))

  it.effect("knows what is held by scopes, and in forked fibers", () =>
    Effect.gen(function*() {
      const { lock, nest } = yield* start
      yield* Effect.scoped(Effect.andThen(lock.acquire("a:1"), lock.acquire("b:1")))
      yield* inversion(nest("b:2", "a:2"))
      const scope = yield* Scope.make()
      yield* lock.withLock(
        Effect.gen(function*() {
          yield* inversion(Effect.timeout(nest("a:3"), "1 second") as Effect.Effect<void, LockError>)
          yield* inversion(Scope.provide(lock.acquire("a:3"), scope))
          yield* inversion(Effect.flatMap(Effect.forkChild(nest("a:3")), Fiber.join))
        }),
        "b:3"
      )
      // Not inside any more.
      yield* nest("a:4")
    }).pipe(watched()))

  it.effect("watches those who do not have to wait, and those who would", () =>
    Effect.gen(function*() {
      const { lock, nest } = yield* start
      const first = yield* Effect.forkChild(lock.withLock(Effect.andThen(settle, nest("b:1")), "a:1"))
      const second = yield* Effect.forkChild(
        Effect.flip(lock.withLock(Effect.andThen(settle, Effect.andThen(settle, nest("a:1"))), "b:1"))
      )
      assert.deepInclude(yield* Fiber.join(second), { _tag: "LockDeadlock", reason: "Order" })
      yield* Fiber.join(first)
    }).pipe(watched()))

  it.effect("knows classes by what stands before the first colon, or as it is told", () =>
    Effect.gen(function*() {
      const { nest } = yield* start
      yield* nest("x/1", "y/1").pipe(Effect.andThen(nest("y/2", "x/2")), watched())
      const classOf = (key: string) => key.split("/", 1)[0]!
      yield* inversion(nest("x/1", "y/1").pipe(Effect.andThen(nest("y/2", "x/2")), watched({ classOf })))
      yield* nest("folder:1", "folder:2").pipe(
        Effect.andThen(nest("folder:1", "folder:2")),
        watched({ classOf: (key) => key })
      )
    }))

  it.effect("remembers for as long as its layer lives, and only for programs that have it", () =>
    Effect.gen(function*() {
      const { nest } = yield* start
      assert.isUndefined(yield* CurrentOrder)
      const context = yield* Layer.build(LockOrder.layer({ onInversion: "fail" }))
      yield* Effect.provideContext(nest("a:1", "b:1"), context)
      yield* nest("b:1", "a:1")
      yield* nest("b:1", "a:1").pipe(watched())
      yield* inversion(Effect.provideContext(nest("b:1", "a:1"), context))
    }))

  it.effect("G11: remembers 10,000 pairs of classes, says so, and looks at no new ones", () =>
    withLog((lines: ReadonlyArray<LogLine>) =>
      Effect.gen(function*() {
        const order = (yield* CurrentOrder)!
        yield* order(["b:1"], ["a:1"])
        for (let i = 1; i < 10_000; i++) yield* order(["b:1"], [`x${i}:1`])
        assert.deepStrictEqual(lines, [])
        for (let i = 0; i < 3; i++) yield* order(["b:1"], [`y${i}:1`])
        assert.strictEqual(lines.length, 1)
        assert.include(lines[0]?.text, "LockOrder remembers 10000 pairs of classes, and looks at no more")
        yield* order(["y1:1"], ["b:1"])
        yield* order(["b:1"], ["a:1"])
      }).pipe(watched())
    ))
})
