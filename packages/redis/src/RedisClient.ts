/**
 * The little that a lock store needs of a Redis client, behind a port so that another client can follow: run a script, listen
 * to a channel, ask for the server's state. Every command is bounded by `commandTimeout`, whatever the client retries.
 *
 * **Details**
 *
 * What a server or a Cluster answers while it cannot do anything yet (loading, failing over, moving a slot) is asked again
 * within `commandTimeout`. Where a failover is possible (Cluster, Sentinel), so is what was lost with a connection: a
 * script may then run twice.
 *
 * @since 0.1.0
 */
import * as LockError from "@effect-lock/core/LockError"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { Cluster, type ClusterNode, type ClusterOptions, Redis, type RedisOptions } from "ioredis"
import { monotonicUnsafe } from "./internal/instant.ts"
import type { Script } from "./internal/scripts.ts"

/**
 * A Redis client as the store uses it.
 *
 * @category models
 * @since 0.1.0
 */
export interface RedisClient {
  /**
   * Runs a script by its digest, with its source where the server does not know it. `onUnanswered` is called when the wait
   * for a script that was sent ends without an answer, by time-out or interruption; what it returns is called with the
   * answer, should that still come (`undefined`: it never will).
   */
  readonly run: (
    script: Script,
    keys: ReadonlyArray<string>,
    args: ReadonlyArray<string | number>,
    onUnanswered?: () => (reply: unknown) => void
  ) => Effect.Effect<unknown, LockError.LockStoreError>
  /** Any other command. */
  readonly command: (
    name: string,
    ...args: ReadonlyArray<string | number>
  ) => Effect.Effect<unknown, LockError.LockStoreError>
  /**
   * The names of all keys that match, each once; on a Cluster those of all masters. A prefix that the client itself puts
   * before its keys comes before the pattern, and is not part of the names.
   */
  readonly scan: (pattern: string) => Effect.Effect<ReadonlyArray<string>, LockError.LockStoreError>
  /**
   * Listens to a channel until the scope closes; returns when the server has confirmed the subscription. `onReconnect` is
   * called when messages may have been missed. With a `tracker` the server is also asked to tell of changes to what
   * `commandTracked` has read.
   */
  readonly subscribe: (
    channel: string,
    onMessage: (message: string) => void,
    onReconnect: () => void,
    tracker?: Tracker
  ) => Effect.Effect<void, LockError.LockStoreError, Scope.Scope>
  /** A command that reads; the tracker is told, once, when somebody else changes or deletes its key afterwards. */
  readonly commandTracked: RedisClient["command"]
  /**
   * A connection of its own, closed with the scope, on which commands may block for up to `blockedFor` milliseconds. They are
   * sent together, and answered in order, each with its reply or its error. Not on a Cluster.
   */
  readonly dedicated: (
    blockedFor: number
  ) => Effect.Effect<
    (
      commands: ReadonlyArray<ReadonlyArray<string | number>>
    ) => Effect.Effect<ReadonlyArray<Reply>, LockError.LockStoreError>,
    LockError.LockStoreError,
    Scope.Scope
  >
  /** Whether a failover, of a Cluster or under Sentinels, may lose what was written. */
  readonly failsOver: boolean
  /** Who serves which slot, as far as is known; undefined when this is not a Cluster. */
  readonly cluster: {
    readonly masterOf: (slot: number) => string | undefined
    readonly refresh: () => void
    /** What ioredis puts before every key. */
    readonly keyPrefix: string
  } | undefined
}

/**
 * Who is told of changes that others make to keys read before.
 *
 * **Details**
 *
 * This is Redis' client tracking, redirected to the subscriber. It is lost with either connection, and is switched on again
 * when that is back. Connections that belong to somebody else, Clusters and servers before version 6 do not have it:
 * then `onStart` is never called.
 *
 * @category models
 * @since 0.1.0
 */
export interface Tracker {
  /** The server tells of changes from now on; what was read before may have changed unheard. */
  readonly onStart: () => void
  /** Somebody else has changed a key; `undefined`: possibly all of them. */
  readonly onChange: (key: string | undefined) => void
}

/**
 * The pattern that matches exactly this text.
 *
 * @internal
 */
export const escapeGlob = (text: string): string => text.replace(/[*?[\]\\]/g, "\\$&")

/**
 * The answer to one of several commands.
 *
 * @category models
 * @since 0.1.0
 */
export type Reply = { readonly value: unknown } | { readonly error: LockError.LockStoreError }

/**
 * A client with connections of its own, closed with the scope. Fails with `Unavailable` when the server cannot be reached
 * within `commandTimeout` (milliseconds).
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  url: string | undefined,
  options: RedisOptions,
  commandTimeout: number
): Effect.fn.Return<RedisClient, LockError.LockStoreError, Scope.Scope> {
  const connection = yield* connect(() => {
    const all: RedisOptions & { replyMapping: "legacy" } = {
      connectionName: "effect-lock",
      // A sentinel that hangs must leave time to ask another.
      sentinelCommandTimeout: Math.ceil(commandTimeout / 4),
      ...options,
      ...reliable(commandTimeout),
      ...Array.isArray(options.sentinels)
        ? { socketTimeout: commandTimeout, retryStrategy: backoff(maxFailoverBackoff) }
        : undefined,
      replyMapping: "legacy"
    }
    return url === undefined ? new Redis(all) : new Redis(url, all)
  }, commandTimeout)
  return yield* makeFrom(connection.redis, commandTimeout, connection)
})

/**
 * A client of a Cluster with connections of its own, closed with the scope: one to each master it sends commands to, and
 * one for the subscription, to any node. Fails with `Unavailable` when no node can be reached, or the Cluster is down, for
 * `commandTimeout` (milliseconds).
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeCluster = Effect.fnUntraced(function*(
  nodes: ReadonlyArray<ClusterNode>,
  options: ClusterOptions,
  commandTimeout: number
): Effect.fn.Return<RedisClient, LockError.LockStoreError, Scope.Scope> {
  const { autoResendUnfulfilledCommands, connectTimeout, disconnectTimeout, maxRetriesPerRequest } = reliable(
    commandTimeout
  )
  const connection = yield* connect(() =>
    new Cluster([...nodes], {
      slotsRefreshInterval: 5000,
      ...options,
      lazyConnect: true,
      // When a slot has moved, ioredis sends on a pipeline only as a whole: others in it would fail.
      enableAutoPipelining: false,
      scaleReads: "master",
      // What may have run is not for ioredis to send again, and what has not is for us: nobody else knows who still waits.
      retryDelayOnFailover: 0,
      retryDelayOnClusterDown: 0,
      retryDelayOnTryAgain: 20,
      maxRedirections: 5,
      clusterRetryStrategy: backoff(maxFailoverBackoff),
      clusterNodeRetryStrategy: null,
      redisOptions: {
        connectionName: "effect-lock",
        ...options.redisOptions,
        autoResendUnfulfilledCommands,
        connectTimeout,
        disconnectTimeout,
        maxRetriesPerRequest,
        // A node that hangs is noticed by its own connection: others still answer.
        socketTimeout: commandTimeout,
        replyMapping: "legacy"
      }
    }), commandTimeout)
  return yield* makeFrom(connection.redis, commandTimeout, connection)
})

/**
 * A client over a connection that belongs to somebody else and stays open. Only the subscriber connection, a duplicate, is
 * opened and closed here.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromConnection = (
  redis: Redis | Cluster,
  commandTimeout: number
): Effect.Effect<RedisClient, never, Scope.Scope> => makeFrom(redis, commandTimeout, undefined)

// With ioredis' defaults a script whose reply was lost runs again after the reconnect, and a command waits through any
// number of failed connections. Time-outs and retries are ours.
const reliable = (commandTimeout: number) => ({
  lazyConnect: true,
  enableAutoPipelining: true,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: 0,
  connectTimeout: commandTimeout,
  // How long a connection that hangs is given to close in good order before it is cut.
  disconnectTimeout: 200,
  retryStrategy: backoff(1000)
})

const backoff = (max: number) => (attempt: number): number =>
  Math.min(50 * 2 ** Math.min(attempt, 5), max) * (0.75 + Math.random() / 2)

// Somebody else is about to take over.
const maxFailoverBackoff = 250

/** A connection of our own, and what it was last lost for: ioredis itself reports only that it was. */
interface Connection<C extends Redis | Cluster = Redis | Cluster> {
  readonly redis: C
  lastError: unknown
}

const connect = <C extends Redis | Cluster>(
  open: () => C,
  timeout: number
): Effect.Effect<Connection<C>, LockError.LockStoreError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const connection: Connection<C> = { redis: open(), lastError: undefined }
      const keep = (error: unknown) => {
        connection.lastError = error
      }
      const emitter = connection.redis as NodeJS.EventEmitter
      // Without a listener ioredis prints every connection error; commands report them.
      emitter.on("error", keep)
      emitter.on("node error", keep)
      emitter.on("ready", () => keep(undefined))
      return connection
    }),
    ({ redis }) => Effect.sync(() => redis.disconnect())
  ).pipe(
    Effect.tap((connection) =>
      Effect.callback<void, unknown>((resume) => {
        // A Cluster that is down at first is connected to again, and its promise is forgotten.
        ;(connection.redis as NodeJS.EventEmitter).once("ready", () => resume(Effect.void))
        connection.redis.connect().then(() => resume(Effect.void), (cause) => resume(Effect.fail(cause)))
      }).pipe(
        Effect.mapError((cause) => failure("connect", cause, connection.lastError)),
        Effect.timeoutOrElse({
          duration: timeout,
          orElse: () =>
            Effect.fail(
              connection.lastError === undefined
                ? timedOut("connect", timeout)
                : failure("connect", undefined, connection.lastError)
            )
        })
      )
    )
  )

interface Commander {
  readonly evalsha: (...args: ReadonlyArray<string | number>) => Promise<unknown>
  readonly eval: (...args: ReadonlyArray<string | number>) => Promise<unknown>
  readonly call: (...args: ReadonlyArray<string | number>) => Promise<unknown>
}

interface Pending {
  readonly operation: string
  readonly sentAt: number
  readonly resume: (effect: Effect.Effect<unknown, LockError.LockStoreError>) => void
  readonly onUnanswered: (() => (reply: unknown) => void) | undefined
  onLateReply: ((reply: unknown) => void) | undefined
}

const makeFrom = Effect.fnUntraced(function*(
  redis: Redis | Cluster,
  commandTimeout: number,
  owned: Connection | undefined
): Effect.fn.Return<RedisClient, never, Scope.Scope> {
  const commander = redis as unknown as Commander
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => monotonicUnsafe(clock)
  const ownRedis = owned?.redis instanceof Redis ? owned.redis : undefined
  const failsOver = isCluster(redis) || Array.isArray(redis.options.sentinels)
  const transient = failsOver ? transientInFailover : transientOnServer
  /** Called when there is reason to doubt that the other connections are any better. */
  const suspicious = new Set<() => void>()

  // All commands have the same time-out, so the oldest runs out first: one fiber watches over all of them, and a command
  // on the hot path costs no timer and no fiber of its own.
  const pending = new Set<Pending>()
  const busy = Latch.makeUnsafe(false)
  let lastReplyAt = now()
  // What is sent again over a new connection has not been waiting for that one.
  if (owned !== undefined) {
    ;(owned.redis as NodeJS.EventEmitter).on("ready", () => {
      lastReplyAt = now()
      for (const check of suspicious) check()
    })
  }
  yield* Effect.gen(function*() {
    while (true) {
      yield* busy.await
      const [oldest] = pending
      if (oldest === undefined) {
        busy.closeUnsafe()
        continue
      }
      const left = oldest.sentAt + commandTimeout - now()
      if (left > 0) {
        yield* Effect.sleep(left)
        continue
      }
      // After this process has stood still, timers come before the replies that have arrived meanwhile: those are read first.
      yield* Effect.yieldNow
      if (!pending.has(oldest)) continue
      giveUp(oldest)
      oldest.resume(Effect.fail(timedOut(oldest.operation, commandTimeout)))
      // Replies come in order: none since it was sent means that the connection hangs, half-open perhaps for minutes.
      if (ownRedis !== undefined && lastReplyAt < oldest.sentAt && mayHang.has(ownRedis.status)) {
        ownRedis.disconnect(true)
      }
      for (const check of suspicious) check()
    }
  }).pipe(Effect.forkScoped)

  const giveUp = (command: Pending): void => {
    if (pending.delete(command)) command.onLateReply = command.onUnanswered?.()
  }

  const bounded = (
    operation: string,
    send: () => Promise<unknown>,
    onUnanswered?: () => (reply: unknown) => void,
    sentAt = now()
  ): Effect.Effect<unknown, LockError.LockStoreError> =>
    Effect.callback<unknown, LockError.LockStoreError>((resume) => {
      const command: Pending = { operation, sentAt, resume, onUnanswered, onLateReply: undefined }
      pending.add(command)
      if (pending.size === 1) busy.openUnsafe()
      const settle = (effect: Effect.Effect<unknown, LockError.LockStoreError>, reply: unknown) => {
        lastReplyAt = now()
        if (pending.delete(command)) resume(effect)
        else command.onLateReply?.(reply)
      }
      const settleWith = (cause: unknown) =>
        settle(Effect.fail(failure(operation, cause, owned?.lastError, transient)), undefined)
      try {
        send().then((reply) => settle(Effect.succeed(reply), reply), settleWith)
      } catch (cause) {
        settleWith(cause)
      }
      return Effect.sync(() => giveUp(command))
    })

  const isConnected = () => owned === undefined || !failsOver || redis.status === "ready"

  const run: RedisClient["run"] = (script, keys, args, onUnanswered) =>
    Effect.suspend(() => {
      const startedAt = now()
      const byDigest = (sentAt?: number) =>
        isConnected()
          ? bounded(
            script.name,
            () => commander.evalsha(script.sha, keys.length, ...keys, ...args),
            onUnanswered,
            sentAt
          )
          // ioredis would queue it without any bound, and send it long after everybody has forgotten it.
          : Effect.fail(failure(script.name, new Error("not connected"), owned?.lastError, transient))

      return Effect.catch(byDigest(startedAt), (error) => {
        const bySource = () =>
          bounded(script.name, () => commander.eval(script.source, keys.length, ...keys, ...args), onUnanswered)
        const once = Effect.suspend(() => Effect.catchIf(byDigest(), isUnknownScript, bySource))
        const another = (error: LockError.LockStoreError) => again(once, error, startedAt + commandTimeout)
        return isUnknownScript(error)
          ? Effect.catchIf(bySource(), isWorthAnother, another)
          : isWorthAnother(error)
          ? another(error)
          : Effect.fail(error)
      })
    })

  const isWorthAnother = (error: LockError.LockStoreError): boolean =>
    error.reason === "Unavailable" && (failsOver || isReplyError(error.cause))

  /** Asks until there is another answer, or the time is over that one command has. */
  const again = <A>(
    once: Effect.Effect<A, LockError.LockStoreError>,
    first: LockError.LockStoreError,
    until: number
  ): Effect.Effect<A, LockError.LockStoreError> => {
    let last = first
    const next: Effect.Effect<A, LockError.LockStoreError> = Effect.suspend(() => {
      // The server of this connection is not the master any more.
      if (last.detail !== undefined && demoted.test(last.detail) && ownRedis?.status === "ready") {
        ownRedis.disconnect(true)
      }
      // A pipeline of a borrowed Cluster does not always learn from this.
      if (last.detail?.startsWith("MOVED ") === true && isCluster(redis)) redis.refreshSlotsCache()
      return Effect.sleep(25 + Math.random() * 50).pipe(
        Effect.andThen(once),
        Effect.catchIf(isWorthAnother, (error) => {
          last = error
          return next
        })
      )
    })
    return Effect.timeoutOrElse(next, { duration: Math.max(0, until - now()), orElse: () => Effect.fail(last) })
  }

  const command: RedisClient["command"] = (name, ...args) =>
    Effect.suspend(() => bounded(name, () => commander.call(name, ...args)))

  const scan: RedisClient["scan"] = (pattern) =>
    Effect.suspend(() => {
      const own = redis.options.keyPrefix ?? ""
      const match = escapeGlob(own) + pattern
      const startedAt = now()
      const once = Effect.suspend(() => {
        const nodes = isCluster(redis) ? redis.nodes("master") : [redis]
        return nodes.length > 0
          ? Effect.forEach(nodes, (node) => scanNode(node as unknown as Commander, match), { concurrency: "unbounded" })
          : Effect.fail(failure("SCAN", new Error("no node is known"), owned?.lastError, transient))
      })
      return Effect.map(
        Effect.catchIf(once, isWorthAnother, (error) => again(once, error, startedAt + commandTimeout)),
        // While a slot moves both nodes may have its keys, and one node may tell of a key twice.
        (found) => Array.from(new Set(found.flat()), (name) => name.slice(own.length))
      )
    })

  const scanNode = Effect.fnUntraced(function*(node: Commander, match: string) {
    const found: Array<string> = []
    let cursor = "0"
    do {
      const reply = yield* bounded("SCAN", () => node.call("SCAN", cursor, "MATCH", match, "COUNT", 1000))
      const [next, names] = reply as readonly [string, ReadonlyArray<string>]
      for (const name of names) found.push(name)
      cursor = next
    } while (cursor !== "0")
    return found
  })

  const subscriberOptions = {
    ...reliable(commandTimeout),
    ...failsOver ? { retryStrategy: backoff(maxFailoverBackoff) } : undefined,
    // A subscriber that speaks RESP3 drops what the server pushes on its own account.
    protocol: 2 as const,
    enableAutoPipelining: false,
    // What ioredis subscribes again by itself it forgets when that fails, with a rejection that nobody can handle.
    autoResubscribe: false,
    // Nobody else would notice that a handshake or a subscription of a later connection gets no answer.
    socketTimeout: commandTimeout,
    connectionName: "effect-lock-subscriber"
  }

  const subscribeOn = (connection: Connection<Redis>, channel: string) =>
    Effect.tryPromise({
      try: () => connection.redis.subscribe(channel),
      catch: (cause) => failure("subscribe", cause, connection.lastError, transient)
    }).pipe(
      Effect.timeoutOrElse({
        duration: commandTimeout,
        orElse: () => Effect.fail(timedOut("subscribe", commandTimeout))
      })
    )

  const commandTracked: RedisClient["commandTracked"] = (name, ...args) =>
    Effect.suspend(() =>
      bounded(name, async () => {
        // One pipeline: the first of them is about the very next command. Where nothing is tracked, only it is refused.
        const replies = await (redis as Redis).pipeline([["client", "CACHING", "YES"], [name, ...args]]).exec()
        const [error, reply] = replies![1]!
        if (error !== null) throw error
        return reply
      })
    )

  const subscribeToServer: RedisClient["subscribe"] = Effect.fnUntraced(function*(
    channel,
    onMessage,
    onReconnect,
    tracker
  ) {
    const connection = yield* connect(() => (redis as Redis).duplicate(subscriberOptions), commandTimeout)
    const subscriber = connection.redis
    const startTracking = tracker === undefined || ownRedis === undefined
      ? undefined
      : yield* prepareTracking(ownRedis, subscriber, tracker)
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const message = (from: string, text: string) => {
          if (from === channel) onMessage(text)
        }
        const ready = () => {
          void startTracking?.()
          void subscriber.subscribe(channel).then(onReconnect, () => {})
        }
        const check = () => {
          if (subscriber.status === "ready") subscriber.ping().catch(() => {})
        }
        subscriber.on("message", message)
        subscriber.on("ready", ready)
        suspicious.add(check)
        return { check, message, ready }
      }),
      ({ check, message, ready }) =>
        Effect.sync(() => {
          suspicious.delete(check)
          subscriber.off("message", message)
          subscriber.off("ready", ready)
        })
    )
    const tracking = startTracking?.()
    yield* subscribeOn(connection, channel)
    if (tracking !== undefined) yield* Effect.timeoutOption(Effect.promise(() => tracking), commandTimeout)
  })

  /**
   * A message reaches every node of a Cluster, so any will do, for as long as it lives: its end is noticed by the
   * connection, by an unanswered ping, or by the Cluster having dropped it. ioredis' own subscriber tells nobody when it
   * has moved on, and does not notice a node that hangs.
   */
  const subscribeToCluster = (cluster: Cluster): RedisClient["subscribe"] =>
    Effect.fnUntraced(function*(channel, onMessage, onReconnect) {
      const started = Deferred.makeUnsafe<void, LockError.LockStoreError>()
      let lastNode = ""
      const session = Effect.gen(function*() {
        const node = pickNode(cluster, lastNode)
        if (node === undefined) {
          return yield* Effect.fail(failure("subscribe", new Error("no node is known"), owned?.lastError, transient))
        }
        lastNode = addressOf(node)
        const open = () => node.duplicate({ ...subscriberOptions, readOnly: false, retryStrategy: () => null })
        const connection = yield* connect(open, commandTimeout)
        const ended = Deferred.makeUnsafe<void>()
        const end = () => void Deferred.doneUnsafe(ended, Exit.void)
        const onNodeGone = (gone: Redis) => {
          if (addressOf(gone) === lastNode) end()
        }
        connection.redis.on("message", (_channel, text) => onMessage(text))
        connection.redis.on("end", end)
        yield* Effect.acquireRelease(
          Effect.sync(() => cluster.on("-node", onNodeGone)),
          () => Effect.sync(() => cluster.off("-node", onNodeGone))
        )
        yield* subscribeOn(connection, channel)
        if (!Deferred.doneUnsafe(started, Exit.void)) onReconnect()
        const pings = Effect.promise(() => connection.redis.ping().catch(end)).pipe(
          Effect.andThen(Effect.sleep(commandTimeout)),
          Effect.forever
        )
        yield* Effect.raceFirst(Deferred.await(ended), pings)
      })
      let lastError = timedOut("subscribe", commandTimeout)
      yield* Effect.scoped(session).pipe(
        Effect.catch((error) =>
          Effect.sync(() => {
            lastError = error
            if (error.reason === "Refused") Deferred.doneUnsafe(started, Exit.fail(error))
          })
        ),
        Effect.andThen(Effect.suspend(() => Effect.sleep(25 + Math.random() * 50))),
        Effect.forever,
        Effect.forkScoped
      )
      yield* Deferred.await(started).pipe(
        Effect.timeoutOrElse({ duration: commandTimeout, orElse: () => Effect.fail(lastError) })
      )
    })

  const dedicated: RedisClient["dedicated"] = Effect.fnUntraced(function*(blockedFor) {
    const options = {
      ...subscriberOptions,
      socketTimeout: blockedFor + commandTimeout,
      connectionName: "effect-lock-replicas"
    }
    const connection = yield* connect(() => (redis as Redis).duplicate(options), commandTimeout)
    const { redis: own } = connection
    return (commands) =>
      own.status === "ready"
        ? Effect.tryPromise({
          try: () => own.pipeline(commands.map((command) => [...command])).exec(),
          catch: (cause) => failure("replicas", cause, connection.lastError, transient)
        }).pipe(
          Effect.timeoutOrElse({
            duration: blockedFor + commandTimeout,
            orElse: () => Effect.fail(timedOut("replicas", blockedFor + commandTimeout))
          }),
          Effect.map((replies) =>
            replies!.map(([error, value]): Reply => {
              if (error === null) return { value }
              // Not the master any more.
              if (demoted.test(error.message)) own.disconnect(true)
              return { error: failure("replicas", error, connection.lastError, transient) }
            })
          )
        )
        : Effect.fail(failure("replicas", new Error("not connected"), connection.lastError, transient))
  })

  return {
    run,
    command,
    commandTracked,
    scan,
    subscribe: isCluster(redis) ? subscribeToCluster(redis) : subscribeToServer,
    dedicated,
    failsOver,
    cluster: isCluster(redis)
      ? {
        masterOf: (slot) => redis.slots[slot]?.[0],
        refresh: () => redis.refreshSlotsCache(),
        keyPrefix: redis.options.keyPrefix ?? ""
      }
      : undefined
  }
})

/**
 * Returns what begins on a new connection of the subscriber, and must be called before that subscribes to anything: only
 * until then can it be asked for its id. A server that refuses any of it does not track.
 */
const prepareTracking = (
  commands: Redis,
  subscriber: Redis,
  tracker: Tracker
): Effect.Effect<() => Promise<void>, never, Scope.Scope> => {
  const channel = "__redis__:invalidate"
  const prefix = commands.options.keyPrefix ?? ""
  let id: number | undefined
  const redirect = async () => {
    try {
      if (id === undefined || commands.status !== "ready") return
      // Only what is asked for is tracked: the scripts' own reads would fill the server's memory.
      await commands.call("CLIENT", "TRACKING", "ON", "REDIRECT", id, "OPTIN", "NOLOOP")
      tracker.onStart()
    } catch {}
  }
  const begin = async () => {
    id = undefined
    try {
      const asked = await subscriber.client("ID")
      await subscriber.subscribe(channel)
      id = asked
      await redirect()
    } catch {}
  }
  const message = (from: Buffer, keys: unknown) => {
    if (from.toString() !== channel) return
    if (keys === null) return tracker.onChange(undefined)
    // What anybody may have published there is text.
    if (!Array.isArray(keys)) return
    for (const key of keys.map(String)) if (key.startsWith(prefix)) tracker.onChange(key.slice(prefix.length))
  }
  return Effect.as(
    Effect.acquireRelease(
      Effect.sync(() => {
        commands.on("ready", redirect)
        subscriber.on("messageBuffer", message)
      }),
      () =>
        Effect.sync(() => {
          commands.off("ready", redirect)
          subscriber.off("messageBuffer", message)
        })
    ),
    begin
  )
}

const isCluster = (redis: Redis | Cluster): redis is Cluster => redis.isCluster

const addressOf = ({ options: { host, port } }: Redis): string => `${host}:${port}`

/** Any but the last one, if there is another. */
const pickNode = (cluster: Cluster, last: string): Redis | undefined => {
  const nodes = cluster.nodes()
  const others = nodes.filter((node) => addressOf(node) !== last)
  const candidates = others.length > 0 ? others : nodes
  return candidates[Math.floor(Math.random() * candidates.length)]
}

// While it connects ioredis bounds the time itself, but not that of the handshake after it.
const mayHang = new Set(["connect", "ready"])

const timedOut = (operation: string, limit: number): LockError.LockStoreError =>
  new LockError.LockStoreError({ store: "redis", operation, reason: "Timeout", limit })

const failure = (
  operation: string,
  rejection: unknown,
  connectionError: unknown,
  transient = transientOnServer
): LockError.LockStoreError => {
  const cause = isReplyError(rejection) || isRedirectedTooOften(rejection) ? rejection : connectionError ?? rejection
  const detail = describe(cause)
  const reason = isReplyError(cause) && !transient.test(detail) ? "Refused" : "Unavailable"
  return new LockError.LockStoreError({ store: "redis", operation, reason, detail, cause: withoutCommand(cause) })
}

/** ioredis attaches the command to its errors; that of the handshake contains the password. */
const withoutCommand = (cause: unknown): unknown => {
  if (!(cause instanceof Error && "command" in cause)) return cause
  const copy = new Error(cause.message)
  copy.name = cause.name
  if (cause.stack !== undefined) copy.stack = cause.stack
  return copy
}

const describe = (cause: unknown): string => {
  if (!(cause instanceof Error)) return String(cause)
  // It names an option that nobody has set.
  if (cause.name === "MaxRetriesPerRequestError") return "the connection was lost"
  // Addresses that all refused make up an error with a code, but without a message.
  return cause.message === "" && "code" in cause ? String(cause.code) : cause.message
}

const isReplyError = (cause: unknown): boolean => cause instanceof Error && cause.name === "ReplyError"

const isRedirectedTooOften = (cause: unknown): boolean =>
  cause instanceof Error && cause.message.startsWith("Too many Cluster redirections")

// Answers of a server that will do what was asked once it has finished something else. Before version 7 the error of a
// command in a script follows a dash.
const transientOnServer = /^(LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY) /

// The last of them: the script needed a key that this node has already given away.
const transientInFailover =
  /^(LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|MOVED|ASK) |(^|-)(READONLY|NOREPLICAS) |non local key/

const demoted = /(^|-)READONLY /

const isUnknownScript = (error: LockError.LockStoreError): boolean =>
  error.reason === "Refused" && error.detail?.startsWith("NOSCRIPT") === true
