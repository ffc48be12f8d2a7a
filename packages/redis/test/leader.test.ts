import { LockHistory, RedisServer } from "@effect-lock/test-utils"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { QuorumLockStore, RedisLockStore } from "../src/index.ts"
import { build, type Client, patience, until } from "./support/client.ts"
import { type Handle, kill, makeLog, start } from "./support/workers.ts"

const key = "leader"
const ttl = 1500
const heartbeat = 500
const candidates = 5

/** Where leaders are elected, and a client that looks on. */
const places = {
  "one Redis": Effect.gen(function*() {
    const { url } = yield* RedisServer.make()
    return { url, client: yield* build(RedisLockStore.layer({ url, ...patience })) }
  }),
  "a quorum of 3": Effect.gen(function*() {
    const { voters } = yield* RedisServer.makeQuorum(3)
    const urls = voters.map(({ server }) => server.url)
    return {
      url: urls,
      client: yield* build(
        QuorumLockStore.layer({ voters: urls.map((url) => ({ url })), voterTimeout: "5 seconds" }).pipe(Layer.orDie)
      )
    }
  })
}

type Acquired = Extract<LockHistory.Event, { readonly kind: "acquired" }>

/** Processes that campaign, and what they have written down. */
const campaign = Effect.fnUntraced(function*(
  url: string | ReadonlyArray<string>,
  options: { readonly ttl: number; readonly heartbeat: number } = { ttl, heartbeat }
) {
  const log = yield* makeLog
  const processes = new Map<string, Handle>()
  const events = Effect.flatMap(log.read, LockHistory.parse)
  return {
    processes,
    events,
    join: Effect.gen(function*() {
      const name = `process ${processes.size}`
      processes.set(
        name,
        yield* start({ kind: "lead", name, url, key, ...options, history: log.file(name) })
      )
    }),
    /** Who leads now, by its own account and the store's. */
    leaderAfter: Effect.fnUntraced(function*(token: number, { store }: Client) {
      let found: Acquired | undefined
      yield* until(
        Effect.gen(function*() {
          const [holder] = (yield* store.inspect(key)).holders
          found = (yield* events).find((event): event is Acquired =>
            event.kind === "acquired" && event.token > token && event.token === holder?.token
          )
          return found !== undefined
        }),
        `a leader after token ${token}`
      )
      return found!
    })
  }
})

/** Of all that ever led, in the order in which they did. */
const assertOneAtATime = (events: ReadonlyArray<LockHistory.Event>, atLeast: number) => {
  assert.deepStrictEqual(LockHistory.check(events, { fifo: false }), [])
  const terms = events.filter((event) => event.kind === "acquired").toSorted((a, b) => a.time < b.time ? -1 : 1)
  assert.isAtLeast(terms.length, atLeast)
  const tokens = terms.map(({ token }) => token)
  assert.deepStrictEqual(tokens, Array.from(new Set(tokens)).toSorted((a, b) => a - b))
}

const millisSince = (time: bigint, event: LockHistory.Event) => Number(event.time - time) / 1e6

describe("leader election among processes", () => {
  for (const [place, kills] of [["one Redis", 10], ["a quorum of 3", 4]] as const) {
    it.live(
      `G1, G2, G9: a leader that is killed is followed by one other, within ttl and a heartbeat, on ${place}`,
      () =>
        Effect.gen(function*() {
          const { client, url } = yield* places[place]
          const { events, join, leaderAfter, processes } = yield* campaign(url)
          for (let i = 0; i < candidates; i++) yield* join
          let leader = yield* leaderAfter(0, client)
          const gaps: Array<number> = []
          for (let i = 0; i < kills; i++) {
            const killedAt = process.hrtime.bigint()
            yield* kill(processes.get(leader.client)!)
            yield* join
            leader = yield* leaderAfter(leader.token, client)
            gaps.push(millisSince(killedAt, leader))
          }
          assertOneAtATime(yield* events, kills + 1)
          // The machine may be busy with other tests: seconds are for it, not for the lock.
          assert.isBelow(Math.max(...gaps), ttl + heartbeat + 10_000, gaps.join())
          // But not with all of them.
          const median = gaps.toSorted((a, b) => a - b)[Math.floor((kills - 1) / 2)]!
          assert.isBelow(median, ttl + heartbeat + 1000, gaps.join())
        }).pipe(Effect.provide(NodeServices.layer)),
      300_000
    )
  }

  it.live(
    "G3, G4: a leader that was stopped for longer than its ttl steps down when it goes on, and campaigns again",
    () =>
      Effect.gen(function*() {
        const { client, url } = yield* places["one Redis"]
        // Nobody but who is stopped on purpose may lose his lease: a busy machine stops processes, too.
        const { events, join, leaderAfter, processes } = yield* campaign(url, { ttl: 6000, heartbeat: 2000 })
        yield* join
        const stopped = yield* leaderAfter(0, client)
        yield* join
        const { pid } = processes.get(stopped.client)!
        process.kill(pid, "SIGSTOP")
        const next = yield* leaderAfter(stopped.token, client)
        assert.notStrictEqual(next.client, stopped.client)
        process.kill(pid, "SIGCONT")
        yield* until(
          Effect.map(events, (all) => all.some(({ client, kind }) => client === stopped.client && kind === "lost")),
          "the stopped leader knows that it lost"
        )
        yield* until(
          Effect.map(
            client.store.inspect(key),
            ({ waiters }) => waiters.some(({ metadata }) => metadata["worker"] === stopped.client)
          ),
          "it campaigns again"
        )
        yield* kill(processes.get(next.client)!)
        const again = yield* leaderAfter(next.token, client)
        assert.strictEqual(again.client, stopped.client)
        // It did nothing while it was stopped, and knew nothing: only tokens tell who came when.
        const terms = (yield* events).filter((event) => event.kind === "acquired")
        assert.deepStrictEqual(terms.map(({ token }) => token).toSorted((a, b) => a - b), [
          stopped.token,
          next.token,
          again.token
        ])
      }).pipe(Effect.provide(NodeServices.layer)),
    120_000
  )

  it.live(
    "G9: a process that is told to end resigns at once: its follower does not wait for the ttl",
    () =>
      Effect.gen(function*() {
        const { client, url } = yield* places["one Redis"]
        // Longer than any wait of this test.
        const { join, leaderAfter, processes } = yield* campaign(url, { ttl: 600_000, heartbeat })
        yield* join
        const first = yield* leaderAfter(0, client)
        yield* join
        yield* until(
          Effect.map(client.store.inspect(key), ({ waiters }) => waiters.length === 1),
          "somebody follows"
        )
        process.kill(processes.get(first.client)!.pid, "SIGTERM")
        const next = yield* leaderAfter(first.token, client)
        assert.notStrictEqual(next.client, first.client)
      }).pipe(Effect.provide(NodeServices.layer)),
    120_000
  )
})
