/**
 * A process of many fibers that take some of a key's permits, again and again, until there is a file that tells them to stop.
 * It ends when its standard input does.
 */
import { Permits } from "@effect-lock/core"
import { LockHistory } from "@effect-lock/test-utils"
import { DateTime, Effect, Layer } from "effect"
import * as Fs from "node:fs"
import { RedisLockStore } from "../../src/index.ts"

export interface Task {
  readonly url: string
  readonly key: string
  readonly name: string
  readonly ttl: number
  readonly heartbeat: number
  readonly fibers: number
  readonly limit: number
  readonly history: string
  /** The name of that file. */
  readonly stop: string
}

const { fibers, heartbeat, history, key, limit, name, stop, ttl, url } = JSON.parse(process.argv[2]!) as Task

const fiber = Effect.fnUntraced(function*(index: number) {
  const permits = yield* Permits.Permits
  const recorder = yield* LockHistory.make({ client: `${name}/${index}`, file: history })
  for (let turn = index; !Fs.existsSync(stop); turn++) {
    const wanted = 1 + (turn * 3) % limit
    yield* Effect.gen(function*() {
      const operation = yield* recorder.invoke(key, { permits: wanted })
      const lease = yield* permits.acquire({ key, permits: wanted, limit, needs: wanted, isShared: false })
      yield* operation.acquired(lease.token)
      // Inside until the lease ends at the latest, however late that is written down.
      const ended = Effect.flatMap(lease.deadline, (deadline) => {
        const left = DateTime.toEpochMillis(deadline) - Date.now()
        return operation.release(process.hrtime.bigint() + BigInt(Math.floor(left * 1_000_000)))
      })
      yield* Effect.ensuring(lease.protect(Effect.sleep(turn % 20)), ended)
    }).pipe(
      Effect.scoped,
      // A machine that is busy enough makes anybody lose a lease; what counts is who was inside.
      Effect.catchTag("LockLost", () => Effect.void)
    )
  }
}, Effect.scoped)

// A test that was killed can end its workers no more, but its end of the pipe is closed.
process.stdin.on("close", () => process.exit(1)).resume()

await Effect.forEach(Array.from({ length: fibers }, (_, index) => index), fiber, {
  concurrency: "unbounded",
  discard: true
}).pipe(
  Effect.provide(
    Permits.layer({ ttl }).pipe(Layer.provide(RedisLockStore.layer({ url, heartbeat, commandTimeout: "20 seconds" })))
  ),
  Effect.runPromise
)
process.exit(0)
