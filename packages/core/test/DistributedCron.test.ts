import { assert, describe, expectTypeOf, it } from "@effect/vitest"
import { Clock, Cron, DateTime, Deferred, Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { DistributedCron, Lock, type LockError } from "../src/index.ts"
import { withLog } from "./support/observe.ts"
import { everyStep } from "./support/stepping.ts"
import { make, makeLock, setup, type TestStore, unavailable } from "./support/TestStore.ts"
import { drive, jumpingClock, settle, until } from "./support/time.ts"

const everySecond = "* * * * * *"

const schedule = <A, E>(
  lock: Lock.Lock["Service"],
  job: DistributedCron.Job<A, E, never>,
  options?: DistributedCron.Options,
  cron: Cron.Cron | string = everySecond
) => Effect.provideService(DistributedCron.run(job, "job", cron, options), Lock.Lock, lock)

/** Second by second, tenth by tenth. */
const seconds = (count: number) =>
  Effect.forEach(Array.from({ length: count * 10 }), () => TestClock.adjust(100), { discard: true })

const record = (ran: Array<number>) => (tick: DistributedCron.Tick) =>
  Effect.sync(() => void ran.push(DateTime.toEpochMillis(tick.at) / 1000))

const count = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

describe("run", () => {
  it.effect("runs each tick once among 8 processes, whose clocks are apart by the tolerance", () =>
    Effect.gen(function*() {
      const store = yield* make
      const ran: Array<{ readonly at: number; readonly process: number; readonly token: number }> = []
      for (let process = 0; process < 8; process++) {
        const { clock, jump } = yield* jumpingClock
        jump(Math.round(process * 2000 / 7))
        const lock = yield* makeLock(store)
        const job = ({ at, lease }: DistributedCron.Tick) =>
          Effect.andThen(
            Effect.sync(() => ran.push({ at: DateTime.toEpochMillis(at) / 1000, process, token: lease.token })),
            Effect.sleep(50)
          )
        yield* schedule(lock, job, { tolerance: "2 seconds" }).pipe(
          Effect.provideService(Clock.Clock, clock),
          Effect.forkChild({ startImmediately: true })
        )
      }
      yield* seconds(60)
      // The slowest clock comes to the first ones after the fastest has come to later ones.
      assert.deepStrictEqual(ran.map(({ at }) => at).toSorted((a, b) => a - b), count(1, 62))
      const tokens = ran.map(({ token }) => token)
      assert.deepStrictEqual(tokens, tokens.toSorted((a, b) => a - b))
    }))

  it.effect("keeps a tick claimed for as long as any clock within the tolerance may come to it, run to its end or not", () =>
    Effect.gen(function*() {
      const store = yield* make
      const lock = yield* makeLock(store)
      // It dies as soon as it has claimed: what it sends afterwards is never done.
      store.faults.release = () => Effect.never
      yield* Effect.forkChild(schedule(lock, Effect.void, { tolerance: "2 seconds" }, "7 * * * * *"))
      yield* TestClock.adjust(7000)
      yield* until(() => store.count("release") === 1)
      const isClaimed = Effect.map(
        store.inspect("job:1970-01-01T00:00:07.000Z"),
        ({ holders }) => holders.length === 1
      )
      yield* TestClock.adjust(4100)
      assert.isTrue(yield* isClaimed)
      yield* TestClock.adjust(100)
      assert.isFalse(yield* isClaimed)
      yield* seconds(1)
    }))

  it.effect("runs the next tick after one whose process was killed, as soon as that one's lease has run out", () =>
    Effect.gen(function*() {
      const store = yield* make
      const lock = yield* makeLock(store)
      const ran: Array<number> = []
      // A lease that nobody renews is all that is left of a killed run.
      yield* store.service.attempt({
        key: "job",
        holderId: "killed",
        ttl: 2500,
        permits: 1,
        limit: 1,
        wait: false,
        priority: 0,
        maxWaiters: Infinity,
        floor: 0,
        metadata: {}
      })
      yield* Effect.forkChild(schedule(lock, record(ran), { ttl: "2500 millis" }))
      yield* TestClock.adjust(2499)
      assert.deepStrictEqual(ran, [])
      yield* TestClock.adjust(1)
      yield* until(() => ran.length === 2)
      yield* seconds(2)
      assert.deepStrictEqual(ran, [1, 2, 3, 4])
    }))

  it.effect("never runs two ticks at the same time: one waits for startWithin, and is skipped after that, which is logged", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const store = yield* make
        const ran: Array<number> = []
        let inside = 0
        let most = 0
        for (const lock of [yield* makeLock(store), yield* makeLock(store)]) {
          const job = (tick: DistributedCron.Tick) =>
            Effect.acquireUseRelease(
              Effect.andThen(record(ran)(tick), Effect.sync(() => most = Math.max(most, ++inside))),
              () => Effect.sleep(3500),
              () => Effect.sync(() => inside--)
            )
          yield* Effect.forkChild(schedule(lock, job, { startWithin: 1200 }))
        }
        yield* seconds(10)
        assert.strictEqual(most, 1)
        assert.deepStrictEqual(ran, [1, 4, 7])
        const skipped = lines.filter(({ text }) => text.startsWith("Skipped the tick"))
        assert.deepStrictEqual(
          skipped.map(({ text }) => text.slice(0, 44)).slice(0, 4),
          [2, 3, 5, 6].map((second) => `Skipped the tick at 1970-01-01T00:00:0${second}.000Z`.slice(0, 44))
        )
        assert.include(skipped[0]!.cause + skipped[0]!.text, "waitTimeout")
      })
    ))

  it.effect("goes on after runs that fail, die, or are lost, and logs them as errors", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock } = yield* setup()
        const ran: Array<number> = []
        const ends = [Effect.fail("failed"), Effect.die("died"), Effect.interrupt, Effect.never]
        const job = (tick: DistributedCron.Tick) =>
          Effect.andThen(record(ran)(tick), Effect.suspend(() => ends.shift() ?? Effect.void))
        yield* Effect.forkChild(schedule(lock, job, { maxHold: 700 }))
        yield* seconds(6)
        assert.deepStrictEqual(ran, count(1, 6))
        const errors = lines.filter(({ level }) => level === "Error")
        assert.lengthOf(errors, 4)
        assert.include(errors[0]!.cause + errors[0]!.text, "failed")
        assert.include(errors[3]!.cause + errors[3]!.text, "maxHold")
        assert.strictEqual(errors[0]!.annotations["key"], "job")
      })
    ))

  it.effect("interrupts the run when it is interrupted, awaits its end, and releases", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const job = Effect.onInterrupt(
        Effect.andThen(Effect.sync(() => store.trace.push("job")), Effect.never),
        () => Effect.andThen(settle, Effect.sync(() => store.trace.push("job cleaned up")))
      )
      const fiber = yield* Effect.forkChild(schedule(lock, job))
      yield* TestClock.adjust(1000)
      yield* until(() => store.trace.includes("job"))
      store.trace.length = 0
      yield* Fiber.interrupt(fiber)
      assert.deepStrictEqual(store.trace, ["job cleaned up", "release sent", "release Done"])
    }))

  it.effect("fails when the layer closes, and logs that", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const store = yield* make
        const layer = yield* Scope.make()
        const lock = yield* Scope.provide(makeLock(store), layer)
        const fiber = yield* Effect.forkChild(schedule(lock, Effect.never))
        yield* TestClock.adjust(1500)
        yield* Scope.close(layer, Exit.void)
        yield* TestClock.adjust(1500)
        assert.deepInclude(yield* Effect.flip(Fiber.join(fiber)), { _tag: "LockClosed" })
        const [line, ...others] = lines.filter(({ text }) => text.startsWith("DistributedCron"))
        assert.deepInclude(line, { level: "Error", text: "DistributedCron \"job\" ended" })
        assert.include(line!.cause, "LockClosed")
        assert.deepStrictEqual(others, [])
      })
    ))

  it.effect("logs why it does not even begin, where it was forked and nobody looks, but no interruption", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock } = yield* setup()
        const running = yield* Effect.forkScoped(schedule(lock, Effect.void))
        yield* Effect.forkScoped(schedule(lock, Effect.void, {}, "0 3 * *"))
        yield* settle
        yield* Fiber.interrupt(running)
        const [line, ...others] = lines
        assert.deepInclude(line, { level: "Error", text: "DistributedCron \"job\" ended" })
        assert.include(line!.cause, "Invalid cron \"0 3 * *\"")
        assert.deepStrictEqual(line!.annotations, { module: "effect-lock", key: "job" })
        assert.deepStrictEqual(others, [])
      })
    ))

  it.effect("asks a store that does not answer again, for the tolerance: a late run is better than none", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const ran: Array<number> = []
        yield* Effect.forkChild(schedule(lock, record(ran), { tolerance: "2 seconds" }, "*/10 * * * * *"))
        store.faults.attempt = () => unavailable
        yield* seconds(11)
        assert.isAbove(store.count("attempt"), 2)
        assert.deepStrictEqual(ran, [])
        store.faults.attempt = undefined
        yield* seconds(1)
        assert.deepStrictEqual(ran, [10])
        store.faults.attempt = () => unavailable
        yield* seconds(16)
        store.faults.attempt = undefined
        yield* seconds(1)
        assert.deepStrictEqual(ran, [10], "the tick at 20 has passed")
        assert.lengthOf(lines.filter(({ text }) => text.startsWith("Skipped the tick at 1970-01-01T00:00:20")), 1)
        yield* seconds(1)
        assert.deepStrictEqual(ran, [10, 30])
      })
    ))

  for (
    const [title, which] of [["of the claim", 0], ["of the lock that the job runs under", 1]] as const
  ) {
    it.effect(`runs a tick once where the reply ${title} got lost, which is taken back`, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const other = yield* makeLock(store)
        const ran: Array<number> = []
        store.faults.attempt = (run, index) => index === which ? Effect.andThen(run, unavailable) : run
        store.faults.abandon = (run) => Effect.delay(run, 300)
        yield* Effect.forkChild(schedule(lock, record(ran)))
        yield* Effect.forkChild(Effect.delay(schedule(other, record(ran)), 1500))
        yield* seconds(3)
        assert.deepStrictEqual(ran, [1, 2, 3])
      }))
  }

  it.effect("asks again where a tick is refused though nobody has claimed it: votes were split", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const ran: Array<number> = []
      store.faults.attempt = (run, index) =>
        index === 0
          ? Effect.succeed({ _tag: "Refused", standing: { holders: [], position: -1, queueLength: 0 } })
          : run
      yield* Effect.forkChild(schedule(lock, record(ran)))
      yield* seconds(2)
      assert.deepStrictEqual(ran, [1, 2])
    }))

  it.effect("does not run a tick that it claimed too late: somebody else's claim may have run out by then", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const ran: Array<number> = []
        store.faults.attempt = (run, index) => index === 0 ? Effect.delay(run, 2100) : run
        yield* Effect.forkChild(schedule(lock, record(ran), { tolerance: "2 seconds" }, "*/5 * * * * *"))
        yield* seconds(10)
        assert.deepStrictEqual(ran, [10])
        assert.lengthOf(lines.filter(({ text }) => text.startsWith("Skipped the tick at 1970-01-01T00:00:05")), 1)
      })
    ))

  it.effect("makes up for the tolerance only after a suspension, and follows a clock that is set", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const { clock, jump } = yield* jumpingClock
      const ran: Array<number> = []
      yield* schedule(lock, record(ran), { tolerance: "2 seconds" }).pipe(
        Effect.provideService(Clock.Clock, clock),
        Effect.forkChild
      )
      yield* TestClock.adjust(1500)
      jump(60_000)
      yield* TestClock.adjust(500)
      yield* until(() => ran.length > 2)
      assert.deepStrictEqual(ran, [1, 61, 62])
      jump(-60_000)
      yield* seconds(60)
      assert.deepStrictEqual(ran, [1, 61, 62], "no tick twice")
      yield* seconds(2)
      assert.deepStrictEqual(ran, [1, 61, 62, 63, 64])
    }))

  it.effect("does not run a tick after a suspension in which the time to wait for the run before it has passed", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock } = yield* setup()
        const { clock, jump } = yield* jumpingClock
        const ran: Array<number> = []
        const job = (tick: DistributedCron.Tick) => Effect.andThen(record(ran)(tick), Effect.sleep(1500))
        yield* schedule(lock, job, { tolerance: "2 seconds", startWithin: "10 seconds" }, "* * * * * *").pipe(
          Effect.provideService(Clock.Clock, clock),
          Effect.forkChild
        )
        yield* TestClock.adjust(2100)
        assert.deepStrictEqual(ran, [1])
        jump(36_000_000)
        yield* TestClock.adjust(1000)
        yield* until(() => ran.length > 1)
        assert.isAbove(ran[1]!, 36_000, "not the one that waited")
        assert.lengthOf(lines.filter(({ text }) => text.startsWith("Skipped the tick at 1970-01-01T00:00:02")), 1)
      })
    ))

  it.effect("runs a tick whose lock is free, however little time there is to wait for it", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const ran: Array<number> = []
      store.faults.attempt = (run) => Effect.delay(run, 50)
      yield* Effect.forkChild(schedule(lock, record(ran), { startWithin: 0 }))
      yield* TestClock.adjust(2500)
      yield* until(() => ran.length === 2)
      assert.deepStrictEqual(ran, [1, 2])
    }))

  it.effect("notices in time that its clock was set forward while it slept", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const { clock, jump } = yield* jumpingClock
      const ran: Array<number> = []
      yield* schedule(lock, record(ran), { tolerance: "2 seconds" }, "0 * * * * *").pipe(
        Effect.provideService(Clock.Clock, clock),
        Effect.forkChild
      )
      yield* TestClock.adjust(500)
      jump(59_000)
      yield* seconds(2)
      assert.deepStrictEqual(ran, [60])
    }))

  it.effect("reads an expression in UTC, and takes a Cron with a time zone", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const ran: Array<number> = []
      yield* Effect.forkChild(schedule(lock, record(ran), { tolerance: "1 minute" }, "0 3 * * *"))
      yield* Effect.forkChild(
        schedule(lock, record(ran), { tolerance: "1 minute" }, Cron.parseUnsafe("0 3 * * *", "Asia/Tokyo"))
      )
      yield* TestClock.adjust("1 day")
      assert.deepStrictEqual(ran.map((time) => time / 3600), [3, 18])
    }))

  it.effect("sleeps through a month, beyond what timers know", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const ran: Array<number> = []
      yield* Effect.forkChild(schedule(lock, record(ran), { tolerance: "1 hour" }, "0 0 1 * *"))
      yield* TestClock.adjust("31 days")
      assert.deepStrictEqual(ran.map((time) => time / 86_400), [31])
    }))

  it.effect("takes the longest tolerance that it says there is, and a ttl as long as any", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      const refused = yield* Effect.flip(schedule(lock, Effect.void, { tolerance: "20 days" }))
      assert.deepInclude(refused, { input: "tolerance", value: "\"20 days\"" })
      const longest = Number((refused as LockError.LockInvalid).fix.match(/\d+/)![0])
      const ran: Array<number> = []
      yield* Effect.forkChild(schedule(lock, record(ran), { tolerance: longest, ttl: "24 days" }, "0 0 * * *"))
      yield* TestClock.adjust("1 day")
      yield* until(() => ran.length === 1)
      const tooLong = { tolerance: longest + 1 }
      assert.deepInclude(yield* Effect.flip(schedule(lock, Effect.void, tooLong)), { input: "tolerance" })
    }))

  it.effect("refuses what cannot be used, before anything is sent", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const job = Effect.void
      const failures = yield* Effect.forEach(
        [
          DistributedCron.run(job, "", everySecond),
          DistributedCron.run(job, "n".repeat(1020), everySecond),
          DistributedCron.run(job, "job", "every night"),
          DistributedCron.run(job, "job", "99 * * * *"),
          DistributedCron.run(job, "job", "0 0 30 2 *"),
          DistributedCron.run(job, "job", Cron.parseUnsafe("0 0 30 2 *")),
          DistributedCron.run(job, "job", everySecond, { tolerance: -1 }),
          DistributedCron.run(job, "job", everySecond, { startWithin: NaN }),
          DistributedCron.run(job, "job", everySecond, { ttl: 0 })
        ],
        (run) => Effect.flip(Effect.provideService(run, Lock.Lock, lock))
      )
      assert.deepStrictEqual(
        failures.map((error) => error._tag === "LockInvalid" && error.input),
        ["key", "key", "cron", "cron", "cron", "cron", "tolerance", "startWithin", "ttl"]
      )
      assert.deepStrictEqual(store.trace, [])
    }))
})

describe("once", () => {
  const once = <A, E>(lock: Lock.Lock["Service"], effect: Effect.Effect<A, E>, ttl?: number) =>
    Effect.provideService(Lock.once(effect, "k", { within: "1 minute", ttl }), Lock.Lock, lock)

  it.effect("runs an effect once within a time, among all processes, and once more after that", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      const outcomes = yield* Effect.all([once(lock, Effect.succeed("a")), once(other, Effect.succeed("b"))])
      assert.deepStrictEqual(outcomes, [Option.some("a"), Option.none()])
      yield* TestClock.adjust(59_999)
      assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.none())
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.some("b"))
    }))

  it.effect("counts a run that fails, and is not begun anew beside one that takes longer", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      assert.strictEqual(yield* Effect.flip(once(lock, Effect.fail("failed"))), "failed")
      assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.none())
      yield* TestClock.adjust("1 minute")
      const end = yield* Deferred.make<void>()
      const long = yield* Effect.forkChild(once(lock, Deferred.await(end)), { startImmediately: true })
      yield* TestClock.adjust("3 minutes")
      assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.none())
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.join(long)
      assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.some("b"))
    }))

  it.effect("is not repeated within the time by a killed run either, unless the ttl is shorter", () =>
    Effect.gen(function*() {
      for (const [ttl, freeAfter] of [[undefined, 60_000], [5000, 5000]] as const) {
        const { lock, store } = yield* setup()
        // What it sends after its start is never done.
        store.faults.renew = store.faults.release = () => Effect.never
        yield* Effect.forkChild(once(lock, Effect.never, ttl), { startImmediately: true })
        const other = yield* makeLock(store)
        yield* TestClock.adjust(freeAfter - 1)
        assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.none())
        yield* TestClock.adjust(1)
        store.faults.release = undefined
        assert.deepStrictEqual(yield* once(other, Effect.succeed("b")), Option.some("b"))
      }
    }))

  it.effect("does not run inside the region of its own key: whoever holds that has begun", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      let runs = 0
      const run = once(lock, Effect.sync(() => ++runs))
      const twice = Effect.all([run, run], { concurrency: "unbounded" })
      assert.deepStrictEqual(yield* lock.withLock(twice, "k"), [Option.none(), Option.none()])
      assert.deepStrictEqual(Option.getOrThrow(yield* once(lock, twice)), [Option.none(), Option.none()])
      assert.strictEqual(runs, 0)
      assert.deepStrictEqual(store.releases.map(({ keepFor }) => keepFor), [0, 60_000])
    }))

  it.effect("is not bounded by a maxHold that the layer gives to its locks", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup({ maxHold: "5 seconds" })
      const fiber = yield* Effect.forkChild(once(lock, Effect.as(Effect.sleep("2 minutes"), "a")))
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(yield* Fiber.join(fiber), Option.some("a"))
    }))

  it.effect("refuses a time that is none, and one that is too long", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      for (const within of [-1, 0, "25 days"] as const) {
        const once = Lock.once(Effect.void, "k", { within })
        assert.deepInclude(yield* Effect.flip(Effect.provideService(once, Lock.Lock, lock)), { input: "within" })
      }
    }))
})

describe("types", () => {
  it("keep what the job needs, and nothing of what it fails with", () => {
    const run = (job: Effect.Effect<number, "mine", "needs">) =>
      [DistributedCron.run(job, "job", everySecond), DistributedCron.run("job", everySecond)(() => job)] as const
    type Expected = Effect.Effect<never, LockError.LockInvalid | LockError.LockClosed, "needs" | Lock.Lock>
    expectTypeOf<ReturnType<typeof run>>().toEqualTypeOf<readonly [Expected, Expected]>()
  })
})

/** Gives a tick to the victim, at one step of which it is interrupted. */
const stage = Effect.gen(function*() {
  const store: TestStore = yield* make
  for (const verb of ["attempt", "renew", "release", "abandon"]) {
    Object.assign(store.faults, {
      [verb]: (run: Effect.Effect<unknown>) => Effect.andThen(Effect.yieldNow, Effect.tap(run, () => Effect.yieldNow))
    })
  }
  return { store, lock: yield* makeLock(store), other: yield* makeLock(store) }
}).pipe(Effect.orDie)

describe("G7: leaves nothing behind, at whatever step it is interrupted", () => {
  for (const isContended of [false, true]) {
    it.effect(`run${isContended ? ", while the run before it is still on" : ""}`, () =>
      Effect.gen(function*() {
        let begun = 0
        let early = 0
        yield* everyStep(Effect.gen(function*() {
          const { lock, other, store } = yield* stage
          const at = (yield* Clock.currentTimeMillis) + 20
          const cron = Cron.parseUnsafe(everySecond)
          // The next full second is a while away, and each step needs one.
          const { clock, jump } = yield* jumpingClock
          jump(Cron.next(cron, at).getTime() - at)
          if (isContended) yield* Effect.forkDetach(other.withLock(Effect.sleep(50), "job"))
          let inside = 0
          let runs = 0
          const job = Effect.acquireUseRelease(
            Effect.sync(() => {
              runs++
              inside++
            }),
            () => Effect.sleep(35),
            () => Effect.andThen(Effect.yieldNow, Effect.sync(() => inside--))
          )
          const victim = schedule(lock, job, { tolerance: "1 second" }).pipe(
            Effect.raceFirst(Effect.sleep(150)),
            Effect.provideService(Clock.Clock, clock)
          )
          return {
            victim,
            act: (fiber) => fiber.interruptUnsafe(),
            check: () =>
              Effect.gen(function*() {
                assert.strictEqual(inside, 0)
                assert.isAtMost(runs, 1)
                if (runs === 1) begun++
                else early++
                const next = yield* Effect.forkDetach(other.withLock(Effect.succeed("in"), "job"))
                assert.deepStrictEqual(yield* drive(next, { step: 10 }), Exit.succeed("in"))
                assert.deepStrictEqual(yield* store.inspect("job"), { key: "job", holders: [], waiters: [] })
                yield* TestClock.adjust(2100)
                assert.deepStrictEqual(
                  yield* store.service.list("").pipe(
                    Effect.flatMap(Effect.forEach((key) => store.inspect(key))),
                    Effect.map((keys) => keys.filter(({ holders }) => holders.length > 0)),
                    Effect.orDie
                  ),
                  []
                )
              })
          }
        }))
        assert.isAbove(begun, 30)
        assert.isAbove(early, 30)
      }))
  }
})
