import { Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"

/**
 * Runs an effect to its end on the test's clock. A busy machine would lend a broken store time that it has not given: who
 * keeps a key for nobody passes where a real tenth of a second gets lost between release and grant.
 */
export const virtually = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect)
    while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust(5)
    return yield* Fiber.join(fiber)
  })
