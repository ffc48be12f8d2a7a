import { LockStore, PermitStore } from "@effect-lock/core/LockStore"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"

/**
 * What a store promises, and how patient its checks are.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options<E = never, Stores = LockStore | PermitStore> {
  /**
   * Makes a further client of the same store, a new one at each call: half of every check's contenders use it. What the
   * clients share, a server for instance, belongs into a layer bound to one `const`. Default: all use the same client.
   */
  readonly otherClient?: (() => Layer.Layer<Stores, E>) | undefined
  /**
   * `fifo`: waiters are granted in the order of their places, and `inspect` shows them in that order.
   * `progress`: somebody is granted. Default `fifo`.
   */
  readonly order?: "fifo" | "progress" | undefined
  /**
   * Whether a key can have a limit above 1, with holders of several permits: layers provide a `PermitStore` then, too.
   * Default true.
   */
  readonly permits?: boolean | undefined
  /** What the durations of the checks (a ttl that runs out: up to six seconds) are multiplied with. Default 1. */
  readonly timeScale?: number | undefined
  /** How long anything that has to happen may take at most. Default 30 seconds. */
  readonly patience?: Duration.Input | undefined
}

/**
 * What a store promises that cannot count permits.
 *
 * @category models
 * @since 0.1.0
 */
export interface MutexOptions<E = never> extends Options<E, LockStore> {
  readonly permits: false
}

/**
 * The store that the checks of a suite examine.
 *
 * @category services
 * @since 0.1.0
 */
export class Subject extends Context.Service<Subject, {
  /** Two clients of one store; the same one twice where there is no `otherClient`. */
  readonly clients: readonly [LockStore["Service"], LockStore["Service"]]
  /** The same two clients, where they count permits. */
  readonly permitClients: readonly [PermitStore["Service"], PermitStore["Service"]] | undefined
  /** A client that can be closed before the others. */
  readonly openClient: Effect.Effect<LockStore["Service"], unknown, Scope.Scope> | undefined
  readonly timeScale: number
  /** Milliseconds. */
  readonly patience: number
}>()("@effect-lock/test-utils/LockStoreSuite/Subject") {
  static layer<E, E2 = never>(
    layer: Layer.Layer<LockStore | PermitStore, E>,
    options?: Options<E2>
  ): Layer.Layer<Subject, E | E2>
  static layer<E, E2 = never>(
    layer: Layer.Layer<LockStore, E>,
    options: MutexOptions<E2>
  ): Layer.Layer<Subject, E | E2>
  static layer<E, E2 = never>(
    layer: Layer.Layer<LockStore, E>,
    options: Options<E2, LockStore> = {}
  ): Layer.Layer<Subject, E | E2> {
    return subjectOf(layer, options)
  }
}

/** @internal */
export const subjectOf = <E, E2>(
  layer: Layer.Layer<LockStore, E>,
  options: Options<E2, LockStore>
): Layer.Layer<Subject, E | E2> => Layer.effect(Subject, make(layer, options))

const make = Effect.fnUntraced(function*<E, E2>(
  layer: Layer.Layer<LockStore, E>,
  { otherClient, patience = "30 seconds", timeScale = 1 }: Options<E2, LockStore>
): Effect.fn.Return<Subject["Service"], E | E2, Scope.Scope> {
  // One map for all clients, so that they share what their layers share.
  const memoMap = Layer.CurrentMemoMap.forkOrCreate(yield* Effect.context())
  const build = <E>(layer: Layer.Layer<LockStore, E>) =>
    Scope.Scope.use((scope) => Layer.buildWithMemoMap(layer, memoMap, scope))
  const first = yield* build(layer)
  const second = otherClient === undefined ? first : yield* build(otherClient())
  const permits = Option.all([Context.getOption(first, PermitStore), Context.getOption(second, PermitStore)])
  return {
    clients: [Context.get(first, LockStore), Context.get(second, LockStore)],
    permitClients: Option.getOrUndefined(permits),
    openClient: otherClient === undefined
      ? undefined
      : Effect.suspend(() => Effect.map(build(otherClient()), Context.get(LockStore))),
    timeScale,
    patience: Duration.toMillis(Duration.fromInputUnsafe(patience))
  }
})

/**
 * Milliseconds, in the time scale of the suite.
 *
 * @internal
 */
export const scaled = (millis: number): Effect.Effect<number, never, Subject> =>
  Subject.useSync(({ timeScale }) => Math.ceil(millis * timeScale))

/**
 * Waits for what has to happen.
 *
 * @internal
 */
export const expected = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Subject> =>
  Subject.use(({ patience }) =>
    Effect.timeoutOrElse(effect, {
      duration: patience,
      orElse: () => Effect.die(new Error(`${what}: not within ${patience} ms`))
    })
  )

/**
 * Waits for a condition that nothing announces.
 *
 * @internal
 */
export const eventually = <E, R>(
  what: string,
  condition: Effect.Effect<boolean, E, R>
): Effect.Effect<void, E, R | Subject> =>
  expected(what, Effect.repeat(condition, { until: (met) => met, schedule: Schedule.spaced(10) })).pipe(Effect.asVoid)
