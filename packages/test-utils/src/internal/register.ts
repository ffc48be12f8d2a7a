import type { LockStore } from "@effect-lock/core/LockStore"
import { layer as layerOf } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as References from "effect/References"
import type { Check, Need } from "./check.ts"
import { type Options, subjectOf } from "./subject.ts"

/**
 * Registers checks as vitest tests, on a store that is built once for all of them, without those that need what the store
 * does not promise.
 *
 * @internal
 */
export const register = <E, E2>(
  checks: ReadonlyArray<Check>,
  name: string,
  layer: Layer.Layer<LockStore, E>,
  options: Options<E2, LockStore>
): void => {
  const { patience = "30 seconds" } = options
  const timeout = 3 * Duration.toMillis(Duration.fromInputUnsafe(patience))
  layerOf(subjectOf(layer, options), { concurrent: true, excludeTestServices: true, timeout })(name, (it) => {
    for (const { name, needs, run } of checks) {
      if (needs.every((need) => isPromised(need, options))) it.effect(name, () => run, { timeout })
    }
  })
}

/**
 * Losing leases is part of the checks, and would be logged.
 *
 * @internal
 */
export const quietly = (check: Check): Check => ({
  ...check,
  run: Effect.provideService(check.run, References.MinimumLogLevel, "Error")
})

const isPromised = (need: Need, { order, otherClient, permits }: Options<unknown, LockStore>): boolean => {
  switch (need) {
    case "fifo":
      return order !== "progress"
    case "permits":
      return permits !== false
    case "otherClient":
      return otherClient !== undefined
  }
}
