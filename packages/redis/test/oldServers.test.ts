import type { LockStore } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import * as scripts from "../src/internal/scripts.ts"
import { connect, hold, queued, until } from "./support/client.ts"
import { nameOf, quietly } from "./support/observe.ts"

const exactly = (count: number) => (args: ReadonlyArray<string>) => args.length === count
const atLeast = (count: number) => (args: ReadonlyArray<string>) => args.length >= count
const oneOf = (...subcommands: ReadonlyArray<string>) => ([first = ""]: ReadonlyArray<string>) =>
  subcommands.includes(first.toLowerCase())

/** What may be used, since which version, and with which arguments: those of version 5 and no later ones. */
const allowed: Readonly<Record<string, readonly [since: string, form: (args: ReadonlyArray<string>) => boolean]>> = {
  // By clients.
  evalsha: ["2.6", atLeast(6)],
  eval: ["2.6", atLeast(6)],
  script: ["2.6", oneOf("load")],
  publish: ["2.0", exactly(2)],
  subscribe: ["2.0", exactly(1)],
  ping: ["1.0", exactly(0)],
  info: ["1.0", (args) => args.length <= 1],
  scan: ["2.8", (args) => args.length === 5 && args[1] === "MATCH" && args[3] === "COUNT"],
  // By scripts.
  time: ["2.6", exactly(0)],
  exists: ["1.0", exactly(1)],
  del: ["1.0", atLeast(1)],
  get: ["1.0", exactly(1)],
  set: ["2.6.12", (args) => args.length === 4 && args[2] === "PX"],
  // Not with NX, XX, GT, LT, nor as EXPIRETIME.
  pexpire: ["2.6", exactly(2)],
  pexpireat: ["2.6", exactly(2)],
  hget: ["2.0", exactly(2)],
  hmget: ["2.0", atLeast(2)],
  hgetall: ["2.0", exactly(1)],
  hset: ["4.0", (args) => args.length >= 3 && args.length % 2 === 1],
  hdel: ["2.4", atLeast(2)],
  // Not with GT or LT.
  zadd: ["2.4", (args) => args.length === 3 && !Number.isNaN(Number(args[1]))],
  zcard: ["1.2", exactly(1)],
  zcount: ["2.0", exactly(3)],
  // Not with BYSCORE or REV.
  zrange: ["1.2", (args) => args.length === 3 || (args.length === 4 && args[3] === "WITHSCORES")],
  zrangebyscore: ["1.0.5", exactly(3)],
  // Not with WITHSCORE.
  zrank: ["2.0", exactly(2)],
  zrem: ["2.4", atLeast(2)],
  zscore: ["1.2", exactly(2)]
}

/** What ioredis asks by itself whenever it connects; it goes on where that is refused. */
const isHandshake = ([name = "", sub = ""]: ReadonlyArray<string>) =>
  /^(hello|auth|select)$/i.test(name) || (/^client$/i.test(name) && /^(setinfo|setname)$/i.test(sub))

const isOld = (version: string) => {
  const [major = 0] = version.split(".").map(Number)
  return major <= 5
}

describe("servers of version 5", () => {
  it.live("nothing newer is asked of the server or used by a script, over the whole life of locks", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const admin = new Set(
        (yield* server.clients).filter((client) => client.get("name") === "effect-lock-admin").map((client) =>
          client.get("addr")
        )
      )
      const monitor = yield* server.monitor
      const store = { tracking: false, lockDelay: false, heartbeat: 50 } as const
      const a = yield* connect(server, { store })
      const b = yield* connect(server, { store })

      // Acquired, renewed, waited for over several heartbeats, granted by a push, given up.
      const holder = yield* hold(a, "k", { renewEvery: 20 })
      yield* holder.entered
      const waiter = yield* hold(b, "k")
      yield* queued(b, "k", 1)
      yield* Effect.ignore(b.lock.withLock(Effect.void, "k", { waitTimeout: 100 }))
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
      // Kept after the release; waited for until it runs out.
      yield* a.lock.withLock(Effect.void, "kept", { minHold: 100 })
      yield* b.lock.withLock(Effect.void, "kept")
      // Taken over, with a waiter and without.
      const evicted = yield* hold(a, "taken")
      yield* evicted.entered
      yield* Effect.scoped(b.lock.takeover("taken"))
      yield* evicted.exit
      // Handed off, adopted, adopted in vain.
      const ticket = yield* Effect.scoped(Effect.flatMap(a.lock.acquire("handed"), (lease) => lease.handOff))
      yield* Effect.scoped(b.lock.adopt(ticket))
      yield* Effect.flip(Effect.scoped(b.lock.adopt(ticket)))
      // Lost, and interrupted while queued.
      yield* a.store.inspect("k")
      const lost = yield* Deferred.make<void>()
      const holding = yield* Effect.forkChild(
        Effect.exit(
          a.lock.withLock(Effect.andThen(Deferred.succeed(lost, undefined), Effect.never), "k", { renewEvery: 20 })
        )
      )
      yield* Deferred.await(lost)
      const queuedOne = yield* hold(b, "k")
      yield* queued(b, "k", 1)
      yield* queuedOne.interrupt
      yield* server.command("DEL", "effect-lock:{k}")
      yield* Fiber.join(holding)
      // Permits: a limit that is set, given back in part, watched, listed.
      const permits = a.store as LockStore.PermitStore["Service"]
      yield* permits.setLimit("permits", 3, 5)
      const request = {
        key: "permits",
        holderId: "one",
        ttl: 10_000,
        permits: 3,
        limit: 3,
        wait: true,
        priority: 1,
        maxWaiters: 1,
        floor: 0,
        metadata: {}
      }
      const granted = yield* permits.attempt(request)
      assert(granted._tag === "Granted")
      const held = { key: "permits", holderId: "one", token: granted.grant.token }
      yield* permits.watch(held)
      assert.strictEqual((yield* permits.attempt({ ...request, holderId: "two" }))._tag, "Queued")
      yield* permits.shrink(held, 1)
      assert.deepStrictEqual(yield* permits.list("perm"), ["permits"])
      yield* permits.abandon("permits", "two")
      yield* permits.release(held, 0)
      // The digests are forgotten: the sources are sent.
      yield* server.command("SCRIPT", "FLUSH")
      yield* a.lock.withLock(Effect.void, "k")
      yield* until(
        Effect.map(monitor.all, (entries) => entries.some(({ command }) => nameOf(command) === "heartbeat")),
        "a heartbeat"
      )
      yield* a.close
      yield* b.close

      const entries = (yield* monitor.all).filter(({ source }) => !admin.has(source))
      const seen = new Set<string>()
      for (const { command, source } of entries) {
        if (isHandshake(command)) continue
        const [name, ...args] = command as [string, ...Array<string>]
        seen.add(name.toLowerCase())
        const rule = allowed[name.toLowerCase()]
        assert.isTrue(rule?.[1](args), `${source} used ${command.slice(0, 8).join(" ").slice(0, 200)}`)
      }
      const ran = new Set(entries.map(({ command }) => nameOf(command)))
      for (const { name } of Object.values(scripts)) assert.isTrue(ran.has(name), `${name} did not run`)
      assert.includeMembers([...seen], ["evalsha", "eval", "script", "publish", "subscribe", "info", "time", "hset"])
      assert.strictEqual((yield* server.commandStats).get("client|tracking") ?? 0, 0)
    }).pipe(quietly))

  it("no script calls anything else, on whatever path", () => {
    const calls = Object.values(scripts).flatMap(({ source }) =>
      Array.from(source.matchAll(/redis\.p?call\)?\('(\w+)'/g), ([, name]) => name!.toLowerCase())
    )
    assert.isAbove(calls.length, 100)
    for (const name of calls) assert.property(allowed, name)
    for (const { source } of Object.values(scripts)) {
      assert.isFalse(source.startsWith("#!"))
      // `setresp`, `acl_check_cmd` and others came later.
      for (const [, used] of source.matchAll(/redis\.(\w+)/g)) assert.include(["call", "pcall"], used)
    }
  })

  it.live("what is allowed is as old as it is said to be", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      for (const [name, [since]] of Object.entries(allowed)) {
        assert.isTrue(isOld(since), name)
        // Servers before version 7 do not tell.
        if (isOld(server.version) || server.version.startsWith("6.")) continue
        const docs = ((yield* server.command("COMMAND", "DOCS", name)) as [string, Array<unknown>])[1]
        assert.isTrue(isOld(String(docs[docs.indexOf("since") + 1])), name)
      }
    }))
})
