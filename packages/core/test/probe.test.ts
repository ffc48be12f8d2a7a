import { assert, it } from "@effect/vitest"
import { Effect, Fiber, Layer } from "effect"
import { TestClock } from "effect/testing"
import { Lock, LockStore } from "../src/index.ts"
const live = Lock.layer().pipe(Layer.provideMerge(LockStore.layerMemory))
it.effect("ttl 10s under TestClock", () => Effect.gen(function*() {
  const f = yield* Effect.forkChild(Effect.sleep(20000).pipe(Lock.withLock("k", { ttl: "10 seconds" })))
  for (let i = 0; i < 20; i++) yield* TestClock.adjust(1000)
  yield* Fiber.join(f)
}).pipe(Effect.provide(live)), 20000)
it.effect("minHold waiter", () => Effect.gen(function*() {
  yield* Effect.void.pipe(Lock.withLock("k", { ttl: "30 seconds", minHold: "2 seconds" }))
  const f = yield* Effect.forkChild(Effect.void.pipe(Lock.withLock("k", { ttl: "30 seconds"})))
  yield* TestClock.adjust(2000)
  assert.isDefined(f.pollUnsafe())
}).pipe(Effect.provide(live)), 20000)
it.effect("minHold waiter queued before", () => Effect.gen(function*() {
  const a = yield* Effect.forkChild(Effect.sleep(1000).pipe(Lock.withLock("k", { ttl: "30 seconds", minHold: "2 seconds" })))
  yield* Effect.yieldNow
  const f = yield* Effect.forkChild(Effect.void.pipe(Lock.withLock("k", { ttl: "30 seconds"})))
  yield* TestClock.adjust(3000)
  assert.isDefined(f.pollUnsafe())
}).pipe(Effect.provide(live)), 20000)
