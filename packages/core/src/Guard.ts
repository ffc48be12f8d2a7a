/**
 * The lock as a capability in the type: what needs a guard cannot be called outside of its lock, because it does not
 * compile.
 *
 * **When to use**
 *
 * Use when a function is only safe under a lock that its callers take. It says so by requiring the guard, and nobody can
 * forget. Where one function takes the lock and does the work, `Lock.withLock` is enough.
 *
 * **Gotchas**
 *
 * Types tell that some key of the guard is held, not which: compare `id` where it could be another one. Nor do they tell
 * for how long: a fiber that is forked under the lock and outlives it still has the guard. Its `check` and `protect` fail
 * with `LockLost` then, and a resource that compares tokens refuses it.
 *
 * There is no layer and no scoped form of a guard. Work that merely runs in a scope is not interrupted when the lease is
 * lost, so the requirement would be met without the promise behind it: use `Lock.acquire` with `lease.protect`.
 *
 * **Example** (No payment without the invoice's lock)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Guard, Lock, LockStore } from "@effect-lock/core"
 *
 * class InvoiceGuard extends Guard.Service<InvoiceGuard>()("InvoiceGuard", {
 *   key: (id: number) => `invoice:${id}`,
 *   ttl: "30 seconds"
 * }) {}
 *
 * const pay = Effect.gen(function*() {
 *   const { id, token } = yield* InvoiceGuard
 *   return `paid ${id} with token ${token > 0}`
 * })
 *
 * // Does not compile without `InvoiceGuard.with`.
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(pay.pipe(InvoiceGuard.with(7), Effect.provide(LockLive))) // => "paid 7 with token true"
 * ```
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import type * as Option from "effect/Option"
import type { Lease } from "./Lease.ts"
import * as Lock from "./Lock.ts"
import type { LockError } from "./LockError.ts"
import type { LockOptions } from "./LockOptions.ts"

const TypeId: unique symbol = Symbol.for("@effect-lock/core/Guard")

/**
 * What the work under a guard has: its lease, and the id that the lock was taken for. Only the guard itself makes one, and
 * no `Lease` passes for it. It cannot be handed off, because the work would go on without it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Guarded<Name extends string, Id> extends Omit<Lease, "handOff"> {
  readonly [TypeId]: Name
  readonly id: Id
}

/**
 * How a guard locks: the key of an id, and options as for every lock.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<Id> extends LockOptions {
  readonly key: (id: Id) => string
}

/**
 * A guard: the requirement, and the ways to meet it.
 *
 * @category models
 * @since 0.1.0
 */
export interface ServiceClass<Self, Name extends string, Id>
  extends Context.ServiceClass<Self, Name, Guarded<Name, Id>>
{
  /** The key that is locked for an id, for `Lock.inspect`. */
  readonly keyOf: (id: Id) => string
  /**
   * Runs an effect under the lock of an id, as `Lock.withLock`, and removes the guard from its requirements. Guards nest, in
   * others and in themselves: the same key shares the lease, and of two ids the inner one is the guard's inside.
   */
  readonly with: {
    (id: Id, options?: LockOptions): <A, E, R>(effect: Effect.Effect<A, E, R>) => Inside<Self, A, E | LockError, R>
    <A, E, R>(effect: Effect.Effect<A, E, R>, id: Id, options?: LockOptions): Inside<Self, A, E | LockError, R>
  }
  /** As `with`, if the key is free right now: `None` when somebody holds it or waits for it. */
  readonly withIfAvailable: {
    (
      id: Id,
      options?: LockOptions
    ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Inside<Self, Option.Option<A>, E | Lock.TryError, R>
    <A, E, R>(
      effect: Effect.Effect<A, E, R>,
      id: Id,
      options?: LockOptions
    ): Inside<Self, Option.Option<A>, E | Lock.TryError, R>
  }
}

/**
 * What becomes of an effect under a guard: it needs the guard no more, but `Lock`.
 *
 * @category models
 * @since 0.1.0
 */
export type Inside<Self, A, E, R> = Effect.Effect<A, E, Exclude<R, Self> | Lock.Lock>

/**
 * Makes a guard, to be extended by a class of the same name. `id` may be anything; a `key` without argument guards one thing.
 *
 * **Gotchas**
 *
 * As with every service, the name is what tells guards apart at run time: give each its own.
 *
 * **Example** (A guard of one thing, and its options)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer, Option } from "effect"
 * import { Guard, Lock, LockStore } from "@effect-lock/core"
 *
 * class MigrationGuard extends Guard.Service<MigrationGuard>()("MigrationGuard", { key: () => "migration" }) {}
 *
 * const migrate = MigrationGuard.use(({ check }) => Effect.as(check, "migrated"))
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * const program = migrate.pipe(MigrationGuard.withIfAvailable(undefined, { maxHold: "10 minutes" }))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => Option.some("migrated")
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const Service =
  <Self>() => <const Name extends string, Id = void>(name: Name, guard: Options<Id>): ServiceClass<Self, Name, Id> => {
    const tag = Context.Service<Self, Guarded<Name, Id>>()(name)
    const { key: keyOf, ...defaults } = guard
    const guarded = (lock: (key: string, use: Use, options: LockOptions) => Effect.Effect<any, any, any>) =>
      dual(
        (args) => Effect.isEffect(args[0]),
        <A, E, R>(effect: Effect.Effect<A, E, R>, id: Id, options?: LockOptions) =>
          Effect.suspend(() => {
            const use = (lease: Lease) => Effect.provideService(effect, tag, { ...lease, id, [TypeId]: name })
            return lock(keyOf(id), use, { ...defaults, ...present(options) })
          })
      )
    return Object.assign(tag, {
      keyOf,
      with: guarded(Lock.withLease),
      withIfAvailable: guarded(Lock.withLeaseIfAvailable)
    }) as ServiceClass<Self, Name, Id>
  }

type Use = (lease: Lease) => Effect.Effect<any, any, any>

/** What is explicitly undefined counts as left out. */
const present = (options: LockOptions = {}): LockOptions =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
