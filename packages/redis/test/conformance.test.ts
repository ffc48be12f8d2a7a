import { RedisLockStore } from "@effect-lock/redis"
import { LockStoreSuite, RedisServer } from "@effect-lock/test-utils"
import { Effect, Layer } from "effect"
import { Redis } from "ioredis"
import { patience } from "./support/client.ts"

const Server = RedisServer.RedisServer.layer()

const onServer = (options: RedisLockStore.Options) => () =>
  RedisServer.RedisServer.useSync(({ url }) => RedisLockStore.layer({ ...patience, ...options, url })).pipe(
    Layer.unwrap,
    Layer.provide(Server)
  )

/** The application's own client, with everything as ioredis has it by default. */
const onBorrowedClient = () =>
  Effect.gen(function*() {
    const { url } = yield* RedisServer.RedisServer
    const redis = yield* Effect.acquireRelease(
      Effect.sync(() => new Redis(url)),
      (redis) => Effect.promise(() => redis.quit())
    )
    return RedisLockStore.layerClient(redis, patience)
  }).pipe(Layer.unwrap, Layer.provide(Server))

for (
  const [name, client] of [
    ["Redis, grants pushed", onServer({})],
    ["Redis, grants polled", onServer({ push: false })],
    ["Redis, on a borrowed client", onBorrowedClient]
  ] as const
) {
  LockStoreSuite.suite(name, client(), { otherClient: client })
}
