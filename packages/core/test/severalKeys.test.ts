import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import type { Lock } from "../src/index.ts"
import { everyStep } from "./support/stepping.ts"
import { makeLock, setup } from "./support/TestStore.ts"
import { settle, until } from "./support/time.ts"

describe("withLocks that has one key and waits for another", () => {
  it.effect("G6: is sent off when the region whose turn it has ends, which does not wait for the other key", () =>
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

  for (
    const { title, use } of [
      { title: "withLocks", use: (lock: Lock.Lock["Service"]) => lock.withLocks(Effect.void, ["a", "b"]) },
      { title: "acquireAll", use: (lock: Lock.Lock["Service"]) => Effect.scoped(lock.acquireAll(["a", "b"])) }
    ]
  ) {
    it.effect(`G4: fails as soon as what it has is lost: ${title}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const other = yield* makeLock(store)
        yield* Effect.forkChild(other.withLock(Effect.never, "b"))
        yield* settle
        const fiber = yield* Effect.forkChild(Effect.flip(use(lock)))
        yield* settle
        yield* Effect.scoped(other.takeover("a"))
        yield* until(() => fiber.pollUnsafe() !== undefined)
        assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", key: "a", reason: "TakenOver" })
        assert.deepStrictEqual((yield* store.inspect("b")).waiters, [])
      }))
  }

  it.effect("keeps no key for minHold that it gives back before its work", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ minHold: "1 minute" })
      const other = yield* makeLock(store)
      const gate = yield* Deferred.make<void>()
      yield* Effect.forkChild(other.withLock(Deferred.await(gate), "a"))
      yield* settle
      const fiber = yield* Effect.forkChild(lock.withLocks(Effect.succeed("in"), ["a", "b"]))
      yield* settle
      assert.deepStrictEqual((yield* store.inspect("b")).holders, [])
      yield* Deferred.succeed(gate, undefined)
      yield* until(() => fiber.pollUnsafe() !== undefined)
      assert.strictEqual((yield* store.inspect("a")).holders.length, 1)
      assert.strictEqual((yield* store.inspect("b")).holders.length, 1)
    }))

  it.effect("keeps no key for minHold when it fails before its work", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ minHold: "1 minute" })
      const other = yield* makeLock(store)
      yield* Effect.forkChild(other.withLock(Effect.never, "b"))
      yield* settle
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLocks(Effect.void, ["a", "b"], { waitTimeout: 100 })))
      yield* TestClock.adjust(100)
      assert.strictEqual((yield* Fiber.join(fiber))._tag, "LockTimeout")
      assert.deepStrictEqual((yield* store.inspect("a")).holders, [])
    }))
})

describe("G7: interrupted at any step, several keys leave nothing behind", () => {
  const kinds: ReadonlyArray<{
    readonly title: string
    readonly use: (lock: Lock.Lock["Service"], keys: ReadonlyArray<string>) => Effect.Effect<void, unknown>
  }> = [
    { title: "withLocks", use: (lock, keys) => lock.withLocks(Effect.yieldNow, keys) },
    { title: "acquireAll", use: (lock, keys) => Effect.scoped(Effect.andThen(lock.acquireAll(keys), Effect.yieldNow)) }
  ]
  for (const taken of [undefined, "a", "b"]) {
    for (const { title, use } of kinds) {
      const prepare = Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const other = yield* makeLock(store)
        if (taken !== undefined) {
          yield* Effect.forkChild(other.withLock(Effect.sleep(50), taken))
          yield* settle
        }
        return {
          victim: Effect.ignore(use(lock, ["b", "a", "c"])),
          act: (fiber: Fiber.Fiber<void>) => fiber.interruptUnsafe(),
          check: () =>
            Effect.gen(function*() {
              yield* TestClock.adjust(100)
              for (const key of ["a", "b", "c"]) {
                assert.deepStrictEqual(yield* store.inspect(key), { key, holders: [], waiters: [] })
              }
            })
        }
      })
      it.effect(`${title}, ${taken === undefined ? "all keys free" : `"${taken}" taken`}`, () =>
        Effect.gen(function*() {
          assert.isAbove(yield* everyStep(Effect.orDie(prepare)), 50)
        }))
    }
  }
})
