import type { LeaseTicket, LockOptions, LockStore } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Option, type Scope } from "effect"
import { Redis } from "ioredis"
import { QuorumLockStore, RedisLockStore } from "../src/index.ts"
import * as scripts from "../src/internal/quorumScripts.ts"
import { build, type Client, connect, hold, keysOf, patience, queued, until } from "./support/client.ts"
import { looks, quietly } from "./support/observe.ts"
import * as quorum from "./support/quorum.ts"
import * as Tap from "./support/Tap.ts"
import { connectSentinel, replicated } from "./support/topology.ts"

/** The first renewal is due after 200 seconds: whoever learns of a loss well before that was told. */
const ttl = "10 minutes"
const bound = 20_000

/** Whether the connection for commands has its reads tracked, on behalf of the subscriber that there is now. */
const isTracking = (server: RedisServer.Server) =>
  Effect.map(server.clients, (clients) => {
    const named = (name: string) => clients.filter((client) => client.get("name") === name)
    const subscribers = new Set(named("effect-lock-subscriber").map((client) => client.get("id")))
    return named("effect-lock").some((client) => subscribers.has(client.get("redir")))
  })

/** For how many keys the server has somebody to tell. */
const trackedKeys = (server: RedisServer.Server) =>
  Effect.map(
    server.command("INFO", "stats"),
    (info) => Number(/^tracking_total_keys:(\d+)/m.exec(String(info))![1])
  )

const untilTracked = (server: RedisServer.Server, count: number) =>
  until(Effect.map(trackedKeys(server), (keys) => keys === count), `${count} tracked keys`)

/** Somebody inside, whose key the server watches, and as many as that with it. */
const holdWatched = Effect.fnUntraced(function*(server: RedisServer.Server, client: Client, key = "k", count = 1) {
  const holder = yield* hold(client, key, { ttl })
  yield* holder.entered
  yield* untilTracked(server, count)
  return holder
})

const assertLost = (exit: Exit.Exit<void, unknown>) => {
  const error = Option.getOrUndefined(Exit.findErrorOption(exit)) as { _tag: string; reason: string } | undefined
  assert.deepStrictEqual([error?._tag, error?.reason], ["LockLost", "NotHeld"], String(exit))
}

const assertLostSoon = Effect.fnUntraced(function*(
  holder: { readonly exit: Effect.Effect<Exit.Exit<void, unknown>> },
  deed: Effect.Effect<unknown, RedisServer.RedisServerError>
) {
  const started = performance.now()
  yield* deed
  assertLost(yield* holder.exit)
  assert.isBelow(performance.now() - started, bound)
})

const [hash] = keysOf("k") as [string]

const ways: ReadonlyArray<{
  readonly name: string
  readonly remove: (server: RedisServer.Server) => Effect.Effect<unknown, RedisServer.RedisServerError>
}> = [
  { name: "DEL", remove: (server) => server.command("DEL", hash) },
  { name: "UNLINK", remove: (server) => server.command("UNLINK", hash) },
  { name: "EXPIRE in the past", remove: (server) => server.command("EXPIRE", hash, -1) },
  { name: "PEXPIRE, a moment later", remove: (server) => server.command("PEXPIRE", hash, 1) },
  { name: "RENAME", remove: (server) => server.command("RENAME", hash, "elsewhere") },
  { name: "FLUSHDB", remove: (server) => server.command("FLUSHDB") },
  { name: "FLUSHALL", remove: (server) => server.command("FLUSHALL") },
  {
    name: "eviction",
    remove: (server) =>
      Effect.gen(function*() {
        yield* server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", "1mb")
        // The server makes room before it runs whatever comes next.
        yield* server.command("SET", "more", "data").pipe(Effect.ignore)
        yield* server.command("CONFIG", "SET", "maxmemory", "0")
      })
  }
]

describe("instant loss", () => {
  for (const { name, remove } of ways) {
    it.live(`G4: the holder is interrupted by the push when its key is gone by ${name}`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const client = yield* connect(server)
        const holder = yield* holdWatched(server, client)
        yield* assertLostSoon(holder, remove(server))
        // And the next one is watched as the first one was.
        const next = yield* holdWatched(server, client)
        yield* assertLostSoon(next, remove(server))
      }).pipe(quietly))
  }

  it.live("G4: only whose key is gone is told", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const other = yield* holdWatched(server, client, "other")
      const holder = yield* holdWatched(server, client, "k", 2)
      const monitor = yield* server.monitor
      yield* assertLostSoon(holder, server.command("DEL", hash))
      assert.lengthOf((yield* client.store.inspect("other")).holders, 1)
      assert.strictEqual(looks(yield* monitor.all), 1)
      yield* assertLostSoon(other, server.command("DEL", ...keysOf("other")))
    }).pipe(quietly))

  it.live("a renewed lease is watched on", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* client.lock.acquire("k", { ttl })
        yield* untilTracked(server, 1)
        const monitor = yield* server.monitor
        yield* lease.extend("20 minutes")
        yield* until(Effect.map(monitor.all, (entries) => looks(entries) === 1), "it was looked at again")
        assert.strictEqual(yield* trackedKeys(server), 1)
        const started = performance.now()
        yield* server.command("DEL", hash)
        const loss = yield* Effect.flip(lease.lost)
        assert.strictEqual(loss.reason, "NotHeld")
        assert.isBelow(performance.now() - started, bound)
      }))
    }).pipe(quietly))

  it.live("a lease is watched on after its own client has set the limit of its key", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const store = client.store as LockStore.PermitStore["Service"]
      const holder = yield* hold(client, "k", { ttl, renewEvery: "9 minutes" })
      yield* holder.entered
      yield* untilTracked(server, 1)
      const monitor = yield* server.monitor
      yield* store.setLimit("k", 1, 2)
      yield* until(Effect.map(monitor.all, (entries) => looks(entries) === 1), "it was looked at again")
      yield* untilTracked(server, 1)
      yield* assertLostSoon(holder, server.command("DEL", hash))
    }).pipe(quietly))

  it.live("a grant that was waited for is watched", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const one = yield* connect(server, { store: { tracking: false } })
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const client = yield* connect(server)
      const waiter = yield* hold(client, "k", { ttl })
      yield* queued(client, "k", 1)
      yield* holder.leave
      yield* waiter.entered
      yield* untilTracked(server, 1)
      yield* assertLostSoon(waiter, server.command("DEL", hash))
    }).pipe(quietly))

  it.live("a lease that was handed off is not taken for lost, and its adopter is told", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const a = yield* connect(server)
      const b = yield* connect(server)
      const ticket: LeaseTicket.LeaseTicket = yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* a.lock.acquire("k", { ttl })
        yield* untilTracked(server, 1)
        const ticket = yield* lease.handOff
        assert.strictEqual((yield* Effect.flip(lease.check)).reason, "HandedOff")
        return ticket
      }))
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* b.lock.adopt(ticket, { ttl })
        yield* untilTracked(server, 1)
        const started = performance.now()
        yield* server.command("DEL", hash)
        assert.strictEqual((yield* Effect.flip(lease.lost)).reason, "NotHeld")
        assert.isBelow(performance.now() - started, bound)
      }))
    }).pipe(quietly))

  it.live("keys of a connection with a prefix of its own are recognised", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server, { store: { options: { keyPrefix: "app:" } } })
      const holder = yield* holdWatched(server, client)
      yield* assertLostSoon(holder, server.command("DEL", `app:${hash}`))
    }).pipe(quietly))
})

describe("instant loss over a reconnect", () => {
  const kill = (server: RedisServer.Server, name: string) =>
    Effect.flatMap(server.clients, (clients) =>
      Effect.forEach(
        clients.filter((client) => client.get("name") === name),
        (client) => server.command("CLIENT", "KILL", "ID", client.get("id")!)
      ))

  for (const name of ["effect-lock", "effect-lock-subscriber"]) {
    it.live(`tracking is switched on again when ${name} is back, and held keys are looked at`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const client = yield* connect(server)
        const holder = yield* holdWatched(server, client)
        for (let i = 0; i < 2; i++) {
          const monitor = yield* server.monitor
          yield* kill(server, name)
          yield* until(isTracking(server), "tracking is on again")
          yield* until(Effect.map(monitor.all, (entries) => looks(entries) > 0), "the key was looked at")
        }
        yield* assertLostSoon(holder, server.command("DEL", hash))
      }).pipe(quietly))

    it.live(`a key that was deleted while ${name} was away is missed as soon as it is back`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const client = yield* connect(server)
        const holder = yield* holdWatched(server, client)
        yield* assertLostSoon(holder, Effect.andThen(kill(server, name), server.command("DEL", hash)))
      }).pipe(quietly))
  }

  it.live("after a failover it is the new master that tells", () =>
    Effect.gen(function*() {
      const sentinel = yield* RedisServer.makeSentinel()
      const client = yield* connectSentinel(sentinel)
      const before = yield* sentinel.master
      const holder = yield* holdWatched(before, client)
      yield* replicated(before)
      const master = yield* sentinel.failover
      assert.notStrictEqual(master.port, before.port)
      yield* until(isTracking(master), "tracking is on again")
      yield* untilTracked(master, 1)
      yield* assertLostSoon(holder, master.command("DEL", hash))
    }).pipe(quietly))

  it.live("a server that comes back without its memory is noticed as soon as it is back", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const holder = yield* holdWatched(server, client)
      yield* server.restart
      const started = performance.now()
      assertLost(yield* holder.exit)
      assert.isBelow(performance.now() - started, bound)
    }).pipe(quietly))
})

describe("without tracking", () => {
  const userWith = (server: RedisServer.Server, ...rules: ReadonlyArray<string>) =>
    Effect.as(
      server.command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "&*", "+@all", ...rules),
      `redis://app:secret@${server.host}:${server.port}`
    )

  const clients: ReadonlyArray<{
    readonly name: string
    readonly connect: (server: RedisServer.Server) => Effect.Effect<Client, unknown, Scope.Scope>
  }> = [
    { name: "switched off", connect: (server) => connect(server, { store: { tracking: false } }) },
    { name: "without push", connect: (server) => connect(server, { store: { push: false } }) },
    {
      name: "over a borrowed client",
      connect: (server) =>
        Effect.acquireRelease(
          Effect.sync(() => new Redis({ host: server.host, port: server.port })),
          (redis) => Effect.sync(() => redis.disconnect())
        ).pipe(Effect.flatMap((redis) => build(RedisLockStore.layerClient(redis, patience))))
    },
    {
      name: "on a server that says it is version 5",
      connect: (server) =>
        Effect.flatMap(
          Tap.make(server, {
            reply: (chunk) =>
              chunk.replace(`redis_version:${server.version}`, `redis_version:5${server.version.slice(1)}`)
          }),
          (tap) => connect(tap)
        )
    },
    {
      name: "where INFO is denied, so that the version is not known",
      connect: (server) =>
        Effect.flatMap(
          userWith(server, "-info"),
          (url) => connect({ url }, { store: { options: { enableReadyCheck: false } } })
        )
    },
    {
      name: "for a user who may not listen to the server's channel",
      connect: (server) =>
        Effect.flatMap(userWith(server, "resetchannels", "&effect-lock:*"), (url) => connect({ url }))
    },
    {
      name: "for a user who may not use CLIENT TRACKING",
      connect: (server) => Effect.flatMap(userWith(server, "-client"), (url) => connect({ url }))
    }
  ]

  for (const { connect, name } of clients) {
    it.live(`${name}: nothing is asked of the server, and a deleted key is noticed at the next renewal`, () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const client = yield* connect(server)
        const monitor = yield* server.monitor
        const holder = yield* hold(client, "k", { ttl, renewEvery: 200 })
        yield* holder.entered
        yield* server.command("DEL", hash)
        assertLost(yield* holder.exit)
        assert.strictEqual(looks(yield* monitor.all), 0)
        assert.strictEqual((yield* server.commandStats).get("client|tracking") ?? 0, 0)
      }).pipe(quietly))
  }
})

describe("instant loss on a quorum", () => {
  interface Kind {
    readonly name: string
    /** The keys of the lock, and where they are. */
    readonly votes: ReadonlyArray<{ readonly server: RedisServer.Server; readonly hash: string }>
    readonly connect: (options?: {
      readonly tracking?: boolean
      readonly lock?: LockOptions.LockOptions
    }) => Effect.Effect<Client, unknown, Scope.Scope>
  }
  type Vote = Kind["votes"][number]
  const { voterTimeout } = quorum
  const maxTtl = ttl

  const kinds: ReadonlyArray<Effect.Effect<Kind, RedisServer.RedisServerError, Scope.Scope>> = [
    Effect.map(quorum.start(3), ({ connect, places }) => ({
      name: "three voters",
      votes: places.map(({ server }) => ({ server, hash: "effect-lock:quorum:k" })),
      connect: ({ lock, tracking } = {}) => connect({ lock: lock ?? {}, store: { maxTtl, tracking, voterTimeout } })
    })),
    Effect.map(RedisServer.make(), (server) => ({
      name: "three keys of one server",
      votes: [0, 1, 2].map((i) => ({ server, hash: `effect-lock:${i}:k` })),
      connect: ({ lock, tracking } = {}) =>
        build(QuorumLockStore.layerKeyMajority({ url: server.url, majority: 2, maxTtl, tracking, voterTimeout }), lock)
    }))
  ]
  const forEachKind = (title: string, run: (kind: Kind) => Effect.Effect<void, unknown, Scope.Scope>) => {
    for (const [i, name] of ["three voters", "three keys of one server"].entries()) {
      it.live(`${name}: ${title}`, () => quietly(Effect.scoped(Effect.flatMap(kinds[i]!, run))), 60_000)
    }
  }

  const votedFor = ({ hash, server }: Vote) => server.command("HGET", hash, "i")
  /** Somebody inside by all votes, each of which is watched. */
  const untilAllWatched = (votes: ReadonlyArray<Vote>) =>
    Effect.gen(function*() {
      yield* until(Effect.map(Effect.forEach(votes, votedFor), (ids) => !ids.includes(null)), "all have voted")
      const servers = new Set(votes.map(({ server }) => server))
      yield* Effect.forEach(servers, (server) => untilTracked(server, votes.length / servers.size), { discard: true })
    })
  const holdWithAll = Effect.fnUntraced(function*(votes: ReadonlyArray<Vote>, client: Client) {
    const holder = yield* hold(client, "k", { ttl })
    yield* holder.entered
    yield* untilAllWatched(votes)
    return holder
  })
  const remove = ({ hash, server }: Vote) => server.command("DEL", hash)

  forEachKind(
    "G4: the holder is interrupted by the push when a majority of its votes is gone",
    ({ connect, votes }) =>
      Effect.gen(function*() {
        const client = yield* connect()
        for (const gone of [votes.slice(0, 2), votes.slice(1), votes]) {
          const holder = yield* holdWithAll(votes, client)
          yield* assertLostSoon(holder, Effect.forEach(gone, remove))
        }
      })
  )

  forEachKind(
    "a minority that is gone is voted for again at once, as often as it happens",
    ({ connect, votes }) =>
      Effect.gen(function*() {
        const client = yield* connect()
        const holder = yield* holdWithAll(votes, client)
        for (let i = 0; i < 4; i++) {
          const vote = votes[i % 2]!
          const started = performance.now()
          const before = yield* votedFor(vote)
          yield* remove(vote)
          yield* until(Effect.map(votedFor(vote), (id) => id === before), "it votes again")
          assert.isBelow(performance.now() - started, bound)
          yield* untilAllWatched(votes)
        }
        yield* holder.leave
        assert.isTrue(Exit.isSuccess(yield* holder.exit))
      })
  )

  forEachKind(
    "a vote that stays away is asked for once, and is no loss",
    ({ connect, votes }) =>
      Effect.gen(function*() {
        const client = yield* connect()
        const holder = yield* holdWithAll(votes, client)
        const [{ hash, server }] = votes as [Vote]
        const monitor = yield* server.monitor
        // It is somebody else's.
        yield* server.command("HSET", hash, "i", "other", "n", "other-1", "u", "9000000000000")
        const renewals = Effect.map(
          monitor.all,
          (all) =>
            all.filter(({ command }) => command[1] === scripts.extend.sha || command[1] === scripts.extend.source)
        )
        yield* until(Effect.map(renewals, (all) => all.length > 0), "the lease is renewed")
        // By then it has been looked at after the renewal, too.
        yield* Effect.sleep(500)
        assert.isAtMost((yield* renewals).length, 2 * votes.filter((vote) => vote.server === server).length)
        yield* holder.leave
        assert.isTrue(Exit.isSuccess(yield* holder.exit))
      })
  )

  forEachKind("G11: who waits is no reason to look again and again", ({ connect, votes }) =>
    Effect.gen(function*() {
      const [one, other] = [yield* connect(), yield* connect()]
      const holder = yield* holdWithAll(votes, one)
      const waiter = yield* hold(other, "k")
      const waiters = ({ hash, server }: Vote) =>
        Effect.map(server.command("HKEYS", hash), (fields) =>
          (fields as Array<string>).filter((it) => it.startsWith("w:")))
      yield* until(
        Effect.map(Effect.forEach(votes, waiters), (all) =>
          all.every(({ length }) => length === 1)),
        "all voters know the waiter"
      )
      const monitor = yield* votes[0]!.server.monitor
      const asked = Effect.map(
        monitor.all,
        (all) =>
          all.filter(({ command }) => [scripts.acquire, scripts.acquire.guarded!].some(({ sha }) => command[1] === sha))
      )
      yield* until(Effect.map(asked, ({ length }) => length >= 30), "the waiter has asked again and again")
      // What comes of his first question may be under way still.
      assert.isAtMost(looks(yield* monitor.all), votes.length)
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
    }))

  forEachKind(
    "with tracking off nothing is asked for, and the next renewal notices",
    ({ connect, votes }) =>
      Effect.gen(function*() {
        const client = yield* connect({ tracking: false })
        const [{ server }] = votes as [Vote]
        const monitor = yield* server.monitor
        const holder = yield* hold(client, "k", { ttl, renewEvery: 200 })
        yield* holder.entered
        yield* Effect.forEach(votes, remove)
        assertLost(yield* holder.exit)
        assert.strictEqual(looks(yield* monitor.all), 0)
        assert.strictEqual((yield* server.commandStats).get("client|tracking") ?? 0, 0)
      })
  )

  it.live("voters that do not track are asked for nothing, and the others tell", () =>
    Effect.gen(function*() {
      const { places } = yield* quorum.start(3)
      const [old, borrowed, last] = places as [quorum.Place, quorum.Place, quorum.Place]
      const { server } = old
      const five = yield* Tap.make(server, {
        reply: (chunk) => chunk.replace(`redis_version:${server.version}`, `redis_version:5${server.version.slice(1)}`)
      })
      const redis = yield* Effect.acquireRelease(
        Effect.sync(() => new Redis({ host: borrowed.server.host, port: borrowed.server.port })),
        (redis) => Effect.sync(() => redis.disconnect())
      )
      const client = yield* build(
        QuorumLockStore.layer({
          maxTtl,
          voterTimeout,
          voters: [{ url: five.url }, { client: redis }, { url: last.server.url }]
        })
      )
      const monitors = [yield* server.monitor, yield* borrowed.server.monitor]
      const holder = yield* hold(client, "k", { ttl })
      yield* holder.entered
      yield* untilTracked(last.server, 1)
      const deleted = Effect.forEach(places, ({ server }) => server.command("DEL", "effect-lock:quorum:k"))
      yield* assertLostSoon(holder, deleted)
      for (const monitor of monitors) assert.strictEqual(looks(yield* monitor.all), 0)
      for (const { server } of [old, borrowed]) {
        assert.strictEqual((yield* server.commandStats).get("client|tracking") ?? 0, 0)
      }
    }).pipe(Effect.scoped, quietly), 60_000)

  it.live(
    "a voter that comes back without its memory, or late, is tracked as the others are",
    () =>
      Effect.gen(function*() {
        const { connect, places } = yield* quorum.start(3)
        const [late, restarted] = places as [quorum.Place, quorum.Place, quorum.Place]
        yield* late.server.kill
        const client = yield* connect({ store: { maxTtl, quarantine: false, voterTimeout } })
        yield* late.server.restart
        yield* until(isTracking(late.server), "the late one is tracked")
        yield* restarted.server.restart
        yield* until(isTracking(restarted.server), "the restarted one is tracked again")
        const votes = places.map(({ server }) => ({ server, hash: "effect-lock:quorum:k" }))
        yield* until(
          client.lock.withLockIfAvailable(quorum.votes(places, "warm"), "warm").pipe(
            Effect.map(Option.contains(3)),
            Effect.orElseSucceed(() => false)
          ),
          "all voters vote"
        )
        const holder = yield* holdWithAll(votes, client)
        yield* assertLostSoon(holder, Effect.forEach(votes.slice(0, 2), remove))
      }).pipe(Effect.scoped, quietly),
    60_000
  )
})

describe("cost of instant loss", () => {
  it.live("G11: short locks are not looked at, and fill no table of the server", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* connect(server)
      const monitor = yield* server.monitor
      // A machine that stands still makes some of them long, and those may be looked at.
      let long = 0
      for (let i = 0; i < 500; i++) {
        const started = performance.now()
        yield* lock.withLock(Effect.void, `key:${i}`)
        if (performance.now() - started > 45) long++
      }
      assert.isAtMost(looks(yield* monitor.all), long)
      yield* untilTracked(server, 0)
    }))

  it.live("G11: what others do to a key that is held is no reason to look at it", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const other = yield* connect(server)
      const holder = yield* holdWatched(server, client)
      const monitor = yield* server.monitor
      const tryInVain = Effect.andThen(
        other.lock.withLockIfAvailable(Effect.void, "k"),
        Effect.ignore(other.lock.withLock(Effect.void, "k", { waitTimeout: 2 }))
      )
      yield* Effect.all(Array.from({ length: 20 }, () => Effect.repeat(tryInVain, { times: 20 })), {
        concurrency: "unbounded",
        discard: true
      })
      assert.strictEqual(looks(yield* monitor.all), 0)
      yield* assertLostSoon(holder, server.command("DEL", hash))
    }).pipe(quietly))

  it.live("G11: where several hold permits of a key, comings and goings cost its holders one look each in a while, and no renewal", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const clients = [yield* connect(server), yield* connect(server), yield* connect(server)]
      const doubts: Array<unknown> = []
      const request = {
        key: "k",
        ttl: 60_000,
        permits: 1,
        limit: 10,
        wait: false,
        priority: 0,
        maxWaiters: Infinity,
        floor: 0,
        metadata: {}
      }
      const [one, two, busy] = clients as [Client, Client, Client]
      for (const { store } of [one, two]) {
        yield* store.onNews((loss) => doubts.push(loss))
        yield* store.attempt({
          ...request,
          holderId: `holder ${clients.findIndex((client) => client.store === store)}`
        })
      }
      yield* untilTracked(server, 1)
      const monitor = yield* server.monitor
      const started = performance.now()
      for (let i = 0; performance.now() - started < 1000; i++) {
        const holderId = `guest ${i}`
        const attempt = yield* busy.store.attempt({ ...request, holderId })
        if (attempt._tag !== "Granted") return assert.fail(attempt._tag)
        yield* busy.store.release({ key: "k", holderId, token: attempt.grant.token }, 0)
      }
      const during = yield* monitor.take
      const periods = (performance.now() - started) / 50 + 1
      assert.isAbove(looks(during), 0)
      // Two holders are told, and the guests' own client looks as often at most.
      assert.isAtMost(looks(during), 3 * periods)
      // Looking is no change: the last ones lead to no more.
      yield* until(
        Effect.map(Effect.delay(monitor.take, 200), (entries) => looks(entries) === 0),
        "nobody looks any more"
      )
      yield* untilTracked(server, 1)
      yield* Effect.sleep(300)
      assert.strictEqual(looks(yield* monitor.all), 0)
      assert.deepStrictEqual(doubts, [])
      yield* server.command("DEL", hash)
      yield* until(Effect.sync(() => doubts.length === 2), "both are told")
      assert.deepStrictEqual(doubts, Array.from({ length: 2 }, () => ({ _tag: "InDoubt", key: "k" })))
    }))

  it.live("G11: nothing is remembered of leases that have ended, however they did", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const other = yield* connect(server)
      const holders = yield* Effect.forEach(["k", "b", "c", "d"], (key, i) => holdWatched(server, client, key, i + 1))
      yield* assertLostSoon(holders[0]!, server.command("DEL", hash))
      yield* holders[1]!.leave
      yield* holders[2]!.interrupt
      yield* Effect.scoped(other.lock.takeover("d"))
      yield* holders[3]!.exit
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* client.lock.acquire("e")
        yield* until(Effect.map(trackedKeys(server), (keys) => keys > 0), "it is watched")
        yield* lease.handOff
      }))
      // All that is still remembered would be looked at.
      const monitor = yield* server.monitor
      yield* server.command("FLUSHALL")
      const last = yield* holdWatched(server, client, "last")
      assert.strictEqual(looks(yield* monitor.all), 1)
      yield* last.leave
      yield* untilTracked(server, 0)
    }).pipe(quietly))
})
