/** The port itself, verb by verb. */
import * as LockStore from "@effect-lock/core/LockStore"
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { type Check, check } from "./check.ts"
import { contend, type Contender, forever, freshKey, idsOf } from "./contender.ts"
import { eventually, scaled, Subject } from "./subject.ts"

const now = Clock.clockWith((clock) => Effect.sync(() => LockStore.nowUnsafe(clock)))

const elapsed = (since: LockStore.Instant) =>
  Clock.clockWith((clock) => Effect.sync(() => LockStore.elapsedUnsafe(since, clock)))

/** The least that passes here while `millis` pass on the store's clock, which may be faster and count whole milliseconds. */
const atLeast = (millis: number, { store }: Contender) => millis * (1 - store.driftFactor) - 2

/** Lets a ttl run out on a store whose clock may be slower. */
const sleepOut = (ttl: number) => Effect.sleep(ttl * 1.2 + 20)

const describing: ReadonlyArray<Check> = [
  check(
    "store: has a name, and a drift factor below a half",
    Effect.gen(function*() {
      for (const store of (yield* Subject).clients) {
        assert.isNotEmpty(store.name)
        assert.isAtLeast(store.driftFactor, 0)
        assert.isBelow(store.driftFactor, 0.5)
      }
    })
  )
]

const attempting: ReadonlyArray<Check> = [
  check(
    "attempt: grants a free key, with a token and a lease that lives as long as it says",
    Effect.gen(function*() {
      const holder = yield* contend(yield* freshKey)
      const before = yield* now
      const grant = yield* holder.take({ ttl: 10_000 })
      assert.isTrue(Number.isSafeInteger(grant.token) && grant.token > 0, `token ${grant.token}`)
      assert.isAbove(grant.ttl, 0)
      assert.isAtMost(grant.ttl, 10_000)
      assert.isAtMost((yield* elapsed(grant.sentAt)) - (yield* elapsed(before)), 1000, "sentAt is when it was sent")
      yield* holder.isHonest(grant)
      assert.strictEqual((yield* holder.standing)?.token, grant.token)
    })
  ),
  check(
    "attempt: refuses a taken key where told not to wait, says who is in the way, and leaves nothing behind",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key, { metadata: { label: "first" } })
      const { token } = yield* holder.take()
      const other = yield* contend(key, { client: 1 })
      const standing = yield* other.refused()
      assert.deepStrictEqual(idsOf(standing.holders), [holder.id])
      const [inTheWay] = standing.holders
      assert.strictEqual(inTheWay!.token, token)
      assert.strictEqual(inTheWay!.permits, 1)
      assert.deepStrictEqual(inTheWay!.metadata, { label: "first" })
      assert.isAtLeast(inTheWay!.heldFor, 0)
      assert.isAbove(inTheWay!.timeLeft, 0)
      assert.isAtMost(inTheWay!.timeLeft, forever + 1)
      assert.strictEqual(standing.position, -1)
      assert.strictEqual(standing.queueLength, 0)
      assert.deepStrictEqual((yield* other.inspect).waiters, [])
      yield* holder.leave
      yield* (yield* contend(key)).take()
    })
  ),
  check(
    "attempt: one of many at the same time is granted",
    Effect.gen(function*() {
      const key = yield* freshKey
      const contenders = yield* Effect.forEach(twenty, (i) => contend(key, { client: clientOf(i), wait: false }))
      const answers = yield* Effect.forEach(contenders, (it) => it.ask(), { concurrency: "unbounded" })
      assert.strictEqual(answers.filter(({ _tag }) => _tag === "Granted").length, 1)
      assert.strictEqual(answers.filter(({ _tag }) => _tag === "Refused").length, 19)
    })
  ),
  check(
    "attempt: queues who waits, and tells position and queue length",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      for (const position of [0, 1, 2]) {
        const waiter = yield* contend(key, { client: clientOf(position) })
        const standing = yield* waiter.queue()
        assert.strictEqual(standing.position, position)
        assert.strictEqual(standing.queueLength, position + 1)
        assert.deepStrictEqual(idsOf(standing.holders), [holder.id])
      }
      const standing = yield* (yield* contend(key)).refused()
      assert.strictEqual(standing.position, -1)
      assert.strictEqual(standing.queueLength, 3)
    }),
    ["fifo"]
  ),
  check(
    "attempt: who does not wait never passes who does",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 2
      const holder = yield* contend(key, { limit })
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1, limit, permits: 2 })
      yield* waiter.queue()
      // A permit is free, and it is not theirs.
      yield* (yield* contend(key, { limit })).refused()
      yield* (yield* contend(key, { limit, client: 1 })).refused()
      yield* holder.leave
      yield* (yield* contend(key, { limit })).refused()
      yield* waiter.granted
    }),
    ["fifo", "permits"]
  ),
  check(
    "attempt: asked again by the holder, gives the same grant and never shortens it",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      const { token } = yield* holder.take()
      for (const wait of [true, false]) {
        const again = yield* holder.ask({ wait, ttl: 10_000 })
        assert(again._tag === "Granted")
        assert.strictEqual(again.grant.token, token)
        yield* holder.isHonest(again.grant)
      }
      const { holders, waiters } = yield* holder.inspect
      assert.deepStrictEqual(idsOf(holders), [holder.id])
      assert.deepStrictEqual(waiters, [])
      assert.isAbove(holders[0]!.timeLeft, forever / 2)
      yield* holder.leave
      yield* (yield* contend(key)).take()
    })
  ),
  check(
    "attempt: asked again by a waiter, keeps its place",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const [first, second] = [yield* contend(key), yield* contend(key, { client: 1 })]
      yield* first.queue()
      yield* second.queue()
      for (const [position, waiter] of [first, second].entries()) {
        const standing = yield* waiter.queue()
        assert.strictEqual(standing.position, position)
        assert.strictEqual(standing.queueLength, 2)
      }
      assert.deepStrictEqual(idsOf((yield* holder.inspect).waiters), [first.id, second.id])
      yield* holder.leave
      yield* first.granted
      yield* first.leave
      yield* second.granted
    }),
    ["fifo"]
  ),
  check(
    "attempt: asked again by a waiter that was granted meanwhile, gives that grant",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      yield* holder.leave
      const { token } = yield* waiter.granted
      const again = yield* waiter.ask()
      assert(again._tag === "Granted")
      assert.strictEqual(again.grant.token, token)
      yield* waiter.isHonest(again.grant)
      assert.deepStrictEqual(idsOf((yield* waiter.inspect).holders), [waiter.id])
    })
  ),
  check(
    "attempt: sent twice at the same time, counts once",
    Effect.gen(function*() {
      const key = yield* freshKey
      const twice = (contender: Contender) => Effect.all([contender.ask(), contender.ask()], { concurrency: 2 })
      const holder = yield* contend(key)
      const [one, two] = yield* twice(holder)
      assert(one._tag === "Granted" && two._tag === "Granted")
      assert.strictEqual(one.grant.token, two.grant.token)
      const waiter = yield* contend(key, { client: 1 })
      for (const answer of yield* twice(waiter)) assert.strictEqual(answer._tag, "Queued")
      const { holders, waiters } = yield* holder.inspect
      assert.deepStrictEqual(idsOf(holders), [holder.id])
      assert.isAtMost(waiters.length, 1)
      yield* holder.leave
      yield* waiter.granted
      yield* waiter.leave
      yield* (yield* contend(key)).take()
    })
  ),
  check(
    "attempt: sent again after the release, does not get back what is only kept",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      assert.strictEqual(yield* holder.release(forever), "Done")
      yield* holder.refused()
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
      assert.strictEqual(yield* holder.release(), "NotHeld")
      const { holders, waiters } = yield* holder.inspect
      assert.strictEqual(holders.length, 1)
      assert.deepStrictEqual(waiters, [])
    })
  ),
  check(
    "attempt: refuses another limit while the key is in use, and takes it when it is free",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key, { limit: 3 })
      yield* holder.take()
      const other = yield* contend(key, { client: 1, limit: 2 })
      for (const wait of [true, false]) {
        assert.deepStrictEqual(yield* other.ask({ wait }), { _tag: "OtherLimit", limit: 3 })
      }
      assert.deepStrictEqual((yield* other.inspect).waiters, [])
      yield* holder.leave
      yield* other.take()
    }),
    ["permits"]
  ),
  check(
    "attempt: refuses more permits than there are",
    Effect.gen(function*() {
      const contender = yield* contend(yield* freshKey, { limit: 3, permits: 4 })
      for (const wait of [true, false]) {
        assert.deepStrictEqual(yield* contender.ask({ wait }), { _tag: "OtherLimit", limit: 3 })
      }
      assert.deepStrictEqual((yield* contender.inspect).waiters, [])
      yield* contender.take({ permits: 3 })
      const other = yield* contend(contender.request.key, { client: 1, limit: 3, permits: 4 })
      assert.deepStrictEqual(yield* other.ask(), { _tag: "OtherLimit", limit: 3 })
    }),
    ["permits"]
  ),
  check(
    "attempt: who would have to wait behind too many is told so, and who has a place already keeps it",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key, { maxWaiters: 0 })
      // There is nobody to wait behind.
      yield* holder.take({ wait: true })
      const [first, second] = [yield* contend(key, { maxWaiters: 1 }), yield* contend(key, { maxWaiters: 1 })]
      const nobody = yield* first.ask({ maxWaiters: 0 })
      assert(nobody._tag === "QueueFull")
      assert.deepStrictEqual(idsOf(nobody.standing.holders), [holder.id])
      assert.strictEqual(nobody.standing.queueLength, 0)
      yield* first.queue()
      const full = yield* second.ask()
      assert(full._tag === "QueueFull")
      assert.deepStrictEqual(idsOf(full.standing.holders), [holder.id])
      assert.strictEqual(full.standing.position, -1)
      assert.strictEqual(full.standing.queueLength, 1)
      assert.strictEqual((yield* first.queue()).position, 0)
      assert.strictEqual((yield* second.queue({ maxWaiters: 2 })).position, 1)
      yield* holder.leave
      yield* first.granted
      yield* first.leave
      yield* second.granted
    })
  )
]

const preferring: ReadonlyArray<Check> = [
  check(
    "priority: who has more of it stands in front, and who has as much in the order of arrival",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiters = yield* Effect.forEach(
        [0, 500, -500, 1000, Infinity, 500, 0, Infinity],
        (priority, i) => contend(key, { client: clientOf(i), priority })
      )
      for (const waiter of waiters) yield* waiter.queue()
      const order = [4, 7, 3, 1, 5, 0, 6, 2].map((i) => waiters[i]!)
      assert.deepStrictEqual(idsOf((yield* holder.inspect).waiters), order.map(({ id }) => id))
      // Asked again, everybody keeps his place.
      for (const [position, waiter] of order.entries()) assert.strictEqual((yield* waiter.queue()).position, position)
      yield* holder.leave
      for (const waiter of order) {
        yield* waiter.granted
        yield* waiter.leave
      }
      const tokens = order.map(({ token }) => token)
      assert.deepStrictEqual(tokens, tokens.toSorted((a, b) => a - b))
    }),
    ["fifo"]
  ),
  check(
    "priority: a head start of ten seconds, so that nobody is passed for ever",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const came = yield* contend(key)
      yield* came.queue()
      const wait = yield* scaled(800)
      yield* Effect.sleep(wait)
      const late = yield* contend(key, { client: 1, priority: wait / 2 / 10_000 })
      assert.strictEqual((yield* late.queue()).position, 1)
      const early = yield* contend(key, { priority: 1000 })
      assert.strictEqual((yield* early.queue()).position, 0)
    }),
    ["fifo"]
  )
]

const watching: ReadonlyArray<Check> = [
  check(
    "watch: tells whether anybody waits, of a lease only",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      const waiter = yield* contend(key)
      yield* holder.take()
      assert.deepStrictEqual(yield* holder.watch(), { _tag: "Done", isWanted: false })
      assert.deepStrictEqual(yield* holder.watch({ holderId: waiter.id }), { _tag: "NotHeld" })
      yield* waiter.queue()
      assert.deepStrictEqual(yield* holder.watch(), { _tag: "Done", isWanted: true })
      assert.strictEqual(yield* holder.renew(forever), "Done")
      yield* holder.leave
      assert.deepStrictEqual(yield* holder.watch(), { _tag: "NotHeld" })
      yield* waiter.granted
      assert.deepStrictEqual(yield* waiter.watch(), { _tag: "Done", isWanted: false })
      yield* waiter.leave
      assert.deepStrictEqual(yield* waiter.inspect, { key, holders: [], waiters: [] })
    })
  ),
  check(
    "watch: who queues later, with whatever client, is told of or seen by the next look",
    Effect.gen(function*() {
      const key = yield* freshKey
      const told: Array<string> = []
      yield* (yield* Subject).clients[0].onNews((news) => {
        if (news._tag === "Wanted") told.push(news.holderId)
      })
      const holder = yield* contend(key)
      yield* holder.take()
      yield* holder.watch()
      yield* (yield* contend(key, { client: 1 })).queue()
      const isSeen = Effect.map(holder.watch(), (watch) => watch._tag === "Done" && watch.isWanted)
      yield* eventually("a wanted lease", Effect.map(isSeen, (seen) => seen || told.includes(holder.id)))
    }),
    ["fifo"]
  )
]

const renewing: ReadonlyArray<Check> = [
  check(
    "renew: makes a lease live on, with the same token",
    Effect.gen(function*() {
      const key = yield* freshKey
      // The machine may stall before the renewal.
      const ttl = yield* scaled(5000)
      const holder = yield* contend(key)
      const { token } = yield* holder.take({ ttl })
      assert.strictEqual(yield* holder.renew(forever), "Done")
      yield* sleepOut(ttl)
      const standing = yield* holder.standing
      assert.strictEqual(standing?.token, token)
      assert.isAbove(standing!.timeLeft, forever / 2)
      yield* (yield* contend(key, { client: 1 })).refused()
    })
  ),
  check(
    "renew: never shortens a lease",
    Effect.gen(function*() {
      const holder = yield* contend(yield* freshKey)
      yield* holder.take()
      const ttl = yield* scaled(200)
      assert.strictEqual(yield* holder.renew(ttl), "Done")
      yield* sleepOut(ttl)
      assert.isAbove((yield* holder.standing)?.timeLeft ?? 0, forever / 2)
      assert.strictEqual(yield* holder.renew(forever), "Done")
    })
  ),
  check(
    "renew: acts only where holder id and token match, and never creates a lease",
    Effect.gen(function*() {
      const key = yield* freshKey
      const ttl = 20_000
      const holder = yield* contend(key)
      const nobody = yield* contend(key, { client: 1 })
      assert.strictEqual(yield* nobody.renew(forever, { token: 1 }), "NotHeld")
      assert.deepStrictEqual(yield* nobody.inspect, { key, holders: [], waiters: [] })
      const { token } = yield* holder.take({ ttl })
      assert.strictEqual(yield* holder.renew(forever, { token: token + 1 }), "NotHeld")
      assert.strictEqual(yield* holder.renew(forever, { token: token - 1 }), "NotHeld")
      assert.strictEqual(yield* holder.renew(forever, { holderId: nobody.id }), "NotHeld")
      assert.strictEqual(yield* holder.renew(forever, { key: yield* freshKey }), "NotHeld")
      const { holders } = yield* holder.inspect
      assert.deepStrictEqual(idsOf(holders), [holder.id])
      assert.isAtMost(holders[0]!.timeLeft, ttl + 1)
    })
  ),
  check(
    "renew: a waiter holds nothing",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      const { token } = yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      assert.strictEqual(yield* waiter.renew(forever, { token }), "NotHeld")
      assert.strictEqual(yield* waiter.release(0, { token }), "NotHeld")
      assert.deepStrictEqual(idsOf((yield* holder.inspect).holders), [holder.id])
      yield* holder.leave
      yield* waiter.granted
    })
  ),
  check(
    "renew: not held once it ran out, even if nobody took the key",
    Effect.gen(function*() {
      const key = yield* freshKey
      const ttl = yield* scaled(200)
      const holder = yield* contend(key)
      yield* holder.take({ ttl })
      yield* sleepOut(ttl)
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
      assert.strictEqual(yield* holder.release(), "NotHeld")
      assert.deepStrictEqual(yield* holder.inspect, { key, holders: [], waiters: [] })
      const next = yield* contend(key, { client: 1 })
      const { token } = yield* next.take()
      assert.isAbove(token, holder.token)
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
      assert.strictEqual((yield* next.standing)?.token, token)
    })
  ),
  check(
    "renew: not held after the release",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      yield* holder.leave
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
      yield* (yield* contend(key)).take()
    })
  )
]

const releasing: ReadonlyArray<Check> = [
  check(
    "release: frees the key, once",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      assert.strictEqual(yield* holder.release(), "Done")
      assert.deepStrictEqual(yield* holder.inspect, { key, holders: [], waiters: [] })
      assert.strictEqual(yield* holder.release(), "NotHeld")
      const next = yield* contend(key, { client: 1 })
      yield* next.take()
      assert.strictEqual(yield* holder.release(), "NotHeld")
      assert.isDefined(yield* next.standing)
    })
  ),
  check(
    "release: touches only its own holder id and token",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      const { token } = yield* holder.take()
      const other = yield* contend(key, { client: 1 })
      for (const keepFor of [0, 1]) {
        assert.strictEqual(yield* holder.release(keepFor, { token: token + 1 }), "NotHeld")
        assert.strictEqual(yield* holder.release(keepFor, { token: token - 1 }), "NotHeld")
        assert.strictEqual(yield* other.release(keepFor, { token }), "NotHeld")
        assert.strictEqual(yield* holder.release(keepFor, { key: yield* freshKey }), "NotHeld")
      }
      yield* Effect.sleep(20)
      const standing = yield* holder.standing
      assert.strictEqual(standing?.token, token)
      assert.isAbove(standing!.timeLeft, forever / 2)
      yield* other.refused()
      yield* holder.leave
    })
  ),
  check(
    "release: keepFor keeps the key taken by nobody for that long, then it moves on to who waits",
    Effect.gen(function*() {
      const key = yield* freshKey
      const keepFor = yield* scaled(800)
      const holder = yield* contend(key)
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      const releasedAt = yield* now
      assert.strictEqual(yield* holder.release(keepFor), "Done")
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
      assert.strictEqual(yield* holder.release(), "NotHeld")
      const grant = yield* waiter.granted
      assert.isAtLeast(yield* elapsed(releasedAt), atLeast(keepFor, waiter))
      assert.isAbove(grant.token, holder.token)
      yield* waiter.leave
    })
  ),
  check(
    "release: keepFor without anybody waiting, then the key is free",
    Effect.gen(function*() {
      const key = yield* freshKey
      const keepFor = yield* scaled(500)
      const holder = yield* contend(key)
      yield* holder.take()
      const releasedAt = yield* now
      assert.strictEqual(yield* holder.release(keepFor), "Done")
      const next = yield* contend(key, { client: 1, wait: false })
      yield* eventually("the key is free", Effect.map(next.ask(), ({ _tag }) => _tag === "Granted"))
      assert.isAtLeast(yield* elapsed(releasedAt), atLeast(keepFor, next))
      assert.strictEqual(yield* holder.release(), "NotHeld")
      assert.isDefined(yield* next.standing)
    })
  )
]

const abandoning: ReadonlyArray<Check> = [
  check(
    "abandon: takes a waiter out of the queue, and tells how things stood just before",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const first = yield* contend(key)
      const second = yield* contend(key, { client: 1 })
      const third = yield* contend(key)
      yield* first.queue()
      yield* second.queue()
      yield* third.queue()
      const before = yield* second.abandon
      assert.strictEqual(before.position, 1)
      assert.strictEqual(before.queueLength, 3)
      assert.deepStrictEqual(idsOf(before.holders), [holder.id])
      assert.deepStrictEqual(idsOf((yield* holder.inspect).waiters), [first.id, third.id])
      yield* holder.leave
      yield* first.granted
      yield* first.leave
      yield* third.granted
      assert.deepStrictEqual(idsOf((yield* holder.inspect).holders), [third.id])
    }),
    ["fifo"]
  ),
  check(
    "abandon: a waiter that left is never granted",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      const { holders } = yield* waiter.abandon
      assert.deepStrictEqual(idsOf(holders), [holder.id])
      yield* holder.leave
      assert.deepStrictEqual(yield* holder.inspect, { key, holders: [], waiters: [] })
      yield* (yield* contend(key)).take()
    })
  ),
  check(
    "abandon: ends a lease",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const before = yield* holder.abandon
      assert.deepStrictEqual(idsOf(before.holders), [holder.id])
      assert.strictEqual(before.position, -1)
      assert.strictEqual(before.queueLength, 0)
      assert.deepStrictEqual(yield* holder.inspect, { key, holders: [], waiters: [] })
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
      assert.strictEqual(yield* holder.release(), "NotHeld")
      yield* (yield* contend(key, { client: 1 })).take()
    })
  ),
  check(
    "abandon: an unknown holder id changes nothing, on whatever key",
    Effect.gen(function*() {
      const free = yield* freshKey
      const nobody = { holders: [], position: -1, queueLength: 0 }
      const stranger = yield* contend(free)
      assert.deepStrictEqual(yield* stranger.abandon, nobody)
      assert.deepStrictEqual(yield* stranger.abandon, nobody)
      const key = yield* freshKey
      const [holder, waiter] = [yield* contend(key), yield* contend(key, { client: 1 })]
      yield* holder.take()
      yield* waiter.queue()
      const standing = yield* (yield* contend(key)).abandon
      assert.deepStrictEqual(idsOf(standing.holders), [holder.id])
      assert.strictEqual(standing.position, -1)
      assert.isDefined(yield* holder.standing)
      yield* holder.leave
      yield* waiter.granted
    })
  )
]

const signalling: ReadonlyArray<Check> = [
  check(
    "signal: granted when the holder releases, for as long as it says, with a token that works",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      const { token } = yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      const waiting = yield* Effect.forkChild(waiter.granted)
      yield* holder.leave
      const grant = yield* Fiber.join(waiting)
      assert.isAbove(grant.token, token)
      yield* waiter.isHonest(grant)
      assert.strictEqual((yield* waiter.standing)?.token, grant.token)
      assert.strictEqual(yield* waiter.renew(forever), "Done")
      assert.isAbove((yield* waiter.standing)?.timeLeft ?? 0, forever / 2)
      yield* waiter.leave
      assert.deepStrictEqual(yield* waiter.inspect, { key, holders: [], waiters: [] })
    })
  ),
  check(
    "signal: kept for a waiter that listens late",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      yield* holder.leave
      yield* Effect.sleep(yield* scaled(300))
      const grant = yield* waiter.granted
      yield* waiter.isHonest(grant)
      yield* waiter.leave
    })
  ),
  check(
    "signal: granted when the holder is abandoned",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      yield* holder.abandon
      assert.isAbove((yield* waiter.granted).token, holder.token)
    })
  ),
  check(
    "signal: granted when a holder that never renews runs out of time, and not before",
    Effect.gen(function*() {
      const key = yield* freshKey
      const ttl = yield* scaled(800)
      const holder = yield* contend(key)
      const before = yield* now
      yield* holder.take({ ttl })
      const waiters = yield* Effect.forEach([0, 1] as const, (client) => contend(key, { client }))
      for (const waiter of waiters) yield* waiter.ask()
      yield* Effect.forEach(
        waiters,
        (waiter) =>
          Effect.gen(function*() {
            const grant = yield* waiter.granted
            assert.isAtLeast(yield* elapsed(before), atLeast(ttl, waiter))
            assert.isAbove(grant.token, holder.token)
            yield* waiter.leave
          }),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(yield* holder.renew(forever), "NotHeld")
    })
  ),
  check(
    "signal: a waiter's own ttl runs from its grant on, not while it waits",
    Effect.gen(function*() {
      const key = yield* freshKey
      const ttl = yield* scaled(400)
      const holder = yield* contend(key)
      yield* holder.take()
      const waiter = yield* contend(key, { client: 1, ttl })
      yield* waiter.queue()
      const waiting = yield* Effect.forkChild(waiter.granted)
      yield* sleepOut(2 * ttl)
      const releasedAt = yield* now
      yield* holder.leave
      const grant = yield* Fiber.join(waiting)
      yield* waiter.isHonest(grant)
      const next = yield* contend(key)
      yield* next.granted
      assert.isAtLeast(yield* elapsed(releasedAt), atLeast(grant.ttl, next))
    })
  ),
  check(
    "queue: waiters are granted in the order in which they were registered",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiters = yield* Effect.forEach(twelve, (i) => contend(key, { client: clientOf(i) }))
      for (const waiter of waiters) yield* waiter.queue()
      const entered: Array<string> = []
      const all = yield* Effect.forkChild(
        Effect.forEach(
          // Started in another order than they queued.
          waiters.toReversed(),
          (waiter) =>
            Effect.gen(function*() {
              yield* waiter.granted
              entered.push(waiter.id)
              yield* waiter.leave
            }),
          { concurrency: "unbounded" }
        )
      )
      yield* holder.leave
      yield* Fiber.join(all)
      assert.deepStrictEqual(entered, waiters.map(({ id }) => id))
      const tokens = waiters.map(({ token }) => token)
      assert.deepStrictEqual(tokens, tokens.toSorted((a, b) => a - b))
    }),
    ["fifo"]
  ),
  check(
    "queue: everybody is granted, one at a time",
    Effect.gen(function*() {
      const key = yield* freshKey
      let inside = 0
      yield* Effect.forEach(
        twenty,
        (i) =>
          Effect.gen(function*() {
            const contender = yield* contend(key, { client: clientOf(i) })
            yield* contender.granted
            inside++
            assert.strictEqual(inside, 1)
            yield* Effect.sleep(1)
            inside--
            yield* contender.leave
          }),
        { concurrency: "unbounded", discard: true }
      )
      const last = yield* contend(key)
      assert.deepStrictEqual(yield* last.inspect, { key, holders: [], waiters: [] })
    })
  ),
  check(
    "queue: the waiters of a client that is gone do not block those behind them, one after another",
    Effect.gen(function*() {
      const { openClient } = yield* Subject
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const scope = yield* Scope.make()
      yield* Effect.addFinalizer((exit) => Scope.close(scope, exit))
      const store = yield* Scope.provide(openClient!, scope)
      for (let i = 0; i < 8; i++) yield* (yield* contend(key, { store })).queue()
      const waiter = yield* contend(key, { client: 1 })
      yield* waiter.queue()
      yield* Scope.close(scope, Exit.void)
      yield* holder.leave
      yield* waiter.granted
    }),
    ["otherClient"]
  )
]

const fencing: ReadonlyArray<Check> = [
  check(
    "token: strictly greater from grant to grant, however the one before ended",
    Effect.gen(function*() {
      const key = yield* freshKey
      const ttl = yield* scaled(100)
      const ends: ReadonlyArray<(holder: Contender) => Effect.Effect<unknown, unknown>> = [
        (holder) => holder.release(),
        (holder) => holder.abandon,
        () => sleepOut(ttl),
        (holder) => Effect.andThen(holder.release(10), Effect.sleep(50)),
        (holder) => holder.release()
      ]
      let last = 0
      for (const [i, end] of ends.entries()) {
        const contender = yield* contend(key, { client: clientOf(i), ttl: i === 2 ? ttl : forever })
        const { token } = yield* contender.granted
        assert.isAbove(token, last)
        assert.isTrue(Number.isSafeInteger(token))
        last = token
        yield* end(contender)
      }
    })
  ),
  check(
    "token: greater than the floor, of who is granted at once and of who waits",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const floor = holder.token + 1_000_000_000_000
      const waiter = yield* contend(key, { client: 1, floor })
      yield* waiter.queue()
      yield* holder.leave
      assert.isAbove((yield* waiter.granted).token, floor)
      yield* waiter.leave
      const higher = floor + 1_000_000_000_000
      const next = yield* contend(key, { floor: higher })
      assert.isAbove((yield* next.take()).token, higher)
      yield* next.leave
      const after = yield* contend(key)
      assert.isAbove((yield* after.take()).token, next.token)
    })
  )
]

const sharing: ReadonlyArray<Check> = [
  check(
    "permits: holders fit in as long as their sum is within the limit",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      const three = yield* contend(key, { limit, permits: 3 })
      const two = yield* contend(key, { client: 1, limit, permits: 2 })
      yield* three.take()
      yield* two.take()
      assert.notStrictEqual(three.token, two.token)
      const one = yield* contend(key, { limit })
      const { holders } = yield* one.refused()
      assert.deepStrictEqual(
        new Map(holders.map(({ holderId, permits }) => [holderId, permits])),
        new Map([[three.id, 3], [two.id, 2]])
      )
      assert.strictEqual(yield* three.renew(forever), "Done")
      yield* two.leave
      yield* one.take()
      yield* (yield* contend(key, { limit, permits: 2 })).refused()
      yield* (yield* contend(key, { limit, permits: 1 })).take()
    }),
    ["permits"]
  ),
  check(
    "permits: a big request at the head of the queue is not starved by small ones",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      const holder = yield* contend(key, { limit, permits: 3 })
      yield* holder.take()
      const big = yield* contend(key, { client: 1, limit, permits: 4 })
      const small = yield* contend(key, { limit })
      assert.strictEqual((yield* big.queue()).position, 0)
      // It would fit, but it is not its turn.
      assert.strictEqual((yield* small.queue()).position, 1)
      const state = yield* small.inspect
      assert.deepStrictEqual(idsOf(state.holders), [holder.id])
      assert.deepStrictEqual(state.waiters.map(({ holderId, permits }) => [holderId, permits]), [
        [big.id, 4],
        [small.id, 1]
      ])
      yield* holder.leave
      yield* big.granted
      yield* small.granted
      assert.isAbove(small.token, big.token)
    }),
    ["fifo", "permits"]
  ),
  check(
    "permits: one release grants to everybody at the head who fits",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      const holder = yield* contend(key, { limit, permits: 5 })
      yield* holder.take()
      const waiters = yield* Effect.forEach(
        [2, 2, 1, 1],
        (permits, i) => contend(key, { client: clientOf(i), limit, permits })
      )
      for (const waiter of waiters) yield* waiter.queue()
      yield* holder.leave
      for (const waiter of waiters.slice(0, 3)) yield* waiter.granted
      const state = yield* holder.inspect
      assert.sameMembers([...idsOf(state.holders)], waiters.slice(0, 3).map(({ id }) => id))
      assert.deepStrictEqual(idsOf(state.waiters), [waiters[3]!.id])
      yield* waiters[0]!.leave
      yield* waiters[3]!.granted
    }),
    ["fifo", "permits"]
  ),
  check(
    "permits: those of a holder that left the queue, or ran out of time, go to the next",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      const ttl = yield* scaled(800)
      const stays = yield* contend(key, { limit, permits: 3 })
      yield* stays.take()
      const dies = yield* contend(key, { limit, permits: 2, ttl })
      yield* dies.take()
      const big = yield* contend(key, { client: 1, limit, permits: 5 })
      yield* big.queue()
      const small = yield* contend(key, { limit, permits: 2 })
      yield* small.ask()
      yield* big.abandon
      yield* small.granted
      assert.isDefined(yield* stays.standing)
      assert.isUndefined(yield* dies.standing)
      assert.strictEqual(yield* dies.renew(forever), "NotHeld")
    }),
    ["fifo", "permits"]
  ),
  check(
    "shrink: gives back all but so many, never adds any, and acts only where holder id and token match",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      const holder = yield* contend(key, { limit, permits: 5 })
      const { token } = yield* holder.take()
      const [two, one] = [yield* contend(key, { client: 1, limit, permits: 2 }), yield* contend(key, { limit })]
      yield* two.queue()
      yield* one.queue()
      const permitsOf = (contender: Contender) => Effect.map(contender.standing, (standing) => standing?.permits)
      assert.strictEqual(yield* holder.shrink(1, { token: token - 1 }), "NotHeld")
      assert.strictEqual(yield* holder.shrink(1, { holderId: two.id }), "NotHeld")
      assert.strictEqual(yield* permitsOf(holder), 5)
      for (const _ of [1, 2]) assert.strictEqual(yield* holder.shrink(3), "Done")
      yield* two.granted
      assert.strictEqual((yield* one.queue()).position, 0)
      assert.strictEqual(yield* holder.shrink(4), "Done")
      assert.strictEqual(yield* permitsOf(holder), 3)
      assert.strictEqual(yield* holder.renew(forever), "Done")
      assert.strictEqual(yield* holder.shrink(2), "Done")
      yield* one.granted
      assert.strictEqual((yield* holder.standing)?.token, token)
      yield* holder.leave
      assert.strictEqual(yield* holder.shrink(1), "NotHeld")
      yield* (yield* contend(key, { limit, permits: 2 })).take()
    }),
    ["permits"]
  ),
  check(
    "setLimit: growing grants at once, and holds for all who declare the same limit",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 2
      const holder = yield* contend(key, { limit, permits: 2 })
      yield* holder.take()
      const waiters = yield* Effect.forEach([0, 1, 2], (i) => contend(key, { client: clientOf(i), limit, permits: 2 }))
      for (const waiter of waiters) yield* waiter.queue()
      for (const _ of [1, 2]) assert.deepStrictEqual(yield* holder.setLimit(6), { _tag: "Done" })
      yield* waiters[0]!.granted
      yield* waiters[1]!.granted
      assert.strictEqual((yield* waiters[2]!.queue()).position, 0)
      assert.strictEqual((yield* holder.inspect).limit, 6)
      for (const one of [holder, waiters[0]!, waiters[1]!]) yield* one.leave
      yield* waiters[2]!.granted
      yield* waiters[2]!.leave
      // Nobody uses the key, and it is still as it was set.
      const six = yield* contend(key, { client: 1, limit, permits: 6 })
      yield* six.take()
      yield* (yield* contend(key, { limit })).refused()
    }),
    ["permits"]
  ),
  check(
    "setLimit: shrinking ends no lease, and lets nobody in who does not fit",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 4
      const holders = yield* Effect.forEach([0, 1, 2, 3], (i) => contend(key, { client: clientOf(i), limit }))
      for (const holder of holders) yield* holder.take()
      const next = yield* contend(key, { client: 1, limit })
      yield* next.queue()
      assert.deepStrictEqual(yield* next.setLimit(2), { _tag: "Done" })
      for (const holder of holders) assert.strictEqual(yield* holder.renew(forever), "Done")
      yield* holders[0]!.leave
      yield* holders[1]!.leave
      assert.strictEqual((yield* next.queue()).position, 0)
      yield* holders[2]!.leave
      yield* next.granted
      yield* (yield* contend(key, { limit })).refused()
    }),
    ["permits"]
  ),
  check(
    "setLimit: a waiter who asks for more than there are any more is told so, and is in nobody's way",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      const holder = yield* contend(key, { limit, permits: 2 })
      yield* holder.take()
      const [big, small] = [yield* contend(key, { client: 1, limit, permits: 4 }), yield* contend(key, { limit })]
      yield* big.queue()
      yield* small.queue()
      assert.deepStrictEqual(yield* holder.setLimit(3), { _tag: "Done" })
      yield* small.granted
      yield* big.sentBack
      assert.deepStrictEqual(yield* big.ask(), { _tag: "OtherLimit", limit: 3 })
      assert.deepStrictEqual((yield* holder.inspect).waiters, [])
    }),
    ["fifo", "permits"]
  ),
  check(
    "setLimit: of a key in use only with the limit that is declared, of a free one with any",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key, { limit: 3 })
      yield* holder.take()
      const other = yield* contend(key, { client: 1, limit: 2 })
      assert.deepStrictEqual(yield* other.setLimit(8), { _tag: "OtherLimit", limit: 3 })
      assert.deepStrictEqual(yield* holder.setLimit(2), { _tag: "Done" })
      // What counts is what is declared, not what is set.
      assert.deepStrictEqual(yield* other.ask({ wait: false }), { _tag: "OtherLimit", limit: 2 })
      yield* (yield* contend(key, { limit: 3 })).take()
      yield* (yield* contend(key, { limit: 3 })).refused()
      yield* holder.abandon
      const [rest] = (yield* holder.inspect).holders
      yield* holder.store.abandon(key, rest!.holderId)
      assert.deepStrictEqual(yield* other.setLimit(8), { _tag: "Done" })
      yield* other.take({ permits: 8 })
      yield* other.leave
      // Declared anew, it is what it is declared to be.
      yield* holder.take({ permits: 3 })
      assert.strictEqual((yield* holder.inspect).limit, 3)
    }),
    ["permits"]
  ),
  check(
    "permits: conserved under load",
    Effect.gen(function*() {
      const key = yield* freshKey
      const limit = 5
      let inUse = 0
      yield* Effect.forEach(
        twenty,
        (i) =>
          Effect.gen(function*() {
            const permits = 1 + (i * 7) % 5
            const contender = yield* contend(key, { client: clientOf(i), limit, permits })
            for (let turn = 0; turn < 2; turn++) {
              const again = turn === 0 ? contender : yield* contend(key, { client: clientOf(i), limit, permits })
              yield* again.granted
              inUse += permits
              assert.isAtMost(inUse, limit)
              yield* Effect.sleep(i % 3)
              inUse -= permits
              yield* again.leave
            }
          }),
        { concurrency: "unbounded", discard: true }
      )
      const all = yield* contend(key, { limit, permits: 5 })
      assert.deepStrictEqual(yield* all.inspect, { key, holders: [], waiters: [] })
      yield* all.take()
    }),
    ["permits"]
  )
]

const inspecting: ReadonlyArray<Check> = [
  check(
    "inspect: nobody holds a free key, and nobody waits for it",
    Effect.gen(function*() {
      const key = yield* freshKey
      const state = { key, holders: [], waiters: [] }
      const contender = yield* contend(key)
      assert.deepStrictEqual(yield* contender.inspect, state)
      yield* contender.take()
      yield* contender.leave
      assert.deepStrictEqual(yield* contender.inspect, state)
    })
  ),
  check(
    "inspect: shows holders, whatever they say of themselves",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key, { metadata: oddMetadata, ttl: 60_000 })
      yield* holder.take()
      yield* Effect.sleep(50)
      const seen = (yield* (yield* contend(key, { client: 1 })).inspect).holders
      assert.deepStrictEqual(idsOf(seen), [holder.id])
      const [info] = seen
      assert.strictEqual(info!.token, holder.token)
      assert.strictEqual(info!.permits, 1)
      assert.deepStrictEqual(info!.metadata, oddMetadata)
      assert.isAtLeast(info!.heldFor, atLeast(50, holder))
      assert.isAbove(info!.timeLeft, 0)
      assert.isAtMost(info!.timeLeft, 60_001)
    })
  ),
  check(
    "inspect: shows how many permits a key in use has",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      assert.strictEqual((yield* (yield* contend(key, { client: 1 })).inspect).limit, 1)
    })
  ),
  check(
    "inspect: shows how many permits a semaphore has",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key, { limit: 7 })
      yield* holder.take()
      assert.strictEqual((yield* (yield* contend(key, { client: 1 })).inspect).limit, 7)
      yield* holder.leave
      assert.deepStrictEqual(yield* holder.inspect, { key, holders: [], waiters: [] })
    }),
    ["permits"]
  ),
  check(
    "list: the keys in use that begin so, each once, whatever they are made of",
    Effect.gen(function*() {
      const base = yield* freshKey
      const keys = oddKeys(base)
      const holders = yield* Effect.forEach(keys, (key, i) => contend(key, { client: clientOf(i) }))
      for (const holder of holders) yield* holder.take()
      const waiter = yield* contend(base, { client: 1 })
      yield* waiter.queue()
      for (
        const prefix of [base, `${base}*`, `${base}?`, `${base}\\`, `${base}%`, `${base}}`, `{${base}`, `${base}%7`]
      ) {
        const listed = yield* waiter.store.list(prefix)
        assert.sameMembers([...listed], keys.filter((key) => key.startsWith(prefix)), `keys with ${prefix}`)
      }
      const state = yield* waiter.inspect
      assert.deepStrictEqual([idsOf(state.holders), idsOf(state.waiters)], [[holders[0]!.id], [waiter.id]])
    })
  ),
  check(
    "inspect: does not show who ran out of time",
    Effect.gen(function*() {
      const key = yield* freshKey
      const ttl = yield* scaled(200)
      const holder = yield* contend(key)
      yield* holder.take({ ttl })
      yield* sleepOut(ttl)
      assert.deepStrictEqual(yield* holder.inspect, { key, holders: [], waiters: [] })
    })
  ),
  check(
    "inspect: shows waiters in order, and changes nothing",
    Effect.gen(function*() {
      const key = yield* freshKey
      const holder = yield* contend(key)
      yield* holder.take()
      const waiters = yield* Effect.forEach(
        [{}, oddMetadata, { label: "third" }],
        (metadata, i) => contend(key, { client: clientOf(i), metadata })
      )
      for (const waiter of waiters) yield* waiter.queue()
      yield* Effect.sleep(50)
      for (const observer of [holder, waiters[1]!, holder]) {
        const state = yield* observer.inspect
        assert.strictEqual(state.key, key)
        assert.deepStrictEqual(idsOf(state.holders), [holder.id])
        assert.deepStrictEqual(
          state.waiters.map(({ holderId, metadata, permits }) => ({ holderId, metadata, permits })),
          waiters.map(({ id, request }) => ({ holderId: id, metadata: request.metadata, permits: 1 }))
        )
        for (const { waitedFor } of state.waiters) assert.isAtLeast(waitedFor, atLeast(50, holder))
      }
    }),
    ["fifo"]
  )
]

const naming: ReadonlyArray<Check> = [
  check(
    "key: independent of every other",
    Effect.gen(function*() {
      const [one, other] = [yield* contend(yield* freshKey), yield* contend(yield* freshKey, { client: 1 })]
      yield* one.take()
      yield* other.take()
      const waiter = yield* contend(one.request.key, { client: 1 })
      yield* waiter.queue()
      yield* other.leave
      assert.isUndefined(yield* waiter.standing)
      assert.isDefined(yield* one.standing)
      yield* one.leave
      yield* waiter.granted
    })
  ),
  check(
    "key: any string of up to 1024 characters",
    Effect.gen(function*() {
      const base = yield* freshKey
      const keys = oddKeys(base)
      assert.strictEqual(new Set(keys).size, keys.length)
      const held = yield* Effect.forEach(
        keys,
        (key) =>
          Effect.gen(function*() {
            const [holder, waiter] = [yield* contend(key), yield* contend(key, { client: 1 })]
            yield* holder.take()
            yield* waiter.queue()
            return { key, holder, waiter }
          })
      )
      // All at the same time, so that no two of them can be one.
      for (const { holder, key, waiter } of held) {
        const state = yield* waiter.inspect
        assert.strictEqual(state.key, key)
        assert.deepStrictEqual(idsOf(state.holders), [holder.id], `holders of ${JSON.stringify(key)}`)
        yield* holder.leave
        yield* waiter.granted
        yield* waiter.leave
        assert.deepStrictEqual(yield* waiter.inspect, { key, holders: [], waiters: [] })
      }
    })
  )
]

const twelve = Array.from({ length: 12 }, (_, i) => i)
const twenty = Array.from({ length: 20 }, (_, i) => i)

const clientOf = (i: number) => i % 2 === 0 ? 0 : 1

const oddMetadata = {
  "": "empty name",
  "quote \" and \\": "'\"\\ ${x} %s",
  unicode: "Zürich 東京 🔒 \u0000",
  lines: "one\ntwo\r\n\tthree",
  empty: ""
}

/** Pairs that a careless encoding takes for one another. */
const oddKeys = (base: string): ReadonlyArray<string> => [
  base,
  base.toUpperCase(),
  `${base} `,
  ` ${base}`,
  `${base}\n`,
  `${base}\0`,
  `{${base}}`,
  `{${base}`,
  `${base}}`,
  `${base}{}`,
  `${base}%`,
  `${base}%25`,
  `${base}%7D`,
  `${base}:queue`,
  `${base}}:queue`,
  `${base}*`,
  `${base}?`,
  `${base}\\`,
  `${base}"'`,
  `${base}/../x`,
  `${base}é`,
  `${base}e\u0301`,
  `${base} 鍵🔒`,
  base.padEnd(1023, "k"),
  base.padEnd(1024, "k"),
  base.padEnd(1024, "🔒")
]

/** @internal */
export const storeChecks: ReadonlyArray<Check> = [
  ...describing,
  ...attempting,
  ...preferring,
  ...renewing,
  ...releasing,
  ...abandoning,
  ...signalling,
  ...fencing,
  ...sharing,
  ...watching,
  ...inspecting,
  ...naming
]
