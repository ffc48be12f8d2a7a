/** What users of everything that needs no permits rely on: several keys, guards, hand-off, revocation, leaders, jobs, once. */
import * as DistributedCron from "@effect-lock/core/DistributedCron"
import * as Guard from "@effect-lock/core/Guard"
import * as LeaderElection from "@effect-lock/core/LeaderElection"
import * as Lock from "@effect-lock/core/Lock"
import { LockStore } from "@effect-lock/core/LockStore"
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { type Check, check as anyCheck } from "./check.ts"
import { freshKey } from "./contender.ts"
import { eventually, expected, scaled, Subject } from "./subject.ts"

type Clients = readonly [Lock.Lock["Service"], Lock.Lock["Service"]]

/** `key` is a fresh one, `second` how many milliseconds a second is. */
const check = (
  name: string,
  run: (clients: Clients, key: string, second: number) => Effect.Effect<void, unknown, Subject | Scope.Scope>
): Check =>
  anyCheck(
    name,
    Effect.gen(function*() {
      const { clients } = yield* Subject
      const open = (client: 0 | 1) =>
        Layer.build(Lock.layer().pipe(Layer.provide(Layer.succeed(LockStore, clients[client])))).pipe(
          Effect.map(Context.get(Lock.Lock)),
          Effect.orDie
        )
      const locks = [yield* open(0), yield* open(1)] as const
      yield* expected("the end", run(locks, yield* freshKey, yield* scaled(1000)))
    })
  )

/** @internal */
export const mutexChecks: ReadonlyArray<Check> = [
  check(
    "withLocks: callers with their keys in any order all get in, and no two share a key",
    Effect.fnUntraced(function*(clients, key) {
      const users = new Map<string, number>()
      const use = (keys: ReadonlyArray<string>, change: 1 | -1) =>
        Effect.sync(() => {
          for (const key of keys) {
            const count = (users.get(key) ?? 0) + change
            assert.isAtMost(count, 1, "users of a key")
            users.set(key, count)
          }
        })
      const sets = [["a", "b"], ["b", "a"], ["c", "a"], ["b", "c"], ["a", "b", "c"]]
      yield* Effect.forEach(
        Array.from({ length: 20 }, (_, i) => i),
        (i) => {
          const keys = sets[i % sets.length]!.map((name) => `${key}:${name}`)
          const work = Effect.acquireUseRelease(use(keys, 1), () => Effect.sleep(2), () => use(keys, -1))
          return clients[i % 2]!.withLocks(work, keys)
        },
        { concurrency: "unbounded", discard: true }
      )
    })
  ),
  check(
    "withLocks: who waits for one key holds those before it, keeps nobody from those behind it, and leaves nothing",
    Effect.fnUntraced(function*([lock, other], key) {
      const [a, b, c] = [`${key}:a`, `${key}:b`, `${key}:c`]
      const isFree = (key: string) => Effect.map(Effect.scoped(other.tryAcquire(key)), Option.isSome)
      yield* Effect.scoped(Effect.gen(function*() {
        yield* other.acquire(b)
        const all = yield* Effect.forkScoped(lock.withLocks(Effect.never, [c, b, a]))
        yield* eventually("waiting", Effect.map(other.inspect(b), ({ waiters }) => waiters.length === 1))
        assert.isFalse(yield* isFree(a))
        assert.isTrue(yield* isFree(c))
        yield* Fiber.interrupt(all)
      }))
      for (const key of [a, b, c]) yield* eventually(`${key} free`, isFree(key))
    })
  ),
  check(
    "Guard: is what its work needs, and keeps others out meanwhile",
    Effect.fnUntraced(function*([lock, other], key) {
      class TestGuard extends Guard.Service<TestGuard>()("TestGuard", { key: (id: string) => id }) {}
      const work = Effect.flatMap(
        TestGuard,
        ({ id, token }) =>
          Effect.map(Effect.scoped(other.tryAcquire(key)), (lease) => ({ id, token, isFree: Option.isSome(lease) }))
      )
      const { id, isFree, token } = yield* Effect.provideService(TestGuard.with(work, key), Lock.Lock, lock)
      assert.strictEqual(id, key)
      assert.isAbove(token, 0)
      assert.isFalse(isFree)
    })
  ),
  check(
    "hand-off: what one client gives away another one adopts, once, with a greater token",
    Effect.fnUntraced(function*([lock, other], key) {
      const ticket = yield* Effect.scoped(Effect.flatMap(lock.acquire(key), (lease) => lease.handOff))
      assert.isTrue(Option.isNone(yield* Effect.scoped(other.tryAcquire(key))))
      const token = yield* Effect.scoped(Effect.map(other.adopt(ticket), (lease) => lease.token))
      assert.isAbove(token, ticket.token)
      const error = yield* Effect.flip(Effect.scoped(other.adopt(ticket)))
      assert.strictEqual(error._tag, "TicketRefused")
    })
  ),
  check(
    "revocation: a holder hears of who queues, ends early, and the other one enters",
    Effect.fnUntraced(function*([lock, other], key, second) {
      const held = yield* Deferred.make<void>()
      const long = yield* Effect.forkScoped(
        lock.withLease(
          key,
          (lease) => Effect.andThen(Deferred.succeed(held, undefined), lease.revocation),
          // A ttl that outlives a machine's stall.
          { ttl: 6 * second, renewEvery: second / 5 }
        )
      )
      yield* Deferred.await(held)
      yield* other.withLock(Effect.void, key)
      yield* Fiber.join(long)
    })
  ),
  check(
    "list: tells of keys in use that begin so, with holder and waiters",
    Effect.fnUntraced(function*([lock, other], key) {
      yield* Effect.scoped(Effect.gen(function*() {
        yield* lock.acquire(`${key}:b`)
        yield* lock.acquire(`${key}:a`)
        yield* Effect.forkScoped(other.withLock(Effect.void, `${key}:b`))
        yield* eventually(
          "listed",
          Effect.map(
            lock.list(`${key}:`),
            (states) =>
              JSON.stringify(
                states.map(({ holders, key: name, waiters }) => [name, holders.length, waiters.length])
              ) ===
                JSON.stringify([[`${key}:a`, 1, 0], [`${key}:b`, 1, 1]])
          )
        )
      }))
    })
  ),
  check(
    "LeaderElection: one leads at a time, and each of them in the end, with growing tokens",
    Effect.fnUntraced(function*(clients, key) {
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
  ),
  check(
    "LeaderElection: a leader that is taken over is interrupted, campaigns again and says who leads meanwhile",
    Effect.fnUntraced(function*([lock, other], key, second) {
      // Lost to who takes over, and not to a machine that stalls.
      const election = yield* elect(lock, key, { ttl: 6 * second, holder: { name: "first" } })
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
  ),
  check(
    "LeaderElection: one that is interrupted resigns at once",
    Effect.fnUntraced(function*([lock, other], key) {
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
  ),
  check(
    "DistributedCron: each tick runs once, whichever client comes to it first",
    Effect.fnUntraced(function*(clients, key) {
      const ran: Array<string> = []
      for (const lock of clients) {
        yield* schedule(lock, key, ({ at }) => Effect.sync(() => ran.push(DateTime.formatIso(at))))
      }
      // Not every tick: a machine that stalls for longer than the tolerance skips some.
      yield* eventually("three ticks", Effect.sync(() => ran.length >= 3))
      assert.deepStrictEqual(ran, Array.from(new Set(ran)))
    })
  ),
  check(
    "DistributedCron: while a tick runs, no client begins it again, nor the next one",
    Effect.fnUntraced(function*(clients, key) {
      const end = yield* Deferred.make<void>()
      const ran: Array<string> = []
      for (const lock of clients) {
        yield* schedule(
          lock,
          key,
          ({ at }) => Effect.andThen(Effect.sync(() => ran.push(DateTime.formatIso(at))), Deferred.await(end))
        )
      }
      yield* eventually("a tick runs", Effect.sync(() => ran.length > 0))
      yield* eventually(
        "the next tick waits",
        Effect.map(clients[0].inspect(key), ({ waiters }) => waiters.length > 0 || ran.length > 1)
      )
      assert.lengthOf(ran, 1)
      yield* Deferred.succeed(end, undefined)
      yield* eventually("the next tick runs", Effect.sync(() => ran.length >= 2))
      assert.deepStrictEqual(ran, Array.from(new Set(ran)))
    })
  ),
  check(
    "once: an effect runs once within a time, however many ask for it, and again after that",
    Effect.fnUntraced(function*(clients, key, second) {
      let runs = 0
      // All ask within it, also on a machine that is slow.
      const within = 5 * second
      const once = (lock: Lock.Lock["Service"]) =>
        Effect.provideService(
          Lock.once(Effect.sync(() => ++runs), key, { within, ttl: within }),
          Lock.Lock,
          lock
        )
      const outcomes = yield* Effect.forEach(Array.from({ length: 12 }, (_, i) => clients[i % 2]!), once, {
        concurrency: "unbounded"
      })
      // None, where they split the votes.
      assert.isAtMost(runs, 1)
      assert.lengthOf(outcomes.filter(Option.isSome), runs)
      const before = runs
      yield* Effect.repeat(once(clients[1]), {
        until: Option.isSome,
        schedule: Schedule.spaced(second / 20)
      })
      assert.strictEqual(runs, before + 1)
    })
  )
]

const elect = (lock: Lock.Lock["Service"], key: string, options?: LeaderElection.Options) =>
  Effect.provideService(LeaderElection.make(key, options), Lock.Lock, lock)

/** Of every second: no schedule has shorter ones. */
const schedule = <A>(lock: Lock.Lock["Service"], key: string, job: DistributedCron.Job<A, never, never>) =>
  Effect.forkScoped(Effect.provideService(DistributedCron.run(job, key, "* * * * * *"), Lock.Lock, lock))
