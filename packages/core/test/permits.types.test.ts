import { describe, expectTypeOf, it } from "@effect/vitest"
import { Effect, Layer, type Option, type Scope } from "effect"
import {
  DistributedSemaphore,
  type Lease,
  type Lock,
  type LockError,
  LockStore,
  Permits,
  type ReadWriteLock
} from "../src/index.ts"

class BodyError {
  readonly _tag = "BodyError"
}

declare const body: Effect.Effect<number, BodyError, "body">
declare const semaphore: DistributedSemaphore.DistributedSemaphore
declare const lock: ReadWriteLock.ReadWriteLock
declare const reading: ReadWriteLock.ReadLease
declare const writing: ReadWriteLock.WriteLease
const anyStore: Layer.Layer<LockStore.LockStore> = LockStore.layerMemory

type Guarded = Effect.Effect<number, BodyError | LockError.LockError, "body" | Permits.Permits>
type Tried = Effect.Effect<Option.Option<number>, BodyError | Lock.TryError, "body" | Permits.Permits>
type Acquired<A> = Effect.Effect<A, LockError.LockError, Permits.Permits | Scope.Scope>
type TriedAcquire<A> = Effect.Effect<Option.Option<A>, Lock.TryError, Permits.Permits | Scope.Scope>

describe("types", () => {
  it("a semaphore adds LockError and Permits, and keeps what the effect has", () => {
    expectTypeOf(DistributedSemaphore.make).returns.toEqualTypeOf<DistributedSemaphore.DistributedSemaphore>()
    expectTypeOf(() => semaphore.withPermit(body)).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => semaphore.withPermits(2)(body)).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => semaphore.withPermits(body, 2)).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => semaphore.withPermitsLease(2, () => body)).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => semaphore.withPermitsIfAvailable(2)(body)).returns.toEqualTypeOf<Tried>()
    expectTypeOf(() => semaphore.withPermitsIfAvailable(body, 2)).returns.toEqualTypeOf<Tried>()
    expectTypeOf(() => semaphore.acquire(2)).returns.toEqualTypeOf<Acquired<Lease.Lease>>()
    expectTypeOf(() => semaphore.tryAcquire(2)).returns.toEqualTypeOf<TriedAcquire<Lease.Lease>>()
    expectTypeOf(() => semaphore.setLimit(2)).returns.toEqualTypeOf<
      Effect.Effect<
        void,
        LockError.LockStoreError | LockError.LockInvalid | LockError.PermitsRefused,
        Permits.Permits
      >
    >()
  })

  it("a read-write lock does so, too", () => {
    expectTypeOf(() => lock.withRead(body)).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => lock.withWrite(body)).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => lock.withReadLease((lease) => Effect.tap(body, lease.check))).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => lock.withWriteLease((lease) => Effect.tap(body, lease.check))).returns.toEqualTypeOf<Guarded>()
    expectTypeOf(() => lock.withReadIfAvailable(body)).returns.toEqualTypeOf<Tried>()
    expectTypeOf(() => lock.withWriteIfAvailable(body)).returns.toEqualTypeOf<Tried>()
    expectTypeOf(() => lock.acquireRead).returns.toEqualTypeOf<Acquired<ReadWriteLock.ReadLease>>()
    expectTypeOf(() => lock.acquireWrite).returns.toEqualTypeOf<Acquired<ReadWriteLock.WriteLease>>()
    expectTypeOf(() => lock.tryAcquireRead).returns.toEqualTypeOf<TriedAcquire<ReadWriteLock.ReadLease>>()
    expectTypeOf(() => lock.tryAcquireWrite).returns.toEqualTypeOf<TriedAcquire<ReadWriteLock.WriteLease>>()
  })

  it("only an upgrade can conflict with another one", () => {
    expectTypeOf(() => reading.upgrade).returns.toEqualTypeOf<
      Effect.Effect<
        ReadWriteLock.UpgradedLease,
        LockError.LockError | LockError.LockUpgradeConflict,
        Scope.Scope
      >
    >()
    expectTypeOf(() => writing.downgrade).returns.toEqualTypeOf<
      Effect.Effect<ReadWriteLock.ReadLease, LockError.LockLost | LockError.LockStoreError | LockError.LockDeadlock>
    >()
    expectTypeOf<LockError.LockUpgradeConflict>().not.toExtend<LockError.LockError>()
  })

  it("misuse does not compile", () => {
    const misuse = (upgraded: ReadWriteLock.UpgradedLease): unknown => [
      // @ts-expect-error a semaphore has a limit
      DistributedSemaphore.make("api"),
      // @ts-expect-error not an option
      DistributedSemaphore.make("api", { limit: 1, permits: 2 }),
      // @ts-expect-error how many permits?
      semaphore.withPermits(body),
      // @ts-expect-error a reader cannot be made less of
      reading.downgrade,
      // @ts-expect-error a writer has all there is
      writing.upgrade,
      // @ts-expect-error valid with its read lease only
      upgraded.handOff
    ]
    expectTypeOf(misuse).toBeFunction()
  })

  it("a store that may be one that cannot count, as a quorum, leaves something to be provided", () => {
    const onAnyStore = Layer.provide(Permits.layer(), anyStore)
    expectTypeOf<Layer.Services<typeof onAnyStore>>().toEqualTypeOf<LockStore.PermitStore>()
  })
})
