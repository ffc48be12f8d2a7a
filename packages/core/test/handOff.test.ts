import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Fiber, Layer, Schema, type Scope } from "effect"
import { TestClock } from "effect/testing"
import { type Lease, LeaseTicket, Lock, LockStore } from "../src/index.ts"
import { setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { until } from "./support/time.ts"

// Two clients of one store: two processes, as far as the store can tell.
const clients = Effect.gen(function*() {
  const store = yield* LockStore.LockStore
  const client = Effect.map(
    Layer.build(
      Layer.fresh(Lock.layer({ ttl: "30 seconds" })).pipe(Layer.provide(Layer.succeed(LockStore.LockStore, store)))
    ),
    (context) => Effect.provide(Lock.Lock, context)
  )
  return { store, a: yield* yield* client, b: yield* yield* client }
})

const test = (title: string, body: Effect.Effect<void, unknown, LockStore.LockStore | Scope.Scope>) =>
  it.effect(title, () => Effect.provide(body, LockStore.layerMemory))

const json = Schema.fromJsonString(LeaseTicket.LeaseTicket)

const assertFailure = (error: unknown, expected: { readonly _tag: string; readonly reason: string }) => {
  const { _tag, reason } = error as typeof expected
  assert.deepStrictEqual({ _tag, reason }, expected)
}

describe("handOff and adopt", () => {
  test(
    "G2: the adopter has a new holder id and a greater token, over JSON",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const lease = yield* a.acquire("k")
      const wire = Schema.encodeSync(json)(yield* lease.handOff)
      const adopted = yield* b.adopt(Schema.decodeSync(json)(wire))
      assert.isAbove(adopted.token, lease.token)
      assert.notStrictEqual(adopted.holderId, lease.holderId)
      assert.isTrue(yield* adopted.isValid)
      assert.isFalse(yield* lease.isValid)
      assert.strictEqual((yield* Effect.flip(lease.check)).reason, "HandedOff")
    })
  )

  test(
    "the old side neither renews nor releases what it gave away, and its scope may close first",
    Effect.gen(function*() {
      const { a, b, store } = yield* clients
      const ticket = yield* Effect.scoped(Effect.flatMap(a.acquire("k"), (lease) => lease.handOff))
      assert.lengthOf((yield* store.inspect("k")).holders, 1)
      yield* TestClock.adjust("20 seconds")
      const [aside] = (yield* store.inspect("k")).holders
      assert.strictEqual(aside?.timeLeft, 10_000)
      yield* Effect.scoped(b.adopt(ticket))
      assert.lengthOf((yield* store.inspect("k")).holders, 0)
    })
  )

  test(
    "the adopter's lease is renewed, and released at the end of its scope",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const ticket = yield* Effect.scoped(Effect.flatMap(a.acquire("k"), (lease) => lease.handOff))
      const work = yield* Effect.forkChild(
        Effect.scoped(Effect.flatMap(b.adopt(ticket), (lease) => lease.protect(Effect.sleep("5 minutes")))),
        { startImmediately: true }
      )
      yield* TestClock.adjust("5 minutes")
      assert.deepStrictEqual(yield* Fiber.await(work), Exit.void)
      assert.isTrue((yield* Effect.scoped(a.tryAcquire("k")))._tag === "Some")
    })
  )

  test(
    "a ticket is adopted once",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const ticket = yield* Effect.scoped(Effect.flatMap(a.acquire("k"), (lease) => lease.handOff))
      yield* b.adopt(ticket)
      const error = yield* Effect.flip(a.adopt(ticket))
      assertFailure(error, { _tag: "TicketRefused", reason: "Adopted" })
    })
  )

  test(
    "G9: a ticket that nobody adopts frees the key after its time left, and is refused then",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const ticket = yield* Effect.scoped(Effect.flatMap(a.acquire("k"), (lease) => lease.handOff))
      const waiter = yield* Effect.forkChild(Effect.scoped(b.acquire("k")), { startImmediately: true })
      yield* TestClock.adjust("29 seconds")
      assert.isUndefined(waiter.pollUnsafe())
      yield* TestClock.adjust("1 second")
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(waiter)))
      const error = yield* Effect.flip(b.adopt(ticket))
      assertFailure(error, { _tag: "TicketRefused", reason: "Expired" })
    })
  )

  test(
    "a ticket is refused after a take-over",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const ticket = yield* Effect.scoped(Effect.flatMap(a.acquire("k"), (lease) => lease.handOff))
      yield* Effect.scoped(b.takeover("k"))
      const error = yield* Effect.flip(b.adopt(ticket))
      assertFailure(error, { _tag: "TicketRefused", reason: "TakenOver" })
    })
  )

  test(
    "a second hand-off of the same lease fails",
    Effect.gen(function*() {
      const { a } = yield* clients
      const lease = yield* a.acquire("k")
      yield* lease.handOff
      assertFailure(yield* Effect.flip(lease.handOff), { _tag: "LockLost", reason: "HandedOff" })
    })
  )

  test(
    "a hand-off inside withLock does not interrupt the body",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const ticket = yield* a.withLock(
        Effect.gen(function*() {
          const lease = yield* Effect.scoped(Effect.flatMap(a.acquire("k"), (lease) => lease.handOff))
          return lease
        }),
        "k"
      )
      assert.isAbove((yield* b.adopt(ticket)).token, ticket.token)
    })
  )
})

describe("a hand-off that goes wrong", () => {
  it.effect("G3: work is interrupted at the deadline while the store does not answer", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.transfer = () => Effect.never
      const lease = yield* lock.acquire("k")
      yield* TestClock.adjust(500)
      const work = yield* Effect.forkChild(Effect.flip(lease.protect(Effect.never)))
      const handingOff = yield* Effect.forkChild(Effect.flip(lease.handOff))
      yield* TestClock.adjust(699)
      assert.isUndefined(work.pollUnsafe())
      // Renewed at 300.
      yield* TestClock.adjust(1)
      assert.deepInclude(yield* Fiber.join(work), { _tag: "LockLost", reason: "Expired" })
      assert.deepInclude(yield* Fiber.join(handingOff), { _tag: "LockLost", reason: "Expired" })
    }))

  it.effect("fails, and the lease is renewed as before", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.transfer = () => unavailable
      const lease = yield* lock.acquire("k")
      yield* TestClock.adjust(500)
      assert.strictEqual((yield* Effect.flip(lease.handOff))._tag, "LockStoreError")
      yield* TestClock.adjust(5000)
      assert.isTrue(yield* lease.isValid)
    }))

  it.effect("is interrupted, and the lease is renewed as before", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      store.faults.transfer = () => Effect.never
      const lease = yield* lock.acquire("k")
      const handingOff = yield* Effect.forkChild(lease.handOff)
      yield* until(() => store.count("transfer") === 1)
      yield* Fiber.interrupt(handingOff)
      yield* TestClock.adjust(5000)
      assert.isTrue(yield* lease.isValid)
    }))

  for (const { renewed, when } of [{ when: 290, renewed: 0 }, { when: 590, renewed: 1 }]) {
    it.effect(`does nothing while it is under way that could renew the lease: handed off after ${when} ms`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: 900 })
        store.faults.transfer = (run) => Effect.delay(run, 500)
        const lease = yield* lock.acquire("k")
        yield* TestClock.adjust(when)
        const handingOff = yield* Effect.forkChild(lease.handOff)
        yield* TestClock.adjust(500)
        yield* Fiber.join(handingOff)
        yield* TestClock.adjust(5000)
        assert.strictEqual(store.count("renew"), renewed)
        assert.strictEqual(store.count("release"), 0)
      }))
  }

  const meanwhile: ReadonlyArray<
    readonly [what: string, (lease: Lease.Lease, store: TestStore) => Effect.Effect<unknown, unknown>]
  > = [
    ["the store calls it into doubt", (_, store) => store.tell({ _tag: "InDoubt", key: undefined })],
    ["somebody extends it", (lease) => lease.extend("1 minute")],
    ["somebody asks who waits for it", (lease) => lease.revocation]
  ]

  for (const [what, ask] of meanwhile) {
    it.effect(`is no loss, if ${what} while it is under way`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: "30 seconds" })
        store.faults.transfer = (run) => Effect.tap(run, () => Effect.sleep(100))
        const lease = yield* lock.acquire("k")
        const work = yield* Effect.forkChild(lease.protect(Effect.tap(lease.handOff, () => Effect.sleep(1000))))
        yield* until(() => store.count("transfer") === 1)
        const asking = yield* Effect.forkChild(Effect.exit(ask(lease, store)))
        yield* TestClock.adjust(1100)
        assert.isTrue(Exit.isSuccess(yield* Fiber.await(work)))
        const answer = yield* Fiber.join(asking)
        if (Exit.isFailure(answer)) assert.deepInclude(Cause.squash(answer.cause), { reason: "HandedOff" })
        assert.deepInclude(yield* Effect.flip(lease.check), { _tag: "LockLost", reason: "HandedOff" })
        assert.deepStrictEqual(store.trace.filter((event) => event.endsWith("sent")), ["attempt sent", "transfer sent"])
      }))

    it.effect(`comes after what was under way before: ${what}`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: "30 seconds" })
        store.faults.renew = (run) => Effect.delay(run, 100)
        store.faults.watch = (run) => Effect.delay(run, 100)
        const lease = yield* lock.acquire("k")
        yield* Effect.forkChild(Effect.exit(ask(lease, store)))
        yield* until(() => store.count("renew") + store.count("watch") === 1)
        const handingOff = yield* Effect.forkChild(lease.handOff)
        yield* TestClock.adjust(99)
        assert.strictEqual(store.count("transfer"), 0)
        yield* TestClock.adjust(1)
        assert.isTrue(Exit.isSuccess(yield* Fiber.await(handingOff)))
        yield* TestClock.adjust("1 minute")
        assert.strictEqual(store.count("renew") + store.count("watch"), 1)
      }))
  }

  it.effect("a lease in doubt that could not be given away is verified afterwards, once for all doubts", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "30 seconds" })
      store.faults.transfer = () => Effect.delay(unavailable, 100)
      const lease = yield* lock.acquire("k")
      const handingOff = yield* Effect.forkChild(Effect.flip(lease.handOff))
      yield* until(() => store.count("transfer") === 1)
      for (let i = 0; i < 3; i++) yield* store.tell({ _tag: "InDoubt", key: "k" })
      yield* store.evict("k", lease.holderId)
      yield* TestClock.adjust(100)
      assert.strictEqual((yield* Fiber.join(handingOff))._tag, "LockStoreError")
      assert.deepInclude(yield* Effect.flip(lease.lost), { reason: "NotHeld" })
      assert.strictEqual(store.count("renew"), 1)
    }))
})

describe("takeover", () => {
  test(
    "G4: the evicted holder's work is interrupted at once and fails with LockLost(TakenOver)",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const interrupted = yield* Deferred.make<void>()
      const body = Effect.never.pipe(Effect.onInterrupt(() => Deferred.succeed(interrupted, undefined)))
      const work = yield* Effect.forkChild(a.withLock(body, "k"), { startImmediately: true })
      const lease = yield* b.takeover("k")
      yield* Deferred.await(interrupted)
      const error = yield* Effect.flip(Fiber.join(work))
      assertFailure(error, { _tag: "LockLost", reason: "TakenOver" })
      assert.isAbove(lease.token, (error as { readonly token: number }).token)
      assert.isTrue(yield* lease.isValid)
    })
  )

  test(
    "passes everybody who waits, who enter after it in their order",
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const order: Array<string> = []
      const record = (name: string) => Effect.sync(() => void order.push(name))
      const holder = yield* Effect.forkChild(a.withLock(Effect.never, "k"), { startImmediately: true })
      const first = yield* Effect.forkChild(a.withLock(record("first"), "k"), { startImmediately: true })
      const second = yield* Effect.forkChild(b.withLock(record("second"), "k"), { startImmediately: true })
      yield* Effect.scoped(Effect.andThen(b.takeover("k"), record("takeover")))
      yield* Fiber.await(holder)
      yield* Fiber.join(first)
      yield* Fiber.join(second)
      assert.deepStrictEqual(order, ["takeover", "first", "second"])
    })
  )

  test(
    "takes a free key like any other",
    Effect.gen(function*() {
      const { a, b, store } = yield* clients
      yield* Effect.scoped(a.takeover("k"))
      assert.lengthOf((yield* store.inspect("k")).holders, 0)
      assert.isTrue((yield* Effect.scoped(b.tryAcquire("k")))._tag === "Some")
    })
  )
})
