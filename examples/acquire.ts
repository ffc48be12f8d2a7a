// A lease as one resource among others of a scope, and what is observed of it without asking.
// Run it with `npm run build && node_modules/.bin/node examples/acquire.ts`, with or without REDIS_URL.
import { Fencing, Lock, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Latch, Layer, Metric, Option, Schedule, Tracer } from "effect"

const StoreLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" })
    : LockStore.layerMemory
}))

/** A resource that refuses whoever is late. */
const archive: Array<string> = []
const fence = Effect.runSync(Fencing.makeMemory)

const append = (line: string, token: Fencing.Token) =>
  Effect.sync(() => archive.push(line)).pipe(fence.guard("archive", token))

const openDraft = (author: string) =>
  Effect.acquireRelease(
    Effect.as(Console.log(`${author} opens a draft`), `${author}'s draft`),
    () => Console.log(`${author} closes the draft`)
  )

/** Opens when somebody has looked who holds the lock, and who waits. */
const looked = Latch.makeUnsafe()

const publish = Effect.fn("publish")(function*(author: string) {
  const lease = yield* Lock.acquire("demo:report", { waitTimeout: "10 seconds", holder: { author } })
  // Opened after the lease, so closed before its release.
  const draft = yield* openDraft(author)
  // `acquire` interrupts nothing by itself: `protect` does, when the lease is lost.
  yield* Effect.gen(function*() {
    yield* looked.await
    yield* append(`${draft}, token ${lease.token}`, lease)
  }).pipe(lease.protect)
  return lease.token
}, Effect.scoped)

const whoIsThere = Effect.gen(function*() {
  const { holders, waiters } = yield* Effect.repeat(Lock.inspect("demo:report"), {
    until: ({ waiters }) => waiters.length === 1,
    schedule: Schedule.spaced("20 millis")
  })
  const authors = (all: typeof holders | typeof waiters) => all.map(({ metadata }) => metadata["author"]).join(", ")
  yield* Console.log(`held by ${authors(holders)}, waited for by ${authors(waiters)}`)
  yield* looked.open
})

const spans: Array<Tracer.NativeSpan> = []
const tracer = Tracer.make({
  span: (options) => {
    const span = new Tracer.NativeSpan(options)
    spans.push(span)
    return span
  }
})

const program = Effect.gen(function*() {
  const [token] = yield* Effect.all([publish("Ada"), publish("Ben"), whoIsThere], { concurrency: "unbounded" })
  const late = yield* Effect.flip(append("Ada again, much later", token))
  yield* Console.log(`A late write is refused: ${late._tag}\n\n${archive.join("\n")}\n\nSpans`)
  for (const { attributes, name } of spans.filter(({ name }) => name.startsWith("Lock."))) {
    yield* Console.log(`  ${name} ${JSON.stringify(Object.fromEntries(attributes))}`)
  }
  yield* Console.log("\nMetrics")
  for (const { attributes, id, state } of yield* Metric.snapshot) {
    const labels = JSON.stringify(attributes ?? {})
    const value = "max" in state
      ? `${state.count} times, at most ${Math.round(state.max)} ms`
      : "value" in state
      ? state.value
      : "count" in state
      ? state.count
      : ""
    yield* Console.log(`  ${id} ${labels} ${value}`)
  }
})

program.pipe(
  Effect.withTracer(tracer),
  Effect.provide(Lock.layer().pipe(Layer.provide(StoreLive))),
  NodeRuntime.runMain
)
