import { Fencing } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, it, layer } from "@effect/vitest"
import { Effect, Exit, Random, type Scope } from "effect"
import { Cluster, Redis } from "ioredis"
import { FencedRedis } from "../src/index.ts"
import { connect, patience, until } from "./support/client.ts"

const client = ({ url }: { readonly url: string }, keyPrefix = "") =>
  Effect.acquireRelease(
    Effect.sync(() => new Redis(url, { keyPrefix })),
    (redis) => Effect.sync(() => redis.disconnect())
  )

const start = Effect.fnUntraced(function*(options?: FencedRedis.Options) {
  const server = yield* RedisServer.make()
  const redis = yield* client(server)
  return { server, redis, fenced: yield* FencedRedis.make(redis, { ...patience, ...options }) }
})

const refused = <A, R>(effect: Effect.Effect<A, FencedRedis.FencedError, R>) => Effect.orDie(Effect.flip(effect))

it.live("runs all commands in one script and returns their replies, unless the token is stale", () =>
  Effect.gen(function*() {
    const { fenced, redis } = yield* start()
    const replies = yield* fenced.run("a", 5, [
      ["SET", "a:balance", 100],
      ["hset", "a:log", "x", 1, "y", 2],
      ["GET", "a:missing"],
      ["GET", "a:balance"],
      ["HGETALL", "a:log"]
    ])
    assert.deepStrictEqual(replies, ["OK", 2, null, "100", ["x", "1", "y", "2"]])
    assert.deepStrictEqual(yield* fenced.run("a", { token: 5 }, [["INCRBY", "a:balance", 10]]), [110])
    yield* fenced.register("a", 7)
    const error = yield* refused(fenced.run("a", 6, [["SET", "a:balance", 0], ["DEL", "a:log"]]))
    assert.deepStrictEqual(error, new Fencing.StaleToken({ resource: "a", token: 6, highest: 7 }))
    assert.strictEqual((yield* refused(fenced.register("a", 1)))._tag, "StaleToken")
    yield* fenced.register("b", 1)
    assert.strictEqual(yield* Effect.promise(() => redis.get("a:balance")), "110")
    assert.strictEqual(yield* Effect.promise(() => redis.hlen("a:log")), 2)
  }))

it.live("G2: refuses the write of an earlier holder once the next one has come", () =>
  Effect.gen(function*() {
    const { fenced, redis, server } = yield* start()
    const { lock } = yield* connect(server)
    const first = yield* Effect.scoped(lock.acquire("k"))
    const second = yield* Effect.scoped(lock.acquire("k"))
    yield* fenced.register("k", second)
    assert.strictEqual((yield* refused(fenced.run("k", first, [["SET", "data", "old"]])))._tag, "StaleToken")
    yield* fenced.run("k", second, [["SET", "data", "new"]])
    assert.strictEqual(yield* Effect.promise(() => redis.get("data")), "new")
  }))

it.live("compares tokens exactly up to the greatest one there can be", () =>
  Effect.gen(function*() {
    const { fenced } = yield* start()
    yield* fenced.register("a", Number.MAX_SAFE_INTEGER)
    assert.deepStrictEqual(
      yield* refused(fenced.register("a", Number.MAX_SAFE_INTEGER - 1)),
      new Fencing.StaleToken({
        resource: "a",
        token: Number.MAX_SAFE_INTEGER - 1,
        highest: Number.MAX_SAFE_INTEGER
      })
    )
  }))

it.live("never lets the accepted tokens fall, and writes exactly what it accepts, with many clients at once", () =>
  Effect.gen(function*() {
    const server = yield* RedisServer.make()
    const tokens = yield* Effect.forEach(Array(2000), () => Random.nextIntBetween(1, 500)).pipe(
      Random.withSeed("fencing")
    )
    const clients = yield* Effect.forEach(
      Array(4),
      () => Effect.flatMap(client(server), (redis) => FencedRedis.make(redis, patience))
    )
    const exits = yield* Effect.forEach(
      tokens,
      (token, i) => Effect.exit(clients[i % 4]!.run("a", token, [["RPUSH", "a:writes", token]])),
      { concurrency: 64 }
    )
    const written = ((yield* server.command("LRANGE", "a:writes", 0, -1)) as Array<string>).map(Number)
    assert.deepStrictEqual(written, written.toSorted((a, b) => a - b))
    const accepted = tokens.filter((_, i) => Exit.isSuccess(exits[i]!))
    assert.deepStrictEqual(written, accepted.toSorted((a, b) => a - b))
    assert.strictEqual(written.at(-1), Math.max(...tokens))
    assert.isBelow(accepted.length, tokens.length)
  }))

it.live("remembers a token for the retention since it was last accepted, 30 days by default", () =>
  Effect.gen(function*() {
    const { fenced, redis, server } = yield* start()
    const key = "effect-lock:fence:{a}:a"
    const days30 = 30 * 86_400_000
    yield* fenced.register("a", 5)
    const first = Number(yield* server.command("PTTL", key))
    assert.isTrue(first > days30 - 60_000 && first <= days30, String(first))
    yield* server.command("PEXPIRE", key, 1000)
    yield* fenced.run("a", 5, [["GET", "x"]])
    assert.isAbove(Number(yield* server.command("PTTL", key)), days30 - 60_000)

    const short = yield* FencedRedis.make(redis, { ...patience, retention: "50 millis", keyPrefix: "short" })
    yield* short.register("a", 5)
    yield* until(Effect.map(server.command("EXISTS", "short:fence:{a}:a"), (count) => count === 0), "forgotten")
    yield* short.register("a", 1)
  }))

it.live("puts the prefix of the application's client before every key, in front of the data and of the token", () =>
  Effect.gen(function*() {
    const server = yield* RedisServer.make()
    const redis = yield* client(server, "app:")
    const fenced = yield* FencedRedis.make(redis, patience)
    yield* fenced.run("a", 5, [["SET", "x", "GET"], ["RENAME", "x", "y"]])
    assert.strictEqual(yield* Effect.promise(() => redis.get("y")), "GET")
    assert.sameMembers([...yield* server.keys("*")], ["app:y", "app:effect-lock:fence:{a}:a"])
  }))

it.live("says what the server refused, with what was done before it still done", () =>
  Effect.gen(function*() {
    const { fenced, redis, server } = yield* start()
    const error = yield* refused(fenced.run("a", 5, [["SET", "x", 1], ["HSET", "x", "f", 2], ["SET", "y", 1]]))
    assert.strictEqual(error._tag, "LockStoreError")
    assert.match(error.message, /refused "fenced".*WRONGTYPE/)
    assert.strictEqual(yield* Effect.promise(() => redis.exists("x", "y")), 1)
    assert.strictEqual((yield* refused(fenced.register("a", 4)))._tag, "StaleToken")
    // Not a token of ours: nothing may be accepted by mistake.
    yield* server.command("SET", "effect-lock:fence:{b}:b", "garbage")
    assert.strictEqual((yield* refused(fenced.run("b", 5, [["SET", "z", 1]])))._tag, "LockStoreError")
    assert.strictEqual(yield* Effect.promise(() => redis.exists("z")), 0)
  }))

it.live("G12: refuses unusable input with LockInvalid, before anything is sent", () =>
  Effect.gen(function*() {
    const { fenced, redis, server } = yield* start()
    const inputs = [
      fenced.register("a", 0),
      fenced.register("a", NaN),
      fenced.register("a", -1),
      fenced.register("", 1),
      fenced.register("a}b", 1),
      fenced.register("{}a", 1),
      fenced.run("a", 1, [["SET", "x", 1], ["RPUSH", "y", ...Array(7001).fill(1)]]),
      fenced.run("a", 1, [["SET", "x", 1], ["GET"]]),
      FencedRedis.make(redis, { retention: 0 }),
      FencedRedis.make(redis, { retention: "Infinity" }),
      FencedRedis.make(redis, { keyPrefix: "{x}" })
    ]
    for (const input of inputs) {
      assert.strictEqual((yield* refused<unknown, Scope.Scope>(input))._tag, "LockInvalid")
    }
    assert.lengthOf(yield* server.keys("*"), 0)
    yield* fenced.register("{tag}:a} b", 1)
  }))

layer(RedisServer.cluster(), { excludeTestServices: true })("on a Cluster", (it) => {
  const start = Effect.fnUntraced(function*(keyPrefix = "") {
    const { addresses } = yield* RedisServer.RedisCluster
    const cluster = yield* Effect.acquireRelease(
      Effect.sync(() => new Cluster([...addresses], { keyPrefix })),
      (cluster) => Effect.sync(() => cluster.disconnect())
    )
    return { cluster, fenced: yield* FencedRedis.make(cluster, patience) }
  })

  it.effect("writes what is in the resource's slot, and refuses a stale token, whichever node serves it", () =>
    Effect.gen(function*() {
      const { cluster, fenced } = yield* start()
      for (let i = 0; i < 20; i++) {
        const key = `account:${i}`
        yield* fenced.run(key, 5, [["SET", key, i], ["SET", `{${key}}:b`, i], ["RENAME", `{${key}}:b`, `{${key}}:c`]])
        const error = yield* refused(fenced.run(key, 4, [["DEL", key]]))
        assert.strictEqual(error._tag, "StaleToken")
        assert.strictEqual(yield* Effect.promise(() => cluster.get(`{${key}}:c`)), String(i))
        yield* fenced.run(`{${key}}:c`, 5, [["DEL", key]])
      }
    }))

  it.effect("refuses keys outside of it with LockInvalid, whether or not a command before would be right", () =>
    Effect.gen(function*() {
      const { cluster, fenced } = yield* start()
      const error = yield* refused(fenced.run("a", 5, [["SET", "{a}:x", 1], ["SET", "b", 1]]))
      assert.strictEqual(error._tag, "LockInvalid")
      assert.strictEqual(
        error.message,
        "Invalid key \"b\": on a Cluster it must contain {a}, to be in the resource's slot"
      )
      assert.strictEqual((yield* refused(fenced.run("a", 5, [["RENAME", "a", "b"]])))._tag, "LockInvalid")
      assert.strictEqual(yield* Effect.promise(() => cluster.exists("{a}:x")), 0)
      yield* fenced.register("a", 1)
    }))

  it.effect("takes the prefix of the application's client into account", () =>
    Effect.gen(function*() {
      const { cluster, fenced } = yield* start("app:")
      yield* fenced.run("p", 5, [["SET", "{p}:x", 1]])
      assert.strictEqual(yield* Effect.promise(() => cluster.get("{p}:x")), "1")
      // Now the whole of "app:p" decides.
      assert.strictEqual((yield* refused(fenced.run("p", 5, [["SET", "p", 1]])))._tag, "LockInvalid")
      const { fenced: together } = yield* start("{app}:")
      yield* together.run("p", 5, [["SET", "p", 1], ["SET", "q", 1]])
    }))
})
