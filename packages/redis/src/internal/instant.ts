import type * as Clock from "effect/Clock"

/**
 * Milliseconds of a clock that is never set.
 *
 * @internal
 */
export const monotonicUnsafe = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe()) / 1_000_000
