// A lock over three servers that share nothing: one of them may go, two may not.
// Run it with `npm run build && node_modules/.bin/node examples/quorum.ts`. It starts three servers of its own, or asks
// those of `REDIS_URLS=redis://one:6379,redis://two:6379,redis://three:6379`, from which it only cuts itself off.
import { Lock, type LockError } from "@effect-lock/core"
import { QuorumLockStore } from "@effect-lock/redis"
import * as FaultProxy from "@effect-lock/test-utils/FaultProxy"
import * as RedisServer from "@effect-lock/test-utils/RedisServer"
import { NodeRuntime } from "@effect/platform-node"
import { Config, Console, Deferred, Effect, Fiber, Layer, Logger, Option } from "effect"

interface Voter {
  readonly name: string
  readonly url: string
  readonly goes: Effect.Effect<void>
}

const startVoter = Effect.fn("startVoter")(function*(name: string) {
  const server = yield* RedisServer.make()
  return { name, url: server.url, goes: server.kill }
})

const findVoter = Effect.fn("findVoter")(function*(name: string, text: string) {
  const url = new URL(text)
  const proxy = yield* FaultProxy.make({ host: url.hostname, port: Number(url.port || 6379) })
  url.host = `${proxy.host}:${proxy.port}`
  return { name, url: url.href, goes: proxy.refuse }
})

const names = ["one", "two", "three"] as const

const openVoters = Effect.gen(function*() {
  const urls = Option.getOrUndefined(yield* Config.option(Config.String("REDIS_URLS")))?.split(",")
  return yield* Effect.all(
    names.map((name, i): ReturnType<typeof startVoter> | ReturnType<typeof findVoter> =>
      urls === undefined ? startVoter(name) : findVoter(name, urls[i] ?? "")
    ),
    { concurrency: "unbounded" }
  )
})

const ttl = 6000

/** Work that goes on for as long as it is alone. */
const settle = (begun: Deferred.Deferred<void>) =>
  Effect.scoped(Effect.gen(function*() {
    const lease = yield* Lock.acquire("demo:settle")
    yield* Console.log(`settling, with token ${lease.token}`)
    yield* Deferred.succeed(begun, undefined)
    return yield* Effect.never.pipe(Effect.onInterrupt(() => Console.log("settling is interrupted")), lease.protect)
  }))

const program = Effect.fn("program")(function*([first, second]: ReadonlyArray<Voter>) {
  const begun = yield* Deferred.make<void>()
  const settling = yield* Effect.forkChild(settle(begun))
  yield* Deferred.await(begun)

  yield* Console.log(`\nvoter ${first!.name} goes`)
  yield* first!.goes
  // For longer than a lease lives without being renewed.
  yield* Effect.sleep(1.5 * ttl)
  const { holders } = yield* Lock.inspect("demo:settle")
  yield* Console.log(`${holders.length} holder after ${1.5 * ttl} ms: two votes of three have renewed its lease`)
  yield* Lock.withLock(Console.log("another key is locked meanwhile"), "demo:other")

  yield* Console.log(`\nvoter ${second!.name} goes, too`)
  yield* second!.goes
  yield* Console.log(describe(yield* Effect.flip(Fiber.join(settling))))
  const failure = yield* Effect.flip(Lock.withLock(Effect.void, "demo:other"))
  yield* Console.log(`another key is not locked: ${describe(failure)}`)
})

const describe = (error: LockError.LockError): string =>
  error._tag === "LockStoreError" ? `${error.reason}, ${error.detail}` : `${error._tag}, ${firstOf(error.message)}`

const firstOf = (message: string): string => message.split("; ", 1)[0]!

/** What the library warns of, in one line each. */
const logger = Logger.make(({ message }) => {
  const [text] = Array.isArray(message) ? message : [message]
  console.log(`  log: ${firstOf(String(text))}`)
})

const main = Effect.scoped(Effect.gen(function*() {
  const voters = yield* openVoters
  const LockLive = Lock.layer({ ttl, releaseTimeout: "1 second" }).pipe(
    Layer.provide(
      QuorumLockStore.layer({ voters: voters.map(({ name, url }) => ({ name, url })), voterTimeout: "4 seconds" })
    )
  )
  yield* Effect.provide(program(voters), LockLive)
}))

main.pipe(Effect.provide(Logger.layer([logger])), NodeRuntime.runMain)
