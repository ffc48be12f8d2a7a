/**
 * Real Redis (or Valkey) servers as scoped resources, alone or as a Cluster, under Sentinels, or as the independent voters of
 * a quorum: own processes, ports and directories, gone when the scope closes, however the test ended and whatever it did to
 * the servers in between (paused, killed, restarted, failed over).
 *
 * The binary is `REDIS_SERVER_BIN` where that is set, else `redis-server`, else `valkey-server` on the `PATH`. The servers
 * listen on 127.0.0.1 only, on ports taken from the operating system, and persist nothing unless told to.
 *
 * **Gotchas**
 *
 * Processes and sockets live in real time: use `it.live`, time-outs do not elapse under a `TestClock`. POSIX only.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { FaultProxy } from "./FaultProxy.ts"
import * as internalCluster from "./internal/redisCluster.ts"
import * as internalQuorum from "./internal/redisQuorum.ts"
import * as internalSentinel from "./internal/redisSentinel.ts"
import * as internalServer from "./internal/redisServer.ts"
import type { RedisServerError } from "./internal/redisServerError.ts"

export { RedisServerError } from "./internal/redisServerError.ts"

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
 * How a Cluster is set up.
 *
 * **Details**
 *
 * `binary`, `config` and `args` are for every node. The defaults suit tests: replicas attach at once, and may take over
 * however old their data is.
 *
 * @category models
 * @since 0.1.0
 */
export interface ClusterOptions extends Pick<Options, "binary" | "config" | "args"> {
  /**
   * Default 3, which is the fewest that can elect a new master.
   */
  readonly masters?: number | undefined
  /**
   * How many each master has. Default 1.
   */
  readonly replicas?: number | undefined
  /**
   * How long a node may be silent before the others call it failed. Default 1 second.
   */
  readonly nodeTimeout?: Duration.Input | undefined
}

/**
 * A node of a Cluster.
 *
 * @category models
 * @since 0.1.0
 */
export interface ClusterNode extends Server {
  /**
   * Its id in the Cluster, which survives a restart.
   */
  readonly id: string
  /**
   * What the node itself believes to be.
   */
  readonly role: Effect.Effect<"master" | "replica", RedisServerError>
  /**
   * The ranges of slots the node itself believes to serve, both ends included.
   */
  readonly slots: Effect.Effect<ReadonlyArray<readonly [first: number, last: number]>, RedisServerError>
}

/**
 * A running Cluster and what can be done to it.
 *
 * **Details**
 *
 * Whatever waits for the Cluster asks the nodes that answer, and gives up after 20 seconds with `NotStarted`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Cluster {
  /**
   * Masters first. Roles change with each failover.
   */
  readonly nodes: ReadonlyArray<ClusterNode>
  /**
   * What ioredis' `Cluster` wants to know.
   */
  readonly addresses: ReadonlyArray<Address>
  readonly slotOf: (key: string) => Effect.Effect<number, RedisServerError>
  /**
   * The master that serves a key; waits for one while there is none.
   */
  readonly masterOf: (key: string) => Effect.Effect<ClusterNode, RedisServerError>
  /**
   * The replicas of a node that are up, whether or not it is.
   */
  readonly replicasOf: (node: ClusterNode) => Effect.Effect<ReadonlyArray<ClusterNode>, RedisServerError>
  /**
   * Waits until all nodes that answer agree on who serves what, call the Cluster healthy and have their replicas attached.
   */
  readonly settled: Effect.Effect<void, RedisServerError>
  /**
   * Makes a replica the master in this node's place, waits until the Cluster has settled, and returns the new master.
   *
   * **Details**
   *
   * Without a mode both nodes agree on the moment, and nothing is lost. With `"force"` the replica does not ask its
   * master, only the other masters; with `"takeover"` it asks nobody.
   */
  readonly failover: (
    master: ClusterNode,
    mode?: "force" | "takeover"
  ) => Effect.Effect<ClusterNode, RedisServerError>
  /**
   * The steps that move the slot of a key to another master. Nothing is done yet.
   */
  readonly migrateSlot: (key: string, to: ClusterNode) => Effect.Effect<SlotMigration, RedisServerError>
}

/**
 * The move of a slot, step by step: stop anywhere in between.
 *
 * @category models
 * @since 0.1.0
 */
export interface SlotMigration {
  readonly slot: number
  readonly from: ClusterNode
  readonly to: ClusterNode
  /**
   * From here on the old node sends clients on with ASK for what it does not have (any more), and both refuse a command
   * that finds only some of its keys with TRYAGAIN.
   */
  readonly begin: Effect.Effect<void, RedisServerError>
  /**
   * Moves these keys, or all that are left; returns those that were there.
   */
  readonly moveKeys: (keys?: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<string>, RedisServerError>
  /**
   * Gives the slot to the new node, and waits until the Cluster has settled: the old one answers MOVED.
   */
  readonly finish: Effect.Effect<void, RedisServerError>
}

/**
 * How a master, its replicas and its Sentinels are set up.
 *
 * **Details**
 *
 * `binary`, `config` and `args` are for the servers with data, `sentinelConfig` is for the Sentinels.
 *
 * @category models
 * @since 0.1.0
 */
export interface SentinelOptions extends Pick<Options, "binary" | "config" | "args"> {
  /**
   * Default 2.
   */
  readonly replicas?: number | undefined
  /**
   * Default 3; more than half of them must agree on a failover.
   */
  readonly sentinels?: number | undefined
  /**
   * The name of the master. Default `effect-lock`.
   */
  readonly name?: string | undefined
  /**
   * How long the master may be silent before a Sentinel calls it down. Default 1 second.
   */
  readonly downAfter?: Duration.Input | undefined
  /**
   * More lines of `sentinel.conf`.
   */
  readonly sentinelConfig?: ReadonlyArray<string> | undefined
}

/**
 * A master with replicas, watched by Sentinels, and what can be done to them.
 *
 * **Details**
 *
 * Whatever waits gives up after 20 seconds with `NotStarted`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Sentinel {
  /**
   * The servers with data, the first master first. Roles change with each failover.
   */
  readonly servers: ReadonlyArray<Server>
  readonly sentinels: ReadonlyArray<Server>
  /**
   * What ioredis wants to know as `sentinels`.
   */
  readonly addresses: ReadonlyArray<Address>
  /**
   * What ioredis wants to know as `name`.
   */
  readonly name: string
  /**
   * The server that the Sentinels call the master.
   */
  readonly master: Effect.Effect<Server, RedisServerError>
  /**
   * Waits until all Sentinels that answer agree on a healthy master, which all other servers that answer replicate.
   */
  readonly settled: Effect.Effect<void, RedisServerError>
  /**
   * Asks for a failover of a healthy master, waits until it has settled, and returns the new master.
   */
  readonly failover: Effect.Effect<Server, RedisServerError>
}

/**
 * One of the independent servers of a quorum, and a proxy to it whose faults the others do not share.
 *
 * @category models
 * @since 0.1.0
 */
export interface Voter {
  readonly server: Server
  readonly proxy: FaultProxy
}

/**
 * Independent servers that know nothing of each other.
 *
 * @category models
 * @since 0.1.0
 */
export interface Quorum {
  readonly voters: ReadonlyArray<Voter>
}

/**
 * Where a server listens.
 *
 * @category models
 * @since 0.1.0
 */
export interface Address {
  readonly host: string
  readonly port: number
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
 * A Cluster for all tests of a layer.
 *
 * @category services
 * @since 0.1.0
 */
export class RedisCluster extends Context.Service<RedisCluster, Cluster>()("@effect-lock/test-utils/RedisCluster") {}

/**
 * A master with replicas and Sentinels for all tests of a layer.
 *
 * @category services
 * @since 0.1.0
 */
export class RedisSentinel
  extends Context.Service<RedisSentinel, Sentinel>()("@effect-lock/test-utils/RedisSentinel")
{}

/**
 * The voters of a quorum for all tests of a layer.
 *
 * @category services
 * @since 0.1.0
 */
export class RedisQuorum extends Context.Service<RedisQuorum, Quorum>()("@effect-lock/test-utils/RedisQuorum") {}

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
export const make: (options?: Options) => Effect.Effect<Server, RedisServerError, Scope.Scope> = internalServer.make

/**
 * Starts a Cluster that lives as long as the scope; it has settled when this returns, after about two seconds.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeCluster: (options?: ClusterOptions) => Effect.Effect<Cluster, RedisServerError, Scope.Scope> =
  internalCluster.make

/**
 * Starts a master, its replicas and its Sentinels, which live as long as the scope; they have settled when this returns.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeSentinel: (options?: SentinelOptions) => Effect.Effect<Sentinel, RedisServerError, Scope.Scope> =
  internalSentinel.make

/**
 * Starts `n` independent servers, each with a proxy, which live as long as the scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeQuorum: (n: number, options?: Options) => Effect.Effect<Quorum, RedisServerError, Scope.Scope> =
  internalQuorum.make

/**
 * `makeCluster` as a layer.
 *
 * **Example** (A Cluster for a group of tests)
 *
 * ```ts
 * layer(RedisServer.cluster({ masters: 3, replicas: 1 }))("my store", (it) => {
 *   it.effect("survives a failover", () =>
 *     Effect.gen(function*() {
 *       const cluster = yield* RedisServer.RedisCluster
 *       yield* cluster.failover(yield* cluster.masterOf("key"))
 *     }))
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const cluster = (options?: ClusterOptions): Layer.Layer<RedisCluster, RedisServerError> =>
  Layer.effect(RedisCluster, makeCluster(options))

/**
 * `makeSentinel` as a layer.
 *
 * @category layers
 * @since 0.1.0
 */
export const sentinel = (options?: SentinelOptions): Layer.Layer<RedisSentinel, RedisServerError> =>
  Layer.effect(RedisSentinel, makeSentinel(options))

/**
 * `makeQuorum` as a layer.
 *
 * @category layers
 * @since 0.1.0
 */
export const quorum = (n: number, options?: Options): Layer.Layer<RedisQuorum, RedisServerError> =>
  Layer.effect(RedisQuorum, makeQuorum(n, options))

/**
 * A port of 127.0.0.1 that was free a moment ago.
 *
 * @category utils
 * @since 0.1.0
 */
export const freePort: Effect.Effect<number> = internalServer.freePort
