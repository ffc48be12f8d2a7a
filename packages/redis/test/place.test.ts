import { RedisServer } from "@effect-lock/test-utils"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { connect, queued, until } from "./support/client.ts"
import { nameOf } from "./support/observe.ts"

const request = (holderId: string, ttl: number) => ({
  key: "k",
  holderId,
  ttl,
  permits: 1,
  limit: 1,
  wait: true,
  priority: 0,
  maxWaiters: Infinity,
  floor: 0,
  metadata: {}
})

it.live("G10: who could not use a grant before it ran out asks again from the place he had", () =>
  Effect.gen(function*() {
    const server = yield* RedisServer.make()
    const { store } = yield* connect(server)
    // An offer to the second one lasts until the first one is back.
    const other = yield* connect(server, { store: { heartbeat: "5 seconds" } })
    const held = yield* store.attempt(request("holder", 30_000))
    const first = yield* store.attempt(request("first", 100))
    yield* other.store.attempt(request("second", 30_000))
    yield* other.store.attempt(request("third", 30_000))
    yield* queued(other, "k", 3)
    if (held._tag !== "Granted" || first._tag !== "Queued") return assert.fail(`${held._tag}, ${first._tag}`)
    yield* store.release({ key: "k", holderId: "holder", token: held.grant.token }, 0)
    assert.strictEqual((yield* first.signal)._tag, "Granted")
    // Nobody confirms the first one's grant, so the second one's comes.
    const holderIs = (id: string) => Effect.map(store.inspect("k"), ({ holders }) => holders[0]?.holderId === id)
    yield* until(holderIs("second"), "the offer ran out")
    const again = yield* store.attempt(request("first", 30_000))
    assert.strictEqual(again._tag === "Queued" ? again.standing.position : again._tag, 0)
    assert.deepStrictEqual((yield* store.inspect("k")).waiters.map(({ holderId }) => holderId), ["first", "third"])
  }))

it.live("G11: a heartbeat asks about each waiter once", () =>
  Effect.gen(function*() {
    const server = yield* RedisServer.make()
    const { store } = yield* connect(server, { store: { heartbeat: "50 millis" } })
    for (const id of ["holder", "a", "b", "c"]) yield* store.attempt(request(id, 30_000))
    // A heartbeat that knows of the first ones only is behind us when this has been answered.
    yield* store.inspect("k")
    const monitor = yield* server.monitor
    const beats = Effect.map(monitor.all, (entries) =>
      entries.flatMap(({ command, source }) =>
        source !== "lua" && nameOf(command) === "heartbeat" ? [command.slice(11)] : []
      ))
    yield* until(
      Effect.map(beats, ({ length }) =>
        length >= 2),
      "two heartbeats"
    )
    for (const ids of yield* beats) {
      assert.deepStrictEqual(
        ids.toSorted((x, y) =>
          x.localeCompare(y)
        ),
        ["a", "b", "c"]
      )
    }
  }))
