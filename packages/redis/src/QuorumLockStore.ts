/**
 * The lock store on several independent servers: a lease is what a majority of them has voted for. Any minority may be down,
 * frozen or cut off, and locks go on; no replication is involved, so there is nothing that a failover could lose.
 *
 * **When to use**
 *
 * Use `layer` with three or five servers that share nothing, where a lock must survive the loss of a server without a
 * failover. Use `layerKeyMajority` to keep a lock in several keys of one deployment, spread over the nodes of a Cluster.
 * `RedisLockStore` is faster, fair, and also has semaphores.
 *
 * **Details**
 *
 * A lock costs one round trip to all voters at once, and is granted as soon as a majority has voted for it. Where counters
 * of voters differ, a second round trip makes sure that the fencing token is greater than every earlier one: tokens are
 * unique and grow, whatever clocks do, for as long as voters keep their memory. A voter that restarted gives no votes until
 * every lease it may have forgotten has run out.
 *
 * **Gotchas**
 *
 * Order among waiters is not promised, only progress. There are no permits: votes of a majority make a mutex. Use the same
 * voters, `keyPrefix`, `maxTtl` and `slack` in every client.
 *
 * @since 0.1.0
 */
import type * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { Cluster, Redis, RedisOptions } from "ioredis"
import * as Crypto from "node:crypto"
import * as MemoryLoss from "./internal/memoryLoss.ts"
import { address, driftFactor, invalid, keyPrefix, millis, resolve } from "./internal/options.ts"
import * as ballots from "./internal/quorumBallot.ts"
import * as QuorumStore from "./internal/quorumStore.ts"
import * as voters from "./internal/quorumVoter.ts"
import * as Tracking from "./internal/tracking.ts"
import * as RedisClient from "./RedisClient.ts"
import type * as RedisLockStore from "./RedisLockStore.ts"

/**
 * How a quorum is asked. Every option has a default.
 *
 * @category models
 * @since 0.1.0
 */
export interface QuorumOptions {
  /** What every key and channel begins with; a colon follows. No braces, not empty. Default `effect-lock`. */
  readonly keyPrefix?: string | undefined
  /**
   * How long one voter is waited for. One that did not answer in time is not waited for again until it does. Default 500
   * milliseconds.
   */
  readonly voterTimeout?: Duration.Input | undefined
  /** By how much the voters' clocks may run faster than ours, as a part of a ttl. Default 0.01. */
  readonly driftFactor?: number | undefined
  /**
   * When a waiter asks again; cut short by a push when the key is released. A schedule that ends makes the acquisition
   * fail. Default after 50 to 150 milliseconds, at random, for ever.
   */
  readonly retry?: Schedule.Schedule<unknown> | undefined
  /** Whether releases are pushed to those who wait. Default true. */
  readonly push?: boolean | undefined
  /**
   * Whether a holder is told at once that somebody else has deleted its key at a voter: by `DEL`, `FLUSHALL`, eviction. It
   * then renews at once, which heals a minority, and ends a lease that has lost its majority. Otherwise its next renewal
   * finds out. It costs one small read at each voter for a lease that is held for longer than 50 milliseconds, and one for
   * each renewal. Default true, which means where the server can: from Redis 6 on, not on a Cluster, not over a borrowed
   * client, not without `push`, and not if the user may not use `CLIENT TRACKING` or `SUBSCRIBE __redis__:invalidate`.
   */
  readonly tracking?: boolean | undefined
  /** The longest ttl allowed, and so for how long a lost lease may be in somebody's hands. Default 1 minute. */
  readonly maxTtl?: Duration.Input | undefined
  /**
   * By how much the clocks of voters may differ, a restart may be counted wrongly, and a replaced master of a Cluster may
   * vote later than its successor. Default 5 seconds.
   */
  readonly slack?: Duration.Input | undefined
  /**
   * Whether a voter that restarted, or was replaced by a replica, gives no votes for `maxTtl` and `slack`: it may have
   * forgotten some. Without, every voter has to persist every write (`appendfsync always`), and a key majority must not fail
   * over. Needs `INFO` to be allowed in scripts. Default true.
   */
  readonly quarantine?: boolean | undefined
  /**
   * Whether voters of which none knows that it was ever used count as new, so that nobody waits at first use. If false, they
   * vote when they have been up for `maxTtl` and `slack`. Default true.
   *
   * **Gotchas**
   *
   * When all voters lose their memory at the same time, and a new client finds them before any old one, that looks like first
   * use, too.
   */
  readonly assumeFresh?: boolean | undefined
  /** How long waiters bear that no majority answers before they fail. Default 30 seconds. */
  readonly outageTolerance?: Duration.Input | undefined
}

/**
 * One server of a quorum: where it is, or a client that the application has already, and that stays open.
 *
 * @category models
 * @since 0.1.0
 */
export interface Voter {
  /** How errors and logs call it. Default host and port. */
  readonly name?: string | undefined
  /** `redis://user:password@host:port/db`, or `rediss://` for TLS. Default `redis://127.0.0.1:6379`. */
  readonly url?: string | Redacted.Redacted | undefined
  /** What else ioredis is told: TLS, credentials, names. Retries and time-outs are the store's own. */
  readonly options?: RedisOptions | undefined
  /** Instead of `url` and `options`. */
  readonly client?: Redis | undefined
}

/**
 * The servers of a quorum, and how they are asked.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends QuorumOptions {
  /** An odd number of servers that share nothing: three bear the loss of one, five of two. */
  readonly voters: ReadonlyArray<Voter>
}

/**
 * The deployment whose keys vote, and how they are asked.
 *
 * @category models
 * @since 0.1.0
 */
export interface KeyMajorityOptions extends QuorumOptions {
  /** How many of `2 · majority - 1` keys make a lease. */
  readonly majority: number
  /** A Cluster, over whose nodes the keys of a lock are spread. Instead of `url` and `options`. */
  readonly cluster?: RedisLockStore.ClusterAddress | undefined
  /** A client that the application has already, and that stays open. Instead of all others. */
  readonly client?: Redis | Cluster | undefined
  /** `redis://user:password@host:port/db`, or `rediss://` for TLS. */
  readonly url?: string | Redacted.Redacted | undefined
  /** What else ioredis is told: TLS, credentials, names. Retries and time-outs are the store's own. */
  readonly options?: RedisOptions | undefined
}

/**
 * A store on a majority of independent servers.
 *
 * **Details**
 *
 * The layer fails with `LockStoreError` when no majority can be reached; voters that are missing then are connected when
 * they come. An acquisition that fails because too few voters answered tells the outcome of each in `detail`.
 *
 * **Example** (Three servers)
 *
 * ```ts
 * import { Lock } from "@effect-lock/core"
 * import { QuorumLockStore } from "@effect-lock/redis"
 * import { Layer } from "effect"
 *
 * const StoreLive = QuorumLockStore.layer({
 *   voters: [{ url: "redis://one:6379" }, { url: "redis://two:6379" }, { url: "redis://three:6379" }]
 * })
 * export const LockLive = Lock.layer({ ttl: "30 seconds" }).pipe(Layer.provide(StoreLive))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options
): Layer.Layer<LockStore.LockStore, LockError.LockStoreError | LockError.LockInvalid> =>
  Layer.effect(LockStore.LockStore, make(options))

/**
 * `layer` with its options read from configuration.
 *
 * **Example** (Voters from the environment)
 *
 * ```ts
 * import { QuorumLockStore } from "@effect-lock/redis"
 * import { Config } from "effect"
 *
 * export const StoreLive = QuorumLockStore.layerConfig({
 *   voters: Config.map(Config.String("LOCK_VOTERS"), (urls) => urls.split(",").map((url) => ({ url }))),
 *   maxTtl: Config.Duration("LOCK_MAX_TTL").pipe(Config.withDefault("1 minute"))
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<LockStore.LockStore, LockError.LockStoreError | LockError.LockInvalid | Config.ConfigError> =>
  Layer.effect(LockStore.LockStore, Effect.flatMap(Config.unwrap(options), make))

/**
 * A store on a majority of the keys `prefix:0:key`, `prefix:1:key` and so on, of one server or Cluster.
 *
 * **Details**
 *
 * On a Cluster the keys of a lock lie in different slots, so that mostly a failover takes only some of them. The server that
 * was promoted may have forgotten votes, and gives none for `maxTtl` and `slack`; meanwhile the keys elsewhere have to make
 * the majority.
 *
 * **Gotchas**
 *
 * On one server this bears the loss of keys, not that of the server. Keys that are deleted are forgotten: of those of one
 * lock, a minority at a time.
 *
 * **Example** (Two of three keys)
 *
 * ```ts
 * import { QuorumLockStore } from "@effect-lock/redis"
 *
 * export const StoreLive = QuorumLockStore.layerKeyMajority({ url: "redis://127.0.0.1:6379", majority: 2 })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerKeyMajority = (
  options: KeyMajorityOptions
): Layer.Layer<LockStore.LockStore, LockError.LockStoreError | LockError.LockInvalid> =>
  Layer.effect(LockStore.LockStore, makeKeyMajority(options))

interface Settings extends QuorumStore.Settings, ballots.Settings, voters.Settings {
  readonly keyPrefix: string
  readonly tracking: boolean
}

const make = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<LockStore.LockStore["Service"], LockError.LockStoreError | LockError.LockInvalid, Scope.Scope> {
  const settings = yield* resolve(() => settingsOf("redis-quorum", options))
  const all = yield* resolve(() =>
    checkVoters(options.voters).map((voter) => new voters.ServerVoter(voter.name, settings.keyPrefix))
  )
  const optionsOf = (voter: voters.ServerVoter) => options.voters[all.indexOf(voter)]!
  const tracked = all.filter((voter) => optionsOf(voter).client === undefined)
  return yield* makeStore(settings, all, tracked, (listen, doubt) =>
    Clock.clockWith((clock) =>
      voters.connect(
        all,
        (voter) => connectTo(optionsOf(voter), settings.commandTimeout),
        (voter, client, version) => listen([voter], client, version, () => voter.recheck()),
        doubt,
        settings,
        clock
      )
    ))
})

const makeKeyMajority = Effect.fnUntraced(function*(
  options: KeyMajorityOptions
): Effect.fn.Return<LockStore.LockStore["Service"], LockError.LockStoreError | LockError.LockInvalid, Scope.Scope> {
  const settings = yield* resolve(() => {
    const { majority } = options
    if (!(Number.isInteger(majority) && majority >= 1 && majority <= 50)) {
      throw invalid("majority", majority, "a whole number from 1 to 50: a lease takes so many of 2 · majority - 1 keys")
    }
    address(options.url)
    return settingsOf("redis-key-majority", options)
  })
  let client: RedisClient.RedisClient | undefined
  // No voter is a server of its own, so none of them can be down alone.
  const all = Array.from({ length: 2 * options.majority - 1 }, (_, i): ballots.Voter => ({
    name: `key ${i}`,
    mark: undefined,
    keyOf: (key) => `${settings.keyPrefix}:${i}:${key}`,
    run: (...call) => Effect.suspend(() => client!.run(...call)),
    list: (begin) => Effect.suspend(() => client!.scan(`${RedisClient.escapeGlob(begin)}*`)),
    trouble: undefined,
    recovered: Effect.void,
    suspect: () => {}
  }))
  const tracked = options.client === undefined && options.cluster === undefined ? all : []
  return yield* makeStore(settings, all, tracked, (listen) =>
    Effect.gen(function*() {
      client = yield* connectTo(options, settings.commandTimeout)
      const version = yield* voters.checkServer("Redis", client)
      if (settings.quarantine > 0) {
        const memoryLoss = yield* MemoryLoss.make(client, {
          ...settings,
          // Not that of `lockDelay`, which knows of no `maxTtl`.
          keyPrefix: `${settings.keyPrefix}:keys`,
          longestTtl: settings.maxTtl,
          option: "quarantine"
        })
        yield* memoryLoss.start
        client = memoryLoss.client
      }
      yield* listen(all, client, version, () => {})
    }))
})

/** Hears what voters on one connection tell: of releases, of take-overs, and where they are tracked, of deleted keys. */
type Listen = (
  from: ReadonlyArray<ballots.Voter>,
  client: RedisClient.RedisClient,
  version: number,
  onReconnect: () => void
) => Effect.Effect<void, LockError.LockStoreError, Scope.Scope>

const makeStore = Effect.fnUntraced(function*(
  settings: Settings,
  all: ReadonlyArray<ballots.Voter>,
  tracked: ReadonlyArray<ballots.Voter>,
  connect: (listen: Listen, doubt: () => void) => Effect.Effect<void, LockError.LockStoreError, Scope.Scope>
): Effect.fn.Return<LockStore.LockStore["Service"], LockError.LockStoreError, Scope.Scope> {
  const clientId = Crypto.randomUUID().replaceAll("-", "")
  // Closed last: what is still under way needs the connections.
  const connections = yield* Effect.flatMap(Scope.Scope, Scope.fork)
  const electorate = yield* ballots.makeElectorate({ clientId, voters: all, settings })
  const store = yield* QuorumStore.make(electorate, settings)
  const clients = new Map<ballots.Voter, RedisClient.RedisClient>()
  const trackings = new Map<ballots.Voter, Tracking.Tracking>()
  for (const voter of settings.tracking ? tracked : []) {
    const look = (hash: string, holderIds: ReadonlyArray<string>) =>
      Effect.map(clients.get(voter)!.commandTracked("hmget", hash, "i"), (reply) => {
        const [votedFor] = reply as ReadonlyArray<string | null>
        return holderIds.filter((id) => id !== votedFor)
      })
    trackings.set(voter, yield* Tracking.make(voter.keyOf, look, store.doubt, electorate.clock))
  }
  const listen: Listen = (from, client, version, onReconnect) => {
    if (settings.inbox === "") return Effect.void
    const trackers = version < 6 ? [] : from.flatMap((voter) => trackings.get(voter) ?? [])
    for (const voter of from) clients.set(voter, client)
    return client.subscribe(
      settings.inbox + clientId,
      (message) => store.receive(from, message),
      onReconnect,
      trackers.length === 0 ? undefined : {
        onStart: () => trackers.forEach((tracker) => tracker.onStart()),
        onChange: (key) => trackers.forEach((tracker) => tracker.onChange(key))
      }
    )
  }
  yield* Scope.provide(connect(listen, () => store.doubt()), connections)
  return trackings.size === 0 ? store.service : Tracking.observe(store.service, Array.from(trackings.values()))
})

const connectTo = (
  { client, cluster, options = {}, url }: Pick<KeyMajorityOptions, "client" | "cluster" | "options" | "url">,
  commandTimeout: number
): Effect.Effect<RedisClient.RedisClient, LockError.LockStoreError, Scope.Scope> =>
  client !== undefined
    ? RedisClient.fromConnection(client, commandTimeout)
    : cluster === undefined
    ? RedisClient.make(address(url), options, commandTimeout)
    : RedisClient.makeCluster(cluster.nodes, cluster.options ?? {}, commandTimeout)

const checkVoters = (given: ReadonlyArray<Voter>): ReadonlyArray<{ readonly name: string }> => {
  if (given.length === 0) throw invalid("voters", "[]", "name at least one server, better three or five")
  const named = given.map((voter) => ({ name: voter.name ?? addressOf(voter) }))
  for (const [i, { name }] of named.entries()) {
    if (named.findIndex((other) => other.name === name) !== i) {
      throw invalid("voters", name, "every voter is a server of its own, with a name of its own")
    }
  }
  return named
}

/** Never the credentials. */
const addressOf = ({ client, options, url }: Voter): string => {
  const text = client === undefined ? address(url) : undefined
  if (text !== undefined && URL.canParse(text)) {
    const { hostname, port } = new URL(text)
    return `${hostname}:${port === "" ? 6379 : port}`
  }
  const { host = "127.0.0.1", path, port = 6379 } = client?.options ?? options ?? {}
  return path ?? `${host}:${port}`
}

const settingsOf = (name: string, options: QuorumOptions): Settings => {
  const { push = true, tracking = true } = options
  const prefix = keyPrefix(options.keyPrefix)
  const maxTtl = millis("maxTtl", options.maxTtl ?? 60_000)
  const slack = millis("slack", options.slack ?? 5000)
  const voterTimeout = millis("voterTimeout", options.voterTimeout ?? 500)
  const quarantine = options.quarantine ?? true
  return {
    name,
    keyPrefix: prefix,
    voterTimeout,
    // Also the time for a connection to be made, and until a hanging one is given up.
    commandTimeout: Math.max(2000, 2 * voterTimeout),
    driftFactor: driftFactor(options.driftFactor),
    retry: options.retry ?? defaultRetry,
    outageTolerance: millis("outageTolerance", options.outageTolerance ?? 30_000),
    maxTtl,
    slack,
    retention: maxTtl + slack,
    quarantine: quarantine ? maxTtl + slack : 0,
    assumeFresh: options.assumeFresh ?? true,
    inbox: push ? `${prefix}:inbox:` : "",
    tracking: tracking && push
  }
}

const defaultRetry = Schedule.spaced(0).pipe(Schedule.modifyDelay(() => Random.nextBetween(50, 150)))
