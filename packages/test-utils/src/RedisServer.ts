/**
 * A real Redis (or Valkey) server as a scoped resource: its own process, port and directory, gone when the scope closes,
 * however the test ended and whatever it did to the server in between (paused, killed, restarted).
 *
 * The binary is `REDIS_SERVER_BIN` where that is set, else `redis-server`, else `valkey-server` on the `PATH`. The server
 * listens on 127.0.0.1 only, on a port taken from the operating system, and persists nothing unless told to.
 *
 * **Gotchas**
 *
 * Processes and sockets live in real time: use `it.live`, time-outs do not elapse under a `TestClock`. POSIX only.
 *
 * @since 0.1.0
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as ScopedRef from "effect/ScopedRef"
import * as Stream from "effect/Stream"
import { Redis } from "ioredis"
import * as Crypto from "node:crypto"
import * as Net from "node:net"

/**
 * How a server is set up.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /**
   * The server binary. Default: `REDIS_SERVER_BIN`, `redis-server` or `valkey-server`, whichever is found first.
   */
  readonly binary?: string | undefined
  /**
   * Lines of `redis.conf`, after the defaults, so that they win: `["appendonly yes", "maxmemory 10mb"]`.
   */
  readonly config?: ReadonlyArray<string> | undefined
  /**
   * Arguments after the configuration file.
   */
  readonly args?: ReadonlyArray<string> | undefined
  /**
   * Where ports come from, asked again when a port was taken before the server could bind it. Default: `freePort`.
   */
  readonly port?: Effect.Effect<number> | undefined
}

/**
 * A running server and what can be done to it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Server {
  readonly host: string
  /**
   * Stays the same over `restart`.
   */
  readonly port: number
  readonly url: string
  /**
   * The version the binary reports: `"7.0.15"`.
   */
  readonly version: string
  /**
   * The server's directory; what it persists survives `restart`.
   */
  readonly dir: string
  /**
   * The process id of the current process; changes with `restart`.
   */
  readonly pid: Effect.Effect<number, RedisServerError>
  /**
   * What the server printed so far (the last 256 KiB of it), restarts included.
   */
  readonly output: Effect.Effect<string>
  /**
   * Freezes the process (SIGSTOP); it has stopped when this returns. Its sockets stay open and accept connections.
   */
  readonly pause: Effect.Effect<void, RedisServerError>
  /**
   * Lets a paused process go on (SIGCONT).
   */
  readonly resume: Effect.Effect<void, RedisServerError>
  /**
   * Kills the process (SIGKILL) and waits for its end. Does nothing to a server that is down.
   */
  readonly kill: Effect.Effect<void>
  /**
   * Kills the process if it is up, starts a new one on the same port and directory, and waits until it is ready.
   */
  readonly restart: Effect.Effect<void, RedisServerError>
  /**
   * Runs a command over the server's own admin connection and returns the decoded reply.
   *
   * **Gotchas**
   *
   * One connection serves all callers: no blocking commands, no subscriptions, and no answer while paused.
   */
  readonly command: (name: string, ...args: ReadonlyArray<string | number>) => Effect.Effect<unknown, RedisServerError>
  /**
   * All keys that match the pattern (SCAN), sorted.
   */
  readonly keys: (pattern: string) => Effect.Effect<ReadonlyArray<string>, RedisServerError>
  /**
   * Records every command the server executes, from the moment this returns until the scope closes.
   */
  readonly monitor: Effect.Effect<Recording, RedisServerError, Scope.Scope>
  /**
   * Calls per command (`INFO commandstats`), those from scripts included: `get`, `client|list`.
   */
  readonly commandStats: Effect.Effect<ReadonlyMap<string, number>, RedisServerError>
  /**
   * The fields of each connection (`CLIENT LIST`). The admin connection's `name` is `effect-lock-admin`.
   */
  readonly clients: Effect.Effect<ReadonlyArray<ReadonlyMap<string, string>>, RedisServerError>
}

/**
 * A command seen by `Server.monitor`.
 *
 * @category models
 * @since 0.1.0
 */
export interface MonitorEntry {
  /**
   * When it was executed: the server's wall clock, milliseconds with a microsecond fraction.
   */
  readonly time: number
  /**
   * The address of the client, or `"lua"` for a command a script ran.
   */
  readonly source: string
  /**
   * The command and its arguments, as the client spelled them.
   */
  readonly command: ReadonlyArray<string>
}

/**
 * What `Server.monitor` has seen.
 *
 * **Details**
 *
 * Both effects first send a marker through the server and wait until it comes back, so every command the server executed
 * before they were started is included. The markers are not; other commands of the admin connection are.
 *
 * **Gotchas**
 *
 * Redis does not show administrative commands (CONFIG, CLIENT, ACL, ...) to monitors. A recording belongs to one process:
 * when that ends, both effects fail.
 *
 * @category models
 * @since 0.1.0
 */
export interface Recording {
  /**
   * Everything recorded and not taken yet.
   */
  readonly all: Effect.Effect<ReadonlyArray<MonitorEntry>, RedisServerError>
  /**
   * Everything recorded since the last `take`, and forgets it.
   */
  readonly take: Effect.Effect<ReadonlyArray<MonitorEntry>, RedisServerError>
}

/**
 * A server for all tests of a layer.
 *
 * **Example** (A server for a group of tests)
 *
 * ```ts
 * layer(RedisServer.layer())("my store", (it) => {
 *   it.effect("answers", () => RedisServer.use((server) => server.command("PING")))
 * })
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class RedisServer extends Context.Service<RedisServer, Server>()("@effect-lock/test-utils/RedisServer") {
  static layer(options?: Options): Layer.Layer<RedisServer, RedisServerError> {
    return Layer.effect(RedisServer, make(options))
  }
}

/**
 * Starts a server that lives as long as the scope, and waits (at most 20 seconds) until it accepts connections.
 *
 * **Details**
 *
 * Should the test process itself be killed, a watchdog kills the server and removes its directory.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options = {}): Effect.Effect<Server, RedisServerError, Scope.Scope> =>
  Effect.flatMap(Layer.build(NodeServices.layer), (services) => Effect.provide(makeServer(options), services))

/**
 * A port of 127.0.0.1 that was free a moment ago.
 *
 * @category utils
 * @since 0.1.0
 */
export const freePort: Effect.Effect<number> = Effect.callback((resume) => {
  const probe = Net.createServer()
  probe.on("error", (cause) => resume(Effect.die(cause)))
  probe.listen(0, host, () => {
    const { port } = probe.address() as Net.AddressInfo
    probe.close(() => resume(Effect.succeed(port)))
  })
})

/**
 * Something a server could not do.
 *
 * **Details**
 *
 * - `NotInstalled`: no server binary that runs; the message says what to install.
 * - `PortTaken`: another process has the port.
 * - `NotStarted`: the process ended, or was not ready in time; the message has its output.
 * - `NotRunning`: the server was killed, or ended by itself.
 * - `CommandFailed`: the server answered with an error, or the connection broke.
 *
 * @category errors
 * @since 0.1.0
 */
export class RedisServerError
  extends Schema.TaggedError<RedisServerError>("@effect-lock/test-utils/RedisServerError")("RedisServerError", {
    reason: Schema.Literals(["NotInstalled", "PortTaken", "NotStarted", "NotRunning", "CommandFailed"]),
    message: Schema.String,
    cause: Schema.optional(Schema.Defect())
  })
{}

const host = "127.0.0.1"

const defaultConfig = (port: number, dir: string): ReadonlyArray<string> => [
  `port ${port}`,
  `bind ${host}`,
  `dir "${dir}"`,
  "save \"\"",
  "appendonly no",
  "loglevel notice"
]

const isPortTaken = (error: RedisServerError): boolean => error.reason === "PortTaken"

const makeServer = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<
  Server,
  RedisServerError,
  ChildProcessSpawner.ChildProcessSpawner | FileSystem.FileSystem | Scope.Scope
> {
  const fs = yield* FileSystem.FileSystem
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const { binary, version } = yield* findBinary(options.binary)
  const dir = yield* Effect.orDie(fs.makeTempDirectoryScoped({ prefix: "effect-lock-redis-" }))
  const configFile = `${dir}/redis.conf`

  let log = ""
  const start = (port: number) =>
    startProcess({
      binary,
      args: [configFile, ...options.args ?? []],
      dir,
      port,
      onOutput: (text) => {
        log = (log + text).slice(-256 * 1024)
      }
    }).pipe(Effect.provideService(ChildProcessSpawner.ChildProcessSpawner, spawner))

  const current = yield* ScopedRef.make<Process | undefined>(() => undefined)
  const port = yield* Effect.gen(function*() {
    const port = yield* options.port ?? freePort
    yield* Effect.orDie(
      fs.writeFileString(configFile, [...defaultConfig(port, dir), ...options.config ?? [], ""].join("\n"))
    )
    yield* ScopedRef.set(current, start(port))
    return port
  }).pipe(Effect.retry({ while: isPortTaken, times: 20 }))

  const running = Effect.gen(function*() {
    const process = yield* ScopedRef.get(current)
    if (process !== undefined && (yield* Effect.orDie(process.isRunning))) return process
    return yield* new RedisServerError({ reason: "NotRunning", message: "The server is down" })
  })
  const signal = (name: "SIGSTOP" | "SIGCONT") =>
    Effect.flatMap(running, ({ pid }) =>
      Effect.try({
        try: () => {
          process.kill(pid, name)
          return pid
        },
        catch: (cause) => new RedisServerError({ reason: "NotRunning", message: `${name} failed`, cause })
      }))
  const kill = ScopedRef.set(current, Effect.succeed(undefined))

  const command: Server["command"] = (name, ...args) =>
    Effect.flatMap(running, ({ admin }) =>
      Effect.tryPromise({
        try: () => admin.call(name, ...args),
        catch: (cause) => new RedisServerError({ reason: "CommandFailed", message: `${name}: ${String(cause)}`, cause })
      }))
  const text = (name: string, ...args: ReadonlyArray<string>) => Effect.map(command(name, ...args), String)

  return {
    host,
    port,
    url: `redis://${host}:${port}`,
    version,
    dir,
    pid: Effect.map(running, ({ pid }) => pid),
    output: Effect.sync(() => log),
    // A signal may take effect after `kill` returned; where there is no /proc, that has to be taken on trust.
    pause: Effect.flatMap(signal("SIGSTOP"), (pid) =>
      fs.readFileString(`/proc/${pid}/stat`).pipe(
        Effect.repeat({ until: (stat) => /\) [TtZX] /.test(stat) }),
        Effect.ignore
      )),
    resume: Effect.asVoid(signal("SIGCONT")),
    kill,
    restart: Effect.andThen(
      kill,
      ScopedRef.set(current, start(port)).pipe(
        Effect.retry({ while: isPortTaken, schedule: Schedule.spaced("50 millis"), times: 200 })
      )
    ),
    command,
    keys: Effect.fnUntraced(function*(pattern) {
      const found = new Set<string>()
      let cursor = "0"
      do {
        const reply = yield* command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        const [next, keys] = reply as [string, Array<string>]
        for (const key of keys) found.add(key)
        cursor = next
      } while (cursor !== "0")
      return [...found].toSorted()
    }),
    monitor: monitor(port, (marker) => command("ECHO", marker)),
    commandStats: Effect.map(
      text("INFO", "commandstats"),
      (info) =>
        new Map(
          Array.from(info.matchAll(/^cmdstat_([^:]+):calls=(\d+)/gm), ([, name, calls]) => [name!, Number(calls)])
        )
    ),
    clients: Effect.map(
      text("CLIENT", "LIST"),
      (list) =>
        list.trim().split("\n").map((line) =>
          new Map(Array.from(line.matchAll(/(\S+?)=(\S*)/g), ([, field, value]) => [field!, value!]))
        )
    )
  }
})

const findBinary = Effect.fnUntraced(function*(chosen: string | undefined) {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const configured = chosen ??
    Option.getOrUndefined(yield* Effect.orDie(Config.option(Config.String("REDIS_SERVER_BIN"))))
  const candidates = configured === undefined ? ["redis-server", "valkey-server"] : [configured]
  return yield* Effect.firstSuccessOf(
    candidates.map((binary) =>
      spawner.string(ChildProcess.make(binary, ["--version"])).pipe(
        Effect.map((text) => ({ binary, version: /v=([\d.]+)/.exec(text)?.[1] ?? "unknown" }))
      )
    )
  ).pipe(
    Effect.mapError((cause) =>
      new RedisServerError({
        reason: "NotInstalled",
        message: `Cannot run ${candidates.join(" or ")}. Install Redis or Valkey (apt-get install redis-server, ` +
          "brew install redis), or set REDIS_SERVER_BIN to the path of a redis-server or valkey-server binary.",
        cause
      })
    )
  )
})

interface Process extends Pick<ChildProcessSpawner.ChildProcessHandle, "pid" | "isRunning"> {
  readonly admin: Redis
}

const startProcess = Effect.fnUntraced(function*(options: {
  readonly binary: string
  readonly args: ReadonlyArray<string>
  readonly dir: string
  readonly port: number
  readonly onOutput: (text: string) => void
}) {
  const ready = Deferred.makeUnsafe<void>()
  let output = ""

  const handle = yield* ChildProcess.make(options.binary, options.args, {
    cwd: options.dir,
    stdin: "ignore",
    killSignal: "SIGKILL"
  }).pipe(
    Effect.mapError((cause) =>
      new RedisServerError({ reason: "NotInstalled", message: `Cannot run ${options.binary}`, cause })
    )
  )
  // The end of both streams is the end of the process.
  const drained = yield* handle.all.pipe(
    Stream.decodeText(),
    Stream.runForEach((text) =>
      Effect.sync(() => {
        options.onOutput(text)
        if (Deferred.isDoneUnsafe(ready)) return
        output += text
        if (output.includes("Ready to accept connections")) Deferred.doneUnsafe(ready, Exit.void)
      })
    ),
    Effect.forkScoped
  )
  yield* Effect.forkScoped(watchdog(handle, options.dir))

  const notStarted = (what: string) =>
    Effect.suspend(() =>
      Effect.fail(
        new RedisServerError({
          reason: /Address already in use/i.test(output) ? "PortTaken" : "NotStarted",
          message: `${options.binary} ${what}; its output:\n${output}`
        })
      )
    )
  yield* Effect.raceFirst(
    Deferred.await(ready),
    Effect.andThen(Fiber.await(drained), notStarted("ended before it was ready"))
  ).pipe(
    Effect.timeoutOrElse({ duration: "20 seconds", orElse: () => notStarted("was not ready within 20 seconds") })
  )

  const admin = yield* connectAdmin(options.port)
  return { pid: handle.pid, isRunning: handle.isRunning, admin }
})

/**
 * Outlives a test process that was killed: its end closes the pipe the shell reads from.
 */
const watchdog = (handle: ChildProcessSpawner.ChildProcessHandle, dir: string) =>
  ChildProcess.make("sh", ["-c", "read -r _; kill -9 \"$1\"; rm -rf \"$2\"", "sh", String(handle.pid), dir], {
    stdout: "ignore",
    stderr: "ignore",
    killSignal: "SIGKILL"
  }).pipe(
    Effect.andThen(Effect.exit(handle.exitCode)),
    Effect.scoped,
    Effect.ignore
  )

const connectAdmin = Effect.fnUntraced(function*(port: number) {
  const admin = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const redis = new Redis({
        host,
        port,
        protocol: 2,
        connectionName: "effect-lock-admin",
        disableClientInfo: true,
        enableReadyCheck: false,
        lazyConnect: true,
        autoResendUnfulfilledCommands: false,
        maxRetriesPerRequest: 3,
        retryStrategy: () => 20
      })
      redis.on("error", () => {})
      return redis
    }),
    (redis) => Effect.sync(() => redis.disconnect())
  )
  yield* Effect.tryPromise({
    try: () => admin.connect(),
    catch: (cause) => new RedisServerError({ reason: "NotStarted", message: `No connection to port ${port}`, cause })
  })
  return admin
})

const markerPrefix = "effect-lock-marker:"

// A socket of our own: ioredis splits a monitored line wrongly when an argument contains quotes.
const monitor = Effect.fnUntraced(function*(
  port: number,
  send: (marker: string) => Effect.Effect<unknown, RedisServerError>
): Effect.fn.Return<Recording, RedisServerError, Scope.Scope> {
  const active = Deferred.makeUnsafe<void, RedisServerError>()
  const ended = Deferred.makeUnsafe<never, RedisServerError>()
  const markers = new Map<string, Deferred.Deferred<void>>()
  let entries: Array<MonitorEntry> = []

  const onLine = (line: string) => {
    const entry = parseMonitorLine(line)
    if (entry === undefined) {
      Deferred.doneUnsafe(
        active,
        line === "+OK" ? Exit.void : Exit.fail(new RedisServerError({ reason: "CommandFailed", message: line }))
      )
    } else if (entry.command[1]?.startsWith(markerPrefix) === true) {
      const seen = markers.get(entry.command[1])
      if (seen !== undefined) Deferred.doneUnsafe(seen, Exit.void)
    } else {
      entries.push(entry)
    }
  }

  yield* Effect.acquireRelease(
    Effect.sync(() => {
      const socket = Net.connect(port, host)
      const end = (cause?: unknown) => {
        Deferred.doneUnsafe(
          ended,
          Exit.fail(new RedisServerError({ reason: "NotRunning", message: "The monitored server is gone", cause }))
        )
      }
      let rest = ""
      socket.setEncoding("latin1")
      socket.on("data", (chunk: string) => {
        rest += chunk
        if (!chunk.includes("\n")) return
        const lines = rest.split("\r\n")
        rest = lines.pop() ?? ""
        lines.forEach(onLine)
      })
      socket.on("error", end)
      socket.on("close", () => end())
      socket.write("MONITOR\r\n")
      return socket
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )
  yield* Effect.raceFirst(Deferred.await(ended), Deferred.await(active))

  const flush = Effect.suspend(() => {
    const marker = markerPrefix + Crypto.randomUUID()
    const seen = Deferred.makeUnsafe<void>()
    markers.set(marker, seen)
    return Effect.raceFirst(Deferred.await(ended), Effect.andThen(send(marker), Deferred.await(seen))).pipe(
      Effect.ensuring(Effect.sync(() => markers.delete(marker)))
    )
  })
  return {
    all: Effect.map(flush, () => [...entries]),
    take: Effect.map(flush, () => {
      const taken = entries
      entries = []
      return taken
    })
  }
})

// +1700000000.123456 [0 127.0.0.1:50000] "set" "key" "\xe2\x82\xac"
const parseMonitorLine = (line: string): MonitorEntry | undefined => {
  const match = /^\+([\d.]+) \[\d+ (\S+)\] (.*)$/.exec(line)
  return match === null ? undefined : {
    time: Number(match[1]) * 1000,
    source: match[2]!,
    command: Array.from(match[3]!.matchAll(/"((?:[^"\\]+|\\.)*)"/g), ([, quoted]) => unescape(quoted!))
  }
}

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", a: "\x07", b: "\b" }

const unescape = (quoted: string): string =>
  Buffer.from(
    quoted.replace(
      /\\(?:x([0-9a-f]{2})|(.))/g,
      (_, hex: string | undefined, char: string) =>
        hex === undefined ? escapes[char] ?? char : String.fromCharCode(Number.parseInt(hex, 16))
    ),
    "latin1"
  ).toString("utf8")
