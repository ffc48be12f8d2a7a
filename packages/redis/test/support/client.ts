/**
 * Clients of a real server as tests need them: each with connections of its own, closed on demand or with the test.
 */
import { Lock, type LockOptions, LockStore } from "@effect-lock/core"
import type { RedisServer } from "@effect-lock/test-utils"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Schedule, Scope } from "effect"
import { RedisLockStore } from "../../src/index.ts"
import { uncounted } from "./observe.ts"

export interface Client {
  readonly lock: Lock.Lock["Service"]
  readonly store: LockStore.LockStore["Service"]
  /** Closes the lock layer and the store under it; at the latest that happens when the test ends. */
  readonly close: Effect.Effect<void>
}

export const build = Effect.fnUntraced(function*<E>(
  store: Layer.Layer<LockStore.LockStore, E>,
  defaults?: LockOptions.LockOptions
): Effect.fn.Return<Client, E, Scope.Scope> {
  const scope = Scope.forkUnsafe(yield* Scope.Scope)
  const context = yield* Scope.provide(
    Layer.build(Lock.layer(defaults).pipe(Layer.provideMerge(store))),
    scope
  ).pipe(Effect.catchTag("LockInvalid", Effect.die))
  return {
    lock: Context.get(context, Lock.Lock),
    store: Context.get(context, LockStore.LockStore),
    close: Scope.close(scope, Exit.void)
  }
})

/** For who is not about time-outs: longer than a machine that is shared stands still. */
export const patience = { commandTimeout: "20 seconds" } as const

/** A client of the server, or of whatever else has an address. */
export const connect = (
  target: { readonly url: string },
  options?: { readonly store?: RedisLockStore.Options; readonly lock?: LockOptions.LockOptions }
) => build(RedisLockStore.layer({ url: target.url, ...patience, ...options?.store }), options?.lock)

export interface Hold {
  /** Interrupts whoever holds or waits, and awaits his end. */
  readonly interrupt: Effect.Effect<void>
  /** Waits until the body has begun. */
  readonly entered: Effect.Effect<void>
  readonly isInside: () => boolean
  /** Ends the body, and awaits the release. */
  readonly leave: Effect.Effect<void>
  readonly exit: Effect.Effect<Exit.Exit<void, unknown>>
}

/** Asks for a key in a fiber of its own, and holds it until told to leave. */
export const hold = Effect.fnUntraced(function*(
  { lock }: Pick<Client, "lock">,
  key: string,
  options?: LockOptions.LockOptions
): Effect.fn.Return<Hold, never, Scope.Scope> {
  const entered = yield* Deferred.make<void>()
  const left = yield* Deferred.make<void>()
  const fiber = yield* Deferred.succeed(entered, undefined).pipe(
    Effect.andThen(Deferred.await(left)),
    (body) => lock.withLock(body, key, options),
    Effect.forkScoped({ startImmediately: true })
  )
  return {
    interrupt: Fiber.interrupt(fiber),
    // A hold that failed will never be entered.
    entered: Effect.raceFirst(Deferred.await(entered), Effect.andThen(Fiber.join(fiber), Effect.never)).pipe(
      Effect.orDie
    ),
    isInside: () => Deferred.isDoneUnsafe(entered),
    leave: Effect.andThen(Deferred.succeed(left, undefined), Effect.asVoid(Fiber.await(fiber))),
    exit: Fiber.await(fiber)
  }
})

/** Waits for what must come true sooner or later, asking again and again. */
export const until = <E, R>(condition: Effect.Effect<boolean, E, R>, what: string): Effect.Effect<void, E, R> =>
  condition.pipe(
    Effect.repeat({ until: (met) => met, schedule: Schedule.spaced("2 millis") }),
    Effect.timeoutOrElse({ duration: "50 seconds", orElse: () => Effect.die(new Error(`never came true: ${what}`)) }),
    Effect.asVoid,
    uncounted
  )

export const untilSync = (condition: () => boolean, what: string) => until(Effect.sync(condition), what)

/** Waits until so many wait for the key. */
export const queued = ({ store }: Pick<Client, "store">, key: string, count: number) =>
  until(Effect.map(store.inspect(key), ({ waiters }) => waiters.length === count), `${count} waiters for ${key}`)

/** The server's keys of a lock. */
export const keysOf = (key: string, prefix = "effect-lock"): ReadonlyArray<string> => {
  const hash = `${prefix}:{${key.replaceAll("%", "%25").replaceAll("}", "%7D")}}`
  return [hash, `${hash}:queue`, `${hash}:waiters`, `${hash}:clients`]
}

/** What is left of a lock on the server beside the summary of its last state: nothing, when nobody holds it or waits. */
export const leftovers = Effect.fnUntraced(function*(server: RedisServer.Server, key: string) {
  const [hash, ...others] = keysOf(key)
  const fields = (yield* server.command("HKEYS", hash!)) as Array<string>
  const left = fields.filter((field) => field !== "s")
  for (const other of others) {
    if ((yield* server.command("EXISTS", other)) === 1) left.push(other)
  }
  return left
})

/** Connections of our clients, as the server counts them. */
export const connections = (server: RedisServer.Server) =>
  Effect.map(server.clients, (clients) =>
    clients.flatMap((client) => {
      const name = client.get("name")
      return name === "effect-lock" || name === "effect-lock-subscriber" ? [name] : []
    }).toSorted())
