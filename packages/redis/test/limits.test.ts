import { LockStore } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer, Scope } from "effect"
import { Redis } from "ioredis"
import { RedisLockStore } from "../src/index.ts"
import { keysOf, leftovers, patience, until, untilSync } from "./support/client.ts"

/** So rare that none is due in the time a test takes: what arrives has been pushed. */
const rarely = { heartbeat: "20 seconds" } as const

const open = (layer: Layer.Layer<LockStore.LockStore | LockStore.PermitStore, unknown>) =>
  Effect.map(Effect.orDie(Layer.build(Layer.fresh(layer))), Context.get(LockStore.PermitStore))

const connect = ({ url }: RedisServer.Server, options: RedisLockStore.StoreOptions = rarely) =>
  open(RedisLockStore.layer({ url, ...patience, ...options }))

const request = (holderId: string, change: Partial<LockStore.Request> = {}): LockStore.Request => ({
  key: "k",
  holderId,
  ttl: 60_000,
  permits: 1,
  limit: 1,
  wait: true,
  priority: 0,
  maxWaiters: Infinity,
  floor: 0,
  metadata: {},
  ...change
})

const take = (store: LockStore.PermitStore["Service"], wish: LockStore.Request) =>
  Effect.map(store.attempt({ ...wish, wait: false }), (attempt): LockStore.Held => {
    assert(attempt._tag === "Granted", attempt._tag)
    return { key: wish.key, holderId: wish.holderId, token: attempt.grant.token }
  })

const day = 24 * 3_600_000

const daysLeft = (server: RedisServer.Server, key: string) =>
  Effect.map(server.command("PTTL", keysOf(key)[0]!), (left) => Number(left) / day)

describe("a limit that was set", () => {
  it.live("is kept for 30 days after the last use of its key, and no longer than any other state once it is undone", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = yield* connect(server)
      yield* store.setLimit("k", 2, 5)
      assert.closeTo(yield* daysLeft(server, "k"), 30, 0.1)
      // Each use counts anew.
      yield* server.command("PEXPIRE", keysOf("k")[0]!, day)
      const holder = yield* take(store, request("a", { permits: 5, limit: 2 }))
      assert.closeTo(yield* daysLeft(server, "k"), 30, 0.1)
      yield* store.release(holder, 0)
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      assert.strictEqual((yield* store.attempt(request("b", { permits: 6, limit: 2 })))._tag, "OtherLimit")
      yield* store.setLimit("k", 2, 2)
      assert.isBelow(yield* daysLeft(server, "k"), 0.01)
      yield* store.setLimit("k", 2, 5)
      // Another declared limit, when nobody uses the key.
      yield* take(store, request("c", { permits: 3, limit: 3 }))
      assert.isBelow(yield* daysLeft(server, "k"), 0.01)
      assert.strictEqual((yield* store.inspect("k")).limit, 3)
    }))

  it.live("survives a take-over with the same declared limit, and not one with another", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = yield* connect(server)
      yield* store.setLimit("k", 2, 5)
      yield* take(store, request("a", { limit: 2 }))
      yield* store.takeover(request("b", { limit: 2 }))
      assert.strictEqual((yield* store.inspect("k")).limit, 5)
      yield* store.takeover(request("c", { limit: 3 }))
      assert.strictEqual((yield* store.inspect("k")).limit, 3)
      assert.isBelow(yield* daysLeft(server, "k"), 0.01)
    }))

  it.live("is lost with the lock's hash, and then it is what those who wait have declared", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = yield* connect(server)
      yield* store.setLimit("k", 2, 5)
      yield* take(store, request("a", { permits: 5, limit: 2 }))
      yield* store.attempt(request("b", { permits: 2, limit: 2 }))
      yield* server.command("DEL", keysOf("k")[0]!)
      // Any command grants to who waits.
      yield* store.renew({ key: "k", holderId: "nobody", token: 1 }, 1)
      const { holders, limit } = yield* store.inspect("k")
      assert.deepStrictEqual([holders.map(({ holderId }) => holderId), limit], [["b"], 2])
      assert.strictEqual((yield* store.attempt(request("c", { limit: 5 })))._tag, "OtherLimit")
    }))

  it.live("G9: tells at once who asks for more than there are any more, by push", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const [one, other] = [yield* connect(server), yield* connect(server)]
      yield* take(one, request("a", { limit: 5, permits: 2 }))
      const big = yield* other.attempt(request("big", { limit: 5, permits: 5 }))
      assert(big._tag === "Queued")
      yield* one.setLimit("k", 5, 4)
      assert.strictEqual((yield* big.signal)._tag, "LookAgain")
    }))
})

describe("a watched lease", () => {
  it.live("is told at once of who queues with another client, through renewals, until it ends", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const [one, other] = [yield* connect(server), yield* connect(server)]
      const told: Array<string> = []
      yield* one.onNews((news) => {
        if (news._tag === "Wanted") told.push(news.holderId)
      })
      const lease = yield* take(one, request("a"))
      // Nobody has asked to be told, and who does not wait, or asks again, is not worth telling of.
      yield* other.attempt(request("b"))
      yield* other.abandon("k", "b")
      assert.deepStrictEqual(yield* one.watch(lease), { _tag: "Done", isWanted: false })
      yield* other.attempt(request("c", { wait: false }))
      yield* one.renew(lease, 90_000)
      yield* other.attempt(request("d"))
      yield* untilSync(() => told.length > 0, "the holder is told")
      yield* other.attempt(request("d"))
      yield* other.attempt(request("e"))
      yield* untilSync(() => told.length > 1, "the holder is told of the next one")
      yield* one.transfer(lease, "ticket")
      yield* other.attempt(request("f"))
      // Sent after whatever was to be told.
      yield* one.takeover(request("g"))
      yield* one.watch({ key: "k", holderId: "g", token: 1 })
      assert.deepStrictEqual(told, ["a", "a"])
    }))
})

describe("a queue", () => {
  it.live("G10: who comes later does not pass those whose places are from a clock that was ahead", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = yield* connect(server)
      yield* take(store, request("a", { limit: 2 }))
      yield* store.attempt(request("big", { limit: 2, permits: 2 }))
      // What a master with such a clock leaves to the replica that follows it.
      const [, queue, waiters] = keysOf("k") as [string, string, string]
      const ahead = Number(yield* server.command("ZINCRBY", queue, 60_000_000, "big"))
      yield* server.command("HSET", waiters, "t", ahead)
      assert.strictEqual((yield* store.attempt(request("b", { limit: 2, wait: false })))._tag, "Refused")
      const small = yield* store.attempt(request("c", { limit: 2 }))
      assert(small._tag === "Queued")
      assert.strictEqual(small.standing.position, 1)
      // A head start that makes up for it does.
      assert.strictEqual((yield* store.attempt(request("d", { limit: 2, priority: 1 })))._tag, "Granted")
    }))
})

describe("a bounded queue", () => {
  it.live("does not count who waited in a process that is gone", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // Those who live count for as long as three of these, also on a machine that stands still.
      const living = { heartbeat: 1500 }
      const [holder, other] = [yield* connect(server), yield* connect(server, living)]
      yield* take(holder, request("holder"))
      yield* other.attempt(request("first"))
      const scope = yield* Scope.fork(yield* Scope.Scope)
      const gone = yield* Scope.provide(connect(server, living), scope)
      for (const id of ["x", "y", "z"]) yield* gone.attempt(request(id))
      assert.strictEqual((yield* other.attempt(request("second", { maxWaiters: 2 })))._tag, "QueueFull")
      yield* Scope.close(scope, yield* Effect.exit(Effect.void))
      const second = yield* until(
        Effect.map(other.attempt(request("second", { maxWaiters: 2 })), ({ _tag }) => _tag === "Queued"),
        "there is room"
      ).pipe(Effect.andThen(other.attempt(request("second"))))
      assert(second._tag === "Queued")
      assert.strictEqual(second.standing.position, 1)
    }))
})

describe("list", () => {
  it.live("finds the keys of a borrowed client that has a prefix of its own, and of no other", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const borrow = (keyPrefix: string) =>
        Effect.acquireRelease(
          Effect.sync(() => new Redis(server.url, { keyPrefix })),
          (redis) => Effect.promise(() => redis.quit())
        ).pipe(Effect.flatMap((redis) => open(RedisLockStore.layerClient(redis, { ...patience, ...rarely }))))
      const [one, other, plain] = [yield* borrow("app*:"), yield* borrow("app2:"), yield* connect(server)]
      for (const [store, keys] of [[one, ["a1", "a}2", "b"]], [other, ["a3"]], [plain, ["a4"]]] as const) {
        for (const key of keys) yield* take(store, request(key, { key }))
      }
      // Beside a ticket, and a queue.
      const lease = yield* take(one, request("h", { key: "a5" }))
      yield* one.transfer(lease, "ticket")
      yield* one.adopt({ ...lease, holderId: "ticket" }, request("i", { key: "a5" }))
      yield* one.attempt(request("w", { key: "a1" }))
      assert.sameMembers([...(yield* one.list("a"))], ["a1", "a}2", "a5"])
      assert.sameMembers([...(yield* other.list(""))], ["a3"])
      assert.sameMembers([...(yield* plain.list("a"))], ["a4"])
    }))

  it.live("finds every one of 3,000 keys, once", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const store = yield* connect(server)
      const keys = Array.from({ length: 3000 }, (_, i) => `k:${i}`)
      yield* Effect.forEach(keys, (key) => take(store, request(key, { key })), { concurrency: 50, discard: true })
      const listed = yield* store.list("k:")
      assert.strictEqual(listed.length, keys.length)
      assert.sameMembers([...listed], keys)
    }))
})
