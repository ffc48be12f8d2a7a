import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { Server } from "../RedisServer.ts"
import { isPaused } from "./redisServer.ts"
import { RedisServerError } from "./redisServerError.ts"

/**
 * Asks until the probe succeeds; what it failed with last says what was missing.
 *
 * @internal
 */
export const until = <A>(
  what: string,
  probe: Effect.Effect<A, string | RedisServerError>
): Effect.Effect<A, RedisServerError> =>
  Effect.suspend(() => {
    let missing = ""
    return probe.pipe(
      Effect.tapError((error) =>
        Effect.sync(() => {
          missing = typeof error === "string" ? error : error.message
        })
      ),
      Effect.retry(Schedule.spaced("20 millis")),
      Effect.timeoutOrElse({
        duration: "50 seconds",
        orElse: () => Effect.fail(`${what}: not within 50 seconds (${missing})`)
      }),
      Effect.mapError((error) => new RedisServerError({ reason: "NotStarted", message: String(error) }))
    )
  })

/** The reply, or `None` where there is none: the server is down, or paused. One that is only slow has its say, too. */
const ask = (
  server: Server,
  name: string,
  ...args: ReadonlyArray<string>
): Effect.Effect<Option.Option<unknown>> =>
  Effect.suspend(() =>
    isPaused(server)
      ? Effect.succeedNone
      : server.command(name, ...args).pipe(
        // Once more where the connection was cut.
        Effect.retry({ times: 1, while: ({ reason }) => reason === "CommandFailed" }),
        Effect.timeout("5 seconds"),
        Effect.option
      )
  )

/**
 * What those servers say that answer.
 *
 * @internal
 */
export const askAll = <S extends Server>(
  servers: ReadonlyArray<S>,
  name: string,
  ...args: ReadonlyArray<string>
): Effect.Effect<Array<{ readonly server: S; readonly reply: unknown }>> =>
  Effect.map(
    Effect.forEach(
      servers,
      (server) => Effect.map(ask(server, name, ...args), Option.map((reply) => ({ server, reply }))),
      { concurrency: "unbounded" }
    ),
    (answers) => answers.flatMap(Option.toArray)
  )
