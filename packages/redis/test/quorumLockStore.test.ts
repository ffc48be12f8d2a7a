import type { LeaseTicket, Lock, LockError, LockStore } from "@effect-lock/core"
import { FaultProxy, LockHistory, RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, type Duration, Effect, Exit, Fiber, Layer, Option, Random, Schedule, type Scope } from "effect"
import { Redis } from "ioredis"
import { QuorumLockStore, RedisClient } from "../src/index.ts"
import * as ballots from "../src/internal/quorumBallot.ts"
import * as scripts from "../src/internal/quorumScripts.ts"
import { Turns, type Waiter } from "../src/internal/quorumWaiting.ts"
import { build, hold, until, untilSync } from "./support/client.ts"
import { quietly, withLog } from "./support/observe.ts"
import * as quorum from "./support/quorum.ts"
import { occupy, replicated } from "./support/topology.ts"

const timeout = 120_000

const test = <A, E>(name: string, body: Effect.Effect<A, E, Scope.Scope>) =>
  it.live(name, () => quietly(Effect.scoped(body)), timeout)

const storeError = (exit: Exit.Exit<unknown, unknown>): LockError.LockStoreError => {
  const error = Option.getOrUndefined(Exit.findErrorOption(exit)) as LockError.LockStoreError | undefined
  assert.strictEqual(error?._tag, "LockStoreError", String(exit))
  return error!
}

const { voterTimeout } = quorum

const request = (key: string, holderId: string, change: Partial<LockStore.Request> = {}): LockStore.Request => ({
  key,
  holderId,
  ttl: 30_000,
  permits: 1,
  limit: 1,
  wait: false,
  priority: 0,
  maxWaiters: Infinity,
  floor: 0,
  metadata: {},
  ...change
})

describe("quorum: locks", { concurrent: true }, () => {
  test(
    "acquires at every voter, renews at every voter, and leaves only a fence that expires",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const ttl = 6000
      const client = yield* connect({ lock: { ttl } })
      const holder = yield* hold(client, "k")
      yield* holder.entered
      yield* quorum.untilVotes(places, "k", 3)
      const before = yield* client.store.inspect("k")
      yield* Effect.sleep(ttl + 1000)
      assert.strictEqual(yield* quorum.votes(places, "k"), 3)
      const after = yield* client.store.inspect("k")
      assert.strictEqual(after.holders[0]!.token, before.holders[0]!.token)
      assert.isAbove(after.holders[0]!.heldFor, ttl)
      yield* holder.leave
      yield* quorum.untilVotes(places, "k", 0)
      for (const { server } of places) {
        for (const key of yield* server.keys("*")) {
          assert.isAbove((yield* server.command("PTTL", key)) as number, 0, `expiry of ${key}`)
        }
        assert.deepStrictEqual(yield* server.command("HKEYS", "effect-lock:quorum:k"), ["c"])
      }
    })
  )

  test(
    "a release wakes the waiter by a push: it does not wait for its retry",
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const store = { retry: Schedule.spaced("1 minute") }
      const [one, other] = [yield* connect({ store }), yield* connect({ store })]
      for (let i = 0; i < 5; i++) {
        const holder = yield* hold(one, "k")
        yield* holder.entered
        const waiter = yield* hold(other, "k")
        yield* until(Effect.map(one.store.inspect("k"), ({ waiters }) => waiters.length === 1), "the waiter is known")
        yield* holder.leave
        yield* waiter.entered.pipe(Effect.timeout("10 seconds"))
        yield* waiter.leave
      }
    })
  )

  test(
    "waiters of one client cost one round per retry, and one subscriber per voter",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const one = yield* connect()
      const other = yield* connect({ store: { retry: Schedule.spaced("200 millis") } })
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const waiters = yield* Effect.forEach(Array.from({ length: 50 }), () => hold(other, "k"))
      yield* until(Effect.map(other.store.inspect("k"), ({ waiters }) => waiters.length === 50), "all wait")
      const recording = yield* places[0]!.server.monitor
      const started = performance.now()
      const sent = Effect.map(
        recording.all,
        (entries) => entries.filter(({ command, source }) => source !== "lua" && /evalsha/i.test(command[0]!)).length
      )
      yield* until(Effect.map(sent, (count) => count >= 10), "ten requests")
      const count = yield* sent
      const most = 2 * (performance.now() - started) / 200 + 10
      assert.isBelow(count, most, "a request and its roll-back at most for each retry")
      const names = (yield* places[0]!.server.clients).map((client) => client.get("name"))
      assert.strictEqual(names.filter((name) => name === "effect-lock-subscriber").length, 2)
      yield* holder.leave
      yield* Effect.forEach(waiters, (waiter) => Effect.andThen(waiter.entered, waiter.leave), {
        concurrency: "unbounded",
        discard: true
      })
    })
  )

  test(
    "whoever has the turn wakes the next one when he leaves, also behind one that has not come back for it",
    Effect.sync(() => {
      let now = 0
      const turns = new Turns(() => now)
      const [gone, first, second, third] = ["gone", "first", "second", "third"].map((holderId, i): Waiter => {
        const waiter = {
          key: "k",
          holderId,
          wake: Deferred.makeUnsafe<void>(),
          turnUntil: i === 0 ? 1 : 3,
          standing: []
        }
        turns.enter(waiter)
        return waiter
      }) as [Waiter, Waiter, Waiter, Waiter]
      const awake = () => [gone, first, second, third].filter(({ wake }) => Deferred.isDoneUnsafe(wake))
      now = 2
      turns.leave(second)
      assert.deepStrictEqual(awake(), [])
      turns.leave(first)
      assert.deepStrictEqual(awake(), [third])
      turns.leave(gone)
      turns.leave(third)
      assert.strictEqual(turns.count("k"), 0)
    })
  )

  test(
    "a retry schedule that ends makes the acquisition fail, with who was in the way at each voter",
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const one = yield* connect()
      const other = yield* connect({ store: { retry: Schedule.max([Schedule.spaced(10), Schedule.recurs(2)]) } })
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const error = storeError(yield* Effect.exit(other.lock.withLock(Effect.void, "k")))
      assert.strictEqual(error.reason, "Refused")
      assert.match(error.detail!, /not granted in 3 tries, and retry has no more: .*held by/)
      yield* holder.leave
    })
  )

  test(
    "refuses permits, and a ttl above maxTtl, with a clear text",
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const { lock, store } = yield* connect({ store: { maxTtl: "10 seconds" } })
      const permits = storeError(yield* Effect.exit(store.attempt(request("k", "h", { limit: 2 }))))
      assert.strictEqual(permits.reason, "Refused")
      assert.match(permits.message, /1 of 2 permits: votes of a majority make a mutex/)
      const long = storeError(yield* Effect.exit(lock.withLock(Effect.void, "k", { ttl: "11 seconds" })))
      assert.match(long.message, /ttl of 11000 ms is above maxTtl of 10000 ms/)
      const extended = storeError(
        yield* Effect.exit(
          Effect.scoped(Effect.flatMap(lock.acquire("k", { ttl: 5000 }), (lease) => lease.extend(20_000)))
        )
      )
      assert.strictEqual(extended.operation, "renew")
    })
  )

  test(
    "votes that arrive when nothing is left of the ttl are given back",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const { lock, store } = yield* connect({ store: { voterTimeout: "20 seconds" } })
      yield* lock.withLock(Effect.void, "warm")
      // Votes are given half-way: for four seconds after the answer they do not run out by themselves.
      for (const { proxy } of places) yield* proxy.latency(5000)
      const error = storeError(yield* Effect.exit(store.attempt(request("k", "h", { ttl: 9000 }))))
      assert.match(error.detail!, /took longer than its ttl of 9000 ms/)
      for (const { proxy } of places) yield* proxy.latency(0)
      yield* quorum.untilTakenBack(places, "k")
    })
  )

  test(
    "an own vote that could not be taken back does not block the next round",
    Effect.gen(function*() {
      const { places } = yield* quorum.start(3)
      const blocked = new Set<string>()
      const voters = yield* Effect.forEach(
        places,
        ({ name, server }) =>
          Effect.map(RedisClient.make(server.url, {}, 5000), (client): ballots.Voter => ({
            name,
            keyOf: (key) => key,
            mark: undefined,
            run: (script, keys, args) => {
              if (script.name === "release") return Effect.never
              return blocked.has(name) ? Effect.never : client.run(script, keys, args)
            },
            list: () => Effect.succeed([]),
            trouble: undefined,
            recovered: Effect.void,
            suspect: () => {}
          }))
      )
      const electorate = yield* ballots.makeElectorate({
        clientId: "c",
        voters,
        settings: {
          // For as long every round waits for who is down.
          voterTimeout: 4000,
          driftFactor: 0.01,
          maxTtl: 60_000,
          retention: 65_000,
          quarantine: 0,
          inbox: ""
        }
      })
      const wish: ballots.Wish = {
        key: "k",
        holderId: "h",
        ttl: 30_000,
        floor: 0,
        metadata: "{}",
        listenFor: 0,
        since: 0,
        mode: "ask",
        ticket: undefined
      }
      // One voter is down, one has voted for somebody else: our one vote is not enough, and stays.
      blocked.add("c")
      yield* places[1]!.server.command(
        "HSET",
        "k",
        "n",
        "x-1",
        "k",
        "1",
        "t",
        "0",
        "u",
        "9000000000000",
        "s",
        "1",
        "i",
        "x",
        "m",
        "{}"
      )
      for (let i = 0; i < 3; i++) {
        const lost = yield* ballots.cast(electorate, wish)
        assert.strictEqual(lost._tag, "Lost")
        assert.strictEqual(lost.ballot.votes.get(voters[0]!)?._tag, "Granted")
      }
      assert.strictEqual(yield* places[0]!.server.command("HGET", "k", "n"), "c-3")
      yield* places[1]!.server.command("DEL", "k")
      const won = yield* ballots.cast(electorate, wish)
      assert.strictEqual(won._tag, "Won")
    })
  )

  test(
    "asks all voters at once, in random order, and answers at the decision, without waiting for a slow one",
    Effect.gen(function*() {
      const { places } = yield* quorum.start(3)
      const asked: Array<string> = []
      const over = yield* Deferred.make<void>()
      const voters = yield* Effect.forEach(
        places,
        ({ name, server }) =>
          Effect.map(RedisClient.make(server.url, {}, 5000), (client): ballots.Voter => ({
            name,
            keyOf: (key) => key,
            mark: undefined,
            run: (script, keys, args) =>
              Effect.suspend(() => {
                if (script.name === "acquire") asked.push(name)
                const answer = client.run(script, keys, args)
                return name === "c" ? Effect.andThen(Deferred.await(over), answer) : answer
              }),
            list: () => Effect.succeed([]),
            trouble: undefined,
            recovered: Effect.void,
            suspect: () => {}
          }))
      )
      const electorates = yield* Effect.forEach(["one", "other"], (clientId) =>
        ballots.makeElectorate({
          clientId,
          voters,
          settings: {
            voterTimeout: 30_000,
            driftFactor: 0.01,
            maxTtl: 60_000,
            retention: 65_000,
            quarantine: 0,
            inbox: ""
          }
        }))
      const firsts = new Set<string>()
      for (let i = 0; i < 60; i++) {
        for (const [n, electorate] of electorates.entries()) {
          asked.length = 0
          const verdict = yield* ballots.cast(electorate, {
            key: `k${i}`,
            holderId: electorate.clientId,
            ttl: 60_000,
            floor: 0,
            metadata: "{}",
            listenFor: 0,
            since: 0,
            mode: "ask",
            ticket: undefined
          })
          assert.strictEqual(verdict._tag, n === 0 ? "Won" : "Lost")
          assert.isUndefined(verdict.ballot.votes.get(voters[2]!))
          assert.deepStrictEqual(asked.toSorted(), ["a", "b", "c"])
          firsts.add(asked[0]!)
        }
      }
      assert.strictEqual(firsts.size, 3)
      yield* Deferred.succeed(over, undefined)
    }).pipe(Effect.timeout("1 minute"))
  )

  test(
    "a round that is interrupted takes back every vote, whatever overtakes what",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const { store } = yield* connect()
      yield* Effect.forEach(
        Array.from({ length: 300 }, (_, i) => i),
        (i) =>
          Effect.gen(function*() {
            // An unknown script is sent twice, and so comes after what was sent behind it.
            if (i % 5 === 0) yield* places[i % 3]!.server.command("SCRIPT", "FLUSH")
            if (i % 20 === 0) yield* places[i % 3]!.proxy.latency((i / 20) % 3)
            const holderId = `h${i}`
            const fiber = yield* Effect.forkChild(store.attempt(request(`k${i % 2}`, holderId)))
            yield* Effect.sleep((yield* Random.next) * 6)
            yield* Fiber.interrupt(fiber)
            const exit = yield* Fiber.await(fiber)
            // An attempt that has ended is for the caller to abandon.
            if (Exit.isSuccess(exit)) yield* store.abandon(`k${i % 2}`, holderId)
          }),
        { concurrency: 4, discard: true }
      )
      for (const key of ["k0", "k1"]) yield* quorum.untilTakenBack(places, key)
    })
  )

  it.live(
    "a vote that is given after it was taken back, and after everybody has given up on it, is taken back again",
    () =>
      withLog((lines) =>
        Effect.scoped(Effect.gen(function*() {
          const { places } = yield* quorum.start(3)
          const gate = yield* Deferred.make<void>()
          let isHeld = false
          const voters = yield* Effect.forEach(places, ({ name, server }) =>
            Effect.acquireRelease(
              Effect.sync(() => {
                const real = new Redis(server.url)
                // As over a connection that is made anew: the request for the vote comes last.
                const evalsha = async (sha: string, ...args: Array<string | number>) => {
                  if (name === "a" && sha === scripts.acquire.sha) {
                    isHeld = true
                    await Effect.runPromise(Deferred.await(gate))
                  }
                  return (real.evalsha as (...args: Array<string | number>) => Promise<unknown>)(sha, ...args)
                }
                return { name, real, client: Object.assign(Object.create(real), { evalsha }) as Redis }
              }),
              ({ real }) => Effect.promise(() => real.quit())
            ))
          const client = yield* build(
            QuorumLockStore.layer({
              voterTimeout: "2500 millis",
              voters: voters.map(({ client, name }) => ({ name, client }))
            })
          )
          const holder = yield* hold(client, "k", { ttl: "1 minute" })
          yield* holder.entered
          assert.isTrue(isHeld)
          yield* holder.leave
          yield* until(
            Effect.sync(() => lines.some(({ text }) => /voter a does not answer: no answer within/.test(text))),
            "the request has timed out"
          )
          const recording = yield* places[0]!.server.monitor
          yield* Deferred.succeed(gate, undefined)
          yield* until(
            Effect.map(
              recording.all,
              (all) => all.some(({ command }) => command[1] === scripts.acquire.sha)
            ),
            "the request is executed"
          )
          yield* quorum.untilTakenBack(places, "k")
        }))
      ),
    timeout
  )

  test(
    "interrupted at any moment, leaves no vote with any voter",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const clients = [yield* connect(), yield* connect(), yield* connect()]
      const keys = ["x", "y"]
      for (const { proxy } of places) yield* proxy.latency(1)
      yield* Effect.forEach(
        Array.from({ length: 300 }, (_, i) => i),
        (i) =>
          Effect.gen(function*() {
            const fiber = yield* Effect.forkChild(
              clients[i % 3]!.lock.withLock(Effect.sleep(3), keys[i % 2]!)
            )
            yield* Effect.sleep((yield* Random.next) * 30)
            yield* Fiber.interrupt(fiber)
          }),
        { concurrency: 12, discard: true }
      )
      for (const key of keys) yield* quorum.untilVotes(places, key, 0)
      for (const key of keys) {
        assert.deepStrictEqual(yield* clients[0]!.store.inspect(key), { key, holders: [], waiters: [] })
        yield* clients[1]!.lock.withLock(Effect.void, key)
      }
    })
  )

  test(
    "closing the layer closes every connection and leaves no vote",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const client = yield* connect()
      const holder = yield* hold(client, "k")
      yield* holder.entered
      yield* client.close
      yield* quorum.untilVotes(places, "k", 0)
      for (const { server } of places) {
        yield* until(
          Effect.map(server.clients, (clients) => clients.every((it) => it.get("name") === "effect-lock-admin")),
          "no connection of ours is left"
        )
      }
    })
  )

  test(
    "borrowed clients are used and stay open, whatever their own prefix",
    Effect.gen(function*() {
      const { places } = yield* quorum.start(3)
      const clients = yield* Effect.forEach(places, ({ server }) =>
        Effect.acquireRelease(
          Effect.sync(() => new Redis(server.url, { keyPrefix: "app:" })),
          (redis) => Effect.promise(() => redis.quit())
        ))
      const { close, lock, store } = yield* build(
        QuorumLockStore.layer({
          voters: clients.map((client) => ({ client })),
          voterTimeout,
          retry: Schedule.spaced("1 minute")
        })
      )
      const holder = yield* hold({ lock }, "k")
      yield* holder.entered
      const waiter = yield* hold({ lock }, "k")
      yield* until(Effect.map(store.inspect("k"), ({ waiters }) => waiters.length === 1), "the waiter is known")
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
      yield* close
      for (const client of clients) assert.strictEqual(yield* Effect.promise(() => client.ping()), "PONG")
    })
  )

  test(
    "starts with a minority missing, and takes it in when it comes",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      yield* places[0]!.server.kill
      const client = yield* connect({ store: { quarantine: false } })
      yield* client.lock.withLock(Effect.void, "k")
      yield* places[0]!.server.restart
      yield* until(
        Effect.gen(function*() {
          const holder = yield* hold(client, "k")
          yield* holder.entered
          const votes = yield* quorum.votes(places, "k")
          yield* holder.leave
          return votes === 3
        }).pipe(Effect.scoped),
        "all three vote"
      )
    })
  )

  test(
    "does not start without a majority, and tells of each voter why",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      yield* places[0]!.server.kill
      yield* places[1]!.server.pause
      const error = storeError(yield* Effect.exit(connect()))
      assert.strictEqual(error.operation, "startup")
      assert.match(error.detail!, /a: unreachable \(.*\); b: timeout \(.*\); c: connected/)
      yield* places[1]!.server.resume
    })
  )

  test(
    "takes no server for two voters, under whatever name",
    Effect.gen(function*() {
      const { places } = yield* quorum.start(1)
      const [{ proxy, server }] = places as [quorum.Place]
      const twice = yield* Effect.exit(
        build(QuorumLockStore.layer({ voterTimeout, voters: [{ url: server.url }, { url: server.url }] }))
      )
      assert.strictEqual(Exit.isFailure(twice), true)
      const third = yield* FaultProxy.make(server)
      const error = storeError(
        yield* Effect.exit(
          build(
            QuorumLockStore.layer({
              voterTimeout,
              voters: [{ url: server.url }, { url: proxy.url }, { url: third.url }]
            })
          )
        )
      )
      assert.match(error.detail!, /refused \(the same server as voter/)
    })
  )

  test(
    "an unusable option fails the layer before anything is sent",
    Effect.gen(function*() {
      for (
        const options of [
          { voters: [] },
          { voters: [{ name: "a" }, { name: "a" }] },
          { voters: [{ url: "http://a" }] },
          { voters: [{}], voterTimeout: 0 },
          { voters: [{}], driftFactor: 0.5 },
          { voters: [{}], maxTtl: "nonsense" as Duration.Input },
          { voters: [{}], keyPrefix: "" }
        ]
      ) {
        const exit = yield* Effect.exit(Effect.scoped(Layer.build(QuorumLockStore.layer(options))))
        const error = Option.getOrUndefined(Exit.findErrorOption(exit))
        assert.strictEqual(error?._tag, "LockInvalid")
      }
      const exit = yield* Effect.exit(Effect.scoped(Layer.build(QuorumLockStore.layerKeyMajority({ majority: 0 }))))
      assert.strictEqual(Option.getOrUndefined(Exit.findErrorOption(exit))?._tag, "LockInvalid")
    })
  )
})

describe("quorum: memory loss", { concurrent: true }, () => {
  test(
    "heals where a majority has been confirmed in the same round, and nowhere else",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      // A renewal that a deleted vote calls for may come at the same time as a regular one.
      const client = yield* connect({ lock: { ttl: 6000 }, store: { tracking: false } })
      const holder = yield* hold(client, "k")
      yield* holder.entered
      yield* quorum.untilVotes(places, "k", 3)
      const recordings = yield* Effect.forEach(places.slice(0, 2), ({ server }) => server.monitor)
      const heals = Effect.map(
        Effect.forEach(recordings, ({ take }) => take),
        (all) =>
          all.flat().filter(({ command }) => command[1] === scripts.heal.sha || command[1] === scripts.heal.source)
      )
      yield* places[0]!.server.command("DEL", "effect-lock:quorum:k")
      yield* quorum.untilVotes(places, "k", 3)
      assert.strictEqual((yield* heals).length, 1)
      // Both at once, as far as a renewal can tell.
      for (const { proxy } of places.slice(0, 2)) yield* proxy.blackhole("requests")
      // What had come through before has been executed when a server has answered twice.
      for (const { server } of places.slice(0, 2)) yield* Effect.andThen(server.command("PING"), server.command("PING"))
      for (const { server } of places.slice(0, 2)) yield* server.command("DEL", "effect-lock:quorum:k")
      for (const { proxy } of places.slice(0, 2)) yield* proxy.heal
      const lost = Option.getOrUndefined(Exit.findErrorOption(yield* holder.exit)) as { readonly reason: string }
      assert.strictEqual(lost.reason, "NotHeld")
      yield* client.lock.withLock(Effect.void, "k")
      assert.deepStrictEqual(yield* heals, [])
    })
  )

  const store = { maxTtl: 6000, slack: 1000 }

  test(
    "fresh servers are used at once, also by many clients that start together",
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const clients = yield* Effect.forEach(Array.from({ length: 6 }), () => connect(), {
        concurrency: "unbounded"
      })
      // For a small part of the time in which a voter that may have forgotten gives no vote.
      yield* Effect.forEach(clients, ({ lock }, i) =>
        lock.withLock(Effect.void, `k${i}`).pipe(
          Effect.retry({ schedule: Schedule.spaced(20), times: 200 })
        ), { concurrency: "unbounded" })
    })
  )

  test(
    "with assumeFresh off, fresh servers do not vote before maxTtl and slack have passed",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const { lock } = yield* connect({ store: { maxTtl: 10_000, slack: 2000, assumeFresh: false } })
      const error = storeError(yield* Effect.exit(lock.withLock(Effect.void, "k", { ttl: 5000 })))
      assert.match(error.detail!, /a: quarantined for \d+ ms more/)
      yield* lock.withLock(Effect.void, "k", { ttl: 5000 }).pipe(
        Effect.retry({ schedule: Schedule.spaced(100), times: 400 })
      )
      const uptimes = yield* Effect.forEach(places, ({ server }) =>
        Effect.map(
          server.command("INFO", "server"),
          (info) => Number(/uptime_in_seconds:(\d+)/.exec(String(info))![1])
        ))
      assert.isAtLeast(uptimes.filter((uptime) => uptime >= 12).length, 2)
    })
  )

  test(
    "a voter that restarted empty: its vote is withheld, also from the lease it had voted for, and later it votes again",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      // The client has to find the voter again before that votes again.
      const client = yield* connect({ store: { ...store, maxTtl: 12_000 }, lock: { ttl: 6000 } })
      const holder = yield* hold(client, "held")
      yield* holder.entered
      yield* quorum.untilVotes(places, "held", 3)
      yield* places[0]!.server.restart
      assert.strictEqual(yield* quorum.votes(places.slice(0, 1), "held"), 0)
      // Without the third, its vote would decide.
      yield* places[2]!.server.kill
      const error = storeError(yield* Effect.exit(client.lock.withLock(Effect.void, "new")))
      assert.match(error.detail!, /a: quarantined for \d+ ms more, because it restarted/)
      assert.match(error.detail!, /b: granted/)
      // Nor is it healed: somebody else may count on a vote that it has forgotten.
      const lost = Option.getOrUndefined(Exit.findErrorOption(yield* holder.exit)) as { readonly _tag: string }
      assert.strictEqual(lost._tag, "LockLost")
      assert.strictEqual(yield* quorum.votes(places.slice(0, 1), "held"), 0)
      yield* client.lock.withLock(Effect.void, "new").pipe(
        Effect.retry({ schedule: Schedule.spaced(100), times: 400 })
      )
    })
  )

  test(
    "a voter that withholds its vote from healing says so, and does not look as if somebody else had it",
    Effect.gen(function*() {
      const { places } = yield* quorum.start(1)
      const heal = (nonce: string, quarantine: number) =>
        Effect.suspend(() => {
          const args = [nonce, nonce, 1, 30_000, 0, "{}", 65_000, quarantine]
          return places[0]!.server.command("EVAL", scripts.heal.source, 2, "k", "mark", ...args)
        })
      assert.strictEqual(yield* heal("one-1", 60_000), 2)
      assert.strictEqual(yield* heal("one-1", 0), 1)
      assert.strictEqual(yield* heal("one-1", 60_000), 1)
      assert.strictEqual(yield* heal("other-1", 60_000), 0)
    })
  )

  test(
    "two of three restarted empty: the lease is lost and not healed, and nobody gets the key before it has run out",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      // Two restarts have to be found out before the lease has run out.
      const options = { store: { ...store, maxTtl: 15_000 }, lock: { ttl: 15_000 } }
      const client = yield* connect(options)
      const holder = yield* hold(client, "k")
      yield* holder.entered
      yield* quorum.untilVotes(places, "k", 3)
      const { token } = (yield* client.store.inspect("k")).holders[0]!
      const started = Date.now()
      yield* places[0]!.server.restart
      yield* places[1]!.server.restart
      const lost = Option.getOrUndefined(Exit.findErrorOption(yield* holder.exit)) as {
        readonly _tag: string
        readonly reason: string
      }
      assert.strictEqual(lost._tag, "LockLost")
      assert.strictEqual(lost.reason, "NotHeld")
      assert.strictEqual(yield* quorum.votes(places.slice(0, 2), "k"), 0)
      // A client that starts now, too, sees that the quorum has been in use.
      const late = yield* connect(options)
      const error = storeError(yield* Effect.exit(late.lock.withLock(Effect.void, "k")))
      assert.match(error.detail!, /quarantined/)
      const next = yield* Effect.scoped(late.lock.acquire("k")).pipe(
        Effect.retry({ schedule: Schedule.spaced(100), times: 400 })
      )
      assert.isAtLeast(Date.now() - started, 15_000)
      assert.isAbove(next.token, token)
    })
  )

  test(
    "a restart that kept its memory, or a replica that took over, is known by its process id",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const client = yield* connect({ store, lock: { ttl: 6000 } })
      yield* client.lock.withLock(Effect.void, "k")
      yield* client.close
      // As if another process had this memory.
      for (const { server } of places.slice(0, 2)) {
        yield* server.command("SET", "effect-lock:voter", "0123456789012345678901234567890123456789 1", "PX", 60_000)
      }
      const next = yield* connect({ store, lock: { ttl: 6000 } })
      const error = storeError(yield* Effect.exit(next.lock.withLock(Effect.void, "k")))
      assert.match(error.detail!, /a: quarantined .*b: quarantined .*c: granted/)
      yield* next.lock.withLock(Effect.void, "k").pipe(Effect.retry({ schedule: Schedule.spaced(100), times: 200 }))
    })
  )

  test(
    "without quarantine nobody waits for a restarted voter",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const { lock } = yield* connect({ store: { quarantine: false } })
      yield* lock.withLock(Effect.void, "k")
      yield* places[0]!.server.restart
      yield* places[1]!.server.restart
      // Until both are connected again: for a small part of the time in which they would give no vote.
      yield* lock.withLock(Effect.void, "k").pipe(
        Effect.retry({ schedule: Schedule.spaced(50), times: 200 })
      )
    })
  )

  it.live(
    "warns of voters that may evict keys, and of those that do not answer",
    () =>
      withLog((lines) =>
        Effect.scoped(Effect.gen(function*() {
          const { connect, places } = yield* quorum.start(3)
          yield* places[1]!.server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
          yield* places[2]!.server.kill
          yield* connect()
          assert.isTrue(lines.some(({ text }) => /voter b may evict locks/.test(text)))
          // It is not waited for where the others suffice.
          yield* untilSync(() => lines.some(({ text }) => /voter c does not answer/.test(text)), "a warning")
        }))
      ),
    timeout
  )
})

describe("quorum: key majority", { concurrent: true }, () => {
  const connectTo = (server: RedisServer.Server, majority = 2) =>
    build(QuorumLockStore.layerKeyMajority({ url: server.url, majority, voterTimeout }), { ttl: 6000 })

  test(
    "keeps a lock in 2m-1 keys of one server, in every one of which it is renewed and released",
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const [one, other] = [yield* connectTo(server, 3), yield* connectTo(server, 3)]
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const keys = [0, 1, 2, 3, 4].map((i) => `effect-lock:${i}:k`)
      yield* until(
        Effect.map(server.keys("effect-lock:*"), (found) => keys.every((key) => found.includes(key))),
        "all keys are there"
      )
      assert.isTrue(Option.isNone(yield* other.lock.withLockIfAvailable(Effect.void, "k")))
      const waiter = yield* hold(other, "k")
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
      for (const key of keys) {
        yield* until(Effect.map(server.command("HEXISTS", key, "n"), (it) => it === 0), `${key} is free`)
        assert.isAbove((yield* server.command("PTTL", key)) as number, 0)
      }
    })
  )

  test(
    "a deleted minority of keys is healed; a deleted majority is a loss",
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connectTo(server)
      const holder = yield* hold(client, "k")
      yield* holder.entered
      const isVoted = (i: number) => Effect.map(server.command("HEXISTS", `effect-lock:${i}:k`, "n"), (it) => it === 1)
      yield* until(isVoted(0), "the first key votes")
      yield* server.command("DEL", "effect-lock:0:k")
      yield* until(isVoted(0), "the first key votes again")
      yield* server.command("DEL", "effect-lock:0:k", "effect-lock:1:k")
      const lost = Option.getOrUndefined(Exit.findErrorOption(yield* holder.exit)) as {
        readonly _tag: string
        readonly reason: string
      }
      assert.strictEqual(lost._tag, "LockLost")
      assert.strictEqual(lost.reason, "NotHeld")
      assert.isFalse(yield* isVoted(0))
    })
  )
})

describe("quorum: key majority, memory loss", { concurrent: true }, () => {
  test(
    "a server that is not the process it was gives no vote for any key until every lease has run out",
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* build(
        QuorumLockStore.layerKeyMajority({ url: server.url, majority: 2, voterTimeout, maxTtl: 6000, slack: 1000 }),
        { ttl: 6000 }
      )
      yield* lock.withLock(Effect.void, "k")
      // As a replica that was promoted: it has the mark of its master, and may lack what came last.
      yield* server.command("SET", "effect-lock:keys:mark", "0123456789012345678901234567890123456789 0 5000 0 0")
      const started = performance.now()
      const error = storeError(yield* Effect.exit(lock.withLock(Effect.void, "new")))
      assert.match(error.detail!, /key 0: quarantined .*key 1: quarantined .*key 2: quarantined/)
      yield* lock.withLock(Effect.void, "new").pipe(Effect.retry({ schedule: Schedule.spaced(100), times: 200 }))
      assert.isAtLeast(performance.now() - started, 6990)
      for (const key of yield* server.keys("*")) {
        assert.isAbove((yield* server.command("PTTL", key)) as number, 0, `expiry of ${key}`)
      }
    })
  )

  test(
    "a server that lost its memory is noticed by whoever used it before",
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const { lock } = yield* build(
        QuorumLockStore.layerKeyMajority({
          url: server.url,
          majority: 2,
          maxTtl: 5000,
          slack: 1000,
          voterTimeout: 5000
        }),
        { ttl: 5000 }
      )
      yield* lock.withLock(Effect.void, "k")
      yield* server.command("FLUSHALL")
      const error = storeError(yield* Effect.exit(lock.withLock(Effect.void, "k")))
      assert.match(error.detail!, /key 0: quarantined .*key 1: quarantined .*key 2: quarantined/)
    })
  )

  test(
    "where INFO is denied the layer fails, and says what to set",
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      yield* server.command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "&*", "+@all", "-info")
      const url = `redis://app:secret@${server.host}:${server.port}`
      const options = { url, options: { enableReadyCheck: false }, majority: 2 }
      const error = storeError(yield* Effect.exit(build(QuorumLockStore.layerKeyMajority(options))))
      assert.match(error.detail!, /set quarantine to false/)
      const { lock } = yield* build(QuorumLockStore.layerKeyMajority({ ...options, quarantine: false }))
      yield* lock.withLock(Effect.void, "k")
    })
  )
})

describe("quorum: key majority on a Cluster", () => {
  test(
    "keeps the keys of a lock on several nodes, and survives the failover of one",
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ nodeTimeout: "3 seconds" })
      // Until the failover is over no node of the Cluster serves anybody.
      const ttl = 20_000
      const connect = build(
        QuorumLockStore.layerKeyMajority({ cluster: { nodes: cluster.addresses }, majority: 3, voterTimeout }),
        { ttl }
      )
      const [one, other] = [yield* connect, yield* connect]
      const keys = [0, 1, 2, 3, 4].map((i) => `effect-lock:${i}:k`)
      const masters = yield* Effect.forEach(keys, (key) => cluster.masterOf(key))
      assert.isAbove(new Set(masters.map(({ id }) => id)).size, 1)
      const holder = yield* hold(one, "k")
      yield* holder.entered
      const { token } = (yield* one.store.inspect("k")).holders[0]!
      const counts = masters.map(({ id }) => masters.filter((other) => other.id === id).length)
      yield* masters[counts.indexOf(Math.min(...counts))]!.kill
      yield* Effect.sleep(ttl + 2000)
      assert.isTrue(Option.isNone(yield* Effect.scoped(other.lock.tryAcquire("k"))))
      const waiter = yield* hold(other, "k")
      yield* holder.leave
      assert.isTrue(Exit.isSuccess(yield* holder.exit))
      yield* waiter.entered
      assert.isAbove((yield* one.store.inspect("k")).holders[0]!.token, token)
      yield* waiter.leave
    })
  )

  test(
    "G1: a failover that forgets one of three keys does not let a second holder in",
    Effect.gen(function*() {
      const cluster = yield* RedisServer.makeCluster({ nodeTimeout: "3 seconds" })
      const connect = build(
        QuorumLockStore.layerKeyMajority({
          cluster: { nodes: cluster.addresses },
          majority: 2,
          voterTimeout: "2500 millis"
        }),
        { ttl: "50 seconds", renewEvery: "49 seconds" }
      )
      const [one, other] = [yield* connect, yield* connect]
      let key = ""
      let masters: ReadonlyArray<RedisServer.ClusterNode> = []
      for (let i = 0; new Set(masters.map(({ port }) => port)).size < 3; i++) {
        key = `k${i}`
        masters = yield* Effect.forEach([0, 1, 2], (n) => cluster.masterOf(`effect-lock:${n}:${key}`))
      }
      const [, failing, contended] = masters as [
        RedisServer.ClusterNode,
        RedisServer.ClusterNode,
        RedisServer.ClusterNode
      ]
      const replicas = yield* cluster.replicasOf(failing)
      yield* replicated(failing, replicas.length)
      yield* Effect.forEach(replicas, (replica) => replica.pause, { discard: true })
      yield* failing.command("CLIENT", "KILL", "TYPE", "replica")
      // Somebody else has the third vote for a moment, so that what is left is a bare majority.
      const third = `effect-lock:2:${key}`
      const wish = ["other", 1, "other", 1, 0, "{}", 65_000, 0, 0, 0, "ask", "", "", ""]
      const hold = yield* contended.command("EVAL", scripts.acquire.source, 1, third, ...wish)
      assert.strictEqual((hold as ReadonlyArray<unknown>)[0], 1)
      yield* contended.command("HSET", third, "u", "9000000000000")
      const holder = yield* occupy(one, key)
      yield* holder.entered
      yield* contended.command("HSET", third, "u", "1")
      yield* failing.kill
      yield* Effect.forEach(replicas, (replica) => replica.resume, { discard: true })
      const tryInVain = other.lock.withLockIfAvailable(Effect.sync(holder.isInside), key).pipe(
        Effect.tap((entered) => Effect.sync(() => assert.isTrue(Option.isNone(entered)))),
        Effect.ignore
      )
      // What has been promoted has noticed that it was a replica.
      yield* until(
        Effect.gen(function*() {
          yield* tryInVain
          const promoted = yield* cluster.masterOf(`effect-lock:1:${key}`)
          if (promoted.port === failing.port) return false
          const marks = yield* promoted.keys("effect-lock:keys:mark*")
          const values = yield* Effect.forEach(marks, (mark) => promoted.command("GET", mark))
          const process = /run_id:(\w+)/.exec(String(yield* promoted.command("INFO", "server")))![1]!
          return values.some((value) => String(value).startsWith(`${process} `))
        }).pipe(Effect.orElseSucceed(() => false)),
        "the promoted server knows that it was a replica"
      )
      yield* tryInVain
      assert.isTrue(holder.isInside())
      yield* holder.leave
    })
  )
})

describe("quorum: hand-off and take-over", { concurrent: true }, () => {
  const handOff = (client: { readonly lock: Lock.Lock["Service"] }, key: string, ttl = 30_000) =>
    Effect.scoped(Effect.flatMap(client.lock.acquire(key, { ttl }), (lease) => lease.handOff))
  const refusal = (client: { readonly lock: Lock.Lock["Service"] }, ticket: LeaseTicket.LeaseTicket) =>
    Effect.scoped(client.lock.adopt(ticket)).pipe(
      Effect.flip,
      Effect.map((error) => error._tag === "TicketRefused" ? error.reason : error._tag)
    )

  test(
    "a ticket is adopted once, with a greater token; late, twice and after a take-over it is refused, and told apart",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const [a, b] = [yield* connect(), yield* connect()]
      const ticket = yield* handOff(a, "k")
      assert.deepStrictEqual(yield* Effect.scoped(b.lock.tryAcquire("k")), Option.none())
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* b.lock.adopt(ticket)
        assert.isAbove(lease.token, ticket.token)
        yield* lease.extend("40 seconds")
        yield* quorum.untilVotes(places, "k", 3)
        assert.strictEqual(yield* refusal(a, ticket), "Adopted")
      }))
      yield* quorum.untilVotes(places, "k", 0)
      assert.strictEqual(yield* refusal(a, ticket), "Adopted")

      const evicted = yield* handOff(a, "evicted")
      yield* Effect.scoped(b.lock.takeover("evicted"))
      assert.strictEqual(yield* refusal(b, evicted), "TakenOver")

      const late = yield* handOff(a, "late", 5000)
      yield* b.lock.withLock(Effect.void, "late")
      assert.strictEqual(yield* refusal(b, late), "Expired")
    })
  )

  test(
    "of many who adopt a ticket at the same time one does, also with a voter missing",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const clients = yield* Effect.forEach([0, 1, 2, 3], () => connect())
      for (const missing of [false, true]) {
        if (missing) yield* places[0]!.server.kill
        for (let i = 0; i < 10; i++) {
          const ticket = yield* handOff(clients[i % 4]!, `k${i} ${missing}`)
          const tokens = yield* Effect.forEach(clients, (client) =>
            Effect.scoped(client.lock.adopt(ticket)).pipe(
              Effect.map((lease) => lease.token),
              Effect.catchTag("TicketRefused", ({ reason }) => Effect.succeed(reason))
            ), { concurrency: "unbounded" })
          assert.strictEqual(tokens.filter((token) => typeof token === "number").length, 1, String(tokens))
          assert.strictEqual(tokens.filter((token) => token === "Adopted").length, 3, String(tokens))
        }
      }
    })
  )

  test(
    "hand-off and adoption bear the loss of a minority; a failed adoption leaves the ticket as it was",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const [a, b] = [
        yield* connect({ lock: { releaseTimeout: 500 } }),
        yield* connect({ lock: { releaseTimeout: 500 } })
      ]
      const ticket = yield* handOff(a, "k")
      yield* places[0]!.server.pause
      yield* places[1]!.server.pause
      assert.strictEqual(yield* refusal(b, ticket), "LockStoreError")
      yield* places[1]!.server.resume
      const lease = yield* b.lock.adopt(ticket).pipe(
        Effect.retry({ while: ({ _tag }) => _tag === "LockStoreError", schedule: Schedule.spaced(50), times: 100 })
      )
      assert.isAbove(lease.token, ticket.token)
      yield* places[0]!.server.resume
    })
  )

  test(
    "an adoption that others contend for without end is not refused as if one of them had succeeded",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      // For twice as long nobody can tell whether they will put back what they got.
      const store = { voterTimeout: "10 seconds" } as const
      const [a, b] = [yield* connect({ store }), yield* connect({ store })]
      const { ticketId, token, ...ticket } = yield* handOff(a, "k")
      const hash = "effect-lock:quorum:k"
      const rivals = places.slice(0, 2)
      for (const { name, server } of rivals) {
        const wish = [name, 1, name, 30_000, 0, "{}", 65_000, 0, 0, 0, "adopt", ticketId, token, ""]
        const reply = yield* server.command("EVAL", scripts.acquire.source, 1, hash, ...wish)
        assert.strictEqual((reply as ReadonlyArray<unknown>)[0], 1)
      }
      assert.strictEqual(yield* refusal(b, { ...ticket, ticketId, token }), "LockStoreError")
      for (const { name, server } of rivals) {
        const putBack = [`${name}-1`, "", "", 0, 0, "", name, 65_000, ticketId, token]
        yield* server.command("EVAL", scripts.release.source, 1, hash, ...putBack)
      }
      const lease = yield* b.lock.adopt({ ...ticket, ticketId, token })
      assert.isAbove(lease.token, token)
    })
  )

  test(
    "a take-over interrupts the holder at once, and its token is too small",
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const [a, b] = [yield* connect(), yield* connect()]
      const holder = yield* hold(a, "k", { ttl: "1 minute" })
      yield* holder.entered
      const { token } = (yield* a.store.inspect("k")).holders[0]!
      const lease = yield* b.lock.takeover("k")
      const lost = Option.getOrUndefined(Exit.findErrorOption(yield* holder.exit)) as {
        readonly _tag: string
        readonly reason: string
      }
      assert.strictEqual(lost._tag, "LockLost")
      assert.strictEqual(lost.reason, "TakenOver")
      assert.isAbove(lease.token, token)
      assert.isTrue(yield* lease.isValid)
    })
  )

  test(
    "take-overs that fail, each at another voter, do not evict a holder that keeps its majority",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const client = yield* connect({ store: { voterTimeout: "5 seconds" } })
      const holder = yield* hold(client, "k", { ttl: "30 seconds", renewEvery: 200 })
      yield* holder.entered
      yield* quorum.untilVotes(places, "k", 3)
      const nonces = Effect.map(
        Effect.forEach(places, (place) => quorum.voteAt(place, "k")),
        (votes) => votes.map((vote) => vote?.nonce)
      )
      const before = yield* nonces
      const proxies = yield* Effect.forEach(places, ({ server }) => FaultProxy.make(server))
      const taker = yield* build(
        QuorumLockStore.layer({ voterTimeout: 5000, voters: proxies.map(({ url }, i) => ({ name: `v${i}`, url })) })
      )
      const untilConnected = until(
        taker.lock.withLockIfAvailable(quorum.votes(places, "warm"), "warm").pipe(
          Effect.map(Option.contains(3)),
          Effect.orElseSucceed(() => false)
        ),
        "the taker reaches all voters"
      )
      for (const reached of [0, 1]) {
        yield* untilConnected
        yield* Effect.forEach(proxies, (proxy, i) => i === reached ? Effect.void : proxy.refuse, { discard: true })
        const error = yield* Effect.flip(Effect.scoped(taker.lock.takeover("k")))
        assert.strictEqual(error._tag, "LockStoreError")
        yield* Effect.forEach(proxies, (proxy) => proxy.heal, { discard: true })
        yield* until(Effect.map(nonces, (all) => all.every((nonce, i) => nonce === before[i])), "all votes are healed")
      }
      yield* holder.leave
      assert.isTrue(Exit.isSuccess(yield* holder.exit))
    })
  )

  test(
    "many take over at the same time: tokens differ, and the last one stays",
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const clients = yield* Effect.forEach([0, 1, 2], () => connect())
      const grants = yield* Effect.forEach(clients, ({ store }, i) => store.takeover(request("k", `h${i}`)), {
        concurrency: "unbounded"
      })
      const tokens = grants.map(({ token }) => token)
      assert.strictEqual(new Set(tokens).size, 3)
      const { holders } = yield* clients[0]!.store.inspect("k")
      assert.deepStrictEqual(holders.map(({ token }) => token), [Math.max(...tokens)])
    })
  )
})

describe("quorum: chaos", () => {
  test(
    "minorities come and go in every way: nobody is inside with somebody else, and tokens grow",
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(5)
      const ttl = 2000
      const clients = yield* Effect.forEach(
        [0, 1, 2],
        () => connect({ lock: { ttl }, store: { maxTtl: ttl, slack: 1000, voterTimeout: 1000 } })
      )
      const events: Array<LockHistory.Event> = []
      const seen = { acquired: 0 }
      const deadline = Date.now() + 17_000
      const play = Effect.fnUntraced(function*(i: number) {
        const recorder = yield* LockHistory.make({ client: `client ${i}` })
        const { lock } = clients[i % 3]!
        // A busy machine takes longer until there is enough to look at.
        while (Date.now() < deadline || seen.acquired <= 50) {
          const operation = yield* recorder.invoke("k")
          const exit = yield* Effect.exit(Effect.scoped(Effect.gen(function*() {
            const lease = yield* lock.acquire("k", { waitTimeout: "2 seconds" })
            yield* operation.acquired(lease.token)
            seen.acquired++
            const body = yield* Effect.exit(lease.protect(Effect.sleep((yield* Random.next) * 50)))
            yield* Exit.isSuccess(body) ? operation.release() : operation.lost()
          })))
          if (Exit.isFailure(exit)) yield* operation.failed
          yield* Effect.sleep((yield* Random.next) * 10)
        }
        events.push(...(yield* recorder.events))
      })
      const players = yield* Effect.forEach([0, 1, 2, 3, 4, 5], (i) => Effect.forkChild(play(i)))
      for (let round = 0; round < 8 || seen.acquired <= 50; round++) {
        const fault = quorum.faults[round % quorum.faults.length]!
        const [first, second] = yield* Random.shuffle(places)
        yield* fault.inject(first!)
        if (fault.name !== "killed") yield* fault.inject(second!)
        // Longer than a voter is waited for, which has to be enough for a busy machine to start.
        yield* Effect.sleep(1500)
        yield* fault.undo(first!)
        if (fault.name !== "killed") yield* fault.undo(second!)
        yield* Effect.sleep(500)
      }
      yield* Fiber.joinAll(players)
      assert.isAbove(seen.acquired, 50)
      assert.deepStrictEqual(LockHistory.check(events, { fifo: false }), [])
    })
  )
})
