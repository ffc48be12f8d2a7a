import type * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { LockLost, type LossReason } from "../LockError.ts"
import * as LockMetrics from "../LockMetrics.ts"
import type { Resolved } from "../LockOptions.ts"
import type { Grant, Held, Instant, LockStore } from "../LockStore.ts"
import type { Arrears } from "./arrears.ts"
import * as events from "./events.ts"
import { elapsedUnsafe, monotonicUnsafe, nowUnsafe } from "./instant.ts"
import type { Region, WaitingTurns } from "./region.ts"
import type { Nursery } from "./renewal.ts"

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
  readonly arrears: Arrears
  readonly waitingTurns: WaitingTurns
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
  /** On the monotonic clock. */
  workedSince: number
  wanted: Deferred.Deferred<void> | undefined = undefined
  /** The last answer that left the outcome of a renewal unknown. */
  unconfirmed: unknown = undefined
  /** Whether a renewal out of turn is to come that will answer every doubt. */
  isDoubted = false
  #alone: Semaphore.Semaphore | undefined = undefined
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
    this.workedSince = askedAt.monotonic
  }

  get metadata(): Readonly<Record<string, string>> {
    return { ...this.client.store.identity, ...this.options.holder }
  }

  /**
   * Runs a command about the lease when no other one is under way that came through here. Once the lease has been given away
   * it fails: the store's answer would be taken for a loss. Regular renewals are stopped before that.
   */
  alone<A, E>(command: Effect.Effect<A, E>): Effect.Effect<A, E | LockLost> {
    this.#alone ??= Semaphore.makeUnsafe(1)
    return this.#alone.withPermit(
      Effect.suspend((): Effect.Effect<A, E | LockLost> =>
        this.phase === "held" ? command : Effect.fail(this.loss ?? handedOff(this))
      )
    )
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

  /** At least: a wall clock that is set forward must not let the key go before `minHold` is over. */
  workedFor(): number {
    return monotonicUnsafe(this.clock) - this.workedSince
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
    this.workedSince = this.grantedAt.monotonic
    this.confirm(grant.sentAt, grant.ttl)
  }

  /** The work of several locks begins with the last grant. */
  begin(options: Resolved): void {
    this.options = options
    this.progressAt = nowUnsafe(this.clock)
    this.workedSince = this.progressAt.monotonic
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
 * The work of a held lease: interrupted when the lease is lost, and the whole then fails with `LockLost` (G4). What
 * succeeded only after the deadline was over before any timer could tell: that is a loss, too.
 *
 * @internal
 */
export const protect = <A, E, R>(
  over: Effect.Effect<never, LockLost>,
  checks: { readonly before: Effect.Effect<void, LockLost>; readonly after: Effect.Effect<void, LockLost> },
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | LockLost, R> =>
  Effect.andThen(checks.before, Effect.raceFirst(over, Effect.tap(effect, () => checks.after)))

/** @internal */
export const failIf = (loss: () => LockLost | undefined): Effect.Effect<void, LockLost> =>
  Effect.suspend(() => {
    const lost = loss()
    return lost === undefined ? Effect.void : Effect.fail(lost)
  })

/** @internal */
export const handedOff = ({ holderId, key, token }: Holding): LockLost =>
  new LockLost({ key, holderId, token, reason: "HandedOff" })

/** @internal */
export const reportLoss = (holding: Holding): Effect.Effect<void> =>
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

/** @internal */
export const annotate = <A>(holding: Holding, effect: Effect.Effect<A>): Effect.Effect<A> =>
  Effect.annotateLogs(effect, { module: "effect-lock", key: holding.key, holderId: holding.holderId })
