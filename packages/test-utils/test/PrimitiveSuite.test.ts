import { LockStore } from "@effect-lock/core"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Exit, Layer } from "effect"
import { PrimitiveSuite } from "../src/index.ts"
import { Subject } from "../src/LockStoreSuite.ts"
import { virtually } from "./support/virtually.ts"

PrimitiveSuite.suite("primitives on the memory store", LockStore.layerMemory)

type Store = LockStore.PermitStore["Service"]

const none = { holders: [], position: -1, queueLength: 0 }

/** The memory store, broken, and the checks that must find it out, by the beginning of their names. */
const brokenStores: ReadonlyArray<{
  readonly name: string
  readonly change: (store: Store) => Partial<Store>
  readonly caughtBy: ReadonlyArray<string>
}> = [
  {
    name: "grants everything",
    change: (store) => ({ attempt: (request) => store.attempt({ ...request, key: request.holderId }) }),
    caughtBy: [
      "withLocks: callers",
      "withLocks: who waits",
      "Guard:",
      "list:",
      "LeaderElection: one leads",
      "DistributedCron: each tick",
      "DistributedCron: while a tick",
      "once:",
      "Semaphore: never more permits",
      "Semaphore: who asks for many",
      "Semaphore: nested permits",
      "Semaphore: another limit",
      "Semaphore: a limit that grows",
      "ReadWriteLock: readers that ask in a row",
      "ReadWriteLock: writers that never cease",
      "ReadWriteLock: an upgrade waits",
      "ReadWriteLock: of two readers",
      "ReadWriteLock: a downgrade lets in"
    ]
  },
  {
    name: "lets those who ask for little pass",
    change: (store) => ({
      attempt: (request) => store.attempt({ ...request, priority: request.permits > 1 ? -1000 : request.priority })
    }),
    caughtBy: ["Semaphore: who asks for many", "ReadWriteLock: readers that never cease"]
  },
  {
    name: "never lets go of a lease",
    change: (store) => ({ attempt: (request) => store.attempt({ ...request, ttl: 600_000 }) }),
    caughtBy: ["Semaphore: permits of a holder", "ReadWriteLock: a reader that is never heard of"]
  },
  {
    name: "forgets nobody",
    change: () => ({ abandon: () => Effect.succeed(none) }),
    caughtBy: ["Semaphore: who is interrupted", "ReadWriteLock: upgraded work ends"]
  },
  {
    name: "keeps what was released",
    change: (store) => ({ release: (lease) => store.release(lease, 600_000) }),
    caughtBy: ["withLocks: who waits", "LeaderElection: one that is interrupted"]
  },
  {
    name: "lets a ticket be adopted again",
    change: (store) => ({
      adopt: (ticket, request) =>
        Effect.flatMap(store.adopt(ticket, request), (adoption) =>
          adoption._tag === "Granted"
            ? Effect.succeed(adoption)
            : Effect.map(store.takeover(request), (grant) => ({ _tag: "Granted", grant } as const)))
    }),
    caughtBy: ["hand-off:"]
  },
  {
    name: "tells nobody that somebody waits",
    change: (store) => ({
      watch: (lease) =>
        Effect.map(store.watch(lease), (watch) => watch._tag === "Done" ? { ...watch, isWanted: false } : watch),
      onNews: () => Effect.void
    }),
    caughtBy: ["revocation:"]
  },
  {
    name: "evicts nobody",
    change: (store) => ({ takeover: (request) => store.takeover({ ...request, key: request.holderId }) }),
    caughtBy: ["LeaderElection: a leader that is taken over"]
  },
  {
    name: "takes nothing back",
    change: () => ({ release: () => Effect.succeed("Done") }),
    caughtBy: ["ReadWriteLock: what is nested", "ReadWriteLock: of two readers"]
  },
  {
    name: "never shrinks a lease",
    change: () => ({ shrink: () => Effect.succeed("Done") }),
    caughtBy: ["ReadWriteLock: a downgrade lets in"]
  },
  {
    name: "never changes a limit",
    change: () => ({ setLimit: () => Effect.succeed({ _tag: "Done" }) }),
    caughtBy: ["Semaphore: a limit that grows"]
  }
]

/** Those of the checks that the memory store passes when it is changed so. */
const passedBy = Effect.fnUntraced(
  function*(change: (store: Store) => Partial<Store>, checks: typeof PrimitiveSuite.checks) {
    const memory = Context.get(yield* Layer.build(Layer.fresh(LockStore.layerMemory)), LockStore.PermitStore)
    const store = { ...memory, ...change(memory) }
    const layer = Layer.merge(
      Layer.succeed(LockStore.LockStore, store),
      Layer.succeed(LockStore.PermitStore, store)
    )
    // As long as the slowest check takes: three ticks of a second.
    const subject = Subject.layer(layer, { timeScale: 0.1, patience: "4 seconds" })
    const passed = yield* Effect.filter(
      checks,
      ({ run }) => run.pipe(Effect.scoped, Effect.provide(subject), Effect.exit, Effect.map(Exit.isSuccess)),
      { concurrency: "unbounded" }
    ).pipe(virtually)
    return passed.map(({ name }) => name)
  }
)

describe("a store that", { concurrent: true }, () => {
  it.effect("is not broken passes", () =>
    Effect.gen(function*() {
      const passed = yield* passedBy(() => ({}), PrimitiveSuite.checks)
      assert.deepStrictEqual(passed, PrimitiveSuite.checks.map(({ name }) => name))
    }))

  for (const { caughtBy, change, name } of brokenStores) {
    it.effect(`${name} does not pass`, () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* passedBy(change, caughtBy.map(named)), [])
      }))
  }
})

describe("the suite of primitives", () => {
  it("has no check that nothing can fail", () => {
    const proven = new Set(brokenStores.flatMap(({ caughtBy }) => caughtBy.map((name) => named(name).name)))
    assert.deepStrictEqual(PrimitiveSuite.checks.map(({ name }) => name).filter((name) => !proven.has(name)), [])
  })
})

const named = (beginning: string): (typeof PrimitiveSuite.checks)[number] => {
  const found = PrimitiveSuite.checks.filter(({ name }) => name.startsWith(beginning))
  assert.lengthOf(found, 1, beginning)
  return found[0]!
}
