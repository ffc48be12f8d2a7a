/**
 * A client of `effect/sql` on the SQLite that comes with Node, as a driver would make it.
 */
import { Effect, Stream } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient, type SqlConnection, SqlError, Statement } from "effect/sql"
import { DatabaseSync, type SQLInputValue } from "node:sqlite"

/** One connection to a database file, or to a database in memory, closed with the scope. */
export const connect = Effect.fnUntraced(function*(file = ":memory:") {
  const database = yield* Effect.acquireRelease(
    // Who finds the database locked is told at once: it could not be unlocked while this thread waits.
    Effect.sync(() => new DatabaseSync(file, { timeout: 0 })),
    (database) => Effect.sync(() => database.close())
  )
  const run = (text: string, params: ReadonlyArray<unknown>, arrays = false) =>
    Effect.try({
      try: (): ReadonlyArray<any> => {
        const statement = database.prepare(text)
        statement.setReturnArrays(arrays)
        return statement.all(...params as ReadonlyArray<SQLInputValue>)
      },
      catch: (cause) => new SqlError.SqlError({ reason: SqlError.classifySqliteError(cause, { message: text }) })
    })
  const connection: SqlConnection.Connection = {
    execute: (text, params, transform) =>
      Effect.map(run(text, params), (rows) => transform === undefined ? rows : transform(rows)),
    executeRaw: (text, params) => run(text, params),
    executeStream: (text, params) => Stream.fromIterableEffect(run(text, params)),
    executeValues: (text, params) => run(text, params, true),
    executeValuesUnprepared: (text, params) => run(text, params, true),
    executeUnprepared: (text, params) => run(text, params)
  }
  return yield* SqlClient.make({
    acquirer: Effect.succeed(connection),
    compiler: Statement.makeCompilerSqlite(),
    driver: "sqlite-node",
    spanAttributes: []
  }).pipe(Effect.provide(Reactivity.layer))
})
