import { LockStore } from "@effect-lock/core"
import { Clock, Context, Effect, Layer } from "effect"

type Store = LockStore.PermitStore["Service"]
type Attempt = Effect.Effect<LockStore.Attempt, Effect.Error<ReturnType<Store["attempt"]>>>

interface BrokenStore {
  readonly name: string
  readonly caughtBy: ReadonlyArray<string>
  /** What is broken of a store that is not. */
  readonly change: (store: Store) => Partial<Store>
}

/** The memory store, broken. */
export const layer = ({ change }: BrokenStore): Layer.Layer<LockStore.LockStore | LockStore.PermitStore> =>
  Layer.effectContext(
    Effect.map(Layer.build(Layer.fresh(LockStore.layerMemory)), (context) => {
      const store = Context.get(context, LockStore.PermitStore)
      const broken = { ...store, ...change(store) }
      return Context.make(LockStore.LockStore, broken).pipe(Context.add(LockStore.PermitStore, broken))
    })
  )

const mapGrants = (attempt: Attempt, change: (grant: LockStore.Grant) => LockStore.Grant): Attempt =>
  Effect.map(attempt, (answer) => {
    switch (answer._tag) {
      case "Granted":
        return { _tag: "Granted", grant: change(answer.grant) }
      case "Refused":
      case "QueueFull":
      case "OtherLimit":
        return answer
      case "Queued": {
        const signal = Effect.map(
          answer.signal,
          (signal): LockStore.Signal => signal._tag === "Granted" ? { ...signal, grant: change(signal.grant) } : signal
        )
        return { ...answer, signal }
      }
    }
  })

const mapStanding = (
  attempt: Attempt,
  change: (standing: LockStore.Standing) => LockStore.Standing
): Attempt =>
  Effect.map(attempt, (answer) => "standing" in answer ? { ...answer, standing: change(answer.standing) } : answer)

const mapHolders = <A extends { readonly holders: LockStore.Standing["holders"] }>(
  state: A,
  change: (holder: LockStore.Standing["holders"][number]) => LockStore.Standing["holders"][number]
): A => ({ ...state, holders: state.holders.map(change) })

const now = Clock.clockWith((clock) => Effect.sync(() => LockStore.nowUnsafe(clock)))

const inBackground = (effect: Effect.Effect<unknown, unknown>) => Effect.forkDetach(Effect.ignore(effect))

/** Verbs of whoever holds the key, where they should be of one lease. */
const ofAnyHolder = (store: Store, key: string, run: (lease: LockStore.Held) => ReturnType<Store["release"]>) =>
  Effect.flatMap(
    store.inspect(key),
    ({ holders: [holder] }) =>
      holder === undefined ? Effect.succeed<LockStore.Confirmation>("NotHeld") : run({ key, ...holder })
  )

const abandonOnly = (
  store: Store,
  which: (standing: LockStore.Standing, holderId: string) => boolean
): Partial<Store> => ({
  abandon: (key, holderId) =>
    Effect.flatMap(store.inspect(key), ({ holders, waiters }) => {
      const position = waiters.findIndex((waiter) => waiter.holderId === holderId)
      const standing = { holders, position, queueLength: waiters.length }
      return which(standing, holderId) ? store.abandon(key, holderId) : Effect.succeed(standing)
    })
})

const renaming = (store: Store, rename: (key: string) => string): Partial<Store> => ({
  attempt: (request) => store.attempt({ ...request, key: rename(request.key) }),
  renew: (lease, ttl) => store.renew({ ...lease, key: rename(lease.key) }, ttl),
  release: (lease, keepFor) => store.release({ ...lease, key: rename(lease.key) }, keepFor),
  abandon: (key, holderId) => store.abandon(rename(key), holderId),
  inspect: (key) => Effect.map(store.inspect(rename(key)), (state) => ({ ...state, key }))
})

/** One for every way to break a promise of the port, and the checks that have to find out. */
export const brokenStores: ReadonlyArray<BrokenStore> = [
  {
    name: "grants what is taken",
    caughtBy: [
      "attempt: one of many at the same time is granted",
      "queue: everybody is granted, one at a time",
      "Lock: no update is lost, and nobody is inside with somebody else",
      "Lock: withLockIfAvailable runs only while nobody holds the key"
    ],
    change: (store) => {
      let fake = 2 ** 52
      return {
        attempt: (request) =>
          Effect.flatMap(store.attempt(request), (answer) =>
            answer._tag === "Granted"
              ? Effect.succeed(answer)
              : Effect.map(now, (sentAt) => ({ _tag: "Granted", grant: { token: ++fake, ttl: request.ttl, sentAt } })))
      }
    }
  },
  {
    name: "has no queue",
    caughtBy: [
      "attempt: queues who waits, and tells position and queue length",
      "attempt: who does not wait never passes who does",
      "inspect: shows waiters in order, and changes nothing"
    ],
    change: (store) => ({
      attempt: (request) =>
        Effect.map(
          store.attempt({ ...request, wait: false }),
          (answer): LockStore.Attempt =>
            answer._tag === "Refused" && request.wait
              ? { ...answer, _tag: "Queued", signal: Effect.as(Effect.sleep(5), { _tag: "LookAgain" }) }
              : answer
        )
    })
  },
  {
    name: "grants to the last in line",
    caughtBy: [
      "queue: waiters are granted in the order in which they were registered",
      "Lock: waiters enter in order"
    ],
    change: (store) => {
      const stacks = new Map<string, Array<string>>()
      return {
        attempt: (request) =>
          Effect.suspend(() => {
            const stack = stacks.get(request.key) ?? []
            stacks.set(request.key, stack)
            const top = stack.at(-1)
            const queue = (standing: LockStore.Standing): LockStore.Attempt => {
              if (!stack.includes(request.holderId)) stack.push(request.holderId)
              return { _tag: "Queued", standing, signal: Effect.as(Effect.sleep(5), { _tag: "LookAgain" }) }
            }
            if (request.wait && top !== request.holderId && stack.includes(request.holderId)) {
              return Effect.succeed(queue({ holders: [], position: 0, queueLength: 0 }))
            }
            return Effect.map(store.attempt({ ...request, wait: false }), (answer) => {
              if (answer._tag === "Refused" && request.wait) return queue(answer.standing)
              if (top === request.holderId) stack.pop()
              return answer
            })
          })
      }
    }
  },
  {
    name: "starts anew when asked again",
    caughtBy: [
      "attempt: asked again by the holder, gives the same grant and never shortens it",
      "attempt: asked again by a waiter, keeps its place",
      "attempt: asked again by a waiter that was granted meanwhile, gives that grant",
      "attempt: sent twice at the same time, counts once"
    ],
    change: (store) => ({
      attempt: (request) => Effect.andThen(store.abandon(request.key, request.holderId), store.attempt(request))
    })
  },
  {
    name: "queues who does not wait",
    caughtBy: [
      "attempt: refuses a taken key where told not to wait, says who is in the way, and leaves nothing behind",
      "Lock: tryAcquire gives None while the key is held, and Some after"
    ],
    change: (store) => ({
      attempt: (request) =>
        Effect.map(
          store.attempt({ ...request, wait: true }),
          (answer) => answer._tag === "Queued" && !request.wait ? { ...answer, _tag: "Refused" } : answer
        )
    })
  },
  {
    name: "counts positions from one",
    caughtBy: [
      "attempt: queues who waits, and tells position and queue length",
      "Lock: waitTimeout tells the place in the queue"
    ],
    change: (store) => ({
      attempt: (request) =>
        mapStanding(store.attempt(request), (standing) => ({ ...standing, position: standing.position + 1 })),
      abandon: (key, holderId) =>
        Effect.map(store.abandon(key, holderId), (standing) => ({ ...standing, position: standing.position + 1 }))
    })
  },
  {
    name: "takes any limit",
    caughtBy: [
      "attempt: refuses another limit while the key is in use, and takes it when it is free"
    ],
    change: (store) => {
      const limits = new Map<string, number>()
      return {
        attempt: (request) => {
          const limit = limits.get(request.key) ?? request.limit
          limits.set(request.key, limit)
          return store.attempt({ ...request, limit })
        }
      }
    }
  },
  {
    name: "grants what there is of what is asked for",
    caughtBy: [
      "attempt: refuses more permits than there are",
      "setLimit: a waiter who asks for more than there are any more is told so, and is in nobody's way"
    ],
    change: (store) => ({
      attempt: (request) =>
        Effect.flatMap(
          store.attempt({ ...request, permits: Math.min(request.permits, request.limit) }),
          (answer) =>
            answer._tag === "OtherLimit" && answer.limit < request.permits
              ? store.attempt({ ...request, permits: answer.limit })
              : Effect.succeed(answer)
        )
    })
  },
  {
    name: "knows no priorities",
    caughtBy: [
      "priority: who has more of it stands in front, and who has as much in the order of arrival",
      "priority: a head start of ten seconds, so that nobody is passed for ever"
    ],
    change: (store) => ({ attempt: (request) => store.attempt({ ...request, priority: 0 }) })
  },
  {
    name: "serves who has priority first, whoever came before",
    caughtBy: ["priority: a head start of ten seconds, so that nobody is passed for ever"],
    change: (store) => ({ attempt: (request) => store.attempt({ ...request, priority: request.priority * 1e6 }) })
  },
  {
    name: "lets everybody wait",
    caughtBy: ["attempt: who would have to wait behind too many is told so, and who has a place already keeps it"],
    change: (store) => ({ attempt: (request) => store.attempt({ ...request, maxWaiters: Infinity }) })
  },
  {
    name: "counts who waits already among those in the way",
    caughtBy: ["attempt: who would have to wait behind too many is told so, and who has a place already keeps it"],
    change: (store) => ({
      attempt: (request) =>
        Effect.flatMap(
          store.inspect(request.key),
          ({ waiters }) =>
            Effect.map(store.attempt(request), (answer) =>
              answer._tag === "Queued" && waiters.length >= request.maxWaiters
                ? { _tag: "QueueFull", standing: answer.standing }
                : answer)
        )
    })
  },
  {
    name: "shrinks nothing",
    caughtBy: ["shrink: gives back all but so many, never adds any, and acts only where holder id and token match"],
    change: () => ({ shrink: () => Effect.succeed("Done") })
  },
  {
    name: "shrinks whoever holds",
    caughtBy: ["shrink: gives back all but so many, never adds any, and acts only where holder id and token match"],
    change: (store) => ({
      shrink: (lease, permits) => ofAnyHolder(store, lease.key, (holder) => store.shrink(holder, permits))
    })
  },
  {
    name: "sets no limit",
    caughtBy: [
      "setLimit: growing grants at once, and holds for all who declare the same limit",
      "setLimit: shrinking ends no lease, and lets nobody in who does not fit"
    ],
    change: () => ({ setLimit: () => Effect.succeed({ _tag: "Done" }) })
  },
  {
    name: "forgets the limit that was set when nobody uses the key",
    caughtBy: ["setLimit: growing grants at once, and holds for all who declare the same limit"],
    change: (store) => ({
      release: (lease, keepFor) =>
        Effect.tap(
          store.release(lease, keepFor),
          () =>
            Effect.flatMap(store.inspect(lease.key), ({ holders, waiters }) =>
              holders.length + waiters.length > 0
                ? Effect.void
                : store.setLimit(lease.key, 2, 2))
        )
    })
  },
  {
    name: "evicts when there are fewer permits",
    caughtBy: ["setLimit: shrinking ends no lease, and lets nobody in who does not fit"],
    change: (store) => ({
      setLimit: (key, declared, limit) =>
        Effect.tap(
          store.setLimit(key, declared, limit),
          () =>
            Effect.flatMap(store.inspect(key), ({ holders }) =>
              Effect.forEach(holders.slice(limit), ({ holderId }) => store.abandon(key, holderId)))
        )
    })
  },
  {
    name: "tells nobody that there are not so many permits any more",
    caughtBy: ["setLimit: a waiter who asks for more than there are any more is told so, and is in nobody's way"],
    change: (store) => ({
      attempt: (request) =>
        Effect.map(store.attempt(request), (answer) =>
          answer._tag === "Queued"
            ? {
              ...answer,
              signal: Effect.flatMap(answer.signal, (signal) =>
                signal._tag === "LookAgain"
                  ? Effect.never
                  : Effect.succeed(signal))
            }
            : answer)
    })
  },
  {
    name: "sets the limit for whoever declares what",
    caughtBy: ["setLimit: of a key in use only with the limit that is declared, of a free one with any"],
    change: (store) => {
      const declared = new Map<string, number>()
      return {
        attempt: (request) => {
          declared.set(request.key, request.limit)
          return store.attempt(request)
        },
        setLimit: (key, own, limit) => store.setLimit(key, declared.get(key) ?? own, limit)
      }
    }
  },
  {
    name: "does not look who waits",
    caughtBy: [
      "watch: tells whether anybody waits, of a lease only",
      "watch: who queues later, with whatever client, is told of or seen by the next look"
    ],
    change: (store) => ({
      onNews: () => Effect.void,
      watch: (lease) =>
        Effect.map(store.watch(lease), (watch) => watch._tag === "Done" ? { _tag: "Done", isWanted: false } : watch)
    })
  },
  {
    name: "watches what nobody holds",
    caughtBy: ["watch: tells whether anybody waits, of a lease only"],
    change: (store) => ({
      watch: (lease) =>
        Effect.map(store.watch(lease), (watch) => watch._tag === "Done" ? watch : { _tag: "Done", isWanted: false })
    })
  },
  {
    name: "does not show how many permits there are",
    caughtBy: ["inspect: shows how many permits a key in use has", "inspect: shows how many permits a semaphore has"],
    change: (store) => ({
      inspect: (key) => Effect.map(store.inspect(key), ({ limit: _, ...state }) => state)
    })
  },
  {
    name: "lists by the letter",
    caughtBy: ["list: the keys in use that begin so, each once, whatever they are made of"],
    change: (store) => ({
      list: (prefix) =>
        Effect.map(store.list(""), (keys) => {
          const pattern = new RegExp(`^${prefix.replaceAll(/[\\^$.|+(){}[\]]/g, "\\$&").replaceAll(/[*?]/g, ".$&")}`)
          return keys.filter((key) => pattern.test(key))
        })
    })
  },
  {
    name: "ignores permits",
    caughtBy: [
      "permits: holders fit in as long as their sum is within the limit",
      "permits: a big request at the head of the queue is not starved by small ones",
      "permits: conserved under load"
    ],
    change: (store) => ({
      attempt: (request) => store.attempt({ ...request, permits: 1 })
    })
  },
  {
    name: "loses permits",
    caughtBy: [
      "permits: holders fit in as long as their sum is within the limit",
      "permits: one release grants to everybody at the head who fits"
    ],
    change: (store) => ({
      attempt: (request) => store.attempt(request.permits === 2 ? { ...request, permits: 3 } : request)
    })
  },
  {
    name: "grants one at a time",
    caughtBy: [
      "permits: one release grants to everybody at the head who fits",
      "permits: those of a holder that left the queue, or ran out of time, go to the next"
    ],
    change: (store) => ({
      attempt: (request) => store.attempt(request.limit > 1 ? { ...request, permits: request.limit } : request)
    })
  },
  {
    name: "renews nothing",
    caughtBy: [
      "renew: makes a lease live on, with the same token",
      "Lock: renewal keeps a lease with a short ttl alive, with its token",
      "Lock: extend gives a lease more time in the store"
    ],
    change: (store) => ({ renew: (lease) => store.renew(lease, 1) })
  },
  {
    name: "renews what is gone",
    caughtBy: [
      "renew: acts only where holder id and token match, and never creates a lease",
      "renew: not held once it ran out, even if nobody took the key",
      "Lock: a lease that is gone from the store interrupts the body with LockLost"
    ],
    change: (store) => ({
      renew: (lease, ttl) =>
        Effect.flatMap(store.renew(lease, ttl), (answer) =>
          answer === "Done" ? Effect.succeed(answer) : Effect.as(
            store.attempt({
              ...lease,
              ttl,
              permits: 1,
              limit: 1,
              wait: false,
              priority: 0,
              maxWaiters: Infinity,
              floor: 0,
              metadata: {}
            }),
            "Done"
          ))
    })
  },
  {
    name: "renews whoever holds",
    caughtBy: [
      "renew: acts only where holder id and token match, and never creates a lease",
      "renew: a waiter holds nothing"
    ],
    change: (store) => ({
      renew: (lease, ttl) => ofAnyHolder(store, lease.key, (holder) => store.renew(holder, ttl))
    })
  },
  {
    name: "says done to every renewal",
    caughtBy: [
      "renew: not held once it ran out, even if nobody took the key",
      "renew: not held after the release"
    ],
    change: (store) => ({
      renew: (lease, ttl) => Effect.as(store.renew(lease, ttl), "Done")
    })
  },
  {
    name: "renews with another token",
    caughtBy: [
      "renew: makes a lease live on, with the same token"
    ],
    change: (store) => ({
      renew: (lease, ttl) =>
        Effect.flatMap(
          store.renew(lease, ttl),
          (answer) =>
            answer === "NotHeld" ? Effect.succeed(answer) : store.abandon(lease.key, lease.holderId).pipe(
              Effect.andThen(
                store.attempt({
                  ...lease,
                  ttl,
                  permits: 1,
                  limit: 1,
                  wait: false,
                  priority: 0,
                  maxWaiters: Infinity,
                  floor: 0,
                  metadata: {}
                })
              ),
              Effect.as(answer)
            )
        )
    })
  },
  {
    name: "ends with the last ttl asked for",
    caughtBy: [
      "renew: never shortens a lease"
    ],
    change: (store) => {
      const last = new Map<string, number>()
      const endAfter = (key: string, holderId: string, ttl: number) =>
        Effect.suspend(() => {
          const mark = (last.get(holderId) ?? 0) + 1
          last.set(holderId, mark)
          return inBackground(
            Effect.delay(
              Effect.suspend(() => last.get(holderId) === mark ? store.abandon(key, holderId) : Effect.void),
              ttl
            )
          )
        })
      return {
        attempt: (request) =>
          Effect.tap(
            store.attempt(request),
            ({ _tag }) => _tag === "Granted" ? endAfter(request.key, request.holderId, request.ttl) : Effect.void
          ),
        renew: (lease, ttl) => Effect.tap(store.renew(lease, ttl), () => endAfter(lease.key, lease.holderId, ttl))
      }
    }
  },
  {
    name: "ends before its time",
    caughtBy: [
      "attempt: grants a free key, with a token and a lease that lives as long as it says",
      "signal: granted when the holder releases, for as long as it says, with a token that works"
    ],
    change: (store) => ({
      attempt: (request) =>
        mapGrants(store.attempt({ ...request, ttl: request.ttl / 2 }), (grant) => ({ ...grant, ttl: request.ttl }))
    })
  },
  {
    name: "lets the ttl run while waiting",
    caughtBy: [
      "signal: a waiter's own ttl runs from its grant on, not while it waits"
    ],
    change: (store) => ({
      attempt: (request) =>
        Effect.tap(store.attempt(request), ({ _tag }) =>
          _tag === "Queued"
            ? inBackground(Effect.delay(store.abandon(request.key, request.holderId), request.ttl))
            : Effect.void)
    })
  },
  {
    name: "releases whoever holds",
    caughtBy: [
      "release: frees the key, once",
      "release: touches only its own holder id and token"
    ],
    change: (store) => ({
      release: (lease, keepFor) => ofAnyHolder(store, lease.key, (holder) => store.release(holder, keepFor))
    })
  },
  {
    name: "releases any token",
    caughtBy: [
      "release: touches only its own holder id and token"
    ],
    change: (store) => ({
      release: (lease, keepFor) =>
        ofAnyHolder(
          store,
          lease.key,
          (holder) => store.release(holder.holderId === lease.holderId ? holder : lease, keepFor)
        )
    })
  },
  {
    name: "releases nothing",
    caughtBy: [
      "Lock: the body's failure is returned unchanged, and the key is free",
      "Lock: acquire holds the key until its scope closes, and tokens grow",
      "Lock: interrupted while holding, runs the body's finalizers before the next one enters"
    ],
    change: () => ({ release: () => Effect.succeed("Done") })
  },
  {
    name: "says done to every release",
    caughtBy: [
      "release: frees the key, once"
    ],
    change: (store) => ({
      release: (lease, keepFor) => Effect.as(store.release(lease, keepFor), "Done")
    })
  },
  {
    name: "ignores keep for",
    caughtBy: [
      "release: keepFor keeps the key taken by nobody for that long, then it moves on to who waits",
      "release: keepFor without anybody waiting, then the key is free",
      "Lock: minHold keeps the key taken, however quick the body was"
    ],
    change: (store) => ({ release: (lease) => store.release(lease, 0) })
  },
  {
    name: "keeps for ever",
    caughtBy: [
      "release: keepFor keeps the key taken by nobody for that long, then it moves on to who waits",
      "release: keepFor without anybody waiting, then the key is free"
    ],
    change: (store) => ({
      release: (lease, keepFor) => store.release(lease, keepFor > 0 ? 2 ** 31 : 0)
    })
  },
  {
    name: "keeps for its holder",
    caughtBy: [
      "attempt: sent again after the release, does not get back what is only kept",
      "release: keepFor keeps the key taken by nobody for that long, then it moves on to who waits"
    ],
    change: (store) => ({
      release: (lease, keepFor) =>
        keepFor === 0
          ? store.release(lease, 0)
          : Effect.tap(
            store.renew(lease, 1),
            () => inBackground(Effect.delay(store.abandon(lease.key, lease.holderId), keepFor))
          )
    })
  },
  {
    name: "abandons no waiter",
    caughtBy: [
      "abandon: takes a waiter out of the queue, and tells how things stood just before",
      "abandon: a waiter that left is never granted",
      "Lock: interrupted while waiting, leaves nothing behind, and the next one enters",
      "Lock: waitTimeout fails with who was in the way, and leaves nothing behind",
      "Lock: a layer that closes releases what it holds, and sends its waiters home"
    ],
    change: (store) => abandonOnly(store, ({ position }) => position === -1)
  },
  {
    name: "abandons no holder",
    caughtBy: [
      "abandon: ends a lease",
      "signal: granted when the holder is abandoned"
    ],
    change: (store) => abandonOnly(store, ({ holders }, id) => holders.every(({ holderId }) => holderId !== id))
  },
  {
    name: "abandons the holder on behalf of a stranger",
    caughtBy: [
      "abandon: an unknown holder id changes nothing, on whatever key"
    ],
    change: (store) => ({
      abandon: (key, holderId) =>
        Effect.tap(
          store.abandon(key, holderId),
          ({ holders: [holder], position }) =>
            position === -1 && holder !== undefined ? store.abandon(key, holder.holderId) : Effect.void
        )
    })
  },
  {
    name: "tells how things stand after",
    caughtBy: [
      "abandon: takes a waiter out of the queue, and tells how things stood just before",
      "abandon: ends a lease"
    ],
    change: (store) => ({
      abandon: (key, holderId) => Effect.andThen(store.abandon(key, holderId), store.abandon(key, holderId))
    })
  },
  {
    name: "tells nobody",
    caughtBy: [
      "signal: granted when the holder releases, for as long as it says, with a token that works",
      "signal: kept for a waiter that listens late",
      "Lock: maxHold interrupts the body, and lets the next one in"
    ],
    change: (store) => ({
      attempt: (request) =>
        Effect.map(
          store.attempt(request),
          (answer) => answer._tag === "Queued" ? { ...answer, signal: Effect.never } : answer
        )
    })
  },
  {
    name: "dates grants too late",
    caughtBy: [
      "attempt: grants a free key, with a token and a lease that lives as long as it says",
      "signal: kept for a waiter that listens late"
    ],
    change: (store) => ({
      attempt: (request) =>
        mapGrants(store.attempt(request), (grant) => ({
          ...grant,
          sentAt: { monotonic: grant.sentAt.monotonic + 500, wall: grant.sentAt.wall + 500 }
        }))
    })
  },
  {
    name: "never expires",
    caughtBy: [
      "inspect: does not show who ran out of time",
      "signal: granted when a holder that never renews runs out of time, and not before",
      "token: strictly greater from grant to grant, however the one before ended"
    ],
    change: (store) => ({
      attempt: (request) =>
        mapGrants(store.attempt({ ...request, ttl: 2 ** 31 }), (grant) => ({ ...grant, ttl: request.ttl }))
    })
  },
  {
    name: "mirrors tokens",
    caughtBy: [
      "token: strictly greater from grant to grant, however the one before ended",
      "token: greater than the floor, of who is granted at once and of who waits"
    ],
    change: (store) => {
      const mirror = (token: number) => 2 ** 52 - token
      const real = (lease: LockStore.Held) => ({ ...lease, token: mirror(lease.token) })
      const seen = (holder: LockStore.Standing["holders"][number]) => ({ ...holder, token: mirror(holder.token) })
      return {
        attempt: (request) =>
          mapStanding(
            mapGrants(store.attempt({ ...request, floor: 0 }), (grant) => ({ ...grant, token: mirror(grant.token) })),
            (standing) => mapHolders(standing, seen)
          ),
        renew: (lease, ttl) => store.renew(real(lease), ttl),
        release: (lease, keepFor) => store.release(real(lease), keepFor),
        abandon: (key, holderId) => Effect.map(store.abandon(key, holderId), (standing) => mapHolders(standing, seen)),
        inspect: (key) => Effect.map(store.inspect(key), (state) => mapHolders(state, seen))
      }
    }
  },
  {
    name: "ignores the floor",
    caughtBy: [
      "token: greater than the floor, of who is granted at once and of who waits"
    ],
    change: (store) => ({ attempt: (request) => store.attempt({ ...request, floor: 0 }) })
  },
  {
    name: "loses metadata",
    caughtBy: [
      "inspect: shows holders, whatever they say of themselves",
      "inspect: shows waiters in order, and changes nothing",
      "Lock: waitTimeout fails with who was in the way, and leaves nothing behind"
    ],
    change: (store) => ({
      attempt: (request) => store.attempt({ ...request, metadata: {} })
    })
  },
  {
    name: "shows waiters backwards",
    caughtBy: [
      "inspect: shows waiters in order, and changes nothing"
    ],
    change: (store) => ({
      inspect: (key) => Effect.map(store.inspect(key), (state) => ({ ...state, waiters: state.waiters.toReversed() }))
    })
  },
  {
    name: "changes what it shows",
    caughtBy: [
      "inspect: shows waiters in order, and changes nothing"
    ],
    change: (store) => ({
      inspect: (key) =>
        Effect.tap(
          store.inspect(key),
          ({ waiters: [first] }) => first === undefined ? Effect.void : store.abandon(key, first.holderId)
        )
    })
  },
  {
    name: "forgets since when",
    caughtBy: [
      "inspect: shows holders, whatever they say of themselves"
    ],
    change: (store) => ({
      inspect: (key) =>
        Effect.map(store.inspect(key), (state) => mapHolders(state, (holder) => ({ ...holder, heldFor: 0 })))
    })
  },
  {
    name: "keeps empty keys",
    caughtBy: [
      "inspect: nobody holds a free key, and nobody waits for it"
    ],
    change: (store) => ({
      inspect: (key) =>
        Effect.map(store.inspect(key), (state) =>
          state.holders.length > 0 ? state : {
            ...state,
            holders: [{ holderId: "", token: 1, permits: 0, heldFor: 0, timeLeft: 0, metadata: {} }]
          })
    })
  },
  {
    name: "has one key only",
    caughtBy: [
      "key: independent of every other"
    ],
    change: (store) => renaming(store, () => "the key")
  },
  {
    name: "trims keys",
    caughtBy: [
      "key: any string of up to 1024 characters"
    ],
    change: (store) => renaming(store, (key) => key.trim())
  },
  {
    name: "cuts keys",
    caughtBy: [
      "key: any string of up to 1024 characters"
    ],
    change: (store) => renaming(store, (key) => key.slice(0, 1023))
  },
  {
    name: "drifts too much",
    caughtBy: [
      "store: has a name, and a drift factor below a half"
    ],
    change: () => ({ driftFactor: 0.6 })
  },
  {
    name: "keeps the waiters of clients that are gone",
    caughtBy: ["queue: the waiters of a client that is gone do not block those behind them, one after another"],
    change: () => ({})
  }
]
