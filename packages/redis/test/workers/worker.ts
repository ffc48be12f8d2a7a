/**
 * A process that locks, leads or runs jobs, as tests start several of them. It ends when its standard input does.
 */
import { DistributedCron, LeaderElection, Lock, LockStore } from "@effect-lock/core"
import { LockHistory } from "@effect-lock/test-utils"
import { Clock, DateTime, Effect, Exit, Fiber, Layer } from "effect"
import { Redis } from "ioredis"
import * as Fs from "node:fs"
import { QuorumLockStore, RedisLockStore } from "../../src/index.ts"

export interface Task {
  /** One server, or the voters of a quorum. */
  readonly url: string | ReadonlyArray<string>
  readonly key: string
  /**
   * `contend`: many fibers increment a counter for a while. `hold`: take the key and keep it. `lead`: campaign for the key,
   * and lead for as long as it goes. `cron`: run a job every second.
   */
  readonly kind: "contend" | "hold" | "lead" | "cron"
  readonly name: string
  readonly ttl?: number
  readonly heartbeat?: number
  readonly fibers?: number
  readonly millis?: number
  readonly history?: string
  /** How far this process' clock is ahead, in milliseconds. */
  readonly ahead?: number
}

/** What a `cron` worker writes down, a line each, about the tick at `at` (seconds). */
export interface TickEvent {
  readonly kind: "up" | "claimed" | "begun" | "ended"
  readonly at: number
  readonly pid: number
  /** Of the job's lock, where it is held. */
  readonly token?: number
}

/** What a worker prints in the end, among its log. */
export interface Report {
  /** Increments that were acknowledged by the server before the lock was left. */
  readonly acknowledged: number
  /** How often each fiber was inside. */
  readonly turns: ReadonlyArray<number>
  readonly failures: ReadonlyArray<string>
}

const task = JSON.parse(process.argv[2]!) as Task

const report = (report: Report) => Effect.sync(() => console.log(JSON.stringify(report)))

/** The operations of this process by the id that they send along as metadata. */
const operations = new Map<string, LockHistory.Operation>()

const ticks = task.kind === "cron" ? Fs.openSync(task.history!, "a") : -1

const tell = (event: Omit<TickEvent, "pid">) =>
  Effect.sync(() => Fs.writeSync(ticks, `${JSON.stringify({ ...event, pid: process.pid })}\n`))

/** Tells the history when the store has confirmed a place in the queue, and which ticks were claimed. */
const StoreLive = Layer.effect(
  LockStore.LockStore,
  Effect.map(LockStore.LockStore, (store) => ({
    ...store,
    attempt: (request: LockStore.Request) =>
      Effect.tap(store.attempt(request), (attempt) => {
        if (task.kind === "cron") {
          const at = Date.parse(request.key.slice(task.key.length + 1)) / 1000
          return attempt._tag === "Granted" && at > 0 ? tell({ kind: "claimed", at }) : Effect.void
        }
        const id = request.metadata["op"]!
        const operation = operations.get(id)
        if (attempt._tag !== "Queued" || operation === undefined) return Effect.void
        operations.delete(id)
        return operation.enqueued
      })
  }))
).pipe(
  Layer.provide(
    typeof task.url === "string"
      ? RedisLockStore.layer({ url: task.url, heartbeat: task.heartbeat, commandTimeout: "20 seconds" })
      : QuorumLockStore.layer({ voters: task.url.map((url) => ({ url })), voterTimeout: "5 seconds" })
  )
)

const contend = Effect.gen(function*() {
  const lock = yield* Lock.Lock
  // The resource: read, wait, write, over a connection that knows nothing of locks.
  const resource = yield* Effect.acquireRelease(
    Effect.sync(() => new Redis(task.url as string)),
    (redis) => Effect.sync(() => redis.disconnect())
  )
  const end = performance.now() + task.millis!
  const turns: Array<number> = []
  const failures: Array<string> = []
  let acknowledged = 0

  const increment = Effect.gen(function*() {
    const before = Number(yield* Effect.promise(() => resource.get("counter")))
    yield* acknowledged % 5 === 0 ? Effect.sleep(1) : Effect.yieldNow
    yield* Effect.promise(() => resource.set("counter", before + 1))
    acknowledged++
  })

  const fiber = Effect.fnUntraced(function*(index: number) {
    const recorder = yield* LockHistory.make({ client: `${task.name}/${index}`, file: task.history })
    turns[index] = 0
    // A history needs tokens, which only a lease of `acquire` shows; every other fiber uses `withLock`.
    const once = index % 2 === 0 ? lock.withLock(increment, task.key) : Effect.gen(function*() {
      const operation = yield* recorder.invoke(task.key)
      operations.set(operation.id, operation)
      yield* Effect.scoped(Effect.gen(function*() {
        const lease = yield* lock.acquire(task.key, { holder: { op: operation.id } })
        yield* operation.acquired(lease.token)
        yield* lease.protect(increment)
        yield* operation.release()
      }))
      yield* operation.released
      operations.delete(operation.id)
    })
    yield* once.pipe(
      Effect.matchCause({
        onSuccess: () => turns[index]!++,
        onFailure: (cause) => failures.push(String(cause))
      }),
      Effect.repeat({ while: () => performance.now() < end })
    )
  }, Effect.scoped)

  yield* Effect.forEach(Array.from({ length: task.fibers! }, (_, i) => i), (index) => fiber(index), {
    concurrency: "unbounded",
    discard: true
  })
  yield* report({ acknowledged, turns, failures })
})

const hold = Effect.gen(function*() {
  const exit = yield* Effect.never.pipe(Lock.withLock(task.key), Effect.exit)
  yield* report({ acknowledged: 0, turns: [], failures: [Exit.isFailure(exit) ? String(exit.cause) : "ended"] })
})

/** A moment of the wall clock, on the clock of the history. */
const monotonic = (moment: DateTime.Utc) =>
  process.hrtime.bigint() + BigInt(Math.floor((DateTime.toEpochMillis(moment) - Date.now()) * 1_000_000))

const lead = Effect.gen(function*() {
  const recorder = yield* LockHistory.make({ client: task.name, file: task.history })
  const election = yield* LeaderElection.make(task.key)
  return yield* election.run((lease) =>
    Effect.gen(function*() {
      const operation = yield* recorder.invoke(task.key)
      // It leads until its lease ends at the latest, however late that is written down by a process that was held up.
      yield* Effect.addFinalizer(() =>
        Effect.flatMap(lease.isValid, (isValid) =>
          isValid
            ? operation.release()
            : Effect.flatMap(lease.deadline, (deadline) => operation.lost(monotonic(deadline))))
      )
      yield* operation.acquired(lease.token)
      return yield* Effect.never
    }).pipe(Effect.scoped)
  )
})

const cron = Effect.andThen(
  tell({ kind: "up", at: 0 }),
  DistributedCron.run(
    ({ at, lease }) => {
      const tick = { at: DateTime.toEpochMillis(at) / 1000, token: lease.token }
      return tell({ kind: "begun", ...tick }).pipe(
        Effect.andThen(Effect.sleep(task.millis!)),
        Effect.andThen(tell({ kind: "ended", ...tick }))
      )
    },
    task.key,
    "* * * * * *",
    { startWithin: "30 seconds" }
  )
)

/** A clock that is wrong, as every clock is. */
const clockAhead = (millis: number) =>
  Clock.clockWith((clock) =>
    Effect.succeed<Clock.Clock>({
      sleep: (duration) => clock.sleep(duration),
      monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: clock.monotonicTimeNanos,
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + millis,
      currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + millis),
      currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(millis) * 1_000_000n,
      currentTimeNanos: Effect.map(clock.currentTimeNanos, (now) => now + BigInt(millis) * 1_000_000n)
    })
  )

// A test that was killed can end its workers no more, but its end of the pipe is closed.
process.stdin.on("close", () => process.exit(1)).resume()

const fiber = { contend, hold, lead, cron }[task.kind].pipe(
  Effect.scoped,
  Effect.provide(
    Lock.layer({ ttl: task.ttl, holder: { worker: task.name } }).pipe(Layer.provide(StoreLive))
  ),
  Effect.provideServiceEffect(Clock.Clock, clockAhead(task.ahead ?? 0)),
  Effect.runFork
)
process.on("SIGTERM", () => fiber.interruptUnsafe())
const exit = await Effect.runPromise(Fiber.await(fiber))
if (Exit.isFailure(exit) && !Exit.hasInterrupts(exit)) console.error(String(exit.cause))
process.exit(Exit.isSuccess(exit) ? 0 : 1)
