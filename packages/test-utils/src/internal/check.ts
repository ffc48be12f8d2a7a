import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Subject } from "./subject.ts"

/**
 * What a check takes for granted and not every store promises.
 *
 * @category models
 * @since 0.1.0
 */
export type Need = "fifo" | "permits" | "otherClient"

/**
 * One promise of the port: `run` dies where the store breaks it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Check {
  readonly name: string
  readonly needs: ReadonlyArray<Need>
  readonly run: Effect.Effect<void, unknown, Subject | Scope.Scope>
}

/** @internal */
export const check = (
  name: string,
  run: Effect.Effect<void, unknown, Subject | Scope.Scope>,
  needs: ReadonlyArray<Need> = []
): Check => ({ name, needs, run })
