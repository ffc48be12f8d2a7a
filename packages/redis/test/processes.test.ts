import { LockHistory, RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, FileSystem, Stream } from "effect"
import { type Client, connect, hold, keysOf, leftovers, queued, until } from "./support/client.ts"
import { type Handle, kill, start } from "./support/workers.ts"
import type { Report } from "./workers/worker.ts"

const reportOf = ({ stdout }: Handle) =>
  stdout.pipe(
    Stream.decodeText(),
    Stream.mkString,
    Effect.map((text) => JSON.parse(/^\{"acknowledged.*$/m.exec(text)![0]) as Report)
  )

/** Held for longer than its ttl, a lease was renewed: the process knows that it has it. */
const isHeldBy = ({ store }: Pick<Client, "store">, key: string, pid: number, ttl: number) =>
  Effect.map(
    store.inspect(key),
    ({ holders: [holder] }) => holder !== undefined && holder.metadata["pid"] === String(pid) && holder.heldFor > ttl
  )

const soakMillis = Number(process.env["EFFECT_LOCK_SOAK_MILLIS"] ?? 20_000)

describe("processes", () => {
  it.live(
    "G1, G2, G10: processes that contend for one key lose no update, in the order of their tokens and of their queueing",
    () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const fs = yield* FileSystem.FileSystem
        const dir = yield* fs.makeTempDirectoryScoped({ prefix: "effect-lock-history-" })
        const fibers = 8
        const names = ["a", "b", "c", "d"]
        const workers = yield* Effect.forEach(
          names,
          (name) =>
            start({
              kind: "contend",
              name,
              url: server.url,
              key: "the key",
              fibers,
              // A grant lives for three of these until it is confirmed.
              heartbeat: 5000,
              millis: soakMillis,
              history: `${dir}/${name}`
            }),
          { concurrency: "unbounded" }
        )
        const reports = yield* Effect.forEach(workers, reportOf, { concurrency: "unbounded" })

        assert.deepStrictEqual(reports.flatMap(({ failures }) => failures), [])
        const acknowledged = reports.reduce((sum, report) => sum + report.acknowledged, 0)
        assert.strictEqual(Number(yield* server.command("GET", "counter")), acknowledged)
        for (const { turns } of reports) {
          assert.lengthOf(turns, fibers)
          for (const count of turns) assert.isAbove(count, 0)
        }

        const events = (yield* Effect.forEach(names, (name) =>
          Effect.flatMap(fs.readFileString(`${dir}/${name}`), LockHistory.parse))).flat()
        assert.deepStrictEqual(LockHistory.check(events), [])
        const { grants, longestWait } = LockHistory.stats(events)
        assert.strictEqual(grants.size, names.length * fibers / 2)
        const recorded = [...grants.values()].reduce((sum, count) =>
          sum + count, 0)
        // The check is only worth what it had to look at.
        assert.isAbove(recorded, 32)
        assert.isAbove(
          events.filter(({ kind }) =>
            kind === "enqueued"
          ).length,
          recorded / 2
        )
        assert.isBelow(Duration.toMillis(longestWait), soakMillis)
        assert.deepStrictEqual(yield* leftovers(server, "the key"), [])
      }).pipe(Effect.provide(NodeServices.layer)),
    soakMillis + 60_000
  )

  it.live("G9: the queue passes over a process that was killed while it waited", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const holder = yield* hold(client, "k")
      yield* holder.entered
      const doomed = yield* start({ kind: "hold", name: "doomed", url: server.url, key: "k", heartbeat: 100 })
      yield* queued(client, "k", 1)
      const waiter = yield* hold(client, "k")
      yield* queued(client, "k", 2)
      yield* kill(doomed)
      // Three heartbeats of its own after the last one that the server has seen.
      const alive = Effect.gen(function*() {
        const [seconds, micros] = (yield* server.command("TIME")) as [string, string]
        return yield* server.command(
          "ZCOUNT",
          keysOf("k")[3]!,
          `${seconds}${micros.padStart(6, "0").slice(0, 3)}`,
          "+inf"
        )
      })
      yield* until(Effect.map(alive, (count) => count === 1), "only one client counts as alive")
      const monitor = yield* server.monitor
      yield* holder.leave
      yield* waiter.entered
      const published = (yield* monitor.all).filter(({ command }) => command[0]!.toLowerCase() === "publish")
      assert.lengthOf(published, 1, "nothing was offered to the dead")
      yield* waiter.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("G9: an offer to a process that was killed just before it is passed on when it runs out", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const holder = yield* hold(client, "k")
      yield* holder.entered
      const doomed = yield* start({ kind: "hold", name: "doomed", url: server.url, key: "k", heartbeat: 500 })
      yield* queued(client, "k", 1)
      const waiter = yield* hold(client, "k", { waitTimeout: "30 seconds" })
      yield* queued(client, "k", 2)
      yield* kill(doomed)
      yield* holder.leave
      yield* waiter.entered
      yield* waiter.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("G9: a key whose holder was killed goes to the next waiter after the ttl, and not before", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      // Longer than a machine that is shared stands still between two renewals.
      const ttl = 6000
      const doomed = yield* start({ kind: "hold", name: "doomed", url: server.url, key: "k", ttl })
      yield* until(isHeldBy(client, "k", doomed.pid, ttl), "the process holds the key")
      const [before] = (yield* client.store.inspect("k")).holders
      assert.strictEqual(before!.metadata["worker"], "doomed")
      const waiter = yield* hold(client, "k")
      yield* queued(client, "k", 1)
      yield* kill(doomed)
      const killedAt = performance.now()
      const [left] = (yield* client.store.inspect("k")).holders
      yield* waiter.entered
      // From its last renewal on, which the server dates.
      assert.isAtLeast(performance.now() - killedAt, left!.timeLeft - 100)
      assert.isBelow(performance.now() - killedAt, ttl + 10_000)
      const [after] = (yield* client.store.inspect("k")).holders
      assert.isAbove(after!.token, before!.token)
      yield* waiter.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(Effect.provide(NodeServices.layer)))

  it.live("G3, G5: a process that was stopped for longer than its ttl knows that it lost, and harms nobody", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.make()
      const client = yield* connect(server)
      const ttl = 6000
      const stopped = yield* start({ kind: "hold", name: "stopped", url: server.url, key: "k", ttl })
      yield* until(isHeldBy(client, "k", stopped.pid, ttl), "the process holds the key")
      process.kill(stopped.pid, "SIGSTOP")
      const next = yield* hold(client, "k")
      yield* next.entered
      const [before] = (yield* client.store.inspect("k")).holders
      process.kill(stopped.pid, "SIGCONT")
      const { failures } = yield* reportOf(stopped)
      assert.match(failures.join(), /LockLost.*(Expired|not renewed|does not know)/)
      yield* Effect.exit(stopped.exitCode)
      const [after] = (yield* client.store.inspect("k")).holders
      assert.strictEqual(after!.holderId, before!.holderId)
      assert.strictEqual(after!.token, before!.token)
      yield* next.leave
      assert.deepStrictEqual(yield* leftovers(server, "k"), [])
    }).pipe(Effect.provide(NodeServices.layer)))
})
