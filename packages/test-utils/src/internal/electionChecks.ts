/** What leader election and runs that happen once keep on any `Lock`: for two clients of one store. */
import * as DistributedCron from "@effect-lock/core/DistributedCron"
import * as LeaderElection from "@effect-lock/core/LeaderElection"
import * as Lock from "@effect-lock/core/Lock"
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as SubscriptionRef from "effect/SubscriptionRef"

type Clients = readonly [Lock.Lock["Service"], Lock.Lock["Service"]]

/**
 * One promise of a primitive: `run` dies where it is broken. `key` is a fresh one, `second` how many milliseconds a second is.
 *
 * @internal
 */
export interface ElectionCheck {
  readonly name: string
  readonly run: (clients: Clients, key: string, second: number) => Effect.Effect<void, unknown, Scope.Scope>
}

/** @internal */
export const electionChecks: ReadonlyArray<ElectionCheck> = [
  {
    name: "LeaderElection: one leads at a time, and each of them in the end, with growing tokens",
    run: Effect.fnUntraced(function*(clients, key) {
      const tokens: Array<number> = []
      let inside = 0
      const term = (lease: { readonly token: number }) =>
        Effect.acquireUseRelease(
          Effect.sync(() => {
            assert.strictEqual(++inside, 1, "leaders")
            tokens.push(lease.token)
          }),
          () => Effect.sleep(5),
          () => Effect.sync(() => inside--)
        )
      yield* Effect.forEach(
        Array.from({ length: 12 }, (_, i) => clients[i % 2]!),
        (lock) => Effect.flatMap(elect(lock, key), (election) => election.run(term)),
        { concurrency: "unbounded", discard: true }
      )
      assert.lengthOf(tokens, 12)
      assert.deepStrictEqual(tokens, Array.from(new Set(tokens)).toSorted((a, b) => a - b))
    })
  },
  {
    name: "LeaderElection: a leader that is taken over is interrupted, campaigns again and says who leads meanwhile",
    run: Effect.fnUntraced(function*([lock, other], key, second) {
      const election = yield* elect(lock, key, { ttl: second, holder: { name: "first" } })
      const terms: Array<number> = []
      const led = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const fiber = yield* Effect.forkScoped(election.run((lease) =>
        Effect.gen(function*() {
          terms.push(lease.token)
          yield* Deferred.succeed(led[terms.length - 1]!, undefined)
          if (terms.length === 1) return yield* Effect.never
        })
      ))
      yield* Deferred.await(led[0]!)
      assert.strictEqual(SubscriptionRef.getUnsafe(election.status)._tag, "Leading")
      const leader = Option.getOrThrow(yield* (yield* elect(other, key)).leader)
      assert.strictEqual(leader.token, terms[0])
      assert.strictEqual(leader.metadata["name"], "first")
      yield* Effect.scoped(other.takeover(key))
      yield* Deferred.await(led[1]!)
      yield* Fiber.join(fiber)
      assert.isAbove(terms[1]!, terms[0]!)
      assert.strictEqual(SubscriptionRef.getUnsafe(election.status)._tag, "Idle")
      assert.isTrue(Option.isNone(yield* election.leader))
    })
  },
  {
    name: "LeaderElection: one that is interrupted resigns at once",
    run: Effect.fnUntraced(function*([lock, other], key) {
      const led = yield* Deferred.make<void>()
      const options = { ttl: "10 minutes" } as const
      const election = yield* elect(lock, key, options)
      const fiber = yield* Effect.forkScoped(
        election.run(Effect.andThen(Deferred.succeed(led, undefined), Effect.never))
      )
      yield* Deferred.await(led)
      const next = yield* Effect.forkScoped((yield* elect(other, key, options)).run(Effect.void))
      yield* Fiber.interrupt(fiber)
      yield* Fiber.join(next)
    })
  },
  {
    name: "DistributedCron: an effect runs once within a time, however many ask for it, and again after that",
    run: Effect.fnUntraced(function*(clients, key, second) {
      let runs = 0
      const once = (lock: Lock.Lock["Service"]) =>
        Effect.provideService(
          DistributedCron.once(Effect.sync(() => ++runs), key, { within: second, ttl: second }),
          Lock.Lock,
          lock
        )
      const outcomes = yield* Effect.forEach(Array.from({ length: 12 }, (_, i) => clients[i % 2]!), once, {
        concurrency: "unbounded"
      })
      assert.strictEqual(outcomes.filter(Option.isSome).length, 1)
      assert.strictEqual(runs, 1)
      yield* Effect.repeat(once(clients[1]), {
        until: Option.isSome,
        schedule: Schedule.spaced(second / 20)
      })
      assert.strictEqual(runs, 2)
    })
  }
]

const elect = (lock: Lock.Lock["Service"], key: string, options?: LeaderElection.Options) =>
  Effect.provideService(LeaderElection.make(key, options), Lock.Lock, lock)
