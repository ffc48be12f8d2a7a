import * as Clock from "effect/Clock"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import type { Lease } from "../Lease.ts"
import type { TryError } from "../Lock.ts"
import {
  LockDeadlock,
  type LockError,
  LockInvalid,
  type LockLost,
  type LockQueueFull,
  type LockStoreError,
  type LockTimeout,
  PermitsRefused
} from "../LockError.ts"
import * as LockMetrics from "../LockMetrics.ts"
import * as LockOptions from "../LockOptions.ts"
import type { KeyState, LockStore, PermitStore } from "../LockStore.ts"
import type { Permits, Target } from "../Permits.ts"
import * as acquiring from "./acquiring.ts"
import { Arrears } from "./arrears.ts"
import * as ending from "./ending.ts"
import * as events from "./events.ts"
import * as holdings from "./holding.ts"
import { elapsedUnsafe, nowUnsafe } from "./instant.ts"
import * as orders from "./order.ts"
import * as regions from "./region.ts"
import * as renewal from "./renewal.ts"

/**
 * The locks of one client of one store: what the services of this package are made of.
 *
 * @internal
 */
export interface Engine extends
  Pick<
    Permits["Service"],
    "withTarget" | "withLease" | "withTargetIfAvailable" | "acquire" | "tryAcquire" | "inspect"
  >
{
  readonly withTargets: <A, E, R>(
    targets: ReadonlyArray<Target>,
    body: Effect.Effect<A, E, R>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<A, E | LockError, R>
  readonly acquireAll: (
    targets: ReadonlyArray<Target>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<ReadonlyArray<Lease>, LockError, Scope.Scope>
  /** Gets a lease by other means than asking for a free key. */
  readonly open: <E>(
    target: Target,
    how: acquiring.Ask<E>,
    options?: LockOptions.LockOptions
  ) => Effect.Effect<Lease, TryError | E, Scope.Scope>
  readonly shrink: (
    store: PermitStore["Service"],
    lease: Lease,
    permits: number
  ) => Effect.Effect<void, LockLost | LockStoreError | LockDeadlock>
  readonly list: (prefix: string) => Effect.Effect<ReadonlyArray<KeyState>, LockStoreError>
  readonly listeners: Set<events.Listener>
}

/** @internal */
export const mutex = (key: string): Target => ({ key, permits: 1, limit: 1, needs: 1, isShared: true })

interface Entered {
  readonly holding: holdings.Holding
  /** The region around, and the turn taken there: its lease is used, or added to. */
  readonly parent: regions.Region | undefined
  readonly turn: regions.Turn | undefined
}

/** How somebody asks: `scope` is the one the caller asked with, `owner` the part of it that owns what is got. */
interface Claim<out E = never> extends Asker {
  readonly target: Target<E>
  readonly options: LockOptions.Resolved
  readonly scope: Scope.Scope
  readonly owner: Scope.Scope
  readonly wait: boolean
  readonly isBody: boolean
  /** Asked for by this moment, where it is one of several. */
  readonly askedAt?: holdings.Holding["askedAt"] | undefined
  /** Waited for if it is taken: then only that is told of. */
  readonly isTry?: boolean | undefined
}

interface Asker {
  readonly asker: regions.Asker
  readonly surroundings: regions.Surroundings
  readonly order: orders.Order | undefined
}

type EnterError = Exclude<LockError, LockInvalid>

/** What `acquire` remembers of a lease asked for or held, to tell who would wait for himself. */
interface ScopedHold {
  readonly asker: regions.Asker
  readonly scope: Scope.Scope
  readonly holding: holdings.Holding
}

/** @internal */
export const make = Effect.fnUntraced(function*(
  store: LockStore["Service"],
  defaults?: LockOptions.LockOptions
): Effect.fn.Return<Engine, LockInvalid, Scope.Scope> {
  const base = yield* LockOptions.resolve(defaults)
  const client: holdings.Client = {
    id: yield* randomId,
    store,
    holdings: new Map(),
    listeners: new Set(),
    // Closed after everything that is forked into it has been waited for.
    scope: Scope.forkUnsafe(yield* Scope.Scope),
    nursery: new renewal.Nursery(),
    arrears: new Arrears(),
    waitingTurns: new Map(),
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
    targets: ReadonlyArray<Target<unknown>>,
    options: LockOptions.LockOptions | undefined
  ): Effect.Effect<LockOptions.Resolved, LockInvalid> => {
    for (const { key, limit, permits } of targets) {
      const invalid = LockOptions.checkKey(key) ?? LockOptions.checkPermits(permits, limit)
      if (invalid !== undefined) return Effect.fail(invalid)
    }
    return LockOptions.resolve(options, base)
  }

  /** What an asker has already: how many permits, and one of the leases they are of. */
  const findOwn = ({ asker, scope, surroundings, target }: Claim<unknown>, asked: holdings.Holding) => {
    const { isShared, key, needs, permits, upgrades } = target
    const region = isShared ? undefined : regions.find(surroundings, regionId(key))
    let own = region !== undefined ? regions.permitsIn(region) : upgrades !== undefined ? needs - permits : 0
    let holding = region?.holding
    for (const hold of scopedHolds.get(key) ?? []) {
      // Who comes later waits behind this one.
      if (hold.holding === asked) break
      // A lost lease is in nobody's way for longer than its ttl, and one that was handed off is somebody else's.
      if (hold.holding.phase === "handedOff" || hold.holding.check() !== undefined) continue
      if (hold.holding.holderId === upgrades?.holderId) continue
      if (hold.scope === scope || regions.waitsFor(hold.asker, asker)) {
        own += hold.holding.permits
        holding ??= hold.holding
      }
    }
    return holding === undefined ? undefined : { holding, permits: own }
  }

  /** Who would have to wait for himself: he has so much already that the rest of the permits is not enough. */
  const findDeadlock = (
    { target }: Claim<unknown>,
    own: ReturnType<typeof findOwn>,
    limit = target.limit
  ): LockDeadlock | undefined =>
    own !== undefined && own.permits + target.permits > (target.isShared ? target.needs : limit)
      ? deadlock(own.holding, target, own.permits, limit)
      : undefined

  /** Since the limit was lowered, who has some permits already may wait for himself, and keep all behind him out. */
  const watchLimit = (claim: Claim<unknown>, asked: holdings.Holding): Effect.Effect<never, LockDeadlock> => {
    const { renewEvery = Infinity, ttl } = asked.options
    return store.inspect(claim.target.key).pipe(
      Effect.map(({ limit }) => findDeadlock(claim, findOwn(claim, asked), limit)),
      Effect.catch(() => Effect.undefined),
      Effect.flatMap((deadlock) => deadlock === undefined ? Effect.void : Effect.fail(deadlock)),
      Effect.andThen(Effect.sleep(Math.min(renewEvery, Math.ceil(ttl / 3), 60_000))),
      Effect.forever
    )
  }

  const remember = (hold: ScopedHold): void => {
    const { key } = hold.holding
    scopedHolds.set(key, (scopedHolds.get(key) ?? new Set()).add(hold))
  }

  const forget = (hold: ScopedHold): void => {
    const { key } = hold.holding
    const holds = scopedHolds.get(key)
    if (holds?.delete(hold) && holds.size === 0) scopedHolds.delete(key)
  }

  /** A scope that has closed runs its finalizer before there is anything to forget. */
  const remembered = <A, E>(hold: ScopedHold, owner: Scope.Scope, opened: Effect.Effect<A, E>) => {
    const forgotten = Effect.sync(() => forget(hold))
    return Effect.andThen(Scope.addFinalizer(owner, forgotten), Effect.onError(opened, () => forgotten))
  }

  /** The keys that an asker has already. */
  const held = function*({ asker, surroundings }: Asker): Iterable<string> {
    for (const id of surroundings.regions.keys()) {
      const region = regions.find(surroundings, id)
      if (region !== undefined) yield region.holding.key
    }
    for (const holds of scopedHolds.values()) {
      for (const hold of holds) {
        if (hold.holding.phase === "held" && regions.waitsFor(hold.asker, asker)) yield hold.holding.key
      }
    }
  }

  /** A grant of the store. */
  const ask = <E>(
    claim: Claim<E>,
    clock: Clock.Clock,
    askedAt: holdings.Holding["askedAt"],
    parent: regions.Region | undefined,
    turn: regions.Turn | undefined
  ): Effect.Effect<Entered, EnterError | E> => {
    const { asker, owner, scope, target, wait } = claim
    const { upgrades } = target
    const options = upgrades === undefined ? claim.options : aheadOfAll(claim.options)
    const holding = new holdings.Holding(client, target, options, clock, askedAt)
    const open = (hold?: ScopedHold): Effect.Effect<Entered, EnterError | E> => {
      const own = findOwn(claim, holding)
      const deadlock = findDeadlock(claim, own)
      if (deadlock !== undefined) return Effect.fail(deadlock)
      if (hold !== undefined) remember(hold)
      const how: acquiring.Ask<E | LockDeadlock> = target.how ?? acquiring.attempt(wait)
      const watchful = own === undefined ? how : { ...how, whileQueued: watchLimit(claim, holding) }
      const opening = acquiring.open(holding, owner, watchful)
      const acquisition = Effect.as(traceAcquire(holding, opening, claim.isTry), { holding, parent, turn })
      return upgrades === undefined ? acquisition : upgrades.protect(acquisition)
    }
    if (claim.isBody) return open()
    const hold: ScopedHold = { asker, scope, holding }
    return remembered(hold, owner, Effect.suspend(() => open(hold)))
  }

  /** Gets a lease: a turn in the region this fiber is inside of, or a grant of the store. */
  const enter = <E>(claim: Claim<E>): Effect.Effect<Entered, EnterError | E> =>
    Clock.clockWith((clock) => {
      const { asker, options, owner, target } = claim
      const askedAt = claim.askedAt ?? nowUnsafe(clock)
      const granted = (parent?: regions.Region, turn?: regions.Turn) => ask(claim, clock, askedAt, parent, turn)

      const again: Effect.Effect<Entered, EnterError | E> = Effect.suspend((): typeof again => {
        const region = regions.find(claim.surroundings, regionId(target.key))
        if (region === undefined) return granted()
        const { limit } = region.holding
        if (limit !== target.limit) {
          return Effect.fail(
            new PermitsRefused({ key: target.key, permits: target.permits, limit: target.limit, actual: limit })
          )
        }
        if (!target.isShared) return granted(region)
        const turn = new regions.Turn(asker, claim.scope, claim.isBody)
        const timeout = claim.wait ? options.waitTimeout : 0
        const wait = { timeout, timeLeft: timeout - elapsedUnsafe(askedAt, clock) }
        return Scope.addFinalizer(owner, Effect.sync(() => regions.endTurn(region, turn))).pipe(
          Effect.andThen(
            regions.takeTurn(region, turn, wait, () => deadlock(region.holding, target, regions.permitsIn(region)))
          ),
          Effect.flatMap((taken): typeof again => {
            if (!taken) return again
            const permits = regions.permitsIn(region)
            // An upgrade waits for every lease of the key but its own: inside the region of another one it would for ever.
            const isForeign = target.upgrades !== undefined && target.upgrades.holderId !== region.holding.holderId
            // A region that has ended waits for its last turn: whoever has that must not wait for the store, but be sent off.
            if (!region.open || permits >= target.needs) {
              return Effect.succeed({ holding: region.holding, parent: region, turn })
            }
            return isForeign || permits + target.permits > target.needs
              ? Effect.fail(deadlock(region.holding, target, permits))
              : Effect.raceFirst(Deferred.await(region.over), granted(region, turn))
          })
        )
      })
      // Who does not wait is in nobody's way.
      return claim.order === undefined || !claim.wait
        ? again
        : Effect.andThen(claim.order([target.key], held(claim)), again)
    })

  const runInside = <A, E, R>(
    body: Effect.Effect<A, E, R>,
    entered: Entered,
    claim: Pick<Claim, "target" | "asker" | "surroundings">
  ) => {
    const { holding, parent, turn } = entered
    const region = new regions.Region(holding, parent, turn !== undefined)
    holding.region ??= region
    return regions.run(
      regionId(claim.target.key),
      region,
      claim.asker,
      claim.surroundings,
      parent?.holding === holding ? body : traceHold(holding, body)
    )
  }

  const asking = <A, E, R>(use: (asker: Asker) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.withFiber((fiber) => {
      const surroundings = fiber.getRef(regions.CurrentSurroundings)
      const order = fiber.getRef(orders.CurrentOrder)
      return use({ asker: regions.askerOf(surroundings, fiber.id), surroundings, order })
    })

  const withTarget = <A, E, R>(
    target: Target,
    use: (entered: Entered) => Effect.Effect<A, E, R>,
    options: LockOptions.LockOptions | undefined
  ): Effect.Effect<A, E | LockError, R> =>
    Effect.flatMap(prepare([target], options), (options) =>
      asking((asker) =>
        Effect.scopedWith((scope) => {
          const claim: Claim = { ...asker, target, options, scope, owner: scope, wait: true, isBody: true }
          return Effect.flatMap(enter(claim), (entered) => runInside(use(entered), entered, claim))
        })
      ))

  const withTargetIfAvailable: Engine["withTargetIfAvailable"] = (target, use, options) =>
    Effect.flatMap(prepare([target], options), (options) =>
      asking((asker) =>
        Effect.scopedWith((scope) => {
          const claim: Claim = { ...asker, target, options, scope, owner: scope, wait: false, isBody: true }
          return Effect.flatMap(ifAvailable(enter(claim)), (entered) =>
            Option.isNone(entered)
              ? Effect.succeedNone
              : Effect.asSome(runInside(use(makeLease(entered.value)), entered.value, claim)))
        })
      ))

  /** A scope of its own ends with a failed or interrupted acquisition at once, however long the caller's lives. */
  const inScopeOfItsOwn = <A, E, R>(
    strategy: "sequential" | "parallel",
    use: (scope: Scope.Scope, owner: Scope.Scope) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E, R | Scope.Scope> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(Scope.Scope, (scope) => {
        const owner = Scope.forkUnsafe(scope, strategy)
        return Effect.onError(restore(use(scope, owner)), (cause) => Scope.close(owner, Exit.failCause(cause)))
      })
    )

  const acquire = <E>(
    target: Target<E>,
    options: LockOptions.LockOptions | undefined,
    wait: boolean
  ): Effect.Effect<Lease, LockError | E, Scope.Scope> =>
    Effect.flatMap(
      prepare([target], options),
      (options) =>
        asking((asker) =>
          inScopeOfItsOwn("sequential", (scope, owner) =>
            Effect.map(enter({ ...asker, target, options, scope, owner, wait, isBody: false }), makeLease))
        )
    )

  const open: Engine["open"] = (target, how, options) =>
    Effect.flatMap(
      prepare([target], options),
      (options) =>
        asking(({ asker }) =>
          inScopeOfItsOwn("sequential", (scope, owner) =>
            Clock.clockWith((clock) => {
              const holding = new holdings.Holding(client, target, options, clock, nowUnsafe(clock))
              const hold = { asker, scope, holding }
              const opened = Effect.suspend(() => {
                remember(hold)
                return withoutWaiting(traceAcquire(holding, acquiring.open(holding, owner, how)))
              })
              return Effect.map(
                remembered(hold, owner, opened),
                () => makeLease({ holding, parent: undefined, turn: undefined })
              )
            }))
        )
    )

  /**
   * All or nothing, in the canonical order: whoever waits here holds smaller keys only, so no circle of waiting can form.
   * Keys are asked for all at once, as nothing is taken most of the time; what comes behind the first that is taken is given
   * back before it is waited for.
   */
  const enterAll = (
    claims: ReadonlyArray<Omit<Claim, "owner" | "wait">>,
    whole: Scope.Scope
  ): Effect.Effect<{ readonly entered: ReadonlyArray<Entered>; readonly leases: ReadonlyArray<Lease> }, EnterError> =>
    Effect.gen(function*() {
      const entered: Array<Entered> = []
      const leases: Array<Lease> = []
      const keep = (it: Entered) => {
        entered.push(it)
        leases.push(makeLease(it))
      }
      const own = (claim: Omit<Claim, "owner" | "wait">) => ({
        ...claim,
        // There is no work yet: it cannot report progress, and what it never used is kept from nobody.
        options: { ...claim.options, minHold: 0, progressTimeout: Infinity },
        owner: Scope.forkUnsafe(whole, "sequential")
      })
      const tryEnter = (claim: Omit<Claim, "owner" | "wait">) => {
        const tried = own(claim)
        return Effect.asSome(enter({ ...tried, wait: false, isTry: true })).pipe(
          Effect.catchIf(isNotNow, () => Effect.succeedNone),
          Effect.map((entered) => ({ entered, owner: tried.owner }))
        )
      }
      while (entered.length < claims.length) {
        const tries = yield* Effect.forEach(claims.slice(entered.length), tryEnter, { concurrency: "unbounded" })
        const taken = tries.findIndex(({ entered }) => Option.isNone(entered))
        const kept = taken === -1 ? tries.length : taken
        for (const it of tries.slice(0, kept)) keep(Option.getOrThrow(it.entered))
        if (taken === -1) break
        yield* Effect.forEach(tries.slice(kept), ({ owner }) => Scope.close(owner, Exit.void), {
          concurrency: "unbounded",
          discard: true
        })
        const waiting = enter({ ...own(claims[entered.length]!), wait: true })
        // What was got so far may be lost meanwhile: then there is nothing to wait for.
        keep(yield* Effect.raceAllFirst([...leases.map(({ lost }) => lost), waiting]))
      }
      yield* Effect.forEach(leases, ({ check }) => check, { discard: true })
      entered.forEach(({ holding, parent }, i) => {
        if (holding !== parent?.holding) holding.begin(claims[i]!.options)
      })
      return { entered, leases }
    })

  const withTargets: Engine["withTargets"] = (given, body, options) =>
    withClaims(given, options, (asker, targets, options, askedAt) =>
      Effect.scopedWith((scope) => {
        const claims = targets.map((target) => ({ ...asker, target, options, scope, isBody: true, askedAt }))
        return Effect.flatMap(enterAll(claims, Scope.forkUnsafe(scope, "parallel")), ({ entered }) =>
          entered.reduceRight(
            (body, entered, i) => asking((asker) => runInside(body, entered, { ...claims[i]!, ...asker })),
            body as Effect.Effect<any, any, any>
          ))
      }))

  const acquireAll: Engine["acquireAll"] = (given, options) =>
    withClaims(given, options, (asker, targets, options, askedAt) =>
      inScopeOfItsOwn("parallel", (scope, owner) => {
        const claims = targets.map((target) => ({ ...asker, target, options, scope, isBody: false, askedAt }))
        return Effect.map(enterAll(claims, owner), ({ leases }) => {
          const byKey = new Map(leases.map((lease) => [lease.key, lease]))
          return given.map(({ key }) => byKey.get(key)!)
        })
      }))

  const withClaims = <A, E, R>(
    given: ReadonlyArray<Target>,
    options: LockOptions.LockOptions | undefined,
    use: (
      asker: Asker,
      targets: ReadonlyArray<Target>,
      options: LockOptions.Resolved,
      askedAt: holdings.Holding["askedAt"]
    ) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | LockDeadlock | LockInvalid, R> => {
    if (given.length === 0) {
      return Effect.fail(new LockInvalid({ input: "keys", value: "[]", fix: "name at least one key" }))
    }
    return Effect.flatMap(prepare(given, options), (options) => {
      const byKey = new Map(given.map((target) => [target.key, target]))
      const targets = Array.from(byKey.values()).toSorted((a, b) => a.key < b.key ? -1 : 1)
      return Clock.clockWith((clock) =>
        asking(({ order, ...asker }) => {
          const asked = use({ ...asker, order: undefined }, targets, options, nowUnsafe(clock))
          return order === undefined
            ? asked
            : Effect.andThen(order(targets.map(({ key }) => key), held({ ...asker, order })), asked)
        })
      )
    })
  }

  const shrink: Engine["shrink"] = (store, lease, permits) =>
    asking(({ asker, surroundings }) =>
      Effect.scopedWith((scope) => {
        const holding = client.holdings.get(lease.holderId)
        if (holding === undefined) return lease.check
        const command = Effect.suspend(() => {
          // Before it is known: who may have less must not believe to have more.
          holding.permits = Math.min(holding.permits, permits)
          return Effect.map(store.shrink(holding, permits), (answer) => {
            if (answer === "NotHeld") holding.lose("NotHeld")
          })
        })
        const send = Effect.andThen(holding.alone(command), lease.check)
        const { region } = holding
        if (region === undefined) return lease.protect(send)
        // What is nested counts on all of them: it has to end first, and does not take them away from what is around it.
        const deadlock = () =>
          new LockDeadlock({
            key: holding.key,
            token: holding.token,
            reason: "Self",
            detail: "What is nested has to end before any of its permits are given back"
          })
        const inside = regions.find(surroundings, regionId(holding.key))
        if (inside !== region && inside?.holding === holding) return Effect.fail(deadlock())
        const turn = new regions.Turn(asker, scope, true)
        return Scope.addFinalizer(scope, Effect.sync(() => regions.endTurn(region, turn))).pipe(
          Effect.andThen(regions.takeTurn(region, turn, { timeout: Infinity, timeLeft: Infinity }, deadlock)),
          Effect.andThen(send),
          Effect.catchTag("LockTimeout", Effect.die),
          lease.protect
        )
      })
    )

  const runInBackground = yield* FiberSet.makeRuntime<never, void, never>()
  yield* store.onNews((news) => {
    if (news._tag !== "InDoubt") {
      const holding = client.holdings.get(news.holderId)
      if (holding === undefined) return
      if (news._tag === "TakenOver") holding.lose("TakenOver")
      else if (holding.wanted !== undefined) Deferred.doneUnsafe(holding.wanted, Effect.void)
      return
    }
    for (const holding of client.holdings.values()) {
      if ((news.key ?? holding.key) === holding.key) runInBackground(renewal.verify(holding))
    }
  })

  const inspect: Engine["inspect"] = (key) => {
    const invalid = LockOptions.checkKey(key)
    return invalid === undefined ? store.inspect(key) : Effect.fail(invalid)
  }

  const list: Engine["list"] = (prefix) =>
    Effect.flatMap(store.list(prefix), (keys) =>
      Effect.map(
        Effect.forEach(keys.toSorted(), (key) => store.inspect(key), { concurrency: 16 }),
        (states) => states.filter(({ holders, waiters }) => holders.length > 0 || waiters.length > 0)
      ))

  return {
    withLease: (target, use, options) => withTarget(target, (entered) => use(makeLease(entered)), options),
    withTarget: (target, body, options) => withTarget(target, () => body, options),
    withTargetIfAvailable,
    withTargets,
    acquire: (target, options) => acquire(target, options, true),
    tryAcquire: (target, options) => ifAvailable(acquire(target, options, false)),
    acquireAll,
    open,
    shrink,
    inspect,
    list,
    listeners: client.listeners
  }
})

/** Not granted to who does not wait: it is taken, or the store grants nothing for a while. Who waits learns what it is. */
const isNotNow = (error: EnterError): boolean =>
  error._tag === "LockTimeout" || error._tag === "LockStoreError" && error.reason === "Refused"

const deadlock = (
  { key, token }: holdings.Holding,
  target: Target<unknown>,
  held: number,
  limit = target.limit
): LockDeadlock =>
  new LockDeadlock({
    key,
    token,
    reason: "Self",
    permits: target.permits,
    held,
    limit,
    detail: wayOut(target, held, limit)
  })

const wayOut = ({ isShared, limit, needs, upgrades }: Target<unknown>, held: number, actual: number): string => {
  if (!isShared) {
    const lowered = actual < limit ? `; setLimit has lowered the limit from ${limit}` : ""
    return `Ask for all at once, give back first what is at hand, or let each fiber acquire for itself${lowered}`
  }
  if (upgrades !== undefined) return "Give back the other leases of the key first"
  if (held < needs) return "Upgrade the read lease, or give it back first"
  const nest = limit === 1 ? "Lock.withLock" : "withRead or withWrite"
  return `Use the lease at hand, nest inside ${nest}, or close its scope first`
}

const aheadOfAll = (options: LockOptions.Resolved): LockOptions.Resolved => ({
  ...options,
  priority: Infinity,
  maxWaiters: Infinity
})

/**
 * 128 random bits; not from Effect's `Random`, which two processes may have given the same seed.
 *
 * @internal
 */
export const randomId = Effect.sync(() => {
  const { crypto } = globalThis as unknown as { readonly crypto: { readonly randomUUID: () => string } }
  return crypto.randomUUID().replaceAll("-", "")
})

const ifAvailable = <A, R>(
  effect: Effect.Effect<A, LockError, R>
): Effect.Effect<Option.Option<A>, TryError, R> =>
  Effect.asSome(withoutQueue(effect)).pipe(
    Effect.catchTag(["LockTimeout", "LockDeadlock"], () => Effect.succeedNone)
  )

/** Who does not queue finds no queue full, */
const withoutQueue = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect as Effect.Effect<A, Exclude<E, LockQueueFull>, R>

/** and cannot wait for too long, nor for himself. */
const withoutWaiting = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  effect as Effect.Effect<A, Exclude<E, LockTimeout | LockDeadlock | LockQueueFull>, R>

const makeLease = ({ holding, parent, turn }: Entered): Lease => {
  const region = turn === undefined ? undefined : parent
  const over = region === undefined
    ? Deferred.await(holding.over)
    : Effect.raceAllFirst([
      Deferred.await(holding.over),
      Deferred.await(region.over),
      Effect.andThen(Deferred.await(turn!.done), Effect.suspend(() => Effect.fail(regions.ended(region))))
    ])
  const loss = () =>
    holding.check() ?? (region !== undefined && (turn!.isDone || !region.open) ? regions.ended(region) : undefined)
  const lossForUse = () => loss() ?? (holding.phase === "handedOff" ? holdings.handedOff(holding) : undefined)
  const check = holdings.failIf(lossForUse)
  const useOnce = <A, E>(command: Effect.Effect<A, E>) =>
    holdings.protect(over, { before: check, after: check }, command)
  return {
    key: holding.key,
    holderId: holding.holderId,
    token: holding.token,
    deadline: Clock.clockWith((clock) =>
      Effect.sync(() => DateTime.makeUnsafe(clock.currentTimeMillisUnsafe() + holding.timeLeft()))
    ),
    isValid: Effect.sync(() => lossForUse() === undefined),
    lost: over,
    // Work that gives the lease away goes on.
    protect: (effect) => holdings.protect(over, { before: check, after: holdings.failIf(loss) }, effect),
    check,
    extend: (ttl) =>
      Effect.flatMap(
        LockOptions.resolveTtl(ttl),
        (millis) => useOnce(renewal.extend(holding, millis))
      ),
    revocation: useOnce(renewal.revocation(holding)),
    heartbeat: Effect.suspend(() => {
      holding.progressAt = nowUnsafe(holding.clock)
      return check
    }),
    handOff: Effect.andThen(check, ending.handOff(holding))
  }
}

/** Ends every lock of a closing layer: waiters and guarded work end by themselves, the rest is released for them. */
const closeAll = (client: holdings.Client, timeout: number): Effect.Effect<void> =>
  Effect.suspend(() => {
    client.closed = true
    const open = Array.from(client.holdings.values())
    // All before the first loss: that one may end others on the spot.
    for (const holding of open) holding.ended = Deferred.makeUnsafe()
    for (const holding of open) holding.lose("Closed")
    return Effect.forEach(open, (holding) => Deferred.await(holding.ended!), {
      concurrency: "unbounded",
      discard: true
    })
      .pipe(
        Effect.timeoutOption(timeout),
        Effect.andThen(
          Effect.suspend(() =>
            Effect.forEach(Array.from(client.holdings.values()), ending.end, {
              concurrency: "unbounded",
              discard: true
            })
          )
        )
      )
  })

/** The span of waiting for a lock names who was in the way. */
const traceAcquire = <E>(
  holding: holdings.Holding,
  acquiring: Effect.Effect<unknown, E>,
  isTry = false
): Effect.Effect<void, E> =>
  Effect.useSpan(
    "Lock.acquire",
    { attributes: attributes(holding) },
    (span) =>
      Effect.onExit(Effect.provideService(acquiring, Tracer.ParentSpan, span), (exit) => {
        const isTaken = isTry && Option.exists(Exit.findErrorOption(exit), (error) => isNotNow(error as EnterError))
        const outcome = isTaken ? "taken" : outcomeOf(exit)
        const waited = holding.waitedFor()
        span.attribute("lock.outcome", outcome)
        span.attribute("lock.wait_ms", Math.round(waited))
        if (holding.token > 0) span.attribute("lock.token", holding.token)
        if (holding.blockedBy !== undefined) span.attribute("lock.blocked_by", holding.blockedBy)
        return Effect.withFiber(({ context }) => {
          if (outcome === "granted") {
            granted.updateUnsafe(1, context)
            LockMetrics.wait.updateUnsafe(waited, context)
          } else if (outcome !== "taken") {
            holding.outcome = outcome
            events.emit(holding, "NotGranted")
            Metric.withAttributes(LockMetrics.acquisitions, { outcome }).updateUnsafe(1, context)
          }
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
