import type { RedisServer } from "@effect-lock/test-utils"
import { Context, Effect, Logger, Metric, References } from "effect"
import type { Script } from "../../src/internal/scripts.ts"
import * as scripts from "../../src/internal/scripts.ts"

export interface LogLine {
  readonly level: string
  readonly text: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** Runs a test with a logger that only writes to `lines`. */
export const withLog = <A, E, R>(
  test: (lines: ReadonlyArray<LogLine>) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const lines: Array<LogLine> = []
    const logger = Logger.make(({ fiber, logLevel, message }) => {
      const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
      lines.push({ level: logLevel, text, annotations: fiber.getRef(References.CurrentLogAnnotations) })
    })
    return Effect.provideService(test(lines), Logger.CurrentLoggers, new Set([logger]))
  })

/** For tests in which losses and failures, which are always logged, are what is wanted. */
export const quietly = <A, E, R>(test: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => withLog(() => test)

const IsCounted = Context.Reference("test/IsCounted", { defaultValue: () => true })

/** Keeps the fibers of an effect out of the count. */
export const uncounted = Effect.provideService(IsCounted, false)

export interface Fibers {
  /** Those that run now. */
  readonly count: Effect.Effect<number>
}

/** Runs a test that can count its fibers, those of its clients included. */
export const withFiberCount = <A, E, R>(test: (fibers: Fibers) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    let active = 0
    const count = (change: number) => (context: Context.Context<never>) => {
      if (Context.get(context, IsCounted)) active += change
    }
    const service: Metric.FiberRuntimeMetricsService = { recordFiberStart: count(1), recordFiberEnd: count(-1) }
    return Effect.provideService(test({ count: Effect.sync(() => active) }), Metric.FiberRuntimeMetrics, service)
  })

/** Runs a test with metrics of its own. */
export const withMetrics = <A, E, R>(test: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => Effect.provideService(test, Metric.MetricRegistry, new Map()))

const names: ReadonlyMap<string, string> = new Map(
  Object.values<Script>(scripts).flatMap((script) =>
    [script, script.guarded ?? script].flatMap(({ name, sha, source }) => [[sha, name], [source, name]] as const)
  )
)

/** The script that an EVALSHA or EVAL runs, else the command's own name. */
export const nameOf = ([command, script]: ReadonlyArray<string>): string =>
  (/^eval(sha)?$/i.test(command!) ? names.get(script!) : undefined) ?? command!.toLowerCase()

/** What clients sent, without what the scripts did and without the admin connection's own questions. */
export const sent = (entries: ReadonlyArray<RedisServer.MonitorEntry>): ReadonlyArray<string> =>
  entries.filter((entry) => entry.source !== "lua" && !isLook(entry)).map(({ command }) => nameOf(command))

/** Part of a look at a key held for longer than a moment: whether there is any depends on time. */
const isLook = ({ command: [name, ...args], source }: RedisServer.MonitorEntry): boolean =>
  source !== "lua" && (name === "hmget" || (name === "client" && args[0] === "CACHING"))

/** How often clients have looked whether the keys they hold are still there. */
export const looks = (entries: ReadonlyArray<RedisServer.MonitorEntry>): number =>
  entries.filter((entry) => entry.command[0] === "hmget" && isLook(entry)).length
