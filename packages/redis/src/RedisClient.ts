/**
 * The little that a lock store needs of a Redis client, behind a port so that another client can follow: run a script, listen
 * to a channel, ask for the server's state. Every command is bounded by `commandTimeout`, whatever the client retries.
 *
 * @since 0.1.0
 */
import * as LockError from "@effect-lock/core/LockError"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import { type Cluster, Redis, type RedisOptions } from "ioredis"
import type { Script } from "./internal/scripts.ts"

/**
 * A Redis client as the store uses it.
 *
 * @category models
 * @since 0.1.0
 */
export interface RedisClient {
  /** Runs a script by its digest, with its source where the server does not know it. */
  readonly run: (
    script: Script,
    keys: ReadonlyArray<string>,
    args: ReadonlyArray<string | number>
  ) => Effect.Effect<unknown, LockError.LockStoreError>
  /** Any other command. */
  readonly command: (
    name: string,
    ...args: ReadonlyArray<string | number>
  ) => Effect.Effect<unknown, LockError.LockStoreError>
  /**
   * Listens to a channel until the scope closes; returns when the server has confirmed the subscription. `onReconnect` is
   * called when messages may have been missed.
   */
  readonly subscribe: (
    channel: string,
    onMessage: (message: string) => void,
    onReconnect: () => void
  ) => Effect.Effect<void, LockError.LockStoreError, Scope.Scope>
}

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
  const redis = yield* connect(() => {
    const all: RedisOptions & { replyMapping: "legacy" } = { connectionName: "effect-lock", ...options, ...reliable(commandTimeout), replyMapping: "legacy" }
    return url === undefined ? new Redis(all) : new Redis(url, all)
  }, commandTimeout)
  return yield* makeFrom(redis, commandTimeout, true)
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
): Effect.Effect<RedisClient, never, Scope.Scope> => makeFrom(redis, commandTimeout, false)

// With ioredis' defaults a script whose reply was lost runs again after the reconnect, and a command waits through any
// number of failed connections. Time-outs and retries are ours.
const reliable = (commandTimeout: number) => ({
  lazyConnect: true,
  enableAutoPipelining: true,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: 0,
  connectTimeout: commandTimeout,
  retryStrategy: (attempt: number) => Math.min(50 * 2 ** Math.min(attempt, 5), 1000) * (0.75 + Math.random() / 2)
})

const connect = (open: () => Redis, timeout: number): Effect.Effect<Redis, LockError.LockStoreError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const redis = open()
      // Without a listener ioredis prints every connection error; commands report them.
      redis.on("error", () => {})
      return redis
    }),
    (redis) => Effect.sync(() => redis.disconnect())
  ).pipe(
    Effect.tap((redis) =>
      Effect.tryPromise({ try: () => redis.connect(), catch: (cause) => failure("connect", cause) }).pipe(
        Effect.timeoutOrElse({ duration: timeout, orElse: () => Effect.fail(timedOut("connect", timeout)) })
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
}

const makeFrom = Effect.fnUntraced(function*(
  redis: Redis | Cluster,
  commandTimeout: number,
  owned: boolean
): Effect.fn.Return<RedisClient, never, Scope.Scope> {
  const commander = redis as unknown as Commander
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1_000_000

  // All commands have the same time-out, so the oldest runs out first: one fiber watches over all of them, and a command
  // on the hot path costs no timer and no fiber of its own.
  const pending = new Set<Pending>()
  const busy = Latch.makeUnsafe(false)
  let lastReplyAt = now()
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
      pending.delete(oldest)
      oldest.resume(Effect.fail(timedOut(oldest.operation, commandTimeout)))
      // Replies come in order: none since it was sent means that the connection hangs, half-open perhaps for minutes.
      if (owned && lastReplyAt < oldest.sentAt && redis.status === "ready") (redis as Redis).disconnect(true)
    }
  }).pipe(Effect.forkScoped)

  const bounded = (
    operation: string,
    send: () => Promise<unknown>
  ): Effect.Effect<unknown, LockError.LockStoreError> =>
    Effect.callback<unknown, LockError.LockStoreError>((resume) => {
      const command: Pending = { operation, sentAt: now(), resume }
      pending.add(command)
      if (pending.size === 1) busy.openUnsafe()
      const settle = (effect: Effect.Effect<unknown, LockError.LockStoreError>) => {
        lastReplyAt = now()
        if (pending.delete(command)) resume(effect)
      }
      send().then(
        (reply) => settle(Effect.succeed(reply)),
        (cause) => settle(Effect.fail(failure(operation, cause)))
      )
      return Effect.sync(() => void pending.delete(command))
    })

  const run: RedisClient["run"] = (script, keys, args) =>
    Effect.catchIf(
      bounded(script.name, () => commander.evalsha(script.sha, keys.length, ...keys, ...args)),
      isUnknownScript,
      () => bounded(script.name, () => commander.eval(script.source, keys.length, ...keys, ...args))
    )

  const command: RedisClient["command"] = (name, ...args) => bounded(name, () => commander.call(name, ...args))

  const subscribe: RedisClient["subscribe"] = Effect.fnUntraced(function*(channel, onMessage, onReconnect) {
    const subscriber = yield* connect(
      () =>
        (redis as Redis).duplicate({
          ...reliable(commandTimeout),
          // A subscriber that speaks RESP3 drops what the server pushes on its own account.
          protocol: 2,
          enableAutoPipelining: false,
          connectionName: "effect-lock-subscriber"
        }),
      commandTimeout
    )
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const message = (_channel: string, text: string) => onMessage(text)
        subscriber.on("message", message)
        subscriber.on("ready", onReconnect)
        return message
      }),
      (message) =>
        Effect.sync(() => {
          subscriber.off("message", message)
          subscriber.off("ready", onReconnect)
        })
    )
    yield* Effect.tryPromise({
      try: () => subscriber.subscribe(channel),
      catch: (cause) => failure("subscribe", cause)
    }).pipe(
      Effect.timeoutOrElse({
        duration: commandTimeout,
        orElse: () => Effect.fail(timedOut("subscribe", commandTimeout))
      })
    )
  })

  return { run, command, subscribe }
})

const timedOut = (operation: string, limit: number): LockError.LockStoreError =>
  new LockError.LockStoreError({ store: "redis", operation, reason: "Timeout", limit })

const failure = (operation: string, cause: unknown): LockError.LockStoreError => {
  const detail = cause instanceof Error ? cause.message : String(cause)
  const isReply = cause instanceof Error && cause.name === "ReplyError"
  const reason = isReply && !transient.test(detail) ? "Refused" : "Unavailable"
  return new LockError.LockStoreError({ store: "redis", operation, reason, detail, cause })
}

// Answers of a server that will do what was asked once it has finished something else.
const transient = /^(LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY) /

const isUnknownScript = (error: LockError.LockStoreError): boolean =>
  error.reason === "Refused" && error.detail?.startsWith("NOSCRIPT") === true
