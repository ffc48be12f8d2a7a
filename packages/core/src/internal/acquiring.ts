import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { LeaseTicket } from "../LeaseTicket.ts"
import {
  LockClosed,
  type LockLost,
  LockQueueFull,
  LockStoreError,
  LockTimeout,
  PermitsRefused,
  TicketRefused
} from "../LockError.ts"
import * as LockMetrics from "../LockMetrics.ts"
import type { Attempt, Grant, Instant, LockStore, Request, Signal, Standing } from "../LockStore.ts"
import { abandon, end } from "./ending.ts"
import * as events from "./events.ts"
import type { Holding } from "./holding.ts"
import { elapsedUnsafe, nowUnsafe } from "./instant.ts"
import { keep } from "./renewal.ts"

/**
 * How a grant is asked for. Only an `attempt` may have to wait.
 *
 * @internal
 */
export interface Ask<E = never> {
  readonly wait: boolean
  readonly send: (store: LockStore["Service"], request: Request) => Effect.Effect<Attempt, LockStoreError | E>
  /** Fails when the wait turns out to be one without end. */
  readonly whileQueued?: Effect.Effect<never, E> | undefined
}

/** @internal */
export const attempt = (wait: boolean): Ask => ({ wait, send: (store, request) => store.attempt(request) })

/** @internal */
export const takeover: Ask = {
  wait: false,
  send: (store, request) => Effect.map(store.takeover(request), (grant) => ({ _tag: "Granted", grant }))
}

/** @internal */
export const adopt = ({ key, ticketId, token }: LeaseTicket): Ask<TicketRefused> => ({
  wait: false,
  send: (store, request) =>
    Effect.flatMap(
      store.adopt({ key, holderId: ticketId, token }, request),
      (adoption) =>
        adoption._tag === "Granted"
          ? Effect.succeed(adoption)
          : Effect.fail(new TicketRefused({ key, ticketId, token, reason: adoption.reason }))
    )
})

/**
 * What acquiring can fail with, however it is asked for.
 *
 * @internal
 */
export type OpenError = LockClosed | LockLost | LockQueueFull | LockStoreError | LockTimeout | PermitsRefused

/**
 * Acquires into `scope`, in the order of G7: finalizer registered, command sent, interruptible wait, renewal forked.
 *
 * @internal
 */
export const open = <E>(
  holding: Holding,
  scope: Scope.Scope,
  how: Ask<E>
): Effect.Effect<void, OpenError | E> =>
  Effect.andThen(
    Scope.addFinalizer(scope, end(holding)),
    Effect.flatMap(Effect.tapError(awaitGrant(holding, how), noteStoreFailure(holding)), (grant) =>
      Effect.withFiber((fiber): Effect.Effect<unknown, LockClosed> => {
        // The end may have come between the answer and now, and would not come again.
        if (holding.lostFor !== undefined) {
          return stopped(holding)
        }
        holding.grant(grant)
        LockMetrics.held.modifyUnsafe(1, fiber.context)
        holding.keeper = { effect: Effect.provideContext(keep(holding), fiber.context), scope }
        holding.client.nursery.add(holding)
        events.emit(holding, "Granted")
        return Effect.void
      }))
  ) as Effect.Effect<void, OpenError | E>

const noteStoreFailure = (holding: Holding) => (error: unknown): Effect.Effect<void> =>
  Effect.sync(() => {
    holding.storeFailed = error instanceof LockStoreError
  })

const awaitGrant = <E>(
  holding: Holding,
  { send, wait, whileQueued }: Ask<E>
): Effect.Effect<Grant, OpenError | E> => {
  const { clock, client: { store }, options } = holding
  const timeLeft = () => options.waitTimeout - elapsedUnsafe(holding.askedAt, clock)

  const giveUp = (standing: Standing) =>
    Effect.fail(
      new LockTimeout({
        key: holding.key,
        permits: holding.permits,
        limit: holding.limit,
        waitTimeout: wait ? options.waitTimeout : 0,
        ...standing
      })
    )

  const queueFull = ({ holders, queueLength }: Standing) =>
    new LockQueueFull({
      key: holding.key,
      permits: holding.permits,
      limit: holding.limit,
      maxWaiters: options.maxWaiters,
      holders,
      queueLength
    })

  const refusal = (actual: number) =>
    new PermitsRefused({ key: holding.key, permits: holding.permits, limit: holding.limit, actual })

  /** Leaving the queue and learning who was in the way is one command; the finalizer repeats it if it fails. */
  const leave = (lastKnown: Standing) =>
    store.abandon(holding.key, holding.holderId).pipe(
      Effect.tap(() => Effect.sync(() => holding.phase = "new")),
      Effect.catch(() => Effect.succeed(lastKnown)),
      // Granted at the very last moment, and given back: what is worth telling is who was in the way until then.
      Effect.flatMap((standing) =>
        giveUp(standing.holders.some(({ holderId }) => holderId === holding.holderId) ? lastKnown : standing)
      )
    )

  const ask = Effect.suspend((): Effect.Effect<Attempt, LockClosed | LockStoreError | E> => {
    if (holding.client.closed) holding.lose("Closed")
    if (holding.lostFor !== undefined) return stopped(holding)
    holding.client.holdings.set(holding.holderId, holding)
    holding.phase = "asked"
    return send(store, {
      key: holding.key,
      holderId: holding.holderId,
      ttl: options.ttl,
      permits: holding.permits,
      limit: holding.limit,
      wait: wait && options.waitTimeout > 0,
      priority: options.priority,
      maxWaiters: options.maxWaiters,
      floor: holding.client.floor,
      metadata: holding.metadata
    })
  })

  const queued = (signal: Effect.Effect<Signal, LockStoreError>) => {
    const signalled = Effect.raceFirst(
      Effect.catch(Deferred.await(holding.over), () => stopped(holding)),
      whileQueued === undefined ? signal : Effect.raceFirst(signal, whileQueued)
    )
    const bounded = options.waitTimeout === Infinity
      ? Effect.asSome(signalled)
      : Effect.timeoutOption(signalled, Math.max(0, timeLeft()))
    return counted(bounded)
  }

  const isFresh = (sentAt: Instant, ttl: number) => elapsedUnsafe(sentAt, clock) < ttl * (1 - store.driftFactor)

  /** A grant that took longer to arrive than it lives must be confirmed before anybody relies on it. */
  const ifFresh = Effect.fnUntraced(function*(grant: Grant) {
    if (isFresh(grant.sentAt, grant.ttl)) return Option.some(grant)
    const sentAt = nowUnsafe(clock)
    const held = { key: holding.key, holderId: holding.holderId, token: grant.token }
    const answer = yield* store.renew(held, options.ttl)
    return answer === "Done" && isFresh(sentAt, options.ttl)
      ? Option.some<Grant>({ token: grant.token, ttl: options.ttl, sentAt })
      : Option.none<Grant>()
  })

  const settle = Effect.fnUntraced(function*(first: Attempt) {
    let attempt = first
    let standing: Standing = { holders: [], position: -1, queueLength: 0 }
    let contended = false
    while (true) {
      // The scope or the layer may have closed while the command was under way, and its abandon may have come too early.
      if (holding.lostFor !== undefined) {
        yield* abandon(holding)
        return yield* stopped(holding)
      }
      // Nothing is left in the store that would have to be tidied up.
      if (attempt._tag === "Refused" || attempt._tag === "QueueFull" || attempt._tag === "OtherLimit") {
        holding.phase = "new"
      }
      if (attempt._tag === "Refused") return yield* giveUp(attempt.standing)
      if (attempt._tag === "QueueFull") return yield* Effect.fail(queueFull(attempt.standing))
      if (attempt._tag === "OtherLimit") return yield* Effect.fail(refusal(attempt.limit))
      let grant: Grant | undefined
      if (attempt._tag === "Granted") {
        grant = attempt.grant
      } else {
        standing = attempt.standing
        if (!contended) {
          contended = true
          holding.blockedBy = standing.holders[0]?.holderId
          events.emit(holding, "Queued")
          yield* Metric.update(LockMetrics.contended, 1)
        }
        const signal = yield* queued(attempt.signal)
        if (Option.isNone(signal)) return yield* leave(standing)
        if (signal.value._tag === "Granted") grant = signal.value.grant
      }
      if (grant !== undefined) {
        const fresh = yield* ifFresh(grant)
        if (Option.isSome(fresh)) return fresh.value
        if (!wait) return yield* tooSlow(holding)
      }
      if (timeLeft() <= 0) return yield* leave(standing)
      attempt = yield* ask
    }
  })

  // A free key needs none of the above.
  return Effect.flatMap(
    ask,
    (attempt) =>
      attempt._tag === "Granted" && holding.lostFor === undefined && isFresh(attempt.grant.sentAt, attempt.grant.ttl)
        ? Effect.succeed(attempt.grant)
        : settle(attempt)
  )
}

const counted = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.acquireUseRelease(
    Metric.modify(LockMetrics.waiting, 1),
    () => effect,
    () => Metric.modify(LockMetrics.waiting, -1)
  )

/** A wait that ends without a grant: the layer closed, or the scope it was meant for did. */
const stopped = (holding: Holding): Effect.Effect<never, LockClosed> =>
  holding.lostFor === "Closed" ? Effect.fail(new LockClosed({ key: holding.key })) : Effect.interrupt

const tooSlow = (holding: Holding): Effect.Effect<never, LockStoreError> =>
  Effect.fail(
    new LockStoreError({
      store: holding.client.store.name,
      operation: "attempt",
      reason: "Timeout",
      limitName: "ttl",
      limit: holding.options.ttl,
      detail: `the grant of "${holding.key}" took longer to arrive than its ttl`
    })
  )
