/**
 * The lock store on Redis or Valkey, version 5 and up: leases, fencing tokens and the queue of waiters live on the server,
 * changed by small scripts on the server's clock.
 *
 * **Details**
 *
 * An uncontended lock costs one script call to acquire and one to release. A waiter costs one more call to queue; the
 * release before it grants to it in the same step and pushes the grant. All waiters of a client share one subscriber
 * connection, and one heartbeat for each key.
 *
 * **Gotchas**
 *
 * A single server keeps its promises for as long as it keeps its memory and its clock does not jump. After a restart
 * without persistence two holders are possible until the older one's deadline, unless `lockDelay` is on. On a Cluster and
 * under Sentinels it is: after a failover nothing is granted until the leases that it may have lost have run out. Where two
 * holders would be a disaster, let the resource compare fencing tokens.
 *
 * A failover of a Cluster or under Sentinels is borne by holders for as long as their ttl lasts, by waiters for
 * `outageTolerance`, and by whoever asks for the first time for `commandTimeout`. So is the time in which a slot of a
 * Cluster is on its way to another node: until all keys of a lock have arrived, neither node can serve them.
 *
 * @since 0.1.0
 */
import * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { Cluster, ClusterNode, ClusterOptions, Redis, RedisOptions } from "ioredis"
import * as Crypto from "node:crypto"
import * as Os from "node:os"
import * as MemoryLoss from "./internal/memoryLoss.ts"
import { address, driftFactor, invalid, keyPrefix, millis, resolve as read } from "./internal/options.ts"
import * as Replication from "./internal/replication.ts"
import * as scripts from "./internal/scripts.ts"
import * as Tracking from "./internal/tracking.ts"
import * as WaitingRoom from "./internal/waitingRoom.ts"
import * as RedisClient from "./RedisClient.ts"

/**
 * How a store uses its server. Every option has a default.
 *
 * @category models
 * @since 0.1.0
 */
export interface StoreOptions {
  /** What every key and channel begins with; a colon follows. No braces, not empty. Default `effect-lock`. */
  readonly keyPrefix?: string | undefined
  /** How long one command may take, connecting and queueing included. Default 2 seconds. */
  readonly commandTimeout?: Duration.Input | undefined
  /**
   * How often a client with waiters shows for each key that it is alive. A dead waiter is passed over after three of
   * these. At most 20 seconds. Default 2 seconds.
   */
  readonly heartbeat?: Duration.Input | undefined
  /**
   * Whether grants are pushed over a subscriber connection. Without, waiters ask every `pollInterval`. Default true.
   */
  readonly push?: boolean | undefined
  /**
   * Whether a holder is told at once that its key was deleted by somebody else: by `DEL`, `FLUSHALL`, eviction. Otherwise its
   * next renewal finds out. It costs one small read for a lease that is held for longer than 50 milliseconds, and one for
   * each renewal. Default true, which means where the server can: from Redis 6 on, not on a Cluster, not over a borrowed
   * client, not without `push`, and not if the user may not use `CLIENT TRACKING` or `SUBSCRIBE __redis__:invalidate`.
   */
  readonly tracking?: boolean | undefined
  /** How often a client asks for each key with waiters when `push` is off. Default 100 milliseconds. */
  readonly pollInterval?: Duration.Input | undefined
  /** How long waiters bear a server that does not answer before they fail. Default 30 seconds. */
  readonly outageTolerance?: Duration.Input | undefined
  /** By how much the server's clock may run faster than ours, as a part of a ttl. Default 0.01. */
  readonly driftFactor?: number | undefined
  /**
   * Whether a server that restarted, or a replica that was promoted, grants nothing new until every lease it may have
   * forgotten has run out: for the longest ttl on record, at least `longestTtl`, and `slack`. Leases it knows of are renewed
   * and released meanwhile, waiters are queued and enter afterwards, and who does not wait fails with `LockStoreError`
   * (`Refused`, `limitName` `lockDelay`), as does who adopts a ticket from before. `Lock.takeover` is not held back. Default
   * true on a Cluster and under Sentinels, whose failover can lose the last writes, else false.
   *
   * **Gotchas**
   *
   * Needs `INFO` to be allowed in scripts; the layer fails with `Refused` where it is not. Every client of a server needs
   * the same setting: who has it off grants during the delay, and hands over to waiters. A Cluster has to allow scripts
   * keys of several slots of one node, as Redis and Valkey do.
   */
  readonly lockDelay?: boolean | undefined
  /**
   * Whether a server on which `lockDelay` has left no mark counts as new, so that nobody waits at first use. If false, it
   * grants once it has been up for `longestTtl` and `slack`. Default true.
   *
   * **Gotchas**
   *
   * A server that lost all its memory looks new to a client that has not seen it before.
   */
  readonly assumeFresh?: boolean | undefined
  /**
   * The longest ttl that is in use, for what the record of the server misses: it may be lost together with the first lease
   * that was longer. At most 24 days. Default 30 seconds, as that of `Lock`.
   */
  readonly longestTtl?: Duration.Input | undefined
  /** By how much later than its successor a replaced server may still grant. Default 5 seconds. */
  readonly slack?: Duration.Input | undefined
  /**
   * How many replicas have to confirm a grant or a renewal before it counts. One that too few confirm in time is taken back
   * and fails with `LockStoreError` (`Timeout`, `limitName` `replicas.timeout`); a holder whose renewals too few confirm loses its
   * lease at its deadline. Not on a Cluster. Default: none is waited for.
   *
   * **Gotchas**
   *
   * Only with as many `acks` as there are replicas, whichever is promoted has the lease. Costs another round trip, and one
   * to the replicas, over a third connection.
   */
  readonly replicas?: Replicas | undefined
}

/**
 * How many replicas have to confirm a grant, and in what time.
 *
 * @category models
 * @since 0.1.0
 */
export interface Replicas {
  /** At least so many replicas, one or more. */
  readonly acks: number
  /** How long they are waited for. At most 20 seconds. Default 1 second. */
  readonly timeout?: Duration.Input | undefined
}

/**
 * Where the server is, and how the store uses it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options extends StoreOptions {
  /** `redis://user:password@host:port/db`, or `rediss://` for TLS. Default `redis://127.0.0.1:6379`. */
  readonly url?: string | Redacted.Redacted | undefined
  /**
   * What else ioredis is told: TLS, credentials, names, and `sentinels` with the `name` of a master. Retries and time-outs
   * are the store's own.
   */
  readonly options?: RedisOptions | undefined
  /** A Cluster, instead of `url` and `options`. */
  readonly cluster?: ClusterAddress | undefined
}

/**
 * Where a Cluster is.
 *
 * @category models
 * @since 0.1.0
 */
export interface ClusterAddress {
  /** Some of its nodes, from which it learns of the others: `{ host, port }` or `redis://host:port`. */
  readonly nodes: ReadonlyArray<ClusterNode>
  /**
   * What else ioredis is told: `redisOptions` with TLS and credentials, `natMap`, `dnsLookup`. Retries, redirections,
   * pipelining and time-outs are the store's own.
   */
  readonly options?: ClusterOptions | undefined
}

/**
 * A store with connections of its own: one for commands, one for pushes, both closed with the layer. On a Cluster, one for
 * commands to each master.
 *
 * **Details**
 *
 * The layer fails with `LockStoreError` when the server cannot be reached, is older than version 5, or does not allow
 * scripts or subscriptions. It warns when the server may evict keys under memory pressure.
 *
 * **Example** (The memory store's program on Redis)
 *
 * ```ts
 * import { Lock } from "@effect-lock/core"
 * import { RedisLockStore } from "@effect-lock/redis"
 * import { Layer } from "effect"
 *
 * export const LockLive = Lock.layer({ ttl: "30 seconds" }).pipe(
 *   Layer.provide(RedisLockStore.layer({ url: "redis://127.0.0.1:6379" }))
 * )
 * ```
 *
 * **Example** (On a Cluster, and under Sentinels)
 *
 * ```ts
 * import { RedisLockStore } from "@effect-lock/redis"
 *
 * export const ClusterLive = RedisLockStore.layer({
 *   cluster: { nodes: [{ host: "redis-1", port: 6379 }, { host: "redis-2", port: 6379 }] }
 * })
 *
 * export const SentinelLive = RedisLockStore.layer({
 *   options: { sentinels: [{ host: "sentinel-1", port: 26379 }, { host: "sentinel-2", port: 26379 }], name: "main" }
 * })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: Options = {}
): Layer.Layer<LockStore.LockStore | LockStore.PermitStore, LockError.LockStoreError | LockError.LockInvalid> =>
  Layer.effectContext(Effect.map(make(options), provided))

/**
 * `layer` with its options read from configuration.
 *
 * **Example** (From the environment)
 *
 * ```ts
 * import { RedisLockStore } from "@effect-lock/redis"
 * import { Config } from "effect"
 *
 * export const StoreLive = RedisLockStore.layerConfig({ url: Config.Redacted("REDIS_URL") })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: Config.Wrap<Options>
): Layer.Layer<
  LockStore.LockStore | LockStore.PermitStore,
  LockError.LockStoreError | LockError.LockInvalid | Config.ConfigError
> => Layer.effectContext(Effect.map(Effect.flatMap(Config.unwrap(options), make), provided))

/**
 * A store on an ioredis client that the application has already, and that stays open. Only the connection for pushes is the
 * store's own.
 *
 * **Gotchas**
 *
 * The client's retries, key prefix and offline queue stay as they are. A `keyPrefix` of the client itself comes before the
 * store's.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerClient = (
  client: Redis | Cluster,
  options: StoreOptions = {}
): Layer.Layer<LockStore.LockStore | LockStore.PermitStore, LockError.LockStoreError | LockError.LockInvalid> =>
  Layer.effectContext(
    Effect.flatMap(resolve(options, client.isCluster), (settings) =>
      Effect.flatMap(
        RedisClient.fromConnection(client, settings.commandTimeout),
        (redis) => Effect.map(makeStore(redis, settings), provided)
      ))
  )

const provided = (
  store: LockStore.PermitStore["Service"]
): Context.Context<LockStore.LockStore | LockStore.PermitStore> =>
  Context.make(LockStore.LockStore, store).pipe(Context.add(LockStore.PermitStore, store))

interface Settings extends WaitingRoom.Settings, MemoryLoss.Settings {
  readonly push: boolean
  readonly tracking: boolean
  readonly driftFactor: number
  /** Undefined: where a failover can lose a grant. */
  readonly lockDelay: boolean | undefined
  readonly replicas: Replication.Settings | undefined
}

const make = (
  options: Options
): Effect.Effect<LockStore.PermitStore["Service"], LockError.LockStoreError | LockError.LockInvalid, Scope.Scope> =>
  Effect.flatMap(
    resolve(options, options.cluster !== undefined),
    (settings) => Effect.flatMap(open(options, settings), (redis) => makeStore(redis, settings))
  )

const open = Effect.fnUntraced(function*(
  options: Options,
  settings: Settings
): Effect.fn.Return<RedisClient.RedisClient, LockError.LockStoreError | LockError.LockInvalid, Scope.Scope> {
  const { cluster } = options
  if (cluster === undefined) {
    const url = yield* read(() => address(options.url))
    return yield* RedisClient.make(url, options.options ?? {}, settings.commandTimeout)
  }
  if ((options.url ?? options.options) !== undefined) {
    return yield* Effect.fail(invalid("cluster", "with url or options", "a Cluster has nodes and options of its own"))
  }
  if (cluster.nodes.length === 0) return yield* Effect.fail(invalid("cluster.nodes", "[]", "name at least one node"))
  return yield* RedisClient.makeCluster(cluster.nodes, cluster.options ?? {}, settings.commandTimeout)
})

const makeStore = Effect.fnUntraced(function*(
  client: RedisClient.RedisClient,
  settings: Settings
): Effect.fn.Return<LockStore.PermitStore["Service"], LockError.LockStoreError, Scope.Scope> {
  const memoryLoss = settings.lockDelay ?? client.failsOver ? yield* MemoryLoss.make(client, settings) : undefined
  const redis = memoryLoss?.client ?? client
  const clock = yield* Clock.clockWith(Effect.succeed)
  const clientId = Crypto.randomUUID().replaceAll("-", "")
  const channels = `${settings.keyPrefix}:inbox:`
  const identity = { host: Os.hostname(), pid: String(process.pid) }
  const now = () => LockStore.nowUnsafe(clock)

  const keysOf = (key: string): ReadonlyArray<string> => {
    const hash = `${settings.keyPrefix}:{${encode(key)}}`
    return [hash, `${hash}:queue`, `${hash}:waiters`, `${hash}:clients`]
  }

  const listeners = new Set<(news: LockStore.News) => void>()
  const tell = (news: LockStore.News): void => {
    for (const listener of listeners) listener(news)
  }

  const version = yield* checkServer(redis, keysOf("startup"), channels + clientId, memoryLoss !== undefined)
  if (memoryLoss !== undefined) yield* memoryLoss.start
  const room = yield* WaitingRoom.make(
    (key, sentAt, ids) =>
      redis.run(scripts.heartbeat, keysOf(key), [clientId, settings.liveness, stampOf(sentAt), channels, ...ids]),
    settings,
    clock
  )
  const tracking = settings.tracking && version >= 6
    ? yield* Tracking.make(
      (key) => keysOf(key)[0]!,
      (hash, ids) =>
        Effect.map(
          redis.commandTracked("hmget", hash, ...ids.map((id) => `h:${id}`)),
          (reply) => ids.filter((_, i) => (reply as ReadonlyArray<unknown>)[i] === null)
        ),
      (key) => tell({ _tag: "InDoubt", key }),
      clock
    )
    : undefined
  if (settings.push) {
    yield* redis.subscribe(
      channels + clientId,
      (message) => {
        const [id, token, ttl, stamp] = message.split(" ")
        if (id === "!") return tell({ _tag: "TakenOver", holderId: token! })
        if (id === "+") return tell({ _tag: "Wanted", holderId: token! })
        if (id === "?") return room.dropped(token!)
        // The empty one by which the start has found out that it may publish.
        if (stamp === undefined) return
        room.granted(id!, { token: Number(token), ttl: Number(ttl), sentAt: instantOf(stamp) })
      },
      room.look,
      tracking
    )
  }

  // Holder ids with an attempt that nobody waits for any more and that may be executed yet: sent on by another node of a
  // Cluster, it can come after the abandon that was to tidy up after it.
  const unanswered = new Map<string, { attempts: number; abandoned: boolean }>()
  const abandonAgain = yield* FiberSet.makeRuntime<never, void, never>()

  const onUnanswered = (key: string, holderId: string) => {
    const state = unanswered.get(holderId) ?? { attempts: 0, abandoned: false }
    unanswered.set(holderId, state)
    state.attempts++
    return (reply: unknown) => {
      state.attempts--
      if (state.attempts === 0) unanswered.delete(holderId)
      // Granted or queued: what `attempt`, `takeover` and `adopt` answer alike.
      const [tag] = reply === undefined ? [0] : reply as readonly [number]
      if (state.abandoned && (tag === 1 || tag === 2)) {
        abandonAgain(Effect.ignore(Effect.retry(abandon(key, holderId), { schedule: Schedule.spaced(500), times: 10 })))
      }
    }
  }

  const attempt: LockStore.LockStore["Service"]["attempt"] = (request) =>
    Effect.suspend(() => {
      const isQueued = request.wait && room.knows(request.holderId)
      return isQueued ? bearOutage(ask(request)) : ask(request)
    })

  /** Who waits already bears a failover, also where it cost him his place in the queue and he asks again. */
  const bearOutage = <A>(effect: Effect.Effect<A, LockError.LockStoreError>) =>
    Effect.suspend(() => {
      const since = now()
      return Effect.retry(effect, {
        schedule: Schedule.spaced(Math.min(settings.interval, 500)),
        while: (error) => error.reason !== "Refused" && LockStore.elapsedUnsafe(since, clock) < settings.outageTolerance
      })
    })

  // Whoever waits should be told once what for: an error of its own knows of no holder.
  let noted = LockStore.nowUnsafe(clock)
  let notedFor = 0
  const noteWithheld = (left: number) =>
    Effect.suspend(() => {
      if (LockStore.elapsedUnsafe(noted, clock) < notedFor) return Effect.void
      noted = now()
      notedFor = left
      return MemoryLoss.warnWithheld(left)
    })

  const ask: LockStore.LockStore["Service"]["attempt"] = (request) =>
    Effect.suspend(() => {
      const sentAt = now()
      const offer = Math.min(request.ttl, settings.offer)
      // Before the command is sent: the push may overtake its reply.
      const waiter = request.wait ? room.enter(request, offer, sentAt) : undefined
      const call = redis.run(scripts.attempt, keysOf(request.key), [
        request.holderId,
        clientId,
        request.ttl,
        request.permits,
        request.limit,
        request.wait ? 1 : 0,
        request.floor,
        JSON.stringify(request.metadata),
        offer,
        settings.liveness,
        stampOf(sentAt),
        waiter?.ticket ?? "",
        channels,
        headStart(request.priority),
        Number.isFinite(request.maxWaiters) ? request.maxWaiters : -1
      ], () => onUnanswered(request.key, request.holderId)) as Effect.Effect<AttemptReply, LockError.LockStoreError>
      return Effect.flatMap(call, (reply): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> => {
        switch (reply[0]) {
          case 0:
            if (waiter !== undefined) room.leave(request.holderId)
            return Effect.succeed({ _tag: "Refused", standing: standingOf(reply[1]) })
          case 1: {
            room.leave(request.holderId)
            const grant = {
              token: Number(reply[1]),
              ttl: reply[2] === undefined ? request.ttl : Number(reply[2]),
              sentAt
            }
            return Effect.succeed({ _tag: "Granted", grant })
          }
          case 2: {
            const queued = Effect.map(room.wait(waiter!, reply[1], Number(reply[3])), (signal) => ({
              _tag: "Queued" as const,
              standing: standingOf(reply[2]),
              signal
            }))
            return reply[4] === undefined ? queued : Effect.andThen(noteWithheld(Number(reply[4])), queued)
          }
          case 3:
            room.leave(request.holderId)
            return Effect.succeed({ _tag: "OtherLimit", limit: Number(reply[1]) })
          case 4:
            room.leave(request.holderId)
            return Effect.succeed({ _tag: "QueueFull", standing: standingOf(reply[1]) })
          case 5:
            return Effect.andThen(
              noteWithheld(Number(reply[1])),
              Effect.fail(MemoryLoss.withheld("attempt", Number(reply[1])))
            )
        }
      })
    })

  const renew: LockStore.LockStore["Service"]["renew"] = ({ holderId, key, token }, ttl) =>
    Effect.map(redis.run(scripts.renew, keysOf(key), [holderId, token, ttl, channels]), confirmation)

  const release: LockStore.LockStore["Service"]["release"] = ({ holderId, key, token }, keepFor) =>
    Effect.suspend(() => {
      room.used(holderId)
      return Effect.map(redis.run(scripts.release, keysOf(key), [holderId, token, keepFor, channels]), confirmation)
    })

  const abandon: LockStore.LockStore["Service"]["abandon"] = (key, holderId) =>
    Effect.suspend(() => {
      room.leave(holderId)
      const late = unanswered.get(holderId)
      if (late !== undefined) late.abandoned = true
      return Effect.map(
        redis.run(scripts.abandon, keysOf(key), [holderId, channels]),
        (reply) => standingOf(reply as StandingReply)
      )
    })

  const takeover: LockStore.LockStore["Service"]["takeover"] = (request) =>
    Effect.suspend(() => {
      const sentAt = now()
      const { floor, holderId, key, limit, metadata, permits, ttl } = request
      const args = [holderId, clientId, ttl, permits, limit, floor, JSON.stringify(metadata), channels]
      return Effect.map(redis.run(scripts.takeover, keysOf(key), args, () => onUnanswered(key, holderId)), (reply) => {
        const [, token] = reply as readonly [1, string]
        return { token: Number(token), ttl, sentAt }
      })
    })

  const transfer: LockStore.LockStore["Service"]["transfer"] = ({ holderId, key, token }, ticketId) =>
    Effect.map(redis.run(scripts.transfer, keysOf(key), [holderId, token, ticketId, channels]), (reply) => {
      const [done, timeLeft] = reply as readonly [0 | 1, string]
      if (done === 1) room.used(holderId)
      return done === 1 ? { _tag: "Done", timeLeft: Number(timeLeft) } : { _tag: "NotHeld" }
    })

  const adopt: LockStore.LockStore["Service"]["adopt"] = (ticket, request) =>
    Effect.suspend(() => {
      const sentAt = now()
      const { floor, holderId, key, metadata, ttl } = request
      const args = [holderId, clientId, ttl, floor, JSON.stringify(metadata), ticket.holderId, ticket.token, channels]
      const call = redis.run(scripts.adopt, keysOf(key), args, () => onUnanswered(key, holderId))
      return Effect.flatMap(call, (reply): Effect.Effect<LockStore.Adoption, LockError.LockStoreError> => {
        const [answer, detail] = reply as
          | readonly [0, LockError.TicketRefused["reason"]]
          | readonly [1, token: string]
          | readonly [5, withheld: string]
        switch (answer) {
          case 0:
            return Effect.succeed({ _tag: "Refused", reason: detail })
          case 1:
            return Effect.succeed({ _tag: "Granted", grant: { token: Number(detail), ttl, sentAt } })
          case 5:
            return Effect.fail(MemoryLoss.withheld("adopt", Number(detail)))
        }
      })
    })

  const shrink: LockStore.PermitStore["Service"]["shrink"] = ({ holderId, key, token }, permits) =>
    Effect.map(redis.run(scripts.shrink, keysOf(key), [holderId, token, permits, channels]), confirmation)

  const setLimit: LockStore.PermitStore["Service"]["setLimit"] = (key, declared, limit) =>
    // The first is the place of a holder id.
    Effect.map(
      redis.run(scripts.setLimit, keysOf(key), ["", declared, limit, channels]),
      (reply): LockStore.LimitSet => {
        const [done, current] = reply as readonly [1] | readonly [0, string]
        return done === 1 ? { _tag: "Done" } : { _tag: "OtherLimit", limit: Number(current) }
      }
    )

  const watch: LockStore.LockStore["Service"]["watch"] = ({ holderId, key, token }) =>
    Effect.map(redis.run(scripts.watch, keysOf(key), [holderId, token, channels]), (reply): LockStore.Watch => {
      const [done, isWanted] = reply as readonly [0] | readonly [1, 0 | 1]
      return done === 1 ? { _tag: "Done", isWanted: isWanted === 1 } : { _tag: "NotHeld" }
    })

  const onNews: LockStore.LockStore["Service"]["onNews"] = (listener) =>
    Effect.acquireRelease(
      Effect.sync(() => void listeners.add(listener)),
      () => Effect.sync(() => listeners.delete(listener))
    )

  const inspect: LockStore.LockStore["Service"]["inspect"] = (key) =>
    Effect.map(redis.run(scripts.inspect, keysOf(key), []), (reply) => {
      const [holders, waiters, limit] = reply as InspectReply
      return {
        key,
        ...holders.length + waiters.length > 0 ? { limit: Number(limit) } : undefined,
        holders: holders.map(holderOf),
        waiters: waiters.map(([holderId, permits, waitedFor, metadata]) => ({
          holderId,
          permits,
          waitedFor,
          metadata: JSON.parse(metadata)
        }))
      }
    })

  const list: LockStore.LockStore["Service"]["list"] = (prefix) => {
    const begin = `${settings.keyPrefix}:{`
    return Effect.map(
      redis.scan(`${RedisClient.escapeGlob(begin + encode(prefix))}*}`),
      (names) =>
        names.flatMap((name) => {
          const key = name.slice(begin.length, -1)
          // What belongs to a key comes after its brace.
          return key.includes("}") ? [] : [decode(key)]
        })
    )
  }

  const store: LockStore.PermitStore["Service"] = {
    name: "redis",
    driftFactor: settings.driftFactor,
    identity,
    attempt,
    renew,
    release,
    abandon,
    takeover,
    transfer,
    adopt,
    shrink,
    setLimit,
    watch,
    onNews,
    inspect,
    list
  }
  const confirmed = settings.replicas === undefined ? store : yield* Replication.confirmed(
    store,
    client,
    ({ holderId, key, token }, ttl) => {
      const call = [scripts.renew, keysOf(key), [holderId, token, ttl, channels]] as const
      return memoryLoss === undefined ? call : memoryLoss.guarded(...call)
    },
    settings.replicas
  )
  return tracking?.isOn() === true ? Tracking.observePermits(confirmed, tracking) : confirmed
})

type HolderReply = readonly [
  id: string,
  token: string,
  permits: number,
  heldFor: number,
  left: number,
  metadata: string
]

type StandingReply = readonly [position: number, queueLength: number, holders: ReadonlyArray<HolderReply>]

type AttemptReply =
  | readonly [0, standing: StandingReply]
  | readonly [1, token: string, ttl?: string]
  | readonly [2, ticket: string, standing: StandingReply, next: string, withheld?: string]
  | readonly [3, limit: string]
  | readonly [4, standing: StandingReply]
  | readonly [5, withheld: string]

type InspectReply = readonly [
  holders: ReadonlyArray<HolderReply>,
  waiters: ReadonlyArray<readonly [id: string, permits: number, waitedFor: number, metadata: string]>,
  limit: string
]

const holderOf = ([holderId, token, permits, heldFor, timeLeft, metadata]: HolderReply): LockError.HolderInfo => ({
  holderId,
  token: Number(token),
  permits,
  heldFor,
  timeLeft,
  metadata: JSON.parse(metadata)
})

const standingOf = ([position, queueLength, holders]: StandingReply): LockStore.Standing => ({
  position,
  queueLength,
  holders: holders.map(holderOf)
})

const confirmation = (reply: unknown): LockStore.Confirmation => reply === 1 ? "Done" : "NotHeld"

const stampOf = (instant: LockStore.Instant): string => `${instant.monotonic}/${instant.wall}`

const instantOf = (stamp: string): LockStore.Instant => {
  const [monotonic, wall] = stamp.split("/")
  return { monotonic: Number(monotonic), wall: Number(wall) }
}

// The part in braces decides the hash slot and must survive in one piece, whatever the key contains.
const encode = (key: string): string => /[%}]/.test(key) ? key.replaceAll("%", "%25").replaceAll("}", "%7D") : key

const decode = (name: string): string => name.replace(/%(25|7D)/g, (_, code) => code === "25" ? "%" : "}")

// Microseconds, and no more than keeps a place an exact number: no finite priority is worth that much.
const headStart = (priority: number): number => Math.min(Math.round(priority * 10_000_000), 2 ** 52)

const refused = (operation: string, detail: string): LockError.LockStoreError =>
  new LockError.LockStoreError({ store: "redis", operation, reason: "Refused", detail })

/** Finds out at start what would otherwise be found out under load. Returns the server's major version, 5 if it is not known. */
const checkServer = Effect.fnUntraced(function*(
  redis: RedisClient.RedisClient,
  keys: ReadonlyArray<string>,
  inbox: string,
  isGuarded: boolean
): Effect.fn.Return<number, LockError.LockStoreError> {
  yield* redis.run(scripts.inspect, keys, [])
  // A script that nobody has used yet costs one more round trip, and nobody may be left to make it.
  yield* Effect.ignore(
    Effect.forEach(
      Object.values(scripts),
      (script: scripts.Script) =>
        redis.command("SCRIPT", "LOAD", (isGuarded ? script.guarded ?? script : script).source),
      { concurrency: "unbounded", discard: true }
    )
  )
  // A script that may not publish its grant would break off half-way.
  yield* redis.command("PUBLISH", inbox, "")
  // A managed server may not allow INFO: then nothing is known, and nothing is wrong.
  const info = yield* Effect.catch(redis.command("INFO"), () => Effect.succeed(""))
  const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, "m").exec(String(info))?.[1]
  const version = field("redis_version")
  if (version !== undefined && Number.parseInt(version, 10) < 5) {
    return yield* Effect.fail(refused("startup", `server version ${version} is too old: 5.0 or later is needed`))
  }
  const policy = field("maxmemory_policy")
  if (policy !== undefined && policy !== "noeviction") {
    yield* Effect.logWarning(
      `Redis may evict locks under memory pressure: maxmemory-policy is ${policy}; set it to noeviction`
    ).pipe(Effect.annotateLogs({ module: "effect-lock" }))
  }
  return version === undefined ? 5 : Number.parseInt(version, 10)
})

const resolve = (options: StoreOptions, isCluster: boolean): Effect.Effect<Settings, LockError.LockInvalid> =>
  read(() => {
    const { push = true, tracking = true } = options
    const commandTimeout = millis("commandTimeout", options.commandTimeout ?? 2000)
    const prefix = keyPrefix(options.keyPrefix)
    const drift = driftFactor(options.driftFactor)
    const heartbeat = millis("heartbeat", options.heartbeat ?? 2000, 20_000)
    const pollInterval = millis("pollInterval", options.pollInterval ?? 100, 20_000)
    return {
      keyPrefix: prefix,
      driftFactor: drift,
      push,
      tracking: tracking && push,
      commandTimeout,
      interval: push ? heartbeat : Math.min(heartbeat, pollInterval),
      // An offer outlives two lost heartbeats, and a client three missed ones.
      offer: 3 * heartbeat,
      liveness: 3 * heartbeat,
      outageTolerance: millis("outageTolerance", options.outageTolerance ?? 30_000),
      lockDelay: options.lockDelay,
      assumeFresh: options.assumeFresh ?? true,
      longestTtl: millis("longestTtl", options.longestTtl ?? 30_000),
      slack: millis("slack", options.slack ?? 5000),
      option: "lockDelay",
      replicas: options.replicas === undefined ? undefined : replicasOf(options.replicas, commandTimeout, isCluster)
    }
  })

const replicasOf = ({ acks, timeout }: Replicas, commandTimeout: number, isCluster: boolean): Replication.Settings => {
  // Who serves a key may change between its grant and the question, node by node.
  if (isCluster) {
    throw invalid("replicas", `with ${acks} acks`, "a Cluster cannot confirm grants; leave it out, or use a quorum")
  }
  if (!(Number.isInteger(acks) && acks >= 1)) {
    throw invalid("replicas.acks", acks, "must be a whole number, one or more")
  }
  return { acks, timeout: millis("replicas.timeout", timeout ?? 1000, 20_000), commandTimeout }
}
