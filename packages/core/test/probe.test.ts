import { assert, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { Lock, LockStore } from "../src/index.ts"
const live = Lock.layer().pipe(Layer.provideMerge(LockStore.layerMemory))
it.live("deep", () => Effect.gen(function*() {
  let n = 0
  const t = Date.now()
  const a = yield* Effect.forkChild(Effect.sleep(3000).pipe(Lock.withLock("k", { ttl: "10 seconds" })))
  yield* Effect.yieldNow
  yield* Effect.forEach(Array.from({length: 5000}), () => Effect.sync(() => n++).pipe(Lock.withLock("k")), { concurrency: "unbounded", discard: true })
  console.log(n, Date.now() - t)
}).pipe(Effect.provide(live)), 60000)
