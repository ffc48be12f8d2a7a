// Acquire + release beside raw ioredis (SET NX PX, then a compare-and-delete script), on a real server started for it.
// Everything runs interleaved in one process; what counts are the ratios. Run: npm run bench
import { Lock } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { RedisServer } from "@effect-lock/test-utils"
import { Array, Console, Duration, Effect, Layer } from "effect"
import { Redis } from "ioredis"

const rounds = 7
const compareAndDelete =
  "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"

const openRaw = (url: string, enableAutoPipelining: boolean) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const redis = new Redis(url, { enableAutoPipelining })
      const digest = (await redis.script("LOAD", compareAndDelete)) as string
      const cycle = async (key: string) => {
        await redis.set(key, "me", "PX", 30_000, "NX")
        await redis.evalsha(digest, 1, key, "me")
      }
      return { cycle, close: () => redis.disconnect() }
    }),
    (raw) => Effect.sync(raw.close)
  )

const timed = <A, E, R>(cycles: number, work: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.timed(work), ([duration]) => Duration.toMillis(duration) * 1000 / cycles)

const median = (values: ReadonlyArray<number>) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!

const program = Effect.gen(function*() {
  const { url } = yield* RedisServer.RedisServer
  const raw = yield* openRaw(url, false)
  const rawPipelined = yield* openRaw(url, true)

  const locked = (key: string) => Lock.withLock(Effect.void, key)
  const rawly = (key: string) => Effect.promise(() => raw.cycle(key))
  const pipelined = (key: string) => Effect.promise(() => rawPipelined.cycle(key))

  const one = (cycle: (key: string) => Effect.Effect<unknown, unknown, Lock.Lock>) =>
    timed(2000, Effect.repeat(cycle("alone"), { times: 1999 }))
  const many = (cycle: (key: string) => Effect.Effect<unknown, unknown, Lock.Lock>) =>
    timed(
      64 * 100,
      Effect.forEach(Array.range(1, 64), (n) => Effect.repeat(cycle(`key:${n}`), { times: 99 }), {
        concurrency: "unbounded",
        discard: true
      })
    )
  const contended = timed(
    8 * 250,
    Effect.forEach(Array.range(1, 8), () => Effect.repeat(locked("contended"), { times: 249 }), {
      concurrency: "unbounded",
      discard: true
    })
  )

  const rows: Record<string, Array<number>> = {}
  const record = (name: string, micros: number) => (rows[name] ??= []).push(micros)
  // The first round warms up.
  for (let round = 0; round <= rounds; round++) {
    const results = [
      ["one caller · raw ioredis", yield* one(rawly)],
      ["one caller · withLock", yield* one(locked)],
      ["64 callers, own keys · raw ioredis", yield* many(rawly)],
      ["64 callers, own keys · raw ioredis, auto-pipelining", yield* many(pipelined)],
      ["64 callers, own keys · withLock", yield* many(locked)],
      ["8 callers, one key, first come first served · withLock", yield* contended]
    ] as const
    if (round > 0) { for (const [name, micros] of results) record(name, micros) }
  }
  const base = median(rows["one caller · raw ioredis"]!)
  const baseMany = median(rows["64 callers, own keys · raw ioredis"]!)
  yield* Console.log(`µs per acquire + release, median of ${rounds} rounds (min to max), and × raw`)
  for (const [name, values] of Object.entries(rows)) {
    const middle = median(values)
    const ratio = middle / (name.startsWith("64") ? baseMany : base)
    yield* Console.log(
      `${middle.toFixed(1).padStart(8)}  (${Math.min(...values).toFixed(1)} to ${Math.max(...values).toFixed(1)})  ` +
        `× ${ratio.toFixed(2)}  ${name}`
    )
  }
})

const LockLive = Lock.layer().pipe(
  Layer.provide(Layer.unwrap(Effect.map(RedisServer.RedisServer, ({ url }) => RedisLockStore.layer({ url }))))
)

await program.pipe(
  Effect.scoped,
  Effect.provide(LockLive.pipe(Layer.provideMerge(RedisServer.RedisServer.layer()))),
  Effect.runPromise
)
