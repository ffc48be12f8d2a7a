import { describe, expectTypeOf, it } from "@effect/vitest"
import type { Config, DateTime, Duration, Layer, Option, Scope } from "effect"
import { Effect } from "effect"
import { type Lease, type LeaseTicket, Lock, type LockError, LockOptions, LockStore } from "../src/index.ts"

class BodyError {
  readonly _tag = "BodyError"
}

declare const body: Effect.Effect<number, BodyError, "body">
declare const lock: Lock.Lock["Service"]
declare const lease: Lease.Lease

type Everything =
  | LockError.LockTimeout
  | LockError.LockQueueFull
  | LockError.LockStoreError
  | LockError.LockLost
  | LockError.LockDeadlock
  | LockError.LockClosed
  | LockError.LockInvalid
  | LockError.PermitsRefused

type WithoutWaiting =
  | LockError.LockStoreError
  | LockError.LockLost
  | LockError.LockClosed
  | LockError.LockInvalid
  | LockError.PermitsRefused

describe("types", () => {
  it("LockError and TryError are the errors they are said to be", () => {
    expectTypeOf<LockError.LockError>().toEqualTypeOf<Everything>()
    expectTypeOf<Lock.TryError>().toEqualTypeOf<WithoutWaiting>()
  })

  it("withLock adds LockError and Lock, and keeps what the effect has", () => {
    expectTypeOf(() => Lock.withLock(body, "k")).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | Everything, "body" | Lock.Lock>
    >()
    expectTypeOf(() => body.pipe(Lock.withLock("k", { ttl: "1 second" }))).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | Everything, "body" | Lock.Lock>
    >()
    expectTypeOf(() => lock.withLock(body, "k")).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | Everything, "body">
    >()
  })

  it("withLock does not close a scope that the effect needs", () => {
    expectTypeOf(() => Lock.withLock(Effect.scope, "k")).returns.toEqualTypeOf<
      Effect.Effect<Scope.Scope, Everything, Scope.Scope | Lock.Lock>
    >()
  })

  it("withLockIfAvailable gives an Option and cannot time out or deadlock", () => {
    expectTypeOf(() => Lock.withLockIfAvailable(body, "k")).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<number>, BodyError | WithoutWaiting, "body" | Lock.Lock>
    >()
    expectTypeOf(() => body.pipe(Lock.withLockIfAvailable("k"))).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<number>, BodyError | WithoutWaiting, "body" | Lock.Lock>
    >()
    expectTypeOf(() => lock.withLockIfAvailable(body, "k")).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<number>, BodyError | WithoutWaiting, "body">
    >()
  })

  it("withLease and withLeaseIfAvailable do as withLock and withLockIfAvailable", () => {
    expectTypeOf(() => Lock.withLease("k", (lease: Lease.Lease) => Effect.as(body, lease.token))).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | Everything, "body" | Lock.Lock>
    >()
    expectTypeOf(() => Lock.withLeaseIfAvailable("k", () => body)).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<number>, BodyError | WithoutWaiting, "body" | Lock.Lock>
    >()
  })

  it("withLocks and acquireAll do as withLock and acquire", () => {
    expectTypeOf(() => Lock.withLocks(body, ["a", "b"])).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | Everything, "body" | Lock.Lock>
    >()
    expectTypeOf(() => body.pipe(Lock.withLocks(["a", "b"], { ttl: "1 second" }))).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | Everything, "body" | Lock.Lock>
    >()
    expectTypeOf(() => Lock.acquireAll(["a", "b"])).returns.toEqualTypeOf<
      Effect.Effect<ReadonlyArray<Lease.Lease>, Everything, Lock.Lock | Scope.Scope>
    >()
  })

  it("acquire and tryAcquire need a scope", () => {
    expectTypeOf(() => Lock.acquire("k")).returns.toEqualTypeOf<
      Effect.Effect<Lease.Lease, Everything, Lock.Lock | Scope.Scope>
    >()
    expectTypeOf(() => Lock.tryAcquire("k")).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<Lease.Lease>, WithoutWaiting, Lock.Lock | Scope.Scope>
    >()
    expectTypeOf(() => lock.acquire("k")).returns.toEqualTypeOf<Effect.Effect<Lease.Lease, Everything, Scope.Scope>>()
  })

  it("takeover and adopt need a scope, and cannot time out or deadlock", () => {
    expectTypeOf(() => Lock.takeover("k")).returns.toEqualTypeOf<
      Effect.Effect<Lease.Lease, WithoutWaiting, Lock.Lock | Scope.Scope>
    >()
    expectTypeOf(() => Lock.adopt({} as LeaseTicket.LeaseTicket)).returns.toEqualTypeOf<
      Effect.Effect<Lease.Lease, WithoutWaiting | LockError.TicketRefused, Lock.Lock | Scope.Scope>
    >()
    expectTypeOf(() => lease.handOff).returns.toEqualTypeOf<
      Effect.Effect<LeaseTicket.LeaseTicket, LockError.LockLost | LockError.LockStoreError>
    >()
  })

  it("inspect fails with what the store or the key is to blame for", () => {
    expectTypeOf(() => Lock.inspect("k")).returns.toEqualTypeOf<
      Effect.Effect<LockStore.KeyState, LockError.LockStoreError | LockError.LockInvalid, Lock.Lock>
    >()
  })

  it("layers need a store, and fail on invalid defaults only", () => {
    expectTypeOf(() => Lock.layer()).returns.toEqualTypeOf<
      Layer.Layer<Lock.Lock, LockError.LockInvalid, LockStore.LockStore>
    >()
    expectTypeOf(() => Lock.layerConfig({ ttl: {} as Config.Config<Duration.Duration> })).returns.toEqualTypeOf<
      Layer.Layer<Lock.Lock, LockError.LockInvalid | Config.ConfigError, LockStore.LockStore>
    >()
    expectTypeOf(LockStore.layerMemory).toEqualTypeOf<Layer.Layer<LockStore.LockStore | LockStore.PermitStore>>()
  })

  it("a lease fails with nothing but what can befall it", () => {
    expectTypeOf(() => lease.lost).returns.toEqualTypeOf<Effect.Effect<never, LockError.LockLost>>()
    expectTypeOf(() => lease.check).returns.toEqualTypeOf<Effect.Effect<void, LockError.LockLost>>()
    expectTypeOf(() => lease.isValid).returns.toEqualTypeOf<Effect.Effect<boolean>>()
    expectTypeOf(() => lease.deadline).returns.toEqualTypeOf<Effect.Effect<DateTime.Utc>>()
    expectTypeOf(() => lease.protect(body)).returns.toEqualTypeOf<
      Effect.Effect<number, BodyError | LockError.LockLost, "body">
    >()
    expectTypeOf(() => lease.extend("1 minute")).returns.toEqualTypeOf<
      Effect.Effect<void, LockError.LockLost | LockError.LockStoreError | LockError.LockInvalid>
    >()
    expectTypeOf(() => lease.revocation).returns.toEqualTypeOf<Effect.Effect<void, LockError.LockLost>>()
    expectTypeOf(() => lease.heartbeat).returns.toEqualTypeOf<Effect.Effect<void, LockError.LockLost>>()
    expectTypeOf<Lease.Lease["token"]>().toEqualTypeOf<number>()
  })

  it("every option may be left out or undefined, and is read-only", () => {
    expectTypeOf<{}>().toExtend<LockOptions.LockOptions>()
    expectTypeOf<{ [K in keyof LockOptions.LockOptions]-?: undefined }>().toExtend<LockOptions.LockOptions>()
    expectTypeOf<LockOptions.LockOptions>().toEqualTypeOf<Readonly<LockOptions.LockOptions>>()
    expectTypeOf<keyof LockOptions.LockOptions>().toEqualTypeOf<
      | "ttl"
      | "waitTimeout"
      | "renewEvery"
      | "renewRetry"
      | "releaseTimeout"
      | "maxHold"
      | "minHold"
      | "progressTimeout"
      | "priority"
      | "maxWaiters"
      | "holder"
    >()
    expectTypeOf<LockOptions.LockOptions["ttl"]>().toEqualTypeOf<Duration.Input | undefined>()
  })

  it("misuse does not compile", () => {
    const misuse = (): unknown => {
      const notAKey = 7
      const notAnOption = { timeout: 5 }
      const notADuration = { ttl: "soon" }
      const calls = [
        // @ts-expect-error a key is a string
        Lock.acquire(notAKey),
        // @ts-expect-error not an option
        Lock.acquire("k", notAnOption),
        // @ts-expect-error not a duration
        Lock.acquire("k", notADuration),
        // @ts-expect-error the effect comes first, or not at all
        Lock.withLock("k", body)
      ]
      // @ts-expect-error a lease is nobody's to make longer than it is
      lease.token = 5
      return calls
    }
    expectTypeOf(misuse).toBeFunction()
    expectTypeOf(LockOptions.resolve).returns.toEqualTypeOf<
      Effect.Effect<LockOptions.Resolved, LockError.LockInvalid>
    >()
  })

  it("errors can be caught by tag, and what is caught is gone", () => {
    expectTypeOf(() =>
      Lock.withLock(body, "k").pipe(
        Effect.catchTag([
          "LockTimeout",
          "LockQueueFull",
          "LockStoreError",
          "LockDeadlock",
          "LockClosed",
          "LockInvalid",
          "PermitsRefused"
        ], () => Effect.succeed(0))
      )
    ).returns.toEqualTypeOf<Effect.Effect<number, BodyError | LockError.LockLost, "body" | Lock.Lock>>()
  })
})
