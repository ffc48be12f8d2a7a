import { RedisClient } from "@effect-lock/redis"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, layer } from "@effect/vitest"
import { Effect, Random } from "effect"
import * as ballots from "../src/internal/quorumBallot.ts"

const clients = 5
const keys = 4
const ttl = 10
/** So short a ttl leaves a slow machine one try in ten. */
const timeout = 900_000

const settings: ballots.Settings = {
  voterTimeout: 200,
  driftFactor: 0.01,
  maxTtl: 1000,
  retention: 60_000,
  quarantine: 0,
  inbox: ""
}

/** On the way there and back, each command on its own, so that they overtake each other. */
const delayed = <A, E>(command: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.gen(function*() {
    yield* delay(4)
    const reply = yield* Effect.exit(command)
    yield* delay(4)
    return yield* reply
  })

const delay = (most: number) =>
  Effect.flatMap(Random.next, (random) => random < 0.5 ? Effect.void : Effect.sleep((random - 0.5) * 2 * most))

/**
 * Every client contends for every key, until so many acquisitions have been made or a token was wrong: one that occurs twice,
 * or is not greater than one that was complete before it was asked for.
 */
const contend = Effect.fnUntraced(function*(name: string, goal: number, rules: ballots.Rules) {
  const { voters } = yield* RedisServer.RedisQuorum
  const result = { acquired: 0, rounds: 0, writtenBack: 0, wrong: undefined as string | undefined }

  const histories = Array.from({ length: keys }, () => ({ highest: 0, tokens: new Set<number>() }))

  const play = Effect.fnUntraced(function*(client: number) {
    const connections = yield* Effect.forEach(voters, ({ server }) => RedisClient.make(server.url, {}, 5000))
    const places = connections.map((connection, i): ballots.Voter => ({
      name: `voter ${i}`,
      keyOf: (key) => key,
      mark: undefined,
      run: (script, keys, args) => {
        if (script.name === "writeBack") result.writtenBack++
        return delayed(connection.run(script, keys, args))
      },
      list: () => Effect.succeed([]),
      trouble: undefined,
      recovered: Effect.void,
      suspect: () => {}
    }))
    const base = yield* ballots.makeElectorate({ clientId: "", voters: places, settings }, rules)
    const join = (key: number, incarnation: number): ballots.Electorate => ({
      ...base,
      clientId: `${name}${client}k${key}i${incarnation}`
    })
    yield* Effect.forEach(histories, (history, key) =>
      Effect.gen(function*() {
        let electorate = join(key, 0)
        for (let turn = 1; result.acquired < goal && result.wrong === undefined; turn++) {
          // Now and then one that knows nothing of the tokens so far.
          if (yield* Random.nextBoolean) electorate = join(key, turn)
          result.rounds++
          const before = history.highest
          const verdict = yield* ballots.cast(electorate, {
            key: `${name} ${key}`,
            holderId: `${client}`,
            ttl,
            floor: 0,
            metadata: "{}",
            listenFor: 0,
            since: 0,
            mode: "ask",
            ticket: undefined
          })
          if (verdict._tag === "Lost") {
            yield* Effect.sleep((yield* Random.next) * 15)
            continue
          }
          const { ballot } = verdict
          result.acquired++
          if (history.tokens.has(ballot.token)) result.wrong = `${ballot.token} twice`
          if (ballot.token <= before) result.wrong = `${ballot.token} after ${before}`
          history.tokens.add(ballot.token)
          history.highest = Math.max(history.highest, ballot.token)
          // Half of them are left to run out.
          if (yield* Random.nextBoolean) yield* ballots.end(electorate, ballot)
        }
      }), { concurrency: "unbounded", discard: true })
  })

  yield* Effect.forEach(Array.from({ length: clients }, (_, i) => i), play, { concurrency: "unbounded", discard: true })
  return result
}, Effect.scoped)

describe("quorum: fencing tokens", () => {
  layer(RedisServer.quorum(3), { excludeTestServices: true, timeout })((it) => {
    it.effect(
      "10,000 contended acquisitions with random delays and short ttls: none twice, none falling",
      () =>
        Effect.gen(function*() {
          const result = yield* contend("with", 10_000, { writeBack: true })
          assert.isUndefined(result.wrong)
          assert.isAtLeast(result.acquired, 10_000)
          assert.isAbove(result.writtenBack, 1000, "voters disagree often enough")
        }),
      timeout
    )

    it.effect("expected failure: without write-back the same test finds a wrong token", () =>
      Effect.gen(function*() {
        // It ends with the first wrong token, which comes sooner or later: every few thousand acquisitions.
        const result = yield* contend("without", 80_000, { writeBack: false })
        assert.isDefined(result.wrong)
      }), timeout)
  })
})
