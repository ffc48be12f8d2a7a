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
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import { dual } from "effect/Function"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { Arrears } from "./internal/arrears.ts"
import * as holdings from "./internal/holding.ts"
import { elapsedUnsafe, nowUnsafe } from "./internal/instant.ts"
import * as regions from "./internal/region.ts"
import type { Lease } from "./Lease.ts"
import type { LeaseTicket } from "./LeaseTicket.ts"
import {
  LockDeadlock,
  type LockError,
  type LockInvalid,
  type LockStoreError,
  type LockTimeout,
  type TicketRefused
} from "./LockError.ts"
import * as LockMetrics from "./LockMetrics.ts"
import * as LockOptions from "./LockOptions.ts"
import { type KeyState, LockStore } from "./LockStore.ts"

/**
 * What an attempt that does not wait can fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type TryError = Exclude<LockError, LockTimeout | LockDeadlock>

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
  readonly takeover: (
    key: string,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, TryError, Scope.Scope>
  readonly adopt: (
    ticket: LeaseTicket,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, TryError | TicketRefused, Scope.Scope>
  readonly inspect: (key: string) => Effect.Effect<KeyState, LockStoreError | LockInvalid>
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
  Layer.effect(Lock, make(defaults))

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
  Layer.effect(Lock, Effect.flatMap(Config.unwrap(defaults), make))

interface Entered {
  readonly holding: holdings.Holding
  /** The region whose lease is shared, and the turn taken there. */
  readonly nested: { readonly region: regions.Region; readonly turn: regions.Turn } | undefined
}

/** How somebody asks: `scope` is the one the caller asked with, `owner` the part of it that owns what is got. */
interface Claim {
  readonly key: string
  readonly options: LockOptions.Resolved
  readonly asker: regions.Asker
  readonly surroundings: regions.Surroundings
  readonly scope: Scope.Scope
  readonly owner: Scope.Scope
  readonly wait: boolean
  readonly isBody: boolean
}

/** Everything of a claim that does not depend on what becomes of it. */
type Asked = Pick<Claim, "key" | "options" | "asker" | "surroundings">

type EnterError = Exclude<LockError, LockInvalid>

/** What `acquire` remembers of a lease asked for or held, to tell who would wait for himself. */
interface ScopedHold {
  readonly asker: regions.Asker
  readonly scope: Scope.Scope
  readonly holding: holdings.Holding
}

const make = Effect.fnUntraced(function*(
  defaults?: LockOptions.LockOptions
): Effect.fn.Return<Lock["Service"], LockInvalid, LockStore | Scope.Scope> {
  const store = yield* LockStore
  const base = yield* LockOptions.resolve(defaults)
  const client: holdings.Client = {
    id: yield* randomId,
    store,
    holdings: new Set(),
    // Closed after everything that is forked into it has been waited for.
    scope: Scope.forkUnsafe(yield* Scope.Scope),
    nursery: new holdings.Nursery(),
    arrears: new Arrears(),
    sequence: 0,
    closed: false,
    floor: 0
  }
  // Watches until everything has been closed.
  yield* Effect.forkScoped(client.nursery.watch)
  yield* Effect.forkScoped(client.arrears.settle)
  yield* Effect.addFinalizer(() => closeAll(client, base.releaseTimeout))
  const scopedHolds = new Map<string, Set<ScopedHold>>()
  const regionId = (key: string) => `${client.id}/${key}`

  /** Finds everything that is wrong before anything is sent. */
  const prepare = (
    key: string,
    options: LockOptions.LockOptions | undefined
  ): Effect.Effect<LockOptions.Resolved, LockInvalid> => {
    const invalid = LockOptions.checkKey(key)
    return invalid === undefined ? LockOptions.resolve(options, base) : Effect.fail(invalid)
  }

  const findDeadlock = (key: string, asker: regions.Asker, scope: Scope.Scope): LockDeadlock | undefined => {
    for (const hold of scopedHolds.get(key) ?? []) {
      // A lost lease is in nobody's way for longer than its ttl.
      if (hold.holding.check() !== undefined) continue
      if (hold.scope === scope || regions.waitsFor(hold.asker, asker)) {
        return new LockDeadlock({ key, token: hold.holding.token })
      }
    }
    return undefined
  }

  const remember = (key: string, hold: ScopedHold): void => {
    scopedHolds.set(key, (scopedHolds.get(key) ?? new Set()).add(hold))
  }

  const forget = (key: string, hold: ScopedHold): void => {
    const holds = scopedHolds.get(key)
    if (holds?.delete(hold) && holds.size === 0) scopedHolds.delete(key)
  }

  /** Gets a lease: a turn in the region this fiber is inside of, or a grant of the store. */
  const enter = (claim: Claim): Effect.Effect<Entered, EnterError> =>
    Clock.clockWith((clock) => {
      const { asker, key, options, owner } = claim
      const askedAt = nowUnsafe(clock)

      const again: Effect.Effect<Entered, EnterError> = Effect.suspend((): Effect.Effect<Entered, EnterError> => {
        const region = regions.find(claim.surroundings, regionId(key))
        if (region !== undefined) {
          const turn = new regions.Turn(asker, claim.scope, claim.isBody)
          const timeout = claim.wait ? options.waitTimeout : 0
          const wait = { timeout, timeLeft: timeout - elapsedUnsafe(askedAt, clock) }
          return Scope.addFinalizer(owner, Effect.sync(() => regions.endTurn(region, turn))).pipe(
            Effect.andThen(regions.takeTurn(region, turn, wait)),
            Effect.flatMap((taken) =>
              taken ? Effect.succeed({ holding: region.holding, nested: { region, turn } }) : again
            )
          )
        }
        const holding = new holdings.Holding(client, key, options, clock, askedAt)
        const hold: ScopedHold | undefined = claim.isBody ? undefined : { asker, scope: claim.scope, holding }
        const ask = Effect.suspend((): Effect.Effect<Entered, EnterError> => {
          const deadlock = findDeadlock(key, asker, claim.scope)
          if (deadlock !== undefined) return Effect.fail(deadlock)
          if (hold !== undefined) remember(key, hold)
          return Effect.as(traceAcquire(holding, holdings.open(holding, owner, holdings.attempt(claim.wait))), {
            holding,
            nested: undefined
          })
        })
        return hold === undefined
          ? ask
          : Effect.andThen(Scope.addFinalizer(owner, Effect.sync(() => forget(key, hold))), ask)
      })
      return again
    })

  const runInside = <A, E, R>(effect: Effect.Effect<A, E, R>, { holding, nested }: Entered, claim: Claim) =>
    regions.run(
      regionId(claim.key),
      new regions.Region(holding, nested?.region),
      claim.asker,
      claim.surroundings,
      nested === undefined ? traceHold(holding, effect) : effect
    )

  const withClaim = <A, E, R>(
    key: string,
    options: LockOptions.LockOptions | undefined,
    use: (asked: Asked) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | LockInvalid, R> =>
    Effect.flatMap(prepare(key, options), (resolved) =>
      Effect.withFiber((fiber) => {
        const surroundings = fiber.getRef(regions.CurrentSurroundings)
        return use({ key, options: resolved, asker: regions.askerOf(surroundings, fiber.id), surroundings })
      }))

  const withLock: Lock["Service"]["withLock"] = (effect, key, options) =>
    withClaim(key, options, (asked) =>
      Effect.scopedWith((scope) => {
        const claim: Claim = { ...asked, scope, owner: scope, wait: true, isBody: true }
        return Effect.flatMap(enter(claim), (entered) => runInside(effect, entered, claim))
      }))

  const withLockIfAvailable: Lock["Service"]["withLockIfAvailable"] = (effect, key, options) =>
    withClaim(key, options, (asked) =>
      Effect.scopedWith((scope) => {
        const claim: Claim = { ...asked, scope, owner: scope, wait: false, isBody: true }
        return Effect.flatMap(ifAvailable(enter(claim)), (entered) =>
          Option.isNone(entered) ? Effect.succeedNone : Effect.asSome(runInside(effect, entered.value, claim)))
      }))

  /** A scope of its own ends with a failed or interrupted acquisition at once, however long the caller's lives. */
  const enterScoped = (
    key: string,
    options: LockOptions.LockOptions | undefined,
    wait: boolean
  ): Effect.Effect<Lease, EnterError | LockInvalid, Scope.Scope> =>
    withClaim(key, options, (asked) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(Scope.Scope, (scope) => {
          const owner = Scope.forkUnsafe(scope)
          return restore(enter({ ...asked, scope, owner, wait, isBody: false })).pipe(
            Effect.map(makeLease),
            Effect.onError((cause) => Scope.close(owner, Exit.failCause(cause)))
          )
        })
      ))

  /** Gets a lease by other means than asking for a free key, whatever this fiber is inside of. */
  const openScoped = <E>(
    key: string,
    options: LockOptions.LockOptions | undefined,
    how: holdings.Ask<E>
  ): Effect.Effect<Lease, EnterError | LockInvalid | E, Scope.Scope> =>
    withClaim(
      key,
      options,
      ({ asker, options }) =>
        Effect.uninterruptibleMask((restore) =>
          Effect.flatMap(Scope.Scope, (scope) =>
            Clock.clockWith((clock) => {
              const owner = Scope.forkUnsafe(scope)
              const holding = new holdings.Holding(client, key, options, clock, nowUnsafe(clock))
              const hold = { asker, scope, holding }
              remember(key, hold)
              return Scope.addFinalizer(owner, Effect.sync(() => forget(key, hold))).pipe(
                Effect.andThen(restore(traceAcquire(holding, holdings.open(holding, owner, how)))),
                Effect.map(() => makeLease({ holding, nested: undefined })),
                Effect.onError((cause) => Scope.close(owner, Exit.failCause(cause)))
              )
            }))
        )
    )

  const runInBackground = yield* FiberSet.makeRuntime<never, void, never>()
  yield* store.onLoss((loss) => {
    for (const holding of client.holdings) {
      if (loss._tag === "TakenOver" && holding.holderId === loss.holderId) holding.lose("TakenOver")
      if (loss._tag === "InDoubt" && (loss.key ?? holding.key) === holding.key) {
        runInBackground(holdings.verify(holding))
      }
    }
  })

  return Lock.of({
    takeover: (key, options) => withoutTimeout(openScoped(key, options, holdings.takeover)),
    adopt: (ticket, options) => withoutTimeout(openScoped(ticket.key, options, holdings.adopt(ticket))),
    acquire: (key, options) => enterScoped(key, options, true),
    tryAcquire: (key, options) => ifAvailable(enterScoped(key, options, false)),
    withLock,
    withLockIfAvailable,
    inspect: (key) => {
      const invalid = LockOptions.checkKey(key)
      return invalid === undefined ? store.inspect(key) : Effect.fail(invalid)
    }
  })
})

// 128 random bits; not from Effect's `Random`, which two processes may have given the same seed.
const randomId = Effect.sync(() => {
  const { crypto } = globalThis as unknown as { readonly crypto: { readonly randomUUID: () => string } }
  return crypto.randomUUID().replaceAll("-", "")
})

const ifAvailable = <A, R>(
  effect: Effect.Effect<A, LockError, R>
): Effect.Effect<Option.Option<A>, TryError, R> =>
  Effect.asSome(effect).pipe(
    Effect.catchTag(["LockTimeout", "LockDeadlock"], () => Effect.succeedNone)
  )

/** Who does not queue cannot wait for too long, nor for himself. */
const withoutTimeout = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect as Effect.Effect<A, Exclude<E, LockTimeout | LockDeadlock>, R>

const makeLease = ({ holding, nested }: Entered): Lease => {
  const over = nested === undefined
    ? Deferred.await(holding.over)
    : Effect.raceAllFirst([
      Deferred.await(holding.over),
      Deferred.await(nested.region.over),
      Effect.andThen(Deferred.await(nested.turn.done), Effect.suspend(() => Effect.fail(regions.ended(nested.region))))
    ])
  const loss = () =>
    holding.check() ??
      (holding.phase === "handedOff" ? holdings.handedOff(holding) : undefined) ??
      (nested !== undefined && (nested.turn.isDone || !nested.region.open) ? regions.ended(nested.region) : undefined)
  const check = holdings.failIf(loss)
  return {
    key: holding.key,
    holderId: holding.holderId,
    token: holding.token,
    deadline: Clock.clockWith((clock) =>
      Effect.sync(() => DateTime.makeUnsafe(clock.currentTimeMillisUnsafe() + holding.timeLeft()))
    ),
    isValid: Effect.sync(() => loss() === undefined),
    lost: over,
    protect: (effect) => holdings.protect(over, check, effect),
    check,
    extend: (ttl) =>
      Effect.flatMap(
        LockOptions.resolveTtl(ttl),
        (millis) => holdings.protect(over, check, holdings.extend(holding, millis))
      ),
    handOff: Effect.andThen(check, holdings.handOff(holding))
  }
}

/** Ends every lock of a closing layer: waiters and guarded work end by themselves, the rest is released for them. */
const closeAll = (client: holdings.Client, timeout: number): Effect.Effect<void> =>
  Effect.suspend(() => {
    client.closed = true
    const open = Array.from(client.holdings)
    for (const holding of open) {
      holding.ended = Deferred.makeUnsafe()
      holding.lose("Closed")
    }
    return Effect.forEach(open, (holding) => Deferred.await(holding.ended!), {
      concurrency: "unbounded",
      discard: true
    })
      .pipe(
        Effect.timeoutOption(timeout),
        Effect.andThen(
          Effect.suspend(() =>
            Effect.forEach(Array.from(client.holdings), holdings.end, { concurrency: "unbounded", discard: true })
          )
        )
      )
  })

/** The span of waiting for a lock names who was in the way. */
const traceAcquire = <E>(holding: holdings.Holding, acquiring: Effect.Effect<unknown, E>): Effect.Effect<void, E> =>
  Effect.useSpan(
    "Lock.acquire",
    { attributes: attributes(holding) },
    (span) =>
      Effect.onExit(Effect.provideService(acquiring, Tracer.ParentSpan, span), (exit) => {
        const outcome = outcomeOf(exit)
        const waited = holding.waitedFor()
        span.attribute("lock.outcome", outcome)
        span.attribute("lock.wait_ms", waited)
        if (holding.token > 0) span.attribute("lock.token", holding.token)
        if (holding.blockedBy !== undefined) span.attribute("lock.blocked_by", holding.blockedBy)
        return Effect.withFiber(({ context }) => {
          if (outcome === "granted") {
            granted.updateUnsafe(1, context)
            LockMetrics.wait.updateUnsafe(waited, context)
          } else Metric.withAttributes(LockMetrics.acquisitions, { outcome }).updateUnsafe(1, context)
          return Effect.void
        })
      })
  )

const granted = Metric.withAttributes(LockMetrics.acquisitions, { outcome: "granted" })

const traceHold = <A, E, R>(holding: holdings.Holding, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.useSpan(
    "Lock.hold",
    { attributes: { ...attributes(holding), "lock.token": holding.token } },
    (span) => Effect.provideService(effect, Tracer.ParentSpan, span)
  ) as Effect.Effect<A, E, R>

const attributes = (holding: holdings.Holding) => ({
  "lock.key": holding.key,
  "lock.store": holding.client.store.name,
  "lock.holder_id": holding.holderId
})

const outcomeOf = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return "granted"
  const failure = Exit.findErrorOption(exit)
  if (Option.isSome(failure) && Predicate.hasProperty(failure.value, "_tag")) return String(failure.value._tag)
  return Exit.hasInterrupts(exit) ? "interrupted" : "died"
}
