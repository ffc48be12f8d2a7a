/**
 * What the holder of a lock has: proof that a key was granted, the token that orders it among all grants, and the ways to
 * learn that it is gone.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { LeaseTicket } from "./LeaseTicket.ts"
import type { LockInvalid, LockLost, LockStoreError } from "./LockError.ts"

/**
 * A granted lock, kept alive by a fiber of the scope it was acquired in.
 *
 * **When to use**
 *
 * Inside `Lock.withLock` the work is guarded already. With `Lock.acquire` nothing is interrupted unless you say so: wrap
 * the work in `protect`, or ask `check` between steps.
 *
 * **Gotchas**
 *
 * No check can hold back a process that stops right after it. Send `token` along with every write and let the resource
 * refuse a smaller one than it has seen.
 *
 * @category models
 * @since 0.1.0
 */
export interface Lease {
  /** What is locked. */
  readonly key: string
  /** This grant's own id: random, never used again. */
  readonly holderId: string
  /** Strictly greater than the token of every earlier grant of this key; unchanged by renewal. */
  readonly token: number
  /** The moment, on this machine's wall clock, after which the lease must be assumed gone. Renewal moves it. */
  readonly deadline: Effect.Effect<DateTime.Utc>
  /** Whether the lease is surely valid now. */
  readonly isValid: Effect.Effect<boolean>
  /** Never succeeds; fails as soon as the lease is lost, or when its scope has closed. */
  readonly lost: Effect.Effect<never, LockLost>
  /** Runs an effect that is interrupted when the lease is lost; the whole then fails with `LockLost`. */
  readonly protect: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockLost, R>
  /** Fails when the lease is no longer surely valid. For use between steps. */
  readonly check: Effect.Effect<void, LockLost>
  /**
   * Renews now and keeps the lease with this ttl from here on. A shorter one than the time left takes effect with the
   * next renewals only.
   */
  readonly extend: (ttl: Duration.Input) => Effect.Effect<void, LockLost | LockStoreError | LockInvalid>
  /**
   * Succeeds when somebody else waits for the key, so that long work can end early of its own accord; fails when the lease is
   * lost. Pushed where the store pushes, otherwise asked for as often as renewals. Costs nothing until it is used.
   */
  readonly revocation: Effect.Effect<void, LockLost>
  /** Reports progress, for `progressTimeout`; fails when the lease is no longer surely valid. */
  readonly heartbeat: Effect.Effect<void, LockLost>
  /**
   * Gives the lease away: a ticket that `Lock.adopt` turns into a lease elsewhere, once, within the time left. Renewal has
   * been stopped and awaited; the end of this scope neither renews nor releases. Work guarded here goes on unguarded.
   * `extend` first if the ticket may be long on its way. Fails with `LockStoreError` when the store did not confirm; the
   * lease is then kept, unless the next renewal finds it gone.
   */
  readonly handOff: Effect.Effect<LeaseTicket, LockLost | LockStoreError>
}
