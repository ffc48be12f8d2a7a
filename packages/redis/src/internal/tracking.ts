import type * as LockError from "@effect-lock/core/LockError"
import type * as LockStore from "@effect-lock/core/LockStore"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import type { Tracker } from "../RedisClient.ts"
import { monotonicUnsafe } from "./instant.ts"

/**
 * Notices at once that somebody else has deleted the key of a lease held here. The server tells of the next change to a key
 * that was read with tracking, once: so each held key is read a moment after its grant, after each renewal, and whenever
 * it has changed. A lease that is missing then is called into doubt, and its renewal finds out: once, until it has been seen
 * there again, because what a quorum lacks at one voter may stay away and be no loss.
 *
 * Two rules keep this cheap. No key is read more often than once per `interval`, which includes the grant: a lease that
 * is shorter costs nothing. And a change is looked into by reading, never by writing: where several clients hold permits of
 * one key, each renewal of one is a change to all others, and theirs must not be changes in turn.
 *
 * @internal
 */
export interface Tracking extends Tracker {
  /** Whether the server has ever agreed to it. Nothing is read before. */
  readonly isOn: () => boolean
  readonly watch: (key: string, holderId: string) => void
  /** Our own writes, which nobody tells us of, make the server forget that the key was read. */
  readonly touch: (key: string) => void
  readonly unwatch: (key: string, holderId: string) => void
}

/** A key with leases held here. */
interface Watched {
  readonly key: string
  /** Its name on the server, once it was read. */
  hash: string | undefined
  /** And whether they should be found there. */
  readonly holderIds: Map<string, boolean>
  readAt: number
}

/** Milliseconds. */
const interval = 50

/**
 * Watches the keys of one server; `look` reads, with tracking, which of these holders are missing.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*(
  hashOf: (key: string) => string,
  look: (
    hash: string,
    holderIds: ReadonlyArray<string>
  ) => Effect.Effect<ReadonlyArray<string>, LockError.LockStoreError>,
  onDoubt: (key: string) => void,
  clock: Clock.Clock
): Effect.fn.Return<Tracking, never, Scope.Scope> {
  const watched = new Map<string, Watched>()
  /** Those that have been read, by their names on the server. */
  const byHash = new Map<string, Watched>()
  /** What is to be read when, the earliest first: all of them one interval after they were put here. */
  const due = new Map<Watched, number>()
  const alarm = Latch.makeUnsafe(false)
  let isAsleep = false
  let on = false
  const runInBackground = yield* FiberSet.makeRuntime<never, void, never>()
  const now = () => monotonicUnsafe(clock)

  const readLater = (entry: Watched): void => {
    if (!on || due.has(entry)) return
    due.set(entry, now() + interval)
    if (isAsleep) alarm.openUnsafe()
  }

  const readSoon = (entry: Watched): void => {
    if (now() - entry.readAt < interval) return readLater(entry)
    due.delete(entry)
    runInBackground(read(entry))
  }

  const forget = (entry: Watched, holderId: string): void => {
    if (!entry.holderIds.delete(holderId) || entry.holderIds.size > 0) return
    watched.delete(entry.key)
    due.delete(entry)
    if (entry.hash !== undefined) byHash.delete(entry.hash)
  }

  const read = (entry: Watched): Effect.Effect<void> =>
    Effect.suspend(() => {
      entry.readAt = now()
      const asked = Array.from(entry.holderIds.keys())
      if (asked.length === 0) return Effect.void
      const hash = entry.hash ??= hashOf(entry.key)
      byHash.set(hash, entry)
      return look(hash, asked).pipe(
        Effect.map((missing) => {
          let isDoubtful = false
          for (const id of asked) {
            const expected = entry.holderIds.get(id)
            if (expected === undefined) continue
            const found = !missing.includes(id)
            if (expected && !found) isDoubtful = true
            entry.holderIds.set(id, found)
          }
          if (isDoubtful) onDoubt(entry.key)
        }),
        Effect.catch((error) =>
          Effect.sync(() => {
            // A lost connection is followed by `onStart`; and what is refused now will be refused again.
            if (error.reason === "Timeout" && watched.get(entry.key) === entry) readLater(entry)
          })
        )
      )
    })

  yield* Effect.gen(function*() {
    while (true) {
      const moment = now()
      let next = Infinity
      for (const [entry, at] of due) {
        if (at > moment) {
          next = at
          break
        }
        due.delete(entry)
        runInBackground(read(entry))
      }
      if (next === Infinity) {
        alarm.closeUnsafe()
        isAsleep = true
        yield* alarm.await
        isAsleep = false
      } else yield* Effect.sleep(Math.ceil(next - moment))
    }
  }).pipe(Effect.forkScoped)

  const watch = (key: string, holderId: string): void => {
    let entry = watched.get(key)
    if (entry === undefined) {
      entry = { key, hash: undefined, holderIds: new Map(), readAt: -Infinity }
      watched.set(key, entry)
    }
    entry.holderIds.set(holderId, true)
    readLater(entry)
  }

  const touch = (key: string): void => {
    const entry = watched.get(key)
    if (entry !== undefined) readLater(entry)
  }

  const unwatch = (key: string, holderId: string): void => {
    const entry = watched.get(key)
    if (entry === undefined) return
    forget(entry, holderId)
    if (entry.holderIds.size > 0) readLater(entry)
  }

  return {
    isOn: () => on,
    watch,
    touch,
    unwatch,
    onStart: () => {
      on = true
      for (const entry of watched.values()) readSoon(entry)
    },
    onChange: (hash) => {
      const changed = hash === undefined ? watched.values() : [byHash.get(hash)]
      for (const entry of changed) if (entry !== undefined) readSoon(entry)
    }
  }
})

const noting = <A, E>(effect: Effect.Effect<A, E>, note: (answer: A) => void): Effect.Effect<A, E> =>
  Effect.map(effect, (answer) => {
    note(answer)
    return answer
  })

/**
 * The same store, whose leases are watched from their grant to their end, wherever they are kept.
 *
 * @internal
 */
export const observe = <S extends LockStore.LockStore["Service"]>(store: S, trackings: ReadonlyArray<Tracking>): S => {
  const watch = ({ holderId, key }: Lease): void => {
    for (const tracking of trackings) tracking.watch(key, holderId)
  }
  const touch = (key: string): void => {
    for (const tracking of trackings) tracking.touch(key)
  }
  const unwatch = (key: string, holderId: string): void => {
    for (const tracking of trackings) tracking.unwatch(key, holderId)
  }
  const watchIfGranted = (request: Lease) => (answer: { readonly _tag: string }): void => {
    if (answer._tag === "Granted") watch(request)
    else touch(request.key)
  }
  return {
    ...store,
    attempt: (request) => {
      const note = watchIfGranted(request)
      return Effect.map(store.attempt(request), (answer) => {
        note(answer)
        return answer._tag === "Queued" ? { ...answer, signal: noting(answer.signal, note) } : answer
      })
    },
    takeover: (request) => noting(store.takeover(request), () => watch(request)),
    adopt: (ticket, request) => noting(store.adopt(ticket, request), watchIfGranted(request)),
    renew: (lease, ttl) => noting(store.renew(lease, ttl), () => touch(lease.key)),
    watch: (lease) => noting(store.watch(lease), () => touch(lease.key)),
    release: (lease, keepFor) =>
      Effect.suspend(() => {
        unwatch(lease.key, lease.holderId)
        return store.release(lease, keepFor)
      }),
    abandon: (key, holderId) =>
      Effect.suspend(() => {
        unwatch(key, holderId)
        return store.abandon(key, holderId)
      }),
    transfer: (lease, ticketId) =>
      Effect.suspend(() => {
        // Before it is sent: what is set aside must not be taken for lost while the answer is on its way.
        unwatch(lease.key, lease.holderId)
        return Effect.onError(store.transfer(lease, ticketId), () => Effect.sync(() => watch(lease)))
      })
  }
}

/**
 * `observe` for a store that counts permits.
 *
 * @internal
 */
export const observePermits = (
  store: LockStore.PermitStore["Service"],
  tracking: Tracking
): LockStore.PermitStore["Service"] => ({
  ...observe(store, [tracking]),
  shrink: (lease, permits) => noting(store.shrink(lease, permits), () => tracking.touch(lease.key)),
  setLimit: (key, declared, limit) => noting(store.setLimit(key, declared, limit), () => tracking.touch(key))
})

type Lease = Pick<LockStore.Held, "key" | "holderId">
