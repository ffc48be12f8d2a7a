/**
 * The conformance suite of lock stores: what every `LockStore` has to do, verb by verb, and what a `Lock` built on it has
 * to keep. Memory and Redis stores of this repository run it, and so should a store of your own.
 *
 * **Details**
 *
 * Every check uses keys and holder ids of its own, so they run concurrently, on a store that others use as well. Time is
 * real: checks wait for what has to happen, and never ask that it happened fast.
 *
 * @since 0.1.0
 */
import type { LockStore } from "@effect-lock/core/LockStore"
import { layer as itLayer } from "@effect/vitest"
import type * as Layer from "effect/Layer"
import * as Duration from "effect/Duration"
import type { Check, Need } from "./internal/check.ts"
import { lockChecks } from "./internal/lockChecks.ts"
import { storeChecks } from "./internal/storeChecks.ts"
import { type Options, Subject } from "./internal/subject.ts"

export type { Check, Need } from "./internal/check.ts"
export { type Options, Subject } from "./internal/subject.ts"
