import { type LockError, LockStore } from "@effect-lock/core"
import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Config, ConfigProvider, Effect, Layer, Redacted } from "effect"
import { RedisLockStore } from "../src/index.ts"
import { connect, connections, patience, until } from "./support/client.ts"
import { withLog } from "./support/observe.ts"
import * as Tap from "./support/Tap.ts"

const buildError = (options: RedisLockStore.Options) =>
  Effect.flip(Effect.scoped(Layer.build(RedisLockStore.layer({ ...patience, ...options }))))

const storeError = (options: RedisLockStore.Options) =>
  Effect.map(buildError(options), (error): LockError.LockStoreError => {
    assert.strictEqual(error._tag, "LockStoreError", error.message)
    return error as LockError.LockStoreError
  })

/** A user who may do everything but what the rules take away. */
const userWith = (server: RedisServer.Server, ...rules: ReadonlyArray<string>) =>
  Effect.as(
    server.command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "&*", "+@all", ...rules),
    `redis://app:secret@${server.host}:${server.port}`
  )

describe("startup", () => {
  const invalid: ReadonlyArray<readonly [option: string, options: RedisLockStore.Options]> = [
    ["url", { url: "" }],
    ["url", { url: "http://app:secret@127.0.0.1" }],
    ["keyPrefix", { keyPrefix: "" }],
    ["keyPrefix", { keyPrefix: "a{b" }],
    ["keyPrefix", { keyPrefix: "a}b" }],
    ["keyPrefix", { keyPrefix: "a b" }],
    ["heartbeat", { heartbeat: "21 seconds" }],
    ["heartbeat", { heartbeat: 0 }],
    ["heartbeat", { heartbeat: Number.NaN }],
    ["heartbeat", { heartbeat: "soon" as "1 second" }],
    ["commandTimeout", { commandTimeout: Number.NaN }],
    ["commandTimeout", { commandTimeout: -1 }],
    ["commandTimeout", { commandTimeout: "Infinity" }],
    ["pollInterval", { push: false, pollInterval: Number.NaN }],
    ["outageTolerance", { outageTolerance: Number.NaN }],
    ["driftFactor", { driftFactor: Number.NaN }],
    ["driftFactor", { driftFactor: -0.1 }],
    ["driftFactor", { driftFactor: 0.5 }]
  ]

  it.live("G12: refuses options that make no sense before it connects, and names option, value and remedy", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const tap = yield* Tap.make(server)
      for (const [option, options] of invalid) {
        const error = yield* buildError({ url: tap.url, ...options })
        assert.strictEqual(error._tag, "LockInvalid", JSON.stringify(options))
        if (error._tag !== "LockInvalid") continue
        assert.strictEqual(error.input, option)
        assert.isAbove(error.fix.length, 10)
        assert.notInclude(error.message, "secret")
      }
      assert.strictEqual(tap.accepted(), 0)
      yield* connect(tap)
      assert.strictEqual(tap.accepted(), 2)
    }))

  it.live("G12: a server that refuses connections is Unavailable, and says why", () =>
    Effect.gen(function*() {
      const error = yield* storeError({ url: "redis://127.0.0.1:1" })
      assert.strictEqual(error.reason, "Unavailable")
      assert.strictEqual(error.operation, "connect")
      assert.include(error.message, "ECONNREFUSED")
    }))

  it.live("G12: a server that accepts connections and never answers is a Timeout of commandTimeout", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      yield* proxy.blackhole()
      const started = performance.now()
      const error = yield* storeError({ url: proxy.url, commandTimeout: 4000 })
      assert.strictEqual(error.reason, "Timeout")
      assert.strictEqual(error.limit, 4000)
      assert.isAtLeast(performance.now() - started, 3990)
      assert.isBelow(performance.now() - started, 9000)
      // What was opened for it is closed with it.
      yield* proxy.heal
      yield* until(Effect.map(proxy.connections, (count) => count === 0), "no connection is left")
    }))

  it.live("G12: a server that stops answering between connecting and the first question is a Timeout, too", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      let silent = false
      const tap = yield* Tap.make(server, {
        request: (chunk) => {
          silent ||= /eval/i.test(chunk)
          return silent ? "" : chunk
        }
      })
      const error = yield* storeError({ url: tap.url, commandTimeout: 4000 })
      assert.strictEqual(error.reason, "Timeout")
      assert.strictEqual(error.operation, "inspect")
    }))

  it.live("G12: a wrong password is Refused, not unreachable", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      yield* userWith(server)
      const error = yield* storeError({ url: `redis://app:wrong@${server.host}:${server.port}` })
      assert.strictEqual(error.reason, "Refused")
      assert.include(error.message, "WRONGPASS")
    }))

  const forbidden: ReadonlyArray<readonly [what: string, named: string, rules: ReadonlyArray<string>]> = [
    ["scripts", "eval", ["-eval", "-evalsha"]],
    ["the keys of its prefix", "key", ["resetkeys", "~other:*"]],
    ["subscriptions", "subscribe", ["-subscribe"]],
    ["the channels of its prefix", "channel", ["resetchannels", "&other:*"]],
    ["publishing", "publish", ["-publish"]]
  ]
  for (const [what, named, rules] of forbidden) {
    it.live(`G12: a user who is not allowed ${what} is told so at startup`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const error = yield* storeError({ url: yield* userWith(server, ...rules) })
        assert.strictEqual(error.reason, "Refused")
        assert.include(error.message, "NOPERM")
        assert.include(error.message.toLowerCase(), named)
        yield* until(Effect.map(connections(server), ({ length }) => length === 0), "no connection is left")
      }))
  }

  it.live("works for a user who is allowed no more than a lock needs", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const url = yield* Effect.as(
        server.command(
          ...["ACL", "SETUSER", "app", "reset", "on", ">secret", "~effect-lock:*", "&effect-lock:*"] as const,
          "+@connection",
          "+@scripting",
          "+subscribe",
          "+publish",
          "+time",
          "+info",
          "+@hash",
          "+@sortedset",
          "+exists",
          "+del",
          "+pexpire",
          "+pexpireat"
        ),
        `redis://app:secret@${server.host}:${server.port}`
      )
      const client = yield* connect({ url })
      const results = yield* Effect.all([1, 2, 3].map((i) => client.lock.withLock(Effect.succeed(i), "k")), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(results, [1, 2, 3])
    }))

  it.live("works where INFO is not allowed: nothing is known, and nothing is wrong", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const url = yield* userWith(server, "-info")
        const client = yield* connect({ url }, { store: { options: { enableReadyCheck: false } } })
        assert.strictEqual(yield* client.lock.withLock(Effect.succeed("done"), "k"), "done")
        assert.deepStrictEqual(lines, [])
      })
    ))

  it.live("G12: a server that is too old is refused, with its version and the one that is needed", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const old = "4" + server.version.slice(1)
      const tap = yield* Tap.make(server, {
        reply: (chunk) => chunk.replaceAll(`redis_version:${server.version}`, `redis_version:${old}`)
      })
      const error = yield* storeError({ url: tap.url })
      assert.strictEqual(error.reason, "Refused")
      assert.include(error.message, old)
      assert.include(error.message, "5.0")
    }))

  for (const policy of ["allkeys-lru", "volatile-ttl"]) {
    it.live(`warns of maxmemory-policy ${policy}, which may evict locks, and names the remedy`, () =>
      withLog((lines) =>
        Effect.gen(function*() {
          const server = yield* RedisServer.make()
          yield* connect(server)
          assert.deepStrictEqual(lines, [])
          yield* server.command("CONFIG", "SET", "maxmemory-policy", policy)
          yield* connect(server)
          assert.lengthOf(lines, 1)
          assert.strictEqual(lines[0]!.level, "Warn")
          assert.include(lines[0]!.text, policy)
          assert.include(lines[0]!.text, "noeviction")
          assert.strictEqual(lines[0]!.annotations["module"], "effect-lock")
        })
      ))
  }

  it.live("takes its options from configuration, and keeps a secret url out of errors", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const url = yield* userWith(server)
      const layer = RedisLockStore.layerConfig({
        url: Config.Redacted("REDIS_URL"),
        keyPrefix: Config.String("PREFIX"),
        commandTimeout: Config.succeed(patience.commandTimeout)
      })
      const from = (env: Record<string, string>) =>
        Effect.provideService(Layer.build(layer), ConfigProvider.ConfigProvider, ConfigProvider.fromEnv({ env }))
      yield* Effect.gen(function*() {
        const store = yield* LockStore.LockStore
        yield* store.attempt({
          key: "k",
          holderId: "h",
          ttl: 1000,
          permits: 1,
          limit: 1,
          wait: false,
          priority: 0,
          maxWaiters: Infinity,
          floor: 0,
          metadata: {}
        })
      }).pipe(Effect.provide(yield* from({ REDIS_URL: url, PREFIX: "mine" })))
      assert.deepStrictEqual(yield* server.keys("*"), ["mine:{k}"])
      const error = yield* Effect.flip(from({ REDIS_URL: url.replace("secret", "s3cr3t"), PREFIX: "mine" }))
      assert.notInclude(JSON.stringify(error) + String(error), "s3cr3t")
      const direct = yield* storeError({ url: Redacted.make(url.replace("secret", "s3cr3t")) })
      assert.notInclude(JSON.stringify(direct) + String(direct), "s3cr3t")
    }))
})
