// How long work goes on after its lease is gone: taken over, or its key deleted, with a ttl of a minute. Run: npm run bench:loss
import { Lock } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { RedisServer } from "@effect-lock/test-utils"
import { Clock, Console, Context, Deferred, Effect, Fiber, Layer, References } from "effect"

const rounds = 20

const now = Clock.clockWith((clock) => Effect.sync(() => Number(clock.currentTimeNanosUnsafe()) / 1e6))

const program = Effect.gen(function*() {
  const { command, url } = yield* RedisServer.RedisServer
  // Two processes, as far as the server can tell.
  const client = Effect.map(
    Layer.build(Layer.fresh(Lock.layer({ ttl: "1 minute" }).pipe(Layer.provide(RedisLockStore.layer({ url }))))),
    Context.get(Lock.Lock)
  )
  const [holder, other] = yield* Effect.all([client, client])

  const causes: ReadonlyArray<readonly [name: string, Effect.Effect<unknown, unknown>]> = [
    ["Lock.takeover", Effect.scoped(other.takeover("k"))],
    ["DEL", command("DEL", "effect-lock:{k}")],
    ["UNLINK", command("UNLINK", "effect-lock:{k}")],
    ["FLUSHALL", command("FLUSHALL")]
  ]

  const interruption = (cause: Effect.Effect<unknown, unknown>) =>
    Effect.gen(function*() {
      const begun = yield* Deferred.make<void>()
      const interrupted = yield* Deferred.make<number>()
      const work = Deferred.succeed(begun, undefined).pipe(
        Effect.andThen(Effect.never),
        Effect.onInterrupt(() => Effect.flatMap(now, (at) => Deferred.succeed(interrupted, at)))
      )
      const fiber = yield* Effect.forkChild(Effect.flip(holder.withLock(work, "k")))
      yield* Deferred.await(begun)
      // A key is watched from 50 milliseconds after its grant on.
      yield* Effect.sleep(200)
      const since = yield* now
      yield* cause
      const at = yield* Deferred.await(interrupted)
      yield* Fiber.join(fiber)
      return at - since
    })

  yield* Console.log(`ms from the command to the interruption, of ${rounds}: min, median, max`)
  for (const [name, cause] of causes) {
    // The first one warms up.
    const all = (yield* Effect.replicateEffect(interruption(cause), rounds + 1)).slice(1).toSorted((a, b) => a - b)
    const figures = [all[0]!, all[Math.floor(rounds / 2)]!, all.at(-1)!]
    yield* Console.log(`${figures.map((it) => it.toFixed(1).padStart(8)).join("")}  ${name}`)
  }
})

await program.pipe(
  Effect.scoped,
  Effect.provide(RedisServer.RedisServer.layer()),
  // Each loss is logged as a warning.
  Effect.provideService(References.MinimumLogLevel, "Error"),
  Effect.runPromise
)
