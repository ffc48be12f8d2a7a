import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { LeaseTicket } from "../LeaseTicket.ts"
import {
  LockClosed,
  LockLost,
  LockQueueFull,
  LockStoreError,
  LockTimeout,
  type LossReason,
  PermitsRefused,
  TicketRefused
} from "../LockError.ts"
import * as LockMetrics from "../LockMetrics.ts"
import type { Resolved } from "../LockOptions.ts"
import type { Attempt, Grant, Held, Instant, LockStore, Request, Signal, Standing } from "../LockStore.ts"
import * as arrears from "./arrears.ts"
import * as events from "./events.ts"
import { elapsedUnsafe, monotonicUnsafe, nowUnsafe } from "./instant.ts"
import type { Region } from "./region.ts"

/**
 * What all locks of one layer share.
 *
 * @internal
 */
export interface Client {
  readonly id: string
  readonly store: LockStore["Service"]
  readonly holdings: Map<string, Holding>
  readonly listeners: Set<events.Listener>
  /** Owns what outlives a lock's own scope: the background abandon of a lost lease. */
  readonly scope: Scope.Scope
  readonly nursery: Nursery
  readonly arrears: arrears.Arrears
  sequence: number
  /** No command that asks for a lock is sent any more. */
  closed: boolean
  /** The highest token seen: every later grant's is greater. */
  floor: number
}

/**
 * What a grant is asked for: a mutex asks for 1 permit of 1.
 *
 * @internal
 */
export interface Share {
  readonly key: string
  readonly permits: number
  readonly limit: number
}

/**
 * One acquisition from before its first command until after its release: the state behind a lease.
 *
 * @internal
 */
export class Holding implements Held {
  readonly client: Client
  readonly key: string
  permits: number
  readonly limit: number
  options: Resolved
  readonly holderId: string
  readonly clock: Clock.Clock
  /** Fails when the lease is lost, or when a wait must end without one. */
  readonly over: Deferred.Deferred<never, LockLost> = Deferred.makeUnsafe()
  phase: "new" | "asked" | "held" | "handedOff" | "ended" = "new"
  token = 0
  lostFor: LossReason | undefined = undefined
  #loss: LockLost | undefined = undefined
  ttl: number
  readonly askedAt: Instant
  grantedAt: Instant
  /** Who held the key when this one had to queue. */
  blockedBy: string | undefined = undefined
  /** The last confirmed command was sent here; the lease is surely valid for `validFor` after it (G3). */
  confirmedAt: Instant
  validFor = 0
  /** When the last confirmed renewal was sent, and how long after it the next one is due. */
  renewedAt: Instant
  renewEvery = 0
  /** When the body last reported progress, and what tells it that somebody waits. */
  progressAt: Instant
  wanted: Deferred.Deferred<void> | undefined = undefined
  /** The last answer that left the outcome of a renewal unknown. */
  unconfirmed: unknown = undefined
  ended: Deferred.Deferred<void> | undefined = undefined
  /** What renews the lease, in which scope, and its fiber once it had something to do. */
  keeper: { readonly effect: Effect.Effect<void>; readonly scope: Scope.Scope } | undefined = undefined
  keeperFiber: Fiber.Fiber<void> | undefined = undefined
  reported = false
  /** What runs on this lease, where that is the body of a lock. */
  region: Region | undefined = undefined
  /** How an acquisition without a grant ended. */
  outcome = ""
  /** The store failed the acquisition, whose outcome is unknown: nobody should wait for it once more. */
  storeFailed = false

  constructor(client: Client, { key, limit, permits }: Share, options: Resolved, clock: Clock.Clock, askedAt: Instant) {
    this.client = client
    this.key = key
    this.permits = permits
    this.limit = limit
    this.options = options
    this.holderId = `${client.id}-${(client.sequence++).toString(36)}`
    this.clock = clock
    this.ttl = options.ttl
    this.askedAt =
      this.confirmedAt =
      this.renewedAt =
      this.grantedAt =
      this.progressAt =
        askedAt
  }

  get metadata(): Readonly<Record<string, string>> {
    return { ...this.client.store.identity, ...this.options.holder }
  }

  timeLeft(): number {
    return this.validFor - elapsedUnsafe(this.confirmedAt, this.clock)
  }

  waitedFor(): number {
    return this.phase === "held"
      ? Math.max(0, this.grantedAt.monotonic - this.askedAt.monotonic)
      : elapsedUnsafe(this.askedAt, this.clock)
  }

  heldFor(): number {
    return elapsedUnsafe(this.grantedAt, this.clock)
  }

  /** Takes the later deadline: replies may overtake each other, and no renewal shortens a lease. */
  confirm(sentAt: Instant, ttl: number): void {
    const validFor = ttl * (1 - this.client.store.driftFactor)
    if (sentAt.monotonic + validFor >= this.confirmedAt.monotonic + this.validFor) {
      this.confirmedAt = sentAt
      this.validFor = validFor
    }
    this.renewedAt = sentAt
    // A pushed grant may live for less than the ttl asked for: its first renewal is due sooner.
    const { renewEvery = Infinity } = this.options
    this.renewEvery = renewEvery < Infinity && ttl >= this.options.ttl
      ? renewEvery
      : Math.min(renewEvery, Math.floor(ttl / 3))
    this.unconfirmed = undefined
  }

  grant(grant: Grant): void {
    this.phase = "held"
    this.token = grant.token
    this.client.floor = Math.max(this.client.floor, grant.token)
    this.grantedAt = this.progressAt = nowUnsafe(this.clock)
    this.confirm(grant.sentAt, grant.ttl)
  }

  /** The work of several locks begins with the last grant. */
  begin(options: Resolved): void {
    this.options = options
    this.progressAt = nowUnsafe(this.clock)
    // The nursery has to know how soon progress is due.
    if (this.keeperFiber === undefined) this.client.nursery.add(this)
  }

  /** The loss to report, found out at this very moment if need be: every check is a reading of the clocks. */
  check(): LockLost | undefined {
    if (this.lostFor === undefined && this.phase === "held" && this.timeLeft() <= 0) this.lose("Expired")
    return this.loss
  }

  lose(reason: LossReason): void {
    if (this.lostFor !== undefined) return
    this.lostFor = reason
    Deferred.doneUnsafe(this.over, Effect.suspend(() => Effect.fail(this.loss!)))
  }

  /** Made when somebody asks: most leases end without anyone who does, and an error costs more than a lock. */
  get loss(): LockLost | undefined {
    if (this.lostFor !== undefined && this.#loss === undefined) {
      const reason = this.lostFor
      const limit = reason === "Expired"
        ? this.ttl
        : reason === "MaxHold"
        ? this.options.maxHold
        : reason === "Stalled"
        ? this.options.progressTimeout
        : undefined
      this.#loss = new LockLost({
        key: this.key,
        holderId: this.holderId,
        token: this.token,
        reason,
        ...(limit === undefined ? undefined : { limit }),
        ...(this.unconfirmed === undefined ? undefined : { cause: this.unconfirmed })
      })
    }
    return this.#loss
  }
}

/**
 * How a grant is asked for. Only an `attempt` may have to wait.
 *
 * @internal
 */
export interface Ask<E = never> {
  readonly wait: boolean
  readonly send: (store: LockStore["Service"], request: Request) => Effect.Effect<Attempt, LockStoreError | E>
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

/**
 * The work of a held lease: interrupted when the lease is lost, and the whole then fails with `LockLost` (G4). What
 * succeeded only after the deadline was over before any timer could tell: that is a loss, too.
 *
 * @internal
 */
export const protect = <A, E, R>(
  over: Effect.Effect<never, LockLost>,
  check: Effect.Effect<void, LockLost>,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | LockLost, R> => Effect.andThen(check, Effect.raceFirst(over, Effect.tap(effect, () => check)))

/** @internal */
export const failIf = (loss: () => LockLost | undefined): Effect.Effect<void, LockLost> =>
  Effect.suspend(() => {
    const lost = loss()
    return lost === undefined ? Effect.void : Effect.fail(lost)
  })

/** @internal */
export const extend = (holding: Holding, ttl: number): Effect.Effect<void, LockStoreError> =>
  Effect.suspend(() => {
    holding.ttl = ttl
    return renewOnce(holding)
  })

/**
 * Renews at once a lease that the store has called into doubt.
 *
 * @internal
 */
export const verify = (holding: Holding): Effect.Effect<void> =>
  Effect.suspend(() =>
    holding.phase === "held" && holding.lostFor === undefined && holding.keeper !== undefined
      ? Effect.asVoid(Effect.forkIn(Effect.ignore(renewOnce(holding)), holding.keeper.scope))
      : Effect.void
  )

/**
 * Succeeds when somebody queues behind the lease. Where news get lost, the question is asked again as often as renewals.
 *
 * @internal
 */
export const revocation = (holding: Holding): Effect.Effect<void> =>
  Effect.suspend(() => {
    // Before the question is sent: the news may overtake the answer. Who was waiting may have gone since the last time.
    if (holding.wanted === undefined || Deferred.isDoneUnsafe(holding.wanted)) holding.wanted = Deferred.makeUnsafe()
    const { wanted } = holding
    const ask = Effect.suspend(() => holding.client.store.watch(holding)).pipe(
      Effect.tap((watch) =>
        Effect.sync(() => {
          if (watch._tag === "NotHeld") holding.lose("NotHeld")
          else if (watch.isWanted) Deferred.doneUnsafe(wanted, Effect.void)
        })
      ),
      Effect.ignore
    )
    return Effect.raceFirst(
      Deferred.await(wanted),
      Effect.forever(Effect.andThen(ask, Effect.suspend(() => Effect.sleep(Math.min(holding.renewEvery, 60_000)))))
    )
  })

/**
 * Gives the lease away. Renewal is stopped and awaited first; it goes on if the store did not confirm, and finds out then
 * what became of the lease.
 *
 * @internal
 */
export const handOff = (holding: Holding): Effect.Effect<LeaseTicket, LockLost | LockStoreError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const { client, key, token } = holding
      const ticketId = `${holding.holderId}-t`
      client.nursery.remove(holding)
      if (holding.keeperFiber !== undefined) yield* Fiber.interrupt(holding.keeperFiber)
      yield* failIf(() => holding.check())
      // Not renewed any more, but still watched: no reply may be waited for beyond the deadline (G3).
      const { renewEvery } = holding
      holding.renewEvery = Infinity
      client.nursery.add(holding)
      const transfer = yield* restore(
        Effect.raceFirst(Deferred.await(holding.over), client.store.transfer(holding, ticketId))
      ).pipe(
        Effect.onError(() =>
          Effect.sync(() => {
            holding.renewEvery = renewEvery
            client.nursery.add(holding)
          })
        )
      )
      client.nursery.remove(holding)
      if (transfer._tag === "NotHeld") {
        holding.lose("NotHeld")
        return yield* Effect.fail(holding.loss!)
      }
      if (holding.phase === "held") holding.phase = "handedOff"
      events.emit(holding, "HandedOff")
      const adoptableUntil = Math.floor(holding.clock.currentTimeMillisUnsafe() + transfer.timeLeft)
      return { key, ticketId, token, adoptableUntil }
    })
  )

/** @internal */
export const handedOff = ({ holderId, key, token }: Holding): LockLost =>
  new LockLost({ key, holderId, token, reason: "HandedOff" })

const reportLoss = (holding: Holding): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { loss } = holding
    // Who never had a lease lost none: his acquisition has failed, and that was told.
    if (loss === undefined || holding.reported || holding.token === 0) return Effect.void
    holding.reported = true
    events.emit(holding, "Lost")
    return Effect.andThen(
      Metric.update(Metric.withAttributes(LockMetrics.lost, { reason: loss.reason }), 1),
      annotate(holding, Effect.logWarning(loss.message))
    )
  })

const annotate = <A>(holding: Holding, effect: Effect.Effect<A>): Effect.Effect<A> =>
  Effect.annotateLogs(effect, { module: "effect-lock", key: holding.key, holderId: holding.holderId })

const noteStoreFailure = (holding: Holding) => (error: unknown): Effect.Effect<void> =>
  Effect.sync(() => {
    holding.storeFailed = error instanceof LockStoreError
  })

const awaitGrant = <E>(
  holding: Holding,
  { send, wait }: Ask<E>
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
      signal
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

/**
 * Keeps the lease alive from its first renewal on until it is lost: one fiber per lease, in the lease's scope. Time decides, never a reply: a renewal
 * runs beside the timer that ends the lease (G3).
 */
const keep = (holding: Holding): Effect.Effect<void> =>
  Effect.gen(function*() {
    while (holding.check() === undefined) {
      if (maxHoldLeft(holding) <= 0) return holding.lose("MaxHold")
      if (progressLeft(holding) <= 0) return holding.lose("Stalled")
      const untilRenewal = holding.renewEvery - elapsedUnsafe(holding.renewedAt, holding.clock)
      if (untilRenewal > 0) {
        yield* Effect.sleep(nap(Math.min(untilRenewal, untilLoss(holding))))
        continue
      }
      // Without an answer by then it is interrupted when this fiber ends, which is after the loss was signalled.
      const renewal = yield* Effect.forkChild(renewUntilKnown(holding), { startImmediately: true })
      while (renewal.pollUnsafe() === undefined && untilLoss(holding) > 0) {
        yield* Effect.timeoutOption(Fiber.await(renewal), nap(untilLoss(holding)))
      }
    }
  }).pipe(Effect.ensuring(Effect.suspend(() => reportLoss(holding))))

/**
 * Watches over leases that nothing is to be done for yet. Most locks end before their first renewal, so a fiber of their own
 * would be half of what they cost: one fiber reads the clocks for all, and starts each one's keeper in the lease's scope when
 * it is due, or lost.
 *
 * @internal
 */
export class Nursery {
  readonly #young = new Set<Holding>()
  readonly #alarm = Latch.makeUnsafe(false)
  /** On the monotonic clock; in the past while nobody is watched. */
  #wakesAt = -Infinity

  add(holding: Holding): void {
    this.#young.add(holding)
    const dueAt = monotonicUnsafe(holding.clock) + untilDue(holding)
    if (this.#wakesAt === -Infinity || dueAt < this.#wakesAt) this.#alarm.openUnsafe()
  }

  remove(holding: Holding): void {
    this.#young.delete(holding)
  }

  readonly watch: Effect.Effect<never> = Clock.clockWith((clock) =>
    Effect.gen({ self: this }, function*() {
      while (true) {
        this.#alarm.closeUnsafe()
        let next = Infinity
        for (const holding of this.#young) {
          const left = untilDue(holding)
          if (left <= 0 || holding.lostFor !== undefined) {
            this.#young.delete(holding)
            const { effect, scope } = holding.keeper!
            holding.keeperFiber = yield* Effect.forkIn(effect, scope, { startImmediately: true })
          } else next = Math.min(next, left)
        }
        if (next === Infinity) {
          this.#wakesAt = -Infinity
          yield* this.#alarm.await
        } else {
          this.#wakesAt = monotonicUnsafe(clock) + next
          yield* Effect.raceFirst(Effect.sleep(nap(next)), this.#alarm.await)
        }
      }
    })
  )
}

const untilDue = (holding: Holding): number =>
  Math.min(holding.renewEvery - elapsedUnsafe(holding.renewedAt, holding.clock), untilLoss(holding))

const maxHoldLeft = (holding: Holding): number => holding.options.maxHold - holding.heldFor()

const progressLeft = ({ clock, options, progressAt }: Holding): number =>
  options.progressTimeout === Infinity ? Infinity : options.progressTimeout - elapsedUnsafe(progressAt, clock)

const untilLoss = (holding: Holding): number =>
  Math.min(holding.timeLeft(), maxHoldLeft(holding), progressLeft(holding))

/**
 * Timers stand still while a machine is suspended, so no sleep is longer than a second before the clocks are read again.
 * None is shorter than a microsecond either: what rounds to nothing would be slept over and over without time passing.
 */
const nap = (millis: number): number => Math.min(Math.max(millis, 0.001), 1000)

/** Unknown outcomes are tried again; the deadline ends the trying. */
const renewUntilKnown = (holding: Holding): Effect.Effect<void> =>
  renewOnce(holding).pipe(
    // A bug of the store leaves the outcome as unknown as a lost reply does.
    Effect.catchDefect((cause) =>
      Effect.fail(
        new LockStoreError({ store: holding.client.store.name, operation: "renew", reason: "Unavailable", cause })
      )
    ),
    Effect.retry(holding.options.renewRetry),
    // Out of tries: the next regular renewal is another chance.
    Effect.catchCause(() => Effect.sleep(Math.max(1, holding.renewEvery)))
  )

const renewOnce = (holding: Holding): Effect.Effect<void, LockStoreError> =>
  Effect.suspend(() => {
    const sentAt = nowUnsafe(holding.clock)
    const ttl = holding.ttl
    return holding.client.store.renew(holding, ttl).pipe(
      Effect.flatMap((confirmation) => {
        if (confirmation === "Done") {
          // A reply that comes after the deadline, to a process that slept through it, brings nothing back.
          if (holding.check() === undefined) holding.confirm(sentAt, ttl)
          return countRenewal("done")
        }
        holding.lose("NotHeld")
        return countRenewal("not_held")
      }),
      Effect.tapCause((cause) => {
        holding.unconfirmed = Cause.squash(cause)
        events.emit(holding, "RenewalFailed")
        return Effect.andThen(
          countRenewal("failed"),
          annotate(
            holding,
            Effect.logWarning(`Renewal not confirmed, ${Math.round(holding.timeLeft())} ms left`, cause)
          )
        )
      })
    )
  })

const countRenewal = (outcome: "done" | "not_held" | "failed"): Effect.Effect<void> =>
  Metric.update(Metric.withAttributes(LockMetrics.renewals, { outcome }), 1)

/**
 * The end of an acquisition, whatever became of it (G6). Runs in the scope's finalizer, after the renewal fiber has ended.
 * Never fails and never lasts longer than `releaseTimeout`.
 *
 * @internal
 */
export const end = (holding: Holding): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { lostFor, phase } = holding
    if (phase === "ended") return Effect.void
    holding.phase = "ended"
    holding.client.nursery.remove(holding)
    holding.lose("Released")
    if (phase === "held" && lostFor === undefined) events.emit(holding, "Released")
    const isGone = lostFor === "Expired" || lostFor === "NotHeld" || lostFor === "TakenOver"
    const finish = phase === "new" || phase === "handedOff"
      ? Effect.void
      : phase === "held" && !isGone
      ? release(holding)
      : abandon(holding)
    const settled = Effect.sync(() => {
      holding.client.holdings.delete(holding.holderId)
      if (holding.ended !== undefined) Deferred.doneUnsafe(holding.ended, Effect.void)
    })
    const inBackground = (effect: Effect.Effect<void>) =>
      Effect.asVoid(Effect.forkIn(effect, holding.client.scope, { startImmediately: true }))
    return Effect.andThen(
      Effect.andThen(
        phase === "held" || phase === "handedOff" ? countEnd(holding) : Effect.void,
        lostFor === undefined ? Effect.void : reportLoss(holding)
      ),
      // The store says that nothing is there, or is unreachable: what is left to tidy up must not delay the failure.
      isGone
        ? Effect.ensuring(inBackground(finish), settled)
        // Something may be there: a layer that closes meanwhile waits for it, as for every release.
        : holding.storeFailed
        ? inBackground(Effect.ensuring(finish, settled))
        : Effect.ensuring(finish, settled)
    )
  })

const countEnd = (holding: Holding): Effect.Effect<void> =>
  Effect.withFiber(({ context }) => {
    LockMetrics.held.modifyUnsafe(-1, context)
    LockMetrics.hold.updateUnsafe(holding.heldFor(), context)
    return Effect.void
  })

const release = (holding: Holding): Effect.Effect<void> =>
  unfailing(holding, "release", () => {
    const keepFor = Math.max(0, Math.ceil(holding.options.minHold - holding.heldFor()))
    return holding.client.store.release(holding, keepFor)
  })

const abandon = (holding: Holding): Effect.Effect<void> =>
  unfailing(holding, "abandon", () => holding.client.store.abandon(holding.key, holding.holderId))

const unfailing = (
  holding: Holding,
  operation: string,
  send: () => Effect.Effect<unknown, LockStoreError>
): Effect.Effect<void> => {
  const attempt = Effect.suspend(send)
  // A schedule costs more than the release itself: only a failed first try needs one.
  return Effect.catch(
    attempt,
    (error) =>
      isUnknown(error)
        ? Effect.delay(Effect.retry(attempt, { schedule: retryRelease, while: isUnknown }), 20)
        : Effect.fail(error)
  ).pipe(
    Effect.timeoutOrElse({
      duration: holding.options.releaseTimeout,
      orElse: () =>
        Effect.fail(
          new LockStoreError({
            store: holding.client.store.name,
            operation,
            reason: "Timeout",
            limitName: "releaseTimeout",
            limit: holding.options.releaseTimeout,
            detail: `it may keep "${holding.key}" until its ttl ends`
          })
        )
    }),
    Effect.catchCause((cause) => {
      if (arrears.isUnknown(cause)) {
        const until = monotonicUnsafe(holding.clock) + holding.ttl
        holding.client.arrears.add({ send: attempt, timeout: holding.options.releaseTimeout, until })
      }
      return Effect.andThen(
        Metric.update(LockMetrics.releaseFailures, 1),
        annotate(holding, Effect.logWarning(`Could not ${operation} "${holding.key}"`, cause))
      )
    }),
    Effect.asVoid
  )
}

const isUnknown = (error: LockStoreError): boolean => error.reason !== "Refused"

const retryRelease = Schedule.min([Schedule.exponential(Duration.millis(20)), Schedule.spaced(Duration.millis(500))])
