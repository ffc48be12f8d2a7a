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
import type * as Layer from "effect/Layer"
import type { Check } from "./internal/check.ts"
import { lockChecks } from "./internal/lockChecks.ts"
import { quietly, register } from "./internal/register.ts"
import { storeChecks } from "./internal/storeChecks.ts"
import type { MutexOptions, Options } from "./internal/subject.ts"

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
} = <E, E2>(name: string, layer: Layer.Layer<LockStore, E>, options: Options<E2, LockStore> = {}): void =>
  register(checks, name, layer, options)

/**
 * What `suite` registers: one named effect for each promise, to be run by other means or to be shown to fail.
 *
 * @category constants
 * @since 0.1.0
 */
export const checks: ReadonlyArray<Check> = [...storeChecks, ...lockChecks].map(quietly)
