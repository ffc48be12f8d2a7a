/**
 * Clients of Clusters and of Sentinels, and what tests ask the servers behind them.
 */
import type { LockOptions } from "@effect-lock/core"
import type { RedisServer } from "@effect-lock/test-utils"
import { Deferred, Effect, type Exit, Fiber, type Scope } from "effect"
import { RedisLockStore } from "../../src/index.ts"
import { build, type Client, patience, until } from "./client.ts"

export interface ClientOptions {
  readonly store?: RedisLockStore.StoreOptions
  readonly lock?: LockOptions.LockOptions
}

/** Without lock delay, unless asked for: nobody should have to wait for what a failover may have lost. */
export const connectCluster = (cluster: RedisServer.Cluster, options?: ClientOptions) =>
  build(
    RedisLockStore.layer({ cluster: { nodes: cluster.addresses }, lockDelay: false, ...patience, ...options?.store }),
    options?.lock
  )

export const connectSentinel = ({ addresses, name }: RedisServer.Sentinel, options?: ClientOptions) =>
  build(
    RedisLockStore.layer({
      options: { sentinels: [...addresses], name },
      lockDelay: false,
      ...patience,
      ...options?.store
    }),
    options?.lock
  )

export interface Occupant {
  readonly entered: Effect.Effect<void>
  /** The token it entered with; 0 before. */
  readonly token: () => number
  readonly isInside: () => boolean
  /** Ends the work, and awaits the release. */
  readonly leave: Effect.Effect<Exit.Exit<void, unknown>>
  readonly exit: Effect.Effect<Exit.Exit<void, unknown>>
}

/** Asks for a key in a fiber of its own, and keeps it until told to leave or until the lease is lost. */
export const occupy = Effect.fnUntraced(function*(
  { lock }: Pick<Client, "lock">,
  key: string,
  options?: LockOptions.LockOptions
): Effect.fn.Return<Occupant, never, Scope.Scope> {
  const entered = yield* Deferred.make<void>()
  const left = yield* Deferred.make<void>()
  let token = 0
  let isInside = false
  const fiber = yield* Effect.gen(function*() {
    const lease = yield* lock.acquire(key, options)
    token = lease.token
    isInside = true
    yield* Deferred.succeed(entered, undefined)
    yield* Effect.ensuring(lease.protect(Deferred.await(left)), Effect.sync(() => void (isInside = false)))
  }).pipe(Effect.scoped, Effect.forkScoped({ startImmediately: true }))
  const exit = Fiber.await(fiber)
  return {
    entered: Effect.raceFirst(Deferred.await(entered), Effect.andThen(Fiber.join(fiber), Effect.never)).pipe(
      Effect.orDie
    ),
    token: () => token,
    isInside: () => isInside,
    leave: Effect.andThen(Deferred.succeed(left, undefined), exit),
    exit
  }
})

/** Puts so many waiters behind a holder, each in the queue before the next one asks. */
export const lineUp = (clients: ReadonlyArray<Client>, key: string, options?: LockOptions.LockOptions) =>
  Effect.forEach(clients, (client, i) =>
    Effect.tap(
      occupy(client, key, options),
      until(Effect.map(client.store.inspect(key), ({ waiters }) => waiters.length === i + 1), `${i + 1} waiters`)
    ))

/** How often a server has refused something with this error; servers before version 6.2 do not count. */
const refusals = (server: RedisServer.Server, code: string) =>
  Effect.map(
    server.command("INFO", "errorstats"),
    (info) =>
      /^errorstat_/m.test(String(info)) || Number.parseFloat(server.version) >= 6.2
        ? Number(new RegExp(`^errorstat_${code}:count=(\\d+)`, "m").exec(String(info))?.[1] ?? 0)
        : Infinity
  )

/** From now on: what it returns waits until the server refuses something with this error. */
export const refusal = (server: RedisServer.Server, code: string) =>
  Effect.map(refusals(server, code), (before) =>
    until(
      Effect.map(refusals(server, code), (count) => count > before || count === Infinity),
      `${server.port} answers ${code}`
    ))

/** The servers that have a connection with a name that begins so. */
export const serversOf = <S extends RedisServer.Server>(servers: ReadonlyArray<S>, name: string) =>
  Effect.filter(servers, (server) =>
    Effect.map(
      Effect.orElseSucceed(Effect.timeout(server.clients, "5 seconds"), () => []),
      (clients) => clients.some((client) => client.get("name")?.startsWith(name) === true)
    ))

/** Connections that are not the test's own. */
export const connectionsTo = (servers: ReadonlyArray<RedisServer.Server>) =>
  Effect.map(
    Effect.forEach(servers, (server) => server.clients),
    (clients) =>
      clients.flat().flatMap((client) =>
        client.get("name")?.includes("effect-lock") === true ? [client.get("name")] : []
      )
        .filter((name) => name !== "effect-lock-admin")
  )

/** Waits until every write the server has taken so far has reached its replicas, so that a failover cannot lose it. */
export const replicated = (server: RedisServer.Server, replicas = 1) =>
  until(
    // WAIT speaks of what had been written when its own connection was served last.
    Effect.map(
      Effect.andThen(server.command("PING"), server.command("WAIT", replicas, 1000)),
      (count) => Number(count) >= replicas
    ),
    "the replicas have everything"
  )
