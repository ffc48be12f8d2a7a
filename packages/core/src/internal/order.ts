import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { LockDeadlock } from "../LockError.ts"

/**
 * Looks at a key that is about to be waited for, and at those the asker has already.
 *
 * @internal
 */
export type Order = (key: string, held: Iterable<string>) => Effect.Effect<void, LockDeadlock>

/** @internal */
export const CurrentOrder = Context.Reference<Order | undefined>("@effect-lock/core/internal/Order", {
  defaultValue: () => undefined
})
