import { LockStore } from "@effect-lock/core"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit } from "effect"
import { LockStoreSuite } from "../src/index.ts"
import { brokenStores, layer } from "./support/brokenStores.ts"
import { virtually } from "./support/virtually.ts"

LockStoreSuite.suite("the memory store", LockStore.layerMemory)

describe("a store that", { concurrent: true }, () => {
  for (const broken of brokenStores) {
    it.effect(`${broken.name} does not pass`, () =>
      Effect.gen(function*() {
        const store = layer(broken)
        // The same store, and no client that could be told apart.
        const subject = LockStoreSuite.Subject.layer(store, {
          otherClient: () => store,
          timeScale: 0.1,
          patience: "1500 millis"
        })
        const passed = yield* Effect.filter(
          broken.caughtBy,
          (name) =>
            named(name).run.pipe(
              Effect.scoped,
              Effect.provide(subject),
              Effect.exit,
              Effect.map(Exit.isSuccess)
            ),
          { concurrency: "unbounded" }
        ).pipe(virtually)
        assert.deepStrictEqual(passed, [])
      }))
  }
})

describe("the suite", () => {
  it("has no check that nothing can fail", () => {
    const proven = new Set(brokenStores.flatMap(({ caughtBy }) => caughtBy))
    assert.deepStrictEqual(LockStoreSuite.checks.map(({ name }) => name).filter((name) => !proven.has(name)), [])
  })
})

const named = (name: string): LockStoreSuite.Check => {
  const check = LockStoreSuite.checks.find((check) => check.name === name)
  assert(check !== undefined, `no check "${name}"`)
  return check
}
