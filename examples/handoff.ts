// A lock that outlives the request that took it: an HTTP handler acquires, hands its lease off as a ticket, and answers at
// once; a worker behind a queue adopts the ticket and does the work under it. With REDIS_URL the worker is another process.
// Run it with `npm run build && node_modules/.bin/node examples/handoff.ts`, with or without REDIS_URL.
import { LeaseTicket, Lock, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Config, Console, Effect, Layer, Option, Queue, Schema } from "effect"
import { FetchHttpClient, HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "effect/http"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"

const RedisUrl = Config.option(Config.Redacted("REDIS_URL"))

const LockLive = Lock.layer({ ttl: "30 seconds" }).pipe(
  Layer.provide(Layer.unwrap(Effect.map(
    RedisUrl,
    Option.match({
      onNone: () => LockStore.layerMemory,
      onSome: (url) => RedisLockStore.layer({ url, commandTimeout: "5 seconds" })
    })
  )))
)

const TicketFromJson = Schema.fromJsonString(LeaseTicket.LeaseTicket)

/** What the worker does with a ticket, in whatever process it runs. */
const work = Effect.fn("work")(function*(message: string) {
  const ticket = yield* Schema.decodeUnknownEffect(TicketFromJson)(message)
  const lease = yield* Lock.adopt(ticket)
  yield* Console.log(`worker   ${process.pid} adopted ${lease.key}, token ${lease.token} after ${ticket.token}`)
  yield* lease.protect(Effect.sleep("1 second"))
  yield* Console.log(`worker   ${process.pid} is done`)
}, Effect.scoped)

/** Between handler and worker, as a broker would carry it. */
const Jobs = Queue.unbounded<string>()

const routes = (jobs: Queue.Queue<string>) =>
  HttpRouter.add(
    "POST",
    "/reports",
    Effect.gen(function*() {
      const lease = yield* Lock.tryAcquire("demo:report")
      if (Option.isNone(lease)) return HttpServerResponse.text("a report is being made already", { status: 409 })
      const ticket = yield* lease.value.handOff
      yield* Queue.offer(jobs, Schema.encodeSync(TicketFromJson)(ticket))
      return HttpServerResponse.text("accepted", { status: 202 })
    }).pipe(Effect.scoped, Effect.orDie)
  )

const inAnotherProcess = (message: string) =>
  ChildProcessSpawner.ChildProcessSpawner.use((spawner) =>
    spawner.string(
      ChildProcess.make(process.execPath, [fileURLToPath(import.meta.url), "worker", message], {
        extendEnv: true,
        stderr: "inherit"
      })
    )
  ).pipe(Effect.flatMap((output) => Console.log(output.trimEnd())))

const program = Effect.gen(function*() {
  const jobs = yield* Jobs
  const isShared = Option.isSome(yield* RedisUrl)
  const context = yield* Layer.build(
    HttpRouter.serve(routes(jobs), { disableLogger: true, disableListenLog: true }).pipe(
      Layer.provideMerge(NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" }))
    )
  )
  const post = Effect.gen(function*() {
    const url = yield* HttpServer.addressFormattedWith(Effect.succeed)
    const response = yield* HttpClient.post(`${url}/reports`)
    yield* Console.log(`handler  ${process.pid} answers ${response.status}: ${yield* response.text}`)
  }).pipe(Effect.provide(context))

  yield* post
  // The lease is nobody's until the worker adopts it, and still the key is taken.
  yield* post
  const message = yield* Queue.take(jobs)
  yield* isShared ? inAnotherProcess(message) : work(message)
  yield* post
  const again = yield* Effect.exit(work(message))
  yield* Console.log(`a ticket is good for one adoption: ${String(again)}`)
  yield* work(yield* Queue.take(jobs))
})

const main = process.argv[2] === "worker"
  ? work(process.argv[3]!)
  : Effect.scoped(program).pipe(Effect.provide(Layer.mergeAll(NodeServices.layer, FetchHttpClient.layer)))

NodeRuntime.runMain(Effect.provide(main, LockLive))
