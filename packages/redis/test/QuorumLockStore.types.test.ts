// @effect-diagnostics missingEffectContext:off
import { Lock, type LockError, type LockStore, Permits } from "@effect-lock/core"
import { QuorumLockStore, RedisLockStore } from "@effect-lock/redis"
import { describe, expectTypeOf, it } from "@effect/vitest"
import { Effect, Layer } from "effect"

const program = Effect.asVoid(Permits.Permits)

describe("types", () => {
  it("a Redis store counts permits, however it is made", () => {
    type Store = Layer.Layer<
      LockStore.LockStore | LockStore.PermitStore,
      LockError.LockStoreError | LockError.LockInvalid
    >
    expectTypeOf(RedisLockStore.layer).returns.toEqualTypeOf<Store>()
    expectTypeOf(RedisLockStore.layerClient).returns.toEqualTypeOf<Store>()
    expectTypeOf(() => Permits.layer().pipe(Layer.provide(RedisLockStore.layer()))).returns.toEqualTypeOf<
      Layer.Layer<Permits.Permits | Lock.Lock, LockError.LockStoreError | LockError.LockInvalid>
    >()
  })

  it("a quorum does not: what needs permits does not compile on it", () => {
    const quorum = () => QuorumLockStore.layer({ voters: [] })
    expectTypeOf(() => Lock.layer().pipe(Layer.provide(quorum()))).returns.toEqualTypeOf<
      Layer.Layer<Lock.Lock, LockError.LockStoreError | LockError.LockInvalid>
    >()
    const permits = () => Permits.layer().pipe(Layer.provide(quorum()))
    expectTypeOf(permits).returns.toEqualTypeOf<
      Layer.Layer<Permits.Permits | Lock.Lock, LockError.LockStoreError | LockError.LockInvalid, LockStore.PermitStore>
    >()
    const keys = () => Permits.layer().pipe(Layer.provide(QuorumLockStore.layerKeyMajority({ majority: 2 })))
    expectTypeOf(keys).returns.toEqualTypeOf<ReturnType<typeof permits>>()

    const run = <A, E>(effect: Effect.Effect<A, E>) => effect
    expectTypeOf(run).toBeCallableWith(
      Effect.provide(program, Permits.layer().pipe(Layer.provide(RedisLockStore.layer())))
    )
    // @ts-expect-error nothing provides the PermitStore
    void (() => run(Effect.provide(program, permits())))
    // @ts-expect-error nor does a majority of keys
    void (() => run(Effect.provide(program, keys())))
  })
})
