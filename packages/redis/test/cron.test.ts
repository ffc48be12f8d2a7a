import { RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { until } from "./support/client.ts"
import { type Handle, kill, makeLog, start } from "./support/workers.ts"
import type { TickEvent } from "./workers/worker.ts"

const places = {
  "one Redis": Effect.map(RedisServer.make(), ({ url }) => url),
  "a quorum of 3": Effect.map(RedisServer.makeQuorum(3), ({ voters }) => voters.map(({ server }) => server.url))
}

const range = (from: number, length: number) => Array.from({ length }, (_, i) => from + i)

describe("scheduled jobs among processes", () => {
  for (const [place, processes, ticks, kills] of [["one Redis", 8, 50, 4], ["a quorum of 3", 4, 15, 1]] as const) {
    it.live(
      `each of ${ticks} ticks runs once among ${processes} processes with clocks 2 seconds apart, unless its runner is killed, on ${place}`,
      () =>
        Effect.gen(function*() {
          const url = yield* places[place]
          const log = yield* makeLog
          const events = Effect.map(log.read, (text) =>
            text.split("\n").slice(0, -1).map((line) => JSON.parse(line) as TickEvent))
          const running = new Map<number, { readonly handle: Handle; readonly ahead: number }>()
          const begin = Effect.fnUntraced(function*(ahead: number) {
            const name = `${ahead} ${running.size}`
            const handle = yield* start({
              kind: "cron",
              name,
              url,
              key: "job",
              // A run is not lost where a busy machine stops its process for a while.
              ttl: 6000,
              millis: 300,
              ahead,
              history: log.file(name)
            })
            running.set(handle.pid, { handle, ahead })
          })
          for (let i = 0; i < processes; i++) {
            yield* begin(Math.round(2000 * i / (processes - 1)))
          }
          yield* until(
            Effect.map(events, (all) =>
              all.filter(({ kind }) => kind === "up").length === processes),
            "all are up"
          )
          // A tick that none of the clocks has come to.
          const first = Math.floor(Date.now() / 1000) + 3
          /** Of each who was killed, when that was on its own clock, in seconds. */
          const killed = new Map<number, number>()
          for (let i = 1; i <= kills; i++) {
            const from = first + Math.floor(ticks * i / (kills + 1))
            let runner: TickEvent | undefined
            yield* until(
              Effect.map(events, (all) => {
                const ended = new Set(all.filter(({ kind }) => kind === "ended").map(({ at }) => at))
                runner = all.find(({ at, kind, pid }) =>
                  kind === "begun" && at >= from && !ended.has(at) && !killed.has(pid)
                )
                return runner !== undefined
              }),
              `a run after ${from}`
            )
            const { ahead, handle } = running.get(runner!.pid)!
            yield* kill(handle)
            killed.set(runner!.pid, (Date.now() + ahead) / 1000)
            yield* begin(ahead)
          }
          yield* until(
            Effect.map(events, (all) => all.some(({ at, kind }) => kind === "ended" && at > first + ticks + 2)),
            "the last ticks end"
          )

          const all = yield* events
          const of = (kind: TickEvent["kind"], at: number) => all.filter((it) => it.kind === kind && it.at === at)
          assert.strictEqual(killed.size, kills)
          let lost = 0
          for (const at of range(first, ticks)) {
            const [claimed, begun, ended] = [of("claimed", at), of("begun", at), of("ended", at)]
            assert.isAtMost(claimed.length, 1, `claims of ${at}`)
            assert.isAtMost(begun.length, 1, `runs of ${at}`)
            if (ended.length === 1) continue
            lost++
            // Who is killed just when it claims cannot say so any more.
            const wasKilled = claimed.length === 1
              ? killed.has(claimed[0]!.pid)
              : Array.from(killed.values()).some((time) => Math.abs(time - at) < 3)
            assert.isTrue(wasKilled, `nobody was killed for the run of ${at}`)
          }
          assert.isAtLeast(lost, 1)
          const runs = all.filter(({ at, kind }) => kind === "begun" && at >= first)
          const tokens = runs.map(({ token }) => token!).toSorted((a, b) => a - b)
          assert.strictEqual(new Set(tokens).size, tokens.length)
          // More than one of them had a turn.
          assert.isAbove(new Set(runs.map(({ pid }) => pid)).size, kills)
        }).pipe(Effect.provide(NodeServices.layer)),
      300_000
    )
  }
})
