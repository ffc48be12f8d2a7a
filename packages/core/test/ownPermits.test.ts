import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { LockStore, Permits } from "../src/index.ts"

const setup = Effect.map(
  Layer.build(Permits.layer().pipe(Layer.provide(Layer.fresh(LockStore.layerMemory)))),
  Context.get(Permits.Permits)
)

const threeInAll = (permits: number): Permits.Target => ({
  key: "k",
  permits,
  limit: 3,
  needs: permits,
  isShared: false
})

describe("LockDeadlock: who would wait for permits of his own", () => {
  it.effect("has some in a region, some in a scope inside", () =>
    Effect.gen(function*() {
      const permits = yield* setup
      const inside = Effect.scoped(Effect.andThen(permits.acquire(threeInAll(1)), permits.acquire(threeInAll(1))))
      const error = yield* Effect.flip(permits.withTarget(threeInAll(2), inside))
      assert.strictEqual(error._tag, "LockDeadlock")
    }))

  it.effect("has some in a scope, some in a region inside", () =>
    Effect.gen(function*() {
      const permits = yield* setup
      const inside = permits.withTarget(threeInAll(1), permits.withTarget(threeInAll(2), Effect.void))
      const error = yield* Effect.flip(Effect.scoped(Effect.andThen(permits.acquire(threeInAll(1)), inside)))
      assert.strictEqual(error._tag, "LockDeadlock")
    }))

  it.effect("is not who asks for no more than is left", () =>
    Effect.gen(function*() {
      const permits = yield* setup
      const inside = permits.withTarget(threeInAll(1), permits.withTarget(threeInAll(1), Effect.succeed("in")))
      assert.strictEqual(yield* Effect.scoped(Effect.andThen(permits.acquire(threeInAll(1)), inside)), "in")
    }))
})
