/**
 * A quorum of real servers, each behind a proxy of its own, and what its voters know of a key.
 */
import type { LockOptions } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { Effect } from "effect"
import { QuorumLockStore } from "../../src/index.ts"
import { build, until } from "./client.ts"

export interface Place extends RedisServer.Voter {
  readonly name: string
}

export type StoreOptions = Omit<QuorumLockStore.Options, "voters">

/** For who is not about time-outs: longer than a machine that is shared stands still. */
export const voterTimeout = 5000

export const start = Effect.fnUntraced(function*(n: number) {
  const { voters } = yield* RedisServer.makeQuorum(n)
  const places = voters.map((voter, i): Place => ({ ...voter, name: "abcdefg"[i]! }))
  return {
    places,
    /** A client of its own, that sees the voters through their proxies. */
    connect: (options?: { readonly store?: StoreOptions; readonly lock?: LockOptions.LockOptions }) =>
      build(
        QuorumLockStore.layer({
          voterTimeout,
          ...options?.store,
          voters: places.map(({ name, proxy }) => ({ name, url: proxy.url }))
        }),
        options?.lock
      )
  }
})

/** Who has this voter's vote: the nonce of the round and the holder id. */
export const voteAt = Effect.fnUntraced(function*({ server }: Place, key: string) {
  const [nonce, holderId, until] =
    (yield* server.command("HMGET", `effect-lock:quorum:${key}`, "n", "i", "u")) as Array<
      string | null
    >
  const [seconds] = (yield* server.command("TIME")) as Array<string>
  return nonce === null || Number(until) <= Number(seconds) * 1000 ? undefined : { nonce, holderId: holderId! }
})

/** Waits until every one of these voters keeps its vote on the key for longer than it would without a renewal from now on. */
export const untilRenewed = Effect.fnUntraced(function*(places: ReadonlyArray<Place>, key: string, by: number) {
  const expiries = Effect.forEach(
    places,
    ({ server }) => Effect.map(server.command("HGET", `effect-lock:quorum:${key}`, "u"), Number)
  )
  const before = yield* expiries
  yield* until(
    Effect.map(expiries, (now) => now.every((expiry, i) => expiry >= before[i]! + by)),
    `${key} is renewed for ${by} ms more`
  )
})

/** How many of these voters have given a vote on the key. */
export const votes = (places: ReadonlyArray<Place>, key: string) =>
  Effect.map(
    Effect.forEach(places, (place) => voteAt(place, key)),
    (all) => all.filter((vote) => vote !== undefined).length
  )

/** Waits until no voter has a vote on the key, not even one that ran out by itself. */
export const untilTakenBack = (places: ReadonlyArray<Place>, key: string) =>
  until(
    Effect.map(
      Effect.forEach(places, ({ server }) => server.command("HEXISTS", `effect-lock:quorum:${key}`, "n")),
      (found) => found.every((it) => it === 0)
    ),
    `no vote on ${key} is left`
  )

export const untilVotes = (places: ReadonlyArray<Place>, key: string, count: number) =>
  until(Effect.map(votes(places, key), (n) => n === count), `${count} votes on ${key}`)

/** A minority that does not answer, in one of the ways in which servers do not. */
export const faults: ReadonlyArray<{
  readonly name: string
  readonly inject: (place: Place) => Effect.Effect<void, RedisServer.RedisServerError>
  readonly undo: (place: Place) => Effect.Effect<void, RedisServer.RedisServerError>
}> = [
  { name: "killed", inject: ({ server }) => server.kill, undo: ({ server }) => server.restart },
  { name: "frozen", inject: ({ server }) => server.pause, undo: ({ server }) => server.resume },
  { name: "partitioned", inject: ({ proxy }) => proxy.blackhole(), undo: ({ proxy }) => proxy.heal },
  { name: "cut off", inject: ({ proxy }) => proxy.refuse, undo: ({ proxy }) => proxy.heal },
  { name: "deaf", inject: ({ proxy }) => proxy.blackhole("requests"), undo: ({ proxy }) => proxy.heal },
  { name: "mute", inject: ({ proxy }) => proxy.blackhole("replies"), undo: ({ proxy }) => proxy.heal }
]
