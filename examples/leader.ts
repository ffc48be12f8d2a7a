// Two candidates for one post. The leader loses it to an administrator, the next one resigns; each time the other one leads
// at once, with a greater token. Candidates are fibers here; with REDIS_URL they could be processes on any machine.
// Run it with `npm run build && node_modules/.bin/node examples/leader.ts`, with or without REDIS_URL.
import { LeaderElection, Lock, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Fiber, Layer, Option, Schedule, Stream, SubscriptionRef } from "effect"

const StoreLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" })
    : LockStore.layerMemory
}))

const LockLive = Lock.layer({ ttl: "10 seconds" }).pipe(Layer.provide(StoreLive))

const key = "demo:indexer"

/** Work without an end of its own: whoever leads does it, from its beginning. */
const index = Effect.fn("index")(function*(name: string, token: number) {
  yield* Console.log(`${name} leads, token ${token}`)
  yield* Effect.addFinalizer(() => Console.log(`${name} closes the index`))
  return yield* Effect.never
}, Effect.scoped)

const campaign = Effect.fn("campaign")(function*(name: string) {
  const election = yield* LeaderElection.make(key, { holder: { name } })
  const fiber = yield* Effect.forkChild(election.run((lease) => index(name, lease.token)), { startImmediately: true })
  return { name, election, fiber }
})

const untilStatus = ({ election }: { readonly election: LeaderElection.LeaderElection }, status: string) =>
  SubscriptionRef.changes(election.status).pipe(Stream.takeUntil(({ _tag }) => _tag === status), Stream.runDrain)

const untilBenWaits = Effect.repeat(Lock.inspect(key), {
  until: ({ waiters }) => waiters.length === 1,
  schedule: Schedule.spaced("20 millis")
})

const program = Effect.gen(function*() {
  const ada = yield* campaign("Ada")
  yield* untilStatus(ada, "Leading")
  const ben = yield* campaign("Ben")
  const { leader } = ben.election
  yield* Console.log(`Ben knows who leads: ${Option.getOrThrow(yield* leader).metadata["name"]}`)
  yield* untilBenWaits

  yield* Console.log("An administrator takes the post away")
  yield* Effect.scoped(Lock.takeover(key))
  yield* untilStatus(ben, "Leading")
  yield* untilStatus(ada, "Follower")
  yield* Effect.sleep("500 millis")

  yield* Console.log("Ben is told to end")
  yield* Fiber.interrupt(ben.fiber)
  yield* untilStatus(ada, "Leading")
  yield* Effect.sleep("100 millis")
  yield* Fiber.interrupt(ada.fiber)
  yield* Console.log(`Nobody leads: ${Option.isNone(yield* leader)}`)
})

program.pipe(Effect.provide(LockLive), NodeRuntime.runMain)
