import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { Sentinel, SentinelOptions, Server } from "../RedisServer.ts"
import { make as makeServer } from "./redisServer.ts"
import type { RedisServerError } from "./redisServerError.ts"
import { askAll, until } from "./redisTopology.ts"

/** @internal */
export const make = Effect.fnUntraced(function*(
  options: SentinelOptions = {}
): Effect.fn.Return<Sentinel, RedisServerError, Scope.Scope> {
  const { binary, name = "effect-lock" } = options
  const count = { replicas: options.replicas ?? 2, sentinels: options.sentinels ?? 3 }
  const downAfter = Duration.toMillis(Duration.fromInputUnsafe(options.downAfter ?? "1 second"))

  const startServer = (...config: ReadonlyArray<string>) =>
    makeServer({
      binary,
      args: options.args,
      config: [
        "repl-diskless-sync yes",
        "repl-diskless-sync-delay 0",
        "repl-ping-replica-period 1",
        ...config,
        ...options.config ?? []
      ]
    })
  const startSentinel = (master: Server) =>
    makeServer({
      binary,
      args: ["--sentinel"],
      ready: "Sentinel ID is",
      config: [
        `sentinel monitor ${name} ${master.host} ${master.port} ${Math.floor(count.sentinels / 2) + 1}`,
        `sentinel down-after-milliseconds ${name} ${downAfter}`,
        `sentinel failover-timeout ${name} 5000`,
        `sentinel parallel-syncs ${name} ${Math.max(1, count.replicas)}`,
        ...options.sentinelConfig ?? []
      ]
    })

  const first = yield* startServer()
  const [replicas, sentinels] = yield* Effect.all([
    Effect.all(
      Array.from({ length: count.replicas }, () => startServer(`replicaof ${first.host} ${first.port}`)),
      { concurrency: "unbounded" }
    ),
    Effect.all(Array.from({ length: count.sentinels }, () => startSentinel(first)), { concurrency: "unbounded" })
  ], { concurrency: "unbounded" })
  const servers = [first, ...replicas]
  // Where it is possible (from version 7): find each other at once, and take no break when the machine was too busy.
  yield* askAll(sentinels, "SENTINEL", "DEBUG", "PUBLISH-PERIOD", "100", "INFO-PERIOD", "500", "TILT-TRIGGER", "30000")

  const checkSettled: Effect.Effect<Server, string> = Effect.gen(function*() {
    const [views, roles] = yield* Effect.all([
      askAll(sentinels, "SENTINEL", "MASTER", name),
      askAll(servers, "INFO", "replication")
    ], { concurrency: "unbounded" })
    const ports = new Set<number>()
    for (const { reply, server } of views) {
      const view = fields(reply)
      ports.add(Number(view.get("port")))
      if (view.get("flags") !== "master") return yield* Effect.fail(`${server.port} sees ${view.get("flags")}`)
      const others = Number(view.get("num-other-sentinels"))
      if (others !== sentinels.length - 1) return yield* Effect.fail(`${server.port} knows ${others} other sentinels`)
      const replicas = Number(view.get("num-slaves"))
      if (replicas < servers.length - 1) return yield* Effect.fail(`${server.port} knows ${replicas} replicas`)
    }
    const [port] = ports
    if (port === undefined) return yield* Effect.fail("no sentinel answers")
    if (ports.size > 1) return yield* Effect.fail("the sentinels disagree on the master")
    for (const { reply, server } of roles) {
      const info = String(reply)
      const isGood = server.port === port
        ? info.includes("role:master")
        : info.includes(`master_port:${port}\r`) && info.includes("master_link_status:up")
      if (!isGood) return yield* Effect.fail(`${server.port} does not ${server.port === port ? "lead" : "follow"} yet`)
    }
    const master = roles.find(({ server }) => server.port === port)
    return master === undefined ? yield* Effect.fail("the master does not answer") : master.server
  })
  const settled = until("the sentinels have settled", checkSettled)
  yield* settled
  // A failover on demand is undone by a Sentinel that hears nothing of it within four of these periods, and the one that leads
  // it may need more than a second to find out itself.
  yield* askAll(sentinels, "SENTINEL", "DEBUG", "PUBLISH-PERIOD", "500")

  return {
    servers,
    sentinels,
    addresses: sentinels.map(({ host, port }) => ({ host, port })),
    name,
    master: until(
      "the sentinels know a master",
      Effect.flatMap(askAll(sentinels, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name), ([answer]) => {
        const master = servers.find(({ port }) => port === Number((answer?.reply as ReadonlyArray<string> | null)?.[1]))
        return master === undefined ? Effect.fail("no sentinel knows one") : Effect.succeed(master)
      })
    ),
    settled: Effect.asVoid(settled),
    failover: Effect.gen(function*() {
      const before = yield* settled
      const successor = Effect.filterOrFail(
        checkSettled,
        (master) => master !== before,
        () => `${before.port} still leads`
      )
      // A Sentinel that finds no replica good enough gives it up again.
      return yield* until(
        "another server leads",
        Effect.gen(function*() {
          const [answer] = yield* askAll(sentinels, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
          if (answer !== undefined) yield* Effect.ignore(answer.server.command("SENTINEL", "FAILOVER", name))
          return yield* successor.pipe(
            Effect.retry(Schedule.spaced("20 millis").pipe(Schedule.upTo({ duration: "12 seconds" })))
          )
        })
      )
    })
  }
})

const fields = (reply: unknown): ReadonlyMap<string, string> => {
  const flat = reply as ReadonlyArray<string>
  return new Map(flat.flatMap((field, i): Array<[string, string]> => i % 2 === 0 ? [[field, flat[i + 1]!]] : []))
}
