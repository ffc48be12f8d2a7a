import type { LockStore } from "@effect-lock/core"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { until, untilSync } from "./support/client.ts"
import { quietly } from "./support/observe.ts"
import * as quorum from "./support/quorum.ts"

const request = (key: string, holderId: string, change: Partial<LockStore.Request> = {}): LockStore.Request => ({
  key,
  holderId,
  ttl: 30_000,
  permits: 1,
  limit: 1,
  wait: true,
  priority: 0,
  maxWaiters: Infinity,
  floor: 0,
  metadata: {},
  ...change
})

const take = (store: LockStore.LockStore["Service"], key: string, holderId: string) =>
  Effect.map(store.attempt(request(key, holderId)), (attempt): LockStore.Held => {
    assert(attempt._tag === "Granted", attempt._tag)
    return { key, holderId, token: attempt.grant.token }
  })

describe("what a quorum can tell without voting", () => {
  it.live("list: the keys of all voters that answer, without a minority, and not without a majority", () =>
    Effect.gen(function*() {
      const { connect, places } = yield* quorum.start(3)
      const { store } = yield* connect()
      for (const key of ["job:a*", "job:b", "other"]) yield* take(store, key, key)
      assert.sameMembers([...(yield* store.list("job:"))], ["job:a*", "job:b"])
      assert.deepStrictEqual(yield* store.list("job:a*"), ["job:a*"])
      yield* places[0]!.server.kill
      assert.sameMembers([...(yield* store.list("job:"))], ["job:a*", "job:b"])
      yield* places[1]!.server.kill
      const error = yield* Effect.flip(store.list("job:"))
      assert.include(error.message, "no majority of 3 voters")
    }).pipe(quietly))

  it.live("watch: who queues in the same client is told of, and in another one seen by the next look", () =>
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const [one, other] = [yield* connect(), yield* connect()]
      const told: Array<string> = []
      yield* one.store.onNews((news) => {
        if (news._tag === "Wanted") told.push(news.holderId)
      })
      const lease = yield* take(one.store, "k", "holder")
      const isWanted = Effect.map(one.store.watch(lease), (watch) => watch._tag === "Done" && watch.isWanted)
      assert.isFalse(yield* isWanted)
      yield* other.store.attempt(request("k", "far"))
      yield* until(isWanted, "the other client's waiter is seen")
      yield* other.store.abandon("k", "far")
      yield* until(Effect.map(isWanted, (wanted) => !wanted), "it is gone")
      yield* one.store.attempt(request("k", "near"))
      yield* untilSync(() => told.length === 1, "told")
      assert.deepStrictEqual(told, ["holder"])
      yield* one.store.release(lease, 0)
      assert.deepStrictEqual(yield* one.store.watch(lease), { _tag: "NotHeld" })
      assert.deepStrictEqual(yield* other.store.watch(lease), { _tag: "NotHeld" })
    }).pipe(quietly))

  it.live("maxWaiters: counts the waiters of this client, and lets nobody in who could have had the key", () =>
    Effect.gen(function*() {
      const { connect } = yield* quorum.start(3)
      const { store } = yield* connect()
      const lease = yield* take(store, "k", "holder")
      assert.strictEqual((yield* store.attempt(request("k", "a", { maxWaiters: 0 })))._tag, "QueueFull")
      assert.strictEqual((yield* store.attempt(request("k", "a", { maxWaiters: 1 })))._tag, "Queued")
      assert.strictEqual((yield* store.attempt(request("k", "b", { maxWaiters: 1 })))._tag, "QueueFull")
      yield* store.abandon("k", "a")
      yield* store.release(lease, 0)
      const free = store.attempt(request("k", "b", { maxWaiters: 0 }))
      yield* until(Effect.map(free, ({ _tag }) => _tag === "Granted"), "the key is free")
    }).pipe(quietly))
})
