import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Metric, Schedule, Scope, type Tracer } from "effect"
import { TestClock } from "effect/testing"
import { LockMetrics } from "../src/index.ts"
import { withLog, withMetrics, withSpans } from "./support/observe.ts"
import { makeLock, setup, unavailable } from "./support/TestStore.ts"
import { until } from "./support/time.ts"

const named = (spans: ReadonlyArray<Tracer.Span>, name: string) => spans.filter((span) => span.name === name)

const attributes = (span: Tracer.Span | undefined) => Object.fromEntries(span!.attributes)

const parentOf = (span: Tracer.Span) => (span.parent._tag === "Some" ? span.parent.value : undefined)

describe("spans", () => {
  it.effect("tell of waiting and of holding, with key, holder, token, store and outcome", () =>
    withSpans((spans) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        yield* lock.withLock(Effect.withSpan(Effect.void, "work"), "k").pipe(Effect.withSpan("request"))
        const [request, acquire, hold, work] = spans
        assert.deepStrictEqual(spans.map(({ name }) => name), ["request", "Lock.acquire", "Lock.hold", "work"])
        const { holderId } = store.requests[0]!
        const { token } = store.releases[0]!.lease
        const common = { "lock.key": "k", "lock.store": "memory", "lock.holder_id": holderId, "lock.token": token }
        assert.deepStrictEqual(attributes(acquire), { ...common, "lock.outcome": "granted", "lock.wait_ms": 0 })
        assert.deepStrictEqual(attributes(hold), common)
        assert.strictEqual(parentOf(acquire!), request)
        assert.strictEqual(parentOf(hold!), request)
        assert.strictEqual(parentOf(work!), hold)
        assert.isTrue(spans.every(({ status }) => status._tag === "Ended" && Exit.isSuccess(status.exit)))
      })
    ))

  it.effect("of a waiter name the holder that was in the way, and for how long", () =>
    withSpans((spans) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        const other = yield* makeLock(store)
        yield* Effect.forkChild(other.withLock(Effect.sleep(700), "k"))
        yield* until(() => store.count("attempt") === 1)
        const waiting = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
        yield* TestClock.adjust(700)
        yield* Fiber.join(waiting)
        assert.deepInclude(attributes(named(spans, "Lock.acquire")[1]), {
          "lock.outcome": "granted",
          "lock.wait_ms": 700,
          "lock.blocked_by": store.requests[0]!.holderId
        })
      })
    ))

  it.effect("tell how an acquisition failed", () =>
    withSpans((spans) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ releaseTimeout: 10 })
        const other = yield* makeLock(store)
        yield* other.acquire("k")
        yield* Effect.exit(lock.withLock(Effect.void, "k", { waitTimeout: 0 }))
        const interrupted = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
        yield* until(() => store.count("attempt") === 3)
        yield* Fiber.interrupt(interrupted)
        store.faults.attempt = () => Effect.die("bug")
        yield* Effect.exit(lock.withLock(Effect.void, "k"))
        const acquisitions = named(spans, "Lock.acquire")
        assert.deepStrictEqual(
          acquisitions.slice(1).map((span) => attributes(span)["lock.outcome"]),
          ["LockTimeout", "interrupted", "died"]
        )
        assert.isTrue(acquisitions.every(({ status }) => status._tag === "Ended"))
        assert.strictEqual(named(spans, "Lock.hold").length, 0)
      })
    ))

  it.effect("of a nested call are not there: nothing is acquired", () =>
    withSpans((spans) =>
      Effect.gen(function*() {
        const { lock } = yield* setup()
        yield* lock.withLock(lock.withLock(Effect.void, "k"), "k")
        assert.deepStrictEqual(spans.map(({ name }) => name), ["Lock.acquire", "Lock.hold"])
      })
    ))
})

const count = (metric: Metric.Counter<number>, attributes?: Record<string, string>) =>
  Effect.map(
    Metric.value(attributes === undefined ? metric : Metric.withAttributes(metric, attributes)),
    ({ count }) => count
  )

const gauge = (metric: Metric.Gauge<number>) => Effect.map(Metric.value(metric), ({ value }) => value)

const histogram = (metric: Metric.Histogram<number>) =>
  Effect.map(Metric.value(metric), ({ count, sum }) => ({ count, sum }))

describe("metrics", () => {
  it.effect("count acquisitions by outcome, and measure waits of those that got in", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* Effect.forkChild(other.withLock(Effect.sleep(700), "k"))
      yield* until(() => store.count("attempt") === 1)
      const waiting = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
      const timedOut = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 100 })))
      yield* until(() => store.count("attempt") === 3)
      assert.strictEqual(yield* gauge(LockMetrics.waiting), 2)
      assert.strictEqual(yield* gauge(LockMetrics.held), 1)
      yield* TestClock.adjust(700)
      yield* Fiber.join(waiting)
      yield* Fiber.join(timedOut)
      assert.strictEqual(yield* gauge(LockMetrics.waiting), 0)
      assert.strictEqual(yield* gauge(LockMetrics.held), 0)
      assert.strictEqual(yield* count(LockMetrics.acquisitions, { outcome: "granted" }), 2)
      assert.strictEqual(yield* count(LockMetrics.acquisitions, { outcome: "LockTimeout" }), 1)
      assert.strictEqual(yield* count(LockMetrics.contended), 2)
      assert.deepStrictEqual(yield* histogram(LockMetrics.wait), { count: 2, sum: 700 })
    })))

  it.effect("count an acquisition as contended once, however often it has to look again", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const other = yield* makeLock(store)
      yield* other.acquire("k")
      store.faults.attempt = (run) =>
        Effect.map(run, (answer) =>
          answer._tag === "Queued"
            ? { ...answer, signal: Effect.delay(Effect.succeed({ _tag: "LookAgain" as const }), 40) }
            : answer)
      const fiber = yield* Effect.forkChild(Effect.flip(lock.withLock(Effect.void, "k", { waitTimeout: 200 })))
      yield* TestClock.adjust(200)
      yield* Fiber.join(fiber)
      assert.isAbove(store.count("attempt"), 3)
      assert.strictEqual(yield* count(LockMetrics.contended), 1)
      assert.strictEqual(yield* gauge(LockMetrics.waiting), 0)
    })))

  it.effect("measure every hold, released or lost, and count losses by reason", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900 })
      const released = yield* Effect.forkChild(lock.withLock(Effect.sleep(300), "a"))
      const overlong = yield* Effect.forkChild(Effect.exit(lock.withLock(Effect.never, "b", { maxHold: 400 })))
      yield* until(() => store.count("attempt") === 2)
      assert.strictEqual(yield* gauge(LockMetrics.held), 2)
      yield* TestClock.adjust(400)
      yield* Fiber.join(released)
      yield* Fiber.join(overlong)
      store.faults.renew = () => Effect.never
      const expired = yield* Effect.forkChild(Effect.exit(lock.withLock(Effect.never, "c")))
      yield* TestClock.adjust(900)
      yield* Fiber.join(expired)
      assert.strictEqual(yield* gauge(LockMetrics.held), 0)
      assert.deepStrictEqual(yield* histogram(LockMetrics.hold), { count: 3, sum: 1600 })
      assert.strictEqual(yield* count(LockMetrics.lost, { reason: "MaxHold" }), 1)
      assert.strictEqual(yield* count(LockMetrics.lost, { reason: "Expired" }), 1)
      assert.strictEqual(yield* count(LockMetrics.lost, { reason: "Released" }), 0)
    })))

  it.effect("count renewals by outcome, and releases that were not confirmed", () =>
    withMetrics(Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: 900, releaseTimeout: 200 })
      store.faults.renew = (run, index) => index === 1 ? unavailable : run
      store.faults.release = () => Effect.never
      const fiber = yield* Effect.forkChild(lock.withLock(Effect.sleep(800), "k"))
      yield* TestClock.adjust(1000)
      yield* Fiber.join(fiber)
      assert.strictEqual(yield* count(LockMetrics.renewals, { outcome: "failed" }), 1)
      assert.strictEqual(yield* count(LockMetrics.renewals, { outcome: "done" }), 2)
      assert.strictEqual(yield* count(LockMetrics.releaseFailures), 1)
      store.faults.release = undefined
      const lease = yield* lock.acquire("gone")
      yield* store.service.abandon("gone", lease.holderId)
      yield* TestClock.adjust(300)
      assert.strictEqual(yield* count(LockMetrics.renewals, { outcome: "not_held" }), 1)
      assert.strictEqual(yield* count(LockMetrics.lost, { reason: "NotHeld" }), 1)
    })))

  it.effect("have no series per key", () =>
    withMetrics(Effect.gen(function*() {
      const { lock } = yield* setup()
      for (const key of ["a", "b", "c"]) yield* lock.withLock(Effect.void, key)
      const snapshot = yield* Metric.snapshot
      assert.isNotEmpty(snapshot)
      assert.notInclude(JSON.stringify(snapshot.map(({ attributes }) => attributes ?? {})), "key")
      assert.isTrue(snapshot.every(({ id }) => id.startsWith("effect_lock_")))
    })))
})

describe("logs", () => {
  it.effect("tell of every loss, once, with key and holder", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: 900 })
        const lease = yield* lock.acquire("k")
        yield* store.service.abandon("k", lease.holderId)
        yield* TestClock.adjust("10 seconds")
        assert.strictEqual(lines.length, 1)
        const [line] = lines
        assert.strictEqual(line?.level, "Warn")
        assert.include(line?.text, `Lease on "k" (token ${lease.token}) lost: the store does not know it any more`)
        assert.deepInclude(line?.annotations, { module: "effect-lock", key: "k", holderId: lease.holderId })
      })
    ))

  it.effect("tell of a loss soon, though the lease has never been renewed", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: "1 hour" })
        const other = yield* makeLock(store)
        yield* lock.acquire("k")
        yield* other.takeover("k")
        yield* TestClock.adjust("1 second")
        assert.strictEqual(lines.length, 1)
        assert.include(lines[0]?.text, "somebody took it over")
      })
    ))

  it.effect("tell of a loss that ends its scope at once", () =>
    withLog((lines) =>
      withMetrics(Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: "1 hour" })
        const other = yield* makeLock(store)
        const fiber = yield* Effect.forkChild(Effect.exit(lock.withLock(Effect.never, "k")))
        yield* until(() => store.count("attempt") === 1)
        yield* other.takeover("k")
        yield* Fiber.join(fiber)
        assert.strictEqual(lines.length, 1)
        assert.strictEqual(yield* count(LockMetrics.lost, { reason: "TakenOver" }), 1)
      }))
    ))

  it.effect("tell of every renewal that was not confirmed, and how much time is left", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: 900, renewRetry: Schedule.recurs(1) })
        store.faults.renew = (run, index) => index === 0 ? unavailable : index === 1 ? Effect.die("bug") : run
        yield* lock.acquire("k")
        yield* TestClock.adjust("10 seconds")
        assert.deepStrictEqual(
          lines.map(({ level, text }) => `${level}: ${text}`),
          Array.from({ length: 2 }, () => "Warn: Renewal not confirmed, 600 ms left")
        )
        assert.include(lines[0]?.cause, "The memory store is unreachable")
        assert.include(lines[1]?.cause, "bug")
      })
    ))

  it.effect("tell of a release that failed", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: 900, releaseTimeout: 200 })
        store.faults.release = () => Effect.never
        const fiber = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
        yield* TestClock.adjust(200)
        yield* Fiber.join(fiber)
        assert.strictEqual(lines.length, 1)
        assert.include(lines[0]?.text, "Could not release \"k\"")
        assert.include(lines[0]?.cause, "within releaseTimeout of 200 ms: it may keep \"k\" until its ttl ends")
      })
    ))

  it.effect("stay empty when nothing is wrong", () =>
    withLog((lines) =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup({ ttl: 900 })
        const scope = yield* Scope.make()
        yield* Scope.provide(lock.acquire("k"), scope)
        const waiting = yield* Effect.forkChild(lock.withLock(Effect.void, "k"))
        yield* TestClock.adjust("10 seconds")
        yield* Scope.close(scope, Exit.void)
        yield* Fiber.join(waiting)
        yield* Effect.flip(lock.withLock(Effect.fail("no"), "k"))
        const interrupted = yield* Effect.forkChild(lock.withLock(Effect.never, "k"))
        yield* until(() => store.count("attempt") === 4)
        yield* Fiber.interrupt(interrupted)
        assert.deepStrictEqual(lines, [])
      })
    ))
})
