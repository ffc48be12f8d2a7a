import { Lock, type LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { FaultProxy, LockStoreSuite, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it, layer } from "@effect/vitest"
import { Config, Effect, Exit, Fiber, Layer } from "effect"
import { Cluster } from "ioredis"
import { build, keysOf, patience, queued, until, untilSync } from "./support/client.ts"
import { nameOf, quietly, sent } from "./support/observe.ts"
import { connectCluster, connectionsTo, lineUp, occupy, refusal, replicated, serversOf } from "./support/topology.ts"

/** No node counts as failed because the machine stood still. */
const steady = { nodeTimeout: "15 seconds" } as const

const Servers = RedisServer.cluster(steady)

const onCluster = () =>
  RedisServer.RedisCluster.useSync(({ addresses }) =>
    RedisLockStore.layer({ cluster: { nodes: addresses }, ...patience })
  ).pipe(
    Layer.unwrap,
    Layer.provide(Servers)
  )

/** The application's own client, pipelining and with everything else as ioredis has it by default. */
const borrowed = ({ addresses }: RedisServer.Cluster) =>
  Effect.acquireRelease(
    Effect.sync(() => new Cluster([...addresses], { enableAutoPipelining: true })),
    (cluster) => Effect.sync(() => cluster.disconnect())
  )

const onBorrowedCluster = () =>
  RedisServer.RedisCluster.pipe(
    Effect.flatMap(borrowed),
    Effect.map((cluster) => RedisLockStore.layerClient(cluster, patience)),
    Layer.unwrap,
    Layer.provide(Servers)
  )

LockStoreSuite.suite("Redis Cluster", onCluster(), { otherClient: onCluster })
LockStoreSuite.suite("Redis Cluster, on a borrowed client", onBorrowedCluster(), { otherClient: onBorrowedCluster })

/** A master that does not serve this key. */
const anotherMaster = Effect.fnUntraced(function*(cluster: RedisServer.Cluster, key: string) {
  const master = yield* cluster.masterOf(key)
  const [other] = yield* Effect.filter(
    cluster.nodes,
    (node) => Effect.map(node.role, (role) => role === "master" && node.id !== master.id)
  )
  return other!
})

/** Brings everybody back to life, for the next test. */
const restored = (cluster: RedisServer.Cluster) =>
  Effect.gen(function*() {
    for (const node of cluster.nodes) {
      yield* Effect.ignore(node.resume)
      if (Exit.isFailure(yield* Effect.exit(node.pid))) yield* node.restart
    }
    yield* cluster.settled
  }).pipe(Effect.orDie)

const request = (key: string, holderId: string): LockStore.Request => ({
  key,
  holderId,
  ttl: 600_000,
  permits: 1,
  limit: 1,
  wait: false,
  priority: 0,
  maxWaiters: Infinity,
  floor: 0,
  metadata: {}
})

const grows = (tokens: ReadonlyArray<number>) => tokens.every((token, i) => i === 0 || token > tokens[i - 1]!)

layer(Servers, { excludeTestServices: true })("a slot that moves", (it) => {
  it.effect("a holder keeps its lease and token: refused with TRYAGAIN, its renewals wait for the new node", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const client = yield* connectCluster(cluster, { lock: { ttl: "1 minute", renewEvery: "50 millis" } })
      const holder = yield* occupy(client, "hold")
      yield* holder.entered
      const migration = yield* cluster.migrateSlot("{hold}", yield* anotherMaster(cluster, "{hold}"))
      const refused = yield* Effect.all({
        tryAgain: refusal(migration.from, "TRYAGAIN"),
        ask: refusal(migration.from, "ASK")
      })
      yield* migration.begin
      yield* refused.tryAgain
      yield* migration.moveKeys()
      yield* refused.ask
      yield* migration.finish
      const monitor = yield* migration.to.monitor
      yield* until(Effect.map(monitor.all, (entries) => sent(entries).includes("renew")), "a renewal on the new node")
      assert.isTrue(holder.isInside())
      const { holders } = yield* client.store.inspect("hold")
      assert.deepStrictEqual(holders.map(({ token }) => token), [holder.token()])
      assert.deepStrictEqual(yield* holder.leave, Exit.void)
      const next = yield* occupy(client, "hold")
      yield* next.entered
      assert.isAbove(next.token(), holder.token())
      assert.strictEqual((yield* client.store.inspect("hold")).holders.length, 1)
    }))

  it.effect("waiters enter in their order, before, during and after: ASK, then MOVED", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const [one, other] = yield* Effect.all([connectCluster(cluster), connectCluster(cluster)])
      const holder = yield* occupy(one, "wait")
      yield* holder.entered
      const waiters = yield* lineUp([other, one, other, one, other], "wait")
      const migration = yield* cluster.migrateSlot("{wait}", yield* anotherMaster(cluster, "{wait}"))

      yield* migration.begin
      yield* holder.leave
      yield* waiters[0]!.entered
      assert.strictEqual((yield* migration.moveKeys()).length, keysOf("wait").length)
      yield* waiters[0]!.leave
      yield* waiters[1]!.entered
      yield* migration.finish
      yield* waiters[1]!.leave
      yield* waiters[2]!.entered
      const late = yield* occupy(one, "wait")
      for (const waiter of waiters.slice(2)) {
        yield* waiter.entered
        yield* waiter.leave
      }
      yield* late.entered
      yield* late.leave
      const tokens = [holder, ...waiters, late].map(({ token }) => token())
      assert.isTrue(grows(tokens), tokens.join())
      assert.deepStrictEqual(yield* one.store.inspect("wait"), { key: "wait", holders: [], waiters: [] })
    }))

  it.effect("the last waiter is granted while the slot is leaving, and nobody else enters with it", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const [one, other] = yield* Effect.all([
        connectCluster(cluster, { store: { heartbeat: "20 seconds" } }),
        connectCluster(cluster)
      ])
      const holder = yield* occupy(one, "last")
      yield* holder.entered
      const [waiter] = yield* lineUp([one], "last", { ttl: "1 minute" })
      const migration = yield* cluster.migrateSlot("{last}", yield* anotherMaster(cluster, "{last}"))
      yield* migration.begin
      // The script empties the queue, which from then on is not a key of this node any more.
      yield* holder.leave
      yield* waiter!.entered
      yield* migration.moveKeys()
      yield* migration.finish
      assert.deepStrictEqual(
        (yield* other.store.inspect("last")).holders.map(({ token }) => token),
        [waiter!.token()]
      )
      const next = yield* occupy(other, "last")
      yield* queued(other, "last", 1)
      assert.isTrue(waiter!.isInside())
      assert.isFalse(next.isInside())
      yield* waiter!.leave
      yield* next.entered
      assert.isTrue(grows([holder, waiter!, next].map(({ token }) => token())))
    }))

  it.effect("giving up while the slot is leaving leaves the key to the others", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const client = yield* connectCluster(cluster)
      const holder = yield* occupy(client, "give-up")
      yield* holder.entered
      const waiter = yield* Effect.forkChild(client.lock.withLock(Effect.void, "give-up"), { startImmediately: true })
      yield* queued(client, "give-up", 1)
      const migration = yield* cluster.migrateSlot("{give-up}", yield* anotherMaster(cluster, "{give-up}"))
      yield* migration.begin
      yield* Fiber.interrupt(waiter)
      yield* migration.moveKeys()
      yield* migration.finish
      const { holders, waiters } = yield* client.store.inspect("give-up")
      assert.deepStrictEqual([holders.map(({ token }) => token), waiters], [[holder.token()], []])
      yield* holder.leave
      yield* client.lock.withLock(Effect.void, "give-up")
    }))

  it.effect("a ticket is adopted while the slot is leaving, once", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const { lock, store } = yield* connectCluster(cluster)
      const ask = (holderId: string) => ({ ...request("ticket", holderId), wait: true })
      const held = yield* store.attempt(ask("holder"))
      assert(held._tag === "Granted")
      const waiter = yield* occupy({ lock }, "ticket")
      yield* queued({ store }, "ticket", 1)
      yield* store.transfer({ key: "ticket", holderId: "holder", token: held.grant.token }, "aside")
      const migration = yield* cluster.migrateSlot("{ticket}", yield* anotherMaster(cluster, "{ticket}"))
      yield* migration.begin
      const ticket = { key: "ticket", holderId: "aside", token: held.grant.token }
      const adopted = yield* store.adopt(ticket, ask("adopter"))
      assert(adopted._tag === "Granted")
      yield* migration.moveKeys()
      yield* migration.finish
      const { holders, waiters } = yield* store.inspect("ticket")
      assert.deepStrictEqual([holders.map(({ token }) => token), waiters.length], [[adopted.grant.token], 1])
      assert.strictEqual((yield* store.adopt(ticket, ask("late")))._tag, "Refused")
      yield* store.release({ key: "ticket", holderId: "adopter", token: adopted.grant.token }, 0)
      yield* waiter.entered
      assert.isTrue(grows([held.grant.token, adopted.grant.token, waiter.token()]))
      yield* waiter.leave
    }))

  it.effect("an attempt that is sent on after its abandon is abandoned again", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const from = yield* cluster.masterOf("{late}")
      const to = yield* anotherMaster(cluster, "{late}")
      const proxy = yield* FaultProxy.make(from)
      const { store } = yield* build(RedisLockStore.layer({
        cluster: {
          nodes: cluster.addresses,
          options: {
            natMap: { [`${from.host}:${from.port}`]: { host: proxy.host, port: proxy.port } },
            slotsRefreshInterval: 20
          }
        },
        // With it, an attempt that is sent on does nothing.
        lockDelay: false,
        commandTimeout: "20 seconds"
      }))
      // Makes the script known to both, and the connection.
      yield* store.attempt(request("late", "first"))
      yield* store.abandon("late", "first")

      yield* proxy.blackhole("requests")
      const attempt = yield* Effect.forkChild(store.attempt(request("late", "late-holder")), { startImmediately: true })
      const migration = yield* cluster.migrateSlot("{late}", to)
      yield* migration.begin
      yield* migration.moveKeys()
      yield* migration.finish
      yield* until(
        Effect.map(Effect.timeoutOption(store.inspect("late"), "200 millis"), ({ _tag }) => _tag === "Some"),
        "the client knows the new node"
      )
      const monitor = yield* to.monitor
      yield* Fiber.interrupt(attempt)
      yield* store.abandon("late", "late-holder")
      yield* proxy.heal

      const verbs = Effect.map(monitor.all, (entries) =>
        entries.filter(({ command, source }) =>
          source !== "lua" && command.includes("late-holder")
        )
          .map(({ command }) => nameOf(command)).filter((name, i, all) => name !== all[i - 1]))
      yield* until(Effect.map(verbs, (names) => names.length >= 3), "the second abandon")
      assert.deepStrictEqual(yield* verbs, ["abandon", "attempt", "abandon"])
      yield* until(Effect.map(store.inspect("late"), ({ holders }) => holders.length === 0), "nobody holds the key")
    }))

  it.effect("a borrowed client that pipelines keys of one node learns that one of them has moved", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const client = yield* build(RedisLockStore.layerClient(yield* borrowed(cluster), patience), { ttl: "1 minute" })
      const master = yield* cluster.masterOf("{borrowed}")
      const keys = ["borrowed"]
      for (let i = 0; keys.length < 5; i++) {
        if ((yield* cluster.masterOf(`{${i}}`)).id === master.id) keys.push(`${i}`)
      }
      const visitAll = Effect.forEach(keys, (key) => client.lock.withLock(Effect.succeed(key), key), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(yield* visitAll, keys)
      const migration = yield* cluster.migrateSlot("{borrowed}", yield* anotherMaster(cluster, "{borrowed}"))
      yield* migration.begin
      yield* migration.moveKeys()
      yield* migration.finish
      assert.deepStrictEqual(yield* visitAll, keys)
      assert.deepStrictEqual(yield* visitAll, keys)
    }))
})

layer(RedisServer.cluster({ nodeTimeout: "4 seconds" }), { excludeTestServices: true })("a node that dies", (it) => {
  it.effect("a master: the holder keeps its lease, and every waiter enters in order, with growing tokens", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      // Waiters are alive for three heartbeats, and a failover must not outlast them.
      const options = { store: { heartbeat: "10 seconds" } } as const
      const clients = yield* Effect.all([connectCluster(cluster, options), connectCluster(cluster, options)])
      const holder = yield* occupy(clients[0], "kept", { ttl: "1 minute", renewEvery: "100 millis" })
      yield* holder.entered
      const waiters = yield* lineUp([clients[1], clients[0], clients[1]], "kept", { ttl: "1 minute" })
      const master = yield* cluster.masterOf("{kept}")
      yield* replicated(master)
      yield* master.kill

      const promoted = yield* cluster.masterOf("{kept}")
      assert.notStrictEqual(promoted.id, master.id)
      const monitor = yield* promoted.monitor
      yield* until(Effect.map(monitor.all, (entries) => sent(entries).includes("renew")), "a renewal on the new master")
      assert.isTrue(holder.isInside())
      assert.deepStrictEqual(yield* holder.leave, Exit.void)
      for (const waiter of waiters) {
        yield* waiter.entered
        assert.deepStrictEqual(waiters.filter(({ isInside }) => isInside()), [waiter])
        assert.deepStrictEqual(yield* waiter.leave, Exit.void)
      }
      const tokens = [holder, ...waiters].map(({ token }) => token())
      assert.isTrue(grows(tokens), tokens.join())
      yield* restored(cluster)
    }).pipe(quietly))

  it.effect("a master whose replica knows of nothing: the holder gets LockLost, and every waiter enters", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const [one, other] = yield* Effect.all([connectCluster(cluster), connectCluster(cluster)])
      const master = yield* cluster.masterOf("{forgotten}")
      const [replica] = yield* cluster.replicasOf(master)
      yield* replica!.pause
      yield* master.command("CLIENT", "KILL", "TYPE", "replica")
      const holder = yield* occupy(one, "forgotten", { ttl: "1 minute", renewEvery: "100 millis" })
      yield* holder.entered
      const waiters = yield* lineUp([one, other, one], "forgotten", { ttl: "1 minute" })
      yield* master.kill
      yield* replica!.resume

      const exit = yield* holder.exit
      assert.isTrue(Exit.isFailure(exit))
      const error = yield* Effect.flip(exit)
      assert.deepInclude(error, { _tag: "LockLost", reason: "NotHeld", token: holder.token() })
      yield* Effect.forEach(waiters, (waiter) => Effect.andThen(waiter.entered, waiter.leave), {
        concurrency: "unbounded"
      })
      const tokens = waiters.map(({ token }) => token()).toSorted((a, b) => a - b)
      assert.isTrue(grows([holder.token(), ...tokens]), tokens.join())
      yield* restored(cluster)
    }).pipe(quietly))

  it.effect.each(["kill", "pause"] as const)(
    "the subscriber's, by %s: grants are pushed over another one",
    (end) =>
      Effect.gen(function*() {
        const cluster = yield* RedisServer.RedisCluster
        // No heartbeat comes to help.
        const store = { heartbeat: "20 seconds", commandTimeout: "4 seconds" } as const
        const client = yield* connectCluster(cluster, { store })
        const [node] = yield* serversOf(cluster.nodes, "effect-lock-subscriber")
        // A key that its death does not concern.
        let key = "pushed"
        while ((yield* cluster.masterOf(`{${key}}`)).id === node!.id) key += "'"

        yield* node![end]
        yield* until(
          Effect.map(
            serversOf(cluster.nodes.filter((other) => other !== node), "effect-lock-subscriber"),
            (nodes) => nodes.length === 1
          ),
          "the subscriber has moved"
        )
        yield* cluster.settled
        const master = yield* cluster.masterOf(`{${key}}`)
        let holder = yield* occupy(client, key)
        yield* holder.entered
        const monitor = yield* master.monitor
        for (let i = 0; i < 3; i++) {
          const [waiter] = yield* lineUp([client], key)
          yield* holder.leave
          yield* waiter!.entered
          holder = waiter!
        }
        yield* holder.leave
        const names = sent(yield* monitor.all).filter((name) => name === "heartbeat")
        assert.deepStrictEqual(names, [])
        yield* restored(cluster)
      }).pipe(quietly)
  )

  it.effect("the subscriber's, for the client alone: grants are pushed over another one", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const proxies = yield* Effect.forEach(cluster.nodes, (node) => FaultProxy.make(node))
      const natMap = Object.fromEntries(
        cluster.nodes.map(({ host, port }, i) => [`${host}:${port}`, { host, port: proxies[i]!.port }])
      )
      const client = yield* build(RedisLockStore.layer({
        cluster: { nodes: cluster.addresses, options: { natMap } },
        heartbeat: "20 seconds",
        commandTimeout: "4 seconds"
      }))
      const [node] = yield* serversOf(cluster.nodes, "effect-lock-subscriber")
      let key = "cut"
      while ((yield* cluster.masterOf(`{${key}}`)).id === node!.id) key += "'"
      const holder = yield* occupy(client, key)
      yield* holder.entered
      const [waiter] = yield* lineUp([client], key)
      yield* proxies[cluster.nodes.indexOf(node!)]!.blackhole()
      const others = cluster.nodes.filter((other) => other !== node)
      yield* until(
        Effect.map(serversOf(others, "effect-lock-subscriber"), (nodes) => nodes.length === 1),
        "the subscriber has moved"
      )
      yield* holder.leave
      yield* waiter!.entered
      yield* waiter!.leave
    }).pipe(quietly))

  it.effect("any, of a client that closes meanwhile: no connection is left, and closing does not wait for it", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.RedisCluster
      const client = yield* connectCluster(cluster)
      const holder = yield* occupy(client, "closing")
      yield* holder.entered
      yield* lineUp([client], "closing")
      const master = yield* cluster.masterOf("{closing}")
      yield* master.pause
      yield* client.close
      yield* master.resume
      yield* restored(cluster)
      yield* until(
        Effect.map(connectionsTo(cluster.nodes), (names) => names.length === 0),
        "all connections are closed"
      )
    }).pipe(quietly))
})

describe("a Cluster's client", () => {
  it.live("leaves no connection and no resource behind", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ ...steady, replicas: 0 })
      const resources = () =>
        process.getActiveResourcesInfo().filter((name) => name !== "Timeout" && name !== "Immediate").length
      const before = resources()
      for (let i = 0; i < 5; i++) {
        const client = yield* connectCluster(cluster)
        yield* Effect.forEach(["a", "b", "c"], (key) => client.lock.withLock(Effect.void, key), {
          concurrency: "unbounded"
        })
        yield* client.close
      }
      yield* until(
        Effect.map(connectionsTo(cluster.nodes), (names) => names.length === 0),
        "all connections are closed"
      )
      yield* untilSync(() => resources() <= before, "all sockets are closed")
    }))

  it.live("fails to build with Unavailable when no node can be reached", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(
        Effect.scoped(build(RedisLockStore.layer({ cluster: { nodes: [{ host: "127.0.0.1", port: 1 }] } })))
      )
      assert.deepInclude(error, { _tag: "LockStoreError", reason: "Unavailable", operation: "connect" })
    }))

  it.live("is told where the nodes are by configuration, too, and only there", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ ...steady, replicas: 0 })
      const nodes = Config.succeed(cluster.addresses)
      const store = RedisLockStore.layerConfig({
        cluster: { nodes },
        commandTimeout: Config.succeed(patience.commandTimeout)
      })
      const program = Lock.withLock(Effect.succeed("done"), "k").pipe(
        Effect.provide(Lock.layer().pipe(Layer.provide(store)))
      )
      assert.strictEqual(yield* program, "done")
      const invalid = [
        RedisLockStore.layer({ cluster: { nodes: [] } }),
        RedisLockStore.layer({ cluster: { nodes: cluster.addresses }, url: "redis://127.0.0.1:6379" })
      ]
      for (const layer of invalid) {
        assert.strictEqual((yield* Effect.flip(Effect.scoped(Layer.build(layer))))._tag, "LockInvalid")
      }
    }))
})
