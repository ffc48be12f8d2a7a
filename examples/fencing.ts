// A holder is stopped for longer than its lease, in the middle of its work, and then writes. No lock can hold that write
// back; the resource refuses it. In memory the whole process is stopped. With REDIS_URL the holder is a process of its own,
// stopped by SIGSTOP, and the account is on Redis.
// Run it with `npm run build && node_modules/.bin/node examples/fencing.ts`, with or without REDIS_URL.
import { Fencing, Lock, LockStore } from "@effect-lock/core"
import { FencedRedis, RedisLockStore } from "@effect-lock/redis"
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Config, Console, Context, Deferred, Effect, Fiber, Layer, Logger, Option, Redacted, Stream } from "effect"
import { ChildProcess } from "effect/process"
import { Redis } from "ioredis"
import { fileURLToPath } from "node:url"
import { Screen } from "./support/Screen.ts"

const [, , role, resource = `demo:account:${process.pid}`] = process.argv

/** The resource. Each access carries a token, and is refused if a greater one has been here. */
class Account extends Context.Service<Account, {
  readonly read: (token: Fencing.Token) => Effect.Effect<number, FencedRedis.FencedError>
  readonly write: (token: Fencing.Token, balance: number) => Effect.Effect<void, FencedRedis.FencedError>
}>()("@effect-lock/examples/Account") {
  static readonly layerMemory = Layer.effect(
    Account,
    Effect.map(Fencing.makeMemory, (fence) => {
      let balance = 100
      return {
        read: (token) => Effect.sync(() => balance).pipe(fence.guard(resource, token)),
        write: (token, next) => Effect.sync(() => void (balance = next)).pipe(fence.guard(resource, token))
      }
    })
  )

  static readonly layerRedis = Effect.fnUntraced(function*(url: Redacted.Redacted) {
    const redis = yield* Effect.acquireRelease(
      Effect.sync(() => new Redis(Redacted.value(url))),
      (redis) => Effect.sync(() => redis.disconnect())
    )
    const fenced = yield* FencedRedis.make(redis, { retention: "1 hour", commandTimeout: "5 seconds" })
    const key = `{${resource}}:balance`
    return Account.of({
      read: (token) => Effect.map(fenced.run(resource, token, [["GET", key]]), ([balance]) => Number(balance ?? 100)),
      write: (token, next) => Effect.asVoid(fenced.run(resource, token, [["SET", key, next, "EX", 60]]))
    })
  }, Layer.effect(Account))
}

const AccountLive = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.option(Config.Redacted("REDIS_URL"))
  return Option.isSome(url)
    ? Layer.merge(Account.layerRedis(url.value), RedisLockStore.layer({ url: url.value, commandTimeout: "5 seconds" }))
    : Layer.merge(Account.layerMemory, LockStore.layerMemory)
}))

const AppLive = Lock.layer({ ttl: "5 seconds", waitTimeout: "30 seconds" }).pipe(Layer.provideMerge(AccountLive))

/** What Ada says and when she may write is for others to see to, maybe in another process. */
const ada = Effect.fn("ada")(
  function*(says: (line: string) => Effect.Effect<void>, mayWrite: Effect.Effect<void>) {
    const account = yield* Account
    const lease = yield* Lock.acquire(resource, { holder: { worker: "Ada" } })
    const balance = yield* account.read(lease)
    yield* says(`reads ${balance}`)
    // A write that is on its way already: the loss of the lease does not interrupt it.
    yield* mayWrite.pipe(
      Effect.andThen(account.write(lease, balance + 10)),
      Effect.andThen(says(`writes ${balance + 10}`)),
      Effect.catchTag("StaleToken", ({ _tag, token }) => says(`is late with token ${token}: ${_tag}`)),
      Effect.uninterruptible,
      lease.protect,
      Effect.catchTag("LockLost", ({ _tag, reason }) => says(`is told: ${_tag}, ${reason}`))
    )
  },
  Effect.scoped
)

const ben = Effect.fn("ben")(function*() {
  const [account, screen] = [yield* Account, yield* Screen]
  yield* screen.asks("Ben")
  const lease = yield* Lock.acquire(resource, { holder: { worker: "Ben" } })
  // Reading shows the token: from here on Ada is refused.
  const balance = yield* account.read(lease)
  yield* screen.enters("Ben", `reads ${balance}`)
  yield* account.write(lease, balance + 50)
  yield* screen.leaves("Ben", `writes ${balance + 50}`)
  return balance + 50
}, Effect.scoped)

type Says = (line: string) => Effect.Effect<void>

/** Ada as part of this process, which is stopped as a whole. */
const adaInHere = Effect.fnUntraced(function*(says: Says) {
  const mayWrite = yield* Deferred.make<void>()
  return {
    ended: Effect.orDie(Fiber.join(yield* Effect.forkChild(ada(says, Deferred.await(mayWrite))))),
    stop: Effect.sync(() => void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5500)),
    resume: Effect.asVoid(Deferred.succeed(mayWrite, undefined))
  }
})

const adaElsewhere = Effect.fnUntraced(function*(says: Says) {
  const handle = yield* ChildProcess.make(process.execPath, [fileURLToPath(import.meta.url), "ada", resource], {
    extendEnv: true,
    stderr: "inherit"
  })
  const lines = handle.stdout.pipe(Stream.decodeText(), Stream.splitLines)
  const signal = (name: NodeJS.Signals) => Effect.sync(() => void process.kill(handle.pid, name))
  // A stopped process heeds no gentler signal.
  yield* Effect.addFinalizer(() => Effect.ignore(handle.kill({ killSignal: "SIGKILL" })))
  return {
    ended: Effect.orDie(Fiber.join(yield* Effect.forkChild(Stream.runForEach(lines, says)))),
    stop: signal("SIGSTOP"),
    resume: signal("SIGCONT")
  }
})

/** The process `adaElsewhere` starts. */
const adaAsProcess = Effect.gen(function*() {
  const resumed = Deferred.makeUnsafe<void>()
  process.once("SIGCONT", () => Effect.runFork(Deferred.succeed(resumed, undefined)))
  yield* ada(Console.log, Deferred.await(resumed))
}).pipe(Effect.provide(Logger.layer([])))

const story = Effect.gen(function*() {
  const [account, screen, store] = [yield* Account, yield* Screen, yield* LockStore.LockStore]
  yield* screen.part(
    "A late write",
    `Ada and Ben share an account of 100, under a lock with a ttl of 5 s in the ${store.name} store.`
  )
  const inside = yield* Deferred.make<void>()
  yield* screen.asks("Ada")
  const { ended, resume, stop } = yield* (store.name === "memory" ? adaInHere : adaElsewhere)((line) =>
    line.startsWith("reads")
      ? Effect.andThen(screen.enters("Ada", line), Deferred.succeed(inside, undefined))
      : screen.leaves("Ada", line)
  )
  yield* Effect.raceFirst(Deferred.await(inside), ended)
  const waiting = yield* Effect.forkChild(ben())
  yield* Effect.sleep("200 millis")
  yield* screen.note("Ada's process is stopped")
  yield* stop
  const expected = yield* Fiber.join(waiting)
  yield* screen.note("Ada goes on")
  yield* resume
  yield* ended

  const balance = yield* Effect.scoped(Effect.flatMap(Lock.acquire(resource), account.read))
  yield* Console.log(`
The balance is ${balance}, should be ${expected}. Ada's lease had run out, so Ben was right to go in, and Ada could not know.
What saved Ben's deposit is the account: it had seen Ben's token, which is the greater one.`)
}).pipe(
  Effect.scoped,
  Effect.provide([Screen.layer({ workers: ["Ada", "Ben"], key: resource }), Screen.logger, NodeServices.layer])
)

NodeRuntime.runMain(Effect.provide(role === "ada" ? adaAsProcess : story, AppLive))
