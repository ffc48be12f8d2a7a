import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Fiber, Option } from "effect"
import { Redis } from "ioredis"
import { RedisLockStore } from "../src/index.ts"
import {
  build,
  type Client,
  connect,
  connections,
  hold,
  keysOf,
  leftovers,
  patience,
  queued,
  until
} from "./support/client.ts"
import { nameOf, quietly, sent } from "./support/observe.ts"
import * as StagedRedis from "./support/StagedRedis.ts"
import * as Tap from "./support/Tap.ts"

/** So rare that none is due in the time a test takes: who enters has been pushed, or has found out by reconnecting. */
const rarely = { heartbeat: "20 seconds" } as const

/** Queues one after the other, and tells in which order they entered. */
const queueUp = Effect.fnUntraced(function*(clients: ReadonlyArray<Client>, key: string, count: number) {
  const entered: Array<number> = []
  const waiters = yield* Effect.forEach(Array.from({ length: count }, (_, i) => i), (i) =>
    Effect.gen(function*() {
      const client = clients[i % clients.length]!
      const waiter = yield* Effect.forkChild(client.lock.withLock(Effect.sync(() => entered.push(i)), key))
      yield* queued(client, key, i + 1)
      return waiter
    }))
  return { entered, all: Effect.forEach(waiters, Fiber.join, { discard: true }) }
})

const inOrder = (count: number) => Array.from({ length: count }, (_, i) => i)

describe("pushes", () => {
  it.live("G9: a push that finds no subscriber, because it was killed that moment, is made up for by the reconnect", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server)
      const other = yield* connect(server, { store: rarely })
      for (let i = 0; i < 5; i++) {
        const holder = yield* hold(one, "k")
        yield* holder.entered
        const waiter = yield* hold(other, "k")
        yield* queued(other, "k", 1)
        const monitor = yield* server.monitor
        yield* server.command("CLIENT", "KILL", "TYPE", "pubsub")
        yield* holder.leave
        yield* waiter.entered
        const names = sent(yield* monitor.take)
        assert.isBelow(names.indexOf("release"), names.lastIndexOf("subscribe"), names.join())
        yield* waiter.leave
      }
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("G9: a push that gets lost on its way is made up for by the next heartbeat", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // Commands go to the server directly; the subscription is made, and then hears nothing any more.
      let deaf = false
      const tap = yield* Tap.make(server, { reply: (chunk) => deaf ? "" : chunk })
      const redis = yield* Effect.acquireRelease(
        Effect.sync(() => new Redis({ host: server.host, port: server.port })),
        (redis) => Effect.sync(() => redis.disconnect())
      )
      const duplicate = redis.duplicate.bind(redis)
      Object.assign(redis, { duplicate: (options: object) => duplicate({ ...options, port: tap.port }) })
      const one = yield* connect(server)
      // An offer that is not used for three of these goes to the next in the queue.
      const other = yield* build(RedisLockStore.layerClient(redis, { ...patience, heartbeat: 2000 }))
      deaf = true
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const { all, entered } = yield* queueUp([other], "k", 5)
      yield* holder.leave
      yield* all
      assert.deepStrictEqual(entered, inOrder(5))
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("a subscriber connection that breaks while it subscribes again is subscribed in the end, and harms nobody", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      let cuts = 0
      const tap = yield* Tap.make(server, {
        request: (chunk) => cuts > 0 && /\r\nsubscribe\r\n/i.test(chunk) ? void cuts-- : chunk
      })
      const one = yield* connect(server)
      const other = yield* connect(tap, { store: rarely })
      cuts = 3
      yield* server.command("CLIENT", "KILL", "TYPE", "pubsub")
      // Both clients' subscribers, the second one at the fourth attempt.
      yield* until(
        Effect.map(
          server.clients,
          (clients) => cuts === 0 && clients.filter((client) => Number(client.get("sub")) > 0).length === 2
        ),
        "both are subscribed again"
      )
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const waiter = yield* hold(other, "k")
      yield* queued(other, "k", 1)
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
    }).pipe(quietly))

  it.live("G11: a heartbeat that arrives after the last waiter was granted leaves no sign of life behind", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const staged = yield* StagedRedis.make(server)
      const one = yield* connect(server)
      const other = yield* build(RedisLockStore.layerClient(staged.redis, { ...patience, heartbeat: 2000 }))
      const holder = yield* hold(one, "k")
      yield* holder.entered
      staged.reset()
      staged.at({ step: "heartbeat#0", moment: "before" }, () => Effect.runPromise(holder.leave))
      const waiter = yield* hold(other, "k", { ttl: "1 minute" })
      yield* waiter.entered
      yield* until(Effect.sync(() => staged.hasActed()), "the heartbeat")
      // It is on its way before the release is asked for.
      yield* waiter.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      assert.deepStrictEqual(staged.trace.slice(0, 2), ["attempt#0", "heartbeat#0"])
    }).pipe(quietly))

  it.live("G11: a heartbeat after all but the signs of life were lost leaves no key that never expires", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server, { store: { tracking: false } })
      const other = yield* connect(server, { store: { heartbeat: 100 } })
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const waiter = yield* hold(other, "k")
      yield* queued(other, "k", 1)
      // As by eviction, with a client among those that are left that is dead.
      const lose = "redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) redis.call('ZADD', KEYS[4], 1, 'dead')"
      yield* server.command("EVAL", lose, 4, ...keysOf("k"))
      yield* waiter.entered
      for (const key of yield* server.keys("*")) {
        assert.isAbove(Number(yield* server.command("PTTL", key)), 0, key)
      }
      yield* waiter.leave
    }).pipe(quietly))

  it.live("G3: a grant that was pushed to a process that slept is confirmed before anybody enters", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const staged = yield* StagedRedis.make(server)
      const one = yield* connect(server)
      const other = yield* build(RedisLockStore.layerClient(staged.redis, { ...patience, heartbeat: 200 }))
      const third = yield* connect(server)
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const waiter = yield* hold(other, "k")
      yield* queued(other, "k", 1)
      // An offer lasts for three heartbeats; the process gets around to its push when somebody else is already inside.
      staged.at({ step: "push#0", moment: "before" }, () => {
        const end = performance.now() + 1000
        while (performance.now() < end);
      })
      const next = yield* hold(third, "k")
      yield* queued(third, "k", 2)
      yield* holder.leave
      yield* next.entered
      assert.isFalse(waiter.isInside())
      yield* queued(third, "k", 1)
      assert.isFalse(waiter.isInside())
      yield* next.leave
      yield* waiter.entered
      yield* waiter.leave
      // That offer is as short: who has lost it tidies up in the background.
      yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
    }).pipe(quietly))
})

describe("what an administrator does", () => {
  for (const key of [":queue", ":waiters", ":clients"]) {
    it.live(`G10: waiters whose ${key} was deleted queue again, each at his own place`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        // An offer that is not used for three of these goes to the next in the queue.
        const one = yield* connect(server, { store: { heartbeat: 2000 } })
        const other = yield* connect(server, { store: { heartbeat: 2000 } })
        const holder = yield* hold(one, "k")
        yield* holder.entered
        const { all, entered } = yield* queueUp([one, other], "k", 6)
        const ids = (yield* one.store.inspect("k")).waiters.map(({ holderId }) => holderId)
        yield* server.command("DEL", `${keysOf("k")[0]}${key}`)
        yield* until(
          Effect.gen(function*() {
            const { waiters } = yield* one.store.inspect("k")
            const alive = yield* server.command("ZCARD", keysOf("k")[3]!)
            return alive === 2 && waiters.map(({ holderId }) => holderId).join() === ids.join()
          }),
          "both clients have shown up, and all are back at their places"
        )
        yield* holder.leave
        yield* all
        assert.deepStrictEqual(entered, inOrder(6))
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      }).pipe(quietly))
  }

  for (const command of [["DEL", "effect-lock:{k}"], ["FLUSHALL"]] as const) {
    it.live(`G5: a lease that ${command[0]} took away is lost at the next renewal, and not brought back by it`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        // Nothing but its renewal tells the holder, and the first one is not due before the key has been taken.
        const one = yield* connect(server, { store: { tracking: false } })
        const other = yield* connect(server)
        const holder = yield* hold(one, "k", { renewEvery: "5 seconds" })
        yield* holder.entered
        const monitor = yield* server.monitor
        const [name, ...args] = command
        yield* server.command(name, ...args)
        // Taken by somebody else before the first renewal comes.
        const thief = yield* hold(other, "k", { ttl: "1 minute" })
        yield* thief.entered
        const theirs = yield* server.command("HGETALL", keysOf("k")[0]!)
        const error = yield* Effect.flip(Effect.flatten(holder.exit))
        assert.strictEqual((error as { readonly _tag: string })._tag, "LockLost")
        assert.strictEqual((error as { readonly reason: string }).reason, "NotHeld")
        yield* until(Effect.map(monitor.all, (entries) => sent(entries).includes("abandon")), "the loser has tidied up")
        assert.deepStrictEqual(
          sent(yield* monitor.all).filter((name) => ["renew", "release", "abandon"].includes(name)),
          ["renew", "abandon"]
        )
        assert.deepStrictEqual(yield* server.command("HGETALL", keysOf("k")[0]!), theirs)
        yield* thief.leave
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      }).pipe(quietly))
  }

  it.live("G10: nobody passes the queue of a lease that was deleted", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // No renewal of the holder lets the waiters in.
      const one = yield* connect(server, { store: { ...rarely, tracking: false } })
      const other = yield* connect(server, { store: rarely })
      const holder = yield* hold(one, "k", { ttl: "1 minute" })
      yield* holder.entered
      const { all, entered } = yield* queueUp([one], "k", 2)
      yield* server.command("DEL", keysOf("k")[0]!)
      // Who looks first finds the key free, and yet not his.
      assert.deepStrictEqual(yield* other.lock.withLockIfAvailable(Effect.void, "k"), Option.none())
      yield* all
      assert.deepStrictEqual(entered, inOrder(2))
      yield* holder.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("G9: waiters survive FLUSHALL and enter, one at a time", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server, { store: { heartbeat: 1000 } })
      const other = yield* connect(server, { store: { heartbeat: 1000 } })
      const holder = yield* hold(one, "k", { renewEvery: 50 })
      yield* holder.entered
      const { all, entered } = yield* queueUp([one, other], "k", 40)
      yield* server.command("FLUSHALL")
      yield* all
      assert.deepStrictEqual(entered.toSorted((a, b) => a - b), inOrder(40))
      yield* holder.exit
      yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
    }).pipe(quietly))

  it.live("G5: nothing that a former holder sends touches its successor, and no token comes twice", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { store } = yield* connect(server)
      const request = {
        key: "k",
        ttl: 50,
        permits: 1,
        limit: 1,
        wait: false,
        priority: 0,
        maxWaiters: Infinity,
        floor: 0,
        metadata: {}
      }
      const first = yield* store.attempt({ ...request, holderId: "first" })
      if (first._tag !== "Granted") return assert.fail(first._tag)
      const stale = { key: "k", holderId: "first", token: first.grant.token }
      yield* until(Effect.map(store.inspect("k"), ({ holders }) => holders.length === 0), "it has expired")
      assert.strictEqual(yield* store.renew(stale, 60_000), "NotHeld")
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
      const second = yield* store.attempt({ ...request, ttl: 60_000, holderId: "second" })
      if (second._tag !== "Granted") return assert.fail(second._tag)
      assert.isAbove(second.grant.token, first.grant.token)
      const theirs = yield* server.command("HGETALL", keysOf("k")[0]!)
      assert.strictEqual(yield* store.renew(stale, 90_000), "NotHeld")
      assert.strictEqual(yield* store.release(stale, 0), "NotHeld")
      assert.strictEqual(yield* store.release(stale, 90_000), "NotHeld")
      // The right id with a token of before, and the right token with another's id.
      for (const forged of [{ ...stale, holderId: "second" }, { ...stale, token: second.grant.token }]) {
        assert.strictEqual(yield* store.renew(forged, 90_000), "NotHeld")
        assert.strictEqual(yield* store.release(forged, 0), "NotHeld")
      }
      yield* store.abandon("k", "first")
      assert.deepStrictEqual(yield* server.command("HGETALL", keysOf("k")[0]!), theirs)
      // The same holder id again is the same grant, with the same token.
      const again = yield* store.attempt({ ...request, ttl: 60_000, holderId: "second" })
      assert.strictEqual(again._tag === "Granted" && again.grant.token, second.grant.token)
    }))
})

describe("holders that are gone", () => {
  for (const push of [true, false]) {
    it.live(`G9: a waiter enters when a lease that nobody renews runs out, not a heartbeat later (push: ${push})`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const { lock, store } = yield* connect(server, {
          store: { heartbeat: "20 seconds", ...push ? undefined : { push: false, pollInterval: "20 seconds" } }
        })
        const ttl = 400
        const attempt = yield* store.attempt({
          key: "k",
          holderId: "nobody",
          ttl,
          permits: 1,
          limit: 1,
          wait: false,
          priority: 0,
          maxWaiters: Infinity,
          floor: 0,
          metadata: {}
        })
        assert.strictEqual(attempt._tag, "Granted")
        const started = performance.now()
        yield* lock.withLock(Effect.void, "k")
        // Well before the next heartbeat.
        assert.isBelow(performance.now() - started, ttl + 8000)
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      }))
  }
})

describe("polling", () => {
  const polling = { push: false, pollInterval: 60 }

  it.live("G9, G10: without pushes waiters enter by polling, in order, over one connection per client", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server, { store: { ...polling, pollInterval: 10 } })
      const other = yield* connect(server, { store: { ...polling, pollInterval: 10 } })
      assert.deepStrictEqual(yield* connections(server), ["effect-lock", "effect-lock"])
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const { all, entered } = yield* queueUp([one, other], "k", 10)
      yield* holder.leave
      yield* all
      assert.deepStrictEqual(entered, inOrder(10))
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }))

  it.live("G11: without pushes a client asks once for each key and interval, however many wait", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server)
      const other = yield* connect(server, { store: polling })
      const keys = ["a", "b", "c"]
      const holders = yield* Effect.forEach(keys, (key) => hold(one, key))
      for (const { entered } of holders) yield* entered
      const waiters = yield* Effect.forEach(
        keys.flatMap((key) => Array.from({ length: 20 }, () => key)),
        (key) => Effect.forkChild(other.lock.withLock(Effect.void, key), { startImmediately: true })
      )
      for (const key of keys) yield* queued(other, key, 20)
      const monitor = yield* server.monitor
      const polls = Effect.map(monitor.all, (entries) => {
        const all = entries.filter(({ command, source }) => source !== "lua" && nameOf(command) === "heartbeat")
        return keys.map((key) => all.filter(({ command }) => command.includes(keysOf(key)[0]!)).map(({ time }) => time))
      })
      yield* until(Effect.map(polls, (all) => all.every(({ length }) => length >= 5)), "five polls for each key")
      for (const times of yield* polls) {
        for (let i = 1; i < times.length; i++) assert.isAtLeast(times[i]! - times[i - 1]!, polling.pollInterval - 2)
      }
      for (const { leave } of holders) yield* leave
      yield* Effect.forEach(waiters, Fiber.join)
    }))
})
