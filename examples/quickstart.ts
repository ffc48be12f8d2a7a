// Four workers and one bank account. Run it with `npm run demo`, or on a server of yours with
// `REDIS_URL=redis://127.0.0.1:6379 npm run demo`.
import { Lock, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Effect, Fiber, Layer, Option } from "effect"
import { deleteLock } from "./support/administrator.ts"
import { Screen } from "./support/Screen.ts"

// Where locks live. This Layer is all that differs between one process and many.
const StoreLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" })
    : LockStore.layerMemory
}))

const LockLive = Lock.layer({ ttl: "10 seconds", waitTimeout: "30 seconds" }).pipe(Layer.provideMerge(StoreLive))

const workers = ["Ada", "Ben", "Cleo", "Dan"]
const key = "demo:account:7"

let balance = 100

/** Reads, thinks, writes: right only if nobody else does so meanwhile. */
const deposit = Effect.fn("deposit")(function*(worker: string) {
  const screen = yield* Screen
  const before = balance
  yield* screen.enters(worker, `reads ${before}`)
  yield* Effect.sleep("350 millis")
  balance = before + 10
  yield* screen.leaves(worker, `writes ${balance}`)
})

/** The same, one at a time. */
const guardedDeposit = Effect.fn("guardedDeposit")(function*(worker: string) {
  const screen = yield* Screen
  yield* screen.asks(worker)
  yield* deposit(worker).pipe(Lock.withLock(key, { holder: { worker } }))
})

const everyoneTwice = <E, R>(work: (worker: string) => Effect.Effect<void, E, R>) =>
  Effect.forEach(workers, (worker) => Effect.repeat(work(worker), { times: 1 }), { concurrency: "unbounded" })

/** A longer job under the same lock. It leaves a draft behind, unless it cleans up. */
const audit = Effect.fn("audit")(
  function*(worker: string) {
    const screen = yield* Screen
    yield* screen.enters(worker, "opens a draft")
    yield* Effect.addFinalizer(() => screen.leaves(worker, "finalizer: removes the draft"))
    for (let page = 1; page <= 40; page++) {
      yield* Effect.sleep("250 millis")
      yield* screen.does(worker, `reads page ${page} of 40`)
    }
  },
  Effect.scoped,
  Lock.withLock(key, { renewEvery: "500 millis", holder: { worker: "Ada" } })
)

const program = Effect.gen(function*() {
  const screen = yield* Screen
  const store = yield* LockStore.LockStore
  yield* Console.log(`Locks live in the ${store.name} store.   ██ inside   ░░ waits   ·· elsewhere`)

  yield* screen.part("1  Without a lock", "Each worker deposits 10, twice: the balance should go from 100 to 180.")
  yield* everyoneTwice(deposit)
  const unguarded = balance

  balance = 100
  yield* screen.part("2  The same work under Lock.withLock", "One at a time, in the order in which they asked.")
  yield* everyoneTwice(guardedDeposit)
  const guarded = balance

  yield* screen.part("3  A lease is lost", "Ada audits, Ben waits to deposit. An administrator deletes Ada's lock.")
  yield* screen.asks("Ada")
  const ada = yield* audit("Ada").pipe(
    Effect.catchTag("LockLost", ({ reason }) => screen.note(`Ada's audit has failed: LockLost, reason "${reason}"`)),
    Effect.forkChild({ startImmediately: true })
  )
  yield* Effect.sleep("100 millis")
  const ben = yield* Effect.forkChild(guardedDeposit("Ben"))
  yield* Effect.sleep("1200 millis")
  yield* screen.note("administrator: deletes the lock")
  yield* deleteLock(key)
  yield* Fiber.join(ada)
  yield* Fiber.join(ben)

  const howAdaWasTold = store.name === "memory"
    ? "Ada's next renewal, here every 500 ms, told her that the store no longer knew her."
    : "Ada was told that the store no longer knew her: by a push, or by her next renewal, here every 500 ms."
  yield* Console.log(`
Balance without a lock:    ${unguarded}, should be 180: ${(180 - unguarded) / 10} of 8 deposits are lost
Balance under the lock:    ${guarded}, should be 180
Balance after Ben's turn:  ${balance}, should be 190

${howAdaWasTold}
Until then two could be inside: a deleted lock protects nothing. Ben's token is the greater one, so an account that compares
tokens would refuse Ada.`)
})

const AppLive = Screen.layer({ workers, key }).pipe(
  Layer.provideMerge(LockLive),
  Layer.provideMerge(Screen.logger)
)

program.pipe(Effect.provide(AppLive), NodeRuntime.runMain)
