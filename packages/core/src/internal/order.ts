import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { LockDeadlock } from "../LockError.ts"

/**
 * Looks at the keys that are about to be waited for, in this order, and at those the asker has already.
 *
 * @internal
 */
export type Order = (keys: ReadonlyArray<string>, held: Iterable<string>) => Effect.Effect<void, LockDeadlock>

/** @internal */
export const CurrentOrder = Context.Reference<Order | undefined>("@effect-lock/core/internal/Order", {
  defaultValue: () => undefined
})
