import type { LockError } from "@effect-lock/core"
import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Cause, DateTime, Deferred, Effect, Exit, Fiber, Schedule } from "effect"
import { RedisLockStore } from "../src/index.ts"
import { build, connect, hold, leftovers, patience, queued, until, untilSync } from "./support/client.ts"
import { quietly, sent, withLog } from "./support/observe.ts"
import { answers, type Call, record } from "./support/recording.ts"

/** What a loaded machine may add to a timer. */
const margin = 10_000

const connectRecorded = Effect.fnUntraced(function*(
  target: { readonly url: string },
  store?: RedisLockStore.Options
) {
  const calls: Array<Call> = []
  const client = yield* build(record(RedisLockStore.layer({ url: target.url, ...patience, ...store }), calls))
  return { ...client, calls }
})

const lossOf = (exit: Exit.Exit<unknown, unknown>): LockError.LockLost => {
  const error = Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined
  assert.strictEqual((error as { readonly _tag?: string } | undefined)?._tag, "LockLost", String(error))
  return error as LockError.LockLost
}

describe("a server that freezes", () => {
  for (const kind of ["withLock", "acquire"] as const) {
    it.live(`G3, G4: the work of a lock (${kind}) is interrupted and lost by the deadline, which the freeze cannot move`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const { calls, lock } = yield* connectRecorded(server)
        const other = yield* connect(server)
        const ttl = 5000
        const options = { ttl, renewEvery: 200 }
        let interruptedAt = 0
        const work = Effect.never.pipe(Effect.onInterrupt(() =>
          Effect.sync(() => {
            interruptedAt = performance.now()
          })
        ))
        const locked = kind === "withLock"
          ? lock.withLock(work, "k", options)
          : Effect.scoped(Effect.flatMap(lock.acquire("k", options), (lease) => lease.protect(work)))
        const holder = yield* Effect.forkChild(locked)
        yield* untilSync(() => answers(calls, "renew", "Done").length >= 2, "two renewals")
        yield* server.pause

        // Nothing wakes the server before the loss is known: only a clock can tell.
        const loss = lossOf(yield* Fiber.await(holder))
        const lostAt = performance.now()
        assert.strictEqual(loss.reason, "Expired")
        assert.strictEqual(loss.limit, ttl)
        const confirmed = answers(calls, "renew", "Done").at(-1)!
        assert.isAtMost(interruptedAt - confirmed.sentAt, ttl + margin)
        assert.isAtMost(lostAt - confirmed.sentAt, ttl + margin)
        // Not lost sooner than the drift allowed for makes it.
        assert.isAtLeast(interruptedAt - confirmed.sentAt, ttl * 0.99 - 50)

        yield* server.resume
        yield* other.lock.withLock(Effect.void, "k", { waitTimeout: "20 seconds" })
        yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
      }).pipe(quietly))
  }

  it.live("G3: the deadline counts from before the command was sent, however long its reply took", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const { calls, lock } = yield* connectRecorded(proxy)
      yield* proxy.latency(100)
      const ttl = 20_000
      // What a call allows, on either clock. Had the answer counted, it would be 200 ms later.
      const deadlineOf = (call: Call) => Date.now() - performance.now() + call.sentAt + ttl
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* lock.acquire("k", { ttl, renewEvery: 50 })
        const [attempt] = answers(calls, "attempt", "Granted")
        assert.isAtLeast(attempt!.answeredAt! - attempt!.sentAt, 200)
        assert.isAtMost(DateTime.toEpochMillis(yield* lease.deadline), deadlineOf(attempt!) + 50)
        yield* untilSync(() => answers(calls, "renew", "Done").length > 0, "a renewal")
        const deadline = DateTime.toEpochMillis(yield* lease.deadline)
        const renewal = answers(calls, "renew", "Done").at(-1)!
        assert.isAtMost(deadline, deadlineOf(renewal) + 50)
        // Renewal has moved it.
        assert.isAbove(deadline, deadlineOf(attempt!))
        yield* lease.extend(2 * ttl)
        const extended = DateTime.toEpochMillis(yield* lease.deadline)
        const extension = answers(calls, "renew", "Done").at(-1)!
        assert.isAtMost(extended, deadlineOf(extension) + ttl + 50)
      }))
    }))

  it.live("G3: a lease is already lost for who asks between the deadline and the next turn of the timers", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server)
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* lock.acquire("k", { ttl: 200 })
        // No timer fires and no reply arrives while this runs.
        const end = performance.now() + 250
        while (performance.now() < end);
        assert.isFalse(yield* lease.isValid)
        assert.strictEqual((yield* Effect.flip(lease.check)).reason, "Expired")
        const ran: Array<string> = []
        assert.strictEqual((yield* Effect.flip(lease.protect(Effect.sync(() => ran.push("ran")))))._tag, "LockLost")
        assert.deepStrictEqual(ran, [])
      }))
      // The store may still have it, and then it is given back.
      yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
    }).pipe(quietly))

  it.live("G9: waiters of a frozen server are served in order when it goes on", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // For as long as they count as alive, which is three heartbeats: who has not been heard for longer is passed over.
      const store = { commandTimeout: "4 seconds", heartbeat: "8 seconds" } as const
      const one = yield* connect(server, { store })
      const other = yield* connect(server, { store })
      const holder = yield* hold(one, "k", { ttl: 6000, renewEvery: 500 })
      yield* holder.entered
      const entered: Array<number> = []
      const waiters = yield* Effect.forEach([0, 1, 2, 3], (i) =>
        Effect.gen(function*() {
          const body = Effect.sync(() => entered.push(i))
          const waiter = yield* Effect.forkChild((i % 2 === 0 ? other : one).lock.withLock(body, "k"))
          yield* queued(other, "k", i + 1)
          return waiter
        }))
      yield* server.pause
      assert.strictEqual(lossOf(yield* holder.exit).reason, "Expired")
      assert.deepStrictEqual(entered, [])
      yield* server.resume
      yield* Effect.forEach(waiters, Fiber.join)
      assert.deepStrictEqual(entered, [0, 1, 2, 3])
    }).pipe(quietly))
})

describe("renewals that fail for a while", () => {
  const faults: ReadonlyArray<
    readonly [what: string, (proxy: FaultProxy.FaultProxy) => Effect.Effect<void>]
  > = [
    ["the network is silent", (proxy) => proxy.blackhole()],
    ["replies are lost", (proxy) => proxy.blackhole("replies")],
    ["connections are refused", (proxy) => proxy.refuse]
  ]
  for (const [what, begin] of faults) {
    it.live(`G4: while ${what} for less than the ttl, nothing is lost`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const proxy = yield* FaultProxy.make(server)
        const { calls, lock, store } = yield* connectRecorded(proxy, { commandTimeout: "4 seconds" })
        const holder = yield* hold({ lock }, "k", { ttl: "1 minute", renewEvery: 50 })
        yield* untilSync(() => answers(calls, "renew", "Done").length >= 1, "a renewal")
        const [before] = (yield* store.inspect("k")).holders
        const failures = () => calls.filter(({ answer, verb }) => verb === "renew" && answer !== "Done").length
        const failed = failures()
        yield* begin(proxy)
        yield* untilSync(() => failures() >= failed + 3, "renewals fail")
        yield* proxy.heal
        const done = answers(calls, "renew", "Done").length
        yield* untilSync(() => answers(calls, "renew", "Done").length >= done + 2, "renewals are confirmed again")
        const [after] = (yield* store.inspect("k")).holders
        assert.strictEqual(after!.holderId, before!.holderId)
        assert.strictEqual(after!.token, before!.token)
        yield* holder.leave
        assert.isTrue(Exit.isSuccess(yield* holder.exit))
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      }).pipe(quietly))
  }

  it.live("G4: connections that are reset again and again lose nothing, for as long as a renewal gets through", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const { calls, lock } = yield* connectRecorded(proxy)
      const holder = yield* hold({ lock }, "k", { ttl: "30 seconds", renewEvery: 20 })
      for (let i = 1; i <= 5; i++) {
        yield* untilSync(() => answers(calls, "renew", "Done").length >= i, "a renewal")
        yield* proxy.reset
      }
      yield* untilSync(() => answers(calls, "renew", "Done").length >= 8, "renewals go on")
      yield* holder.leave
      assert.isTrue(Exit.isSuccess(yield* holder.exit))
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))
})

describe("the end of a body while a renewal is in flight", () => {
  for (const ending of ["succeeds", "fails", "is interrupted"] as const) {
    it.live(`G6: the server sees the renewal, then the release, and no renewal after it, when the body ${ending}`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const proxy = yield* FaultProxy.make(server)
        const { calls, lock } = yield* connectRecorded(proxy)
        const monitor = yield* server.monitor
        for (let i = 0; i < 5; i++) {
          calls.length = 0
          const end = yield* Deferred.make<void, string>()
          const fiber = yield* Effect.forkChild(lock.withLock(Deferred.await(end), "k", { renewEvery: 10 }))
          yield* untilSync(() => answers(calls, "renew", "Done").length > 0, "a renewal")
          yield* proxy.blackhole("replies")
          yield* until(
            Effect.map(monitor.all, (entries) => {
              const arrived = sent(entries).filter((name) => name === "renew").length
              return calls.at(-1)!.answer === undefined && arrived === answers(calls, "renew").length
            }),
            "a renewal that the server has done, and whose reply is on its way"
          )
          if (ending === "succeeds") yield* Deferred.succeed(end, undefined)
          else if (ending === "fails") yield* Deferred.fail(end, "failed")
          else fiber.interruptUnsafe()
          yield* Effect.sleep(20)
          assert.isUndefined(fiber.pollUnsafe())
          yield* proxy.heal
          const exit = yield* Fiber.await(fiber)
          assert.strictEqual(
            Exit.isSuccess(exit) ? "succeeds" : Exit.hasInterrupts(exit) ? "is interrupted" : "fails",
            ending
          )
          const order = sent(yield* monitor.take).filter((name) => name !== "echo")
          assert.deepStrictEqual(order.slice(-2), ["renew", "release"], order.join())
          assert.strictEqual(order.indexOf("release"), order.length - 1, order.join())
        }
      }).pipe(quietly))
  }

  it.live("G6: a renewal that failed is not tried again once the body has ended", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const proxy = yield* FaultProxy.make(server)
        const { calls, lock } = yield* connectRecorded(proxy)
        const holder = yield* hold({ lock }, "k", {
          renewEvery: 10,
          renewRetry: Schedule.spaced(150),
          releaseTimeout: "20 seconds"
        })
        yield* untilSync(() => answers(calls, "renew", "Done").length > 0, "a renewal")
        yield* proxy.refuse
        yield* untilSync(() => lines.some(({ text }) => text.includes("Renewal not confirmed")), "a renewal fails")
        yield* proxy.heal
        yield* holder.leave
        assert.isTrue(Exit.isSuccess(yield* holder.exit))
        yield* Effect.sleep(400)
        const verbs = calls.map(({ verb }) => verb)
        assert.isFalse(verbs.slice(verbs.indexOf("release")).includes("renew"), verbs.join())
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      })
    ))
})
