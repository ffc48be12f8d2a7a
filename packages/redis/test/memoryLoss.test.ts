/**
 * Servers that forget leases whose holders still work: a failover that loses the last writes, forced to, and a restart
 * without persistence.
 */
import type { LockError, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Option, type Scope } from "effect"
import { Cluster } from "ioredis"
import { build, type Client, connect, patience, queued, until } from "./support/client.ts"
import { quietly, withLog } from "./support/observe.ts"
import { type ClientOptions, connectCluster, connectSentinel, lineUp, occupy, replicated } from "./support/topology.ts"

interface Topology {
  readonly connect: (
    options?: ClientOptions
  ) => Effect.Effect<Client, LockError.LockStoreError | LockError.LockInvalid, Scope.Scope>
  readonly keys: ReadonlyArray<string>
  /** Waits until the replicas have all that was written, and keeps everything after it from them. */
  readonly cutReplicas: Effect.Effect<void, RedisServer.RedisServerError>
  /** Ends the master and lets a replica, as it was, take its place. */
  readonly replaceMaster: Effect.Effect<void, RedisServer.RedisServerError>
}

const loss = (master: RedisServer.Server, replicas: ReadonlyArray<RedisServer.Server>) => ({
  cutReplicas: Effect.gen(function*() {
    yield* replicated(master, replicas.length)
    yield* Effect.forEach(replicas, (replica) => replica.pause)
    // What is in its socket would reach a replica later.
    yield* master.command("CLIENT", "KILL", "TYPE", "replica")
  }),
  replaceMaster: Effect.andThen(master.kill, Effect.forEach(replicas, (replica) => replica.resume, { discard: true }))
})

const topologies: ReadonlyArray<
  readonly [name: string, Effect.Effect<Topology, RedisServer.RedisServerError, Scope.Scope>]
> = [
  [
    "under Sentinels",
    Effect.gen(function*() {
      // A busy machine must not replace a master before the test does.
      const sentinel = yield* RedisServer.makeSentinel({ replicas: 1, downAfter: "4 seconds" })
      const master = yield* sentinel.master
      const replicas = sentinel.servers.filter((server) => server !== master)
      return { connect: (options) => connectSentinel(sentinel, options), keys: ["k"], ...loss(master, replicas) }
    })
  ],
  [
    "on a Cluster",
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ nodeTimeout: "4 seconds" })
      const master = yield* cluster.masterOf("{k}")
      const replicas = yield* cluster.replicasOf(master)
      // One for each of its masters, at least.
      const keys = ["k", ...Array.from({ length: 30 }, (_, i) => `k${i}`)]
      return { connect: (options) => connectCluster(cluster, options), keys, ...loss(master, replicas) }
    })
  ]
]

// What is to happen during the delay must be done before it is over, on a machine that stands still for a while.
const lockDelay = { lockDelay: true, longestTtl: "6 seconds", slack: "1 second" } as const

const isWithheld = { _tag: "LockStoreError", reason: "Refused", limitName: "lockDelay" } as const

const tryOnce = ({ lock }: Client, key: string) => lock.withLock(Effect.void, key, { ttl: "6 seconds", waitTimeout: 0 })

const request = (holderId: string, change: Partial<LockStore.Request> = {}): LockStore.Request => ({
  key: "k",
  holderId,
  ttl: 2000,
  permits: 1,
  limit: 1,
  wait: true,
  priority: 0,
  maxWaiters: Infinity,
  floor: 0,
  metadata: {},
  ...change
})

/** What a restart with its memory, or a lossless failover, leaves: all is known, and the mark names another process. */
const replaceProcess = (server: RedisServer.Server) =>
  Effect.flatMap(
    server.command("GET", "effect-lock:mark"),
    (mark) => server.command("SET", "effect-lock:mark", `another ${String(mark).split(" ").slice(1).join(" ")}`)
  )

/** The failover is over, and who answers knows of nothing. */
const forgotten = ({ store }: Client, key: string) =>
  until(
    Effect.orElseSucceed(Effect.map(store.inspect(key), ({ holders }) => holders.length === 0), () => false),
    "the lease is forgotten"
  )

describe.each(topologies)("a failover %s that loses a lease", (_, start) => {
  it.live(
    "G1, G2: with lock delay nobody enters while its holder may be inside, and tokens grow",
    () =>
      Effect.gen(function*() {
        const topology = yield* start
        // Nobody asks for it: it is the default here. Only the record says how long the lease lives.
        const store = { lockDelay: undefined, longestTtl: "2 seconds", slack: "1 second" } as const
        const [one, other] = yield* Effect.all([topology.connect({ store }), topology.connect({ store })])
        yield* one.lock.withLock(Effect.void, "k", { ttl: "12 seconds" })
        yield* topology.cutReplicas
        // It does not learn of its loss before its deadline.
        const holder = yield* occupy(one, "k", { ttl: "12 seconds", renewEvery: "11900 millis" })
        yield* holder.entered
        yield* topology.replaceMaster
        yield* forgotten(other, "k")

        assert.deepInclude(yield* Effect.flip(tryOnce(other, "k")), isWithheld)
        const waiter = yield* occupy(other, "k")
        yield* queued(other, "k", 1)
        assert.isFalse(waiter.isInside())
        yield* waiter.entered
        assert.isFalse(holder.isInside())
        assert.isAbove(waiter.token(), holder.token())
        yield* waiter.leave
      }).pipe(quietly),
    120_000
  )

  it.live("G1: of a key that nobody has used before, it is the same", () =>
    Effect.gen(function*() {
      const topology = yield* start
      const store = { ...lockDelay, longestTtl: "10 seconds" } as const
      const [one, other] = yield* Effect.all([topology.connect({ store }), topology.connect({ store })])
      yield* topology.cutReplicas
      const holder = yield* occupy(one, "k", { ttl: "10 seconds", renewEvery: "9900 millis" })
      yield* holder.entered
      yield* topology.replaceMaster
      yield* forgotten(other, "k")
      const waiter = yield* occupy(other, "k")
      yield* waiter.entered
      assert.isFalse(holder.isInside())
      assert.isAbove(waiter.token(), holder.token())
      yield* waiter.leave
    }).pipe(quietly), 120_000)

  it.live("without lock delay two are inside at once (an expected violation of G1)", () =>
    Effect.gen(function*() {
      const topology = yield* start
      // Nor does the holder learn of it from the server, when it connects to the new one.
      const store = { lockDelay: false, tracking: false } as const
      const [one, other] = yield* Effect.all([topology.connect({ store }), topology.connect({ store })])
      yield* one.lock.withLock(Effect.void, "k", { ttl: "20 seconds" })
      yield* topology.cutReplicas
      const holder = yield* occupy(one, "k", { ttl: "1 hour", renewEvery: "59 minutes" })
      yield* holder.entered
      yield* topology.replaceMaster
      yield* forgotten(other, "k")
      const second = yield* occupy(other, "k", { ttl: "1 hour" })
      yield* second.entered
      assert.isTrue(holder.isInside())
      assert.isTrue(second.isInside())
      assert.isAbove(second.token(), holder.token())
    }).pipe(quietly), 120_000)

  it.live("nobody waits at first use, with lock delay by default", () =>
    Effect.gen(function*() {
      const { connect, keys } = yield* start
      const client = yield* connect({ store: { lockDelay: undefined } })
      for (const key of keys) yield* tryOnce(client, key)
    }))
})

describe("a server with lock delay", () => {
  it.live("nobody waits at first use, nor does the next client", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      for (let i = 0; i < 2; i++) {
        const client = yield* connect(server, { store: lockDelay })
        yield* tryOnce(client, "k")
      }
    }))

  it.live("that restarts empty grants nothing while a forgotten holder may be inside, then to its waiters in order", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const store = { ...lockDelay, longestTtl: "10 seconds" } as const
        const [one, other] = yield* Effect.all([connect(server, { store }), connect(server, { store })])
        yield* tryOnce(other, "k")
        const holder = yield* occupy(one, "k", { ttl: "10 seconds", renewEvery: "9900 millis" })
        yield* holder.entered
        yield* server.restart
        for (const { store } of [other, one]) yield* until(Effect.isSuccess(store.inspect("k")), "connected again")
        assert.deepInclude(yield* Effect.flip(tryOnce(other, "k")), isWithheld)
        assert.include((yield* Effect.flip(tryOnce(other, "k"))).message, "may have forgotten a lease")
        const first = yield* occupy(other, "k")
        yield* queued(other, "k", 1)
        const second = yield* occupy(one, "k")
        yield* first.entered
        assert.isFalse(holder.isInside())
        assert.isFalse(second.isInside())
        assert.isAbove(first.token(), holder.token())
        yield* first.leave
        yield* second.entered
        yield* second.leave
        const warned = lines.filter(({ text }) => text.includes("nothing is granted for"))
        assert.strictEqual(warned.length, 2, "once for each client")
      })
    ))

  it.live("that restarts with its memory goes on with the holders it knows: they renew and release", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make({ config: ["appendonly yes", "appendfsync always"] })
      const client = yield* connect(server, { store: lockDelay })
      const holder = yield* occupy(client, "k", { ttl: "10 seconds", renewEvery: "100 millis" })
      yield* holder.entered
      yield* server.restart
      yield* until(Effect.isSuccess(client.store.inspect("k")), "the client is connected again")
      assert.deepInclude(yield* Effect.flip(tryOnce(client, "free")), isWithheld)
      // Whose lease is known is refused like anybody else by it.
      assert.strictEqual((yield* Effect.flip(tryOnce(client, "k")))._tag, "LockTimeout")
      const [held] = (yield* client.store.inspect("k")).holders
      yield* until(
        Effect.map(client.store.inspect("k"), ({ holders }) => holders[0]!.timeLeft > 9900),
        "it was renewed"
      )
      assert.strictEqual(held!.token, holder.token())
      assert.isTrue(holder.isInside())
      assert.deepStrictEqual(yield* holder.leave, Exit.void)
      assert.deepStrictEqual((yield* client.store.inspect("k")).holders, [])
      assert.deepInclude(yield* Effect.flip(tryOnce(client, "k")), isWithheld)
      const next = yield* occupy(client, "k")
      yield* next.entered
      assert.isAbove(next.token(), holder.token())
      yield* next.leave
    }).pipe(quietly))

  it.live("G1: that may have forgotten an adoption lets nobody adopt the ticket again, but one that it made itself", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = { ...lockDelay, longestTtl: "1 minute" } as const
      const giver = yield* connect(server, { store })
      // It does not learn of its loss before its next renewal.
      const first = yield* connect(server, { store: { ...store, tracking: false } })
      const second = yield* connect(server, { store })
      const give = (key: string) => Effect.scoped(Effect.flatMap(giver.lock.acquire(key), ({ handOff }) => handOff))
      const ticket = yield* give("k")
      const kept = yield* giver.lock.acquire("kept")
      yield* server.command("SAVE")
      const adopted = yield* first.lock.adopt(ticket)
      yield* server.kill
      yield* server.restart
      for (const { store } of [giver, second]) yield* until(Effect.isSuccess(store.inspect("k")), "connected again")

      const refused = yield* Effect.flip(Effect.scoped(second.lock.adopt(ticket)))
      assert.deepInclude(refused, { ...isWithheld, operation: "adopt" })
      assert.isTrue(yield* adopted.isValid)
      const later = yield* kept.handOff
      assert.isAbove((yield* second.lock.adopt(later)).token, later.token)
    }).pipe(Effect.scoped, quietly))

  it.live("take-over does not wait for it", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server, { store: lockDelay })
      yield* tryOnce(client, "k")
      yield* server.restart
      yield* until(Effect.isSuccess(client.store.inspect("k")), "the client is connected again")
      assert.deepInclude(yield* Effect.flip(tryOnce(client, "k")), isWithheld)
      yield* Effect.scoped(client.lock.takeover("k"))
    }).pipe(quietly))

  it.live("G1: who queues during the delay declares the limit for all who come after", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // Nobody confirms the grants: they have to live until they are looked at.
      const { store } = yield* connect(server, { store: { ...lockDelay, heartbeat: "5 seconds" } })
      const before = yield* store.attempt(request("before", { limit: 5 }))
      assert(before._tag === "Granted")
      yield* store.release({ key: "k", holderId: "before", token: before.grant.token }, 0)
      yield* replaceProcess(server)
      for (const id of ["a", "b", "c"]) {
        assert.strictEqual((yield* store.attempt(request(id, { limit: 2, ttl: 60_000 })))._tag, "Queued")
      }
      assert.strictEqual((yield* store.inspect("k")).limit, 2)
      assert.strictEqual((yield* store.attempt(request("d", { limit: 5 })))._tag, "OtherLimit")
      yield* until(Effect.map(store.inspect("k"), ({ holders }) => holders.length > 0), "the delay is over")
      const { holders, waiters } = yield* store.inspect("k")
      assert.sameMembers(holders.map(({ holderId }) => holderId), ["a", "b"])
      assert.deepStrictEqual(waiters.map(({ holderId }) => holderId), ["c"])
    }).pipe(quietly))

  it.live("what is granted or renewed for longer during the delay does not make it longer, but the next one", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { store } = yield* connect(server, { store: { ...lockDelay, longestTtl: "20 seconds" } })
      const granted = yield* store.attempt(request("a", { ttl: 20_000 }))
      assert(granted._tag === "Granted")
      yield* replaceProcess(server)
      const left = Effect.map(
        Effect.flip(store.attempt(request("b", { key: "free", wait: false }))),
        ({ limit }) => Number(limit)
      )
      assert.isAtMost(yield* left, 21_001)
      yield* store.renew({ key: "k", holderId: "a", token: granted.grant.token }, 3_600_000)
      assert.isAtMost(yield* left, 21_001)
      yield* store.takeover(request("c", { key: "taken", ttl: 7_200_000 }))
      assert.isAtMost(yield* left, 21_001)
      yield* replaceProcess(server)
      assert.isAtLeast(yield* left, 7_200_000)
    }).pipe(quietly))

  it.live("does not wait for what is only kept, for minHold or once: nobody works with it", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server, { store: lockDelay, lock: { ttl: "2 seconds" } })
      yield* client.lock.withLock(Effect.void, "kept", { minHold: "1 hour" })
      yield* replaceProcess(server)
      const { limit } = (yield* Effect.flip(tryOnce(client, "k"))) as LockError.LockStoreError
      assert.isAtMost(limit!, 7001)
      // What is known of it stays.
      assert.strictEqual((yield* Effect.flip(tryOnce(client, "kept")))._tag, "LockTimeout")
    }).pipe(quietly))

  it.live("finds its scripts loaded: nobody sends their sources", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server, { store: lockDelay })
      const before = (yield* server.commandStats).get("eval")
      yield* lock.withLock(Effect.void, "k")
      assert.strictEqual((yield* server.commandStats).get("eval"), before)
    }))

  it.live("a single long lease is not waited for in every later failover", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server, { store: lockDelay })
      yield* client.lock.withLock(Effect.void, "k", { ttl: "1 hour" })
      const [process, since, longest, before, turn] = String(yield* server.command("GET", "effect-lock:mark")).split(
        " "
      )
      assert.deepStrictEqual([since, before], ["0", "0"])
      assert.isAtLeast(Number(longest), 3_600_000)
      // Two generations later.
      const over = Number(turn) - 7_200_000
      yield* server.command("SET", "effect-lock:mark", `${process} 0 ${longest} 0 ${over}`)
      yield* client.lock.withLock(Effect.void, "k", { ttl: "6 seconds" })
      const next = String(yield* server.command("GET", "effect-lock:mark")).split(" ")
      assert.deepStrictEqual([next[2], next[3]], ["6001", longest])
      yield* server.command("SET", "effect-lock:mark", [...next.slice(0, 4), over].join(" "))
      yield* client.lock.withLock(Effect.void, "k", { ttl: "6 seconds" })
      const last = String(yield* server.command("GET", "effect-lock:mark")).split(" ")
      assert.deepStrictEqual([last[2], last[3]], ["6001", "6001"])
      assert.isAbove(Number(yield* server.command("PTTL", "effect-lock:mark")), 0)
    }))

  it.live("a master that was replaced meanwhile and comes back is noticed by who did not see it", () =>
    Effect.gen(function*() {
      const config = ["repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
      const first = yield* RedisServer.make({ config })
      const second = yield* RedisServer.make({ config: [...config, `replicaof ${first.host} ${first.port}`] })
      const promote = (server: RedisServer.Server, master: RedisServer.Server) =>
        Effect.gen(function*() {
          yield* replicated(master)
          yield* server.command("REPLICAOF", "NO", "ONE")
          yield* master.command("REPLICAOF", server.host, server.port)
          yield* replicated(server)
        })
      const client = yield* connect(first, { store: lockDelay })
      yield* tryOnce(client, "k")
      yield* promote(second, first)
      const elsewhere = yield* connect(second, { store: lockDelay })
      assert.deepInclude(yield* Effect.flip(tryOnce(elsewhere, "k")), isWithheld)
      yield* elsewhere.lock.withLock(Effect.void, "k", { ttl: "6 seconds" })
      yield* promote(first, second)
      assert.deepInclude(yield* Effect.flip(tryOnce(client, "k")), isWithheld)
    }).pipe(quietly))

  it.live("without assumeFresh: one that has no mark grants once it has been up for long enough", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = { ...lockDelay, assumeFresh: false } as const
      const client = yield* connect(server, { store: { ...store, longestTtl: "1 hour" } })
      assert.deepInclude(yield* Effect.flip(tryOnce(client, "k")), isWithheld)
      yield* client.close
      yield* server.command("FLUSHALL")
      yield* until(
        Effect.map(
          server.command("INFO", "server"),
          (info) => Number(/uptime_in_seconds:(\d+)/.exec(String(info))![1]) >= 7
        ),
        "it has been up for seven seconds"
      )
      yield* tryOnce(yield* connect(server, { store }), "k")
    }).pipe(quietly))

  it.live("fails to build where INFO is denied, and says which option to switch off", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      yield* server.command("ACL", "SETUSER", "locker", "on", ">secret", "~*", "&*", "+@all", "-info")
      const url = `redis://locker:secret@${server.host}:${server.port}`
      const error = yield* Effect.flip(Effect.scoped(connect({ url }, { store: lockDelay })))
      assert.deepInclude(error, { _tag: "LockStoreError", operation: "startup", reason: "Refused" })
      assert.include(error.message, "set lockDelay to false")
      yield* tryOnce(yield* connect({ url }), "k")
    }))

  it.live("costs a free lock one INFO, and nothing where it is off", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const infos = Effect.map(server.commandStats, (stats) => stats.get("info") ?? 0)
      const client = yield* connect(server)
      const before = yield* infos
      for (let i = 0; i < 10; i++) yield* client.lock.withLock(Effect.void, "k")
      assert.strictEqual((yield* infos) - before, 1, "the test's own")
      assert.isNull(yield* server.command("GET", "effect-lock:mark"))
      const guarded = yield* connect(server, { store: lockDelay })
      const start = yield* infos
      for (let i = 0; i < 10; i++) yield* guarded.lock.withLock(Effect.void, "k")
      assert.strictEqual((yield* infos) - start, 11)
    }))
})

describe("a Cluster with lock delay", () => {
  it.live("does not take the move of a slot for a failover, with a client that prefixes its keys, too", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ replicas: 0, nodeTimeout: "4 seconds" })
      const borrowed = yield* Effect.acquireRelease(
        Effect.sync(() => new Cluster([...cluster.addresses], { keyPrefix: "app:" })),
        (client) => Effect.sync(() => client.disconnect())
      )
      const clients = yield* Effect.all([
        connectCluster(cluster, { store: lockDelay }),
        build(RedisLockStore.layerClient(borrowed, { ...patience, longestTtl: "6 seconds" }))
      ])
      for (const client of clients) yield* tryOnce(client, "moved")
      const from = yield* cluster.masterOf("{moved}")
      const others = yield* Effect.filter(
        cluster.nodes,
        (node) => Effect.map(node.role, (role) => role === "master" && node.id !== from.id)
      )
      const migration = yield* cluster.migrateSlot("{moved}", others[0]!)
      const lines = yield* Effect.forEach(clients, (client) =>
        Effect.gen(function*() {
          const holder = yield* occupy(client, "moved")
          yield* holder.entered
          return { holder, waiters: yield* lineUp([client, client], "moved") }
        }))
      yield* migration.begin
      yield* migration.moveKeys()
      // Sent on by a node that has given its keys away, to one that is not known to serve them.
      for (const [i, { holder, waiters }] of lines.entries()) {
        yield* holder.leave
        assert.strictEqual((yield* clients[i]!.store.inspect("moved")).holders.length, 1, "granted at once")
        yield* waiters[0]!.entered
      }
      yield* migration.finish
      for (const { waiters } of lines) {
        yield* waiters[0]!.leave
        yield* waiters[1]!.entered
        yield* waiters[1]!.leave
      }
      // For so long a client may go by the slots that it has read before.
      yield* Effect.sleep(1100)
      for (const client of clients) yield* tryOnce(client, "moved")
      for (const client of clients) {
        assert.isTrue(Option.isSome(yield* client.lock.withLockIfAvailable(Effect.void, "moved")))
      }
      const marks = yield* Effect.forEach(cluster.nodes, (node) => node.keys("*effect-lock:mark:*"))
      // The slot is the lowest one of its new master.
      assert.deepStrictEqual(marks.map((keys) => keys.length).toSorted((a, b) => a - b), [2, 2, 4])
    }))

  it.live("does not take the move of a master's lowest slot for a failover, whatever is asked first", () =>
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ replicas: 0, nodeTimeout: "4 seconds" })
      const borrowed = yield* Effect.acquireRelease(
        Effect.sync(() => new Cluster([...cluster.addresses])),
        (client) => Effect.sync(() => client.disconnect())
      )
      const { store } = yield* build(RedisLockStore.layerClient(borrowed, { ...lockDelay, ...patience }))
      const granted = yield* store.attempt(request("a", { ttl: 60_000 }))
      assert(granted._tag === "Granted")
      const from = yield* cluster.masterOf("{k}")
      const [mark] = yield* from.keys("effect-lock:mark:*")
      const others = yield* Effect.filter(
        cluster.nodes,
        (node) => Effect.map(node.role, (role) => role === "master" && node.id !== from.id)
      )
      const migration = yield* cluster.migrateSlot(mark!, others[0]!)
      yield* migration.begin
      yield* migration.moveKeys()
      yield* migration.finish
      const moved = `${others[0]!.host}:${others[0]!.port}`
      yield* until(
        Effect.sync(() => {
          borrowed.refreshSlotsCache()
          return borrowed.slots[migration.slot]![0] === moved
        }),
        "the client knows of the move"
      )
      // For so long it goes by what it knew before.
      yield* Effect.sleep(1100)
      assert.strictEqual(yield* store.release({ key: "k", holderId: "a", token: granted.grant.token }, 0), "Done")
      assert.strictEqual((yield* store.attempt(request("b", { wait: false })))._tag, "Granted")
    }))
})
