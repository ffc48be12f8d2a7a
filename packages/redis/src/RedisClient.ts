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
  const connection = yield* connect(() => {
    const all: RedisOptions & { replyMapping: "legacy" } = {
      connectionName: "effect-lock",
      ...options,
      ...reliable(commandTimeout),
      replyMapping: "legacy"
    }
    return url === undefined ? new Redis(all) : new Redis(url, all)
  }, commandTimeout)
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
  retryStrategy: (attempt: number) => Math.min(50 * 2 ** Math.min(attempt, 5), 1000) * (0.75 + Math.random() / 2)
})

/** A connection of our own, and what it was last lost for: ioredis itself reports only that it was. */
interface Connection {
  readonly redis: Redis
  lastError: unknown
}

const connect = (
  open: () => Redis,
  timeout: number
): Effect.Effect<Connection, LockError.LockStoreError, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const connection: Connection = { redis: open(), lastError: undefined }
      // Without a listener ioredis prints every connection error; commands report them.
      connection.redis.on("error", (error) => {
        connection.lastError = error
      })
      connection.redis.on("ready", () => {
        connection.lastError = undefined
      })
      return connection
    }),
    ({ redis }) => Effect.sync(() => redis.disconnect())
  ).pipe(
    Effect.tap((connection) =>
      Effect.tryPromise({
        try: () => connection.redis.connect(),
        catch: (cause) => failure("connect", cause, connection.lastError)
      }).pipe(
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
  owned: Connection | undefined
): Effect.fn.Return<RedisClient, never, Scope.Scope> {
  const commander = redis as unknown as Commander
  const clock = yield* Clock.clockWith(Effect.succeed)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1_000_000

  // All commands have the same time-out, so the oldest runs out first: one fiber watches over all of them, and a command
  // on the hot path costs no timer and no fiber of its own.
  const pending = new Set<Pending>()
  const busy = Latch.makeUnsafe(false)
  let lastReplyAt = now()
  // What is sent again over a new connection has not been waiting for that one.
  if (owned !== undefined) owned.redis.on("ready", () => void (lastReplyAt = now()))
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
      if (owned !== undefined && lastReplyAt < oldest.sentAt && mayHang.has(redis.status)) owned.redis.disconnect(true)
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
      const settleWith = (cause: unknown) => settle(Effect.fail(failure(operation, cause, owned?.lastError)))
      try {
        send().then((reply) => settle(Effect.succeed(reply)), settleWith)
      } catch (cause) {
        settleWith(cause)
      }
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
    const connection = yield* connect(
      () =>
        (redis as Redis).duplicate({
          ...reliable(commandTimeout),
          // A subscriber that speaks RESP3 drops what the server pushes on its own account.
          protocol: 2,
          enableAutoPipelining: false,
          // What ioredis subscribes again by itself it forgets when that fails, with a rejection that nobody can handle.
          autoResubscribe: false,
          // Nobody else would notice that a handshake or a subscription of a later connection gets no answer.
          socketTimeout: commandTimeout,
          connectionName: "effect-lock-subscriber"
        }),
      commandTimeout
    )
    const subscriber = connection.redis
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const message = (_channel: string, text: string) => onMessage(text)
        const ready = () => void subscriber.subscribe(channel).then(onReconnect, () => {})
        subscriber.on("message", message)
        subscriber.on("ready", ready)
        return { message, ready }
      }),
      ({ message, ready }) =>
        Effect.sync(() => {
          subscriber.off("message", message)
          subscriber.off("ready", ready)
        })
    )
    yield* Effect.tryPromise({
      try: () => subscriber.subscribe(channel),
      catch: (cause) => failure("subscribe", cause, connection.lastError)
    }).pipe(
      Effect.timeoutOrElse({
        duration: commandTimeout,
        orElse: () => Effect.fail(timedOut("subscribe", commandTimeout))
      })
    )
  })

  return { run, command, subscribe }
})

// While it connects ioredis bounds the time itself, but not that of the handshake after it.
const mayHang = new Set(["connect", "ready"])

const timedOut = (operation: string, limit: number): LockError.LockStoreError =>
  new LockError.LockStoreError({ store: "redis", operation, reason: "Timeout", limit })

const failure = (operation: string, rejection: unknown, connectionError: unknown): LockError.LockStoreError => {
  const cause = isReplyError(rejection) ? rejection : connectionError ?? rejection
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

// Answers of a server that will do what was asked once it has finished something else.
const transient = /^(LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY) /

const isUnknownScript = (error: LockError.LockStoreError): boolean =>
  error.reason === "Refused" && error.detail?.startsWith("NOSCRIPT") === true
