import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { Redis } from "ioredis"
import * as Net from "node:net"
import { FaultProxy, RedisServer } from "../src/index.ts"

const setup = Effect.gen(function*() {
  const server = yield* RedisServer.RedisServer
  yield* server.command("FLUSHALL")
  return { server, proxy: yield* FaultProxy.make(server) }
})

/** A client that neither reconnects nor retries, so that a test sees each fault once. */
const connect = (target: { readonly host: string; readonly port: number }) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const { host, port } = target
      const redis = new Redis({
        host,
        port,
        protocol: 2,
        connectionName: "proxied",
        enableReadyCheck: false,
        retryStrategy: () => null
      })
      redis.on("error", () => {})
      return redis
    }),
    (redis) => Effect.sync(() => redis.disconnect())
  )

const call = (redis: Redis, name: string, ...args: ReadonlyArray<string>) =>
  Effect.tryPromise(() => redis.call(name, ...args))

const proxiedClients = Effect.gen(function*() {
  const server = yield* RedisServer.RedisServer
  return (yield* server.clients).filter((client) => client.get("name") === "proxied").length
})

const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  condition.pipe(
    Effect.repeat({ until: (met) => met, schedule: Schedule.spaced("10 millis") }),
    Effect.timeout("30 seconds")
  )

/** Whether the fiber is still waiting after a time in which an undisturbed round trip is done many times over. */
const isWaiting = (fiber: Fiber.Fiber<unknown, unknown>) =>
  Fiber.await(fiber).pipe(
    Effect.as(false),
    Effect.timeoutOrElse({ duration: "100 millis", orElse: () => Effect.succeed(true) })
  )

/** How a connection ends, without sending anything. */
const ending = (target: { readonly host: string; readonly port: number }) =>
  Effect.callback<string>((resume) => {
    const socket = Net.connect({ host: target.host, port: target.port }).resume()
    socket.on("error", (error: NodeJS.ErrnoException) => resume(Effect.succeed(error.code ?? error.message)))
    socket.on("end", () => resume(Effect.succeed("end")))
    return Effect.sync(() => socket.destroy())
  })

layer(RedisServer.RedisServer.layer(), { excludeTestServices: true })("FaultProxy", (it) => {
  it.effect("forwards everything, unchanged and in order, when there is no fault", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const redis = yield* connect(proxy)
      const value = "0123456789abcdef".repeat(500_000)
      assert.strictEqual(yield* call(redis, "SET", "k", value), "OK")
      assert.strictEqual(yield* server.command("STRLEN", "k"), value.length)
      assert.isTrue((yield* call(redis, "GET", "k")) === value)
      const counts = yield* Effect.all(Array.from({ length: 500 }, () => call(redis, "INCR", "n")), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(counts, Array.from({ length: 500 }, (_, i) => i + 1))
    }))

  it.effect("forwards the end of a connection, from either side", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const one = yield* connect(proxy)
      const other = yield* connect(proxy)
      yield* call(one, "PING")
      yield* call(other, "PING")
      assert.strictEqual(yield* proxy.connections, 2)
      // The server may not know yet that those of the test before are gone.
      yield* until(Effect.map(proxiedClients, (n) => n === 2))

      one.disconnect()
      yield* until(Effect.map(proxiedClients, (n) => n === 1))
      yield* until(Effect.map(proxy.connections, (n) => n === 1))

      const closed = yield* Effect.forkChild(
        Effect.callback<void>((resume) => {
          other.on("end", () => resume(Effect.void))
        }),
        { startImmediately: true }
      )
      yield* server.command("CLIENT", "KILL", "TYPE", "normal")
      yield* Fiber.join(closed)
      yield* until(Effect.map(proxy.connections, (n) => n === 0))
    }))

  it.effect("adds latency to each direction, and keeps the order when it changes", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.latency("50 millis")
      const started = performance.now()
      yield* call(redis, "PING")
      assert.isAtLeast(performance.now() - started, 100)

      const slow = yield* Effect.forkChild(call(redis, "INCR", "n"), { startImmediately: true })
      yield* proxy.latency("1 milli")
      const quick = yield* Effect.forkChild(call(redis, "INCR", "n"), { startImmediately: true })
      assert.deepStrictEqual([yield* Fiber.join(slow), yield* Fiber.join(quick)], [1, 2])
    }))

  it.effect("delivers at once what latency holds back, when healed", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.latency("1 hour")
      const ping = yield* Effect.forkChild(call(redis, "PING"), { startImmediately: true })
      assert.isTrue(yield* isWaiting(ping))
      yield* proxy.heal
      assert.strictEqual(yield* Fiber.join(ping), "PONG")
    }))

  it.effect("holds only requests back in a blackhole for requests", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const redis = yield* connect(proxy)
      const subscriber = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* Effect.promise(() => subscriber.subscribe("channel"))
      yield* proxy.blackhole("requests")
      const message = yield* Effect.forkChild(
        Effect.callback<string>((resume) => {
          subscriber.on("message", (_, message) => resume(Effect.succeed(message)))
        }),
        { startImmediately: true }
      )
      const set = yield* Effect.forkChild(call(redis, "SET", "k", "v"), { startImmediately: true })
      yield* server.command("PUBLISH", "channel", "hello")
      assert.strictEqual(yield* Fiber.join(message), "hello")
      assert.isTrue(yield* isWaiting(set))
      assert.isNull(yield* server.command("GET", "k"))
      yield* proxy.heal
      assert.strictEqual(yield* Fiber.join(set), "OK")
    }))

  it.effect("holds only replies back in a blackhole for replies", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.blackhole("replies")
      const set = yield* Effect.forkChild(call(redis, "SET", "k", "v"), { startImmediately: true })
      yield* until(Effect.map(server.command("GET", "k"), (value) => value === "v"))
      assert.isTrue(yield* isWaiting(set))
      yield* proxy.heal
      assert.strictEqual(yield* Fiber.join(set), "OK")
    }))

  it.effect("accepts connections in a blackhole", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setup
      yield* proxy.blackhole()
      const ping = yield* Effect.forkChild(call(yield* connect(proxy), "PING"), { startImmediately: true })
      assert.isTrue(yield* isWaiting(ping))
      yield* until(Effect.map(proxy.connections, (n) => n === 1))
      yield* proxy.heal
      assert.strictEqual(yield* Fiber.join(ping), "PONG")
    }))

  const leaving: Readonly<Record<string, (redis: Redis) => void>> = {
    closed: (redis) => redis.stream.destroy(),
    reset: (redis) => redis.stream.resetAndDestroy()
  }
  for (const [how, leave] of Object.entries(leaving)) {
    it.effect(`hides from the server, in a blackhole, that the client has ${how} its connection`, () =>
      Effect.gen(function*() {
        const { proxy } = yield* setup
        const redis = yield* connect(proxy)
        yield* call(redis, "PING")
        yield* proxy.blackhole()
        const ended = yield* Effect.forkChild(
          Effect.callback<void>((resume) => {
            redis.on("end", () => resume(Effect.void))
          }),
          { startImmediately: true }
        )
        leave(redis)
        yield* Fiber.join(ended)
        assert.isTrue(yield* isWaiting(yield* Effect.forkChild(until(Effect.map(proxiedClients, (n) => n === 0)))))
        yield* proxy.heal
        yield* until(Effect.map(proxiedClients, (n) => n === 0))
        yield* until(Effect.map(proxy.connections, (n) => n === 0))
      }))
  }

  it.effect("slows a sender down instead of storing without bound", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      yield* proxy.blackhole("requests")
      const chunk = Buffer.alloc(64 * 1024, "x")
      const count = 512
      const socket = Net.connect({ host: proxy.host, port: proxy.port })
      let written = 0
      const write = (data: string | Buffer) =>
        Effect.callback<void>((resume) => {
          socket.write(data, () => {
            written++
            resume(Effect.void)
          })
        })
      yield* write(`*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$${chunk.length * count}\r\n`)
      const sending = yield* Effect.forkChild(
        Effect.andThen(Effect.forEach(Array.from({ length: count }), () => write(chunk)), write("\r\n"))
      )
      let before = -1
      yield* until(Effect.sync(() => before === (before = written)).pipe(Effect.delay("200 millis")))
      assert.isBelow(written, count)
      assert.isUndefined(sending.pollUnsafe())
      yield* proxy.heal
      yield* Fiber.join(sending)
      yield* until(Effect.map(server.command("STRLEN", "k"), (length) => length === chunk.length * count))
      socket.destroy()
    }))

  it.effect("resets open connections on both sides, and serves new ones", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      const end = yield* Effect.forkChild(ending(proxy), { startImmediately: true })
      yield* until(Effect.map(proxy.connections, (n) => n === 2))
      yield* proxy.reset
      assert.strictEqual(yield* Fiber.join(end), "ECONNRESET")
      assert.isTrue(Exit.isFailure(yield* Effect.exit(call(redis, "PING"))))
      yield* until(Effect.map(proxiedClients, (n) => n === 0))
      assert.strictEqual(yield* call(yield* connect(proxy), "PING"), "PONG")
    }))

  it.effect("loses a reply: the server has done what the client does not know of", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.dropReplies(1)
      assert.isTrue(Exit.isFailure(yield* Effect.exit(call(redis, "INCR", "n"))))
      assert.strictEqual(yield* server.command("GET", "n"), "1")
      assert.strictEqual(yield* call(yield* connect(proxy), "INCR", "n"), 2)
    }))

  it.effect("resets each connection that missed a reply, once enough are lost, and no other", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const [bystander, one, other] = [yield* connect(proxy), yield* connect(proxy), yield* connect(proxy)]
      yield* Effect.forEach([bystander, one, other], (redis) => call(redis, "PING"))
      yield* proxy.dropReplies(2)
      const first = yield* Effect.forkChild(call(one, "INCR", "n"), { startImmediately: true })
      yield* until(Effect.map(server.command("GET", "n"), (n) => n === "1"))
      assert.isTrue(yield* isWaiting(first))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(call(other, "INCR", "n"))))
      assert.isTrue(Exit.isFailure(yield* Fiber.await(first)))
      assert.strictEqual(yield* call(bystander, "INCR", "n"), 3)
    }))

  it.effect("resets a connection that missed a reply when healed before enough are lost", () =>
    Effect.gen(function*() {
      const { proxy, server } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.dropReplies(2)
      const incr = yield* Effect.forkChild(call(redis, "INCR", "n"), { startImmediately: true })
      yield* until(Effect.map(server.command("GET", "n"), (n) => n === "1"))
      assert.isTrue(yield* isWaiting(incr))
      yield* proxy.heal
      assert.isTrue(Exit.isFailure(yield* Fiber.await(incr)))
    }))

  it.effect("refuses: cuts what is open, resets what is new, and serves the same port again when healed", () =>
    Effect.gen(function*() {
      const { proxy } = yield* setup
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.refuse
      assert.isTrue(Exit.isFailure(yield* Effect.exit(call(redis, "PING"))))
      assert.strictEqual(yield* ending(proxy), "ECONNRESET")
      assert.strictEqual(yield* proxy.connections, 0)
      yield* proxy.heal
      assert.strictEqual(yield* call(yield* connect(proxy), "PING"), "PONG")
    }))

  it.effect("resets a connection whose server cannot be reached", () =>
    Effect.gen(function*() {
      const proxy = yield* FaultProxy.make({ host: "127.0.0.1", port: yield* RedisServer.freePort })
      assert.strictEqual(yield* ending(proxy), "ECONNRESET")
      yield* until(Effect.map(proxy.connections, (n) => n === 0))
    }))

  it.effect("is gone when its scope closes, in the middle of whatever fault", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      const scope = yield* Scope.make()
      const proxy = yield* Scope.provide(FaultProxy.make(server), scope)
      const redis = yield* connect(proxy)
      yield* call(redis, "PING")
      yield* proxy.blackhole()
      const ping = yield* Effect.forkChild(call(redis, "PING"), { startImmediately: true })
      assert.isTrue(yield* isWaiting(ping))
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(Exit.isFailure(yield* Fiber.await(ping)))
      assert.strictEqual(yield* ending(proxy), "ECONNREFUSED")
      yield* until(Effect.map(proxiedClients, (n) => n === 0))
    }))
})
