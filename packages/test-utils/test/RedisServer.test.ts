import { assert, describe, it, layer } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import { RedisServer } from "../src/index.ts"

const isAlive = (pid: number) => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

const eventually = (condition: () => boolean) =>
  Effect.sync(condition).pipe(
    Effect.repeat({ until: (met) => met, schedule: Schedule.spaced("10 millis") }),
    Effect.timeout("30 seconds")
  )

const occupiedPort = Effect.acquireRelease(
  Effect.callback<Net.Server>((resume) => {
    const server = Net.createServer().listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
  }),
  (server) => Effect.sync(() => server.close())
).pipe(Effect.map((server) => (server.address() as Net.AddressInfo).port))

layer(RedisServer.RedisServer.layer(), { excludeTestServices: true })("a shared RedisServer", (it) => {
  it.effect("answers commands, with the version of its binary", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      assert.strictEqual(yield* server.command("PING"), "PONG")
      assert.match(server.version, /^\d+\.\d+\.\d+$/)
      assert.include(String(yield* server.command("INFO", "server")), `_version:${server.version}`)
      assert.include(String(yield* server.command("INFO", "server")), `process_id:${yield* server.pid}`)
      assert.include(yield* server.output, "Ready to accept connections")
    }))

  it.effect("fails typed when a command is refused", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      const error = yield* Effect.flip(server.command("GET"))
      assert.strictEqual(error.reason, "CommandFailed")
      assert.include(error.message, "wrong number of arguments")
    }))

  it.effect("finds all keys of a pattern, beyond one SCAN page", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      const keys = Array.from({ length: 2500 }, (_, i) => `keys:${i}`).toSorted()
      yield* server.command("MSET", "other", 1, ...keys.flatMap((key) => [key, 1]))
      assert.deepStrictEqual(yield* server.keys("keys:*"), keys)
    }))

  it.effect("counts commands, those of scripts included", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      yield* server.command("CONFIG", "RESETSTAT")
      yield* server.command("EVAL", "redis.call('incr', KEYS[1]) return redis.call('incr', KEYS[1])", 1, "n")
      yield* server.command("INCR", "n")
      const stats = yield* server.commandStats
      assert.strictEqual(stats.get("incr"), 3)
      assert.strictEqual(stats.get("eval"), 1)
      assert.isUndefined(stats.get("get"))
    }))

  it.effect("lists clients", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      const [admin, ...others] = yield* server.clients
      assert.strictEqual(admin?.get("name"), "effect-lock-admin")
      assert.strictEqual(admin?.get("laddr"), `127.0.0.1:${server.port}`)
      assert.deepStrictEqual(others, [])
    }))

  describe("monitor", () => {
    it.effect("records every command, in order, from its first to its last", () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.RedisServer
        const recording = yield* server.monitor
        const commands = Array.from({ length: 500 }, (_, i) => ["SET", `k${i}`, `${i}`] as const)
        yield* Effect.forEach(commands, ([name, ...args]) => server.command(name, ...args), { concurrency: 50 })
        assert.deepStrictEqual((yield* recording.all).map(({ command }) => command), commands)
        assert.deepStrictEqual((yield* recording.take).map(({ command }) => command), commands)
        assert.deepStrictEqual(yield* recording.take, [])
      }))

    it.effect("waits for what is still on its way", () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.RedisServer
        const recording = yield* server.monitor
        yield* server.command("EVAL", "for i = 1, 100000 do redis.call('incr', KEYS[1]) end", 1, "n")
        assert.strictEqual((yield* recording.take).length, 100_001)
      }))

    it.effect("tells clients from scripts, and when", () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.RedisServer
        const recording = yield* server.monitor
        yield* server.command("EVAL", "return redis.call('get', KEYS[1])", 1, "k")
        const [script, get, ...rest] = yield* recording.take
        const [admin] = yield* server.clients
        assert.deepStrictEqual(script?.command, ["EVAL", "return redis.call('get', KEYS[1])", "1", "k"])
        assert.strictEqual(script?.source, admin?.get("addr"))
        assert.deepStrictEqual(get?.command, ["get", "k"])
        assert.strictEqual(get?.source, "lua")
        assert.isBelow(Math.abs(Date.now() - get!.time), 60_000)
        assert.deepStrictEqual(rest, [])
      }))

    it.effect("decodes whatever is in an argument", () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.RedisServer
        const recording = yield* server.monitor
        const odd = [
          "",
          " ",
          "\" \"",
          "a\\\"b\\",
          "line\r\nbreak\ttab",
          "\x00\x07\b\x1b",
          "€ 🔒",
          "\\x41",
          "[0 lua] +OK"
        ]
        yield* server.command("RPUSH", ...odd)
        assert.deepStrictEqual((yield* recording.take).map(({ command }) => command), [["RPUSH", ...odd]])
      }))

    it.effect("does not show the markers of another recording", () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.RedisServer
        const one = yield* server.monitor
        const other = yield* server.monitor
        yield* Effect.all([one.take, other.take, one.all], { concurrency: "unbounded" })
        assert.deepStrictEqual(yield* one.all, [])
        assert.deepStrictEqual(yield* other.all, [])
      }))

    it.effect("ends with its scope", () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.RedisServer
        yield* Effect.scoped(server.monitor)
        yield* server.clients.pipe(
          Effect.repeat({ until: (clients) => clients.length === 1, schedule: Schedule.spaced("10 millis") }),
          Effect.timeout("30 seconds")
        )
      }))
  })
})

describe("RedisServer", () => {
  it.live("is gone when its scope closes, even if paused: process and directory", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(RedisServer.make(), scope)
      const pid = yield* server.pid
      assert.isTrue(isAlive(pid))
      assert.isTrue(Fs.existsSync(server.dir))
      yield* server.pause
      yield* Scope.close(scope, Exit.void)
      assert.isFalse(isAlive(pid))
      assert.isFalse(Fs.existsSync(server.dir))
    }))

  it.live("is gone when the process that started it is killed", () =>
    Effect.gen(function*() {
      const program = `
        import * as Effect from "effect/Effect"
        import * as RedisServer from ${JSON.stringify(new URL("../src/RedisServer.ts", import.meta.url).href)}
        await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
          const server = yield* RedisServer.make()
          console.log(JSON.stringify({ pid: yield* server.pid, dir: server.dir }))
          yield* Effect.never
        })))`
      const child = ChildProcess.spawn(process.execPath, ["--input-type=module", "-e", program], {
        cwd: import.meta.dirname,
        stdio: ["ignore", "pipe", "inherit"]
      })
      const line = yield* Effect.callback<string, Error>((resume) => {
        child.stdout.on("data", (data) => resume(Effect.succeed(String(data))))
        child.on("exit", (code) => resume(Effect.fail(new Error(`exited with ${code}`))))
        return Effect.sync(() => child.kill("SIGKILL"))
      })
      const { dir, pid } = JSON.parse(line) as { dir: string; pid: number }
      assert.isTrue(isAlive(pid))
      child.kill("SIGKILL")
      yield* eventually(() => !isAlive(pid) && !Fs.existsSync(dir))
    }))

  it.live("takes another port when the first one was taken meanwhile", () =>
    Effect.gen(function*() {
      const taken = yield* occupiedPort
      const ports = [taken, taken]
      const server = yield* RedisServer.make({
        port: Effect.suspend(() => {
          const port = ports.pop()
          return port === undefined ? RedisServer.freePort : Effect.succeed(port)
        })
      })
      assert.notStrictEqual(server.port, taken)
      assert.strictEqual(yield* server.command("PING"), "PONG")
    }))

  it.live("runs many at a time, each with its own data", () =>
    Effect.gen(function*() {
      const servers = yield* Effect.all(Array.from({ length: 4 }, () => RedisServer.make()), {
        concurrency: "unbounded"
      })
      yield* Effect.forEach(servers, (server) => server.command("INCR", "n"))
      const counts = yield* Effect.forEach(servers, (server) => server.command("GET", "n"))
      assert.deepStrictEqual(counts, ["1", "1", "1", "1"])
    }))

  it.live("says what to install when there is no binary", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(RedisServer.make())
      assert.strictEqual(error.reason, "NotInstalled")
      assert.include(error.message, "Cannot run /nowhere/redis-server. Install Redis")
    }).pipe(
      Effect.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ REDIS_SERVER_BIN: "/nowhere/redis-server" })))
    ))

  it.live("shows the server's output when it does not start", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(RedisServer.make({ config: ["no-such-directive yes"] }))
      assert.strictEqual(error.reason, "NotStarted")
      assert.include(error.message, "no-such-directive")
    }))

  it.live("does not answer while paused, and goes on when resumed", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      yield* server.pause
      const ping = yield* Effect.forkChild(server.command("PING"), { startImmediately: true })
      assert.isTrue(
        yield* Fiber.await(ping).pipe(
          Effect.as(false),
          Effect.timeoutOrElse({ duration: "100 millis", orElse: () => Effect.succeed(true) })
        )
      )
      yield* server.resume
      assert.strictEqual(yield* Fiber.join(ping), "PONG")
    }))

  it.live("fails typed when the connection is cut before the reply, and has another one for the next command", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const blocked = yield* Effect.forkChild(server.command("BLPOP", "nothing", 0), { startImmediately: true })
      yield* Effect.acquireRelease(
        Effect.sync(() => Net.connect(server.port, server.host).end("CLIENT KILL TYPE normal\r\n")),
        (socket) => Effect.sync(() => socket.destroy())
      )
      const error = yield* Effect.flip(Fiber.join(blocked))
      assert.strictEqual(error.reason, "CommandFailed")
      assert.include(error.message, "BLPOP: Error: the connection was closed before the reply")
      assert.strictEqual(yield* server.command("PING"), "PONG")
    }))

  it.live("fails typed when killed, and comes back empty on the same port", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const pid = yield* server.pid
      const recording = yield* server.monitor
      yield* server.command("SET", "k", "v")
      yield* server.kill
      assert.isFalse(isAlive(pid))
      const attempts = [server.command("PING"), server.pause, server.resume, server.pid, recording.all].map(
        Effect.asVoid
      )
      for (const attempt of attempts) {
        assert.strictEqual((yield* Effect.flip(attempt)).reason, "NotRunning")
      }
      yield* server.kill
      yield* server.restart
      assert.notStrictEqual(yield* server.pid, pid)
      assert.strictEqual(yield* server.command("GET", "k"), null)
      assert.include(String(yield* server.command("INFO", "server")), `tcp_port:${server.port}`)
    }))

  it.live("keeps what it was told to persist over a restart, also when it was killed by others", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make({ config: ["appendonly yes", "appendfsync always"] })
      yield* server.command("SET", "k", "v")
      yield* server.restart
      assert.strictEqual(yield* server.command("GET", "k"), "v")
      const pid = yield* server.pid
      process.kill(pid, "SIGKILL")
      yield* eventually(() => !isAlive(pid))
      yield* server.restart
      assert.strictEqual(yield* server.command("GET", "k"), "v")
    }))

  it.live("restarts a paused server", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      yield* server.pause
      yield* server.restart
      assert.strictEqual(yield* server.command("PING"), "PONG")
    }))
})
