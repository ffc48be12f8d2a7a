import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { Guard, Lock } from "../src/index.ts"
import { makeLock, setup } from "./support/TestStore.ts"
import { until } from "./support/time.ts"

class InvoiceGuard extends Guard.Service<InvoiceGuard>()("InvoiceGuard", {
  key: (id: number) => `invoice:${id}`,
  ttl: "10 seconds",
  waitTimeout: "2 seconds"
}) {}

class AccountGuard extends Guard.Service<AccountGuard>()("AccountGuard", { key: (id: number) => `account:${id}` }) {}

const withStore = <A, E>(
  test: (it: Effect.Success<ReturnType<typeof setup>>) => Effect.Effect<A, E, Lock.Lock>
) => Effect.flatMap(setup(), (it) => Effect.provideService(test(it), Lock.Lock, it.lock))

describe("a guard", () => {
  it.effect("gives the lease of its key, and the id that it is for", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        const seen = yield* InvoiceGuard.pipe(
          Effect.flatMap((guard) => Effect.as(guard.check, guard)),
          InvoiceGuard.with(7)
        )
        assert.strictEqual(seen.id, 7)
        assert.strictEqual(seen.key, "invoice:7")
        assert.deepInclude(store.releases[0]?.lease, { holderId: seen.holderId, token: seen.token })
        assert.strictEqual(InvoiceGuard.keyOf(7), "invoice:7")
      })
    ))

  it.effect("holds the key for as long as the work runs, which is interrupted when the lease is lost", () =>
    withStore(({ lock, store }) =>
      Effect.gen(function*() {
        const work = Effect.andThen(InvoiceGuard, Effect.never)
        const fiber = yield* Effect.forkChild(Effect.flip(InvoiceGuard.with(work, 7)))
        yield* until(() => store.count("attempt") === 1)
        assert.strictEqual((yield* lock.inspect("invoice:7")).holders.length, 1)
        yield* Effect.scoped(lock.takeover("invoice:7"))
        assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", reason: "TakenOver" })
      })
    ))

  it.effect("locks with its own options, and with those of the call before them", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        const other = yield* makeLock(store)
        yield* Effect.forkChild(other.withLock(Effect.never, "invoice:7"))
        yield* until(() => store.count("attempt") === 1)
        const asks = [undefined, { waitTimeout: undefined }, { waitTimeout: 500, ttl: 900 }]
        const all = yield* Effect.forkChild(
          Effect.forEach(asks, (options) => Effect.flip(InvoiceGuard.with(Effect.void, 7, options)))
        )
        yield* TestClock.adjust(4500)
        const errors = yield* Fiber.join(all)
        assert.deepStrictEqual(errors.map((error) => error._tag === "LockTimeout" && error.waitTimeout), [
          2000,
          2000,
          500
        ])
        assert.deepStrictEqual(store.requests.slice(1).map(({ ttl }) => ttl), [10_000, 10_000, 900])
      }).pipe(Effect.scoped)
    ))

  it.effect("is met for its work only if the key is free, where it does not wait", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        const work = InvoiceGuard.useSync(({ id }) => id)
        assert.deepStrictEqual(yield* work.pipe(InvoiceGuard.withIfAvailable(7)), Option.some(7))
        const other = yield* makeLock(store)
        yield* Effect.forkChild(other.withLock(Effect.never, "invoice:7"))
        yield* until(() => store.count("attempt") === 2)
        assert.deepStrictEqual(yield* InvoiceGuard.withIfAvailable(work, 7), Option.none())
        assert.deepStrictEqual(yield* InvoiceGuard.withIfAvailable(work, 8), Option.some(8))
      }).pipe(Effect.scoped)
    ))

  it.effect("nests in others, and all are there inside", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        const work = Effect.all([InvoiceGuard.useSync(({ key }) => key), AccountGuard.useSync(({ key }) => key)])
        assert.deepStrictEqual(yield* work.pipe(AccountGuard.with(1), InvoiceGuard.with(2)), ["invoice:2", "account:1"])
        assert.deepStrictEqual(store.releases.map(({ lease }) => lease.key), ["account:1", "invoice:2"])
      })
    ))

  it.effect("nested in itself shares the lease of the same key", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        const token = InvoiceGuard.useSync(({ token }) => token)
        const tokens = yield* Effect.all([token, token.pipe(InvoiceGuard.with(7))]).pipe(InvoiceGuard.with(7))
        assert.strictEqual(tokens[0], tokens[1])
        assert.strictEqual(store.count("attempt"), 1)
      })
    ))

  it.effect("nested in itself with another key is the inner one inside, and the outer one again after it", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        const id = InvoiceGuard.useSync(({ id, key }) => [id, key])
        const ids = yield* Effect.all([id, id.pipe(InvoiceGuard.with(8)), id]).pipe(InvoiceGuard.with(7))
        assert.deepStrictEqual(ids, [[7, "invoice:7"], [8, "invoice:8"], [7, "invoice:7"]])
        assert.strictEqual(store.count("attempt"), 2)
      })
    ))

  it.effect("that outlives its lock says so", () =>
    withStore(() =>
      Effect.gen(function*() {
        const work = InvoiceGuard.use((guard) =>
          Effect.forkDetach(Effect.andThen(Effect.sleep(10), Effect.flip(guard.check)))
        )
        const fiber = yield* work.pipe(InvoiceGuard.with(7))
        yield* TestClock.adjust(10)
        assert.deepInclude(yield* Fiber.join(fiber), { _tag: "LockLost", reason: "Released" })
      })
    ))

  it.effect("whose key is invalid, or whose key function throws, takes no lock", () =>
    withStore(({ store }) =>
      Effect.gen(function*() {
        class NoKey extends Guard.Service<NoKey>()("NoKey", { key: () => "" }) {}
        class Throws extends Guard.Service<Throws>()("Throws", { key: () => assert.fail("bug") }) {}
        assert.deepInclude(yield* Effect.flip(NoKey.with(Effect.void, undefined)), {
          _tag: "LockInvalid",
          input: "key"
        })
        const exit = yield* Effect.exit(Throws.with(Effect.void, undefined))
        assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
        assert.deepStrictEqual(store.trace, [])
      })
    ))
})
