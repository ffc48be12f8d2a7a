import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Metric from "effect/Metric"
import { type LockLost, LockStoreError } from "../LockError.ts"
import * as LockMetrics from "../LockMetrics.ts"
import * as events from "./events.ts"
import { annotate, type Holding, reportLoss } from "./holding.ts"
import { elapsedUnsafe, monotonicUnsafe, nowUnsafe } from "./instant.ts"

/** @internal */
export const extend = (holding: Holding, ttl: number): Effect.Effect<void, LockStoreError | LockLost> =>
  holding.alone(Effect.suspend(() => {
    holding.ttl = ttl
    return renewOnce(holding)
  }))

/**
 * Renews at once a lease that the store has called into doubt.
 *
 * @internal
 */
export const verify = (holding: Holding): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { isDoubted, keeper, lostFor, phase } = holding
    if (phase !== "held" || lostFor !== undefined || keeper === undefined || isDoubted) return Effect.void
    holding.isDoubted = true
    const renewal = Effect.suspend(() => {
      // A doubt that arises from now on may be about what this renewal does not see any more.
      holding.isDoubted = false
      return renewOnce(holding)
    })
    return Effect.asVoid(Effect.forkIn(Effect.ignore(holding.alone(renewal)), keeper.scope))
  })

/**
 * Succeeds when somebody queues behind the lease. Where news get lost, the question is asked again as often as renewals.
 *
 * @internal
 */
export const revocation = (holding: Holding): Effect.Effect<void, LockLost> =>
  Effect.suspend(() => {
    // Before the question is sent: the news may overtake the answer. Who was waiting may have gone since the last time.
    if (holding.wanted === undefined || Deferred.isDoneUnsafe(holding.wanted)) holding.wanted = Deferred.makeUnsafe()
    const { wanted } = holding
    const ask = Effect.suspend(() => holding.client.store.watch(holding)).pipe(
      Effect.map((watch) => {
        if (watch._tag === "NotHeld") holding.lose("NotHeld")
        else if (watch.isWanted) Deferred.doneUnsafe(wanted, Effect.void)
      }),
      Effect.ignore,
      (command) => holding.alone(command)
    )
    return Effect.raceFirst(
      Deferred.await(wanted),
      Effect.forever(Effect.andThen(ask, Effect.suspend(() => Effect.sleep(Math.min(holding.renewEvery, 60_000)))))
    )
  })

/**
 * Keeps the lease alive from its first renewal on until it is lost: one fiber per lease, in the lease's scope. Time decides, never a reply: a renewal
 * runs beside the timer that ends the lease (G3).
 *
 * @internal
 */
export const keep = (holding: Holding): Effect.Effect<void> =>
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
            const { keeper } = holding
            if (keeper === undefined) continue
            holding.keeperFiber = yield* Effect.forkIn(keeper.effect, keeper.scope, { startImmediately: true })
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
