/**
 * A number of permits that the holders of a key share, across processes: so many callers of a fragile service at once, or a
 * few large jobs instead of many small ones. Every holder has a lease of its own, which ends with its process after its ttl.
 *
 * **When to use**
 *
 * Use it to bound how many do something at the same time. Use `Lock` for one at a time, `ReadWriteLock` where some only look.
 * It does not bound how often something is done: that is a rate limit.
 *
 * **Gotchas**
 *
 * Not on a quorum: votes of a majority cannot count permits, so a program that tries does not compile.
 *
 * Two fibers that each hold some permits and ask for more can wait for each other. Ask for all at once, or bound the wait
 * with `waitTimeout`.
 *
 * Whose fiber acquires is who has the permits, even if other fibers close the scopes: one that acquires a permit for each
 * worker fails with `LockDeadlock` where it should wait for a worker to end. Let each worker acquire for itself, in its own
 * fiber: with `withPermit`.
 *
 * **Example** (At most three at once, wherever they run)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { DistributedSemaphore, LockStore, Permits } from "@effect-lock/core"
 *
 * const api = DistributedSemaphore.make("api", { limit: 3, ttl: "30 seconds" })
 *
 * let calls = 0
 * let most = 0
 * const call = Effect.gen(function*() {
 *   most = Math.max(most, ++calls)
 *   yield* Effect.sleep("5 millis")
 *   calls--
 * }).pipe(api.withPermit)
 *
 * const PermitsLive = Permits.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.all(Array.from({ length: 10 }, () => call), { concurrency: "unbounded" }).pipe(
 *   Effect.provide(PermitsLive),
 *   Effect.runPromise
 * )
 * most // => 3
 * ```
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Lease } from "./Lease.ts"
import type { TryError } from "./Lock.ts"
import { type LockError, type LockInvalid, type LockStoreError, PermitsRefused } from "./LockError.ts"
import type * as LockOptions from "./LockOptions.ts"
import type { KeyState } from "./LockStore.ts"
import { Permits, type Target } from "./Permits.ts"

/**
 * How many permits there are, and the options of every lock.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends LockOptions.LockOptions {
  /** How many permits the key has, a whole number from 1 to 2^30: the same for all callers of the key. */
  readonly limit: number
}

/**
 * The definition of a semaphore: a value without state, made at module level. What it does needs `Permits`.
 *
 * **Details**
 *
 * Permits are granted in the order in which they were asked for: who asks for many is not passed by those who ask for few.
 * Callers who say another limit for a key in use fail with `PermitsRefused`; whatever is wrong with key, limit or options
 * is found when the semaphore is used, and fails with `LockInvalid`.
 *
 * Inside `withPermits`, asking again takes further permits. Who asks for more than his own leave of the limit would wait for
 * himself, and fails with `LockDeadlock` at once. If `setLimit` lowers the limit while he waits, he finds out when he would
 * renew: who has permits and queues for more asks the store for the limit then.
 *
 * @category models
 * @since 0.1.0
 */
export interface DistributedSemaphore {
  readonly key: string
  readonly limit: number
  /** Runs an effect while holding one permit. Order and losses are those of `Lock.withLock`. */
  readonly withPermit: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockError, R | Permits>
  /** Runs an effect while holding `permits`. */
  readonly withPermits: {
    (permits: number): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockError, R | Permits>
    <A, E, R>(effect: Effect.Effect<A, E, R>, permits: number): Effect.Effect<A, E | LockError, R | Permits>
  }
  /** As `withPermits`, for work that needs the lease: its token, `check`, `heartbeat`, `revocation`. */
  readonly withPermitsLease: <A, E, R>(
    permits: number,
    use: (lease: Lease) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | LockError, R | Permits>
  /** Runs an effect if so many permits are free right now, and nobody waits for any: `None` otherwise. */
  readonly withPermitsIfAvailable: {
    (
      permits: number
    ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<Option.Option<A>, E | TryError, R | Permits>
    <A, E, R>(
      effect: Effect.Effect<A, E, R>,
      permits: number
    ): Effect.Effect<Option.Option<A>, E | TryError, R | Permits>
  }
  /**
   * Acquires `permits` for as long as the scope is open. As with `Lock.acquire`, only `lease.protect` guards work.
   *
   * Acquire in the fiber that works: one that acquires for others, in their scopes, counts as having all those permits, and
   * fails with `LockDeadlock` at the limit instead of waiting for the others to end.
   */
  readonly acquire: (permits: number) => Effect.Effect<Lease, LockError, Permits | Scope.Scope>
  /** Acquires `permits` if so many are free right now, and nobody waits for any: `None` otherwise. */
  readonly tryAcquire: (permits: number) => Effect.Effect<Option.Option<Lease>, TryError, Permits | Scope.Scope>
  /**
   * Changes how many permits there are, from 1 to 2^30, for all who say this semaphore's limit, wherever they run. More are
   * granted at once. Fewer revoke nothing: nobody is let in until enough have been given back. Who asks for more than
   * there are then, and who waits for it already, fails with `PermitsRefused`; who has some, and with what he asks for would
   * have more than there are, fails with `LockDeadlock`.
   *
   * It lasts until it is set again, until the key has not been used for 30 days, or until the key is used with another limit
   * while nobody else uses it. Callers still cannot ask for more than the limit of the definition, nor hold more, nested.
   */
  readonly setLimit: (limit: number) => Effect.Effect<void, LockStoreError | LockInvalid | PermitsRefused, Permits>
  /** Who holds permits and who waits for them; the `limit` in force is told while somebody does. */
  readonly inspect: Effect.Effect<KeyState, LockStoreError | LockInvalid, Permits>
}

/**
 * Defines a semaphore.
 *
 * **Example** (Weighted permits, and a new limit)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { DistributedSemaphore, LockStore, Permits } from "@effect-lock/core"
 *
 * const workers = DistributedSemaphore.make("workers", { limit: 8 })
 *
 * const program = Effect.gen(function*() {
 *   yield* workers.setLimit(4)
 *   return yield* workers.inspect.pipe(workers.withPermits(3))
 * })
 * const PermitsLive = Permits.layer().pipe(Layer.provide(LockStore.layerMemory))
 * const { holders, limit } = await Effect.runPromise(Effect.provide(program, PermitsLive))
 * limit // => 4
 * holders.map(({ permits }) => permits) // => [3]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (key: string, { limit, ...options }: Options): DistributedSemaphore => {
  const target = (permits: number): Target => ({ key, permits, limit, needs: permits, isShared: false })

  const withPermits = <A, E, R>(effect: Effect.Effect<A, E, R>, permits: number) =>
    Permits.use((service) => service.withTarget(target(permits), effect, options))

  const withPermitsIfAvailable = <A, E, R>(effect: Effect.Effect<A, E, R>, permits: number) =>
    Permits.use((service) => service.withTargetIfAvailable(target(permits), () => effect, options))

  return {
    key,
    limit,
    withPermit: (effect) => withPermits(effect, 1),
    withPermits: dual(2, withPermits),
    withPermitsLease: (permits, use) => Permits.use((service) => service.withLease(target(permits), use, options)),
    withPermitsIfAvailable: dual(2, withPermitsIfAvailable),
    acquire: (permits) => Permits.use((service) => service.acquire(target(permits), options)),
    tryAcquire: (permits) => Permits.use((service) => service.tryAcquire(target(permits), options)),
    setLimit: Effect.fnUntraced(function*(actual) {
      const permits = yield* Permits
      const answer = yield* permits.setLimit(key, limit, actual)
      if (answer._tag === "OtherLimit") {
        return yield* new PermitsRefused({ key, permits: 1, limit, actual: answer.limit })
      }
    }),
    inspect: Permits.use((service) => service.inspect(key))
  }
}
