/**
 * Distributed locks as scoped resources. A lock is held for as long as its scope is open and the store confirms it: a
 * fiber in the scope renews the lease, a lost lease interrupts the work it guarded, and release happens in a guaranteed
 * order on success, failure and interruption alike.
 *
 * **When to use**
 *
 * Use `withLock` around an effect that must run in one place at a time. Use `acquire` when the lock must span several
 * effects of one scope, and guard them with `lease.protect`.
 *
 * **Gotchas**
 *
 * A lock on leases is exact only while clocks run at about the same rate and the store keeps its promises. A process that
 * stops right after a check can still write late: send `lease.token` along and let the resource refuse smaller ones.
 *
 * **Example** (One at a time)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * let balance = 100
 * const withdraw = (amount: number) =>
 *   Effect.gen(function*() {
 *     const before = balance
 *     yield* Effect.yieldNow
 *     balance = before - amount
 *   }).pipe(Lock.withLock("account:7", { ttl: "30 seconds", waitTimeout: "5 seconds" }))
 *
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.all([withdraw(10), withdraw(20)], { concurrency: "unbounded" }).pipe(
 *   Effect.provide(LockLive),
 *   Effect.runPromise
 * )
 * balance // => 70
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as acquiring from "./internal/acquiring.ts"
import * as engines from "./internal/engine.ts"
import type { Listener } from "./internal/events.ts"
import type { Lease } from "./Lease.ts"
import type { LeaseTicket } from "./LeaseTicket.ts"
import type {
  LockDeadlock,
  LockError,
  LockInvalid,
  LockQueueFull,
  LockStoreError,
  LockTimeout,
  TicketRefused
} from "./LockError.ts"
import type { LockEvent } from "./LockEvent.ts"
import * as LockOptions from "./LockOptions.ts"
import { type KeyState, LockStore } from "./LockStore.ts"

/**
 * What an attempt that does not wait can fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type TryError = Exclude<LockError, LockTimeout | LockDeadlock | LockQueueFull>

/**
 * The locks of an application: one client of one store.
 *
 * **When to use**
 *
 * Provide it once with `layer`. The functions of this module use the service in the environment; call its methods when
 * you have it at hand.
 *
 * @category services
 * @since 0.1.0
 */
export class Lock extends Context.Service<Lock, {
  readonly acquire: (
    key: string,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, LockError, Scope.Scope>
  readonly tryAcquire: (
    key: string,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Option.Option<Lease>, TryError, Scope.Scope>
  readonly withLock: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<A, E | LockError, R>
  readonly withLockIfAvailable: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Option.Option<A>, E | TryError, R>
  readonly once: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options: OnceOptions
  ) => Effect.Effect<Option.Option<A>, E | TryError, R>
  readonly withLease: <A, E, R>(
    key: string,
    use: (lease: Lease) => Effect.Effect<A, E, R>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<A, E | LockError, R>
  readonly withLeaseIfAvailable: <A, E, R>(
    key: string,
    use: (lease: Lease) => Effect.Effect<A, E, R>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Option.Option<A>, E | TryError, R>
  readonly withLocks: <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    keys: ReadonlyArray<string>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<A, E | LockError, R>
  readonly acquireAll: (
    keys: ReadonlyArray<string>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<ReadonlyArray<Lease>, LockError, Scope.Scope>
  readonly takeover: (
    key: string,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, TryError, Scope.Scope>
  readonly adopt: (
    ticket: LeaseTicket,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, TryError | TicketRefused, Scope.Scope>
  readonly inspect: (key: string) => Effect.Effect<KeyState, LockStoreError | LockInvalid>
  readonly list: (prefix: string) => Effect.Effect<ReadonlyArray<KeyState>, LockStoreError>
  readonly events: Stream.Stream<LockEvent>
}>()("@effect-lock/core/Lock") {}

/**
 * Runs an effect while holding a key: acquires, runs, releases.
 *
 * **Details**
 *
 * The order is guaranteed. The effect ends or is interrupted, its finalizers run, renewal is stopped and awaited, the
 * release is sent (bounded by `releaseTimeout`), and the effect's own exit is returned unchanged: a failed release is
 * logged and counted. If the lease is lost, the effect is interrupted and the whole fails with `LockLost`.
 *
 * Inside the effect, asking for the same key again, in this or any forked fiber, shares this lease; those who do so at
 * the same time take turns. What is still nested when the effect ends is interrupted with `LockLost`. Options of a nested
 * call other than `waitTimeout` have no effect.
 *
 * **Gotchas**
 *
 * An uninterruptible part of the effect runs to its end even when the lease is lost; its result is then discarded.
 * Resources in an outer scope outlive the lock: open them inside the effect.
 *
 * **Example** (Bounding the wait)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const report = Effect.succeed("done").pipe(
 *   Lock.withLock("report", { waitTimeout: "5 seconds" }),
 *   Effect.catchTag("LockTimeout", (error) => Effect.succeed(`busy: ${error.holders.length} holder`))
 * )
 * await Effect.runPromise(Effect.provide(report, Lock.layer().pipe(Layer.provide(LockStore.layerMemory)))) // => "done"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withLock: {
  (
    key: string,
    options?: LockOptions.LockOptions
  ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockError, R | Lock>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options?: LockOptions.LockOptions
  ): Effect.Effect<A, E | LockError, R | Lock>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options?: LockOptions.LockOptions
  ): Effect.Effect<A, E | LockError, R | Lock> => Lock.use((lock) => lock.withLock(effect, key, options))
)

/**
 * Runs an effect if the key is free right now: `Some` of its result, or `None` when somebody holds the key or waits for
 * it.
 *
 * **Example** (Skip when busy)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer, Option } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const refresh = Effect.succeed("refreshed").pipe(Lock.withLockIfAvailable("cache"))
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(refresh, LockLive)) // => Option.some("refreshed")
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withLockIfAvailable: {
  (
    key: string,
    options?: LockOptions.LockOptions
  ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<Option.Option<A>, E | TryError, R | Lock>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options?: LockOptions.LockOptions
  ): Effect.Effect<Option.Option<A>, E | TryError, R | Lock>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options?: LockOptions.LockOptions
  ): Effect.Effect<Option.Option<A>, E | TryError, R | Lock> =>
    Lock.use((lock) => lock.withLockIfAvailable(effect, key, options))
)

/**
 * As `withLock`, for work that needs the lease: its token, `check` between steps, `heartbeat`, `revocation`.
 *
 * **Example** (The token goes along with every write)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const write = (token: number) => Effect.succeed(`written with token ${token > 0}`)
 * const program = Lock.withLease("report", (lease) => write(lease.token), { ttl: "10 seconds" })
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => "written with token true"
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withLease = <A, E, R>(
  key: string,
  use: (lease: Lease) => Effect.Effect<A, E, R>,
  options?: LockOptions.LockOptions
): Effect.Effect<A, E | LockError, R | Lock> => Lock.use((lock) => lock.withLease(key, use, options))

/**
 * As `withLockIfAvailable`, for work that needs the lease.
 *
 * @category combinators
 * @since 0.1.0
 */
export const withLeaseIfAvailable = <A, E, R>(
  key: string,
  use: (lease: Lease) => Effect.Effect<A, E, R>,
  options?: LockOptions.LockOptions
): Effect.Effect<Option.Option<A>, E | TryError, R | Lock> =>
  Lock.use((lock) => lock.withLeaseIfAvailable(key, use, options))

/**
 * Runs an effect while holding several keys: all or nothing.
 *
 * **Details**
 *
 * Keys are taken in one canonical order, whatever order they are given in, and duplicates are merged, so callers of
 * `withLocks` cannot wait for each other in a circle. While nothing is taken, all keys cost one round trip. Otherwise what
 * comes before the first key that is taken is kept, what comes after it is given back, and that key is waited for.
 * `waitTimeout` bounds the whole. Each key has a lease of its own; losing one ends all, also while others are waited for.
 * They are released at the same time. `minHold` and `progressTimeout` count for the work, which begins with the last grant;
 * `maxHold` counts from each key's own.
 *
 * **Gotchas**
 *
 * The order covers the keys of one call. Calls nested in each other have to agree on one: see `LockOrder`.
 *
 * **Example** (From one account to another)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const transfer = (from: string, to: string) =>
 *   Effect.succeed(`${from} to ${to}`).pipe(Lock.withLocks([`account:${from}`, `account:${to}`]))
 *
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * const both = Effect.all([transfer("1", "2"), transfer("2", "1")], { concurrency: 2 })
 * await Effect.runPromise(Effect.provide(both, LockLive)) // => ["1 to 2", "2 to 1"]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const withLocks: {
  (
    keys: ReadonlyArray<string>,
    options?: LockOptions.LockOptions
  ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockError, R | Lock>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    keys: ReadonlyArray<string>,
    options?: LockOptions.LockOptions
  ): Effect.Effect<A, E | LockError, R | Lock>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    keys: ReadonlyArray<string>,
    options?: LockOptions.LockOptions
  ): Effect.Effect<A, E | LockError, R | Lock> => Lock.use((lock) => lock.withLocks(effect, keys, options))
)

/**
 * How to run something once within a time: the options of a lock, and that time.
 *
 * @category models
 * @since 0.1.0
 */
export interface OnceOptions
  extends Omit<LockOptions.LockOptions, "waitTimeout" | "minHold" | "maxHold" | "maxWaiters" | "priority">
{
  /** For how long from the start of one run nobody else begins another: at most 24.8 days, as for every finite duration. */
  readonly within: Duration.Input
  /**
   * Default the longer of `within` and 30 seconds, so that a killed run is not repeated within that time either. With a shorter
   * one somebody else can run it when that has passed. On a quorum it cannot be longer than `maxTtl`, and a server with lock
   * delay grants nothing for as long as the longest ttl in use when it has lost its memory.
   */
  readonly ttl?: Duration.Input | undefined
}

/**
 * Runs an effect unless somebody has begun to within the time before: `Some` of its result, or `None`.
 *
 * **Details**
 *
 * A run that fails counts, too. One that takes longer than `within` keeps the key until it ends. Whoever holds the key has
 * begun, so inside of `withLock` or `once` of the same key it is `None`.
 *
 * **Gotchas**
 *
 * That it ran is known to the store alone. One that loses its memory forgets it: with lock delay (one Redis) or quarantine (a
 * quorum, whose `maxTtl` should not be shorter than `within`) nobody runs it meanwhile, but afterwards somebody may.
 *
 * **Example** (At most one reminder an hour)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer, Option } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const remind = Effect.succeed("reminded").pipe(Lock.once("reminder:7", { within: "1 hour" }))
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(Effect.all([remind, remind]), LockLive)) // => [Option.some("reminded"), Option.none()]
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const once: {
  (
    key: string,
    options: OnceOptions
  ): <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<Option.Option<A>, E | TryError, R | Lock>
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options: OnceOptions
  ): Effect.Effect<Option.Option<A>, E | TryError, R | Lock>
} = dual(
  3,
  <A, E, R>(
    effect: Effect.Effect<A, E, R>,
    key: string,
    options: OnceOptions
  ): Effect.Effect<Option.Option<A>, E | TryError, R | Lock> => Lock.use((lock) => lock.once(effect, key, options))
)

/**
 * Acquires a key for as long as the scope is open.
 *
 * **When to use**
 *
 * Use when a lock must compose with other resources of a scope: what was opened after it is closed before its release.
 *
 * **Gotchas**
 *
 * Nothing is interrupted when the lease is lost unless it runs under `lease.protect` or races `lease.lost`. Asking again
 * for the key in the same fiber, or into the same scope, fails with `LockDeadlock`. Bound the wait with `waitTimeout`
 * rather than `Effect.timeout`, which cannot tell what it waited for.
 *
 * **Example** (A lease beside other resources)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.scoped(Effect.gen(function*() {
 *   const lease = yield* Lock.acquire("report")
 *   return yield* lease.protect(Effect.succeed(`written with token ${lease.token > 0}`))
 * }))
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => "written with token true"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const acquire = (
  key: string,
  options?: LockOptions.LockOptions
): Effect.Effect<Lease, LockError, Lock | Scope.Scope> => Lock.use((lock) => lock.acquire(key, options))

/**
 * Acquires a key if it is free right now: `None` when somebody holds it or waits for it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const tryAcquire = (
  key: string,
  options?: LockOptions.LockOptions
): Effect.Effect<Option.Option<Lease>, TryError, Lock | Scope.Scope> =>
  Lock.use((lock) => lock.tryAcquire(key, options))

/**
 * Acquires several keys for as long as the scope is open, as `withLocks` does: all or nothing. One lease for each key
 * given, in that order; a key that is given twice has one lease.
 *
 * **Example** (All leases of a batch)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.scoped(Effect.map(Lock.acquireAll(["b", "a"]), (leases) => leases.map(({ key }) => key)))
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => ["b", "a"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const acquireAll = (
  keys: ReadonlyArray<string>,
  options?: LockOptions.LockOptions
): Effect.Effect<ReadonlyArray<Lease>, LockError, Lock | Scope.Scope> =>
  Lock.use((lock) => lock.acquireAll(keys, options))

/**
 * Takes a key away from whoever holds it, ahead of everybody who waits.
 *
 * **When to use**
 *
 * For operators and for work that must not wait: the holder is told at once where the store pushes, by its next renewal
 * otherwise, and its work is interrupted with `LockLost` (`TakenOver`).
 *
 * **Gotchas**
 *
 * Between the take-over and the moment the evicted holder hears of it both believe they hold the key: only a resource that
 * compares tokens keeps the evicted one out, whose token is smaller already.
 *
 * **Example** (Evicting a holder)
 *
 * ```ts import.meta.vitest
 * import { Effect, Fiber, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.gen(function*() {
 *   const evicted = yield* Effect.forkChild(Effect.flip(Lock.withLock(Effect.never, "report")), { startImmediately: true })
 *   yield* Effect.scoped(Lock.takeover("report"))
 *   return String((yield* Fiber.join(evicted))._tag)
 * })
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => "LockLost"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const takeover = (
  key: string,
  options?: LockOptions.LockOptions
): Effect.Effect<Lease, TryError, Lock | Scope.Scope> => Lock.use((lock) => lock.takeover(key, options))

/**
 * Turns a ticket of `lease.handOff` into a lease of this scope: with a holder id of its own and a greater token, once.
 *
 * **Details**
 *
 * Fails with `TicketRefused`, which says whether the ticket was adopted before, came too late, or the key was taken over.
 *
 * **Example** (From one scope to another)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.gen(function*() {
 *   const ticket = yield* Effect.scoped(Effect.flatMap(Lock.acquire("report"), (lease) => lease.handOff))
 *   return yield* Effect.scoped(Effect.map(Lock.adopt(ticket), (lease) => lease.token > ticket.token))
 * })
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => true
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const adopt = (
  ticket: LeaseTicket,
  options?: LockOptions.LockOptions
): Effect.Effect<Lease, TryError | TicketRefused, Lock | Scope.Scope> => Lock.use((lock) => lock.adopt(ticket, options))

/**
 * Who holds a key and who waits for it, in the order in which they will be granted.
 *
 * **Gotchas**
 *
 * The answer is old when you read it: decide nothing by it that a lock should decide.
 *
 * @category getters
 * @since 0.1.0
 */
export const inspect = (key: string): Effect.Effect<KeyState, LockStoreError | LockInvalid, Lock> =>
  Lock.use((lock) => lock.inspect(key))

/**
 * The keys in use that begin so, sorted, each as `inspect` tells of it.
 *
 * **Gotchas**
 *
 * The store looks through all of its keys, which takes time where there are many: for people and dashboards, not for
 * programs that decide. Each key is looked at for itself, so the whole is no snapshot.
 *
 * @category getters
 * @since 0.1.0
 */
export const list = (prefix: string): Effect.Effect<ReadonlyArray<KeyState>, LockStoreError, Lock> =>
  Lock.use((lock) => lock.list(prefix))

/**
 * What happens to the locks of this layer from now on: who queues, is granted, released, lost and why.
 *
 * **Gotchas**
 *
 * Only of this layer in this process, and only for as long as somebody listens. Who reads too slowly misses the oldest of
 * more than 1024 events that wait for him. The stream does not end by itself.
 *
 * **Example** (The first two events)
 *
 * ```ts import.meta.vitest
 * import { Effect, Fiber, Layer, Stream } from "effect"
 * import { Lock, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.gen(function*() {
 *   const events = yield* Effect.forkChild(Stream.runCollect(Stream.take(Lock.events, 2)), { startImmediately: true })
 *   yield* Effect.void.pipe(Lock.withLock("report"))
 *   return (yield* Fiber.join(events)).map(({ _tag }): string => _tag)
 * })
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => ["Granted", "Released"]
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const events: Stream.Stream<LockEvent, never, Lock> = Stream.unwrap(Lock.useSync((lock) => lock.events))

/**
 * The locks of an application on the `LockStore` in the environment.
 *
 * **Details**
 *
 * `defaults` apply to every call that does not say otherwise; invalid ones fail the layer with `LockInvalid`. When the
 * layer closes, nothing is acquired any more, waiters fail with `LockClosed`, guarded work is interrupted with
 * `LockLost`, and every lease is released: at most `releaseTimeout` for the work to end, and as much again for the
 * releases of what has not ended by then.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (defaults?: LockOptions.LockOptions): Layer.Layer<Lock, LockInvalid, LockStore> =>
  Layer.effect(Lock, Effect.map(make(defaults), fromEngine))

/**
 * `layer` with its defaults read from configuration.
 *
 * **Example** (From the environment)
 *
 * ```ts import.meta.vitest
 * import { Config } from "effect"
 * import { Lock } from "@effect-lock/core"
 *
 * const LockLive = Lock.layerConfig({
 *   ttl: Config.Duration("LOCK_TTL").pipe(Config.withDefault("30 seconds")),
 *   waitTimeout: Config.Duration("LOCK_WAIT_TIMEOUT").pipe(Config.withDefault("1 minute"))
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  defaults: Config.Wrap<LockOptions.LockOptions>
): Layer.Layer<Lock, LockInvalid | Config.ConfigError, LockStore> =>
  Layer.effect(Lock, Effect.map(Effect.flatMap(Config.unwrap(defaults), make), fromEngine))

const make = (defaults?: LockOptions.LockOptions) => LockStore.use((store) => engines.make(store, defaults))

/** @internal */
export const fromEngine = (engine: engines.Engine): Lock["Service"] =>
  Lock.of({
    withLock: (effect, key, options) => engine.withTarget(engines.mutex(key), effect, options),
    withLockIfAvailable: (effect, key, options) =>
      engine.withTargetIfAvailable(engines.mutex(key), () => effect, options),
    once: (effect, key, { within, ...options }) =>
      Effect.flatMap(LockOptions.resolveDuration("within", within, { min: 10 }), (minHold) =>
        // Not with the lease of a region around: whoever has that has begun, and it is not kept for `within`.
        engine.withTargetIfAvailable({ ...engines.mutex(key), isShared: false }, () => effect, {
          ...options,
          ttl: options.ttl ?? Math.max(minHold, LockOptions.defaults.ttl),
          minHold,
          maxHold: Infinity
        })),
    withLease: (key, use, options) => engine.withLease(engines.mutex(key), use, options),
    withLeaseIfAvailable: (key, use, options) => engine.withTargetIfAvailable(engines.mutex(key), use, options),
    withLocks: (effect, keys, options) => engine.withTargets(keys.map(engines.mutex), effect, options),
    acquire: (key, options) => engine.acquire(engines.mutex(key), options),
    tryAcquire: (key, options) => engine.tryAcquire(engines.mutex(key), options),
    acquireAll: (keys, options) => engine.acquireAll(keys.map(engines.mutex), options),
    takeover: (key, options) => engine.open(engines.mutex(key), acquiring.takeover, options),
    adopt: (ticket, options) => engine.open(engines.mutex(ticket.key), acquiring.adopt(ticket), options),
    inspect: engine.inspect,
    list: engine.list,
    events: eventsOf(engine)
  })

const eventsOf = ({ listeners }: engines.Engine): Stream.Stream<LockEvent> =>
  Stream.callback<LockEvent>((queue) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const listener: Listener = (event) => void Queue.offerUnsafe(queue, event)
        listeners.add(listener)
        return listener
      }),
      (listener) => Effect.sync(() => listeners.delete(listener))
    ), { bufferSize: 1024, strategy: "sliding" })
