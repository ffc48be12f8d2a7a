/**
 * A process that locks, as `processes.test.ts` starts several of them. It ends when its standard input does.
 */
import { Lock, LockStore } from "@effect-lock/core"
import { LockHistory } from "@effect-lock/test-utils"
import { Effect, Exit, Layer } from "effect"
import { Redis } from "ioredis"
import { RedisLockStore } from "../../src/index.ts"

export interface Task {
  readonly url: string
  readonly key: string
  /** `contend`: many fibers increment a counter for a while. `hold`: take the key and keep it. */
  readonly kind: "contend" | "hold"
  readonly name: string
  readonly ttl?: number
  readonly heartbeat?: number
  readonly fibers?: number
  readonly millis?: number
  readonly history?: string
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

/** Tells the history when the store has confirmed a place in the queue. */
const StoreLive = Layer.effect(
  LockStore.LockStore,
  Effect.map(LockStore.LockStore, (store) => ({
    ...store,
    attempt: (request: LockStore.Request) =>
      Effect.tap(store.attempt(request), (attempt) => {
        const id = request.metadata["op"]!
        const operation = operations.get(id)
        if (attempt._tag !== "Queued" || operation === undefined) return Effect.void
        operations.delete(id)
        return operation.enqueued
      })
  }))
).pipe(Layer.provide(RedisLockStore.layer({ url: task.url, heartbeat: task.heartbeat })))

const contend = Effect.gen(function*() {
  const lock = yield* Lock.Lock
  // The resource: read, wait, write, over a connection that knows nothing of locks.
  const resource = yield* Effect.acquireRelease(
    Effect.sync(() => new Redis(task.url)),
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

// A test that was killed can end its workers no more, but its end of the pipe is closed.
process.stdin.on("close", () => process.exit(1)).resume()

const exit = await (task.kind === "contend" ? contend : hold).pipe(
  Effect.scoped,
  Effect.provide(
    Lock.layer({ ttl: task.ttl, holder: { worker: task.name } }).pipe(Layer.provide(StoreLive))
  ),
  Effect.runPromiseExit
)
if (Exit.isFailure(exit)) console.error(String(exit.cause))
process.exit(Exit.isSuccess(exit) ? 0 : 1)
