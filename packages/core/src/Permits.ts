/**
 * Keys with more than one permit: what `DistributedSemaphore` and `ReadWriteLock` are made of. They share one lifecycle
 * with every other lock.
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Ask } from "./internal/acquiring.ts"
import * as engines from "./internal/engine.ts"
import type { Lease } from "./Lease.ts"
import * as Lock from "./Lock.ts"
import type { LockDeadlock, LockError, LockInvalid, LockLost, LockStoreError } from "./LockError.ts"
import * as LockOptions from "./LockOptions.ts"
import { type KeyState, type LimitSet, PermitStore } from "./LockStore.ts"

/**
 * What is asked for, and what that means for who has some of it already.
 *
 * @category models
 * @since 0.1.0
 */
export interface Target<out E = never> {
  readonly key: string
  /** How many of the key's `limit` permits are asked for. */
  readonly permits: number
  readonly limit: number
  /** How many have to be held for it, those the asker has already included. */
  readonly needs: number
  /**
   * Whether those inside a region of the key share its lease, in turn, as in a mutex. Otherwise each gets permits of its
   * own, as in a semaphore.
   */
  readonly isShared: boolean
  /**
   * The lease of the same key whose holder asks for more: ahead of all others, as they wait for that lease, and for as long as
   * it is valid.
   */
  readonly upgrades?: Lease | undefined
  /** @internal How it is asked for, where that is not an attempt like any other. */
  readonly how?: Ask<E> | undefined
}

/**
 * The permits of an application: one client of a store that counts.
 *
 * **When to use**
 *
 * Provide it with `layer`, which is also the `Lock` of the application; what `DistributedSemaphore` and `ReadWriteLock`
 * define needs it. A quorum store cannot count permits, so there is no such service on it, and a program that needs one
 * does not compile.
 *
 * @category services
 * @since 0.1.0
 */
export class Permits extends Context.Service<Permits, {
  readonly withTarget: <A, E, R>(
    target: Target,
    effect: Effect.Effect<A, E, R>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<A, E | LockError, R>
  readonly withLease: <A, E, R>(
    target: Target,
    use: (lease: Lease) => Effect.Effect<A, E, R>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<A, E | LockError, R>
  readonly withTargetIfAvailable: <A, E, R>(
    target: Target,
    use: (lease: Lease) => Effect.Effect<A, E, R>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Option.Option<A>, E | Lock.TryError, R>
  readonly acquire: <E = never>(
    target: Target<E>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, LockError | E, Scope.Scope>
  readonly tryAcquire: (
    target: Target,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Option.Option<Lease>, Lock.TryError, Scope.Scope>
  /**
   * Gives back all but `permits` of the permits of a lease, in turn with what is nested in its region: asked by what is nested
   * itself, it fails with `LockDeadlock`.
   */
  readonly shrink: (
    lease: Lease,
    permits: number
  ) => Effect.Effect<void, LockLost | LockStoreError | LockDeadlock | LockInvalid>
  /** Changes how many permits a key has for all who ask with the limit `declared`. */
  readonly setLimit: (
    key: string,
    declared: number,
    limit: number
  ) => Effect.Effect<LimitSet, LockStoreError | LockInvalid>
  readonly inspect: (key: string) => Effect.Effect<KeyState, LockStoreError | LockInvalid>
}>()("@effect-lock/core/Permits") {}

/**
 * The permits and the `Lock` of an application on a store that counts. Options and closing are those of `Lock.layer`.
 *
 * **Example** (A store that counts)
 *
 * ```ts import.meta.vitest
 * import { Layer } from "effect"
 * import { LockStore, Permits } from "@effect-lock/core"
 *
 * export const LocksLive = Permits.layer({ ttl: "30 seconds" }).pipe(Layer.provide(LockStore.layerMemory))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  defaults?: LockOptions.LockOptions
): Layer.Layer<Permits | Lock.Lock, LockInvalid, PermitStore> => Layer.effectContext(make(defaults))

/**
 * `layer` with its defaults read from configuration, as in `Lock.layerConfig`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  defaults: Config.Wrap<LockOptions.LockOptions>
): Layer.Layer<Permits | Lock.Lock, LockInvalid | Config.ConfigError, PermitStore> =>
  Layer.effectContext(Effect.flatMap(Config.unwrap(defaults), make))

const make = Effect.fnUntraced(function*(
  defaults?: LockOptions.LockOptions
): Effect.fn.Return<Context.Context<Permits | Lock.Lock>, LockInvalid, PermitStore | Scope.Scope> {
  const store = yield* PermitStore
  const engine = yield* engines.make(store, defaults)
  const permits = Permits.of({
    ...engine,
    shrink: (lease, permits) =>
      unless(LockOptions.checkPermits(permits, LockOptions.maxPermits), engine.shrink(store, lease, permits)),
    setLimit: (key, declared, limit) =>
      unless(
        LockOptions.checkKey(key) ?? LockOptions.checkPermits(1, declared) ?? LockOptions.checkPermits(1, limit),
        store.setLimit(key, declared, limit)
      )
  })
  return Context.make(Permits, permits).pipe(Context.add(Lock.Lock, Lock.fromEngine(engine)))
})

const unless = <A, E>(
  invalid: LockInvalid | undefined,
  effect: Effect.Effect<A, E>
): Effect.Effect<A, E | LockInvalid> => invalid === undefined ? effect : Effect.fail(invalid)
