import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { Cluster, Redis } from "ioredis"
import * as Fs from "node:fs"
import { RedisServer } from "../src/index.ts"

const isAlive = (pid: number) => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** What must not be there any more. */
const tracesOf = (servers: ReadonlyArray<RedisServer.Server>) =>
  Effect.map(
    Effect.forEach(servers, (server) => Effect.map(server.pid, (pid) => ({ dir: server.dir, pid }))),
    (traces) => () => traces.filter(({ dir, pid }) => isAlive(pid) || Fs.existsSync(dir))
  )

const eventually = <A, E>(effect: Effect.Effect<A, E>, until: (value: A) => boolean) =>
  effect.pipe(
    Effect.repeat({ until, schedule: Schedule.spaced("10 millis") }),
    Effect.timeout("50 seconds")
  )

const disconnecting = <C extends Redis | Cluster>(client: C) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      client.on("error", () => {})
      return client
    }),
    () => Effect.sync(() => client.disconnect())
  )

describe("RedisServer.cluster", () => {
  layer(RedisServer.cluster(), { excludeTestServices: true })("shared", (it) => {
    it.effect("serves every slot with a master and a replica each, and ioredis", () =>
      Effect.gen(function*() {
        const { addresses, nodes } = yield* RedisServer.RedisCluster
        const roles = yield* Effect.forEach(nodes, (node) => node.role)
        assert.deepStrictEqual(roles, ["master", "master", "master", "replica", "replica", "replica"])
        const slots = yield* Effect.forEach(nodes, (node) => node.slots)
        assert.deepStrictEqual(slots, [[[0, 5460]], [[5461, 10_922]], [[10_923, 16_383]], [], [], []])

        const client = yield* disconnecting(new Cluster([...addresses], { scaleReads: "slave" }))
        yield* Effect.promise(() => client.set("k", "v"))
        assert.strictEqual(yield* eventually(Effect.promise(() => client.get("k")), (value) => value !== null), "v")
        assert.strictEqual(client.nodes("slave").length, 3)
      }))

    it.effect("finds the master of a key and its replicas", () =>
      Effect.gen(function*() {
        const cluster = yield* RedisServer.RedisCluster
        const master = yield* cluster.masterOf("{a}b")
        yield* master.command("SET", "{a}b", 1)
        assert.strictEqual((yield* cluster.masterOf("a")).id, master.id)
        assert.strictEqual(yield* cluster.slotOf("a"), yield* cluster.slotOf("{a}b"))
        const replicas = yield* cluster.replicasOf(master)
        assert.strictEqual(replicas.length, 1)
        assert.include(String(yield* replicas[0]!.command("INFO", "replication")), `master_port:${master.port}`)
      }))

    it.effect("moves a slot step by step: TRYAGAIN, ASK, MOVED", () =>
      Effect.gen(function*() {
        const cluster = yield* RedisServer.RedisCluster
        const from = yield* cluster.masterOf("{m}1")
        const [to] = yield* Effect.filter(cluster.nodes, (node) =>
          Effect.map(node.role, (role) => role === "master" && node.id !== from.id))
        yield* from.command("MSET", "{m}1", 1, "{m}2", 2)
        const answer = (...args: ReadonlyArray<string>) =>
          Effect.map(Effect.result(from.command("MGET", ...args)), (result) =>
            result._tag === "Success" ? result.success : result.failure.message)

        const migration = yield* cluster.migrateSlot("{m}1", to!)
        assert.deepStrictEqual([migration.from, migration.to], [from, to])
        assert.strictEqual(migration.slot, yield* cluster.slotOf("m"))
        yield* migration.begin
        assert.deepStrictEqual(yield* answer("{m}1", "{m}2"), ["1", "2"])
        assert.deepStrictEqual(yield* migration.moveKeys(["{m}1", "{m}none"]), ["{m}1"])
        assert.include(yield* answer("{m}1", "{m}2"), "TRYAGAIN")
        assert.include(yield* answer("{m}1"), `ASK ${migration.slot} 127.0.0.1:${to!.port}`)
        assert.deepStrictEqual(yield* migration.moveKeys(), ["{m}2"])
        yield* migration.finish
        assert.include(yield* answer("{m}1"), `MOVED ${migration.slot} 127.0.0.1:${to!.port}`)
        assert.deepStrictEqual(yield* to!.command("MGET", "{m}1", "{m}2"), ["1", "2"])
        assert.strictEqual((yield* cluster.masterOf("m")).id, to!.id)
        for (const node of cluster.nodes) {
          const text = String(yield* node.command("CLUSTER", "NODES"))
          assert.notMatch(text, /->-|-<-/)
        }
      }))

    it.effect.each([undefined, "force", "takeover"] as const)(
      "fails over on demand: %s",
      (mode) =>
        Effect.gen(function*() {
          const cluster = yield* RedisServer.RedisCluster
          const master = yield* cluster.masterOf("k")
          const [replica] = yield* cluster.replicasOf(master)
          const promoted = yield* cluster.failover(master, mode)
          assert.strictEqual(promoted.id, replica!.id)
          assert.strictEqual((yield* cluster.masterOf("k")).id, replica!.id)
          assert.strictEqual(yield* master.role, "replica")
          yield* promoted.command("SET", "k", "new")
        })
    )

    it.effect("fails over by itself when a master is killed, and takes it back as a replica", () =>
      Effect.gen(function*() {
        const cluster = yield* RedisServer.RedisCluster
        const master = yield* cluster.masterOf("k")
        yield* master.kill
        const promoted = yield* cluster.masterOf("k")
        assert.notStrictEqual(promoted.id, master.id)
        yield* cluster.settled
        yield* master.restart
        yield* cluster.settled
        assert.strictEqual(yield* master.role, "replica")
        assert.deepStrictEqual((yield* cluster.replicasOf(promoted)).map(({ id }) => id), [master.id])
      }))
  })

  it.live("comes with masters only, and is gone when its scope closes, whatever was done to it", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { nodes } = yield* Scope.provide(RedisServer.makeCluster({ replicas: 0 }), scope)
      assert.strictEqual(nodes.length, 3)
      const traces = yield* tracesOf(nodes)
      yield* nodes[0]!.pause
      yield* nodes[1]!.kill
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(traces(), [])
    }))

  it.live("leaves nothing behind when it does not start", () =>
    Effect.gen(function*() {
      const before = childrenOf(process.pid)
      const error = yield* Effect.flip(RedisServer.makeCluster({ config: ["no-such-directive yes"] })).pipe(
        Effect.scoped
      )
      assert.strictEqual(error.reason, "NotStarted")
      assert.include(error.message, "no-such-directive")
      // Of those from before, some may have been about to end.
      assert.deepStrictEqual(childrenOf(process.pid).filter((child) => !before.includes(child)), [])
    }))
})

/** Child processes that have not ended, where there is a /proc to see them. */
const childrenOf = (parent: number): ReadonlyArray<string> =>
  (Fs.existsSync("/proc") ? Fs.readdirSync("/proc") : []).flatMap((pid) => {
    try {
      const stat = /^\d+ \((.*)\) (\S) (\d+)/.exec(Fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
      return stat !== null && Number(stat[3]) === parent && stat[2] !== "Z" ? [`${pid} ${stat[1]}`] : []
    } catch {
      return []
    }
  })

describe("RedisServer.sentinel", () => {
  // A master that a busy machine does not run for a moment is not to be replaced.
  layer(RedisServer.sentinel({ downAfter: "4 seconds" }), { excludeTestServices: true })("shared", (it) => {
    it.effect("leads ioredis to the master", () =>
      Effect.gen(function*() {
        const sentinel = yield* RedisServer.RedisSentinel
        const master = yield* sentinel.master
        assert.strictEqual(master, sentinel.servers[0])
        assert.deepStrictEqual([sentinel.servers.length, sentinel.sentinels.length], [3, 3])
        const client = yield* disconnecting(new Redis({ sentinels: [...sentinel.addresses], name: sentinel.name }))
        yield* Effect.promise(() => client.set("k", "v"))
        assert.strictEqual(yield* master.command("GET", "k"), "v")
      }))

    it.effect("fails over on demand", () =>
      Effect.gen(function*() {
        const sentinel = yield* RedisServer.RedisSentinel
        const before = yield* sentinel.master
        const master = yield* sentinel.failover
        assert.notStrictEqual(master, before)
        assert.strictEqual(yield* sentinel.master, master)
        yield* master.command("SET", "k", "new")
        assert.include(String(yield* before.command("INFO", "replication")), `master_port:${master.port}`)
      }))

    it.effect("fails over by itself when the master is killed, and takes it back as a replica", () =>
      Effect.gen(function*() {
        const sentinel = yield* RedisServer.RedisSentinel
        const before = yield* sentinel.master
        yield* before.kill
        const master = yield* eventually(sentinel.master, (master) => master !== before)
        yield* sentinel.settled
        yield* before.restart
        yield* sentinel.settled
        assert.include(String(yield* before.command("INFO", "replication")), `master_port:${master.port}`)
      }))
  })

  it.live("is gone when its scope closes, whatever was done to it", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { sentinels, servers } = yield* Scope.provide(
        RedisServer.makeSentinel({ replicas: 1, sentinels: 1 }),
        scope
      )
      assert.deepStrictEqual([servers.length, sentinels.length], [2, 1])
      const traces = yield* tracesOf([...servers, ...sentinels])
      yield* servers[0]!.pause
      yield* sentinels[0]!.pause
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(traces(), [])
    }))
})

describe("RedisServer.quorum", () => {
  it.live("runs independent servers, each behind a proxy of its own, gone when the scope closes", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { voters } = yield* Scope.provide(RedisServer.makeQuorum(5), scope)
      const traces = yield* tracesOf(voters.map(({ server }) => server))
      const clients = yield* Effect.forEach(
        voters,
        ({ proxy }) =>
          disconnecting(new Redis(proxy.port, proxy.host, { maxRetriesPerRequest: 0, retryStrategy: () => 10 }))
      )
      yield* Effect.forEach(clients, (client) => Effect.promise(() => client.incr("n")))
      yield* voters[1]!.proxy.refuse
      const answers = yield* Effect.forEach(
        clients,
        (client) => Effect.option(Effect.tryPromise(() => client.incr("n"))),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(answers.map(Option.getOrUndefined), [2, undefined, 2, 2, 2])
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(traces(), [])
    }).pipe(Effect.scoped))
})
