import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"

/**
 * Logs the failure of what should go on until it is interrupted: it is mostly forked, and Effect tells nobody of the failure
 * of a fiber that nobody joins.
 *
 * @internal
 */
export const logFailure =
  (what: string, key: string) => <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.onError(effect, (cause) =>
      Cause.hasInterruptsOnly(cause)
        ? Effect.void
        : Effect.failCause(cause).pipe(
          Effect.ignoreCause({ log: "Unhandled", message: `${what} "${key}" ended` }),
          Effect.annotateLogs({ module: "effect-lock", key })
        ))
