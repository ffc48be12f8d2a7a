import { Effect, Stream } from "effect"
import { ChildProcess } from "effect/process"

/** Runs an example as a user does, on what `npm test` or `npm run build` has built. */
export const run = Effect.fnUntraced(function*(example: string, env: Record<string, string> = {}) {
  const handle = yield* ChildProcess.make(process.execPath, [example], {
    cwd: `${import.meta.dirname}/../..`,
    env: { REDIS_URL: undefined, REDIS_URLS: undefined, FORCE_COLOR: undefined, ...env },
    extendEnv: true
  })
  const output = yield* handle.all.pipe(Stream.decodeText(), Stream.mkString)
  return { output, exitCode: Number(yield* handle.exitCode) }
}, Effect.scoped)
