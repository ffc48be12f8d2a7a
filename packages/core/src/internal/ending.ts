import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import type { LeaseTicket } from "../LeaseTicket.ts"
import { type LockLost, LockStoreError } from "../LockError.ts"
import * as LockMetrics from "../LockMetrics.ts"
import * as arrears from "./arrears.ts"
import * as events from "./events.ts"
import { annotate, failIf, type Holding, reportLoss } from "./holding.ts"
import { monotonicUnsafe } from "./instant.ts"

/**
 * Gives the lease away. Renewal is stopped and awaited first; it goes on if the store did not confirm, and finds out then
 * what became of the lease.
 *
 * @internal
 */
export const handOff = (holding: Holding): Effect.Effect<LeaseTicket, LockLost | LockStoreError> =>
  // No reply may be waited for beyond the deadline (G3).
  Effect.raceFirst(Deferred.await(holding.over), holding.alone(give(holding)))

const give = (holding: Holding): Effect.Effect<LeaseTicket, LockLost | LockStoreError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const { client, key, token } = holding
      const ticketId = `${holding.holderId}-t`
      client.nursery.remove(holding)
      if (holding.keeperFiber !== undefined) yield* Fiber.interrupt(holding.keeperFiber)
      yield* failIf(() => holding.check())
      // Not renewed any more, but still watched.
      const { renewEvery } = holding
      holding.renewEvery = Infinity
      client.nursery.add(holding)
      const transfer = yield* restore(client.store.transfer(holding, ticketId)).pipe(
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
    // Whoever was forked inside remembers this one, but must not remember what this one was asked for inside of.
    holding.keeper = holding.keeperFiber = undefined
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
    const keepFor = Math.max(0, Math.ceil(holding.options.minHold - holding.workedFor()))
    return holding.client.store.release(holding, keepFor)
  })

/** @internal */
export const abandon = (holding: Holding): Effect.Effect<void> =>
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
