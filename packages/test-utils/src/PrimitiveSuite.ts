/**
 * What users expect of the primitives on a store, through the API they use: several keys, guards, hand-off, revocation, leaders,
 * scheduled jobs and what runs once; semaphores and read-write locks where it counts permits. A store that passes
 * `LockStoreSuite` should pass this one, too.
 *
 * **Details**
 *
 * Every check has keys of its own, so checks run concurrently, also on a store that others use. Time is real, and a schedule's
 * ticks are a second apart whatever the `timeScale`.
 *
 * @since 0.1.0
 */
import type { LockStore, PermitStore } from "@effect-lock/core/LockStore"
import type * as Layer from "effect/Layer"
import type { Check } from "./internal/check.ts"
import { mutexChecks } from "./internal/mutexChecks.ts"
import { permitChecks } from "./internal/permitChecks.ts"
import { quietly, register } from "./internal/register.ts"
import type { MutexOptions, Options } from "./internal/subject.ts"

/**
 * Registers every check as a vitest test, on a store that is built once for all of them. What the options say that the
 * store does not promise is left out: with `permits: false` there are no semaphores and read-write locks.
 *
 * **Example** (A store of your own)
 *
 * ```ts
 * import { PrimitiveSuite } from "@effect-lock/test-utils"
 *
 * PrimitiveSuite.suite("MyLockStore", MyLockStore.layer)
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
export const checks: ReadonlyArray<Check> = [...mutexChecks, ...permitChecks].map(quietly)
