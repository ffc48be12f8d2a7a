/**
 * One leader among all who campaign for a key: in whatever process they run, one of them runs its effect, and the others
 * wait their turn in the store.
 *
 * **When to use**
 *
 * For work that goes on for as long as the application does and must be done in one place: a consumer, a projection, a
 * reconciler. For a job at certain times use `DistributedCron`, for a piece of work with an end `Lock.withLock`.
 *
 * **Gotchas**
 *
 * A leader that was stopped right after a check can still write late, after somebody else was elected. Send the lease's
 * token along and let the resource refuse smaller ones.
 *
 * **Example** (A leader that ends by itself)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { LeaderElection, Lock, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.gen(function*() {
 *   const election = yield* LeaderElection.make("indexer", { ttl: "10 seconds" })
 *   return yield* election.run((lease) => Effect.succeed(`led with token ${lease.token > 0}`))
 * })
 * const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.runPromise(Effect.provide(program, LockLive)) // => "led with token true"
 * ```
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { logFailure } from "./internal/unattended.ts"
import type { Lease } from "./Lease.ts"
import { Lock } from "./Lock.ts"
import {
  type HolderInfo,
  type LockError,
  type LockInvalid,
  LockLost,
  type LockQueueFull,
  LockStoreError,
  type LockTimeout
} from "./LockError.ts"
import * as LockOptions from "./LockOptions.ts"

/**
 * An election, and this process as a candidate in it.
 *
 * **Details**
 *
 * It holds nothing while nobody runs it, so there is nothing to close. Give it to others as a service of your own with
 * `Layer.effect(MyElection, LeaderElection.make("indexer"))`.
 *
 * @category models
 * @since 0.1.0
 */
export interface LeaderElection {
  /** What is campaigned for: the key of the lock that the leader holds. */
  readonly key: string
  /** How this candidate stands, now and from now on. For reading: nothing heeds what is written to it. */
  readonly status: SubscriptionRef.SubscriptionRef<Status>
  /**
   * Who leads, in whatever process; its `metadata` is what the store and the option `holder` say. Old when you read it:
   * decide nothing by it.
   */
  readonly leader: Effect.Effect<Option.Option<HolderInfo>, LockStoreError>
  /**
   * Campaigns, and runs the effect while leading; a function is given the lease, with the token.
   *
   * When the effect succeeds or fails, or `run` is interrupted, the effect's finalizers run, leadership is resigned at once,
   * and `run` ends in the same way. When leadership is lost, the effect is interrupted and `run` campaigns again, at the end
   * of the queue: the effect starts from its beginning when it leads once more. A store that does not answer only delays.
   *
   * A failure that ends it is logged, too, as an error, or at Effect's `References.UnhandledLogLevel`: nobody hears of the
   * failure of a fiber that was forked.
   */
  readonly run: <A, E, R>(
    effect: Effect.Effect<A, E, R> | ((lease: Lease) => Effect.Effect<A, E, R>)
  ) => Effect.Effect<A, E | CampaignError, R>
}

/**
 * How a candidate stands. `Idle`: does not campaign. `Follower`: campaigns. `Leading`: was elected, with this token.
 *
 * **Details**
 *
 * `Leading` ends as soon as the lease is lost, or when the effect and its finalizers have ended: before anybody else can be
 * elected, as far as clocks go at the same rate.
 *
 * @category models
 * @since 0.1.0
 */
export type Status =
  | { readonly _tag: "Idle" }
  | { readonly _tag: "Follower" }
  | { readonly _tag: "Leading"; readonly token: number }

/**
 * What a campaign can end with, besides what the effect fails with. `LockStoreError` and the losses that lead to another
 * campaign end it only when the schedule `retry` does.
 *
 * @category errors
 * @since 0.1.0
 */
export type CampaignError = Exclude<LockError, LockTimeout | LockQueueFull>

/**
 * How to campaign and to lead: the options of a lock, but a candidate waits for as long as it takes.
 *
 * **Details**
 *
 * `ttl` is how long a killed leader keeps others waiting; `maxHold` makes leaders take turns; `holder` is what `leader` tells
 * of them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends Omit<LockOptions.LockOptions, "waitTimeout" | "maxWaiters"> {
  /**
   * When to campaign again after the store failed, or leadership was lost. It starts anew with each time of leading. Default
   * exponential from 200 milliseconds, at most 5 seconds, jittered, without end.
   */
  readonly retry?: Schedule.Schedule<unknown, LockLost | LockStoreError> | undefined
}

/**
 * An election for a key.
 *
 * **Details**
 *
 * Fails with `LockInvalid` when the key or an option is not usable. `run` it as often as you like, also at the same time: each
 * run is a candidate of its own, and `status` tells of the one that stands best.
 *
 * **Gotchas**
 *
 * The key is that of a lock: `Lock.withLock` with the same key waits until the leader resigns.
 *
 * **Example** (In the background, for as long as the application runs)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { LeaderElection } from "@effect-lock/core"
 *
 * const consume = Effect.never
 * const ConsumerLive = Layer.effectDiscard(Effect.gen(function*() {
 *   const election = yield* LeaderElection.make("consumer", { ttl: "10 seconds", holder: { region: "eu" } })
 *   yield* Effect.forkScoped(election.run(consume))
 * }))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  key: string,
  { retry = defaultRetry, ...options }: Options = {}
): Effect.fn.Return<LeaderElection, LockInvalid, Lock> {
  const invalid = LockOptions.checkKey(key)
  if (invalid !== undefined) return yield* Effect.fail(invalid)
  yield* LockOptions.resolve(options)
  const lock = yield* Lock
  const status = yield* SubscriptionRef.make<Status>({ _tag: "Idle" })
  const candidates = new Set<Candidate>()

  const update = (change: () => unknown): Effect.Effect<void> =>
    Effect.suspend(() => {
      change()
      const before = SubscriptionRef.getUnsafe(status)
      const now = standing(candidates)
      return isSame(before, now) ? Effect.void : SubscriptionRef.set(status, now)
    })

  /** The status is told as the lease begins, and is gone before the lease is. */
  const lead = <A, E, R>(candidate: Candidate, lease: Lease, effect: Effect.Effect<A, E, R>) =>
    Effect.acquireUseRelease(
      update(() => candidate.lease = lease),
      () => {
        // Told at once: what is interrupted may take its time to end.
        const stepDown = Effect.catch(lease.lost, () => update(() => candidate.lease = undefined))
        return Effect.andThen(Effect.forkChild(stepDown, { startImmediately: true }), effect)
      },
      () =>
        Effect.flatMap(
          lease.isValid,
          (isResigning) => update(() => isResigning ? candidates.delete(candidate) : candidate.lease = undefined)
        )
    )

  const campaign = Effect.fnUntraced(function*<A, E, R>(
    candidate: Candidate,
    use: (lease: Lease) => Effect.Effect<A, E, R>
  ): Effect.fn.Return<A, E | CampaignError, R> {
    let next = yield* Schedule.toStepWithSleep(retry)
    while (true) {
      yield* update(() => candidates.add(candidate))
      let lease: Lease | undefined
      const term = lock.withLease(key, (granted) => lead(candidate, lease = granted, use(granted)), {
        ...options,
        waitTimeout: Infinity,
        maxWaiters: Infinity
      }) as Effect.Effect<A, E | CampaignError, R>
      const ended = yield* Effect.matchEffect(term, {
        onSuccess: (value) => Effect.succeed({ value }),
        onFailure: (error) => isOver(error, lease) ? Effect.succeed({ error }) : Effect.fail(error)
      })
      if ("value" in ended) return ended.value
      const { error } = ended
      yield* Effect.annotateLogs(
        // A loss is logged by whoever noticed it.
        lease === undefined
          ? Effect.logWarning(`Campaign for "${key}" failed, to be tried again`, error)
          : Effect.logInfo(`Leadership of "${key}" lost, to be campaigned for again`),
        { module: "effect-lock", key }
      )
      if (lease !== undefined) next = yield* Schedule.toStepWithSleep(retry)
      yield* Pull.catchDone(next(error), () => Effect.fail(error))
    }
  })

  return {
    key,
    status,
    leader: lock.inspect(key).pipe(
      Effect.map(({ holders }) => Option.fromUndefinedOr(holders[0])),
      Effect.catchTag("LockInvalid", Effect.die)
    ),
    run: (effect) =>
      Effect.suspend(() => {
        const candidate: Candidate = { lease: undefined }
        return campaign(candidate, (lease) => Effect.isEffect(effect) ? effect : effect(lease)).pipe(
          Effect.ensuring(update(() => candidates.delete(candidate))),
          logFailure("LeaderElection", key)
        )
      })
  }
})

interface Candidate {
  lease: Lease | undefined
}

const defaultRetry: Schedule.Schedule<unknown> = Schedule.min([Schedule.exponential(200), Schedule.spaced(5000)]).pipe(
  Schedule.jittered
)

const standing = (candidates: ReadonlySet<Candidate>): Status => {
  for (const { lease } of candidates) if (lease !== undefined) return { _tag: "Leading", token: lease.token }
  return candidates.size === 0 ? { _tag: "Idle" } : { _tag: "Follower" }
}

const isSame = (a: Status, b: Status): boolean =>
  a._tag === b._tag && (a._tag !== "Leading" || b._tag !== "Leading" || a.token === b.token)

/** Whether it is this term, or the attempt at it, that failed: the effect may use locks, too, and fail with the like. */
const isOver = (error: unknown, lease: Lease | undefined): error is LockLost | LockStoreError =>
  error instanceof LockLost
    ? error.reason !== "Closed" && (lease === undefined || isLossOf(error, lease))
    : error instanceof LockStoreError && lease === undefined

const isLossOf = ({ holderId, reason }: LockLost, lease: Lease): boolean =>
  holderId === lease.holderId && reason !== "HandedOff" && reason !== "Released"
