import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber } from "effect"
import { connect, hold, keysOf, leftovers, queued, until } from "./support/client.ts"
import { quietly, sent } from "./support/observe.ts"

/**
 * A client behind a proxy, a client beside it, and what the server sees of the scripts that change a lock. Nothing else is
 * answered meanwhile, a look or a heartbeat: its reply might be the one that is lost.
 */
const setup = Effect.gen(function*() {
  const server = yield* RedisServer.make()
  const proxy = yield* FaultProxy.make(server)
  const client = yield* connect(proxy, { store: { heartbeat: "20 seconds", tracking: false } })
  const other = yield* connect(server)
  const monitor = yield* server.monitor
  const seen = Effect.map(
    monitor.all,
    (entries) => sent(entries).filter((name) => ["attempt", "renew", "release", "abandon"].includes(name))
  )
  return { server, proxy, client, other, monitor, seen }
})

describe("lost replies", () => {
  it.live("G7: an attempt that was granted without anybody learning of it is undone, and runs once", () =>
    Effect.gen(function*() {
      const { client, monitor, other, proxy, seen, server } = yield* setup
      for (let i = 0; i < 10; i++) {
        yield* monitor.take
        yield* proxy.dropReplies(1)
        const ran: Array<string> = []
        const error = yield* Effect.flip(client.lock.withLock(Effect.sync(() => ran.push("body")), "k"))
        assert.strictEqual(error._tag, "LockStoreError")
        assert.strictEqual(error._tag === "LockStoreError" && error.reason, "Unavailable")
        assert.deepStrictEqual(ran, [])
        // Told at once, and tidied up behind the caller's back, when the connection is there again.
        yield* until(Effect.map(seen, (names) => names.includes("abandon")), "the abandon was sent")
        // No command was sent again by anybody but us.
        assert.deepStrictEqual(yield* seen, ["attempt", "abandon"])
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
        yield* monitor.take
        assert.isTrue(Exit.isSuccess(yield* Effect.exit(other.lock.withLock(Effect.void, "k", { waitTimeout: 0 }))))
      }
    }).pipe(quietly))

  it.live("G7: an attempt that queued without anybody learning of it leaves the queue", () =>
    Effect.gen(function*() {
      const { client, other, proxy, seen, server } = yield* setup
      const holder = yield* hold(other, "k")
      yield* holder.entered
      yield* proxy.dropReplies(1)
      const error = yield* Effect.flip(client.lock.withLock(Effect.void, "k"))
      assert.strictEqual(error._tag, "LockStoreError")
      yield* queued(other, "k", 0)
      yield* holder.leave
      assert.deepStrictEqual(yield* seen, ["attempt", "attempt", "abandon", "release"])
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("G5: a release whose reply was lost is sent again, takes nothing from the next holder, and the result stands", () =>
    Effect.gen(function*() {
      const { client, other, proxy, seen, server } = yield* setup
      const body = Effect.gen(function*() {
        const next = yield* hold(other, "k")
        yield* queued(other, "k", 1)
        yield* proxy.dropReplies(1)
        return next
      })
      const next = yield* client.lock.withLock(body, "k")
      yield* next.entered
      assert.deepStrictEqual(yield* seen, ["attempt", "attempt", "release", "release"])
      const [, ...fields] = (yield* server.command("HKEYS", keysOf("k")[0]!)) as Array<string>
      assert.lengthOf(fields, 1)
      assert.isFalse(Exit.isSuccess(yield* Effect.exit(client.lock.withLock(Effect.void, "k", { waitTimeout: 0 }))))
      yield* next.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("G5: an abandon whose reply was lost is sent again", () =>
    Effect.gen(function*() {
      const { client, other, proxy, seen, server } = yield* setup
      const holder = yield* hold(other, "k")
      yield* holder.entered
      const waiter = yield* hold(client, "k")
      yield* queued(other, "k", 1)
      yield* proxy.dropReplies(1)
      yield* waiter.interrupt
      assert.deepStrictEqual((yield* other.store.inspect("k")).waiters, [])
      assert.deepStrictEqual(yield* seen, ["attempt", "attempt", "abandon", "abandon"])
      yield* holder.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("G4: a renewal whose reply was lost is sent again, and nothing is lost", () =>
    Effect.gen(function*() {
      const { client, proxy, seen, server } = yield* setup
      const holder = yield* hold(client, "k", { renewEvery: 100 })
      yield* holder.entered
      yield* proxy.dropReplies(1)
      yield* until(Effect.map(seen, (names) => names.filter((name) => name === "renew").length >= 3), "three renewals")
      yield* holder.leave
      assert.isTrue(Exit.isSuccess(yield* holder.exit))
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("replies lost again and again, whatever they answer, leave nothing behind and never let two in", () =>
    Effect.gen(function*() {
      const { client, other, proxy, server } = yield* setup
      let inside = 0
      let most = 0
      let done = 0
      const body = Effect.gen(function*() {
        most = Math.max(most, ++inside)
        yield* Effect.yieldNow
        yield* Effect.yieldNow
        inside--
        done++
      })
      // Of every few rounds one is robbed of its first, second, third... reply.
      const rob = (round: number) =>
        round % 4 === 3 ? Effect.delay(proxy.dropReplies(1), round % 8 === 3 ? 0 : 2) : Effect.void
      const robbed = Effect.forEach(
        Array.from({ length: 40 }, (_, round) => round),
        (round) =>
          Effect.all([
            rob(round),
            Effect.exit(client.lock.withLock(body, "k")),
            Effect.exit(client.lock.withLock(body, "k"))
          ], {
            concurrency: "unbounded"
          }),
        { discard: true }
      )
      const undisturbed = other.lock.withLock(body, "k").pipe(Effect.repeat({ times: 99 }))
      yield* Effect.all([robbed, undisturbed], { concurrency: "unbounded" })
      assert.strictEqual(most, 1)
      assert.isAtLeast(done, 100 + 40)
      assert.isBelow(done, 100 + 80)
      yield* proxy.heal
      yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
    }).pipe(quietly))
})

describe("scripts", () => {
  it.live("a script cache that is flushed while it is in use disturbs nobody", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      // The one polls, which is what a heartbeat does: offers of short heartbeats would not outlast a busy machine.
      const clients = [yield* connect(server), yield* connect(server, { store: { push: false, pollInterval: 20 } })]
      let flushes = 0
      const flusher = yield* server.command("SCRIPT", "FLUSH").pipe(
        Effect.tap(() => Effect.sync(() => flushes++)),
        Effect.andThen(Effect.sleep(1)),
        Effect.forever,
        Effect.forkChild
      )
      let counter = 0
      const increment = Effect.gen(function*() {
        const before = counter
        yield* Effect.sleep(1)
        counter = before + 1
      })
      yield* Effect.forEach(
        Array.from({ length: 200 }, (_, i) => i),
        (i) => clients[i % 2]!.lock.withLock(increment, "k", { renewEvery: 2 }),
        { concurrency: 20, discard: true }
      )
      yield* Fiber.interrupt(flusher)
      assert.strictEqual(counter, 200)
      assert.isAbove(flushes, 20)
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }))

  it.live("an interrupt that comes between the refusal of a digest and the sending of the source leaves nothing behind", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server)
      for (let i = 0; i < 40; i++) {
        yield* server.command("SCRIPT", "FLUSH")
        const fiber = yield* Effect.forkChild(lock.withLock(Effect.never, "k"), { startImmediately: true })
        // Spread over the time that both round trips take.
        for (let turn = 0; turn < i; turn++) {
          yield* Effect.promise(() => new Promise((resolve) => setImmediate(resolve)))
        }
        yield* Fiber.interrupt(fiber)
        assert.deepStrictEqual(yield* leftovers(server, "k"), [])
      }
    }))
})
