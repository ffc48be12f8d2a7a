import * as NodeChildProcessSpawner from "@effect/platform-node/NodeChildProcessSpawner"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodePath from "@effect/platform-node/NodePath"
import * as Config from "effect/Config"
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
import type * as Scope from "effect/Scope"
import * as ScopedRef from "effect/ScopedRef"
import * as Stream from "effect/Stream"
import { Redis } from "ioredis"
import * as Net from "node:net"
import type { Options, Server } from "../RedisServer.ts"
import { monitor } from "./redisMonitor.ts"
import { RedisServerError } from "./redisServerError.ts"

/** @internal */
export const host = "127.0.0.1"

/** The directories of the servers that `pause` has frozen, so that nobody has to wait for what will not come. */
const paused = new Set<string>()

/** @internal */
export const isPaused = ({ dir }: Server): boolean => paused.has(dir)

/** A server as the topologies need it: `ready` is what it prints when it is. */
interface ServerOptions extends Options {
  readonly ready?: string | undefined
}

/** @internal */
export const make = (options: ServerOptions = {}): Effect.Effect<Server, RedisServerError, Scope.Scope> =>
  Effect.flatMap(Layer.build(services), (services) => Effect.provide(makeServer(options), services))

// All of Node's services would each time add a listener to stdin.
const services = Layer.provideMerge(
  NodeChildProcessSpawner.layer,
  Layer.mergeAll(NodeFileSystem.layer, NodePath.layer)
)

const defaultConfig = (port: number, dir: string): ReadonlyArray<string> => [
  `port ${port}`,
  `bind ${host}`,
  `dir "${dir}"`,
  "save \"\"",
  "appendonly no",
  "loglevel notice"
]

const isPortTaken = (error: RedisServerError): boolean => error.reason === "PortTaken"

const makeServer = Effect.fnUntraced(function*(options: ServerOptions): Effect.fn.Return<
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
      ready: options.ready ?? "Ready to accept connections",
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
  const unpaused = Effect.sync(() => void paused.delete(dir))
  yield* Effect.addFinalizer(() => unpaused)
  const kill = Effect.andThen(unpaused, ScopedRef.set(current, Effect.succeed(undefined)))

  const command: Server["command"] = (name, ...args) =>
    Effect.flatMap(running, ({ call }) =>
      Effect.tryPromise({
        try: () => call(name, ...args),
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
    pause: Effect.flatMap(
      Effect.tap(signal("SIGSTOP"), () => Effect.sync(() => paused.add(dir))),
      (pid) =>
        fs.readFileString(`/proc/${pid}/stat`).pipe(
          Effect.repeat({ until: (stat) => /\) [TtZX] /.test(stat) }),
          Effect.ignore
        )
    ),
    resume: Effect.andThen(signal("SIGCONT"), unpaused),
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
  readonly call: (name: string, ...args: ReadonlyArray<string | number>) => Promise<unknown>
}

const startProcess = Effect.fnUntraced(function*(options: {
  readonly binary: string
  readonly args: ReadonlyArray<string>
  readonly dir: string
  readonly port: number
  readonly ready: string
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
        if (output.includes(options.ready)) Deferred.doneUnsafe(ready, Exit.void)
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

  const call = yield* connectAdmin(options.port)
  return { pid: handle.pid, isRunning: handle.isRunning, call }
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

const connectAdmin = Effect.fnUntraced(function*(port: number): Effect.fn.Return<
  Process["call"],
  RedisServerError,
  Scope.Scope
> {
  const unanswered = new Set<(cause: Error) => void>()
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
      // A Sentinel cuts every connection of a server it gives another role; ioredis forgets what it has sent over it.
      redis.on("close", () => {
        for (const fail of unanswered) fail(new Error("the connection was closed before the reply"))
      })
      return redis
    }),
    (redis) => Effect.sync(() => redis.disconnect())
  )
  yield* Effect.tryPromise({
    try: () => admin.connect(),
    catch: (cause) => new RedisServerError({ reason: "NotStarted", message: `No connection to port ${port}`, cause })
  })
  return (name, ...args) =>
    new Promise((resolve, reject) => {
      unanswered.add(reject)
      void admin.call(name, ...args).then(resolve, reject).finally(() => unanswered.delete(reject))
    })
})

/** @internal */
export const freePort: Effect.Effect<number> = Effect.callback((resume) => {
  const probe = Net.createServer()
  probe.on("error", (cause) => resume(Effect.die(cause)))
  probe.listen(0, host, () => {
    const { port } = probe.address() as Net.AddressInfo
    probe.close(() => resume(Effect.succeed(port)))
  })
})
