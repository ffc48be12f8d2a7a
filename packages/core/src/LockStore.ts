/**
 * The port behind every lock: where leases live. A store decides who holds a key, on its own clock, and keeps the queue of
 * waiters; it knows nothing of renewal, time-outs or scopes. `layerMemory` is a full store in this process and the
 * readable reference of the protocol.
 *
 * **Gotchas**
 *
 * All verbs are idempotent for one holder id, because clients send again after a lost reply. A failed verb is an *unknown*
 * outcome: it may have happened.
 *
 * @since 0.1.0
 */
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as instant from "./internal/instant.ts"
import * as memory from "./internal/memoryStore.ts"
import type { HolderInfo, LockStoreError, TicketRefused } from "./LockError.ts"

/**
 * Where leases live. Provide one store per application; every `Lock` layer on it competes for the same keys.
 *
 * **When to use**
 *
 * Use `layerMemory` in a single process and in tests, `RedisLockStore.layer` of `@effect-lock/redis` across processes.
 * Implement this service to add a store, and run `LockStoreSuite` of `@effect-lock/test-utils` on it.
 *
 * @category services
 * @since 0.1.0
 */
export class LockStore extends Context.Service<LockStore, {
  /** Names the store in errors, spans and metrics. */
  readonly name: string
  /** The part of a ttl by which this store's clock may run faster than ours, e.g. `0.01`. */
  readonly driftFactor: number
  /** What the store adds to every holder's metadata, e.g. host and pid. */
  readonly identity: Readonly<Record<string, string>>
  /**
   * Grants, or registers the waiter in the queue (`wait: true`), or tells who is in the way. Asked again with the same
   * holder id it gives the same grant or keeps the same place.
   */
  readonly attempt: (request: Request) => Effect.Effect<Attempt, LockStoreError>
  /** Makes the lease live for `ttl` from now; never shortens it, and never creates one that is not there. */
  readonly renew: (lease: Held, ttl: number) => Effect.Effect<Confirmation, LockStoreError>
  /** Ends the lease, or keeps it unowned for `keepFor` more milliseconds; the next waiter is granted. */
  readonly release: (lease: Held, keepFor: number) => Effect.Effect<Confirmation, LockStoreError>
  /** Removes every trace of a holder id, waiting or granted, and tells how things stood just before. */
  readonly abandon: (key: string, holderId: string) => Effect.Effect<Standing, LockStoreError>
  /** Ends every grant of the key and grants to this one, ahead of the queue; the evicted hear of it through `onNews`. */
  readonly takeover: (request: Request) => Effect.Effect<Grant, LockStoreError>
  /** Sets a lease aside for whoever adopts it, until its time left is over: renewed and released by nobody. */
  readonly transfer: (lease: Held, ticketId: string) => Effect.Effect<Transfer, LockStoreError>
  /** Exchanges what was set aside for a new grant, once. */
  readonly adopt: (ticket: Held, request: Request) => Effect.Effect<Adoption, LockStoreError>
  /** Tells whether anybody is queued behind the lease; who queues from now on is told of through `onNews`, or not at all. */
  readonly watch: (lease: Held) => Effect.Effect<Watch, LockStoreError>
  /** Calls back, until the scope closes, when the store has news of this client's leases that nobody asked for. */
  readonly onNews: (listener: (news: News) => void) => Effect.Effect<void, never, Scope.Scope>
  /** Who holds the key and who waits for it. */
  readonly inspect: (key: string) => Effect.Effect<KeyState, LockStoreError>
  /** The keys that begin so and are, or were until lately, in use. */
  readonly list: (prefix: string) => Effect.Effect<ReadonlyArray<string>, LockStoreError>
}>()("@effect-lock/core/LockStore") {}

/**
 * A store that counts: several holders of one key, up to its limit. What semaphores and read-write locks need.
 *
 * **When to use**
 *
 * `Permits.layer` is built on it. `layerMemory` and `RedisLockStore` provide it; a quorum does not, because votes of a
 * majority cannot count permits.
 *
 * @category services
 * @since 0.1.0
 */
export class PermitStore extends Context.Service<
  PermitStore,
  LockStore["Service"] & {
    /** Gives back all but `permits` of a lease's permits; the next waiters are granted. Never adds any. */
    readonly shrink: (lease: Held, permits: number) => Effect.Effect<Confirmation, LockStoreError>
    /**
     * Changes how many permits the key has for all who ask with the limit `declared`, until it is changed again, the key has
     * not been used for 30 days, or is asked for with another declared limit when nobody uses it. Nobody is evicted; growing
     * grants at once.
     */
    readonly setLimit: (key: string, declared: number, limit: number) => Effect.Effect<LimitSet, LockStoreError>
  }
>()("@effect-lock/core/PermitStore") {}

/**
 * What a client asks for. All durations are milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  readonly key: string
  readonly holderId: string
  readonly ttl: number
  /** How much of the key's `limit` is asked for; a mutex asks for 1 of 1. */
  readonly permits: number
  readonly limit: number
  readonly wait: boolean
  /**
   * The head start in the queue, in steps of ten seconds: who asks with 1 stands where it would stand had it come ten seconds
   * sooner. `Infinity` stands before all others.
   */
  readonly priority: number
  /** Who would have to queue behind so many is refused instead. */
  readonly maxWaiters: number
  /** The highest token this client has seen: the grant's token is greater. */
  readonly floor: number
  readonly metadata: Readonly<Record<string, string>>
}

/**
 * A lease as the store identifies it: verbs act only where both id and token match.
 *
 * @category models
 * @since 0.1.0
 */
export interface Held {
  readonly key: string
  readonly holderId: string
  readonly token: number
}

/**
 * The store's decision that a waiter is now the holder.
 *
 * **Details**
 *
 * `ttl` is how long the grant lives in the store, and `sentAt` a local moment that surely lies before the grant: the
 * holder must count its deadline from there. A grant that was pushed may live for less than the ttl asked for; the first
 * renewal brings the rest.
 *
 * @category models
 * @since 0.1.0
 */
export interface Grant {
  readonly token: number
  readonly ttl: number
  readonly sentAt: Instant
}

/**
 * The answer to `attempt`. `OtherLimit`: the key is in use with that limit.
 *
 * @category models
 * @since 0.1.0
 */
export type Attempt =
  | { readonly _tag: "Granted"; readonly grant: Grant }
  | { readonly _tag: "Queued"; readonly standing: Standing; readonly signal: Effect.Effect<Signal, LockStoreError> }
  | { readonly _tag: "Refused"; readonly standing: Standing }
  | { readonly _tag: "QueueFull"; readonly standing: Standing }
  | OtherLimit

/**
 * The key is in use by callers who declare another limit.
 *
 * @category models
 * @since 0.1.0
 */
export interface OtherLimit {
  readonly _tag: "OtherLimit"
  readonly limit: number
}

/**
 * The answer to `setLimit`.
 *
 * @category models
 * @since 0.1.0
 */
export type LimitSet = { readonly _tag: "Done" } | OtherLimit

/**
 * The answer to `watch`.
 *
 * @category models
 * @since 0.1.0
 */
export type Watch =
  | { readonly _tag: "Done"; readonly isWanted: boolean }
  | { readonly _tag: "NotHeld" }

/**
 * What ends a wait: the grant, or the advice to ask again (with the same holder id).
 *
 * @category models
 * @since 0.1.0
 */
export type Signal =
  | { readonly _tag: "Granted"; readonly grant: Grant }
  | { readonly _tag: "LookAgain" }

/**
 * The answer to `renew` and `release`.
 *
 * @category models
 * @since 0.1.0
 */
export type Confirmation = "Done" | "NotHeld"

/**
 * The answer to `transfer`: how long the ticket can be adopted, in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export type Transfer =
  | { readonly _tag: "Done"; readonly timeLeft: number }
  | { readonly _tag: "NotHeld" }

/**
 * The answer to `adopt`.
 *
 * @category models
 * @since 0.1.0
 */
export type Adoption =
  | { readonly _tag: "Granted"; readonly grant: Grant }
  | { readonly _tag: "Refused"; readonly reason: TicketRefused["reason"] }

/**
 * What a store tells unasked: a holder was evicted by a take-over, somebody queues behind a holder that is watched, or the
 * leases of a key (of all keys) are in doubt, and should be renewed now to find out.
 *
 * @category models
 * @since 0.1.0
 */
export type News =
  | { readonly _tag: "TakenOver"; readonly holderId: string }
  | { readonly _tag: "Wanted"; readonly holderId: string }
  | { readonly _tag: "InDoubt"; readonly key: string | undefined }

/**
 * Who is in the way of a waiter. `position` counts from 0, and is -1 for who is not queued.
 *
 * @category models
 * @since 0.1.0
 */
export interface Standing {
  readonly holders: ReadonlyArray<HolderInfo>
  readonly position: number
  readonly queueLength: number
}

/**
 * Who waits for a key; `waitedFor` in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface WaiterInfo {
  readonly holderId: string
  readonly permits: number
  readonly waitedFor: number
  readonly metadata: Readonly<Record<string, string>>
}

/**
 * All that a store knows of a key, waiters in the order in which they will be granted. `limit` is how many permits there
 * are, told of a key in use.
 *
 * @category models
 * @since 0.1.0
 */
export interface KeyState {
  readonly key: string
  readonly limit?: number
  readonly holders: ReadonlyArray<HolderInfo>
  readonly waiters: ReadonlyArray<WaiterInfo>
}

/**
 * A local moment on both clocks, in milliseconds.
 *
 * **Details**
 *
 * The monotonic clock may stand still while a machine is suspended, and the wall clock may be set back: only together
 * do they bound how long ago something was.
 *
 * @category models
 * @since 0.1.0
 */
export interface Instant {
  readonly monotonic: number
  readonly wall: number
}

/**
 * Reads both clocks.
 *
 * @category time
 * @since 0.1.0
 */
export const nowUnsafe: (clock: Clock.Clock) => Instant = instant.nowUnsafe

/**
 * Milliseconds since `since`, by whichever clock has run further: a set-back or a suspended clock cannot make less of it.
 *
 * @category time
 * @since 0.1.0
 */
export const elapsedUnsafe: (since: Instant, clock: Clock.Clock) => number = instant.elapsedUnsafe

/**
 * A full store in this process: expires, queues in order, grants and signals. For single-process apps and tests.
 *
 * **Details**
 *
 * Time comes from Effect's clock, so it works under `TestClock`. It keeps nothing for a key that nobody holds or waits
 * for, but a limit that was set. Its leases end with the process.
 *
 * **Gotchas**
 *
 * Every build of this layer is a store of its own: bind it to one `const` and share it.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<LockStore | PermitStore> = Layer.effectContext(
  Effect.map(memory.make, (store) => Context.mergeAll(Context.make(LockStore, store), Context.make(PermitStore, store)))
)
