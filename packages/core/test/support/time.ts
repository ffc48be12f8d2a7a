import { assert } from "@effect/vitest"
import { Clock, Effect, type Fiber } from "effect"
import { TestClock } from "effect/testing"

/** Goes on as soon as the condition holds; fails if it does not while every fiber runs as far as it can without time. */
export const until = (condition: () => boolean): Effect.Effect<void> =>
  Effect.gen(function*() {
    for (let turn = 0; turn < 10_000; turn++) {
      if (condition()) return
      yield* Effect.yieldNow
    }
    assert.fail(`never came true: ${String(condition)}`)
  })

/**
 * Lets every fiber run until it waits for time to pass or for somebody: nothing in these tests takes more turns of the
 * scheduler than this on its own.
 */
export const settle: Effect.Effect<void> = Effect.gen(function*() {
  for (let turn = 0; turn < 100; turn++) yield* Effect.yieldNow
})

/** Runs a fiber to its end, and time along with it: `step` milliseconds whenever everybody waits. */
export const drive = <A, E>(
  fiber: Fiber.Fiber<A, E>,
  { limit = 100_000, step = 1 }: { readonly limit?: number; readonly step?: number } = {}
) =>
  Effect.gen(function*() {
    for (let time = 0; time <= limit; time += step) {
      const exit = fiber.pollUnsafe()
      if (exit !== undefined) return exit
      yield* TestClock.adjust(step)
    }
    return assert.fail(`did not end within ${limit} ms`)
  })

/** Milliseconds on the test's clock. */
export const now: Effect.Effect<number> = Clock.currentTimeMillis

/** A clock like the current one, whose wall time can jump. */
export const jumpingClock: Effect.Effect<{ readonly clock: Clock.Clock; readonly jump: (millis: number) => void }> =
  Clock.clockWith((base) =>
    Effect.sync(() => {
      let offset = 0
      const millis = () => base.currentTimeMillisUnsafe() + offset
      const nanos = () => base.currentTimeNanosUnsafe() + BigInt(offset * 1_000_000)
      return {
        jump: (by: number) => {
          offset += by
        },
        clock: {
          currentTimeMillisUnsafe: millis,
          currentTimeMillis: Effect.sync(millis),
          currentTimeNanosUnsafe: nanos,
          currentTimeNanos: Effect.sync(nanos),
          monotonicTimeNanosUnsafe: () => base.monotonicTimeNanosUnsafe(),
          monotonicTimeNanos: base.monotonicTimeNanos,
          sleep: (duration) => base.sleep(duration)
        }
      }
    })
  )
