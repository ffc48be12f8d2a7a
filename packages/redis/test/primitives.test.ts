import { RedisLockStore } from "@effect-lock/redis"
import { PrimitiveSuite, RedisServer } from "@effect-lock/test-utils"
import { Layer } from "effect"

const Server = RedisServer.RedisServer.layer()

const onServer = (options: RedisLockStore.Options) => () =>
  RedisServer.RedisServer.useSync(({ url }) => RedisLockStore.layer({ ...options, url })).pipe(
    Layer.unwrap,
    Layer.provide(Server)
  )

const Servers = RedisServer.cluster()

const onCluster = () =>
  RedisServer.RedisCluster.useSync(({ addresses }) => RedisLockStore.layer({ cluster: { nodes: addresses } })).pipe(
    Layer.unwrap,
    Layer.provide(Servers)
  )

for (
  const [name, client] of [
    ["primitives on Redis, grants pushed", onServer({})],
    ["primitives on Redis, grants polled", onServer({ push: false })],
    ["primitives on a Redis Cluster", onCluster]
  ] as const
) {
  PrimitiveSuite.suite(name, client(), { otherClient: client })
}
