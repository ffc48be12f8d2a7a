import type { LockError } from "@effect-lock/core"
import { FaultProxy, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Option } from "effect"
import * as Os from "node:os"
import { connect, connections, hold, keysOf, leftovers, queued, until } from "./support/client.ts"
import { quietly } from "./support/observe.ts"
import * as Tap from "./support/Tap.ts"

/** What a loaded machine may add to a time-out. */
const margin = 5000

/** Long enough for a server that does answer, short enough to be waited for. */
const commandTimeout = 4000

const asStoreError = (error: LockError.LockError): LockError.LockStoreError => {
  if (error._tag !== "LockStoreError") throw new Error(`not a LockStoreError: ${error.message}`)
  return error
}

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const started = performance.now()
    return Effect.map(effect, (value) => [value, performance.now() - started] as const)
  })

describe("what a failure says", () => {
  it.live("G12: who waited too long is told who holds the key, for how long still, and how many are queued before him", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server)
      const other = yield* connect(server)
      const owner = yield* hold(one, "k", { ttl: "1 minute", holder: { job: "nightly report" } })
      yield* owner.entered
      yield* hold(one, "k")
      yield* queued(one, "k", 1)
      const [error, elapsed] = yield* timed(Effect.flip(other.lock.withLock(Effect.void, "k", { waitTimeout: 150 })))
      assert.strictEqual(error._tag, "LockTimeout")
      if (error._tag !== "LockTimeout") return
      assert.isAtLeast(elapsed, 149)
      assert.strictEqual(error.key, "k")
      assert.strictEqual(error.waitTimeout, 150)
      assert.strictEqual(error.position, 1)
      assert.strictEqual(error.queueLength, 2)
      assert.lengthOf(error.holders, 1)
      const [holder] = error.holders
      assert.deepStrictEqual(holder!.metadata, { host: Os.hostname(), pid: String(process.pid), job: "nightly report" })
      assert.isAtLeast(holder!.heldFor, 149)
      assert.isAbove(holder!.timeLeft, 1000)
      assert.isAtMost(holder!.timeLeft, 60_001)
      assert.isAbove(holder!.token, 0)
      for (const part of ["150 ms", Os.hostname(), String(process.pid), "nightly report", "position 1 of 2"]) {
        assert.include(error.message, part)
      }
      assert.lengthOf((yield* one.store.inspect("k")).waiters, 1)
    }))

  it.live("G12: a server that is gone is Unavailable at once, and serves again when it is back", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const { lock } = yield* connect(proxy)
      yield* lock.withLock(Effect.void, "k")
      yield* proxy.refuse
      const ran: Array<string> = []
      const [error, elapsed] = yield* timed(Effect.flip(
        lock.withLock(Effect.sync(() => ran.push("body")), "k", { releaseTimeout: 100 })
      ))
      assert.strictEqual(asStoreError(error).reason, "Unavailable")
      assert.strictEqual(asStoreError(error).operation, "attempt")
      assert.isBelow(elapsed, 2000 + margin)
      assert.deepStrictEqual(ran, [])
      yield* proxy.heal
      yield* until(
        Effect.map(Effect.exit(lock.withLock(Effect.void, "k")), Exit.isSuccess),
        "the lock serves again"
      )
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))

  it.live("G12: a server that does not answer is a Timeout of commandTimeout, not of the wait or the lease", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const { lock } = yield* connect(proxy, { store: { commandTimeout } })
      yield* lock.withLock(Effect.void, "k")
      yield* proxy.blackhole()
      const [error, elapsed] = yield* timed(Effect.flip(
        lock.withLock(Effect.void, "k", { ttl: "12 seconds", releaseTimeout: 100, waitTimeout: "1 minute" })
      ))
      assert.strictEqual(asStoreError(error).reason, "Timeout")
      assert.strictEqual(asStoreError(error).limit, commandTimeout)
      assert.include(error.message, "commandTimeout of 4000 ms")
      assert.isAtLeast(elapsed, commandTimeout - 1)
      assert.isBelow(elapsed, commandTimeout + margin)
      yield* proxy.heal
      yield* until(
        Effect.map(Effect.exit(lock.withLock(Effect.void, "k")), Exit.isSuccess),
        "the lock serves again"
      )
      // What was held back arrives in the end, when nobody is left to undo it: it lives for one ttl.
      yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
    }).pipe(quietly))

  const refusals: ReadonlyArray<
    readonly [code: string, prepare: (server: RedisServer.Server) => Effect.Effect<unknown, unknown>]
  > = [
    ["WRONGTYPE", (server) => server.command("SET", keysOf("k")[0]!, "not a lock")],
    ["READONLY", (server) => server.command("REPLICAOF", "127.0.0.1", 1)],
    ["OOM", (server) => server.command("CONFIG", "SET", "maxmemory", 1)],
    ["NOPERM", (server) => server.command("ACL", "SETUSER", "default", "-hset")]
  ]
  for (const [code, prepare] of refusals) {
    it.live(`G12: what the server refuses with ${code} is Refused, with its own words`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const { lock } = yield* connect(server)
        yield* prepare(server)
        const error = asStoreError(yield* Effect.flip(lock.withLock(Effect.void, "k")))
        assert.strictEqual(error.reason, "Refused")
        // Inside a script some versions say it in a sentence.
        assert.match(error.message, code === "NOPERM" ? /NOPERM|can't run this command/ : new RegExp(code))
      }).pipe(quietly))
  }
})

describe("outages", () => {
  it.live("a reply that arrived while this process stood still is no time-out", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { store } = yield* connect(server, { store: { commandTimeout: 4000 } })
      yield* server.pause
      const asking = yield* Effect.forkChild(store.inspect("k"), { startImmediately: true })
      yield* Effect.sleep(100)
      yield* server.resume
      // Out of a timer, after which sockets would come first.
      yield* Effect.yieldNow
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4500)
      assert.deepStrictEqual((yield* Fiber.join(asking)).holders, [])
    }))

  it.live("a connection that hangs is replaced by a new one, with nobody's help", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      let silentUpTo = -1
      const tap = yield* Tap.make(server, {
        request: (chunk, index) => index <= silentUpTo ? "" : chunk
      })
      const { lock } = yield* connect(tap, { store: { commandTimeout } })
      yield* lock.withLock(Effect.void, "k")
      // The next connection is accepted and says nothing either: a handshake may hang as well.
      silentUpTo = tap.accepted()
      yield* until(
        Effect.map(Effect.exit(lock.withLock(Effect.void, "k", { releaseTimeout: 50 })), Exit.isSuccess),
        "the lock serves again"
      )
      assert.isAtLeast(tap.accepted(), silentUpTo + 2)
    }).pipe(quietly))

  for (const kind of ["refuse", "blackhole", "pause", "restart"] as const) {
    it.live(`G9: a waiter bears an outage (${kind}) that is shorter than outageTolerance, and still enters`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make({ config: ["appendonly yes"] })
        const proxy = yield* FaultProxy.make(server)
        const owner = yield* connect(server)
        const client = yield* connect(proxy, { store: { commandTimeout, heartbeat: 50 } })
        const holder = yield* hold(owner, "k")
        yield* holder.entered
        const waiter = yield* hold(client, "k")
        yield* queued(owner, "k", 1)

        const { begin, end, failing } = {
          refuse: { begin: proxy.refuse, end: proxy.heal, failing: 800 },
          blackhole: { begin: proxy.blackhole(), end: proxy.heal, failing: 2.2 * commandTimeout },
          pause: { begin: server.pause, end: server.resume, failing: 2.2 * commandTimeout },
          restart: { begin: server.kill, end: server.restart, failing: 800 }
        }[kind]
        yield* begin
        // Several heartbeats in a row fail.
        yield* Effect.sleep(failing)
        assert.isUndefined(yield* Effect.map(Effect.timeoutOption(waiter.exit, 1), Option.getOrUndefined))
        yield* end
        yield* holder.leave
        yield* waiter.entered
        yield* waiter.leave
        yield* until(Effect.map(leftovers(server, "k"), ({ length }) => length === 0), "nothing is left")
      }).pipe(quietly))
  }

  for (const kind of ["refuse", "blackhole"] as const) {
    it.live(`G12: a waiter fails when an outage (${kind}) is longer than outageTolerance`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const proxy = yield* FaultProxy.make(server)
        const owner = yield* connect(server)
        // An answer may be late by the time a machine stands still.
        const outageTolerance = 5000
        const client = yield* connect(proxy, { store: { commandTimeout, heartbeat: 50, outageTolerance } })
        const holder = yield* hold(owner, "k")
        yield* holder.entered
        const waiters = yield* Effect.forEach(
          [1, 2, 3],
          () => Effect.forkChild(client.lock.withLock(Effect.void, "k", { releaseTimeout: 50 }))
        )
        yield* queued(owner, "k", 3)
        // Longer than tolerated, and nothing happens while the server answers.
        yield* Effect.sleep(1.5 * outageTolerance)
        assert.isTrue(waiters.every((waiter) => waiter.pollUnsafe() === undefined))
        const [, elapsed] = yield* timed(Effect.gen(function*() {
          yield* kind === "refuse" ? proxy.refuse : proxy.blackhole()
          for (const waiter of waiters) {
            const error = asStoreError(yield* Effect.flip(Fiber.join(waiter)))
            assert.strictEqual(error.operation, "heartbeat")
            assert.include(["Unavailable", "Timeout"], error.reason)
          }
        }))
        // The last answer was one interval old when the outage began, and what the machine stood still for.
        assert.isAtLeast(elapsed, outageTolerance - 50 - 3500)
        assert.isBelow(elapsed, outageTolerance + commandTimeout + margin)
      }).pipe(quietly))
  }

  it.live("G12: commands in flight when the connection breaks fail at once, with the reason", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const proxy = yield* FaultProxy.make(server)
      const { store } = yield* connect(proxy)
      yield* store.inspect("k")
      yield* proxy.blackhole("replies")
      const fibers = yield* Effect.forEach(
        [1, 2, 3],
        () => Effect.forkChild(timed(Effect.flip(store.inspect("k"))), { startImmediately: true })
      )
      yield* Effect.sleep(20)
      yield* server.command("CLIENT", "KILL", "TYPE", "normal")
      yield* proxy.reset
      for (const fiber of fibers) {
        const [error, elapsed] = yield* Fiber.join(fiber)
        assert.strictEqual(error.reason, "Unavailable")
        assert.notInclude(error.message, "maxRetriesPerRequest")
        assert.isBelow(elapsed, margin)
      }
      yield* proxy.heal
      yield* until(Effect.map(connections(server), ({ length }) => length === 2), "both connections are back")
    }).pipe(quietly))
})

describe("memory", () => {
  it.live("a server without memory for new locks still lets old ones be renewed and released", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock, store } = yield* connect(server)
      let renewals = 0
      const holder = yield* hold({ lock }, "k", { renewEvery: 30 })
      yield* holder.entered
      const { holders: [before] } = yield* store.inspect("k")
      yield* server.command("CONFIG", "SET", "maxmemory", 1)
      yield* until(
        Effect.map(store.inspect("k"), ({ holders: [now] }) => {
          if (now!.heldFor - before!.heldFor > 100 && now!.timeLeft > 29_900) renewals++
          return renewals >= 3
        }),
        "renewed without memory"
      )
      yield* holder.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(quietly))
})
