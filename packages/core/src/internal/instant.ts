import type * as Clock from "effect/Clock"
import type { Instant } from "../LockStore.ts"

/** @internal */
export const monotonicUnsafe = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe()) / 1_000_000

/** @internal */
export const nowUnsafe = (clock: Clock.Clock): Instant => ({
  monotonic: monotonicUnsafe(clock),
  wall: clock.currentTimeMillisUnsafe()
})

/** @internal */
export const elapsedUnsafe = (since: Instant, clock: Clock.Clock): number =>
  Math.max(monotonicUnsafe(clock) - since.monotonic, clock.currentTimeMillisUnsafe() - since.wall)
