/** What a client asked of its store and when, on this process's monotonic clock. */
import { type LockError, LockStore } from "@effect-lock/core"
import { Effect, Layer } from "effect"

export interface Call {
  readonly verb: "attempt" | "renew" | "release" | "abandon"
  readonly sentAt: number
  answeredAt: number | undefined
  answer: string | undefined
}

/** Notes every command of a store, past whatever makes it fail. */
export const record = <E, R>(store: Layer.Layer<LockStore.LockStore, E, R>, calls: Array<Call>) =>
  Layer.effect(
    LockStore.LockStore,
    Effect.map(LockStore.LockStore, (store) => {
      const noted = <A>(
        verb: Call["verb"],
        describe: (answer: A) => string,
        effect: Effect.Effect<A, LockError.LockStoreError>
      ) =>
        Effect.suspend(() => {
          const call: Call = { verb, sentAt: performance.now(), answeredAt: undefined, answer: undefined }
          calls.push(call)
          const answered = (answer: string) =>
            Effect.sync(() => {
              call.answeredAt = performance.now()
              call.answer = answer
            })
          return effect.pipe(
            Effect.tap((answer) => answered(describe(answer))),
            Effect.tapError((error) => answered(error.reason))
          )
        })
      return LockStore.LockStore.of({
        ...store,
        attempt: (request) => noted("attempt", ({ _tag }) => _tag, store.attempt(request)),
        renew: (lease, ttl) => noted("renew", String, store.renew(lease, ttl)),
        release: (lease, keepFor) => noted("release", String, store.release(lease, keepFor)),
        abandon: (key, holderId) => noted("abandon", () => "Done", store.abandon(key, holderId))
      })
    })
  ).pipe(Layer.provide(store))

export const answers = (calls: ReadonlyArray<Call>, verb: Call["verb"], answer?: string) =>
  calls.filter((call) => call.verb === verb && (answer === undefined || call.answer === answer))
