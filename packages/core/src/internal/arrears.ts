import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import type { LockStoreError } from "../LockError.ts"
import { monotonicUnsafe } from "./instant.ts"

/**
 * A release or abandon that the store did not confirm in time.
 *
 * @internal
 */
export interface Debt {
  readonly send: Effect.Effect<unknown, LockStoreError>
  /** How long one try may take. */
  readonly timeout: number
  /** On the monotonic clock: from then on there is nothing left to end. */
  readonly until: number
}

/** Milliseconds between two rounds. */
const pause = 500

/** What fails during a long outage of a busy application must not fill the memory: beyond this the oldest end by themselves. */
const capacity = 10_000

/**
 * Ends in the background what could not be ended in time, so that a key is free soon after an outage and not only when its ttl
 * is over. One fiber and one list for a client, and one command per round for as long as the store does not answer: an
 * outage piles up no fibers, and is not made worse.
 *
 * @internal
 */
export class Arrears {
  readonly #owed = new Set<Debt>()
  readonly #alarm = Latch.makeUnsafe(false)

  add(debt: Debt): void {
    const [oldest] = this.#owed.size < capacity ? [] : this.#owed
    if (oldest !== undefined) this.#owed.delete(oldest)
    this.#owed.add(debt)
    this.#alarm.openUnsafe()
  }

  readonly settle: Effect.Effect<never> = Clock.clockWith((clock) =>
    Effect.gen({ self: this }, function*() {
      while (true) {
        if (this.#owed.size === 0) {
          this.#alarm.closeUnsafe()
          yield* this.#alarm.await
        }
        yield* Effect.sleep(pause)
        const now = monotonicUnsafe(clock)
        for (const debt of this.#owed) if (debt.until <= now) this.#owed.delete(debt)
        const [first] = this.#owed
        if (first === undefined) continue
        if (yield* this.#try(first)) {
          yield* Effect.forEach(Array.from(this.#owed), this.#try, { concurrency: 16, discard: true })
        } else {
          // Others may be behind a part of the store that does answer.
          this.#owed.delete(first)
          this.#owed.add(first)
        }
      }
    })
  )

  /** Whether the store has answered, be it with a refusal or a bug: then the debt is no more. */
  readonly #try = (debt: Debt): Effect.Effect<boolean> =>
    Effect.map(Effect.exit(Effect.timeoutOption(debt.send, debt.timeout)), (exit) => {
      const isKnown = exit._tag === "Success" ? Option.isSome(exit.value) : !isUnknown(exit.cause)
      if (isKnown) this.#owed.delete(debt)
      return isKnown
    })
}

/**
 * Whether what failed may be worth another try.
 *
 * @internal
 */
export const isUnknown = (cause: Cause.Cause<LockStoreError>): boolean =>
  Option.exists(Cause.findErrorOption(cause), (error) => error.reason !== "Refused")
