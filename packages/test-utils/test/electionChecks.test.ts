import { Lock, LockStore } from "@effect-lock/core"
import { describe, it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { electionChecks } from "../src/internal/electionChecks.ts"

/** Two clients of one store. */
const clients = Effect.gen(function*() {
  const store = Layer.succeedContext(yield* Layer.build(LockStore.layerMemory))
  const client = Effect.map(Layer.build(Lock.layer().pipe(Layer.provide(store), Layer.fresh)), Context.get(Lock.Lock))
  return [yield* client, yield* client] as const
})

describe("on the memory store", { concurrent: true }, () => {
  for (const { name, run } of electionChecks) {
    it.live(name, () => Effect.flatMap(clients, (clients) => run(clients, "k", 300)))
  }
})
