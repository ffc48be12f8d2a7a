import { assert, describe, it } from "@effect/vitest"
import { Context, Duration, Effect, Layer } from "effect"
import { Lock, LockError, LockOptions } from "../src/index.ts"
import { layer, make, setup } from "./support/TestStore.ts"

interface Case {
  readonly title: string
  readonly options: unknown
  readonly input: string
  /** What the error says of the value. */
  readonly value: string
}

const invalid: ReadonlyArray<Case> = [
  { title: "a ttl that is not a number", options: { ttl: NaN }, input: "ttl", value: "NaN" },
  { title: "a negative ttl", options: { ttl: -1 }, input: "ttl", value: "-1" },
  { title: "a ttl of zero", options: { ttl: 0 }, input: "ttl", value: "0" },
  { title: "a ttl below 10 milliseconds", options: { ttl: 9 }, input: "ttl", value: "9" },
  { title: "an infinite ttl", options: { ttl: Infinity }, input: "ttl", value: "Infinity" },
  { title: "an infinite ttl as text", options: { ttl: "Infinity" }, input: "ttl", value: "\"Infinity\"" },
  { title: "a ttl beyond what timers can do", options: { ttl: "25 days" }, input: "ttl", value: "\"25 days\"" },
  { title: "a ttl that is no duration", options: { ttl: "soon" }, input: "ttl", value: "\"soon\"" },
  { title: "a negative ttl as text", options: { ttl: "-5 seconds" }, input: "ttl", value: "\"-5 seconds\"" },
  { title: "a ttl with a negative part", options: { ttl: { seconds: -1 } }, input: "ttl", value: "{\"seconds\":-1}" },
  { title: "a ttl that is no Duration.Input", options: { ttl: true }, input: "ttl", value: "true" },
  {
    title: "a ttl that cannot be printed as a number",
    options: { ttl: Symbol("x") },
    input: "ttl",
    value: "Symbol(x)"
  },
  { title: "a ttl of null", options: { ttl: null }, input: "ttl", value: "null" },
  { title: "a waitTimeout that is not a number", options: { waitTimeout: NaN }, input: "waitTimeout", value: "NaN" },
  {
    title: "a waitTimeout with a part that is not a number",
    options: { waitTimeout: { seconds: NaN } },
    input: "waitTimeout",
    value: "{\"seconds\":NaN}"
  },
  { title: "a negative waitTimeout", options: { waitTimeout: -1 }, input: "waitTimeout", value: "-1" },
  { title: "a renewEvery of zero", options: { renewEvery: 0 }, input: "renewEvery", value: "0" },
  { title: "an infinite renewEvery", options: { renewEvery: Infinity }, input: "renewEvery", value: "Infinity" },
  {
    title: "a renewEvery as long as the ttl",
    options: { ttl: 500, renewEvery: 500 },
    input: "renewEvery",
    value: "500"
  },
  {
    title: "a renewEvery longer than the default ttl",
    options: { renewEvery: "1 hour" },
    input: "renewEvery",
    value: "\"1 hour\""
  },
  { title: "a releaseTimeout of zero", options: { releaseTimeout: 0 }, input: "releaseTimeout", value: "0" },
  {
    title: "an infinite releaseTimeout",
    options: { releaseTimeout: "Infinity" },
    input: "releaseTimeout",
    value: "\"Infinity\""
  },
  { title: "a maxHold of zero", options: { maxHold: 0 }, input: "maxHold", value: "0" },
  { title: "a maxHold that is not a number", options: { maxHold: NaN }, input: "maxHold", value: "NaN" },
  { title: "a negative minHold", options: { minHold: -5 }, input: "minHold", value: "-5" },
  { title: "an infinite minHold", options: { minHold: Infinity }, input: "minHold", value: "Infinity" },
  {
    title: "a minHold longer than maxHold",
    options: { minHold: "2 seconds", maxHold: "1 second" },
    input: "minHold",
    value: "\"2 seconds\""
  },
  { title: "a progressTimeout of zero", options: { progressTimeout: 0 }, input: "progressTimeout", value: "0" },
  { title: "a negative progressTimeout", options: { progressTimeout: -1 }, input: "progressTimeout", value: "-1" },
  {
    title: "a progressTimeout that is not a number",
    options: { progressTimeout: NaN },
    input: "progressTimeout",
    value: "NaN"
  },
  {
    title: "a progressTimeout that is no duration",
    options: { progressTimeout: "soon" },
    input: "progressTimeout",
    value: "\"soon\""
  },
  { title: "a priority between two steps", options: { priority: 0.5 }, input: "priority", value: "0.5" },
  { title: "a priority above 1000", options: { priority: 1001 }, input: "priority", value: "1001" },
  { title: "a priority below -1000", options: { priority: -1001 }, input: "priority", value: "-1001" },
  { title: "an infinite priority", options: { priority: Infinity }, input: "priority", value: "Infinity" },
  { title: "a priority that is not a number", options: { priority: NaN }, input: "priority", value: "NaN" },
  { title: "a negative maxWaiters", options: { maxWaiters: -1 }, input: "maxWaiters", value: "-1" },
  { title: "a maxWaiters between two numbers", options: { maxWaiters: 1.5 }, input: "maxWaiters", value: "1.5" },
  { title: "a maxWaiters that is not a number", options: { maxWaiters: NaN }, input: "maxWaiters", value: "NaN" },
  { title: "a maxWaiters that is text", options: { maxWaiters: "5" }, input: "maxWaiters", value: "\"5\"" },
  { title: "holder metadata that are not text", options: { holder: { job: 7 } }, input: "holder.job", value: "7" }
]

const invalidKeys = [
  { title: "an empty key", key: "", value: "\"\"" },
  { title: "a key of more than 1024 characters", key: "x".repeat(1025), value: `"${"x".repeat(40)}…"` },
  { title: "a key that is no text", key: 7, value: "7" },
  { title: "no key at all", key: undefined, value: "undefined" }
]

/** Every way to ask for a lock. */
const askers = (lock: Lock.Lock["Service"], key: string, options?: LockOptions.LockOptions) => [
  lock.withLock(Effect.die("must not run"), key, options),
  lock.withLockIfAvailable(Effect.die("must not run"), key, options),
  Effect.scoped(lock.acquire(key, options)),
  Effect.scoped(lock.tryAcquire(key, options))
]

const failure = (effect: Effect.Effect<unknown, unknown>) =>
  Effect.map(Effect.flip(effect), (error) => {
    assert.instanceOf(error, LockError.LockInvalid)
    return error
  })

describe("G12: LockInvalid names the option and its value, before anything is sent, for", () => {
  for (const { input, options, title, value } of invalid) {
    it.effect(title, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        for (const asking of askers(lock, "k", options as LockOptions.LockOptions)) {
          const error = yield* failure(asking)
          assert.strictEqual(error.input, input)
          assert.strictEqual(error.value, value)
          assert.include(error.message, `Invalid ${input} ${value}: `)
        }
        assert.deepStrictEqual(store.trace, [])
      }))
  }

  for (const { key, title, value } of invalidKeys) {
    it.effect(title, () =>
      Effect.gen(function*() {
        const { lock, store } = yield* setup()
        store.faults.inspect = () => Effect.die("must not be asked")
        for (const asking of [...askers(lock, key as string), lock.inspect(key as string)]) {
          const error = yield* failure(asking)
          assert.strictEqual(error.input, "key")
          assert.strictEqual(error.value, value)
        }
        assert.deepStrictEqual(store.trace, [])
      }))
  }

  for (const { input, options, title, value } of invalid) {
    it.effect(`a layer's defaults: ${title}`, () =>
      Effect.gen(function*() {
        const store = yield* make
        const error = yield* Effect.flip(
          Layer.build(Layer.provide(Lock.layer(options as LockOptions.LockOptions), layer(store)))
        )
        assert.strictEqual(error.input, input)
        assert.strictEqual(error.value, value)
        assert.deepStrictEqual(store.trace, [])
      }))
  }

  it.effect("an option that only the layer's defaults make invalid: the value in force is named", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup({ ttl: "1 minute", renewEvery: 1000, minHold: 1000 })
      const tooShort = yield* failure(lock.withLock(Effect.void, "k", { maxHold: 500 }))
      assert.deepStrictEqual([tooShort.input, tooShort.value], ["minHold", "1000"])
      const tooLate = yield* failure(lock.withLock(Effect.void, "k", { renewEvery: "1 minute" }))
      assert.deepStrictEqual([tooLate.input, tooLate.value], ["renewEvery", "\"1 minute\""])
    }))

  it.effect("the ttl of an extension", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup()
      const lease = yield* lock.acquire("k")
      for (const ttl of [NaN, -1, 0, Infinity]) {
        const error = yield* failure(lease.extend(ttl))
        assert.deepStrictEqual([error.input, error.value], ["ttl", String(ttl)])
      }
      assert.strictEqual(store.count("renew"), 0)
    }))
})

describe("options", () => {
  it.effect("leave any other text for a key", () =>
    Effect.gen(function*() {
      const { lock } = yield* setup()
      for (const key of ["a", "x".repeat(1024), "with spaces, {braces}, ünïcode and 🔒"]) {
        assert.strictEqual(yield* lock.withLock(lock.inspect(key), key).pipe(Effect.map(({ key }) => key)), key)
      }
    }))

  it.effect("are filled up from the layer's, and those from the defaults", () =>
    Effect.gen(function*() {
      const base = yield* LockOptions.resolve({ ttl: "1 minute", holder: { host: "a" } })
      assert.deepStrictEqual(base, { ...LockOptions.defaults, ttl: 60_000, holder: { host: "a" } })
      const resolved = yield* LockOptions.resolve({ waitTimeout: Duration.seconds(1), maxHold: "1 hour" }, base)
      assert.deepStrictEqual(resolved, { ...base, waitTimeout: 1000, maxHold: 3_600_000 })
      assert.strictEqual(yield* LockOptions.resolve(undefined, base), base)
    }))

  it.effect("that are explicitly undefined count as left out", () =>
    Effect.gen(function*() {
      const resolved = yield* LockOptions.resolve({ ttl: undefined, waitTimeout: undefined, holder: undefined })
      assert.deepStrictEqual(resolved, LockOptions.defaults)
    }))

  it.effect("round durations up to whole milliseconds", () =>
    Effect.gen(function*() {
      const { minHold, ttl, waitTimeout } = yield* LockOptions.resolve({ ttl: 10.2, waitTimeout: 0.1, minHold: 5n })
      assert.deepStrictEqual([ttl, waitTimeout, minHold], [11, 1, 1])
    }))

  it.effect("may be infinite where that has a meaning", () =>
    Effect.gen(function*() {
      const infinite = {
        waitTimeout: "Infinity",
        maxHold: Infinity,
        progressTimeout: Infinity,
        maxWaiters: Infinity
      } as const
      const { maxHold, maxWaiters, progressTimeout, waitTimeout } = yield* LockOptions.resolve(infinite)
      assert.deepStrictEqual(
        [maxHold, maxWaiters, progressTimeout, waitTimeout],
        Array.from({ length: 4 }, () => Infinity)
      )
    }))

  it.effect("of a call that shortens the ttl are not spoilt by a renewEvery made for the longer one", () =>
    Effect.gen(function*() {
      const { lock, store } = yield* setup({ ttl: "1 minute", renewEvery: "20 seconds" })
      yield* lock.withLock(Effect.void, "k", { ttl: "1 second" })
      assert.strictEqual(store.requests[0]?.ttl, 1000)
    }))

  it.effect("tell the store who asks: the store's own identity first, the caller's words last", () =>
    Effect.gen(function*() {
      const store = yield* make
      const service = { ...store.service, identity: { host: "h", pid: "1" } }
      const context = yield* Layer.build(Lock.layer().pipe(Layer.provide(layer({ ...store, service }))))
      const lock = Context.get(context, Lock.Lock)
      yield* lock.withLock(Effect.void, "k", { holder: { pid: "2", job: "x" } })
      assert.deepStrictEqual(store.requests[0]?.metadata, { host: "h", pid: "2", job: "x" })
    }))
})
