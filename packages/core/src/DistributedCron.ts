/**
 * Jobs at certain times, run once among all processes that know of them: every process has the schedule, and for each of its
 * times, a tick, one of them runs the job.
 *
 * **When to use**
 *
 * For jobs by a cron schedule. `Lock.once` is for anything else that should happen once in a while, however many ask for it.
 *
 * **Details**
 *
 * A tick is claimed under a key of its own, `<name>:<time>`, by whoever's clock reaches it first, and stays claimed for long
 * enough that no clock within `tolerance` of that one can claim it again. The job then runs under the lock `<name>`.
 *
 * **Gotchas**
 *
 * A tick is run at most once: one whose process is killed, or interrupted, while it runs is not run again. The next tick runs
 * as ever. Nobody makes up for a tick at which no process was up.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Cron from "effect/Cron"
import * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import { format } from "effect/Formatter"
import { dual } from "effect/Function"
import * as Schedule from "effect/Schedule"
import { randomId } from "./internal/engine.ts"
import { logFailure } from "./internal/unattended.ts"
import type { Lease } from "./Lease.ts"
import { Lock } from "./Lock.ts"
import { type LockClosed, LockInvalid, LockStoreError, type LockTimeout } from "./LockError.ts"
import * as LockOptions from "./LockOptions.ts"

/**
 * What a job is run for.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tick {
  /** The time by the schedule, the same in whatever process the job runs, and whenever it begins. */
  readonly at: DateTime.Utc
  /** The lease on `<name>`: its token grows from run to run. */
  readonly lease: Lease
}

/**
 * What is run: an effect, or one made for the tick.
 *
 * @category models
 * @since 0.1.0
 */
export type Job<A, E, R> = Effect.Effect<A, E, R> | ((tick: Tick) => Effect.Effect<A, E, R>)

/**
 * How to claim ticks and to run the job: the options of the lock on `<name>`, and a few more.
 *
 * **Details**
 *
 * `ttl` is how long a killed run keeps later ticks waiting, and `maxHold` bounds a run, which is then interrupted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends Omit<LockOptions.LockOptions, "waitTimeout" | "minHold" | "maxWaiters" | "priority"> {
  /**
   * By how much the clocks of two processes may differ, and how late a process may claim a tick that nobody else has claimed.
   * A tick stays claimed for 2.1 times as long. Default 10 seconds, at most 11.8 days; on a quorum at most `maxTtl` / 2.1.
   */
  readonly tolerance?: Duration.Input | undefined
  /**
   * How long a claimed tick waits for the run before it to end, and for a store that does not answer. After that it is
   * skipped. Should be longer than `ttl`, or a killed run costs more ticks than its own. Default twice `ttl` where that is
   * given, 1 minute otherwise.
   */
  readonly startWithin?: Duration.Input | undefined
}

/**
 * Runs a job at each tick of a schedule, in one of the processes that do the same, until it is interrupted.
 *
 * **Details**
 *
 * `cron` is an expression of five or six fields, in UTC, or a `Cron`, which can have a time zone. Runs of one name never
 * overlap: a tick waits for the run before it for `startWithin`, and is skipped after that, also where the machine was suspended
 * meanwhile, which is logged. A run that fails, dies or loses its lease is logged as an error and ends nothing: handle failures
 * in the job to do more about them.
 *
 * Interrupting it interrupts the job, if it runs here, and awaits its end and its release. It fails with `LockInvalid` when
 * name, schedule or options are not usable, and with `LockClosed` when the `Lock` layer closes. Either is logged, too, as an
 * error, or at Effect's `References.UnhandledLogLevel`: nobody hears of the failure of a fiber that was forked.
 *
 * **Gotchas**
 *
 * A layer that forks it as below is built even if the schedule is not usable. A `Cron` made by `Cron.parseUnsafe` fails where
 * it is made.
 *
 * Give all processes of a name the same schedule, tolerance and time zone: a `Cron` without one goes by that of each process.
 *
 * **Example** (Every night, once)
 *
 * ```ts import.meta.vitest
 * import { DateTime, Effect, Layer } from "effect"
 * import { DistributedCron } from "@effect-lock/core"
 *
 * const NightlyLive = Layer.effectDiscard(
 *   Effect.log("cleaning up").pipe(
 *     DistributedCron.run("cleanup", "0 3 * * *", { maxHold: "1 hour" }),
 *     Effect.forkScoped
 *   )
 * )
 * const report = (tick: DistributedCron.Tick) => Effect.log(`report of ${DateTime.formatIso(tick.at)}`)
 * const ReportLive = Layer.effectDiscard(Effect.forkScoped(DistributedCron.run(report, "report", "0 * * * *")))
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const run: {
  (
    name: string,
    cron: Cron.Cron | string,
    options?: Options
  ): <A, E, R>(job: Job<A, E, R>) => Effect.Effect<never, LockInvalid | LockClosed, R | Lock>
  <A, E, R>(
    job: Job<A, E, R>,
    name: string,
    cron: Cron.Cron | string,
    options?: Options
  ): Effect.Effect<never, LockInvalid | LockClosed, R | Lock>
} = dual(
  (args) => typeof args[0] !== "string",
  Effect.fnUntraced(function*<A, E, R>(
    job: Job<A, E, R>,
    name: string,
    cron: Cron.Cron | string,
    options: Options = {}
  ): Effect.fn.Return<never, LockInvalid | LockClosed, R | Lock> {
    const lock = yield* Lock
    const logged = logFailure("DistributedCron", name)
    const { keep, lockOptions, schedule, startWithin, tolerance } = yield* logged(resolve(name, cron, options))
    const claimant = yield* randomId
    const tell = Effect.annotateLogs({ module: "effect-lock", key: name })
    const skipped = (at: number, why: unknown) => tell(Effect.logWarning(`Skipped the tick at ${isoOf(at)}`, why))
    /**
     * By somebody else: not by a claim of ours whose reply was lost, which is being taken back. Nobody has it where votes were
     * split, or where a server that lost its memory grants nothing yet.
     */
    const isTaken = ({ holders }: LockTimeout) => holders.some(({ metadata }) => metadata["claimant"] !== claimant)

    /** Timers know nothing of a suspended machine: what was granted has to look at the clock once more. */
    const ifInTime = <A, E, R>(at: number, limit: number, granted: Effect.Effect<A, E, R>) =>
      Effect.flatMap(lateness(at), (late) => late > limit ? skipped(at, "granted too late") : Effect.asVoid(granted))

    /**
     * Whether the tick is ours to run. Somebody whose clock is behind by the tolerance may claim it until that clock finds it
     * too late, so it stays claimed for twice the tolerance, and by its ttl even if we die now.
     */
    const claim = (at: number): Effect.Effect<boolean, LockClosed | LockInvalid> => {
      const claimed = lock.withLock(Effect.void, `${name}:${isoOf(at)}`, {
        ttl: keep,
        minHold: keep,
        maxHold: Infinity,
        progressTimeout: Infinity,
        waitTimeout: 0,
        holder: { ...lockOptions.holder, claimant }
      })
      return retryUntil(
        claimed,
        at + tolerance,
        (error) => error._tag === "LockStoreError" || (error._tag === "LockTimeout" && !isTaken(error))
      ).pipe(
        Effect.as(true),
        Effect.catch((error) =>
          error._tag === "LockClosed" || error._tag === "LockInvalid"
            ? Effect.fail(error)
            : error._tag === "LockTimeout" && isTaken(error)
            ? Effect.succeed(false)
            : Effect.as(skipped(at, error), false)
        )
      )
    }

    const runAt = (at: number): Effect.Effect<void, never, R> => {
      let hasBegun = false
      const body = (lease: Lease) =>
        Effect.suspend(() => {
          hasBegun = true
          return Effect.isEffect(job) ? job : job({ at: DateTime.makeUnsafe(at), lease })
        })
      // A startWithin below the tolerance bounds the wait, not how late a tick may be claimed.
      const inTime = (lease: Lease) => ifInTime(at, Math.max(startWithin, tolerance), body(lease))
      const running = Effect.flatMap(lateness(at), (late) => {
        const waitTimeout = Math.max(0, startWithin - late)
        return lock.withLease(name, inTime, { ...lockOptions, minHold: 0, maxWaiters: Infinity, waitTimeout })
      })
      return retryUntil(running, at + startWithin, (error) => error instanceof LockStoreError && !hasBegun).pipe(
        Effect.catchCause((cause) =>
          hasBegun
            ? tell(Effect.logError(`The run of the tick at ${isoOf(at)} failed`, cause))
            : skipped(at, cause)
        )
      )
    }

    return yield* logged(Effect.scoped(Effect.gen(function*() {
      const runs = yield* FiberSet.make<unknown, LockClosed | LockInvalid>()
      const ticks = Effect.gen(function*() {
        let last = yield* Clock.currentTimeMillis
        while (true) {
          // What was slept through is not made up for.
          const at = Cron.next(schedule, Math.max(last, (yield* Clock.currentTimeMillis) - tolerance)).getTime()
          last = at
          for (let late = yield* lateness(at); late < 0; late = yield* lateness(at)) {
            // In naps: timers know nothing of clocks that are set, nor of machines that are suspended.
            yield* Effect.sleep(Math.min(-late, Math.max(1000, tolerance / 2)))
          }
          if ((yield* lateness(at)) > tolerance) continue
          // A claim that was granted later than that may be the second.
          yield* FiberSet.run(runs, Effect.when(ifInTime(at, tolerance, runAt(at)), claim(at)))
        }
      })
      return yield* Effect.raceFirst(Effect.andThen(FiberSet.join(runs), Effect.never), ticks)
    })))
  })
)

/** Asks a store that did not answer once more, until that time on this process' clock. */
const retryUntil = <A, E, R>(effect: Effect.Effect<A, E, R>, time: number, isUndecided: (error: E) => boolean) =>
  Effect.retry(effect, {
    schedule: Schedule.min([Schedule.exponential(50), Schedule.spaced(1000)]).pipe(Schedule.jittered),
    while: (error) => isUndecided(error) ? Effect.map(lateness(time), (late) => late < 0) : false
  })

/** Milliseconds since that time, on this process' clock. */
const lateness = (at: number): Effect.Effect<number> => Effect.map(Clock.currentTimeMillis, (now) => now - at)

const isoOf = (at: number): string => new Date(at).toISOString()

const resolve = Effect.fnUntraced(function*(
  name: string,
  cron: Cron.Cron | string,
  { startWithin, tolerance = 10_000, ...lockOptions }: Options
) {
  const invalid = LockOptions.checkKey(name) ?? LockOptions.checkKey(`${name}:${isoOf(0)}`)
  if (invalid !== undefined) return yield* Effect.fail(invalid)
  const { ttl } = yield* LockOptions.resolve(lockOptions)
  const { maxDuration, resolveDuration } = LockOptions
  const millis = yield* resolveDuration("tolerance", tolerance, { min: 10, max: Math.floor(maxDuration / 2.1) })
  const keep = Math.ceil(2.1 * millis)
  const start = yield* resolveDuration("startWithin", startWithin ?? Math.min(2 * ttl, maxDuration), { min: 0 })
  return { lockOptions, tolerance: millis, keep, startWithin: start, schedule: yield* parse(cron) }
})

const parse = (cron: Cron.Cron | string): Effect.Effect<Cron.Cron, LockInvalid> =>
  Effect.try({
    try: () => {
      const schedule = typeof cron === "string" ? Cron.parseUnsafe(cron, "UTC") : cron
      // Throws where there is no such day.
      Cron.next(schedule)
      return schedule
    },
    catch: (error) => {
      const value = format(typeof cron === "string" ? cron : Cron.format(cron))
      const fix = `${(error as Error).message}; write five or six fields, such as "0 3 * * *"`
      return new LockInvalid({ input: "cron", value, fix })
    }
  })
