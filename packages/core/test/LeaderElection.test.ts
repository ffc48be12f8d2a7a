import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import {
  Cause,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Option,
  Random,
  References,
  Schedule,
  Scope,
  Stream,
  SubscriptionRef
} from "effect"
import { TestClock } from "effect/testing"
import { LeaderElection, type Lease, Lock, LockError } from "../src/index.ts"
import { withLog, withMetrics } from "./support/observe.ts"
import { everyStep } from "./support/stepping.ts"
import { make, makeLock, setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { drive, now, settle, until } from "./support/time.ts"

const ttl = 900

const elect = (lock: Lock.Lock["Service"], options?: LeaderElection.Options) =>
  Effect.provideService(LeaderElection.make("k", { ttl, ...options }), Lock.Lock, lock)

const describeStatus = (status: LeaderElection.Status) =>
  status._tag === "Leading" ? `Leading ${status.token}` : status._tag

/** Writes every change of the status down, the present one first. */
const watch = ({ status }: LeaderElection.LeaderElection, trace: Array<string>) =>
  Effect.andThen(
    Effect.forkScoped(
      Stream.runForEach(SubscriptionRef.changes(status), (it) => Effect.sync(() => trace.push(describeStatus(it)))),
      { startImmediately: true }
    ),
    until(() => trace.length > 0)
  )

/** Leads until it is interrupted. */
const leading = (terms: Array<number>) => (lease: Lease.Lease) =>
  Effect.andThen(Effect.sync(() => terms.push(lease.token)), Effect.never)

const evictHolder = (store: TestStore) =>
  Effect.flatMap(store.inspect("k"), ({ holders }) => store.evict("k", holders[0]!.holderId))

describe("run", () => {
  it.effect("runs the effect while leading, resigns when it succeeds, and gives its value", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const election = yield* elect(lock)
      const trace: Array<string> = []
      yield* watch(election, trace)
      const token = yield* election.run((lease) => Effect.as(settle, lease.token))
      yield* settle
      assert.deepStrictEqual(trace, ["Idle", "Follower", `Leading ${token}`, "Idle"])
      assert.strictEqual(yield* election.run(Effect.succeed("an effect as it is")), "an effect as it is")
      assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
    }))

  for (const [title, end] of [["fails", Effect.fail("oops")], ["dies", Effect.die("oops")]] as const) {
    it.effect(`resigns when the effect ${title}, ends in the same way, and logs it: it may have been forked`, () =>
      withLog((lines) =>
        Effect.gen(function*() {
          const { lock, store } = yield* setup()
          const election = yield* elect(lock)
          const fiber = yield* Effect.forkScoped(election.run(end))
          yield* settle
          const exit = fiber.pollUnsafe()!
          assert.deepStrictEqual(
            Exit.isFailure(exit) && Cause.squash(exit.cause),
            "oops"
          )
          assert.deepStrictEqual(SubscriptionRef.getUnsafe(election.status), { _tag: "Idle" })
          assert.deepStrictEqual((yield* store.inspect("k")).holders, [])
          const [line, ...others] = lines
          assert.deepInclude(line, { level: "Error", text: "LeaderElection \"k\" ended" })
          assert.include(line!.cause, "oops")
          assert.deepStrictEqual(line!.annotations, { module: "effect-lock", key: "k" })
          assert.deepStrictEqual(others, [])
        })
      ))
  }

  it.effect("logs nothing when it is interrupted, or asked to be silent by Effect's own option", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock } = yield* setup()
        const election = yield* elect(lock)
        const tokens: Array<number> = []
        const fiber = yield* Effect.forkChild(election.run(leading(tokens)))
        yield* until(() => tokens.length === 1)
        yield* Fiber.interrupt(fiber)
        const quiet = Effect.provideService(election.run(Effect.fail("oops")), References.UnhandledLogLevel, undefined)
        assert.strictEqual(yield* Effect.flip(quiet), "oops")
        assert.deepStrictEqual(lines, [])
      })
    ))

  it.effect("G4: interrupts the effect when leadership is lost, and campaigns again: with a greater token", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const election = yield* elect(lock)
      const trace: Array<string> = []
      yield* watch(election, trace)
      const tokens: Array<number> = []
      const fiber = yield* Effect.forkChild(election.run((lease) =>
        leading(tokens)(lease).pipe(
          Effect.onInterrupt(() => Effect.andThen(Effect.sleep(100), Effect.sync(() => trace.push("cleaned up"))))
        )
      ))
      yield* until(() => tokens.length === 1)
      yield* evictHolder(store)
      yield* TestClock.adjust(ttl / 3)
      // Told at once, however long it takes to clean up.
      yield* until(() => trace.length === 4)
      assert.strictEqual(tokens.length, 1)
      yield* TestClock.adjust(100)
      yield* TestClock.adjust(240)
      yield* until(() => tokens.length === 2)
      const interruption = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* drive(interruption)
      yield* settle
      const [first, second] = tokens
      assert.isAbove(second!, first!)
      assert.deepStrictEqual(trace, [
        "Idle",
        "Follower",
        `Leading ${first}`,
        "Follower",
        "cleaned up",
        `Leading ${second}`,
        // Interrupted from outside, it leads until it has cleaned up.
        "cleaned up",
        "Idle"
      ])
    }))

  it.effect("G6: resigns in order: the effect ends, its finalizers, the status, the release", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const election = yield* elect(lock)
      const fiber = yield* Effect.forkChild(election.run(
        Effect.scoped(
          Effect.andThen(
            Effect.addFinalizer(() => Effect.andThen(settle, Effect.sync(() => store.trace.push("finalizer")))),
            Effect.onInterrupt(Effect.never, () => Effect.sync(() => store.trace.push("effect interrupted")))
          )
        )
      ))
      yield* until(() => SubscriptionRef.getUnsafe(election.status)._tag === "Leading")
      yield* watch(election, store.trace)
      store.trace.length = 0
      store.faults.release = (run) => Effect.andThen(settle, run)
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(store.trace, ["effect interrupted", "finalizer", "Idle", "release sent", "release Done"])
    }))

  it.effect("G9: resigns at once when interrupted: the next candidate leads without time passing", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const tokens: Array<number> = []
      const first = yield* Effect.forkChild((yield* elect(lock)).run(leading(tokens)))
      yield* until(() => tokens.length === 1)
      yield* Effect.forkChild((yield* elect(other)).run(leading(tokens)))
      yield* until(() => store.count("attempt") === 2)
      yield* settle
      assert.lengthOf(tokens, 1)
      yield* Fiber.interrupt(first)
      yield* until(() => tokens.length === 2)
    }))

  it.effect("waits in the store's queue: asks once, however long it takes", () =>
    Effect.gen(function*() {
      const store = yield* make
      // Defaults of the layer that would end the wait are not for candidates.
      const lock = yield* makeLock(store, { waitTimeout: "1 second", maxWaiters: 0 })
      const tokens: Array<number> = []
      const holding = yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
      yield* until(() => store.count("attempt") === 1)
      yield* Effect.forkChild((yield* elect(lock)).run(leading(tokens)))
      yield* Effect.forkChild((yield* elect(lock)).run(leading(tokens)))
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(store.count("attempt"), 3)
      assert.lengthOf((yield* store.inspect("k")).waiters, 2)
      yield* Fiber.interrupt(holding)
      yield* until(() => tokens.length === 1)
    }))

  it.effect("is not ended by a store that fails: campaigns again by schedule, and says so", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        store.faults.attempt = (run, index) => index < 20 ? unavailable : run
        const tokens: Array<number> = []
        const election = yield* elect(lock)
        const fiber = yield* Effect.forkChild(election.run(leading(tokens)))
        yield* until(() => store.count("attempt") === 1)
        yield* settle
        assert.strictEqual(store.count("attempt"), 1)
        assert.deepStrictEqual(SubscriptionRef.getUnsafe(election.status), { _tag: "Follower" })
        for (let time = 0; time < 120_000 && tokens.length === 0; time += 100) yield* TestClock.adjust(100)
        assert.lengthOf(tokens, 1)
        const told = lines.filter(({ text }) => text.includes("to be tried again"))
        assert.lengthOf(told, 20)
        assert.deepInclude(told[0], { level: "Warn" })
        assert.strictEqual(told[0]!.annotations["key"], "k")
        yield* Fiber.interrupt(fiber)
      })
    ))

  it.effect("spreads the campaigns of those whose store failed at the same moment", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const asked: Array<number> = []
      store.faults.attempt = () =>
        Effect.andThen(Effect.tap(now, (time) => Effect.sync(() => asked.push(time))), unavailable)
      for (let seed = 0; seed < 5; seed++) {
        const election = yield* elect(lock)
        yield* Effect.forkChild(Random.withSeed(election.run(Effect.void), `candidate ${seed}`))
      }
      yield* until(() => asked.length === 5)
      while (asked.length < 10) yield* TestClock.adjust(1)
      assert.deepStrictEqual(asked.slice(0, 5), [0, 0, 0, 0, 0])
      const again = asked.slice(5, 10)
      assert.isAbove(new Set(again).size, 3, again.join())
    }))

  it.effect("starts the schedule anew with each time of leading, and fails with what happened last when it ends", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const tokens: Array<number> = []
      const election = yield* elect(lock, { retry: Schedule.spaced(10).pipe(Schedule.upTo({ times: 2 })) })
      const failing = new Set([0, 1, 3, 5, 6, 7])
      store.faults.attempt = (run, index) => failing.has(index) ? unavailable : run
      const fiber = yield* Effect.forkChild(election.run(leading(tokens)))
      for (const terms of [1, 2]) {
        for (let time = 0; time < 10 && tokens.length < terms; time++) yield* TestClock.adjust(10)
        assert.lengthOf(tokens, terms)
        yield* evictHolder(store)
        yield* TestClock.adjust(ttl / 3)
      }
      for (let time = 0; time < 10 && fiber.pollUnsafe() === undefined; time++) yield* TestClock.adjust(10)
      const error = yield* Effect.flip(Fiber.join(fiber))
      assert.instanceOf(error, LockError.LockStoreError)
      assert.strictEqual(store.count("attempt"), 7)
    }))

  it.effect("fails with what the effect's own locks fail with", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const election = yield* elect(lock)
      const lost = new LockError.LockLost({ key: "mine", holderId: "other", token: 1, reason: "Expired" })
      assert.strictEqual(yield* Effect.flip(election.run(Effect.fail(lost))), lost)
      const failed = yield* Effect.flip(unavailable)
      assert.strictEqual(yield* Effect.flip(election.run(Effect.fail(failed))), failed)
      assert.strictEqual(store.count("attempt"), 2)
    }))

  it.effect("gives leadership away with a ticket", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const election = yield* elect(lock)
      const ticket = yield* election.run((lease) => lease.handOff)
      assert.deepStrictEqual(SubscriptionRef.getUnsafe(election.status), { _tag: "Idle" })
      assert.isAbove((yield* lock.adopt(ticket)).token, ticket.token)
    }))

  it.effect("lets candidates take turns where leading is bounded by maxHold", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const terms: Array<string> = []
      for (const name of ["a", "b", "c"]) {
        const election = yield* elect(lock, { maxHold: 500 })
        yield* Effect.forkChild(election.run(Effect.andThen(Effect.sync(() => terms.push(name)), Effect.never)))
        yield* until(() => store.count("attempt") === "abc".indexOf(name) + 1)
      }
      for (let time = 0; time < 100 && terms.length < 7; time++) yield* TestClock.adjust(100)
      assert.deepStrictEqual(terms.slice(0, 7), ["a", "b", "c", "a", "b", "c", "a"])
    }))

  it.effect("ends when the layer closes, whether it leads or waits", () =>
    Effect.gen(function*() {
      const store = yield* make
      const layer = yield* Scope.make()
      const lock = yield* Scope.provide(makeLock(store), layer)
      const tokens: Array<number> = []
      const election = yield* elect(lock)
      const leader = yield* Effect.forkChild(election.run(leading(tokens)))
      yield* until(() => tokens.length === 1)
      const follower = yield* Effect.forkChild(election.run(leading(tokens)))
      yield* until(() => store.count("attempt") === 2)
      yield* Scope.close(layer, Exit.void)
      assert.deepInclude(yield* Effect.flip(Fiber.join(leader)), { _tag: "LockLost", reason: "Closed" })
      assert.deepInclude(yield* Effect.flip(Fiber.join(follower)), { _tag: "LockClosed" })
      assert.deepInclude(yield* Effect.flip(election.run(Effect.void)), { _tag: "LockClosed" })
      assert.deepStrictEqual(SubscriptionRef.getUnsafe(election.status), { _tag: "Idle" })
    }))

  it.effect("is more than one candidate when it is run more than once: the status tells of the one that leads", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const election = yield* elect(lock)
      const trace: Array<string> = []
      yield* watch(election, trace)
      const gates = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const tokens: Array<number> = []
      const fibers = yield* Effect.forEach(
        gates,
        (gate) =>
          Effect.forkChild(
            election.run((lease) => Effect.andThen(Effect.sync(() => tokens.push(lease.token)), Deferred.await(gate)))
          )
      )
      yield* until(() => tokens.length === 1)
      yield* Deferred.succeed(gates[0]!, undefined)
      yield* until(() => tokens.length === 2)
      yield* settle
      yield* Deferred.succeed(gates[1]!, undefined)
      yield* Effect.forEach(fibers, Fiber.join)
      yield* settle
      const [first, second] = tokens
      assert.deepStrictEqual(trace, ["Idle", "Follower", `Leading ${first}`, "Follower", `Leading ${second}`, "Idle"])
    }))
})

describe("never two leaders", () => {
  it.effect("G1, G2: of 12 candidates whose renewals get lost and who are interrupted, one leads at a time, tokens growing", () =>
    Effect.gen(function*() {
      const store = yield* make
      const tokens: Array<number> = []
      let inside = 0
      let most = 0
      const campaign = Effect.gen(function*() {
        const election = yield* elect(yield* makeLock(store))
        return yield* election.run((lease) =>
          Effect.acquireUseRelease(
            Effect.sync(() => {
              tokens.push(lease.token)
              most = Math.max(most, ++inside)
            }),
            () => Effect.never,
            () => Effect.sync(() => inside--)
          )
        )
      }).pipe(Effect.scoped)
      const fibers = new Set<Fiber.Fiber<unknown, unknown>>()
      for (let i = 0; i < 12; i++) fibers.add(yield* Effect.forkChild(campaign))
      for (let round = 0; tokens.length < 60; round++) {
        assert.isBelow(round, 2000)
        yield* TestClock.adjust(50)
        if (round % 7 === 0) {
          // Renewals get lost, until the leader has to believe that it is none any more.
          store.faults.renew = (run) => round % 2 === 0 ? unavailable : run
        }
        if (round % 11 === 0 && inside === 1) {
          const [next] = fibers
          fibers.delete(next!)
          yield* Fiber.interrupt(next!)
          fibers.add(yield* Effect.forkChild(campaign))
        }
      }
      assert.strictEqual(most, 1)
      assert.deepStrictEqual(tokens, Array.from(new Set(tokens)).toSorted((a, b) => a - b))
    }))
})

describe("types", () => {
  it("keep what the effect needs and fails with, and tell what can end a campaign", () => {
    const run = (election: LeaderElection.LeaderElection, effect: Effect.Effect<number, "mine", "needs">) =>
      election.run(() => effect)
    expectTypeOf<ReturnType<typeof run>>().toEqualTypeOf<
      Effect.Effect<
        number,
        | "mine"
        | LockError.LockStoreError
        | LockError.LockLost
        | LockError.LockDeadlock
        | LockError.LockClosed
        | LockError.LockInvalid
        | LockError.PermitsRefused,
        "needs"
      >
    >()
  })
})

describe("leader", () => {
  it.effect("tells who leads, in whatever process, and nobody when nobody does", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const election = yield* elect(lock, { holder: { region: "eu" } })
      const elsewhere = yield* elect(yield* makeLock(store))
      assert.isTrue(Option.isNone(yield* elsewhere.leader))
      const tokens: Array<number> = []
      const fiber = yield* Effect.forkChild(election.run(leading(tokens)))
      yield* until(() => tokens.length === 1)
      const leader = Option.getOrThrow(yield* elsewhere.leader)
      assert.strictEqual(leader.token, tokens[0])
      assert.strictEqual(leader.metadata["region"], "eu")
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Option.isNone(yield* elsewhere.leader))
    }))
})

describe("make", () => {
  it.effect("refuses what cannot be used, before anything is sent", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const failures = yield* Effect.forEach(
        [
          LeaderElection.make(""),
          LeaderElection.make("k", { ttl: -1 }),
          LeaderElection.make("k", { renewEvery: "1 hour" })
        ],
        (make) => Effect.flip(Effect.provideService(make, Lock.Lock, lock))
      )
      assert.deepStrictEqual(failures.map(({ input }) => input), ["key", "ttl", "renewEvery"])
      assert.deepStrictEqual(store.trace, [])
    }))
})

describe("G7: leaves nothing behind, at whatever step it is interrupted", () => {
  const scenarios = [
    { title: "a leader", isContended: false, isEvicted: false },
    { title: "a candidate that waits", isContended: true, isEvicted: false },
    { title: "a leader that is evicted and campaigns again", isContended: false, isEvicted: true }
  ]
  for (const { isContended, isEvicted, title } of scenarios) {
    it.effect(title, () =>
      withMetrics(Effect.gen(function*() {
        const exits: Array<Exit.Exit<unknown, unknown>> = []
        const steps = yield* everyStep(Effect.gen(function*() {
          const store = yield* make
          for (const verb of ["attempt", "renew", "release", "abandon"]) {
            Object.assign(store.faults, {
              [verb]: (run: Effect.Effect<unknown>) =>
                Effect.andThen(Effect.yieldNow, Effect.tap(run, () => Effect.yieldNow))
            })
          }
          const election = yield* Effect.orDie(elect(yield* Effect.orDie(makeLock(store)), { ttl: 90 }))
          const other = yield* Effect.orDie(makeLock(store, { ttl: 90 }))
          if (isContended) yield* Effect.forkDetach(other.withLock(Effect.sleep(15), "k"))
          let terms = 0
          let inside = 0
          let most = 0
          const term = Effect.acquireUseRelease(
            Effect.sync(() => most = Math.max(most, ++inside)),
            () =>
              terms++ === 0 && isEvicted
                ? Effect.andThen(evictHolder(store), Effect.never)
                : Effect.as(Effect.sleep(35), "led"),
            () => Effect.andThen(Effect.yieldNow, Effect.sync(() => inside--))
          )
          return {
            victim: election.run(term),
            act: (fiber) => fiber.interruptUnsafe(),
            check: (exit) =>
              Effect.gen(function*() {
                exits.push(exit)
                assert.strictEqual(inside, 0)
                assert.isAtMost(most, 1)
                assert.deepStrictEqual(SubscriptionRef.getUnsafe(election.status), { _tag: "Idle" })
                // Whoever was evicted may still be taking back what is not there.
                yield* TestClock.adjust(20)
                const next = yield* Effect.forkDetach(other.withLock(Effect.succeed("in"), "k"))
                assert.deepStrictEqual(yield* drive(next), Exit.succeed("in"))
                assert.deepStrictEqual(yield* store.inspect("k"), { key: "k", holders: [], waiters: [] })
              })
          }
        }))
        assert.isAbove(steps, 50)
        assert.deepStrictEqual(exits.pop(), Exit.succeed("led"))
        assert.isAbove(exits.filter(Exit.isFailure).length, 30)
      })))
  }
})
