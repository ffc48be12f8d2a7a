// Three workers have the same schedule. Each tick is run by one of them; a run that fails costs
// no other tick. Workers are fibers here; with REDIS_URL they could be processes on any machine.
// Run it with `npm run build && node_modules/.bin/node examples/cron.ts`, with or without REDIS_URL.
import { DistributedCron, Lock, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, DateTime, Effect, Latch, Layer, Option, Schema } from "effect"

const StoreLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" })
    : LockStore.layerMemory
}))

const LockLive = Lock.layer({ ttl: "3 seconds" }).pipe(Layer.provide(StoreLive))

class PrinterOnFire extends Schema.TaggedError<PrinterOnFire>()("PrinterOnFire", {}) {}

const printed: Array<string> = []
const enough = Latch.makeUnsafe()

const print = (worker: string) =>
  Effect.fn("print")(function*({ at, lease }: DistributedCron.Tick) {
    const time = DateTime.formatIso(at).slice(11, 19)
    printed.push(time)
    yield* Console.log(`${worker} prints the report of ${time}, token ${lease.token}`)
    if (printed.length === 2) return yield* new PrinterOnFire()
    yield* Effect.sleep("200 millis")
    if (printed.length > 3) yield* enough.open
  })

const work = (worker: string) =>
  DistributedCron.run(print(worker), "demo:report", "* * * * * *", { maxHold: "1 second" })

const program = Effect.gen(function*() {
  yield* Effect.all([work("Ada"), work("Ben"), work("Cleo")], { concurrency: "unbounded" }).pipe(
    Effect.raceFirst(enough.await)
  )
  yield* Console.log(`${printed.length} reports, ${new Set(printed).size} of them different`)

  const remind = Effect.as(Console.log("A reminder is sent"), true).pipe(
    Lock.once("demo:reminder", { within: "3 seconds" })
  )
  const sent = yield* Effect.all([remind, remind, remind], { concurrency: "unbounded" })
  yield* Console.log(`${sent.filter(Option.isSome).length} of ${sent.length} reminded`)
})

program.pipe(Effect.provide(LockLive), NodeRuntime.runMain)
