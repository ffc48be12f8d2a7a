import * as Schema from "effect/Schema"

/**
 * Something a server could not do.
 *
 * **Details**
 *
 * - `NotInstalled`: no server binary that runs; the message says what to install.
 * - `PortTaken`: another process has the port.
 * - `NotStarted`: the process ended, or was not ready in time; the message has its output.
 * - `NotRunning`: the server was killed, or ended by itself.
 * - `CommandFailed`: the server answered with an error, or the connection broke.
 *
 * @category errors
 * @since 0.1.0
 */
export class RedisServerError
  extends Schema.TaggedError<RedisServerError>("@effect-lock/test-utils/RedisServerError")("RedisServerError", {
    reason: Schema.Literals(["NotInstalled", "PortTaken", "NotStarted", "NotRunning", "CommandFailed"]),
    message: Schema.String,
    cause: Schema.optional(Schema.Defect())
  })
{}
