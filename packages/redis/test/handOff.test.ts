import { LeaseTicket } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Option, Schema } from "effect"
import { connect, hold } from "./support/client.ts"

const json = Schema.fromJsonString(LeaseTicket.LeaseTicket)

const clients = Effect.gen(function*() {
  const server = yield* RedisServer.make()
  return { server, a: yield* connect(server), b: yield* connect(server) }
})

const assertFailure = (error: unknown, expected: { readonly _tag: string; readonly reason: string }) => {
  const { _tag, reason } = error as typeof expected
  assert.deepStrictEqual({ _tag, reason }, expected)
}

describe("handOff and adopt", () => {
  it.live("G2: another process adopts with a greater token; the old scope neither renews nor releases", () =>
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const wire = yield* Effect.scoped(
        Effect.flatMap(a.lock.acquire("k"), (lease) => Effect.map(lease.handOff, Schema.encodeSync(json)))
      )
      assert.lengthOf((yield* a.store.inspect("k")).holders, 1)
      assert.deepStrictEqual(yield* Effect.scoped(a.lock.tryAcquire("k")), Option.none())
      const ticket = Schema.decodeSync(json)(wire)
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* b.lock.adopt(ticket)
        assert.isAbove(lease.token, ticket.token)
        yield* lease.extend("1 minute")
      }))
      assert.lengthOf((yield* b.store.inspect("k")).holders, 0)
    }))

  it.live("a ticket adopted twice, late, or after a take-over is refused, and told apart", () =>
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const handOff = (key: string, ttl: number) =>
        Effect.scoped(Effect.flatMap(a.lock.acquire(key, { ttl }), (lease) => lease.handOff))
      const refusal = (ticket: LeaseTicket.LeaseTicket) =>
        Effect.scoped(b.lock.adopt(ticket)).pipe(
          Effect.flip,
          Effect.map((error) => error._tag === "TicketRefused" ? error.reason : error._tag)
        )
      const adopted = yield* handOff("adopted", 30_000)
      yield* Effect.scoped(b.lock.adopt(adopted))
      assert.strictEqual(yield* refusal(adopted), "Adopted")

      const evicted = yield* handOff("evicted", 30_000)
      yield* Effect.scoped(b.lock.takeover("evicted"))
      assert.strictEqual(yield* refusal(evicted), "TakenOver")

      const late = yield* handOff("late", 4000)
      // The next holder enters only when the ticket's time left is over.
      yield* b.lock.withLock(Effect.void, "late")
      assert.strictEqual(yield* refusal(late), "Expired")
    }))

  it.live("an adoption that is sent again gives the same lease", () =>
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const ticket = yield* Effect.scoped(Effect.flatMap(a.lock.acquire("k"), (lease) => lease.handOff))
      const request = {
        key: "k",
        holderId: "adopter",
        ttl: 30_000,
        permits: 1,
        limit: 1,
        wait: false,
        priority: 0,
        maxWaiters: Infinity,
        floor: 0,
        metadata: {}
      }
      const held = { key: "k", holderId: ticket.ticketId, token: ticket.token }
      const first = yield* b.store.adopt(held, request)
      const again = yield* b.store.adopt(held, request)
      assert.strictEqual(first._tag, "Granted")
      assert.strictEqual(again._tag, "Granted")
      if (first._tag === "Granted" && again._tag === "Granted") assert.strictEqual(again.grant.token, first.grant.token)
    }))
})

describe("takeover", () => {
  it.live("G4: the evicted holder, in another process, is interrupted by the push, long before its ttl", () =>
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const entered = yield* Deferred.make<void>()
      const body = Effect.andThen(Deferred.succeed(entered, undefined), Effect.never)
      const evicted = yield* Effect.forkChild(Effect.flip(a.lock.withLock(body, "k", { ttl: "10 minutes" })))
      yield* Deferred.await(entered)
      const lease = yield* b.lock.takeover("k")
      const error = yield* Fiber.join(evicted)
      assertFailure(error, { _tag: "LockLost", reason: "TakenOver" })
      assert.isTrue(yield* lease.isValid)
    }))

  it.live("with pushes off the evicted holder hears of it with its next renewal", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const a = yield* connect(server, { store: { push: false } })
      const b = yield* connect(server, { store: { push: false } })
      const entered = yield* Deferred.make<void>()
      const body = Effect.andThen(Deferred.succeed(entered, undefined), Effect.never)
      const evicted = yield* Effect.forkChild(
        Effect.flip(a.lock.withLock(body, "k", { ttl: "20 seconds", renewEvery: "1 second" }))
      )
      yield* Deferred.await(entered)
      yield* b.lock.takeover("k")
      assertFailure(yield* Fiber.join(evicted), { _tag: "LockLost", reason: "NotHeld" })
    }))

  it.live("passes everybody who waits; they enter after it", () =>
    Effect.gen(function*() {
      const { a, b } = yield* clients
      const holder = yield* hold(a, "k")
      yield* holder.entered
      const waiter = yield* hold(b, "k")
      yield* Effect.scoped(Effect.andThen(
        b.lock.takeover("k"),
        Effect.sync(() => assert.isFalse(waiter.isInside()))
      ))
      yield* waiter.entered
      yield* waiter.leave
    }))
})
