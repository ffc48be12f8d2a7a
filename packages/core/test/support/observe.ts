import { Cause, Effect, Logger, Metric, References, Tracer } from "effect"

/** Runs a test with metrics of its own, so that no other test's lock moves them. */
export const withMetrics = <A, E, R>(test: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.suspend(() => Effect.provideService(test, Metric.MetricRegistry, new Map()))

export interface LogLine {
  readonly level: string
  readonly text: string
  readonly cause: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** Runs a test with a logger that only writes to `lines`. */
export const withLog = <A, E, R>(test: (lines: ReadonlyArray<LogLine>) => Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<LogLine> = []
    const logger = Logger.make(({ cause, fiber, logLevel, message }) => {
      const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
      const annotations = fiber.getRef(References.CurrentLogAnnotations)
      lines.push({ level: logLevel, text, cause: Cause.pretty(cause), annotations })
    })
    return Effect.provideService(test(lines), Logger.CurrentLoggers, new Set([logger]))
  })

/** Runs a test with a tracer that keeps every span. */
export const withSpans = <A, E, R>(test: (spans: ReadonlyArray<Tracer.Span>) => Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const spans: Array<Tracer.Span> = []
    const tracer = Tracer.make({
      span: (options) => {
        const span = new Tracer.NativeSpan(options)
        spans.push(span)
        return span
      }
    })
    return Effect.withTracer(test(spans), tracer)
  })
