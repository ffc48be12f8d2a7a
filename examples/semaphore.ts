// A service that bears three callers at once, wherever they run; a big job among them; and a limit that changes while it runs.
// Run it with `npm run build && node_modules/.bin/node examples/semaphore.ts`, with or without REDIS_URL.
import { DistributedSemaphore, LockStore, Permits } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Fiber, Latch, Layer, Option } from "effect"

const StoreLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" })
    : LockStore.layerMemory
}))

const service = DistributedSemaphore.make("demo:service", { limit: 3, ttl: "10 seconds", waitTimeout: "30 seconds" })

/** The service. It knows how many are calling it, which in real life nobody does. */
const load = { now: 0, most: 0 }

const call = Effect.acquireUseRelease(
  Effect.sync(() => load.most = Math.max(load.most, ++load.now)),
  () => Effect.sleep("100 millis"),
  () => Effect.sync(() => load.now--)
)

const many = <E, R>(work: Effect.Effect<void, E, R>) =>
  Effect.forEach(Array.from({ length: 12 }), () => work, { concurrency: "unbounded", discard: true })

const mostDuring = <E, R>(work: Effect.Effect<void, E, R>) =>
  Effect.suspend(() => {
    load.most = 0
    return Effect.map(work, () => load.most)
  })

/** Returns when so many wait. */
const waiting = (count: number) =>
  Effect.repeat(Effect.delay(service.inspect, 20), { until: ({ waiters }) => waiters.length === count })

const program = Effect.gen(function*() {
  yield* Console.log(`12 callers without a semaphore: ${yield* mostDuring(many(call))} at once`)
  yield* Console.log(
    `12 callers under withPermit:    ${yield* mostDuring(many(call.pipe(service.withPermit)))} at once`
  )

  yield* Console.log("\nA job that needs all three permits comes while one is in use; a small call comes after it.")
  const order: Array<string> = []
  const does = (name: string) => Effect.sync(() => order.push(name))
  const end = yield* Latch.make()
  const begun = yield* Latch.make()
  const first = yield* Effect.forkChild(
    service.withPermit(does("first call").pipe(Effect.andThen(begun.open), Effect.andThen(end.await)))
  )
  yield* begun.await
  const big = yield* Effect.forkChild(service.withPermits(does("big job"), 3))
  yield* waiting(1)
  const skipped = yield* service.withPermitsIfAvailable(does("impatient call"), 1)
  yield* Console.log(`Two permits are free, but somebody waits: ${Option.isNone(skipped) ? "not available" : "got in"}`)
  const second = yield* Effect.forkChild(service.withPermit(does("second call")))
  yield* waiting(2)
  yield* end.open
  yield* Fiber.joinAll([first, big, second])
  yield* Console.log(`Order: ${order.join(", ")}`)

  yield* service.setLimit(6)
  yield* Console.log(`\nThe service has grown: ${yield* mostDuring(many(call.pipe(service.withPermit)))} at once`)
  yield* service.setLimit(3)

  const error = yield* Effect.flip(service.withPermits(2)(service.withPermits(2)(Effect.void)))
  yield* Console.log(`\nTwo of three, and inside of that two more: ${error._tag}, instead of waiting for ever`)
})

program.pipe(Effect.provide(Permits.layer().pipe(Layer.provide(StoreLive))), NodeRuntime.runMain)
