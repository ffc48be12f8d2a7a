import { QuorumLockStore } from "@effect-lock/redis"
import { LockStoreSuite, PrimitiveSuite, RedisServer } from "@effect-lock/test-utils"
import { Layer } from "effect"
import { voterTimeout } from "./support/quorum.ts"

const onQuorum = (n: number, options?: Partial<QuorumLockStore.Options>) => {
  const Servers = RedisServer.quorum(n)
  return () =>
    RedisServer.RedisQuorum.useSync(({ voters }) =>
      QuorumLockStore.layer({
        // The suite asks for leases of ten minutes.
        maxTtl: "20 minutes",
        voterTimeout,
        ...options,
        voters: voters.map(({ server }) => ({ url: server.url }))
      })
    ).pipe(Layer.unwrap, Layer.provide(Servers))
}

const Server = RedisServer.RedisServer.layer()

const onKeys = () =>
  RedisServer.RedisServer.useSync(({ url }) =>
    QuorumLockStore.layerKeyMajority({ url, majority: 2, maxTtl: "20 minutes", voterTimeout })
  ).pipe(Layer.unwrap, Layer.provide(Server))

for (
  const [name, client] of [
    ["Quorum of 3", onQuorum(3)],
    ["Quorum of 5", onQuorum(5)],
    ["Quorum of 3, polled", onQuorum(3, { push: false })],
    ["Majority of 3 keys", onKeys]
  ] as const
) {
  const options = { otherClient: client, order: "progress", permits: false } as const
  LockStoreSuite.suite(name, client(), options)
  PrimitiveSuite.suite(`primitives on ${name}`, client(), options)
}
