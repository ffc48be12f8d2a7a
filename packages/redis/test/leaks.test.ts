import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { Redis } from "ioredis"
import * as Fs from "node:fs"
import { RedisLockStore } from "../src/index.ts"
import { build, connect, connections, hold, keysOf, queued, until } from "./support/client.ts"
import { quietly, uncounted, withFiberCount } from "./support/observe.ts"
import { random } from "./support/random.ts"

const count = (kind: RegExp) =>
  Effect.sync(() => process.getActiveResourcesInfo().filter((resource) => kind.test(resource)).length)

const sockets = count(/^TCP/)

/** Sockets and timers, the most there are for a while: who reconnects for ever has either the one or the other. */
const handles = count(/^(TCP|Timeout)/).pipe(
  Effect.delay(5),
  Effect.replicateEffect(20),
  Effect.map((counts) => Math.max(...counts))
)

/** The wait has a time-out of its own. */
const returnsTo = (before: number) =>
  until(Effect.map(handles, (now) => now <= before + 1), "no socket or timer is left")

const openFiles = Effect.sync(() => Fs.readdirSync("/proc/self/fd").length)

const borrow = (server: RedisServer.Server) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const redis = new Redis({ host: server.host, port: server.port, connectionName: "borrowed", lazyConnect: true })
      redis.on("error", () => {})
      await redis.connect()
      return redis
    }),
    (redis) => Effect.sync(() => redis.disconnect())
  )

const listeners = (redis: Redis) =>
  redis.eventNames().map((name) => `${String(name)}: ${redis.listenerCount(name)}`).toSorted()

describe("leaks", () => {
  it.live("G11: closing the layer closes both connections, and only those that are its own", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const borrowed = yield* borrow(server)
      const before = { sockets: yield* sockets, files: yield* openFiles, listeners: listeners(borrowed) }
      const own = yield* connect(server)
      const other = yield* build(RedisLockStore.layerClient(borrowed))
      for (const { lock } of [own, other]) yield* lock.withLock(Effect.void, "k")
      assert.deepStrictEqual(yield* connections(server), [
        "effect-lock",
        "effect-lock-subscriber",
        "effect-lock-subscriber"
      ])
      yield* own.close
      yield* until(
        Effect.map(connections(server), (names) => names.join() === "effect-lock-subscriber"),
        "only the other's subscriber is left"
      )
      yield* other.close
      yield* until(Effect.map(connections(server), ({ length }) => length === 0), "no connection is left")
      assert.strictEqual(yield* Effect.promise(() => borrowed.ping()), "PONG")
      yield* until(Effect.map(sockets, (count) => count <= before.sockets), "no socket is left")
      assert.deepStrictEqual(listeners(borrowed), before.listeners)
      yield* until(Effect.map(openFiles, (count) => count <= before.files), "no file descriptor is left")
    }))

  for (const state of ["frozen", "gone"] as const) {
    it.live(`G11: closing the layer leaves no socket and no timer when the server is ${state}, and does not wait for it`, () =>
      withFiberCount((fibers) =>
        Effect.gen(function*() {
          const bare = yield* handles
          const server = yield* uncounted(RedisServer.make())
          // A server that is gone has taken the admin connection along.
          const before = { handles: state === "gone" ? bare : yield* handles, fibers: yield* fibers.count }
          const client = yield* connect(server, { lock: { releaseTimeout: 300 }, store: { heartbeat: 100 } })
          const owner = yield* hold(client, "k")
          yield* owner.entered
          const waiter = yield* hold(client, "k")
          yield* queued(client, "k", 1)
          yield* state === "frozen" ? server.pause : server.kill
          // Long enough that a time-out or a reconnect is under way.
          yield* Effect.sleep(300)
          const started = performance.now()
          yield* client.close
          // Bounded by twice releaseTimeout, plus what a loaded machine adds: not by commandTimeout.
          assert.isBelow(performance.now() - started, 600 + 10_000)
          for (const { exit } of [owner, waiter]) yield* exit
          yield* returnsTo(before.handles)
          yield* until(Effect.map(fibers.count, (count) => count === before.fibers), "no fiber is left")
          if (state === "frozen") {
            yield* server.resume
            yield* until(Effect.map(connections(server), ({ length }) => length === 0), "no connection is left")
          }
        })
      ).pipe(quietly))
  }

  it.live("G11: a layer that could not be built leaves no socket, no timer and no fiber", () =>
    withFiberCount((fibers) =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const before = { handles: yield* handles, fibers: yield* fibers.count }
        // A port that was free may be another test's by now; this one is nobody's.
        yield* Effect.flip(Effect.scoped(Layer.build(RedisLockStore.layer({ url: "redis://127.0.0.1:1" }))))
        yield* server.pause
        yield* Effect.flip(Effect.scoped(Layer.build(RedisLockStore.layer({ url: server.url, commandTimeout: 100 }))))
        yield* server.resume
        yield* returnsTo(before.handles)
        yield* until(Effect.map(fibers.count, (count) => count === before.fibers), "no fiber is left")
      })
    ).pipe(quietly))
})

describe("keys", () => {
  // Atomic, so that no key can come or go between the question which there are and how long they live.
  const lifetimes = `
    local found = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
      local summary = redis.call('TYPE', key).ok == 'hash' and redis.call('HGET', key, 's')
      local used, expiry = string.match(summary or '0 0 0 0 0', '^(%d+) %d+ %d+ (%d+)')
      local left, time = redis.call('PTTL', key), redis.call('TIME')
      -- Later than that, however long the server stood still between the two: less is left of the lease.
      local now = time[1] * 1000 + math.floor(time[2] / 1000)
      found[#found + 1] = { key, left, used == '0' and 0 or tonumber(expiry) - now }
    end
    return found
  `

  it.live("G11: every key on the server has an expiry, at any moment of a mixed workload and after it", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const clients = [
        yield* connect(server, { store: { heartbeat: 50 } }),
        yield* connect(server, { store: { heartbeat: 50 } })
      ]
      const ttl = 10_000
      const kinds = new Set<string>()
      let samples = 0
      const sample = Effect.gen(function*() {
        const found = (yield* server.command("EVAL", lifetimes, 0)) as Array<
          [key: string, left: number, leaseLeft: number]
        >
        for (const [key, left, leaseLeft] of found) {
          assert.isAbove(left, 0, `${key} never expires`)
          // Nor does it expire with a lease in it, or so soon after one that a token might come twice.
          if (leaseLeft > 0) assert.isAtLeast(left, leaseLeft + 60_000, key)
          assert.isAtMost(left, ttl + 60_000 + 1, key)
          kinds.add(key.replace(/^effect-lock:\{.*\}/, ""))
        }
        samples++
      })
      const next = random(7)
      const workload = Effect.suspend(() => {
        const { lock } = clients[Math.floor(next() * 2)]!
        const key = `key ${Math.floor(next() * 5)}`
        const locked = lock.withLock(Effect.sleep(next() * 5), key, {
          ttl,
          waitTimeout: next() * 20,
          minHold: next() < 0.2 ? 5 : 0,
          renewEvery: 2
        })
        return Effect.exit(next() < 0.3 ? Effect.timeout(locked, next() * 5) : locked)
      })
      const workers = yield* Effect.forEach(
        Array.from({ length: 12 }),
        () => Effect.forkChild(Effect.repeat(workload, { times: 60 }))
      )
      yield* sample.pipe(Effect.repeat({ until: () => workers.every((worker) => worker.pollUnsafe() !== undefined) }))
      assert.isAbove(samples, 50)
      assert.deepStrictEqual([...kinds].toSorted(), ["", ":clients", ":queue", ":waiters"])
      yield* sample
      for (const client of clients) yield* client.close
      yield* sample
    }).pipe(quietly))

  it.live("G11: an administrator's PERSIST is undone by the next grant, and a key of his own is an error, not a crash", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server)
      yield* lock.withLock(Effect.void, "k")
      yield* server.command("PERSIST", keysOf("k")[0]!)
      yield* lock.withLock(Effect.void, "k")
      assert.isAbove((yield* server.command("PTTL", keysOf("k")[0]!)) as number, 0)
      yield* server.command("SET", keysOf("k")[1]!, "not a queue")
      assert.strictEqual((yield* Effect.flip(lock.withLock(Effect.void, "k")))._tag, "LockStoreError")
    }).pipe(quietly))

  it.live("all keys of a lock share a hash slot, and no two locks share a key, whatever they are called", () =>
    Effect.gen(function*() {
      // The server itself refuses a script whose keys are of different slots.
      const server = yield* RedisServer.make({ config: ["cluster-enabled yes"] })
      yield* server.command("CLUSTER", "ADDSLOTS", ...Array.from({ length: 16384 }, (_, slot) => slot))
      yield* until(
        Effect.map(server.command("CLUSTER", "INFO"), (info) => String(info).includes("cluster_state:ok")),
        "the cluster is up"
      )
      const { lock, store } = yield* connect(server)
      const keys = [
        ...Array.from("{}%:* \n\0\u00e9\u65e5"),
        ..."{}|}{|{{|}}|a{b}c|a}b|a%7Db|a%257Db|%7D|k:queue|k}:queue|k}:waiters|x y|\u{1F512}".split("|"),
        "k",
        "x".repeat(1024)
      ]
      assert.strictEqual(new Set(keys).size, keys.length)
      // All at the same time, so that a key that two share would never be granted twice.
      const holds = yield* Effect.forEach(keys, (key) => hold({ lock }, key))
      for (const { entered } of holds) yield* entered
      const waiters = yield* Effect.forEach(keys, (key) => hold({ lock }, key))
      for (const key of keys) yield* queued({ store }, key, 1)
      const slots = new Map<string, Set<unknown>>()
      for (const found of yield* server.keys("*")) {
        const tag = /^effect-lock:\{([^}]*)\}(:queue|:waiters|:clients)?$/s.exec(found)?.[1]
        assert.isDefined(tag, found)
        const ofTag = slots.get(tag) ?? new Set()
        slots.set(tag, ofTag.add(yield* server.command("CLUSTER", "KEYSLOT", found)))
      }
      assert.strictEqual(slots.size, keys.length)
      assert.isTrue([...slots.values()].every((ofTag) => ofTag.size === 1))
      for (const { leave } of holds) yield* leave
      for (const { entered, leave } of waiters) yield* Effect.andThen(entered, leave)
    }))
})
