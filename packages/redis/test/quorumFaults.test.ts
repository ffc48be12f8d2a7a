import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Exit, Option, Schedule } from "effect"
import { hold, until } from "./support/client.ts"
import { quietly } from "./support/observe.ts"
import * as quorum from "./support/quorum.ts"

/** Long enough for a lease to survive a busy machine, short enough to wait for renewals. */
const ttl = 9000
/** Longer than a machine that is shared stands still. */
const voterTimeout = 4000
/** What a busy machine may add to a time that has a bound. */
const margin = 5000

const failureOf = (exit: Exit.Exit<unknown, unknown>): unknown => Option.getOrUndefined(Exit.findErrorOption(exit))

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(Effect.exit(effect)), ([duration, exit]) => ({ millis: Duration.toMillis(duration), exit }))

describe("quorum: faults", { concurrent: true }, () => {
  for (const n of [3, 5]) {
    for (const fault of quorum.faults) {
      it.live(
        `any minority of ${n} ${fault.name}: acquisition, renewal and release go on`,
        () =>
          quietly(Effect.scoped(Effect.gen(function*() {
            const { connect, places } = yield* quorum.start(n)
            const minority = places.slice(0, (n - 1) / 2)
            const majority = places.slice(minority.length)
            const options = { lock: { ttl }, store: { voterTimeout } }
            const [one, other] = [yield* connect(options), yield* connect(options)]
            const holder = yield* hold(one, "held")
            yield* holder.entered
            yield* quorum.untilVotes(places, "held", n)

            yield* Effect.forEach(minority, fault.inject, { discard: true })
            // One renewal may have been under way.
            yield* quorum.untilRenewed(majority, "held", ttl / 2)
            assert.strictEqual(yield* quorum.votes(majority, "held"), majority.length)
            assert.isTrue(Option.isNone(yield* other.lock.withLockIfAvailable(Effect.void, "held")))
            const waiter = yield* hold(other, "held")
            yield* holder.leave
            yield* waiter.entered
            yield* waiter.leave
            assert.isTrue(Exit.isSuccess(yield* waiter.exit))
            assert.isTrue(Exit.isSuccess(yield* holder.exit))

            // It is known by now who does not answer, so nobody is waited for.
            const spent = yield* timed(
              Effect.forEach(
                Array.from({ length: 20 }, (_, i) => `key ${i}`),
                (key) => one.lock.withLock(Effect.void, key),
                { discard: true }
              )
            )
            assert.isTrue(Exit.isSuccess(spent.exit))
            // Less than half of what it would take if each lock waited for the time-out once.
            assert.isBelow(spent.millis, 10 * voterTimeout, "20 locks one after the other")

            yield* Effect.forEach(minority, fault.undo, { discard: true })
            const last = yield* hold(one, "last")
            yield* last.entered
            if (fault.name !== "killed") yield* quorum.untilVotes(places, "last", n)
            yield* last.leave
            yield* quorum.untilVotes(places, "last", 0)
            // Whatever was lost on the way, nothing stays for longer than its ttl.
            yield* quorum.untilVotes(places, "held", 0)
          }))),
        120_000
      )
    }
  }

  for (const fault of quorum.faults) {
    it.live(
      `a majority ${fault.name}: LockLost by the local deadline, and acquisition tells the outcome of each voter`,
      () =>
        quietly(Effect.scoped(Effect.gen(function*() {
          const { connect, places } = yield* quorum.start(3)
          const client = yield* connect({ lock: { ttl, releaseTimeout: 1000 }, store: { voterTimeout } })
          const holder = yield* hold(client, "held")
          yield* holder.entered
          const gone = places.slice(0, 2)
          yield* Effect.forEach(gone, fault.inject, { discard: true })
          const lostAfter = yield* timed(holder.exit)
          const lost = failureOf(yield* holder.exit) as { readonly _tag: string; readonly reason: string }
          assert.strictEqual(lost._tag, "LockLost")
          assert.strictEqual(lost.reason, "Expired")
          assert.isBelow(lostAfter.millis, ttl + margin)

          const failed = yield* timed(client.lock.withLock(Effect.void, "new"))
          const error = failureOf(failed.exit) as {
            readonly _tag: string
            readonly detail: string
            readonly message: string
          }
          assert.strictEqual(error._tag, "LockStoreError")
          assert.match(error.detail, /no majority of 3 voters/)
          assert.match(error.detail, /a: (timeout|unreachable) \(.+\)/)
          assert.match(error.detail, /b: (timeout|unreachable) \(.+\)/)
          assert.match(error.detail, /c: granted/)
          // One poll to ask and one to take it back.
          assert.isBelow(failed.millis, 2 * voterTimeout + margin)
          yield* quorum.untilVotes(places.slice(2), "new", 0)

          if (fault.name === "killed") return
          yield* Effect.forEach(gone, fault.undo, { discard: true })
          yield* client.lock.withLock(Effect.void, "new").pipe(
            Effect.retry({ schedule: Schedule.spaced(50), times: 200 })
          )
        }))),
      120_000
    )
  }

  it.live(
    "G6: releaseTimeout bounds how long a release and a cancelled wait last, however long a voter is waited for",
    () =>
      quietly(Effect.scoped(Effect.gen(function*() {
        const { connect, places } = yield* quorum.start(3)
        const options = { lock: { releaseTimeout: 200 }, store: { voterTimeout: "20 seconds" } } as const
        const [one, other] = [yield* connect(options), yield* connect(options)]
        const holder = yield* hold(one, "k")
        yield* holder.entered
        yield* quorum.untilVotes(places, "k", 3)
        const waiter = yield* hold(other, "k")
        yield* until(Effect.map(one.store.inspect("k"), ({ waiters }) => waiters.length === 1), "the waiter is known")
        const frozen = places.slice(0, 2)
        yield* Effect.forEach(frozen, ({ server }) => server.pause, { discard: true })
        assert.isBelow((yield* timed(waiter.interrupt)).millis, 10_000)
        assert.isBelow((yield* timed(holder.leave)).millis, 10_000)
        yield* Effect.forEach(frozen, ({ server }) => server.resume, { discard: true })
        yield* quorum.untilTakenBack(places, "k")
      }))),
    60_000
  )

  it.live(
    "a frozen voter costs its time-out once, where its vote is needed to decide",
    () =>
      quietly(Effect.scoped(Effect.gen(function*() {
        const { connect, places } = yield* quorum.start(3)
        const patience = 1.5 * voterTimeout
        // Not renewed before the end: a renewal could not succeed, and the lease would be lost.
        const one = yield* connect({ lock: { ttl: "1 minute" } })
        const other = yield* connect({ lock: { ttl }, store: { voterTimeout: patience } })
        yield* until(
          Effect.map(other.lock.withLockIfAvailable(Effect.succeed(true), "warm"), Option.isSome),
          "all voters are connected"
        )
        const holder = yield* hold(one, "held")
        yield* holder.entered
        yield* quorum.untilVotes(places, "held", 3)
        // Nobody takes it for one that is being voted on when the time-out is over.
        yield* Effect.sleep(1.5 * patience)
        yield* places[0]!.server.pause
        // One of the others has forgotten: it grants, the last refuses, so that all depends on who is frozen.
        yield* places[1]!.server.command("DEL", "effect-lock:quorum:held")
        const first = yield* timed(other.lock.withLockIfAvailable(Effect.void, "held"))
        const second = yield* timed(other.lock.withLockIfAvailable(Effect.void, "held"))
        assert.isAtLeast(first.millis, patience - 5)
        assert.isBelow(first.millis, patience + margin)
        assert.isBelow(second.millis, patience)
        yield* places[0]!.server.resume
      }))),
    120_000
  )
})
