import * as LockError from "@effect-lock/core/LockError"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"

/**
 * Reads options with functions that throw `LockInvalid`.
 *
 * @internal
 */
export const resolve = <A>(read: () => A): Effect.Effect<A, LockError.LockInvalid> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(read())
    } catch (error) {
      return error instanceof LockError.LockInvalid ? Effect.fail(error) : Effect.die(error)
    }
  })

/** @internal */
export const keyPrefix = (value = "effect-lock"): string => {
  if (value === "" || /[{}\s]/.test(value)) {
    throw invalid("keyPrefix", value, "a prefix has at least one character, and no braces or white space")
  }
  return value
}

/**
 * Where a server is, for ioredis. What is wrong with it is told without its credentials.
 *
 * @internal
 */
export const address = (url: string | Redacted.Redacted | undefined): string | undefined => {
  const text = Redacted.isRedacted(url) ? Redacted.value(url) : url
  const scheme = text === undefined ? undefined : /^([^/@]*):\/\//.exec(text)?.[1]
  if (text === "" || (scheme !== undefined && !/^rediss?$/i.test(scheme))) {
    throw invalid("url", text === "" ? "" : `${scheme}://…`, "write redis://host:port, or rediss://host:port for TLS")
  }
  return text
}

/** @internal */
export const driftFactor = (value = 0.01): number => {
  if (!(value >= 0 && value < 0.5)) throw invalid("driftFactor", value, "must be from 0 to below 0.5")
  return value
}

/**
 * A duration in whole milliseconds, at least one.
 *
 * @internal
 */
export const millis = (option: string, input: Duration.Input, max = 2 ** 31 - 1): number => {
  let value: number
  try {
    value = typeof input === "number" ? input : Duration.toMillis(Duration.fromInputUnsafe(input))
  } catch {
    throw invalid(option, input, "write a duration such as 500 or \"2 seconds\"")
  }
  if (!(value >= 1 && value <= max)) throw invalid(option, input, `must be from 1 ms to ${max} ms`)
  return Math.ceil(value)
}

/** @internal */
export const invalid = (input: string, value: unknown, fix: string): LockError.LockInvalid =>
  new LockError.LockInvalid({ input, value: typeof value === "string" ? JSON.stringify(value) : String(value), fix })
