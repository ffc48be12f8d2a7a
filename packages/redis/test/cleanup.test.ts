import { LockMetrics, type LockOptions } from "@effect-lock/core"
import { RedisServer } from "@effect-lock/test-utils"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Metric, Option, type Scope } from "effect"
import { RedisLockStore } from "../src/index.ts"
import { build, type Client, connect, hold, keysOf, leftovers, until, untilSync } from "./support/client.ts"
import { quietly, withFiberCount, withMetrics } from "./support/observe.ts"
import * as StagedRedis from "./support/StagedRedis.ts"

/** How a key is acquired, and what happens meanwhile. */
interface Scenario {
  readonly name: string
  /** Whether somebody else holds the key until the subject has queued. */
  readonly contended: boolean
  readonly store?: RedisLockStore.StoreOptions
  readonly options?: LockOptions.LockOptions
  /** Ends the body. */
  readonly work?: (staged: StagedRedis.StagedRedis) => Effect.Effect<void>
}

// An offer to somebody who is gone would last for a minute: who enters within a test's time was not held up by one.
const patient: RedisLockStore.StoreOptions = { heartbeat: "20 seconds", commandTimeout: "20 seconds" }

const scenarios: ReadonlyArray<Scenario> = [
  { name: "granted at once", contended: false },
  { name: "granted by a push", contended: true },
  { name: "granted by a poll", contended: true, store: { push: false, pollInterval: 5 } },
  {
    name: "renewed while held",
    contended: false,
    options: { renewEvery: 5 },
    work: (staged) => untilSync(() => staged.count("renew") >= 3, "three renewals")
  },
  { name: "given up when waitTimeout is over", contended: true, options: { waitTimeout: 15 } }
]

/** What happens at a point. */
type Deed = "interrupt" | "timeout" | "fail" | "close" | "cut"

const deeds: ReadonlyArray<Deed> = ["interrupt", "timeout", "fail", "close", "cut"]

const moments: ReadonlyArray<StagedRedis.Point["moment"]> = ["before", "executed", -1, 0, 1, 2, 3, 4, 5, 6, "later"]

interface Setting {
  readonly server: RedisServer.Server
  readonly other: Client
  readonly client: Client
  readonly staged: StagedRedis.StagedRedis
}

const makeClient = Effect.fnUntraced(function*(server: RedisServer.Server, store: RedisLockStore.StoreOptions = {}) {
  const staged = yield* StagedRedis.make(server)
  return { staged, client: yield* build(RedisLockStore.layerClient(staged.redis, { ...patient, ...store })) }
})

let cases = 0

/** Runs a scenario, with something that happens at a point or with nothing, and tells whether anything is left. */
const play = Effect.fnUntraced(function*(
  { client, other, server, staged }: Setting,
  { contended, name, options, work }: Scenario,
  plan?: { readonly point: StagedRedis.Point; readonly deed: Deed }
): Effect.fn.Return<void, unknown, Scope.Scope> {
  const key = `${name} ${cases++}`
  staged.reset()
  const owner = contended ? yield* hold(other, key) : undefined
  if (owner !== undefined) yield* owner.entered

  const failed = yield* Deferred.make<never, "failed">()
  const timedOut = yield* Deferred.make<"timed out">()
  const body = Effect.andThen(work?.(staged) ?? Effect.yieldNow, Effect.succeed("done")).pipe(
    (work) => Effect.raceFirst(Deferred.await(failed), work),
    Effect.ensuring(Effect.sync(() => staged.trace.push("body ended")))
  )
  const locked = client.lock.withLock(body, key, options)
  const subject = yield* Effect.forkScoped(Effect.raceFirst(Deferred.await(timedOut), locked))
  let closing: Fiber.Fiber<void> | undefined
  if (plan !== undefined) {
    const acts: Record<Deed, () => void> = {
      interrupt: () => subject.interruptUnsafe(),
      timeout: () => void Deferred.doneUnsafe(timedOut, Effect.succeed("timed out")),
      fail: () => void Deferred.doneUnsafe(failed, Effect.fail("failed")),
      close: () => {
        closing = Effect.runFork(client.close)
      },
      cut: staged.cut
    }
    staged.at(plan.point, acts[plan.deed])
  }

  const isOver = () => subject.pollUnsafe() !== undefined
  yield* until(
    Effect.map(
      other.store.inspect(key),
      ({ holders, waiters }) => isOver() || (owner === undefined ? holders : waiters).length > 0
    ),
    "the subject is known to the server"
  )
  const next = yield* hold(other, key)
  if (owner !== undefined) {
    if (options?.waitTimeout !== undefined) yield* Effect.sleep(options.waitTimeout)
    // For as long as the key is held polls go on: none of those that were seen in another run is missing in this one.
    const [, poll] = /^heartbeat#(\d+)$/.exec(plan?.point.step ?? "") ?? []
    if (poll !== undefined) yield* untilSync(() => isOver() || staged.count("heartbeat") > Number(poll), "it is polled")
    yield* owner.leave
  }
  const exit = yield* Fiber.await(subject)
  if (closing !== undefined) yield* Fiber.await(closing)

  // Whoever is next enters, and nobody and nothing else is there.
  yield* next.entered
  const { holders, waiters } = yield* other.store.inspect(key)
  assert.lengthOf(holders, 1)
  assert.lengthOf(waiters, 0)
  yield* next.leave
  assert.deepStrictEqual(yield* leftovers(server, key), [])
  assert.isAbove((yield* server.command("PTTL", keysOf(key)[0]!)) as number, 0)
  assert.isTrue(Option.isSome(yield* other.lock.withLockIfAvailable(Effect.void, key)))
  assert.strictEqual((yield* Metric.value(LockMetrics.waiting)).value, 0)
  assert.strictEqual((yield* Metric.value(LockMetrics.held)).value, 0)

  checkOrder(staged.trace)
  checkExit(exit, plan?.deed, options)
})

/** G6: the body has ended, and renewal with it, before the release is sent. */
const checkOrder = (trace: ReadonlyArray<string>) => {
  const end = trace.findIndex((step) => /^(release|abandon)#0/.test(step))
  if (end === -1) return
  assert.isFalse(trace.slice(end).includes("body ended"), trace.join(", "))
  assert.isFalse(trace.slice(end).some((step) => step.startsWith("renew#")), trace.join(", "))
}

const checkExit = (exit: Exit.Exit<string, unknown>, deed: Deed | undefined, options?: LockOptions.LockOptions) => {
  const outcome = Exit.match(exit, {
    onSuccess: (value) => value,
    onFailure: () => {
      const error = Option.getOrUndefined(Exit.findErrorOption(exit))
      if (error === undefined) return Exit.hasDies(exit) ? "defect" : "interrupted"
      return typeof error === "string" ? error : (error as { readonly _tag: string })._tag
    }
  })
  const expected: ReadonlyArray<string> = {
    none: [],
    interrupt: ["interrupted"],
    timeout: ["timed out"],
    fail: ["failed"],
    close: ["LockClosed", "LockLost"],
    cut: ["LockStoreError"]
  }[deed ?? "none"]
  const timedOut = options?.waitTimeout === undefined ? [] : ["LockTimeout"]
  assert.include(["done", ...timedOut, ...expected], outcome)
}

describe("cleanup", () => {
  for (const scenario of scenarios) {
    it.live(
      `G7: a lock that is ${scenario.name} leaves nothing behind, whatever happens at whatever step`,
      () =>
        withFiberCount((fibers) =>
          Effect.gen(function*() {
            const server = yield* RedisServer.make()
            const other = yield* connect(server, { store: patient })
            const atStart = yield* fibers.count
            const shared = yield* makeClient(server, scenario.store)
            const atRest = yield* fibers.count
            const playOnce = (plan?: { readonly point: StagedRedis.Point; readonly deed: Deed }) =>
              Effect.gen(function*() {
                // A closed client serves nobody any more.
                const own = plan?.deed === "close" ? yield* makeClient(server, scenario.store) : shared
                yield* play({ server, other, ...own }, scenario, plan)
                yield* own === shared ? Effect.void : own.client.close
                return own.staged.hasActed()
              }).pipe(
                Effect.scoped,
                Effect.timeoutOrElse({
                  duration: "30 seconds",
                  orElse: () => Effect.die(new Error("it is stuck"))
                }),
                Effect.tapCause(() => Effect.sync(() => console.error(`${scenario.name}: ${JSON.stringify(plan)}`)))
              )
            yield* playOnce()
            const steps = shared.staged.trace.filter((step) => /#[0-2]$/.test(step))
            let acted = 0
            for (const deed of deeds) {
              for (const step of steps) {
                for (const moment of moments) {
                  if (yield* playOnce({ point: { step, moment }, deed })) acted++
                }
              }
            }
            // A push has no reply that could be held, and a poll may come once more or less.
            assert.isAtLeast(acted, deeds.length * (steps.length - 1) * (moments.length - 1))
            yield* until(Effect.map(fibers.count, (count) => count === atRest), "no fiber is left of a lock")
            yield* until(
              Effect.map(
                server.command("PUBSUB", "CHANNELS", "effect-lock:inbox:*"),
                (inboxes) => (inboxes as Array<string>).length === (scenario.store?.push === false ? 1 : 2)
              ),
              "nobody listens but the two that are open"
            )
            yield* shared.client.close
            yield* until(Effect.map(fibers.count, (count) => count === atStart), "no fiber is left of a client")
          })
        ).pipe(withMetrics, quietly),
      300_000
    )
  }
})
