import { it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { LockStore, Permits } from "../src/index.ts"
import { takeSteps } from "./support/permitSteps.ts"

it.live(
  "G1: 20,000 random steps of three clients of the memory store conserve permits, and nobody is beyond the limit",
  () =>
    Effect.gen(function*() {
      const memory = yield* Layer.build(LockStore.layerMemory)
      const store = Context.get(memory, LockStore.PermitStore)
      const clients = yield* Effect.replicateEffect(
        Layer.build(Layer.fresh(Permits.layer()).pipe(Layer.provide(Layer.succeedContext(memory)))),
        3
      )
      yield* takeSteps(clients.map((client) => ({ permits: Context.get(client, Permits.Permits), store })), 20_000)
    }),
  300_000
)
