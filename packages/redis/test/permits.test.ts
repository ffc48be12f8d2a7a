import { LockStore, Permits } from "@effect-lock/core"
import { LockHistory, RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, FileSystem, Layer } from "effect"
import { takeSteps } from "../../core/test/support/permitSteps.ts"
import { RedisLockStore } from "../src/index.ts"
import { leftovers, patience, until } from "./support/client.ts"
import { kill, startFile } from "./support/workers.ts"
import type { Task } from "./workers/permits.ts"

const start = (task: Task) => startFile("permits.ts", task)

const client = Effect.fnUntraced(function*(url: string) {
  const context = yield* Layer.build(
    Permits.layer().pipe(Layer.provideMerge(RedisLockStore.layer({ url, ...patience })))
  )
  return { permits: Context.get(context, Permits.Permits), store: Context.get(context, LockStore.PermitStore) }
})

describe("permits", () => {
  it.live(
    "G1: 20,000 random steps of three clients conserve permits, and nobody is beyond the limit at any instant",
    () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const clients = yield* Effect.replicateEffect(client(server.url), 3)
        yield* takeSteps(clients, 20_000)
        for (const key of ["a", "b", "c", "d"]) assert.deepStrictEqual(yield* leftovers(server, key), [])
      }),
    300_000
  )

  it.live(
    "G1, G9: five processes, of which eight are killed one by one, are never beyond the limit, and all permits come back",
    () =>
      Effect.gen(function*() {
        const server = yield* RedisServer.make()
        const fs = yield* FileSystem.FileSystem
        const dir = yield* fs.makeTempDirectoryScoped({ prefix: "effect-lock-permits-" })
        const [limit, key, ttl] = [5, "the key", 2000]
        const histories: Array<{ readonly file: string; killedAt?: bigint }> = []
        const begin = Effect.fnUntraced(function*() {
          const name = `p${histories.length}`
          const history: typeof histories[number] = { file: `${dir}/${name}` }
          histories.push(history)
          const process = yield* start({
            name,
            url: server.url,
            key,
            limit,
            ttl,
            heartbeat: 300,
            fibers: 4,
            history: history.file,
            stop: `${dir}/stop`
          })
          return { history, process }
        })
        const eventsOf = Effect.fnUntraced(function*({ file }: { readonly file: string }) {
          return (yield* fs.exists(file)) ? yield* Effect.flatMap(fs.readFileString(file), LockHistory.parse) : []
        })
        const running = yield* Effect.forEach([1, 2, 3, 4, 5], begin, { concurrency: "unbounded" })
        for (let kills = 0; kills < 8; kills++) {
          const { history, process: victim } = running.shift()!
          const entered = Effect.map(eventsOf(history), (events) => events.filter(({ kind }) => kind === "acquired"))
          yield* until(Effect.map(entered, ({ length }) => length >= 5), "the process has had permits")
          history.killedAt = process.hrtime.bigint()
          yield* kill(victim)
          running.push(yield* begin())
        }
        yield* until(
          Effect.map(
            Effect.forEach(running, ({ history }) => eventsOf(history)),
            (all) => all.every(({ length }) => length >= 80)
          ),
          "everybody has had permits"
        )
        yield* fs.writeFileString(`${dir}/stop`, "")
        for (const { process } of running) assert.strictEqual(yield* process.exitCode, 0)

        const events: Array<LockHistory.Event> = []
        for (const history of histories) {
          const own = yield* eventsOf(history)
          events.push(...own)
          const { killedAt } = history
          if (killedAt === undefined) continue
          // Whoever was inside then was inside until then.
          const ended = new Set(own.flatMap(({ kind, op }) => kind === "release" || kind === "lost" ? [op] : []))
          for (const { client, kind, op, time } of own) {
            if (kind !== "acquired" || ended.has(op) || time > killedAt) continue
            events.push({ kind: "lost", client, op, key, time: killedAt })
          }
        }
        assert.deepStrictEqual(LockHistory.check(events, { limit, fifo: false }), [])
        assert.isAbove(events.filter(({ kind }) => kind === "acquired").length, 100)

        const { permits } = yield* client(server.url)
        yield* Effect.scoped(
          permits.acquire({ key, permits: limit, limit, needs: limit, isShared: false }, { waitTimeout: "30 seconds" })
        )
        assert.deepStrictEqual(yield* leftovers(server, key), [])
      }).pipe(Effect.provide(NodeServices.layer)),
    300_000
  )
})
