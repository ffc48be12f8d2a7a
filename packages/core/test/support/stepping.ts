/**
 * Does something to running fibers at each of their steps in turn: before the first operation, before the second, and so
 * on, until they are through without being disturbed.
 */
import { assert } from "@effect/vitest"
import { Effect, type Exit, Fiber, Scheduler } from "effect"
import { TestClock } from "effect/testing"

export interface Run<A, E> {
  /** What is done, and all that it forks, is watched. */
  readonly victim: Effect.Effect<A, E>
  /** Happens while the fiber about to do the step is suspended, as it would be when it yields to others. */
  readonly act: (victim: Fiber.Fiber<A, E>) => void
  /** What must hold in the end; nothing that the victim forked is running any more. */
  readonly check: (exit: Exit.Exit<A, E>) => Effect.Effect<void>
}

/** Calls `prepare` for every step; gives the number of steps. */
export const everyStep = Effect.fnUntraced(function*<A, E, R>(prepare: Effect.Effect<Run<A, E>, never, R>) {
  const base = yield* Scheduler.Scheduler
  for (let step = 0; step < 20_000; step++) {
    const { act, check, victim } = yield* prepare
    const fibers = new Set<Fiber.Fiber<unknown, unknown>>()
    let taken = 0
    const scheduler: Scheduler.Scheduler = {
      executionMode: base.executionMode,
      shouldYield: (current) => {
        fibers.add(current)
        if (taken++ !== step) return base.shouldYield(current)
        current.currentDispatcher.scheduleTask(() => act(fiber), 0)
        return true
      },
      makeDispatcher: () => base.makeDispatcher()
    }
    const fiber: Fiber.Fiber<A, E> = yield* Effect.forkDetach(
      Effect.provideService(victim, Scheduler.Scheduler, scheduler)
    )
    const at = `at step ${step}`
    yield* Effect.gen(function*() {
      const isRunning = () => Array.from(fibers).some((fiber) => fiber.pollUnsafe() === undefined)
      for (let time = 0; fiber.pollUnsafe() === undefined || isRunning(); time++) {
        assert.isBelow(time, 2000, "still running")
        yield* TestClock.adjust(10)
      }
      yield* check(yield* Fiber.await(fiber))
    }).pipe(Effect.catchDefect((defect) => Effect.die(new Error(`${at}: ${String(defect)}`, { cause: defect }))))
    if (taken <= step) return step
  }
  return assert.fail("takes too many steps")
})
