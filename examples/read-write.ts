// A price list that many read and few change. A repricing reads first, and writes only if it has to.
// Run it with `npm run build && node_modules/.bin/node examples/read-write.ts`, with or without REDIS_URL.
import { LockStore, Permits, ReadWriteLock } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Latch, Layer, Option } from "effect"

const StoreLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" })
    : LockStore.layerMemory
}))

const lock = ReadWriteLock.make("demo:prices", { ttl: "10 seconds", waitTimeout: "30 seconds" })

/** Two prices that must always be the same. */
const prices = { gross: 100, net: 100 }
const seen = { together: 0, most: 0, torn: 0 }

const read = Effect.gen(function*() {
  seen.most = Math.max(seen.most, ++seen.together)
  const { gross } = prices
  yield* Effect.sleep("50 millis")
  if (prices.net !== gross) seen.torn++
  seen.together--
})

const write = (price: number) =>
  Effect.gen(function*() {
    prices.gross = price
    yield* Effect.sleep("20 millis")
    prices.net = price
  })

const eightReadersAndTwoWriters = (
  reading: <E, R>(effect: Effect.Effect<void, E, R>) => Effect.Effect<void, unknown, R | Permits.Permits>,
  writing: typeof reading
) =>
  Effect.gen(function*() {
    Object.assign(seen, { together: 0, most: 0, torn: 0 })
    const readers = Array.from({ length: 8 }, (_, i) => Effect.delay(reading(read), 5 * i))
    const writers = [110, 120].map((price, i) => Effect.delay(writing(write(price)), 12 + 10 * i))
    yield* Effect.all([...readers, ...writers], { concurrency: "unbounded" })
    return `${seen.torn > 0 ? "some" : "no"} reads saw half a change; ${
      seen.most > 1 ? "readers were in together" : "one by one"
    }`
  })

/** Opens when Ada and Ben have both looked. */
const bothHaveLooked = Latch.makeUnsafe()
let looks = 0

/** Looks first; several do so at once, but only one of them can go on to write. */
const reprice = (name: string, price: number) =>
  lock.withReadLease((lease) =>
    Effect.gen(function*() {
      if (++looks === 2) yield* bothHaveLooked.open
      yield* bothHaveLooked.await
      if (prices.gross === price) return yield* Console.log(`  ${name}: ${price} already`)
      yield* Effect.scoped(Effect.gen(function*() {
        const writing = yield* lease.upgrade
        yield* writing.protect(write(price))
        yield* Console.log(`  ${name}: changed it to ${price}`)
      }))
      // A reader again: nobody can have changed it since.
      yield* read
    })
  ).pipe(
    Effect.tapErrorTag("LockUpgradeConflict", () =>
      Console.log(`  ${name}: somebody else is about to write, so looks again`)),
    Effect.retry({
      while: (error) =>
        error._tag === "LockUpgradeConflict"
    })
  )

const publish = lock.withWriteLease((lease) =>
  Effect.gen(function*() {
    yield* write(200)
    const reading = yield* lease.downgrade
    const others = yield* lock.inspect
    yield* Console.log(`  published as a writer, proofreads as a reader: ${others.holders[0]?.permits} permit`)
    yield* reading.check
  })
)

const program = Effect.gen(function*() {
  const asItComes = yield* eightReadersAndTwoWriters((effect) => effect, (effect) => effect)
  yield* Console.log(`Without a lock:       ${asItComes}`)
  const guarded = yield* eightReadersAndTwoWriters(lock.withRead, lock.withWrite)
  yield* Console.log(`Under ReadWriteLock:  ${guarded}`)

  yield* Console.log("\nAda and Ben read at the same time, and both want to write:")
  yield* Effect.all([reprice("Ada", 150), reprice("Ben", 150)], { concurrency: "unbounded" })

  yield* Console.log("\nDowngrade:")
  yield* publish
  yield* Console.log(`\nPrices: ${prices.gross} and ${prices.net}`)
})

program.pipe(Effect.provide(Permits.layer().pipe(Layer.provide(StoreLive))), NodeRuntime.runMain)
