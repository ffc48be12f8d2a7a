/**
 * Resources that refuse who is late. A process can stop for longer than its lease, right after any check, and then write:
 * no lock can hold that write back, only the resource can. It keeps the greatest fencing token it has seen and refuses a
 * smaller one with `StaleToken`.
 *
 * **When to use**
 *
 * Wherever two holders at once would be a disaster and not a nuisance. `makeMemory` guards what lives in this process,
 * `makeSql` and `updateSql` what lives in a database, `FencedRedis` of `@effect-lock/redis` what lives on Redis.
 *
 * **Gotchas**
 *
 * A stale write is refused only once the resource has seen the newer token. So a holder shows its token first, with
 * `register` or by reading under `guard`, and reads after that: what it reads then, no older holder can change any more.
 *
 * @since 0.1.0
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import { LockInvalid } from "./LockError.ts"

/**
 * A fencing token, or a lease that has one.
 *
 * @category models
 * @since 0.1.0
 */
export type Token = number | { readonly token: number }

/**
 * The resource has seen a greater token: whoever sent this one is not the holder any more. Nothing was written.
 *
 * **Details**
 *
 * `highest` is the token that the resource has seen; it is missing where the resource does not tell.
 *
 * @category errors
 * @since 0.1.0
 */
export class StaleToken extends Schema.TaggedError<StaleToken>()("StaleToken", {
  resource: Schema.String,
  token: Schema.Number,
  highest: Schema.optional(Schema.Number)
}) {
  override get message(): string {
    const newer = this.highest === undefined ? "no row takes it" : `a later holder has come with token ${this.highest}`
    return `Resource "${this.resource}" refused token ${this.token}: ${newer}`
  }
}

/**
 * What refuses stale tokens, for any number of resources. Every token that is not refused is remembered; the same one is
 * accepted again and again.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fence<E = never> {
  /** Shows a token to the resource: from now on smaller ones are refused. */
  readonly register: (resource: string, token: Token) => Effect.Effect<void, StaleToken | LockInvalid | E>
  /**
   * Runs an effect unless the token is stale. While it runs, nobody with a greater token gets in: who comes with one waits
   * for its end.
   */
  readonly guard: (
    resource: string,
    token: Token
  ) => <A, E2, R>(effect: Effect.Effect<A, E2, R>) => Effect.Effect<A, E2 | StaleToken | LockInvalid | E, R>
}

/**
 * Checks a resource's name (1 to 1024 characters) and returns the token (a whole number from 1 to below 2^53). For
 * fences of your own.
 *
 * @category constructors
 * @since 0.1.0
 */
export const resolve = (resource: string, token: Token): Effect.Effect<number, LockInvalid> => {
  const value = typeof token === "number" ? token : token.token
  return resource.length === 0 || resource.length > 1024
    ? Effect.fail(
      new LockInvalid({
        input: "resource",
        value: JSON.stringify(resource.slice(0, 40)),
        fix: "name the resource with a string of 1 to 1024 characters"
      })
    )
    : !Number.isSafeInteger(value) || value < 1
    ? Effect.fail(
      new LockInvalid({ input: "token", value: String(value), fix: "use the token of a lease, a whole number above 0" })
    )
    : Effect.succeed(value)
}

/**
 * A fence in this process's memory.
 *
 * **Gotchas**
 *
 * It keeps one number for each resource until it is garbage itself, so let it live as long as the resources do. `guard` of
 * a greater token inside `guard` of a smaller one, on the same resource, waits for itself.
 *
 * **Example** (A late write is refused)
 *
 * ```ts import.meta.vitest
 * import { Fencing, Lock, LockStore } from "@effect-lock/core"
 * import { Effect, Layer } from "effect"
 *
 * let balance = 100
 *
 * const program = Effect.gen(function*() {
 *   const fence = yield* Fencing.makeMemory
 *   const deposit = (token: Fencing.Token) =>
 *     Effect.sync(() => balance += 10).pipe(fence.guard("account:7", token))
 *
 *   const first = yield* Effect.scoped(Lock.acquire("account:7"))
 *   const second = yield* Effect.scoped(Lock.acquire("account:7"))
 *   yield* deposit(second)
 *   return yield* Effect.flip(deposit(first))
 * })
 *
 * const error = await Effect.runPromise(Effect.provide(program, Lock.layer().pipe(Layer.provide(LockStore.layerMemory))))
 * error._tag // => "StaleToken"
 * balance // => 110
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeMemory: Effect.Effect<Fence> = Effect.sync(() => {
  const resources = new Map<string, { highest: number; readonly running: Set<Running> }>()

  // Check and registration are one synchronous step: a fiber may be made to yield between any two effects.
  const enter = (resource: string, token: number, running?: Running): Effect.Effect<void, StaleToken> =>
    Effect.suspend(() => {
      let state = resources.get(resource)
      if (state === undefined) resources.set(resource, state = { highest: token, running: new Set() })
      if (token < state.highest) return Effect.fail(new StaleToken({ resource, token, highest: state.highest }))
      state.highest = token
      for (const other of state.running) {
        // Somebody newer still may come meanwhile.
        if (other.token < token) return Effect.andThen(Deferred.await(other.ended), enter(resource, token, running))
      }
      if (running !== undefined) state.running.add(running)
      return Effect.void
    })

  return {
    register: (resource, token) => Effect.flatMap(resolve(resource, token), (token) => enter(resource, token)),
    guard: (resource, token) => (effect) =>
      Effect.flatMap(resolve(resource, token), (token) => {
        const running: Running = { token, ended: Deferred.makeUnsafe() }
        return enter(resource, token, running).pipe(
          Effect.andThen(effect),
          Effect.ensuring(Effect.sync(() => {
            resources.get(resource)?.running.delete(running)
            Deferred.doneUnsafe(running.ended, Exit.void)
          }))
        )
      })
  }
})

interface Running {
  readonly token: number
  readonly ended: Deferred.Deferred<void>
}

/**
 * A statement or fragment of `effect/sql`, as far as it is needed here.
 *
 * @category models
 * @since 0.1.0
 */
export type SqlStatement<E> = Effect.Effect<ReadonlyArray<object>, E>

/**
 * What fences need of the `SqlClient` of `effect/sql`, which fits as it is.
 *
 * @category models
 * @since 0.1.0
 */
export interface SqlClient<E> {
  /** Makes a statement, or a fragment to put into another one. */
  (strings: TemplateStringsArray, ...args: Array<any>): SqlStatement<E>
  /** Makes an identifier. */
  (identifier: string): unknown
  /** Runs an effect in a transaction, or in a savepoint of the one that is open. */
  readonly withTransaction: <R, E2, A>(self: Effect.Effect<A, E2, R>) => Effect.Effect<A, E2 | E, R>
}

/**
 * A fence whose tokens live in a table, with one row for each resource.
 *
 * @category models
 * @since 0.1.0
 */
export interface SqlFence<E> extends Fence<E> {
  /** Creates the table, if it is not there: `resource VARCHAR(1024) PRIMARY KEY, token BIGINT NOT NULL`. */
  readonly createTable: Effect.Effect<void, E>
}

/**
 * A fence in a database, for the statements that go with it in one transaction.
 *
 * **Details**
 *
 * `guard` runs the effect in a transaction that begins with the token's registration. The row is locked from then until the
 * commit, so a later holder waits for that, and sees everything that was written. `register` does the same in a transaction
 * of yours; outside of one it is committed at once. The `table` is `effect_lock_fence` unless said otherwise.
 *
 * **Gotchas**
 *
 * - For PostgreSQL 9.5 and SQLite 3.35, and later: others do not know `ON CONFLICT … RETURNING` and refuse the statement.
 * - What is written outside of the transaction, or on another connection, is not protected.
 * - A process that stops within the transaction keeps the row locked until the database ends its session: see
 *   `idle_in_transaction_session_timeout`.
 * - Where transactions are `REPEATABLE READ` or stricter, a conflict can be a serialization error instead of `StaleToken`.
 * - Rows stay until you delete them. One that is gone accepts any token.
 *
 * **Example** (Two statements, refused together)
 *
 * ```ts import.meta.vitest
 * import { Fencing, Lock } from "@effect-lock/core"
 * import { Effect } from "effect"
 * import { SqlClient } from "effect/sql"
 *
 * export const transfer = Effect.gen(function*() {
 *   const sql = yield* SqlClient.SqlClient
 *   const fence = Fencing.makeSql(sql)
 *   const lease = yield* Lock.acquire("accounts")
 *   yield* Effect.gen(function*() {
 *     yield* sql`UPDATE account SET balance = balance - 10 WHERE id = 7`
 *     yield* sql`UPDATE account SET balance = balance + 10 WHERE id = 8`
 *   }).pipe(fence.guard("accounts", lease), lease.protect)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeSql = <E>(sql: SqlClient<E>, options?: { readonly table?: string | undefined }): SqlFence<E> => {
  const table = sql(options?.table ?? "effect_lock_fence")

  // One statement, which locks the row whether or not it then changes it.
  const register: SqlFence<E>["register"] = (resource, token) =>
    Effect.gen(function*() {
      const value = yield* resolve(resource, token)
      const accepted = yield* sql`INSERT INTO ${table} AS fence (resource, token) VALUES (${resource}, ${value})
        ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE fence.token <= excluded.token
        RETURNING token`
      if (accepted.length > 0) return
      const rows = yield* sql`SELECT token FROM ${table} WHERE resource = ${resource}`
      // Drivers give a BIGINT as a number, a bigint or a string.
      const [highest] = rows.flatMap((row) => "token" in row ? [Number(row.token)] : [])
      return yield* new StaleToken({ resource, token: value, highest })
    })

  return {
    createTable: Effect.asVoid(
      sql`CREATE TABLE IF NOT EXISTS ${table} (resource VARCHAR(1024) PRIMARY KEY, token BIGINT NOT NULL)`
    ),
    register,
    guard: (resource, token) => (effect) => sql.withTransaction(Effect.andThen(register(resource, token), effect))
  }
}

/**
 * An `UPDATE` that refuses a stale token, for a table that has a column for it (`BIGINT`, may be null).
 *
 * **Details**
 *
 * The statement is given two fragments: `set`, which stores the token, and `accepts`, the predicate. It returns its rows;
 * none means `StaleToken`. The `column` is `fence_token` unless said otherwise.
 *
 * **Gotchas**
 *
 * Without `RETURNING` no row ever comes back. A row that does not exist looks like a stale token.
 *
 * **Example** (Register, read, then write)
 *
 * ```ts import.meta.vitest
 * import { Fencing, Lock } from "@effect-lock/core"
 * import { Effect } from "effect"
 * import { SqlClient } from "effect/sql"
 *
 * export const deposit = Effect.gen(function*() {
 *   const sql = yield* SqlClient.SqlClient
 *   const fenced = { resource: "account:7", token: yield* Lock.acquire("account:7") }
 *   const [account] = yield* Fencing.updateSql(sql, fenced, ({ accepts, set }) =>
 *     sql<{ balance: number }>`UPDATE account SET ${set} WHERE id = 7 AND ${accepts} RETURNING balance`)
 *   yield* Fencing.updateSql(sql, fenced, ({ accepts, set }) =>
 *     sql`UPDATE account SET balance = ${account.balance + 10}, ${set} WHERE id = 7 AND ${accepts} RETURNING id`)
 * }).pipe(Effect.scoped)
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const updateSql = <E, A, E2, R>(
  sql: SqlClient<E>,
  options: { readonly resource: string; readonly token: Token; readonly column?: string | undefined },
  statement: (fence: {
    readonly set: SqlStatement<E>
    readonly accepts: SqlStatement<E>
  }) => Effect.Effect<ReadonlyArray<A>, E2, R>
): Effect.Effect<readonly [A, ...ReadonlyArray<A>], E2 | StaleToken | LockInvalid, R> =>
  Effect.gen(function*() {
    const token = yield* resolve(options.resource, options.token)
    const column = sql(options.column ?? "fence_token")
    const [first, ...others] = yield* statement({
      set: sql`${column} = ${token}`,
      accepts: sql`(${column} IS NULL OR ${column} <= ${token})`
    })
    if (first === undefined) return yield* new StaleToken({ resource: options.resource, token })
    return [first, ...others]
  })
