import { LockMetrics, LockStore } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Metric, Schedule, type Scope } from "effect"
import { Redis } from "ioredis"
import * as Fs from "node:fs"
import { isDeepStrictEqual } from "node:util"
import { QuorumLockStore, RedisLockStore } from "../src/index.ts"
import { build, type Client, patience, until } from "./support/client.ts"
import { type Fibers, quietly, uncounted, withFiberCount, withMetrics } from "./support/observe.ts"
import { voterTimeout } from "./support/quorum.ts"
import { random } from "./support/random.ts"
import { connectCluster, connectionsTo, connectSentinel } from "./support/topology.ts"

const cycles = 20_000
const keys = Array.from("abcdefghij")

/** What is asked for locks, and what can be seen of it from outside. */
interface Topology {
  readonly clients: ReadonlyArray<Client>
  readonly servers: ReadonlyArray<RedisServer.Server>
  /** Those of them that can be asked for keys. */
  readonly masters: ReadonlyArray<RedisServer.Server>
  readonly emitters: ReadonlyArray<NodeJS.EventEmitter>
}

// Short offers, for a hand-over may meet one who is just leaving.
const heartbeat = 200
const options = { heartbeat, ...patience }

const topologies: ReadonlyArray<{
  readonly name: string
  readonly start: Effect.Effect<Topology, unknown, Scope.Scope>
}> = [
  {
    name: "memory",
    start: Effect.map(build(LockStore.layerMemory), (client) => ({
      clients: [client],
      servers: [],
      masters: [],
      emitters: []
    }))
  },
  {
    name: "one server",
    start: Effect.gen(function*() {
      const server = yield* uncounted(RedisServer.make())
      const redis = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const redis = new Redis({ port: server.port, connectionName: "borrowed", lazyConnect: true })
          await redis.connect()
          return redis
        }),
        (redis) => Effect.sync(() => redis.disconnect())
      )
      return {
        clients: [
          yield* build(RedisLockStore.layer({ url: server.url, ...options })),
          yield* build(RedisLockStore.layerClient(redis, options)),
          yield* build(RedisLockStore.layer({ url: server.url, ...options, push: false, pollInterval: 20 }))
        ],
        servers: [server],
        masters: [server],
        emitters: [redis]
      }
    })
  },
  {
    name: "Sentinel",
    start: Effect.gen(function*() {
      const sentinel = yield* uncounted(RedisServer.makeSentinel())
      const connect = connectSentinel(sentinel, { store: options })
      return {
        clients: [yield* connect, yield* connect],
        servers: [...sentinel.servers, ...sentinel.sentinels],
        masters: [yield* sentinel.master],
        emitters: []
      }
    })
  },
  {
    name: "Cluster",
    start: Effect.gen(function*() {
      const cluster = yield* uncounted(RedisServer.makeCluster())
      const connect = connectCluster(cluster, { store: options })
      const masters = yield* Effect.filter(cluster.nodes, ({ role }) => Effect.map(role, (it) => it === "master"))
      return { clients: [yield* connect, yield* connect], servers: cluster.nodes, masters, emitters: [] }
    })
  },
  ...[3, 5].map((size) => ({
    name: `quorum of ${size}`,
    start: Effect.gen(function*() {
      const { voters } = yield* uncounted(RedisServer.makeQuorum(size))
      const servers = voters.map(({ server }) => server)
      const connect = build(QuorumLockStore.layer({ voters: servers.map(({ url }) => ({ url })), voterTimeout }))
      return { clients: [yield* connect, yield* connect], servers, masters: servers, emitters: [] }
    })
  })),
  {
    name: "key majority",
    start: Effect.gen(function*() {
      const server = yield* uncounted(RedisServer.make())
      const connect = build(QuorumLockStore.layerKeyMajority({ url: server.url, majority: 2, voterTimeout }))
      return { clients: [yield* connect, yield* connect], servers: [server], masters: [server], emitters: [] }
    })
  }
]

/** Locks in many fibers, of which some end by themselves, some by a time-out and some by an interruption. */
const churn = (clients: ReadonlyArray<Client>, total: number, fibers: number) => {
  const counts = { outcomes: 0, entered: 0, interrupted: 0 }
  const one = (next: () => number) =>
    Effect.suspend(() => {
      const pick = <A>(items: ReadonlyArray<A>): A => items[Math.floor(next() * items.length)]!
      const { lock } = pick(clients)
      const key = pick(keys)
      const work = Effect.gen(function*() {
        counts.entered++
        const turns = Math.floor(next() * 4)
        for (let i = 0; i < turns; i++) yield* Effect.yieldNow
        // Some for long enough to be renewed.
        if (next() < 0.02) yield* Effect.sleep(10)
        if (next() < 0.1) return yield* Effect.fail("failed")
      })
      const kind = next()
      const options = { ttl: 5000, renewEvery: 3 }
      const locked: Effect.Effect<unknown, unknown> = kind < 0.15
        ? lock.withLock(work, key, { ...options, waitTimeout: "1 minute" })
        : kind < 0.45
        ? lock.withLock(work, key, { ...options, waitTimeout: Math.floor(next() * 5) })
        : kind < 0.55
        ? Effect.scoped(Effect.flatMap(lock.acquire(key, options), (lease) => lease.protect(work)))
        : kind < 0.99
        ? lock.withLockIfAvailable(work, key, options)
        : Effect.scoped(Effect.flatMap(lock.takeover(key, options), (lease) => lease.protect(work)))
      return next() < 0.4 ?
        locked :
        Effect.tapError(Effect.timeout(locked, next() * 8), () => Effect.sync(() => counts.interrupted++))
    }).pipe(Effect.exit, Effect.tap(() => Effect.sync(() => counts.outcomes++)))
  return Effect.forEach(
    Array.from({ length: fibers }, (_, fiber) => random(20261120 + fiber)),
    (next) => Effect.repeat(one(next), { times: total / fibers - 1 }),
    { concurrency: "unbounded", discard: true }
  ).pipe(Effect.as(counts))
}

const openFiles = Effect.sync(() => Fs.readdirSync("/proc/self/fd").length)

/** Handles by kind: not what is under way for a moment, as a write is. */
const handles = Effect.sync(() =>
  process.getActiveResourcesInfo().filter((kind) => /^(TCPS|Pipe|Process|UDP|TLS)/.test(kind)).toSorted()
)

/** Timers come and go: the most there are for a while. */
const timers = Effect.sync(() => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length).pipe(
  Effect.delay(5),
  Effect.replicateEffect(20),
  Effect.map((counts) => Math.max(...counts))
)

const listenersOf = (emitter: NodeJS.EventEmitter) =>
  emitter.eventNames().map((name) => `${String(name)}: ${emitter.listenerCount(name)}`).toSorted()

const census = ({ emitters, masters, servers }: Topology, fibers: Fibers) =>
  uncounted(Effect.gen(function*() {
    const found: Array<string> = []
    for (const [i, server] of masters.entries()) {
      for (const key of yield* server.keys("effect-lock*")) {
        assert.isAbove((yield* server.command("PTTL", key)) as number, 0, `${key} never expires`)
        found.push(`${i} ${key}`)
      }
    }
    return {
      timers: yield* timers,
      rest: {
        fibers: yield* fibers.count,
        files: yield* openFiles,
        handles: yield* handles,
        connections: (yield* connectionsTo(servers)).map(String).toSorted(),
        listeners: [process, ...emitters].map(listenersOf),
        keys: found
      }
    }
  }))

type Census = Effect.Success<ReturnType<typeof census>>

/**
 * What there is when nothing passing is under way: a client of a Cluster opens a connection of a moment every five seconds,
 * to ask for the slots.
 */
const steadyCensus = (topology: Topology, fibers: Fibers): Effect.Effect<Census, unknown> =>
  census(topology, fibers).pipe(
    Effect.replicateEffect(10),
    Effect.map((all) => all.reduce((least, one) => one.rest.files < least.rest.files ? one : least))
  )

/** The first census that is no different, or the last of many. */
const censusLike = (before: Census, topology: Topology, fibers: Fibers): Effect.Effect<Census, unknown> =>
  census(topology, fibers).pipe(
    // The wait for the fibers before it may have left its time-out behind.
    Effect.repeat({
      until: ({ rest, timers }) => timers <= before.timers + 1 && isDeepStrictEqual(rest, before.rest),
      schedule: Schedule.spaced("100 millis"),
      times: 100
    })
  )

/** Nobody holds or waits, as clients, their store and the server see it. */
const isQuiet = ({ clients, masters }: Topology) =>
  uncounted(Effect.gen(function*() {
    for (const metric of [LockMetrics.waiting, LockMetrics.held]) {
      if ((yield* Metric.value(metric)).value !== 0) return false
    }
    for (const key of keys) {
      const { holders, waiters } = yield* clients[0]!.store.inspect(key)
      if (holders.length + waiters.length > 0) return false
    }
    for (const server of masters) {
      for (const key of yield* server.keys("effect-lock*")) {
        if (/:(queue|waiters|clients)$/.test(key)) return false
        if ((yield* server.command("TYPE", key)) !== "hash") continue
        // What is kept is the greatest token so far, and who may be told of a release for a while.
        const fields = (yield* server.command("HKEYS", key)) as Array<string>
        if (fields.some((field) => !/^([scqw]|w:.*)$/.test(field))) return false
      }
    }
    return true
  }))

describe("G11: 20,000 locks, interrupted and timed out at random, leave nothing:", () => {
  for (const { name, start } of topologies) {
    it.live(
      `fds, sockets, fibers, timers, listeners and keys return to their start: ${name}`,
      () =>
        withFiberCount((fibers) =>
          Effect.gen(function*() {
            const topology = yield* start
            const { clients } = topology
            yield* churn(clients, 800, 200)
            yield* until(isQuiet(topology), "nobody holds or waits")
            // The watcher over leases falls asleep a moment after the last one.
            yield* Effect.sleep(1500)
            const before = yield* steadyCensus(topology, fibers)

            const counts = yield* churn(clients, cycles, 200)
            assert.strictEqual(counts.outcomes, cycles)
            assert.isAbove(counts.entered, cycles / 20)
            assert.isAbove(counts.interrupted, cycles / 20)
            yield* until(isQuiet(topology), "nobody holds or waits")
            yield* until(
              Effect.map(fibers.count, (count) => count <= before.rest.fibers),
              "the fibers are back to where they began"
            )
            const after = yield* censusLike(before, topology, fibers)
            assert.deepStrictEqual(after.rest, before.rest)
            assert.isAtMost(after.timers, before.timers + 1)
            for (const { lock } of clients) {
              for (const key of keys) yield* lock.withLock(Effect.void, key, { waitTimeout: "10 seconds" })
            }
          })
        ).pipe(withMetrics, quietly),
      600_000
    )
  }
})
