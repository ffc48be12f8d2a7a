/** Clients of one store that counts, and what their holders do. */
import { Deferred, Effect, type Scope } from "effect"
import type { Lock, LockError, LockOptions, LockStore, Permits } from "../../src/index.ts"
import { make, makePermits, type TestStore } from "./TestStore.ts"
import { until } from "./time.ts"

export type Client = <A, E, R>(
  effect: Effect.Effect<A, E, R>
) => Effect.Effect<A, E, Exclude<R, Permits.Permits | Lock.Lock>>

export const makeClient = (
  store: TestStore,
  defaults?: LockOptions.LockOptions
): Effect.Effect<Client, LockError.LockInvalid, Scope.Scope> =>
  Effect.map(makePermits(store, defaults), (context): Client => Effect.provide(context))

/** A store and two clients of it. */
export const setup = Effect.fnUntraced(function*(defaults?: LockOptions.LockOptions) {
  const store = yield* make
  return { store, client: yield* makeClient(store, defaults), other: yield* makeClient(store, defaults) }
})

/** Holds from the moment this returns until `end`, or until the lease is lost. */
export const hold = Effect.fnUntraced(function*<E>(
  locked: (body: Effect.Effect<void>) => Effect.Effect<void, E>
) {
  const inside = Deferred.makeUnsafe<void>()
  const gate = Deferred.makeUnsafe<void>()
  const fiber = yield* Effect.forkChild(
    locked(Effect.andThen(Deferred.succeed(inside, undefined), Deferred.await(gate)))
  )
  yield* until(() => Deferred.isDoneUnsafe(inside))
  return { fiber, end: Effect.asVoid(Deferred.succeed(gate, undefined)) }
})

/** Somebody who takes permits and is never heard of again. */
export const crashed = (
  { service }: TestStore,
  request: Pick<LockStore.Request, "key" | "permits" | "limit" | "ttl">
) =>
  service.attempt({
    ...request,
    holderId: "crashed",
    wait: false,
    priority: 0,
    maxWaiters: Infinity,
    floor: 0,
    metadata: {}
  })
