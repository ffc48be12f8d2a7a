/**
 * A memory store that writes down every command it is sent, and does to it what the test says.
 */
import { Context, Effect, Exit, Layer, type Scope } from "effect"
import { Lock, LockError, type LockOptions, LockStore } from "../../src/index.ts"

export type Verb = "attempt" | "renew" | "release" | "abandon" | "takeover" | "transfer" | "adopt" | "watch"

type Answer<A> = Effect.Effect<A, LockError.LockStoreError>

/** What to do instead of `run`, which does what the memory store does; `index` counts the commands of this verb from 0. */
type Fault<A> = (run: Answer<A>, index: number) => Answer<A>

export interface TestStore {
  readonly service: LockStore.LockStore["Service"]
  /** What happened at the store: commands as they are sent and as they end. Tests add their own events. */
  readonly trace: Array<string>
  readonly requests: Array<LockStore.Request>
  readonly releases: Array<{ readonly lease: LockStore.Held; readonly keepFor: number }>
  readonly renewals: Array<{ readonly lease: LockStore.Held; readonly ttl: number }>
  readonly count: (verb: Verb) => number
  readonly faults: {
    attempt?: Fault<LockStore.Attempt> | undefined
    renew?: Fault<LockStore.Confirmation> | undefined
    release?: Fault<LockStore.Confirmation> | undefined
    abandon?: Fault<LockStore.Standing> | undefined
    takeover?: Fault<LockStore.Grant> | undefined
    transfer?: Fault<LockStore.Transfer> | undefined
    adopt?: Fault<LockStore.Adoption> | undefined
    watch?: Fault<LockStore.Watch> | undefined
    inspect?: Fault<LockStore.KeyState> | undefined
    /** Nobody hears what is told unasked. */
    news?: "lost" | undefined
  }
  /** The keys' state, past all faults. */
  readonly inspect: (key: string) => Effect.Effect<LockStore.KeyState>
  /** Tells all clients, unasked. */
  readonly tell: (loss: LockStore.News) => Effect.Effect<void>
  /** Takes everything away from a holder, as an administrator would. */
  readonly evict: (key: string, holderId: string) => Effect.Effect<void>
}

export const make: Effect.Effect<TestStore, never, Scope.Scope> = Effect.gen(function*() {
  const memory = Context.get(yield* Layer.build(Layer.fresh(LockStore.layerMemory)), LockStore.LockStore)
  const trace: Array<string> = []
  const counts = new Map<string, number>()
  const listeners = new Set<(loss: LockStore.News) => void>()
  const store: TestStore = {
    trace,
    requests: [],
    releases: [],
    renewals: [],
    count: (verb) => counts.get(verb) ?? 0,
    faults: {},
    inspect: (key) => Effect.orDie(memory.inspect(key)),
    tell: (loss) =>
      Effect.sync(() => {
        for (const listener of listeners) listener(loss)
      }),
    evict: (key, holderId) => Effect.orDie(Effect.asVoid(memory.abandon(key, holderId))),
    service: {
      ...memory,
      attempt: (request) =>
        recorded("attempt", memory.attempt(request), ({ _tag }) => _tag, () => store.requests.push(request)),
      renew: (lease, ttl) =>
        recorded("renew", memory.renew(lease, ttl), (answer) => answer, () => store.renewals.push({ lease, ttl })),
      release: (lease, keepFor) =>
        recorded(
          "release",
          memory.release(lease, keepFor),
          (answer) => answer,
          () => store.releases.push({ lease, keepFor })
        ),
      abandon: (key, holderId) => recorded("abandon", memory.abandon(key, holderId), () => "done"),
      takeover: (request) =>
        recorded("takeover", memory.takeover(request), () => "Granted", () => store.requests.push(request)),
      transfer: (lease, ticketId) => recorded("transfer", memory.transfer(lease, ticketId), ({ _tag }) => _tag),
      adopt: (ticket, request) =>
        recorded("adopt", memory.adopt(ticket, request), ({ _tag }) => _tag, () => store.requests.push(request)),
      watch: (lease) => recorded("watch", memory.watch(lease), ({ _tag }) => _tag),
      onNews: (listener) =>
        Effect.andThen(
          Effect.sync(() => listeners.add(listener)),
          memory.onNews((news) => store.faults.news === "lost" ? undefined : listener(news))
        ),
      inspect: (key) =>
        Effect.suspend(() => {
          const run = memory.inspect(key)
          return store.faults.inspect === undefined ? run : store.faults.inspect(run, 0)
        })
    }
  }

  const recorded = <A>(
    verb: Verb,
    run: Answer<A>,
    describe: (answer: A) => string,
    onSent = () => {}
  ): Answer<A> =>
    Effect.suspend(() => {
      const index = counts.get(verb) ?? 0
      counts.set(verb, index + 1)
      trace.push(`${verb} sent`)
      onSent()
      const fault = store.faults[verb] as Fault<A> | undefined
      return Effect.onExit(
        fault === undefined ? run : fault(run, index),
        (exit) => Effect.sync(() => trace.push(`${verb} ${describeEnd(exit, describe)}`))
      )
    })

  return store
})

const describeEnd = <A>(exit: Exit.Exit<A, unknown>, describe: (answer: A) => string): string =>
  Exit.isSuccess(exit)
    ? describe(exit.value)
    : Exit.hasInterrupts(exit)
    ? "interrupted"
    : Exit.hasDies(exit)
    ? "died"
    : "failed"

export const layer = (store: TestStore): Layer.Layer<LockStore.LockStore> =>
  Layer.succeed(LockStore.LockStore, store.service)

/** One more client of the store, closed with the scope. */
export const makeLock = (
  store: TestStore,
  defaults?: LockOptions.LockOptions
): Effect.Effect<Lock.Lock["Service"], LockError.LockInvalid, Scope.Scope> =>
  Effect.map(
    Layer.build(Lock.layer(defaults).pipe(Layer.provide(layer(store)))),
    (context) => Context.get(context, Lock.Lock)
  )

/** A store and a client of it. */
export const setup = Effect.fnUntraced(function*(defaults?: LockOptions.LockOptions) {
  const store = yield* make
  return { store, lock: yield* makeLock(store, defaults) }
})

const fail = (reason: LockError.LockStoreError["reason"]) =>
  Effect.fail(new LockError.LockStoreError({ store: "memory", operation: "test", reason }))

export const unavailable = fail("Unavailable")

export const refused = fail("Refused")
