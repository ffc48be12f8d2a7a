// What must not compile is meant to.
// @effect-diagnostics missingEffectContext:off floatingEffect:off
import { describe, expectTypeOf, it } from "@effect/vitest"
import { Effect, type Option, type Scope } from "effect"
import { Guard, type Lease, Lock, type LockError } from "../src/index.ts"

type InvoiceId = number & { readonly InvoiceId: true }

class InvoiceGuard extends Guard.Service<InvoiceGuard>()("InvoiceGuard", {
  key: (id: InvoiceId) => `invoice:${id}`,
  ttl: "30 seconds"
}) {}

class AccountGuard extends Guard.Service<AccountGuard>()("AccountGuard", { key: (id: string) => `account:${id}` }) {}

class MigrationGuard extends Guard.Service<MigrationGuard>()("MigrationGuard", { key: () => "migration" }) {}

class PayError {
  readonly _tag = "PayError"
}

declare const pay: Effect.Effect<number, PayError, InvoiceGuard | "database">
declare const guarded: Effect.Effect<number, never, InvoiceGuard>
declare const id: InvoiceId
declare const lease: Lease.Lease

// Never run: the compiler is the test.
declare const unsafeRun: (effect: Effect.Effect<number, unknown>) => void

describe("types", () => {
  it("what needs a guard does not compile outside of it", () => {
    expectTypeOf(() => {
      // @ts-expect-error InvoiceGuard is missing
      unsafeRun(guarded)
      // @ts-expect-error a lock on the same key is not the guard
      unsafeRun(Effect.provideService(Lock.withLock(guarded, "invoice:1"), Lock.Lock, {} as Lock.Lock["Service"]))
      unsafeRun(Effect.provideService(InvoiceGuard.with(guarded, id), Lock.Lock, {} as Lock.Lock["Service"]))
    }).toBeFunction()
  })

  it("another guard, even of the same key, does not do", () => {
    expectTypeOf(() => AccountGuard.with(guarded, "1")).returns.toEqualTypeOf<
      Effect.Effect<number, LockError.LockError, InvoiceGuard | Lock.Lock>
    >()
  })

  it("nothing made by hand can be provided: not an object, a lease, nor the lease of another guard", () => {
    expectTypeOf(() => {
      // @ts-expect-error no lease
      Effect.provideService(guarded, InvoiceGuard, { id, token: 1 })
      // @ts-expect-error a lease of whatever key
      Effect.provideService(guarded, InvoiceGuard, lease)
      // @ts-expect-error a lease of whatever key, data-last
      guarded.pipe(Effect.provideService(InvoiceGuard, lease))
      // @ts-expect-error a lease with an id
      Effect.provideService(guarded, InvoiceGuard, { ...lease, id })
      Effect.flatMap(AccountGuard, (account) =>
        // @ts-expect-error the lease of another guard
        Effect.provideService(guarded, InvoiceGuard, { ...account, id }))
      // @ts-expect-error the class is no value of its own type
      return new InvoiceGuard()
    }).toBeFunction()
  })

  it("with removes the guard, and only that, and adds Lock and LockError", () => {
    expectTypeOf(() => pay.pipe(InvoiceGuard.with(id))).returns.toEqualTypeOf<
      Effect.Effect<number, PayError | LockError.LockError, "database" | Lock.Lock>
    >()
    expectTypeOf(() => InvoiceGuard.with(pay, id, { waitTimeout: "1 second" })).returns.toEqualTypeOf<
      Effect.Effect<number, PayError | LockError.LockError, "database" | Lock.Lock>
    >()
    expectTypeOf(() => InvoiceGuard.with(Effect.andThen(Effect.scope, pay), id)).returns.toEqualTypeOf<
      Effect.Effect<number, PayError | LockError.LockError, "database" | Lock.Lock | Scope.Scope>
    >()
    expectTypeOf(() => pay.pipe(InvoiceGuard.with(id), AccountGuard.with("7"))).returns.toEqualTypeOf<
      Effect.Effect<number, PayError | LockError.LockError, "database" | Lock.Lock>
    >()
  })

  it("withIfAvailable gives an Option, and cannot time out or deadlock", () => {
    expectTypeOf(() => pay.pipe(InvoiceGuard.withIfAvailable(id))).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<number>, PayError | Lock.TryError, "database" | Lock.Lock>
    >()
    expectTypeOf(() => InvoiceGuard.withIfAvailable(pay, id)).returns.toEqualTypeOf<
      Effect.Effect<Option.Option<number>, PayError | Lock.TryError, "database" | Lock.Lock>
    >()
  })

  it("inside it is a lease that knows for which id", () => {
    expectTypeOf(Effect.map(InvoiceGuard, (it) => it)).toEqualTypeOf<
      Effect.Effect<Guard.Guarded<"InvoiceGuard", InvoiceId>, never, InvoiceGuard>
    >()
    expectTypeOf<Guard.Guarded<"InvoiceGuard", InvoiceId>>().toExtend<
      Omit<Lease.Lease, "handOff"> & { readonly id: InvoiceId }
    >()
  })

  it("the id must be of the guard's type; a guard of one thing has none", () => {
    expectTypeOf(() => {
      // @ts-expect-error not an InvoiceId
      pay.pipe(InvoiceGuard.with("1"))
      // @ts-expect-error not an InvoiceId
      InvoiceGuard.with(pay, 1)
      // @ts-expect-error an id is missing
      InvoiceGuard.with()
      // @ts-expect-error nothing to tell apart
      MigrationGuard.with("1")
      return Effect.void.pipe(MigrationGuard.with())
    }).returns.toEqualTypeOf<Effect.Effect<void, LockError.LockError, Lock.Lock>>()
  })

  it("a guard cannot be made without a key, or with options that locks do not have", () => {
    expectTypeOf(() => {
      // @ts-expect-error the key is missing
      Guard.Service<InvoiceGuard>()("InvoiceGuard", { ttl: 1000 })
      // @ts-expect-error no such option
      Guard.Service<InvoiceGuard>()("InvoiceGuard", { key: () => "k", tll: 1000 })
    }).toBeFunction()
  })
})
