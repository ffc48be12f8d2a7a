/**
 * Many readers or one writer of a key, across processes. Who asks first comes first: readers that ask in a row are in
 * together, then the writer behind them, then the readers behind that one, so neither kind can keep the other out.
 *
 * **When to use**
 *
 * Use it where reads take a while and must not see a write half done. Where they are short, a `Lock` for all costs less than
 * telling readers from writers.
 *
 * **Gotchas**
 *
 * Not on a quorum, as every lock with more than one permit. A reader has 1 of the key's 2^20 permits, a writer has all:
 * that is what errors, events and `inspect` show. A reader whose process died is in the way for its own ttl at most.
 *
 * **Example** (Readers together, the writer alone)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { LockStore, Permits, ReadWriteLock } from "@effect-lock/core"
 *
 * const config = ReadWriteLock.make("config", { ttl: "30 seconds" })
 *
 * const log: Array<string> = []
 * const does = (what: string) =>
 *   Effect.gen(function*() {
 *     log.push(`${what} begins`)
 *     yield* Effect.sleep("5 millis")
 *     log.push(`${what} ends`)
 *   })
 *
 * const PermitsLive = Permits.layer().pipe(Layer.provide(LockStore.layerMemory))
 * await Effect.all([config.withRead(does("read")), config.withRead(does("read")), config.withWrite(does("write"))], {
 *   concurrency: "unbounded"
 * }).pipe(Effect.provide(PermitsLive), Effect.runPromise)
 * log // => ["read begins", "read begins", "read ends", "read ends", "write begins", "write ends"]
 * ```
 *
 * @since 0.1.0
 */
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type { Ask } from "./internal/acquiring.ts"
import type { Lease } from "./Lease.ts"
import type { TryError } from "./Lock.ts"
import {
  type LockDeadlock,
  type LockError,
  type LockInvalid,
  type LockLost,
  type LockStoreError,
  LockUpgradeConflict
} from "./LockError.ts"
import type * as LockOptions from "./LockOptions.ts"
import type { KeyState } from "./LockStore.ts"
import { Permits, type Target } from "./Permits.ts"

/**
 * The lease of a reader.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReadLease extends Lease {
  /**
   * Makes this reader the writer until the scope closes; then it reads on. It waits for the other readers to end, ahead of
   * everybody else, so what was read stays true.
   *
   * If another reader is upgrading already, this fails with `LockUpgradeConflict` at once: each would wait for the other.
   * One of the two gets in when the other one gives up its read lease. As with `Lock.acquire` nothing is interrupted by itself:
   * run the work under `protect` of the lease this gives, which watches over both leases.
   *
   * Inside a region it has its turn there, so nothing that is nested reads meanwhile; nesting in the same fiber before the
   * scope closes fails with `LockDeadlock`.
   */
  readonly upgrade: Effect.Effect<UpgradedLease, LockError | LockUpgradeConflict, Scope.Scope>
}

/**
 * The lease of a writer.
 *
 * @category models
 * @since 0.1.0
 */
export interface WriteLease extends Lease {
  /**
   * Makes this writer a reader: those who wait to read get in at once, and nobody can write in between. The lease goes on,
   * with its holder id and token, and can be upgraded.
   *
   * It waits for what is nested in the region. Downgrading inside of that, or in a fiber that has a nested lease open, fails
   * with `LockDeadlock`, and changes nothing: those around still write. Fails with `LockStoreError` when the store did not
   * confirm: others may then be kept out, but this is a reader; try again.
   */
  readonly downgrade: Effect.Effect<ReadLease, LockLost | LockStoreError | LockDeadlock>
}

/**
 * What an upgraded reader has on top of its read lease: valid while both are, so it cannot be handed off.
 *
 * @category models
 * @since 0.1.0
 */
export type UpgradedLease = Omit<Lease, "handOff">

/**
 * The definition of a read-write lock: a value without state, made at module level. What it does needs `Permits`.
 *
 * **Details**
 *
 * Nested in a region of the same key, `withRead` and `withWrite` inside `withWrite`, and `withRead` inside `withRead`, use its
 * lease and take turns. `withWrite` inside `withRead` fails with `LockDeadlock`: upgrade the lease instead.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReadWriteLock {
  readonly key: string
  /** Runs an effect together with other readers. Order and losses are those of `Lock.withLock`. */
  readonly withRead: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockError, R | Permits>
  /** Runs an effect while nobody else reads or writes. */
  readonly withWrite: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | LockError, R | Permits>
  /** As `withRead`, for work that needs the lease. */
  readonly withReadLease: <A, E, R>(
    use: (lease: ReadLease) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | LockError, R | Permits>
  /** As `withWrite`, for work that needs the lease. */
  readonly withWriteLease: <A, E, R>(
    use: (lease: WriteLease) => Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E | LockError, R | Permits>
  /** `withRead` if nobody writes or waits: `None` otherwise. */
  readonly withReadIfAvailable: <A, E, R>(
    effect: Effect.Effect<A, E, R>
  ) => Effect.Effect<Option.Option<A>, E | TryError, R | Permits>
  /** `withWrite` if nobody reads, writes or waits: `None` otherwise. */
  readonly withWriteIfAvailable: <A, E, R>(
    effect: Effect.Effect<A, E, R>
  ) => Effect.Effect<Option.Option<A>, E | TryError, R | Permits>
  /** Reads for as long as the scope is open. As with `Lock.acquire`, only `lease.protect` guards work. */
  readonly acquireRead: Effect.Effect<ReadLease, LockError, Permits | Scope.Scope>
  /** Writes for as long as the scope is open. As with `Lock.acquire`, only `lease.protect` guards work. */
  readonly acquireWrite: Effect.Effect<WriteLease, LockError, Permits | Scope.Scope>
  /** `acquireRead` if nobody writes or waits: `None` otherwise. */
  readonly tryAcquireRead: Effect.Effect<Option.Option<ReadLease>, TryError, Permits | Scope.Scope>
  /** `acquireWrite` if nobody reads, writes or waits: `None` otherwise. */
  readonly tryAcquireWrite: Effect.Effect<Option.Option<WriteLease>, TryError, Permits | Scope.Scope>
  /** Who reads or writes, and who waits to. */
  readonly inspect: Effect.Effect<KeyState, LockStoreError | LockInvalid, Permits>
}

/**
 * Defines a read-write lock.
 *
 * **Example** (Write only if need be)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { LockStore, Permits, ReadWriteLock } from "@effect-lock/core"
 *
 * const config = ReadWriteLock.make("config")
 *
 * let version = 1
 * const migrate = config.withReadLease((lease) =>
 *   Effect.gen(function*() {
 *     if (version === 2) return "up to date"
 *     const writing = yield* lease.upgrade
 *     yield* writing.protect(Effect.sync(() => version = 2))
 *     return "migrated"
 *   }).pipe(Effect.scoped)
 * ).pipe(
 *   // Another reader was about to write as well: look again when it has.
 *   Effect.retry({ while: (error) => error._tag === "LockUpgradeConflict" })
 * )
 *
 * const PermitsLive = Permits.layer().pipe(Layer.provide(LockStore.layerMemory))
 * const both = Effect.all([migrate, migrate], { concurrency: "unbounded" })
 * await Effect.runPromise(Effect.provide(both, PermitsLive)) // => ["migrated", "up to date"]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (key: string, options?: LockOptions.LockOptions): ReadWriteLock => {
  const { read, upgrade, write } = targets(key)

  const readLease = (permits: Permits["Service"]) => (lease: Lease): ReadLease => ({
    ...lease,
    upgrade: Effect.map(permits.acquire(upgrade(lease), options), (upper) => both(lease, upper))
  })

  const writeLease = (permits: Permits["Service"]) => (lease: Lease): WriteLease => ({
    ...lease,
    downgrade: Effect.as(
      Effect.catchTag(permits.shrink(lease, 1), "LockInvalid", Effect.die),
      readLease(permits)(lease)
    )
  })

  return {
    key,
    withRead: (effect) => Permits.use((permits) => permits.withTarget(read, effect, options)),
    withWrite: (effect) => Permits.use((permits) => permits.withTarget(write, effect, options)),
    withReadLease: (use) =>
      Permits.use((permits) => permits.withLease(read, (lease) => use(readLease(permits)(lease)), options)),
    withWriteLease: (use) =>
      Permits.use((permits) => permits.withLease(write, (lease) => use(writeLease(permits)(lease)), options)),
    withReadIfAvailable: (effect) =>
      Permits.use((permits) => permits.withTargetIfAvailable(read, () => effect, options)),
    withWriteIfAvailable: (effect) =>
      Permits.use((permits) => permits.withTargetIfAvailable(write, () => effect, options)),
    acquireRead: Permits.use((permits) => Effect.map(permits.acquire(read, options), readLease(permits))),
    acquireWrite: Permits.use((permits) => Effect.map(permits.acquire(write, options), writeLease(permits))),
    tryAcquireRead: Permits.use((permits) =>
      Effect.map(permits.tryAcquire(read, options), Option.map(readLease(permits)))
    ),
    tryAcquireWrite: Permits.use((permits) =>
      Effect.map(permits.tryAcquire(write, options), Option.map(writeLease(permits)))
    ),
    inspect: Permits.use((permits) => permits.inspect(key))
  }
}

/** More readers than any deployment has, and sums of permits that any number can hold. */
const limit = 2 ** 20

const targets = (key: string) => ({
  read: { key, permits: 1, limit, needs: 1, isShared: true },
  write: { key, permits: limit, limit, needs: limit, isShared: true },
  upgrade: (upgrades: Lease): Target<LockUpgradeConflict> => ({
    key,
    permits: limit - 1,
    limit,
    needs: limit,
    isShared: true,
    upgrades,
    how: alone(upgrades)
  })
})

/** Nobody but another upgrade stands before an upgrade in the queue, and that one waits for this reader. */
const alone = ({ key, token }: Lease): Ask<LockUpgradeConflict> => ({
  wait: true,
  send: (store, request) =>
    Effect.flatMap(store.attempt(request), (answer) =>
      answer._tag === "Queued" && answer.standing.position > 0
        ? Effect.fail(new LockUpgradeConflict({ key, token, holders: answer.standing.holders }))
        : Effect.succeed(answer))
})

/** Once the reader's one permit is gone, the others do not keep anybody out. */
const both = (lease: Lease, upper: Lease): UpgradedLease => ({
  key: upper.key,
  holderId: upper.holderId,
  token: upper.token,
  deadline: Effect.zipWith(
    lease.deadline,
    upper.deadline,
    (one, other) => DateTime.isLessThan(one, other) ? one : other
  ),
  isValid: Effect.zipWith(lease.isValid, upper.isValid, (one, other) => one && other),
  lost: Effect.raceFirst(lease.lost, upper.lost),
  protect: (effect) => lease.protect(upper.protect(effect)),
  check: Effect.andThen(lease.check, upper.check),
  extend: (ttl) => Effect.andThen(lease.extend(ttl), upper.extend(ttl)),
  revocation: lease.protect(upper.revocation),
  heartbeat: Effect.andThen(lease.heartbeat, upper.heartbeat)
})
