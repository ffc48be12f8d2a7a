/**
 * The conformance suite of lock stores: what every `LockStore` has to do, verb by verb, and what a `Lock` built on it has
 * to keep. The stores of Effect Lock run it, and so should a store of your own.
 *
 * **Details**
 *
 * Every check has keys and holder ids of its own, so checks run concurrently, also on a store that others use. Time is
 * real: checks wait for what has to happen, and never ask that it happened fast.
 *
 * @since 0.1.0
 */
import type { LockStore, PermitStore } from "@effect-lock/core/LockStore"
import { layer as layerOf } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as References from "effect/References"
import type { Check, Need } from "./internal/check.ts"
import { lockChecks } from "./internal/lockChecks.ts"
import { storeChecks } from "./internal/storeChecks.ts"
import { type MutexOptions, type Options, subjectOf } from "./internal/subject.ts"

export type { Check, Need } from "./internal/check.ts"
export { type MutexOptions, type Options, Subject } from "./internal/subject.ts"

/**
 * Registers every check as a vitest test, on a store that is built once for all of them. What the options say that the
 * store does not promise is left out.
 *
 * **Example** (A store of your own)
 *
 * ```ts
 * import { LockStoreSuite, RedisServer } from "@effect-lock/test-utils"
 * import { Effect, Layer } from "effect"
 *
 * const Server = RedisServer.RedisServer.layer()
 * const client = () =>
 *   Layer.unwrap(RedisServer.RedisServer.useSync(({ url }) => MyLockStore.layer(url))).pipe(Layer.provide(Server))
 *
 * LockStoreSuite.suite("MyLockStore", client(), { otherClient: client })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const suite: {
  <E, E2 = never>(name: string, layer: Layer.Layer<LockStore | PermitStore, E>, options?: Options<E2>): void
  <E, E2 = never>(name: string, layer: Layer.Layer<LockStore, E>, options: MutexOptions<E2>): void
} = <E, E2>(
  name: string,
  layer: Layer.Layer<LockStore, E>,
  options: Options<E2, LockStore> = {}
): void => {
  const { patience = "20 seconds" } = options
  const timeout = 3 * Duration.toMillis(Duration.fromInputUnsafe(patience))
  layerOf(subjectOf(layer, options), { concurrent: true, excludeTestServices: true, timeout })(name, (it) => {
    for (const { name, needs, run } of checks) {
      if (needs.every((need) => isPromised(need, options))) it.effect(name, () => run, { timeout })
    }
  })
}

/**
 * What `suite` registers: one named effect for each promise, to be run by other means or to be shown to fail.
 *
 * @category constants
 * @since 0.1.0
 */
export const checks: ReadonlyArray<Check> = [...storeChecks, ...lockChecks].map((check) => ({
  ...check,
  // Losing leases is part of the checks, and would be logged.
  run: Effect.provideService(check.run, References.MinimumLogLevel, "Error")
}))

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
