import { Fencing, Lock, LockStore } from "@effect-lock/core"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Layer, Random } from "effect"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { connect } from "./support/sqlite.ts"

const LockLive = Lock.layer().pipe(Layer.provide(LockStore.layerMemory))

const file = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "effect-lock-"))),
    (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true }))
  ),
  (folder) => Path.join(folder, "fence.sqlite")
)

const makeSql = Effect.gen(function*() {
  const fence = Fencing.makeSql(yield* connect())
  yield* fence.createTable
  return fence
})

const fences = [
  { name: "memory", make: Fencing.makeMemory },
  { name: "SQL", make: makeSql }
]

describe.for(fences)("a fence in $name", ({ make }) => {
  it.effect("accepts the same token again, and greater ones, each for its resource", () =>
    Effect.gen(function*() {
      const fence = yield* make
      yield* fence.register("a", 5)
      yield* fence.register("a", 5)
      yield* fence.register("a", 7)
      yield* fence.register("b", 1)
      assert.strictEqual(yield* fence.guard("a", 7)(Effect.succeed("written")), "written")
    }))

  it.effect("refuses a smaller token, says which it has seen, and does not run the effect", () =>
    Effect.gen(function*() {
      const fence = yield* make
      let ran = false
      yield* fence.register("a", 7)
      const error = yield* Effect.sync(() => ran = true).pipe(fence.guard("a", 6), Effect.flip)
      assert.deepStrictEqual(error, new Fencing.StaleToken({ resource: "a", token: 6, highest: 7 }))
      assert.strictEqual(error.message, "Resource \"a\" refused token 6: a later holder has come with token 7")
      assert.strictEqual((yield* Effect.flip(fence.register("a", 1)))._tag, "StaleToken")
      assert.isFalse(ran)
    }))

  it.effect("takes a lease for its token, and keeps tokens as large as they can be exact", () =>
    Effect.gen(function*() {
      const fence = yield* make
      const first = yield* Effect.scoped(Lock.acquire("k"))
      const second = yield* Effect.scoped(Lock.acquire("k"))
      yield* fence.register("a", second)
      const { highest, token } = yield* Effect.flip(fence.register("a", first)).pipe(
        Effect.filterOrFail((error) => error._tag === "StaleToken")
      )
      assert.deepStrictEqual({ highest, token }, { highest: second.token, token: first.token })
      yield* fence.register("a", Number.MAX_SAFE_INTEGER)
      const late = yield* Effect.flip(fence.register("a", Number.MAX_SAFE_INTEGER - 1))
      assert.strictEqual(late._tag, "StaleToken")
    }).pipe(Effect.provide(LockLive)))

  it.effect("refuses what is no token and no resource with LockInvalid, and remembers nothing of it", () =>
    Effect.gen(function*() {
      const fence = yield* make
      for (const token of [0, -1, NaN, Infinity, 1.5, 2 ** 53]) {
        const error = yield* Effect.flip(fence.register("a", token))
        assert.strictEqual(error._tag, "LockInvalid")
        assert.include(error.message, `token ${token}: use the token of a lease`)
      }
      for (const resource of ["", "x".repeat(1025)]) {
        assert.strictEqual((yield* Effect.flip(fence.guard(resource, 1)(Effect.void)))._tag, "LockInvalid")
      }
      yield* fence.register("a", 1)
    }))

  it.effect("never lets the accepted tokens fall, whatever comes in whatever order", () =>
    Effect.gen(function*() {
      const fence = yield* make
      const highest = new Map<string, number>()
      for (let i = 0; i < 2000; i++) {
        const resource = `r${yield* Random.nextIntBetween(0, 3)}`
        const token = yield* Random.nextIntBetween(1, 40)
        const seen = highest.get(resource) ?? 0
        const exit = yield* Effect.exit(fence.guard(resource, token)(Effect.void))
        assert.strictEqual(Exit.isSuccess(exit), token >= seen, `${resource} ${token} after ${seen}`)
        highest.set(resource, Math.max(seen, token))
      }
    }).pipe(Random.withSeed("fencing")))
})

describe("a fence in memory", () => {
  it.effect("lets a greater token in only when what a smaller one guards has ended, and no smaller one meanwhile", () =>
    Effect.gen(function*() {
      const fence = yield* Fencing.makeMemory
      const trace: Array<string> = []
      const gate = yield* Deferred.make<void>()
      const write = (token: number, wait: Effect.Effect<void>) =>
        Effect.sync(() => trace.push(`${token} begins`)).pipe(
          Effect.andThen(wait),
          Effect.ensuring(Effect.sync(() => trace.push(`${token} ends`))),
          fence.guard("a", token),
          Effect.forkChild({ startImmediately: true })
        )
      const old = yield* write(1, Deferred.await(gate))
      const next = yield* write(2, Effect.void)
      const newest = yield* write(3, Effect.void)
      assert.strictEqual((yield* Effect.flip(fence.register("a", 1)))._tag, "StaleToken")
      assert.deepStrictEqual(trace, ["1 begins"])
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(old)
      // While it waited somebody newer came.
      assert.isTrue(Exit.isFailure(yield* Fiber.await(next)))
      yield* Fiber.join(newest)
      assert.deepStrictEqual(trace, ["1 begins", "1 ends", "3 begins", "3 ends"])
    }))

  it.effect("does not keep a holder's own writes from each other, and forgets one that was interrupted or failed", () =>
    Effect.gen(function*() {
      const fence = yield* Fencing.makeMemory
      const hanging = yield* Effect.never.pipe(fence.guard("a", 1), Effect.forkChild({ startImmediately: true }))
      assert.strictEqual(yield* Effect.succeed("nested").pipe(fence.guard("a", 1), fence.guard("a", 1)), "nested")
      assert.strictEqual(yield* Effect.flip(fence.guard("a", 1)(Effect.fail("own error"))), "own error")
      const next = yield* Effect.forkChild(fence.register("a", 2), { startImmediately: true })
      yield* Fiber.interrupt(hanging)
      yield* Fiber.join(next)
    }))
})

describe("a fence in SQL", () => {
  it.effect("undoes what was written when the guarded effect fails, its token included", () =>
    Effect.gen(function*() {
      const sql = yield* connect()
      const fence = Fencing.makeSql(sql, { table: "my fences" })
      yield* fence.createTable
      yield* fence.createTable
      yield* sql`CREATE TABLE account (balance INTEGER)`
      yield* sql`INSERT INTO account VALUES (100)`
      yield* sql`UPDATE account SET balance = 0`.pipe(
        Effect.andThen(Effect.fail("no")),
        fence.guard("a", 9),
        Effect.flip
      )
      assert.deepStrictEqual(yield* sql`SELECT balance FROM account`, [{ balance: 100 }])
      yield* fence.register("a", 1)
      assert.deepStrictEqual(yield* sql`SELECT * FROM "my fences"`, [{ resource: "a", token: 1 }])
    }))

  it.effect("holds off everybody else until the transaction ends, and refuses them by what it committed", () =>
    Effect.gen(function*() {
      const path = yield* file
      const [ada, ben] = [yield* connect(path), yield* connect(path)]
      const [adas, bens] = [Fencing.makeSql(ada), Fencing.makeSql(ben)]
      yield* adas.createTable
      yield* ada`CREATE TABLE account (balance INTEGER)`
      yield* ada`INSERT INTO account VALUES (100)`
      const write = bens.guard("a", 1)(ben`UPDATE account SET balance = 0`)
      yield* ada.withTransaction(Effect.gen(function*() {
        yield* adas.register("a", 2)
        // This database does not queue who finds it locked.
        assert.strictEqual((yield* Effect.flip(write))._tag, "SqlError")
        assert.strictEqual((yield* Effect.flip(bens.register("a", 3)))._tag, "SqlError")
        yield* ada`UPDATE account SET balance = 110`
      }))
      assert.strictEqual((yield* Effect.flip(write))._tag, "StaleToken")
      assert.deepStrictEqual(yield* ben`SELECT balance FROM account`, [{ balance: 110 }])
    }))

  it.effect("updates a row unless the token in it is greater, and stores its own", () =>
    Effect.gen(function*() {
      const sql = yield* connect()
      yield* sql`CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, fence_token BIGINT)`
      yield* sql`INSERT INTO account (id, balance) VALUES (7, 100), (8, 100)`
      const write = (token: Fencing.Token, balance: number, id = 7) =>
        Fencing.updateSql(sql, { resource: `account:${id}`, token }, ({ accepts, set }) =>
          sql<{ balance: number }>`UPDATE account SET balance = ${balance}, ${set} WHERE id = ${id} AND ${accepts}
            RETURNING balance`)
      const [row] = yield* write(5, 110)
      assert.strictEqual(row.balance, 110)
      yield* write({ token: 5 }, 120)
      yield* write(6, 130)
      const error = yield* Effect.flip(write(5, 0))
      assert.deepStrictEqual(error, new Fencing.StaleToken({ resource: "account:7", token: 5 }))
      assert.strictEqual((yield* Effect.flip(write(7, 0, 9)))._tag, "StaleToken")
      assert.strictEqual((yield* Effect.flip(write(0, 0)))._tag, "LockInvalid")
      assert.deepStrictEqual(yield* sql`SELECT * FROM account ORDER BY id`, [
        { id: 7, balance: 130, fence_token: 6 },
        { id: 8, balance: 100, fence_token: null }
      ])
    }))

  it.effect("has the column that the table has", () =>
    Effect.gen(function*() {
      const sql = yield* connect()
      yield* sql`CREATE TABLE job ("last holder" BIGINT)`
      yield* sql`INSERT INTO job VALUES (3)`
      const write = (token: number) =>
        Fencing.updateSql(sql, { resource: "job", token, column: "last holder" }, ({ accepts, set }) =>
          sql`UPDATE job SET ${set} WHERE ${accepts} RETURNING 1`)
      yield* write(3)
      assert.strictEqual((yield* Effect.flip(write(2)))._tag, "StaleToken")
    }))
})
