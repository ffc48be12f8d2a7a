import { RedisLockStore } from "@effect-lock/redis"
import { PrimitiveSuite, RedisServer } from "@effect-lock/test-utils"
import { Layer } from "effect"
import { patience } from "./support/client.ts"

const Server = RedisServer.RedisServer.layer()

const onServer = (options: RedisLockStore.Options) => () =>
  RedisServer.RedisServer.useSync(({ url }) => RedisLockStore.layer({ ...patience, ...options, url })).pipe(
    Layer.unwrap,
    Layer.provide(Server)
  )

// No failover is part of this.
const Servers = RedisServer.cluster({ nodeTimeout: "10 seconds" })

const onCluster = () =>
  RedisServer.RedisCluster.useSync(({ addresses }) =>
    RedisLockStore.layer({ ...patience, cluster: { nodes: addresses } })
  ).pipe(
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
