import { LockStore } from "@effect-lock/core"
import { Config, Effect, Option } from "effect"
import { Redis } from "ioredis"

/** An administrator removes a lock that somebody holds, past the library: with `DEL` over a connection of their own. */
export const deleteLock = Effect.fn("deleteLock")(function*(key: string) {
  const url = yield* Config.option(Config.String("REDIS_URL"))
  if (Option.isSome(url)) {
    const redis = yield* Effect.acquireRelease(
      Effect.sync(() => new Redis(url.value)),
      (redis) => Effect.sync(() => redis.disconnect())
    )
    yield* Effect.promise(() => redis.del(`effect-lock:{${key}}`))
    return
  }
  const store = yield* LockStore.LockStore
  const { holders } = yield* store.inspect(key)
  yield* Effect.forEach(holders, ({ holderId }) => store.abandon(key, holderId))
}, Effect.scoped)
