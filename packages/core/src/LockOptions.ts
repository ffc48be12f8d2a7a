/**
 * The options of every lock, named once. Durations are `Duration.Input`: milliseconds as a number, or `"30 seconds"`.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { format } from "effect/Formatter"
import * as Schedule from "effect/Schedule"
import { LockInvalid, type LockStoreError } from "./LockError.ts"

/**
 * How to wait for, keep and end a lock. Whatever is left out comes from the `Lock` layer, then from `defaults`.
 *
 * @category models
 * @since 0.1.0
 */
export interface LockOptions {
  /**
   * How long the lease lives in the store without renewal; so also how long a dead process blocks others. Renewed for as
   * long as the scope is open. Default 30 seconds, at least 10 milliseconds, at most 24.8 days.
   */
  readonly ttl?: Duration.Input | undefined
  /**
   * How long to wait for other holders before failing with `LockTimeout`. Zero asks once. Store commands have a time-out
   * of their own, which this one does not cut short. Default infinite.
   */
  readonly waitTimeout?: Duration.Input | undefined
  /** When to renew after the last confirmed renewal; less than `ttl`. Default a third of `ttl`. */
  readonly renewEvery?: Duration.Input | undefined
  /**
   * When to try again after a renewal with an unknown outcome. Tries end with the lease's deadline at the latest.
   * Default exponential from 50 milliseconds, jittered, at most 1 second.
   */
  readonly renewRetry?: Schedule.Schedule<unknown, LockStoreError> | undefined
  /** How long the end of a lock may wait for the store to confirm the release. Default 5 seconds. */
  readonly releaseTimeout?: Duration.Input | undefined
  /** The longest a lease may be held, renewed or not: then it is lost with reason `MaxHold`. Default infinite. */
  readonly maxHold?: Duration.Input | undefined
  /**
   * The shortest time for which the key stays taken, even when the work was quicker: the lease stays in the store until
   * then, and nobody waits for it here. A store that loses its memory forgets it; lock delay and quarantine cover it only for
   * as long as a ttl. Default zero.
   */
  readonly minHold?: Duration.Input | undefined
  /**
   * How long the work may go without `lease.heartbeat`: then the lease is lost with reason `Stalled`, instead of being renewed
   * for work that hangs. Default infinite.
   */
  readonly progressTimeout?: Duration.Input | undefined
  /**
   * A head start in the queue, a whole number from -1000 to 1000: each step is worth ten seconds. So who has waited for ten
   * seconds longer comes first all the same, and nobody starves. Default 0. Without effect on a quorum.
   */
  readonly priority?: number | undefined
  /**
   * How many may wait for the key already when this caller joins them; with more it fails at once with `LockQueueFull`.
   * On a quorum only waiters of the same client are counted. Default infinite.
   */
  readonly maxWaiters?: number | undefined
  /** What others are told of this holder, in `inspect` and in their errors: a label, a job id. Default nothing. */
  readonly holder?: Readonly<Record<string, string>> | undefined
}

/**
 * The options as used: every one present, durations in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Resolved {
  readonly ttl: number
  readonly waitTimeout: number
  readonly renewEvery: number | undefined
  readonly renewRetry: Schedule.Schedule<unknown, LockStoreError>
  readonly releaseTimeout: number
  readonly maxHold: number
  readonly minHold: number
  readonly progressTimeout: number
  readonly priority: number
  readonly maxWaiters: number
  readonly holder: Readonly<Record<string, string>>
}

/**
 * What holds where neither the call nor the layer says otherwise.
 *
 * @category constants
 * @since 0.1.0
 */
export const defaults: Resolved = {
  ttl: 30_000,
  waitTimeout: Infinity,
  renewEvery: undefined,
  renewRetry: Schedule.min([Schedule.exponential(50), Schedule.spaced(1000)]).pipe(Schedule.jittered),
  releaseTimeout: 5_000,
  maxHold: Infinity,
  minHold: 0,
  progressTimeout: Infinity,
  priority: 0,
  maxWaiters: Infinity,
  holder: {}
}

/**
 * Checks options and fills them up from `base`.
 *
 * **Details**
 *
 * Fails with `LockInvalid` naming the option, its value and the fix.
 *
 * @category constructors
 * @since 0.1.0
 */
export const resolve = (
  options: LockOptions | undefined,
  base: Resolved = defaults
): Effect.Effect<Resolved, LockInvalid> => {
  if (options === undefined) return Effect.succeed(base)
  return checked(() => {
    const resolved: Resolved = {
      ttl: duration("ttl", options.ttl, base.ttl, { min: 10, max: maxDuration }),
      waitTimeout: duration("waitTimeout", options.waitTimeout, base.waitTimeout, { min: 0 }),
      // A default that was made for a longer ttl must not fail a call that shortens it.
      renewEvery: options.renewEvery === undefined && options.ttl !== undefined
        ? undefined
        : duration("renewEvery", options.renewEvery, base.renewEvery, { min: 1, max: maxDuration }),
      renewRetry: options.renewRetry ?? base.renewRetry,
      releaseTimeout: duration("releaseTimeout", options.releaseTimeout, base.releaseTimeout, {
        min: 1,
        max: maxDuration
      }),
      maxHold: duration("maxHold", options.maxHold, base.maxHold, { min: 1 }),
      minHold: duration("minHold", options.minHold, base.minHold, { min: 0, max: maxDuration }),
      progressTimeout: duration("progressTimeout", options.progressTimeout, base.progressTimeout, { min: 1 }),
      priority: integer("priority", options.priority ?? base.priority, -1000, 1000),
      maxWaiters: integer("maxWaiters", options.maxWaiters ?? base.maxWaiters, 0, Infinity),
      holder: options.holder ?? base.holder
    }
    if (resolved.renewEvery !== undefined && resolved.renewEvery >= resolved.ttl) {
      throw invalid(
        "renewEvery",
        options.renewEvery ?? resolved.renewEvery,
        `renew before the ttl of ${resolved.ttl} ms is over, by default at a third`
      )
    }
    if (resolved.minHold > resolved.maxHold) {
      throw invalid("minHold", options.minHold ?? resolved.minHold, `must not exceed maxHold of ${resolved.maxHold} ms`)
    }
    checkMetadata(resolved.holder)
    return resolved
  })
}

/**
 * Checks a ttl given to `lease.extend`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const resolveTtl = (ttl: Duration.Input): Effect.Effect<number, LockInvalid> =>
  Effect.map(resolve({ ttl }), (options) => options.ttl)

/**
 * Checks a duration that has a name of its own: at least `min` milliseconds, at most `max`, or `maxDuration`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const resolveDuration = (
  input: string,
  given: Duration.Input,
  bounds: { readonly min: number; readonly max?: number }
): Effect.Effect<number, LockInvalid> => checked(() => duration(input, given, 0, { max: maxDuration, ...bounds }))

/**
 * The longest duration that is not infinite, in milliseconds: 24.8 days, where timers end.
 *
 * @category constants
 * @since 0.1.0
 */
export const maxDuration = 2 ** 31 - 1

/**
 * Checks that `permits` of `limit` permits can be asked for: whole numbers, 1 to `limit`, at most 2^30.
 *
 * @category constructors
 * @since 0.1.0
 */
export const checkPermits = (permits: number, limit: number): LockInvalid | undefined => {
  if (!(Number.isInteger(limit) && limit >= 1 && limit <= maxPermits)) {
    return invalid("limit", limit, `must be a whole number from 1 to ${maxPermits}`)
  }
  if (!(Number.isInteger(permits) && permits >= 1 && permits <= limit)) {
    return invalid("permits", permits, `must be a whole number from 1 to the limit of ${limit}`)
  }
  return undefined
}

/**
 * The most permits that a key can have.
 *
 * @category constants
 * @since 0.1.0
 */
export const maxPermits = 2 ** 30

/**
 * Checks a key: a string of 1 to 1024 characters.
 *
 * @category constructors
 * @since 0.1.0
 */
export const checkKey = (key: string): LockInvalid | undefined => {
  if (typeof key !== "string") return invalid("key", key, "a key is a string")
  if (key.length === 0) return invalid("key", key, "a key has at least one character")
  if (key.length > 1024) {
    return invalid("key", `${key.slice(0, 40)}…`, "a key has at most 1024 characters; hash longer ones")
  }
  return undefined
}

const checked = <A>(check: () => A): Effect.Effect<A, LockInvalid> => {
  try {
    return Effect.succeed(check())
  } catch (error) {
    return error instanceof LockInvalid ? Effect.fail(error) : Effect.die(error)
  }
}

const duration = <A extends number | undefined>(
  option: string,
  input: Duration.Input | undefined,
  fallback: A,
  { max = Infinity, min }: { readonly min: number; readonly max?: number }
): number | A => {
  if (input === undefined) return fallback
  const millis = typeof input === "number" ? input : parse(option, input)
  if (Number.isNaN(millis)) throw invalid(option, input, "NaN is not a duration")
  if (millis < min) throw invalid(option, input, `must be at least ${min} ms`)
  if (millis > max) throw invalid(option, input, `must be finite, at most ${max} ms`)
  return Math.ceil(millis)
}

const integer = (option: string, value: number, min: number, max: number): number => {
  if (value === max || Number.isInteger(value) && value >= min && value <= max) return value
  throw invalid(option, value, `must be a whole number from ${min} to ${max}`)
}

const parse = (option: string, input: Exclude<Duration.Input, number>): number => {
  // Effect takes these for zero.
  if (typeof input === "object" && input !== null && Object.values(input).some(Number.isNaN)) return NaN
  try {
    return Duration.toMillis(Duration.fromInputUnsafe(input))
  } catch {
    throw invalid(option, input, "write a duration such as 500, \"30 seconds\" or Duration.minutes(1)")
  }
}

const checkMetadata = (holder: Readonly<Record<string, string>>): void => {
  for (const [name, value] of Object.entries(holder)) {
    if (typeof value !== "string") throw invalid(`holder.${name}`, value, "holder metadata are strings")
  }
}

const invalid = (input: string, value: unknown, fix: string): LockInvalid =>
  new LockInvalid({ input, value: format(value), fix })
